//! PUBLISH.

use std::fmt;

use bytes::{BufMut, BytesMut};

use super::wire::{Field, Reader, put_fixed_header};
use super::{DecodeError, EncodeError, PacketId, Qos};

const DUP: u8 = 0b1000;
const QOS_SHIFT: u8 = 1;
const RETAIN: u8 = 0b0001;

/// A message, either way. Its `Debug` form shows the payload's length only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Publish<'a> {
    /// The sender has tried this packet before; never at QoS 0.
    pub dup: bool,
    /// Quality of service.
    pub qos: Qos,
    /// To be kept as the topic's retained message.
    pub retain: bool,
    /// Topic name, not empty. It may hold `+` and `#`, which the specification forbids
    /// [MQTT-3.3.2-2]; see [`has_wildcard`](Self::has_wildcard).
    pub topic: &'a str,
    /// Present exactly when the QoS is not 0.
    pub packet_id: Option<PacketId>,
    /// The message itself.
    pub payload: &'a [u8],
}

impl<'a> Publish<'a> {
    pub(super) fn decode(flags: u8, body: &'a [u8]) -> Result<Self, DecodeError> {
        let qos = Qos::from_byte((flags >> QOS_SHIFT) & 0b11)?;
        let dup = flags & DUP != 0;
        if dup && qos == Qos::AtMostOnce {
            return Err(DecodeError::Flags {
                packet_type: super::PacketType::Publish,
                flags,
            });
        }
        let mut reader = Reader::new(body);
        let topic = reader.topic()?;
        let packet_id = match qos {
            Qos::AtMostOnce => None,
            Qos::AtLeastOnce | Qos::ExactlyOnce => Some(reader.packet_id()?),
        };
        Ok(Self {
            dup,
            qos,
            retain: flags & RETAIN != 0,
            topic,
            packet_id,
            payload: reader.rest(),
        })
    }

    /// Appends the packet.
    ///
    /// # Errors
    /// The topic is empty, too long or holds U+0000, the packet is too long, or packet id, DUP and
    /// QoS contradict each other.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        let acknowledged = self.qos != Qos::AtMostOnce;
        if self.packet_id.is_some() != acknowledged || (self.dup && !acknowledged) {
            return Err(EncodeError::QosMismatch);
        }
        let topic = Field::topic(self.topic)?;
        let packet_id_length = if acknowledged { 2 } else { 0 };
        let first = 0x30
            | (self.qos.number() << QOS_SHIFT)
            | if self.dup { DUP } else { 0 }
            | if self.retain { RETAIN } else { 0 };
        put_fixed_header(
            out,
            first,
            topic.encoded_length() + packet_id_length + self.payload.len(),
        )?;
        topic.put(out);
        if let Some(packet_id) = self.packet_id {
            out.put_u16(packet_id.get());
        }
        out.put_slice(self.payload);
        Ok(())
    }

    /// Whether the topic holds `+` or `#`.
    #[must_use]
    pub fn has_wildcard(&self) -> bool {
        has_wildcard(self.topic)
    }
}

pub(crate) fn has_wildcard(topic: &str) -> bool {
    topic.bytes().any(|byte| matches!(byte, b'+' | b'#'))
}

impl fmt::Debug for Publish<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publish")
            .field("dup", &self.dup)
            .field("qos", &self.qos)
            .field("retain", &self.retain)
            .field("topic", &self.topic)
            .field("packet_id", &self.packet_id)
            .field("payload_length", &self.payload.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Packet, PacketType, decode_whole};
    use proptest::prelude::*;

    const PLAIN: Publish<'static> = Publish {
        dup: false,
        qos: Qos::AtMostOnce,
        retain: false,
        topic: "t",
        packet_id: None,
        payload: b"",
    };

    #[test]
    fn packet_as_a_device_sends_it() {
        let topic = "devices/dev1/messages/events/%24.mid=m1&%24.ct=application%2Fjson&%24.ce=utf-8&room=a%20b";
        let mut bytes = vec![0x32, 0x64, 0x00, 0x59];
        bytes.extend_from_slice(topic.as_bytes());
        bytes.extend_from_slice(&[0x00, 0x07, 0x7b, 0x22, 0x74, 0x22, 0x3a, 0x31, 0x7d]);
        let expected = Publish {
            qos: Qos::AtLeastOnce,
            topic,
            packet_id: PacketId::new(7),
            payload: b"{\"t\":1}",
            ..PLAIN
        };
        assert_eq!(decode_whole(&bytes), Ok(Packet::Publish(expected)));
        let mut out = BytesMut::new();
        expected.encode(&mut out).unwrap();
        assert_eq!(out, bytes);
    }

    #[test]
    fn flags_and_fields() {
        let check = |bytes: &[u8], expected: Result<Publish<'_>, DecodeError>| {
            assert_eq!(decode_whole(bytes), expected.map(Packet::Publish));
        };
        check(b"\x30\x03\0\x01t", Ok(PLAIN));
        let retained = Publish {
            retain: true,
            payload: b"x",
            ..PLAIN
        };
        check(b"\x31\x04\0\x01tx", Ok(retained));
        let again = Publish {
            dup: true,
            qos: Qos::ExactlyOnce,
            packet_id: PacketId::new(0x102),
            ..PLAIN
        };
        check(b"\x3c\x05\0\x01t\x01\x02", Ok(again));
        let flags = |flags| {
            Err(DecodeError::Flags {
                packet_type: PacketType::Publish,
                flags,
            })
        };
        check(b"\x38\x03\0\x01t", flags(8));
        check(b"\x30\x02\0\0", Err(DecodeError::EmptyTopic));
        check(b"\x30\x03\0\x01\0", Err(DecodeError::NulInString));
        check(b"\x30\x03\0\x01\xff", Err(DecodeError::NotUtf8));
        check(b"\x30\x03\0\x02t", Err(DecodeError::Truncated));
        check(b"\x30\x00", Err(DecodeError::Truncated));
        check(b"\x32\x05\0\x01t\0\0", Err(DecodeError::ZeroPacketId));
        check(b"\x32\x04\0\x01t\0", Err(DecodeError::Truncated));
    }

    #[test]
    fn contradictions_are_not_encoded() {
        let check = |publish: Publish<'_>, expected: EncodeError| {
            let mut out = BytesMut::new();
            assert_eq!(publish.encode(&mut out), Err(expected));
            assert!(out.is_empty());
        };
        let packet_id = PacketId::new(1);
        check(Publish { packet_id, ..PLAIN }, EncodeError::QosMismatch);
        check(Publish { dup: true, ..PLAIN }, EncodeError::QosMismatch);
        let qos = Qos::AtLeastOnce;
        check(Publish { qos, ..PLAIN }, EncodeError::QosMismatch);
        check(Publish { topic: "", ..PLAIN }, EncodeError::EmptyTopic);
    }

    #[test]
    fn wildcards_are_seen() {
        for (topic, expected) in [("a/b", false), ("a/+", true), ("#", true)] {
            assert_eq!(Publish { topic, ..PLAIN }.has_wildcard(), expected);
        }
    }

    proptest! {
        #[test]
        fn decoding_gives_back_what_was_encoded(
            delivery in proptest::option::of((1_u8..3, 1_u16.., any::<bool>())),
            retain: bool,
            topic in "[^\0]{1,60}",
            payload in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let publish = Publish {
                dup: delivery.is_some_and(|(_, _, dup)| dup),
                qos: Qos::from_byte(delivery.map_or(0, |(qos, ..)| qos)).unwrap(),
                retain,
                topic: &topic,
                packet_id: delivery.and_then(|(_, id, _)| PacketId::new(id)),
                payload: &payload,
            };
            let mut out = BytesMut::new();
            publish.encode(&mut out).unwrap();
            prop_assert_eq!(decode_whole(&out), Ok(Packet::Publish(publish)));
        }
    }
}
