//! Conversations between a device and a hub in memory, with time moved by hand.

mod deliver;
mod endings;
mod libraries;
mod model;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fieldpost_hub::clock::{Clock, ManualClock, SeededChance};
use fieldpost_hub::identity::{DeviceSpec, DeviceStatus, Precondition};
use fieldpost_model::DeviceId;
use fieldpost_model::limits::D2C_MESSAGE_BYTES_MAX;
use fieldpost_mqtt::packet;
use fieldpost_mqtt::{
    ClientConnection, ClientEvent, ClientOptions, Connack, Connect, Message, Publish, Qos, Refusal,
    SubackCode, Will,
};
use fieldpost_store::{Health, HealthLevel};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::server::TlsStream;

use super::deliver::Deliveries;
use super::running::Running;
use super::serve;
use crate::context::{ConnectionContext, Drain, Transport};
use crate::testing::{TestHub, expiry, sas_token};

const EVENTS: &str = "devices/dev1/messages/events/";
const PINGREQ: [u8; 2] = [0xc0, 0];

/// What a device sees.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Connack(Connack),
    Publish {
        topic: String,
        payload: String,
        qos: Qos,
        packet_id: Option<u16>,
        dup: bool,
    },
    Puback(u16),
    Suback(Vec<SubackCode>),
    Unsuback,
    Pingresp,
    Closed,
}

const NEW_SESSION: Seen = Seen::Connack(Connack::Accepted {
    session_present: false,
});
const OLD_SESSION: Seen = Seen::Connack(Connack::Accepted {
    session_present: true,
});
const UNAUTHORIZED: Seen = Seen::Connack(Connack::Refused(Refusal::NotAuthorized));
const NOT_READY: Seen = Seen::Connack(Connack::Refused(Refusal::ServerUnavailable));

/// One connection of a device.
struct Device {
    stream: DuplexStream,
    client: ClientConnection,
    input: Vec<u8>,
    clock: Arc<ManualClock>,
    drain: Drain,
    task: JoinHandle<()>,
}

impl Device {
    fn connect(hub: &TestHub, connect: &Connect<'_>) -> Self {
        Self::connect_within(hub, connect, 1 << 20)
    }

    /// With a socket that holds so many bytes of either side.
    fn connect_within(hub: &TestHub, connect: &Connect<'_>, bytes: usize) -> Self {
        Self::connect_from(hub, connect, bytes, SocketAddr::from(([127, 0, 0, 1], 1)))
    }

    /// The same from some address.
    fn connect_from(hub: &TestHub, connect: &Connect<'_>, bytes: usize, peer: SocketAddr) -> Self {
        let (near, far) = duplex(bytes);
        let (mut context, drain) = ConnectionContext::of_test(hub.hub.clone(), Transport::Tls);
        context.peer = peer;
        let now = hub.clock.monotonic();
        let options = ClientOptions {
            wildcards_in_topics: true,
            ..ClientOptions::default()
        };
        Self {
            stream: far,
            client: ClientConnection::new(connect, options, now).unwrap(),
            input: Vec::new(),
            clock: Arc::clone(&hub.clock),
            drain,
            task: tokio::spawn(serve(near, context)),
        }
    }

    async fn flush(&mut self) {
        let output = self.client.take_output();
        // A hub that has closed does not read.
        let _ = self.stream.write_all(&output).await;
    }

    async fn raw(&mut self, bytes: &[u8]) {
        self.flush().await;
        let _ = self.stream.write_all(bytes).await;
    }

    async fn next(&mut self) -> Seen {
        self.flush().await;
        loop {
            let mut input = &self.input[..];
            let event = self.client.next(&mut input).unwrap();
            let seen = event.map(|event| match event {
                ClientEvent::Connack(connack) => Seen::Connack(connack),
                ClientEvent::Publish(publish) => Seen::Publish {
                    topic: publish.topic.to_owned(),
                    payload: String::from_utf8_lossy(publish.payload).into_owned(),
                    qos: publish.qos,
                    packet_id: publish.packet_id.map(std::num::NonZeroU16::get),
                    dup: publish.dup,
                },
                ClientEvent::Puback { packet_id } => Seen::Puback(packet_id.get()),
                ClientEvent::Suback(suback) => Seen::Suback(suback.codes().collect()),
                ClientEvent::Unsuback { .. } => Seen::Unsuback,
                ClientEvent::Pingresp => Seen::Pingresp,
            });
            let left = input.len();
            self.input.drain(..self.input.len() - left);
            if let Some(seen) = seen {
                return seen;
            }
            if self.stream.read_buf(&mut self.input).await.unwrap_or(0) == 0 {
                return Seen::Closed;
            }
        }
    }

    async fn expect(&mut self, expected: Seen) {
        let seen = tokio::time::timeout(Duration::from_secs(20), self.next()).await;
        assert_eq!(seen.expect("the hub must answer"), expected);
    }

    /// A round through the hub: everything sent before it is worked off when it returns.
    async fn ping(&mut self) {
        self.raw(&PINGREQ).await;
        self.expect(Seen::Pingresp).await;
    }

    fn publish(&mut self, topic: &str, payload: &[u8]) -> u16 {
        let message = Message {
            topic,
            payload,
            retain: false,
        };
        let now = self.clock.monotonic();
        let id = self.client.publish_at_least_once(message, now);
        id.unwrap().get()
    }

    fn subscribe(&mut self, filters: &[(&str, Qos)]) {
        let now = self.clock.monotonic();
        self.client.subscribe(filters, now).unwrap();
    }

    /// Waits for the session's task, which must have ended by itself.
    async fn ended(self) {
        drop(self.stream);
        self.task.await.unwrap();
    }
}

struct Fleet {
    hub: TestHub,
    token: String,
}

impl Fleet {
    async fn stepped() -> Self {
        Self::of(TestHub::stepped().await).await
    }

    async fn automatic() -> Self {
        Self::of(TestHub::automatic().await).await
    }

    async fn of(hub: TestHub) -> Self {
        let key = hub.device("dev1").await;
        let token = sas_token("localhost/devices/dev1", &key, expiry(3600));
        Self { hub, token }
    }

    fn hello(&self) -> Connect<'_> {
        Connect {
            client_id: "dev1",
            clean_session: false,
            keep_alive_s: 60,
            will: None,
            user_name: Some("localhost/dev1/?api-version=2021-04-12"),
            password: Some(self.token.as_bytes()),
        }
    }

    async fn connected(&self) -> Device {
        self.connected_as(&self.hello()).await
    }

    /// With a new session or an old one.
    async fn connected_as(&self, hello: &Connect<'_>) -> Device {
        let mut device = Device::connect(&self.hub, hello);
        let seen = device.next().await;
        assert!([NEW_SESSION, OLD_SESSION].contains(&seen), "{seen:?}");
        device
    }
}

#[tokio::test]
async fn a_message_is_acknowledged_when_it_is_durable_and_not_before() {
    let fleet = Fleet::stepped().await;
    let mut device = fleet.connected().await;
    let first = device.publish(&format!("{EVENTS}%24.mid=m1&room=attic"), b"one");
    let second = device.publish(EVENTS, b"two");
    device.ping().await;
    assert!(fleet.hub.store.log.step() > 0);
    device.expect(Seen::Puback(first)).await;
    device.expect(Seen::Puback(second)).await;
    let events = fleet.hub.events("dev1").await;
    assert_eq!(events.len(), 2);
    assert_eq!(events[0].body, "one");
    let room = ("room".to_owned(), Some("attic".to_owned()));
    assert_eq!(events[0].properties, [room]);
}

#[tokio::test]
async fn answers_that_need_no_storing_wait_for_the_messages_before_them() {
    let fleet = Fleet::stepped().await;
    let mut device = fleet.connected().await;
    device.subscribe(&[("$iothub/twin/res/#", Qos::AtMostOnce)]);
    device
        .expect(Seen::Suback(vec![SubackCode::Granted(Qos::AtMostOnce)]))
        .await;
    let event = device.publish(EVENTS, b"one");
    let request = device.publish("$iothub/twin/GET/?$rid=7f", b" ");
    let Seen::Publish {
        topic,
        payload,
        qos,
        ..
    } = device.next().await
    else {
        panic!("the twin request must be answered");
    };
    assert_eq!(topic, "$iothub/twin/res/501/?$rid=7f");
    assert_eq!(qos, Qos::AtMostOnce);
    let body: serde_json::Value = serde_json::from_str(&payload).unwrap();
    assert_eq!(body["errorCode"], 501_000);
    device.ping().await;
    fleet.hub.store.log.step();
    device.expect(Seen::Puback(event)).await;
    device.expect(Seen::Puback(request)).await;
    // With nothing before it, it is acknowledged at once.
    let response = device.publish("$iothub/methods/res/200/?$rid=1", b"{}");
    device.expect(Seen::Puback(response)).await;
}

#[tokio::test]
async fn twin_requests_without_the_subscription_get_no_answer() {
    let fleet = Fleet::stepped().await;
    let mut device = fleet.connected().await;
    let topic = "$iothub/twin/PATCH/properties/reported/?$rid=1";
    let request = device.publish(topic, b"{}");
    device.expect(Seen::Puback(request)).await;
    device.ping().await;
}

#[tokio::test]
async fn subscriptions_outlive_the_connection_unless_the_session_is_clean() {
    let fleet = Fleet::automatic().await;
    let mut device = fleet.connected().await;
    device.subscribe(&[
        ("devices/dev1/messages/devicebound/#", Qos::ExactlyOnce),
        ("$iothub/methods/POST/#", Qos::AtMostOnce),
    ]);
    device
        .expect(Seen::Suback(vec![
            SubackCode::Granted(Qos::AtLeastOnce),
            SubackCode::Granted(Qos::AtMostOnce),
        ]))
        .await;
    device.client.disconnect();
    device.flush().await;
    device.expect(Seen::Closed).await;
    device.ended().await;

    let mut device = Device::connect(&fleet.hub, &fleet.hello());
    device.expect(OLD_SESSION).await;
    device.ended().await;

    let clean = Connect {
        clean_session: true,
        ..fleet.hello()
    };
    let mut device = Device::connect(&fleet.hub, &clean);
    device.expect(NEW_SESSION).await;
    device.subscribe(&[("$iothub/methods/POST/#", Qos::AtMostOnce)]);
    device
        .expect(Seen::Suback(vec![SubackCode::Granted(Qos::AtMostOnce)]))
        .await;
    device.ended().await;

    // A session is there without a subscription too.
    let mut device = Device::connect(&fleet.hub, &fleet.hello());
    device.expect(NEW_SESSION).await;
    device.ended().await;
    let mut device = Device::connect(&fleet.hub, &fleet.hello());
    device.expect(OLD_SESSION).await;
    let now = device.clock.monotonic();
    let filters = ["devices/dev1/messages/devicebound/#", "what/ever"];
    device.client.unsubscribe(&filters, now).unwrap();
    device.expect(Seen::Unsuback).await;
}

#[tokio::test]
async fn a_subscription_is_granted_when_it_is_durable_and_not_before() {
    let fleet = Fleet::automatic().await;
    let mut device = fleet.connected().await;
    fleet.hub.store.documents.withhold(true);
    device.subscribe(&[("$iothub/methods/POST/#", Qos::AtMostOnce)]);
    // What comes behind it waits with it.
    let event = device.publish(EVENTS, b"one");
    device.flush().await;
    tokio::task::yield_now().await;
    fleet.hub.store.documents.withhold(false);
    device
        .expect(Seen::Suback(vec![SubackCode::Granted(Qos::AtMostOnce)]))
        .await;
    device.expect(Seen::Puback(event)).await;
}

#[tokio::test]
async fn the_newest_connection_wins() {
    let fleet = Fleet::automatic().await;
    let mut old = fleet.connected().await;
    let mut new = fleet.connected().await;
    old.expect(Seen::Closed).await;
    old.ended().await;
    new.ping().await;
}

#[tokio::test]
async fn whoever_is_not_authorised_gets_code_5_and_learns_nothing() {
    let fleet = Fleet::automatic().await;
    let hello = fleet.hello();
    let other_key = fleet.hub.device("dev2").await;
    let foreign = sas_token("localhost/devices/dev2", &other_key, expiry(3600));
    let forged = sas_token("localhost/devices/dev1", &other_key, expiry(3600));
    let user_names = [
        "localhost/nobody/?api-version=2021-04-12",
        "elsewhere/dev1/?api-version=2021-04-12",
        "localhost/dev1/mod1/?api-version=2021-04-12",
        "dev1",
        "",
    ];
    let mut refused: Vec<Connect<'_>> = user_names
        .iter()
        .map(|user_name| Connect {
            user_name: Some(user_name),
            ..hello
        })
        .collect();
    for token in [&foreign, &forged, ""] {
        refused.push(Connect {
            password: Some(token.as_bytes()),
            ..hello
        });
    }
    refused.push(Connect {
        client_id: "dev2",
        ..hello
    });
    refused.push(Connect {
        client_id: "nobody",
        user_name: Some("localhost/nobody/?api-version=2021-04-12"),
        ..hello
    });
    refused.push(Connect {
        client_id: "dev1/mod1",
        user_name: Some("localhost/dev1/mod1/?api-version=2021-04-12"),
        ..hello
    });
    refused.push(Connect {
        password: None,
        ..hello
    });
    for connect in refused {
        let mut device = Device::connect(&fleet.hub, &connect);
        device.expect(UNAUTHORIZED).await;
        device.expect(Seen::Closed).await;
        device.ended().await;
    }
}

#[tokio::test]
async fn other_levels_of_mqtt_get_their_own_refusal() {
    let fleet = Fleet::automatic().await;
    let check = async |level: &[u8], answer: &[u8]| {
        let (near, mut far) = duplex(1 << 16);
        let (context, _drain) = ConnectionContext::of_test(fleet.hub.hub.clone(), Transport::Tls);
        let task = tokio::spawn(serve(near, context));
        far.write_all(level).await.unwrap();
        let mut answered = Vec::new();
        far.read_to_end(&mut answered).await.unwrap();
        assert_eq!(answered.get(..answer.len()), Some(answer), "{level:?}");
        task.await.unwrap();
    };
    let level_3 = [
        0x10, 16, 0, 6, b'M', b'Q', b'I', b's', b'd', b'p', 3, 2, 0, 60, 0, 2, b'a', b'b',
    ];
    check(&level_3, &[0x20, 2, 0, 1]).await;
    let level_5 = [
        0x10, 15, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 60, 0, 0, 2, b'a', b'b',
    ];
    check(&level_5, &[0x20, 3, 0, 0x84]).await;
}

#[tokio::test]
async fn what_is_not_the_devices_own_closes_the_connection() {
    let fleet = Fleet::automatic().await;
    for topic in [
        "devices/dev2/messages/events/",
        "devices/dev1/messages/devicebound/",
        "somewhere",
        "$iothub/methods/POST/x/?$rid=1",
    ] {
        let mut device = fleet.connected().await;
        let before = device.publish(EVENTS, b"before");
        device.publish(topic, b"x");
        // Messages before the breach count, though their acknowledgement may be lost with it.
        loop {
            match device.next().await {
                Seen::Puback(id) => assert_eq!(id, before, "{topic}"),
                other => break assert_eq!(other, Seen::Closed, "{topic}"),
            }
        }
        device.ended().await;
    }
    assert_eq!(fleet.hub.events("dev1").await.len(), 4);
    for filter in [
        "#",
        "devices/+/messages/devicebound/#",
        "devices/dev2/messages/devicebound/#",
    ] {
        let mut device = fleet.connected().await;
        device.subscribe(&[
            ("$iothub/methods/POST/#", Qos::AtMostOnce),
            (filter, Qos::AtMostOnce),
        ]);
        device.expect(Seen::Closed).await;
        device.ended().await;
    }
}

#[tokio::test]
async fn qos_2_and_oversize_messages_close_the_connection() {
    let fleet = Fleet::automatic().await;
    let mut device = fleet.connected().await;
    let mut bytes = bytes::BytesMut::new();
    let publish = Publish {
        dup: false,
        qos: Qos::ExactlyOnce,
        retain: false,
        topic: EVENTS,
        packet_id: std::num::NonZeroU16::new(1),
        payload: b"x",
    };
    publish.encode(&mut bytes).unwrap();
    device.raw(&bytes).await;
    device.expect(Seen::Closed).await;
    device.ended().await;

    let mut device = fleet.connected().await;
    let fits = device.publish(EVENTS, &vec![b'a'; D2C_MESSAGE_BYTES_MAX]);
    device.expect(Seen::Puback(fits)).await;
    let fits = device.publish(
        &format!("{EVENTS}%24.mid=12&k=345"),
        &vec![b'a'; D2C_MESSAGE_BYTES_MAX - 6],
    );
    device.expect(Seen::Puback(fits)).await;
    device.publish(EVENTS, &vec![b'a'; D2C_MESSAGE_BYTES_MAX + 1]);
    device.expect(Seen::Closed).await;
    device.ended().await;

    let mut device = fleet.connected().await;
    device.publish(EVENTS, &vec![b'a'; 400 * 1024]);
    device.expect(Seen::Closed).await;
    assert_eq!(fleet.hub.events("dev1").await.len(), 2);
}

#[tokio::test]
async fn silence_beyond_the_keep_alive_closes_and_publishes_the_will() {
    let fleet = Fleet::automatic().await;
    let will = Will {
        topic: "devices/dev1/messages/events/?reason=gone",
        payload: b"good bye",
        qos: Qos::AtLeastOnce,
        retain: true,
    };
    let hello = Connect {
        will: Some(will),
        ..fleet.hello()
    };
    let mut device = fleet.connected_as(&hello).await;
    device.ping().await;
    fleet.hub.clock.advance(Duration::from_secs(89));
    device.ping().await;
    fleet.hub.clock.advance(Duration::from_secs(90));
    device.expect(Seen::Closed).await;
    device.ended().await;
    let events = fleet.hub.events("dev1").await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].body, "good bye");
    let names: Vec<_> = events[0]
        .properties
        .iter()
        .map(|(name, _)| &**name)
        .collect();
    assert_eq!(
        names,
        [
            "reason",
            "mqtt-retain",
            "x-opt-retain",
            "iothub-MessageType"
        ]
    );

    // A takeover publishes it, DISCONNECT does not.
    let mut old = fleet.connected_as(&hello).await;
    let mut new = fleet.connected_as(&hello).await;
    old.expect(Seen::Closed).await;
    assert_eq!(fleet.hub.events("dev1").await.len(), 2);
    new.client.disconnect();
    new.flush().await;
    new.expect(Seen::Closed).await;
    new.ended().await;
    assert_eq!(fleet.hub.events("dev1").await.len(), 2);
}

#[tokio::test]
async fn a_will_for_somebody_else_is_refused_by_closing() {
    let fleet = Fleet::automatic().await;
    let hello = Connect {
        will: Some(Will {
            topic: "devices/dev2/messages/events/",
            payload: b"",
            qos: Qos::AtMostOnce,
            retain: false,
        }),
        ..fleet.hello()
    };
    let mut device = Device::connect(&fleet.hub, &hello);
    device.expect(Seen::Closed).await;
    device.ended().await;
}

#[tokio::test]
async fn a_token_ends_the_connection_five_minutes_after_its_time() {
    let fleet = Fleet::automatic().await;
    let hello = Connect {
        keep_alive_s: 0,
        ..fleet.hello()
    };
    let mut device = fleet.connected_as(&hello).await;
    for _ in 0..3 {
        fleet.hub.clock.advance(Duration::from_secs(1290));
        device.ping().await;
    }
    fleet.hub.clock.advance(Duration::from_secs(30));
    device.expect(Seen::Closed).await;
    device.ended().await;
    fleet.hub.clock.advance(Duration::from_secs(1));
    let mut device = Device::connect(&fleet.hub, &fleet.hello());
    device.expect(UNAUTHORIZED).await;
}

#[tokio::test]
async fn a_disabled_device_is_cut_off() {
    let fleet = Fleet::automatic().await;
    let mut device = fleet.connected().await;
    let mut spec = DeviceSpec::new(DeviceId::new("dev1").unwrap());
    spec.status = Some(DeviceStatus::Disabled);
    let registry = fleet.hub.hub.registry();
    registry.update(spec, Precondition::Any).await.unwrap();
    device.expect(Seen::Closed).await;
    device.ended().await;
    let mut device = Device::connect(&fleet.hub, &fleet.hello());
    device.expect(UNAUTHORIZED).await;
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let fleet = Fleet::automatic().await;
    let (near, mut far) = duplex(1024);
    let (context, _drain) = ConnectionContext::of_test(fleet.hub.hub.clone(), Transport::Tls);
    let task = tokio::spawn(serve(near, context));
    far.write_all(&[0x10]).await.unwrap();
    tokio::task::yield_now().await;
    fleet.hub.clock.advance(Duration::from_secs(15));
    let mut answer = Vec::new();
    far.read_to_end(&mut answer).await.unwrap();
    assert!(answer.is_empty());
    task.await.unwrap();
}

#[tokio::test]
async fn a_full_disk_holds_devices_back_and_lets_them_go_after_a_while() {
    let fleet = Fleet::automatic().await;
    let mut device = fleet.connected().await;
    let health = |level| Health {
        level,
        reason: Some("a test".into()),
    };
    let log = &fleet.hub.store.log;
    log.set_health(health(HealthLevel::HoldMessages));
    // New connections are taken meanwhile, and the message waits.
    let event = device.publish(EVENTS, b"one");
    device.flush().await;
    tokio::task::yield_now().await;
    fleet.hub.clock.advance(Duration::from_secs(10));
    tokio::task::yield_now().await;
    log.set_health(Health::OK);
    device.expect(Seen::Puback(event)).await;
    // Too long.
    log.set_health(health(HealthLevel::HoldMessages));
    let mut other = Device::connect(&fleet.hub, &fleet.hello());
    other.flush().await;
    device.expect(Seen::Closed).await;
    other.expect(OLD_SESSION).await;
    other.publish(EVENTS, b"two");
    other.flush().await;
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    fleet.hub.clock.advance(Duration::from_secs(21));
    other.expect(Seen::Closed).await;
    other.ended().await;
    assert_eq!(fleet.hub.events("dev1").await.len(), 1);
}

#[tokio::test]
async fn a_read_only_store_is_no_reason_to_give_up_for_good() {
    let fleet = Fleet::stepped().await;
    let mut device = fleet.connected().await;
    device.publish(EVENTS, b"one");
    device.ping().await;
    fleet.hub.store.log.fail_next();
    fleet.hub.store.log.step();
    device.expect(Seen::Closed).await;
    device.ended().await;
    let mut device = Device::connect(&fleet.hub, &fleet.hello());
    device.expect(NOT_READY).await;
    device.expect(Seen::Closed).await;
}

#[tokio::test]
async fn a_device_that_is_one_too_many_gets_code_3_and_later_waits_for_its_turn() {
    let fleet = Fleet::automatic().await;
    fleet.hub.crowd_of_devices().await;
    let mut device = Device::connect(&fleet.hub, &fleet.hello());
    device.expect(NOT_READY).await;
    device.expect(Seen::Closed).await;
    device.ended().await;
    fleet.hub.clock.advance(Duration::from_secs(1));
    let mut device = Device::connect(&fleet.hub, &fleet.hello());
    device.flush().await;
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    fleet.hub.clock.advance(Duration::from_secs(10));
    device.expect(NEW_SESSION).await;
}

#[tokio::test]
async fn a_drain_waits_for_what_is_on_its_way() {
    let fleet = Fleet::stepped().await;
    let mut device = fleet.connected().await;
    let event = device.publish(EVENTS, b"one");
    device.ping().await;
    device.drain.begin();
    tokio::task::yield_now().await;
    fleet.hub.store.log.step();
    device.expect(Seen::Puback(event)).await;
    device.expect(Seen::Closed).await;
    device.ended().await;
}

#[tokio::test]
async fn more_than_a_window_of_messages_flows_in_order() {
    let fleet = Fleet::stepped().await;
    let mut device = fleet.connected().await;
    let mut sent = Vec::new();
    let mut bytes = bytes::BytesMut::new();
    for n in 1..=900u16 {
        let body = n.to_string();
        let publish = Publish {
            dup: false,
            qos: Qos::AtLeastOnce,
            retain: false,
            topic: EVENTS,
            packet_id: std::num::NonZeroU16::new(n),
            payload: body.as_bytes(),
        };
        publish.encode(&mut bytes).unwrap();
        sent.push(body);
    }
    device.raw(&bytes).await;
    let mut acknowledged = vec![0; 900 * 4];
    let stepping = async {
        loop {
            tokio::task::yield_now().await;
            fleet.hub.store.log.step();
        }
    };
    tokio::select! {
        () = stepping => {}
        read = device.stream.read_exact(&mut acknowledged) => assert_eq!(read.unwrap(), 900 * 4),
    }
    let mut expected = bytes::BytesMut::new();
    let ids: Vec<_> = (1..=900).filter_map(std::num::NonZeroU16::new).collect();
    packet::put_pubacks(&mut expected, ids.into_iter());
    assert_eq!(acknowledged, expected);
    let events = fleet.hub.events("dev1").await;
    let bodies: Vec<_> = events.into_iter().map(|event| event.body).collect();
    assert_eq!(bodies, sent);
}

/// What every idle connection costs here, and there may be tens of thousands of them: whoever lets it
/// grow pays for each. The bounds are what they take today; the task adds some 110 bytes of its own
/// to the future.
#[tokio::test]
async fn an_idle_connection_is_small() {
    let check = |what: &str, bytes: usize, max: usize| {
        assert!(bytes <= max, "{what}: {bytes} bytes, more than {max}");
    };
    let hub = TestHub::automatic().await;
    let (context, _drain) = ConnectionContext::of_test(hub.hub.clone(), Transport::Plain);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = TcpStream::connect(listener.local_addr().unwrap()).await;
    let served = crate::listen::serve_mqtt(socket.unwrap(), context);
    check("the future", size_of_val(&served), 144);
    check("an open one", size_of::<Running<TcpStream>>(), 1048);
    check("TLS", size_of::<Running<Box<TlsStream<TcpStream>>>>(), 1024);
    check("what it holds of C2D", size_of::<Deliveries>(), 224);
}
