use std::sync::Arc;
use std::time::Duration;

use fieldpost_hub::c2d::{Cause, LockToken, PurgeError, SendRefused, SettleError, Settlement};
use fieldpost_hub::clock::Clock as _;
use fieldpost_hub::identity::{DeviceSpec, DeviceStatus, Precondition};
use fieldpost_hub::settings::{DeliveryCountMode, HubSettings};
use fieldpost_model::Ack;
use fieldpost_store::{Health, HealthLevel, StoreError};

use crate::bench::{Bench, id, settle};
use crate::commands::{DyingQueues, FullQueues, send, stop, take};
use crate::commands::{count, dead, ids, is_lost, message_id, next, seconds, send_many};

#[tokio::test]
async fn messages_come_in_order_and_one_that_is_given_back_keeps_its_place() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    send_many(hub, "dev1", &["a", "b", "c"]).await;
    let first = next(hub, &device).await.unwrap();
    // A held message does not block those behind it.
    let second = next(hub, &device).await.unwrap();
    assert_eq!(ids(&[first.clone(), second]), ["a", "b"]);
    let c2d = hub.c2d();
    c2d.settle(&device, first.lock, Settlement::Abandon)
        .await
        .unwrap();
    let again = next(hub, &device).await.unwrap();
    assert_eq!(
        (message_id(&again).as_str(), again.delivery_count),
        ("a", 1)
    );
    assert_ne!(again.lock, first.lock);
    assert_eq!(message_id(&next(hub, &device).await.unwrap()), "c");
    assert!(next(hub, &device).await.is_none());
}

#[tokio::test]
async fn a_lock_that_was_used_or_never_was_settles_nothing() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let (device, other) = (bench.principal("dev1").await, bench.principal("dev2").await);
    send_many(hub, "dev1", &["a"]).await;
    let delivery = next(hub, &device).await.unwrap();
    let c2d = hub.c2d();
    for settlement in [
        Settlement::Complete,
        Settlement::Reject,
        Settlement::Abandon,
    ] {
        let unknown = LockToken([7; 16]);
        assert!(is_lost(&c2d.settle(&device, unknown, settlement).await));
        // Nobody settles what another device holds.
        let foreign = c2d.settle(&other, delivery.lock, settlement).await;
        assert!(is_lost(&foreign), "{foreign:?}");
    }
    assert_eq!(count(hub, &device).await, 1);
    let text = delivery.lock.to_string();
    let lock: LockToken = text.parse().unwrap();
    c2d.settle(&device, lock, Settlement::Complete)
        .await
        .unwrap();
    assert!(is_lost(
        &c2d.settle(&device, lock, Settlement::Complete).await
    ));
    assert_eq!(count(hub, &device).await, 0);
}

#[tokio::test]
async fn a_lock_ends_by_itself_and_counts_if_the_settings_say_so() {
    let check = async |mode: DeliveryCountMode, lock: Option<u64>, lasts: u64| {
        let bench = Bench::start().await;
        let hub = &bench.hub;
        let mut settings = HubSettings::default();
        settings.cloud_to_device.delivery_count_mode = mode;
        settings.cloud_to_device.max_delivery_count = 2;
        settings.cloud_to_device.default_ttl = seconds(3600 * 24);
        hub.settings().apply(settings).await.unwrap();
        let device = bench.principal("dev1").await;
        send_many(hub, "dev1", &["a"]).await;
        for round in 0..2 {
            let held = hub.c2d().receive_one(&device, lock.map(seconds)).await;
            let held = held.unwrap().unwrap();
            let counted = match mode {
                DeliveryCountMode::Abandon => 0,
                DeliveryCountMode::EveryLock => round,
            };
            assert_eq!(held.delivery_count, counted);
            settle().await;
            bench
                .clock
                .advance(seconds(lasts) - Duration::from_millis(1));
            settle().await;
            assert!(next(hub, &device).await.is_none(), "{mode:?} {lock:?}");
            bench.clock.advance(Duration::from_millis(1));
            settle().await;
            let late = hub.c2d().settle(&device, held.lock, Settlement::Complete);
            assert!(is_lost(&late.await));
        }
        match mode {
            DeliveryCountMode::Abandon => {
                let again = next(hub, &device).await.unwrap();
                assert_eq!(again.delivery_count, 0);
            }
            DeliveryCountMode::EveryLock => {
                assert!(next(hub, &device).await.is_none());
                assert_eq!(dead(hub).await, [(Cause::DeliveryCountExceeded, 2)]);
            }
        }
    };
    for mode in [DeliveryCountMode::Abandon, DeliveryCountMode::EveryLock] {
        check(mode, None, 60).await;
        check(mode, Some(180), 180).await;
        check(mode, Some(1), 5).await;
        check(mode, Some(100_000), 300).await;
    }
}

#[tokio::test]
async fn a_message_that_is_given_back_too_often_goes_at_once_when_the_bound_is_lowered() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    send_many(hub, "dev1", &["a"]).await;
    for _ in 0..3 {
        take(hub, &device, Settlement::Abandon).await;
    }
    // The count outlives the hub.
    let stopped = stop(bench).await;
    let hub = &stopped.start(stopped.memory.queues.clone()).await;
    let mut settings = HubSettings::default();
    settings.cloud_to_device.max_delivery_count = 2;
    hub.settings().apply(settings).await.unwrap();
    let delivery = take(hub, &device, Settlement::Abandon).await;
    assert_eq!(delivery.delivery_count, 3);
    assert_eq!(dead(hub).await, [(Cause::DeliveryCountExceeded, 4)]);
    assert!(next(hub, &device).await.is_none());
}

#[tokio::test]
async fn messages_end_on_time_whether_their_device_comes_or_not() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    let mut settings = HubSettings::default();
    settings.cloud_to_device.default_ttl = seconds(60);
    hub.settings().apply(settings).await.unwrap();
    send_many(hub, "dev1", &["away"]).await;
    settle().await;
    bench.clock.advance(seconds(59));
    settle().await;
    assert_eq!(count(hub, &device).await, 1);
    bench.clock.advance(seconds(1));
    settle().await;
    assert_eq!(count(hub, &device).await, 0);

    // Held when its time ends: its holder may complete it still.
    send_many(hub, "dev1", &["completed", "returned", "dropped"]).await;
    let completed = next(hub, &device).await.unwrap();
    let returned = next(hub, &device).await.unwrap();
    let _dropped = next(hub, &device).await.unwrap();
    // Locks and lives end after 60 seconds alike; the first two are held for longer.
    let c2d = hub.c2d();
    for held in [&completed, &returned] {
        c2d.settle(&device, held.lock, Settlement::Abandon)
            .await
            .unwrap();
    }
    let long = Some(seconds(300));
    let completed = c2d.receive_one(&device, long).await.unwrap().unwrap();
    let returned = c2d.receive_one(&device, long).await.unwrap().unwrap();
    bench.clock.advance(seconds(61));
    settle().await;
    assert_eq!(count(hub, &device).await, 2);
    c2d.settle(&device, completed.lock, Settlement::Complete)
        .await
        .unwrap();
    c2d.settle(&device, returned.lock, Settlement::Abandon)
        .await
        .unwrap();
    settle().await;
    assert_eq!(count(hub, &device).await, 0);
    assert!(next(hub, &device).await.is_none());
    // The first was "away"; the one that was completed is not among them.
    let expected = [
        (Cause::Expired, 0),
        (Cause::Expired, 0),
        (Cause::Expired, 2),
    ];
    assert_eq!(dead(hub).await, expected);
}

#[tokio::test]
async fn a_clock_that_was_set_back_leaves_no_message_behind() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    let start = bench.clock.now();
    bench
        .clock
        .set_wall(start.saturating_add(seconds(3600 * 24)));
    for _ in 0..200 {
        bench.clock.advance(seconds(5));
        settle().await;
    }
    // A day ahead; something ends there.
    send_many(hub, "dev1", &["ahead"]).await;
    for _ in 0..800 {
        bench.clock.advance(seconds(5));
        settle().await;
    }
    assert_eq!(count(hub, &device).await, 0);
    bench.clock.set_wall(start.saturating_add(seconds(5000)));
    for _ in 0..200 {
        bench.clock.advance(seconds(5));
        settle().await;
    }
    let accepted = send_many(hub, "dev1", &["back"]).await;
    assert!(accepted[0].expires < start.saturating_add(seconds(3600 * 24)));
    for _ in 0..721 {
        bench.clock.advance(seconds(5));
        settle().await;
    }
    assert_eq!(count(hub, &device).await, 0);
}

#[tokio::test]
async fn purging_takes_what_waits_and_leaves_what_is_held() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    let c2d = hub.c2d();
    assert_eq!(c2d.purge(&id("dev1"), None).await.unwrap(), 0);
    send_many(hub, "dev1", &["held", "a", "b"]).await;
    let held = next(hub, &device).await.unwrap();
    assert_eq!(c2d.purge(&id("dev1"), None).await.unwrap(), 2);
    assert_eq!(count(hub, &device).await, 1);
    assert!(next(hub, &device).await.is_none());
    c2d.settle(&device, held.lock, Settlement::Complete)
        .await
        .unwrap();
    // A purged message is no dead letter.
    assert_eq!(dead(hub).await, []);
    let unknown = c2d.purge(&id("nobody"), None).await;
    assert!(matches!(unknown, Err(PurgeError::UnknownDevice)));
    let module = "mod1".parse().unwrap();
    let unknown = c2d.purge(&id("dev1"), Some(&module)).await;
    assert!(matches!(unknown, Err(PurgeError::UnknownDevice)));
}

#[tokio::test]
async fn a_device_that_is_created_anew_has_an_empty_queue() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let old = bench.principal("dev1").await;
    send_many(hub, "dev1", &["a", "b", "c"]).await;
    let held = next(hub, &old).await.unwrap();
    let registry = hub.registry();
    registry
        .delete(&id("dev1"), Default::default())
        .await
        .unwrap();
    settle().await;
    let late = hub
        .c2d()
        .settle(&old, held.lock, Settlement::Complete)
        .await;
    assert!(is_lost(&late), "{late:?}");
    bench.clock.advance(seconds(1));
    let new = bench.principal("dev1").await;
    assert!(next(hub, &new).await.is_none());
    assert_eq!((count(hub, &new).await, count(hub, &old).await), (0, 0));
    send_many(hub, "dev1", &["d"]).await;
    assert_eq!(message_id(&next(hub, &new).await.unwrap()), "d");
    // Nothing is told or kept of what went with the device.
    assert_eq!(dead(hub).await, []);
}

#[tokio::test]
async fn a_disabled_device_keeps_its_queue() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    send_many(hub, "dev1", &["a"]).await;
    let status = |status| DeviceSpec {
        status: Some(status),
        ..DeviceSpec::new(id("dev1"))
    };
    let registry = hub.registry();
    let off = status(DeviceStatus::Disabled);
    registry.update(off, Default::default()).await.unwrap();
    let refused = send(hub, "dev1", "b", Ack::None).await;
    assert!(matches!(refused, Err(SendRefused::UnknownDevice)));
    assert_eq!(count(hub, &device).await, 1);
    let on = status(DeviceStatus::Enabled);
    registry.update(on, Default::default()).await.unwrap();
    assert_eq!(message_id(&next(hub, &device).await.unwrap()), "a");
}

#[tokio::test]
async fn a_full_store_that_recovers_loses_no_place_in_the_order_of_expiry() {
    let bench = Bench::start().await;
    let device = bench.principal("dev1").await;
    let stopped = stop(bench).await;
    let full = Arc::new(FullQueues::new(&stopped.memory.queues));
    let hub = &stopped.start(Arc::clone(&full) as _).await;
    send_many(hub, "dev1", &["a"]).await;
    full.fill(true);
    let outcome = send(hub, "dev1", "b", Ack::None).await;
    assert!(matches!(outcome, Err(SendRefused::NoRoom)), "{outcome:?}");
    full.fill(false);
    // Held beyond its time, and not settled for the store's sake.
    let held = hub.c2d().receive_one(&device, Some(seconds(300))).await;
    let held = held.unwrap().unwrap();
    let mut settings = HubSettings::default();
    settings.cloud_to_device.default_ttl = seconds(60);
    hub.settings().apply(settings).await.unwrap();
    send_many(hub, "dev1", &["short"]).await;
    let c2d = hub.c2d();
    let short = c2d.receive_one(&device, Some(seconds(300))).await;
    let short = short.unwrap().unwrap();
    stopped.clock.advance(seconds(120));
    settle().await;
    stopped.memory.log.set_health(Health {
        level: HealthLevel::HoldAll,
        reason: None,
    });
    for lock in [held.lock, short.lock] {
        let outcome = c2d.settle(&device, lock, Settlement::Complete).await;
        let is_full = matches!(outcome, Err(SettleError::Store(StoreError::Full)));
        assert!(is_full, "{outcome:?}");
    }
    stopped.memory.log.set_health(Health::OK);
    for _ in 0..10 {
        stopped.clock.advance(seconds(1));
        settle().await;
    }
    // Nobody asks for it, and it ends all the same; the other one waits again.
    assert_eq!(dead(hub).await, [(Cause::Expired, 0)]);
    assert_eq!(message_id(&next(hub, &device).await.unwrap()), "a");
}

/// The hub stopped before it had let go of a deleted device's messages: nothing is ever told or kept
/// of them.
#[tokio::test]
async fn what_a_deleted_device_left_behind_goes_untold() {
    let bench = Bench::start().await;
    let device = bench.principal("dev1").await;
    for id in 0..40 {
        let id = id.to_string();
        send(&bench.hub, "dev1", &id, Ack::Full).await.unwrap();
    }
    let stopped = stop(bench).await;
    let dying = Arc::new(DyingQueues::new(&stopped.memory.queues));
    let hub = stopped.start(Arc::clone(&dying) as _).await;
    settle().await;
    dying.die_after(1);
    let registry = hub.registry();
    registry
        .delete(&id("dev1"), Precondition::None)
        .await
        .unwrap();
    settle().await;
    drop(hub);
    settle().await;

    let hub = stopped.start(stopped.memory.queues.clone()).await;
    assert!(count(&hub, &device).await > 0);
    for _ in 0..80 {
        stopped.clock.advance(seconds(60));
        settle().await;
    }
    assert_eq!(count(&hub, &device).await, 0);
    assert_eq!(dead(&hub).await, []);
    let figures = hub.c2d().figures();
    assert_eq!(figures.feedback_owed.last, 0);
}

#[tokio::test]
async fn a_message_that_is_given_back_is_counted_durably_before_its_holder_hears_of_it() {
    let bench = Bench::start().await;
    let hub = bench.hub.clone();
    let device = bench.principal("dev1").await;
    send_many(&hub, "dev1", &["a"]).await;
    let held = next(&hub, &device).await.unwrap();
    bench.memory.queues.withhold(true);
    let abandoning = tokio::spawn({
        let (hub, device) = (hub.clone(), device.clone());
        let lock = held.lock;
        async move { hub.c2d().settle(&device, lock, Settlement::Abandon).await }
    });
    settle().await;
    assert!(!abandoning.is_finished());
    bench.memory.queues.withhold(false);
    abandoning.await.unwrap().unwrap();
    assert_eq!(next(&hub, &device).await.unwrap().delivery_count, 1);
}
