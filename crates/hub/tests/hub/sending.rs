use std::collections::BTreeMap;
use std::task::Poll;

use fieldpost_hub::c2d::{Admission, SendRefused, Settlement, Target};
use fieldpost_hub::clock::Clock as _;
use fieldpost_hub::identity::{DeviceSpec, DeviceStatus};
use fieldpost_hub::settings::HubSettings;
use fieldpost_model::{Ack, CloudMessage, Timestamp};
use fieldpost_record::CommandView;
use fieldpost_store::{Health, HealthLevel, StoreError};

use crate::bench::{Bench, context, id, identity, principal_of, settle};
use crate::commands::{count, ids, message_id, next, seconds, send_many, taken};
use crate::commands::{send, stop, take};

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
async fn messages_of_one_sender_to_one_device_keep_their_order_whoever_is_known() {
    let bench = Bench::start().await;
    let mut devices = BTreeMap::new();
    for n in 0..4 {
        let name = format!("dev{n}");
        devices.insert(name.clone(), bench.principal(&name).await);
    }
    // A hub that knows no device yet.
    let stopped = stop(bench).await;
    let hub = stopped.start(stopped.memory.queues.clone()).await;
    let mut sender = hub.c2d().sender("service");
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
        let mut receiver = hub.c2d().receiver(&device, 1);
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
    let set = |level| {
        let reason = Some("a test".into());
        bench.memory.log.set_health(Health { level, reason });
    };
    assert_eq!(hub.c2d().admission(), Admission::Open);
    for level in [HealthLevel::HoldMessages, HealthLevel::HoldAll] {
        set(level);
        assert_eq!(hub.c2d().admission(), Admission::Held);
        let refused = send(hub, "dev1", "b", Ack::None).await;
        assert!(matches!(refused, Err(SendRefused::NoRoom)), "{refused:?}");
    }
    set(HealthLevel::HoldMessages);
    take(hub, &device, Settlement::Complete).await;
    bench.memory.log.set_health(Health::OK);
    // What holds the event log alone back is nothing to the queues.
    bench.memory.log.hold(true);
    assert_eq!(hub.health().borrow().level, HealthLevel::HoldMessages);
    assert_eq!(hub.c2d().admission(), Admission::Open);
    send_many(hub, "dev1", &["b"]).await;
    set(HealthLevel::ReadOnly);
    assert_eq!(hub.c2d().admission(), Admission::ReadOnly);
    let refused = send(hub, "dev1", "c", Ack::None).await;
    let is_clear = matches!(
        refused,
        Err(SendRefused::Store(StoreError::ReadOnly { .. }))
    );
    assert!(is_clear, "{refused:?}");
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
}
