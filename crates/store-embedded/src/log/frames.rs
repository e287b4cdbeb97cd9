//! Walking record frames without the check, where it was made already, and with it.

use bytes::{Buf, Bytes};
use fieldpost_store::log::RECORD_FRAME_BYTES;

use super::format::size;

/// The frames of a run, or of a part of it.
pub(super) struct Frames {
    rest: Bytes,
}

/// What stands next.
pub(super) enum NextFrame {
    /// A sound record's data.
    Record(Bytes),
    /// A record that does not pass its check. What stands behind it is the next record only if its
    /// length is sound, for which [`Frames::rest_holds`] speaks.
    Damaged,
    /// The frame says that it is longer than what there is: so many bytes are wanted.
    Longer(usize),
    /// Nothing is left.
    End,
}

impl Frames {
    pub(super) fn new(frames: Bytes) -> Self {
        Self { rest: frames }
    }

    /// Bytes that are left.
    pub(super) fn rest(&self) -> usize {
        self.rest.len()
    }

    /// The next record's data without its check.
    pub(super) fn next_unchecked(&mut self) -> Option<Bytes> {
        let length = self.announced()?;
        if self.rest.len() < length {
            return None;
        }
        let mut frame = self.rest.split_to(length);
        frame.advance(RECORD_FRAME_BYTES);
        Some(frame)
    }

    /// Leaves the next record out.
    pub(super) fn skip(&mut self) -> Option<()> {
        let length = self.announced()?;
        if self.rest.len() < length {
            return None;
        }
        self.rest.advance(length);
        Some(())
    }

    /// The next record, checked.
    pub(super) fn next_checked(&mut self) -> NextFrame {
        if self.rest.is_empty() {
            return NextFrame::End;
        }
        let Some(length) = self.announced() else {
            return NextFrame::Longer(RECORD_FRAME_BYTES);
        };
        if self.rest.len() < length {
            return NextFrame::Longer(length);
        }
        let mut frame = self.rest.split_to(length);
        let announced = frame.get_u32_le().to_le_bytes();
        let check = frame.get_u32_le();
        if crc32c::crc32c_append(crc32c::crc32c(&announced), &frame) == check {
            NextFrame::Record(frame)
        } else {
            NextFrame::Damaged
        }
    }

    /// Whether what is left is exactly so many frames, going by their lengths. A frame does not say
    /// which one of its run it is: behind a length that is wrong, a sound record may stand in the
    /// place of another one.
    pub(super) fn rest_holds(&self, frames: u32) -> bool {
        let mut rest = Self {
            rest: self.rest.clone(),
        };
        (0..frames).all(|_| rest.skip().is_some()) && rest.rest.is_empty()
    }

    /// The whole length that the next frame announces.
    fn announced(&self) -> Option<usize> {
        announced(&self.rest)
    }
}

/// The whole length that a frame announces.
pub(super) fn announced(frame: &[u8]) -> Option<usize> {
    let mut header = frame.get(..RECORD_FRAME_BYTES)?;
    Some(RECORD_FRAME_BYTES.saturating_add(size(u64::from(header.get_u32_le()))))
}
