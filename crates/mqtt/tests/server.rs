//! A server connection against a scripted peer: what it answers, what it refuses, when it gives up.

use std::time::Duration;

use bytes::BytesMut;
use fieldpost_mqtt::{
    AckTicket, Assembler, Connect, DecodeError, Packet, PacketId, PacketType, Publish, Qos,
    Refusal, SendError, ServerConnection, ServerEvent, ServerOptions, SubackCode, Timeout,
    Violation, Will, packet,
};

const START: Duration = Duration::from_secs(1000);

const CONNECT: Connect<'static> = Connect {
    client_id: "dev1",
    clean_session: false,
    keep_alive_s: 60,
    will: None,
    user_name: None,
    password: None,
};

fn seconds(seconds: u64) -> Duration {
    START + Duration::from_secs(seconds)
}

fn connect_bytes(connect: &Connect<'_>) -> BytesMut {
    let mut out = BytesMut::new();
    connect.encode(&mut out).expect("a valid CONNECT");
    out
}

fn publish_bytes(packet_id: Option<u16>, topic: &str, payload: &[u8]) -> BytesMut {
    let mut out = BytesMut::new();
    let packet_id = packet_id.and_then(PacketId::new);
    let publish = Publish {
        dup: false,
        qos: match packet_id {
            None => Qos::AtMostOnce,
            Some(_) => Qos::AtLeastOnce,
        },
        retain: false,
        topic,
        packet_id,
        payload,
    };
    publish.encode(&mut out).expect("a valid PUBLISH");
    out
}

fn new_server() -> ServerConnection {
    ServerConnection::new(ServerOptions::default(), START)
}

/// A server that has accepted `connect` and whose CONNACK has been written.
fn connected_with(connect: &Connect<'_>) -> ServerConnection {
    let mut server = new_server();
    let bytes = connect_bytes(connect);
    let event = server.next(&mut bytes.as_ref(), START);
    assert_eq!(event, Ok(Some(ServerEvent::Connect(*connect))));
    server.accept(false, START);
    assert_eq!(server.take_output()[..], [0x20, 2, 0, 0]);
    server
}

fn connected() -> ServerConnection {
    connected_with(&CONNECT)
}

/// Feeds one QoS 1 publish.
fn take_ticket(server: &mut ServerConnection, packet_id: u16) -> AckTicket {
    let bytes = publish_bytes(Some(packet_id), "t", b"x");
    match server.next(&mut bytes.as_ref(), START) {
        Ok(Some(ServerEvent::Publish {
            ticket: Some(ticket),
            ..
        })) => ticket,
        other => panic!("{other:?}"),
    }
}

#[test]
fn connect_is_decided_by_the_caller_before_anything_else_is_read() {
    let mut server = new_server();
    let publish = publish_bytes(None, "t", b"early");
    let bytes = [connect_bytes(&CONNECT).as_ref(), publish.as_ref()].concat();
    let mut input = bytes.as_slice();
    let event = server.next(&mut input, START);
    assert_eq!(event, Ok(Some(ServerEvent::Connect(CONNECT))));
    assert_eq!(input, publish);
    assert_eq!(server.next(&mut input, START), Ok(None));
    assert_eq!(input, publish);
    assert_eq!(server.deadline(), None);

    server.accept(true, START);
    assert_eq!(server.output(), [0x20, 2, 1, 0]);
    assert!(matches!(
        server.next(&mut input, START),
        Ok(Some(ServerEvent::Publish { ticket: None, .. }))
    ));
    assert_eq!(server.next(&mut input, START), Ok(None));
    assert!(input.is_empty());
    // A second answer has no effect.
    server.accept(true, START);
    server.refuse(Refusal::NotAuthorized);
    assert_eq!(server.output_len(), 4);
    assert!(!server.is_closed());
}

#[test]
fn a_clean_session_is_never_present() {
    let mut server = new_server();
    let connect = Connect {
        clean_session: true,
        client_id: "",
        ..CONNECT
    };
    let bytes = connect_bytes(&connect);
    assert!(server.next(&mut bytes.as_ref(), START).is_ok());
    server.accept(true, START);
    assert_eq!(server.output(), [0x20, 2, 0, 0]);
}

#[test]
fn refusals() {
    for (refusal, code) in [
        (Refusal::UnacceptableProtocolLevel, 1),
        (Refusal::IdentifierRejected, 2),
        (Refusal::ServerUnavailable, 3),
        (Refusal::BadUserNameOrPassword, 4),
        (Refusal::NotAuthorized, 5),
    ] {
        let mut server = new_server();
        let bytes = [connect_bytes(&CONNECT).as_ref(), &[0xc0, 0]].concat();
        let mut input = bytes.as_slice();
        assert!(server.next(&mut input, START).is_ok());
        server.refuse(refusal);
        assert_eq!(server.output(), [0x20, 2, 0, code]);
        assert!(server.is_closed());
        // What came after the CONNECT is dropped.
        assert_eq!(server.next(&mut input, START), Ok(None));
        assert!(input.is_empty());
    }
}

#[test]
fn first_packets_that_open_nothing() {
    let check = |bytes: &[u8], violation: Violation, answer: &[u8]| {
        let mut server = new_server();
        assert_eq!(server.next(&mut { bytes }, START), Err(violation));
        assert_eq!(server.output(), answer);
        assert!(server.is_closed());
        assert_eq!(server.deadline(), None);
    };
    let level = |level| Violation::UnsupportedLevel { level };
    check(
        b"\x10\x12\0\x06MQIsdp\x03\x02\0\x3c\0\x04dev1",
        level(3),
        &[0x20, 2, 0, 1],
    );
    check(
        b"\x10\x10\0\x04MQTT\x03\x02\0\x3c\0\x04dev1",
        level(3),
        &[0x20, 2, 0, 1],
    );
    // MQTT 5, with its property length after the keep-alive.
    check(
        b"\x10\x11\0\x04MQTT\x05\x02\0\x3c\0\0\x04dev1",
        level(5),
        &[0x20, 3, 0, 0x84, 0],
    );
    // What some brokers send to each other.
    check(
        b"\x10\x10\0\x04MQTT\x84\x02\0\x3c\0\x04dev1",
        level(0x84),
        &[0x20, 2, 0, 1],
    );
    check(
        b"\x10\x0c\0\x04MQTT\x04\0\0\x3c\0\0",
        Violation::ClientIdMissing,
        &[0x20, 2, 0, 2],
    );
    check(
        b"\x10\x10\0\x04HTTP\x04\x02\0\x3c\0\x04dev1",
        Violation::Malformed(DecodeError::ProtocolName),
        &[],
    );
    let not_opened = |packet| Violation::NotOpened { packet };
    check(&[0xc0, 0], not_opened(PacketType::Pingreq), &[]);
    check(b"\x30\x03\0\x01t", not_opened(PacketType::Publish), &[]);
    check(&[0xe0, 0], not_opened(PacketType::Disconnect), &[]);
    // The first bytes of a TLS handshake and of an HTTP request.
    for (byte, packet_type) in [(0x16, PacketType::Connect), (b'G', PacketType::Puback)] {
        let flags = byte & 0x0f;
        let error = DecodeError::Flags { packet_type, flags };
        check(&[byte], error.into(), &[]);
    }
}

#[test]
fn packets_that_end_the_connection() {
    let check = |bytes: &[u8], violation: Violation| {
        let mut server = connected();
        assert_eq!(server.next(&mut { bytes }, START), Err(violation));
        assert!(server.is_closed());
        assert_eq!(server.output(), []);
        let mut more = [0xc0, 0].as_slice();
        assert_eq!(server.next(&mut more, START), Ok(None));
        assert_eq!(server.output(), []);
    };
    check(&connect_bytes(&CONNECT), Violation::SecondConnect);
    check(b"\x34\x05\0\x01t\0\x01", Violation::QosTwo);
    for (bytes, packet) in [
        ([0x50, 2, 0, 1], PacketType::Pubrec),
        ([0x62, 2, 0, 1], PacketType::Pubrel),
        ([0x70, 2, 0, 1], PacketType::Pubcomp),
        ([0x20, 2, 0, 0], PacketType::Connack),
        ([0xb0, 2, 0, 1], PacketType::Unsuback),
    ] {
        check(&bytes, Violation::Unexpected { packet });
    }
    let packet = PacketType::Suback;
    check(&[0x90, 3, 0, 1, 0], Violation::Unexpected { packet });
    let packet = PacketType::Pingresp;
    check(&[0xd0, 0], Violation::Unexpected { packet });
    check(b"\x30\x05\0\x03a/+", Violation::WildcardInTopic);
    check(b"\x30\x05\0\x03a/#", Violation::WildcardInTopic);
    check(&[0xc0, 1, 0], DecodeError::TrailingBytes.into());
    check(&[0x40, 2, 0, 0], DecodeError::ZeroPacketId.into());
    check(b"\x82\x02\0\x01", DecodeError::EmptyList.into());
    check(&[0xf0], DecodeError::ReservedType { number: 15 }.into());
}

#[test]
fn wildcards_pass_where_the_caller_lets_them() {
    let options = ServerOptions {
        wildcards_in_topics: true,
        ..ServerOptions::default()
    };
    let connect = Connect {
        will: Some(Will {
            topic: "events/at=10:00+01:00",
            payload: b"",
            qos: Qos::AtMostOnce,
            retain: false,
        }),
        ..CONNECT
    };
    let bytes = connect_bytes(&connect);
    let mut strict = new_server();
    assert_eq!(
        strict.next(&mut bytes.as_ref(), START),
        Err(Violation::WildcardInTopic)
    );
    let mut server = ServerConnection::new(options, START);
    assert!(server.next(&mut bytes.as_ref(), START).is_ok());
    server.accept(false, START);
    let publish = publish_bytes(None, "a/+/#", b"");
    assert!(matches!(
        server.next(&mut publish.as_ref(), START),
        Ok(Some(ServerEvent::Publish { .. }))
    ));
}

#[test]
fn acknowledgements_leave_in_order_and_only_when_released() {
    let mut server = connected();
    let tickets: Vec<AckTicket> = [7, 3, 9, 3]
        .iter()
        .map(|&packet_id| take_ticket(&mut server, packet_id))
        .collect();
    assert!(tickets.is_sorted());
    assert_eq!((server.in_flight(), server.output_len()), (4, 0));
    server.acknowledge_through(tickets[1]);
    assert_eq!(server.output(), [0x40, 2, 0, 7, 0x40, 2, 0, 3]);
    // Again, and an older one: nothing more.
    server.acknowledge_through(tickets[1]);
    server.acknowledge_through(tickets[0]);
    assert_eq!((server.in_flight(), server.output_len()), (2, 8));
    server.consume_output(5);
    server.acknowledge_through(tickets[3]);
    assert_eq!(server.output(), [2, 0, 3, 0x40, 2, 0, 9, 0x40, 2, 0, 3]);
    assert_eq!(server.in_flight(), 0);
}

#[test]
fn what_became_durable_is_acknowledged_even_after_the_end() {
    let mut server = connected();
    let ticket = take_ticket(&mut server, 5);
    assert!(server.next(&mut [0xf0].as_slice(), START).is_err());
    server.acknowledge_through(ticket);
    assert_eq!(server.output(), [0x40, 2, 0, 5]);
}

#[test]
fn pings_are_answered_and_acknowledgements_of_nothing_are_read_over() {
    let mut server = connected();
    let mut input = [0xc0, 0, 0x40, 2, 0, 9, 0xc0, 0].as_slice();
    assert_eq!(server.next(&mut input, START), Ok(None));
    assert_eq!(server.output(), [0xd0, 0, 0xd0, 0]);
    assert!(!server.is_closed());
}

#[test]
fn a_ping_behind_held_input_waits_with_it() {
    let mut server = connected();
    let bytes = [publish_bytes(Some(1), "t", b"").as_ref(), &[0xc0, 0]].concat();
    let mut input = bytes.as_slice();
    assert!(matches!(server.next(&mut input, START), Ok(Some(_))));
    assert_eq!((input, server.output_len()), ([0xc0, 0].as_slice(), 0));
    // The caller's window is full for a while; the silence is not the client's.
    server.restart_silence(seconds(500));
    assert_eq!(server.deadline(), Some(seconds(590)));
    assert_eq!(server.next(&mut input, seconds(500)), Ok(None));
    assert_eq!(server.output(), [0xd0, 0]);
}

#[test]
fn subscriptions() {
    let mut server = connected();
    let mut bytes = BytesMut::new();
    let packet_id = PacketId::new(10).expect("not 0");
    let filters = [("a/#", Qos::ExactlyOnce), ("b", Qos::AtMostOnce)];
    packet::encode_subscribe(&mut bytes, packet_id, &filters).expect("valid");
    packet::encode_unsubscribe(&mut bytes, packet_id, &["a/#"]).expect("valid");
    let mut input = bytes.as_ref();
    match server.next(&mut input, START) {
        Ok(Some(ServerEvent::Subscribe(subscribe))) => {
            assert_eq!(subscribe.packet_id, packet_id);
            assert_eq!(subscribe.filters().collect::<Vec<_>>(), filters);
        }
        other => panic!("{other:?}"),
    }
    let codes = [SubackCode::Granted(Qos::AtLeastOnce), SubackCode::Failure];
    server.suback(packet_id, &codes).expect("open");
    match server.next(&mut input, START) {
        Ok(Some(ServerEvent::Unsubscribe(unsubscribe))) => {
            assert_eq!(unsubscribe.filters().collect::<Vec<_>>(), ["a/#"]);
        }
        other => panic!("{other:?}"),
    }
    server.unsuback(packet_id).expect("open");
    assert_eq!(server.output(), [0x90, 4, 0, 10, 1, 0x80, 0xb0, 2, 0, 10]);
}

#[test]
fn nothing_is_sent_before_connack_or_after_the_end() {
    let check = |server: &mut ServerConnection| {
        let before = server.output_len();
        let refused = Err(SendError::NotOpen);
        assert_eq!(server.publish_at_most_once("t", b""), refused);
        assert_eq!(server.unsuback(PacketId::MIN), refused);
        assert_eq!(
            server.suback(PacketId::MIN, &[SubackCode::Failure]),
            refused
        );
        assert_eq!(server.output_len(), before);
    };
    let mut server = new_server();
    check(&mut server);
    let bytes = connect_bytes(&CONNECT);
    assert!(server.next(&mut bytes.as_ref(), START).is_ok());
    check(&mut server);
    server.refuse(Refusal::NotAuthorized);
    check(&mut server);

    let mut server = connected();
    server.publish_at_most_once("t", b"hi").expect("open");
    assert_eq!(server.output(), b"\x30\x05\0\x01thi");
    let event = server.next(&mut [0xe0, 0].as_slice(), START);
    assert_eq!(event, Ok(Some(ServerEvent::Disconnect)));
    check(&mut server);
}

#[test]
fn packet_limits() {
    let too_long = |length, max| Err(Violation::PacketTooLong { length, max });
    // Before CONNECT is accepted: 16 KiB, seen from the header alone.
    let mut server = new_server();
    let event = server.next(&mut [0x10, 0xfe, 0x7f].as_slice(), START);
    assert_eq!(event, too_long(16_385, 16_384));
    let mut server = new_server();
    let event = server.next(&mut [0x10, 0xfd, 0x7f].as_slice(), START);
    assert_eq!(event, Ok(None));

    // Afterwards: 320 KiB.
    let mut server = connected();
    let payload = vec![0; 320 * 1024 - 7];
    let bytes = publish_bytes(None, "t", &payload);
    assert_eq!(bytes.len(), 320 * 1024);
    assert!(matches!(
        server.next(&mut bytes.as_ref(), START),
        Ok(Some(ServerEvent::Publish { .. }))
    ));
    let bytes = publish_bytes(None, "tt", &payload);
    let event = server.next(&mut bytes[..4].as_ref(), START);
    assert_eq!(event, too_long(327_681, 327_680));
}

#[test]
fn time_to_connect() {
    let mut server = new_server();
    assert_eq!(server.deadline(), Some(seconds(30)));
    // A trickle of bytes does not move the deadline.
    assert_eq!(server.next(&mut [0x10].as_slice(), seconds(29)), Ok(None));
    assert_eq!(server.incomplete_bytes(), 1);
    assert_eq!(server.deadline(), Some(seconds(30)));
    assert_eq!(server.tick(seconds(29)), Ok(()));
    assert_eq!(server.tick(seconds(30)), Err(Timeout::Connect));
    assert!(server.is_closed());
    assert_eq!(server.tick(seconds(31)), Ok(()));
}

#[test]
fn keep_alive() {
    let check = |keep_alive_s: u16, silence: Duration| {
        let connect = Connect {
            keep_alive_s,
            ..CONNECT
        };
        let mut server = connected_with(&connect);
        assert_eq!(server.deadline(), Some(START + silence));
        // Any packet counts.
        let later = seconds(1);
        assert_eq!(server.next(&mut [0xc0, 0].as_slice(), later), Ok(None));
        assert_eq!(server.deadline(), Some(later + silence));
        // To be asked again without news does not.
        assert_eq!(server.next(&mut [].as_slice(), seconds(2)), Ok(None));
        assert_eq!(server.deadline(), Some(later + silence));
        let last = later + silence;
        assert_eq!(server.tick(last - Duration::from_millis(1)), Ok(()));
        assert_eq!(server.tick(last), Err(Timeout::KeepAlive));
        assert!(server.is_closed());
    };
    check(60, Duration::from_secs(90));
    check(1, Duration::from_millis(1500));
    check(1177, Duration::from_millis(1_765_500));
    check(1179, Duration::from_secs(1767));
    check(u16::MAX, Duration::from_secs(1767));
    check(0, Duration::from_secs(1767));
}

/// A large message on a slow line takes longer than a short keep-alive; the client that sends it
/// cannot send a PINGREQ in its midst.
#[test]
fn a_packet_on_its_way_is_life_but_not_for_ever() {
    let keep_alive_s = 10;
    let silence = Duration::from_secs(15);
    let hello = Connect {
        keep_alive_s,
        ..CONNECT
    };
    let bytes = publish_bytes(None, "t", &[0; 4000]);
    let mut server = connected_with(&hello);
    let mut now = START;
    let (last, parts) = bytes.split_last().unwrap();
    for part in parts.chunks(40) {
        now += Duration::from_secs(14);
        assert_eq!(server.tick(now), Ok(()));
        assert_eq!(server.next(&mut { part }, now), Ok(None));
        assert_eq!(server.deadline(), Some(now + silence));
        // Asking again brings nothing.
        assert_eq!(server.next(&mut [].as_slice(), now + silence), Ok(None));
        assert_eq!(server.deadline(), Some(now + silence));
    }
    let event = server.next(&mut std::slice::from_ref(last), now);
    assert!(matches!(event, Ok(Some(ServerEvent::Publish { .. }))));

    // One byte at a time goes on for as long as the longest silence and no longer.
    let mut server = connected_with(&hello);
    let mut now = START;
    let mut parts = bytes.chunks(1);
    while server.tick(now).is_ok() {
        assert_eq!(server.next(&mut parts.next().unwrap(), now), Ok(None));
        now += Duration::from_secs(14);
    }
    let spent = now - START;
    assert!((1767..1767 + 15).contains(&spent.as_secs()), "{spent:?}");
}

#[test]
fn an_idle_connection_is_small() {
    assert!(size_of::<ServerConnection>() < 300);
}

/// The packets in the output, which is consumed.
fn written(server: &mut ServerConnection) -> Vec<(bool, Option<u16>, String)> {
    let bytes = server.take_output();
    let mut assembler = Assembler::new(u32::MAX);
    let mut input = bytes.as_ref();
    let mut publishes = Vec::new();
    while let Some(raw) = assembler.next(&mut input).expect("packets") {
        let Ok(Packet::Publish(publish)) = raw.decode() else {
            panic!("not a PUBLISH: {raw:?}");
        };
        let payload = String::from_utf8_lossy(publish.payload).into_owned();
        publishes.push((publish.dup, publish.packet_id.map(PacketId::get), payload));
    }
    publishes
}

fn id(id: u16) -> PacketId {
    PacketId::new(id).expect("not zero")
}

/// Feeds PUBACKs and returns the ids of those that meant something.
fn acknowledged(server: &mut ServerConnection, ids: &[u16]) -> Vec<u16> {
    let mut bytes = BytesMut::new();
    packet::put_pubacks(&mut bytes, ids.iter().map(|n| id(*n)));
    let mut input = bytes.as_ref();
    let mut settled = Vec::new();
    while let Some(event) = server.next(&mut input, START).expect("no violation") {
        let ServerEvent::Puback { packet_id } = event else {
            panic!("{event:?}");
        };
        settled.push(packet_id.get());
    }
    assert!(input.is_empty());
    settled
}

#[test]
fn deliveries_are_acknowledged_by_their_ids_in_any_order() {
    let mut server = connected();
    server.number_from(id(u16::MAX));
    for (payload, packet_id) in [("a", u16::MAX), ("b", 1), ("c", 2)] {
        let sent = server.publish_at_least_once("t", payload.as_bytes());
        assert_eq!(sent, Ok(id(packet_id)));
    }
    let sent = [(u16::MAX, "a"), (1, "b"), (2, "c")];
    let sent = sent.map(|(id, payload)| (false, Some(id), payload.to_owned()));
    assert_eq!(written(&mut server), sent);
    assert_eq!(server.deliveries_in_flight(), 3);
    // The second time and for what was never sent they mean nothing, and harm nothing.
    assert_eq!(
        acknowledged(&mut server, &[2, 2, 77, u16::MAX]),
        [2, u16::MAX]
    );
    assert_eq!(server.deliveries_in_flight(), 1);
    assert_eq!(acknowledged(&mut server, &[1]), [1]);
    assert_eq!(server.publish_at_least_once("t", b"d"), Ok(id(3)));
}

#[test]
fn what_an_earlier_connection_sent_is_repeated_under_its_id() {
    let mut server = connected();
    server.number_from(id(7));
    for reserved in [7, 8, 10] {
        server.reserve(id(reserved));
    }
    assert_eq!(server.publish_again(id(8), "t", b"old"), Ok(()));
    let in_use = SendError::PacketIdInUse { packet_id: id(8) };
    assert_eq!(server.publish_again(id(8), "t", b"old"), Err(in_use));
    assert_eq!(server.publish_at_least_once("t", b"new"), Ok(id(9)));
    // A message that is gone leaves its id to nobody.
    assert_eq!(server.publish_at_least_once("t", b"newer"), Ok(id(11)));
    let expected = [(true, 8, "old"), (false, 9, "new"), (false, 11, "newer")];
    let expected = expected.map(|(dup, id, payload)| (dup, Some(id), payload.to_owned()));
    assert_eq!(written(&mut server), expected);
    // Late for the earlier connection, and for nothing of this one.
    assert_eq!(acknowledged(&mut server, &[7, 10, 8, 11]), [8, 11]);
}

#[test]
fn deliveries_are_bounded_and_a_refused_one_leaves_no_trace() {
    let options = ServerOptions {
        deliveries_max: 2,
        ..ServerOptions::default()
    };
    let mut server = ServerConnection::new(options, START);
    assert_eq!(
        server.publish_at_least_once("t", b""),
        Err(SendError::NotOpen)
    );
    assert_eq!(
        server.publish_again(id(1), "t", b""),
        Err(SendError::NotOpen)
    );
    let bytes = connect_bytes(&CONNECT);
    assert!(server.next(&mut bytes.as_ref(), START).is_ok());
    server.accept(true, START);
    assert_eq!(server.take_output().len(), 4);

    let too_long = "t".repeat(65_536);
    for topic in ["", "a\0b", &too_long] {
        let refused = server.publish_at_least_once(topic, b"");
        assert!(matches!(refused, Err(SendError::Encode(_))), "{refused:?}");
        assert_eq!((server.output_len(), server.deliveries_in_flight()), (0, 0));
    }
    assert_eq!(server.publish_at_least_once("t", b""), Ok(id(1)));
    assert_eq!(server.publish_again(id(5), "t", b""), Ok(()));
    let full = Err(SendError::WindowFull);
    assert_eq!(server.publish_at_least_once("t", b""), full);
    assert_eq!(
        server.publish_again(id(6), "t", b""),
        Err(SendError::WindowFull)
    );
    assert_eq!(acknowledged(&mut server, &[5]), [5]);
    assert_eq!(server.publish_at_least_once("t", b""), Ok(id(2)));
}
