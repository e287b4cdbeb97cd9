//! Byte streams: cut anywhere they mean the same, and none of them does harm.

use std::time::Duration;

use bytes::BytesMut;
use fieldpost_mqtt::{
    AckTicket, Assembler, ClientConnection, ClientOptions, Connect, Packet, PacketId, Publish, Qos,
    ServerConnection, ServerEvent, ServerOptions, SubackCode, Violation, packet,
};
use proptest::collection::vec;
use proptest::prelude::*;

const NOW: Duration = Duration::from_secs(1);

/// What one run of a server over some bytes comes to.
#[derive(Debug, PartialEq)]
struct Outcome {
    events: Vec<String>,
    violation: Option<Violation>,
    output: BytesMut,
    in_flight: usize,
    incomplete_bytes: usize,
}

/// Feeds the chunks to a server whose caller accepts everything and acknowledges at each DISCONNECT
/// or after every third QoS 1 message.
fn serve<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Outcome {
    let mut server = ServerConnection::new(ServerOptions::default(), NOW);
    let mut events = Vec::new();
    let mut held: Vec<AckTicket> = Vec::new();
    let mut violation = None;
    for chunk in chunks {
        let mut input = chunk;
        while violation.is_none() && !input.is_empty() {
            let before = input.len();
            let (text, answer) = match server.next(&mut input, NOW) {
                Err(error) => {
                    violation = Some(error);
                    break;
                }
                Ok(None) => break,
                Ok(Some(event)) => describe(&event),
            };
            assert!(input.len() < before, "an event uses input up");
            events.push(text);
            match answer {
                Answer::Nothing => {}
                Answer::Accept => server.accept(true, NOW),
                Answer::Ticket(ticket) => held.push(ticket),
                Answer::Suback(packet_id, count) => {
                    let codes = vec![SubackCode::Failure; count];
                    server.suback(packet_id, &codes).expect("open");
                }
                Answer::Unsuback(packet_id) => server.unsuback(packet_id).expect("open"),
            }
            if held.len() == 3
                && let Some(ticket) = held.drain(..).next_back()
            {
                server.acknowledge_through(ticket);
            }
        }
    }
    Outcome {
        events,
        violation,
        output: server.take_output(),
        in_flight: server.in_flight(),
        incomplete_bytes: server.incomplete_bytes(),
    }
}

enum Answer {
    Nothing,
    Accept,
    Ticket(AckTicket),
    Suback(PacketId, usize),
    Unsuback(PacketId),
}

fn describe(event: &ServerEvent<'_>) -> (String, Answer) {
    let answer = match event {
        ServerEvent::Connect(_) => Answer::Accept,
        ServerEvent::Publish { publish, ticket } => {
            let text = format!("{publish:?} {:?}", publish.payload);
            return (text, ticket.map_or(Answer::Nothing, Answer::Ticket));
        }
        ServerEvent::Subscribe(subscribe) => {
            Answer::Suback(subscribe.packet_id, subscribe.filters().count())
        }
        ServerEvent::Unsubscribe(unsubscribe) => Answer::Unsuback(unsubscribe.packet_id),
        ServerEvent::Puback { .. } | ServerEvent::Disconnect => Answer::Nothing,
    };
    (format!("{event:?}"), answer)
}

/// Cuts `bytes` into chunks of the given lengths, over and over; empty chunks included.
fn cut<'a>(bytes: &'a [u8], lengths: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = bytes;
    let mut lengths = lengths.iter().copied().cycle();
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let length = lengths.next().unwrap_or(1).min(rest.len());
        let (chunk, after) = rest.split_at_checked(length)?;
        rest = after;
        Some(chunk)
    })
}

fn chunk_lengths() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        Just(vec![1]),
        (vec(0_usize..200, 0..20), 1_usize..20).prop_map(|(mut lengths, last)| {
            lengths.push(last);
            lengths
        }),
    ]
}

/// Bytes of one packet that a client may send, most of the time.
fn client_packet() -> impl Strategy<Value = Vec<u8>> {
    let id = || (1_u16..).prop_map(|id| PacketId::new(id).expect("not 0"));
    let topic = || "[a-z/$%=&]{1,20}";
    let payload = prop_oneof![vec(any::<u8>(), 0..20), vec(any::<u8>(), 100..400)];
    prop_oneof![
        6 => (topic(), payload, proptest::option::of(id()), any::<bool>(), any::<bool>()).prop_map(
            |(topic, payload, packet_id, dup, retain)| encoded(|out| {
                let publish = Publish {
                    dup: dup && packet_id.is_some(),
                    qos: if packet_id.is_some() { Qos::AtLeastOnce } else { Qos::AtMostOnce },
                    retain,
                    topic: &topic,
                    packet_id,
                    payload: &payload,
                };
                publish.encode(out).expect("valid");
            })
        ),
        1 => (id(), vec(topic(), 1..4)).prop_map(|(id, filters)| encoded(|out| {
            let filters: Vec<_> = filters.iter().map(|f| (f.as_str(), Qos::AtLeastOnce)).collect();
            packet::encode_subscribe(out, id, &filters).expect("valid");
        })),
        1 => (id(), vec(topic(), 1..4)).prop_map(|(id, filters)| encoded(|out| {
            let filters: Vec<_> = filters.iter().map(String::as_str).collect();
            packet::encode_unsubscribe(out, id, &filters).expect("valid");
        })),
        1 => Just(encoded(packet::put_pingreq)),
        1 => id().prop_map(|id| encoded(|out| packet::put_pubacks(out, std::iter::once(id)))),
    ]
}

/// The end of a stream: nothing, a farewell, noise, or a packet that breaks off.
fn ending() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(Vec::new()),
        Just(encoded(packet::put_disconnect)),
        vec(any::<u8>(), 0..40),
        (client_packet(), 0_usize..30).prop_map(|(mut bytes, length)| {
            bytes.truncate(length);
            bytes
        }),
    ]
}

fn encoded(write: impl FnOnce(&mut BytesMut)) -> Vec<u8> {
    let mut out = BytesMut::new();
    write(&mut out);
    out.to_vec()
}

fn connect() -> Vec<u8> {
    let connect = Connect {
        client_id: "dev1",
        clean_session: false,
        keep_alive_s: 60,
        will: None,
        user_name: Some("u"),
        password: Some(b"p"),
    };
    encoded(|out| connect.encode(out).expect("valid"))
}

proptest! {
    #[test]
    fn any_cut_of_a_stream_gives_the_same_events(
        packets in vec(client_packet(), 0..12),
        ending in ending(),
        lengths in chunk_lengths(),
    ) {
        let bytes = [connect(), packets.concat(), ending].concat();
        let whole = serve(std::iter::once(bytes.as_slice()));
        prop_assert!(!whole.events.is_empty());
        prop_assert_eq!(serve(cut(&bytes, &lengths)), whole);
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(
        opened: bool,
        noise in vec(any::<u8>(), 0..300),
        lengths in chunk_lengths(),
    ) {
        let opening = if opened { connect() } else { Vec::new() };
        let bytes = [opening, noise].concat();
        let whole = serve(std::iter::once(bytes.as_slice()));
        prop_assert_eq!(serve(cut(&bytes, &lengths)), whole);
    }

    #[test]
    fn damaged_packets_do_no_harm(
        packets in vec(client_packet(), 1..6),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        lengths in chunk_lengths(),
    ) {
        let mut bytes = [connect(), packets.concat()].concat();
        for (index, byte) in damage {
            let at = index.index(bytes.len());
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        let whole = serve(std::iter::once(bytes.as_slice()));
        prop_assert_eq!(serve(cut(&bytes, &lengths)), whole);
    }

    #[test]
    fn a_client_survives_whatever_a_server_sends(
        opened: bool,
        packets in vec(prop_oneof![vec(any::<u8>(), 0..20), client_packet()], 0..6),
    ) {
        let connect = Connect {
            client_id: "",
            clean_session: true,
            keep_alive_s: 60,
            will: None,
            user_name: None,
            password: None,
        };
        let mut client = ClientConnection::new(&connect, ClientOptions::default(), NOW)
            .expect("valid");
        let opening = if opened { vec![0x20, 2, 0, 0] } else { Vec::new() };
        let bytes = [opening, packets.concat()].concat();
        let mut input = bytes.as_slice();
        let failed = loop {
            match client.next(&mut input) {
                Ok(Some(_)) => {}
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        prop_assert_eq!(client.is_closed(), failed || client.deadline().is_none());
    }

    /// Every packet that decodes has strings, lists and ids that can be walked.
    #[test]
    fn decoded_packets_are_sound(noise in vec(any::<u8>(), 0..100)) {
        let mut assembler = Assembler::new(1000);
        let mut input = noise.as_slice();
        while let Ok(Some(raw)) = assembler.next(&mut input) {
            match raw.decode() {
                Ok(Packet::Subscribe(subscribe)) => prop_assert!(subscribe.filters().count() > 0),
                Ok(Packet::Unsubscribe(unsubscribe)) => {
                    prop_assert!(unsubscribe.filters().count() > 0);
                }
                Ok(Packet::Suback(suback)) => {
                    prop_assert_eq!(suback.codes().count(), raw.body.len() - 2);
                }
                Ok(_) | Err(_) => {}
            }
        }
    }
}
