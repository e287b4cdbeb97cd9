//! The header of a segment.

use bytes::{Buf, BufMut};
use fieldpost_model::{PartitionId, StreamId, Timestamp};

use super::{
    BLOCK_BYTES, FORMAT_VERSION, FormatError, LogId, NUMBER_MAX, Position, Positions, size,
    to_block,
};

const MAGIC: &[u8; 8] = b"FPLOGSEG";
const FIXED_BYTES: usize = 88;
const CHECK_AT: usize = 84;
const POSITION_BYTES: usize = 24;

/// The most bytes that a header takes: 340 streams of 128 partitions.
pub(crate) const HEADER_BYTES_MAX: u64 = 1024 * 1024;

/// What the header of a segment says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// The log that the segment belongs to.
    pub(crate) log: LogId,
    /// One more than that of the segment before it.
    pub(crate) id: u64,
    /// The length of the file.
    pub(crate) capacity: u64,
    /// The number of the last group before this segment; the first group here is later.
    pub(crate) last_group: u64,
    /// Store time when the segment was begun: no earlier than any record before it, no later than
    /// any record in it.
    pub(crate) created: Timestamp,
    /// Whether every block of the file had been written before it became a segment.
    pub(crate) filled: bool,
    /// Where every partition stands before the first group of this segment.
    pub(crate) positions: Positions,
}

impl SegmentHeader {
    /// The bytes that the header takes with its padding.
    pub(crate) fn bytes(positions: &Positions) -> u64 {
        to_block((FIXED_BYTES + positions.known.len() * POSITION_BYTES) as u64)
    }

    /// The header with its padding.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let bytes = Self::bytes(&self.positions);
        let mut out = Vec::with_capacity(size(bytes));
        out.put_slice(MAGIC);
        out.put_u16_le(FORMAT_VERSION);
        out.put_u16_le(0);
        out.put_u32_le(u32::try_from(bytes).unwrap_or(u32::MAX));
        out.put_slice(&self.log.0);
        out.put_u64_le(self.id);
        out.put_u64_le(self.capacity);
        out.put_u64_le(self.last_group);
        out.put_i64_le(self.created.as_millis());
        out.put_u64_le(self.positions.floor);
        out.put_u32_le(u32::try_from(self.positions.known.len()).unwrap_or(u32::MAX));
        out.put_u16_le(u16::from(self.filled));
        out.put_u16_le(0);
        out.put_u32_le(0);
        // The check, once all else is known.
        out.put_u32_le(0);
        for (&(stream, partition), position) in &self.positions.known {
            out.put_u16_le(stream.0);
            out.put_u16_le(partition.0);
            out.put_u32_le(u32::from(position.last_enqueued.is_some()));
            out.put_u64_le(position.next);
            out.put_i64_le(position.last_enqueued.map_or(0, Timestamp::as_millis));
        }
        out.resize(size(bytes), 0);
        let check = crc32c::crc32c(&out);
        if let Some(mut field) = out.get_mut(CHECK_AT..FIXED_BYTES) {
            field.put_u32_le(check);
        }
        out
    }

    /// How many bytes must be read to decode the header that starts with `block`.
    pub(crate) fn announced_bytes(block: &[u8]) -> Result<u64, FormatError> {
        let mut fields = block;
        if fields.try_get_u64_le().ok() != Some(u64::from_le_bytes(*MAGIC)) {
            return Err(FormatError::Absent);
        }
        fields.try_get_u32_le().map_err(truncated)?;
        let bytes = u64::from(fields.try_get_u32_le().map_err(truncated)?);
        if bytes == 0 || bytes != to_block(bytes) || bytes > HEADER_BYTES_MAX {
            return Err(FormatError::Invalid);
        }
        Ok(bytes)
    }

    /// Reads a whole header back.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        if size(Self::announced_bytes(bytes)?) != bytes.len() || bytes.len() < BLOCK_BYTES {
            return Err(FormatError::Truncated);
        }
        let (before, rest) = bytes.split_at(CHECK_AT);
        let (mut check, after) = rest.split_at(FIXED_BYTES - CHECK_AT);
        let sum = crc32c::crc32c_append(
            crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]),
            after,
        );
        if check.get_u32_le() != sum {
            return Err(FormatError::Checksum);
        }
        let mut fields = before;
        fields.advance(8);
        // Magic, length and check stay where they are in every version, so that a damaged version
        // is told from a newer one.
        let version = fields.get_u16_le();
        if version > FORMAT_VERSION {
            return Err(FormatError::Newer(version));
        }
        fields.advance(6);
        let mut log = [0; 16];
        fields.copy_to_slice(&mut log);
        let id = fields.get_u64_le();
        let capacity = fields.get_u64_le();
        let last_group = fields.get_u64_le();
        let created = Timestamp::from_millis(fields.get_i64_le());
        let floor = fields.get_u64_le();
        let count = size(u64::from(fields.get_u32_le()));
        let filled = fields.get_u16_le() != 0;
        let mut positions = Positions {
            floor,
            ..Positions::default()
        };
        let mut table = after;
        if count > table.len() / POSITION_BYTES
            || id.max(last_group).max(floor).max(capacity) > NUMBER_MAX
        {
            return Err(FormatError::Invalid);
        }
        for _ in 0..count {
            let key = (
                StreamId(table.get_u16_le()),
                PartitionId(table.get_u16_le()),
            );
            let has_time = table.get_u32_le() != 0;
            let next = table.get_u64_le();
            let time = Timestamp::from_millis(table.get_i64_le());
            if next > NUMBER_MAX {
                return Err(FormatError::Invalid);
            }
            positions.known.insert(
                key,
                Position {
                    next,
                    last_enqueued: has_time.then_some(time),
                },
            );
        }
        // Where groups begin follows from the table, and must lie behind what is checked here.
        if Self::bytes(&positions) != bytes.len() as u64 {
            return Err(FormatError::Invalid);
        }
        Ok(Self {
            log: LogId(log),
            id,
            capacity,
            last_group,
            created,
            filled,
            positions,
        })
    }
}

fn truncated(_: bytes::TryGetError) -> FormatError {
    FormatError::Truncated
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_header_is_read_back_and_any_changed_byte_is_noticed(
            id in 1..NUMBER_MAX,
            floor in 0..NUMBER_MAX,
            known in prop::collection::btree_map((0u16..9, 0u16..128), (0..NUMBER_MAX, any::<Option<i64>>()), 0..200),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let known = known.into_iter().map(|((stream, partition), (next, time))| {
                let last_enqueued = time.map(Timestamp::from_millis);
                ((StreamId(stream), PartitionId(partition)), Position { next, last_enqueued })
            }).collect();
            let header = SegmentHeader {
                log: LogId([7; 16]),
                id,
                capacity: 1 << 20,
                last_group: id - 1,
                created: Timestamp::from_millis(5),
                filled: id % 2 == 0,
                positions: Positions { floor, known },
            };
            let mut bytes = header.encode();
            prop_assert_eq!(bytes.len() as u64, SegmentHeader::bytes(&header.positions));
            prop_assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(SegmentHeader::decode(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
            prop_assert!(SegmentHeader::decode(&bytes).is_err());
        }
    }

    #[test]
    fn a_header_that_is_longer_than_its_table_is_none() {
        let header = SegmentHeader {
            log: LogId([7; 16]),
            id: 1,
            capacity: 1 << 20,
            last_group: 0,
            created: Timestamp::from_millis(5),
            filled: true,
            positions: Positions::default(),
        };
        let mut bytes = header.encode();
        bytes.resize(2 * BLOCK_BYTES, 0);
        bytes[12..16].copy_from_slice(&8192_u32.to_le_bytes());
        bytes[CHECK_AT..FIXED_BYTES].fill(0);
        let check = crc32c::crc32c(&bytes);
        bytes[CHECK_AT..FIXED_BYTES].copy_from_slice(&check.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&bytes), Err(FormatError::Invalid));
    }
}
