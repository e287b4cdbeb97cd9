use std::sync::{Arc, Mutex};
use std::time::Duration;

use fieldpost_hub::c2d::Settlement;
use fieldpost_hub::clock::Clock as _;
use fieldpost_hub::settings::{CloudToDeviceSettings, FeedbackSettings, HubSettings};
use fieldpost_model::{Ack, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::bench::{Bench, settle};
use crate::commands::{
    DyingQueues, FullQueues, complete, feedback, lane, records, send, stop, take,
};

const FEEDBACK: u8 = 1;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test]
async fn a_sender_that_asks_is_told_as_azure_tells() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    bench.clock.advance(Duration::from_millis(123));
    complete(hub, &device, "mm", Ack::Full).await;
    settle().await;
    bench.clock.advance(seconds(1));
    let message = feedback(hub).await.unwrap();
    let made = Timestamp::parse("2027-01-02T03:04:05.123Z").unwrap();
    assert_eq!((message.enqueued, message.records), (made, 1));
    let found: Value = serde_json::from_slice(&message.json).unwrap();
    let expected = json!([{
        "originalMessageId": "mm",
        "description": "Success",
        "deviceGenerationId": &*device.generation_id,
        "deviceId": "dev1",
        "enqueuedTimeUtc": "2027-01-02T03:04:05.123Z",
        "statusCode": "Success",
    }]);
    assert_eq!(found, expected);
    assert_eq!(feedback(hub).await, None);
    assert_eq!(lane(&bench.memory.queues, FEEDBACK).count, 0);
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Complete,
    Reject,
    Expire,
    GiveBackTooOften,
    Purge,
}

#[tokio::test]
async fn each_sender_is_told_what_it_asked_for_and_nothing_else() {
    let check = async |ack: Ack, fate: Fate, expected: Option<&str>| {
        let bench = Bench::start().await;
        let hub = &bench.hub;
        let device = bench.principal("dev1").await;
        send(hub, "dev1", "m", ack).await.unwrap();
        match fate {
            Fate::Complete => drop(take(hub, &device, Settlement::Complete).await),
            Fate::Reject => drop(take(hub, &device, Settlement::Reject).await),
            Fate::Expire => {
                for _ in 0..4 {
                    bench.clock.advance(seconds(1200));
                    settle().await;
                }
            }
            Fate::GiveBackTooOften => {
                for _ in 0..10 {
                    take(hub, &device, Settlement::Abandon).await;
                }
            }
            Fate::Purge => {
                let id = &device.identity.device;
                assert_eq!(hub.c2d().purge(id, None).await.unwrap(), 1);
            }
        }
        settle().await;
        assert!(
            hub.c2d()
                .receive_one(&device, None)
                .await
                .unwrap()
                .is_none()
        );
        let told = feedback(hub).await.map(|message| records(&message));
        let expected = expected.map(|status| vec![(status.to_owned(), "m".to_owned())]);
        assert_eq!(told, expected, "{ack:?} {fate:?}");
        assert_eq!(feedback(hub).await, None);
    };
    for (fate, status) in [
        (Fate::Reject, "Rejected"),
        (Fate::Expire, "Expired"),
        (Fate::GiveBackTooOften, "DeliveryCountExceeded"),
        (Fate::Purge, "Purged"),
    ] {
        check(Ack::None, fate, None).await;
        check(Ack::Positive, fate, None).await;
        check(Ack::Negative, fate, Some(status)).await;
        check(Ack::Full, fate, Some(status)).await;
    }
    check(Ack::None, Fate::Complete, None).await;
    check(Ack::Positive, Fate::Complete, Some("Success")).await;
    check(Ack::Negative, Fate::Complete, None).await;
    check(Ack::Full, Fate::Complete, Some("Success")).await;
}

#[tokio::test]
async fn records_go_together_after_the_first_and_a_full_message_goes_at_once() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    let count = async || {
        settle().await;
        feedback(hub).await.map(|message| message.records)
    };
    complete(hub, &device, "first", Ack::Full).await;
    assert_eq!(count().await, Some(1));
    complete(hub, &device, "second", Ack::Full).await;
    bench.clock.advance(Duration::from_millis(14_999));
    complete(hub, &device, "third", Ack::Full).await;
    assert_eq!(count().await, None);
    bench.clock.advance(Duration::from_millis(1));
    assert_eq!(count().await, Some(2));
    for n in 0..70 {
        complete(hub, &device, &format!("{n}"), Ack::Full).await;
        settle().await;
    }
    assert_eq!(count().await, Some(64));
    assert_eq!(count().await, None);
    bench.clock.advance(seconds(15));
    assert_eq!(count().await, Some(6));
    // Quiet for long: nobody waits.
    bench.clock.advance(seconds(1000));
    complete(hub, &device, "late", Ack::Full).await;
    assert_eq!(count().await, Some(1));
}

#[tokio::test]
async fn nobody_is_told_of_a_device_that_is_gone() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let (old, other) = (bench.principal("dev1").await, bench.principal("dev2").await);
    complete(hub, &other, "0", Ack::Full).await;
    settle().await;
    assert_eq!(feedback(hub).await.unwrap().records, 1);
    complete(hub, &old, "1", Ack::Full).await;
    complete(hub, &other, "2", Ack::Full).await;
    let registry = hub.registry();
    let id = &old.identity.device;
    registry.delete(id, Default::default()).await.unwrap();
    bench.clock.advance(seconds(1));
    let new = bench.principal("dev1").await;
    complete(hub, &new, "3", Ack::Full).await;
    bench.clock.advance(seconds(15));
    settle().await;
    let told = records(&feedback(hub).await.unwrap());
    let ids: Vec<_> = told.iter().map(|(_, id)| id.as_str()).collect();
    assert_eq!(ids, ["2", "3"]);

    // When nobody is left to be told of, there is no message: clients reject an empty one.
    complete(hub, &new, "4", Ack::Full).await;
    registry.delete(id, Default::default()).await.unwrap();
    bench.clock.advance(seconds(15));
    settle().await;
    assert_eq!(feedback(hub).await, None);
    assert_eq!(lane(&bench.memory.queues, FEEDBACK).count, 0);
}

#[tokio::test]
async fn feedback_that_nobody_reads_expires_by_the_setting_and_leaves_nothing() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let mut settings = HubSettings::default();
    settings.cloud_to_device.feedback.ttl = seconds(60);
    hub.settings().apply(settings).await.unwrap();
    let device = bench.principal("dev1").await;
    for n in 0..200 {
        complete(hub, &device, &format!("{n}"), Ack::Full).await;
        bench.clock.advance(seconds(5));
        settle().await;
        assert!(lane(&bench.memory.queues, FEEDBACK).count <= 3);
    }
    // Those of the last minute are there, and no more than those.
    let mut kept = 0;
    while feedback(hub).await.is_some() {
        kept += 1;
    }
    assert!((3..=6).contains(&kept), "{kept}");
}

#[tokio::test]
async fn a_feedback_message_has_the_delivery_count_of_the_settings() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let settings = HubSettings {
        cloud_to_device: CloudToDeviceSettings {
            feedback: FeedbackSettings {
                max_delivery_count: 2,
                ..FeedbackSettings::default()
            },
            ..CloudToDeviceSettings::default()
        },
        ..HubSettings::default()
    };
    hub.settings().apply(settings).await.unwrap();
    let device = bench.principal("dev1").await;
    complete(hub, &device, "m", Ack::Full).await;
    settle().await;
    for count in 0..2 {
        let delivery = hub.c2d().feedback().receive_one().await.unwrap().unwrap();
        assert_eq!(delivery.delivery_count, count);
        let lock = delivery.lock;
        let feedback = hub.c2d().feedback();
        feedback.settle(lock, Settlement::Abandon).await.unwrap();
    }
    assert_eq!(feedback(hub).await, None);
    // It is gone: no dead letter, no history and no feedback about feedback.
    settle().await;
    for lane_number in [1, 2] {
        assert_eq!(lane(&bench.memory.queues, lane_number).count, 0);
    }
}

/// A process that stops between any two steps from the settlement to the follower's last one owes
/// every record still, tells none twice, and never says Success of what was not completed.
#[tokio::test]
async fn a_hub_that_dies_at_any_step_tells_everything_and_nothing_twice() {
    let mut deaths = 0;
    for lives in 1..100 {
        let bench = Bench::start().await;
        let device = bench.principal("dev1").await;
        let stopped = stop(bench).await;
        let dying = Arc::new(DyingQueues::new(&stopped.memory.queues));
        let hub = stopped.start(Arc::clone(&dying) as _).await;
        settle().await;
        dying.die_after(lives);

        // What the device was told is settled, before the end.
        let settled = Arc::new(Mutex::new(Vec::new()));
        let life = tokio::spawn({
            let (hub, device, clock) = (hub.clone(), device.clone(), Arc::clone(&stopped.clock));
            let settled = Arc::clone(&settled);
            async move {
                for n in 0..6 {
                    let id = format!("m{n}");
                    send(&hub, "dev1", &id, Ack::Full).await.unwrap();
                    let (settlement, status) = match n % 3 {
                        2 => (Settlement::Reject, "Rejected"),
                        _ => (Settlement::Complete, "Success"),
                    };
                    take(&hub, &device, settlement).await;
                    settled.lock().unwrap().push((status.to_owned(), id));
                    clock.advance(seconds(6));
                    settle().await;
                }
            }
        });
        for _ in 0..30 {
            settle().await;
        }
        let is_dead = dying.is_dead();
        assert!(is_dead || life.is_finished(), "{lives}");
        life.abort();
        drop(hub);
        settle().await;

        let hub = stopped.start(Arc::clone(&stopped.memory.queues) as _).await;
        let mut told = Vec::new();
        for _ in 0..10 {
            settle().await;
            while let Some(message) = feedback(&hub).await {
                told.extend(records(&message));
            }
            stopped.clock.advance(seconds(15));
        }
        for record in settled.lock().unwrap().iter() {
            assert!(told.contains(record), "{lives}: {record:?} in {told:?}");
        }
        for (status, id) in &told {
            let n: u32 = id.trim_start_matches('m').parse().unwrap();
            let expected = if n % 3 == 2 { "Rejected" } else { "Success" };
            assert_eq!(status, expected, "{lives}: {id}");
            let times = told.iter().filter(|(_, other)| other == id).count();
            assert_eq!(times, 1, "{lives}: {id} in {told:?}");
        }
        // What was not settled is still there, and what was is not.
        while let Some(delivery) = hub.c2d().receive_one(&device, None).await.unwrap() {
            let view = fieldpost_record::CommandView::parse(&delivery.message).unwrap();
            let id = view.message_id().unwrap();
            assert!(told.iter().all(|(_, told)| told != id), "{lives}: {id}");
        }
        assert_eq!(lane(&stopped.memory.queues, FEEDBACK).count, 0, "{lives}");
        if !is_dead {
            break;
        }
        deaths += 1;
    }
    // At least each send and each settlement was the last step once, and the test ended by itself.
    assert!((12..99).contains(&deaths), "{deaths}");
}

/// A hub died after its message was in the queue and before the records were forgotten, and more
/// records had come meanwhile: the next message must begin behind those that were told.
#[tokio::test]
async fn records_that_were_told_and_not_forgotten_are_not_told_again() {
    let bench = Bench::start().await;
    let device = bench.principal("dev1").await;
    let stopped = stop(bench).await;
    let dying = Arc::new(DyingQueues::new(&stopped.memory.queues));
    let hub = stopped.start(Arc::clone(&dying) as _).await;
    dying.lose_forgets();
    for id in ["a", "b", "c"] {
        complete(&hub, &device, id, Ack::Full).await;
        settle().await;
    }
    drop(hub);
    settle().await;
    assert_eq!(lane(&stopped.memory.queues, FEEDBACK).count, 3);

    let hub = stopped.start(Arc::clone(&stopped.memory.queues) as _).await;
    settle().await;
    let mut told = Vec::new();
    while let Some(message) = feedback(&hub).await {
        let ids = records(&message).into_iter().map(|(_, id)| id);
        told.push(ids.collect::<Vec<_>>());
    }
    assert_eq!(told, [vec!["a"], vec!["b", "c"]]);
    assert_eq!(lane(&stopped.memory.queues, FEEDBACK).count, 0);
}

/// Seconds to wait, and messages to complete then.
type Schedule = Vec<(u64, usize)>;

/// The sizes of the feedback messages that the rule asks for, in their order: records go when 64
/// wait or 15 seconds have passed since the last went.
fn expected_sizes(schedule: &Schedule) -> Vec<u32> {
    let mut sizes = Vec::new();
    let (mut now, mut waiting) = (0, 0);
    let mut last: Option<u64> = None;
    for (wait, count) in schedule {
        for is_completion in std::iter::once(false).chain(std::iter::repeat_n(true, *count)) {
            if is_completion {
                waiting += 1;
            } else {
                now += wait;
            }
            let is_due = last.is_none_or(|last| now >= last + 15);
            if waiting >= 64 || waiting > 0 && is_due {
                sizes.push(waiting);
                waiting = 0;
                last = Some(now);
            }
        }
    }
    sizes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn messages_are_as_large_as_the_time_between_them_makes_them(
        schedule in prop::collection::vec(
            (prop_oneof![Just(0_u64), 1..10_u64, 10..40_u64], prop_oneof![0..4_usize, 30..70_usize]),
            1..8,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let found = runtime.block_on(async {
            let bench = Bench::start().await;
            let device = bench.principal("dev1").await;
            let mut sizes = Vec::new();
            for (wait, count) in &schedule {
                bench.clock.advance(seconds(*wait));
                settle().await;
                for n in 0..*count {
                    complete(&bench.hub, &device, &n.to_string(), Ack::Positive).await;
                    settle().await;
                }
                while let Some(message) = feedback(&bench.hub).await {
                    sizes.push(message.records);
                }
            }
            sizes
        });
        prop_assert_eq!(found, expected_sizes(&schedule));
    }
}

#[tokio::test]
async fn a_store_that_refuses_for_a_while_delays_feedback_and_loses_none() {
    let bench = Bench::start().await;
    let device = bench.principal("dev1").await;
    let stopped = stop(bench).await;
    let full = Arc::new(FullQueues::new(&stopped.memory.queues));
    let hub = stopped.start(Arc::clone(&full) as _).await;
    send(&hub, "dev1", "m", Ack::Full).await.unwrap();
    full.fill(true);
    take(&hub, &device, Settlement::Complete).await;
    for _ in 0..10 {
        stopped.clock.advance(seconds(20));
        settle().await;
    }
    assert_eq!(lane(&stopped.memory.queues, FEEDBACK).count, 1);
    let offers = full.take_refused();
    // It tries again, and not all the time.
    assert!((3..=12).contains(&offers), "{offers}");
    full.fill(false);
    stopped.clock.advance(seconds(61));
    settle().await;
    let message = feedback(&hub).await.unwrap();
    assert_eq!(records(&message), [("Success".to_owned(), "m".to_owned())]);
    // It says when it was taken, not when it was first offered.
    assert_eq!(message.enqueued, stopped.clock.now());
    assert_eq!(feedback(&hub).await, None);
}
