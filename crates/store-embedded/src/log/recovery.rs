//! Opening a log: which segments there are, and where the last one ends.
//!
//! The header of a segment says where every partition stood before it, so only the last segment is
//! walked. Numbers that may have been given out and cannot be found again are left out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

use fieldpost_model::{Partitioning, Timestamp};

use super::accepted::{ACCEPTED_NAME, Accepted};
use super::format::group::GroupKind;
use super::format::index::SegmentIndex;
use super::format::segment::SegmentHeader;
use super::format::{BLOCK, BLOCK_BYTES, FormatError, LogId, Positions, size};
use super::scan::{ScanFrom, Scanned, Uncertain, lost_between, scan};
use super::segment::{
    Fill, NEW_SUFFIX, SPARE_PREFIX, Segment, index_name, parse_name, remove_if_there, segment_name,
};
use super::{LogIdentity, SEGMENT_BYTES_LIMIT, SEGMENT_BYTES_MIN};
use crate::damage::Damage;
use crate::files::{File, Files, write_all_at};

/// Sequence numbers that are left out when nobody knows how many records were lost: more than fit
/// on a disk of 8 TiB.
const SKIP_UNKNOWN: u64 = 1 << 40;

/// The distance at which numbers go on each time that all segments were lost: a log that lost its
/// last segment now and then is not ahead of it.
const SKIP_ALL: u64 = 1 << 44;

/// Losses that are told apart; numbers stay far below the largest possible.
const LOSSES_MAX: u32 = 1 << 16;

/// Bytes that are written again at once.
const COPY_BYTES: usize = 1024 * 1024;

/// What opening the log found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Segments kept.
    pub segments: usize,
    /// Groups and records in the last segment.
    pub groups: u64,
    /// Records in the last segment.
    pub records: u64,
    /// Bytes of the last segment that were walked.
    pub bytes_walked: u64,
    /// Whether the log was closed in order.
    pub clean: bool,
    /// A last group that was not whole and was cut off: torn by the crash, unless it was damaged
    /// since.
    pub torn: Option<Damage>,
    /// What was acknowledged and cannot be read, as far as nobody accepted it.
    pub damage: Vec<Damage>,
    /// How many losses were accepted.
    pub accepted: usize,
}

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogOpenError {
    /// The system failed.
    #[error("the log cannot be opened: {0}")]
    Io(#[from] io::Error),
    /// A file of the log is of a version that this program does not know.
    #[error("{file} was written by a newer version of this program")]
    Newer {
        /// Its name.
        file: String,
    },
    /// A file belongs to another log.
    #[error("{file} belongs to another log; was it copied here?")]
    Foreign {
        /// Its name.
        file: String,
    },
    /// The first write into the log failed.
    #[error("the log takes no writes: {0}")]
    ReadOnly(String),
}

/// A log as it was found.
pub(super) struct Recovered {
    /// Oldest first; empty when a new segment must be begun in any case.
    pub(super) segments: VecDeque<Arc<Segment>>,
    /// Where the next group goes in the last segment; `None` when that takes no more.
    pub(super) at: Option<u64>,
    /// Greater than the number of every group that may have been written.
    pub(super) number: u64,
    /// The number of the last sound group.
    pub(super) last_durable: u64,
    /// The number of the next segment, should one be begun.
    pub(super) next_id: u64,
    pub(super) positions: Positions,
    pub(super) newest: Option<Timestamp>,
    pub(super) has_records: bool,
    pub(super) accepted: Accepted,
    pub(super) report: RecoveryReport,
}

/// A segment file and what its header says.
pub(super) struct FoundSegment {
    pub(super) id: u64,
    pub(super) file: Arc<dyn File>,
    pub(super) bytes: u64,
    pub(super) header: Option<SegmentHeader>,
    pub(super) damage: Option<Damage>,
    /// How many sequence numbers may have been given out beyond what the header says, when that had
    /// to be worked out.
    pub(super) uncertain: Uncertain,
}

impl FoundSegment {
    /// What is wrong with its length.
    pub(super) fn cut(&self) -> Option<Damage> {
        let header = self.header.as_ref()?;
        (self.bytes < header.capacity).then(|| Damage {
            file: segment_name(self.id),
            from: self.bytes,
            to: header.capacity,
            what: "the file is cut short".to_owned(),
            lost: Vec::new(),
        })
    }

    /// The length that it has, or should have.
    fn capacity(&self) -> u64 {
        let written = self.header.as_ref().map_or(0, |header| header.capacity);
        written.max(self.bytes)
    }

    /// Where the first group stands, or may stand.
    fn start(&self) -> u64 {
        match &self.header {
            Some(header) if self.damage.is_none() => SegmentHeader::bytes(&header.positions),
            _ => BLOCK,
        }
    }

    /// Walks it, with the segment that follows it.
    fn scan(
        &self,
        log: LogId,
        last_group: Option<u64>,
        next: Option<&FoundSegment>,
    ) -> io::Result<Scanned> {
        let header = self.header.as_ref();
        scan(ScanFrom {
            file: &*self.file,
            log,
            segment: self.id,
            start: self.start(),
            last_group: header.map_or(last_group, |header| Some(header.last_group)),
            positions: header.map_or_else(Positions::default, |header| header.positions.clone()),
            uncertain: self.uncertain.clone(),
            // A segment has its whole length before it has its name.
            goes_on: next.is_some() || self.cut().is_some(),
            ends: next.and_then(|next| Some(next.header.as_ref()?.positions.clone())),
        })
    }
}

/// The segment files of a log, in order.
pub(super) fn find_segments(
    files: &dyn Files,
    log: LogId,
) -> Result<Vec<FoundSegment>, LogOpenError> {
    let ids: BTreeSet<u64> = files
        .list()?
        .iter()
        .filter_map(|name| parse_name(name, "segment"))
        .collect();
    ids.into_iter()
        .map(|id| find_segment(files, log, id))
        .collect()
}

fn find_segment(files: &dyn Files, log: LogId, id: u64) -> Result<FoundSegment, LogOpenError> {
    let name = segment_name(id);
    let file = files.open(&name)?;
    let bytes = file.bytes()?;
    let (header, damage) = match read_header(&*file)? {
        Ok(header) if header.log != log => return Err(LogOpenError::Foreign { file: name }),
        Ok(header) if header.id == id => (Some(header), None),
        Ok(header) => {
            let what = format!("the header is that of segment {}", header.id);
            (None, Some(what))
        }
        Err(FormatError::Newer(_)) => return Err(LogOpenError::Newer { file: name }),
        Err(error) => (None, Some(format!("the header cannot be read: {error}"))),
    };
    Ok(FoundSegment {
        id,
        bytes,
        header,
        damage: damage.map(|what| Damage {
            file: segment_name(id),
            from: 0,
            to: BLOCK,
            what,
            lost: Vec::new(),
        }),
        file,
        uncertain: Uncertain::default(),
    })
}

fn read_header(file: &dyn File) -> io::Result<Result<SegmentHeader, FormatError>> {
    let mut block = vec![0; BLOCK_BYTES];
    let read = file.read_at(&mut block, 0)?;
    block.truncate(read);
    let bytes = match SegmentHeader::announced_bytes(&block) {
        Ok(bytes) => size(bytes),
        Err(error) => return Ok(Err(error)),
    };
    if bytes > block.len() {
        block.resize(bytes, 0);
        let read = file.read_at(&mut block, 0)?;
        block.truncate(read);
    }
    Ok(SegmentHeader::decode(&block))
}

/// Opens what is there.
pub(super) fn recover(
    files: &dyn Files,
    identity: &LogIdentity,
) -> Result<Recovered, LogOpenError> {
    let log = identity.id;
    remove_leftovers(files)?;
    // A name may stand in memory alone, as the process ended before it was durable. What is
    // acknowledged from here on must not go into a file that the next power failure unnames.
    files.sync_dir()?;
    let mut found = find_segments(files, log)?;
    let (accepted, unreadable) = accepted_losses(files, log)?;
    if found.is_empty() {
        let mut nothing = nothing_left(identity);
        nothing.report.damage.extend(unreadable);
        nothing.accepted = accepted;
        return Ok(nothing);
    }
    let mut report = RecoveryReport {
        segments: found.len(),
        damage: fill_in_headers(files, &mut found, log)?,
        ..RecoveryReport::default()
    };
    report.damage.extend(unreadable);
    (report.damage).extend(missing_before(files, log, &found, identity.partitioning)?);
    for pair in found.windows(2) {
        let [segment, next] = pair else { continue };
        // Without a sign of damage only the check in the background walks it.
        let sign = segment.damage.is_some() || segment.cut().is_some();
        if sign || segment.id + 1 != next.id {
            let walked = walk_before(segment, next, log, identity.partitioning)?;
            report.damage.extend(walked.damage);
        }
    }

    let Some(last) = found.pop() else {
        return Ok(nothing_left(identity));
    };
    let mut segments: VecDeque<Arc<Segment>> = VecDeque::with_capacity(found.len() + 1);
    segments.extend(found.into_iter().map(|segment| Arc::new(sealed(segment))));

    let WalkedLast {
        scanned,
        positions,
        cut,
        next_missing,
    } = walk_last(&last, log, identity.partitioning)?;
    // What was read may stand in memory alone: it was written, but the process ended before its
    // sync, or the sync failed. Nobody may see it before it is on the disk. Only the last group can
    // be so; it is written again, because after a failed sync the system holds its pages for clean
    // and would not write them for another one.
    if let Some(from) = scanned.last_at {
        write_again(&*last.file, from, scanned.end)?;
    }
    last.file.sync()?;
    report.groups = scanned.groups;
    report.records = scanned.records;
    report.bytes_walked = last.bytes;
    report.clean = scanned.last_kind == Some(GroupKind::Closed);
    report.torn = scanned.torn;
    report.damage.extend(scanned.damage);

    accepted.leave_out(&mut report.damage);
    report.accepted = accepted.losses().len();

    // Whatever was torn has a number; nothing of it may pass for a part of what comes.
    let number = scanned.last_group.unwrap_or(0) + 1;
    let mut at = (!cut && !next_missing).then_some(scanned.end);
    if last.damage.is_some() {
        at = None;
    }
    let header = last.header.as_ref();
    let created = header.map(|header| header.created);
    let newest = scanned.last_time.max(created);
    let has_records = scanned.records > 0;
    let id = last.id;
    let filled = last.header.as_ref().is_some_and(|header| header.filled);
    let mut active = sealed(last);
    active.set_end(scanned.end);
    active.set_index(scanned.index);
    if at.is_some() {
        active.set_sealed(false);
        if !filled {
            active.fill = Arc::new(Fill::between(scanned.end, active.capacity));
        }
    }
    segments.push_back(Arc::new(active));
    Ok(Recovered {
        segments,
        at,
        number,
        last_durable: scanned.last_group.unwrap_or(0),
        next_id: id + 1 + u64::from(next_missing),
        positions,
        newest,
        has_records,
        accepted,
        report,
    })
}

/// What the operator accepted to be lost, and what is wrong with the record of it.
pub(super) fn accepted_losses(
    files: &dyn Files,
    log: LogId,
) -> Result<(Accepted, Option<Damage>), LogOpenError> {
    Accepted::load(files, log)?.map_err(|_| LogOpenError::Newer {
        file: ACCEPTED_NAME.to_owned(),
    })
}

/// Writes what stands in a file once more.
fn write_again(file: &dyn File, from: u64, to: u64) -> io::Result<()> {
    let mut content = vec![0; size(to - from).min(COPY_BYTES)];
    let mut at = from;
    while at < to {
        let wanted = size(to - at).min(content.len());
        let part = content.get_mut(..wanted).unwrap_or_default();
        let read = file.read_at(part, at)?;
        let Some(part) = part.get(..read).filter(|part| !part.is_empty()) else {
            break;
        };
        write_all_at(file, &[io::IoSlice::new(part)], at)?;
        at += read as u64;
    }
    Ok(())
}

/// A log without a segment: new, or robbed of all it had.
fn nothing_left(identity: &LogIdentity) -> Recovered {
    let mut recovered = Recovered {
        segments: VecDeque::new(),
        at: None,
        number: 0,
        last_durable: 0,
        next_id: 1,
        positions: Positions::default(),
        newest: None,
        has_records: false,
        accepted: Accepted::default(),
        report: RecoveryReport::default(),
    };
    if !identity.fresh {
        // Each time further on: what was used since the last time is gone as well.
        let start = SKIP_ALL.saturating_mul(u64::from(identity.losses.clamp(1, LOSSES_MAX)));
        recovered.positions.skip(start);
        recovered.number = start;
        recovered.next_id = start;
        recovered.report.damage.push(Damage {
            file: "*.segment".to_owned(),
            from: 0,
            to: 0,
            what: format!(
                "all segments are missing; sequence numbers go on at {start}, because it is not known which were used"
            ),
            lost: lost_between(
                &Positions::default(),
                &recovered.positions,
                identity.partitioning,
            ),
        });
    }
    recovered
}

/// Removes files that nobody needs: spares, and indexes of segments that are gone. Those right
/// before the oldest segment stay: they are the evidence of what is missing there.
fn remove_leftovers(files: &dyn Files) -> io::Result<()> {
    let names: BTreeSet<String> = files.list()?.into_iter().collect();
    let kept = orphans(&names);
    for name in &names {
        let orphan = parse_name(name, "index")
            .is_some_and(|id| !names.contains(&segment_name(id)) && !kept.contains(&id));
        if name.starts_with(SPARE_PREFIX) || name.ends_with(NEW_SUFFIX) || orphan {
            remove_if_there(files, name)?;
        }
    }
    Ok(())
}

/// The segments right before the oldest whose index is there although they are not. A segment that
/// is no longer kept loses its index first.
pub(super) fn orphans(names: &BTreeSet<String>) -> VecDeque<u64> {
    let mut orphans = VecDeque::new();
    let oldest = (names.iter()).find_map(|name| parse_name(name, "segment"));
    let mut id = oldest;
    while let Some(before) = id.and_then(|id| id.checked_sub(1)) {
        if !names.contains(&index_name(before)) {
            break;
        }
        orphans.push_front(before);
        id = Some(before);
    }
    orphans
}

/// Reports segments that are missing before the oldest.
pub(super) fn missing_before(
    files: &dyn Files,
    log: LogId,
    found: &[FoundSegment],
    partitioning: Partitioning,
) -> io::Result<Vec<Damage>> {
    let names: BTreeSet<String> = files.list()?.into_iter().collect();
    let Some(header) = found.first().and_then(|oldest| oldest.header.as_ref()) else {
        return Ok(Vec::new());
    };
    let mut damage = Vec::new();
    let mut after = header.positions.clone();
    for id in orphans(&names).into_iter().rev() {
        let mut begins = after.clone();
        if let Some((index, _)) = read_index_file(files, log, id)? {
            for (key, entry) in index.firsts() {
                begins.advance(key, entry.sequence, entry.enqueued);
            }
        }
        damage.push(Damage {
            file: segment_name(id),
            from: 0,
            to: 0,
            what: "the segment is missing".to_owned(),
            lost: lost_between(&begins, &after, partitioning),
        });
        after = begins;
    }
    damage.reverse();
    Ok(damage)
}

/// The index that a file holds, if it is there and sound; gives the end of the segment as well.
fn read_index_file(
    files: &dyn Files,
    log: LogId,
    id: u64,
) -> io::Result<Option<(SegmentIndex, u64)>> {
    let file = match files.open(&index_name(id)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut content = vec![0; size(file.bytes()?.min(SEGMENT_BYTES_LIMIT))];
    let read = file.read_at(&mut content, 0)?;
    content.truncate(read);
    Ok(SegmentIndex::decode(log, id, &content).ok())
}

/// Walks a segment that is not the last, and compares its end with where the next one begins.
pub(super) fn walk_before(
    segment: &FoundSegment,
    next: &FoundSegment,
    log: LogId,
    partitioning: Partitioning,
) -> io::Result<Scanned> {
    let mut scanned = segment.scan(log, None, Some(next))?;
    let end = EndOfSegment {
        id: segment.id,
        bytes: segment.bytes,
        cut: segment.cut(),
        next_id: next.id,
        begins: next.header.as_ref().map(|header| &header.positions),
    };
    end.compare(&mut scanned, partitioning);
    Ok(scanned)
}

/// Where a segment ends, and where the next one begins.
pub(super) struct EndOfSegment<'a> {
    pub(super) id: u64,
    /// The length of the file.
    pub(super) bytes: u64,
    pub(super) cut: Option<Damage>,
    pub(super) next_id: u64,
    /// Where partitions stand in the next one.
    pub(super) begins: Option<&'a Positions>,
}

impl EndOfSegment<'_> {
    /// Adds what a walk must have missed.
    pub(super) fn compare(self, scanned: &mut Scanned, partitioning: Partitioning) {
        let lost = self.begins.map_or_else(Vec::new, |begins| {
            lost_between(&scanned.positions, begins, partitioning)
        });
        let mut at_end = self.cut;
        if self.next_id != self.id + 1 {
            scanned.damage.extend(at_end);
            let missing = self.next_id - self.id - 1;
            scanned.damage.push(Damage {
                file: segment_name(self.id + 1),
                from: 0,
                to: 0,
                what: format!("{missing} segments are missing from here"),
                lost,
            });
            return;
        }
        // Without its seal it is as a crash leaves it, if nothing else is missing.
        let sealed = scanned.last_kind == Some(GroupKind::Sealed);
        let broken_seal = !sealed && scanned.broken_mark;
        if at_end.is_none() && (broken_seal || !lost.is_empty()) {
            at_end = Some(Damage {
                file: segment_name(self.id),
                from: scanned.end.min(self.bytes),
                to: self.bytes,
                what: "the end of the segment is not readable".to_owned(),
                lost: Vec::new(),
            });
        }
        if let Some(at_end) = &mut at_end {
            at_end.from = at_end.from.min(scanned.end);
            at_end.lost = lost;
        }
        scanned.damage.extend(at_end);
    }
}

/// The last segment as it was found.
pub(super) struct WalkedLast {
    pub(super) scanned: Scanned,
    /// Where partitions go on, behind all numbers that may have been given out.
    pub(super) positions: Positions,
    pub(super) cut: bool,
    /// Its seal says that another segment follows.
    pub(super) next_missing: bool,
}

/// Walks the last segment, and works out where sequence numbers go on.
pub(super) fn walk_last(
    last: &FoundSegment,
    log: LogId,
    partitioning: Partitioning,
) -> io::Result<WalkedLast> {
    let mut scanned = last.scan(log, None, None)?;
    let mut uncertain = scanned.uncertain.clone();
    let cut = last.cut();
    let is_cut = cut.is_some();
    if let Some(mut cut) = cut {
        if last.damage.is_some() {
            // Nobody knows how long the file was.
            uncertain.add(SKIP_UNKNOWN);
        }
        uncertain.add_bytes(cut.to - scanned.end.min(cut.to));
        cut.from = cut.from.min(scanned.end);
        scanned.uncertain_since = Some(scanned.damage.len());
        scanned.damage.push(cut);
    }
    let next_missing = scanned.last_kind == Some(GroupKind::Sealed);
    if next_missing {
        scanned.uncertain_since = Some(scanned.damage.len());
        scanned.damage.push(Damage {
            file: segment_name(last.id + 1),
            from: 0,
            to: 0,
            what: format!(
                "the segment is missing; sequence numbers go on {SKIP_UNKNOWN} later, because it is not known which were used"
            ),
            lost: Vec::new(),
        });
        uncertain.add(SKIP_UNKNOWN);
    }
    let mut positions = scanned.positions.clone();
    let lost = uncertain.skip_in(&mut positions, partitioning);
    if !lost.is_empty() {
        let since = scanned.uncertain_since;
        match since.and_then(|at| scanned.damage.get_mut(at)) {
            Some(damage) => damage.lost.extend(lost),
            None => scanned.damage.push(Damage {
                file: segment_name(last.id),
                from: scanned.end,
                to: scanned.end,
                what: "sequence numbers that may have been given out are left out".to_owned(),
                lost,
            }),
        }
    }
    Ok(WalkedLast {
        scanned,
        positions,
        cut: is_cut,
        next_missing,
    })
}

/// Works out what damaged headers said, from the segments around them.
pub(super) fn fill_in_headers(
    files: &dyn Files,
    found: &mut [FoundSegment],
    log: LogId,
) -> io::Result<Vec<Damage>> {
    let mut damages = Vec::new();
    for at in 0..found.len() {
        let (before, rest) = found.split_at_mut(at);
        let Some((segment, after)) = rest.split_first_mut() else {
            continue;
        };
        let Some(damage) = segment.damage.clone() else {
            continue;
        };
        damages.push(damage);
        let previous = match before.last() {
            Some(previous) => {
                let mut scanned = previous.scan(log, None, Some(segment))?;
                if scanned.last_kind != Some(GroupKind::Sealed) {
                    let behind = previous.capacity().saturating_sub(scanned.end);
                    scanned.uncertain.add_bytes(behind);
                }
                if segment.id != previous.id + 1 {
                    scanned.uncertain.add(SKIP_UNKNOWN);
                }
                segment.uncertain = scanned.uncertain.clone();
                Some(scanned)
            }
            None => None,
        };
        let last_group = previous.as_ref().and_then(|previous| previous.last_group);
        let scanned = segment.scan(log, last_group, after.first())?;
        let next = after.first().and_then(|next| next.header.as_ref());
        let positions = match (&previous, next) {
            (Some(previous), _) => previous.positions.clone(),
            // The first of all.
            (None, _) if segment.id == 1 => Positions::default(),
            // The oldest segment: what it held begins where its index says, or where it is first
            // seen.
            (None, next) => {
                let mut positions = next.map_or_else(
                    || {
                        let mut unknown = Positions::default();
                        unknown.skip(SKIP_UNKNOWN);
                        unknown
                    },
                    |next| next.positions.clone(),
                );
                let index = read_index_file(files, log, segment.id)?;
                let index = index.map_or_else(|| scanned.index.clone(), |(index, _)| index);
                let first_seen: BTreeMap<_, _> = index.firsts().collect();
                for (key, entry) in first_seen {
                    positions.advance(key, entry.sequence, entry.enqueued);
                }
                positions
            }
        };
        let created = previous
            .as_ref()
            .and_then(|previous| previous.last_time)
            .or(scanned.first_time)
            .or(next.map(|next| next.created))
            .unwrap_or(Timestamp::UNIX_EPOCH);
        segment.header = Some(SegmentHeader {
            log,
            id: segment.id,
            // No segment is smaller.
            capacity: segment.bytes.max(SEGMENT_BYTES_MIN),
            last_group: previous
                .and_then(|previous| previous.last_group)
                .unwrap_or(0),
            created,
            filled: true,
            positions,
        });
    }
    Ok(damages)
}

/// A segment that is not written to any more.
fn sealed(found: FoundSegment) -> Segment {
    let start = found.start();
    let header = found.header.unwrap_or(SegmentHeader {
        log: LogId([0; 16]),
        id: found.id,
        capacity: found.bytes,
        last_group: 0,
        created: Timestamp::UNIX_EPOCH,
        filled: true,
        positions: Positions::default(),
    });
    let segment = Segment::new(
        found.id,
        found.file,
        header.capacity,
        start,
        header.created,
        header.positions,
        found.bytes,
        Arc::new(Fill::done()),
        None,
    );
    segment.set_sealed(true);
    segment
}
