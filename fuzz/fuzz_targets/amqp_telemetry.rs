//! Telemetry of devices over AMQP: no bytes panic, and what is taken is stored and read again unchanged.
//!
//! Input: a byte whose lowest bit says that a batch follows, then the payload of a transfer.
#![no_main]

use bytes::BytesMut;
use fieldpost_fuzz::NOW;
use fieldpost_gateway::fuzzing::amqp_telemetry;
use fieldpost_model::{AuthKind, AuthScope, AuthStamp};
use fieldpost_record::{Envelope, RecordView, Source, encode};
use libfuzzer_sys::fuzz_target;

const BATCH_FORMAT: u32 = 0x8001_3700;

fuzz_target!(|input: &[u8]| {
    let Some((&options, payload)) = input.split_first() else {
        return;
    };
    let message_format = if options & 1 == 0 { 0 } else { BATCH_FORMAT };
    let Some(messages) = amqp_telemetry(message_format, payload) else {
        return;
    };
    assert!(message_format == BATCH_FORMAT || messages.len() == 1);
    let envelope = Envelope {
        source: Source::Telemetry,
        accepted: NOW,
        auth: AuthStamp {
            scope: AuthScope::Device,
            kind: AuthKind::Sas,
        },
        device_id: "dev1",
        module_id: None,
        generation_id: "1",
        model_id: None,
    };
    for message in messages {
        let named = |(name, _): (&str, Option<&str>)| name.eq_ignore_ascii_case("iothub-ack");
        assert!(!message.properties.iter().any(named));
        let mut stored = BytesMut::new();
        encode(&mut stored, &envelope, &message);
        let view = RecordView::parse(&stored).expect("what we write is valid");
        assert_eq!(view.body().unwrap_or_default(), &*message.body);
    }
});
