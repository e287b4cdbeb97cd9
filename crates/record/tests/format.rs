//! The record format: the documented examples, and what was encoded is read back.

mod documented;

use bytes::BytesMut;
use fieldpost_model::{
    AuthKind, AuthScope, AuthStamp, DeviceMessage, Properties, SystemProperties, Timestamp,
};
use fieldpost_record::{
    Envelope, Position, RecordError, RecordView, Source, encode, write_annotations,
};
use proptest::prelude::*;

use documented::{documented, hex};

const DOCUMENT: &str = include_str!("../../../docs/formats/record.md");

#[test]
fn the_examples_of_the_format_document_are_what_is_written() {
    let check = |name: &str, written: &[u8]| {
        assert_eq!(hex(written), documented(DOCUMENT, name), "example {name}");
    };
    let (envelope, message) = smallest();
    check("record-smallest", &encoded(&envelope, &message));
    let (envelope, message) = fullest();
    let record = encoded(&envelope, &message);
    check("record-full", &record);

    let mut annotations = BytesMut::new();
    let position = Position {
        sequence: 4200,
        enqueued: Timestamp::from_millis(1_798_859_045_456),
    };
    write_annotations(
        &mut annotations,
        &RecordView::parse(&record).unwrap(),
        position,
    );
    check("annotations-full", &annotations);
}

#[test]
fn a_record_of_another_version_is_refused_and_not_guessed_at() {
    let (envelope, message) = smallest();
    let mut record = encoded(&envelope, &message);
    record[0] = 2;
    let refused = RecordView::parse(&record).map(|_| ());
    assert_eq!(refused, Err(RecordError::Version { version: 2 }));
}

#[test]
fn properties_are_found_without_regard_to_case() {
    let (envelope, message) = fullest();
    let record = encoded(&envelope, &message);
    let view = RecordView::parse(&record).unwrap();
    assert_eq!(view.property("ROOM"), Some(Some("a b")));
    assert_eq!(view.property("bare"), Some(None));
    assert_eq!(view.property("absent"), None);
}

#[test]
fn an_empty_body_is_a_data_section_all_the_same() {
    let (envelope, mut message) = smallest();
    message.body = b""[..].into();
    let record = encoded(&envelope, &message);
    let view = RecordView::parse(&record).unwrap();
    assert_eq!(view.body(), Some(&b""[..]));
    assert!(view.sections().ends_with(&[0x00, 0x53, 0x75, 0xA0, 0x00]));
}

#[test]
fn encoding_grows_the_buffer_once_and_by_little_more_than_it_needs() {
    let (envelope, message) = fullest();
    let mut out = BytesMut::new();
    encode(&mut out, &envelope, &message);
    // A second growth would have doubled the buffer.
    assert!(out.capacity() < out.len() + 100, "{}", out.capacity());
}

proptest! {
    #[test]
    fn what_was_encoded_is_read_back(
        ids in (id(), prop::option::of(id()), text(), prop::option::of(text())),
        stamps in (prop::option::of(text()), prop::option::of(text()), prop::option::of(text())),
        system in (prop::option::of(text()), prop::option::of(text()), prop::option::of(text())),
        millis in any::<i64>(),
        properties in prop::collection::vec((text(), prop::option::of(text())), 0..40),
        body in prop::collection::vec(any::<u8>(), 0..400),
    ) {
        let (device_id, module_id, generation_id, model_id) = &ids;
        let envelope = Envelope {
            source: Source::Telemetry,
            accepted: Timestamp::from_millis(millis),
            auth: AuthStamp { scope: AuthScope::Hub, kind: AuthKind::X509 },
            device_id,
            module_id: module_id.as_deref(),
            generation_id,
            model_id: model_id.as_deref(),
        };
        let mut message = DeviceMessage {
            system: SystemProperties {
                message_id: system.0.as_deref().map(Into::into),
                correlation_id: system.1.as_deref().map(Into::into),
                content_encoding: system.2.as_deref().map(Into::into),
                component: stamps.0.as_deref().map(Into::into),
                interface_id: stamps.1.as_deref().map(Into::into),
                output_name: stamps.2.as_deref().map(Into::into),
                ..Default::default()
            },
            properties: Properties::default(),
            body: body.as_slice().into(),
        };
        for (name, value) in &properties {
            message.properties.set(name.as_str().into(), value.as_deref().map(Into::into));
        }
        let record = encoded(&envelope, &message);
        let view = RecordView::parse(&record).unwrap();
        prop_assert_eq!(view.envelope(), &envelope);
        prop_assert_eq!(view.component(), stamps.0.as_deref());
        prop_assert_eq!(view.interface_id(), stamps.1.as_deref());
        prop_assert_eq!(view.output_name(), stamps.2.as_deref());
        prop_assert_eq!(view.body(), Some(body.as_slice()));
        let read: Vec<_> = view.properties().collect();
        let expected: Vec<_> = message.properties.iter().collect();
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn arbitrary_and_damaged_bytes_are_read_without_panic(
        noise in prop::collection::vec(any::<u8>(), 0..100),
        at in any::<prop::sample::Index>(),
        value in any::<u8>(),
        cut in any::<prop::sample::Index>(),
    ) {
        look_everywhere(&noise);
        let (envelope, message) = fullest();
        let mut record = encoded(&envelope, &message);
        let at = at.index(record.len());
        record[at] = value;
        look_everywhere(&record);
        look_everywhere(&record[..cut.index(record.len())]);
    }
}

fn look_everywhere(bytes: &[u8]) {
    if let Ok(view) = RecordView::parse(bytes) {
        let _ = (view.property("none"), view.body(), view.sections());
        let position = Position {
            sequence: 0,
            enqueued: Timestamp::UNIX_EPOCH,
        };
        write_annotations(&mut BytesMut::new(), &view, position);
    }
}

fn smallest() -> (Envelope<'static>, DeviceMessage<'static>) {
    let envelope = Envelope {
        source: Source::Telemetry,
        accepted: Timestamp::from_millis(1_798_859_045_123),
        auth: AuthStamp {
            scope: AuthScope::Device,
            kind: AuthKind::Sas,
        },
        device_id: "dev1",
        module_id: None,
        generation_id: "638000000000000000",
        model_id: None,
    };
    let message = DeviceMessage {
        body: b"{\"t\":1}"[..].into(),
        ..Default::default()
    };
    (envelope, message)
}

fn fullest() -> (Envelope<'static>, DeviceMessage<'static>) {
    let envelope = Envelope {
        source: Source::Telemetry,
        accepted: Timestamp::from_millis(1_798_859_045_123),
        auth: AuthStamp {
            scope: AuthScope::Module,
            kind: AuthKind::X509,
        },
        device_id: "dev1",
        module_id: Some("mod1"),
        generation_id: "638000000000000000",
        model_id: Some("dtmi:example:room;1"),
    };
    let mut message = DeviceMessage {
        system: SystemProperties {
            message_id: Some("m1".into()),
            correlation_id: Some("c1".into()),
            user_id: Some(b"u1"[..].into()),
            to: None,
            content_type: Some("application/json".into()),
            content_encoding: Some("utf-8".into()),
            absolute_expiry_time: Some(Timestamp::from_millis(1_798_862_645_000)),
            component: Some("thermostat".into()),
            interface_id: Some("urn:example:1".into()),
            output_name: Some("out".into()),
        },
        properties: Properties::default(),
        body: vec![0x2A; 260].into(),
    };
    message.properties.set("room".into(), Some("a b".into()));
    message.properties.set("empty".into(), Some("".into()));
    message.properties.set("bare".into(), None);
    (envelope, message)
}

fn encoded(envelope: &Envelope<'_>, message: &DeviceMessage<'_>) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode(&mut out, envelope, message);
    out.to_vec()
}

fn id() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9._-]{1,20}"
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![4 => "\\PC{0,12}", 1 => "[a-z]{250,300}"]
}
