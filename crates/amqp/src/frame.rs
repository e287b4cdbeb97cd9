//! Frames: the unit in which bytes travel (AMQP 1.0 part 2, section 2.3).

use bytes::{BufMut, BytesMut};

use crate::value::{Encoder, length32, overwrite};

/// The first bytes of a connection without a SASL layer, and those that follow the SASL layer.
pub const AMQP_HEADER: [u8; 8] = *b"AMQP\x00\x01\x00\x00";
/// The first bytes of a connection with a SASL layer.
pub const SASL_HEADER: [u8; 8] = *b"AMQP\x03\x01\x00\x00";

/// Bytes of a frame's header, and so of the empty frame.
pub const FRAME_HEADER_LENGTH: usize = 8;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameType {
    /// A performative, or nothing.
    Amqp,
    /// A step of authentication.
    Sasl,
}

/// The fixed start of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Bytes of the whole frame, this header included.
    pub size: usize,
    /// Where the body starts.
    pub body: usize,
    /// What the frame carries.
    pub frame_type: FrameType,
    /// The channel, for AMQP frames.
    pub channel: u16,
}

/// A frame header that breaks the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Larger than the limit, in bytes, that we told the peer.
    #[error("a frame of {size} bytes is over the limit of {limit}")]
    TooLarge {
        /// Announced size.
        size: u32,
        /// Our limit.
        limit: usize,
    },
    /// Size and data offset contradict each other.
    #[error("the frame's size and data offset are not valid")]
    Malformed,
    /// A frame type that AMQP does not define.
    #[error("unknown frame type 0x{0:02x}")]
    UnknownType(u8),
}

impl FrameHeader {
    /// Reads the header of a frame. `limit` is the largest frame allowed, in bytes.
    ///
    /// # Errors
    /// [`FrameError`] when the header is not valid or announces too much.
    pub fn parse(bytes: [u8; FRAME_HEADER_LENGTH], limit: usize) -> Result<Self, FrameError> {
        let [s0, s1, s2, s3, offset, kind, c0, c1] = bytes;
        let announced = u32::from_be_bytes([s0, s1, s2, s3]);
        let size = match usize::try_from(announced) {
            Ok(size) if size <= limit => size,
            _ => {
                return Err(FrameError::TooLarge {
                    size: announced,
                    limit,
                });
            }
        };
        let body = usize::from(offset) * 4;
        if body < FRAME_HEADER_LENGTH || body > size {
            return Err(FrameError::Malformed);
        }
        let frame_type = match kind {
            0 => FrameType::Amqp,
            1 => FrameType::Sasl,
            other => return Err(FrameError::UnknownType(other)),
        };
        Ok(Self {
            size,
            body,
            frame_type,
            channel: u16::from_be_bytes([c0, c1]),
        })
    }
}

/// Appends a frame whose body `body` writes.
pub fn put_frame(
    buffer: &mut BytesMut,
    frame_type: FrameType,
    channel: u16,
    body: impl FnOnce(&mut Encoder<'_>),
) {
    let start = put_header(buffer, frame_type, channel);
    body(&mut Encoder::new(buffer));
    finish(buffer, start);
}

/// Appends a frame header whose size is not known yet; returns where it starts.
pub(crate) fn put_header(buffer: &mut BytesMut, frame_type: FrameType, channel: u16) -> usize {
    let start = buffer.len();
    let kind = match frame_type {
        FrameType::Amqp => 0,
        FrameType::Sasl => 1,
    };
    buffer.put_slice(&[0, 0, 0, 0, 2, kind]);
    buffer.put_u16(channel);
    start
}

/// Fills in the size of the frame that starts at `start` and ends with the buffer.
pub(crate) fn finish(buffer: &mut BytesMut, start: usize) {
    let size = length32(buffer.len() - start);
    overwrite(buffer, start, &size.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        let check = |bytes: [u8; 8], expected: Result<(usize, usize, u16), FrameError>| {
            let parsed = FrameHeader::parse(bytes, 512).map(|h| (h.size, h.body, h.channel));
            assert_eq!(parsed, expected, "{bytes:02x?}");
        };
        check([0, 0, 0, 8, 2, 0, 0, 0], Ok((8, 8, 0)));
        check([0, 0, 2, 0, 3, 0, 1, 2], Ok((512, 12, 258)));
        check([0, 0, 0, 8, 1, 0, 0, 0], Err(FrameError::Malformed));
        check([0, 0, 0, 8, 3, 0, 0, 0], Err(FrameError::Malformed));
        check([0, 0, 0, 7, 2, 0, 0, 0], Err(FrameError::Malformed));
        check([0, 0, 0, 0, 0, 0, 0, 0], Err(FrameError::Malformed));
        check([0, 0, 0, 8, 2, 2, 0, 0], Err(FrameError::UnknownType(2)));
        check(
            [0, 0, 2, 1, 2, 0, 0, 0],
            Err(FrameError::TooLarge {
                size: 513,
                limit: 512,
            }),
        );
        check(
            *b"GET / HT",
            Err(FrameError::TooLarge {
                size: 0x4745_5420,
                limit: 512,
            }),
        );
    }

    #[test]
    fn sizes_are_filled_in() {
        let mut buffer = BytesMut::from(&b"before"[..]);
        put_frame(&mut buffer, FrameType::Amqp, 3, |e| e.null());
        assert_eq!(&buffer[6..], b"\x00\x00\x00\x09\x02\x00\x00\x03\x40");
    }
}
