//! Messages: no input panics, however its sections are read.
#![no_main]

use bytes::BytesMut;
use fieldpost_amqp::message::{Body, Message, Sections, put_properties};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let sections = Sections::new(input).count();
    let Ok(message) = Message::parse(input) else {
        return;
    };
    assert!(message.data().count() <= sections);
    for inner in message.data() {
        // A batch holds messages.
        let _ = Message::parse(inner);
    }
    let maps = [
        message.delivery_annotations,
        message.message_annotations,
        message.application_properties,
        message.footer,
    ];
    for map in maps.into_iter().flatten() {
        let _ = map.get("key");
        let _ = map.to_map();
        for entry in map.iter() {
            let _ = entry;
        }
    }
    if let Body::Value(value) = message.body {
        let _ = value.to_value();
    }
    if let Ok(properties) = message.properties() {
        let mut written = BytesMut::new();
        put_properties(&mut written, &properties);
        let again = Message::parse(&written).expect("what we write is valid");
        assert_eq!(
            format!("{properties:?}").len(),
            format!("{:?}", again.properties().expect("valid")).len()
        );
    }
});
