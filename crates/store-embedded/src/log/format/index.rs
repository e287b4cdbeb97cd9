//! The index of a segment, and the file that keeps it beside a sealed one.
//!
//! The file can be made anew from the segment at any time; losing it costs one scan.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut};
use fieldpost_model::{PartitionId, SequenceNumber, StreamId, Timestamp};

use super::{BLOCK, FORMAT_VERSION, FormatError, Key, LogId, size};

const MAGIC: &[u8; 8] = b"FPLOGIDX";
const FIXED_BYTES: usize = 48;
const KEY_BYTES: usize = 16;
const ENTRY_BYTES: usize = 24;

/// A partition gets another entry when so many bytes of it came since the last ...
const ENTRY_RECORD_BYTES: u64 = 64 * 1024;

/// ... or when its records stand so far behind the last: a search never reads on further.
pub(crate) const ENTRY_DISTANCE: u64 = 1024 * 1024;

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The record.
    pub(crate) sequence: SequenceNumber,
    /// Its enqueued time.
    pub(crate) enqueued: Timestamp,
    /// Where its group starts in the segment.
    pub(crate) group: u64,
    /// Where its frame starts, from the start of the group.
    pub(crate) frame: u32,
}

/// Where records of each partition stand in one segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SegmentIndex {
    keys: BTreeMap<Key, KeyIndex>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct KeyIndex {
    entries: Vec<Entry>,
    /// Bytes of frames since the last entry; not part of the file.
    since: u64,
}

impl SegmentIndex {
    /// Takes note of records that stand together, `bytes` of frames from `entry` on.
    pub(crate) fn note(&mut self, key: Key, entry: Entry, bytes: u64) {
        let index = self.keys.entry(key).or_default();
        let wanted = index.entries.last().is_none_or(|last| {
            index.since >= ENTRY_RECORD_BYTES || entry.group - last.group >= ENTRY_DISTANCE
        });
        if wanted {
            index.entries.push(entry);
            index.since = 0;
        }
        index.since += bytes;
    }

    /// The last entry at or before a record: reading on from it finds the record.
    pub(crate) fn floor(&self, key: Key, sequence: SequenceNumber) -> Option<Entry> {
        let entries = &self.keys.get(&key)?.entries;
        let after = entries.partition_point(|entry| entry.sequence <= sequence);
        entries.get(after.checked_sub(1)?).copied()
    }

    /// The first entry after a record.
    pub(crate) fn after(&self, key: Key, sequence: SequenceNumber) -> Option<Entry> {
        let entries = &self.keys.get(&key)?.entries;
        let after = entries.partition_point(|entry| entry.sequence <= sequence);
        entries.get(after).copied()
    }

    /// The entry from which reading on finds the first record that is later than `after`: the
    /// last that is not later itself, or the first of all.
    pub(crate) fn floor_time(&self, key: Key, after: Timestamp) -> Option<Entry> {
        let entries = &self.keys.get(&key)?.entries;
        let later = entries.partition_point(|entry| entry.enqueued <= after);
        entries.get(later.saturating_sub(1)).copied()
    }

    /// The first entry of each partition.
    pub(crate) fn firsts(&self) -> impl Iterator<Item = (Key, Entry)> + '_ {
        (self.keys.iter()).filter_map(|(&key, index)| Some((key, *index.entries.first()?)))
    }

    /// About the memory that the index takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.keys
            .values()
            .map(|index| 96 + index.entries.len() * size_of::<Entry>())
            .sum()
    }

    /// The index as a file.
    pub(crate) fn encode(&self, log: LogId, segment: u64, end: u64) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_slice(MAGIC);
        out.put_u16_le(FORMAT_VERSION);
        out.put_u16_le(0);
        out.put_u32_le(u32::try_from(self.keys.len()).unwrap_or(u32::MAX));
        out.put_slice(&log.0);
        out.put_u64_le(segment);
        out.put_u64_le(end);
        for (&(stream, partition), index) in &self.keys {
            out.put_u16_le(stream.0);
            out.put_u16_le(partition.0);
            out.put_u32_le(u32::try_from(index.entries.len()).unwrap_or(u32::MAX));
            out.put_u64_le(0);
            for entry in &index.entries {
                out.put_u64_le(entry.sequence);
                out.put_i64_le(entry.enqueued.as_millis());
                out.put_u32_le(u32::try_from(entry.group / BLOCK).unwrap_or(u32::MAX));
                out.put_u32_le(entry.frame);
            }
        }
        let check = crc32c::crc32c(&out);
        out.put_u32_le(check);
        out
    }

    /// Reads the file of a segment's index back; gives the end of the segment as well.
    pub(crate) fn decode(
        log: LogId,
        segment: u64,
        bytes: &[u8],
    ) -> Result<(Self, u64), FormatError> {
        let body = bytes.len().checked_sub(4).ok_or(FormatError::Truncated)?;
        let (body, mut check) = bytes.split_at(body);
        if body.len() < FIXED_BYTES || !body.starts_with(MAGIC) {
            return Err(FormatError::Absent);
        }
        if check.get_u32_le() != crc32c::crc32c(body) {
            return Err(FormatError::Checksum);
        }
        let mut fields = body;
        fields.advance(MAGIC.len());
        let version = fields.get_u16_le();
        if version > FORMAT_VERSION {
            return Err(FormatError::Newer(version));
        }
        fields.advance(2);
        let keys = fields.get_u32_le();
        let mut found = [0; 16];
        fields.copy_to_slice(&mut found);
        if LogId(found) != log || fields.get_u64_le() != segment {
            return Err(FormatError::Absent);
        }
        let end = fields.get_u64_le();
        let mut index = Self::default();
        for _ in 0..keys {
            if fields.len() < KEY_BYTES {
                return Err(FormatError::Invalid);
            }
            let key = (
                StreamId(fields.get_u16_le()),
                PartitionId(fields.get_u16_le()),
            );
            let count = size(u64::from(fields.get_u32_le()));
            fields.advance(8);
            if count > fields.len() / ENTRY_BYTES {
                return Err(FormatError::Invalid);
            }
            let entries = (0..count)
                .map(|_| Entry {
                    sequence: fields.get_u64_le(),
                    enqueued: Timestamp::from_millis(fields.get_i64_le()),
                    group: u64::from(fields.get_u32_le()) * BLOCK,
                    frame: fields.get_u32_le(),
                })
                .collect();
            index.keys.insert(key, KeyIndex { entries, since: 0 });
        }
        Ok((index, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(sequence: u64, group: u64) -> Entry {
        Entry {
            sequence,
            enqueued: Timestamp::from_millis(sequence as i64 * 10),
            group,
            frame: 64,
        }
    }

    #[test]
    fn entries_come_by_bytes_and_by_distance() {
        let key = (StreamId(0), PartitionId(2));
        let mut index = SegmentIndex::default();
        index.note(key, entry(5, 4096), 60_000);
        index.note(key, entry(9, 8192), 60_000);
        index.note(key, entry(12, 12_288), 100);
        index.note(key, entry(13, 12_288 + ENTRY_DISTANCE), 100);
        let sequences: Vec<_> = index.keys[&key]
            .entries
            .iter()
            .map(|e| e.sequence)
            .collect();
        assert_eq!(sequences, [5, 12, 13]);

        let floor = |sequence| index.floor(key, sequence).map(|e| e.sequence);
        assert_eq!(
            [floor(4), floor(5), floor(11), floor(99)],
            [None, Some(5), Some(5), Some(13)]
        );
        assert_eq!(index.after(key, 5).map(|e| e.sequence), Some(12));
        assert_eq!(index.after(key, 13), None);
        let time = |millis| {
            index
                .floor_time(key, Timestamp::from_millis(millis))
                .map(|e| e.sequence)
        };
        assert_eq!(
            [time(0), time(50), time(119), time(120), time(999)],
            [Some(5), Some(5), Some(5), Some(12), Some(13)]
        );

        let log = LogId([3; 16]);
        let bytes = index.encode(log, 7, 40_960);
        let (mut read, end) = SegmentIndex::decode(log, 7, &bytes).unwrap();
        read.keys.get_mut(&key).unwrap().since = 100;
        assert_eq!((read, end), (index, 40_960));
        assert!(SegmentIndex::decode(log, 8, &bytes).is_err());
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(SegmentIndex::decode(log, 7, &damaged).is_err(), "byte {at}");
            assert!(
                SegmentIndex::decode(log, 7, &bytes[..at]).is_err(),
                "cut at {at}"
            );
        }
    }
}
