//! Cutting a byte stream into packets.

use crate::Violation;
use crate::packet::{DecodeError, FixedHeader, FixedLengths, Packet};

/// A buffer of at most this many bytes is reused for the next partial packet while bytes keep
/// coming; a larger one is released as soon as its packet has been used.
const REUSED_BYTES_MAX: usize = 4096;

/// First size of the buffer of a partial packet.
const KEPT_BYTES_MIN: usize = 32;

/// Yields whole packets out of a stream that arrives in pieces.
///
/// A packet that lies wholly within one piece is borrowed from it. Only a packet cut by the end of
/// a piece is kept, and what is kept is never more than that one packet: memory follows the bytes
/// that have arrived, not the length that was announced.
#[derive(Debug)]
pub struct Assembler {
    kept: Vec<u8>,
    /// `kept` is a packet that has been handed out, to be dropped by the next call.
    handed_out: bool,
    packet_length_max: u32,
}

/// One whole packet: its fixed header and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawPacket<'a> {
    /// Type and flags.
    pub header: FixedHeader,
    /// Variable header and payload.
    pub body: &'a [u8],
}

/// A whole packet, before its body is borrowed. It lets a connection look at the type, and go on to
/// the next packet, without holding a borrow of the assembler.
#[derive(Clone, Copy)]
pub(crate) struct Located<'i> {
    pub(crate) header: FixedHeader,
    place: Place<'i>,
}

#[derive(Clone, Copy)]
enum Place<'i> {
    Input(&'i [u8]),
    /// From this index to the end of the kept bytes.
    Kept(usize),
}

impl Assembler {
    /// An assembler that refuses packets longer than `packet_length_max` bytes, fixed header
    /// included.
    #[must_use]
    pub fn new(packet_length_max: u32) -> Self {
        Self {
            kept: Vec::new(),
            handed_out: false,
            packet_length_max,
        }
    }

    /// Changes the limit for packets whose header has not been read yet.
    pub fn set_packet_length_max(&mut self, packet_length_max: u32) {
        self.packet_length_max = packet_length_max;
    }

    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.kept.capacity()
    }

    /// Drops the packet last handed out, without waiting for the next call.
    pub(crate) fn release(&mut self) {
        if self.handed_out {
            self.handed_out = false;
            self.kept = Vec::new();
        }
    }

    /// Bytes kept of a packet that has not arrived in full.
    #[must_use]
    pub fn incomplete_bytes(&self) -> usize {
        if self.handed_out { 0 } else { self.kept.len() }
    }

    /// The next whole packet, taking its bytes from the front of `input`; `None` once `input` is
    /// used up. Only a call that returns `None` releases the memory of the last packet.
    ///
    /// # Errors
    /// A malformed fixed header, or one that announces too long a packet. The stream has no
    /// packet boundaries after that.
    pub fn next<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<RawPacket<'a>>, Violation> {
        let Some(located) = self.advance(input)? else {
            return Ok(None);
        };
        Ok(Some(RawPacket {
            header: located.header,
            body: self.body(located),
        }))
    }

    pub(crate) fn advance<'i>(
        &mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Located<'i>>, Violation> {
        if self.handed_out {
            self.handed_out = false;
            self.kept.clear();
            if self.kept.capacity() > REUSED_BYTES_MAX {
                self.kept = Vec::new();
            }
        }
        let located = if self.kept.is_empty() {
            self.locate_in_input(input)?
        } else {
            None
        };
        let located = match located {
            Some(located) => Some(located),
            None => match self.complete_kept(input) {
                Ok(located) => located,
                Err(violation) => {
                    self.kept = Vec::new();
                    return Err(violation);
                }
            },
        };
        if located.is_none() && self.kept.is_empty() {
            self.kept = Vec::new();
        }
        Ok(located)
    }

    pub(crate) fn body<'a>(&'a self, located: Located<'a>) -> &'a [u8] {
        match located.place {
            Place::Input(body) => body,
            Place::Kept(start) => self.kept.get(start..).unwrap_or_default(),
        }
    }

    fn locate_in_input<'i>(&self, input: &mut &'i [u8]) -> Result<Option<Located<'i>>, Violation> {
        let Some((header, lengths)) = self.read_header(input)? else {
            return Ok(None);
        };
        let Some((packet, rest)) = input.split_at_checked(lengths.packet) else {
            return Ok(None);
        };
        *input = rest;
        Ok(Some(Located {
            header,
            place: Place::Input(packet.get(lengths.header..).unwrap_or_default()),
        }))
    }

    /// Moves bytes from `input` to the kept ones until these are one whole packet.
    fn complete_kept<'i>(
        &mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<Located<'i>>, Violation> {
        loop {
            let wanted = match self.read_header(&self.kept)? {
                // The header grows byte by byte, so that not a byte beyond the packet is taken.
                None => self.kept.len() + 1,
                Some((header, lengths)) if self.kept.len() >= lengths.packet => {
                    self.handed_out = true;
                    return Ok(Some(Located {
                        header,
                        place: Place::Kept(lengths.header),
                    }));
                }
                Some((_, lengths)) => lengths.packet,
            };
            if input.is_empty() {
                return Ok(None);
            }
            let missing = wanted - self.kept.len();
            let (taken, rest) = input.split_at_checked(missing).unwrap_or((input, &[]));
            self.keep(taken, wanted);
            *input = rest;
        }
    }

    /// Appends to the kept bytes: from a small start the buffer doubles as bytes arrive, but does
    /// not grow beyond the packet's own length.
    fn keep(&mut self, bytes: &[u8], wanted: usize) {
        let needed = self.kept.len() + bytes.len();
        if needed > self.kept.capacity() {
            let target = (needed + self.kept.len())
                .min(wanted)
                .max(needed)
                .max(KEPT_BYTES_MIN);
            self.kept.reserve_exact(target - self.kept.len());
        }
        self.kept.extend_from_slice(bytes);
    }

    fn read_header(&self, bytes: &[u8]) -> Result<Option<(FixedHeader, FixedLengths)>, Violation> {
        let Some((header, lengths)) = FixedHeader::read(bytes)? else {
            return Ok(None);
        };
        let length = u64::try_from(lengths.packet).unwrap_or(u64::MAX);
        if length > u64::from(self.packet_length_max) {
            return Err(Violation::PacketTooLong {
                length,
                max: self.packet_length_max,
            });
        }
        Ok(Some((header, lengths)))
    }
}

impl<'a> RawPacket<'a> {
    /// The packet as a value.
    ///
    /// # Errors
    /// The body breaks a rule of its packet type.
    pub fn decode(&self) -> Result<Packet<'a>, DecodeError> {
        Packet::decode(self.header, self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PacketType;

    const PUBACK: [u8; 4] = [0x40, 2, 0, 7];

    #[test]
    fn whole_packets_are_borrowed_from_the_input() {
        let bytes = [PUBACK, PUBACK].concat();
        let mut input = bytes.as_slice();
        let mut assembler = Assembler::new(100);
        for end in [4, 8] {
            let packet = assembler.next(&mut input).unwrap().unwrap();
            assert_eq!(packet.header.packet_type, PacketType::Puback);
            assert_eq!(packet.body.as_ptr(), bytes[end - 2..].as_ptr());
            assert_eq!(assembler.kept.capacity(), 0);
        }
        assert_eq!(assembler.next(&mut input), Ok(None));
    }

    #[test]
    fn only_the_cut_packet_is_kept_and_then_released() {
        let bytes = [PUBACK, PUBACK, PUBACK].concat();
        let mut assembler = Assembler::new(100);
        let mut input = &bytes[..6];
        assert!(assembler.next(&mut input).unwrap().is_some());
        assert!(assembler.next(&mut input).unwrap().is_none());
        assert_eq!((assembler.incomplete_bytes(), input.len()), (2, 0));

        let mut input = &bytes[6..];
        assert_eq!(assembler.next(&mut input).unwrap().unwrap().body, [0, 7]);
        assert_eq!((assembler.incomplete_bytes(), input.len()), (0, 4));
        assert!(assembler.next(&mut input).unwrap().is_some());
        assert!(assembler.next(&mut input).unwrap().is_none());
        assert_eq!(assembler.kept.capacity(), 0);
    }

    #[test]
    fn memory_follows_arrived_bytes_not_the_announced_length() {
        // A PUBLISH of 200,000 bytes is announced, three bytes of it come.
        let mut assembler = Assembler::new(300_000);
        let mut input = [0x30, 0xc0, 0x9a, 0x0c, 1, 2, 3].as_slice();
        assert_eq!(assembler.next(&mut input), Ok(None));
        assert_eq!(assembler.incomplete_bytes(), 7);
        assert!(assembler.kept.capacity() < 64);
    }

    #[test]
    fn kept_memory_never_exceeds_the_packet_and_a_large_one_is_released_at_once() {
        let mut bytes = vec![0x30, 0xc0, 0x9a, 0x0c];
        bytes.resize(4 + 200_000, 0);
        let mut assembler = Assembler::new(300_000);
        for chunk in bytes.chunks(1460) {
            let mut input = chunk;
            let packet = assembler.next(&mut input).unwrap();
            assert!(packet.is_none_or(|packet| packet.body.len() == 200_000));
            assert!(assembler.kept.capacity() <= 200_004);
        }
        let mut input = &PUBACK[..1];
        assert_eq!(assembler.next(&mut input), Ok(None));
        assert!(assembler.kept.capacity() < 64);
    }

    #[test]
    fn nothing_is_kept_after_an_error() {
        // The first byte of a too long packet's length comes alone.
        let mut assembler = Assembler::new(100);
        assert_eq!(assembler.next(&mut [0x30, 0x80].as_slice()), Ok(None));
        assert_eq!(assembler.incomplete_bytes(), 2);
        assert!(assembler.next(&mut [0x01].as_slice()).is_err());
        assert_eq!(assembler.incomplete_bytes(), 0);
        assert_eq!(assembler.kept.capacity(), 0);
    }

    #[test]
    fn limits_and_malformed_headers_show_with_the_header() {
        let check = |bytes: &[u8], expected: Violation| {
            let mut input = bytes;
            assert_eq!(Assembler::new(1000).next(&mut input), Err(expected.clone()));
            // The same, byte by byte.
            let mut assembler = Assembler::new(1000);
            let outcome = bytes
                .iter()
                .find_map(|byte| assembler.next(&mut std::slice::from_ref(byte)).err());
            assert_eq!(outcome, Some(expected));
        };
        let too_long = |length| Violation::PacketTooLong { length, max: 1000 };
        check(&[0x30, 0xe6, 0x07], too_long(1001));
        check(&[0x30, 0xff, 0xff, 0xff, 0x7f], too_long(268_435_460));
        check(
            &[0x30, 0xff, 0xff, 0xff, 0x80],
            DecodeError::RemainingLength.into(),
        );
        check(&[0x00], DecodeError::ReservedType { number: 0 }.into());
        check(&[0xf0], DecodeError::ReservedType { number: 15 }.into());
        let mut input = [0x30, 0xe5, 0x07].as_slice();
        assert_eq!(Assembler::new(1000).next(&mut input), Ok(None));
    }
}
