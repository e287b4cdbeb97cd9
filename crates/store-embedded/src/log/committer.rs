//! The committer: numbers what is waiting, writes it as one group, syncs once, and tells everybody.
//!
//! There is one, and it owns the end of the log. [`Committer::run_once`] makes at most one group
//! and never waits for anything but the disk, so a test drives it as well as a thread does.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fieldpost_model::{SequenceNumber, Timestamp};
use fieldpost_store::log::Batch;
use fieldpost_store::{HealthLevel, StoreError};
use smallvec::SmallVec;

use super::format::group::{self, GroupHeader, GroupKind, HEADER_BYTES, Run, TABLE_BYTES_MAX};
use super::format::index::{Entry, SegmentIndex};
use super::format::segment::SegmentHeader;
use super::format::{BLOCK, BLOCK_BYTES, Key, Positions, size, to_block};
use super::intake::Accepted;
use super::segment::{Fill, Segment, Spare, remove_if_there, segment_name};
use super::tail::Published;
use super::time::SteadyTime;
use super::{SEGMENT_BYTES_MIN, Shared};
use crate::files::{is_full, write_all_at};

/// The most bytes of frames that one group takes, unless a single batch is larger.
pub(super) const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Frames below this are copied together; a part of its own costs the system call more.
const COPY_BYTES_MAX: usize = 4096;

/// What came of one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing was waiting.
    Idle,
    /// A group is durable and everybody in it was told.
    Committed {
        /// Batches in the group.
        batches: usize,
    },
    /// There is no room for the next group. What waits is kept and tried again.
    Held,
    /// The store is read-only; everybody who waited was told.
    Failed,
}

/// The one writer of the log.
pub(super) struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) active: Arc<Segment>,
    /// Where the next group starts.
    pub(super) at: u64,
    /// The number of the last group that was written, successfully or not.
    pub(super) number: u64,
    /// The number of the last durable group.
    pub(super) last_durable: u64,
    pub(super) positions: Positions,
    /// The newest store time; it never goes back.
    pub(super) store_time: Timestamp,
    /// What keeps a short step of the clock out of it.
    pub(super) time: SteadyTime,
    /// Whether the active segment has records.
    pub(super) has_records: bool,
    pub(super) pending: VecDeque<Accepted>,
    /// Whether messages are held back because a group or a segment found no room.
    pub(super) holding: bool,
    /// The buffer that headers, tables and small frames are put together in.
    pub(super) staging: Vec<u8>,
}

/// Whether a new segment must fit into the byte bound of the log.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ByteBound {
    Kept,
    /// The segment is begun so that the one before it can go.
    Passed,
}

/// Why there is no next segment.
pub(super) enum NoSegment {
    /// There is none at the moment, in these words. Nothing was promised of it, and it can be tried
    /// again.
    Held {
        why: &'static str,
        /// What the system said, if it was asked.
        error: Option<io::Error>,
    },
    /// The disk failed where it cannot be taken back.
    Failed(io::Error),
}

/// A group on its way: batches in the order of writing, and the runs that they make up.
struct Group {
    batches: Vec<Accepted>,
    /// Indexes into `batches`, grouped by streams and partition.
    order: Vec<usize>,
    /// How many of `order` make up each run.
    run_batches: Vec<usize>,
    runs: Vec<Run>,
    header: GroupHeader,
}

impl Committer {
    /// Takes what arrived and commits at most one group of it.
    pub(super) fn run_once(&mut self, arrived: &mut Vec<Accepted>) -> Turn {
        self.pending.extend(arrived.drain(..));
        if let Some(error) = self.shared.health.failure() {
            self.give_up(error);
            return Turn::Failed;
        }
        self.roll_if_asked();
        if self.shared.health.failure().is_some() {
            return self.failed();
        }
        if self.pending.is_empty() {
            self.look_for_room();
            return if self.holding { Turn::Held } else { Turn::Idle };
        }
        let Some(batches) = self.next_batches() else {
            return self.failed_or_held();
        };
        self.commit(batches)
    }

    /// Commits all there is, as far as there is room, and marks the log as closed.
    pub(super) fn finish(&mut self, arrived: &mut Vec<Accepted>) {
        while let Turn::Committed { .. } = self.run_once(arrived) {}
        self.give_up(StoreError::Closed);
        self.mark_closed();
    }

    /// Whether more can be committed without anything new.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Writes that the log was opened, over whatever stood behind the last group.
    pub(super) fn mark_opened(&mut self) -> io::Result<()> {
        if self.at + BLOCK > self.active.limit() {
            return match self.roll(0, ByteBound::Passed) {
                Ok(()) => Ok(()),
                // The seal will do where there is no room for anything else.
                Err(NoSegment::Held { .. }) => Ok(()),
                Err(NoSegment::Failed(error)) => Err(error),
            };
        }
        self.mark(GroupKind::Opened)
    }

    /// Writes that the log was closed, so that the last group is known to have been durable.
    pub(super) fn mark_closed(&mut self) {
        if self.shared.health.failure().is_some() || self.at + BLOCK > self.active.limit() {
            return;
        }
        if let Err(error) = self.mark(GroupKind::Closed) {
            tracing::warn!(%error, "the log could not be marked as closed; nothing is lost by it");
        }
    }

    /// Tells everybody who waits that nothing more becomes durable.
    pub(super) fn give_up(&mut self, error: StoreError) {
        let mut lost: Vec<Accepted> = self.pending.drain(..).collect();
        lost.append(&mut self.shared.intake.refuse(error.clone()));
        self.shared
            .intake
            .waiting
            .fetch_sub(lost.len() as u64, Ordering::Relaxed);
        for submission in &lost {
            submission.completion.set_failed(error.clone());
        }
        for submission in lost {
            submission.completion.wake();
        }
    }

    fn failed(&mut self) -> Turn {
        if let Some(error) = self.shared.health.failure() {
            self.give_up(error);
        }
        Turn::Failed
    }

    fn failed_or_held(&mut self) -> Turn {
        if self.shared.health.failure().is_some() {
            self.failed()
        } else {
            Turn::Held
        }
    }

    /// The batches of the next group, in a segment that has room for them. `None` when there is
    /// no room or the disk failed.
    fn next_batches(&mut self) -> Option<Vec<Accepted>> {
        let wanted = self.count_batches(u64::MAX);
        let room = self.active.limit().saturating_sub(self.at);
        if wanted.bytes <= room {
            return Some(self.pending.drain(..wanted.batches).collect());
        }
        match self.roll(wanted.bytes, ByteBound::Kept) {
            Ok(()) => Some(self.pending.drain(..wanted.batches).collect()),
            Err(NoSegment::Held { why, error }) => {
                self.hold(why, error.as_ref());
                // What is left of this segment is still good for a smaller group.
                let fitting = self.count_batches(room);
                (fitting.batches > 0).then(|| self.pending.drain(..fitting.batches).collect())
            }
            Err(NoSegment::Failed(error)) => {
                self.fail("a new segment could not be begun", &error);
                None
            }
        }
    }

    /// How many batches fit into one group of at most `room` bytes, and what it takes on disk.
    fn count_batches(&self, room: u64) -> Counted {
        let mut counted = Counted::default();
        let mut frames = 0usize;
        let mut table = 0usize;
        for batch in self.pending.iter().map(|submission| &submission.batch) {
            frames = frames.saturating_add(batch.frames.len());
            // As if each batch were a run of its own, which is the most it can take.
            table += Run::table_bytes(batch.streams.len());
            let bytes = to_block((HEADER_BYTES + table).saturating_add(frames) as u64);
            let over = frames > GROUP_BYTES_MAX || table > TABLE_BYTES_MAX;
            if bytes > room || (over && counted.batches > 0) {
                break;
            }
            counted.batches += 1;
            counted.bytes = bytes;
        }
        counted
    }

    fn commit(&mut self, batches: Vec<Accepted>) -> Turn {
        let group = self.number_records(batches);
        let end = self.at + to_block(u64::from(group.header.bytes));
        let began = self.shared.clock.monotonic();
        match self.write(&group, end) {
            Ok(()) => {}
            Err(WriteFailure::Write(error)) if is_full(&error) => {
                // Not a block of it was promised to anybody. The next attempt writes over it with
                // another number, so that nothing of this one can pass for part of that.
                self.hold("the disk took no more of the log", Some(&error));
                for submission in group.batches.into_iter().rev() {
                    self.pending.push_front(submission);
                }
                return Turn::Held;
            }
            Err(WriteFailure::Write(error)) => {
                self.pending.extend(group.batches);
                self.fail("writing to the log failed", &error);
                return self.failed();
            }
            Err(WriteFailure::Sync(error)) => {
                self.pending.extend(group.batches);
                self.fail("syncing the log failed", &error);
                return self.failed();
            }
        }
        let took = self.shared.clock.monotonic().saturating_sub(began);
        if self.holding && self.pending.is_empty() {
            self.look_for_room();
        }
        self.publish(group, end, took)
    }

    /// Gives the records their sequence numbers and their time.
    fn number_records(&mut self, batches: Vec<Accepted>) -> Group {
        self.store_time = self.now();
        self.number += 1;
        let mut order: Vec<usize> = (0..batches.len()).collect();
        // Stable, and by the partition alone: records of one partition stay in the order of their
        // submission even when they go to different lists of streams.
        order.sort_by_key(|&at| batches.get(at).map(|batch| batch.batch.partition));
        let mut runs: Vec<Run> = Vec::new();
        let mut run_batches: Vec<usize> = Vec::new();
        let mut next: HashMap<Key, SequenceNumber> = HashMap::new();
        let mut last: Option<&Batch> = None;
        for batch in (order.iter()).filter_map(|&at| batches.get(at).map(|found| &found.batch)) {
            let same = last.is_some_and(|last| {
                last.partition == batch.partition && last.streams == batch.streams
            });
            if !same {
                runs.push(Run {
                    partition: batch.partition,
                    streams: (batch.streams.iter())
                        .map(|&stream| {
                            let key = (stream, batch.partition);
                            let next = next.get(&key).copied();
                            (stream, next.unwrap_or_else(|| self.positions.next(key)))
                        })
                        .collect(),
                    count: 0,
                    bytes: 0,
                    check: 0,
                });
                run_batches.push(0);
            }
            if let (Some(run), Some(count)) = (runs.last_mut(), run_batches.last_mut()) {
                *count += 1;
                run.count = run.count.saturating_add(batch.count);
                let bytes = u32::try_from(batch.frames.len()).unwrap_or(u32::MAX);
                run.bytes = run.bytes.saturating_add(bytes);
                run.check = crc32c::crc32c_append(run.check, &batch.frames);
                for &(stream, first) in &run.streams {
                    next.insert((stream, run.partition), first + u64::from(run.count));
                }
            }
            last = Some(batch);
        }
        let table: usize = runs
            .iter()
            .map(|run| Run::table_bytes(run.streams.len()))
            .sum();
        let frames: usize = batches
            .iter()
            .map(|submission| submission.batch.frames.len())
            .sum();
        let header = GroupHeader {
            kind: GroupKind::Records,
            segment: self.active.id,
            number: self.number,
            last_durable: self.last_durable,
            bytes: u32::try_from(HEADER_BYTES + table + frames)
                .expect("batches are refused at submission when they do not fit into a group"),
            table_bytes: u32::try_from(table).expect("the table is bounded when batches are taken"),
            runs: u32::try_from(runs.len()).unwrap_or(u32::MAX),
            records: runs.iter().map(|run| run.count).sum(),
            enqueued: self.store_time,
        };
        Group {
            batches,
            order,
            run_batches,
            runs,
            header,
        }
    }

    /// One write and one sync.
    fn write(&mut self, group: &Group, end: u64) -> Result<(), WriteFailure> {
        static PADDING: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];
        self.staging.clear();
        group::encode(
            &mut self.staging,
            self.shared.log_id,
            &group.header,
            &group.runs,
        );
        // Where the staged bytes are interrupted by frames that are written from where they are.
        let mut shared: Vec<(usize, &[u8])> = Vec::new();
        for submission in group.in_order() {
            let frames = &submission.batch.frames;
            if frames.len() < COPY_BYTES_MAX {
                self.staging.extend_from_slice(frames);
            } else {
                shared.push((self.staging.len(), frames));
            }
        }
        let mut parts = Vec::with_capacity(shared.len() * 2 + 2);
        let mut staged = 0;
        for (until, frames) in shared {
            if let Some(bytes) = self.staging.get(staged..until).filter(|b| !b.is_empty()) {
                parts.push(IoSlice::new(bytes));
            }
            parts.push(IoSlice::new(frames));
            staged = until;
        }
        if let Some(bytes) = self.staging.get(staged..).filter(|b| !b.is_empty()) {
            parts.push(IoSlice::new(bytes));
        }
        let padding = size(end - self.at - u64::from(group.header.bytes));
        if let Some(zeros) = PADDING.get(..padding).filter(|zeros| !zeros.is_empty()) {
            parts.push(IoSlice::new(zeros));
        }

        self.active.fill.claim(end);
        write_all_at(&*self.active.file, &parts, self.at).map_err(WriteFailure::Write)?;
        self.active.file.sync().map_err(WriteFailure::Sync)
    }

    /// Tells the world: first what there is to read, then who may acknowledge.
    fn publish(&mut self, group: Group, end: u64, took: Duration) -> Turn {
        let began_at = self.at;
        self.at = end;
        let next_wanted_at = self.active.next_wanted_at();
        if (began_at..end).contains(&next_wanted_at) {
            self.shared.keeper.nudge();
        }
        self.last_durable = group.header.number;
        self.has_records = true;
        for run in &group.runs {
            for &(stream, first) in &run.streams {
                let next = first + u64::from(run.count);
                self.positions
                    .advance((stream, run.partition), next, group.header.enqueued);
            }
        }

        let enqueued = group.header.enqueued;
        self.active.publish(end, |index| {
            for placed in group.placed() {
                let entry_at = placed.frame;
                for &(key, sequence) in &placed.firsts {
                    let entry = Entry {
                        sequence,
                        enqueued,
                        group: began_at,
                        frame: entry_at,
                    };
                    index.note(key, entry, placed.submission.batch.frames.len() as u64);
                }
            }
        });
        let evicted = self.shared.tail.publish(
            enqueued,
            group.placed().map(|placed| {
                let batch = &placed.submission.batch;
                Published {
                    places: placed.firsts,
                    count: batch.count,
                    frames: batch.frames.clone(),
                    memory_bytes: batch.memory_bytes,
                }
            }),
        );
        let figures = &self.shared.figures;
        let batches = group.batches.len();
        let frames: u64 = group.runs.iter().map(|run| u64::from(run.bytes)).sum();
        figures.groups.fetch_add(1, Ordering::Relaxed);
        figures
            .records
            .fetch_add(u64::from(group.header.records), Ordering::Relaxed);
        figures.bytes.fetch_add(frames, Ordering::Relaxed);
        (figures.written).fetch_add(end - began_at, Ordering::Relaxed);
        figures.sync_micros.fetch_add(
            u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
        self.shared
            .intake
            .waiting
            .fetch_sub(batches as u64, Ordering::Relaxed);

        // In the order of submission, so that an appender's number only grows.
        for submission in &group.batches {
            submission.completion.set_durable(submission.number);
        }
        for submission in &group.batches {
            submission.completion.wake();
        }
        let keys = group.runs.iter().flat_map(|run| {
            let partition = run.partition;
            run.streams
                .iter()
                .map(move |&(stream, _)| (stream, partition))
        });
        self.shared.watches.ring(keys);
        drop(evicted);
        Turn::Committed { batches }
    }

    /// Begins a new segment when housekeeping asked for one because of the age of this one.
    fn roll_if_asked(&mut self) {
        if !self.shared.roll_asked.swap(false, Ordering::AcqRel) || !self.has_records {
            return;
        }
        match self.roll(0, ByteBound::Passed) {
            Ok(()) => {}
            // Housekeeping asks again; what is there can still be written to.
            Err(NoSegment::Held { why, error }) => {
                let error = error.as_ref().map(tracing::field::display);
                tracing::debug!(error, "the active segment is kept on: {why}");
            }
            Err(NoSegment::Failed(error)) => self.fail("a new segment could not be begun", &error),
        }
    }

    /// The store time for what is written now. A clock that jumps ahead for a moment would date
    /// everything after it, as store time never goes back.
    fn now(&mut self) -> Timestamp {
        (self.store_time).max(self.time.not_ahead(&*self.shared.clock))
    }

    fn hold(&mut self, why: &str, error: Option<&io::Error>) {
        self.holding = true;
        let reason = match error {
            Some(error) => format!("{why}: {error}"),
            None => why.to_owned(),
        };
        // That is logged with the change of health, once for as long as it lasts.
        self.shared.health.set_log_hold(Some(&reason));
    }

    /// Nothing waits, and nothing is sent as long as messages are held back: looks whether the
    /// next segment could be had by now.
    fn look_for_room(&mut self) {
        // On a filling disk, what room there is belongs to small changes.
        if !self.holding || self.shared.health.disk_level() > HealthLevel::Ok {
            return;
        }
        if let Ok(spare) = self.spare(0, ByteBound::Kept) {
            self.shared.segments.add_spare(spare);
            self.holding = false;
            self.shared.health.set_log_hold(None);
        }
    }

    /// Begins a new segment with room for a group of so many bytes.
    fn roll(&mut self, group_bytes: u64, bound: ByteBound) -> Result<(), NoSegment> {
        let start = SegmentHeader::bytes(&self.positions);
        // The group, the seal, and a mark.
        let least = start + group_bytes + 2 * BLOCK;
        let spare = self.spare(least, bound)?;
        let seal = self.number + 1;
        let now = self.now();
        let header = SegmentHeader {
            log: self.shared.log_id,
            id: self.active.id + 1,
            capacity: spare.capacity,
            last_group: seal,
            created: now,
            filled: spare.fill.is_done(),
            positions: self.positions.clone(),
        };
        let segment = self.shared.begin_segment(spare, &header)?;
        // The next segment is there before this one says so: a sealed segment without one behind
        // it tells that the one behind it was lost.
        self.write_mark(GroupKind::Sealed)
            .map_err(NoSegment::Failed)?;
        self.store_time = now;
        self.active.set_sealed(true);
        let sealed = std::mem::replace(&mut self.active, Arc::clone(&segment));
        self.shared.segments.push(segment);
        self.shared.segments.remember(&sealed);
        self.at = start;
        self.has_records = false;
        self.holding = false;
        self.shared.health.set_log_hold(None);
        self.shared.keeper.nudge();
        Ok(())
    }

    fn spare(&self, least: u64, bound: ByteBound) -> Result<Spare, NoSegment> {
        let segments = &self.shared.segments;
        if let Some(spare) = segments.take_spare(least) {
            return Ok(spare);
        }
        let wanted = if self.shared.health.disk_level() > HealthLevel::Ok {
            // For groups that were taken before the disk filled up, and for giving back one whose
            // records are old enough: what room there is belongs to small changes.
            SEGMENT_BYTES_MIN
        } else {
            self.shared.next_capacity(self.active.capacity)
        };
        let capacity = wanted.max(to_block(least));
        if bound == ByteBound::Kept && !self.shared.make_room(capacity) {
            return Err(NoSegment::Held {
                why: "the log holds as many bytes as it may",
                error: None,
            });
        }
        // Dropping the oldest may have left its file.
        if let Some(spare) = segments.take_spare(least) {
            return Ok(spare);
        }
        // A file that could not be made is no harm to those that are there.
        (self.shared.create_spare(capacity)).map_err(|error| NoSegment::Held {
            why: "there is no room for a new segment of the log",
            error: Some(error),
        })
    }

    fn mark(&mut self, kind: GroupKind) -> io::Result<()> {
        self.write_mark(kind)?;
        self.active.publish(self.at, |_| ());
        Ok(())
    }

    /// Writes a group without records.
    fn write_mark(&mut self, kind: GroupKind) -> io::Result<()> {
        self.number += 1;
        self.staging.clear();
        let header = GroupHeader {
            kind,
            segment: self.active.id,
            number: self.number,
            last_durable: self.last_durable,
            bytes: u32::try_from(HEADER_BYTES).unwrap_or(u32::MAX),
            table_bytes: 0,
            runs: 0,
            records: 0,
            enqueued: self.store_time,
        };
        group::encode(&mut self.staging, self.shared.log_id, &header, &[]);
        self.staging.resize(BLOCK_BYTES, 0);
        self.active.fill.claim(self.at + BLOCK);
        write_all_at(&*self.active.file, &[IoSlice::new(&self.staging)], self.at)?;
        self.active.file.sync()?;
        self.last_durable = self.number;
        self.at += BLOCK;
        Ok(())
    }

    fn fail(&self, what: &str, error: &io::Error) {
        let name = segment_name(self.active.id);
        self.shared
            .health
            .fail(format!("{what}: {error} ({name} at byte {})", self.at));
    }
}

#[derive(Default)]
struct Counted {
    batches: usize,
    /// What the group takes on disk.
    bytes: u64,
}

enum WriteFailure {
    Write(io::Error),
    Sync(io::Error),
}

/// A batch of a group, and where its records are.
struct Placed<'a> {
    submission: &'a Accepted,
    /// The sequence number of its first record in each of its streams.
    firsts: SmallVec<[(Key, SequenceNumber); 2]>,
    /// Where its frames start, from the start of the group.
    frame: u32,
}

impl Group {
    fn in_order(&self) -> impl Iterator<Item = &Accepted> {
        self.order.iter().filter_map(|&at| self.batches.get(at))
    }

    fn placed(&self) -> impl Iterator<Item = Placed<'_>> {
        let mut in_order = self.in_order();
        let mut frame = size(u64::from(self.header.table_bytes)) + HEADER_BYTES;
        self.runs
            .iter()
            .zip(&self.run_batches)
            .flat_map(move |(run, &batches)| {
                let mut before = 0u64;
                in_order
                    .by_ref()
                    .take(batches)
                    .map(|submission| {
                        let firsts = run
                            .streams
                            .iter()
                            .map(|&(stream, first)| ((stream, run.partition), first + before))
                            .collect();
                        let placed = Placed {
                            submission,
                            firsts,
                            // Within the group, whose length is a u32.
                            frame: u32::try_from(frame).unwrap_or(u32::MAX),
                        };
                        before += u64::from(submission.batch.count);
                        frame += submission.batch.frames.len();
                        placed
                    })
                    .collect::<Vec<_>>()
            })
    }
}

impl Shared {
    /// Turns a spare into the segment that a header describes. The spare is gone if that fails.
    pub(super) fn begin_segment(
        &self,
        spare: Spare,
        header: &SegmentHeader,
    ) -> Result<Arc<Segment>, NoSegment> {
        let bytes = header.encode();
        spare.fill.claim(bytes.len() as u64);
        let written =
            write_all_at(&*spare.file, &[IoSlice::new(&bytes)], 0).and_then(|()| spare.file.sync());
        if let Err(error) = written {
            // No segment yet: recovery removes spares.
            return Err(self.discard(spare, error));
        }
        match self.files.rename(&spare.name, &segment_name(header.id)) {
            Ok(()) => {}
            Err(error) if is_full(&error) => return Err(self.discard(spare, error)),
            // Nobody knows which name it has.
            Err(error) => return Err(NoSegment::Failed(error)),
        }
        // From here on nobody may go on writing to the segment before, whatever happens: this one
        // says where it ended.
        self.files.sync_dir().map_err(NoSegment::Failed)?;
        let start = bytes.len() as u64;
        Ok(Arc::new(Segment::new(
            header.id,
            spare.file,
            header.capacity,
            start,
            header.created,
            header.positions.clone(),
            start,
            spare.fill,
            Some(SegmentIndex::default()),
        )))
    }

    /// Throws a spare away that could not become a segment, so that it takes no room.
    fn discard(&self, spare: Spare, error: io::Error) -> NoSegment {
        drop(spare.file);
        if let Err(error) = remove_if_there(&*self.files, &spare.name) {
            tracing::debug!(%error, name = spare.name, "a spare file stays until the log is opened");
        }
        NoSegment::Held {
            why: "no new segment of the log could be written",
            error: Some(error),
        }
    }

    /// A new file, reserved and not filled.
    pub(super) fn create_spare(&self, capacity: u64) -> io::Result<Spare> {
        let name = self.segments.next_spare_name();
        let file = self.files.create(&name)?;
        if let Err(error) = file.allocate(capacity) {
            // Best effort: what stays is removed when the log is opened.
            let _ = self.files.remove(&name);
            return Err(error);
        }
        Ok(Spare {
            name,
            file,
            capacity,
            fill: Arc::new(Fill::between(0, capacity)),
        })
    }
}
