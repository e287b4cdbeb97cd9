//! Device libraries that cannot run here: what each is documented to say over MQTT, and needs to hear.

use fieldpost_hub::c2d::Target;
use fieldpost_model::{CloudMessage, Identity};
use fieldpost_mqtt::PacketId;

use super::*;

const C: &str = "localhost/dev1/?api-version=2020-09-30&DeviceClientType=iothubclient%2F1.14.0%20(native%3B%20Linux)";
const NET: &str =
    "localhost/dev1/?api-version=2021-04-12&DeviceClientType=.NET%2F1.42.0%20(.NET%208.0)";
const JAVA: &str = "localhost/dev1/?api-version=2020-09-30&DeviceClientType=com.microsoft.azure.sdk.iot.iot-device-client%2F2.5.0";
const COMMANDS: &str = "devices/dev1/messages/devicebound/#";

async fn connected(fleet: &Fleet, user_name: &str, keep_alive_s: u16) -> Device {
    let hello = Connect {
        user_name: Some(user_name),
        keep_alive_s,
        ..fleet.hello()
    };
    fleet.connected_as(&hello).await
}

async fn command(fleet: &Fleet, text: &str) {
    let mut message = CloudMessage {
        to: "/devices/dev1/messages/devicebound".into(),
        message_id: Some(format!("id {text}").into()),
        expires: Some(
            fleet
                .hub
                .clock
                .now()
                .saturating_add(Duration::from_secs(60)),
        ),
        body: text.as_bytes().into(),
        ..CloudMessage::default()
    };
    message.properties.set("room".into(), Some("a b".into()));
    let target = Target {
        identity: Identity::of_device(DeviceId::new("dev1").unwrap()),
        fallback: None,
    };
    let mut sender = fleet.hub.hub.c2d().sender("service");
    sender.send_one(target, &message).await.unwrap();
}

/// The names and values of a message's topic, in their order, and its packet id.
async fn came(device: &mut Device, text: &str) -> (Vec<(String, String)>, PacketId) {
    let seen = tokio::time::timeout(Duration::from_secs(20), device.next()).await;
    let Ok(Seen::Publish {
        topic,
        payload,
        packet_id,
        ..
    }) = seen
    else {
        panic!("no message: {seen:?}")
    };
    assert_eq!(payload, text);
    let bag = topic
        .strip_prefix("devices/dev1/messages/devicebound/")
        .unwrap();
    let pairs = bag.split('&').map(|pair| {
        let (name, value) = pair.split_once('=').unwrap();
        (name.to_owned(), value.to_owned())
    });
    (pairs.collect(), packet_id.and_then(PacketId::new).unwrap())
}

async fn waiting(fleet: &Fleet) -> u64 {
    let identity = Identity::of_device(DeviceId::new("dev1").unwrap());
    let principal = fleet.hub.principal(&identity).await;
    let asked = [(identity, principal.generation_id)];
    fleet.hub.hub.c2d().message_counts(&asked).await.unwrap()[0]
}

async fn left(fleet: &Fleet, count: u64) {
    let there = async {
        while waiting(fleet).await != count {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), there).await;
    assert!(waited.is_ok());
}

fn acknowledge(device: &mut Device, packet_id: PacketId) {
    let now = device.clock.monotonic();
    device.client.acknowledge(packet_id, now).unwrap();
}

/// Its properties stand before those of the system and are not encoded; what is not acknowledged comes again
/// with DUP.
#[tokio::test]
async fn c_iot_sends_over_mqtt() {
    let fleet = Fleet::automatic().await;
    let mut device = connected(&fleet, C, 240).await;
    let topic = format!("{EVENTS}room=a b&%24.mid=m 1&%24.ct=application/json&%24.ce=utf-8");
    let id = device.publish(&topic, b"one");
    device.expect(Seen::Puback(id)).await;
    let events = fleet.hub.events("dev1").await;
    let [event] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(event.body, "one");
    let room = ("room".to_owned(), Some("a b".to_owned()));
    assert_eq!(event.properties, [room]);

    let mut again = bytes::BytesMut::new();
    Publish {
        dup: true,
        qos: Qos::AtLeastOnce,
        retain: false,
        topic: &topic,
        packet_id: std::num::NonZeroU16::new(id),
        payload: b"one",
    }
    .encode(&mut again)
    .unwrap();
    device.raw(&again).await;
    // As with every device: what comes twice is kept twice, and acknowledged.
    device.ping().await;
    assert_eq!(fleet.hub.events("dev1").await.len(), 2);
}

/// Several filters in one packet, one answer with a code for each; the first name of a topic is of the system.
#[tokio::test]
async fn c_iot_receives_over_mqtt() {
    let fleet = Fleet::automatic().await;
    let mut device = connected(&fleet, C, 240).await;
    device.subscribe(&[
        (COMMANDS, Qos::AtLeastOnce),
        ("$iothub/methods/POST/#", Qos::AtMostOnce),
        ("$iothub/twin/res/#", Qos::AtMostOnce),
    ]);
    let granted = [Qos::AtLeastOnce, Qos::AtMostOnce, Qos::AtMostOnce];
    let granted = granted.map(SubackCode::Granted).to_vec();
    device.expect(Seen::Suback(granted)).await;
    command(&fleet, "one").await;
    let (bag, packet_id) = came(&mut device, "one").await;
    assert!(bag[0].0.starts_with("%24."), "{bag:?}");
    assert!(
        bag.contains(&("%24.mid".to_owned(), "id%20one".to_owned())),
        "{bag:?}"
    );
    assert!(
        bag.contains(&("room".to_owned(), "a%20b".to_owned())),
        "{bag:?}"
    );
    assert_eq!(waiting(&fleet).await, 1);
    acknowledge(&mut device, packet_id);
    device.ping().await;
    left(&fleet, 0).await;
}

/// It abandons by keeping silent: the message comes again on the next connection.
#[tokio::test]
async fn c_iot_abandons_over_mqtt_by_silence() {
    let fleet = Fleet::automatic().await;
    let mut device = connected(&fleet, C, 240).await;
    device.subscribe(&[(COMMANDS, Qos::AtLeastOnce)]);
    device.next().await;
    command(&fleet, "one").await;
    came(&mut device, "one").await;
    drop(device);
    let mut device = connected(&fleet, C, 240).await;
    let (_, packet_id) = came(&mut device, "one").await;
    acknowledge(&mut device, packet_id);
    device.ping().await;
    left(&fleet, 0).await;
}

/// Times have exactly seven digits behind the point; it acknowledges in the order in which messages came.
#[tokio::test]
async fn net_iot_receives_over_mqtt() {
    let fleet = Fleet::automatic().await;
    let mut device = connected(&fleet, NET, 300).await;
    device.subscribe(&[(COMMANDS, Qos::AtLeastOnce)]);
    device.next().await;
    let mut ids = Vec::new();
    for text in ["one", "two"] {
        command(&fleet, text).await;
        let (bag, packet_id) = came(&mut device, text).await;
        let value = |name: &str| {
            let found = bag.iter().find(|(known, _)| known == name);
            let (_, value) = found.unwrap_or_else(|| panic!("{name} in {bag:?}"));
            value.clone()
        };
        let time = value("%24.exp");
        let fraction = time.rsplit_once('.').unwrap().1;
        assert_eq!(fraction.len(), "1234567Z".len(), "{time}");
        assert!(fraction.ends_with('Z'), "{time}");
        ids.push(packet_id);
    }
    for packet_id in ids {
        acknowledge(&mut device, packet_id);
    }
    device.ping().await;
    left(&fleet, 0).await;
}

/// Its properties of the system are encoded, and one topic asks for everything of a module.
#[tokio::test]
async fn net_iot_sends_over_mqtt_and_asks_for_all_of_a_module() {
    let fleet = Fleet::automatic().await;
    let mut device = connected(&fleet, NET, 300).await;
    let id = device.publish(&format!("{EVENTS}%24.mid=m%201&room=a%20b"), b"one");
    device.expect(Seen::Puback(id)).await;
    let key = fleet.hub.module("dev1", "mod1").await;
    let token = sas_token("localhost/devices/dev1/modules/mod1", &key, expiry(3600));
    let hello = Connect {
        client_id: "dev1/mod1",
        user_name: Some(
            "localhost/dev1/mod1/?api-version=2021-04-12&DeviceClientType=.NET%2F1.42.0",
        ),
        password: Some(token.as_bytes()),
        ..fleet.hello()
    };
    let mut module = fleet.connected_as(&hello).await;
    module.subscribe(&[("devices/dev1/modules/mod1/#", Qos::AtLeastOnce)]);
    let granted = SubackCode::Granted(Qos::AtLeastOnce);
    module.expect(Seen::Suback(vec![granted])).await;
    let id = module.publish("devices/dev1/modules/mod1/messages/events/room=1", b"two");
    module.expect(Seen::Puback(id)).await;
    let events = fleet.hub.events("dev1").await;
    let seen: Vec<_> = events
        .iter()
        .map(|event| (event.body.as_str(), event.properties[0].1.as_deref()))
        .collect();
    assert_eq!(seen, [("one", Some("a b")), ("two", Some("1"))]);
}

/// Its names of the system are not encoded, and topics of modules end with a slash.
#[tokio::test]
async fn java_iot_sends_over_mqtt() {
    let fleet = Fleet::automatic().await;
    let mut device = connected(&fleet, JAVA, 230).await;
    let id = device.publish(
        &format!("{EVENTS}$.mid=m1&$.ct=text%2Fplain&room=a%20b"),
        b"one",
    );
    device.expect(Seen::Puback(id)).await;
    let key = fleet.hub.module("dev1", "mod1").await;
    let token = sas_token("localhost/devices/dev1/modules/mod1", &key, expiry(3600));
    let hello = Connect {
        client_id: "dev1/mod1",
        user_name: Some("localhost/dev1/mod1/?api-version=2020-09-30"),
        password: Some(token.as_bytes()),
        ..fleet.hello()
    };
    let mut module = fleet.connected_as(&hello).await;
    let topic = "devices/dev1/modules/mod1/messages/events/room=1/";
    let id = module.publish(topic, b"two");
    module.expect(Seen::Puback(id)).await;
    let events = fleet.hub.events("dev1").await;
    let seen: Vec<_> = events
        .iter()
        .map(|event| (event.body.as_str(), event.properties.clone()))
        .collect();
    let room = |value: &str| vec![("room".to_owned(), Some(value.to_owned()))];
    assert_eq!(seen, [("one", room("a b")), ("two", room("1"))]);
}

/// It acknowledges when the application has decided, in any order.
#[tokio::test]
async fn java_iot_receives_over_mqtt() {
    let fleet = Fleet::automatic().await;
    let mut device = connected(&fleet, JAVA, 230).await;
    device.subscribe(&[(COMMANDS, Qos::AtLeastOnce)]);
    device.next().await;
    let mut ids = Vec::new();
    for text in ["one", "two"] {
        command(&fleet, text).await;
        let (bag, packet_id) = came(&mut device, text).await;
        assert!(bag[0].0.starts_with("%24"), "{bag:?}");
        // A plus sign would be a space to it.
        assert!(
            bag.iter()
                .all(|(_, value)| !value.is_empty() && !value.contains('+'))
        );
        ids.push(packet_id);
    }
    acknowledge(&mut device, ids[1]);
    acknowledge(&mut device, ids[0]);
    device.ping().await;
    left(&fleet, 0).await;
}
