//! A client and a server engine joined by two queues and a clock that is moved by hand.

use std::collections::VecDeque;
use std::time::Duration;

use fieldpost_mqtt::{
    AckTicket, ClientConnection, ClientEvent, ClientOptions, Connack, Connect, Message, PacketId,
    PacketType, Qos, Refusal, SendError, ServerConnection, ServerEvent, ServerOptions, SubackCode,
    Timeout, Violation, packet,
};
use proptest::prelude::*;

const CONNECT: Connect<'static> = Connect {
    client_id: "dev1",
    clean_session: false,
    keep_alive_s: 60,
    will: None,
    user_name: Some("user"),
    password: Some(b"password"),
};

/// Both ends of a connection. Events are kept as text.
struct Pair {
    now: Duration,
    client: ClientConnection,
    server: ServerConnection,
    at_client: Vec<String>,
    at_server: Vec<String>,
    tickets: VecDeque<AckTicket>,
    answer: Result<bool, Refusal>,
}

impl Pair {
    fn new(connect: &Connect<'_>, client: ClientOptions) -> Self {
        let now = Duration::from_secs(5);
        Self {
            now,
            client: ClientConnection::new(connect, client, now).expect("a valid CONNECT"),
            server: ServerConnection::new(ServerOptions::default(), now),
            at_client: Vec::new(),
            at_server: Vec::new(),
            tickets: VecDeque::new(),
            answer: Ok(false),
        }
    }

    fn connected() -> Self {
        let mut pair = Self::new(&CONNECT, ClientOptions::default());
        pair.exchange();
        assert_eq!(
            pair.client_events(),
            ["connack Accepted { session_present: false }"]
        );
        assert_eq!(pair.server_events(), ["connect dev1"]);
        pair
    }

    /// Carries bytes both ways until neither side has any left.
    fn exchange(&mut self) {
        while self.client.output_len() + self.server.output_len() > 0 {
            self.carry_to_server();
            self.carry_to_client();
        }
    }

    fn carry_to_server(&mut self) {
        let bytes = self.client.take_output();
        let mut input = bytes.as_ref();
        while !input.is_empty() {
            let event = self
                .server
                .next(&mut input, self.now)
                .expect("no violation");
            match event {
                Some(ServerEvent::Connect(connect)) => {
                    self.at_server
                        .push(format!("connect {}", connect.client_id));
                    match self.answer {
                        Ok(session_present) => self.server.accept(session_present, self.now),
                        Err(refusal) => self.server.refuse(refusal),
                    }
                }
                Some(ServerEvent::Publish { publish, ticket }) => {
                    let payload = String::from_utf8_lossy(publish.payload);
                    let dup = if publish.dup { " again" } else { "" };
                    self.at_server
                        .push(format!("publish {} {payload}{dup}", publish.topic));
                    self.tickets.extend(ticket);
                }
                Some(ServerEvent::Subscribe(subscribe)) => {
                    let filters: Vec<_> = subscribe.filters().collect();
                    self.at_server.push(format!("subscribe {filters:?}"));
                    let codes: Vec<_> = filters
                        .iter()
                        .map(|(_, qos)| SubackCode::Granted(Qos::AtLeastOnce.min(*qos)))
                        .collect();
                    let packet_id = subscribe.packet_id;
                    self.server.suback(packet_id, &codes).expect("open");
                }
                Some(ServerEvent::Unsubscribe(unsubscribe)) => {
                    let filters: Vec<_> = unsubscribe.filters().collect();
                    self.at_server.push(format!("unsubscribe {filters:?}"));
                    let packet_id = unsubscribe.packet_id;
                    self.server.unsuback(packet_id).expect("open");
                }
                Some(ServerEvent::Puback { packet_id }) => {
                    self.at_server.push(format!("puback {packet_id}"));
                }
                Some(ServerEvent::Disconnect) => self.at_server.push("disconnect".to_owned()),
                None => assert!(input.is_empty()),
            }
        }
    }

    fn carry_to_client(&mut self) {
        let bytes = self.server.take_output();
        let mut input = bytes.as_ref();
        while let Some(event) = self.client.next(&mut input).expect("no violation") {
            self.at_client.push(match event {
                ClientEvent::Connack(connack) => format!("connack {connack:?}"),
                ClientEvent::Publish(publish) => {
                    let payload = String::from_utf8_lossy(publish.payload);
                    format!("publish {} {payload}", publish.topic)
                }
                ClientEvent::Puback { packet_id } => format!("puback {packet_id}"),
                ClientEvent::Suback(suback) => {
                    format!(
                        "suback {} {:?}",
                        suback.packet_id,
                        Vec::from_iter(suback.codes())
                    )
                }
                ClientEvent::Unsuback { packet_id } => format!("unsuback {packet_id}"),
                ClientEvent::Pingresp => "pingresp".to_owned(),
            });
        }
        assert!(input.is_empty());
    }

    fn client_events(&mut self) -> Vec<String> {
        std::mem::take(&mut self.at_client)
    }

    fn server_events(&mut self) -> Vec<String> {
        std::mem::take(&mut self.at_server)
    }
}

fn message<'a>(topic: &'a str, payload: &'a str) -> Message<'a> {
    Message {
        topic,
        payload: payload.as_bytes(),
        retain: false,
    }
}

#[test]
fn a_device_at_work() {
    let mut pair = Pair::connected();
    let now = pair.now;
    let filters = [("in/#", Qos::ExactlyOnce), ("other", Qos::AtMostOnce)];
    let subscription = pair.client.subscribe(&filters, now);
    assert_eq!(subscription, Ok(PacketId::MIN));
    pair.client
        .publish_at_most_once(message("out", "zero"), now)
        .expect("open");
    let one = pair
        .client
        .publish_at_least_once(message("out", "one"), now);
    let two = pair
        .client
        .publish_at_least_once(message("out", "two"), now);
    assert_eq!(
        (one.map(PacketId::get), two.map(PacketId::get)),
        (Ok(2), Ok(3))
    );
    pair.exchange();
    assert_eq!(
        pair.server_events(),
        [
            "subscribe [(\"in/#\", ExactlyOnce), (\"other\", AtMostOnce)]",
            "publish out zero",
            "publish out one",
            "publish out two",
        ]
    );
    let suback = "suback 1 [Granted(AtLeastOnce), Granted(AtMostOnce)]";
    assert_eq!(pair.client_events(), [suback]);
    assert_eq!((pair.client.in_flight(), pair.server.in_flight()), (2, 2));

    let last = pair.tickets.pop_back().expect("two tickets");
    pair.server.acknowledge_through(last);
    pair.server
        .publish_at_most_once("in/1", b"hello")
        .expect("open");
    pair.client.unsubscribe(&["in/#"], now).expect("open");
    pair.exchange();
    assert_eq!(
        pair.client_events(),
        ["puback 2", "puback 3", "publish in/1 hello", "unsuback 4"]
    );
    assert_eq!((pair.client.in_flight(), pair.server.in_flight()), (0, 0));

    pair.client.disconnect();
    assert!(pair.client.is_closed());
    pair.exchange();
    assert_eq!(
        pair.server_events(),
        ["unsubscribe [\"in/#\"]", "disconnect"]
    );
    assert!(pair.server.is_closed());
    // A second farewell is not sent.
    pair.client.disconnect();
    assert_eq!(pair.client.output_len(), 0);
}

#[test]
fn messages_may_follow_connect_at_once() {
    let mut pair = Pair::new(&CONNECT, ClientOptions::default());
    pair.answer = Ok(true);
    let now = pair.now;
    pair.client
        .publish_at_most_once(message("out", "early"), now)
        .expect("open");
    pair.exchange();
    assert_eq!(pair.server_events(), ["connect dev1", "publish out early"]);
    assert_eq!(
        pair.client_events(),
        ["connack Accepted { session_present: true }"]
    );
}

#[test]
fn a_refused_client_is_closed() {
    let mut pair = Pair::new(&CONNECT, ClientOptions::default());
    pair.answer = Err(Refusal::NotAuthorized);
    pair.exchange();
    assert_eq!(pair.client_events(), ["connack Refused(NotAuthorized)"]);
    assert!(pair.client.is_closed() && pair.server.is_closed());
    let now = pair.now;
    assert_eq!(
        pair.client.publish_at_most_once(message("out", ""), now),
        Err(SendError::NotOpen)
    );
    assert_eq!(pair.client.deadline(), None);
}

#[test]
fn pings_keep_a_quiet_connection_alive() {
    let mut pair = Pair::connected();
    for _ in 0..100 {
        // A quarter of the keep-alive is left when the ping goes out.
        assert_eq!(
            pair.client.deadline(),
            Some(pair.now + Duration::from_secs(45))
        );
        pair.now += Duration::from_secs(45);
        pair.client.tick(pair.now).expect("alive");
        assert_eq!(pair.client.output(), [0xc0, 0]);
        pair.exchange();
        assert_eq!(pair.client_events(), ["pingresp"]);
        pair.server.tick(pair.now).expect("alive");
    }
    // Traffic takes the place of pings.
    pair.now += Duration::from_secs(40);
    pair.client
        .publish_at_most_once(message("out", ""), pair.now)
        .expect("open");
    assert_eq!(
        pair.client.deadline(),
        Some(pair.now + Duration::from_secs(45))
    );
    pair.exchange();
    // A client that has vanished is given one and a half times the keep-alive.
    pair.now += Duration::from_secs(89);
    pair.server.tick(pair.now).expect("alive");
    pair.now += Duration::from_secs(1);
    assert_eq!(pair.server.tick(pair.now), Err(Timeout::KeepAlive));
}

#[test]
fn a_silent_server_is_noticed() {
    let mut pair = Pair::new(&CONNECT, ClientOptions::default());
    assert_eq!(
        pair.client.deadline(),
        Some(pair.now + Duration::from_secs(60))
    );
    assert_eq!(
        pair.client.tick(pair.now + Duration::from_secs(60)),
        Err(Timeout::Connack)
    );
    assert!(pair.client.is_closed());

    let mut pair = Pair::connected();
    pair.now += Duration::from_secs(45);
    pair.client.tick(pair.now).expect("a ping");
    pair.now += Duration::from_secs(29);
    pair.client.tick(pair.now).expect("waiting");
    assert_eq!(pair.client.output_len(), 2);
    pair.now += Duration::from_secs(1);
    assert_eq!(pair.client.tick(pair.now), Err(Timeout::Pingresp));
    assert!(pair.client.is_closed());
}

#[test]
fn without_keep_alive_the_client_never_pings() {
    let connect = Connect {
        keep_alive_s: 0,
        ..CONNECT
    };
    let mut pair = Pair::new(&connect, ClientOptions::default());
    pair.exchange();
    assert_eq!(pair.client.deadline(), None);
    pair.client.tick(Duration::MAX).expect("nothing to do");
    assert_eq!(pair.client.output_len(), 0);
}

#[test]
fn unacknowledged_messages_are_sent_again_after_a_reconnect() {
    let mut pair = Pair::connected();
    let now = pair.now;
    for payload in ["a", "b", "c"] {
        pair.client
            .publish_at_least_once(message("out", payload), now)
            .expect("open");
    }
    pair.client
        .subscribe(&[("in", Qos::AtMostOnce)], now)
        .expect("open");
    pair.carry_to_server();
    let first = pair.tickets.pop_front().expect("three tickets");
    pair.server.acknowledge_through(first);
    pair.carry_to_client();
    let left: Vec<PacketId> = pair.client.unacknowledged_publishes().collect();
    assert_eq!(left.iter().map(|id| id.get()).collect::<Vec<_>>(), [2, 3]);

    let mut pair = Pair::connected();
    for (packet_id, payload) in left.into_iter().zip(["b", "c"]) {
        pair.client
            .publish_again(packet_id, message("out", payload), now)
            .expect("open");
        // Twice is once too often.
        assert_eq!(
            pair.client
                .publish_again(packet_id, message("out", payload), now),
            Err(SendError::PacketIdInUse { packet_id })
        );
    }
    let new = pair.client.publish_at_least_once(message("out", "d"), now);
    assert_eq!(new.map(PacketId::get), Ok(4));
    pair.exchange();
    assert_eq!(
        pair.server_events(),
        [
            "publish out b again",
            "publish out c again",
            "publish out d"
        ]
    );
    let last = pair.tickets.pop_back().expect("three tickets");
    pair.server.acknowledge_through(last);
    pair.exchange();
    assert_eq!(pair.client_events(), ["puback 2", "puback 3", "puback 4"]);
}

#[test]
fn a_client_takes_wildcards_in_topics_where_its_caller_lets_it() {
    let options = ClientOptions {
        wildcards_in_topics: true,
        ..ClientOptions::default()
    };
    let mut pair = Pair::new(&CONNECT, options);
    pair.exchange();
    pair.client_events();
    let mut input = &b"\x30\x05\0\x03#/+"[..];
    let event = pair.client.next(&mut input).expect("a good packet");
    let Some(ClientEvent::Publish(publish)) = event else {
        panic!("a message must come: {event:?}")
    };
    assert_eq!(publish.topic, "#/+");
}

#[test]
fn the_window_bounds_what_is_in_flight() {
    let options = ClientOptions {
        in_flight_max: 2,
        ..ClientOptions::default()
    };
    let mut pair = Pair::new(&CONNECT, options);
    pair.exchange();
    let now = pair.now;
    pair.client
        .subscribe(&[("in", Qos::AtMostOnce)], now)
        .expect("room");
    pair.client
        .publish_at_least_once(message("out", ""), now)
        .expect("room");
    let length = pair.client.output_len();
    let full = Err(SendError::WindowFull);
    let sent = pair.client.publish_at_least_once(message("out", ""), now);
    assert_eq!(sent, full);
    assert_eq!(pair.client.unsubscribe(&["in"], now), full);
    assert_eq!(pair.client.output_len(), length);
    // QoS 0 needs no place.
    pair.client
        .publish_at_most_once(message("out", ""), now)
        .expect("open");
    pair.exchange();
    assert!(
        pair.client
            .publish_at_least_once(message("out", ""), now)
            .is_ok()
    );
}

#[test]
fn every_packet_id_can_be_in_flight_and_is_used_again() {
    let options = ClientOptions {
        in_flight_max: u16::MAX,
        ..ClientOptions::default()
    };
    let mut pair = Pair::new(&CONNECT, options);
    pair.exchange();
    let now = pair.now;
    for expected in 1..=u16::MAX {
        let sent = pair.client.publish_at_least_once(message("t", ""), now);
        assert_eq!(sent.map(PacketId::get), Ok(expected));
    }
    let sent = pair.client.publish_at_least_once(message("t", ""), now);
    assert_eq!(sent, Err(SendError::WindowFull));
    pair.exchange();
    let ticket = pair.tickets.pop_front().expect("a ticket");
    pair.server.acknowledge_through(ticket);
    pair.exchange();
    let sent = pair.client.publish_at_least_once(message("t", ""), now);
    assert_eq!(sent.map(PacketId::get), Ok(1));
}

#[test]
fn what_a_server_may_not_send() {
    let check = |open: bool, bytes: &[u8], violation: Violation| {
        let mut pair = if open {
            Pair::connected()
        } else {
            Pair::new(&CONNECT, ClientOptions::default())
        };
        assert_eq!(pair.client.next(&mut { bytes }), Err(violation));
        assert!(pair.client.is_closed());
    };
    let packet = PacketType::Pingresp;
    check(false, &[0xd0, 0], Violation::NotOpened { packet });
    let packet = PacketType::Connack;
    check(true, &[0x20, 2, 0, 0], Violation::Unexpected { packet });
    let packet = PacketType::Pingreq;
    check(true, &[0xc0, 0], Violation::Unexpected { packet });
    check(true, b"\x34\x05\0\x01t\0\x01", Violation::QosTwo);
    check(true, b"\x30\x03\0\x01#", Violation::WildcardInTopic);
    let packet_id = PacketId::MIN;
    for (bytes, packet) in [
        ([0x40, 2, 0, 1].as_slice(), PacketType::Puback),
        (&[0x90, 3, 0, 1, 0], PacketType::Suback),
        (&[0xb0, 2, 0, 1], PacketType::Unsuback),
    ] {
        check(true, bytes, Violation::NotInFlight { packet, packet_id });
    }
}

#[test]
fn an_acknowledgement_must_be_of_the_right_kind() {
    let mut pair = Pair::connected();
    let now = pair.now;
    let packet_id = pair
        .client
        .publish_at_least_once(message("t", ""), now)
        .expect("open");
    let packet = PacketType::Suback;
    assert_eq!(
        pair.client.next(&mut [0x90, 3, 0, 1, 0].as_slice()),
        Err(Violation::NotInFlight { packet, packet_id })
    );
}

#[test]
fn a_client_acknowledges_what_it_is_sent_at_qos_1() {
    let mut pair = Pair::connected();
    let event = pair.client.next(&mut b"\x32\x05\0\x01t\0\x09".as_slice());
    let Ok(Some(ClientEvent::Publish(publish))) = event else {
        panic!("{event:?}");
    };
    let packet_id = publish.packet_id.expect("QoS 1");
    pair.client.acknowledge(packet_id, pair.now).expect("open");
    assert_eq!(pair.client.output(), [0x40, 2, 0, 9]);
    // The server reads over it, since it has sent no such message.
    pair.exchange();
    assert_eq!(pair.server_events(), Vec::<String>::new());
    assert!(!pair.server.is_closed());
}

#[test]
fn messages_to_a_client_outlive_its_connection() {
    let mut pair = Pair::connected();
    let mut sent = Vec::new();
    for payload in ["a", "b", "c"] {
        let id = pair.server.publish_at_least_once("in", payload.as_bytes());
        sent.push(id.expect("room"));
    }
    pair.exchange();
    let arrived = ["publish in a", "publish in b", "publish in c"];
    assert_eq!(pair.client_events(), arrived);
    pair.client.acknowledge(sent[1], pair.now).expect("open");
    pair.exchange();
    assert_eq!(pair.server_events(), ["puback 2"]);
    // This one is lost with the connection.
    pair.client.acknowledge(sent[0], pair.now).expect("open");

    let mut pair = Pair::connected();
    // An acknowledgement of the old connection that comes before the message does means nothing.
    pair.client.acknowledge(sent[2], pair.now).expect("open");
    pair.exchange();
    for (packet_id, payload) in [(sent[0], b"a"), (sent[2], b"c")] {
        let again = pair.server.publish_again(packet_id, "in", payload);
        again.expect("free");
    }
    let fresh = pair.server.publish_at_least_once("in", b"d").expect("room");
    assert!(!sent.contains(&fresh) || fresh == sent[1]);
    pair.exchange();
    let arrived = ["publish in a", "publish in c", "publish in d"];
    assert_eq!(pair.client_events(), arrived);
    assert_eq!(pair.server.deliveries_in_flight(), 3);
    for packet_id in [fresh, sent[2], sent[0]] {
        pair.client.acknowledge(packet_id, pair.now).expect("open");
    }
    pair.exchange();
    assert_eq!(pair.server_events(), ["puback 2", "puback 3", "puback 1"]);
    assert_eq!(pair.server.deliveries_in_flight(), 0);
}

/// One step of a conversation with random timing.
#[derive(Debug, Clone)]
enum Step {
    Send {
        at_least_once: bool,
    },
    Ping,
    Carry,
    /// Releases this many of the tickets in hand, at once.
    Release(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => any::<bool>().prop_map(|at_least_once| Step::Send { at_least_once }),
        1 => Just(Step::Ping),
        3 => Just(Step::Carry),
        3 => (0_usize..6).prop_map(Step::Release),
    ]
}

proptest! {
    /// Whatever the order of sending, carrying and releasing: each PUBACK comes once, in the
    /// order of the publishes, and not before its release.
    #[test]
    fn acknowledgements_keep_order_and_wait_for_release(
        steps in proptest::collection::vec(step(), 0..80),
    ) {
        let mut pair = Pair::connected();
        let mut sent = Vec::new();
        let mut released = 0;
        let mut acknowledged = Vec::new();
        for step in steps {
            match step {
                Step::Send { at_least_once: false } => {
                    pair.client.publish_at_most_once(message("t", ""), pair.now).expect("open");
                }
                Step::Send { at_least_once: true } => {
                    let id = pair.client.publish_at_least_once(message("t", ""), pair.now);
                    sent.push(format!("puback {}", id.expect("room")));
                }
                // A ping in between changes nothing; its answer may overtake a held PUBACK.
                Step::Ping => {
                    let mut ping = bytes::BytesMut::new();
                    packet::put_pingreq(&mut ping);
                    let event = pair.server.next(&mut ping.as_ref(), pair.now);
                    prop_assert_eq!(event, Ok(None));
                }
                Step::Carry => pair.exchange(),
                Step::Release(count) => {
                    let count = count.min(pair.tickets.len());
                    if let Some(ticket) = pair.tickets.drain(..count).next_back() {
                        pair.server.acknowledge_through(ticket);
                    }
                    released += count;
                    prop_assert_eq!(pair.server.in_flight(), pair.tickets.len());
                }
            }
            let events = pair.client_events();
            acknowledged.extend(events.into_iter().filter(|event| event != "pingresp"));
            prop_assert!(acknowledged.len() <= released);
            prop_assert_eq!(&acknowledged[..], sent.get(..acknowledged.len()).unwrap_or_default());
        }
        pair.exchange();
        if let Some(&ticket) = pair.tickets.back() {
            pair.server.acknowledge_through(ticket);
        }
        pair.exchange();
        let events = pair.client_events();
        acknowledged.extend(events.into_iter().filter(|event| event != "pingresp"));
        prop_assert_eq!(acknowledged, sent);
        prop_assert_eq!((pair.client.in_flight(), pair.server.in_flight()), (0, 0));
    }

    /// Packet ids against a plain list: never two alike in flight, acknowledged in any order.
    #[test]
    fn packet_ids_in_flight_are_distinct(
        first_id: u16,
        steps in proptest::collection::vec(proptest::option::of(any::<prop::sample::Index>()), 0..200),
    ) {
        let mut pair = Pair::connected();
        let mut in_flight = Vec::new();
        // Start anywhere in the range of ids, so that the wrap is met.
        if let Some(packet_id) = PacketId::new(first_id) {
            pair.client.publish_again(packet_id, message("t", ""), pair.now).expect("free");
            in_flight.push(packet_id);
        }
        for step in steps {
            match step {
                Some(index) if !in_flight.is_empty() => {
                    let packet_id = in_flight.remove(index.index(in_flight.len()));
                    let mut bytes = bytes::BytesMut::new();
                    packet::put_pubacks(&mut bytes, std::iter::once(packet_id));
                    let event = pair.client.next(&mut bytes.as_ref());
                    prop_assert_eq!(event, Ok(Some(ClientEvent::Puback { packet_id })));
                }
                _ => {
                    let id = pair.client.publish_at_least_once(message("t", ""), pair.now);
                    let id = id.expect("room");
                    prop_assert!(!in_flight.contains(&id));
                    in_flight.push(id);
                }
            }
            prop_assert_eq!(pair.client.unacknowledged_publishes().collect::<Vec<_>>(), &in_flight[..]);
        }
    }
}

#[test]
fn connack_is_understood_as_written() {
    for connack in [
        Connack::Accepted {
            session_present: true,
        },
        Connack::Refused(Refusal::ServerUnavailable),
    ] {
        let mut pair = Pair::new(&CONNECT, ClientOptions::default());
        let mut bytes = bytes::BytesMut::new();
        connack.put(&mut bytes);
        let event = pair.client.next(&mut bytes.as_ref());
        assert_eq!(event, Ok(Some(ClientEvent::Connack(connack))));
    }
}
