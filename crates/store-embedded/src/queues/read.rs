//! Reading: messages, the order of expiry, lanes, and what opening needs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, ControlFlow};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use fieldpost_model::Timestamp;
use fieldpost_store::StoreError;
use fieldpost_store::queues::{
    DuePage, DuePosition, Lane, ListDue, ListOutcomes, ListQueue, Outcome, QueueName, QueuePage,
    QueuedMessage,
};

use super::gaps::{Gaps, Start};
use super::layout::{
    self, LANE_PREFIX, LaneRow, SEQUENCE_KEY, due_number, lane_key, message_key, outcomes_key,
};
use super::walk::{self, Found, Message, Records, Rows};
use crate::keyvalue::engine::{Engine, EngineError, Space, View, Writes};
use crate::keyvalue::rows::shown_damage;
use crate::keyvalue::{damaged_store, visit};

/// Messages of a queue in the order of their numbers, up to the first that is damaged.
pub(super) fn list(view: &dyn View, request: &ListQueue) -> Result<QueuePage, StoreError> {
    let queue = &request.queue.0;
    let mut room = Room::new(request.limit, request.bytes_max);
    let mut page = QueuePage::default();
    let mut damage = Damage::default();
    let (from, newest) = (request.after.saturating_add(1), sequence(view)?);
    walk::messages(view, queue, from, newest, &mut |message| {
        let (from, to, why) = match message {
            Message::Row { sequence, key, row } => {
                match layout::parse_message(key, sequence, row) {
                    Ok(_) if damage.is_met() => return ControlFlow::Break(()),
                    Ok(_) if room.is_used_up() => {
                        page.more = true;
                        return ControlFlow::Break(());
                    }
                    Ok(message) => {
                        room.take(message.message.len());
                        page.messages.push(message);
                        return ControlFlow::Continue(());
                    }
                    Err(error) => (sequence, sequence, error.what()),
                }
            }
            Message::Damaged { sequence, why, .. } => (sequence, sequence, why),
            Message::Unknown { from, to, why } => (from, to, why),
        };
        if page.messages.is_empty() {
            damage.add(from, to, why);
            return ControlFlow::Continue(());
        }
        page.more = true;
        ControlFlow::Break(())
    })?;
    damage.or(page, Space::Messages, |sequence| {
        message_key(queue, sequence)
    })
}

/// How many messages are in each queue, those that cannot be read included.
pub(super) fn depths(view: &dyn View, queues: &[QueueName]) -> Result<Vec<u64>, StoreError> {
    let newest = sequence(view)?;
    let depth = |queue: &QueueName| {
        let mut depth = 0;
        walk::messages(view, &queue.0, 1, newest, &mut |message| {
            if !matches!(message, Message::Unknown { .. }) {
                depth += 1;
            }
            ControlFlow::Continue(())
        })?;
        Ok(depth)
    };
    queues.iter().map(depth).collect()
}

/// Messages that are due, soonest expiry first.
pub(super) fn due(
    engine: &dyn Engine,
    expiry: &Expiry,
    request: &ListDue,
) -> Result<DuePage, StoreError> {
    let mut room = Room::new(request.limit, request.bytes_max);
    let mut page = DuePage::default();
    let until = Some(request.until);
    walk_due(
        engine,
        expiry,
        request.after,
        until,
        &mut |queue, message| {
            if room.is_used_up() {
                page.more = true;
                return ControlFlow::Break(());
            }
            room.take(message.message.len());
            page.messages.push((queue, message));
            ControlFlow::Continue(())
        },
    )?;
    Ok(page)
}

/// The soonest expiry after a position.
pub(super) fn next_due(
    engine: &dyn Engine,
    expiry: &Expiry,
    after: Option<DuePosition>,
) -> Result<Option<Timestamp>, StoreError> {
    let mut next = None;
    walk_due(engine, expiry, after, None, &mut |_, message| {
        next = Some(message.expires);
        ControlFlow::Break(())
    })?;
    Ok(next)
}

/// Damages of the order of expiry that are remembered as told. A store with more than that is told
/// of some twice.
const TOLD_MAX: usize = 1_024;

/// What walks over the order of expiry know of it.
#[derive(Debug, Default)]
pub(super) struct Expiry {
    pub(super) gaps: Gaps,
    told: Mutex<BTreeSet<String>>,
}

impl Expiry {
    /// Says, once, that messages do not expire.
    fn tell(&self, what: String) {
        // Nothing under the lock panics half way through a change.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.contains(&what) {
            return;
        }
        if told.len() >= TOLD_MAX {
            told.clear();
        }
        tracing::error!(%what, "stored messages do not expire because they cannot be read");
        told.insert(what);
    }
}

/// Shows messages in the order of expiry, and remembers where there are none.
///
/// A row without its message, and whatever is damaged, is passed over: one of them must not keep all
/// others from expiring.
fn walk_due(
    engine: &dyn Engine,
    expiry: &Expiry,
    after: Option<DuePosition>,
    until: Option<Timestamp>,
    show: &mut dyn FnMut(QueueName, QueuedMessage) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    let (ticket, start) = expiry.gaps.begin(after);
    let view = engine.snapshot();
    let view = &*view;
    let from = match start {
        Start::Beginning => 0,
        Start::After(position) => due_number(position).saturating_add(1),
        Start::At(position) => due_number(position),
        Start::Nowhere => return Ok(()),
    };
    let to = until.map_or(u128::MAX, |expires| {
        due_number(DuePosition {
            expires,
            sequence: u64::MAX,
        })
    });
    let mut first = None;
    Rows::of_expiry(view).walk(from, to, &mut |found| {
        let (key, row) = match found {
            Found::Row { key, row } => (key, row),
            Found::Damaged { from, to, why } => {
                let (first, last) = (from.to_be_bytes(), to.to_be_bytes());
                expiry.tell(shown_damage(Space::Due, &first, &last, why));
                return Ok(ControlFlow::Continue(()));
            }
        };
        let Some((position, queue, message)) = message_of(view, expiry, key, row)? else {
            return Ok(ControlFlow::Continue(()));
        };
        first.get_or_insert(position);
        Ok(show(queue, message))
    })?;
    match (first, until) {
        (Some(first), _) => ticket.found(Some(first)),
        (None, None) => ticket.found(None),
        // Nothing up to there, and nobody looked further.
        (None, Some(expires)) => ticket.found(Some(DuePosition {
            expires,
            sequence: u64::MAX,
        })),
    }
    Ok(())
}

type Due = (DuePosition, QueueName, QueuedMessage);

/// The message that a row of the order of expiry stands for, if it can be read.
fn message_of(
    view: &dyn View,
    expiry: &Expiry,
    due: &[u8],
    row: &[u8],
) -> Result<Option<Due>, EngineError> {
    let (position, queue) = match layout::parse_due(due, row) {
        Ok(due) => due,
        Err(error) => {
            expiry.tell(shown_damage(Space::Due, due, due, error.what()));
            return Ok(None);
        }
    };
    let key = message_key(queue, position.sequence);
    let row = match view.get(Space::Messages, &key) {
        Ok(Some(row)) => row,
        Ok(None) => return Ok(None),
        Err(EngineError::Damaged(why)) => {
            expiry.tell(shown_damage(Space::Messages, &key, &key, &why));
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    match layout::parse_message(&key, position.sequence, &row) {
        Ok(message) => Ok((message.expires == position.expires).then(|| {
            let queue = QueueName(Bytes::copy_from_slice(queue));
            (position, queue, message)
        })),
        Err(error) => {
            expiry.tell(shown_damage(Space::Messages, &key, &key, error.what()));
            Ok(None)
        }
    }
}

/// Records of a lane in the order of their numbers, up to the first that is damaged.
pub(super) fn outcomes(
    view: &dyn View,
    request: &ListOutcomes,
) -> Result<Vec<Outcome>, StoreError> {
    let lane = lane(view, request.lane)?;
    let after = request.after.max(lane.forgotten);
    let mut room = Room::new(request.limit, request.bytes_max);
    let mut outcomes = Vec::new();
    let mut damage = Damage::default();
    let from = after.saturating_add(1);
    walk::records(view, request.lane, from, lane.last, &mut |found| {
        let records = match found {
            Records::Row { .. } if damage.is_met() => return ControlFlow::Break(()),
            Records::Row { records, .. } => records,
            Records::Damaged { last, why } if outcomes.is_empty() => {
                damage.add(last, last, why);
                return ControlFlow::Continue(());
            }
            Records::Damaged { .. } => return ControlFlow::Break(()),
        };
        for record in records {
            let wanted = request.queue.as_ref();
            if record.number <= after || wanted.is_some_and(|queue| queue.0 != record.queue) {
                continue;
            }
            outcomes.push(record.to_outcome());
            room.take(record.record.len());
            if room.is_used_up() {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    })?;
    damage.or(outcomes, Space::Outcomes, |last| {
        outcomes_key(request.lane, last)
    })
}

/// Damage in front of everything that can be read.
#[derive(Default)]
struct Damage(Option<(u64, u64, String)>);

impl Damage {
    fn is_met(&self) -> bool {
        self.0.is_some()
    }

    fn add(&mut self, from: u64, to: u64, why: &str) {
        let (_, last, _) = self.0.get_or_insert_with(|| (from, to, why.to_owned()));
        *last = to;
    }

    /// What was read, unless there is damage in front of it.
    fn or<T>(self, read: T, space: Space, key: impl Fn(u64) -> Vec<u8>) -> Result<T, StoreError> {
        let Some((from, to, why)) = self.0 else {
            return Ok(read);
        };
        Err(StoreError::Damaged {
            what: shown_damage(space, &key(from), &key(to), &why).into(),
            resume: Some(to.saturating_add(1)),
        })
    }
}

/// How much of an answer is left.
struct Room {
    items: usize,
    bytes_max: usize,
    /// Of all items so far; none before the first, which is given however large it is.
    bytes: Option<usize>,
}

impl Room {
    fn new(limit: usize, bytes_max: usize) -> Self {
        Self {
            items: limit.max(1),
            bytes_max,
            bytes: None,
        }
    }

    fn is_used_up(&self) -> bool {
        self.items == 0 || self.bytes.is_some_and(|bytes| bytes >= self.bytes_max)
    }

    fn take(&mut self, bytes: usize) {
        self.items = self.items.saturating_sub(1);
        self.bytes = Some(self.bytes.unwrap_or(0).saturating_add(bytes));
    }
}

/// What the last commit left.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) sequence: u64,
    pub(crate) lanes: BTreeMap<Lane, LaneRow>,
}

/// Reads what the writer goes on from. Looks at a handful of rows, however many there are.
pub(crate) fn load(view: &dyn View) -> Result<Loaded, StoreError> {
    let (sequence, known) = sequence_and_lanes(view)?;
    let lanes = lane_rows(view)?;
    for lane in (0..=u8::MAX).map(Lane) {
        match lanes.get(&lane) {
            Some(row) => ends_at(view, lane, row)?,
            // Its numbers would begin again, and followers take what has a number that they have
            // seen for done.
            None if known.contains(&lane) => {
                return Err(damaged_store(format!(
                    "the row of lane {} is missing",
                    lane.0
                )));
            }
            None => ends_at(view, lane, &LaneRow::default())?,
        }
    }
    Ok(Loaded { sequence, lanes })
}

/// Notes the lanes that have rows in the row of the newest message, which had none in format 2.
pub(crate) fn note_lanes(view: &dyn View, writes: &mut Writes) -> Result<(), StoreError> {
    let (sequence, _) = sequence_and_lanes(view)?;
    let row = layout::sequence_row(sequence, lane_rows(view)?.into_keys());
    writes.put(Space::Meta, SEQUENCE_KEY, &row);
    Ok(())
}

fn lane_rows(view: &dyn View) -> Result<BTreeMap<Lane, LaneRow>, StoreError> {
    let mut lanes = BTreeMap::new();
    let range = (Bound::Included(LANE_PREFIX), Bound::Unbounded);
    visit(view, Space::Meta, range, |key, row| {
        let Some(lane) = layout::split_lane_key(key) else {
            return Ok(ControlFlow::Break(()));
        };
        lanes.insert(lane, layout::parse_lane(key, row)?);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(lanes)
}

/// Whether nothing is in a lane behind its last record, as every commit leaves it. What is damaged
/// there tells nothing, and stops nobody from reading the rest.
fn ends_at(view: &dyn View, lane: Lane, row: &LaneRow) -> Result<(), StoreError> {
    let mut beyond = false;
    let from = u128::from(row.last) + 1;
    Rows::of_lane(view, lane).walk(from, u64::MAX.into(), &mut |found| {
        beyond = matches!(found, Found::Row { .. });
        Ok(if beyond {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    })?;
    if beyond {
        return Err(damaged_store(match row.last {
            0 => format!(
                "the row of lane {} is missing, and there are records",
                lane.0
            ),
            last => format!(
                "lane {} does not end at record {last}, the newest one",
                lane.0
            ),
        }));
    }
    Ok(())
}

/// The newest number given to a message.
fn sequence(view: &dyn View) -> Result<u64, StoreError> {
    sequence_and_lanes(view).map(|(sequence, _)| sequence)
}

/// The newest number given to a message, and the lanes that were ever written into.
fn sequence_and_lanes(view: &dyn View) -> Result<(u64, Vec<Lane>), StoreError> {
    match view.get(Space::Meta, SEQUENCE_KEY)? {
        Some(row) => Ok(layout::parse_sequence(&row)?),
        None => Err(damaged_store(
            "the row of the newest message is missing".to_owned(),
        )),
    }
}

/// What a lane's own row says; nothing was ever written where there is none.
fn lane(view: &dyn View, lane: Lane) -> Result<LaneRow, StoreError> {
    let key = lane_key(lane);
    match view.get(Space::Meta, &key)? {
        Some(row) => Ok(layout::parse_lane(&key, &row)?),
        None => Ok(LaneRow::default()),
    }
}
