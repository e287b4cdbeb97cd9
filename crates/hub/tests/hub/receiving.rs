use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use fieldpost_hub::c2d::{Cause, SendRefused, SettleError, Settlement};
use fieldpost_hub::clock::Clock as _;

use fieldpost_model::Ack;
use fieldpost_store::{Health, HealthLevel, StoreError};

use crate::bench::{Bench, context, identity, settle};
use crate::commands::{count, dead, ids, is_lost, message_id, next, seconds, send_many, taken};
use crate::commands::{send, stop, take};
use crate::watched::WatchedQueues;

#[tokio::test]
async fn an_expired_message_is_never_delivered() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    let mut receiver = hub.c2d().receiver(&device, 1);
    receiver.set_window(1);
    send_many(hub, "dev1", &["a", "b"]).await;
    let first = taken(&mut receiver).await;
    assert_eq!(ids(&first), ["a"]);
    bench.clock.advance(seconds(3600));
    // The device asks for more before anything else runs.
    assert!(receiver.settle(first[0].sequence, Settlement::Complete));
    assert_eq!(taken(&mut receiver).await, []);
    assert!(next(hub, &device).await.is_none());
    assert_eq!(dead(hub).await, [(Cause::Expired, 0)]);
}

#[tokio::test]
async fn a_restart_frees_locks_and_keeps_messages_and_order() {
    let bench = Bench::start().await;
    let device = bench.principal("dev1").await;
    let accepted = send_many(&bench.hub, "dev1", &["a", "b", "c", "d"]).await;
    take(&bench.hub, &device, Settlement::Complete).await;
    let held = next(&bench.hub, &device).await.unwrap();
    let stopped = stop(bench).await;
    let hub = stopped.start(stopped.memory.queues.clone()).await;
    let late = hub.c2d().settle(&device, held.lock, Settlement::Complete);
    assert!(is_lost(&late.await));
    let mut receiver = hub.c2d().receiver(&device, 1);
    receiver.set_window(10);
    assert_eq!(ids(&taken(&mut receiver).await), ["b", "c", "d"]);
    let next = send(&hub, "dev1", "e", Ack::None).await.unwrap();
    assert!(next.sequence > accepted[3].sequence);
    assert_eq!(ids(&taken(&mut receiver).await), ["e"]);
}

#[tokio::test]
async fn a_receiver_holds_as_many_as_its_window() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    let names: Vec<_> = (0..40).map(|n| n.to_string()).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    send_many(hub, "dev1", &names).await;
    let mut receiver = hub.c2d().receiver(&device, 1);
    assert_eq!(taken(&mut receiver).await, []);
    receiver.set_window(16);
    let first = taken(&mut receiver).await;
    assert_eq!(ids(&first), names[..16]);
    // Settled in any order, each without delay.
    for delivery in first.iter().rev() {
        assert!(receiver.settle_and_tell(delivery.sequence, Settlement::Complete));
    }
    settle().await;
    for delivery in first.iter().rev() {
        let Poll::Ready((sequence, outcome)) = receiver.poll_settled(&mut context()) else {
            panic!("not told");
        };
        outcome.unwrap();
        assert_eq!(sequence, delivery.sequence);
    }
    assert!(receiver.poll_settled(&mut context()).is_pending());
    assert!(!receiver.settle(first[0].sequence, Settlement::Complete));
    assert_eq!(ids(&taken(&mut receiver).await), names[16..32]);
    receiver.set_window(0);
    send_many(hub, "dev1", &["more"]).await;
    assert_eq!(taken(&mut receiver).await, []);
    assert_eq!(receiver.holds(), 16);
    // What it holds is its own still.
    assert_eq!(ids(&[next(hub, &device).await.unwrap()]), ["32"]);
}

#[tokio::test]
async fn receivers_compete_and_one_that_goes_frees_what_it_held_uncounted() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    let mut one = hub.c2d().receiver(&device, 1);
    let mut two = hub.c2d().receiver(&device, 2);
    one.set_window(2);
    two.set_window(2);
    send_many(hub, "dev1", &["a", "b", "c", "d", "e"]).await;
    let (of_one, of_two) = (taken(&mut one).await, taken(&mut two).await);
    assert_eq!((of_one.len(), of_two.len()), (2, 2));
    let mut all = ids(&of_one);
    all.extend(ids(&of_two));
    all.sort();
    assert_eq!(all, ["a", "b", "c", "d"]);
    // A poller beside them gets what is left.
    assert_eq!(message_id(&next(hub, &device).await.unwrap()), "e");
    drop(two);
    two = hub.c2d().receiver(&device, 3);
    two.set_window(10);
    let freed = taken(&mut two).await;
    assert_eq!(ids(&freed), ids(&of_two));
    assert!(
        freed
            .iter()
            .all(|d| d.delivery_count == 0 && d.again.is_none())
    );
}

#[tokio::test]
async fn a_session_that_goes_on_gets_what_was_in_flight_first_under_its_tags() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let c2d = hub.c2d();
    let device = bench.principal("dev1").await;
    send_many(hub, "dev1", &["a", "b", "c", "d", "e"]).await;
    let mut first = c2d.receiver(&device, 1);
    first.set_window(4);
    let held = taken(&mut first).await;
    assert_eq!(ids(&held), ["a", "b", "c", "d"]);
    first.settle(held[0].sequence, Settlement::Complete);
    // In flight in another order than the queue's.
    let in_flight = vec![
        (31, held[2].sequence),
        (32, held[1].sequence),
        (33, held[3].sequence),
    ];
    first.detach(in_flight);
    // Meanwhile somebody else takes one of them.
    settle().await;
    let taken_elsewhere = next(hub, &device).await.unwrap();
    assert_eq!(message_id(&taken_elsewhere), "b");

    let mut second = c2d.resume(&device, 2);
    second.set_window(10);
    let again = taken(&mut second).await;
    assert_eq!(second.take_expected(), [31, 32, 33]);
    assert_eq!(ids(&again), ["c", "d", "e"]);
    let tags: Vec<_> = again.iter().map(|delivery| delivery.again).collect();
    assert_eq!(tags, [Some(31), Some(33), None]);
    assert!(again.iter().all(|delivery| delivery.delivery_count == 0));
    second.detach(vec![(33, again[1].sequence)]);

    // A session that begins anew has no tags.
    let mut third = c2d.receiver(&device, 3);
    third.set_window(10);
    assert!(third.take_expected().is_empty());
    let fresh = taken(&mut third).await;
    assert_eq!(ids(&fresh), ["c", "d", "e"]);
    assert!(fresh.iter().all(|delivery| delivery.again.is_none()));
    third.detach(vec![(1, fresh[0].sequence)]);
    c2d.forget(&device);
    let mut fourth = c2d.resume(&device, 4);
    fourth.set_window(1);
    assert_eq!(taken(&mut fourth).await[0].again, None);
}

#[tokio::test]
async fn a_request_that_nobody_waits_for_any_more_takes_nothing() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    let mut receiver = hub.c2d().receiver(&device, 1);
    send_many(hub, "dev1", &["a"]).await;
    // The request is on its way when its caller goes, or has been answered and nobody has looked.
    for is_answered in [true, false] {
        let mut request = Box::pin(hub.c2d().receive_one(&device, None));
        assert!(request.as_mut().poll(&mut context()).is_pending());
        if is_answered {
            settle().await;
        }
    }
    receiver.set_window(1);
    let delivery = taken(&mut receiver).await;
    assert_eq!(ids(&delivery), ["a"]);
    assert_eq!(delivery[0].delivery_count, 0);
}

#[tokio::test]
async fn a_store_that_takes_no_completion_is_not_asked_in_circles() {
    let bench = Bench::start().await;
    let device = bench.principal("dev1").await;
    let stopped = stop(bench).await;
    let watched = Arc::new(WatchedQueues::new(&stopped.memory.queues));
    let hub = &stopped.start(Arc::clone(&watched) as _).await;
    send_many(hub, "dev1", &["a"]).await;
    let mut receiver = hub.c2d().receiver(&device, 1);
    receiver.set_window(1);
    watched.refuse_settlements();
    // A device that completes whatever comes, at once.
    let mut deliveries = 0;
    for _ in 0..40 {
        for delivery in taken(&mut receiver).await {
            deliveries += 1;
            receiver.settle_and_tell(delivery.sequence, Settlement::Complete);
        }
        stopped.clock.advance(Duration::from_millis(250));
    }
    // In ten seconds: at once, after one, two more and four more.
    assert_eq!(deliveries, 4);
    assert_eq!(count(hub, &device).await, 1);
}

#[tokio::test]
async fn nothing_is_delivered_while_the_store_takes_no_completions() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    send_many(hub, "dev1", &["a", "b", "c"]).await;
    let mut receiver = hub.c2d().receiver(&device, 1);
    receiver.set_window(1);
    assert_eq!(ids(&taken(&mut receiver).await), ["a"]);
    let set = |level| {
        bench.memory.log.set_health(Health {
            level,
            reason: None,
        });
    };
    for (level, is_refused) in [
        (HealthLevel::HoldAll, is_full as fn(&StoreError) -> bool),
        (HealthLevel::ReadOnly, is_read_only),
    ] {
        set(level);
        settle().await;
        receiver.set_window(2);
        assert_eq!(taken(&mut receiver).await, [], "{level:?}");
        let mut other = hub.c2d().receiver(&device, 2);
        other.set_window(5);
        // Whoever asks is told that there is nothing, or why.
        other.ask_end();
        settle().await;
        assert!(other.poll_end(&mut context()).is_ready(), "{level:?}");
        assert_eq!(taken(&mut other).await, [], "{level:?}");
        let refused = hub.c2d().receive_one(&device, None).await.unwrap_err();
        assert!(is_refused(&refused), "{refused:?}");
        // What is in flight stays with its holder.
        assert_eq!(receiver.holds(), 1);
        bench.clock.advance(seconds(60));
        assert_eq!(taken(&mut other).await, [], "{level:?}");
        drop(other);
        receiver.set_window(1);
    }
    // Small changes go on at the first mark, and so do deliveries.
    set(HealthLevel::HoldMessages);
    settle().await;
    assert_eq!(message_id(&next(hub, &device).await.unwrap()), "b");
    set(HealthLevel::Ok);
    receiver.set_window(2);
    assert_eq!(ids(&taken(&mut receiver).await), ["c"]);
}

fn is_full(error: &StoreError) -> bool {
    matches!(error, StoreError::Full)
}

fn is_read_only(error: &StoreError) -> bool {
    matches!(error, StoreError::ReadOnly { .. })
}

#[tokio::test]
async fn a_request_that_waits_is_told_when_deliveries_are_held() {
    let bench = Bench::start().await;
    let device = bench.principal("dev1").await;
    send_many(&bench.hub, "dev1", &["a"]).await;
    let stopped = stop(bench).await;
    let watched = Arc::new(WatchedQueues::new(&stopped.memory.queues));
    let hub = &stopped.start(Arc::clone(&watched) as _).await;
    watched.hold_lists();
    let mut request = Box::pin(hub.c2d().receive_one(&device, None));
    assert!(request.as_mut().poll(&mut context()).is_pending());
    settle().await;
    assert_eq!(watched.lists_held(), 1);
    stopped.memory.log.set_health(Health {
        level: HealthLevel::HoldAll,
        reason: None,
    });
    assert!(is_full(&request.await.unwrap_err()));
    // It took nothing with it.
    watched.release_list();
    stopped.memory.log.set_health(Health::OK);
    let mut receiver = hub.c2d().receiver(&device, 1);
    receiver.set_window(1);
    assert_eq!(ids(&taken(&mut receiver).await), ["a"]);
}

#[tokio::test]
async fn an_owner_that_fails_is_told_of_and_everybody_who_waits_is_answered() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    send_many(hub, "dev1", &["a"]).await;
    let failed = hub.failed();
    assert_eq!(*failed.borrow(), None);
    bench.memory.queues.panic_next();
    let received = hub.c2d().receive_one(&device, None).await;
    assert!(matches!(received, Err(StoreError::Closed)), "{received:?}");
    let reason = failed.borrow().clone().unwrap();
    assert_eq!(&*reason, "an owner of queues failed");
    // It can be closed, and what was acknowledged is there for the next hub.
    hub.close().await;
    let hub = bench.reopen(|_| {}).await.unwrap();
    assert_eq!(*hub.failed().borrow(), None);
    assert_eq!(count(&hub, &device).await, 1);
}

#[tokio::test]
async fn a_store_that_fails_acknowledges_nothing() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    send_many(hub, "dev1", &["a"]).await;
    let mut receiver = hub.c2d().receiver(&device, 1);
    receiver.set_window(1);
    let delivery = taken(&mut receiver).await;
    bench.memory.queues.fail_next();
    receiver.settle_and_tell(delivery[0].sequence, Settlement::Complete);
    bench.clock.advance(seconds(20));
    assert_eq!(taken(&mut receiver).await, []);
    let Poll::Ready((_, Err(SettleError::Store(StoreError::ReadOnly { .. })))) =
        receiver.poll_settled(&mut context())
    else {
        panic!("the store did not take it");
    };
    let refused = send(hub, "dev1", "b", Ack::None).await;
    let expected = matches!(
        refused,
        Err(SendRefused::Store(StoreError::ReadOnly { .. }))
    );
    assert!(expected, "{refused:?}");
    assert_eq!(count(hub, &device).await, 1);
}

#[tokio::test]
async fn a_list_shows_what_waits_and_what_is_held() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    let accepted = send_many(hub, "dev1", &["a", "b", "c"]).await;
    take(hub, &device, Settlement::Abandon).await;
    let until = bench.clock.now().saturating_add(seconds(60));
    next(hub, &device).await.unwrap();
    let mut receiver = hub.c2d().receiver(&device, 1);
    receiver.set_window(1);
    assert_eq!(ids(&taken(&mut receiver).await), ["b"]);
    let c2d = hub.c2d();
    let states = c2d.list(&device.identity, 0, 10).await.unwrap();
    let found: Vec<_> = states
        .iter()
        .map(|state| {
            let locked = state.locked.map(|lock| lock.until);
            (state.sequence, state.delivery_count, locked)
        })
        .collect();
    let expected = [
        (accepted[0].sequence, 1, Some(Some(until))),
        (accepted[1].sequence, 0, Some(None)),
        (accepted[2].sequence, 0, None),
    ];
    assert_eq!(found, expected);
    assert_eq!(states[0].attempts.count(), 1);
    let rest = c2d.list(&device.identity, accepted[0].sequence, 1).await;
    let rest: Vec<_> = rest.unwrap().iter().map(|state| state.sequence).collect();
    assert_eq!(rest, [accepted[1].sequence]);
    assert!(
        c2d.list(&identity("nobody"), 0, 10)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_hub_that_closes_tells_everybody_who_waits() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    send_many(hub, "dev1", &["a"]).await;
    let mut receiver = hub.c2d().receiver(&device, 1);
    receiver.set_window(1);
    let delivery = taken(&mut receiver).await;
    hub.close().await;
    let closed = |error: &StoreError| matches!(error, StoreError::Closed);
    let refused = send(hub, "dev1", "b", Ack::None).await;
    assert!(
        matches!(&refused, Err(SendRefused::Store(e)) if closed(e)),
        "{refused:?}"
    );
    let received = hub.c2d().receive_one(&device, None).await;
    assert!(matches!(&received, Err(e) if closed(e)), "{received:?}");
    let settled = hub
        .c2d()
        .settle(&device, delivery[0].lock, Settlement::Complete);
    let settled = settled.await;
    assert!(
        matches!(&settled, Err(SettleError::Store(e)) if closed(e)),
        "{settled:?}"
    );
    receiver.settle(delivery[0].sequence, Settlement::Complete);
    drop(receiver);
}
