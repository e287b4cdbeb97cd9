//! What a group does to the lanes.
//!
//! Records of one lane that are written together share rows, so that a record costs little more than
//! its bytes. A row stays under its key, the number of its last record, until all of it is gone;
//! what is forgotten is told by the lane's own row and stays in its row for as long.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fieldpost_store::StoreError;
use fieldpost_store::queues::{Lane, LaneFigures, OutcomeNumber, QueueName};

use super::layout::{
    LaneRow, RECORD_HEAD_BYTES, RecordView, lane_key, outcomes_key, put_lane, put_outcomes_key,
    put_record,
};
use super::walk::{self, Records};
use crate::keyvalue::engine::{Space, View, Writes};
use crate::keyvalue::rows::shown_damage;

/// No further record goes into a row that has so many bytes. Taking one record out writes the rest
/// of its row again.
const ROW_BYTES: usize = 16 * 1024;

/// What the lanes hold, as of the last commit.
#[derive(Debug, Default)]
pub(super) struct Lanes(Mutex<BTreeMap<Lane, LaneRow>>);

impl Lanes {
    pub(super) fn new(lanes: BTreeMap<Lane, LaneRow>) -> Self {
        Self(Mutex::new(lanes))
    }

    pub(super) fn figures(&self, lane: Lane) -> LaneFigures {
        self.row(lane).figures()
    }

    /// All lanes that were written into, in order, with those that `changed` adds.
    pub(super) fn all(&self, changed: &[(Lane, LaneRow)]) -> BTreeSet<Lane> {
        let mut all: BTreeSet<_> = self.lock().keys().copied().collect();
        all.extend(changed.iter().map(|(lane, _)| *lane));
        all
    }

    /// Whether some of these lanes were never written into.
    pub(super) fn lack(&self, changed: &[(Lane, LaneRow)]) -> bool {
        let lanes = self.lock();
        changed.iter().any(|(lane, _)| !lanes.contains_key(lane))
    }

    fn row(&self, lane: Lane) -> LaneRow {
        self.lock().get(&lane).copied().unwrap_or_default()
    }

    pub(super) fn set(&self, changed: Vec<(Lane, LaneRow)>) {
        self.lock().extend(changed);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Lane, LaneRow>> {
        // Nothing under the lock panics half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lanes that a group touches.
pub(super) struct LaneChanges<'a> {
    view: &'a dyn View,
    committed: &'a Lanes,
    lanes: BTreeMap<Lane, LaneChange>,
}

struct LaneChange {
    /// Before the group.
    before: LaneRow,
    now: LaneRow,
    /// Records of the group, in order.
    written: VecDeque<Record>,
    /// Older rows that the group looked at, by their last number.
    rows: BTreeMap<OutcomeNumber, OlderRow>,
}

struct OlderRow {
    /// Empty when the row goes.
    records: Vec<Record>,
    changed: bool,
}

struct Record {
    number: OutcomeNumber,
    queue: Bytes,
    sequence: u64,
    record: Bytes,
}

impl<'a> LaneChanges<'a> {
    pub(super) fn new(view: &'a dyn View, committed: &'a Lanes) -> Self {
        Self {
            view,
            committed,
            lanes: BTreeMap::new(),
        }
    }

    pub(super) fn record(&mut self, lane: Lane, queue: &QueueName, sequence: u64, record: Bytes) {
        let lane = self.lane(lane);
        lane.now.last += 1;
        lane.now.count += 1;
        lane.now.bytes += record.len() as u64;
        lane.written.push_back(Record {
            number: lane.now.last,
            queue: queue.0.clone(),
            sequence,
            record,
        });
    }

    /// Forgets records up to and with a number.
    pub(super) fn forget(&mut self, lane: Lane, through: OutcomeNumber) -> Result<(), StoreError> {
        let view = self.view;
        let change = self.lane(lane);
        let through = through.min(change.now.last);
        if through <= change.now.forgotten {
            return Ok(());
        }
        if change.now.forgotten < change.before.last {
            change.forget_rows(view, lane, through)?;
        }
        while let Some(record) = change.written.front()
            && record.number <= through
        {
            change.now.takes_leave_of(record.record.len());
            change.written.pop_front();
        }
        change.now.forgotten = through;
        if through == change.now.last {
            // Whatever a damaged row did not tell.
            change.now.count = 0;
            change.now.bytes = 0;
        }
        Ok(())
    }

    /// Reads what removing a record needs, so that damage is met before anything is changed.
    pub(super) fn prepare_removal(
        &mut self,
        lane: Lane,
        number: OutcomeNumber,
    ) -> Result<(), StoreError> {
        let view = self.view;
        let change = self.lane(lane);
        if number > change.now.forgotten && number <= change.before.last {
            change.load_row_of(view, lane, number)?;
        }
        Ok(())
    }

    /// Reads what forgetting records needs, so that a read that fails is met before anything is
    /// changed. Damage does not keep records from being forgotten.
    pub(super) fn prepare_forgetting(
        &mut self,
        lane: Lane,
        through: OutcomeNumber,
    ) -> Result<(), StoreError> {
        let view = self.view;
        let LaneRow {
            last, forgotten, ..
        } = self.lane(lane).before;
        let to = through.min(last);
        walk::records(view, lane, forgotten.saturating_add(1), to, &mut |_| {
            ControlFlow::Continue(())
        })?;
        Ok(())
    }

    /// Removes one record; false when it is not there. Comes after
    /// [`LaneChanges::prepare_removal`].
    pub(super) fn remove(&mut self, lane: Lane, number: OutcomeNumber) -> bool {
        let change = self.lane(lane);
        if number <= change.now.forgotten || number > change.now.last {
            return false;
        }
        let taken = if number > change.before.last {
            take(&mut change.written, number)
        } else {
            change.take_from_row(number)
        };
        if let Some(record) = &taken {
            change.now.takes_leave_of(record.record.len());
        }
        taken.is_some()
    }

    /// Adds what has changed to the writes, and tells it.
    pub(super) fn finish(self, writes: &mut Writes) -> Vec<(Lane, LaneRow)> {
        let mut changed = Vec::new();
        for (lane, change) in self.lanes {
            if change.now == change.before {
                continue;
            }
            for (last, row) in change.rows.iter().filter(|(_, row)| row.changed) {
                if row.records.is_empty() {
                    writes.remove(Space::Outcomes, |key| put_outcomes_key(key, lane, *last));
                } else {
                    put_row(writes, lane, *last, row.records.iter());
                }
            }
            put_new_rows(writes, lane, change.written.into());
            let key = lane_key(lane);
            writes.seal(
                Space::Meta,
                |out| out.extend_from_slice(&key),
                |row| put_lane(row, change.now),
            );
            changed.push((lane, change.now));
        }
        changed
    }

    fn lane(&mut self, lane: Lane) -> &mut LaneChange {
        self.lanes.entry(lane).or_insert_with(|| {
            let before = self.committed.row(lane);
            LaneChange {
                before,
                now: before,
                written: VecDeque::new(),
                rows: BTreeMap::new(),
            }
        })
    }
}

impl LaneChange {
    /// Removes the rows that end at or before `through`, and takes what goes out of the count.
    fn forget_rows(
        &mut self,
        view: &dyn View,
        lane: Lane,
        through: OutcomeNumber,
    ) -> Result<(), StoreError> {
        let from = self.now.forgotten.saturating_add(1);
        walk::records(view, lane, from, self.before.last, &mut |found| {
            let mut leave = |number: OutcomeNumber, bytes: usize| {
                if number > self.now.forgotten && number <= through {
                    self.now.takes_leave_of(bytes);
                }
            };
            let last = match found {
                Records::Row { last, records } => {
                    match self.rows.get(&last) {
                        Some(row) => {
                            for record in &row.records {
                                leave(record.number, record.record.len());
                            }
                        }
                        None => {
                            for record in records {
                                leave(record.number, record.record.len());
                            }
                        }
                    }
                    last
                }
                // It is forgotten like another; otherwise nobody would ever get past it.
                Records::Damaged { last, why } => {
                    if last <= through {
                        let lane = lane.0;
                        tracing::warn!(
                            lane,
                            last,
                            why,
                            "outcome records that are forgotten were damaged"
                        );
                    }
                    last
                }
            };
            if last > through {
                return ControlFlow::Break(());
            }
            self.rows.insert(last, OlderRow::GOES);
            ControlFlow::Continue(())
        })?;
        Ok(())
    }

    /// Reads the row that holds a record, if it is there.
    fn load_row_of(
        &mut self,
        view: &dyn View,
        lane: Lane,
        number: OutcomeNumber,
    ) -> Result<(), StoreError> {
        let mut met = Ok(());
        walk::records(view, lane, number, self.before.last, &mut |found| {
            match found {
                Records::Row { last, records } => {
                    self.rows.entry(last).or_insert_with(|| OlderRow {
                        records: records.into_iter().map(Record::from).collect(),
                        changed: false,
                    });
                }
                Records::Damaged { last, why } => {
                    let key = outcomes_key(lane, last);
                    met = Err(StoreError::Damaged {
                        what: shown_damage(Space::Outcomes, &key, &key, why).into(),
                        resume: None,
                    });
                }
            }
            ControlFlow::Break(())
        })?;
        met
    }

    /// Takes a record out of its row, which is the first that does not end before it.
    fn take_from_row(&mut self, number: OutcomeNumber) -> Option<Record> {
        let (_, row) = self.rows.range_mut(number..).next()?;
        let at = row
            .records
            .binary_search_by_key(&number, |record| record.number)
            .ok()?;
        row.changed = true;
        Some(row.records.remove(at))
    }
}

impl OlderRow {
    const GOES: Self = Self {
        records: Vec::new(),
        changed: true,
    };
}

impl LaneRow {
    fn takes_leave_of(&mut self, bytes: usize) {
        self.count = self.count.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes as u64);
    }
}

impl From<RecordView<'_>> for Record {
    fn from(view: RecordView<'_>) -> Self {
        Self {
            number: view.number,
            queue: Bytes::copy_from_slice(view.queue),
            sequence: view.sequence,
            record: Bytes::copy_from_slice(view.record),
        }
    }
}

impl Record {
    fn view(&self) -> RecordView<'_> {
        RecordView {
            number: self.number,
            queue: &self.queue,
            sequence: self.sequence,
            record: &self.record,
        }
    }

    fn bytes(&self) -> usize {
        RECORD_HEAD_BYTES + self.queue.len() + self.record.len()
    }
}

fn take(records: &mut VecDeque<Record>, number: OutcomeNumber) -> Option<Record> {
    let at = records
        .binary_search_by_key(&number, |record| record.number)
        .ok()?;
    records.remove(at)
}

fn put_new_rows(writes: &mut Writes, lane: Lane, records: Vec<Record>) {
    let mut rest = &records[..];
    while !rest.is_empty() {
        let mut bytes = 0;
        let count = rest.iter().take_while(|record| {
            let room = bytes < ROW_BYTES;
            bytes += record.bytes();
            room
        });
        let (row, after) = rest.split_at(count.count());
        rest = after;
        if let Some(last) = row.last() {
            put_row(writes, lane, last.number, row.iter());
        }
    }
}

fn put_row<'a>(
    writes: &mut Writes,
    lane: Lane,
    last: OutcomeNumber,
    records: impl Iterator<Item = &'a Record>,
) {
    writes.seal(
        Space::Outcomes,
        |key| put_outcomes_key(key, lane, last),
        |row| {
            for record in records {
                put_record(row, last, record.view());
            }
        },
    );
}
