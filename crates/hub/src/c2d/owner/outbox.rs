//! What goes out from an owner: operations for the store, deliveries and answers.
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fieldpost_model::Timestamp;
use fieldpost_model::limits::C2D_MESSAGE_BYTES_MAX;
use fieldpost_store::StoreError;
use fieldpost_store::queues::{ListQueue, Operation, OperationResult, QueueName, QueuePage};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;

use super::super::Shared;
use super::super::budget::Charge;
use super::super::lanes::FEEDBACK;
use super::super::names::Named;
use super::super::outcome;
use super::super::queue::{
    Effect, Queue, READ_AHEAD, READ_AHEAD_BYTES, ReceiverId, RequestId, Settled, Waiter,
};
use super::super::receiver::{Delivery, Inbox, LockToken, SettleError};
use super::super::sender::Owed;
use crate::clock::Chance;
use crate::settings::{CloudToDeviceSettings, HubSettings};

/// Operations in one batch, and bytes of their messages.
const BATCH_OPERATIONS_MAX: usize = 1024;
const BATCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Queues that are read at the same time; with their bytes, what a storm of connections may take.
const LOADS_MAX: usize = 64;

/// A queue with those who wait for something of it.
pub(super) struct Owned {
    pub(super) named: Arc<Named>,
    pub(super) queue: Queue,
    /// For the messages of `queue` that are in memory.
    pub(super) charge: Charge,
    /// Its place among those that wait for room for more of them; 0 for none.
    pub(super) starved: u64,
    pub(super) inboxes: Vec<(ReceiverId, Arc<Inbox>)>,
    /// Who waits to hear that there is nothing more, and the number of the question.
    pub(super) asking: Vec<(ReceiverId, u64)>,
    pub(super) requests: BTreeMap<RequestId, oneshot::Sender<Result<Option<Delivery>, StoreError>>>,
    /// Requests that wait for a settlement.
    pub(super) settlements: BTreeMap<RequestId, oneshot::Sender<Result<(), SettleError>>>,
    pub(super) is_touched: bool,
    /// The number of its last rest, 0 when that is not remembered.
    pub(super) rest: u64,
}

pub(super) struct Loaded {
    pub(super) queue: Arc<Named>,
    pub(super) after: u64,
    pub(super) page: Result<QueuePage, StoreError>,
    /// For the page, until its messages are charged by their queue.
    pub(super) reserved: Charge,
}

/// What an operation was for.
pub(super) enum Pending {
    Enqueue {
        queue: Arc<Named>,
        message: Bytes,
        enqueued: Timestamp,
        expires: Timestamp,
        depth_max: u64,
        owed: Owed,
    },
    EnqueueOwn {
        queue: Arc<Named>,
        message: Bytes,
        expires: Timestamp,
        depth_max: u64,
        once: Option<u64>,
        reply: oneshot::Sender<Result<OperationResult, StoreError>>,
    },
    Settle {
        queue: Arc<Named>,
        settled: Settled,
        is_feedback_owed: bool,
        removal: Option<u64>,
    },
    Count {
        queue: Arc<Named>,
        sequence: u64,
        count: u32,
        waiter: Waiter,
    },
}

impl Pending {
    /// The operation, once more.
    pub(super) fn operation(&self, shared: &Shared, settings: &HubSettings) -> Operation {
        match self {
            Self::Enqueue {
                queue,
                message,
                expires,
                depth_max,
                ..
            } => Operation::Enqueue {
                queue: queue.name.clone(),
                message: message.clone(),
                expires: *expires,
                depth_max: *depth_max,
                once: None,
            },
            Self::EnqueueOwn {
                queue,
                message,
                expires,
                depth_max,
                once,
                ..
            } => Operation::Enqueue {
                queue: queue.name.clone(),
                message: message.clone(),
                expires: *expires,
                depth_max: *depth_max,
                once: *once,
            },
            Self::Settle { queue, settled, .. } => {
                settle(queue, settled, shared, &settings.cloud_to_device).0
            }
            Self::Count {
                queue,
                sequence,
                count,
                ..
            } => Operation::SetDeliveryCount {
                queue: queue.name.clone(),
                sequence: *sequence,
                count: *count,
            },
        }
    }

    /// Bytes of messages that are kept until it is answered.
    fn bytes(&self) -> usize {
        match self {
            Self::Enqueue { message, .. } | Self::EnqueueOwn { message, .. } => message.len(),
            Self::Settle { settled, .. } => settled.message.len(),
            Self::Count { .. } => 0,
        }
    }
}

/// A [`Command::Remove`] that is under way.
pub(super) struct Removal {
    pub(super) left: usize,
    pub(super) gone: u64,
    pub(super) error: Option<StoreError>,
    pub(super) reply: oneshot::Sender<Result<u64, StoreError>>,
}

/// What goes out with the next batch, and later.
pub(super) struct Outbox {
    pub(super) operations: Vec<Operation>,
    pub(super) pending: Vec<Pending>,
    pub(super) bytes: usize,
    pub(super) touched: Vec<QueueName>,
    /// Queues that are to be read, one entry each at most.
    pub(super) waiting_loads: VecDeque<(Arc<Named>, u64)>,
    pub(super) timers: BTreeMap<(Duration, TimerKey), Timed>,
    pub(super) removals: HashMap<u64, Removal>,
    pub(super) tokens: Tokens,
    pub(super) last_number: u64,
    /// Deliveries to requests whose callers have gone away.
    pub(super) unseen: Vec<(Arc<Named>, u64, LockToken)>,
}

/// Tells apart what happens at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TimerKey {
    Lock([u8; 16]),
    Retry(u64),
}

/// What happens at a moment.
pub(super) enum Timed {
    LockEnds {
        queue: Arc<Named>,
        sequence: u64,
        lock: LockToken,
    },
    Retry {
        queue: Arc<Named>,
    },
}

impl Owned {
    /// A queue of which nothing is known yet, and for which nobody waits.
    pub(super) fn new(named: &Arc<Named>, charge: Charge) -> Self {
        Self {
            named: Arc::clone(named),
            queue: Queue::new(),
            charge,
            starved: 0,
            inboxes: Vec::new(),
            asking: Vec::new(),
            requests: BTreeMap::new(),
            settlements: BTreeMap::new(),
            is_touched: false,
            rest: 0,
        }
    }

    /// Charges what is in memory now.
    pub(super) fn settle_charge(&mut self) {
        self.charge.set(self.queue.bytes());
    }

    pub(super) fn inbox(&self, id: ReceiverId) -> Option<&Arc<Inbox>> {
        let mut inboxes = self.inboxes.iter();
        inboxes
            .find(|(known, _)| *known == id)
            .map(|(_, inbox)| inbox)
    }

    /// Tells requests that go unanswered why.
    pub(super) fn refuse(
        &mut self,
        error: &StoreError,
        take: impl FnOnce(&mut Queue) -> Vec<RequestId>,
    ) {
        for request in take(&mut self.queue) {
            if let Some(reply) = self.requests.remove(&request) {
                // Whoever asked may have gone away.
                let _ = reply.send(Err(error.clone()));
            }
        }
    }

    /// Tells those who asked, if they have been offered everything there is, or nothing is offered
    /// at present.
    pub(super) fn tell_ends(&mut self, is_held: bool) {
        let Self {
            asking,
            inboxes,
            queue,
            ..
        } = self;
        asking.retain(|(id, number)| {
            let is_exhausted = is_held || queue.is_exhausted(*id);
            if is_exhausted && let Some((_, inbox)) = inboxes.iter().find(|(known, _)| known == id)
            {
                inbox.end(*number);
            }
            !is_exhausted
        });
    }

    pub(super) fn tell(&mut self, waiter: Waiter, sequence: u64, told: Result<(), SettleError>) {
        match waiter {
            Waiter::Nobody => {}
            Waiter::Receiver(id) => {
                if let Some(inbox) = self.inbox(id) {
                    inbox.tell(sequence, told);
                }
            }
            Waiter::Request(id) => {
                if let Some(reply) = self.settlements.remove(&id) {
                    // Whoever asked may have gone away.
                    let _ = reply.send(told);
                }
            }
        }
    }

    fn deliver(&self, run: Option<(ReceiverId, Vec<Delivery>)>) {
        if let Some((id, deliveries)) = run
            && let Some(inbox) = self.inbox(id)
        {
            inbox.deliver(deliveries);
        }
    }
}

impl Outbox {
    pub(super) fn new(chance: Arc<dyn Chance>) -> Self {
        Self {
            operations: Vec::new(),
            pending: Vec::new(),
            bytes: 0,
            touched: Vec::new(),
            waiting_loads: VecDeque::new(),
            timers: BTreeMap::new(),
            removals: HashMap::new(),
            tokens: Tokens::new(chance),
            last_number: 0,
            unseen: Vec::new(),
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.operations.len() >= BATCH_OPERATIONS_MAX || self.bytes >= BATCH_BYTES_MAX
    }

    pub(super) fn push(&mut self, operation: Operation, pending: Pending) {
        self.bytes += pending.bytes();
        self.operations.push(operation);
        self.pending.push(pending);
    }

    pub(super) fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Asks the store for a queue again, from this moment on.
    pub(super) fn retry_at(&mut self, at: Duration, queue: Arc<Named>) {
        let key = TimerKey::Retry(self.next_number());
        self.timers.insert((at, key), Timed::Retry { queue });
    }

    pub(super) fn carry_out(
        &mut self,
        owned: &mut Owned,
        effects: &mut Vec<Effect>,
        shared: &Shared,
        loads: &FuturesUnordered<BoxFuture<'static, Loaded>>,
        settings: &HubSettings,
    ) {
        // Deliveries to one receiver go out together: one wake-up.
        let mut run: Option<(ReceiverId, Vec<Delivery>)> = None;
        for effect in effects.drain(..) {
            if let Effect::Deliver { to, delivery } = effect {
                match &mut run {
                    Some((id, deliveries)) if *id == to => deliveries.push(delivery),
                    _ => {
                        owned.deliver(run.take());
                        run = Some((to, vec![delivery]));
                    }
                }
                continue;
            }
            self.carry_out_one(owned, effect, shared, loads, settings);
        }
        owned.deliver(run);
    }

    fn carry_out_one(
        &mut self,
        owned: &mut Owned,
        effect: Effect,
        shared: &Shared,
        loads: &FuturesUnordered<BoxFuture<'static, Loaded>>,
        settings: &HubSettings,
    ) {
        let named = Arc::clone(&owned.named);
        match effect {
            Effect::Deliver { to, delivery } => owned.deliver(Some((to, vec![delivery]))),
            Effect::Answer { request, delivery } => {
                let Some(reply) = owned.requests.remove(&request) else {
                    return;
                };
                if let Err(Ok(Some(unseen))) = reply.send(Ok(delivery)) {
                    self.unseen.push((named, unseen.sequence, unseen.lock));
                }
            }
            Effect::Lock {
                ends,
                sequence,
                lock,
            } => {
                let timed = Timed::LockEnds {
                    queue: named,
                    sequence,
                    lock,
                };
                self.timers.insert((ends, TimerKey::Lock(lock.0)), timed);
            }
            Effect::Unlock { ends, lock } => {
                self.timers.remove(&(ends, TimerKey::Lock(lock.0)));
            }
            Effect::Settle(settled) => {
                let (operation, is_feedback_owed) =
                    settle(&named, &settled, shared, &settings.cloud_to_device);
                self.push(
                    operation,
                    Pending::Settle {
                        queue: named,
                        settled,
                        is_feedback_owed,
                        removal: None,
                    },
                );
            }
            Effect::Count {
                sequence,
                count,
                waiter,
            } => {
                let operation = Operation::SetDeliveryCount {
                    queue: named.name.clone(),
                    sequence,
                    count,
                };
                let pending = Pending::Count {
                    queue: named,
                    sequence,
                    count,
                    waiter,
                };
                self.push(operation, pending);
            }
            Effect::Lost { waiter, sequence } => {
                owned.tell(waiter, sequence, Err(SettleError::LockLost));
            }
            Effect::Load { after } => {
                self.waiting_loads.push_back((named, after));
                self.start_loads(shared, loads);
            }
        }
    }

    /// Begins reads of queues, as many as may be under way.
    pub(super) fn start_loads(
        &mut self,
        shared: &Shared,
        loads: &FuturesUnordered<BoxFuture<'static, Loaded>>,
    ) {
        while loads.len() < LOADS_MAX
            && let Some((queue, after)) = self.waiting_loads.pop_front()
        {
            let (limit, bytes_max) = if shared.held.has_room() {
                (READ_AHEAD, READ_AHEAD_BYTES)
            } else {
                (1, C2D_MESSAGE_BYTES_MAX)
            };
            let reserved = Charge::new(&shared.held, bytes_max);
            let page = shared.queues.list(ListQueue {
                queue: queue.name.clone(),
                after,
                limit,
                bytes_max,
            });
            let load = page.map(move |page| Loaded {
                queue,
                after,
                page,
                reserved,
            });
            loads.push(load.boxed());
        }
    }

    pub(super) fn removed(&mut self, number: u64, is_done: bool, error: Option<StoreError>) {
        let Some(removal) = self.removals.get_mut(&number) else {
            return;
        };
        removal.left = removal.left.saturating_sub(1);
        removal.gone += u64::from(is_done);
        if removal.error.is_none() {
            removal.error = error;
        }
        if removal.left == 0
            && let Some(removal) = self.removals.remove(&number)
        {
            // Whoever asked may have gone away.
            let _ = removal.reply.send(match removal.error {
                None => Ok(removal.gone),
                Some(error) => Err(error),
            });
        }
    }
}

/// The operation that takes a message out, and whether it leaves a record for feedback.
fn settle(
    named: &Named,
    settled: &Settled,
    shared: &Shared,
    settings: &CloudToDeviceSettings,
) -> (Operation, bool) {
    let outcomes = outcome::records(
        settings,
        &named.key,
        settled.cause,
        shared.now().stamp,
        &settled.message,
        &settled.attempts,
        settled.delivery_count,
    );
    let is_feedback_owed = outcomes.iter().any(|(lane, _)| *lane == FEEDBACK);
    let operation = Operation::Settle {
        queue: named.name.clone(),
        sequence: settled.sequence,
        outcomes,
    };
    (operation, is_feedback_owed)
}

/// Lock tokens, from chance that is asked for many at a time.
pub(super) struct Tokens {
    chance: Arc<dyn Chance>,
    pool: Vec<[u8; 16]>,
}

const TOKENS_AT_ONCE: usize = 64;

impl Tokens {
    fn new(chance: Arc<dyn Chance>) -> Self {
        Self {
            chance,
            pool: Vec::new(),
        }
    }

    pub(super) fn next(&mut self) -> LockToken {
        if self.pool.is_empty() {
            let mut bytes = [0; 16 * TOKENS_AT_ONCE];
            self.chance.fill(&mut bytes);
            let (tokens, _) = bytes.as_chunks::<16>();
            self.pool.extend_from_slice(tokens);
        }
        LockToken::of_random(self.pool.pop().unwrap_or_default())
    }
}
