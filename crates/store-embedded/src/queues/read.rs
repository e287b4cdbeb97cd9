//! Reading: messages, the order of expiry, lanes, and what opening needs.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};

use bytes::Bytes;
use fieldpost_model::Timestamp;
use fieldpost_store::StoreError;
use fieldpost_store::queues::{
    DuePage, DuePosition, Lane, ListDue, ListOutcomes, ListQueue, Outcome, QueueName, QueuePage,
    QueuedMessage,
};

use super::gaps::{Gaps, Start};
use super::layout::{
    self, LANE_PREFIX, LaneRow, SEQUENCE_KEY, due_key, lane_key, message_key, outcomes_key,
};
use crate::keyvalue::engine::{Engine, EngineError, Space, View};
use crate::keyvalue::{damaged_store, visit};

/// Messages of a queue in the order of their numbers.
pub(super) fn list(view: &dyn View, request: &ListQueue) -> Result<QueuePage, StoreError> {
    let queue = &request.queue.0;
    let (from, to) = (
        message_key(queue, request.after),
        message_key(queue, u64::MAX),
    );
    let range = (Bound::Excluded(&from[..]), Bound::Included(&to[..]));
    let mut room = Room::new(request.limit, request.bytes_max);
    let mut page = QueuePage::default();
    visit(view, Space::Messages, range, |key, row| {
        if room.is_used_up() {
            page.more = true;
            return Ok(ControlFlow::Break(()));
        }
        let (_, sequence) = layout::parse_message_key(key)?;
        let message = layout::parse_message(key, sequence, row)?;
        room.take(message.message.len());
        page.messages.push(message);
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(page)
}

/// How many messages are in each queue.
pub(super) fn depths(view: &dyn View, queues: &[QueueName]) -> Result<Vec<u64>, StoreError> {
    let depth = |queue: &QueueName| {
        let (from, to) = (message_key(&queue.0, 0), message_key(&queue.0, u64::MAX));
        let range = (Bound::Included(&from[..]), Bound::Included(&to[..]));
        let mut depth = 0;
        view.range(Space::Messages, range, &mut |_, _| {
            depth += 1;
            ControlFlow::Continue(())
        })?;
        Ok(depth)
    };
    queues.iter().map(depth).collect()
}

/// Messages that are due, soonest expiry first.
pub(super) fn due(
    engine: &dyn Engine,
    gaps: &Gaps,
    request: &ListDue,
) -> Result<DuePage, StoreError> {
    let mut room = Room::new(request.limit, request.bytes_max);
    let mut page = DuePage::default();
    let until = Some(request.until);
    walk_due(engine, gaps, request.after, until, &mut |queue, message| {
        if room.is_used_up() {
            page.more = true;
            return ControlFlow::Break(());
        }
        room.take(message.message.len());
        page.messages.push((queue, message));
        ControlFlow::Continue(())
    })?;
    Ok(page)
}

/// The soonest expiry after a position.
pub(super) fn next_due(
    engine: &dyn Engine,
    gaps: &Gaps,
    after: Option<DuePosition>,
) -> Result<Option<Timestamp>, StoreError> {
    let mut next = None;
    walk_due(engine, gaps, after, None, &mut |_, message| {
        next = Some(message.expires);
        ControlFlow::Break(())
    })?;
    Ok(next)
}

/// Shows messages in the order of expiry, and remembers where there are none.
///
/// A row without its message, and a message whose row is damaged, are passed over: one of them must
/// not keep all others from expiring. Whoever reads the message's own queue is told of the damage.
fn walk_due(
    engine: &dyn Engine,
    gaps: &Gaps,
    after: Option<DuePosition>,
    until: Option<Timestamp>,
    show: &mut dyn FnMut(QueueName, QueuedMessage) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    let (ticket, start) = gaps.begin(after);
    let view = engine.snapshot();
    let view = &*view;
    let from = match start {
        Start::Beginning => None,
        Start::After(position) | Start::At(position) => Some(due_key(position)),
        Start::Nowhere => return Ok(()),
    };
    let from = match (&from, start) {
        (Some(from), Start::After(_)) => Bound::Excluded(&from[..]),
        (Some(from), _) => Bound::Included(&from[..]),
        (None, _) => Bound::Unbounded,
    };
    let to = until.map(|expires| {
        due_key(DuePosition {
            expires,
            sequence: u64::MAX,
        })
    });
    let to = to.as_deref().map_or(Bound::Unbounded, Bound::Included);
    let mut first = None;
    let mut failed = None;
    view.range(Space::Due, (from, to), &mut |key, row| {
        let found = match message_of(view, key, row) {
            Ok(Some(found)) => found,
            Ok(None) => return ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                return ControlFlow::Break(());
            }
        };
        let (position, queue, message) = found;
        first.get_or_insert(position);
        show(queue, message)
    })?;
    if let Some(error) = failed {
        return Err(error.into());
    }
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

/// The message that a row of the order of expiry stands for.
fn message_of(view: &dyn View, key: &[u8], row: &[u8]) -> Result<Option<Due>, EngineError> {
    let Ok((position, queue)) = layout::parse_due(key, row) else {
        return Ok(None);
    };
    let key = message_key(queue, position.sequence);
    let row = view.get(Space::Messages, &key)?;
    let message = row
        .and_then(|row| layout::parse_message(&key, position.sequence, &row).ok())
        .filter(|message| message.expires == position.expires);
    Ok(message.map(|message| (position, QueueName(Bytes::copy_from_slice(queue)), message)))
}

/// Records of a lane in the order of their numbers.
pub(super) fn outcomes(
    view: &dyn View,
    request: &ListOutcomes,
) -> Result<Vec<Outcome>, StoreError> {
    let lane = lane(view, request.lane)?;
    let after = request.after.max(lane.forgotten);
    let (from, to) = (
        outcomes_key(request.lane, after),
        outcomes_key(request.lane, u64::MAX),
    );
    let range = (Bound::Excluded(&from[..]), Bound::Included(&to[..]));
    let mut room = Room::new(request.limit, request.bytes_max);
    let mut outcomes = Vec::new();
    visit(view, Space::Outcomes, range, |key, row| {
        for record in layout::parse_outcomes(key, row)? {
            let wanted = request.queue.as_ref();
            if record.number <= after || wanted.is_some_and(|queue| queue.0 != record.queue) {
                continue;
            }
            outcomes.push(record.to_outcome());
            room.take(record.record.len());
            if room.is_used_up() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(outcomes)
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
    let sequence = match view.get(Space::Meta, SEQUENCE_KEY)? {
        Some(row) => layout::parse_sequence(&row)?,
        None => {
            return Err(damaged_store(
                "the row of the newest message is missing".to_owned(),
            ));
        }
    };
    let mut lanes = BTreeMap::new();
    let range = (Bound::Included(LANE_PREFIX), Bound::Unbounded);
    visit(view, Space::Meta, range, |key, row| {
        let Some(lane) = layout::split_lane_key(key) else {
            return Ok(ControlFlow::Break(()));
        };
        lanes.insert(lane, layout::parse_lane(key, row)?);
        Ok(ControlFlow::Continue(()))
    })?;
    for (lane, row) in &lanes {
        ends_at(view, *lane, row)?;
    }
    Ok(Loaded { sequence, lanes })
}

/// Whether nothing is in a lane behind its last record, as every commit leaves it.
fn ends_at(view: &dyn View, lane: Lane, row: &LaneRow) -> Result<(), StoreError> {
    let (from, to) = (outcomes_key(lane, row.last), outcomes_key(lane, u64::MAX));
    let range = (Bound::Excluded(&from[..]), Bound::Included(&to[..]));
    let mut beyond = false;
    view.range(Space::Outcomes, range, &mut |_, _| {
        beyond = true;
        ControlFlow::Break(())
    })?;
    if beyond {
        return Err(damaged_store(format!(
            "lane {} does not end at record {}, the newest one",
            lane.0, row.last
        )));
    }
    Ok(())
}

/// What a lane's own row says; nothing was ever written where there is none.
fn lane(view: &dyn View, lane: Lane) -> Result<LaneRow, StoreError> {
    let key = lane_key(lane);
    match view.get(Space::Meta, &key)? {
        Some(row) => Ok(layout::parse_lane(&key, &row)?),
        None => Ok(LaneRow::default()),
    }
}
