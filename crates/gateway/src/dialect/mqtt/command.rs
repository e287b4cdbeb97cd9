//! The topic under which a device gets a cloud-to-device message, and the property bag in it.

use std::fmt::{self, Write};

use fieldpost_model::{Ack, Identity, Timestamp};
use fieldpost_record::CommandView;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Everything but `A-Z a-z 0-9 - . _ ~` is encoded. Every SDK decodes it; of the rest each knows
/// something that it trips over: a raw `/`, `=`, `+` or `$`.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// Names of application properties that would pass for the hub's own, which some SDKs do not
/// survive: .NET ends its connection over a time or an acknowledgement that it cannot read.
const OWN_NAMES: [&str; 10] = [
    "$.mid",
    "$.to",
    "$.cid",
    "$.uid",
    "$.ct",
    "$.ce",
    "$.exp",
    "$.ctime",
    "$.schema",
    "iothub-ack",
];

/// 9999-12-31T23:59:59.999Z; the times of .NET end there.
const LAST_TIME: Timestamp = Timestamp::from_millis(253_402_300_799_999);

/// What becomes of application properties that are empty or null.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum EmptyValues {
    /// `name=` and `name`, as Azure IoT Hub documents it.
    #[default]
    Kept,
    /// They are left out: the Java SDK loses a message with either.
    LeftOut,
}

/// Appends to `out` the topic under which `identity` gets `command`:
/// `devices/{d}[/modules/{m}]/messages/devicebound/{bag}`.
///
/// The bag is one that all SDKs read alike: never empty, the hub's own keys first and in the order
/// of Azure IoT Hub, each beginning with the four characters `%24.`, times with seven fraction
/// digits.
pub(crate) fn put_topic(
    out: &mut String,
    identity: &Identity,
    empty_values: EmptyValues,
    command: &CommandView<'_>,
) {
    put_address(out, identity);
    out.push('/');
    let mut bag = Bag { out, first: true };
    bag.put_system("%24.mid", command.message_id());
    match command.to() {
        // .NET counts the topic's segments, so that there must be a bag at all.
        "" => bag.put_own_address(identity),
        to => bag.put_system("%24.to", Some(to)),
    }
    bag.put_system("%24.cid", command.correlation_id());
    let user_id = command.user_id().map(String::from_utf8_lossy);
    bag.put_system("%24.uid", user_id.as_deref());
    bag.put_system("%24.ct", command.content_type());
    bag.put_system("%24.ce", command.content_encoding());
    bag.put_time("%24.exp", Some(command.expires()));
    let created = command.creation_time().and_then(Timestamp::parse);
    bag.put_time("%24.ctime", created);
    bag.put_system("%24.schema", command.message_schema());
    if command.ack() != Ack::None {
        bag.put_system("iothub-ack", Some(command.ack().as_str()));
    }
    for (name, value) in command.properties() {
        if name.is_empty() || OWN_NAMES.contains(&name) {
            continue;
        }
        match value {
            None | Some("") if empty_values == EmptyValues::LeftOut => {}
            None => bag.put_name(name),
            Some(value) => {
                bag.put_name(name);
                bag.put_value(value);
            }
        }
    }
}

/// `devices/{d}[/modules/{m}]/messages/devicebound`. Ids are raw text, as everywhere in MQTT.
fn put_address(out: &mut impl Write, identity: &Identity) {
    // Writing to a string does not fail.
    let _ = write!(out, "devices/{}", identity.device);
    if let Some(module) = &identity.module {
        let _ = write!(out, "/modules/{module}");
    }
    let _ = out.write_str("/messages/devicebound");
}

/// A property bag that is being written.
struct Bag<'a> {
    out: &'a mut String,
    first: bool,
}

impl Bag<'_> {
    /// A property of the hub's, if it has a value. An empty one says nothing that its absence does
    /// not say, and the Java SDK loses messages over it.
    fn put_system(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            self.put_key(key);
            self.put_value(value);
        }
    }

    /// `to`, where the sender wrote none.
    fn put_own_address(&mut self, identity: &Identity) {
        self.put_key("%24.to");
        self.out.push_str("=%2F");
        put_address(&mut Encoded(self.out), identity);
    }

    /// A time in the one form that .NET reads: exactly seven fraction digits, and `Z`.
    fn put_time(&mut self, key: &str, time: Option<Timestamp>) {
        let Some(time) = time.filter(|time| (Timestamp::NEVER..=LAST_TIME).contains(time)) else {
            return;
        };
        self.put_key(key);
        self.out.push('=');
        let _ = write!(Encoded(self.out), "{time}");
        // Whole seconds are printed without a fraction.
        if time.as_millis().rem_euclid(1000) == 0 && self.out.pop().is_some() {
            self.out.push_str(".0000000Z");
        }
    }

    /// A key that needs no encoding any more.
    fn put_key(&mut self, key: &str) {
        if !std::mem::take(&mut self.first) {
            self.out.push('&');
        }
        self.out.push_str(key);
    }

    fn put_name(&mut self, name: &str) {
        self.put_key("");
        self.out.extend(utf8_percent_encode(name, ENCODED));
    }

    fn put_value(&mut self, value: &str) {
        self.out.push('=');
        self.out.extend(utf8_percent_encode(value, ENCODED));
    }
}

/// Encodes what is written to it.
struct Encoded<'a>(&'a mut String);

impl Write for Encoded<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend(utf8_percent_encode(text, ENCODED));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use bytes::BytesMut;
    use fieldpost_model::{CloudMessage, DeviceId, ModuleId};
    use fieldpost_record::{CommandEnvelope, command};
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;

    use super::*;

    /// 2027-01-02T03:04:05Z.
    const EXPIRY: Timestamp = Timestamp::from_millis(1_798_859_045_000);

    fn device(id: &str) -> Identity {
        Identity::of_device(DeviceId::new(id).unwrap())
    }

    fn topic_for(
        identity: &Identity,
        message: &CloudMessage<'_>,
        expires: Timestamp,
        empty_values: EmptyValues,
    ) -> String {
        let envelope = CommandEnvelope {
            enqueued: Timestamp::UNIX_EPOCH,
            expires,
            sender: "service",
            ack: message.ack,
        };
        let mut stored = BytesMut::new();
        command::encode(&mut stored, &envelope, message);
        let view = CommandView::parse(&stored).unwrap();
        let mut topic = "kept ".to_owned();
        put_topic(&mut topic, identity, empty_values, &view);
        topic.strip_prefix("kept ").unwrap().to_owned()
    }

    fn with_properties<'a>(
        mut message: CloudMessage<'a>,
        properties: &[(&'a str, Option<&'a str>)],
    ) -> CloudMessage<'a> {
        for (name, value) in properties {
            let value = value.map(Cow::Borrowed);
            message.properties.set((*name).into(), value);
        }
        message
    }

    /// The form that topics of Azure IoT Hub have.
    #[test]
    fn the_topic_is_the_one_that_sdks_know() {
        let message = CloudMessage {
            to: "/devices/dev1/messages/deviceBound".into(),
            message_id: Some("m7".into()),
            content_type: Some("application/json".into()),
            ack: Ack::Full,
            ..CloudMessage::default()
        };
        let message = with_properties(message, &[("color", Some("deep blue"))]);
        assert_eq!(
            topic_for(&device("dev1"), &message, EXPIRY, EmptyValues::Kept),
            "devices/dev1/messages/devicebound/%24.mid=m7\
             &%24.to=%2Fdevices%2Fdev1%2Fmessages%2FdeviceBound\
             &%24.ct=application%2Fjson&%24.exp=2027-01-02T03%3A04%3A05.0000000Z\
             &iothub-ack=full&color=deep%20blue"
        );
    }

    #[test]
    fn bags_hold_what_the_message_holds_in_one_order() {
        let check = |message: CloudMessage<'_>, empty_values: EmptyValues, expected: &str| {
            let topic = topic_for(&device("d"), &message, EXPIRY, empty_values);
            let bag = topic
                .strip_prefix("devices/d/messages/devicebound/")
                .unwrap();
            let exp = "&%24.exp=2027-01-02T03%3A04%3A05.0000000Z";
            assert_eq!(bag.replace(exp, "&E"), expected);
        };
        let to = CloudMessage {
            to: "/x".into(),
            ..CloudMessage::default()
        };
        let (kept, left_out) = (EmptyValues::Kept, EmptyValues::LeftOut);
        check(to.clone(), kept, "%24.to=%2Fx&E");
        // Without a target of the sender's there is still a first key.
        let own = "%24.to=%2Fdevices%2Fd%2Fmessages%2Fdevicebound&E";
        check(CloudMessage::default(), kept, own);
        let everything = CloudMessage {
            message_id: Some("m 1".into()),
            correlation_id: Some("c+=&".into()),
            user_id: Some("\u{e9}~".as_bytes().into()),
            content_type: Some("text/plain; charset=utf-8".into()),
            content_encoding: Some("utf-8".into()),
            creation_time: Some("2027-01-02T04:04:05.5+01:00".into()),
            message_schema: Some("s$1".into()),
            ack: Ack::Positive,
            ..to.clone()
        };
        check(
            with_properties(everything, &[("a/b", Some("c/d")), ("A-._~", Some("+"))]),
            kept,
            "%24.mid=m%201&%24.to=%2Fx&%24.cid=c%2B%3D%26&%24.uid=%C3%A9~\
             &%24.ct=text%2Fplain%3B%20charset%3Dutf-8&%24.ce=utf-8&E\
             &%24.ctime=2027-01-02T03%3A04%3A05.5000000Z&%24.schema=s%241\
             &iothub-ack=positive&a%2Fb=c%2Fd&A-._~=%2B",
        );
        // Null, empty and set are three things; one SDK takes only the last.
        let three = [("null", None), ("empty", Some("")), ("set", Some("x"))];
        check(
            with_properties(to.clone(), &three),
            kept,
            "%24.to=%2Fx&E&null&empty=&set=x",
        );
        check(
            with_properties(to.clone(), &three),
            left_out,
            "%24.to=%2Fx&E&set=x",
        );
        // What the hub says itself is not said by others.
        let posing = [
            ("$.exp", Some("soon")),
            ("$.ctime", Some("x")),
            ("iothub-ack", Some("maybe")),
            ("$.mine", Some("x")),
        ];
        check(
            with_properties(to.clone(), &posing),
            kept,
            "%24.to=%2Fx&E&%24.mine=x",
        );
        // Empty and unreadable system properties are none.
        let hollow = CloudMessage {
            message_id: Some("".into()),
            content_type: Some("".into()),
            user_id: Some(b""[..].into()),
            creation_time: Some("yesterday".into()),
            ..to.clone()
        };
        check(hollow, kept, "%24.to=%2Fx&E");
        let odd = CloudMessage {
            creation_time: Some("-000001-01-01T00:00:00Z".into()),
            user_id: Some(b"a\xff"[..].into()),
            ..to
        };
        check(odd, kept, "%24.to=%2Fx&%24.uid=a%EF%BF%BD&E");
    }

    #[test]
    fn modules_have_topics_of_their_own() {
        let identity = Identity {
            device: DeviceId::new("d#+").unwrap(),
            module: Some(ModuleId::new("m").unwrap()),
        };
        let expires = Timestamp::from_millis(1_798_859_045_120);
        let nothing = CloudMessage::default();
        assert_eq!(
            topic_for(&identity, &nothing, expires, EmptyValues::Kept),
            "devices/d#+/modules/m/messages/devicebound/\
             %24.to=%2Fdevices%2Fd%23%2B%2Fmodules%2Fm%2Fmessages%2Fdevicebound\
             &%24.exp=2027-01-02T03%3A04%3A05.1200000Z"
        );
    }

    /// What an SDK hands to its application, in the order of the bag, as its source does it;
    /// `None` when it loses the message.
    type Parsed = Option<Vec<(String, String)>>;

    fn unquote(text: &str) -> String {
        percent_decode_str(text).decode_utf8().unwrap().into_owned()
    }

    /// Takes segment 4; cuts a value off at a second `=`; has no use for `to`.
    fn python(topic: &str) -> Parsed {
        let bag = topic.split('/').nth(4)?;
        let pair = |piece: &str| {
            let mut sides = piece.split('=').map(unquote);
            let name = sides.next().unwrap_or_default();
            (name, sides.next().unwrap_or_default())
        };
        let pairs = bag.split('&').map(pair);
        Some(pairs.filter(|(name, _)| name != "$.to").collect())
    }

    /// Takes everything behind the fixed text; a bare name is "undefined".
    fn node(topic: &str) -> Parsed {
        let (_, bag) = topic.split_once("/messages/devicebound/")?;
        let pair = |piece: &str| {
            let mut sides = piece.split('=').map(unquote);
            let name = sides.next().unwrap_or_default();
            (name, sides.next().unwrap_or("undefined".to_owned()))
        };
        Some(bag.split('&').map(pair).collect())
    }

    /// Compares keys as encoded text, decodes only the values of its own, skips what is empty.
    fn c(topic: &str) -> Parsed {
        let (_, bag) = topic.split_once("/messages/devicebound/")?;
        let pair = |piece: &str| {
            let (name, value) = piece
                .split_once('=')
                .filter(|(_, value)| !value.is_empty())?;
            match name {
                "%24.to" | "%24.exp" | "iothub-ack" => None,
                "%24.mid" | "%24.cid" | "%24.uid" | "%24.ct" | "%24.ce" => {
                    Some((unquote(name), unquote(value)))
                }
                _ => Some((name.to_owned(), value.to_owned())),
            }
        };
        Some(bag.split('&').filter_map(pair).collect())
    }

    /// Looks for the first `%24`; every piece must have two sides that are not empty; a raw plus
    /// is a space.
    fn java(topic: &str) -> Parsed {
        let bag = topic.get(topic.find("%24")?..)?;
        let decoded = |text: &str| unquote(&text.replace('+', " "));
        let pair = |piece: &str| match piece.split('=').collect::<Vec<_>>()[..] {
            [name, value] if !value.is_empty() => Some((decoded(name), decoded(value))),
            _ => None,
        };
        bag.split('&').map(pair).collect()
    }

    /// Takes segment 4; a second raw `=` is an error; times have seven fraction digits;
    /// acknowledgements are one of four words.
    fn dotnet(topic: &str) -> Parsed {
        let bag = topic.split('/').nth(4).filter(|bag| !bag.is_empty())?;
        let pair = |piece: &str| {
            let mut sides = piece.split('=').map(unquote);
            let name = sides.next()?;
            let value = sides.next().unwrap_or_default();
            let readable = match name.as_str() {
                "$.exp" | "$.ctime" => {
                    let fraction = value.split_once('.').map(|(_, fraction)| fraction);
                    fraction.is_some_and(|fraction| fraction.len() == 8 && fraction.ends_with('Z'))
                }
                "iothub-ack" => Ack::ALL.iter().any(|ack| ack.as_str() == value),
                _ => true,
            };
            (readable && sides.next().is_none()).then_some((name, value))
        };
        bag.split('&').map(pair).collect()
    }

    #[test]
    fn every_sdk_reads_the_bag() {
        let message = CloudMessage {
            to: "/devices/d/messages/deviceBound".into(),
            message_id: Some("id 1".into()),
            content_type: Some("application/json".into()),
            user_id: Some("\u{fc}ser".as_bytes().into()),
            ack: Ack::Negative,
            ..CloudMessage::default()
        };
        let properties = [
            ("k 1", Some("v&=+/\u{e9}")),
            ("a%b", Some("$")),
            ("null", None),
            ("empty", Some("")),
        ];
        let message = with_properties(message, &properties);
        let check = |sdk: &str,
                     read: fn(&str) -> Parsed,
                     empty_values: EmptyValues,
                     expected: &[&[(&str, &str)]]| {
            let topic = topic_for(&device("d"), &message, EXPIRY, empty_values);
            let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            let expected = expected.concat().iter().map(owned).collect();
            assert_eq!(read(&topic), Some(expected), "{sdk} {topic}");
        };
        let kept = EmptyValues::Kept;
        let mid = [("$.mid", "id 1")];
        let to = [("$.to", "/devices/d/messages/deviceBound")];
        let uid_ct = [("$.uid", "\u{fc}ser"), ("$.ct", "application/json")];
        let exp = [("$.exp", "2027-01-02T03:04:05.0000000Z")];
        let ack = [("iothub-ack", "negative")];
        let own = [("k 1", "v&=+/\u{e9}"), ("a%b", "$")];
        let raw = [("k%201", "v%26%3D%2B%2F%C3%A9"), ("a%25b", "%24")];
        let hollow = [("null", ""), ("empty", "")];
        let of_node = [("null", "undefined"), ("empty", "")];
        let (mid, to, uid_ct, exp, ack): (&[_], &[_], &[_], &[_], &[_]) =
            (&mid, &to, &uid_ct, &exp, &ack);
        let expected: &[&[_]] = &[mid, uid_ct, exp, ack, &own, &hollow];
        check("Python", python, kept, expected);
        let expected: &[&[_]] = &[mid, to, uid_ct, exp, ack, &own, &of_node];
        check("Node", node, kept, expected);
        check("C", c, kept, &[mid, uid_ct, &raw]);
        let expected: &[&[_]] = &[mid, to, uid_ct, exp, ack, &own, &hollow];
        check(".NET", dotnet, kept, expected);
        let expected: &[&[_]] = &[mid, to, uid_ct, exp, ack, &own];
        check("Java", java, EmptyValues::LeftOut, expected);
        // This is what the Java SDK is spared.
        let topic = topic_for(&device("d"), &message, EXPIRY, kept);
        assert_eq!(java(&topic), None);
    }

    proptest! {
        /// Whatever the message holds, the bag is not empty, holds no raw character that an SDK
        /// trips over, and gives everything back.
        #[test]
        fn no_text_breaks_the_bag(
            message_id in prop::option::of("\\PC{0,12}"),
            to in "\\PC{0,12}",
            properties in prop::collection::vec(("\\PC{1,6}", prop::option::of("\\PC{0,6}")), 0..5),
            millis in 0..4_000_000_000_000_i64,
        ) {
            let mut message = CloudMessage {
                to: to.clone().into(),
                message_id: message_id.clone().map(Cow::Owned),
                ..CloudMessage::default()
            };
            for (at, (name, value)) in properties.iter().enumerate() {
                // Names apart from each other and from the hub's own.
                let value = value.clone().map(Cow::Owned);
                message.properties.set(format!("{at}{name}").into(), value);
            }
            let expires = Timestamp::from_millis(millis);
            let topic = topic_for(&device("d"), &message, expires, EmptyValues::Kept);
            let bag = topic.strip_prefix("devices/d/messages/devicebound/").unwrap();
            prop_assert!(bag.starts_with("%24."));
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%&=".contains(&byte);
            prop_assert!(bag.bytes().all(plain), "{}", bag);
            let read = dotnet(&topic).unwrap();
            let value_of = |name: &str| {
                read.iter().find(|(of, _)| of == name).map(|(_, value)| value.clone())
            };
            prop_assert_eq!(value_of("$.mid"), message_id.filter(|id| !id.is_empty()));
            if !to.is_empty() {
                prop_assert_eq!(value_of("$.to"), Some(to));
            }
            let read_expiry = value_of("$.exp").and_then(|text| Timestamp::parse(&text));
            prop_assert_eq!(read_expiry, Some(expires));
            for (name, value) in message.properties.iter() {
                let expected = value.unwrap_or_default().to_owned();
                prop_assert_eq!(value_of(name), Some(expected));
            }
        }
    }
}
