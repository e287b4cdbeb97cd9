//! What a group of operations does to the queues.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use fieldpost_model::Timestamp;
use fieldpost_store::StoreError;
use fieldpost_store::queues::{DuePosition, Lane, Operation, OperationResult, QueueName};
use smallvec::SmallVec;

use super::depths::{Depth, Depths, Known};
use super::lanes::{LaneChanges, Lanes};
use super::layout::{
    LaneRow, SEQUENCE_KEY, message_key, message_of, parse_mark, parse_message_head, put_due_key,
    put_message, put_message_key, sequence_row,
};
use super::read::Expiry;
use super::tally::{Pass, Tally};
use super::walk::{self, Message as StoredMessage};
use crate::keyvalue::engine::{EngineError, Space, View, Writes};
use crate::keyvalue::rows::unread;

/// The most messages that one operation drops.
const DROP_MAX: usize = 1_000;

/// What the writer keeps of the queues from one group to the next.
pub(crate) struct QueuesWriter {
    sequence: u64,
    depths: Depths,
    tally: Tally,
    lanes: Arc<Lanes>,
    expiry: Arc<Expiry>,
}

impl QueuesWriter {
    pub(super) fn new(
        sequence: u64,
        lanes: Arc<Lanes>,
        expiry: Arc<Expiry>,
        pass: Arc<Pass>,
    ) -> Self {
        Self {
            sequence,
            depths: Depths::default(),
            tally: Tally::new(pass),
            lanes,
            expiry,
        }
    }

    /// Takes over what a group did, once it is durable and visible.
    pub(crate) fn committed(&mut self, done: QueuesDone) {
        self.sequence = done.sequence;
        self.tally.take_over();
        for (queue, known, net) in done.queues {
            self.tally.add(&queue, net);
            if known.is_only_empty() && self.tally.is_complete() {
                self.depths.forget(&queue);
            } else if known != Known::default() {
                self.depths.remember(&queue, known);
            }
        }
        if !done.due.is_empty() {
            self.expiry.gaps.written(done.due.into_iter());
        }
        self.lanes.set(done.lanes);
    }
}

/// What a group did, for the next one.
pub(crate) struct QueuesDone {
    sequence: u64,
    /// With what was added and taken away.
    queues: Vec<(Bytes, Known, i64)>,
    due: Vec<DuePosition>,
    lanes: Vec<(Lane, LaneRow)>,
}

/// Decides the operations of one group against the durable state and what the group did so far.
pub(crate) struct QueuesGroup<'a> {
    view: &'a dyn View,
    writer: &'a QueuesWriter,
    /// Whether the disk has room for messages.
    room: bool,
    sequence: u64,
    queues: HashMap<Bytes, QueueChange>,
    messages: Vec<Message>,
    /// Where in `messages` a message is, by its number.
    places: HashMap<u64, usize>,
    lanes: LaneChanges<'a>,
}

/// Looks at what is stored of a message, and says whether to go on.
type VisitMessage<'a> = dyn FnMut(StoredMessage<'_>) -> ControlFlow<()> + 'a;

/// A queue that the group touches.
struct QueueChange {
    /// As the group leaves it so far.
    depth: Option<Depth>,
    /// What the group has added and taken away.
    net: i64,
    /// None when it is not known.
    mark: Option<Option<u64>>,
    mark_changed: bool,
    /// Messages that the group put in, by their places.
    new: SmallVec<[usize; 2]>,
}

/// A message that the group touches.
struct Message {
    queue: Bytes,
    sequence: u64,
    /// What is stored of it; its expiry is not known when its row is damaged.
    stored: Option<Option<Timestamp>>,
    now: Now,
}

/// What a message is to be.
enum Now {
    Stored,
    New {
        expires: Timestamp,
        count: u32,
        message: Bytes,
    },
    Counted {
        count: u32,
        row: Vec<u8>,
    },
    Gone,
}

impl<'a> QueuesGroup<'a> {
    /// A group of about so many operations.
    pub(crate) fn new(
        view: &'a dyn View,
        writer: &'a QueuesWriter,
        room: bool,
        operations: usize,
    ) -> Self {
        Self {
            view,
            writer,
            room,
            sequence: writer.sequence,
            queues: HashMap::with_capacity(operations),
            messages: Vec::with_capacity(operations),
            places: HashMap::with_capacity(operations),
            lanes: LaneChanges::new(view, &writer.lanes),
        }
    }

    /// Reads what a batch needs. A batch that meets damage here is left out as a whole, and the
    /// group goes on.
    pub(crate) fn prepare(&mut self, operations: &[Operation]) -> Result<(), StoreError> {
        for operation in operations {
            match operation {
                Operation::Enqueue {
                    queue,
                    depth_max,
                    once,
                    ..
                } => {
                    if once.is_some() {
                        self.load_mark(queue)?;
                    }
                    self.is_full(queue, *depth_max)?;
                }
                Operation::Settle {
                    queue, sequence, ..
                }
                | Operation::SetDeliveryCount {
                    queue, sequence, ..
                } => {
                    self.find(queue, *sequence)?;
                }
                Operation::Remove { lane, number } => {
                    self.lanes.prepare_removal(*lane, *number)?;
                }
                Operation::Drop { queue } => self.prepare_drop(queue)?,
                Operation::Forget { lane, through } => {
                    self.lanes.prepare_forgetting(*lane, *through)?;
                }
                Operation::Record { .. } => {}
            }
        }
        Ok(())
    }

    /// Carries a batch out that was prepared. After an error the group is of no use.
    pub(crate) fn take_batch(
        &mut self,
        operations: Vec<Operation>,
    ) -> Result<Vec<OperationResult>, StoreError> {
        operations
            .into_iter()
            .map(|operation| self.take(operation))
            .collect()
    }

    fn take(&mut self, operation: Operation) -> Result<OperationResult, StoreError> {
        match operation {
            Operation::Enqueue {
                queue,
                message,
                expires,
                depth_max,
                once,
            } => self.enqueue(queue, message, expires, depth_max, once),
            Operation::Settle {
                queue,
                sequence,
                outcomes,
            } => self.settle(&queue, sequence, outcomes),
            Operation::SetDeliveryCount {
                queue,
                sequence,
                count,
            } => self.set_delivery_count(&queue, sequence, count),
            Operation::Drop { queue } => self.drop_queue(&queue),
            Operation::Record {
                lane,
                queue,
                sequence,
                record,
            } => {
                self.lanes.record(lane, &queue, sequence, record);
                Ok(OperationResult::Done)
            }
            Operation::Forget { lane, through } => {
                self.lanes.forget(lane, through)?;
                Ok(OperationResult::Done)
            }
            Operation::Remove { lane, number } => Ok(if self.lanes.remove(lane, number) {
                OperationResult::Done
            } else {
                OperationResult::Gone
            }),
        }
    }

    fn enqueue(
        &mut self,
        queue: QueueName,
        message: Bytes,
        expires: Timestamp,
        depth_max: u64,
        once: Option<u64>,
    ) -> Result<OperationResult, StoreError> {
        if let Some(mark) = once
            && self.load_mark(&queue)? >= Some(mark)
        {
            return Ok(OperationResult::DoneBefore);
        }
        if self.is_full(&queue, depth_max)? {
            return Ok(OperationResult::QueueFull);
        }
        if !self.room {
            return Ok(OperationResult::NoRoom);
        }
        self.sequence += 1;
        let sequence = self.sequence;
        let place = self.messages.len();
        let change = self.queue(&queue);
        change.count(1);
        change.new.push(place);
        if once.is_some() {
            change.mark = Some(once);
            change.mark_changed = true;
        }
        self.places.insert(sequence, place);
        self.messages.push(Message {
            queue: queue.0,
            sequence,
            stored: None,
            now: Now::New {
                expires,
                count: 0,
                message,
            },
        });
        Ok(OperationResult::Enqueued { sequence })
    }

    fn settle(
        &mut self,
        queue: &QueueName,
        sequence: u64,
        outcomes: Vec<(Lane, Bytes)>,
    ) -> Result<OperationResult, StoreError> {
        let Some(message) = self.find(queue, sequence)? else {
            return Ok(OperationResult::Gone);
        };
        message.now = Now::Gone;
        self.queue(queue).count(-1);
        for (lane, record) in outcomes {
            self.lanes.record(lane, queue, sequence, record);
        }
        Ok(OperationResult::Done)
    }

    fn set_delivery_count(
        &mut self,
        queue: &QueueName,
        sequence: u64,
        delivery_count: u32,
    ) -> Result<OperationResult, StoreError> {
        let view = self.view;
        let Some(message) = self.find(queue, sequence)? else {
            return Ok(OperationResult::Gone);
        };
        match &mut message.now {
            Now::New { count, .. } | Now::Counted { count, .. } => *count = delivery_count,
            Now::Stored => {
                let key = message_key(&queue.0, sequence);
                if let Some(row) = view.get(Space::Messages, &key)? {
                    let count = delivery_count;
                    message.now = Now::Counted { count, row };
                }
            }
            Now::Gone => {}
        }
        Ok(OperationResult::Done)
    }

    /// Meets a read that fails before anything is changed.
    fn prepare_drop(&self, queue: &QueueName) -> Result<(), EngineError> {
        let mut messages = 0;
        self.each_stored(&queue.0, &mut |_| {
            messages += 1;
            if messages <= DROP_MAX {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        self.has_stored_mark(queue).map(drop)
    }

    /// Whether a mark of the queue is stored, also a damaged one.
    fn has_stored_mark(&self, queue: &QueueName) -> Result<bool, EngineError> {
        match self.view.get(Space::Marks, &queue.0) {
            Ok(mark) => Ok(mark.is_some()),
            Err(EngineError::Damaged(_)) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn drop_queue(&mut self, queue: &QueueName) -> Result<OperationResult, StoreError> {
        let mut places: SmallVec<[usize; 16]> = SmallVec::new();
        let mut found = Vec::new();
        let mut more = false;
        let (messages, known) = (&self.messages, &self.places);
        self.each_stored(&queue.0, &mut |message| {
            // A damaged one goes as well. Where its expiry is not known, it leaves its row in the
            // order of expiry behind.
            let (sequence, expires) = match message {
                StoredMessage::Row { sequence, key, row } => {
                    let head = parse_message_head(key, row).ok();
                    (sequence, head.map(|(expires, _)| expires))
                }
                StoredMessage::Damaged {
                    sequence, expires, ..
                } => (sequence, expires),
                StoredMessage::Unknown { .. } => return ControlFlow::Continue(()),
            };
            let place = known.get(&sequence).copied();
            if let Some(place) = place
                && messages.get(place).is_some_and(Message::is_gone)
            {
                return ControlFlow::Continue(());
            }
            if places.len() + found.len() == DROP_MAX {
                more = true;
                return ControlFlow::Break(());
            }
            match place {
                Some(place) => places.push(place),
                None => found.push((sequence, expires)),
            }
            ControlFlow::Continue(())
        })?;
        for (sequence, expires) in found {
            places.push(self.messages.len());
            self.places.insert(sequence, self.messages.len());
            self.messages.push(Message {
                queue: queue.0.clone(),
                sequence,
                stored: Some(expires),
                now: Now::Stored,
            });
        }
        if !more {
            places.extend(self.queue(queue).new.drain(..));
        }
        let mut dropped = 0;
        for place in places {
            if let Some(message) = self.messages.get_mut(place)
                && !message.is_gone()
            {
                message.now = Now::Gone;
                dropped += 1;
            }
        }
        let removed = i64::try_from(dropped).unwrap_or(i64::MAX);
        self.queue(queue).count(-removed);
        if !more {
            self.forget_queue(queue)?;
        }
        Ok(OperationResult::Dropped {
            messages: dropped,
            more,
        })
    }

    /// Forgets what is known of a queue without messages.
    fn forget_queue(&mut self, queue: &QueueName) -> Result<(), StoreError> {
        let has_mark = self.queue(queue).mark != Some(None);
        let is_stored = has_mark && self.has_stored_mark(queue)?;
        let change = self.queue(queue);
        change.depth = Some(Depth::EMPTY);
        if has_mark {
            change.mark_changed |= is_stored;
            change.mark = Some(None);
        }
        Ok(())
    }

    /// Adds the rows of what has changed to the writes.
    pub(crate) fn finish(self, writes: &mut Writes) -> QueuesDone {
        let mut due = Vec::new();
        for message in &self.messages {
            message.write(writes, &mut due);
        }
        let mut queues = Vec::with_capacity(self.queues.len());
        for (queue, change) in self.queues {
            if change.mark_changed {
                match change.mark.flatten() {
                    Some(mark) => writes.seal(
                        Space::Marks,
                        |key| key.put_slice(&queue),
                        |row| row.put_u64_le(mark),
                    ),
                    None => writes.remove(Space::Marks, |key| key.put_slice(&queue)),
                }
            }
            let known = Known {
                depth: change.depth,
                mark: change.mark,
            };
            queues.push((queue, known, change.net));
        }
        let lanes = self.lanes.finish(writes);
        let committed = &self.writer.lanes;
        if self.sequence != self.writer.sequence || committed.lack(&lanes) {
            let row = sequence_row(self.sequence, committed.all(&lanes));
            writes.put(Space::Meta, SEQUENCE_KEY, &row);
        }
        QueuesDone {
            sequence: self.sequence,
            queues,
            due,
            lanes,
        }
    }

    fn queue(&mut self, queue: &QueueName) -> &mut QueueChange {
        let writer = self.writer;
        self.queues.entry(queue.0.clone()).or_insert_with(|| {
            let known = writer.depths.known(&queue.0);
            let is_empty = known.depth.is_none() && writer.tally.is_empty(&queue.0);
            QueueChange {
                depth: if is_empty {
                    Some(Depth::EMPTY)
                } else {
                    known.depth
                },
                net: 0,
                mark: known.mark,
                mark_changed: false,
                new: SmallVec::new(),
            }
        })
    }

    /// Looks for a message that is in its queue.
    fn find(
        &mut self,
        queue: &QueueName,
        sequence: u64,
    ) -> Result<Option<&mut Message>, StoreError> {
        let place = match self.places.get(&sequence) {
            Some(place) => *place,
            None => {
                if sequence > self.writer.sequence {
                    return Ok(None);
                }
                let key = message_key(&queue.0, sequence);
                let row = self.view.get(Space::Messages, &key);
                let Some(row) = row.map_err(|error| unread(Space::Messages, &key, error))? else {
                    return Ok(None);
                };
                let (expires, _) = parse_message_head(&key, &row)?;
                let place = self.messages.len();
                self.places.insert(sequence, place);
                self.messages.push(Message {
                    queue: queue.0.clone(),
                    sequence,
                    stored: Some(Some(expires)),
                    now: Now::Stored,
                });
                place
            }
        };
        let message = self.messages.get_mut(place);
        Ok(message.filter(|message| message.queue == queue.0 && !message.is_gone()))
    }

    fn load_mark(&mut self, queue: &QueueName) -> Result<Option<u64>, StoreError> {
        let view = self.view;
        let change = self.queue(queue);
        if let Some(mark) = change.mark {
            return Ok(mark);
        }
        let stored = view.get(Space::Marks, &queue.0);
        let mark = match stored.map_err(|error| unread(Space::Marks, &queue.0, error))? {
            Some(row) => Some(parse_mark(&queue.0, &row)?),
            None => None,
        };
        change.mark = Some(mark);
        Ok(mark)
    }

    /// Whether a queue has `depth_max` messages or more. Counts what is stored when that is not
    /// known well enough.
    fn is_full(&mut self, queue: &QueueName, depth_max: u64) -> Result<bool, EngineError> {
        if depth_max == u64::MAX {
            return Ok(false);
        }
        let change = self.queue(queue);
        let net = change.net;
        if let Some(depth) = change.depth
            && (depth.exact || depth.least >= depth_max)
        {
            return Ok(depth.least >= depth_max);
        }
        // One more tells a full queue from one that is fuller.
        let enough = depth_max.saturating_add_signed(-net).saturating_add(1);
        let mut least = 0;
        self.each_stored(&queue.0, &mut |message| {
            // Of a stretch of which nothing is known nobody can say how many are in it.
            if !matches!(message, StoredMessage::Unknown { .. }) {
                least += 1;
            }
            if least < enough {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        let stored = Depth {
            least,
            exact: least < enough,
        };
        let depth = stored.plus(net);
        self.queue(queue).depth = Some(depth);
        Ok(depth.least >= depth_max)
    }

    /// Shows what is stored of a queue.
    fn each_stored(&self, queue: &[u8], visit: &mut VisitMessage<'_>) -> Result<(), EngineError> {
        walk::messages(self.view, queue, 1, self.writer.sequence, visit)
    }
}

impl QueueChange {
    fn count(&mut self, messages: i64) {
        self.net += messages;
        self.depth = self.depth.map(|depth| depth.plus(messages));
    }
}

impl Depth {
    fn plus(self, added: i64) -> Self {
        Self {
            least: self.least.saturating_add_signed(added),
            exact: self.exact,
        }
    }
}

impl Message {
    fn is_gone(&self) -> bool {
        matches!(self.now, Now::Gone)
    }

    fn write(&self, writes: &mut Writes, due: &mut Vec<DuePosition>) {
        let sequence = self.sequence;
        match (&self.now, self.stored) {
            (
                Now::New {
                    expires,
                    count,
                    message,
                },
                _,
            ) => {
                let position = DuePosition {
                    expires: *expires,
                    sequence,
                };
                writes.seal(
                    Space::Messages,
                    |key| put_message_key(key, &self.queue, sequence),
                    |row| put_message(row, *expires, *count, message),
                );
                writes.seal(
                    Space::Due,
                    |key| put_due_key(key, position),
                    |row| row.put_slice(&self.queue),
                );
                due.push(position);
            }
            (Now::Counted { count, row }, Some(Some(expires))) => writes.seal(
                Space::Messages,
                |key| put_message_key(key, &self.queue, sequence),
                |out| put_message(out, expires, *count, message_of(row)),
            ),
            (Now::Gone, Some(expires)) => {
                writes.remove(Space::Messages, |key| {
                    put_message_key(key, &self.queue, sequence);
                });
                if let Some(expires) = expires {
                    let position = DuePosition { expires, sequence };
                    writes.remove(Space::Due, |key| put_due_key(key, position));
                }
            }
            (Now::Stored | Now::Gone | Now::Counted { .. }, _) => {}
        }
    }
}
