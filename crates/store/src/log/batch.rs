//! Batches: records framed by the connection that received them.
//!
//! The connection encodes and checks its records itself, so that the one committer only numbers and
//! writes. A frame is `length: u32 LE, crc: u32 LE, data`, where `crc` is the CRC-32C of the
//! length's four bytes followed by the data. Engines store frames as they are.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fieldpost_model::{PartitionId, StreamId};
use smallvec::{SmallVec, smallvec};

/// The most bytes that are asked for ahead for one batch.
const AHEAD_BYTES_MAX: usize = 256 * 1024;

/// Bytes in front of each record's data in a frame.
pub const RECORD_FRAME_BYTES: usize = 8;

/// Records of one partition that are appended together, for one or more streams.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The streams that get the records; at least one, without repetition.
    pub streams: SmallVec<[StreamId; 2]>,
    /// The partition in each of those streams.
    pub partition: PartitionId,
    /// How many records there are; at least one.
    pub count: u32,
    /// The framed records, one after the other.
    pub frames: Bytes,
    /// Memory that `frames` keeps, in bytes: what they were framed into is larger than they are.
    pub memory_bytes: usize,
}

/// Frames records into a batch for the built-in stream.
#[derive(Debug)]
pub struct BatchBuilder {
    partition: PartitionId,
    count: u32,
    frames: BytesMut,
    /// What the batch before took. One device's batches are much alike, and a buffer that grows to
    /// its size by doubling is copied as often.
    ahead: u32,
}

impl BatchBuilder {
    /// An empty batch for a partition. Allocates nothing.
    #[must_use]
    pub fn new(partition: PartitionId) -> Self {
        Self {
            partition,
            count: 0,
            frames: BytesMut::new(),
            ahead: 0,
        }
    }

    /// Adds one record, written by `encode` straight into the batch.
    ///
    /// `encode` must only append. Returns the bytes that the frame takes.
    pub fn push(&mut self, encode: impl FnOnce(&mut BytesMut)) -> usize {
        if self.count == 0 {
            self.frames.reserve(self.ahead as usize);
        }
        let start = self.frames.len();
        self.frames.put_bytes(0, RECORD_FRAME_BYTES);
        encode(&mut self.frames);
        let data_start = start + RECORD_FRAME_BYTES;
        let length = u32::try_from(self.frames.len().saturating_sub(data_start))
            .expect("a record is bounded by the message size, far below 4 GiB");
        let crc = crc32c::crc32c_append(
            crc32c::crc32c(&length.to_le_bytes()),
            self.frames.get(data_start..).unwrap_or_default(),
        );
        if let Some(mut header) = self.frames.get_mut(start..data_start) {
            header.put_u32_le(length);
            header.put_u32_le(crc);
        }
        self.count = self.count.saturating_add(1);
        self.frames.len() - start
    }

    /// Records so far.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of all frames so far.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.frames.len()
    }

    /// Takes the batch out and leaves an empty one; `None` when there is nothing in it.
    pub fn take(&mut self) -> Option<Batch> {
        if self.count == 0 {
            return None;
        }
        let memory_bytes = self.frames.capacity();
        let ahead = self.frames.len().min(AHEAD_BYTES_MAX);
        self.ahead = u32::try_from(ahead).unwrap_or(0);
        Some(Batch {
            memory_bytes,
            streams: smallvec![StreamId::BUILT_IN],
            partition: self.partition,
            count: std::mem::take(&mut self.count),
            frames: std::mem::take(&mut self.frames).freeze(),
        })
    }
}

/// Walks the frames of a batch and checks each.
#[derive(Clone, Debug)]
pub struct FramedRecords {
    rest: Bytes,
}

/// Why framed bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordFrameError {
    /// Fewer bytes are left than the frame announces.
    #[error("a record frame is cut short")]
    Truncated,
    /// The data is not what was written.
    #[error("a record does not pass its check")]
    Checksum,
}

impl FramedRecords {
    /// Walks `frames` from their start.
    #[must_use]
    pub fn new(frames: Bytes) -> Self {
        Self { rest: frames }
    }
}

impl Iterator for FramedRecords {
    type Item = Result<Bytes, RecordFrameError>;

    /// The next record's data, sharing memory with the frames. After an error there is nothing
    /// more.
    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let mut rest = std::mem::take(&mut self.rest);
        let (Ok(length), Ok(crc)) = (rest.try_get_u32_le(), rest.try_get_u32_le()) else {
            return Some(Err(RecordFrameError::Truncated));
        };
        let data_bytes = usize::try_from(length).unwrap_or(usize::MAX);
        if rest.len() < data_bytes {
            return Some(Err(RecordFrameError::Truncated));
        }
        let data = rest.split_to(data_bytes);
        if crc32c::crc32c_append(crc32c::crc32c(&length.to_le_bytes()), &data) != crc {
            return Some(Err(RecordFrameError::Checksum));
        }
        self.rest = rest;
        Some(Ok(data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_batch_like_the_one_before_is_framed_without_growing() {
        let mut builder = BatchBuilder::new(PartitionId(0));
        let mut fill = |records: usize, bytes: usize| {
            for _ in 0..records {
                builder.push(|out| out.put_bytes(7, bytes));
            }
            let batch = builder.take().unwrap();
            (batch.frames.len(), batch.memory_bytes)
        };
        fill(16, 1000);
        assert_eq!(fill(16, 1000), (16 * 1008, 16 * 1008));
        // One large batch does not make all that come after it large.
        fill(1, 1 << 20);
        assert!(fill(1, 10).1 <= AHEAD_BYTES_MAX);
        assert!(fill(1, 10).1 < 100);
    }

    proptest! {
        #[test]
        fn what_was_framed_is_read_back_and_any_changed_byte_is_noticed(
            records in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..20),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let mut builder = BatchBuilder::new(PartitionId(3));
            for record in &records {
                builder.push(|out| out.extend_from_slice(record));
            }
            let batch = builder.take().unwrap();
            prop_assert_eq!(batch.count as usize, records.len());
            prop_assert!(builder.take().is_none());

            let read: Vec<_> = FramedRecords::new(batch.frames.clone()).collect();
            let expected: Vec<_> = records.iter().map(|r| Ok(Bytes::copy_from_slice(r))).collect();
            prop_assert_eq!(read, expected);

            let mut damaged = batch.frames.to_vec();
            let at = at.index(damaged.len());
            damaged[at] ^= flip;
            prop_assert!(FramedRecords::new(damaged.into()).any(|record| record.is_err()));
        }
    }
}
