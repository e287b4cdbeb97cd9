//! The MQTT dialect: user names, topics with their property bags, filters. A message that any topic
//! makes is stored and read back as it is.
//!
//! Input: lines of user name, client id, topic, filter; the rest is the payload.
#![no_main]

use bytes::BytesMut;
use fieldpost_fuzz::{NOW, lines};
use fieldpost_gateway::fuzzing::{mqtt_filter, mqtt_message, mqtt_user_name};
use fieldpost_model::{AuthKind, AuthScope, AuthStamp, DeviceMessage, Identity};
use fieldpost_record::{Envelope, RecordView, Source, encode};
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
