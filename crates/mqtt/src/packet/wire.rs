//! Fields: numbers, strings, binary data, packet ids, the fixed header.

use bytes::{BufMut, BytesMut};

use super::{DecodeError, EncodeError, PacketId, REMAINING_LENGTH_MAX};

/// Reads fields off the front of a packet's body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(&'a [u8]);

/// A string or binary field that is known to fit its two-byte length.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    length: u16,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    pub(super) fn u8(&mut self) -> Result<u8, DecodeError> {
        let (&byte, rest) = self.0.split_first().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(byte)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*bytes))
    }

    pub(super) fn packet_id(&mut self) -> Result<PacketId, DecodeError> {
        PacketId::new(self.u16()?).ok_or(DecodeError::ZeroPacketId)
    }

    pub(super) fn binary(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = usize::from(self.u16()?);
        let (bytes, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(DecodeError::Truncated)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// A UTF-8 string without U+0000 (section 1.5.3). Other control characters and
    /// non-characters, which a receiver may refuse, pass.
    pub(super) fn string(&mut self) -> Result<&'a str, DecodeError> {
        let string = str::from_utf8(self.binary()?).map_err(|_| DecodeError::NotUtf8)?;
        if string.as_bytes().contains(&0) {
            return Err(DecodeError::NulInString);
        }
        Ok(string)
    }

    /// A topic name or filter, which has at least one character (section 4.7.3).
    pub(super) fn topic(&mut self) -> Result<&'a str, DecodeError> {
        let topic = self.string()?;
        if topic.is_empty() {
            return Err(DecodeError::EmptyTopic);
        }
        Ok(topic)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.0
    }

    pub(super) fn finish(self) -> Result<(), DecodeError> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(DecodeError::TrailingBytes)
        }
    }
}

impl<'a> Field<'a> {
    pub(super) fn binary(bytes: &'a [u8]) -> Result<Self, EncodeError> {
        let length = u16::try_from(bytes.len()).map_err(|_| EncodeError::FieldTooLong {
            length: bytes.len(),
        })?;
        Ok(Self { length, bytes })
    }

    pub(super) fn string(string: &'a str) -> Result<Self, EncodeError> {
        let field = Self::binary(string.as_bytes())?;
        if string.as_bytes().contains(&0) {
            return Err(EncodeError::NulInString);
        }
        Ok(field)
    }

    pub(super) fn topic(topic: &'a str) -> Result<Self, EncodeError> {
        if topic.is_empty() {
            return Err(EncodeError::EmptyTopic);
        }
        Self::string(topic)
    }

    /// Bytes on the wire, the length included.
    pub(super) fn encoded_length(self) -> usize {
        2 + self.bytes.len()
    }

    pub(super) fn put(self, out: &mut BytesMut) {
        out.put_u16(self.length);
        out.put_slice(self.bytes);
    }
}

/// Appends a fixed header and makes room for the `remaining` bytes after it.
pub(super) fn put_fixed_header(
    out: &mut BytesMut,
    first: u8,
    remaining: usize,
) -> Result<(), EncodeError> {
    let mut rest = u32::try_from(remaining)
        .ok()
        .filter(|&length| length <= REMAINING_LENGTH_MAX)
        .ok_or(EncodeError::PacketTooLong { length: remaining })?;
    out.reserve(5 + remaining);
    out.put_u8(first);
    loop {
        let [low, ..] = rest.to_le_bytes();
        rest >>= 7;
        if rest == 0 {
            out.put_u8(low & 0x7f);
            return Ok(());
        }
        out.put_u8(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings() {
        let check = |bytes: &[u8], expected: Result<&str, DecodeError>| {
            assert_eq!(Reader::new(bytes).string(), expected);
        };
        check(&[0, 0], Ok(""));
        check(&[0, 2, 0xc3, 0xa9], Ok("\u{e9}"));
        // The example of section 1.5.3.
        check(&[0, 5, 0x41, 0xf0, 0xaa, 0x9b, 0x94], Ok("A\u{2a6d4}"));
        // A byte order mark is a character like any other.
        check(&[0, 3, 0xef, 0xbb, 0xbf], Ok("\u{feff}"));
        check(&[0, 1, 0x1f], Ok("\u{1f}"));
        check(&[0, 1, 0x00], Err(DecodeError::NulInString));
        check(&[0, 1, 0xff], Err(DecodeError::NotUtf8));
        // An encoded surrogate, and an overlong NUL.
        check(&[0, 3, 0xed, 0xa0, 0x80], Err(DecodeError::NotUtf8));
        check(&[0, 2, 0xc0, 0x80], Err(DecodeError::NotUtf8));
        check(&[0, 2, 0x41], Err(DecodeError::Truncated));
        check(&[0], Err(DecodeError::Truncated));
        check(&[], Err(DecodeError::Truncated));
    }

    #[test]
    fn fields_that_do_not_fit() {
        let long = "x".repeat(65_536);
        assert!(Field::string(&long[..65_535]).is_ok());
        let error = EncodeError::FieldTooLong { length: 65_536 };
        assert_eq!(Field::string(&long).err(), Some(error));
        assert_eq!(Field::binary(long.as_bytes()).err(), Some(error));
        assert_eq!(Field::string("a\0").err(), Some(EncodeError::NulInString));
        assert_eq!(Field::topic("").err(), Some(EncodeError::EmptyTopic));
    }
}
