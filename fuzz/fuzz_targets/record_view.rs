//! Stored records: no bytes panic, and whatever is read gives annotations that clients can read.
#![no_main]

use bytes::BytesMut;
use fieldpost_amqp::message::Message;
use fieldpost_model::Timestamp;
use fieldpost_record::{Position, RecordView, write_annotations};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|record: &[u8]| {
    let Ok(view) = RecordView::parse(record) else {
        return;
    };
    assert!(record.ends_with(view.sections()));
    for (name, _) in view.properties() {
        // Of names that differ only in case a writer writes one; whoever writes more gets the first.
        assert!(view.property(name).is_some());
    }
    if let Some(body) = view.body() {
        assert!(body.len() <= view.sections().len());
    }
    let stamps = [view.component(), view.interface_id(), view.output_name()];
    let mut annotations = BytesMut::new();
    let position = Position {
        sequence: u64::MAX,
        enqueued: Timestamp::from_millis(i64::MIN),
    };
    write_annotations(&mut annotations, &view, position);
    let written = Message::parse(&annotations).expect("what we write is valid");
    let written = written.message_annotations.expect("that is what we wrote");
    let text = |name: &str| {
        let value = written.get(name).expect("what we write is valid");
        value.and_then(|value| value.as_str())
    };
    let envelope = view.envelope();
    assert_eq!(
        text("iothub-connection-device-id"),
        Some(envelope.device_id)
    );
    assert_eq!(text("iothub-connection-module-id"), envelope.module_id);
    assert_eq!(
        [text("dt-subject"), text("iothub-interface-id")],
        stamps[..2]
    );
});
