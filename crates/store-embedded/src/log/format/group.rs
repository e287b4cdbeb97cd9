//! The header and the run table of a group.

use bytes::{Buf, BufMut};
use fieldpost_model::{PartitionId, SequenceNumber, StreamId, Timestamp};
use smallvec::SmallVec;

use super::{FORMAT_VERSION, FormatError, LogId, NUMBER_MAX};

const MAGIC: u32 = u32::from_le_bytes(*b"FPLG");

/// The bytes of a group header without its run table.
pub(crate) const HEADER_BYTES: usize = 64;
const CHECK_AT: usize = 60;
const RUN_BYTES: usize = 16;
const RUN_STREAM_BYTES: usize = 16;

/// The most bytes of a run table; a writer begins another group before it gets longer.
pub(crate) const TABLE_BYTES_MAX: usize = 256 * 1024;

/// What a group is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupKind {
    /// It holds records.
    Records,
    /// The log was opened; what was behind the group before this one is cut off.
    Opened,
    /// The log was closed; the group before this one was durable.
    Closed,
    /// The segment is full, and the next one exists.
    Sealed,
}

/// The header of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GroupHeader {
    pub(crate) kind: GroupKind,
    /// The segment that the group stands in.
    pub(crate) segment: u64,
    /// Greater than that of every group before it.
    pub(crate) number: u64,
    /// The number of the group before this one, which was durable when this one was written.
    pub(crate) last_durable: u64,
    /// Header, run table and frames, without padding.
    pub(crate) bytes: u32,
    /// Bytes of the run table.
    pub(crate) table_bytes: u32,
    /// How many runs there are.
    pub(crate) runs: u32,
    /// How many records they hold.
    pub(crate) records: u32,
    /// The enqueued time of every record in the group.
    pub(crate) enqueued: Timestamp,
}

/// Records of one partition that stand together, for one or more streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) partition: PartitionId,
    /// The streams, each with the sequence number of the first record in it.
    pub(crate) streams: SmallVec<[(StreamId, SequenceNumber); 2]>,
    /// How many records there are.
    pub(crate) count: u32,
    /// Bytes of their frames.
    pub(crate) bytes: u32,
    /// The check over their frames.
    pub(crate) check: u32,
}

impl Run {
    /// The sequence number of the first record in a stream, if the run belongs to it.
    pub(crate) fn first(&self, stream: StreamId) -> Option<SequenceNumber> {
        self.streams
            .iter()
            .find(|(candidate, _)| *candidate == stream)
            .map(|(_, first)| *first)
    }

    /// Bytes in the table of a run for so many streams.
    pub(crate) fn table_bytes(streams: usize) -> usize {
        RUN_BYTES + streams * RUN_STREAM_BYTES
    }
}

/// Writes the header and the run table of a group.
pub(crate) fn encode(out: &mut Vec<u8>, log: LogId, header: &GroupHeader, runs: &[Run]) {
    let start = out.len();
    out.put_u32_le(MAGIC);
    out.put_u16_le(FORMAT_VERSION);
    out.put_u16_le(match header.kind {
        GroupKind::Records => 0,
        GroupKind::Opened => 1,
        GroupKind::Closed => 2,
        GroupKind::Sealed => 3,
    });
    out.put_u64_le(header.segment);
    out.put_u64_le(header.number);
    out.put_u64_le(header.last_durable);
    out.put_u32_le(header.bytes);
    out.put_u32_le(header.table_bytes);
    out.put_u32_le(header.runs);
    out.put_u32_le(header.records);
    out.put_i64_le(header.enqueued.as_millis());
    out.put_u32_le(0);
    out.put_u32_le(0);
    for run in runs {
        out.put_u16_le(run.partition.0);
        out.put_u16_le(u16::try_from(run.streams.len()).unwrap_or(u16::MAX));
        out.put_u32_le(run.count);
        out.put_u32_le(run.bytes);
        out.put_u32_le(run.check);
        for (stream, first) in &run.streams {
            out.put_u16_le(stream.0);
            out.put_u16_le(0);
            out.put_u32_le(0);
            out.put_u64_le(*first);
        }
    }
    let check = out.get(start..).map_or(0, |bytes| header_check(log, bytes));
    if let Some(mut field) = out.get_mut(start + CHECK_AT..start + HEADER_BYTES) {
        field.put_u32_le(check);
    }
}

/// What stands at the start of a group when its check is not looked at: enough to say what a
/// broken group may have been, never to trust it.
pub(crate) fn peek(bytes: &[u8]) -> Result<GroupHeader, FormatError> {
    let mut fields = bytes.get(..HEADER_BYTES).ok_or(FormatError::Truncated)?;
    if fields.get_u32_le() != MAGIC {
        return Err(FormatError::Absent);
    }
    let version = fields.get_u16_le();
    if version > FORMAT_VERSION {
        return Err(FormatError::Newer(version));
    }
    let kind = match fields.get_u16_le() {
        0 => GroupKind::Records,
        1 => GroupKind::Opened,
        2 => GroupKind::Closed,
        3 => GroupKind::Sealed,
        _ => return Err(FormatError::Invalid),
    };
    let header = GroupHeader {
        kind,
        segment: fields.get_u64_le(),
        number: fields.get_u64_le(),
        last_durable: fields.get_u64_le(),
        bytes: fields.get_u32_le(),
        table_bytes: fields.get_u32_le(),
        runs: fields.get_u32_le(),
        records: fields.get_u32_le(),
        enqueued: Timestamp::from_millis(fields.get_i64_le()),
    };
    let table_bytes = usize::try_from(header.table_bytes).unwrap_or(usize::MAX);
    let fits = usize::try_from(header.bytes)
        .is_ok_and(|bytes| bytes.saturating_sub(HEADER_BYTES) >= table_bytes);
    let numbers = header.segment.max(header.number).max(header.last_durable);
    if table_bytes > TABLE_BYTES_MAX || !fits || numbers > NUMBER_MAX {
        return Err(FormatError::Invalid);
    }
    Ok(header)
}

/// The number of the group whose broken header this may be: behind the group `last`, in this
/// segment. Two of three marks must be there, so that any one field may be damaged, and what was
/// left in the file by an earlier use of it does not pass.
pub(crate) fn resembles(bytes: &[u8], segment: u64, last: Option<u64>) -> Option<u64> {
    let mut fields = bytes.get(..HEADER_BYTES)?;
    let magic = fields.get_u32_le() == MAGIC;
    fields.advance(4);
    let same_segment = fields.get_u64_le() == segment;
    let number = fields.get_u64_le();
    let last_durable = Some(fields.get_u64_le());
    let follows = last.is_none_or(|last| number > last);
    let marks = [magic, same_segment, last.is_some() && last_durable == last];
    let found = marks.into_iter().filter(|mark| *mark).count();
    // A number that is not the next one may be the damaged field itself.
    let number = if follows { number } else { last? + 1 };
    (found == marks.len() || found + 1 == marks.len() && follows).then_some(number)
}

/// Reads a header and its run table back. `bytes` holds both and nothing more.
pub(crate) fn decode(log: LogId, bytes: &[u8]) -> Result<(GroupHeader, Vec<Run>), FormatError> {
    let header = peek(bytes)?;
    let (fixed, mut table) = bytes.split_at(HEADER_BYTES);
    if table.len() != usize::try_from(header.table_bytes).unwrap_or(usize::MAX) {
        return Err(FormatError::Truncated);
    }
    let check = fixed
        .get(CHECK_AT..)
        .map_or(0, |mut field| field.get_u32_le());
    if check != header_check(log, bytes) {
        return Err(FormatError::Checksum);
    }
    // The table passed its check: what is impossible in it was written so, by no version of ours.
    let mut runs = Vec::new();
    let mut records = 0u64;
    let mut frames = 0u64;
    for _ in 0..header.runs {
        if table.len() < RUN_BYTES {
            return Err(FormatError::Invalid);
        }
        let partition = PartitionId(table.get_u16_le());
        let streams = usize::from(table.get_u16_le());
        let mut run = Run {
            partition,
            streams: SmallVec::new(),
            count: table.get_u32_le(),
            bytes: table.get_u32_le(),
            check: table.get_u32_le(),
        };
        if table.len() < streams * RUN_STREAM_BYTES {
            return Err(FormatError::Invalid);
        }
        for _ in 0..streams {
            let stream = StreamId(table.get_u16_le());
            table.advance(6);
            let first = table.get_u64_le();
            if first > NUMBER_MAX {
                return Err(FormatError::Invalid);
            }
            run.streams.push((stream, first));
        }
        records += u64::from(run.count);
        frames += u64::from(run.bytes);
        runs.push(run);
    }
    let whole = (HEADER_BYTES as u64) + u64::from(header.table_bytes) + frames;
    if !table.is_empty() || records != u64::from(header.records) || whole != u64::from(header.bytes)
    {
        return Err(FormatError::Invalid);
    }
    Ok((header, runs))
}

/// The check over the log's id and the header with its table, the check's own field left out.
fn header_check(log: LogId, bytes: &[u8]) -> u32 {
    let fixed = bytes.get(..CHECK_AT).unwrap_or_default();
    let table = bytes.get(HEADER_BYTES..).unwrap_or_default();
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(&log.0), fixed), table)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn runs() -> impl Strategy<Value = Vec<Run>> {
        let run = (
            0u16..128,
            prop::collection::vec((0u16..9, 0..NUMBER_MAX), 1..4),
            1u32..1000,
            8u32..100_000,
            any::<u32>(),
        )
            .prop_map(|(partition, streams, count, bytes, check)| Run {
                partition: PartitionId(partition),
                streams: streams.into_iter().map(|(s, n)| (StreamId(s), n)).collect(),
                count,
                bytes,
                check,
            });
        prop::collection::vec(run, 0..20)
    }

    proptest! {
        #[test]
        fn a_group_header_is_read_back_by_its_own_log_only_and_any_changed_byte_is_noticed(
            runs in runs(),
            numbers in (0..NUMBER_MAX, 0..NUMBER_MAX, 0..NUMBER_MAX, any::<i64>()),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let table_bytes = runs.iter().map(|run| Run::table_bytes(run.streams.len())).sum::<usize>();
            let frames: u32 = runs.iter().map(|run| run.bytes).sum();
            let header = GroupHeader {
                kind: GroupKind::Records,
                segment: numbers.0,
                number: numbers.1,
                last_durable: numbers.2,
                bytes: (HEADER_BYTES + table_bytes) as u32 + frames,
                table_bytes: table_bytes as u32,
                runs: runs.len() as u32,
                records: runs.iter().map(|run| run.count).sum(),
                enqueued: Timestamp::from_millis(numbers.3),
            };
            let log = LogId([9; 16]);
            let mut bytes = Vec::new();
            encode(&mut bytes, log, &header, &runs);
            prop_assert_eq!(decode(log, &bytes), Ok((header, runs)));
            prop_assert_eq!(decode(LogId([8; 16]), &bytes), Err(FormatError::Checksum));
            let at = at.index(bytes.len());
            // The field between the time and the check is covered as well.
            bytes[at] ^= flip;
            prop_assert!(decode(log, &bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..900)) {
            prop_assert!(decode(LogId([1; 16]), &bytes).is_err());
            for (at, byte) in b"FPLG\x01\x00\x00\x00".iter().enumerate() {
                if let Some(place) = bytes.get_mut(at) {
                    *place = *byte;
                }
            }
            prop_assert!(decode(LogId([1; 16]), &bytes).is_err());
        }
    }
}
