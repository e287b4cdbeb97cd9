//! Cloud-to-device messages: when they go out, what completes them, and what comes again.

use std::task::{Context, Waker};

use fieldpost_hub::c2d::{Settlement, Target};
use fieldpost_model::{CloudMessage, Identity};
use fieldpost_mqtt::PacketId;

use super::*;
use crate::testing::START;

const COMMANDS: &str = "devices/dev1/messages/devicebound/#";
const REJECT: &str = "$fieldpost/c2d/reject/?";
const ABANDON: &str = "$fieldpost/c2d/abandon/?";

/// A cloud-to-device message as the device sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Came {
    body: String,
    packet_id: Option<u16>,
    dup: bool,
}

fn dev1() -> Identity {
    Identity {
        device: DeviceId::new("dev1").unwrap(),
        module: None,
    }
}

impl Fleet {
    async fn send(&self, body: &str) {
        let to = "/devices/dev1/messages/devicebound";
        let message = CloudMessage {
            to: to.into(),
            message_id: Some(format!("id {body}").into()),
            body: body.as_bytes().into(),
            ..CloudMessage::default()
        };
        self.send_message(&message).await;
    }

    async fn send_message(&self, message: &CloudMessage<'_>) {
        let target = Target {
            identity: dev1(),
            fallback: None,
        };
        let mut sender = self.hub.hub.c2d().sender("service");
        sender.send_one(target, message).await.unwrap();
    }

    /// Messages that are not settled durably.
    async fn waiting(&self) -> u64 {
        let device = self.hub.hub.registry().get(&dev1().device).await.unwrap();
        let key = (dev1(), device.unwrap().generation_id.clone());
        let counts = self.hub.hub.c2d().message_counts(&[key]).await.unwrap();
        counts[0]
    }

    /// Waits until so many are left.
    async fn left(&self, count: u64) {
        let there = async {
            while self.waiting().await != count {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), there).await;
        assert!(waited.is_ok(), "{} are left", self.waiting().await);
    }

    /// A connection that is subscribed to commands.
    async fn subscribed(&self, qos: Qos) -> Device {
        let mut device = self.connected().await;
        device.subscribe_commands(qos).await;
        device
    }
}

impl Device {
    async fn subscribe_commands(&mut self, qos: Qos) {
        self.subscribe(&[(COMMANDS, qos)]);
        self.expect(Seen::Suback(vec![SubackCode::Granted(qos)]))
            .await;
    }

    /// The next thing, which must be a cloud-to-device message.
    async fn came(&mut self) -> Came {
        let seen = tokio::time::timeout(Duration::from_secs(20), self.next()).await;
        match seen.expect("the hub must send it") {
            Seen::Publish {
                payload,
                packet_id,
                dup,
                ..
            } => Came {
                body: payload,
                packet_id,
                dup,
            },
            other => panic!("no message: {other:?}"),
        }
    }

    fn ack(&mut self, came: &Came) {
        let packet_id = came.packet_id.and_then(PacketId::new).unwrap();
        let now = self.clock.monotonic();
        self.client.acknowledge(packet_id, now).unwrap();
    }

    async fn leave(mut self) {
        self.client.disconnect();
        self.expect(Seen::Closed).await;
        self.ended().await;
    }
}

fn bodies(all: &[Came]) -> Vec<&str> {
    all.iter().map(|came| came.body.as_str()).collect()
}

#[tokio::test]
async fn what_waits_comes_after_the_suback_and_an_acknowledgement_completes_it() {
    let fleet = Fleet::automatic().await;
    let message = CloudMessage {
        to: "/devices/dev1/messages/deviceBound".into(),
        message_id: Some("m7".into()),
        body: b"one"[..].into(),
        ..CloudMessage::default()
    };
    fleet.send_message(&message).await;
    let mut device = fleet.connected().await;
    // Nothing before the subscription.
    device.ping().await;
    device.subscribe_commands(Qos::AtLeastOnce).await;
    let Seen::Publish {
        topic,
        payload,
        qos,
        packet_id: Some(_),
        dup: false,
    } = device.next().await
    else {
        panic!("the message must come");
    };
    // One hour after 2027-01-15T08:00:00Z, by the hub's time to live.
    let expected = "devices/dev1/messages/devicebound/%24.mid=m7\
        &%24.to=%2Fdevices%2Fdev1%2Fmessages%2FdeviceBound\
        &%24.exp=2027-01-15T09%3A00%3A00.0000000Z";
    assert_eq!(topic, expected);
    assert_eq!((payload.as_str(), qos), ("one", Qos::AtLeastOnce));
    fleet.send("two").await;
    let two = device.came().await;
    assert_eq!(two.body, "two");
    assert_eq!(fleet.waiting().await, 2);
    // In any order.
    device.ack(&two);
    device.ping().await;
    fleet.left(1).await;
    device.leave().await;

    let mut device = fleet.connected().await;
    let again = device.came().await;
    assert_eq!((again.body.as_str(), again.dup), ("one", true));
    device.ack(&again);
    device.ping().await;
    fleet.left(0).await;
}

#[tokio::test]
async fn at_qos_0_it_is_done_when_it_is_written() {
    let fleet = Fleet::automatic().await;
    let mut device = fleet.subscribed(Qos::AtMostOnce).await;
    for n in 0..40 {
        fleet.send(&n.to_string()).await;
    }
    for n in 0..40 {
        let came = device.came().await;
        assert_eq!((came.body, came.packet_id), (n.to_string(), None));
    }
    fleet.left(0).await;
}

#[tokio::test]
async fn at_qos_0_it_is_not_done_before_it_is_written() {
    let fleet = Fleet::automatic().await;
    let mut device = Device::connect_within(&fleet.hub, &fleet.hello(), 4096);
    device.expect(NEW_SESSION).await;
    device.subscribe_commands(Qos::AtMostOnce).await;
    fleet.send_message(&large()).await;
    // More than the pipe holds: the rest stays with the hub for as long as nobody reads.
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fleet.waiting().await, 1);
    drop(device.stream);
    device.task.await.unwrap();
    assert_eq!(fleet.waiting().await, 1);

    let mut device = Device::connect_within(&fleet.hub, &fleet.hello(), 4096);
    device.expect(OLD_SESSION).await;
    assert_eq!(device.came().await.body.len(), LARGE_BYTES);
    fleet.left(0).await;
}

#[tokio::test]
async fn a_window_goes_out_and_the_rest_follows_the_acknowledgements() {
    let fleet = Fleet::automatic().await;
    for n in 0..20 {
        fleet.send(&n.to_string()).await;
    }
    let mut device = fleet.subscribed(Qos::AtLeastOnce).await;
    let mut came = Vec::new();
    for _ in 0..16 {
        came.push(device.came().await);
    }
    device.ping().await;
    device.ack(&came[3]);
    came.push(device.came().await);
    device.ping().await;
    device.ack(&came[0]);
    device.ack(&came[1]);
    came.push(device.came().await);
    came.push(device.came().await);
    let expected: Vec<String> = (0..19).map(|n| n.to_string()).collect();
    assert_eq!(bodies(&came), expected);
    let mut ids: Vec<_> = came.iter().map(|came| came.packet_id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 19);
    fleet.left(17).await;
}

const LARGE_BYTES: usize = 60_000;

fn large() -> CloudMessage<'static> {
    CloudMessage {
        to: "x".into(),
        body: vec![b'x'; LARGE_BYTES].into(),
        ..CloudMessage::default()
    }
}

/// With as much as this in the output nothing is asked for, and nobody asked again when it was gone.
#[tokio::test]
async fn large_messages_all_come_without_an_acknowledgement() {
    let fleet = Fleet::automatic().await;
    for _ in 0..16 {
        fleet.send_message(&large()).await;
    }
    let mut device = fleet.subscribed(Qos::AtLeastOnce).await;
    for _ in 0..16 {
        assert_eq!(device.came().await.body.len(), LARGE_BYTES);
    }
}

/// As long as it had large messages to take in, its pings were not read.
#[tokio::test]
async fn a_client_that_reads_slowly_is_not_silent() {
    let fleet = Fleet::automatic().await;
    for _ in 0..16 {
        fleet.send_message(&large()).await;
    }
    let mut device = Device::connect_within(&fleet.hub, &fleet.hello(), 4096);
    device.expect(NEW_SESSION).await;
    device.subscribe_commands(Qos::AtLeastOnce).await;
    let mut part = vec![0; 20_000];
    for _ in 0..16 * LARGE_BYTES / part.len() {
        device.raw(&PINGREQ).await;
        let read = device.stream.read_exact(&mut part);
        let read = tokio::time::timeout(Duration::from_secs(20), read).await;
        read.expect("it goes on").expect("it is not closed");
        // Of 60 seconds, one and a half times.
        device.clock.advance(Duration::from_secs(40));
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
    }
}

/// The longest topic and a large body are more than the hub lets a client leave unread of its
/// answers. One that sends before it reads on, as single-threaded ones do, waited for the hub, and
/// the hub for it.
#[tokio::test]
async fn a_client_may_send_before_it_takes_in_the_largest_message() {
    let fleet = Fleet::automatic().await;
    let mut message = CloudMessage {
        body: vec![b'x'; 44_000].into(),
        ..large()
    };
    // Each space is three bytes of the topic.
    message
        .properties
        .set("p".into(), Some(" ".repeat(21_000).into()));
    fleet.send_message(&message).await;
    let mut device = Device::connect_within(&fleet.hub, &fleet.hello(), 4096);
    device.expect(NEW_SESSION).await;
    device.subscribe_commands(Qos::AtLeastOnce).await;
    let event = device.publish(EVENTS, &[b'y'; 30_000]);
    let sent = tokio::time::timeout(Duration::from_secs(20), device.flush()).await;
    sent.expect("the hub reads");
    // It does not remember any number of answers for whoever reads nothing at all.
    let pings = PINGREQ.repeat(64 * 1024);
    tokio::select! {
        biased;
        _ = device.stream.write_all(&pings) => panic!("the hub must stop reading"),
        () = async {
            for _ in 0..1000 {
                tokio::task::yield_now().await;
            }
        } => {}
    }
    assert_eq!(device.came().await.body.len(), 44_000);
    loop {
        match device.next().await {
            Seen::Pingresp => {}
            seen => {
                assert_eq!(seen, Seen::Puback(event));
                break;
            }
        }
    }
}

#[tokio::test]
async fn what_expires_behind_an_unread_message_does_not_come() {
    let fleet = Fleet::automatic().await;
    let mut device = Device::connect_within(&fleet.hub, &fleet.hello(), 4096);
    device.expect(NEW_SESSION).await;
    device.subscribe_commands(Qos::AtLeastOnce).await;
    let message = CloudMessage {
        expires: Some(START.saturating_add(Duration::from_secs(120))),
        ..large()
    };
    for _ in 0..3 {
        fleet.send_message(&message).await;
    }
    for seconds in [80, 50] {
        device.raw(&PINGREQ).await;
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        device.clock.advance(Duration::from_secs(seconds));
    }
    // It was on its way before its time was over.
    let first = device.came().await;
    device.expect(Seen::Pingresp).await;
    device.expect(Seen::Pingresp).await;
    fleet.left(1).await;
    device.ack(&first);
    device.ping().await;
    fleet.left(0).await;
}

#[tokio::test]
async fn a_session_that_goes_on_gets_it_again_under_the_same_packet_id() {
    let fleet = Fleet::automatic().await;
    for body in ["a", "b", "c"] {
        fleet.send(body).await;
    }
    let mut device = fleet.subscribed(Qos::AtLeastOnce).await;
    let first = [
        device.came().await,
        device.came().await,
        device.came().await,
    ];
    assert_eq!(bodies(&first), ["a", "b", "c"]);
    device.ack(&first[1]);
    device.ping().await;
    fleet.left(2).await;
    // Without a word, or taken over.
    drop(device.stream);

    let mut taken_over = fleet.connected().await;
    let again = [taken_over.came().await, taken_over.came().await];
    let expected = [&first[0], &first[2]].map(|came| Came {
        dup: true,
        ..came.clone()
    });
    assert_eq!(again, expected);
    fleet.send("d").await;
    let new = taken_over.came().await;
    assert_eq!((new.body.as_str(), new.dup), ("d", false));
    assert!(first.iter().all(|came| came.packet_id != new.packet_id));

    let mut device = fleet.connected().await;
    taken_over.expect(Seen::Closed).await;
    let third = [
        device.came().await,
        device.came().await,
        device.came().await,
    ];
    assert_eq!(third[..2], expected);
    assert_eq!(third[2], Came { dup: true, ..new });
    for came in &third {
        device.ack(came);
    }
    device.ping().await;
    fleet.left(0).await;
}

#[tokio::test]
async fn a_clean_session_begins_anew() {
    let fleet = Fleet::automatic().await;
    fleet.send("a").await;
    let clean = Connect {
        clean_session: true,
        ..fleet.hello()
    };
    let mut device = fleet.subscribed(Qos::AtLeastOnce).await;
    let first = device.came().await;
    device.leave().await;

    // It ends the old session and everything that was in flight in it.
    let mut device = fleet.connected_as(&clean).await;
    device.ack(&first);
    device.ping().await;
    device.leave().await;
    assert_eq!(fleet.waiting().await, 1);

    let mut device = Device::connect(&fleet.hub, &fleet.hello());
    device.expect(NEW_SESSION).await;
    device.subscribe_commands(Qos::AtLeastOnce).await;
    let second = device.came().await;
    assert_eq!((second.body.as_str(), second.dup), ("a", false));
    device.leave().await;

    let mut device = fleet.connected_as(&clean).await;
    device.subscribe_commands(Qos::AtLeastOnce).await;
    let third = device.came().await;
    assert_eq!((third.body.as_str(), third.dup), ("a", false));
    device.ack(&third);
    device.ping().await;
    fleet.left(0).await;
}

#[tokio::test]
async fn an_acknowledgement_of_an_earlier_connection_completes_nothing() {
    let fleet = Fleet::automatic().await;
    fleet.send("a").await;
    let mut device = fleet.subscribed(Qos::AtLeastOnce).await;
    let old = device.came().await;
    device.leave().await;

    // Before the hub has sent it again, by anybody's clock: behind the CONNECT at once.
    let mut device = Device::connect(&fleet.hub, &fleet.hello());
    let clean = Connect {
        clean_session: true,
        ..fleet.hello()
    };
    device.expect(OLD_SESSION).await;
    let again = device.came().await;
    assert_eq!(
        again,
        Came {
            dup: true,
            ..old.clone()
        }
    );
    device.leave().await;
    let mut device = fleet.connected_as(&clean).await;
    device.subscribe_commands(Qos::AtLeastOnce).await;
    let new = device.came().await;
    assert!(!new.dup);
    if new.packet_id != old.packet_id {
        device.ack(&old);
        device.ping().await;
        fleet.left(1).await;
    }
    device.ack(&new);
    device.ping().await;
    fleet.left(0).await;
}

#[tokio::test]
async fn after_unsubscribing_nothing_comes_but_what_came_can_be_acknowledged() {
    let fleet = Fleet::automatic().await;
    for n in 0..18 {
        fleet.send(&n.to_string()).await;
    }
    let mut device = fleet.subscribed(Qos::AtLeastOnce).await;
    let mut came = Vec::new();
    for _ in 0..16 {
        came.push(device.came().await);
    }
    let now = device.clock.monotonic();
    device.client.unsubscribe(&[COMMANDS], now).unwrap();
    device.expect(Seen::Unsuback).await;
    for came in &came {
        device.ack(came);
    }
    device.ping().await;
    fleet.left(2).await;
    device.ping().await;
    fleet.send("new").await;
    device.ping().await;
    device.subscribe_commands(Qos::AtLeastOnce).await;
    let after = [
        device.came().await,
        device.came().await,
        device.came().await,
    ];
    assert_eq!(bodies(&after), ["16", "17", "new"]);
}

/// The hub may be about to deliver something when it hears that the client has unsubscribed. Nobody
/// else could have had the message until the client acknowledged what it had in flight.
#[tokio::test]
async fn what_is_delivered_while_the_client_unsubscribes_is_free_at_once() {
    let fleet = Fleet::automatic().await;
    let principal = fleet.hub.principal(&dev1()).await;
    let c2d = fleet.hub.hub.c2d();
    fleet.send("held elsewhere").await;
    let held = c2d.receive_one(&principal, None).await.unwrap().unwrap();
    let hello = Connect {
        clean_session: true,
        ..fleet.hello()
    };
    let mut device = fleet.connected_as(&hello).await;
    device.subscribe_commands(Qos::AtLeastOnce).await;
    fleet.send("in flight").await;
    assert_eq!(device.came().await.body, "in flight");
    // The owner of the queue hears all of this at once, and so much of it that it delivers before
    // it comes to the end, where the subscription is over.
    let now = device.clock.monotonic();
    device.client.unsubscribe(&[COMMANDS], now).unwrap();
    device.flush().await;
    let mut abandoned = Box::pin(c2d.settle(&principal, held.lock, Settlement::Abandon));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(abandoned.as_mut().poll(&mut cx).is_pending());
    let mut sender = c2d.sender("service");
    let much = vec![b'x'; 60_000];
    for ticket in 0..80 {
        let message = CloudMessage {
            to: "/devices/dev1/messages/devicebound".into(),
            body: much[..].into(),
            ..CloudMessage::default()
        };
        let target = Target {
            identity: dev1(),
            fallback: None,
        };
        sender.send(ticket, target, &message);
    }
    device.expect(Seen::Unsuback).await;
    abandoned.await.unwrap();
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    let next = c2d.receive_one(&principal, None).await.unwrap().unwrap();
    assert_eq!(next.sequence, held.sequence);
    device.ping().await;
}

#[tokio::test]
async fn a_device_may_reject_and_abandon() {
    let fleet = Fleet::automatic().await;
    let mut device = fleet.subscribed(Qos::AtLeastOnce).await;
    for body in ["a", "b", "c"] {
        fleet.send(body).await;
    }
    let first = [
        device.came().await,
        device.came().await,
        device.came().await,
    ];

    let rejected = device.publish(&format!("{REJECT}$mid=id%20a"), b"");
    device.expect(Seen::Puback(rejected)).await;
    assert_eq!(fleet.waiting().await, 2);
    device.ack(&first[0]);
    device.ping().await;
    assert_eq!(fleet.waiting().await, 2);

    let pid = first[1].packet_id.unwrap();
    let abandoned = device.publish(&format!("{ABANDON}$pid={pid}"), b"");
    let (mut again, mut acknowledged) = (None, false);
    for _ in 0..2 {
        match device.next().await {
            Seen::Puback(id) => acknowledged = id == abandoned,
            Seen::Publish {
                payload,
                packet_id,
                dup,
                ..
            } => again = Some((payload, packet_id, dup)),
            other => panic!("{other:?}"),
        }
    }
    assert!(acknowledged);
    let (body, packet_id, dup) = again.expect("it comes again at once");
    assert_eq!((body.as_str(), dup), ("b", false));
    assert_ne!(packet_id, Some(pid));
    // The acknowledgement of the delivery that was abandoned says nothing.
    device.ack(&first[1]);
    device.ping().await;
    assert_eq!(fleet.waiting().await, 2);

    // Nothing of that name: acknowledged, and nothing happens.
    for name in ["$mid=id%20a", "$mid=nobody", "$pid=0", "$pid=", ""] {
        let unknown = device.publish(&format!("{REJECT}{name}"), b"");
        device.expect(Seen::Puback(unknown)).await;
    }
    assert_eq!(fleet.waiting().await, 2);
    assert!(fleet.hub.events("dev1").await.is_empty());
    device.ack(&first[2]);
    device.ping().await;
    fleet.left(1).await;
}

#[tokio::test]
async fn a_rejection_is_acknowledged_when_it_is_durable() {
    let fleet = Fleet::automatic().await;
    let mut device = fleet.subscribed(Qos::AtLeastOnce).await;
    fleet.send("a").await;
    device.came().await;
    fleet.hub.store.queues.withhold(true);
    let rejected = device.publish(&format!("{REJECT}$mid=id%20a"), b"");
    device.ping().await;
    fleet.hub.store.queues.withhold(false);
    device.expect(Seen::Puback(rejected)).await;
    assert_eq!(fleet.waiting().await, 0);
}

#[tokio::test]
async fn a_device_that_rejects_and_never_acknowledges_is_not_deaf() {
    let fleet = Fleet::automatic().await;
    let mut device = fleet.subscribed(Qos::AtLeastOnce).await;
    for n in 0..40 {
        fleet.send(&n.to_string()).await;
        let came = device.came().await;
        assert_eq!(came.body, n.to_string());
        let rejected = device.publish(&format!("{REJECT}$mid=id%20{n}"), b"");
        device.expect(Seen::Puback(rejected)).await;
    }
    fleet.left(0).await;
}

#[tokio::test]
async fn the_java_sdk_gets_no_empty_values() {
    let fleet = Fleet::automatic().await;
    let mut message = CloudMessage {
        to: "x".into(),
        ..CloudMessage::default()
    };
    message.properties.set("empty".into(), Some("".into()));
    message.properties.set("null".into(), None);
    message.properties.set("full".into(), Some("1".into()));
    fleet.send_message(&message).await;
    let java = "localhost/dev1/?DeviceClientType=com.microsoft.azure.sdk.iot.iot-device-client%2F2";
    let names = [
        (fleet.hello().user_name.unwrap(), "&empty=&null&full=1"),
        (java, "&full=1"),
    ];
    for (user_name, ending) in names {
        let hello = Connect {
            user_name: Some(user_name),
            ..fleet.hello()
        };
        let mut device = fleet.connected_as(&hello).await;
        device.subscribe(&[(COMMANDS, Qos::AtLeastOnce)]);
        loop {
            match device.next().await {
                Seen::Publish { topic, .. } => {
                    let bag = topic.split_once(".0000000Z").unwrap().1;
                    assert_eq!(bag, ending);
                    break;
                }
                Seen::Suback(_) => {}
                other => panic!("{other:?}"),
            }
            device.flush().await;
        }
        device.leave().await;
    }
}

#[tokio::test]
async fn a_drained_connection_gets_no_more_and_gives_back_what_it_has() {
    let fleet = Fleet::automatic().await;
    let mut device = fleet.subscribed(Qos::AtLeastOnce).await;
    fleet.send("a").await;
    let first = device.came().await;
    device.drain.begin();
    device.expect(Seen::Closed).await;
    fleet.send("b").await;
    device.ended().await;
    let mut device = fleet.connected().await;
    let again = device.came().await;
    assert_eq!(again, Came { dup: true, ..first });
    assert_eq!(device.came().await.body, "b");
}

/// No SDK encodes the id in client id, user name or topic, so each is compared as it is, also where
/// it looks like a wildcard or an escape.
#[tokio::test]
async fn a_device_id_stands_in_topics_as_it_is() {
    const ID: &str = "a+b#c%41?$=";
    let hub = TestHub::automatic().await;
    let key = hub.device(ID).await;
    let token = sas_token(&format!("localhost/devices/{ID}"), &key, expiry(3600));
    let user_name = format!("localhost/{ID}/?api-version=2021-04-12");
    let connect = Connect {
        client_id: ID,
        clean_session: false,
        keep_alive_s: 60,
        will: None,
        user_name: Some(&user_name),
        password: Some(token.as_bytes()),
    };
    let mut device = Device::connect(&hub, &connect);
    device.expect(NEW_SESSION).await;
    device.subscribe(&[(
        &format!("devices/{ID}/messages/devicebound/#"),
        Qos::AtLeastOnce,
    )]);
    device
        .expect(Seen::Suback(vec![SubackCode::Granted(Qos::AtLeastOnce)]))
        .await;
    let event = device.publish(&format!("devices/{ID}/messages/events/a=b"), b"one");
    device.expect(Seen::Puback(event)).await;
    assert_eq!(hub.events(ID).await[0].body, "one");
    let message = CloudMessage {
        to: "x".into(),
        body: b"two"[..].into(),
        ..CloudMessage::default()
    };
    let target = Target {
        identity: Identity::of_device(ID.parse().unwrap()),
        fallback: None,
    };
    let mut sender = hub.hub.c2d().sender("service");
    sender.send_one(target, &message).await.unwrap();
    let Seen::Publish { topic, payload, .. } = device.next().await else {
        panic!("the message must come");
    };
    let prefix = format!("devices/{ID}/messages/devicebound/%24.to=x");
    assert!(topic.starts_with(&prefix), "{topic}");
    assert_eq!(payload, "two");
    // Somebody else's, by any reading of it.
    device.publish("devices/axb#c%41?$=/messages/events/", b"three");
    device.expect(Seen::Closed).await;
}
