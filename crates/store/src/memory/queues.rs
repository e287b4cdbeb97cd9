//! Device queues in memory.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fieldpost_model::Timestamp;
use futures_util::FutureExt;
use futures_util::future::ready;
use tokio::sync::{oneshot, watch};

use super::{SharedHealth, injected_failure, refusal};
use crate::queues::{
    DeviceQueues, DuePage, DuePosition, Lane, LaneFigures, ListDue, ListOutcomes, ListQueue,
    Operation, OperationResult, Outcome, OutcomeNumber, QueueName, QueuePage, QueuedMessage,
    check_bounds,
};
use crate::{Answer, Health, HealthLevel, StoreError};

/// The most messages that one [`Operation::Drop`] removes: few, so that callers meet the case that
/// there are more.
const DROPPED_AT_ONCE_MAX: usize = 16;

/// Device queues in memory.
pub struct MemoryQueues {
    health: SharedHealth,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queues: BTreeMap<QueueName, Queue>,
    due: BTreeMap<DuePosition, QueueName>,
    lanes: BTreeMap<Lane, Records>,
    /// The last sequence number given.
    sequence: u64,
    withheld: Option<Vec<oneshot::Sender<()>>>,
    fail_next: bool,
    closed: bool,
}

/// There is one for each queue that has messages or a mark.
#[derive(Default)]
struct Queue {
    messages: BTreeMap<u64, QueuedMessage>,
    last_once: Option<u64>,
}

#[derive(Default)]
struct Records {
    kept: BTreeMap<OutcomeNumber, Outcome>,
    last: OutcomeNumber,
    bytes: u64,
}

impl Default for MemoryQueues {
    fn default() -> Self {
        Self::sharing(Arc::new(watch::Sender::new(Health::OK)))
    }
}

impl MemoryQueues {
    pub(super) fn sharing(health: SharedHealth) -> Self {
        Self {
            health,
            state: Mutex::default(),
        }
    }

    /// Makes the next batch of operations fail as a failed sync does: it is lost, and the store is
    /// read-only.
    pub fn fail_next(&self) {
        self.lock().fail_next = true;
    }

    /// Keeps the answers of [`DeviceQueues::apply`] back, or lets all that were kept back go, in
    /// order. Operations are carried out and can be seen meanwhile.
    pub fn withhold(&self, withhold: bool) {
        let mut state = self.lock();
        let released = if withhold {
            state.withheld.get_or_insert_with(Vec::new);
            None
        } else {
            state.withheld.take()
        };
        drop(state);
        for answer in released.unwrap_or_default() {
            // Nobody may be waiting for it any more.
            let _ = answer.send(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeviceQueues for MemoryQueues {
    fn apply(
        &self,
        operations: Vec<Operation>,
    ) -> Answer<Result<Vec<OperationResult>, StoreError>> {
        let mut state = self.lock();
        let refused = if state.closed {
            Some(StoreError::Closed)
        } else {
            check_bounds(&operations)
                .err()
                .or_else(|| refusal(&self.health, HealthLevel::HoldAll))
        };
        if let Some(refused) = refused {
            return ready(Err(refused)).boxed();
        }
        if std::mem::take(&mut state.fail_next) {
            return ready(Err(injected_failure(&self.health))).boxed();
        }
        let room = self.health.borrow().level < HealthLevel::HoldMessages;
        let results = operations
            .into_iter()
            .map(|operation| state.carry_out(operation, room))
            .collect();
        let Some(withheld) = &mut state.withheld else {
            return ready(Ok(results)).boxed();
        };
        let (release, released) = oneshot::channel();
        withheld.push(release);
        released
            .map(move |released| {
                // The sender goes without a word only with the whole engine.
                released.map_err(|_| StoreError::Closed)?;
                Ok(results)
            })
            .boxed()
    }

    fn list(&self, request: ListQueue) -> Answer<Result<QueuePage, StoreError>> {
        let state = self.lock();
        let messages = state
            .queues
            .get(&request.queue)
            .into_iter()
            .flat_map(|queue| queue.messages.range(beyond(request.after)))
            .map(|(_, message)| message);
        let (messages, more) = page(messages, request.limit, request.bytes_max, |message| {
            message.message.len()
        });
        let messages = messages.into_iter().cloned().collect();
        ready(Ok(QueuePage { messages, more })).boxed()
    }

    fn depths(&self, queues: Vec<QueueName>) -> Answer<Result<Vec<u64>, StoreError>> {
        let state = self.lock();
        let depths = queues
            .iter()
            .map(|name| state.queues.get(name).map_or(0, Queue::depth))
            .collect();
        ready(Ok(depths)).boxed()
    }

    fn due(&self, request: ListDue) -> Answer<Result<DuePage, StoreError>> {
        let state = self.lock();
        let messages = state
            .due_after(request.after)
            .take_while(|(position, _)| position.expires <= request.until)
            .filter_map(|(position, name)| {
                let message = state.queues.get(name)?.messages.get(&position.sequence)?;
                Some((name, message))
            });
        let (messages, more) = page(
            messages,
            request.limit,
            request.bytes_max,
            |(_, message)| message.message.len(),
        );
        let messages = messages
            .into_iter()
            .map(|(name, message)| (name.clone(), message.clone()))
            .collect();
        ready(Ok(DuePage { messages, more })).boxed()
    }

    fn next_due(
        &self,
        after: Option<DuePosition>,
    ) -> Answer<Result<Option<Timestamp>, StoreError>> {
        let state = self.lock();
        let next = state.due_after(after).next();
        ready(Ok(next.map(|(position, _)| position.expires))).boxed()
    }

    fn outcomes(&self, request: ListOutcomes) -> Answer<Result<Vec<Outcome>, StoreError>> {
        let state = self.lock();
        let records = state
            .lanes
            .get(&request.lane)
            .into_iter()
            .flat_map(|records| records.kept.range(beyond(request.after)))
            .map(|(_, outcome)| outcome)
            .filter(|outcome| {
                let wanted = request.queue.as_ref();
                wanted.is_none_or(|queue| outcome.queue == *queue)
            });
        let (records, _) = page(records, request.limit, request.bytes_max, |outcome| {
            outcome.record.len()
        });
        ready(Ok(records.into_iter().cloned().collect())).boxed()
    }

    fn lane(&self, lane: Lane) -> LaneFigures {
        self.lock()
            .lanes
            .get(&lane)
            .map(Records::figures)
            .unwrap_or_default()
    }

    fn close(&self) -> Answer<()> {
        self.lock().closed = true;
        self.withhold(false);
        ready(()).boxed()
    }
}

impl State {
    fn carry_out(&mut self, operation: Operation, room: bool) -> OperationResult {
        match operation {
            Operation::Enqueue {
                queue,
                message,
                expires,
                depth_max,
                once,
            } => {
                let known = self.queues.get(&queue);
                let last_once = known.and_then(|queue| queue.last_once);
                if once.is_some() && once <= last_once {
                    return OperationResult::DoneBefore;
                }
                if known.map_or(0, Queue::depth) >= depth_max {
                    return OperationResult::QueueFull;
                }
                if !room {
                    return OperationResult::NoRoom;
                }
                self.enqueue(queue, message, expires, once)
            }
            Operation::Settle {
                queue,
                sequence,
                outcomes,
            } => {
                if !self.take(&queue, sequence) {
                    return OperationResult::Gone;
                }
                for (lane, record) in outcomes {
                    self.record(lane, queue.clone(), sequence, record);
                }
                OperationResult::Done
            }
            Operation::SetDeliveryCount {
                queue,
                sequence,
                count,
            } => {
                let known = self.queues.get_mut(&queue);
                match known.and_then(|queue| queue.messages.get_mut(&sequence)) {
                    Some(message) => {
                        message.delivery_count = count;
                        OperationResult::Done
                    }
                    None => OperationResult::Gone,
                }
            }
            Operation::Drop { queue } => self.drop_queue(&queue),
            Operation::Record {
                lane,
                queue,
                sequence,
                record,
            } => {
                self.record(lane, queue, sequence, record);
                OperationResult::Done
            }
            Operation::Forget { lane, through } => {
                if let Some(records) = self.lanes.get_mut(&lane) {
                    records.forget(through);
                }
                OperationResult::Done
            }
            Operation::Remove { lane, number } => {
                let records = self.lanes.get_mut(&lane);
                match records.is_some_and(|records| records.remove(number)) {
                    true => OperationResult::Done,
                    false => OperationResult::Gone,
                }
            }
        }
    }

    fn enqueue(
        &mut self,
        name: QueueName,
        message: Bytes,
        expires: Timestamp,
        once: Option<u64>,
    ) -> OperationResult {
        self.sequence += 1;
        let sequence = self.sequence;
        let queue = self.queues.entry(name.clone()).or_default();
        queue.last_once = once.or(queue.last_once);
        queue.messages.insert(
            sequence,
            QueuedMessage {
                sequence,
                expires,
                delivery_count: 0,
                message,
            },
        );
        self.due.insert(DuePosition { expires, sequence }, name);
        OperationResult::Enqueued { sequence }
    }

    /// Takes a message out, if it is there.
    fn take(&mut self, name: &QueueName, sequence: u64) -> bool {
        let Some(queue) = self.queues.get_mut(name) else {
            return false;
        };
        let Some(message) = queue.messages.remove(&sequence) else {
            return false;
        };
        if queue.messages.is_empty() && queue.last_once.is_none() {
            self.queues.remove(name);
        }
        let expires = message.expires;
        self.due.remove(&DuePosition { expires, sequence });
        true
    }

    fn drop_queue(&mut self, name: &QueueName) -> OperationResult {
        let mut messages = 0;
        if let Some(queue) = self.queues.get_mut(name) {
            for _ in 0..DROPPED_AT_ONCE_MAX {
                let Some((sequence, message)) = queue.messages.pop_first() else {
                    break;
                };
                let expires = message.expires;
                self.due.remove(&DuePosition { expires, sequence });
                messages += 1;
            }
            if !queue.messages.is_empty() {
                return OperationResult::Dropped {
                    messages,
                    more: true,
                };
            }
            self.queues.remove(name);
        }
        OperationResult::Dropped {
            messages,
            more: false,
        }
    }

    fn record(&mut self, lane: Lane, queue: QueueName, sequence: u64, record: Bytes) {
        let records = self.lanes.entry(lane).or_default();
        records.last += 1;
        records.bytes += record.len() as u64;
        records.kept.insert(
            records.last,
            Outcome {
                number: records.last,
                queue,
                sequence,
                record,
            },
        );
    }

    fn due_after(
        &self,
        after: Option<DuePosition>,
    ) -> impl Iterator<Item = (&DuePosition, &QueueName)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.due.range((from, Bound::Unbounded))
    }
}

impl Queue {
    fn depth(&self) -> u64 {
        self.messages.len() as u64
    }
}

impl Records {
    fn figures(&self) -> LaneFigures {
        LaneFigures {
            last: self.last,
            count: self.kept.len() as u64,
            bytes: self.bytes,
        }
    }

    fn forget(&mut self, through: OutcomeNumber) {
        while let Some(first) = self.kept.first_entry() {
            if *first.key() > through {
                return;
            }
            self.bytes -= first.remove().record.len() as u64;
        }
    }

    fn remove(&mut self, number: OutcomeNumber) -> bool {
        let removed = self.kept.remove(&number);
        if let Some(outcome) = &removed {
            self.bytes -= outcome.record.len() as u64;
        }
        removed.is_some()
    }
}

/// Everything after a number.
fn beyond(number: u64) -> (Bound<u64>, Bound<u64>) {
    (Bound::Excluded(number), Bound::Unbounded)
}

/// As many items as the limits allow, at least one if there is one, and whether there are more.
fn page<T>(
    items: impl Iterator<Item = T>,
    limit: usize,
    bytes_max: usize,
    length: impl Fn(&T) -> usize,
) -> (Vec<T>, bool) {
    let mut taken = Vec::new();
    let mut bytes = 0;
    for item in items {
        if !taken.is_empty() && (taken.len() >= limit || bytes >= bytes_max) {
            return (taken, true);
        }
        bytes += length(&item);
        taken.push(item);
    }
    (taken, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> QueueName {
        QueueName(Bytes::from_static(b"queue"))
    }

    fn put(depth_max: u64) -> Operation {
        Operation::Enqueue {
            queue: name(),
            message: Bytes::from_static(b"message"),
            expires: Timestamp::UNIX_EPOCH,
            depth_max,
            once: None,
        }
    }

    fn settle(sequence: u64) -> Operation {
        Operation::Settle {
            queue: name(),
            sequence,
            outcomes: vec![(Lane(1), Bytes::from_static(b"record"))],
        }
    }

    fn depth(queues: &MemoryQueues) -> u64 {
        let depths = queues.depths(vec![name()]).now_or_never().unwrap();
        depths.unwrap()[0]
    }

    #[test]
    fn withheld_answers_come_when_they_are_let_go() {
        let queues = MemoryQueues::default();
        queues.withhold(true);
        let mut first = queues.apply(vec![put(9)]);
        let mut second = queues.apply(vec![settle(1)]);
        assert!((&mut first).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        assert_eq!(queues.lane(Lane(1)).count, 1);
        queues.withhold(false);
        let enqueued = OperationResult::Enqueued { sequence: 1 };
        assert_eq!(first.now_or_never().unwrap().unwrap(), [enqueued]);
        assert_eq!(
            second.now_or_never().unwrap().unwrap(),
            [OperationResult::Done]
        );
        let at_once = queues.apply(vec![settle(1)]).now_or_never().unwrap();
        assert_eq!(at_once.unwrap(), [OperationResult::Gone]);
    }

    #[test]
    fn a_failure_loses_the_batch_and_turns_the_store_read_only() {
        let queues = MemoryQueues::default();
        queues.fail_next();
        for _ in 0..2 {
            assert!(matches!(
                queues.apply(vec![put(9)]).now_or_never(),
                Some(Err(StoreError::ReadOnly { .. }))
            ));
        }
        assert_eq!(depth(&queues), 0);
    }

    #[test]
    fn messages_are_held_at_the_first_mark_and_all_else_at_the_second() {
        let health = Arc::new(watch::Sender::new(Health::OK));
        let queues = MemoryQueues::sharing(Arc::clone(&health));
        let apply = |level, operations: Vec<Operation>| {
            health.send_replace(Health {
                level,
                reason: None,
            });
            queues.apply(operations).now_or_never().unwrap()
        };
        apply(HealthLevel::Ok, vec![put(9), put(9), put(9)]).unwrap();
        let held = apply(
            HealthLevel::HoldMessages,
            vec![put(9), settle(1), settle(1), put(1)],
        );
        let expected = [
            OperationResult::NoRoom,
            OperationResult::Done,
            OperationResult::Gone,
            OperationResult::QueueFull,
        ];
        assert_eq!(held.unwrap(), expected);
        let refused = apply(HealthLevel::HoldAll, vec![settle(2)]);
        assert!(matches!(refused, Err(StoreError::Full)));
        let refused = apply(HealthLevel::ReadOnly, vec![settle(2)]);
        assert!(matches!(refused, Err(StoreError::ReadOnly { .. })));
        assert_eq!(depth(&queues), 2);
        apply(HealthLevel::Ok, vec![put(9)]).unwrap();
        assert_eq!(depth(&queues), 3);
    }

    #[test]
    fn a_mark_that_met_no_room_is_not_spent() {
        let health = Arc::new(watch::Sender::new(Health::OK));
        let queues = MemoryQueues::sharing(Arc::clone(&health));
        let marked = || Operation::Enqueue {
            queue: name(),
            message: Bytes::new(),
            expires: Timestamp::UNIX_EPOCH,
            depth_max: 9,
            once: Some(1),
        };
        let check = |level, expected: OperationResult| {
            health.send_replace(Health {
                level,
                reason: None,
            });
            let results = queues.apply(vec![marked()]).now_or_never().unwrap();
            assert_eq!(results.unwrap(), [expected], "{level:?}");
        };
        check(HealthLevel::HoldMessages, OperationResult::NoRoom);
        check(HealthLevel::Ok, OperationResult::Enqueued { sequence: 1 });
        check(HealthLevel::HoldMessages, OperationResult::DoneBefore);
    }

    #[test]
    fn large_queues_are_dropped_in_parts() {
        let queues = MemoryQueues::default();
        let all = DROPPED_AT_ONCE_MAX as u64 + 1;
        let batch = (0..all).map(|_| put(all)).collect();
        queues.apply(batch).now_or_never().unwrap().unwrap();
        let dropped = Operation::Drop { queue: name() };
        let results = queues.apply(vec![dropped.clone(), dropped]).now_or_never();
        let expected = [(all - 1, true), (1, false)]
            .map(|(messages, more)| OperationResult::Dropped { messages, more });
        assert_eq!(results.unwrap().unwrap(), expected);
    }

    #[test]
    fn queues_that_are_empty_and_bear_no_mark_are_forgotten() {
        let queues = MemoryQueues::default();
        let batch = vec![put(9), settle(1), Operation::Drop { queue: name() }];
        queues.apply(batch).now_or_never().unwrap().unwrap();
        assert!(queues.lock().queues.is_empty());
        assert!(queues.lock().due.is_empty());
    }
}
