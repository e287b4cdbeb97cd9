//! What stands in the log's files, byte by byte. `docs/formats/log.md` is the description.
//!
//! All numbers are little-endian. Every check is a CRC-32C.

pub(crate) mod accepted;
pub(crate) mod group;
pub(crate) mod index;
pub(crate) mod segment;

use std::collections::BTreeMap;

use fieldpost_model::{PartitionId, SequenceNumber, StreamId, Timestamp};

/// The version of all of the log's files.
pub(crate) const FORMAT_VERSION: u16 = 1;

/// Segment headers and groups start at multiples of this and are padded to it.
///
/// It is the largest unit that disks write in one piece and that a kernel writes back, so a torn
/// write of one group cannot reach a block that holds an earlier one. At one small group per sync
/// the device writes one such block whatever the alignment is.
pub(crate) const BLOCK: u64 = 4096;

/// [`BLOCK`] as a buffer size.
pub(crate) const BLOCK_BYTES: usize = 4096;

/// No number of a segment, a group or a record is larger; what says otherwise was not written by
/// us. It leaves room to add without looking.
pub(crate) const NUMBER_MAX: u64 = 1 << 62;

/// Names a log. Checks start from it, so bytes of another log, or bytes that a device sent, never
/// pass for a group of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogId(pub [u8; 16]);

/// A partition of a stream.
pub(crate) type Key = (StreamId, PartitionId);

/// How far a partition has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    /// The sequence number that the next record gets.
    pub(crate) next: SequenceNumber,
    /// When its newest record was appended.
    pub(crate) last_enqueued: Option<Timestamp>,
}

/// How far every partition has got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Positions {
    /// Where partitions start that are not in `known`. Above 0 only after segments were lost.
    pub(crate) floor: SequenceNumber,
    /// The partitions that ever had a record.
    pub(crate) known: BTreeMap<Key, Position>,
}

impl Positions {
    /// The sequence number that the next record of a partition gets.
    pub(crate) fn next(&self, key: Key) -> SequenceNumber {
        self.known.get(&key).map_or(self.floor, |known| known.next)
    }

    /// Counts records in.
    pub(crate) fn advance(&mut self, key: Key, next: SequenceNumber, enqueued: Timestamp) {
        self.known.insert(
            key,
            Position {
                next,
                last_enqueued: Some(enqueued),
            },
        );
    }

    /// Leaves out so many numbers everywhere, because nobody knows which of them were given out.
    pub(crate) fn skip(&mut self, numbers: u64) {
        self.floor = self.floor.saturating_add(numbers);
        for position in self.known.values_mut() {
            position.next = position.next.saturating_add(numbers);
        }
    }
}

/// The next multiple of [`BLOCK`].
pub(crate) fn to_block(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK)
}

/// A size in memory; what does not fit is larger than any bound it is compared with.
pub(crate) fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FormatError {
    /// The bytes are none of this kind, or belong to another log or segment, or were never
    /// written.
    #[error("there is no such structure")]
    Absent,
    /// Too few bytes.
    #[error("it is cut short")]
    Truncated,
    /// A check does not hold.
    #[error("it does not pass its check")]
    Checksum,
    /// Written by a newer version.
    #[error("it has format version {0}, which is newer than this program")]
    Newer(u16),
    /// A field has a value that no writer gives it.
    #[error("a field has an impossible value")]
    Invalid,
}
