//! Reading records and times from segments.
//!
//! The index leads to a group at or before what is wanted; from there groups are walked in order.
//! Short runs come out of the stretch that was read ahead, long ones are read by themselves.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use fieldpost_model::{SequenceNumber, StreamId, Timestamp};
use fieldpost_store::StoreError;
use fieldpost_store::log::{RECORD_FRAME_BYTES, ReadRequest, Records, StoredRecord};

use super::Shared;
use super::format::group::{self, GroupHeader, GroupKind, HEADER_BYTES, Run};
use super::format::index::{ENTRY_DISTANCE, Entry, SegmentIndex};
use super::format::{BLOCK, BLOCK_BYTES, Key, size, to_block};
use super::frames::{Frames, NextFrame, announced};
use super::scan::Window;
use super::segment::{Segment, segment_name};

/// Frames of a run from here on are read by themselves and not out of the stretch read ahead.
const DIRECT_BYTES: u64 = 4096;

/// The most that is read of a run at once, unless a record is longer.
const CHUNK_BYTES: usize = 1024 * 1024;

/// A read that has something to give goes on looking for more on no more bytes than this.
const WALK_BYTES: u64 = 4 * 1024 * 1024;

impl Shared {
    /// Reads durable records, from the disk where memory does not have them, and goes on behind
    /// damage that was accepted.
    pub(super) fn read(&self, request: &ReadRequest) -> Result<Records, StoreError> {
        let key = (request.stream, request.partition);
        let mut request = *request;
        loop {
            let read = self.read_to_damage(&request);
            let Err(StoreError::Damaged {
                resume: Some(resume),
                ..
            }) = &read
            else {
                return read;
            };
            // With a record in front of it, that record would have been given.
            let at = request.from.max(self.tail.bounds(key).first);
            let Some(until) = self.accepted.until(key, at) else {
                return read;
            };
            request.from = until.min(*resume).max(at + 1);
        }
    }

    fn read_to_damage(&self, request: &ReadRequest) -> Result<Records, StoreError> {
        if let Some(records) = self.tail.read(request) {
            return Ok(records);
        }
        let key = (request.stream, request.partition);
        let bounds = self.tail.bounds(key);
        let from = request.from.max(bounds.first);
        let mut out = Records {
            records: Vec::new(),
            next: from,
        };
        if from >= bounds.next {
            return Ok(out);
        }
        let mut segment = self.segments.holding(key, from);
        let mut taken = 0usize;
        while let Some(current) = segment {
            let following = self.segments.following(current.id);
            let begins = following.as_ref().map(|next| next.base.next(key));
            // What stands behind that was not durable when the next segment was begun.
            let until = begins.map_or(bounds.next, |begins| begins.min(bounds.next));
            let mut walk = self.walk(&current, key, out.next)?;
            while out.next < until {
                let enough = out.records.len() >= request.records_max
                    || taken >= request.bytes_max
                    || walk.walked() >= WALK_BYTES;
                if enough && !out.records.is_empty() {
                    return Ok(out);
                }
                let Some(mut found) = walk.next_run(out.next)?.filter(|run| run.first < until)
                else {
                    break;
                };
                if found.first > out.next {
                    return self.missing(out, key, found.first, &current, found.group);
                }
                // Segments out of two copies of a log may contradict each other. What is behind the
                // end has no number that is its own.
                let known = until - found.first;
                found.count = found.count.min(u32::try_from(known).unwrap_or(u32::MAX));
                let before = out.next;
                let full = walk.read_run(&found, request, &mut out, &mut taken)?;
                if full {
                    return Ok(out);
                }
                if out.next == before {
                    break;
                }
            }
            if out.next >= bounds.next {
                return Ok(out);
            }
            // Where the next segment begins tells whether this one should have had more.
            match begins {
                Some(begins) if begins > out.next => {
                    return self.missing(out, key, begins, &current, current.end());
                }
                // Not simply the following one: many may lie between that hold nothing of this.
                Some(_) => {
                    segment = (self.segments.holding(key, out.next))
                        .filter(|next| next.id > current.id)
                        .or(following);
                }
                None => return self.missing(out, key, bounds.next, &current, current.end()),
            }
        }
        // The segment was dropped between the look at the bounds and the look at the list.
        let first = (self.segments.oldest()).map_or(bounds.next, |oldest| oldest.base.next(key));
        if out.records.is_empty() && first > out.next {
            return self.read_to_damage(&ReadRequest {
                from: first,
                ..*request
            });
        }
        Ok(out)
    }

    /// The first record that is later than `after`.
    pub(super) fn seek_time(
        &self,
        key: Key,
        after: Timestamp,
    ) -> Result<SequenceNumber, StoreError> {
        let bounds = self.tail.bounds(key);
        if bounds.last_enqueued.is_none_or(|last| last <= after) {
            return Ok(bounds.next);
        }
        let mut segment = self.segments.holding_time(after);
        while let Some(current) = segment {
            segment = self.segments.following(current.id);
            let begins = current.base.next(key);
            let has_some = (segment.as_ref()).is_none_or(|next| next.base.next(key) > begins);
            if has_some && let Some(found) = self.seek_time_in(&current, key, after)? {
                // As above, segments may contradict each other.
                return Ok(found.clamp(bounds.first, bounds.next));
            }
        }
        Ok(bounds.next)
    }

    fn seek_time_in(
        &self,
        segment: &Arc<Segment>,
        key: Key,
        after: Timestamp,
    ) -> Result<Option<SequenceNumber>, StoreError> {
        let floor = self.look(segment, |index| index.floor_time(key, after))?;
        let Some(floor) = floor else {
            return Ok(None);
        };
        let mut walk = Walk::new(self, segment, key, floor);
        while let Some(found) = walk.next_run(0)? {
            if found.header.enqueued > after {
                return Ok(Some(found.first));
            }
        }
        Ok(None)
    }

    fn walk<'a>(
        &'a self,
        segment: &'a Arc<Segment>,
        key: Key,
        from: SequenceNumber,
    ) -> Result<Walk<'a>, StoreError> {
        let found = self.look(segment, |index| {
            index.floor(key, from).or_else(|| index.after(key, from))
        })?;
        // Without an entry before it, a record that should be here stands before all that are.
        let start = found.unwrap_or(Entry {
            sequence: from,
            enqueued: segment.created,
            group: segment.end(),
            frame: 0,
        });
        Ok(Walk::new(self, segment, key, start))
    }

    fn look<T>(
        &self,
        segment: &Arc<Segment>,
        look: impl Fn(&SegmentIndex) -> T,
    ) -> Result<T, StoreError> {
        self.segments
            .look(segment, look)
            .map_err(|error| read_failure(segment, 0, &error))
    }

    /// What was found so far, or, when that is nothing, that records are missing.
    fn missing(
        &self,
        out: Records,
        key: Key,
        until: SequenceNumber,
        segment: &Segment,
        at: u64,
    ) -> Result<Records, StoreError> {
        if !out.records.is_empty() {
            return Ok(out);
        }
        Err(damaged(segment, at, key, out.next, until))
    }
}

/// A walk along the groups of one segment, for one partition.
struct Walk<'a> {
    shared: &'a Shared,
    segment: &'a Arc<Segment>,
    key: Key,
    window: Window<'a>,
    at: u64,
    began: u64,
    /// The entry that led here, or the last one passed.
    entry: Entry,
    /// Runs of the group at `group` that are still to be looked at.
    runs: std::vec::IntoIter<(Run, u64)>,
    group: u64,
    header: Option<GroupHeader>,
}

/// A run of the partition.
struct FoundRun {
    header: GroupHeader,
    /// Where its group starts.
    group: u64,
    first: SequenceNumber,
    count: u32,
    /// Where its frames start, from the start of the group.
    offset: u64,
    bytes: u64,
}

impl<'a> Walk<'a> {
    fn new(shared: &'a Shared, segment: &'a Arc<Segment>, key: Key, entry: Entry) -> Self {
        Self {
            shared,
            segment,
            key,
            window: Window::new(&*segment.file),
            at: entry.group,
            began: entry.group,
            entry,
            runs: Vec::new().into_iter(),
            group: entry.group,
            header: None,
        }
    }

    /// How far this has come.
    fn walked(&self) -> u64 {
        self.at.saturating_sub(self.began)
    }

    /// The next run that ends behind `from`.
    fn next_run(&mut self, from: SequenceNumber) -> Result<Option<FoundRun>, StoreError> {
        let (stream, partition) = self.key;
        loop {
            for (run, offset) in self.runs.by_ref() {
                let Some(first) = run.first(stream).filter(|_| run.partition == partition) else {
                    continue;
                };
                let Some(header) = self.header.filter(|_| first + u64::from(run.count) > from)
                else {
                    continue;
                };
                return Ok(Some(FoundRun {
                    header,
                    group: self.group,
                    first,
                    count: run.count,
                    offset,
                    bytes: u64::from(run.bytes),
                }));
            }
            if !self.next_group()? {
                return Ok(None);
            }
        }
    }

    /// Reads the next group's header; false at the end of what can hold anything.
    fn next_group(&mut self) -> Result<bool, StoreError> {
        if self.at >= self.entry.group.saturating_add(ENTRY_DISTANCE) && !self.jump()? {
            return Ok(false);
        }
        let end = self.segment.end();
        while self.at < end {
            let at = self.at;
            match self.read_group(at)? {
                Some((header, runs)) => {
                    self.at = at + to_block(u64::from(header.bytes));
                    if header.kind == GroupKind::Sealed {
                        return Ok(false);
                    }
                    let mut offset = HEADER_BYTES as u64 + u64::from(header.table_bytes);
                    let runs: Vec<_> = runs
                        .into_iter()
                        .map(|run| {
                            let start = offset;
                            offset += u64::from(run.bytes);
                            (run, start)
                        })
                        .collect();
                    self.runs = runs.into_iter();
                    self.group = at;
                    self.header = Some(header);
                    return Ok(true);
                }
                // Not a group, although the segment goes on: damage. What is missing shows in the
                // sequence numbers of the next sound run.
                None => self.at += BLOCK,
            }
        }
        Ok(false)
    }

    /// Goes on at the next entry of the index, if the walk came to nothing near the last.
    fn jump(&mut self) -> Result<bool, StoreError> {
        let (key, sequence) = (self.key, self.entry.sequence);
        let later = self
            .shared
            .look(self.segment, |index| index.after(key, sequence))?;
        let Some(later) = later else {
            return Ok(false);
        };
        self.entry = later;
        self.at = self.at.max(later.group);
        Ok(true)
    }

    fn read_group(&mut self, at: u64) -> Result<Option<(GroupHeader, Vec<Run>)>, StoreError> {
        let failure = |error: io::Error| read_failure(self.segment, at, &error);
        let block = self.window.get(at, BLOCK_BYTES).map_err(failure)?;
        let Ok(header) = group::peek(block) else {
            return Ok(None);
        };
        if header.segment != self.segment.id {
            return Ok(None);
        }
        let head = HEADER_BYTES + size(u64::from(header.table_bytes));
        let bytes = self.window.get(at, head).map_err(failure)?;
        Ok(group::decode(self.shared.log_id, bytes).ok())
    }

    /// Reads records of a run into `out`. True when a limit is reached.
    fn read_run(
        &mut self,
        found: &FoundRun,
        request: &ReadRequest,
        out: &mut Records,
        taken: &mut usize,
    ) -> Result<bool, StoreError> {
        let (mut sequence, mut offset) = self.start_in(found, out.next)?;
        let end = found.offset + found.bytes;
        let last = found.first + u64::from(found.count);
        let mut wanted = 0usize;
        // Whether the lengths of all frames from here on are known to be sound.
        let mut lengths_hold = false;
        while sequence < last {
            let left = request.bytes_max.saturating_sub(*taken);
            let chunk = left.clamp(BLOCK_BYTES, CHUNK_BYTES).max(wanted);
            let chunk = size(end - offset).min(chunk);
            let content = self.content(found, offset, chunk)?;
            let whole = content.len();
            // The file ends before the group does.
            let cut = whole < chunk;
            let mut frames = Frames::new(content);
            wanted = 0;
            while sequence < last {
                let before = frames.rest();
                match frames.next_checked() {
                    // In front of the first one wanted.
                    NextFrame::Record(_) if sequence < out.next => sequence += 1,
                    NextFrame::Record(data) => {
                        let after = taken.saturating_add(data.len());
                        let full =
                            out.records.len() >= request.records_max || after > request.bytes_max;
                        if full && !out.records.is_empty() {
                            return Ok(true);
                        }
                        *taken = after;
                        out.records.push(StoredRecord {
                            sequence,
                            enqueued: found.header.enqueued,
                            data,
                        });
                        sequence += 1;
                        out.next = sequence;
                    }
                    NextFrame::Longer(bytes)
                        if !cut && offset + (whole - before + bytes) as u64 <= end =>
                    {
                        offset += (whole - before) as u64;
                        wanted = bytes;
                        break;
                    }
                    NextFrame::End if !cut && offset + (whole as u64) < end => {
                        offset += whole as u64;
                        break;
                    }
                    NextFrame::Damaged => {
                        let damage = offset + (whole - before) as u64;
                        lengths_hold =
                            lengths_hold || self.lengths_hold(found, damage, last - sequence)?;
                        if lengths_hold && sequence < out.next {
                            sequence += 1;
                            continue;
                        }
                        let lost_to = if lengths_hold { sequence + 1 } else { last };
                        let from = sequence.max(out.next);
                        return self.damaged(out, found.group + damage, from, lost_to);
                    }
                    NextFrame::Longer(_) | NextFrame::End => {
                        let at = found.group + offset + (whole - before) as u64;
                        return self.damaged(out, at, sequence.max(out.next), last);
                    }
                }
            }
        }
        Ok(false)
    }

    /// Whether what stands in a run from an offset on is exactly so many frames, going by their
    /// lengths. Behind a length that is wrong, a sound record may stand in the place of another.
    fn lengths_hold(
        &mut self,
        found: &FoundRun,
        offset: u64,
        frames: u64,
    ) -> Result<bool, StoreError> {
        let end = found.offset + found.bytes;
        let mut offset = offset;
        for _ in 0..frames {
            let at = found.group + offset;
            let header = (self.window.get(at, RECORD_FRAME_BYTES))
                .map_err(|error| read_failure(self.segment, at, &error))?;
            let Some(length) = announced(header) else {
                return Ok(false);
            };
            offset = offset.saturating_add(length as u64);
            if offset > end {
                return Ok(false);
            }
        }
        Ok(offset == end)
    }

    /// Where in a run to begin: at its start, or at the place that the index names.
    fn start_in(
        &self,
        found: &FoundRun,
        from: SequenceNumber,
    ) -> Result<(SequenceNumber, u64), StoreError> {
        let key = self.key;
        let entry = self
            .shared
            .look(self.segment, |index| index.floor(key, from))?;
        Ok(match entry {
            Some(entry)
                if entry.group == found.group
                    && entry.sequence >= found.first
                    && u64::from(entry.frame) >= found.offset
                    && u64::from(entry.frame) < found.offset + found.bytes =>
            {
                (entry.sequence, u64::from(entry.frame))
            }
            _ => (found.first, found.offset),
        })
    }

    /// Bytes of a run. Short runs are copied out of the stretch read ahead, so that a record does
    /// not keep all of that in memory.
    fn content(
        &mut self,
        found: &FoundRun,
        offset: u64,
        bytes: usize,
    ) -> Result<Bytes, StoreError> {
        let at = found.group + offset;
        let failure = |error: io::Error| read_failure(self.segment, at, &error);
        if found.bytes < DIRECT_BYTES || self.window.holds(at, bytes) {
            let content = self.window.get(at, bytes).map_err(failure)?;
            return Ok(Bytes::copy_from_slice(content));
        }
        let mut content = BytesMut::zeroed(bytes);
        let read = self
            .segment
            .file
            .read_at(&mut content, at)
            .map_err(failure)?;
        content.truncate(read);
        Ok(content.freeze())
    }

    fn damaged(
        &self,
        out: &Records,
        at: u64,
        from: SequenceNumber,
        to: SequenceNumber,
    ) -> Result<bool, StoreError> {
        if out.records.is_empty() {
            return Err(damaged(self.segment, at, self.key, from, to));
        }
        // What is sound is given first; the next read begins at the damage and says so.
        Ok(true)
    }
}

fn damaged(
    segment: &Segment,
    at: u64,
    key: Key,
    from: SequenceNumber,
    to: SequenceNumber,
) -> StoreError {
    let (StreamId(stream), partition) = key;
    let name = segment_name(segment.id);
    let last = to.saturating_sub(1);
    StoreError::Damaged {
        what: format!(
            "log/{name} at byte {at}: stream {stream} partition {partition} sequence numbers {from} to {last} cannot be read; sound records go on at {to}"
        )
        .into(),
        resume: Some(to),
    }
}

fn read_failure(segment: &Segment, at: u64, error: &io::Error) -> StoreError {
    let name = segment_name(segment.id);
    StoreError::Read {
        reason: format!("log/{name} at byte {at}: {error}").into(),
    }
}
