//! Device libraries that cannot run here: what each is documented to say over AMQP, and needs to hear.

use fieldpost_amqp::ClientSasl;
use fieldpost_amqp::Symbol;
use fieldpost_amqp::performative::{Attach, RcvSettleMode, Role, Source, Target as Node};
use fieldpost_amqp::sasl::mechanism;
use fieldpost_amqp::value::ValueRef;

use super::*;

/// The format of a transfer whose data sections are messages.
const BATCH: u32 = 0x8001_3700;

/// A connection that begins with a mechanism of SASL, or without that layer.
async fn connected(hub: &TestHub, mechanism: Option<&'static str>) -> Peer {
    let sasl = mechanism.map(|name| ClientSasl {
        mechanism: Symbol::from_static(name),
        initial_response: None,
    });
    Peer::connect(hub, sasl).await.unwrap()
}

async fn put_token_of(peer: &mut Peer, hub: &TestHub, id: &str) {
    let token = device_token(hub, id, 3600).await;
    assert_eq!(peer.put_token(&token).await.0, 200);
}

/// Its MSSBCBS, its addresses with scheme and host, the batch that it makes of each message, in its order of
/// sections; it sends nothing without a size and with credit for fewer than 50.
#[tokio::test]
async fn c_iot_sends_over_amqp() {
    let hub = TestHub::automatic().await;
    let mut peer = connected(&hub, Some(mechanism::MSSBCBS)).await;
    put_token_of(&mut peer, &hub, "dev1").await;
    let link = peer.sender("amqps://localhost/devices/dev1/messages/events");
    let attach = peer.accepted(link).await;
    assert!(attach.max_message_size.is_some_and(|size| size >= 262_144));
    await_credit(&mut peer, link).await;
    assert!(peer.engine.sendable(link) >= 50);
    let mut inner = BytesMut::new();
    put_properties(
        &mut inner,
        &Properties {
            message_id: Some(ValueRef::String("m1")),
            ..Properties::default()
        },
    );
    put_map(&mut inner, section::APPLICATION_PROPERTIES, |e| {
        e.string("room");
        e.string("a b");
    });
    put_map(&mut inner, section::MESSAGE_ANNOTATIONS, |e| {
        e.symbol("iothub-interface-id");
        e.string("i");
    });
    put_data(&mut inner, b"one");
    let mut batch = BytesMut::new();
    put_data(&mut batch, &inner);
    let state = send(&mut peer, link, BATCH, &batch).await;
    assert_eq!(state, DeliveryState::Accepted);
    let events = hub.events("dev1").await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].body, "one");
    let room = ("room".to_owned(), Some("a b".to_owned()));
    assert!(events[0].properties.contains(&room), "{events:?}");
}

/// It drops a message whose properties are not all strings, or whose body is not one data section.
#[tokio::test]
async fn c_iot_receives_over_amqp() {
    let hub = TestHub::automatic().await;
    let mut peer = connected(&hub, Some(mechanism::MSSBCBS)).await;
    put_token_of(&mut peer, &hub, "dev1").await;
    let link = peer.receiver(&messages_of("dev1"), |_| ());
    peer.accepted(link).await;
    peer.engine.set_credit(link, 10_000).unwrap();
    command(&hub, "dev1", "one").await;
    let (message, text) = taken(&mut peer).await;
    assert_eq!(text, "one");
    let read = Message::parse(&message.payload).unwrap();
    assert_eq!(read.data().count(), 1);
    for property in read
        .application_properties
        .iter()
        .flat_map(|all| all.iter())
    {
        let (_, value) = property.unwrap();
        assert!(matches!(value, ValueRef::String(_)), "{value:?}");
    }
    settle(&mut peer, &message, DeliveryState::Accepted);
    peer.hears_nothing().await;
    let device = principal(&hub, "dev1").await;
    assert_eq!(waiting(&hub, &device).await, 0);
}

/// No SASL layer, and pooling: every device has a session of its own, and all links the same name.
#[tokio::test]
async fn net_iot_devices_share_a_connection_and_the_names_of_their_links() {
    let hub = TestHub::automatic().await;
    let mut peer = connected(&hub, None).await;
    let mut links = Vec::new();
    for id in ["dev1", "dev2", "dev3"] {
        put_token_of(&mut peer, &hub, id).await;
        let session = peer.engine.begin().unwrap();
        assert_eq!(peer.event().await, Event::SessionBegun(session));
        let attach = Attach {
            name: "TelemetrySenderLink".to_owned(),
            role: Role::Sender,
            source: Some(Source::default()),
            target: Some(Node::to(events_of(id))),
            initial_delivery_count: Some(0),
            ..Attach::default()
        };
        let link = peer.engine.attach(session, attach).unwrap();
        peer.accepted(link).await;
        links.push((id, link));
    }
    for (id, link) in links {
        let state = send(&mut peer, link, 0, &body(id)).await;
        assert_eq!(state, DeliveryState::Accepted);
        let events = hub.events(id).await;
        assert!(events.iter().any(|event| event.body == id), "{events:?}");
    }
}

/// Its batch: the messages with their sections in the standard's order.
#[tokio::test]
async fn net_iot_sends_a_batch_over_amqp() {
    let hub = TestHub::automatic().await;
    let mut peer = connected(&hub, None).await;
    put_token_of(&mut peer, &hub, "dev1").await;
    let link = peer.sender(&events_of("dev1"));
    peer.accepted(link).await;
    let batch =
        b"\x00\x53\x75\xa0\x12\x00\x53\x74\xc1\x07\x02\xa1\x01k\xa1\x01v\x00\x53\x75\xa0\x01A\
        \x00\x53\x75\xa0\x06\x00\x53\x75\xa0\x01B";
    let state = send(&mut peer, link, BATCH, batch).await;
    assert_eq!(state, DeliveryState::Accepted);
    let events = hub.events("dev1").await;
    let bodies: Vec<_> = events.iter().map(|event| event.body.as_str()).collect();
    assert_eq!(bodies, ["A", "B"]);
}

/// It tells its outcome in the second mode and waits for the hub to settle: released and rejected as well.
#[tokio::test]
async fn net_iot_abandons_and_rejects_over_amqp() {
    let hub = TestHub::automatic().await;
    let mut peer = connected(&hub, None).await;
    put_token_of(&mut peer, &hub, "dev1").await;
    let link = peer.receiver(&messages_of("dev1"), |attach| {
        attach.rcv_settle_mode = RcvSettleMode::Second;
    });
    let attach = peer.accepted(link).await;
    assert_eq!(attach.rcv_settle_mode, RcvSettleMode::Second);
    peer.engine.set_credit(link, 50).unwrap();
    command(&hub, "dev1", "one").await;
    let device = principal(&hub, "dev1").await;
    let (message, _) = taken(&mut peer).await;
    assert_eq!(message.tag.as_bytes().len(), 16);
    settle(&mut peer, &message, DeliveryState::Released);
    let (message, text) = taken(&mut peer).await;
    assert_eq!((text.as_str(), waiting(&hub, &device).await), ("one", 1));
    let rejected = DeliveryState::rejected(Error::new("x", "y"));
    settle(&mut peer, &message, rejected);
    peer.hears_nothing().await;
    assert_eq!(waiting(&hub, &device).await, 0);
    let letters = hub.hub.c2d().dead_letters(0, 10, None).await.unwrap();
    assert_eq!(letters.letters.len(), 1);
}

/// SASL ANONYMOUS, many devices on one connection, and credit that it grants one message at a time.
#[tokio::test]
async fn java_iot_receives_over_amqp_as_it_grants() {
    let hub = TestHub::automatic().await;
    let mut peer = connected(&hub, Some(mechanism::ANONYMOUS)).await;
    for id in ["dev1", "dev2"] {
        put_token_of(&mut peer, &hub, id).await;
    }
    let address = "/devices/dev2/messages/devicebound";
    let link = peer.receiver(address, |_| ());
    peer.accepted(link).await;
    for text in ["one", "two"] {
        command(&hub, "dev2", text).await;
    }
    peer.hears_nothing().await;
    let device = principal(&hub, "dev2").await;
    for (text, left) in [("one", 1), ("two", 0)] {
        peer.engine.set_credit(link, 1).unwrap();
        let (message, came) = taken(&mut peer).await;
        assert_eq!(came, text);
        // It casts the body to one data section.
        assert_eq!(Message::parse(&message.payload).unwrap().data().count(), 1);
        peer.hears_nothing().await;
        settle(&mut peer, &message, DeliveryState::Accepted);
        peer.hears_nothing().await;
        assert_eq!(waiting(&hub, &device).await, left);
    }
}

/// Its ids in messages are UUIDs of AMQP, which are text where events are read.
#[tokio::test]
async fn java_iot_sends_over_amqp() {
    let hub = TestHub::automatic().await;
    let mut peer = connected(&hub, Some(mechanism::ANONYMOUS)).await;
    put_token_of(&mut peer, &hub, "dev1").await;
    let link = peer.sender(&events_of("dev1"));
    peer.accepted(link).await;
    let mut message = BytesMut::new();
    put_properties(
        &mut message,
        &Properties {
            message_id: Some(ValueRef::Uuid([7; 16])),
            ..Properties::default()
        },
    );
    put_map(&mut message, section::APPLICATION_PROPERTIES, |e| {
        e.string("room");
        e.string("1");
    });
    put_data(&mut message, b"one");
    let state = send(&mut peer, link, 0, &message).await;
    assert_eq!(state, DeliveryState::Accepted);
    let events = hub.events("dev1").await;
    assert_eq!(events[0].body, "one");
    let room = ("room".to_owned(), Some("1".to_owned()));
    assert!(events[0].properties.contains(&room), "{events:?}");
}
