//! Cloud-to-device messages as devices receive them.
//!
//! The .NET library makes a GUID of the delivery tag, the C library takes application properties only
//! when all of them are strings, and the Java library casts the body to one data section.

use bytes::BytesMut;
use fieldpost_amqp::message::{Properties, put_data, put_map, put_properties, section};
use fieldpost_amqp::value::ValueRef;
use fieldpost_hub::c2d::Delivery;
use fieldpost_model::Ack;
use fieldpost_record::{CommandView, RecordError};

/// Appends a message in the form that devices read.
///
/// # Errors
/// When the stored message cannot be read.
pub(crate) fn put_command(out: &mut BytesMut, delivery: &Delivery) -> Result<(), RecordError> {
    let command = CommandView::parse(&delivery.message)?;
    let body = command
        .body()
        .ok_or(RecordError::Malformed { part: "body" })?;
    put_map(out, section::MESSAGE_ANNOTATIONS, |e| {
        e.symbol("x-opt-lock-token");
        e.string(&delivery.lock.to_string());
        e.symbol("x-opt-sequence-number");
        e.ulong(delivery.sequence);
        e.symbol("iothub-enqueuedtime");
        e.timestamp(command.enqueued().as_millis());
        e.symbol("iothub-deliverycount");
        // An unsigned byte there, in a hub whose limit is 100.
        e.ubyte(u8::try_from(delivery.delivery_count).unwrap_or(u8::MAX));
    });
    put_properties(
        out,
        &Properties {
            message_id: command.message_id().map(ValueRef::String),
            user_id: command.user_id().map(ValueRef::Binary),
            to: Some(ValueRef::String(command.to())),
            correlation_id: command.correlation_id().map(ValueRef::String),
            content_type: command.content_type().map(ValueRef::Symbol),
            content_encoding: command.content_encoding().map(ValueRef::Symbol),
            absolute_expiry_time: Some(ValueRef::Timestamp(delivery.expires.as_millis())),
            ..Properties::default()
        },
    );
    let ack = Some(command.ack()).filter(|ack| *ack != Ack::None);
    let own = [
        ("iothub-ack", ack.map(Ack::as_str)),
        ("iothub-creation-time-utc", command.creation_time()),
        ("iothub-message-schema", command.message_schema()),
    ];
    let own = own
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)));
    // A property without a value is an empty one.
    let given = command
        .properties()
        .map(|(name, value)| (name, value.unwrap_or_default()));
    let mut properties = given.chain(own).peekable();
    if properties.peek().is_some() {
        put_map(out, section::APPLICATION_PROPERTIES, |e| {
            for (name, value) in properties {
                e.string(name);
                e.string(value);
            }
        });
    }
    put_data(out, body);
    Ok(())
}

#[cfg(test)]
mod tests {
    use fieldpost_amqp::message::Message;
    use fieldpost_hub::c2d::LockToken;
    use fieldpost_model::{CloudMessage, Timestamp};
    use fieldpost_record::CommandEnvelope;

    use super::*;

    fn delivery(message: &CloudMessage<'_>, ack: Ack) -> Delivery {
        let mut stored = BytesMut::new();
        let envelope = CommandEnvelope {
            enqueued: Timestamp::from_millis(1),
            expires: Timestamp::from_millis(2),
            sender: "service",
            ack,
        };
        fieldpost_record::command::encode(&mut stored, &envelope, message);
        Delivery {
            sequence: 3,
            lock: LockToken(*b"0123456789abcdef"),
            delivery_count: 300,
            expires: Timestamp::from_millis(2),
            again: None,
            message: stored.freeze(),
        }
    }

    #[test]
    fn a_message_for_a_device_has_the_types_that_libraries_cast_to() {
        let mut message = CloudMessage {
            to: "/devices/dev1/messages/devicebound".into(),
            message_id: Some("m".into()),
            user_id: Some(b"u".into()),
            content_type: Some("text/plain".into()),
            ..CloudMessage::default()
        };
        message.properties.set("k".into(), Some("v".into()));
        message.properties.set("empty".into(), None);
        let mut out = BytesMut::new();
        put_command(&mut out, &delivery(&message, Ack::Full)).unwrap();
        let read = Message::parse(&out).unwrap();
        let annotation = |name| read.message_annotations.unwrap().get(name).unwrap();
        let token = LockToken(*b"0123456789abcdef").to_string();
        assert_eq!(
            annotation("x-opt-lock-token"),
            Some(ValueRef::String(&token))
        );
        assert_eq!(
            annotation("x-opt-sequence-number"),
            Some(ValueRef::ULong(3))
        );
        assert_eq!(
            annotation("iothub-enqueuedtime"),
            Some(ValueRef::Timestamp(1))
        );
        assert_eq!(
            annotation("iothub-deliverycount"),
            Some(ValueRef::UByte(255))
        );
        let properties = read.properties().unwrap();
        assert_eq!(properties.message_id, Some(ValueRef::String("m")));
        assert_eq!(properties.user_id, Some(ValueRef::Binary(b"u")));
        assert_eq!(
            properties.content_type,
            Some(ValueRef::Symbol("text/plain"))
        );
        assert_eq!(
            properties.absolute_expiry_time,
            Some(ValueRef::Timestamp(2))
        );
        let application: Vec<_> = read.application_properties.unwrap().iter().collect();
        let text = |name, value| Ok((ValueRef::String(name), ValueRef::String(value)));
        assert_eq!(
            application,
            [
                text("k", "v"),
                text("empty", ""),
                text("iothub-ack", "full")
            ]
        );
        // One section of data, also when it is empty.
        assert_eq!(read.data().collect::<Vec<_>>(), [b""]);
    }

    #[test]
    fn a_message_without_properties_has_no_such_section() {
        let message = CloudMessage {
            to: "x".into(),
            body: b"body".into(),
            ..CloudMessage::default()
        };
        let mut out = BytesMut::new();
        put_command(&mut out, &delivery(&message, Ack::None)).unwrap();
        let read = Message::parse(&out).unwrap();
        assert!(read.application_properties.is_none());
        assert_eq!(read.data().collect::<Vec<_>>(), [b"body"]);
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let mut broken = delivery(&CloudMessage::default(), Ack::None);
        broken.message = bytes::Bytes::from_static(b"\xff");
        assert!(put_command(&mut BytesMut::new(), &broken).is_err());
    }
}
