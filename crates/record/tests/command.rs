//! The stored form of cloud-to-device messages: every field comes back, and the bytes are pinned.

use bytes::BytesMut;
use fieldpost_model::{Ack, CloudMessage, Timestamp};
use fieldpost_record::RecordError;
use fieldpost_record::command::{CommandEnvelope, CommandView, encode};
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    proptest::collection::vec(any::<char>(), 0..40).prop_map(|chars| chars.into_iter().collect())
}

fn message() -> impl Strategy<Value = CloudMessage<'static>> {
    let optional = || proptest::option::of(text());
    (
        (text(), optional(), optional(), optional(), optional()),
        (
            optional(),
            optional(),
            proptest::option::of(any::<Vec<u8>>()),
        ),
        proptest::collection::vec((text(), optional()), 0..6),
        proptest::collection::vec(any::<u8>(), 0..400),
    )
        .prop_map(|(texts, more, properties, body)| {
            let (to, message_id, correlation_id, content_type, content_encoding) = texts;
            let (creation_time, message_schema, user_id) = more;
            let mut message = CloudMessage {
                to: to.into(),
                message_id: message_id.map(Into::into),
                correlation_id: correlation_id.map(Into::into),
                user_id: user_id.map(Into::into),
                content_type: content_type.map(Into::into),
                content_encoding: content_encoding.map(Into::into),
                creation_time: creation_time.map(Into::into),
                message_schema: message_schema.map(Into::into),
                body: body.into(),
                ..CloudMessage::default()
            };
            for (name, value) in properties {
                message.properties.set(name.into(), value.map(Into::into));
            }
            message
        })
}

fn stored(envelope: &CommandEnvelope<'_>, message: &CloudMessage<'_>) -> BytesMut {
    let mut out = BytesMut::new();
    encode(&mut out, envelope, message);
    out
}

proptest! {
    #[test]
    fn everything_that_goes_in_comes_out(
        message in message(),
        enqueued in any::<i64>(),
        expires in any::<i64>(),
        ack in proptest::sample::select(Ack::ALL.to_vec()),
        sender in text(),
    ) {
        let envelope = CommandEnvelope {
            enqueued: Timestamp::from_millis(enqueued),
            expires: Timestamp::from_millis(expires),
            sender: &sender,
            ack,
        };
        let bytes = stored(&envelope, &message);
        let view = CommandView::parse(&bytes).unwrap();
        prop_assert_eq!(view.enqueued(), envelope.enqueued);
        prop_assert_eq!(view.expires(), envelope.expires);
        prop_assert_eq!(view.sender(), sender.as_str());
        prop_assert_eq!(view.ack(), ack);
        prop_assert_eq!(view.to(), &*message.to);
        prop_assert_eq!(view.message_id(), message.message_id.as_deref());
        prop_assert_eq!(view.correlation_id(), message.correlation_id.as_deref());
        prop_assert_eq!(view.user_id(), message.user_id.as_deref());
        prop_assert_eq!(view.content_type(), message.content_type.as_deref());
        prop_assert_eq!(view.content_encoding(), message.content_encoding.as_deref());
        prop_assert_eq!(view.creation_time(), message.creation_time.as_deref());
        prop_assert_eq!(view.message_schema(), message.message_schema.as_deref());
        prop_assert_eq!(view.body(), Some(&*message.body));
        let properties: Vec<_> = view.properties().collect();
        let expected: Vec<_> = message.properties.iter().collect();
        prop_assert_eq!(properties, expected);
    }

    #[test]
    fn whatever_is_cut_off_or_changed_is_read_without_harm(
        message in message(),
        cut in any::<prop::sample::Index>(),
        flip in any::<prop::sample::Index>(),
        bit in 0..8u32,
    ) {
        let envelope = CommandEnvelope {
            enqueued: Timestamp::UNIX_EPOCH,
            expires: Timestamp::UNIX_EPOCH,
            sender: "service",
            ack: Ack::None,
        };
        let mut bytes = stored(&envelope, &message);
        let at = flip.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let rest = &bytes[..=cut.index(bytes.len())];
        if let Ok(view) = CommandView::parse(rest) {
            // What is readable is read to its end.
            view.properties().for_each(drop);
            let _ = view.body();
        }
    }

    #[test]
    fn arbitrary_bytes_are_read_without_harm(bytes in any::<Vec<u8>>()) {
        let _ = CommandView::parse(&bytes);
    }
}

#[test]
fn the_bytes_are_those_of_the_format() {
    let mut message = CloudMessage {
        to: "/devices/d/messages/devicebound".into(),
        message_id: Some("m7".into()),
        creation_time: Some("t".into()),
        body: b"hello"[..].into(),
        ..CloudMessage::default()
    };
    message.properties.set("color".into(), Some("blue".into()));
    let envelope = CommandEnvelope {
        enqueued: Timestamp::from_millis(1),
        expires: Timestamp::from_millis(2),
        sender: "svc",
        ack: Ack::Full,
    };
    let bytes = stored(&envelope, &message);
    let fixed: &[u8] = &[
        1, 3, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0,
    ];
    let fields: &[u8] = b"\x01\x03svc\x02\x01t";
    let properties: &[u8] =
        b"\x00\x53\x73\xc0\x35\x09\xa1\x02m7\x40\xa1\x1f/devices/d/messages/devicebound\
        \x40\x40\x40\x40\x40\x83\x00\x00\x00\x00\x00\x00\x00\x02";
    let application: &[u8] = b"\x00\x53\x74\xc1\x0e\x02\xa1\x05color\xa1\x04blue";
    let body: &[u8] = b"\x00\x53\x75\xa0\x05hello";
    assert_eq!(
        bytes,
        [fixed, fields, properties, application, body].concat()
    );
    assert_eq!(
        CommandView::parse(&[9; 40]).unwrap_err(),
        RecordError::Version { version: 9 }
    );
    assert_eq!(
        CommandView::parse(&bytes[..10]).unwrap_err(),
        RecordError::Truncated
    );
}
