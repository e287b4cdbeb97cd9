//! The tasks that own queues.
//!
//! A few tasks share the queues by their devices' shards. Whatever concerns a queue is a command to
//! its owner. An owner takes all commands that wait, makes one batch for the store of what they come
//! to, and goes on while that becomes durable; answers are worked off in the order of the batches, so
//! that a message is offered in the order in which it was put in.

mod command;
mod hold;
mod outbox;
mod remembered;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use fieldpost_model::Timestamp;
use fieldpost_store::queues::{Operation, OperationResult, QueueName, QueuedMessage};
use fieldpost_store::{Answer, StoreError};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot};

use super::budget::Charge;
use super::names::{Named, QueueKey};
use super::outcome::{self, Cause};
use super::queue::{Effect, Queue, RequestId, Rules, Waiter};
use super::receiver::SettleError;
use super::{Accepted, SendRefused, Shared};
use crate::clock::Sleep;
use crate::settings::{CloudToDeviceSettings, DeliveryCountMode, HubSettings};

pub(super) use command::Command;
pub(super) use hold::DeliveriesHeld;
use hold::Hold;
use outbox::{Loaded, Outbox, Owned, Pending, Removal, Timed};
use remembered::Remembered;

/// Batches that may be on their way to the store. More would only be smaller.
const BATCHES_MAX: usize = 4;

/// Owns queues and works off what it is told.
pub(super) struct Owner {
    shared: Arc<Shared>,
    commands: mpsc::UnboundedReceiver<Command>,
    queues: Queues,
    out: Outbox,
    batches: VecDeque<Batch>,
    loads: FuturesUnordered<BoxFuture<'static, Loaded>>,
    remembered: Remembered,
    hold: Hold,
    /// Queues that wait for room in memory, in the order in which they began to.
    starved: BTreeMap<u64, QueueName>,
    sleep: Option<(Duration, Sleep)>,
    effects: Vec<Effect>,
    is_closing: bool,
}

/// Queues in memory. Every message looks here several times, and names are those of registered
/// devices, so that a hash with a seed is enough and a cryptographic one is not needed.
///
/// Boxed: a table has more places than it has queues, and every connected device may have a queue.
type Queues = HashMap<QueueName, Box<Owned>, foldhash::quality::RandomState>;

struct Batch {
    answer: Answer<Result<Vec<OperationResult>, StoreError>>,
    pending: Vec<Pending>,
}

impl Owner {
    pub(super) fn new(shared: Arc<Shared>, commands: mpsc::UnboundedReceiver<Command>) -> Self {
        let out = Outbox::new(Arc::clone(&shared.chance));
        let hold = Hold::new(shared.queues.health());
        Self {
            shared,
            commands,
            queues: Queues::default(),
            out,
            batches: VecDeque::new(),
            loads: FuturesUnordered::new(),
            remembered: Remembered::default(),
            hold,
            starved: BTreeMap::new(),
            sleep: None,
            effects: Vec::new(),
            is_closing: false,
        }
    }

    /// Works until it is told to close, or nobody is left who could tell it anything.
    pub(super) async fn run(mut self) {
        poll_fn(|cx| self.poll(cx)).await;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let mut progress = self.follow_store(cx);
            progress |= self.work_off_answers(cx);
            progress |= self.work_off_loads(cx);
            progress |= self.pass_time(cx);
            progress |= self.work_off_commands(cx);
            progress |= self.feed_starved(cx);
            progress |= self.dispatch();
            progress |= self.submit();
            if !progress {
                let is_done = self.is_closing && self.batches.is_empty();
                return if is_done {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                };
            }
        }
    }

    /// Begins to hold deliveries, or lets them go on, as the store takes completions.
    fn follow_store(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while self.hold.poll_change(cx).is_ready() {
            progress = true;
            let refusal = self.hold.refusal().cloned();
            self.shared.deliveries_held.tell(refusal.as_ref());
            let mut queues: Vec<_> = self.queues.values().map(|o| Arc::clone(&o.named)).collect();
            // In an order that a simulation can repeat.
            queues.sort_unstable_by(|one, other| one.name.cmp(&other.name));
            for queue in queues {
                // To be looked at: what waited may go on, and whoever asked for the end is told.
                let owned = self.owned(&queue);
                if let Some(refusal) = &refusal {
                    owned.refuse(refusal, Queue::take_requests);
                }
            }
        }
        progress
    }

    fn work_off_commands(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while !self.is_closing && !self.out.is_full() && self.batches.len() < BATCHES_MAX {
            match self.commands.poll_recv(cx) {
                Poll::Ready(Some(command)) => {
                    progress = true;
                    self.carry_out(command);
                }
                Poll::Ready(None) => {
                    progress = true;
                    self.is_closing = true;
                }
                Poll::Pending => break,
            }
        }
        progress
    }

    fn carry_out(&mut self, command: Command) {
        let now = self.shared.now();
        let settings = self.shared.settings.get();
        match command {
            Command::Enqueue {
                queue,
                message,
                enqueued,
                expires,
                owed,
            } => {
                let depth_max = settings.cloud_to_device.queue_depth_max;
                let operation = Operation::Enqueue {
                    queue: queue.name.clone(),
                    message: message.clone(),
                    expires,
                    depth_max,
                    once: None,
                };
                let pending = Pending::Enqueue {
                    queue,
                    message,
                    enqueued,
                    expires,
                    depth_max,
                    owed,
                };
                self.out.push(operation, pending);
            }
            Command::EnqueueOwn {
                queue,
                message,
                expires,
                depth_max,
                once,
                reply,
            } => {
                let operation = Operation::Enqueue {
                    queue: queue.name.clone(),
                    message: message.clone(),
                    expires,
                    depth_max,
                    once,
                };
                let pending = Pending::EnqueueOwn {
                    queue,
                    message,
                    expires,
                    depth_max,
                    once,
                    reply,
                };
                self.out.push(operation, pending);
            }
            Command::Attach {
                queue,
                id,
                epoch,
                is_timed,
                resume,
                inbox,
            } => {
                let owned = self.owned(&queue);
                inbox.expect(owned.queue.attach(id, epoch, is_timed, resume));
                // Hardly any queue ever has two.
                owned.inboxes.reserve_exact(1);
                owned.inboxes.push((id, inbox));
            }
            Command::Window { queue, id, window } => {
                self.with(&queue, &settings, |owned, effects| {
                    owned.queue.set_window(id, window);
                    if window > 0 {
                        return;
                    }
                    // Nobody may look there again, so that it would wait for its receiver to go.
                    let unseen = owned.inbox(id).map(|inbox| inbox.take_back());
                    for delivery in unseen.into_iter().flatten() {
                        let (sequence, lock) = (delivery.sequence, delivery.lock);
                        owned.queue.give_back(sequence, lock, now, effects);
                    }
                });
            }
            Command::AskEnd { queue, id, number } => {
                self.owned(&queue).asking.push((id, number));
            }
            Command::Detach {
                queue,
                id,
                in_flight,
            } => {
                let rules = rules(&queue.key, &settings.cloud_to_device);
                self.with(&queue, &settings, |owned, effects| {
                    owned.queue.detach(id, in_flight, now, &rules, effects);
                    owned.inboxes.retain(|(known, _)| *known != id);
                });
            }
            Command::Settle {
                queue,
                sequence,
                lock,
                settlement,
                tell,
            } => {
                let rules = rules(&queue.key, &settings.cloud_to_device);
                let waiter = tell.map_or(Waiter::Nobody, Waiter::Receiver);
                self.with(&queue, &settings, |owned, effects| {
                    owned
                        .queue
                        .settle((sequence, lock), settlement, waiter, now, &rules, effects);
                });
            }
            Command::GiveBack {
                queue,
                sequence,
                lock,
            } => {
                self.with(&queue, &settings, |owned, effects| {
                    owned.queue.give_back(sequence, lock, now, effects);
                });
            }
            Command::Receive { queue, lock, reply } => {
                if let Some(refusal) = self.hold.refusal() {
                    // Whoever asked may have gone away.
                    let _ = reply.send(Err(refusal.clone()));
                    return;
                }
                let id = RequestId(self.out.next_number());
                let rules = rules(&queue.key, &settings.cloud_to_device);
                let owned = self.owned(&queue);
                owned.requests.insert(id, reply);
                owned.queue.request(id, lock.unwrap_or(rules.lock));
            }
            Command::SettleRequested {
                queue,
                lock,
                settlement,
                reply,
            } => {
                let id = RequestId(self.out.next_number());
                let rules = rules(&queue.key, &settings.cloud_to_device);
                self.with(&queue, &settings, |owned, effects| {
                    let Some(sequence) = owned.queue.held_by_request(lock) else {
                        // Whoever asked may have gone away.
                        let _ = reply.send(Err(SettleError::LockLost));
                        return;
                    };
                    owned.settlements.insert(id, reply);
                    let waiter = Waiter::Request(id);
                    owned
                        .queue
                        .settle((sequence, lock), settlement, waiter, now, &rules, effects);
                });
            }
            Command::Remove {
                messages,
                cause,
                reply,
            } => self.remove(messages, cause, reply, &settings),
            Command::Look {
                queue,
                sequences,
                reply,
            } => {
                let known = self.queues.get(&queue.name);
                let live = |sequence: &u64| known.map(|owned| owned.queue.live(*sequence));
                let answer = sequences.iter().map(|s| live(s).unwrap_or_default());
                // Whoever asked may have gone away.
                let _ = reply.send(answer.collect());
            }
            Command::ForgetDetached { queue } => {
                if self.queues.contains_key(&queue.name) {
                    self.owned(&queue).queue.forget_detached();
                }
            }
            Command::Forget { queue } => {
                if self.queues.contains_key(&queue.name) {
                    self.with(&queue, &settings, |owned, effects| {
                        owned.queue.clear(effects);
                    });
                }
            }
            Command::Close => self.is_closing = true,
        }
    }

    fn remove(
        &mut self,
        messages: Vec<(Arc<Named>, QueuedMessage)>,
        cause: Cause,
        reply: oneshot::Sender<Result<u64, StoreError>>,
        settings: &HubSettings,
    ) {
        let number = self.out.next_number();
        let mut removal = Removal {
            left: 0,
            gone: 0,
            error: None,
            reply,
        };
        for (queue, message) in messages {
            self.with(&queue, settings, |owned, effects| {
                if owned.queue.remove(message, cause, effects) {
                    removal.left += 1;
                }
            });
            // Settlements of this command carry its number.
            if let Some(Pending::Settle { removal: mark, .. }) = self.out.pending.last_mut()
                && removal.left > 0
                && mark.is_none()
            {
                *mark = Some(number);
            }
        }
        if removal.left == 0 {
            // Whoever asked may have gone away.
            let _ = removal.reply.send(Ok(0));
        } else {
            self.out.removals.insert(number, removal);
        }
    }

    fn work_off_answers(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while let Some(batch) = self.batches.front_mut() {
            let Poll::Ready(answer) = batch.answer.poll_unpin(cx) else {
                break;
            };
            progress = true;
            let Some(batch) = self.batches.pop_front() else {
                break;
            };
            match answer {
                Ok(results) => {
                    for (pending, result) in batch.pending.into_iter().zip(results) {
                        self.answered(pending, Ok(result));
                    }
                }
                Err(StoreError::Damaged { .. }) if batch.pending.len() > 1 => {
                    self.submit_singly(batch.pending);
                }
                Err(error) => {
                    for pending in batch.pending {
                        self.answered(pending, Err(error.clone()));
                    }
                }
            }
        }
        progress
    }

    fn answered(&mut self, pending: Pending, result: Result<OperationResult, StoreError>) {
        match pending {
            Pending::Enqueue {
                queue,
                message,
                enqueued,
                expires,
                depth_max,
                mut owed,
            } => {
                let answer = match result {
                    Ok(OperationResult::Enqueued { sequence }) => {
                        self.arrived(&queue, sequence, message, expires);
                        Ok(Accepted {
                            sequence,
                            enqueued,
                            expires,
                        })
                    }
                    Ok(OperationResult::QueueFull) => {
                        Err(SendRefused::QueueFull { max: depth_max })
                    }
                    Ok(_) => Err(SendRefused::NoRoom),
                    Err(error) => Err(error.into()),
                };
                owed.answer(answer);
            }
            Pending::EnqueueOwn {
                queue,
                message,
                expires,
                reply,
                ..
            } => {
                if let Ok(OperationResult::Enqueued { sequence }) = result {
                    self.arrived(&queue, sequence, message, expires);
                }
                // Whoever asked may have gone away.
                let _ = reply.send(result);
            }
            Pending::Count {
                queue,
                sequence,
                waiter,
                ..
            } => {
                // A count that was not remembered is one too low after a restart, at worst. The
                // message may have gone since; it was given back all the same.
                let owned = self.owned(&queue);
                owned.queue.counted();
                owned.tell(waiter, sequence, result.map(|_| ()).map_err(Into::into));
            }
            Pending::Settle {
                queue,
                settled,
                is_feedback_owed,
                removal,
            } => {
                let (sequence, waiter) = (settled.sequence, settled.waiter);
                let is_gone = result.is_ok();
                let is_done = matches!(result, Ok(OperationResult::Done));
                if is_done {
                    outcome::count(&queue.key, settled.cause);
                    if is_feedback_owed {
                        self.shared.feedback.ring();
                    }
                }
                let told = match &result {
                    Ok(OperationResult::Done) => Ok(()),
                    // Somebody else settled it, or its device was deleted.
                    Ok(_) => Err(SettleError::LockLost),
                    Err(error) => Err(SettleError::Store(error.clone())),
                };
                let owned = self.owned(&queue);
                owned.queue.settled(sequence, is_gone);
                let pause = owned.queue.pause_span();
                owned.tell(waiter, sequence, told);
                if !is_gone {
                    // Its time may have come while it was held; the sweeper has passed it then. What is
                    // damaged would only be met again.
                    if !matches!(result, Err(StoreError::Damaged { .. })) {
                        self.shared.due.look_again();
                    }
                    let at = self.shared.timer.monotonic().saturating_add(pause);
                    self.out.retry_at(at, queue);
                }
                if let Some(number) = removal {
                    self.out.removed(number, is_done, result.err());
                }
            }
        }
    }

    /// A message is durable: it may be wanted at once, and its end must not be missed.
    fn arrived(&mut self, queue: &Arc<Named>, sequence: u64, message: Bytes, expires: Timestamp) {
        let now = self.shared.now();
        self.shared.due.note(expires);
        if expires > now.wall && !self.queues.contains_key(&queue.name) {
            return;
        }
        let settings = self.shared.settings.get();
        let has_room = self.shared.held.has_room();
        self.with(queue, &settings, |owned, effects| {
            owned
                .queue
                .enqueued(sequence, message, expires, now, has_room, effects);
        });
    }

    fn work_off_loads(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while let Poll::Ready(Some(loaded)) = self.loads.poll_next_unpin(cx) {
            progress = true;
            let Loaded {
                queue,
                after,
                page,
                reserved,
            } = loaded;
            self.out.start_loads(&self.shared, &self.loads);
            let error = match page {
                Ok(page) => {
                    let owned = self.owned(&queue);
                    let through = page.messages.last().map_or(after, |last| last.sequence);
                    owned.queue.loaded(after, page.messages, through, page.more);
                    owned.settle_charge();
                    drop(reserved);
                    continue;
                }
                Err(error) => error,
            };
            match self.shared.behind_damaged_message(&queue.key, after, error) {
                Ok(through) => {
                    let owned = self.owned(&queue);
                    owned.queue.loaded(after, Vec::new(), through, true);
                }
                Err(error) => {
                    self.shared.tell_unreadable(&queue.key, &error);
                    let owned = self.owned(&queue);
                    owned.refuse(&error, Queue::load_failed);
                    let pause = owned.queue.pause_span();
                    let at = self.shared.timer.monotonic().saturating_add(pause);
                    self.out.retry_at(at, queue);
                }
            }
        }
        progress
    }

    /// Ends the locks whose time is over.
    fn pass_time(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while let Some(first) = self.out.timers.first_entry() {
            let (at, _) = *first.key();
            let now = self.shared.now();
            if at > now.monotonic {
                let is_set = self.sleep.as_ref().is_some_and(|(set, _)| *set == at);
                if !is_set {
                    self.sleep = Some((at, self.shared.timer.sleep_until(at)));
                }
                let is_time = self
                    .sleep
                    .as_mut()
                    .is_some_and(|(_, sleep)| sleep.poll_unpin(cx).is_ready());
                if is_time {
                    self.sleep = None;
                    continue;
                }
                break;
            }
            progress = true;
            let timed = first.remove();
            let settings = self.shared.settings.get();
            match timed {
                Timed::LockEnds {
                    queue,
                    sequence,
                    lock,
                } => {
                    let rules = rules(&queue.key, &settings.cloud_to_device);
                    if self.queues.contains_key(&queue.name) {
                        self.with(&queue, &settings, |owned, effects| {
                            owned.queue.lock_ended(sequence, lock, now, &rules, effects);
                        });
                    }
                }
                Timed::Retry { queue } => self.owned(&queue).queue.retry(),
            }
        }
        progress
    }

    /// Lets queues deliver in which something has happened, and puts those to rest that need not
    /// be in memory.
    fn dispatch(&mut self) -> bool {
        if self.out.touched.is_empty() {
            return false;
        }
        let now = self.shared.now();
        let settings = self.shared.settings.get();
        for name in std::mem::take(&mut self.out.touched) {
            let Some(owned) = self.queues.get_mut(&name) else {
                continue;
            };
            owned.is_touched = false;
            let rules = rules(&owned.named.key, &settings.cloud_to_device);
            let has_room = self.shared.held.has_room();
            let tokens = &mut self.out.tokens;
            let mut effects = std::mem::take(&mut self.effects);
            let is_held = self.hold.refusal().is_some();
            if !is_held {
                owned
                    .queue
                    .dispatch(now, &rules, has_room, &mut || tokens.next(), &mut effects);
            }
            self.out
                .carry_out(owned, &mut effects, &self.shared, &self.loads, &settings);
            self.effects = effects;
            owned.tell_ends(is_held);
            // While nothing is delivered, room is of no use to it. When that ends, every queue is
            // looked at anew.
            let is_starved = !is_held && owned.queue.is_starved();
            if is_starved != (owned.starved != 0) {
                if owned.starved == 0 {
                    owned.starved = self.out.next_number();
                    self.starved.insert(owned.starved, name.clone());
                } else {
                    self.starved.remove(&std::mem::take(&mut owned.starved));
                }
            }
            let is_at_rest = owned.queue.rest();
            owned.settle_charge();
            if is_at_rest {
                self.remembered.forget(owned.rest);
                if owned.queue.is_empty() {
                    self.queues.remove(&name);
                } else {
                    owned.rest = self.remembered.note(name);
                    self.forget_oldest();
                }
            }
        }
        // What a request did not live to see, somebody else may want.
        for (queue, sequence, lock) in std::mem::take(&mut self.out.unseen) {
            self.with(&queue, &settings, |owned, effects| {
                owned.queue.give_back(sequence, lock, now, effects);
            });
        }
        true
    }

    /// Lets the queue go on that has waited for room for the longest, if there is room.
    fn feed_starved(&mut self, cx: &Context<'_>) -> bool {
        if self.starved.is_empty() || self.shared.held.poll_room(cx).is_pending() {
            return false;
        }
        if let Some((_, name)) = self.starved.pop_first()
            && let Some(owned) = self.queues.get_mut(&name)
        {
            owned.starved = 0;
            if !std::mem::replace(&mut owned.is_touched, true) {
                self.out.touched.push(name);
            }
        }
        true
    }

    fn forget_oldest(&mut self) {
        if let Some(name) = self.remembered.take_surplus()
            && let Some(owned) = self.queues.get_mut(&name)
        {
            owned.rest = 0;
            // One that has been wanted since stays as long as it is.
            if owned.queue.rest() {
                self.queues.remove(&name);
            }
        }
    }

    fn submit(&mut self) -> bool {
        if self.out.operations.is_empty() || self.batches.len() >= BATCHES_MAX {
            return false;
        }
        self.out.bytes = 0;
        let operations = std::mem::take(&mut self.out.operations);
        self.batches.push_back(Batch {
            answer: self.shared.queues.apply(operations),
            pending: std::mem::take(&mut self.out.pending),
        });
        true
    }

    /// Submits each operation of a refused batch alone: what is damaged in one queue is no reason to
    /// refuse the others'. A message may be overtaken by later ones of its sender then.
    fn submit_singly(&mut self, pending: Vec<Pending>) {
        let settings = self.shared.settings.get();
        for pending in pending {
            let operation = pending.operation(&self.shared, &settings);
            self.batches.push_back(Batch {
                answer: self.shared.queues.apply(vec![operation]),
                pending: vec![pending],
            });
        }
    }

    /// The queue, which is to be looked at before this round ends.
    fn owned(&mut self, named: &Arc<Named>) -> &mut Owned {
        look_up(&mut self.queues, &mut self.out, &self.shared, named)
    }

    /// Does something with a queue and carries out what it comes to.
    fn with(
        &mut self,
        named: &Arc<Named>,
        settings: &HubSettings,
        work: impl FnOnce(&mut Owned, &mut Vec<Effect>),
    ) {
        let owned = look_up(&mut self.queues, &mut self.out, &self.shared, named);
        work(owned, &mut self.effects);
        owned.settle_charge();
        self.out.carry_out(
            owned,
            &mut self.effects,
            &self.shared,
            &self.loads,
            settings,
        );
    }
}

/// The queue, which is to be looked at before this round ends. Apart from the owner, so that its
/// other parts can be used beside the queue.
fn look_up<'a>(
    queues: &'a mut Queues,
    out: &mut Outbox,
    shared: &Arc<Shared>,
    named: &Arc<Named>,
) -> &'a mut Owned {
    let owned = queues
        .entry(named.name.clone())
        .or_insert_with(|| Box::new(Owned::new(named, Charge::new(&shared.held, 0))));
    if !std::mem::replace(&mut owned.is_touched, true) {
        out.touched.push(named.name.clone());
    }
    owned
}

/// What the settings say of a queue.
fn rules(key: &QueueKey, settings: &CloudToDeviceSettings) -> Rules {
    let (lock, max_delivery_count) = match key {
        QueueKey::Device { .. } => (
            fieldpost_model::limits::C2D_LOCK,
            settings.max_delivery_count,
        ),
        QueueKey::Feedback => (settings.feedback.lock, settings.feedback.max_delivery_count),
    };
    Rules {
        lock,
        max_delivery_count,
        counts_every_lock: settings.delivery_count_mode == DeliveryCountMode::EveryLock,
    }
}

#[cfg(test)]
mod tests;
