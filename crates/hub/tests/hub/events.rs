use std::sync::Arc;
use std::time::Duration;

use fieldpost_hub::clock::Clock as _;
use fieldpost_hub::events::{
    EventsDescription, OpenReceiver, PartitionProperties, Receiver, ReceiverEnd, ReceiverRefused,
    StartError, StartPosition,
};
use fieldpost_model::{DeviceMessage, PartitionId, Timestamp};
use fieldpost_record::RecordView;
use fieldpost_store::log::TailWatch;

use crate::bench::{Bench, context};

fn request(partition: u16, owner_level: Option<i64>, bell: &Arc<TailWatch>) -> OpenReceiver {
    OpenReceiver {
        group: "$Default".to_owned(),
        partition: PartitionId(partition),
        owner_level,
        receiver_name: Some("reader".to_owned()),
        bell: Arc::clone(bell),
    }
}

/// Sends messages from one device, a second apart, and returns its partition.
async fn send(bench: &Bench, device: &str, bodies: &[&str]) -> PartitionId {
    let principal = bench.principal(device).await;
    let mut sender = bench.hub.ingest().sender(&principal);
    for body in bodies {
        bench.clock.advance(Duration::from_secs(1));
        let message = DeviceMessage {
            body: body.as_bytes().into(),
            ..DeviceMessage::default()
        };
        sender.reserve().await;
        sender.accept(&message).unwrap();
        let number = sender.submit().unwrap().unwrap();
        sender.durable(number).await.unwrap();
    }
    principal.partition
}

async fn bodies(receiver: &Receiver, from: u64) -> Vec<String> {
    let records = receiver.read(from, usize::MAX, 100).await.unwrap();
    records
        .records
        .iter()
        .map(|record| {
            let view = RecordView::parse(&record.data).unwrap();
            String::from_utf8(view.body().unwrap().to_vec()).unwrap()
        })
        .collect()
}

#[tokio::test]
async fn the_endpoint_describes_itself_and_its_partitions() {
    let bench = Bench::start().await;
    let events = bench.hub.events();
    let created = bench.clock.now();
    let expected = EventsDescription {
        name: "hub".to_owned(),
        created,
        partition_count: 4,
    };
    assert_eq!(events.describe(), expected);
    assert!(events.is_entity("HUB") && !events.is_entity("hub1"));
    let check = |name: &str, expected: Option<u16>| {
        assert_eq!(
            events.partition(name),
            expected.map(PartitionId),
            "{name:?}"
        );
    };
    check("0", Some(0));
    check("3", Some(3));
    for wrong in ["4", "-1", "+1", "01", "", "x", "65536"] {
        check(wrong, None);
    }

    let partition = send(&bench, "dev1", &["a", "b"]).await;
    for n in 0..4 {
        let properties = events.partition_properties(PartitionId(n)).unwrap();
        let expected = if n == partition.0 {
            PartitionProperties {
                partition,
                first: 0,
                last: Some(1),
                last_enqueued: Some(bench.clock.now()),
                is_empty: false,
            }
        } else {
            PartitionProperties {
                partition: PartitionId(n),
                first: 0,
                last: None,
                last_enqueued: None,
                is_empty: true,
            }
        };
        assert_eq!(properties, expected);
    }
    assert_eq!(events.partition_properties(PartitionId(4)), None);
    let bell = Arc::default();
    let refused = events.open_receiver(request(4, None, &bell)).err();
    let partition = PartitionId(4);
    let unknown = ReceiverRefused::UnknownPartition {
        partition,
        count: 4,
    };
    assert_eq!(refused, Some(unknown));
}

#[tokio::test]
async fn a_receiver_starts_where_its_client_wants() {
    let bench = Bench::start().await;
    let start = bench.clock.now();
    let partition = send(&bench, "dev1", &["a", "b", "c"]).await;
    let bell = Arc::default();
    let receiver = bench
        .hub
        .events()
        .open_receiver(request(partition.0, None, &bell))
        .unwrap();
    let check = async |position: StartPosition, expected: Result<&[&str], (u64, u64)>| {
        let outcome = match bench.hub.events().resolve_start(partition, position).await {
            Ok(from) => Ok(bodies(&receiver, from).await),
            Err(StartError::BeyondEnd { asked, next }) => Err((asked, next)),
            Err(error) => panic!("{error}"),
        };
        let expected = expected.map(|b| b.iter().map(|&b| b.to_owned()).collect::<Vec<_>>());
        assert_eq!(outcome, expected, "{position:?}");
    };
    let sequence = |number, inclusive| StartPosition::Sequence { number, inclusive };
    let offset = |number, inclusive| StartPosition::Offset { number, inclusive };
    let after = |seconds: i64| {
        StartPosition::EnqueuedAfter(Timestamp::from_millis(start.as_millis() + seconds * 1000))
    };
    check(StartPosition::Earliest, Ok(&["a", "b", "c"])).await;
    check(StartPosition::Latest, Ok(&[])).await;
    check(sequence(0, true), Ok(&["a", "b", "c"])).await;
    check(sequence(0, false), Ok(&["b", "c"])).await;
    check(offset(1, true), Ok(&["b", "c"])).await;
    check(offset(2, false), Ok(&[])).await;
    check(sequence(3, true), Ok(&[])).await;
    check(sequence(3, false), Err((4, 3))).await;
    check(offset(u64::MAX, false), Err((u64::MAX, 3))).await;
    check(after(0), Ok(&["a", "b", "c"])).await;
    check(after(1), Ok(&["b", "c"])).await;
    check(after(60), Ok(&[])).await;
}

#[tokio::test]
async fn the_bell_rings_for_new_events_and_for_the_end() {
    let bench = Bench::start().await;
    let bell = Arc::new(TailWatch::default());
    let partition = send(&bench, "dev1", &["a"]).await;
    let events = bench.hub.events();
    let receiver = events
        .open_receiver(request(partition.0, Some(0), &bell))
        .unwrap();
    assert!(bell.poll_rung(&mut context()).is_pending());
    send_more(&bench).await;
    assert!(bell.poll_rung(&mut context()).is_ready());
    let recent = receiver.read_recent(0, usize::MAX, 10);
    assert!(recent.is_none_or(|records| records.records.len() == 2));
    assert_eq!(bodies(&receiver, 0).await, ["a", "b"]);

    let other_bell = Arc::default();
    let thief = events
        .open_receiver(request(partition.0, Some(0), &other_bell))
        .unwrap();
    assert!(bell.poll_rung(&mut context()).is_ready());
    let expected = ReceiverEnd::Stolen {
        owner_level: 0,
        receiver_name: Some("reader".to_owned()),
    };
    assert_eq!(receiver.ended(), Some(&expected));
    assert_eq!(thief.ended(), None);
    assert_eq!(thief.partition(), partition);
}

async fn send_more(bench: &Bench) {
    let device = bench.hub.registry().get(&crate::bench::id("dev1")).await;
    let principal = crate::bench::principal_of(&device.unwrap().unwrap());
    let mut sender = bench.hub.ingest().sender(&principal);
    let message = DeviceMessage {
        body: b"b"[..].into(),
        ..DeviceMessage::default()
    };
    sender.accept(&message).unwrap();
    sender.submit().unwrap();
}
