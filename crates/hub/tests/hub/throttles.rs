use std::task::Poll;
use std::time::Duration;

use fieldpost_hub::Hub;
use fieldpost_hub::c2d::{SendRefused, Target};
use fieldpost_hub::clock::Clock as _;
use fieldpost_hub::ingest::{MessageRefused, Sender};
use fieldpost_hub::settings::HubSettings;
use fieldpost_hub::throttles::{BACKLOG, Operation, Throttled, ThrottlingSettings, Tier};
use fieldpost_model::{CloudMessage, DeviceMessage};
use futures_util::FutureExt as _;

use crate::bench::{Bench, context, identity, settle};

const SECOND: Duration = Duration::from_secs(1);

/// Far from the next midnight, so that no test crosses it but those that want to.
async fn tiered(tier: Tier, units: u32) -> Bench {
    let bench = Bench::start().await;
    set(&bench.hub, Some(tier), units).await;
    bench
}

async fn set(hub: &Hub, tier: Option<Tier>, units: u32) {
    let settings = HubSettings {
        throttling: ThrottlingSettings { tier, units },
        ..HubSettings::clone(&hub.settings().get())
    };
    hub.settings().apply(settings).await.unwrap();
}

fn message(body: &[u8]) -> DeviceMessage<'_> {
    DeviceMessage {
        body: body.into(),
        ..DeviceMessage::default()
    }
}

/// Sends one message; whether it was acknowledged at once, when it was taken.
fn send(sender: &mut Sender, body: &[u8]) -> Result<bool, MessageRefused> {
    assert!(sender.poll_reserve(&mut context()).is_ready());
    sender.accept(&message(body))?;
    sender.submit().unwrap();
    Ok(is_durable(sender))
}

fn is_durable(sender: &mut Sender) -> bool {
    match sender.poll_durable(&mut context()) {
        Poll::Ready(number) => number.is_ok(),
        Poll::Pending => false,
    }
}

#[tokio::test]
async fn a_hub_without_a_tier_limits_nothing() {
    let bench = Bench::start().await;
    let mut sender = bench.hub.ingest().sender(&bench.principal("dev1").await);
    for _ in 0..20_000 {
        assert_eq!(send(&mut sender, b"x"), Ok(true));
        bench.hub.throttles().admit(Operation::Identity).unwrap();
    }
}

#[tokio::test]
async fn telemetry_above_the_rate_is_stored_and_acknowledged_late_and_then_refused() {
    let bench = tiered(Tier::S1, 1).await;
    let principal = bench.principal("dev1").await;
    let mut sender = bench.hub.ingest().sender(&principal);
    for number in 0..100 {
        assert_eq!(send(&mut sender, b"x"), Ok(true), "{number}");
    }
    assert_eq!(send(&mut sender, b"x"), Ok(false));
    // It waits 10 ms for its turn, and nothing more is read meanwhile.
    assert!(sender.poll_reserve(&mut context()).is_pending());
    bench.clock.advance(Duration::from_millis(9));
    assert!(!is_durable(&mut sender));
    bench.clock.advance(Duration::from_millis(1));
    assert!(is_durable(&mut sender));
    assert!(sender.poll_reserve(&mut context()).is_ready());
    sender.unreserve();

    // Others stand in the same line, each with his turn, until it is ten seconds long.
    let mut others = Vec::new();
    for _ in 0..1000 {
        let mut other = bench.hub.ingest().sender(&principal);
        assert_eq!(send(&mut other, b"x"), Ok(false));
        others.push(other);
    }
    let refused = send(&mut sender, b"x").unwrap_err();
    let expected = Throttled {
        is_backlog_full: true,
        retry_after: Duration::from_millis(10),
    };
    assert_eq!(refused, MessageRefused::Throttled(expected));
    bench.clock.advance(BACKLOG / 2);
    let served = others.iter_mut().map(is_durable).filter(|served| *served);
    assert_eq!(served.count(), 500);
    bench.clock.advance(BACKLOG / 2);
    let served = others.iter_mut().map(is_durable).filter(|served| *served);
    assert_eq!(served.count(), 500);
}

#[tokio::test]
async fn a_batch_is_one_operation_and_counts_for_each_of_its_messages() {
    let bench = tiered(Tier::F1, 1).await;
    let mut sender = bench.hub.ingest().sender(&bench.principal("dev1").await);
    // 78 batches of 100 messages, two of which are metered twice.
    let long = [b'x'; 513];
    let batch: Vec<_> = (0..100)
        .map(|n| message(if n < 2 { &long } else { b"x" }))
        .collect();
    for _ in 0..78 {
        assert!(sender.poll_reserve(&mut context()).is_ready());
        sender.accept_batch(&batch).unwrap();
        sender.submit().unwrap();
        assert!(is_durable(&mut sender));
    }
    // 44 are left of 8,000.
    assert_eq!(
        sender.accept_batch(&batch),
        Err(MessageRefused::QuotaExceeded)
    );
    assert_eq!(sender.accept_batch(&batch[56..]), Ok(()));
    let full = Err(MessageRefused::QuotaExceeded);
    assert_eq!(sender.accept(&message(b"x")), full);

    // The count outlives the hub.
    bench.hub.close().await;
    let again = bench.reopen(|_| {}).await.unwrap();
    let principal = bench.authenticated(&again, "dev1").await;
    let mut sender = again.ingest().sender(&principal);
    assert_eq!(sender.accept(&message(b"x")), full);
    // More units, or the next day, give more.
    let to_midnight = 86_400_000 - bench.clock.now().as_millis() % 86_400_000;
    let to_midnight = Duration::from_millis(to_midnight.unsigned_abs());
    bench.clock.advance(to_midnight - Duration::from_millis(1));
    assert_eq!(sender.accept(&message(b"x")), full);
    bench.clock.advance(Duration::from_millis(1));
    assert_eq!(sender.accept(&message(b"x")), Ok(()));
}

#[tokio::test]
async fn what_a_killed_hub_had_counted_is_forgotten_to_a_hundredth_at_most() {
    let bench = tiered(Tier::F1, 1).await;
    let mut sender = bench.hub.ingest().sender(&bench.principal("dev1").await);
    let batch: Vec<_> = (0..79).map(|_| message(b"x")).collect();
    for _ in 0..100 {
        sender.accept_batch(&batch).unwrap();
        settle().await;
    }
    let few: Vec<_> = (0..19).map(|_| message(b"x")).collect();
    sender.accept_batch(&few).unwrap();
    settle().await;

    // 7,919 of 8,000.
    let again = bench.reopen(|_| {}).await.unwrap();
    let principal = bench.authenticated(&again, "dev1").await;
    let mut sender = again.ingest().sender(&principal);
    let left = (0..).take_while(|_| sender.accept(&message(b"x")).is_ok());
    assert_eq!(left.count(), 100);
}

#[tokio::test]
async fn messages_to_devices_are_sent_at_the_rate_in_their_order() {
    let bench = tiered(Tier::S1, 1).await;
    bench.device("dev1").await;
    let mut sender = bench.hub.c2d().sender("service");
    let target = || Target {
        identity: identity("dev1"),
        fallback: None,
    };
    let depth = HubSettings {
        throttling: ThrottlingSettings {
            tier: Some(Tier::S1),
            units: 1,
        },
        cloud_to_device: fieldpost_hub::settings::CloudToDeviceSettings {
            queue_depth_max: 10_000,
            ..Default::default()
        },
        ..HubSettings::default()
    };
    bench.hub.settings().apply(depth).await.unwrap();
    let message = CloudMessage {
        to: "/devices/dev1/messages/deviceBound".into(),
        body: b"x"[..].into(),
        ..CloudMessage::default()
    };
    // 100 at once, then one in 0.6 s; 16 of those can wait for ten seconds.
    for ticket in 0..117 {
        sender.send(ticket, target(), &message);
    }
    settle().await;
    let (mut accepted, mut refused) = (Vec::new(), Vec::new());
    while let Poll::Ready((ticket, answer)) = sender.poll_answer(&mut context()) {
        match answer {
            Ok(message) => accepted.push((message.sequence, ticket)),
            Err(error) => refused.push((ticket, error)),
        }
        settle().await;
    }
    assert_eq!(accepted.len(), 100);
    let [(116, SendRefused::Throttled(throttled))] = refused.as_slice() else {
        panic!("{refused:?}");
    };
    assert!(throttled.is_backlog_full);
    assert_eq!(throttled.retry_after, Duration::from_millis(200));
    for waited in 1..=16 {
        bench.clock.advance(Duration::from_millis(600));
        let answer = std::future::poll_fn(|cx| sender.poll_answer(cx));
        let (ticket, answer) = answer.await;
        assert_eq!(ticket, 99 + waited);
        accepted.push((answer.unwrap().sequence, ticket));
        settle().await;
        assert!(sender.poll_answer(&mut context()).is_pending());
    }
    accepted.sort_unstable();
    assert!(accepted.is_sorted_by_key(|(_, ticket)| *ticket));
}

#[tokio::test]
async fn what_is_not_taken_counts_for_nothing() {
    let bench = tiered(Tier::F1, 1).await;
    let principal = bench.principal("dev1").await;
    let mut service = bench.hub.c2d().sender("service");
    let target = Target {
        identity: identity("nobody"),
        fallback: None,
    };
    let message = CloudMessage {
        to: "/devices/nobody/messages/deviceBound".into(),
        body: b"x"[..].into(),
        ..CloudMessage::default()
    };
    for _ in 0..50 {
        let answer = service.send_one(target.clone(), &message).await;
        assert!(matches!(answer, Err(SendRefused::UnknownDevice)));
    }
    let mut device = bench.hub.ingest().sender(&principal);
    let batch = |count| (0..count).map(|_| self::message(b"x")).collect::<Vec<_>>();
    assert_eq!(
        device.accept_batch(&batch(8001)),
        Err(MessageRefused::QuotaExceeded)
    );
    assert_eq!(device.accept_batch(&batch(8000)), Ok(()));
}

#[tokio::test]
async fn who_may_wait_waits_and_who_may_not_is_told_when() {
    let bench = tiered(Tier::S1, 1).await;
    let throttles = bench.hub.throttles();
    for _ in 0..100 {
        assert_eq!(throttles.admit(Operation::Identity), Ok(()));
        let passed = throttles.pass(Operation::Connection).now_or_never();
        assert_eq!(passed, Some(Ok(())));
    }
    let refused = Throttled {
        is_backlog_full: false,
        retry_after: Duration::from_millis(600),
    };
    assert_eq!(throttles.admit(Operation::Identity), Err(refused));
    // Each operation has a rate of its own.
    assert_eq!(throttles.admit(Operation::HttpReceive), Ok(()));
    let mut waits = Box::pin(throttles.pass(Operation::Connection));
    assert!((&mut waits).now_or_never().is_none());
    bench.clock.advance(SECOND);
    assert_eq!(waits.now_or_never(), Some(Ok(())));
    assert_eq!(throttles.admit(Operation::Identity), Ok(()));

    set(&bench.hub, None, 1).await;
    for _ in 0..1000 {
        assert_eq!(throttles.admit(Operation::Identity), Ok(()));
    }
}
