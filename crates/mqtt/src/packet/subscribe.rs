//! SUBSCRIBE and SUBACK.

use bytes::{BufMut, BytesMut};

use super::wire::{Field, Reader, put_fixed_header};
use super::{DecodeError, EncodeError, PacketId, Qos};

/// A request for one subscription or more.
///
/// The filters are UTF-8 without U+0000 and not empty; where a wildcard may stand in them
/// (section 4.7.1) is left to the one who matches them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subscribe<'a> {
    /// To be named in the SUBACK.
    pub packet_id: PacketId,
    entries: &'a [u8],
}

/// The filters of a SUBSCRIBE with the QoS asked for, in order.
#[derive(Debug, Clone)]
pub struct Filters<'a>(Reader<'a>);

/// The answer to a SUBSCRIBE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suback<'a> {
    /// The SUBSCRIBE's.
    pub packet_id: PacketId,
    codes: &'a [u8],
}

/// The return codes of a SUBACK, in the order of the filters.
#[derive(Debug, Clone)]
pub struct SubackCodes<'a>(std::slice::Iter<'a, u8>);

/// What became of one filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubackCode {
    /// Subscribed, with this QoS at most.
    Granted(Qos),
    /// Not subscribed.
    Failure,
}

impl<'a> Subscribe<'a> {
    pub(super) fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let packet_id = reader.packet_id()?;
        let entries = reader.rest();
        if entries.is_empty() {
            return Err(DecodeError::EmptyList);
        }
        while !reader.is_empty() {
            read_entry(&mut reader)?;
        }
        Ok(Self { packet_id, entries })
    }

    /// The filters with the QoS asked for; at least one, at most a quarter of the packet's bytes.
    #[must_use]
    pub fn filters(&self) -> Filters<'a> {
        Filters(Reader::new(self.entries))
    }
}

impl<'a> Iterator for Filters<'a> {
    type Item = (&'a str, Qos);

    fn next(&mut self) -> Option<Self::Item> {
        // Decoding has walked over the same bytes, so the only error left is their end.
        read_entry(&mut self.0).ok()
    }
}

fn read_entry<'a>(reader: &mut Reader<'a>) -> Result<(&'a str, Qos), DecodeError> {
    let filter = reader.topic()?;
    let qos = Qos::from_byte(reader.u8()?)?;
    Ok((filter, qos))
}

/// Appends a SUBSCRIBE.
///
/// # Errors
/// No filter, or one that is empty, too long or holds U+0000.
pub fn encode_subscribe(
    out: &mut BytesMut,
    packet_id: PacketId,
    filters: &[(&str, Qos)],
) -> Result<(), EncodeError> {
    if filters.is_empty() {
        return Err(EncodeError::EmptyList);
    }
    let mut length = 2;
    for (filter, _) in filters {
        length += Field::topic(filter)?.encoded_length() + 1;
    }
    put_fixed_header(out, 0x82, length)?;
    out.put_u16(packet_id.get());
    for (filter, qos) in filters {
        Field::topic(filter)?.put(out);
        out.put_u8(qos.number());
    }
    Ok(())
}

impl<'a> Suback<'a> {
    pub(super) fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let packet_id = reader.packet_id()?;
        let codes = reader.rest();
        if codes.is_empty() {
            return Err(DecodeError::EmptyList);
        }
        for &byte in codes {
            SubackCode::from_byte(byte)?;
        }
        Ok(Self { packet_id, codes })
    }

    /// One code for each filter of the SUBSCRIBE.
    #[must_use]
    pub fn codes(&self) -> SubackCodes<'a> {
        SubackCodes(self.codes.iter())
    }
}

impl Iterator for SubackCodes<'_> {
    type Item = SubackCode;

    fn next(&mut self) -> Option<SubackCode> {
        // Decoding has checked every byte.
        SubackCode::from_byte(*self.0.next()?).ok()
    }
}

impl SubackCode {
    fn from_byte(byte: u8) -> Result<Self, DecodeError> {
        match byte {
            0x80 => Ok(Self::Failure),
            byte => Qos::from_byte(byte)
                .map(Self::Granted)
                .map_err(|_| DecodeError::ReturnCode { byte }),
        }
    }

    /// The return code on the wire.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Granted(qos) => qos.number(),
            Self::Failure => 0x80,
        }
    }
}

/// Appends a SUBACK.
///
/// # Errors
/// No return code.
pub fn encode_suback(
    out: &mut BytesMut,
    packet_id: PacketId,
    codes: &[SubackCode],
) -> Result<(), EncodeError> {
    if codes.is_empty() {
        return Err(EncodeError::EmptyList);
    }
    put_fixed_header(out, 0x90, 2 + codes.len())?;
    out.put_u16(packet_id.get());
    for code in codes {
        out.put_u8(code.number());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Packet, decode_whole};
    use proptest::prelude::*;

    const ONE: PacketId = PacketId::MIN;

    #[test]
    fn subscription_as_a_device_asks_for_it() {
        let filter = "devices/dev1/messages/devicebound/#";
        let mut bytes = vec![0x82, 0x28, 0x00, 0x01, 0x00, 0x23];
        bytes.extend_from_slice(filter.as_bytes());
        bytes.push(1);
        let mut out = BytesMut::new();
        encode_subscribe(&mut out, ONE, &[(filter, Qos::AtLeastOnce)]).unwrap();
        assert_eq!(out, bytes);
        let Ok(Packet::Subscribe(subscribe)) = decode_whole(&bytes) else {
            panic!("no SUBSCRIBE");
        };
        assert_eq!(subscribe.packet_id, ONE);
        let filters: Vec<_> = subscribe.filters().collect();
        assert_eq!(filters, [(filter, Qos::AtLeastOnce)]);

        out.clear();
        encode_suback(&mut out, ONE, &[SubackCode::Granted(Qos::AtLeastOnce)]).unwrap();
        assert_eq!(out[..], [0x90, 0x03, 0x00, 0x01, 0x01]);
    }

    #[test]
    fn malformed_subscriptions() {
        let check = |bytes: &[u8], expected: DecodeError| {
            assert_eq!(decode_whole(bytes), Err(expected));
        };
        check(b"\x82\x02\0\x01", DecodeError::EmptyList);
        check(b"\x82\x06\0\0\0\x01a\0", DecodeError::ZeroPacketId);
        check(b"\x82\x05\0\x01\0\x01a", DecodeError::Truncated);
        check(b"\x82\x05\0\x01\0\0\0", DecodeError::EmptyTopic);
        check(b"\x82\x06\0\x01\0\x01\0\0", DecodeError::NulInString);
        for byte in [3, 4, 0x80] {
            let error = DecodeError::Qos { byte };
            check(&[0x82, 6, 0, 1, 0, 1, b'a', byte], error);
            // The second filter is looked at too.
            check(&[0x82, 10, 0, 1, 0, 1, b'a', 0, 0, 1, b'a', byte], error);
        }
        check(b"\x90\x02\0\x01", DecodeError::EmptyList);
        check(b"\x90\x03\0\x01\x03", DecodeError::ReturnCode { byte: 3 });
        check(b"\x90\x03\0\0\0", DecodeError::ZeroPacketId);
    }

    #[test]
    fn empty_lists_are_not_encoded() {
        let mut out = BytesMut::new();
        let empty = Err(EncodeError::EmptyList);
        assert_eq!(encode_subscribe(&mut out, ONE, &[]), empty);
        assert_eq!(encode_suback(&mut out, ONE, &[]), empty);
        let filters = [("a", Qos::AtMostOnce), ("", Qos::AtMostOnce)];
        assert_eq!(
            encode_subscribe(&mut out, ONE, &filters),
            Err(EncodeError::EmptyTopic)
        );
        assert!(out.is_empty());
    }

    fn qos() -> impl Strategy<Value = Qos> {
        (0_u8..3).prop_map(|number| Qos::from_byte(number).unwrap())
    }

    proptest! {
        #[test]
        fn decoding_gives_back_what_was_encoded(
            id in 1_u16..,
            filters in proptest::collection::vec(("[^\0]{1,30}", qos()), 1..6),
            codes in proptest::collection::vec(proptest::option::of(qos()), 1..6),
        ) {
            let packet_id = PacketId::new(id).unwrap();
            let filters: Vec<(&str, Qos)> = filters.iter().map(|(f, q)| (f.as_str(), *q)).collect();
            let mut out = BytesMut::new();
            encode_subscribe(&mut out, packet_id, &filters).unwrap();
            let Ok(Packet::Subscribe(subscribe)) = decode_whole(&out) else {
                panic!("no SUBSCRIBE");
            };
            prop_assert_eq!(subscribe.packet_id, packet_id);
            prop_assert_eq!(subscribe.filters().collect::<Vec<_>>(), filters);

            let codes: Vec<SubackCode> = codes
                .into_iter()
                .map(|code| code.map_or(SubackCode::Failure, SubackCode::Granted))
                .collect();
            let mut out = BytesMut::new();
            encode_suback(&mut out, packet_id, &codes).unwrap();
            let Ok(Packet::Suback(suback)) = decode_whole(&out) else {
                panic!("no SUBACK");
            };
            prop_assert_eq!(suback.packet_id, packet_id);
            prop_assert_eq!(suback.codes().collect::<Vec<_>>(), codes);
        }
    }
}
