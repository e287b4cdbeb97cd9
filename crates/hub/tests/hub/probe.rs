//! What a hub in test mode offers to its users' tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use fieldpost_hub::c2d::Settlement;
use fieldpost_model::{DeviceMessage, StreamId};
use fieldpost_store::log::EventLog as _;
use fieldpost_store::memory::MemoryStore;

use crate::bench::{Bench, context, identity, settle};
use crate::commands::{message_id, next, seconds, send_many, taken};

async fn in_test_mode() -> Bench {
    Bench::with(MemoryStore::automatic, |config| config.test_mode = true).await
}

#[tokio::test]
async fn only_a_hub_in_test_mode_has_a_probe() {
    assert!(Bench::start().await.hub.probe().is_none());
    assert!(in_test_mode().await.hub.probe().is_some());
}

#[tokio::test]
async fn what_a_device_was_sent_is_listed_however_it_came_to_it() {
    let bench = in_test_mode().await;
    let (hub, probe) = (&bench.hub, bench.hub.probe().unwrap());
    let device = bench.principal("dev1").await;
    bench.principal("dev2").await;
    send_many(hub, "dev1", &["a", "b", "c", "d"]).await;
    send_many(hub, "dev2", &["other"]).await;
    let mut receiver = hub.c2d().receiver(&device, 7);
    receiver.set_window(3);
    let deliveries = taken(&mut receiver).await;
    assert!(receiver.settle(deliveries[0].sequence, Settlement::Complete));
    // Nobody has seen this one.
    receiver.give_back(&deliveries[1]);
    drop(receiver);
    settle().await;
    bench.clock.advance(seconds(5));
    next(hub, &device).await.unwrap();
    let sent = probe.sent(&identity("dev1"), 0, 100);
    let shown: Vec<_> = sent
        .iter()
        .map(|sent| (message_id(&sent.delivery), sent.connection))
        .collect();
    let expected = [("a", Some(7)), ("c", Some(7)), ("b", None)];
    assert_eq!(shown, expected.map(|(id, by)| (id.to_owned(), by)));
    assert_eq!(sent[2].at.since(sent[0].at), seconds(5));
    let after = probe.sent(&identity("dev1"), sent[0].number, 1);
    assert_eq!(after, [sent[1].clone()]);
    assert_eq!(probe.sent(&identity("dev2"), 0, 100), []);
}

#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn withheld_acknowledgements_come_when_they_are_let_go() {
    let bench = in_test_mode().await;
    let (hub, probe) = (&bench.hub, bench.hub.probe().unwrap());
    let (device, other) = (bench.principal("dev1").await, bench.principal("dev2").await);
    probe.withhold(&identity("dev1"), true);
    let mut senders = [hub.ingest().sender(&device), hub.ingest().sender(&other)];
    for sender in &mut senders {
        assert!(sender.poll_reserve(&mut context()).is_ready());
        sender.accept(&DeviceMessage::default()).unwrap();
        sender.submit().unwrap();
    }
    let [withheld, free] = &mut senders;
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut cx = Context::from_waker(&waker);
    assert!(withheld.poll_durable(&mut cx).is_pending());
    assert!(matches!(
        free.poll_durable(&mut context()),
        Poll::Ready(Ok(1))
    ));
    // It is stored all the same.
    let log = &bench.memory.log;
    let bounds = log.bounds(StreamId::BUILT_IN, device.partition);
    assert!(bounds.next > bounds.first);
    assert!(!woken.0.load(Ordering::Relaxed));
    probe.withhold(&identity("dev1"), false);
    assert!(woken.0.load(Ordering::Relaxed));
    assert!(matches!(withheld.poll_durable(&mut cx), Poll::Ready(Ok(1))));
}
