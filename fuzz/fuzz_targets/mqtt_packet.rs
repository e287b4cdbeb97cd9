//! MQTT packets: whatever decodes can be encoded, and the encoding decodes to the same value; a
//! stream cut anywhere gives the same packets.
#![no_main]

use bytes::BytesMut;
use fieldpost_mqtt::packet::{
    self, Connack, Packet, encode_suback, encode_subscribe, encode_unsubscribe,
};
use fieldpost_mqtt::{Assembler, Violation};
use libfuzzer_sys::fuzz_target;

const PACKET_LENGTH_MAX: u32 = 2000;

fuzz_target!(|data: &[u8]| {
    let Some((&chunk_length, stream)) = data.split_first() else {
        return;
    };
    let whole = packets(std::iter::once(stream));
    let cut = packets(stream.chunks(usize::from(chunk_length).max(1)));
    assert_eq!(whole, cut);
});

/// The bodies of all packets, and how the stream ended.
fn packets<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> (Vec<Vec<u8>>, Option<Violation>) {
    let mut assembler = Assembler::new(PACKET_LENGTH_MAX);
    let mut bodies = Vec::new();
    for chunk in chunks {
        let mut input = chunk;
        loop {
            match assembler.next(&mut input) {
                Ok(Some(raw)) => {
                    bodies.push(raw.body.to_vec());
                    if let Ok(packet) = raw.decode() {
                        check_round_trip(&packet);
                    }
                }
                Ok(None) => break,
                Err(violation) => return (bodies, Some(violation)),
            }
        }
        assert!(input.is_empty());
        assert!(assembler.incomplete_bytes() < PACKET_LENGTH_MAX as usize);
    }
    (bodies, None)
}

fn check_round_trip(packet: &Packet<'_>) {
    let mut out = BytesMut::new();
    encode(packet, &mut out);
    let mut input = out.as_ref();
    let mut assembler = Assembler::new(u32::MAX);
    let raw = assembler
        .next(&mut input)
        .expect("a header")
        .expect("whole");
    assert_eq!(raw.decode().as_ref(), Ok(packet));
    assert!(input.is_empty());
}

fn encode(packet: &Packet<'_>, out: &mut BytesMut) {
    match packet {
        Packet::Connect(connect) => connect.encode(out).expect("decoded"),
        Packet::Connack(connack) => Connack::put(*connack, out),
        Packet::Publish(publish) => publish.encode(out).expect("decoded"),
        Packet::Puback { packet_id } => packet::put_pubacks(out, std::iter::once(*packet_id)),
        // Never written by us.
        Packet::Pubrec { packet_id } => put(out, [0x50, 2], packet_id.get()),
        Packet::Pubrel { packet_id } => put(out, [0x62, 2], packet_id.get()),
        Packet::Pubcomp { packet_id } => put(out, [0x70, 2], packet_id.get()),
        Packet::Subscribe(subscribe) => {
            let filters: Vec<_> = subscribe.filters().collect();
            encode_subscribe(out, subscribe.packet_id, &filters).expect("decoded");
        }
        Packet::Suback(suback) => {
            let codes: Vec<_> = suback.codes().collect();
            encode_suback(out, suback.packet_id, &codes).expect("decoded");
        }
        Packet::Unsubscribe(unsubscribe) => {
            let filters: Vec<_> = unsubscribe.filters().collect();
            encode_unsubscribe(out, unsubscribe.packet_id, &filters).expect("decoded");
        }
        Packet::Unsuback { packet_id } => packet::put_unsuback(out, *packet_id),
        Packet::Pingreq => packet::put_pingreq(out),
        Packet::Pingresp => packet::put_pingresp(out),
        Packet::Disconnect => packet::put_disconnect(out),
    }
}

fn put(out: &mut BytesMut, head: [u8; 2], packet_id: u16) {
    out.extend_from_slice(&head);
    out.extend_from_slice(&packet_id.to_be_bytes());
}
