//! The MQTT dialect: user names, topics with their property bags, filters. A message that any topic
//! makes is stored and read back as it is, and the topic of the same message for a device makes it
//! again.
//!
//! Input: lines of user name, client id, topic, filter; the rest is the payload.
#![no_main]

use bytes::BytesMut;
use fieldpost_fuzz::{NOW, lines};
use fieldpost_gateway::fuzzing::{
    mqtt_command_topic, mqtt_filter, mqtt_message, mqtt_settlement, mqtt_user_name,
};
use fieldpost_model::{Ack, AuthKind, AuthScope, AuthStamp, CloudMessage, DeviceMessage, Identity};
use fieldpost_record::{
    CommandEnvelope, CommandView, Envelope, RecordView, Source, command, encode,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let [user_name, client_id, topic, filter, payload] = lines(text);
    let Some((identity, model_id, fits)) = mqtt_user_name(user_name, client_id) else {
        return;
    };
    let path = match &identity.module {
        None => identity.device.to_string(),
        Some(module) => format!("{}/{module}", identity.device),
    };
    // A slash cannot be part of an id.
    assert_eq!(fits, client_id == path);
    assert!(model_id.is_none_or(|model| model.chars().count() <= 128));

    let own = format!("devices/{}", path.replacen('/', "/modules/", 1));
    let (retain, will) = (payload.starts_with('r'), payload.len() % 2 == 1);
    let payload = payload.as_bytes();
    if let Some(message) = mqtt_message(&identity, topic, payload, retain, will) {
        assert!(topic.starts_with(&own));
        check_stored(&identity, &message);
    }
    let below = format!("{own}/messages/events/{topic}");
    let message = mqtt_message(&identity, &below, payload, retain, will).expect("one's own topic");
    assert!(message.metered_size() <= topic.len() * 2 + payload.len() + 100);
    check_stored(&identity, &message);
    check_command(&identity, &own, &message);

    for topic in [topic.to_owned(), format!("$fieldpost/c2d/reject/{topic}")] {
        if let Some((_, message_id, packet_id)) = mqtt_settlement(&identity, &topic) {
            assert!(topic.starts_with("$fieldpost/c2d/"));
            assert!(message_id.is_none() || packet_id.is_none());
        }
    }

    if let Some(features) = mqtt_filter(&identity, filter) {
        assert!(features > 0);
        assert!(filter.starts_with("$iothub/") || filter.starts_with(&own));
    }
    let _ = mqtt_filter(&identity, &format!("{own}/{filter}"));
    let _ = mqtt_filter(&identity, &format!("$iothub/{filter}"));
});

fn check_stored(identity: &Identity, message: &DeviceMessage<'_>) {
    let envelope = Envelope {
        source: Source::Telemetry,
        accepted: NOW,
        auth: AuthStamp {
            scope: AuthScope::Device,
            kind: AuthKind::Sas,
        },
        device_id: identity.device.as_str(),
        module_id: identity.module.as_ref().map(|module| module.as_str()),
        generation_id: "1",
        model_id: None,
    };
    let mut record = BytesMut::new();
    encode(&mut record, &envelope, message);
    let view = RecordView::parse(&record).expect("what we write is valid");
    assert_eq!(view.envelope(), &envelope);
    assert_eq!(view.body(), Some(&*message.body));
    assert!(view.properties().eq(message.properties.iter()));
    let system = &message.system;
    assert_eq!(view.component(), system.component.as_deref());
    assert_eq!(view.interface_id(), system.interface_id.as_deref());
    assert_eq!(view.output_name(), system.output_name.as_deref());
}

fn check_command(identity: &Identity, own: &str, message: &DeviceMessage<'_>) {
    let system = &message.system;
    let command = CloudMessage {
        to: system.to.clone().unwrap_or_default(),
        message_id: system.message_id.clone(),
        correlation_id: system.correlation_id.clone(),
        user_id: system.user_id.clone(),
        content_type: system.content_type.clone(),
        content_encoding: system.content_encoding.clone(),
        properties: message.properties.clone(),
        body: message.body.clone(),
        ..CloudMessage::default()
    };
    let envelope = CommandEnvelope {
        enqueued: NOW,
        expires: NOW,
        sender: "service",
        ack: Ack::Full,
    };
    let mut stored = BytesMut::new();
    command::encode(&mut stored, &envelope, &command);
    let view = CommandView::parse(&stored).expect("what we write is valid");
    let topic = mqtt_command_topic(identity, &view, true);
    let prefix = format!("{own}/messages/devicebound/");
    let bag = topic.strip_prefix(&prefix).expect("one's own topic");
    assert!(bag.starts_with("%24."));
    assert!(!bag.contains(['/', '+', '$', ' ']));
    let events = format!("{own}/messages/events/{bag}");
    let read = mqtt_message(identity, &events, &message.body, false, false);
    let read = read.expect("one's own topic");
    // Empty system properties are as good as none; without a target there is the device's own.
    macro_rules! check {
        ($($field:ident),*) => {$(
            let sent = system.$field.as_deref().filter(|value| !value.is_empty());
            assert_eq!(read.system.$field.as_deref(), sent);
        )*};
    }
    check!(
        message_id,
        correlation_id,
        user_id,
        content_type,
        content_encoding
    );
    let target = system.to.clone().filter(|to| !to.is_empty());
    let target = target.unwrap_or_else(|| format!("/{own}/messages/devicebound").into());
    assert_eq!(read.system.to, Some(target));
    assert_eq!(read.system.absolute_expiry_time, Some(NOW));
    assert!(read.properties.iter().eq(message.properties.iter()));

    let hollow = mqtt_command_topic(identity, &view, false);
    let bag = hollow.strip_prefix(&prefix).expect("one's own topic");
    let is_pair = |piece: &str| piece.split('=').filter(|side| !side.is_empty()).count() == 2;
    assert!(bag.split('&').all(is_pair));
}
