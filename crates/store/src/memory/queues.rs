//! Device queues in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fieldpost_model::Timestamp;
use futures_util::FutureExt;
use futures_util::future::ready;
use tokio::sync::watch;

use super::SharedHealth;
use super::switches::Switches;
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
    switches: Switches,
    panics: bool,
    damaged_messages: BTreeSet<u64>,
    damaged_outcomes: BTreeSet<(Lane, OutcomeNumber)>,
    no_depths: bool,
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
        Self::sharing(SharedHealth::default())
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
        self.lock().switches.fail_next = true;
    }

    /// Makes a message unreadable, as a damaged row is: reading its queue stops in front of it, and
    /// a batch that settles or counts it is refused as a whole.
    pub fn damage_message(&self, sequence: u64) {
        self.lock().damaged_messages.insert(sequence);
    }

    /// Makes an outcome record unreadable: reading its lane stops in front of it, and a batch that
    /// removes it is refused as a whole. Forgetting it works.
    pub fn damage_outcome(&self, lane: Lane, number: OutcomeNumber) {
        self.lock().damaged_outcomes.insert((lane, number));
    }

    /// Makes [`DeviceQueues::depths`] fail from now on, as a failed read does.
    pub fn fail_depths(&self) {
        self.lock().no_depths = true;
    }

    /// Makes the next read of a queue panic, as a defect of whoever reads would.
    pub fn panic_next(&self) {
        self.lock().panics = true;
    }

    /// Keeps the answers of [`DeviceQueues::apply`] back, or lets all that were kept back go, in
    /// order. Operations are carried out and can be seen meanwhile.
    pub fn withhold(&self, withhold: bool) {
        let withheld = self.lock().switches.withhold(withhold);
        withheld.release();
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
        let in_bounds = check_bounds(&operations);
        if let Err(refused) = state.switches.admit(&self.health, in_bounds) {
            return ready(Err(refused)).boxed();
        }
        if let Some(damage) = operations.iter().find_map(|o| state.damage_met(o)) {
            return ready(Err(damage)).boxed();
        }
        let room = self.health.facets.borrow().level < HealthLevel::HoldMessages;
        let results = operations
            .into_iter()
            .map(|operation| state.carry_out(operation, room))
            .collect();
        state.switches.answer(results)
    }

    fn list(&self, request: ListQueue) -> Answer<Result<QueuePage, StoreError>> {
        let mut state = self.lock();
        assert!(!std::mem::take(&mut state.panics), "an injected defect");
        let messages = state
            .queues
            .get(&request.queue)
            .into_iter()
            .flat_map(|queue| queue.messages.range(beyond(request.after)))
            .map(|(_, message)| message);
        let damaged = |message: &&QueuedMessage| state.damaged_messages.contains(&message.sequence);
        let mut damage = None;
        let sound = messages.take_while(|message| {
            damage = damaged(message).then_some(message.sequence);
            damage.is_none()
        });
        let (messages, more) = page(sound, request.limit, request.bytes_max, |message| {
            message.message.len()
        });
        let messages: Vec<_> = messages.into_iter().cloned().collect();
        let answer = match damage {
            Some(sequence) if messages.is_empty() => Err(damaged_message(sequence)),
            Some(_) => Ok(QueuePage {
                messages,
                more: true,
            }),
            None => Ok(QueuePage { messages, more }),
        };
        ready(answer).boxed()
    }

    fn depths(&self, queues: Vec<QueueName>) -> Answer<Result<Vec<u64>, StoreError>> {
        let state = self.lock();
        if state.no_depths {
            let reason = "a read that a test made fail".into();
            return ready(Err(StoreError::Read { reason })).boxed();
        }
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
        let mut damage = None;
        let sound = records.take_while(|outcome| {
            let place = (request.lane, outcome.number);
            damage = state.damaged_outcomes.contains(&place).then_some(place);
            damage.is_none()
        });
        let (records, _) = page(sound, request.limit, request.bytes_max, |outcome| {
            outcome.record.len()
        });
        let records: Vec<_> = records.into_iter().cloned().collect();
        let answer = match damage {
            Some(place) if records.is_empty() => Err(damaged_outcome(place)),
            _ => Ok(records),
        };
        ready(answer).boxed()
    }

    fn lane(&self, lane: Lane) -> LaneFigures {
        self.lock()
            .lanes
            .get(&lane)
            .map(Records::figures)
            .unwrap_or_default()
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.facets.subscribe()
    }

    fn close(&self) -> Answer<()> {
        self.lock().switches.closed = true;
        self.withhold(false);
        ready(()).boxed()
    }
}

impl State {
    /// The damage that an operation would have to read over.
    fn damage_met(&self, operation: &Operation) -> Option<StoreError> {
        match operation {
            Operation::Settle { sequence, .. } | Operation::SetDeliveryCount { sequence, .. } => {
                let is_damaged = self.damaged_messages.contains(sequence);
                is_damaged.then(|| damaged_message(*sequence))
            }
            Operation::Remove { lane, number } => {
                let place = (*lane, *number);
                let is_damaged = self.damaged_outcomes.contains(&place);
                is_damaged.then(|| damaged_outcome(place))
            }
            Operation::Enqueue { .. }
            | Operation::Drop { .. }
            | Operation::Record { .. }
            | Operation::Forget { .. } => None,
        }
    }

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

    /// What is damaged is passed over: it must not keep all others from expiring.
    fn due_after(
        &self,
        after: Option<DuePosition>,
    ) -> impl Iterator<Item = (&DuePosition, &QueueName)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let all = self.due.range((from, Bound::Unbounded));
        all.filter(|(position, _)| !self.damaged_messages.contains(&position.sequence))
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

fn damaged_message(sequence: u64) -> StoreError {
    StoreError::Damaged {
        what: format!("message {sequence}").into(),
        resume: Some(sequence + 1),
    }
}

fn damaged_outcome((lane, number): (Lane, OutcomeNumber)) -> StoreError {
    StoreError::Damaged {
        what: format!("record {number} of lane {}", lane.0).into(),
        resume: Some(number + 1),
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
    use std::sync::Arc;

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
    fn reading_stops_in_front_of_damage_and_goes_on_behind_it() {
        let queues = MemoryQueues::default();
        let batch = vec![put(9), put(9), put(9), settle(1), settle(2), settle(3)];
        let batch = batch.into_iter().chain([put(9), put(9), put(9)]).collect();
        queues.apply(batch).now_or_never().unwrap().unwrap();
        queues.damage_message(5);
        queues.damage_outcome(Lane(1), 2);
        let list = |after| {
            let request = ListQueue {
                queue: name(),
                after,
                limit: 9,
                bytes_max: 9999,
            };
            let page = queues.list(request).now_or_never().unwrap();
            page.map(|page| {
                let sequences = page.messages.iter().map(|message| message.sequence);
                (sequences.collect::<Vec<_>>(), page.more)
            })
        };
        assert_eq!(list(0).unwrap(), (vec![4], true));
        let resume = |error| match error {
            StoreError::Damaged { resume, .. } => resume,
            other => panic!("{other}"),
        };
        assert_eq!(resume(list(4).unwrap_err()), Some(6));
        assert_eq!(list(5).unwrap(), (vec![6], false));
        assert_eq!(depth(&queues), 3);
        let outcomes = |after| {
            let request = ListOutcomes {
                lane: Lane(1),
                after,
                limit: 9,
                bytes_max: 9999,
                queue: None,
            };
            let records = queues.outcomes(request).now_or_never().unwrap();
            records.map(|records| records.iter().map(|r| r.number).collect::<Vec<_>>())
        };
        assert_eq!(outcomes(0).unwrap(), [1]);
        assert_eq!(resume(outcomes(1).unwrap_err()), Some(3));
        assert_eq!(outcomes(2).unwrap(), [3]);
        // A batch that meets damage is refused with all that is in it.
        let refused = queues.apply(vec![settle(4), settle(5)]).now_or_never();
        assert_eq!(resume(refused.unwrap().unwrap_err()), Some(6));
        assert_eq!(depth(&queues), 3);
        let due = queues.due(ListDue {
            until: Timestamp::UNIX_EPOCH,
            after: None,
            limit: 9,
            bytes_max: 9999,
        });
        let due = due.now_or_never().unwrap().unwrap().messages;
        let due: Vec<_> = due.iter().map(|(_, message)| message.sequence).collect();
        assert_eq!(due, [4, 6]);
    }

    #[test]
    fn messages_are_held_at_the_first_mark_and_all_else_at_the_second() {
        let health = SharedHealth::default();
        let queues = MemoryQueues::sharing(Arc::clone(&health));
        let apply = |level, operations: Vec<Operation>| {
            health.set(Health {
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
        let health = SharedHealth::default();
        let queues = MemoryQueues::sharing(Arc::clone(&health));
        let marked = || Operation::Enqueue {
            queue: name(),
            message: Bytes::new(),
            expires: Timestamp::UNIX_EPOCH,
            depth_max: 9,
            once: Some(1),
        };
        let check = |level, expected: OperationResult| {
            health.set(Health {
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
