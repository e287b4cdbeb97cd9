//! What the service clients of .NET, Java and C are documented to do on the service endpoint.

use fieldpost_amqp::message::{Message, Properties, put_data, put_map, put_properties, section};
use fieldpost_amqp::performative::{Attach, DeliveryState, Performative, Role, Source, Target};
use fieldpost_amqp::value::{Symbol, Value, ValueRef};

use super::service::{Device, feedback_owed, records};
use super::wire::Wire;
use super::*;

/// The address as .NET writes it: absolute.
const NET_DEVICE_BOUND: &str = "amqps://localhost:5671/messages/deviceBound";

/// A message for `to` with an id and these application properties.
fn message(to: &str, properties: &[(&str, &str)]) -> BytesMut {
    let mut bytes = BytesMut::new();
    put_properties(
        &mut bytes,
        &Properties {
            message_id: Some(ValueRef::String("mm")),
            to: Some(ValueRef::String(to)),
            ..Properties::default()
        },
    );
    put_map(&mut bytes, section::APPLICATION_PROPERTIES, |e| {
        for (name, value) in properties {
            e.string(name);
            e.string(value);
        }
    });
    put_data(&mut bytes, b"hello");
    bytes
}

/// Waits for the answer to one message.
async fn answered(wire: &mut Wire, delivery_id: u32) -> DeliveryState {
    let disposition = wire.disposition().await;
    assert_eq!(disposition.role, Role::Receiver);
    assert_eq!(disposition.first, delivery_id);
    assert_eq!(disposition.last.unwrap_or(delivery_id), delivery_id);
    assert!(disposition.settled);
    disposition.state.expect("a state")
}

/// Sends a message for `to` and expects it to be accepted, and `device` to have it.
async fn sends(wire: &mut Wire, handle: u32, to: &str, device: &Device) {
    wire.transfer(handle, 5, &message(to, &[])).await;
    assert_eq!(answered(wire, 5).await, DeliveryState::Accepted);
    assert_eq!(device.take().await.to, to);
}

/// Tells an outcome without settling it, as .NET does, and expects it to be settled with
/// `accepted`: its call times out on anything else.
async fn confirmed(wire: &mut Wire, delivery_id: u32, state: DeliveryState) {
    wire.judge(delivery_id, state, false).await;
    let answer = wire.disposition().await;
    assert_eq!(answer.role, Role::Sender);
    assert_eq!(answer.first, delivery_id);
    assert!(answer.settled);
    assert_eq!(answer.state, Some(DeliveryState::Accepted));
}

#[tokio::test]
async fn net_iot_speaks_without_a_sasl_layer_and_puts_its_token() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    let mut wire = Wire::net_iot(&hub).await;
    let handle = wire.sender("link", NET_DEVICE_BOUND).await;
    sends(
        &mut wire,
        handle,
        "/devices/dev1/messages/deviceBound",
        &device,
    )
    .await;
}

/// It refreshes two minutes before the end, on the same links and under the same name.
#[tokio::test]
async fn net_iot_renews_its_token_and_its_link_stays() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    let mut wire = Wire::net_iot(&hub).await;
    let handle = wire.sender("link", NET_DEVICE_BOUND).await;
    wire.put_token(0, "2", &hub.policy_token_for("service", 7200))
        .await;
    hub.clock
        .set_wall(Timestamp::from_millis(expiry(4000) * 1000));
    hub.clock.advance(Duration::from_secs(60));
    sends(
        &mut wire,
        handle,
        "/devices/dev1/messages/deviceBound",
        &device,
    )
    .await;
}

#[tokio::test]
async fn net_iot_percent_encodes_the_device_id() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "a#b+c").await;
    let mut wire = Wire::net_iot(&hub).await;
    let handle = wire.sender("link", NET_DEVICE_BOUND).await;
    sends(
        &mut wire,
        handle,
        "/devices/a%23b%2Bc/messages/deviceBound",
        &device,
    )
    .await;
}

#[tokio::test]
async fn net_iot_sends_creation_time_and_schema_as_application_properties() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    let mut wire = Wire::net_iot(&hub).await;
    let handle = wire.sender("link", NET_DEVICE_BOUND).await;
    let properties = [
        ("iothub-creation-time-utc", "2027-01-15T08:00:00.0000000Z"),
        ("iothub-message-schema", "v1"),
        ("colour", "red"),
    ];
    let bytes = message("/devices/dev1/messages/deviceBound", &properties);
    wire.transfer(handle, 5, &bytes).await;
    assert_eq!(answered(&mut wire, 5).await, DeliveryState::Accepted);
    let seen = device.take().await;
    let creation_time = seen.creation_time.as_deref();
    assert_eq!(creation_time, Some("2027-01-15T08:00:00.0000000Z"));
    assert_eq!(seen.message_schema.as_deref(), Some("v1"));
    assert_eq!(
        seen.properties,
        [("colour".to_owned(), Some("red".to_owned()))]
    );
}

#[tokio::test]
async fn net_iot_finds_the_tracking_id_of_a_refusal() {
    let hub = TestHub::automatic().await;
    let mut wire = Wire::net_iot(&hub).await;
    let handle = wire.sender("link", NET_DEVICE_BOUND).await;
    let bytes = message("/devices/nobody/messages/deviceBound", &[]);
    wire.transfer(handle, 5, &bytes).await;
    let DeliveryState::Rejected(Some(error)) = answered(&mut wire, 5).await else {
        panic!("it is refused")
    };
    assert_eq!(error.condition, condition::NOT_FOUND);
    let description = error.description.as_deref().unwrap();
    assert!(description.starts_with("ErrorCode:DeviceNotFound;"));
    let (key, value) = &error.info.0[0];
    let tracking_id = Symbol::from_static("com.microsoft:tracking-id");
    assert_eq!(*key, Value::Symbol(tracking_id));
    assert!(value.as_str().is_some_and(|id| !id.is_empty()));
}

/// It dereferences the user id, casts the time, compares the content type and makes a GUID of the
/// tag; it takes one delivery for each receive.
#[tokio::test]
async fn net_iot_finds_every_part_of_feedback_in_its_type() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    feedback_owed(&hub, &device).await;
    let mut wire = Wire::net_iot(&hub).await;
    wire.net_iot_feedback(1).await;
    let (_, tag, bytes) = wire.feedback().await;
    assert_eq!(tag.len(), 16);
    let message = Message::parse(&bytes).unwrap();
    let properties = message.properties().unwrap();
    let content_type = "application/vnd.microsoft.iothub.feedback.json";
    assert_eq!(
        properties.content_type,
        Some(ValueRef::Symbol(content_type))
    );
    assert_eq!(properties.user_id, Some(ValueRef::Binary(b"hub")));
    let enqueued = annotation(&bytes, "iothub-enqueuedtime");
    assert!(matches!(enqueued, Value::Timestamp(_)), "{enqueued:?}");
    let sequence = annotation(&bytes, "x-opt-sequence-number");
    assert!(matches!(sequence, Value::ULong(_)), "{sequence:?}");
    assert_eq!(message.data().count(), 1);
    let records = records(&bytes);
    assert_eq!(records.len(), 1);
    assert_eq!(records[0]["statusCode"], "Success");
    assert_eq!(records[0]["description"], "Success");
    assert_eq!(records[0]["originalMessageId"], "mm");
    assert_eq!(records[0]["deviceId"], "dev1");
}

#[tokio::test]
async fn net_iot_completes_feedback_with_an_unsettled_disposition() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    feedback_owed(&hub, &device).await;
    let mut wire = Wire::net_iot(&hub).await;
    let handle = wire.net_iot_feedback(1).await;
    let (delivery_id, ..) = wire.feedback().await;
    confirmed(&mut wire, delivery_id, DeliveryState::Accepted).await;
    // It is gone: what comes next is another one.
    feedback_owed(&hub, &device).await;
    wire.credit(handle, 2).await;
    let (_, _, bytes) = wire.feedback().await;
    assert_ne!(annotation(&bytes, "x-opt-sequence-number"), Value::ULong(0));
    let delivery_count = Message::parse(&bytes)
        .unwrap()
        .header
        .unwrap()
        .delivery_count;
    assert_eq!(delivery_count, Some(0));
}

#[tokio::test]
async fn net_iot_abandons_feedback_and_is_answered_accepted() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    feedback_owed(&hub, &device).await;
    let mut wire = Wire::net_iot(&hub).await;
    let handle = wire.net_iot_feedback(1).await;
    let (delivery_id, _, first) = wire.feedback().await;
    confirmed(&mut wire, delivery_id, DeliveryState::Released).await;
    wire.credit(handle, 2).await;
    let (_, _, second) = wire.feedback().await;
    let sequence = "x-opt-sequence-number";
    assert_eq!(annotation(&first, sequence), annotation(&second, sequence));
    let header = Message::parse(&second).unwrap().header.unwrap();
    assert_eq!(header.delivery_count, Some(1));
}

#[tokio::test]
async fn net_iot_is_told_that_there_are_no_file_notifications() {
    let hub = TestHub::automatic().await;
    let mut wire = Wire::net_iot(&hub).await;
    let attach = Attach {
        name: "files".to_owned(),
        handle: 9,
        role: Role::Receiver,
        source: Some(Source::from_address(
            "amqps://localhost:5671/messages/serviceBound/filenotifications",
        )),
        target: Some(Target::to("here")),
        ..Attach::default()
    };
    wire.send(&Performative::Attach(Box::new(attach))).await;
    let (refused, _) = wire.hear_later().await;
    assert!(matches!(refused, Performative::Attach(answer) if answer.source.is_none()));
    let (Performative::Detach(detach), _) = wire.hear().await else {
        panic!("a detach follows")
    };
    assert!(detach.closed);
    assert_eq!(detach.error.unwrap().condition, condition::NOT_IMPLEMENTED);
}

#[tokio::test]
async fn java_iot_signs_in_with_plain_and_waits_for_credit() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    let mut wire = Wire::plain(&hub, 3600).await;
    // Proton-J sends nothing before it was granted something; `sender` expects that.
    let handle = wire.sender("sender", "/messages/devicebound").await;
    sends(
        &mut wire,
        handle,
        "/devices/dev1/messages/devicebound",
        &device,
    )
    .await;
}

#[tokio::test]
async fn java_iot_writes_the_device_id_raw() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "50%25+#").await;
    let mut wire = Wire::plain(&hub, 3600).await;
    let handle = wire.sender("sender", "/messages/devicebound").await;
    sends(
        &mut wire,
        handle,
        "/devices/50%25+#/messages/devicebound",
        &device,
    )
    .await;
}

#[tokio::test]
async fn java_iot_names_its_link_sender_on_every_connection() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    let mut first = Wire::plain(&hub, 3600).await;
    let mut second = Wire::plain(&hub, 3600).await;
    let to = "/devices/dev1/messages/devicebound";
    let of_first = first.sender("sender", "/messages/devicebound").await;
    let of_second = second.sender("sender", "/messages/devicebound").await;
    sends(&mut first, of_first, to, &device).await;
    sends(&mut second, of_second, to, &device).await;
    sends(&mut first, of_first, to, &device).await;
}

/// Attaches for feedback, takes a message and settles it with `accepted`, as Java and C do.
async fn accepts_feedback(hub: &TestHub, wire: &mut Wire, address: &str) {
    let device = Device::new(hub, "dev1").await;
    feedback_owed(hub, &device).await;
    let handle = 9;
    wire.attach(Attach {
        name: "receiver".to_owned(),
        handle,
        role: Role::Receiver,
        source: Some(Source::from_address(address)),
        target: Some(Target::to("ingress-rx")),
        ..Attach::default()
    })
    .await;
    wire.credit(handle, 100).await;
    let (delivery_id, _, bytes) = wire.feedback().await;
    // C's client compares this word in lower case, and takes an empty array for an error.
    let records = records(&bytes);
    let description = records[0]["description"].as_str().unwrap();
    assert_eq!(description.to_ascii_lowercase(), "success");
    wire.judge(delivery_id, DeliveryState::Accepted, true).await;
    // The next one is another one.
    feedback_owed(hub, &device).await;
    let (_, _, next) = wire.feedback().await;
    let sequence = "x-opt-sequence-number";
    assert_ne!(annotation(&bytes, sequence), annotation(&next, sequence));
}

#[tokio::test]
async fn java_iot_accepts_feedback() {
    let hub = TestHub::automatic().await;
    let mut wire = Wire::plain(&hub, 3600).await;
    accepts_feedback(&hub, &mut wire, "/messages/serviceBound/feedback").await;
}

#[tokio::test]
async fn c_iot_accepts_feedback() {
    let hub = TestHub::automatic().await;
    let mut wire = Wire::plain(&hub, 365 * 24 * 3600).await;
    let address = "amqps://localhost/messages/serviceBound/feedback";
    accepts_feedback(&hub, &mut wire, address).await;
}

#[tokio::test]
async fn c_iot_signs_in_with_a_token_for_a_year() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    let mut wire = Wire::plain(&hub, 365 * 24 * 3600).await;
    let address = "amqps://localhost/messages/deviceBound";
    let handle = wire.sender("sender-link", address).await;
    sends(
        &mut wire,
        handle,
        "/devices/dev1/messages/devicebound",
        &device,
    )
    .await;
}

#[tokio::test]
async fn c_iot_spells_device_bound() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    let mut wire = Wire::plain(&hub, 3600).await;
    let address = "amqps://localhost/messages/deviceBound";
    let handle = wire.sender("sender-link", address).await;
    sends(
        &mut wire,
        handle,
        "/devices/dev1/messages/deviceBound",
        &device,
    )
    .await;
}
