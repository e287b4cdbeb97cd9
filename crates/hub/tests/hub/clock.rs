//! Messages to devices under clocks that are wrong.

use fieldpost_hub::Hub;
use fieldpost_hub::c2d::{Accepted, Cause, SendRefused, Settlement, Target};
use fieldpost_hub::clock::{Clock as _, ManualClock};
use fieldpost_model::{Ack, CloudMessage, Timestamp};

use crate::bench::{Bench, identity, settle};
use crate::commands::{count, dead, message_id, seconds, send, send_many, stop, take};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Lets time pass, in the steps in which the hub looks at its clock.
async fn pass(clock: &ManualClock, span: u64) {
    for _ in 0..span / 5 {
        clock.advance(seconds(5));
        settle().await;
    }
}

async fn send_until(hub: &Hub, expires: Timestamp) -> Result<Accepted, SendRefused> {
    let message = CloudMessage {
        message_id: Some("until".into()),
        expires: Some(expires),
        ..CloudMessage::default()
    };
    let target = Target {
        identity: identity("dev1"),
        fallback: None,
    };
    hub.c2d().sender("service").send_one(target, &message).await
}

#[tokio::test]
async fn a_restart_with_a_clock_that_is_ahead_expires_nothing() {
    let bench = Bench::start().await;
    let device = bench.principal("dev1").await;
    send_many(&bench.hub, "dev1", &["a", "b"]).await;
    let stopped = stop(bench).await;
    let (clock, right) = (&stopped.clock, stopped.clock.now());
    clock.set_wall(right.saturating_add(seconds(3650 * DAY)));
    let hub = &stopped.start(stopped.memory.queues.clone()).await;
    pass(clock, 9 * MINUTE).await;
    assert_eq!(count(hub, &device).await, 2);
    // What waits can be had, and what a service sends meanwhile is taken by either time.
    assert_eq!(
        message_id(&take(hub, &device, Settlement::Complete).await),
        "a"
    );
    let now = right.saturating_add(seconds(9 * MINUTE));
    send_until(hub, now.saturating_add(seconds(HOUR)))
        .await
        .unwrap();
    clock.set_wall(now);
    pass(clock, 20 * MINUTE).await;
    assert_eq!(
        message_id(&take(hub, &device, Settlement::Complete).await),
        "b"
    );
    assert_eq!(
        message_id(&take(hub, &device, Settlement::Complete).await),
        "until"
    );
    assert_eq!(dead(hub).await, []);
}

#[tokio::test]
async fn a_hub_that_was_stopped_for_long_ends_what_is_over_late_and_nothing_that_is_new() {
    let bench = Bench::start().await;
    let device = bench.principal("dev1").await;
    send_many(&bench.hub, "dev1", &["old"]).await;
    let stopped = stop(bench).await;
    let clock = &stopped.clock;
    clock.set_wall(clock.now().saturating_add(seconds(7 * DAY)));
    let hub = &stopped.start(stopped.memory.queues.clone()).await;
    let new = send(hub, "dev1", "new", Ack::None).await.unwrap();
    assert_eq!(new.enqueued, clock.now());
    assert_eq!(new.expires, clock.now().saturating_add(seconds(HOUR)));
    pass(clock, 9 * MINUTE + 55).await;
    assert_eq!(count(hub, &device).await, 2);
    pass(clock, 10).await;
    assert_eq!(dead(hub).await, [(Cause::Expired, 0)]);
    pass(clock, 49 * MINUTE).await;
    assert_eq!(count(hub, &device).await, 1);
    pass(clock, 2 * MINUTE).await;
    assert_eq!(count(hub, &device).await, 0);
}

#[tokio::test]
async fn what_is_settled_while_the_clock_is_doubted_is_not_trimmed_by_the_wrong_time() {
    let bench = Bench::start().await;
    let device = bench.principal("dev1").await;
    send_many(&bench.hub, "dev1", &["a"]).await;
    let stopped = stop(bench).await;
    let clock = &stopped.clock;
    // As long as dead letters are kept.
    clock.set_wall(clock.now().saturating_add(seconds(7 * DAY)));
    let hub = &stopped.start(stopped.memory.queues.clone()).await;
    take(hub, &device, Settlement::Reject).await;
    pass(clock, 30 * MINUTE).await;
    assert_eq!(dead(hub).await, [(Cause::Rejected, 0)]);
}

/// A step of the clock that is taken back, and one that stays.
#[tokio::test]
async fn a_step_of_an_hour_ends_refuses_and_reorders_nothing() {
    let check = async |ahead: bool, stays: bool| {
        let case = format!("ahead: {ahead}, stays: {stays}");
        let bench = Bench::start().await;
        let (hub, clock) = (&bench.hub, &bench.clock);
        let device = bench.principal("dev1").await;
        pass(clock, 5).await;
        let before = clock.now();
        let due = before.saturating_add(seconds(30 * MINUTE));
        send_until(hub, due).await.unwrap();
        let set = if ahead {
            before.saturating_add(seconds(HOUR + 1))
        } else {
            before.saturating_sub(seconds(HOUR + 1))
        };
        clock.set_wall(set);
        settle().await;
        // A client whose clock is right, whichever that is.
        for now in [before, set] {
            let soon = now.saturating_add(seconds(15 * MINUTE));
            send_until(hub, soon).await.expect(&case);
        }
        let accepted = send(hub, "dev1", "last", Ack::None).await.expect(&case);
        assert_eq!(accepted.enqueued, before.max(set), "{case}");
        pass(clock, 9 * MINUTE).await;
        assert_eq!(count(hub, &device).await, 4, "{case}");
        assert_eq!(dead(hub).await, [], "{case}");
        if !stays {
            clock.set_wall(before.saturating_add(seconds(9 * MINUTE)));
        }
        pass(clock, 2 * MINUTE).await;
        // What was over by the clock that turned out to be right is over now, and nothing else.
        let now = clock.now();
        let of_sent = [
            due,
            before.saturating_add(seconds(15 * MINUTE)),
            set.saturating_add(seconds(15 * MINUTE)),
            accepted.expires,
        ];
        let alive = of_sent.iter().filter(|expires| **expires > now).count();
        assert_eq!(count(hub, &device).await, alive as u64, "{case}");
        let mut last = 0;
        for _ in 0..alive {
            let delivery = take(hub, &device, Settlement::Complete).await;
            assert!(delivery.sequence > last, "{case}");
            last = delivery.sequence;
        }
        assert_eq!(last, accepted.sequence, "{case}");
        // The clock turned out to show the earlier of the two times, or the later one.
        assert_eq!(alive == of_sent.len(), ahead != stays, "{case}");
    };
    for ahead in [true, false] {
        for stays in [true, false] {
            check(ahead, stays).await;
        }
    }
}

#[tokio::test]
async fn a_clock_that_is_moved_on_purpose_is_believed_at_the_start() {
    let bench = Bench::start().await;
    let device = bench.principal("dev1").await;
    send_many(&bench.hub, "dev1", &["a"]).await;
    settle().await;
    let ahead = bench.clock.now().saturating_add(seconds(2 * HOUR));
    bench.clock.set_wall(ahead);
    let hub = bench.reopen(|config| config.test_mode = true).await;
    let hub = &hub.unwrap();
    settle().await;
    assert_eq!(count(hub, &device).await, 0);
}
