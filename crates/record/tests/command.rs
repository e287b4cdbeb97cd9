//! The stored form of cloud-to-device messages: every field comes back, and the bytes are those of the
//! format document.

mod documented;

use bytes::BytesMut;
use fieldpost_model::{Ack, CloudMessage, Timestamp};
use fieldpost_record::RecordError;
use fieldpost_record::command::{CommandEnvelope, CommandView, encode};
use proptest::prelude::*;

use documented::{documented, hex};

const DOCUMENT: &str = include_str!("../../../docs/formats/command.md");

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
fn the_examples_of_the_format_document_are_what_is_written() {
    let check = |name: &str, (envelope, message): (CommandEnvelope<'_>, CloudMessage<'_>)| {
        let written = hex(&stored(&envelope, &message));
        assert_eq!(written, documented(DOCUMENT, name), "example {name}");
    };
    check("command-smallest", smallest());
    check("command-full", fullest());
}

#[test]
fn the_senders_own_expiry_and_acknowledgement_do_not_count() {
    let (envelope, message) = smallest();
    let mut other = message.clone();
    other.expires = Some(Timestamp::from_millis(7));
    other.ack = Ack::Full;
    assert_eq!(stored(&envelope, &message), stored(&envelope, &other));
}

#[test]
fn encoding_grows_the_buffer_once_and_by_little_more_than_it_needs() {
    let (envelope, message) = fullest();
    let out = stored(&envelope, &message);
    // A second growth would have doubled the buffer.
    assert!(out.capacity() < out.len() + 100, "{}", out.capacity());
}

#[test]
fn what_no_writer_writes_is_refused_by_its_part() {
    let (envelope, message) = smallest();
    let written = stored(&envelope, &message).to_vec();
    let check = |change: &dyn Fn(&mut Vec<u8>), expected: RecordError| {
        let mut bytes = written.clone();
        change(&mut bytes);
        let refused = CommandView::parse(&bytes).map(|_| ());
        assert_eq!(refused, Err(expected), "{bytes:x?}");
    };
    let malformed = |part| RecordError::Malformed { part };
    check(&|b| b[0] = 2, RecordError::Version { version: 2 });
    check(&Vec::clear, RecordError::Truncated);
    check(&|b| b.truncate(21), RecordError::Truncated);
    check(&|b| b[1] = 4, malformed("acknowledgement"));
    // The fields' length is beyond the end.
    check(&|b| b[21] = 0xFF, RecordError::Truncated);
    check(&|b| b[22] = 9, malformed("field tag"));
    check(&|b| b[22] = 0, malformed("field order"));
    check(&|b| b[22] = 2, malformed("sender"));
    check(&|b| b[24] = 0xFF, malformed("field text"));
    // Nothing follows the envelope, or something else than sections.
    check(&|b| b.truncate(31), malformed("properties section"));
    check(&|b| b[31] = 1, malformed("properties section"));
}

/// To `dev1`, with nothing set.
fn smallest() -> (CommandEnvelope<'static>, CloudMessage<'static>) {
    let envelope = CommandEnvelope {
        enqueued: Timestamp::from_millis(1_798_859_045_123),
        expires: Timestamp::from_millis(1_798_862_645_123),
        sender: "service",
        ack: Ack::None,
    };
    let message = CloudMessage {
        to: "/devices/dev1/messages/devicebound".into(),
        body: b"go"[..].into(),
        ..CloudMessage::default()
    };
    (envelope, message)
}

/// The same with everything set.
fn fullest() -> (CommandEnvelope<'static>, CloudMessage<'static>) {
    let (envelope, message) = smallest();
    let envelope = CommandEnvelope {
        sender: "iothubowner",
        ack: Ack::Full,
        ..envelope
    };
    let mut message = CloudMessage {
        message_id: Some("m1".into()),
        correlation_id: Some("c1".into()),
        user_id: Some(b"u1"[..].into()),
        content_type: Some("text/plain".into()),
        content_encoding: Some("utf-8".into()),
        creation_time: Some("2027-01-02T03:04:05Z".into()),
        message_schema: Some("s1".into()),
        body: vec![0x2A; 260].into(),
        ..message
    };
    message.properties.set("room".into(), Some("a b".into()));
    message.properties.set("empty".into(), Some("".into()));
    message.properties.set("bare".into(), None);
    (envelope, message)
}
