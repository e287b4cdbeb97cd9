//! Device-to-cloud messages as devices send them over HTTPS.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use fieldpost_model::{DeviceMessage, Timestamp};
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

/// The media type of a body that holds many messages (Azure IoT Hub, device REST interface).
const BATCH_TYPE: &str = "application/vnd.microsoft.iothub.json";

/// Before the names of application properties.
const APPLICATION_PREFIX: &str = "iothub-app-";

/// Why a body is no batch of messages.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidBatch {
    /// It is not the documented JSON.
    #[error("the batch cannot be read: {0}")]
    Json(#[from] serde_json::Error),
    /// A body that should be base64 is something else.
    #[error("the body of message {index} is not base64")]
    Base64 {
        /// The message's place in the batch, from 0.
        index: usize,
    },
}

/// Whether a request's content type says that its body is a batch. Every other type means a body as it
/// stands: SDKs send several.
pub(crate) fn is_batch(content_type: Option<&str>) -> bool {
    let media_type = content_type.and_then(|text| text.split(';').next());
    media_type.is_some_and(|text| text.trim().eq_ignore_ascii_case(BATCH_TYPE))
}

/// The message of a request: its properties are headers. Names of headers that mean nothing here are
/// HTTP's own affair.
pub(crate) fn message<'a>(headers: &[(&'a str, &'a [u8])], body: &'a [u8]) -> DeviceMessage<'a> {
    let mut message = DeviceMessage {
        body: Cow::Borrowed(body),
        ..DeviceMessage::default()
    };
    for (name, value) in headers {
        if let Some(name) = application_name(name) {
            message.properties.set(name.into(), Some(text(value)));
        } else {
            // Not a property, then.
            let _ = set_system(&mut message, name, text(value));
        }
    }
    message
}

/// The messages of a batch in their order.
pub(crate) fn messages(body: &[u8]) -> Result<Vec<DeviceMessage<'_>>, InvalidBatch> {
    // Some clients mark their UTF-8.
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let entries: Vec<Entry<'_>> = serde_json::from_slice(body)?;
    let entries = entries.into_iter().enumerate();
    entries
        .map(|(index, entry)| entry.message().ok_or(InvalidBatch::Base64 { index }))
        .collect()
}

/// One message of a batch.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry<'a> {
    #[serde(borrow)]
    body: Cow<'a, str>,
    /// Node's SDK does not say.
    #[serde(default = "by_default")]
    base64_encoded: bool,
    #[serde(borrow, default)]
    properties: Option<Members<'a>>,
}

fn by_default() -> bool {
    true
}

/// The members of an object, in their order.
struct Members<'a>(Vec<(Cow<'a, str>, Scalar<'a>)>);

/// A property's value. Numbers and booleans become text, as over AMQP.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar<'a> {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    #[serde(borrow)]
    Text(Cow<'a, str>),
}

/// Decodes with padding and without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl<'a> Entry<'a> {
    /// `None` when the body is not what it says it is.
    fn message(self) -> Option<DeviceMessage<'a>> {
        let mut message = DeviceMessage {
            body: match self.body {
                text if self.base64_encoded => BASE64.decode(text.as_bytes()).ok()?.into(),
                Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
                Cow::Owned(text) => Cow::Owned(text.into_bytes()),
            },
            ..DeviceMessage::default()
        };
        for (name, value) in self
            .properties
            .map(|members| members.0)
            .into_iter()
            .flatten()
        {
            set(&mut message, name, value.into_text());
        }
        Some(message)
    }
}

impl<'a> Scalar<'a> {
    fn into_text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Null => None,
            Self::Bool(value) => Some(value.to_string().into()),
            Self::Number(value) => Some(value.to_string().into()),
            Self::Text(text) => Some(text),
        }
    }
}

/// Sets a property of a message in a batch.
fn set<'a>(message: &mut DeviceMessage<'a>, name: Cow<'a, str>, value: Option<Cow<'a, str>>) {
    let own = match &name {
        Cow::Borrowed(name) => application_name(name).map(Cow::Borrowed),
        Cow::Owned(name) => application_name(name).map(|own| own.to_owned().into()),
    };
    match (own, value) {
        (Some(own), value) => message.properties.set(own, value),
        (None, Some(value)) => {
            // What a client calls by no known name is its own property, and better kept than lost.
            if let Err(value) = set_system(message, &name, value) {
                message.properties.set(name, Some(value));
            }
        }
        (None, None) => {}
    }
}

/// The name of an application property without its prefix.
fn application_name(name: &str) -> Option<&str> {
    let (prefix, own) = name.split_at_checked(APPLICATION_PREFIX.len())?;
    (prefix.eq_ignore_ascii_case(APPLICATION_PREFIX) && !own.is_empty()).then_some(own)
}

/// Sets the system property of that name; gives the value back when there is none.
fn set_system<'a>(
    message: &mut DeviceMessage<'a>,
    name: &str,
    value: Cow<'a, str>,
) -> Result<(), Cow<'a, str>> {
    let system = &mut message.system;
    match &*name.to_ascii_lowercase() {
        "iothub-messageid" => system.message_id = Some(value),
        "iothub-correlationid" => system.correlation_id = Some(value),
        "iothub-userid" => {
            system.user_id = Some(match value {
                Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
                Cow::Owned(text) => Cow::Owned(text.into_bytes()),
            });
        }
        "iothub-to" => system.to = Some(value),
        "iothub-contenttype" => system.content_type = Some(value),
        "iothub-contentencoding" => system.content_encoding = Some(value),
        // A message is never refused for an expiry that cannot be read.
        "iothub-expiry" => system.absolute_expiry_time = Timestamp::parse(&value),
        "iothub-interface-id" => system.interface_id = Some(value),
        "iothub-outputname" => system.output_name = Some(value),
        "dt-subject" => system.component = Some(value),
        // Consumers find these two among the application properties. The first is .NET's spelling, the
        // second Java's.
        "iothub-creationtimeutc" | "iothub-creation-time-utc" => {
            let name = "iothub-creation-time-utc";
            message.properties.set(name.into(), Some(value));
        }
        "iothub-messageschema" => {
            let name = "iothub-message-schema";
            message.properties.set(name.into(), Some(value));
        }
        // What an acknowledgement of a message to the hub would be, nobody has said; and the hub
        // knows its own name.
        "iothub-ack" | "iothub-name" => {}
        _ => return Err(value),
    }
    Ok(())
}

/// A header's value as text. What is no UTF-8 is Latin-1, which Node writes.
fn text(value: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(value) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => value.iter().copied().map(char::from).collect(),
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of properties")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some((Name(name), value)) = map.next_entry()? {
                    members.push((name, value));
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

/// A member's name. Borrowed where nothing in it is escaped, which a [`Cow`] alone never is.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    /// Every property as a line, system ones first.
    fn seen(message: &DeviceMessage<'_>) -> Vec<String> {
        let system = &message.system;
        let user_id = system.user_id.as_deref().map(String::from_utf8_lossy);
        let expiry = system.absolute_expiry_time.map(|time| time.to_string());
        let texts = [
            ("message-id", system.message_id.as_deref()),
            ("correlation-id", system.correlation_id.as_deref()),
            ("user-id", user_id.as_deref()),
            ("to", system.to.as_deref()),
            ("content-type", system.content_type.as_deref()),
            ("content-encoding", system.content_encoding.as_deref()),
            ("expiry", expiry.as_deref()),
            ("component", system.component.as_deref()),
            ("interface", system.interface_id.as_deref()),
            ("output", system.output_name.as_deref()),
        ];
        let system = texts
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}: {}", value?)));
        let own = message.properties.iter().map(|(name, value)| match value {
            Some(value) => format!("{name}={value}"),
            None => name.to_owned(),
        });
        system.chain(own).collect()
    }

    #[test]
    fn headers_are_properties() {
        let headers: &[(&str, &[u8])] = &[
            ("Host", b"localhost"),
            ("iothub-app-Room", b"attic"),
            ("IoTHub-App-!#$%&'*+-.^_`|~09", b"!#$%&'*+-.^_`|~09"),
            ("iothub-app-", b"no name"),
            ("iothub-app-empty", b""),
            ("iothub-app-latin", b"caf\xe9"),
            ("iothub-app-utf8", "caf\u{e9}".as_bytes()),
            ("iothub-messageid", b"m1"),
            ("iothub-correlationid", b"c1"),
            ("iothub-userid", b"me"),
            ("iothub-to", b"/devices/dev1/messages/events"),
            ("iothub-contenttype", b"application/json"),
            ("iothub-contentencoding", b"utf-8"),
            ("iothub-expiry", b"2027-01-02T03:04:05Z"),
            ("iothub-ack", b"full"),
            ("iothub-name", b"hub"),
            ("iothub-creationtimeutc", b"2027-01-01T00:00:00Z"),
            ("iothub-messageschema", b"v1"),
            ("iothub-interface-id", b"i1"),
            ("dt-subject", b"thermostat"),
            ("Content-Type", b"application/octet-stream"),
        ];
        let message = message(headers, b"body");
        assert_eq!(&*message.body, b"body");
        let expected = [
            "message-id: m1",
            "correlation-id: c1",
            "user-id: me",
            "to: /devices/dev1/messages/events",
            "content-type: application/json",
            "content-encoding: utf-8",
            "expiry: 2027-01-02T03:04:05Z",
            "component: thermostat",
            "interface: i1",
            "Room=attic",
            "!#$%&'*+-.^_`|~09=!#$%&'*+-.^_`|~09",
            "empty=",
            "latin=caf\u{e9}",
            "utf8=caf\u{e9}",
            "iothub-creation-time-utc=2027-01-01T00:00:00Z",
            "iothub-message-schema=v1",
        ];
        assert_eq!(seen(&message), expected);
        let java: &[(&str, &[u8])] = &[
            ("iothub-creation-time-utc", b"t"),
            ("iothub-expiry", b"never"),
        ];
        assert_eq!(
            seen(&super::message(java, b"")),
            ["iothub-creation-time-utc=t"]
        );
    }

    #[test]
    fn batches_are_read_as_sdks_write_them() {
        let check = |body: &str, expected: &[(&str, &[&str])]| {
            let messages = messages(body.as_bytes()).unwrap();
            let seen: Vec<_> = messages
                .iter()
                .map(|message| {
                    (
                        String::from_utf8_lossy(&message.body).into_owned(),
                        seen(message),
                    )
                })
                .collect();
            let expected: Vec<_> = expected
                .iter()
                .map(|(body, lines)| {
                    let lines = lines.iter().map(|line| (*line).to_owned()).collect();
                    ((*body).to_owned(), lines)
                })
                .collect();
            assert_eq!(seen, expected, "{body}");
        };
        check("[]", &[]);
        // Node, C, and a hand-written one.
        check(
            r#"[ {"body":"eyJ0IjoxfQ==","properties":{"iothub-app-Room":"attic","dt-subject":"c1"}},
                {"body":"plain \u00e9","base64Encoded":false,"properties":{"iothub-messageid":"m1"}},
                {"body":"eA","base64Encoded":true,"properties":null,"more":[1]},
                {"body":"","properties":{"IOTHUB-APP-n":1.5,"iothub-app-b":true,"iothub-app-\u006e2":null,
                    "own":"kept","iothub-app-":"odd","iothub-correlationid":null,"iothub-app-N":2}} ]"#,
            &[
                (r#"{"t":1}"#, &["component: c1", "Room=attic"]),
                ("plain \u{e9}", &["message-id: m1"]),
                ("x", &[]),
                ("", &["n=2", "b=true", "n2", "own=kept", "iothub-app-=odd"]),
            ],
        );
    }

    #[test]
    fn what_is_no_batch_is_refused_whole() {
        let check = |body: &str, expected: &str| {
            let error = messages(body.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{body}: {error}");
        };
        check("", "the batch cannot be read");
        check("{}", "the batch cannot be read");
        check(
            r#"[{"properties":{}}]"#,
            "the batch cannot be read: missing field `body`",
        );
        check(
            r#"[{"body":"","properties":[]}]"#,
            "the batch cannot be read",
        );
        check(
            r#"[{"body":"","properties":{"a":{}}}]"#,
            "the batch cannot be read",
        );
        check(r#"[{"body":""}] x"#, "the batch cannot be read");
        check(
            r#"[{"body":""},{"body":"n\u00f6"}]"#,
            "the body of message 1 is not base64",
        );
    }

    #[test]
    fn the_media_type_says_whether_it_is_a_batch() {
        assert!(is_batch(Some("application/vnd.microsoft.iothub.json")));
        assert!(is_batch(Some(
            "Application/vnd.Microsoft.iothub.json ; charset=utf-8"
        )));
        assert!(!is_batch(Some("application/json")));
        assert!(!is_batch(Some("")));
        assert!(!is_batch(None));
    }

    #[test]
    fn what_needs_no_decoding_is_borrowed() {
        let body = br#"[{"body":"plain","base64Encoded":false,"properties":{"iothub-app-a":"b","iothub-to":"t"}}]"#;
        let messages = messages(body).unwrap();
        let message = messages.first().unwrap();
        assert!(matches!(message.body, Cow::Borrowed(_)));
        assert!(matches!(message.system.to, Some(Cow::Borrowed(_))));
    }
}
