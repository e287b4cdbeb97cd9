//! Walking a segment from its first group to its last, checking everything.
//!
//! Groups form a chain: each names the number of the one before it. That tells three things apart.
//! Bytes behind which the chain goes on were acknowledged, so they are *damage*. A broken group at
//! the end was either being written when the process ended (*torn*, the normal case) or was
//! damaged since; nobody had heard of it in the first case, so it is cut and mentioned. What
//! carries another segment's number is left over from an earlier use of the file and is nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::{Bytes, BytesMut};
use fieldpost_model::{PartitionId, Partitioning, StreamId, Timestamp};

use super::format::group::{self, GroupHeader, GroupKind, HEADER_BYTES, Run};
use super::format::index::{Entry, SegmentIndex};
use super::format::{BLOCK, BLOCK_BYTES, Key, LogId, Positions, size, to_block};
use super::frames::{Frames, NextFrame};
use super::segment::{Segment, segment_name};
use crate::damage::{Damage, LostRecords};
use crate::files::File;

/// Damages of a segment that are told one by one; a file that is one ruin is not listed block by
/// block. What they lost is told all the same.
const DAMAGES_MAX: usize = 1000;

/// Stretches of lost records of a segment that are told one by one, before they grow together.
const LOST_MAX: usize = 100_000;

/// Bytes that are read at once.
const WINDOW_BYTES: usize = 256 * 1024;

/// The least bytes that a record takes.
const RECORD_BYTES_MIN: u64 = 8;

/// Records in a run that are indexed one by one.
const NOTE_BYTES: usize = 16 * 1024;

/// Where to begin, and what is known of what comes before.
pub(super) struct ScanFrom<'a> {
    pub(super) file: &'a dyn File,
    pub(super) log: LogId,
    pub(super) segment: u64,
    /// Where the first group stands.
    pub(super) start: u64,
    /// The number of the group before the segment, if its header could be read.
    pub(super) last_group: Option<u64>,
    /// Where partitions stand before the segment.
    pub(super) positions: Positions,
    /// How many numbers may have been given out beyond that.
    pub(super) uncertain: Uncertain,
    /// Whether the segment is known to go on behind its last group: what is broken there is damage
    /// and not torn.
    pub(super) goes_on: bool,
    /// Where the next segment begins: a broken last group that is not counted in there was never
    /// durable.
    pub(super) ends: Option<Positions>,
}

/// How many sequence numbers may have been given out that can be read nowhere, because what held
/// them is damaged. A partition's are certain again from its next sound run on.
#[derive(Clone, Debug, Default)]
pub(super) struct Uncertain {
    /// For all partitions.
    numbers: u64,
    /// How much of that was there when a partition was last certain.
    certain: BTreeMap<Key, u64>,
}

impl Uncertain {
    /// Counts in what may have stood in so many bytes.
    pub(super) fn add_bytes(&mut self, bytes: u64) {
        self.add(bytes / RECORD_BYTES_MIN + 1);
    }

    /// Counts in so many numbers for every partition.
    pub(super) fn add(&mut self, numbers: u64) {
        self.numbers = self.numbers.saturating_add(numbers);
    }

    fn clear(&mut self, key: Key) {
        if self.numbers > 0 {
            self.certain.insert(key, self.numbers);
        }
    }

    /// Leaves out, in each partition, the numbers that nobody knows of, and says which those are in
    /// streams that had any record.
    pub(super) fn skip_in(
        &self,
        positions: &mut Positions,
        partitioning: Partitioning,
    ) -> Vec<LostRecords> {
        if self.numbers == 0 {
            return Vec::new();
        }
        let before = positions.clone();
        positions.skip(self.numbers);
        for (key, position) in &mut positions.known {
            if let Some(certain) = self.certain.get(key) {
                position.next = position.next.saturating_sub(*certain);
            }
        }
        lost_between(&before, positions, partitioning)
    }
}

/// Records between two states of the partitions, in streams that had any record.
pub(super) fn lost_between(
    before: &Positions,
    after: &Positions,
    partitioning: Partitioning,
) -> Vec<LostRecords> {
    let streams: BTreeSet<StreamId> = (before.known.keys().chain(after.known.keys()))
        .map(|(stream, _)| *stream)
        .chain([StreamId::BUILT_IN])
        .collect();
    let mut lost = Vec::new();
    for stream in streams {
        for partition in (0..partitioning.count()).map(PartitionId) {
            let key = (stream, partition);
            let (from, to) = (before.next(key), after.next(key));
            if from < to {
                lost.push(LostRecords {
                    stream,
                    partition,
                    from,
                    to,
                });
            }
        }
    }
    lost
}

/// What was found.
pub(super) struct Scanned {
    /// Where the last group ends.
    pub(super) end: u64,
    /// The number of the last group, or of the one before the segment.
    pub(super) last_group: Option<u64>,
    /// Store time of the first group.
    pub(super) first_time: Option<Timestamp>,
    /// Store time of the last group.
    pub(super) last_time: Option<Timestamp>,
    /// What the last group was there for.
    pub(super) last_kind: Option<GroupKind>,
    /// Where the last group starts.
    pub(super) last_at: Option<u64>,
    /// Whether a broken mark of this segment stands behind the last group.
    pub(super) broken_mark: bool,
    /// Where partitions stand behind the segment, as far as it can be read.
    pub(super) positions: Positions,
    /// How many numbers may have been given out beyond that.
    pub(super) uncertain: Uncertain,
    /// Which damage made numbers uncertain.
    pub(super) uncertain_since: Option<usize>,
    pub(super) index: SegmentIndex,
    pub(super) groups: u64,
    pub(super) records: u64,
    /// What was acknowledged and cannot be read.
    pub(super) damage: Vec<Damage>,
    /// A last group that is not whole, with the records that it was to hold where that is known.
    pub(super) torn: Option<Damage>,
}

/// Makes the index of a segment anew; gives the end of the segment as well.
pub(super) fn rebuild_index(segment: &Segment, log: LogId) -> io::Result<(SegmentIndex, u64)> {
    let scanned = scan(ScanFrom {
        file: &*segment.file,
        log,
        segment: segment.id,
        start: segment.start,
        last_group: None,
        positions: segment.base.clone(),
        uncertain: Uncertain::default(),
        goes_on: true,
        ends: None,
    })?;
    Ok((scanned.index, scanned.end))
}

/// Walks a segment.
pub(super) fn scan(from: ScanFrom<'_>) -> io::Result<Scanned> {
    let length = from.file.bytes()?;
    let mut scanner = Scanner {
        window: Window::new(from.file),
        log: from.log,
        segment: from.segment,
        gap: None,
        suspect: None,
        suspect_proves: from.goes_on,
        goes_on: from.goes_on,
        ends: from.ends,
        lost_ranges: 0,
        found: Scanned {
            end: from.start,
            last_group: from.last_group,
            first_time: None,
            last_time: None,
            last_kind: None,
            last_at: None,
            broken_mark: false,
            positions: from.positions,
            uncertain: from.uncertain,
            uncertain_since: None,
            index: SegmentIndex::default(),
            groups: 0,
            records: 0,
            damage: Vec::new(),
            torn: None,
        },
    };
    let mut at = from.start;
    while at < length {
        let group = match scanner.read_group(at, length)? {
            Some(group) if scanner.covers_later(&group, length)? => None,
            group => group,
        };
        match group {
            Some(group) => {
                at += to_block(u64::from(group.header.bytes));
                let last = group.header.kind == GroupKind::Sealed;
                scanner.take(group);
                if last {
                    break;
                }
            }
            None => {
                scanner.gap.get_or_insert(at);
                at += BLOCK;
            }
        }
    }
    scanner.finish()
}

struct Scanner<'a> {
    window: Window<'a>,
    log: LogId,
    segment: u64,
    /// Where bytes begin that are no group.
    gap: Option<u64>,
    /// A group with a sound header and broken frames: damage if the chain goes on, torn if not.
    suspect: Option<FoundGroup>,
    /// Whether the suspect is known to have been durable, or says that groups are missing before it.
    suspect_proves: bool,
    goes_on: bool,
    ends: Option<Positions>,
    lost_ranges: usize,
    found: Scanned,
}

struct FoundGroup {
    at: u64,
    header: GroupHeader,
    runs: Vec<FoundRun>,
}

impl FoundGroup {
    /// Whether records of it stand before where partitions are later.
    fn counts_before(&self, ends: &Positions) -> bool {
        self.runs.iter().any(|found| {
            let partition = found.run.partition;
            (found.run.streams.iter())
                .any(|&(stream, first)| first < ends.next((stream, partition)))
        })
    }
}

struct FoundRun {
    run: Run,
    /// Where the frames start, from the start of the group.
    offset: u32,
    /// Records to index: how many stand before it in the run, where, and bytes until the next.
    notes: Vec<(u32, u32, u32)>,
    /// Broken records: from, to (exclusive), counted in the run, and bytes likewise.
    broken: Vec<BrokenRecords>,
}

#[derive(Clone, Copy)]
struct BrokenRecords {
    from: u32,
    to: u32,
    at: u32,
    until: u32,
}

impl Scanner<'_> {
    /// The group at a position, if there is one that may follow the last.
    fn read_group(&mut self, at: u64, length: u64) -> io::Result<Option<FoundGroup>> {
        let block = self.window.get(at, BLOCK_BYTES)?;
        let Ok(header) = group::peek(block) else {
            return Ok(None);
        };
        let last = self.last_number();
        let follows = last.is_none_or(|last| header.number > last && header.last_durable >= last);
        // A file that was cut short ends within a group.
        let fits = self.goes_on
            || at
                .checked_add(u64::from(header.bytes))
                .is_some_and(|end| end <= length);
        if header.segment != self.segment || !follows || !fits {
            return Ok(None);
        }
        let head = HEADER_BYTES + size(u64::from(header.table_bytes));
        let Ok((header, runs)) = group::decode(self.log, self.window.get(at, head)?) else {
            return Ok(None);
        };
        let mut found = Vec::with_capacity(runs.len());
        let mut offset = HEADER_BYTES as u64 + u64::from(header.table_bytes);
        for run in runs {
            let bytes = u64::from(run.bytes);
            let there = length.saturating_sub(at + offset).min(bytes);
            let frames = self.window.take(at + offset, size(there))?;
            // Within the group, whose length is a u32.
            let start = u32::try_from(offset).unwrap_or(u32::MAX);
            found.push(check_run(run, start, frames));
            offset += bytes;
        }
        Ok(Some(FoundGroup {
            at,
            header,
            runs: found,
        }))
    }

    /// Whether groups stand within a broken one that were written after it was durable. Then its header is
    /// the older state of a block whose later write was lost, and says nothing of what follows.
    fn covers_later(&mut self, group: &FoundGroup, length: u64) -> io::Result<bool> {
        if group.runs.iter().all(|run| run.broken.is_empty()) {
            return Ok(false);
        }
        let end = group.at.saturating_add(u64::from(group.header.bytes));
        let mut at = group.at + BLOCK;
        while at < end.min(length) {
            let block = self.window.get(at, BLOCK_BYTES)?;
            if let Ok(header) = group::peek(block)
                && header.segment == self.segment
                && header.number > group.header.number
                && header.last_durable >= group.header.number
            {
                let head = HEADER_BYTES + size(u64::from(header.table_bytes));
                if group::decode(self.log, self.window.get(at, head)?).is_ok() {
                    return Ok(true);
                }
            }
            at += BLOCK;
        }
        Ok(false)
    }

    fn last_number(&self) -> Option<u64> {
        self.suspect
            .as_ref()
            .map(|group| group.header.number)
            .or(self.found.last_group)
    }

    /// Takes a group whose header is sound into the result.
    fn take(&mut self, group: FoundGroup) {
        let last = self.last_number();
        // The chain goes on behind the suspect, so somebody was told that it was durable.
        if let Some(suspect) = self.suspect.take() {
            self.apply(suspect);
        }
        // Any partition may have had records in what is not readable.
        let missing = last.map_or(self.gap.is_some(), |last| group.header.last_durable > last);
        if let Some(from) = self.gap.take() {
            if missing {
                self.found.uncertain.add_bytes(group.at - from);
                self.found.uncertain_since = Some(self.found.damage.len());
            }
            let what = match last {
                Some(last) if group.header.last_durable > last => format!(
                    "groups {} to {} are not readable",
                    last + 1,
                    group.header.last_durable
                ),
                _ => "not a group, although groups follow".to_owned(),
            };
            self.damaged(from, group.at, what, Vec::new());
        } else if let Some(last) = last.filter(|last| group.header.last_durable > *last) {
            let what = format!(
                "groups {} to {} are missing",
                last + 1,
                group.header.last_durable
            );
            self.found.uncertain.add_bytes(0);
            self.found.uncertain_since = Some(self.found.damage.len());
            self.damaged(group.at, group.at, what, Vec::new());
        }
        if group.runs.iter().any(|run| !run.broken.is_empty()) {
            self.suspect_proves = missing || self.goes_on;
            self.suspect = Some(group);
        } else {
            self.apply(group);
        }
    }

    fn apply(&mut self, group: FoundGroup) {
        let FoundGroup { at, header, runs } = group;
        let end = at + to_block(u64::from(header.bytes));
        for found in runs {
            let partition = found.run.partition;
            for &(stream, first) in &found.run.streams {
                let key = (stream, partition);
                let expected = self.found.positions.next(key);
                let next = first + u64::from(found.run.count);
                if first > expected {
                    let lost = LostRecords {
                        stream,
                        partition,
                        from: expected,
                        to: first,
                    };
                    self.lost(at, lost);
                } else if first < expected {
                    let what = format!(
                        "partition {partition} goes back from sequence number {expected} to {first}"
                    );
                    self.damaged(at, end, what, Vec::new());
                }
                for &(before, frame, bytes) in &found.notes {
                    let entry = Entry {
                        sequence: first + u64::from(before),
                        enqueued: header.enqueued,
                        group: at,
                        frame,
                    };
                    self.found.index.note(key, entry, u64::from(bytes));
                }
                self.found
                    .positions
                    .advance(key, next.max(expected), header.enqueued);
                self.found.uncertain.clear(key);
            }
            for broken in &found.broken {
                let lost = found
                    .run
                    .streams
                    .iter()
                    .map(|&(stream, first)| LostRecords {
                        stream,
                        partition,
                        from: first + u64::from(broken.from),
                        to: first + u64::from(broken.to),
                    });
                let base = at + u64::from(found.offset);
                let what = format!("records of group {} do not pass their check", header.number);
                self.damaged(
                    base + u64::from(broken.at),
                    base + u64::from(broken.until),
                    what,
                    lost.collect(),
                );
            }
        }
        self.found.groups += 1;
        self.found.records += u64::from(header.records);
        self.found.end = end;
        self.found.last_at = Some(at);
        self.found.last_group = Some(header.number);
        self.found.last_kind = Some(header.kind);
        self.found.first_time.get_or_insert(header.enqueued);
        self.found.last_time = Some(header.enqueued);
    }

    fn finish(mut self) -> io::Result<Scanned> {
        // Without it nobody would know that what is missing before it had been durable, so it stays
        // where it is and the log goes on behind it.
        if self.suspect_proves
            && let Some(suspect) = self.suspect.take_if(|suspect| {
                let ends = self.ends.as_ref();
                ends.is_none_or(|ends| suspect.counts_before(ends))
            })
        {
            self.apply(suspect);
            return Ok(self.found);
        }
        if self.goes_on {
            let block = self.window.get(self.found.end, BLOCK_BYTES)?;
            let number = group::resembles(block, self.segment, self.found.last_group);
            self.found.broken_mark = number.is_some();
            return Ok(self.found);
        }
        if let Some(suspect) = self.suspect.take() {
            let to = suspect.at + to_block(u64::from(suspect.header.bytes));
            let what = torn(suspect.header.number);
            let lost = (suspect.runs.iter())
                .flat_map(|found| {
                    let run = &found.run;
                    run.streams.iter().map(|&(stream, from)| LostRecords {
                        stream,
                        partition: run.partition,
                        from,
                        to: from + u64::from(run.count),
                    })
                })
                .collect();
            self.found.torn = Some(self.damage(suspect.at, to, what, lost));
        } else if let Some(at) = self.gap {
            let last = self.found.last_group;
            let block = self.window.get(at, BLOCK_BYTES)?;
            let header = group::peek(block).ok();
            // Nothing but the mark of the next opening comes behind a log that was closed, and it names
            // what it follows. All else was left by an earlier use of the file.
            let may_follow = self.found.last_kind != Some(GroupKind::Closed)
                || (header.as_ref()).is_some_and(|header| Some(header.last_durable) == last);
            if let Some(number) = group::resembles(block, self.segment, last)
                && may_follow
            {
                let bytes = header.map_or(0, |header| u64::from(header.bytes));
                let to = at + to_block(bytes.max(1));
                self.found.torn = Some(self.damage(at, to, torn(number), Vec::new()));
            }
        }
        Ok(self.found)
    }

    /// Adds lost records to the damage that ends where they should have stood, or says by itself
    /// that they are not there.
    fn lost(&mut self, at: u64, lost: LostRecords) {
        if let Some(last) = self.found.damage.last_mut()
            && last.to == at
            && self.lost_ranges < LOST_MAX
        {
            self.lost_ranges += 1;
            last.lost.push(lost);
            return;
        }
        self.damaged(
            at,
            at,
            "records are missing before this".to_owned(),
            vec![lost],
        );
    }

    fn damaged(&mut self, from: u64, to: u64, what: String, lost: Vec<LostRecords>) {
        let one_by_one = self.found.damage.len() < DAMAGES_MAX;
        let damage = self.damage(from, to, what, lost);
        match self.found.damage.last_mut() {
            Some(last) if !one_by_one => {
                "there is damage to many places from here on".clone_into(&mut last.what);
                last.to = last.to.max(to);
                for lost in damage.lost {
                    let before = (last.lost.iter_mut().rev())
                        .find(|other| {
                            (other.stream, other.partition) == (lost.stream, lost.partition)
                        })
                        .filter(|other| other.to == lost.from || self.lost_ranges >= LOST_MAX);
                    match before {
                        Some(before) => before.to = before.to.max(lost.to),
                        None => {
                            self.lost_ranges += 1;
                            last.lost.push(lost);
                        }
                    }
                }
            }
            _ => {
                self.lost_ranges += damage.lost.len();
                self.found.damage.push(damage);
            }
        }
    }

    fn damage(&self, from: u64, to: u64, what: String, lost: Vec<LostRecords>) -> Damage {
        Damage {
            file: segment_name(self.segment),
            from,
            to,
            what,
            lost,
        }
    }
}

fn torn(number: u64) -> String {
    format!("group {number}, the last, is torn or damaged and was cut off")
}

/// Walks the frames of a run.
fn check_run(run: Run, offset: u32, content: Bytes) -> FoundRun {
    let whole = crc32c::crc32c(&content) == run.check;
    let total = content.len();
    let mut frames = Frames::new(content);
    let mut found = FoundRun {
        run,
        offset,
        notes: Vec::new(),
        broken: Vec::new(),
    };
    let place = |rest: usize| u32::try_from(total - rest).unwrap_or(u32::MAX);
    let mut record = 0;
    let mut since = NOTE_BYTES;
    while record < found.run.count {
        let at = place(frames.rest());
        let next = frames.next_checked();
        let until = place(frames.rest());
        match next {
            NextFrame::Record(_) => {
                if since >= NOTE_BYTES {
                    found.notes.push((record, offset.saturating_add(at), 0));
                    since = 0;
                }
                let bytes = until - at;
                since += size(u64::from(bytes));
                if let Some((_, _, sum)) = found.notes.last_mut() {
                    *sum = sum.saturating_add(bytes);
                }
            }
            NextFrame::Damaged if frames.rest_holds(found.run.count - record - 1) => {
                found.broken.push(BrokenRecords {
                    from: record,
                    to: record + 1,
                    at,
                    until,
                });
            }
            // Without its length nothing behind a record can be found.
            NextFrame::Damaged | NextFrame::Longer(_) | NextFrame::End => {
                found.broken.push(BrokenRecords {
                    from: record,
                    to: found.run.count,
                    at,
                    until: u32::try_from(total).unwrap_or(u32::MAX),
                });
                break;
            }
        }
        record += 1;
    }
    // Sound records that are not the ones the table speaks of: all are left from another group.
    if !whole && found.broken.is_empty() {
        found.notes.clear();
        found.broken.push(BrokenRecords {
            from: 0,
            to: found.run.count,
            at: 0,
            until: u32::try_from(total).unwrap_or(u32::MAX),
        });
    }
    found
}

/// Reads ahead, so that a walk in small steps is not a call for each.
pub(super) struct Window<'a> {
    file: &'a dyn File,
    at: u64,
    data: Bytes,
}

impl<'a> Window<'a> {
    pub(super) fn new(file: &'a dyn File) -> Self {
        Self {
            file,
            at: 0,
            data: Bytes::new(),
        }
    }

    /// Bytes from a position; fewer when the file ends.
    pub(super) fn get(&mut self, at: u64, bytes: usize) -> io::Result<&[u8]> {
        let range = self.load(at, bytes)?;
        Ok(self.data.get(range).unwrap_or_default())
    }

    /// The same, to keep.
    pub(super) fn take(&mut self, at: u64, bytes: usize) -> io::Result<Bytes> {
        let range = self.load(at, bytes)?;
        Ok(self.data.slice(range))
    }

    /// Whether bytes are here already.
    pub(super) fn holds(&self, at: u64, bytes: usize) -> bool {
        at >= self.at && size(at - self.at).saturating_add(bytes) <= self.data.len()
    }

    fn load(&mut self, at: u64, bytes: usize) -> io::Result<std::ops::Range<usize>> {
        if !self.holds(at, bytes) {
            let mut data = BytesMut::zeroed(bytes.max(WINDOW_BYTES));
            let read = self.file.read_at(&mut data, at)?;
            data.truncate(read);
            self.at = at;
            self.data = data.freeze();
        }
        let start = size(at - self.at);
        let end = start.saturating_add(bytes).min(self.data.len());
        Ok(start.min(end)..end)
    }
}
