//! Cloud-to-device messages as services send them.

use std::borrow::Cow;

use fieldpost_amqp::DecodeError;
use fieldpost_amqp::message::{Message, Properties};
use fieldpost_amqp::value::ValueRef;
use fieldpost_hub::c2d::Target;
use fieldpost_model::{Ack, CloudMessage};

use super::address::BelowDevice;
use super::values::{body, text, time};

/// Application property that asks for feedback.
const ACK: &str = "iothub-ack";
/// Application properties that .NET's service client sends and that are no application's.
const MESSAGE_SCHEMA: &str = "iothub-message-schema";
const CREATION_TIME: &str = "iothub-creation-time-utc";

/// A message for a device, and whom its sender means.
#[derive(Clone, Debug)]
pub(crate) struct Command<'a> {
    /// Whom it is for.
    pub(crate) target: Target,
    /// The message.
    pub(crate) message: CloudMessage<'a>,
}

/// Why a message cannot be for any device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidCommand {
    /// The bytes are no message.
    #[error("the message cannot be decoded: {0}")]
    Decode(#[from] DecodeError),
    /// There is no `to`, or it names no device's queue.
    #[error(
        "property 'to' must be /devices/{{id}}/messages/devicebound or \
         /devices/{{id}}/modules/{{id}}/messages/devicebound"
    )]
    To,
    /// What `to` names cannot be a device or module id.
    #[error("no device or module can have the id in property 'to'")]
    Id,
    /// The expiry is no time.
    #[error("property 'absolute-expiry-time' must be a timestamp")]
    Expiry,
    /// The kind of feedback asked for is none.
    #[error("property 'iothub-ack' must be none, positive, negative or full")]
    Ack,
    /// A property's value has a type that is no text and cannot be made one.
    #[error("property '{name}' must be a string, a number or a boolean")]
    Property {
        /// The property, shortened.
        name: String,
    },
    /// The transfer does not hold one AMQP message but, for example, a batch.
    #[error("one transfer must hold one AMQP message")]
    Format,
    /// The body is something else than bytes or a text.
    #[error("the body must be data, or a string or binary value")]
    Body,
}

impl<'a> Command<'a> {
    /// Reads a message that came on a link to `messages/devicebound`.
    ///
    /// What clients send as numbers and booleans becomes text, because that is what devices are
    /// able to read. Annotations and what else a message may carry are not looked at.
    pub(crate) fn of(message: &Message<'a>) -> Result<Self, InvalidCommand> {
        let properties = message.properties()?;
        let to = properties.to.and_then(|to| to.as_str());
        let to = to.filter(|to| !to.is_empty()).ok_or(InvalidCommand::To)?;
        let target = target(to)?;
        let mut command = CloudMessage {
            to: Cow::Borrowed(to),
            body: body(message).ok_or(InvalidCommand::Body)?,
            ..CloudMessage::default()
        };
        set_system(&mut command, &properties)?;
        if let Some(map) = message.application_properties {
            for entry in map.iter() {
                let (name, value) = entry?;
                set_application(&mut command, name, value)?;
            }
        }
        Ok(Self {
            target,
            message: command,
        })
    }
}

/// Whom `to` means.
fn target(to: &str) -> Result<Target, InvalidCommand> {
    let below = BelowDevice::parse(to).ok_or(InvalidCommand::To)?;
    if !below.rest.eq_ignore_ascii_case("messages/devicebound") {
        return Err(InvalidCommand::To);
    }
    let [first, fallback] = below.identities();
    Ok(Target {
        identity: first.ok_or(InvalidCommand::Id)?,
        fallback,
    })
}

fn set_system<'a>(
    command: &mut CloudMessage<'a>,
    properties: &Properties<'a>,
) -> Result<(), InvalidCommand> {
    let optional = |name: &'static str, value: Option<ValueRef<'a>>| {
        value
            .map(|value| text(value).ok_or_else(|| unreadable(name)))
            .transpose()
    };
    command.message_id = optional("message-id", properties.message_id)?;
    command.correlation_id = optional("correlation-id", properties.correlation_id)?;
    command.content_type = optional("content-type", properties.content_type)?;
    command.content_encoding = optional("content-encoding", properties.content_encoding)?;
    command.user_id = match properties.user_id {
        Some(ValueRef::Binary(bytes)) => Some(Cow::Borrowed(bytes)),
        other => optional("user-id", other)?.map(|text| match text {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        }),
    };
    let expires = properties.absolute_expiry_time;
    command.expires = expires
        .map(|value| time(value).ok_or(InvalidCommand::Expiry))
        .transpose()?;
    Ok(())
}

fn set_application<'a>(
    command: &mut CloudMessage<'a>,
    name: ValueRef<'a>,
    value: ValueRef<'a>,
) -> Result<(), InvalidCommand> {
    let name = name.as_str().ok_or_else(|| unreadable("(name)"))?;
    let value = if value.is_null() {
        None
    } else {
        Some(text(value).ok_or_else(|| unreadable(name))?)
    };
    if name.eq_ignore_ascii_case(ACK) {
        command.ack = match value {
            None => Ack::None,
            Some(word) => word.parse().map_err(|_| InvalidCommand::Ack)?,
        };
    } else if name.eq_ignore_ascii_case(MESSAGE_SCHEMA) {
        command.message_schema = value;
    } else if name.eq_ignore_ascii_case(CREATION_TIME) {
        command.creation_time = value;
    } else {
        command.properties.set(Cow::Borrowed(name), value);
    }
    Ok(())
}

fn unreadable(name: &str) -> InvalidCommand {
    InvalidCommand::Property {
        name: name.chars().take(128).collect(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use fieldpost_amqp::message::{put_data, put_map, put_properties, put_value, section};
    use fieldpost_amqp::{Encoder, Value};
    use fieldpost_model::{Identity, Timestamp};
    use proptest::prelude::*;

    use super::*;

    const TO: &str = "/devices/dev1/messages/devicebound";

    /// Reads a message to `TO` whose properties `shape` completes.
    fn read<R>(
        shape: impl FnOnce(&mut Properties<'_>),
        rest: impl FnOnce(&mut BytesMut),
        look: impl FnOnce(Result<Command<'_>, InvalidCommand>) -> R,
    ) -> R {
        let mut properties = Properties {
            to: Some(ValueRef::String(TO)),
            ..Properties::default()
        };
        shape(&mut properties);
        let mut bytes = BytesMut::new();
        put_properties(&mut bytes, &properties);
        rest(&mut bytes);
        look(
            Message::parse(&bytes)
                .map_err(InvalidCommand::from)
                .and_then(|m| Command::of(&m)),
        )
    }

    type Read = Result<(Ack, Vec<(String, Option<String>)>), InvalidCommand>;

    /// Reads a message with this application property.
    fn with_property(name: &str, value: &Value) -> Read {
        let put = |out: &mut BytesMut| {
            put_map(out, section::APPLICATION_PROPERTIES, |e| {
                e.string(name);
                e.value(value);
            });
        };
        read(
            |_| (),
            put,
            |command| {
                let message = command?.message;
                let properties = message.properties.iter();
                let owned = properties.map(|(n, v)| (n.to_owned(), v.map(str::to_owned)));
                Ok((message.ack, owned.collect()))
            },
        )
    }

    fn identity(device: &str, module: Option<&str>) -> Identity {
        Identity {
            device: device.parse().unwrap(),
            module: module.map(|module| module.parse().unwrap()),
        }
    }

    #[test]
    fn the_target_is_read_from_each_spelling_of_to() {
        let check =
            |to: &str, expected: Result<(&str, Option<&str>, Option<&str>), InvalidCommand>| {
                let found = target(to).map(|target| (target.identity, target.fallback));
                let expected = expected.map(|(device, module, fallback)| {
                    (
                        identity(device, module),
                        fallback.map(|device| identity(device, module)),
                    )
                });
                assert_eq!(found, expected, "{to}");
            };
        check(TO, Ok(("dev1", None, None)));
        check(
            "/devices/dev1/messages/deviceBound",
            Ok(("dev1", None, None)),
        );
        check(
            "/Devices/Dev1/Messages/DeviceBound",
            Ok(("Dev1", None, None)),
        );
        check(
            "devices/dev1/messages/devicebound",
            Ok(("dev1", None, None)),
        );
        check(
            "/devices/dev1/modules/m1/messages/devicebound",
            Ok(("dev1", Some("m1"), None)),
        );
        // Node and .NET encode ids, and ids may look encoded themselves.
        check(
            "/devices/a%23b/messages/devicebound",
            Ok(("a#b", None, Some("a%23b"))),
        );
        check(
            "/devices/a%2Bb/messages/devicebound",
            Ok(("a+b", None, Some("a%2Bb"))),
        );
        check("/devices/a+b/messages/devicebound", Ok(("a+b", None, None)));
        check(
            "/devices/100%/messages/devicebound",
            Ok(("100%", None, None)),
        );
        check(
            "/devices/a%20b/messages/devicebound",
            Ok(("a%20b", None, None)),
        );
        check(
            "/devices/a%2Fb/messages/devicebound",
            Ok(("a%2Fb", None, None)),
        );
        check(
            "/devices/a%ffb/messages/devicebound",
            Ok(("a%ffb", None, None)),
        );
        check(
            "/devices/dev 1/messages/devicebound",
            Err(InvalidCommand::Id),
        );
        check("/devices//messages/devicebound", Err(InvalidCommand::Id));
        check(
            "/devices/d/modules//messages/devicebound",
            Err(InvalidCommand::Id),
        );
        check("/devices/dev1", Err(InvalidCommand::To));
        check("/devices/dev1/messages/events", Err(InvalidCommand::To));
        check(
            "/devices/dev1/messages/devicebound/more",
            Err(InvalidCommand::To),
        );
        check("/messages/devicebound", Err(InvalidCommand::To));
        check("", Err(InvalidCommand::To));
    }

    #[test]
    fn a_message_without_a_readable_to_is_no_command() {
        let check = |to: Option<ValueRef<'static>>| {
            let outcome = read(|properties| properties.to = to, |_| (), |c| c.map(|_| ()));
            assert_eq!(outcome, Err(InvalidCommand::To), "{to:?}");
        };
        check(None);
        check(Some(ValueRef::String("")));
        check(Some(ValueRef::Int(7)));
    }

    #[test]
    fn ids_of_each_type_become_text() {
        let check = |id: ValueRef<'static>, expected: Option<&str>| {
            let shape = |properties: &mut Properties<'_>| {
                properties.message_id = Some(id);
                properties.correlation_id = Some(id);
            };
            read(
                shape,
                |_| (),
                |command| match expected {
                    Some(text) => {
                        let message = command.unwrap().message;
                        assert_eq!(message.message_id.as_deref(), Some(text));
                        assert_eq!(message.correlation_id.as_deref(), Some(text));
                    }
                    None => assert_eq!(command.unwrap_err(), unreadable("message-id")),
                },
            );
        };
        check(ValueRef::String("mm"), Some("mm"));
        check(
            ValueRef::Uuid([
                0x8f, 0, 0x2c, 3, 4, 5, 0x46, 7, 0x88, 9, 0xa, 0xb, 0xc, 0xd, 0xe, 0xf,
            ]),
            Some("8f002c03-0405-4607-8809-0a0b0c0d0e0f"),
        );
        check(ValueRef::ULong(0), Some("0"));
        check(ValueRef::ULong(u64::MAX), Some("18446744073709551615"));
        check(ValueRef::Binary(b"mm"), Some("mm"));
        check(ValueRef::Binary(b"\xff\x01"), Some("ff01"));
        check(ValueRef::Decimal32([0; 4]), None);
        read(
            |_| (),
            |_| (),
            |command| assert_eq!(command.unwrap().message.message_id, None),
        );
    }

    #[test]
    fn system_properties_come_in_the_types_that_clients_use() {
        let shape = |properties: &mut Properties<'_>| {
            properties.user_id = Some(ValueRef::Binary(b"\xffme"));
            properties.content_type = Some(ValueRef::Symbol("text/plain"));
            properties.content_encoding = Some(ValueRef::String("utf-8"));
            properties.absolute_expiry_time = Some(ValueRef::Timestamp(1_800_000_000_123));
        };
        read(
            shape,
            |_| (),
            |command| {
                let message = command.unwrap().message;
                assert_eq!(message.to, TO);
                assert_eq!(message.user_id.as_deref(), Some(&b"\xffme"[..]));
                assert_eq!(message.content_type.as_deref(), Some("text/plain"));
                assert_eq!(message.content_encoding.as_deref(), Some("utf-8"));
                let expires = message.expires.map(Timestamp::as_millis);
                assert_eq!(expires, Some(1_800_000_000_123));
                assert_eq!(message.ack, Ack::None);
                assert!(message.body.is_empty());
            },
        );
        let text =
            |properties: &mut Properties<'_>| properties.user_id = Some(ValueRef::String("me"));
        read(
            text,
            |_| (),
            |command| {
                assert_eq!(
                    command.unwrap().message.user_id.as_deref(),
                    Some(&b"me"[..])
                );
            },
        );
    }

    #[test]
    fn an_expiry_is_a_time_in_any_of_its_forms() {
        let check = |value: ValueRef<'static>, expected: Result<i64, InvalidCommand>| {
            let shape =
                |properties: &mut Properties<'_>| properties.absolute_expiry_time = Some(value);
            let found = read(
                shape,
                |_| (),
                |command| Ok(command?.message.expires.unwrap().as_millis()),
            );
            assert_eq!(found, expected, "{value:?}");
        };
        check(ValueRef::Timestamp(5), Ok(5));
        check(ValueRef::Long(6), Ok(6));
        check(ValueRef::ULong(7), Ok(7));
        check(ValueRef::String("1970-01-01T00:00:08Z"), Ok(8000));
        check(ValueRef::String("soon"), Err(InvalidCommand::Expiry));
        check(ValueRef::Bool(true), Err(InvalidCommand::Expiry));
    }

    #[test]
    fn feedback_is_asked_for_in_any_case() {
        let check = |value: Value, expected: Result<Ack, InvalidCommand>| {
            let found = with_property("iothub-ack", &value).map(|(ack, properties)| {
                assert_eq!(properties, []);
                ack
            });
            assert_eq!(found, expected, "{value:?}");
        };
        check(Value::from("none"), Ok(Ack::None));
        check(Value::from("Positive"), Ok(Ack::Positive));
        check(Value::from("NEGATIVE"), Ok(Ack::Negative));
        check(Value::from("full"), Ok(Ack::Full));
        check(Value::Null, Ok(Ack::None));
        check(Value::from("some"), Err(InvalidCommand::Ack));
        // Python's client lets users write this, and it means nothing.
        let plain = with_property("ack", &Value::from("full")).unwrap();
        assert_eq!(plain.0, Ack::None);
        assert_eq!(plain.1, [("ack".to_owned(), Some("full".to_owned()))]);
    }

    #[test]
    fn values_become_text() {
        let check = |value: Value, expected: Option<Option<&str>>| {
            let found = with_property("x", &value);
            match expected {
                Some(text) => {
                    let pair = ("x".to_owned(), text.map(str::to_owned));
                    assert_eq!(found.unwrap().1, [pair], "{value:?}");
                }
                None => assert_eq!(found.unwrap_err(), unreadable("x"), "{value:?}"),
            }
        };
        check(Value::from("y"), Some(Some("y")));
        check(Value::from(""), Some(Some("")));
        check(Value::Null, Some(None));
        check(Value::Bool(true), Some(Some("true")));
        check(Value::Bool(false), Some(Some("false")));
        check(Value::UByte(8), Some(Some("8")));
        check(Value::Int(-3), Some(Some("-3")));
        check(Value::Long(i64::MIN), Some(Some("-9223372036854775808")));
        check(Value::ULong(u64::MAX), Some(Some("18446744073709551615")));
        check(Value::Double(21.5), Some(Some("21.5")));
        check(Value::Float(0.5), Some(Some("0.5")));
        check(Value::Char('c'), Some(Some("c")));
        check(
            Value::Timestamp(0),
            Some(Some(&Timestamp::from_millis(0).to_string())),
        );
        check(Value::List(Vec::new()), None);
        check(Value::Decimal64([0; 8]), None);
    }

    #[test]
    fn net_iot_sends_system_properties_among_those_of_the_application() {
        let put = |out: &mut BytesMut| {
            put_map(out, section::APPLICATION_PROPERTIES, |e| {
                for (name, value) in [
                    ("iothub-message-schema", "v1"),
                    ("iothub-creation-time-utc", "2026-01-05T10:20:30Z"),
                    ("colour", "red"),
                ] {
                    e.string(name);
                    e.string(value);
                }
            });
        };
        read(
            |_| (),
            put,
            |command| {
                let message = command.unwrap().message;
                assert_eq!(message.message_schema.as_deref(), Some("v1"));
                assert_eq!(
                    message.creation_time.as_deref(),
                    Some("2026-01-05T10:20:30Z")
                );
                let properties: Vec<_> = message.properties.iter().collect();
                assert_eq!(properties, [("colour", Some("red"))]);
            },
        );
    }

    #[test]
    fn each_form_of_body_is_taken() {
        let check = |put: &dyn Fn(&mut BytesMut), expected: Result<&[u8], InvalidCommand>| {
            let found = read(
                |_| (),
                put,
                |command| Ok(command?.message.body.into_owned()),
            );
            assert_eq!(found, expected.map(<[u8]>::to_vec));
        };
        check(&|_| {}, Ok(b""));
        check(&|out| put_data(out, b"hello"), Ok(b"hello"));
        check(&|out| put_data(out, b""), Ok(b""));
        let joined = |out: &mut BytesMut| {
            put_data(out, b"he");
            put_data(out, b"");
            put_data(out, b"llo");
        };
        check(&joined, Ok(b"hello"));
        check(&|out| put_value(out, |e| e.string("hello")), Ok(b"hello"));
        check(&|out| put_value(out, |e| e.binary(b"\xff")), Ok(b"\xff"));
        check(&|out| put_value(out, |e| e.null()), Ok(b""));
        check(
            &|out| put_value(out, |e| e.int(7)),
            Err(InvalidCommand::Body),
        );
        let sequence = |out: &mut BytesMut| {
            Encoder::new(out).described(section::SEQUENCE, |e| e.list(|_| ()));
        };
        check(&sequence, Err(InvalidCommand::Body));
    }

    proptest! {
        #[test]
        fn an_id_is_found_again_raw_and_encoded(
            id in "[-A-Za-z0-9:.+%_#*?!(),=@;$']{1,128}",
        ) {
            let encoded =
                percent_encoding::utf8_percent_encode(&id, percent_encoding::NON_ALPHANUMERIC);
            let found = target(&format!("/devices/{encoded}/messages/devicebound")).unwrap();
            prop_assert_eq!(found.identity, identity(&id, None));
            let found = target(&format!("/devices/{id}/messages/devicebound")).unwrap();
            let raw = identity(&id, None);
            prop_assert!(found.identity == raw || found.fallback == Some(raw));
        }
    }
}
