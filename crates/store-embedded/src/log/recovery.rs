//! Opening a log: which segments there are, and where the last one ends.
//!
//! The header of a segment says where every partition stood before it, so only the last segment is
//! walked. Numbers that may have been given out and cannot be found again are left out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

use fieldpost_model::Timestamp;

use super::format::group::GroupKind;
use super::format::segment::SegmentHeader;
use super::format::{BLOCK, BLOCK_BYTES, FormatError, LogId, Positions, size};
use super::scan::{ScanFrom, Scanned, Uncertain, scan};
use super::segment::{
    Fill, NEW_SUFFIX, SPARE_PREFIX, Segment, parse_name, remove_if_there, segment_name,
};
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
    /// What was acknowledged and cannot be read.
    pub damage: Vec<Damage>,
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

    pub(super) fn scan(
        &self,
        log: LogId,
        last_group: Option<u64>,
        positions: Positions,
    ) -> io::Result<Scanned> {
        scan(ScanFrom {
            file: &*self.file,
            log,
            segment: self.id,
            start: self.start(),
            last_group: self
                .header
                .as_ref()
                .map_or(last_group, |h| Some(h.last_group)),
            positions: match &self.header {
                Some(header) => header.positions.clone(),
                None => positions,
            },
            uncertain: self.uncertain.clone(),
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

/// Opens what is there. `fresh` says that the log was never used, `losses` how many times all of it
/// was lost.
pub(super) fn recover(
    files: &dyn Files,
    log: LogId,
    fresh: bool,
    losses: u32,
) -> Result<Recovered, LogOpenError> {
    remove_leftovers(files)?;
    // A name may stand in memory alone, as the process ended before it was durable. What is
    // acknowledged from here on must not go into a file that the next power failure unnames.
    files.sync_dir()?;
    let mut found = find_segments(files, log)?;
    if found.is_empty() {
        return Ok(nothing_left(fresh, losses));
    }
    let mut report = RecoveryReport {
        segments: found.len(),
        ..RecoveryReport::default()
    };
    report_gaps(&found, log, &mut report)?;
    fill_in_headers(&mut found, log, &mut report)?;

    let Some(last) = found.pop() else {
        return Ok(nothing_left(fresh, losses));
    };
    let mut segments: VecDeque<Arc<Segment>> = VecDeque::with_capacity(found.len() + 1);
    for segment in found {
        report.damage.extend(segment.cut());
        segments.push_back(Arc::new(sealed(segment)));
    }

    let scanned = last.scan(log, None, Positions::default())?;
    // What was read may stand in memory alone: it was written, but the process ended before its
    // sync, or the sync failed. Nobody may see it before it is on the disk. Only the last group can
    // be so; it is written again, because after a failed sync the system holds its pages for clean
    // and would not write them for another one.
    if let Some(from) = scanned.last_at {
        write_again(&*last.file, from, scanned.end)?;
    }
    last.file.sync()?;
    let cut = last.cut();
    let sealed_without_next = scanned.last_kind == Some(GroupKind::Sealed);
    report.groups = scanned.groups;
    report.records = scanned.records;
    report.bytes_walked = last.bytes;
    report.clean = scanned.last_kind == Some(GroupKind::Closed);
    report.torn = scanned.torn;
    report.damage.extend(scanned.damage);

    let mut positions = scanned.positions;
    // Whatever was torn has a number; nothing of it may pass for a part of what comes.
    let number = scanned.last_group.unwrap_or(0) + 1;
    let mut at = Some(scanned.end);
    let mut uncertain = scanned.uncertain;
    if let Some(cut) = &cut {
        uncertain.add_bytes(cut.to - scanned.end.min(cut.to));
        at = None;
    }
    if sealed_without_next {
        report.damage.push(Damage {
            file: segment_name(last.id + 1),
            from: 0,
            to: 0,
            what: format!(
                "the segment is missing; sequence numbers go on {SKIP_UNKNOWN} later, because it is not known which were used"
            ),
            lost: Vec::new(),
        });
        uncertain.add(SKIP_UNKNOWN);
        at = None;
    }
    uncertain.skip_in(&mut positions);
    if last.damage.is_some() {
        at = None;
    }
    report.damage.extend(cut);
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
            active.fill = Fill::between(scanned.end, active.capacity);
        }
    }
    segments.push_back(Arc::new(active));
    Ok(Recovered {
        segments,
        at,
        number,
        last_durable: scanned.last_group.unwrap_or(0),
        next_id: id + 1 + u64::from(sealed_without_next),
        positions,
        newest,
        has_records,
        report,
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
fn nothing_left(fresh: bool, losses: u32) -> Recovered {
    let mut recovered = Recovered {
        segments: VecDeque::new(),
        at: None,
        number: 0,
        last_durable: 0,
        next_id: 1,
        positions: Positions::default(),
        newest: None,
        has_records: false,
        report: RecoveryReport::default(),
    };
    if !fresh {
        // Each time further on: what was used since the last time is gone as well.
        let start = SKIP_ALL.saturating_mul(u64::from(losses.clamp(1, LOSSES_MAX)));
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
            lost: Vec::new(),
        });
    }
    recovered
}

/// Removes files that nobody needs: spares, and indexes of segments that are gone.
fn remove_leftovers(files: &dyn Files) -> io::Result<()> {
    let names = files.list()?;
    for name in &names {
        let orphan = parse_name(name, "index").is_some_and(|id| !names.contains(&segment_name(id)));
        if name.starts_with(SPARE_PREFIX) || name.ends_with(NEW_SUFFIX) || orphan {
            remove_if_there(files, name)?;
        }
    }
    Ok(())
}

/// Reports segments that are missing between others, with what was in them.
fn report_gaps(found: &[FoundSegment], log: LogId, report: &mut RecoveryReport) -> io::Result<()> {
    for pair in found.windows(2) {
        let [before, after] = pair else { continue };
        if after.id == before.id + 1 {
            continue;
        }
        let ends = before.scan(log, None, Positions::default())?.positions;
        let lost = after
            .header
            .iter()
            .flat_map(|header| lost_between(&ends, &header.positions))
            .collect();
        report.damage.push(Damage {
            file: segment_name(before.id + 1),
            from: 0,
            to: 0,
            what: format!(
                "{} segments are missing from here",
                after.id - before.id - 1
            ),
            lost,
        });
    }
    Ok(())
}

/// Records between where one segment ends and another begins.
pub(super) fn lost_between<'a>(
    ends: &'a Positions,
    begins: &'a Positions,
) -> impl Iterator<Item = crate::damage::LostRecords> + 'a {
    begins.known.iter().filter_map(|(&key, position)| {
        let from = ends.next(key);
        (position.next > from).then_some(crate::damage::LostRecords {
            stream: key.0,
            partition: key.1,
            from,
            to: position.next,
        })
    })
}

/// Works out what damaged headers said, from the segments around them.
fn fill_in_headers(
    found: &mut [FoundSegment],
    log: LogId,
    report: &mut RecoveryReport,
) -> io::Result<()> {
    for at in 0..found.len() {
        let (before, rest) = found.split_at_mut(at);
        let Some((segment, after)) = rest.split_first_mut() else {
            continue;
        };
        let Some(damage) = segment.damage.clone() else {
            continue;
        };
        report.damage.push(damage);
        let previous = match before.last() {
            Some(previous) => {
                let mut scanned = previous.scan(log, None, Positions::default())?;
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
        let scanned = segment.scan(
            log,
            previous.as_ref().and_then(|p| p.last_group),
            Positions::default(),
        )?;
        let next = after.first().and_then(|next| next.header.as_ref());
        let positions = match (&previous, next) {
            (Some(previous), _) => previous.positions.clone(),
            // The oldest segment: what it held begins where it is first seen.
            (None, next) => {
                let mut positions = next.map_or_else(
                    || {
                        let mut unknown = Positions::default();
                        unknown.skip(SKIP_UNKNOWN);
                        unknown
                    },
                    |next| next.positions.clone(),
                );
                let first_seen: BTreeMap<_, _> = scanned.index.firsts().collect();
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
            capacity: segment.bytes,
            last_group: previous
                .and_then(|previous| previous.last_group)
                .unwrap_or(0),
            created,
            filled: true,
            positions,
        });
    }
    Ok(())
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
        Fill::done(),
        None,
    );
    segment.set_sealed(true);
    segment
}
