//! UNSUBSCRIBE.

use bytes::{BufMut, BytesMut};

use super::wire::{Field, Reader, put_fixed_header};
use super::{DecodeError, EncodeError, PacketId};

/// A request to end one subscription or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    /// To be named in the UNSUBACK.
    pub packet_id: PacketId,
    entries: &'a [u8],
}

/// The filters of an UNSUBSCRIBE, in order.
#[derive(Debug, Clone)]
pub struct TopicFilters<'a>(Reader<'a>);

impl<'a> Unsubscribe<'a> {
    pub(super) fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let packet_id = reader.packet_id()?;
        let entries = reader.rest();
        if entries.is_empty() {
            return Err(DecodeError::EmptyList);
        }
        while !reader.is_empty() {
            reader.topic()?;
        }
        Ok(Self { packet_id, entries })
    }

    /// The filters; at least one, at most a third of the packet's bytes.
    #[must_use]
    pub fn filters(&self) -> TopicFilters<'a> {
        TopicFilters(Reader::new(self.entries))
    }
}

impl<'a> Iterator for TopicFilters<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        // Decoding has walked over the same bytes, so the only error left is their end.
        self.0.topic().ok()
    }
}

/// Appends an UNSUBSCRIBE.
///
/// # Errors
/// No filter, or one that is empty, too long or holds U+0000.
pub fn encode_unsubscribe(
    out: &mut BytesMut,
    packet_id: PacketId,
    filters: &[&str],
) -> Result<(), EncodeError> {
    if filters.is_empty() {
        return Err(EncodeError::EmptyList);
    }
    let mut length = 2;
    for filter in filters {
        length += Field::topic(filter)?.encoded_length();
    }
    put_fixed_header(out, 0xa2, length)?;
    out.put_u16(packet_id.get());
    for filter in filters {
        Field::topic(filter)?.put(out);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Packet, decode_whole};
    use proptest::prelude::*;

    #[test]
    fn the_example_of_the_specification() {
        // Section 3.10.3: "a/b" and "c/d".
        let bytes = b"\xa2\x0c\0\x0a\0\x03a/b\0\x03c/d";
        let Ok(Packet::Unsubscribe(unsubscribe)) = decode_whole(bytes) else {
            panic!("no UNSUBSCRIBE");
        };
        assert_eq!(unsubscribe.packet_id.get(), 10);
        assert_eq!(unsubscribe.filters().collect::<Vec<_>>(), ["a/b", "c/d"]);
    }

    #[test]
    fn malformed() {
        let check = |bytes: &[u8], expected: DecodeError| {
            assert_eq!(decode_whole(bytes), Err(expected));
        };
        check(b"\xa2\x02\0\x01", DecodeError::EmptyList);
        check(b"\xa2\x05\0\0\0\x01a", DecodeError::ZeroPacketId);
        check(b"\xa2\x04\0\x01\0\0", DecodeError::EmptyTopic);
        check(b"\xa2\x05\0\x01\0\x02a", DecodeError::Truncated);
        check(b"\xa2\x06\0\x01\0\x01a\0", DecodeError::Truncated);
    }

    #[test]
    fn empty_lists_are_not_encoded() {
        let mut out = BytesMut::new();
        assert_eq!(
            encode_unsubscribe(&mut out, PacketId::MIN, &[]),
            Err(EncodeError::EmptyList)
        );
        assert!(out.is_empty());
    }

    proptest! {
        #[test]
        fn decoding_gives_back_what_was_encoded(
            id in 1_u16..,
            filters in proptest::collection::vec("[^\0]{1,30}", 1..6),
        ) {
            let packet_id = PacketId::new(id).unwrap();
            let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
            let mut out = BytesMut::new();
            encode_unsubscribe(&mut out, packet_id, &filters).unwrap();
            let Ok(Packet::Unsubscribe(unsubscribe)) = decode_whole(&out) else {
                panic!("no UNSUBSCRIBE");
            };
            prop_assert_eq!(unsubscribe.packet_id, packet_id);
            prop_assert_eq!(unsubscribe.filters().collect::<Vec<_>>(), filters);
        }
    }
}
