use std::collections::HashMap;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use fieldpost_hub::auth::DevicePrincipal;
use fieldpost_hub::clock::Clock as _;
use fieldpost_hub::ingest::{
    Hold, IngestError, MessageRefused, READ_RESERVATION, Sender, WINDOW_BYTES, WINDOW_MESSAGES,
};
use fieldpost_model::limits::D2C_MESSAGE_BYTES_MAX;
use fieldpost_model::{AuthKind, AuthScope, AuthStamp, DeviceMessage, PartitionId, StreamId};
use fieldpost_record::{RecordView, Source};
use fieldpost_store::log::{EventLog as _, ReadRequest, StoredRecord};
use fieldpost_store::memory::MemoryStore;
use fieldpost_store::{Health, HealthLevel, StoreError};

use crate::bench::{Bench, context, settle};

fn message(body: &[u8]) -> DeviceMessage<'_> {
    DeviceMessage {
        body: body.into(),
        ..DeviceMessage::default()
    }
}

fn durable(sender: &mut Sender) -> Option<u64> {
    match sender.poll_durable(&mut context()) {
        Poll::Ready(number) => Some(number.unwrap()),
        Poll::Pending => None,
    }
}

fn reserved(sender: &mut Sender) -> bool {
    sender.poll_reserve(&mut context()).is_ready()
}

async fn records(bench: &Bench, partition: PartitionId, from: u64) -> Vec<StoredRecord> {
    let request = ReadRequest {
        stream: StreamId::BUILT_IN,
        partition,
        from,
        bytes_max: usize::MAX,
        records_max: usize::MAX,
    };
    bench.memory.log.read(request).await.unwrap().records
}

fn held(level: HealthLevel) -> Health {
    Health {
        level,
        reason: Some("nearly full".into()),
    }
}

#[tokio::test]
async fn a_message_is_stored_with_the_stamps_of_its_sender() {
    let bench = Bench::start().await;
    let principal = DevicePrincipal {
        stamp: AuthStamp {
            scope: AuthScope::Hub,
            kind: AuthKind::Sas,
        },
        ..bench.principal("dev1").await
    };
    let mut sender = bench.hub.ingest().sender(&principal);
    sender.set_model_id(Some("dtmi:com:example;1".into()));
    let mut hello = message(b"hello");
    hello
        .properties
        .set("iothub-connection-device-id".into(), Some("forged".into()));
    sender.reserve().await;
    sender.accept(&hello).unwrap();
    let accepted = bench.clock.now();
    bench.clock.advance(Duration::from_millis(47));
    let number = sender.submit().unwrap().unwrap();
    sender.durable(number).await.unwrap();

    let records = records(&bench, principal.partition, 0).await;
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].enqueued, bench.clock.now());
    let view = RecordView::parse(&records[0].data).unwrap();
    let envelope = view.envelope();
    assert_eq!(envelope.source, Source::Telemetry);
    assert_eq!(envelope.accepted, accepted);
    assert_eq!(envelope.auth, principal.stamp);
    assert_eq!((envelope.device_id, envelope.module_id), ("dev1", None));
    assert_eq!(envelope.generation_id, &*principal.generation_id);
    assert_eq!(envelope.model_id, Some("dtmi:com:example;1"));
    assert_eq!(view.body(), Some(&b"hello"[..]));
    assert_eq!(bench.hub.ingest().in_flight_bytes(), 0);
}

#[tokio::test]
async fn nothing_is_acknowledged_before_it_is_durable() {
    let bench = Bench::start_stepped().await;
    let principal = bench.principal("dev1").await;
    let mut sender = bench.hub.ingest().sender(&principal);
    for round in 0..3u8 {
        assert!(reserved(&mut sender));
        sender.accept(&message(&[round])).unwrap();
        sender.accept(&message(&[round, round])).unwrap();
        assert_eq!(sender.submit().unwrap(), Some(u64::from(round) + 1));
    }
    assert_eq!(durable(&mut sender), None);
    assert_eq!(sender.in_flight(), 6);
    assert!(bench.hub.ingest().in_flight_bytes() > 0);

    // On stable storage, but nobody has said so yet.
    bench.memory.log.withhold(true);
    bench.memory.log.step();
    assert_eq!(durable(&mut sender), None);
    bench.memory.log.withhold(false);
    assert_eq!(durable(&mut sender), Some(3));
    assert_eq!(durable(&mut sender), None);
    assert_eq!(sender.in_flight(), 0);
    assert_eq!(bench.hub.ingest().in_flight_bytes(), 0);

    let stored = records(&bench, principal.partition, 0).await;
    let bodies: Vec<_> = stored
        .iter()
        .map(|record| {
            RecordView::parse(&record.data)
                .unwrap()
                .body()
                .unwrap()
                .to_vec()
        })
        .collect();
    assert_eq!(bodies, [&[0][..], &[0, 0], &[1], &[1, 1], &[2], &[2, 2]]);
}

#[tokio::test]
async fn a_store_that_fails_acknowledges_nothing() {
    let bench = Bench::start_stepped().await;
    let mut sender = bench.hub.ingest().sender(&bench.principal("dev1").await);
    let mut other = bench.hub.ingest().sender(&bench.principal("dev2").await);
    for sender in [&mut sender, &mut other] {
        for body in [b"a", b"b"] {
            assert!(reserved(sender));
            sender.accept(&message(body)).unwrap();
            sender.submit().unwrap();
        }
    }
    assert!(reserved(&mut other));
    bench.memory.log.fail_next();
    bench.memory.log.step();
    settle().await;
    for sender in [&mut sender, &mut other] {
        let outcome = sender.poll_durable(&mut context());
        assert!(
            matches!(
                outcome,
                Poll::Ready(Err(IngestError::Store(StoreError::ReadOnly { .. })))
            ),
            "{outcome:?}"
        );
        assert_eq!(sender.hold(), Hold::ReadOnly);
        assert_eq!(sender.in_flight(), 0);
    }
    // A message that was read before the failure was known.
    other.accept(&message(b"c")).unwrap();
    assert!(other.submit().is_err());
    assert!(!reserved(&mut sender) && !reserved(&mut other));
    assert_eq!(bench.hub.ingest().hold(), Hold::ReadOnly);
    assert_eq!(bench.hub.ingest().in_flight_bytes(), 0);
}

#[tokio::test]
async fn messages_and_batches_have_a_size() {
    let bench = Bench::start().await;
    let principal = bench.principal("dev1").await;
    let mut sender = bench.hub.ingest().sender(&principal);
    let largest = vec![0; D2C_MESSAGE_BYTES_MAX];
    sender.accept(&message(&largest)).unwrap();
    let mut larger = message(&largest);
    larger.system.message_id = Some("1".into());
    let size = D2C_MESSAGE_BYTES_MAX + 1;
    let max = D2C_MESSAGE_BYTES_MAX;
    let refused = Err(MessageRefused::TooLarge { size, max });
    assert_eq!(sender.accept(&larger), refused);

    let half = vec![0; D2C_MESSAGE_BYTES_MAX / 2];
    let halves = [message(&half), message(&half), message(b"x")];
    assert_eq!(sender.accept_batch(&halves), refused);
    sender.accept_batch(&halves[..2]).unwrap();
    let number = sender.submit().unwrap().unwrap();
    sender.durable(number).await.unwrap();
    assert_eq!(records(&bench, principal.partition, 0).await.len(), 3);
    sender.accept_batch(&[]).unwrap();
    assert_eq!(sender.submit().unwrap(), None);
}

#[tokio::test]
async fn a_window_bounds_what_one_connection_has_on_its_way() {
    let bench = Bench::start_stepped().await;
    let mut sender = bench.hub.ingest().sender(&bench.principal("dev1").await);
    assert!(reserved(&mut sender));
    let mut accepted = 0;
    while sender.has_room() {
        sender.accept(&message(b"small")).unwrap();
        accepted += 1;
    }
    assert_eq!(accepted, WINDOW_MESSAGES);
    sender.submit().unwrap();
    assert!(!reserved(&mut sender));
    bench.memory.log.step();
    assert!(durable(&mut sender).is_some() && reserved(&mut sender));

    let large = vec![0; 200 * 1024];
    while sender.has_room() {
        sender.accept(&message(&large)).unwrap();
    }
    sender.submit().unwrap();
    let in_flight = bench.hub.ingest().in_flight_bytes();
    assert!(
        (WINDOW_BYTES / 2..=WINDOW_BYTES).contains(&in_flight),
        "{in_flight}"
    );
    assert!(!reserved(&mut sender));
}

#[tokio::test]
async fn a_reservation_that_was_not_needed_is_given_back() {
    let bench = Bench::with(MemoryStore::manual, |config| {
        config.in_flight_bytes = READ_RESERVATION;
    })
    .await;
    let ingest = bench.hub.ingest();
    let mut first = ingest.sender(&bench.principal("dev1").await);
    let mut second = ingest.sender(&bench.principal("dev2").await);
    assert!(reserved(&mut first) && reserved(&mut first) && !reserved(&mut second));
    assert_eq!(ingest.in_flight_bytes(), READ_RESERVATION);
    first.unreserve();
    first.unreserve();
    assert!(!reserved(&mut first) && reserved(&mut second));
    assert_eq!(second.submit().unwrap(), None);
    assert!(reserved(&mut first));
    drop(first);
    assert_eq!(ingest.in_flight_bytes(), 0);
    let mut waiting = ingest.sender(&bench.principal("dev3").await);
    assert!(reserved(&mut second) && !reserved(&mut waiting));
    drop(waiting);
    drop(second);
    assert_eq!(ingest.in_flight_bytes(), 0);
}

#[tokio::test]
async fn a_connection_that_does_not_read_holds_up_nobody() {
    let bench = Bench::with(MemoryStore::manual, |config| {
        config.in_flight_bytes = READ_RESERVATION;
    })
    .await;
    let ingest = bench.hub.ingest();
    let mut senders = Vec::new();
    for name in ["dev1", "dev2", "dev3"] {
        senders.push(ingest.sender(&bench.principal(name).await));
    }
    let [first, second, third] = &mut senders[..] else {
        panic!("three senders");
    };
    assert!(reserved(first) && !reserved(second) && !reserved(third));
    // The second one is served and does not come.
    first.unreserve();
    assert!(!reserved(third));
    second.withdraw();
    assert!(reserved(third) && !reserved(first) && !reserved(second));
    first.withdraw();
    third.withdraw();
    assert!(reserved(second) && !reserved(first));
}

/// A client that sends and reconnects in a loop must not get a new budget each time.
#[tokio::test]
async fn what_a_lost_connection_had_on_its_way_counts_until_it_is_durable() {
    let bench = Bench::start_stepped().await;
    let principal = bench.principal("dev1").await;
    let ingest = bench.hub.ingest();
    for _ in 0..3 {
        let mut sender = ingest.sender(&principal);
        for _ in 0..2 {
            assert!(reserved(&mut sender));
            sender.accept(&message(&[0; 1000])).unwrap();
            sender.submit().unwrap();
        }
        sender.accept(&message(b"never submitted")).unwrap();
    }
    settle().await;
    assert!((6000..9000).contains(&ingest.in_flight_bytes()));
    bench.memory.log.step();
    settle().await;
    assert_eq!(ingest.in_flight_bytes(), 0);
    assert_eq!(records(&bench, principal.partition, 0).await.len(), 6);
}

#[tokio::test]
async fn a_nearly_full_disk_holds_messages_back_and_lets_them_go_again() {
    let bench = Bench::start().await;
    let mut sender = bench.hub.ingest().sender(&bench.principal("dev1").await);
    let mut idle = bench.hub.ingest().sender(&bench.principal("dev2").await);
    bench.clock.advance(Duration::from_secs(5));
    let since = bench.clock.monotonic();
    for level in [HealthLevel::HoldMessages, HealthLevel::HoldAll] {
        bench.memory.log.set_health(held(level));
        settle().await;
        assert!(!reserved(&mut sender));
        assert_eq!(sender.hold(), Hold::Held { since });
        assert_eq!(idle.hold(), Hold::None);
        bench.clock.advance(Duration::from_secs(20));
        assert!(!reserved(&mut sender));
        assert_eq!(sender.hold(), Hold::Held { since });
        let now = bench.clock.monotonic();
        assert_eq!(bench.hub.ingest().hold(), Hold::Held { since: now });
    }
    bench.memory.log.set_health(Health::OK);
    settle().await;
    assert!(reserved(&mut sender) && reserved(&mut idle));
    assert_eq!(sender.hold(), Hold::None);
    assert_eq!(bench.hub.ingest().hold(), Hold::None);
}

/// Those who wait for their turn must hear of a hold, or they would wait without a limit.
#[tokio::test]
async fn senders_in_the_queue_are_woken_when_the_store_starts_to_hold() {
    let bench = Bench::with(MemoryStore::manual, |config| {
        config.in_flight_bytes = READ_RESERVATION;
    })
    .await;
    let mut first = bench.hub.ingest().sender(&bench.principal("dev1").await);
    let mut second = bench.hub.ingest().sender(&bench.principal("dev2").await);
    assert!(reserved(&mut first));
    let waiting = tokio::spawn(async move {
        std::future::poll_fn(|cx| {
            let outcome = second.poll_reserve(cx);
            assert!(outcome.is_pending());
            match second.hold() {
                Hold::None => Poll::Pending,
                hold => Poll::Ready(hold),
            }
        })
        .await
    });
    settle().await;
    assert!(!waiting.is_finished());
    bench.memory.log.set_health(held(HealthLevel::HoldMessages));
    settle().await;
    let since = bench.clock.monotonic();
    assert_eq!(waiting.await.unwrap(), Hold::Held { since });
}

/// The disk fills between a read and its submission: the messages wait with their sender and are
/// neither lost nor acknowledged.
#[tokio::test]
async fn what_a_full_store_does_not_take_waits_in_order() {
    let bench = Bench::start().await;
    let principal = bench.principal("dev1").await;
    let mut sender = bench.hub.ingest().sender(&principal);
    assert!(reserved(&mut sender));
    bench.memory.log.set_health(held(HealthLevel::HoldMessages));
    for body in [b"1", b"2", b"3"] {
        sender.accept(&message(body)).unwrap();
        assert!(sender.submit().unwrap().is_some());
    }
    let since = bench.clock.monotonic();
    assert_eq!(sender.hold(), Hold::Held { since });
    assert!(!reserved(&mut sender));
    settle().await;
    assert_eq!(durable(&mut sender), None);
    assert_eq!(sender.in_flight(), 3);

    bench.memory.log.set_health(Health::OK);
    settle().await;
    assert_eq!(durable(&mut sender), Some(3));
    assert_eq!(sender.hold(), Hold::None);
    assert!(reserved(&mut sender));
    let stored = records(&bench, principal.partition, 0).await;
    let bodies: Vec<_> = stored
        .iter()
        .map(|record| {
            RecordView::parse(&record.data)
                .unwrap()
                .body()
                .unwrap()
                .to_vec()
        })
        .collect();
    assert_eq!(bodies, [b"1", b"2", b"3"]);

    // One that gives up before takes nothing with it.
    sender.unreserve();
    bench.memory.log.set_health(held(HealthLevel::HoldMessages));
    sender.accept(&message(b"4")).unwrap();
    sender.submit().unwrap();
    assert!(bench.hub.ingest().in_flight_bytes() > 0);
    drop(sender);
    assert_eq!(bench.hub.ingest().in_flight_bytes(), 0);
}

/// One device as its session would drive it: acknowledge, and read while there is something to read
/// and room for it.
struct Device {
    name: String,
    sender: Sender,
    body: Arc<[u8]>,
    /// Messages that wait in the socket.
    waiting: usize,
    turns: usize,
}

impl Device {
    fn pump(&mut self) {
        while durable(&mut self.sender).is_some() {}
        while self.waiting > 0 && reserved(&mut self.sender) {
            self.turns += 1;
            let mut bytes = 0;
            while self.waiting > 0
                && self.sender.has_room()
                && bytes + self.body.len() <= READ_RESERVATION
            {
                self.sender.accept(&message(&self.body)).unwrap();
                bytes += self.body.len();
                self.waiting -= 1;
            }
            self.sender.submit().unwrap();
        }
        self.sender.unreserve();
    }
}

async fn devices(bench: &Bench, count: usize, body: usize) -> Vec<Device> {
    let mut devices = Vec::new();
    for n in 0..count {
        let name = format!("device-{n}");
        devices.push(Device {
            sender: bench.hub.ingest().sender(&bench.principal(&name).await),
            name,
            body: vec![0; body].into(),
            waiting: 0,
            turns: 0,
        });
    }
    devices
}

/// Counts what each device got into the log since the last look.
async fn newly_stored(bench: &Bench, next: &mut [u64; 4]) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for (partition, next) in (0..).map(PartitionId).zip(next) {
        for record in records(bench, partition, *next).await {
            *next = record.sequence + 1;
            let view = RecordView::parse(&record.data).unwrap();
            *counts
                .entry(view.envelope().device_id.to_owned())
                .or_default() += 1;
        }
    }
    counts
}

#[tokio::test]
async fn beside_a_flooder_no_device_loses_a_turn() {
    let bench = Bench::start_stepped().await;
    let mut devices = devices(&bench, 201, 100).await;
    devices[0].waiting = usize::MAX;
    let mut next = [0; 4];
    for group in 0..20 {
        for device in &mut devices[1..] {
            device.waiting += 1;
        }
        for device in &mut devices {
            device.pump();
        }
        bench.memory.log.step();
        assert_eq!(bench.memory.log.waiting(), 0);
        let counts = newly_stored(&bench, &mut next).await;
        let flooder = counts.get(&devices[0].name).copied().unwrap_or(0);
        assert_eq!(flooder, WINDOW_MESSAGES, "group {group}");
        for device in &devices[1..] {
            assert_eq!(
                counts.get(&device.name),
                Some(&1),
                "group {group}: {}",
                device.name
            );
        }
    }
}

#[tokio::test]
async fn when_the_budget_is_short_it_is_given_out_in_turn() {
    const DEVICES: usize = 51;
    let bench = Bench::with(MemoryStore::manual, |config| {
        config.in_flight_bytes = 4 * READ_RESERVATION;
    })
    .await;
    // A read brings one message of 60 KiB, so that a few devices fill the budget.
    let mut devices = devices(&bench, DEVICES, 60 * 1024).await;
    let mut next = [0; 4];
    let mut stored: HashMap<String, usize> = HashMap::new();
    for _ in 0..200 {
        // The flooder always has more; the others have one message at a time.
        devices[0].waiting = 1000;
        for device in &mut devices[1..] {
            device.waiting = device.waiting.max(1);
        }
        for device in &mut devices {
            device.pump();
        }
        let in_flight = bench.hub.ingest().in_flight_bytes();
        assert!(in_flight <= 4 * READ_RESERVATION, "{in_flight}");
        bench.memory.log.step();
        for (name, count) in newly_stored(&bench, &mut next).await {
            *stored.entry(name).or_default() += count;
        }
    }
    let turns: Vec<_> = devices.iter().map(|device| device.turns).collect();
    let (flooder, others) = turns.split_first().unwrap();
    let (least, most) = (others.iter().min().unwrap(), others.iter().max().unwrap());
    // Before anybody else had asked, the flooder took all four places at once.
    assert!(most - least <= 1 && flooder - least <= 4 + 1, "{turns:?}");
    assert!(*least >= 200 * 3 / DEVICES, "{turns:?}");
    assert_eq!(stored.len(), DEVICES);
}

/// Waiting for room alone never made any: nobody looked at what had become durable.
#[tokio::test]
async fn room_behind_a_full_window_is_waited_for() {
    let bench = Bench::start_stepped().await;
    let mut sender = bench.hub.ingest().sender(&bench.principal("dev1").await);
    sender.reserve().await;
    while sender.has_room() {
        sender.accept(&message(b"x")).unwrap();
    }
    sender.submit().unwrap();
    {
        let mut reserve = Box::pin(sender.reserve());
        assert!(reserve.as_mut().poll(&mut context()).is_pending());
        bench.memory.log.step();
        reserve.await;
    }
    assert!(sender.has_room());
    assert_eq!(sender.in_flight(), 0);
}
