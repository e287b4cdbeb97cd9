//! Messages of services for devices, and the addresses that they look for events at: no bytes panic,
//! and what is taken is stored and read again unchanged.
#![no_main]

use std::str;

use bytes::BytesMut;
use fieldpost_amqp::Value;
use fieldpost_amqp::message::Message;
use fieldpost_fuzz::{NOW, lines};
use fieldpost_gateway::fuzzing::{amqp_command, amqp_redirect};
use fieldpost_record::command::{self, CommandEnvelope, CommandView};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(text) = str::from_utf8(input) {
        let [hostname, address] = lines(text);
        if let Some(error) = amqp_redirect(hostname, address) {
            let address = error.info.get("address").and_then(Value::as_str);
            assert!(address.is_some_and(|address| address.contains(":5671/hub")));
        }
    }
    let Ok(message) = Message::parse(input) else {
        return;
    };
    let Some((command, [first, then])) = amqp_command(&message) else {
        return;
    };
    assert!(first.is_some() && first != then);
    let to = message.properties().expect("it was read").to;
    assert_eq!(to.and_then(|to| to.as_str()), Some(&*command.to));
    // No property is a system property's under another case.
    assert!(
        command
            .properties
            .iter()
            .all(|(name, _)| !name.eq_ignore_ascii_case("iothub-ack"))
    );
    let mut stored = BytesMut::new();
    let envelope = CommandEnvelope {
        enqueued: NOW,
        expires: command.expires.unwrap_or(NOW),
        sender: "service",
        ack: command.ack,
    };
    command::encode(&mut stored, &envelope, &command);
    let view = CommandView::parse(&stored).expect("what we write is valid");
    assert_eq!(view.to(), &*command.to);
    assert_eq!(view.message_id(), command.message_id.as_deref());
    assert_eq!(view.correlation_id(), command.correlation_id.as_deref());
    assert_eq!(view.user_id(), command.user_id.as_deref());
    assert_eq!(view.ack(), command.ack);
    assert_eq!(view.body().unwrap_or_default(), &*command.body);
    assert!(view.properties().eq(command.properties.iter()));
});
