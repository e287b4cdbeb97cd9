//! The property bag in a topic, and the message it makes together with the payload.

use std::borrow::Cow;

use fieldpost_model::{DeviceMessage, Timestamp};

use super::percent_decoded;

/// What the MQTT packet says of a message besides topic and payload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// The sender is a module.
    pub(crate) from_module: bool,
    /// The RETAIN flag was set. Nothing is retained; consumers see two properties instead.
    pub(crate) retain: bool,
    /// It is the will of a connection that has ended.
    pub(crate) will: bool,
}

/// The message that a payload and the bag in its topic make.
///
/// Total: what does not decode is kept as it is, and what has no meaning is an application
/// property. Borrows wherever nothing was encoded.
pub(crate) fn decode<'a>(bag: &'a str, payload: &'a [u8], marks: Marks) -> DeviceMessage<'a> {
    let mut message = DeviceMessage {
        body: Cow::Borrowed(payload),
        ..DeviceMessage::default()
    };
    let mut bag = bag.strip_prefix('?').unwrap_or(bag);
    if marks.from_module {
        // The Java SDK ends all topics of modules so, Node those of named outputs.
        bag = bag.strip_suffix('/').unwrap_or(bag);
    }
    for piece in bag.split('&') {
        // Only the first `=` separates: the C SDK encodes none in its values.
        let (name, value) = match piece.split_once('=') {
            Some((name, value)) => (name, Some(percent_decoded(value))),
            None => (piece, None),
        };
        if !name.is_empty() {
            set(&mut message, name, value);
        }
    }
    if marks.retain {
        for name in ["mqtt-retain", "x-opt-retain"] {
            message.properties.set(name.into(), Some("true".into()));
        }
    }
    if marks.will {
        message
            .properties
            .set("iothub-MessageType".into(), Some("Will".into()));
    }
    message
}

/// A value that may be null.
type Value<'a> = Option<Cow<'a, str>>;

fn set<'a>(message: &mut DeviceMessage<'a>, encoded_name: &'a str, mut value: Value<'a>) {
    if let Some(key) = plain_system_key(encoded_name) {
        match set_system(message, key, value) {
            Ok(()) => return,
            Err(back) => value = back,
        }
    }
    let name = percent_decoded(encoded_name);
    if let Some(key) = name.strip_prefix("$.") {
        match set_system(message, key, value) {
            Ok(()) => return,
            Err(back) => value = back,
        }
    }
    // What an acknowledgement of a message to the hub would be, nobody has said.
    if !name.eq_ignore_ascii_case("iothub-ack") {
        message.properties.set(name, value);
    }
}

/// The key of a system property in one of the two spellings that SDKs use. To decode such a name
/// would cost an allocation for each system property of each message.
fn plain_system_key(name: &str) -> Option<&str> {
    let key = name
        .strip_prefix("%24.")
        .or_else(|| name.strip_prefix("$."))?;
    (!key.contains('%')).then_some(key)
}

/// Sets the system property of that key; gives the value back when there is none.
fn set_system<'a>(
    message: &mut DeviceMessage<'a>,
    key: &str,
    value: Value<'a>,
) -> Result<(), Value<'a>> {
    let system = &mut message.system;
    match key {
        "mid" => system.message_id = value,
        "cid" => system.correlation_id = value,
        "uid" => system.user_id = value.map(into_bytes),
        "to" => system.to = value,
        "ct" => system.content_type = value,
        "ce" => system.content_encoding = value,
        // A message is never refused for an expiry that cannot be read.
        "exp" => system.absolute_expiry_time = value.as_deref().and_then(Timestamp::parse),
        "on" => system.output_name = value,
        "sub" => system.component = value,
        "ifid" => system.interface_id = value,
        // Consumers find these two among the application properties.
        "ctime" => message
            .properties
            .set("iothub-creation-time-utc".into(), value),
        "schema" => message
            .properties
            .set("iothub-message-schema".into(), value),
        // Whom the connection speaks for is known; what the client says of it is not believed.
        "cdid" | "cmid" => {}
        _ => return Err(value),
    }
    Ok(())
}

fn into_bytes(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    use proptest::prelude::*;

    use super::*;

    const DEVICE: Marks = Marks {
        from_module: false,
        retain: false,
        will: false,
    };
    const MODULE: Marks = Marks {
        from_module: true,
        ..DEVICE
    };

    /// Every property as a line, system ones first.
    fn seen(message: &DeviceMessage<'_>) -> Vec<String> {
        let system = &message.system;
        let user_id = system.user_id.as_deref();
        let user_id = user_id.map(|id| String::from_utf8_lossy(id).into_owned());
        let texts = [
            ("message-id", system.message_id.as_deref()),
            ("correlation-id", system.correlation_id.as_deref()),
            ("user-id", user_id.as_deref()),
            ("to", system.to.as_deref()),
            ("content-type", system.content_type.as_deref()),
            ("content-encoding", system.content_encoding.as_deref()),
            ("component", system.component.as_deref()),
            ("interface", system.interface_id.as_deref()),
            ("output", system.output_name.as_deref()),
        ];
        let mut lines: Vec<String> = texts
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name}: {}", value?)))
            .collect();
        if let Some(expiry) = system.absolute_expiry_time {
            lines.push(format!("expiry: {expiry}"));
        }
        lines.extend(message.properties.iter().map(|(name, value)| match value {
            Some(value) => format!("{name}={value}"),
            None => name.to_owned(),
        }));
        lines
    }

    fn seen_properties(
        properties: &fieldpost_model::Properties<'_>,
    ) -> Vec<(String, Option<String>)> {
        let owned =
            |(name, value): (&str, Option<&str>)| (name.to_owned(), value.map(str::to_owned));
        properties.iter().map(owned).collect()
    }

    #[test]
    fn bags_are_read_as_sdks_write_them() {
        let check = |bag: &str, marks: Marks, expected: &[&str]| {
            let message = decode(bag, b"body", marks);
            assert_eq!(seen(&message), expected, "{bag}");
            assert_eq!(&*message.body, b"body");
        };
        // Python.
        check(
            "%24.mid=id%201&%24.ct=application%2Fjson%3Bcharset%3Dutf-8&empty=&k%201=v%26%3D%2B%2F%C3%A9",
            DEVICE,
            &[
                "message-id: id 1",
                "content-type: application/json;charset=utf-8",
                "empty=",
                "k 1=v&=+/\u{e9}",
            ],
        );
        check(
            "%24.exp=2027-01-02T03%3A04%3A05",
            DEVICE,
            &["expiry: 2027-01-02T03:04:05Z"],
        );
        // Node.
        check(
            "%24.mid=id%201&k%201=v%26%3D%2B%2F%C3%A9&%24.sub=comp",
            DEVICE,
            &["message-id: id 1", "component: comp", "k 1=v&=+/\u{e9}"],
        );
        // C: nothing is encoded, application properties first.
        check(
            "k=a/b&%24.mid=m1&%24.ct=application/json",
            DEVICE,
            &["message-id: m1", "content-type: application/json", "k=a/b"],
        );
        check(
            "rate=100%&x=50%zz&y=%ff&z=a=b+c",
            DEVICE,
            &["rate=100%", "x=50%zz", "y=%ff", "z=a=b+c"],
        );
        check(
            "$.ifid=urn%3aazureiot%3aSecurity%3aSecurityAgent%3a1&$.ctime=2026-01-01T00:00:00Z",
            DEVICE,
            &[
                "interface: urn:azureiot:Security:SecurityAgent:1",
                "iothub-creation-time-utc=2026-01-01T00:00:00Z",
            ],
        );
        // Java module, and the same from a device, whose slash is its own.
        check(
            "$.mid=m1&$.ct=text%2Fplain&k=v/",
            MODULE,
            &["message-id: m1", "content-type: text/plain", "k=v"],
        );
        check("k=v/", DEVICE, &["k=v/"]);
        check("%24.on=out1/", MODULE, &["output: out1"]);
        // .NET.
        check(
            "%24.uid=u&%24.cid=c&%24.to=%2Fx&%24.ce=utf-8&%24.schema=s&%24.cdid=evil&%24.cmid=evil",
            DEVICE,
            &[
                "correlation-id: c",
                "user-id: u",
                "to: /x",
                "content-encoding: utf-8",
                "iothub-message-schema=s",
            ],
        );
        // Edges.
        check("", DEVICE, &[]);
        check("?", DEVICE, &[]);
        check("/", MODULE, &[]);
        check("?a=1", DEVICE, &["a=1"]);
        check("&&=x&a&b=", DEVICE, &["a", "b="]);
        check("a=1&A=2", DEVICE, &["a=2"]);
        check("$.mid=1&$.mid=2", DEVICE, &["message-id: 2"]);
        check("$.mid=1&$.mid", DEVICE, &[]);
        check("$.exp=soon&a=1", DEVICE, &["a=1"]);
        check("iothub-ack=full&a=1", DEVICE, &["a=1"]);
        check("$.new=1&%24.diagid=ab", DEVICE, &["$.new=1", "$.diagid=ab"]);
        check(
            "%24%2Emid=1&%24.%63t=t",
            DEVICE,
            &["message-id: 1", "content-type: t"],
        );
    }

    #[test]
    fn retained_messages_and_wills_are_marked() {
        let marks = Marks {
            retain: true,
            ..DEVICE
        };
        let message = decode("mqtt-retain=no", b"", marks);
        assert_eq!(seen(&message), ["mqtt-retain=true", "x-opt-retain=true"]);
        let marks = Marks {
            will: true,
            ..DEVICE
        };
        let message = decode("a=1", b"", marks);
        assert_eq!(seen(&message), ["a=1", "iothub-MessageType=Will"]);
    }

    #[test]
    fn what_is_not_encoded_is_not_copied() {
        let message = decode("$.mid=m1&room=attic", b"{}", DEVICE);
        assert!(matches!(
            message.system.message_id,
            Some(Cow::Borrowed("m1"))
        ));
        assert!(matches!(message.body, Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_read_back(
            pairs in prop::collection::vec(("\\PC{1,8}", prop::option::of("\\PC{0,8}")), 0..6),
        ) {
            let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
            let mut expected = fieldpost_model::Properties::default();
            let mut pieces = Vec::new();
            for (at, (name, value)) in pairs.iter().enumerate() {
                // The prefix keeps names apart from each other and from the hub's own.
                let name = format!("p{at}{name}");
                pieces.push(match value {
                    Some(value) => format!("{}={}", encode(&name), encode(value)),
                    None => encode(&name),
                });
                expected.set(name.into(), value.as_deref().map(|value| value.to_owned().into()));
            }
            let bag = pieces.join("&");
            let message = decode(&bag, b"", DEVICE);
            prop_assert_eq!(seen_properties(&message.properties), seen_properties(&expected));
        }

        #[test]
        fn no_bag_panics(bag in "[$.a%2F=&?/+mé]{0,60}", from_module: bool, retain: bool, will: bool) {
            let message = decode(&bag, b"", Marks { from_module, retain, will });
            prop_assert!(message.metered_size() <= bag.len() * 2 + 100);
        }
    }
}
