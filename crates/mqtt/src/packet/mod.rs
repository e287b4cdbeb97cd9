//! The control packets of MQTT 3.1.1 (OASIS Standard, 29 October 2014) as values.
//!
//! Decoding borrows from the packet's bytes and checks every normative rule that can be checked
//! within one packet. Encoding appends to a buffer, or fails before it has written anything.

mod connack;
mod connect;
mod publish;
mod subscribe;
mod unsubscribe;
mod wire;

use std::num::NonZeroU16;

use bytes::{BufMut, BytesMut};

pub use connack::{Connack, Refusal, put_mqtt5_unsupported_version};
pub use connect::{Connect, Will};
pub use publish::Publish;
pub(crate) use publish::has_wildcard;
pub use subscribe::{
    Filters, Suback, SubackCode, SubackCodes, Subscribe, encode_suback, encode_subscribe,
};
pub use unsubscribe::{TopicFilters, Unsubscribe, encode_unsubscribe};
use wire::Reader;

/// Identifies a packet in flight; zero is not an identifier (section 2.3.1).
pub type PacketId = NonZeroU16;

/// Largest value of the remaining length (section 2.2.3).
pub const REMAINING_LENGTH_MAX: u32 = 268_435_455;

/// Type and flags from a packet's first byte, known to fit each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedHeader {
    /// The upper four bits.
    pub packet_type: PacketType,
    /// The lower four bits. Fixed for every type but PUBLISH, where the QoS is not 3.
    pub flags: u8,
}

/// Lengths in bytes, as a fixed header announces them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FixedLengths {
    /// The fixed header itself, 2 to 5.
    pub header: usize,
    /// The whole packet, fixed header included.
    pub packet: usize,
}

/// The fourteen control packet types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub enum PacketType {
    Connect = 1,
    Connack = 2,
    Publish = 3,
    Puback = 4,
    Pubrec = 5,
    Pubrel = 6,
    Pubcomp = 7,
    Subscribe = 8,
    Suback = 9,
    Unsubscribe = 10,
    Unsuback = 11,
    Pingreq = 12,
    Pingresp = 13,
    Disconnect = 14,
}

/// Quality of service of a message or a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Qos {
    /// QoS 0.
    AtMostOnce = 0,
    /// QoS 1.
    AtLeastOnce = 1,
    /// QoS 2.
    ExactlyOnce = 2,
}

/// Any control packet, borrowed from its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are the specification's")]
pub enum Packet<'a> {
    Connect(Connect<'a>),
    Connack(Connack),
    Publish(Publish<'a>),
    Puback { packet_id: PacketId },
    Pubrec { packet_id: PacketId },
    Pubrel { packet_id: PacketId },
    Pubcomp { packet_id: PacketId },
    Subscribe(Subscribe<'a>),
    Suback(Suback<'a>),
    Unsubscribe(Unsubscribe<'a>),
    Unsuback { packet_id: PacketId },
    Pingreq,
    Pingresp,
    Disconnect,
}

/// The bytes are no packet of MQTT 3.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Packet type 0 or 15.
    #[error("reserved packet type {number}")]
    ReservedType {
        /// The type's number.
        number: u8,
    },
    /// Flags in the fixed header that the type does not allow.
    #[error("{packet_type:?} with flags {flags:#06b}")]
    Flags {
        /// The packet's type.
        packet_type: PacketType,
        /// Its four flag bits.
        flags: u8,
    },
    /// A remaining length of more than four bytes.
    #[error("remaining length of more than four bytes")]
    RemainingLength,
    /// A field reaches beyond the packet's end.
    #[error("a field reaches beyond the end of the packet")]
    Truncated,
    /// Bytes after the last field.
    #[error("bytes after the last field")]
    TrailingBytes,
    /// A string that is not UTF-8.
    #[error("string is not UTF-8")]
    NotUtf8,
    /// U+0000 in a string.
    #[error("U+0000 in a string")]
    NulInString,
    /// Packet identifier 0.
    #[error("packet identifier 0")]
    ZeroPacketId,
    /// A topic name or filter without a character.
    #[error("empty topic name or filter")]
    EmptyTopic,
    /// SUBSCRIBE or UNSUBSCRIBE without a filter, or SUBACK without a return code.
    #[error("empty list")]
    EmptyList,
    /// A QoS byte other than 0, 1 or 2.
    #[error("QoS byte {byte:#04x}")]
    Qos {
        /// The byte, or the two bits, found.
        byte: u8,
    },
    /// A CONNECT that names another protocol.
    #[error("protocol name is not MQTT")]
    ProtocolName,
    /// A CONNECT of another version of MQTT; what follows the level was not looked at.
    #[error("protocol level {level}")]
    ProtocolLevel {
        /// 3 for MQTT 3.1, 5 for MQTT 5.
        level: u8,
    },
    /// Connect flags that contradict each other or set the reserved bit.
    #[error("connect flags {flags:#010b}")]
    ConnectFlags {
        /// The flags byte.
        flags: u8,
    },
    /// CONNACK flags, or a return code of CONNACK or SUBACK, that the specification reserves.
    #[error("reserved acknowledge flags or return code {byte:#04x}")]
    ReturnCode {
        /// The byte found.
        byte: u8,
    },
}

/// The value cannot be written as a packet. Nothing has been written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A string or binary field of more than 65,535 bytes.
    #[error("field of {length} bytes, at most 65535 fit")]
    FieldTooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// A packet of more than 268,435,455 bytes after the fixed header.
    #[error("packet of {length} bytes, at most 268435455 fit")]
    PacketTooLong {
        /// Length in bytes after the fixed header.
        length: usize,
    },
    /// U+0000 in a string.
    #[error("U+0000 in a string")]
    NulInString,
    /// A topic name or filter without a character.
    #[error("empty topic name or filter")]
    EmptyTopic,
    /// SUBSCRIBE or UNSUBSCRIBE without a filter, or SUBACK without a return code.
    #[error("empty list")]
    EmptyList,
    /// A packet id at QoS 0, or none above it, or DUP at QoS 0.
    #[error("packet id or DUP does not fit the QoS")]
    QosMismatch,
    /// A password without a user name.
    #[error("password without a user name")]
    PasswordAlone,
}

impl FixedHeader {
    /// Reads a fixed header from the front of `bytes`; `None` while it is incomplete. A wrong first
    /// byte shows before the length has come.
    ///
    /// # Errors
    /// Reserved type, flags that do not fit the type, or a remaining length of more than four
    /// bytes.
    pub fn read(bytes: &[u8]) -> Result<Option<(Self, FixedLengths)>, DecodeError> {
        let Some((&first, after)) = bytes.split_first() else {
            return Ok(None);
        };
        let header = Self::from_first_byte(first)?;
        let mut remaining = 0_usize;
        for (index, &byte) in after.iter().take(4).enumerate() {
            remaining |= usize::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                let header_length = index + 2;
                let lengths = FixedLengths {
                    header: header_length,
                    packet: header_length + remaining,
                };
                return Ok(Some((header, lengths)));
            }
        }
        if after.len() < 4 {
            Ok(None)
        } else {
            Err(DecodeError::RemainingLength)
        }
    }

    fn from_first_byte(first: u8) -> Result<Self, DecodeError> {
        let packet_type = PacketType::from_number(first >> 4)?;
        let flags = first & 0x0f;
        let allowed = match packet_type {
            PacketType::Publish => flags & 0b0110 != 0b0110,
            PacketType::Pubrel | PacketType::Subscribe | PacketType::Unsubscribe => flags == 0b0010,
            _ => flags == 0,
        };
        if allowed {
            Ok(Self { packet_type, flags })
        } else {
            Err(DecodeError::Flags { packet_type, flags })
        }
    }
}

impl PacketType {
    fn from_number(number: u8) -> Result<Self, DecodeError> {
        Ok(match number {
            1 => Self::Connect,
            2 => Self::Connack,
            3 => Self::Publish,
            4 => Self::Puback,
            5 => Self::Pubrec,
            6 => Self::Pubrel,
            7 => Self::Pubcomp,
            8 => Self::Subscribe,
            9 => Self::Suback,
            10 => Self::Unsubscribe,
            11 => Self::Unsuback,
            12 => Self::Pingreq,
            13 => Self::Pingresp,
            14 => Self::Disconnect,
            number => return Err(DecodeError::ReservedType { number }),
        })
    }
}

impl Qos {
    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }

    fn from_byte(byte: u8) -> Result<Self, DecodeError> {
        match byte {
            0 => Ok(Self::AtMostOnce),
            1 => Ok(Self::AtLeastOnce),
            2 => Ok(Self::ExactlyOnce),
            byte => Err(DecodeError::Qos { byte }),
        }
    }
}

impl<'a> Packet<'a> {
    /// Decodes the `body` that follows a fixed header.
    ///
    /// # Errors
    /// The body breaks a rule of its packet type.
    pub fn decode(header: FixedHeader, body: &'a [u8]) -> Result<Self, DecodeError> {
        Ok(match header.packet_type {
            PacketType::Connect => Self::Connect(Connect::decode(body)?),
            PacketType::Connack => Self::Connack(Connack::decode(body)?),
            PacketType::Publish => Self::Publish(Publish::decode(header.flags, body)?),
            PacketType::Puback => Self::Puback {
                packet_id: decode_packet_id(body)?,
            },
            PacketType::Pubrec => Self::Pubrec {
                packet_id: decode_packet_id(body)?,
            },
            PacketType::Pubrel => Self::Pubrel {
                packet_id: decode_packet_id(body)?,
            },
            PacketType::Pubcomp => Self::Pubcomp {
                packet_id: decode_packet_id(body)?,
            },
            PacketType::Subscribe => Self::Subscribe(Subscribe::decode(body)?),
            PacketType::Suback => Self::Suback(Suback::decode(body)?),
            PacketType::Unsubscribe => Self::Unsubscribe(Unsubscribe::decode(body)?),
            PacketType::Unsuback => Self::Unsuback {
                packet_id: decode_packet_id(body)?,
            },
            PacketType::Pingreq => {
                decode_empty(body)?;
                Self::Pingreq
            }
            PacketType::Pingresp => {
                decode_empty(body)?;
                Self::Pingresp
            }
            PacketType::Disconnect => {
                decode_empty(body)?;
                Self::Disconnect
            }
        })
    }
}

/// The body of a packet that is nothing but a packet id.
pub(crate) fn decode_packet_id(body: &[u8]) -> Result<PacketId, DecodeError> {
    let mut reader = Reader::new(body);
    let packet_id = reader.packet_id()?;
    reader.finish()?;
    Ok(packet_id)
}

/// The body of a packet that has none.
pub(crate) fn decode_empty(body: &[u8]) -> Result<(), DecodeError> {
    Reader::new(body).finish()
}

/// Appends a PUBACK for each id.
pub fn put_pubacks(out: &mut BytesMut, packet_ids: impl ExactSizeIterator<Item = PacketId>) {
    out.reserve(4 * packet_ids.len());
    for packet_id in packet_ids {
        let [high, low] = packet_id.get().to_be_bytes();
        out.put_slice(&[0x40, 2, high, low]);
    }
}

/// Appends an UNSUBACK.
pub fn put_unsuback(out: &mut BytesMut, packet_id: PacketId) {
    let [high, low] = packet_id.get().to_be_bytes();
    out.put_slice(&[0xb0, 2, high, low]);
}

/// Appends a PINGREQ.
pub fn put_pingreq(out: &mut BytesMut) {
    out.put_slice(&[0xc0, 0]);
}

/// Appends a PINGRESP.
pub fn put_pingresp(out: &mut BytesMut) {
    out.put_slice(&[0xd0, 0]);
}

/// Appends a DISCONNECT.
pub fn put_disconnect(out: &mut BytesMut) {
    out.put_slice(&[0xe0, 0]);
}

/// Decodes `bytes`, which must be exactly one packet.
#[cfg(test)]
fn decode_whole(bytes: &[u8]) -> Result<Packet<'_>, DecodeError> {
    let (header, lengths) = FixedHeader::read(bytes)?.expect("a whole header");
    assert_eq!(lengths.packet, bytes.len(), "one whole packet");
    Packet::decode(header, &bytes[lengths.header..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remaining_lengths_of_the_specification() {
        let check = |encoded: &[u8], remaining: usize| {
            let bytes = [&[0x30], encoded].concat();
            let (_, lengths) = FixedHeader::read(&bytes).unwrap().unwrap();
            assert_eq!(lengths.header, 1 + encoded.len());
            assert_eq!(lengths.packet, lengths.header + remaining);
            for cut in 0..bytes.len() {
                assert_eq!(FixedHeader::read(&bytes[..cut]), Ok(None));
            }
            let mut out = BytesMut::new();
            wire::put_fixed_header(&mut out, 0x30, remaining).unwrap();
            assert_eq!(out, bytes);
        };
        check(&[0x00], 0);
        check(&[0x7f], 127);
        check(&[0x80, 0x01], 128);
        check(&[0xff, 0x7f], 16_383);
        check(&[0x80, 0x80, 0x01], 16_384);
        check(&[0xff, 0xff, 0x7f], 2_097_151);
        check(&[0x80, 0x80, 0x80, 0x01], 2_097_152);
        // Not `check`: encoding would reserve the quarter of a gigabyte.
        let (_, lengths) = FixedHeader::read(&[0x30, 0xff, 0xff, 0xff, 0x7f])
            .unwrap()
            .unwrap();
        assert_eq!(lengths.packet, 268_435_460);
        assert_eq!(
            wire::put_fixed_header(&mut BytesMut::new(), 0x30, 268_435_456),
            Err(EncodeError::PacketTooLong {
                length: 268_435_456
            })
        );
    }

    #[test]
    fn first_bytes() {
        let allowed: Vec<u8> = (0..=255)
            .filter(|&first| FixedHeader::from_first_byte(first).is_ok())
            .collect();
        let expected = [
            0x10, 0x20, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d,
            0x40, 0x50, 0x62, 0x70, 0x82, 0x90, 0xa2, 0xb0, 0xc0, 0xd0, 0xe0,
        ];
        assert_eq!(allowed, expected);
    }

    #[test]
    fn packets_of_an_id_or_of_nothing() {
        let check = |bytes: &[u8], expected: Result<Packet<'_>, DecodeError>| {
            assert_eq!(decode_whole(bytes), expected);
        };
        let packet_id = PacketId::new(0x0102).unwrap();
        check(&[0x40, 2, 1, 2], Ok(Packet::Puback { packet_id }));
        check(&[0x50, 2, 1, 2], Ok(Packet::Pubrec { packet_id }));
        check(&[0x62, 2, 1, 2], Ok(Packet::Pubrel { packet_id }));
        check(&[0x70, 2, 1, 2], Ok(Packet::Pubcomp { packet_id }));
        check(&[0xb0, 2, 1, 2], Ok(Packet::Unsuback { packet_id }));
        check(&[0x40, 2, 0, 0], Err(DecodeError::ZeroPacketId));
        check(&[0x40, 1, 1], Err(DecodeError::Truncated));
        check(&[0x40, 3, 1, 2, 3], Err(DecodeError::TrailingBytes));
        check(&[0xc0, 0], Ok(Packet::Pingreq));
        check(&[0xd0, 0], Ok(Packet::Pingresp));
        check(&[0xe0, 0], Ok(Packet::Disconnect));
        for first in [0xc0, 0xd0, 0xe0] {
            check(&[first, 1, 0], Err(DecodeError::TrailingBytes));
        }
    }

    #[test]
    fn small_packets_are_written_as_they_are_read() {
        let mut out = BytesMut::new();
        let packet_ids = [1, 0xffff].map(|id| PacketId::new(id).unwrap());
        put_pubacks(&mut out, packet_ids.into_iter());
        put_unsuback(&mut out, packet_ids[0]);
        put_pingreq(&mut out);
        put_pingresp(&mut out);
        put_disconnect(&mut out);
        assert_eq!(
            out[..],
            [
                0x40, 2, 0, 1, 0x40, 2, 0xff, 0xff, 0xb0, 2, 0, 1, 0xc0, 0, 0xd0, 0, 0xe0, 0
            ]
        );
    }
}
