//! Stored messages to devices: no bytes panic, what is read is the same after it was written again, and
//! HTTP and AMQP can carry it.
#![no_main]

use bytes::{Bytes, BytesMut};
use fieldpost_amqp::ValueRef;
use fieldpost_amqp::message::Message;
use fieldpost_gateway::fuzzing::{amqp_device_bound, http_command};
use fieldpost_model::CloudMessage;
use fieldpost_record::command::{self, CommandEnvelope, CommandView};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|stored: &[u8]| {
    let Ok(view) = CommandView::parse(stored) else {
        return;
    };
    assert!(stored.ends_with(view.sections()));
    let mut message = CloudMessage {
        to: view.to().into(),
        message_id: view.message_id().map(Into::into),
        correlation_id: view.correlation_id().map(Into::into),
        user_id: view.user_id().map(Into::into),
        content_type: view.content_type().map(Into::into),
        content_encoding: view.content_encoding().map(Into::into),
        creation_time: view.creation_time().map(Into::into),
        message_schema: view.message_schema().map(Into::into),
        body: view.body().unwrap_or_default().into(),
        ..CloudMessage::default()
    };
    for (name, value) in view.properties() {
        // Of names that differ only in case a writer writes one.
        message.properties.set(name.into(), value.map(Into::into));
    }
    let envelope = CommandEnvelope {
        enqueued: view.enqueued(),
        expires: view.expires(),
        sender: view.sender(),
        ack: view.ack(),
    };
    let mut written = BytesMut::new();
    command::encode(&mut written, &envelope, &message);
    let again = CommandView::parse(&written).expect("what we write is valid");
    assert_eq!(again.enqueued(), view.enqueued());
    assert_eq!(again.expires(), view.expires());
    assert_eq!(again.sender(), view.sender());
    assert_eq!(again.ack(), view.ack());
    assert_eq!(again.to(), view.to());
    assert_eq!(again.message_id(), view.message_id());
    assert_eq!(again.correlation_id(), view.correlation_id());
    assert_eq!(again.user_id(), view.user_id());
    assert_eq!(again.content_type(), view.content_type());
    assert_eq!(again.content_encoding(), view.content_encoding());
    assert_eq!(again.creation_time(), view.creation_time());
    assert_eq!(again.message_schema(), view.message_schema());
    assert_eq!(again.body(), Some(view.body().unwrap_or_default()));
    assert!(again.properties().eq(message.properties.iter()));
    // The six that every message has, and its own.
    let headers = http_command(Bytes::copy_from_slice(stored)).expect("it was read");
    assert!(headers >= 6);
    let carried = amqp_device_bound(Bytes::copy_from_slice(stored));
    // What has no body of its own is no message of ours.
    let (Some(body), Some(carried)) = (view.body(), &carried) else {
        assert!(view.body().is_none() && carried.is_none());
        return;
    };
    let carried = Message::parse(carried).expect("it was written");
    assert_eq!(carried.data().collect::<Vec<_>>(), [body]);
    if let Some(properties) = carried.application_properties {
        for entry in properties.iter() {
            let is_text =
                |(name, value)| matches!((name, value), (ValueRef::String(_), ValueRef::String(_)));
            assert!(entry.is_ok_and(is_text));
        }
    }
});
