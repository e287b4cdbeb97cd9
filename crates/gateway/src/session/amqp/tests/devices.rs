//! Devices: many on one connection, each with its own rights, its own messages and its own end.

mod libraries;
mod throttled;

use fieldpost_amqp::Delivery;
use fieldpost_amqp::message::{Message, Properties};
use fieldpost_amqp::message::{put_data, put_map, put_properties, section};
use fieldpost_amqp::performative::DeliveryState;
use fieldpost_hub::auth::DevicePrincipal;
use fieldpost_hub::c2d::Target;
use fieldpost_hub::identity::{DeviceSpec, DeviceStatus, Precondition};
use fieldpost_model::{CloudMessage, Identity};
use fieldpost_store::{Health, HealthLevel};

use super::wire::Wire;
use super::*;

/// A token of a device, good for so many seconds from the start of the test.
async fn device_token(hub: &TestHub, id: &str, life_s: i64) -> String {
    let key = hub.device(id).await;
    sas_token(&format!("localhost/devices/{id}"), &key, expiry(life_s))
}

/// A connection that holds a device's token.
async fn with_device(hub: &TestHub, id: &str) -> Peer {
    let token = device_token(hub, id, 3600).await;
    let mut peer = Peer::anonymous(hub).await;
    assert_eq!(peer.put_token(&token).await.0, 200);
    peer
}

fn events_of(id: &str) -> String {
    format!("/devices/{id}/messages/events")
}

fn messages_of(id: &str) -> String {
    format!("amqps://localhost/devices/{id}/messages/deviceBound")
}

fn body(text: &str) -> BytesMut {
    let mut bytes = BytesMut::new();
    put_data(&mut bytes, text.as_bytes());
    bytes
}

/// Sends one message, and waits for what becomes of it.
async fn send(peer: &mut Peer, link: LinkId, message_format: u32, payload: &[u8]) -> DeliveryState {
    await_credit(peer, link).await;
    let delivery = Delivery {
        tag: &[1],
        settled: false,
        message_format,
        payload: &[payload],
    };
    let sent = peer.engine.send(link, &delivery).unwrap();
    match peer.event().await {
        Event::Outcome(outcome) => {
            assert_eq!((outcome.link, outcome.delivery_id), (link, sent));
            assert!(outcome.settled);
            outcome.state.expect("an outcome")
        }
        other => panic!("{other:?}"),
    }
}

/// Waits until the hub lets a device send.
async fn await_credit(peer: &mut Peer, link: LinkId) {
    while peer.engine.sendable(link) == 0 {
        let event = next_event(&mut peer.engine, &mut peer.stream, &peer.clock).await;
        assert_eq!(event, Some(Event::Credit(link)));
    }
}

/// Waits for the refusal of a link, which the hub keeps back for a second.
async fn refused(peer: &mut Peer, link: LinkId) -> Error {
    peer.put_token("lets the hub see the link").await;
    peer.clock.advance(Duration::from_secs(1));
    peer.detached(link).await
}

fn condition_of(state: DeliveryState) -> String {
    match state {
        DeliveryState::Rejected(Some(error)) => error.condition.to_string(),
        other => panic!("{other:?}"),
    }
}

/// Puts a message into a device's queue.
async fn command(hub: &TestHub, id: &str, text: &str) {
    let identity = Identity::of_device(id.parse().unwrap());
    let to = format!("/devices/{id}/messages/devicebound");
    let message = CloudMessage {
        to: to.into(),
        message_id: Some(text.into()),
        body: text.as_bytes().into(),
        ..CloudMessage::default()
    };
    let target = Target {
        identity,
        fallback: None,
    };
    let mut sender = hub.hub.c2d().sender("service");
    sender.send_one(target, &message).await.unwrap();
}

/// The next message for a device, and its delivery.
async fn taken(peer: &mut Peer) -> (fieldpost_amqp::Message, String) {
    match peer.event().await {
        Event::Message(message) => {
            let read = Message::parse(&message.payload).unwrap();
            let text = String::from_utf8(read.joined_data().into_owned()).unwrap();
            (message, text)
        }
        other => panic!("{other:?}"),
    }
}

fn settle(peer: &mut Peer, message: &fieldpost_amqp::Message, state: DeliveryState) {
    let id = message.delivery_id;
    let link = message.link;
    peer.engine.settle_incoming(link, id..=id, state).unwrap();
}

async fn waiting(hub: &TestHub, principal: &DevicePrincipal) -> u64 {
    let generation = Arc::clone(&principal.generation_id);
    let asked = [(principal.identity.clone(), generation)];
    hub.hub.c2d().message_counts(&asked).await.unwrap()[0]
}

async fn principal(hub: &TestHub, id: &str) -> DevicePrincipal {
    hub.principal(&Identity::of_device(id.parse().unwrap()))
        .await
}

#[tokio::test]
async fn telemetry_is_accepted_when_it_is_durable_and_not_before() {
    let hub = TestHub::stepped().await;
    let mut peer = with_device(&hub, "dev1").await;
    let link = peer.sender(&events_of("dev1"));
    let attach = peer.accepted(link).await;
    // The C library sends nothing when it reads no size, and nothing with little credit.
    assert_eq!(attach.max_message_size, Some(1024 * 1024));
    await_credit(&mut peer, link).await;
    assert!(peer.engine.sendable(link) >= 50);
    let payload = body("a");
    let delivery = Delivery {
        tag: &[1],
        settled: false,
        message_format: 0,
        payload: &[&payload[..]],
    };
    peer.engine.send(link, &delivery).unwrap();
    peer.hears_nothing().await;
    hub.store.log.step();
    let Event::Outcome(outcome) = peer.event().await else {
        panic!("no outcome")
    };
    assert_eq!(outcome.state, Some(DeliveryState::Accepted));
    assert_eq!(hub.events("dev1").await[0].body, "a");
}

#[tokio::test]
async fn a_batch_is_taken_whole_or_refused_whole() {
    let hub = TestHub::automatic().await;
    let mut peer = with_device(&hub, "dev1").await;
    let link = peer.sender(&events_of("dev1"));
    peer.accepted(link).await;
    let batch = |texts: &[&[u8]]| {
        let mut bytes = BytesMut::new();
        for text in texts {
            put_data(&mut bytes, text);
        }
        bytes
    };
    let (a, b) = (body("a"), body("b"));
    let good = batch(&[&a, &b]);
    let state = send(&mut peer, link, 0x8001_3700, &good).await;
    assert_eq!(state, DeliveryState::Accepted);
    let bad = batch(&[&a, b"\xff"]);
    let state = send(&mut peer, link, 0x8001_3700, &bad).await;
    assert_eq!(condition_of(state), condition::DECODE_ERROR);
    let large = body(&"x".repeat(262_145));
    let state = send(&mut peer, link, 0, &large).await;
    assert_eq!(condition_of(state), condition::MESSAGE_SIZE_EXCEEDED);
    // The link stays.
    assert_eq!(send(&mut peer, link, 0, &b).await, DeliveryState::Accepted);
    let bodies: Vec<_> = hub
        .events("dev1")
        .await
        .into_iter()
        .map(|e| e.body)
        .collect();
    assert_eq!(bodies, ["a", "b", "b"]);
}

#[tokio::test]
async fn one_devices_token_opens_nothing_of_anothers() {
    let hub = TestHub::automatic().await;
    hub.device("dev2").await;
    let mut peer = with_device(&hub, "dev1").await;
    for address in [
        events_of("dev2"),
        "/devices/nobody/messages/events".to_owned(),
    ] {
        let link = peer.sender(&address);
        let error = refused(&mut peer, link).await;
        assert_eq!(error.condition, condition::UNAUTHORIZED_ACCESS, "{address}");
    }
    let link = peer.receiver(&messages_of("dev2"), |_| ());
    let error = refused(&mut peer, link).await;
    assert_eq!(error.condition, condition::UNAUTHORIZED_ACCESS);
    // Nor the service endpoint.
    let link = peer.sender("/messages/devicebound");
    let error = refused(&mut peer, link).await;
    assert_eq!(error.condition, condition::UNAUTHORIZED_ACCESS);
    // And a service's token no device.
    let mut service = Peer::with_token(&hub).await;
    let link = service.sender(&events_of("dev1"));
    let error = refused(&mut service, link).await;
    assert_eq!(error.condition, condition::UNAUTHORIZED_ACCESS);
}

#[tokio::test]
async fn many_devices_share_a_connection_and_one_of_them_ends_alone() {
    let hub = TestHub::automatic().await;
    let mut peer = Peer::anonymous(&hub).await;
    let token = hub.policy_token("device");
    assert_eq!(peer.put_token(&token).await.0, 200);
    let mut links = Vec::new();
    for number in 0..50 {
        let id = format!("dev{number}");
        hub.device(&id).await;
        let link = peer.sender(&events_of(&id));
        peer.accepted(link).await;
        links.push((id, link));
    }
    for (id, link) in &links {
        assert_eq!(
            send(&mut peer, *link, 0, &body(id)).await,
            DeliveryState::Accepted
        );
    }
    assert_eq!(hub.hub.presence().connected_devices(), 50);

    let mut spec = DeviceSpec::new("dev7".parse().unwrap());
    spec.status = Some(DeviceStatus::Disabled);
    hub.hub
        .registry()
        .update(spec, Precondition::Any)
        .await
        .unwrap();
    let error = peer.detached(links[7].1).await;
    assert_eq!(error.condition, condition::NOT_ALLOWED);
    let (_, link) = links[8];
    assert_eq!(
        send(&mut peer, link, 0, &body("on")).await,
        DeliveryState::Accepted
    );
    assert_eq!(hub.hub.presence().connected_devices(), 49);
    // A device that lets go of its last link is connected no longer.
    peer.engine.detach(link, None).unwrap();
    let gone = peer.event().await;
    assert!(
        matches!(gone, Event::Detached { error: None, .. }),
        "{gone:?}"
    );
    while hub.hub.presence().connected_devices() != 48 {
        nudge().await;
    }
}

#[tokio::test]
async fn the_newest_connection_of_a_device_wins_and_gets_what_the_older_one_held() {
    let hub = TestHub::automatic().await;
    let token = device_token(&hub, "dev1", 3600).await;
    command(&hub, "dev1", "held").await;
    let mut older = Peer::anonymous(&hub).await;
    assert_eq!(older.put_token(&token).await.0, 200);
    let old_link = older.receiver(&messages_of("dev1"), |_| ());
    older.accepted(old_link).await;
    older.engine.set_credit(old_link, 10).unwrap();
    let (first, text) = taken(&mut older).await;
    assert_eq!((text.as_str(), first.settled), ("held", false));

    let mut newer = Peer::anonymous(&hub).await;
    assert_eq!(newer.put_token(&token).await.0, 200);
    let link = newer.receiver(&messages_of("dev1"), |_| ());
    let (error, _) = tokio::join!(older.detached(old_link), newer.accepted(link));
    assert_eq!(error.condition, condition::STOLEN);
    newer.engine.set_credit(link, 10).unwrap();
    let (second, text) = taken(&mut newer).await;
    assert_eq!(text, "held");
    assert_ne!(first.tag, second.tag);
    settle(&mut newer, &second, DeliveryState::Accepted);
    newer.hears_nothing().await;
    let device = principal(&hub, "dev1").await;
    assert_eq!(waiting(&hub, &device).await, 0);
}

#[tokio::test]
async fn outcomes_decide_about_a_message() {
    let hub = TestHub::automatic().await;
    let mut peer = with_device(&hub, "dev1").await;
    let device = principal(&hub, "dev1").await;
    let link = peer.receiver(&messages_of("dev1"), |_| ());
    peer.accepted(link).await;
    peer.engine.set_credit(link, 100).unwrap();
    command(&hub, "dev1", "one").await;
    let (message, _) = taken(&mut peer).await;
    assert_eq!(message.tag.as_bytes().len(), 16);
    settle(&mut peer, &message, DeliveryState::Released);
    let (message, text) = taken(&mut peer).await;
    assert_eq!(text, "one");
    let read = Message::parse(&message.payload).unwrap();
    let annotations = read.message_annotations.unwrap();
    let count = annotations.get("iothub-deliverycount").unwrap();
    assert_eq!(count, Some(ValueRef::UByte(1)));
    settle(
        &mut peer,
        &message,
        DeliveryState::rejected(Error::new("x", "y")),
    );
    peer.hears_nothing().await;
    assert_eq!(waiting(&hub, &device).await, 0);
    let letters = hub.hub.c2d().dead_letters(0, 10, None).await.unwrap();
    assert_eq!(letters.letters.len(), 1);
}

/// .NET asks for the second settle mode: it tells an outcome and waits for the hub to settle.
#[tokio::test]
async fn net_iot_an_outcome_in_the_second_mode_is_settled_when_it_is_durable() {
    let hub = TestHub::automatic().await;
    let token = device_token(&hub, "dev1", 3600).await;
    command(&hub, "dev1", "one").await;
    let mut wire = Wire::net_iot(&hub).await;
    wire.put_token(0, "2", &token).await;
    let attach = wire
        .attach(Attach {
            name: "DeviceBoundLink".to_owned(),
            handle: 5,
            role: Role::Receiver,
            rcv_settle_mode: fieldpost_amqp::performative::RcvSettleMode::Second,
            source: Some(Source::from_address(messages_of("dev1"))),
            target: Some(fieldpost_amqp::performative::Target::to("here")),
            ..Attach::default()
        })
        .await;
    let second = fieldpost_amqp::performative::RcvSettleMode::Second;
    assert_eq!(attach.rcv_settle_mode, second);
    wire.credit(5, 50).await;
    let (delivery_id, tag, payload) = wire.feedback().await;
    // It makes a GUID of the tag.
    assert_eq!(tag.len(), 16);
    let read = Message::parse(&payload).unwrap();
    assert_eq!(&*read.joined_data(), b"one");
    wire.judge(delivery_id, DeliveryState::Accepted, false)
        .await;
    let answer = wire.disposition().await;
    assert_eq!((answer.first, answer.settled), (delivery_id, true));
    assert_eq!(answer.state, Some(DeliveryState::Accepted));
    let device = principal(&hub, "dev1").await;
    assert_eq!(waiting(&hub, &device).await, 0);
}

#[tokio::test]
async fn a_token_that_expires_closes_what_it_opened_unless_it_is_renewed() {
    let hub = TestHub::automatic().await;
    let key = hub.device("dev1").await;
    let token = |life_s| sas_token("localhost/devices/dev1", &key, expiry(life_s));
    let mut peer = Peer::anonymous(&hub).await;
    assert_eq!(peer.put_token(&token(100)).await.0, 200);
    let link = peer.sender(&events_of("dev1"));
    peer.accepted(link).await;
    assert_eq!(peer.put_token(&token(1000)).await.0, 200);
    // Beyond the first expiry and the tolerated difference of clocks, in steps that heartbeats
    // would fill.
    for _ in 0..6 {
        hub.clock.advance(Duration::from_secs(100));
        assert_eq!(
            send(&mut peer, link, 0, &body("a")).await,
            DeliveryState::Accepted
        );
    }
    for _ in 0..6 {
        hub.clock.advance(Duration::from_secs(100));
        peer.put_token("keeps the connection from being idle").await;
    }
    hub.clock.advance(Duration::from_secs(161));
    let error = peer.detached(link).await;
    assert_eq!(error.condition, condition::UNAUTHORIZED_ACCESS);
}

#[tokio::test]
async fn a_device_signs_in_with_plain() {
    let hub = TestHub::automatic().await;
    let token = device_token(&hub, "dev1", 3600).await;
    let plain = |authcid: &str, token: &str| ClientSasl {
        mechanism: Symbol::from_static(mechanism::PLAIN),
        initial_response: Some(
            Plain {
                authzid: "",
                authcid,
                password: token,
            }
            .to_initial_response(),
        ),
    };
    let sasl = plain("dev1@sas.localhost", &token);
    let mut peer = Peer::connect(&hub, Some(sasl)).await.unwrap();
    let link = peer.sender(&events_of("dev1"));
    peer.accepted(link).await;
    assert_eq!(
        send(&mut peer, link, 0, &body("a")).await,
        DeliveryState::Accepted
    );
    hub.device("dev2").await;
    let sasl = plain("dev2@sas.localhost", &token);
    assert!(Peer::connect(&hub, Some(sasl)).await.is_none());
}

#[tokio::test]
async fn what_the_hub_does_not_serve_is_refused_by_name() {
    let hub = TestHub::automatic().await;
    let mut peer = with_device(&hub, "dev1").await;
    for address in ["/devices/dev1/twin", "/devices/dev1/methods/devicebound"] {
        let link = peer.sender(address);
        let error = refused(&mut peer, link).await;
        assert_eq!(error.condition, condition::NOT_IMPLEMENTED, "{address}");
    }
}

#[tokio::test]
async fn properties_of_a_device_are_read_at_the_endpoint() {
    let hub = TestHub::automatic().await;
    let mut peer = with_device(&hub, "dev1").await;
    let link = peer.sender(&events_of("dev1"));
    peer.accepted(link).await;
    let mut bytes = BytesMut::new();
    put_properties(
        &mut bytes,
        &Properties {
            message_id: Some(ValueRef::String("m")),
            ..Properties::default()
        },
    );
    put_map(&mut bytes, section::APPLICATION_PROPERTIES, |e| {
        e.string("k");
        e.string("v");
    });
    put_data(&mut bytes, b"x");
    assert_eq!(
        send(&mut peer, link, 0, &bytes).await,
        DeliveryState::Accepted
    );
    let events = hub.events("dev1").await;
    let expected = [("k".to_owned(), Some("v".to_owned()))];
    assert_eq!(events[0].properties, expected);
}

#[tokio::test]
async fn telemetry_waits_while_the_disk_is_nearly_full_and_goes_on_by_itself() {
    let hub = TestHub::automatic().await;
    let mut peer = with_device(&hub, "dev1").await;
    let link = peer.sender(&events_of("dev1"));
    peer.accepted(link).await;
    let set = |level| {
        let reason = Some("a test".into());
        hub.store.log.set_health(Health { level, reason });
    };
    set(HealthLevel::HoldMessages);
    nudge().await;
    await_credit(&mut peer, link).await;
    // More than is kept of one connection: the hub stops reading, and forgets nothing.
    let large = "x".repeat(200_000);
    for number in 0..10_u8 {
        let payload = body(&format!("{large}{number}"));
        let delivery = Delivery {
            tag: &[number],
            settled: false,
            message_format: 0,
            payload: &[&payload[..]],
        };
        peer.engine.send(link, &delivery).unwrap();
    }
    peer.hears_nothing().await;
    assert!(hub.events("dev1").await.is_empty());
    set(HealthLevel::Ok);
    let mut accepted = 0;
    while accepted < 10 {
        match peer.event().await {
            Event::Outcome(outcome) => {
                assert_eq!(outcome.state, Some(DeliveryState::Accepted));
                accepted += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    let bodies = hub.events("dev1").await;
    let last: Vec<_> = bodies
        .iter()
        .filter_map(|event| event.body.chars().last())
        .collect();
    assert_eq!(last, ('0'..='9').collect::<Vec<_>>());
}

#[tokio::test]
async fn telemetry_that_waits_for_too_long_ends_the_connection() {
    let hub = TestHub::automatic().await;
    let mut peer = with_device(&hub, "dev1").await;
    let link = peer.sender(&events_of("dev1"));
    peer.accepted(link).await;
    await_credit(&mut peer, link).await;
    let reason = Some("a test".into());
    let level = HealthLevel::HoldMessages;
    hub.store.log.set_health(Health { level, reason });
    nudge().await;
    // A link on which nothing waits is left alone.
    hub.clock.advance(Duration::from_secs(30));
    peer.hears_nothing().await;
    let payload = body("held");
    let delivery = Delivery {
        tag: &[1],
        settled: false,
        message_format: 0,
        payload: &[&payload[..]],
    };
    peer.engine.send(link, &delivery).unwrap();
    peer.hears_nothing().await;
    hub.clock.advance(Duration::from_secs(19));
    peer.hears_nothing().await;
    hub.clock.advance(Duration::from_secs(1));
    let ended = next_event(&mut peer.engine, &mut peer.stream, &peer.clock).await;
    assert_eq!(ended, None);
    assert!(hub.events("dev1").await.is_empty());
    assert_eq!(hub.hub.ingest().in_flight_bytes(), 0);
}

/// A certificate for whoever says it is his, good for a minute.
fn short_certificate() -> Vec<u8> {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["device".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2027, 1, 15);
    params.not_after = params.not_before + Duration::from_secs(8 * 3600 + 60);
    params.self_signed(&key).unwrap().der().to_vec()
}

fn external() -> Option<ClientSasl> {
    Some(ClientSasl {
        mechanism: Symbol::from_static(mechanism::EXTERNAL),
        initial_response: None,
    })
}

async fn with_certificate(hub: &TestHub, sasl: Option<ClientSasl>, certificate: &[u8]) -> Peer {
    let shown = ClientCertificate::new([certificate]).map(Arc::new);
    let show = |context: &mut ConnectionContext| context.client_certificate = shown;
    Peer::connect_with(hub, sasl, show)
        .await
        .expect("a connection")
}

#[tokio::test]
async fn a_certificate_speaks_for_its_device_and_no_other() {
    let hub = TestHub::automatic().await;
    let certificate = short_certificate();
    for id in ["dev1", "dev2"] {
        hub.device_with_certificate(id, &certificate).await;
    }
    let anonymous = || {
        Some(ClientSasl {
            mechanism: Symbol::from_static(mechanism::ANONYMOUS),
            initial_response: None,
        })
    };
    for sasl in [external(), anonymous(), None] {
        let mut peer = with_certificate(&hub, sasl, &certificate).await;
        // Both at once, as the C library does.
        let events = peer.sender(&events_of("dev1"));
        let messages = peer.receiver(&messages_of("dev1"), |_| ());
        peer.accepted(events).await;
        peer.accepted(messages).await;
        let sent = send(&mut peer, events, 0, &body("mine")).await;
        assert_eq!(sent, DeliveryState::Accepted);
        command(&hub, "dev1", "yours").await;
        peer.engine.set_credit(messages, 1).unwrap();
        let (message, text) = taken(&mut peer).await;
        assert_eq!(text, "yours");
        settle(&mut peer, &message, DeliveryState::Accepted);
        // The same certificate is registered for this one too, but the connection is taken.
        let other = peer.sender(&events_of("dev2"));
        let error = refused(&mut peer, other).await;
        assert_eq!(error.condition, condition::UNAUTHORIZED_ACCESS);
        let sent = send(&mut peer, events, 0, &body("more")).await;
        assert_eq!(sent, DeliveryState::Accepted);
    }
    let mut peer = with_certificate(&hub, external(), &short_certificate()).await;
    let stranger = peer.sender(&events_of("dev1"));
    let error = refused(&mut peer, stranger).await;
    assert_eq!(error.condition, condition::UNAUTHORIZED_ACCESS);
    // It has proved nothing yet.
    hub.clock.advance(Duration::from_secs(61));
    let event = peer.event().await;
    assert!(matches!(event, Event::Closed(Some(_))), "{event:?}");
}

#[tokio::test]
async fn a_connection_ends_with_the_certificate_that_it_lives_by() {
    let hub = TestHub::automatic().await;
    let certificate = short_certificate();
    hub.device_with_certificate("dev1", &certificate).await;
    let mut peer = with_certificate(&hub, external(), &certificate).await;
    let link = peer.sender(&events_of("dev1"));
    peer.accepted(link).await;
    // A minute, and the five more that clocks may differ by.
    for _ in 0..12 {
        let sent = send(&mut peer, link, 0, &body("still")).await;
        assert_eq!(sent, DeliveryState::Accepted);
        hub.clock.advance(Duration::from_secs(30));
    }
    hub.clock.advance(Duration::from_secs(2));
    let error = peer.closed().await;
    assert_eq!(error.condition, condition::UNAUTHORIZED_ACCESS);
}

/// A message that asks for a fault, as the libraries' end-to-end suites send it.
fn fault(kind: &str) -> BytesMut {
    let mut bytes = BytesMut::new();
    put_map(&mut bytes, section::APPLICATION_PROPERTIES, |entries| {
        for (name, value) in [
            ("AzIoTHub_FaultOperationType", kind),
            ("AzIoTHub_FaultOperationCloseReason", "boom"),
            ("AzIoTHub_FaultOperationDelayInSecs", "2"),
            ("AzIoTHub_FaultOperationDurationInSecs", "20"),
        ] {
            entries.string(name);
            entries.string(value);
        }
    });
    put_data(&mut bytes, b"boom");
    bytes
}

/// A device with both of its links, and a fault that is about to happen.
async fn about_to_fail(hub: &TestHub, token: &str, kind: &str) -> (Peer, LinkId, LinkId) {
    let mut peer = Peer::anonymous(hub).await;
    assert_eq!(peer.put_token(token).await.0, 200);
    let events = peer.sender(&events_of("dev1"));
    peer.accepted(events).await;
    let messages = peer.receiver(&messages_of("dev1"), |_| ());
    peer.accepted(messages).await;
    let sent = send(&mut peer, events, 0, &fault(kind)).await;
    assert_eq!(sent, DeliveryState::Accepted);
    nudge().await;
    hub.clock.advance(Duration::from_secs(2));
    (peer, events, messages)
}

#[tokio::test]
async fn a_device_in_test_mode_can_ask_for_faults() {
    let hub = TestHub::in_test_mode().await;
    let token = device_token(&hub, "dev1", 3600).await;

    let (mut peer, events, messages) = about_to_fail(&hub, &token, "KillAmqpD2CLink").await;
    assert_eq!(
        peer.detached(events).await.condition,
        condition::DETACH_FORCED
    );
    // Nothing else is lost, and the link can be had again.
    command(&hub, "dev1", "still here").await;
    peer.engine.set_credit(messages, 1).unwrap();
    let (message, text) = taken(&mut peer).await;
    assert_eq!(text, "still here");
    settle(&mut peer, &message, DeliveryState::Accepted);
    let again = peer.sender(&events_of("dev1"));
    peer.accepted(again).await;
    let sent = send(&mut peer, again, 0, &body("again")).await;
    assert_eq!(sent, DeliveryState::Accepted);

    let (mut peer, _, messages) = about_to_fail(&hub, &token, "KillAmqpC2DLink").await;
    assert_eq!(
        peer.detached(messages).await.condition,
        condition::DETACH_FORCED
    );

    for kind in ["KillAmqpCBSLinkReq", "KillAmqpCBSLinkResp"] {
        let (mut peer, events, _) = about_to_fail(&hub, &token, kind).await;
        let event = peer.event().await;
        assert!(
            matches!(event, Event::Detached { error: Some(_), .. }),
            "{kind}: {event:?}"
        );
        let sent = send(&mut peer, events, 0, &body("on")).await;
        assert_eq!(sent, DeliveryState::Accepted);
    }

    let (mut peer, ..) = about_to_fail(&hub, &token, "KillAmqpSession").await;
    let event = peer.event().await;
    assert!(
        matches!(event, Event::SessionEnded { error: Some(_), .. }),
        "{event:?}"
    );

    let (mut peer, ..) = about_to_fail(&hub, &token, "KillAmqpConnection").await;
    assert_eq!(peer.closed().await.condition, condition::CONNECTION_FORCED);

    let (mut peer, ..) = about_to_fail(&hub, &token, "ShutDownAmqp").await;
    let event = peer.event().await;
    assert!(matches!(event, Event::Closed(None)), "{event:?}");

    let (mut peer, ..) = about_to_fail(&hub, &token, "KillTcp").await;
    let ended = next_event(&mut peer.engine, &mut peer.stream, &peer.clock).await;
    assert_eq!(ended, None);

    for (kind, expected) in [
        (
            "InvokeThrottling",
            "com.microsoft:device-container-throttled",
        ),
        ("InvokeMaxMessageQuota", condition::RESOURCE_LIMIT_EXCEEDED),
    ] {
        let (mut peer, events, _) = about_to_fail(&hub, &token, kind).await;
        nudge().await;
        let state = send(&mut peer, events, 0, &body("too much")).await;
        assert_eq!(condition_of(state), expected);
        hub.clock.advance(Duration::from_secs(20));
        let sent = send(&mut peer, events, 0, &body("enough")).await;
        assert_eq!(sent, DeliveryState::Accepted);
    }

    let (mut peer, events, _) = about_to_fail(&hub, &token, "InvokeAuthError").await;
    assert_eq!(
        peer.detached(events).await.condition,
        condition::UNAUTHORIZED_ACCESS
    );
    let mut peer = Peer::anonymous(&hub).await;
    assert_eq!(peer.put_token(&token).await.0, 401);
    hub.clock.advance(Duration::from_secs(20));
    assert_eq!(peer.put_token(&token).await.0, 200);

    // What asks is telemetry like any other.
    let stored = hub.events("dev1").await;
    assert_eq!(
        stored.iter().filter(|event| event.body == "boom").count(),
        11
    );
}

#[tokio::test]
async fn a_hub_that_is_not_in_test_mode_knows_no_faults() {
    let hub = TestHub::automatic().await;
    let token = device_token(&hub, "dev1", 3600).await;
    let (mut peer, events, _) = about_to_fail(&hub, &token, "KillTcp").await;
    nudge().await;
    let sent = send(&mut peer, events, 0, &body("on")).await;
    assert_eq!(sent, DeliveryState::Accepted);
}

#[tokio::test]
async fn a_module_has_links_of_its_own_and_inputs_to_which_nothing_comes() {
    let hub = TestHub::automatic().await;
    hub.device("dev1").await;
    let module = hub.module("dev1", "m").await;
    let token = sas_token("localhost/devices/dev1/modules/m", &module, expiry(3600));
    let mut peer = Peer::anonymous(&hub).await;
    assert_eq!(peer.put_token(&token).await.0, 200);
    let address = "/devices/dev1/modules/m/messages/events";
    let events = peer.sender(address);
    peer.accepted(events).await;
    let inputs = peer.receiver(address, |_| ());
    peer.accepted(inputs).await;
    let messages = peer.receiver("/devices/dev1/modules/m/messages/devicebound", |_| ());
    peer.accepted(messages).await;
    let sent = send(&mut peer, events, 0, &body("mine")).await;
    assert_eq!(sent, DeliveryState::Accepted);
    assert_eq!(hub.events("dev1").await[0].body, "mine");
    peer.engine.set_credit(inputs, 5).unwrap();
    peer.engine.drain(inputs).unwrap();
    let event = peer.event().await;
    assert_eq!(event, Event::Drained(inputs));
    // A device has none, and the module's token is not its.
    for address in [
        "/devices/dev1/messages/events",
        "/devices/dev1/messages/devicebound",
    ] {
        let link = peer.receiver(address, |_| ());
        let error = refused(&mut peer, link).await;
        assert_eq!(error.condition, condition::UNAUTHORIZED_ACCESS);
    }
}
