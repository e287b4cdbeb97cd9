//! Device-to-cloud messages as devices send them.

use std::borrow::Cow;

use fieldpost_amqp::DecodeError;
use fieldpost_amqp::message::{Body, Message, Properties};
use fieldpost_amqp::value::ValueRef;
use fieldpost_model::DeviceMessage;

use super::values::{body, text, time};

/// The format of a transfer whose data sections are messages (Event Hubs, Service Bus). The C library
/// sends every message so.
pub(crate) const BATCH_FORMAT: u32 = 0x8001_3700;

/// Why a transfer is no message, or no batch of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidTelemetry {
    /// The bytes are no message.
    #[error("the message cannot be decoded: {0}")]
    Decode(#[from] DecodeError),
    /// The transfer has a format that is neither one message nor a batch.
    #[error("the message format {0:#x} is unknown")]
    Format(u32),
    /// A batch is one whose body is something else than messages.
    #[error("the body of a batch must be data sections, each of them a message")]
    Batch,
    /// The body is something else than bytes or a text.
    #[error("the body must be data, or a string or binary value")]
    Body,
    /// A property's value has a type that is no text and cannot be made one.
    #[error("property '{name}' must be a string, a number or a boolean")]
    Property {
        /// The property, shortened.
        name: String,
    },
}

/// Reads a transfer: one message, or the messages of a batch in their order.
pub(crate) fn read(
    message_format: u32,
    payload: &[u8],
) -> Result<Vec<DeviceMessage<'_>>, InvalidTelemetry> {
    let message = Message::parse(payload)?;
    match message_format {
        0 => Ok(vec![device_message(&message)?]),
        BATCH_FORMAT if matches!(message.body, Body::Data) => message
            .data()
            .map(|data| device_message(&Message::parse(data)?))
            .collect(),
        BATCH_FORMAT => Err(InvalidTelemetry::Batch),
        format => Err(InvalidTelemetry::Format(format)),
    }
}

/// What clients send as numbers and booleans becomes text, as it would over MQTT.
fn device_message<'a>(message: &Message<'a>) -> Result<DeviceMessage<'a>, InvalidTelemetry> {
    let mut read = DeviceMessage {
        body: body(message).ok_or(InvalidTelemetry::Body)?,
        ..DeviceMessage::default()
    };
    set_system(&mut read, &message.properties()?)?;
    if let Some(map) = message.message_annotations {
        for entry in map.iter() {
            let (name, value) = entry?;
            set_annotation(&mut read, name, value);
        }
    }
    if let Some(map) = message.application_properties {
        for entry in map.iter() {
            let (name, value) = entry?;
            set_application(&mut read, name, value)?;
        }
    }
    Ok(read)
}

fn set_system<'a>(
    read: &mut DeviceMessage<'a>,
    properties: &Properties<'a>,
) -> Result<(), InvalidTelemetry> {
    let optional = |name: &'static str, value: Option<ValueRef<'a>>| {
        value
            .map(|value| text(value).ok_or_else(|| unreadable(name)))
            .transpose()
    };
    let system = &mut read.system;
    system.message_id = optional("message-id", properties.message_id)?;
    system.correlation_id = optional("correlation-id", properties.correlation_id)?;
    system.to = optional("to", properties.to)?;
    system.content_type = optional("content-type", properties.content_type)?;
    system.content_encoding = optional("content-encoding", properties.content_encoding)?;
    system.user_id = match properties.user_id {
        Some(ValueRef::Binary(bytes)) => Some(Cow::Borrowed(bytes)),
        other => optional("user-id", other)?.map(|text| match text {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        }),
    };
    // Node lets an application put anything there, and a message is never refused for an expiry.
    system.absolute_expiry_time = properties.absolute_expiry_time.and_then(time);
    Ok(())
}

/// What annotations say of a message; those that the hub does not know mean nothing.
fn set_annotation<'a>(read: &mut DeviceMessage<'a>, name: ValueRef<'a>, value: ValueRef<'a>) {
    let (Some(name), Some(value)) = (name.as_str(), text(value)) else {
        return;
    };
    let system = &mut read.system;
    match name {
        "iothub-interface-id" => system.interface_id = Some(value),
        "dt-subject" => system.component = Some(value),
        "iothub-outputname" => system.output_name = Some(value),
        // Consumers find these among the application properties, as over MQTT.
        "Diagnostic-Id" | "Correlation-Context" => read.properties.set(name.into(), Some(value)),
        _ => {}
    }
}

fn set_application<'a>(
    read: &mut DeviceMessage<'a>,
    name: ValueRef<'a>,
    value: ValueRef<'a>,
) -> Result<(), InvalidTelemetry> {
    let name = name.as_str().ok_or_else(|| unreadable("(name)"))?;
    let value = if value.is_null() {
        None
    } else {
        Some(text(value).ok_or_else(|| unreadable(name))?)
    };
    if name.eq_ignore_ascii_case("iothub-outputname") {
        read.system.output_name = value;
    } else if !name.eq_ignore_ascii_case("iothub-ack") {
        // What an acknowledgement of a message to the hub would be, nobody has said.
        read.properties.set(Cow::Borrowed(name), value);
    }
    Ok(())
}

fn unreadable(name: &str) -> InvalidTelemetry {
    InvalidTelemetry::Property {
        name: name.chars().take(128).collect(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use fieldpost_amqp::message::{put_data, put_map, put_properties, put_value, section};
    use fieldpost_model::Timestamp;
    use proptest::prelude::*;

    use super::*;

    /// One message with a property and a body.
    fn plain(name: &str, value: &str, body: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        put_map(&mut out, section::APPLICATION_PROPERTIES, |e| {
            e.string(name);
            e.string(value);
        });
        put_data(&mut out, body);
        out
    }

    #[test]
    fn a_message_of_node_is_read_whole() {
        let mut out = BytesMut::new();
        put_map(&mut out, section::MESSAGE_ANNOTATIONS, |e| {
            e.symbol("dt-subject");
            e.string("thermostat1");
            e.symbol("x-unknown");
            e.int(1);
        });
        put_properties(
            &mut out,
            &Properties {
                // Node makes an AMQP UUID of an id that looks like one.
                message_id: Some(ValueRef::Uuid(*b"0123456789abcdef")),
                user_id: Some(ValueRef::String("me")),
                to: Some(ValueRef::String("/devices/dev1/messages/events")),
                correlation_id: Some(ValueRef::ULong(7)),
                content_type: Some(ValueRef::Symbol("application/json")),
                // And lets an application put a text here.
                absolute_expiry_time: Some(ValueRef::String("not a time")),
                ..Properties::default()
            },
        );
        put_map(&mut out, section::APPLICATION_PROPERTIES, |e| {
            e.string("number");
            e.int(-5);
            e.string("flag");
            e.bool(true);
            e.string("none");
            e.null();
            e.string("iothub-ack");
            e.string("full");
            e.string("iothub-creation-time-utc");
            e.string("2026-01-01T00:00:00Z");
        });
        put_value(&mut out, |e| e.string("text"));
        let messages = read(0, &out).unwrap();
        let [message] = &messages[..] else {
            panic!("{messages:?}")
        };
        let system = &message.system;
        let id = "30313233-3435-3637-3839-616263646566";
        assert_eq!(system.message_id.as_deref(), Some(id));
        assert_eq!(system.correlation_id.as_deref(), Some("7"));
        assert_eq!(system.user_id.as_deref(), Some(&b"me"[..]));
        assert_eq!(system.content_type.as_deref(), Some("application/json"));
        assert_eq!(system.component.as_deref(), Some("thermostat1"));
        assert_eq!(system.absolute_expiry_time, None);
        let properties: Vec<_> = message.properties.iter().collect();
        assert_eq!(
            properties,
            [
                ("number", Some("-5")),
                ("flag", Some("true")),
                ("none", None),
                ("iothub-creation-time-utc", Some("2026-01-01T00:00:00Z")),
            ]
        );
        assert_eq!(&*message.body, b"text");
    }

    /// As .NET's batch has it, byte for byte, and as the C library orders its sections.
    #[test]
    fn net_iot_and_c_iot_batches_are_their_messages_in_order() {
        let net =
            b"\x00\x53\x75\xa0\x12\x00\x53\x74\xc1\x07\x02\xa1\x01k\xa1\x01v\x00\x53\x75\xa0\x01A\
            \x00\x53\x75\xa0\x06\x00\x53\x75\xa0\x01B";
        let messages = read(BATCH_FORMAT, net).unwrap();
        let bodies: Vec<&[u8]> = messages.iter().map(|m| &*m.body).collect();
        assert_eq!(bodies, [b"A", b"B"]);
        assert_eq!(messages[0].properties.iter().next(), Some(("k", Some("v"))));

        let mut inner = BytesMut::new();
        put_properties(
            &mut inner,
            &Properties {
                message_id: Some(ValueRef::String("m")),
                absolute_expiry_time: Some(ValueRef::Timestamp(1000)),
                ..Properties::default()
            },
        );
        put_map(&mut inner, section::APPLICATION_PROPERTIES, |e| {
            e.string("k");
            e.string("v");
        });
        put_map(&mut inner, section::MESSAGE_ANNOTATIONS, |e| {
            e.symbol("iothub-interface-id");
            e.string("i");
        });
        put_data(&mut inner, b"C");
        let mut outer = BytesMut::new();
        put_data(&mut outer, &inner);
        let messages = read(BATCH_FORMAT, &outer).unwrap();
        let [message] = &messages[..] else {
            panic!("{messages:?}")
        };
        assert_eq!(message.system.message_id.as_deref(), Some("m"));
        assert_eq!(message.system.interface_id.as_deref(), Some("i"));
        let expiry = message.system.absolute_expiry_time;
        assert_eq!(expiry, Some(Timestamp::from_millis(1000)));
        assert_eq!(&*message.body, b"C");
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let one = plain("k", "v", b"A");
        assert_eq!(read(7, &one).unwrap_err(), InvalidTelemetry::Format(7));
        assert!(matches!(
            read(0, b"\xff").unwrap_err(),
            InvalidTelemetry::Decode(_)
        ));
        // A batch is taken as a whole: its second message is none.
        let mut outer = BytesMut::new();
        put_data(&mut outer, &one);
        put_data(&mut outer, b"\xff");
        assert!(matches!(
            read(BATCH_FORMAT, &outer).unwrap_err(),
            InvalidTelemetry::Decode(_)
        ));
        let mut value = BytesMut::new();
        put_value(&mut value, |e| e.string("x"));
        assert_eq!(
            read(BATCH_FORMAT, &value).unwrap_err(),
            InvalidTelemetry::Batch
        );
        let mut list = BytesMut::new();
        put_value(&mut list, |e| e.list(|_| {}));
        assert_eq!(read(0, &list).unwrap_err(), InvalidTelemetry::Body);
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes: Vec<u8>, batch: bool) {
            let format = if batch { BATCH_FORMAT } else { 0 };
            let _ = read(format, &bytes);
        }
    }
}
