use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use fieldpost_hub::Hub;
use fieldpost_hub::auth::DevicePrincipal;
use fieldpost_hub::c2d::{
    Accepted, Cause, Delivery, LockToken, PurgeError, Receiver, SendRefused, SettleError,
    Settlement, Target,
};
use fieldpost_hub::clock::Clock as _;
use fieldpost_hub::identity::{DeviceSpec, DeviceStatus};
use fieldpost_hub::settings::{DeliveryCountMode, HubSettings};
use fieldpost_model::{Ack, CloudMessage, Timestamp};
use fieldpost_record::CommandView;
use fieldpost_store::{Health, HealthLevel, StoreError};

use crate::bench::{Bench, context, id, identity, principal_of, settle};
use crate::commands::{FullQueues, complete, send, stop, take};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

async fn next(hub: &Hub, device: &DevicePrincipal) -> Option<Delivery> {
    hub.c2d().receive_one(device, None).await.unwrap()
}

fn message_id(delivery: &Delivery) -> String {
    let view = CommandView::parse(&delivery.message).unwrap();
    view.message_id().unwrap().to_owned()
}

/// Takes everything that a receiver has got.
async fn taken(receiver: &mut Receiver) -> Vec<Delivery> {
    settle().await;
    let mut taken = Vec::new();
    while let Poll::Ready(delivery) = receiver.poll_delivery(&mut context()) {
        taken.push(delivery);
    }
    taken
}

fn ids(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(message_id).collect()
}

async fn send_many(hub: &Hub, device: &str, ids: &[&str]) -> Vec<Accepted> {
    let mut accepted = Vec::new();
    for id in ids {
        accepted.push(send(hub, device, id, Ack::None).await.unwrap());
    }
    accepted
}

/// How many messages wait for a device, the held ones included.
async fn count(hub: &Hub, device: &DevicePrincipal) -> u64 {
    let of = [(device.identity.clone(), Arc::clone(&device.generation_id))];
    hub.c2d().message_counts(&of).await.unwrap()[0]
}

fn is_lost(outcome: &Result<(), SettleError>) -> bool {
    matches!(outcome, Err(SettleError::LockLost))
}

async fn dead(hub: &Hub) -> Vec<(Cause, u32)> {
    let page = hub.c2d().dead_letters(0, 1000, None).await.unwrap();
    let letters = page.letters.iter();
    letters.map(|l| (l.cause, l.delivery_count)).collect()
}

#[tokio::test]
async fn a_message_is_durable_when_it_is_accepted_and_arrives_as_it_was_sent() {
    let bench = Bench::start().await;
    let device = bench.principal("dev1").await;
    let hub = &bench.hub;
    let now = bench.clock.now();
    let mut message = CloudMessage {
        to: "/devices/dev1/messages/deviceBound".into(),
        message_id: Some("m1".into()),
        correlation_id: Some("c1".into()),
        user_id: Some(b"u1"[..].into()),
        content_type: Some("text/plain".into()),
        content_encoding: Some("utf-8".into()),
        expires: Some(now.saturating_add(seconds(7200))),
        ack: Ack::Full,
        creation_time: Some("2027-01-01T00:00:00Z".into()),
        message_schema: Some("s1".into()),
        body: b"\0on"[..].into(),
        ..CloudMessage::default()
    };
    message.properties.set("room".into(), Some("a b".into()));
    message.properties.set("bare".into(), None);
    let target = Target {
        identity: identity("dev1"),
        fallback: None,
    };
    let mut sender = hub.c2d().sender("service");
    let accepted = sender.send_one(target, &message).await.unwrap();
    assert_eq!(accepted.enqueued, now);
    assert_eq!(Some(accepted.expires), message.expires);

    // The hub stops without a word, and another one has it still.
    let stopped = stop(bench).await;
    let hub = stopped.start(stopped.memory.queues.clone()).await;
    let delivery = next(&hub, &device).await.unwrap();
    assert_eq!(delivery.sequence, accepted.sequence);
    assert_eq!(delivery.expires, accepted.expires);
    assert_eq!((delivery.delivery_count, delivery.again), (0, None));
    let view = CommandView::parse(&delivery.message).unwrap();
    assert_eq!(view.to(), message.to);
    assert_eq!(view.message_id(), Some("m1"));
    assert_eq!(view.correlation_id(), Some("c1"));
    assert_eq!(view.user_id(), Some(&b"u1"[..]));
    assert_eq!(view.content_type(), Some("text/plain"));
    assert_eq!(view.content_encoding(), Some("utf-8"));
    assert_eq!(view.creation_time(), Some("2027-01-01T00:00:00Z"));
    assert_eq!(view.message_schema(), Some("s1"));
    assert_eq!((view.ack(), view.sender()), (Ack::Full, "service"));
    let properties: Vec<_> = view.properties().collect();
    assert_eq!(properties, [("room", Some("a b")), ("bare", None)]);
    assert_eq!(view.body(), Some(&b"\0on"[..]));
}

#[tokio::test]
async fn what_cannot_be_taken_is_refused_and_says_why() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    bench.principal("dev1").await;
    let disabled = DeviceSpec {
        status: Some(DeviceStatus::Disabled),
        ..DeviceSpec::new(id("off"))
    };
    hub.registry().create(disabled).await.unwrap();
    let now = bench.clock.now();
    let outcome = async |device: &str, change: &dyn Fn(&mut CloudMessage<'_>)| {
        let mut message = CloudMessage {
            body: b"on"[..].into(),
            ..CloudMessage::default()
        };
        change(&mut message);
        let target = Target {
            identity: identity(device),
            fallback: None,
        };
        hub.c2d().sender("service").send_one(target, &message).await
    };
    let check = async |device: &str, change: &dyn Fn(&mut CloudMessage<'_>), expected: &str| {
        let outcome = outcome(device, change).await;
        let found = outcome.as_ref().map_or_else(SendRefused::as_str, |_| "ok");
        assert_eq!(found, expected, "{outcome:?}");
    };
    check("dev1", &|_| {}, "ok").await;
    check("nobody", &|_| {}, "unknown_device").await;
    check("off", &|_| {}, "unknown_device").await;
    check("dev1/mod1", &|_| {}, "unknown_device").await;
    check("dev1", &|m| m.body = vec![0; 65_536].into(), "ok").await;
    check("dev1", &|m| m.body = vec![0; 65_537].into(), "too_large").await;
    let at = |span: i64| Timestamp::from_millis(now.as_millis() + span);
    check("dev1", &|m| m.expires = Some(at(0)), "invalid_expiry").await;
    check("dev1", &|m| m.expires = Some(at(-1)), "invalid_expiry").await;
    check("dev1", &|m| m.expires = Some(at(1)), "ok").await;
    let two_days = 2 * 24 * 3600 * 1000;
    check("dev1", &|m| m.expires = Some(at(two_days)), "ok").await;
    let beyond = at(two_days + 1);
    check("dev1", &|m| m.expires = Some(beyond), "invalid_expiry").await;
    let control = |m: &mut CloudMessage<'_>| m.message_id = Some("a\nb".into());
    check("dev1", &control, "undeliverable").await;
    let long = |m: &mut CloudMessage<'_>| {
        let value = "%".repeat(30_000);
        m.properties.set("p".into(), Some(value.into()));
    };
    check("dev1", &long, "undeliverable").await;
}

#[tokio::test]
async fn a_queue_takes_so_many_messages_and_those_that_are_held_count() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    for n in 0..50 {
        send(hub, "dev1", &n.to_string(), Ack::None).await.unwrap();
    }
    let is_full = async |max: u64| {
        let outcome = send(hub, "dev1", "more", Ack::None).await;
        matches!(outcome, Err(SendRefused::QueueFull { max: found }) if found == max)
    };
    assert!(is_full(50).await);
    let held = next(hub, &device).await.unwrap();
    assert!(is_full(50).await);
    assert_eq!(count(hub, &device).await, 50);
    let c2d = hub.c2d();
    c2d.settle(&device, held.lock, Settlement::Complete)
        .await
        .unwrap();
    assert_eq!(count(hub, &device).await, 49);
    send(hub, "dev1", "50", Ack::None).await.unwrap();
    assert!(is_full(50).await);
    // Another bound is in force at once; what is there beyond it stays.
    let mut settings = HubSettings::default();
    settings.cloud_to_device.queue_depth_max = 2;
    hub.settings().apply(settings).await.unwrap();
    assert!(is_full(2).await);
    assert_eq!(count(hub, &device).await, 50);
}

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
async fn thousands_that_end_together_go_soon_and_delay_nobody() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let mut settings = HubSettings::default();
    settings.cloud_to_device.queue_depth_max = 10_000;
    hub.settings().apply(settings).await.unwrap();
    let mut devices = Vec::new();
    for n in 0..10 {
        devices.push(bench.principal(&format!("dev{n}")).await);
    }
    let mut sender = hub.c2d().sender("service");
    let mut unanswered = 0;
    for n in 0..3000 {
        let target = Target {
            identity: devices[n % 10].identity.clone(),
            fallback: None,
        };
        let message = CloudMessage {
            expires: Some(bench.clock.now().saturating_add(seconds(100))),
            ..CloudMessage::default()
        };
        sender.send(n as u64, target, &message);
        unanswered += 1;
        while !sender.has_room() || n == 2999 && unanswered > 0 {
            let (_, answer) = std::future::poll_fn(|cx| sender.poll_answer(cx)).await;
            answer.unwrap();
            unanswered -= 1;
        }
    }
    bench.clock.advance(seconds(100));
    // In the middle of it somebody else is served.
    send_many(hub, "dev3", &["now"]).await;
    let delivery = next(hub, &devices[3]).await.unwrap();
    assert_eq!(message_id(&delivery), "now");
    for _ in 0..10 {
        settle().await;
    }
    for (n, device) in devices.iter().enumerate() {
        assert_eq!(count(hub, device).await, u64::from(n == 3));
    }
    assert_eq!(hub.c2d().figures().dead_letters.count, 3000);
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
    // The request is on its way when its caller goes.
    {
        let mut request = Box::pin(hub.c2d().receive_one(&device, None));
        assert!(request.as_mut().poll(&mut context()).is_pending());
    }
    receiver.set_window(1);
    let delivery = taken(&mut receiver).await;
    assert_eq!(ids(&delivery), ["a"]);
    assert_eq!(delivery[0].delivery_count, 0);
}

#[tokio::test]
async fn messages_of_one_sender_to_one_device_keep_their_order_whoever_is_known() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let mut devices = BTreeMap::new();
    for n in 0..4 {
        let name = format!("dev{n}");
        devices.insert(name.clone(), bench.principal(&name).await);
    }
    // A hub that knows no device yet.
    let stopped = stop(bench).await;
    let hub2 = stopped.start(stopped.memory.queues.clone()).await;
    let _ = hub;
    let mut sender = hub2.c2d().sender("service");
    let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for n in 0..40_u64 {
        let name = format!("dev{}", n % 5);
        let message = CloudMessage {
            message_id: Some(n.to_string().into()),
            ..CloudMessage::default()
        };
        let target = Target {
            identity: identity(&name),
            fallback: None,
        };
        sender.send(n, target, &message);
        expected.entry(name).or_default().push(n.to_string());
        if n == 20 {
            // Now some are known.
            settle().await;
        }
    }
    let mut answers = BTreeMap::new();
    while answers.len() < 40 {
        let (ticket, answer) = std::future::poll_fn(|cx| sender.poll_answer(cx)).await;
        answers.insert(ticket, answer);
    }
    assert!(sender.poll_answer(&mut context()).is_pending());
    for (ticket, answer) in answers {
        assert_eq!(answer.is_ok(), ticket % 5 != 4, "{ticket}: {answer:?}");
    }
    for (name, device) in devices {
        let mut receiver = hub2.c2d().receiver(&device, 1);
        receiver.set_window(100);
        assert_eq!(ids(&taken(&mut receiver).await), expected[&name], "{name}");
    }
}

#[tokio::test]
async fn another_spelling_of_the_target_counts_when_the_first_means_nobody() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let (plain, encoded) = (bench.principal("a%3Db").await, bench.principal("c=d").await);
    let mut sender = hub.c2d().sender("service");
    for (first, second) in [("a%3Db", "a=b"), ("c%3Dd", "c=d")] {
        let target = Target {
            identity: identity(first),
            fallback: Some(identity(second)),
        };
        let message = CloudMessage::default();
        sender.send_one(target, &message).await.unwrap();
    }
    assert_eq!(count(hub, &plain).await, 1);
    assert_eq!(count(hub, &encoded).await, 1);
}

#[tokio::test]
async fn what_was_sent_is_sent_although_its_sender_is_gone() {
    let bench = Bench::start().await;
    let device = bench.principal("dev1").await;
    let stopped = stop(bench).await;
    let hub = stopped.start(stopped.memory.queues.clone()).await;
    let mut sender = hub.c2d().sender("service");
    for n in 0..5 {
        let target = Target {
            identity: identity("dev1"),
            fallback: None,
        };
        sender.send(n, target, &CloudMessage::default());
    }
    drop(sender);
    settle().await;
    assert_eq!(count(&hub, &device).await, 5);
}

#[tokio::test]
async fn a_sender_has_room_for_so_many_unanswered_messages() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    bench.principal("dev1").await;
    bench.memory.queues.withhold(true);
    let mut sender = hub.c2d().sender("service");
    let mut sent = 0;
    while sender.has_room() {
        let target = Target {
            identity: identity("dev1"),
            fallback: None,
        };
        sender.send(sent, target, &CloudMessage::default());
        sent += 1;
        assert!(sent <= 5000);
    }
    assert_eq!(sent, 1024);
    settle().await;
    assert!(sender.poll_answer(&mut context()).is_pending());
    bench.memory.queues.withhold(false);
    settle().await;
    assert!(sender.poll_answer(&mut context()).is_ready());
    assert!(sender.has_room());
}

#[tokio::test]
async fn a_store_without_room_refuses_messages_and_serves_devices() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    send_many(hub, "dev1", &["a"]).await;
    assert!(!hub.c2d().is_held());
    bench.memory.log.set_health(Health {
        level: HealthLevel::HoldMessages,
        reason: None,
    });
    assert!(hub.c2d().is_held());
    let refused = send(hub, "dev1", "b", Ack::None).await;
    assert!(matches!(refused, Err(SendRefused::NoRoom)), "{refused:?}");
    take(hub, &device, Settlement::Complete).await;
    bench.memory.log.set_health(Health::OK);
    send_many(hub, "dev1", &["b"]).await;
    assert!(!hub.c2d().is_held());
}

#[tokio::test]
async fn a_store_that_fails_acknowledges_nothing_and_is_not_asked_in_circles() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let device = bench.principal("dev1").await;
    send_many(hub, "dev1", &["a"]).await;
    let mut receiver = hub.c2d().receiver(&device, 1);
    receiver.set_window(1);
    let delivery = taken(&mut receiver).await;
    bench.memory.queues.fail_next();
    receiver.settle_and_tell(delivery[0].sequence, Settlement::Complete);
    // A device that completes whatever comes, at once.
    let mut deliveries = 0;
    for _ in 0..40 {
        for delivery in taken(&mut receiver).await {
            deliveries += 1;
            receiver.settle_and_tell(delivery.sequence, Settlement::Complete);
        }
        bench.clock.advance(Duration::from_millis(250));
    }
    let Poll::Ready((_, Err(SettleError::Store(StoreError::ReadOnly { .. })))) =
        receiver.poll_settled(&mut context())
    else {
        panic!("the store did not take it");
    };
    assert!((5..=11).contains(&deliveries), "{deliveries}");
    let refused = send(hub, "dev1", "b", Ack::None).await;
    let expected = matches!(
        refused,
        Err(SendRefused::Store(StoreError::ReadOnly { .. }))
    );
    assert!(expected, "{refused:?}");
    assert_eq!(count(hub, &device).await, 1);
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

/// Devices and messages in numbers: everything that was accepted is delivered once, in order.
#[tokio::test]
async fn many_devices_get_their_messages_in_order() {
    let bench = Bench::start().await;
    let hub = &bench.hub;
    let mut devices = Vec::new();
    for n in 0..100 {
        let device = hub
            .registry()
            .create(DeviceSpec::new(id(&format!("dev{n}"))));
        devices.push(principal_of(&device.await.unwrap()));
    }
    let mut receivers: Vec<_> = devices
        .iter()
        .map(|device| hub.c2d().receiver(device, 1))
        .collect();
    receivers
        .iter_mut()
        .for_each(|receiver| receiver.set_window(3));
    let mut sender = hub.c2d().sender("service");
    let mut got = vec![Vec::new(); devices.len()];
    for round in 0..40 {
        for (n, device) in devices.iter().enumerate() {
            let target = Target {
                identity: device.identity.clone(),
                fallback: None,
            };
            let message = CloudMessage {
                message_id: Some(round.to_string().into()),
                ..CloudMessage::default()
            };
            sender.send(n as u64, target, &message);
        }
        settle().await;
        while let Poll::Ready((_, answer)) = sender.poll_answer(&mut context()) {
            answer.unwrap();
        }
        for (receiver, got) in receivers.iter_mut().zip(&mut got) {
            while let Poll::Ready(delivery) = receiver.poll_delivery(&mut context()) {
                got.push(message_id(&delivery));
                receiver.settle(delivery.sequence, Settlement::Complete);
            }
        }
    }
    settle().await;
    let expected: Vec<_> = (0..40).map(|round| round.to_string()).collect();
    for (receiver, got) in receivers.iter_mut().zip(&mut got) {
        got.extend(ids(&taken(receiver).await));
        assert_eq!(*got, expected);
    }
    complete(hub, &devices[0], "last", Ack::None).await;
}
