//! The rules of one queue: plain data, without tasks, clocks or the store.
//!
//! Messages are in the store; here are those that may soon be delivered, and who holds which. Every
//! method says what is to be done by [`Effect`]s. A message that leaves the queue leaves it here at
//! once, and comes back by being read again when the store did not carry that out.

mod effect;
mod entries;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use fieldpost_model::Timestamp;
use fieldpost_store::queues::QueuedMessage;

use super::outcome::{Attempt, AttemptEnd, AttemptReceiver, Attempts, Cause};
use super::receiver::{Delivery, LockToken, Settlement};

use entries::{Entries, Held, Holder};

pub(super) use effect::{Effect, Live, Now, ReceiverId, RequestId, Rules, Settled, Waiter};

/// Messages of a queue that are read ahead of their delivery, and bytes of them.
pub(super) const READ_AHEAD: usize = 64;
pub(super) const READ_AHEAD_BYTES: usize = 256 * 1024;

/// How long a queue waits before it reads again from a store that has failed: at first, and at last.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// With fewer ready messages than this, more are read.
const LOW: usize = 16;

/// One queue.
#[derive(Debug)]
pub(super) struct Queue {
    entries: Entries,
    /// On their way out of the store.
    settling: BTreeSet<u64>,
    /// Deliveries that have ended, of messages that are still there.
    past: BTreeMap<u64, Attempts>,
    receivers: Vec<Attached>,
    /// Whose turn it is among the receivers.
    turn: usize,
    requests: VecDeque<Request>,
    /// What a session of MQTT had in flight when its connection ended, oldest first.
    detached: Vec<(u64, u16)>,
    /// Everything in the store up to this number is here, or on its way out.
    read_through: u64,
    /// The store may have messages after `read_through`.
    has_more: bool,
    is_loading: bool,
    /// Something was put in that the read in progress may have missed.
    missed: bool,
    /// What went from the store during the read in progress, which may show it all the same.
    gone: BTreeSet<u64>,
    /// Somebody wants more than there is room for in memory; it goes on when there is some.
    is_starved: bool,
    /// The store failed; it is not read before [`Queue::retry`].
    is_paused: bool,
    /// Pauses in a row.
    failures: u32,
    /// What the read in progress brings is of a device that is gone.
    is_void: bool,
    /// Counts on their way to the store.
    counting: u32,
}

#[derive(Debug)]
struct Attached {
    id: ReceiverId,
    epoch: u64,
    is_timed: bool,
    window: usize,
    holds: usize,
    /// What comes first, under the tags that it had.
    again: VecDeque<(u64, u16)>,
}

#[derive(Debug)]
struct Request {
    id: RequestId,
    lock: Duration,
}

impl Queue {
    /// A queue of which nothing is known yet.
    pub(super) fn new() -> Self {
        Self {
            entries: Entries::default(),
            settling: BTreeSet::new(),
            past: BTreeMap::new(),
            receivers: Vec::new(),
            turn: 0,
            requests: VecDeque::new(),
            detached: Vec::new(),
            read_through: 0,
            has_more: true,
            is_loading: false,
            missed: false,
            gone: BTreeSet::new(),
            is_starved: false,
            is_paused: false,
            failures: 0,
            is_void: false,
            counting: 0,
        }
    }

    /// Adds a receiver, which may hold nothing yet. With `resume`, what was in flight when the last
    /// session was cut off comes first; otherwise that is forgotten.
    /// Returns the tags that may come again.
    pub(super) fn attach(
        &mut self,
        id: ReceiverId,
        epoch: u64,
        is_timed: bool,
        resume: bool,
    ) -> Vec<u16> {
        let detached = std::mem::take(&mut self.detached);
        let again: VecDeque<_> = if resume {
            detached.into()
        } else {
            VecDeque::new()
        };
        let tags = again.iter().map(|(_, tag)| *tag).collect();
        // Hardly any queue ever has two, and every device that is there has one.
        self.receivers.reserve_exact(1);
        self.receivers.push(Attached {
            id,
            epoch,
            is_timed,
            window: 0,
            holds: 0,
            again,
        });
        tags
    }

    /// Forgets what was in flight when the last session was cut off.
    pub(super) fn forget_detached(&mut self) {
        self.detached.clear();
    }

    /// Removes a receiver. What it held is free again and does not count.
    pub(super) fn detach(
        &mut self,
        id: ReceiverId,
        in_flight: Vec<(u64, u16)>,
        now: Now,
        rules: &Rules,
        out: &mut Vec<Effect>,
    ) {
        let by = Holder::Receiver(id);
        let held = self.entries.held_by(|held| held.by == by);
        for sequence in held.collect::<Vec<_>>() {
            self.release(
                sequence,
                AttemptEnd::Disconnected,
                now,
                rules,
                Waiter::Nobody,
                out,
            );
        }
        let Some(place) = self.receivers.iter().position(|r| r.id == id) else {
            return;
        };
        let gone = self.receivers.remove(place);
        // What was to come again and did not is still in flight.
        self.detached = in_flight;
        self.detached.extend(gone.again);
    }

    /// How many messages a receiver may hold.
    pub(super) fn set_window(&mut self, id: ReceiverId, window: usize) {
        if let Some(receiver) = self.receivers.iter_mut().find(|r| r.id == id) {
            receiver.window = window;
        }
    }

    /// Whether a receiver has been offered all that there is, as far as its window goes and the
    /// store can be read at present.
    pub(super) fn is_exhausted(&self, id: ReceiverId) -> bool {
        let may_read = !self.is_paused && !self.is_starved;
        let more_to_come = (self.has_more || self.is_loading) && may_read;
        let mut receivers = self.receivers.iter();
        let has_room = receivers.any(|r| r.id == id && r.holds < r.window);
        !(has_room && more_to_come)
    }

    /// Asks for one message, to be held for `lock`.
    pub(super) fn request(&mut self, id: RequestId, lock: Duration) {
        self.requests.push_back(Request { id, lock });
    }

    /// A message is in the store, behind all others. `has_room` says whether more than one may be in
    /// memory.
    pub(super) fn enqueued(
        &mut self,
        sequence: u64,
        message: Bytes,
        expires: Timestamp,
        now: Now,
        has_room: bool,
        out: &mut Vec<Effect>,
    ) {
        if expires <= now.wall {
            // The sweeper may have passed this moment already.
            let due = QueuedMessage {
                sequence,
                expires,
                delivery_count: 0,
                message,
            };
            self.remove(due, Cause::Expired, out);
            return;
        }
        if self.is_loading {
            self.missed = true;
        }
        let is_next = !self.has_more && !self.is_loading && sequence > self.read_through;
        if !is_next {
            return;
        }
        if self.settling.contains(&sequence) {
            // Whoever emptied the queue read it before this was known.
            self.read_through = sequence;
            return;
        }
        let is_unwanted = self.receivers.is_empty() && self.requests.is_empty();
        let is_enough = if has_room {
            self.entries.has_ready(READ_AHEAD, READ_AHEAD_BYTES)
        } else {
            !self.entries.is_empty()
        };
        if is_unwanted || is_enough {
            self.has_more = true;
            return;
        }
        self.read_through = sequence;
        self.entries.insert(QueuedMessage {
            sequence,
            expires,
            delivery_count: 0,
            message,
        });
    }

    /// The store could not be read. Until [`Queue::retry`] nothing is read; whoever asked for a
    /// message has to be told.
    pub(super) fn load_failed(&mut self) -> Vec<RequestId> {
        self.is_loading = false;
        self.pause();
        self.is_void = false;
        self.gone.clear();
        self.take_requests()
    }

    /// Forgets the requests that wait; whoever asked has to be told.
    pub(super) fn take_requests(&mut self) -> Vec<RequestId> {
        self.requests.drain(..).map(|request| request.id).collect()
    }

    /// After a while the store may be asked again.
    pub(super) fn retry(&mut self) {
        self.is_paused = false;
    }

    /// The answer to [`Effect::Load`]: messages, up to which number they were read, and whether there
    /// are more.
    pub(super) fn loaded(
        &mut self,
        after: u64,
        messages: Vec<QueuedMessage>,
        through: u64,
        more: bool,
    ) {
        self.is_loading = false;
        let gone = std::mem::take(&mut self.gone);
        if std::mem::take(&mut self.is_void) {
            return;
        }
        for message in messages {
            let known = self.entries.get(message.sequence).is_some()
                || self.settling.contains(&message.sequence)
                || gone.contains(&message.sequence);
            if !known {
                self.entries.insert(message);
            }
        }
        // Unless something in front of it came back meanwhile.
        if self.read_through == after {
            self.read_through = through;
        }
        self.has_more = more || std::mem::take(&mut self.missed);
    }

    /// Delivers what can be delivered, and asks for more where there is none. Without `has_room` it
    /// does so only when nobody holds anything, so that there is one message in memory at a time.
    pub(super) fn dispatch(
        &mut self,
        now: Now,
        rules: &Rules,
        has_room: bool,
        tokens: &mut dyn FnMut() -> LockToken,
        out: &mut Vec<Effect>,
    ) {
        while let Some(request) = self.requests.front() {
            let (id, lock) = (request.id, request.lock);
            if let Some(sequence) = self.first_ready(now, out) {
                self.requests.pop_front();
                let ends = now.monotonic.saturating_add(lock);
                let delivery = self.lock(sequence, Holder::Request, Some(ends), now, tokens(), out);
                if let Some(delivery) = delivery {
                    out.push(Effect::Answer {
                        request: id,
                        delivery: Some(delivery),
                    });
                }
            } else if self.is_loading || self.has_more && self.may_grow(has_room) {
                break;
            } else {
                self.requests.pop_front();
                out.push(Effect::Answer {
                    request: id,
                    delivery: None,
                });
            }
        }
        let mut idle = 0;
        while idle < self.receivers.len() {
            self.turn = (self.turn + 1) % self.receivers.len();
            if self.deliver_one(self.turn, now, rules, tokens, out) {
                idle = 0;
            } else {
                idle += 1;
            }
        }
        let is_wanted =
            !self.requests.is_empty() || self.receivers.iter().any(|r| r.holds < r.window);
        let may_read = !self.is_loading && !self.is_paused;
        let is_short = is_wanted && self.has_more && may_read && self.is_low();
        self.is_starved = is_short && !self.may_grow(has_room);
        if is_short && !self.is_starved {
            self.is_loading = true;
            self.missed = false;
            out.push(Effect::Load {
                after: self.read_through,
            });
        }
    }

    /// Gives the receiver at `place` one message, if it may have one and there is one.
    fn deliver_one(
        &mut self,
        place: usize,
        now: Now,
        rules: &Rules,
        tokens: &mut dyn FnMut() -> LockToken,
        out: &mut Vec<Effect>,
    ) -> bool {
        let is_to_come = self.is_low() && (self.has_more || self.is_loading);
        let Some(receiver) = self.receivers.get_mut(place) else {
            return false;
        };
        if receiver.holds >= receiver.window {
            return false;
        }
        let mut tag = None;
        let mut chosen = None;
        while let Some((sequence, again)) = receiver.again.front().copied() {
            let is_ready = self.entries.is_ready(sequence);
            let is_to_be_read = sequence > self.read_through && is_to_come;
            if !is_ready && is_to_be_read {
                // Whatever came after it must wait.
                return false;
            }
            receiver.again.pop_front();
            let expires = self.entries.get(sequence).map(|entry| entry.expires);
            if is_ready && expires.is_some_and(|expires| expires > now.wall) {
                (chosen, tag) = (Some(sequence), Some(again));
                break;
            }
        }
        let (id, is_timed) = (receiver.id, receiver.is_timed);
        let Some(sequence) = chosen.or_else(|| self.first_ready(now, out)) else {
            return false;
        };
        let ends = is_timed.then(|| now.monotonic.saturating_add(rules.lock));
        let by = Holder::Receiver(id);
        let Some(delivery) = self.lock(sequence, by, ends, now, tokens(), out) else {
            return false;
        };
        if let Some(receiver) = self.receivers.get_mut(place) {
            receiver.holds += 1;
        }
        out.push(Effect::Deliver {
            to: id,
            delivery: Delivery {
                again: tag,
                ..delivery
            },
        });
        true
    }

    /// The first message that nobody holds. Those whose time is over leave the queue on the way.
    fn first_ready(&mut self, now: Now, out: &mut Vec<Effect>) -> Option<u64> {
        loop {
            let (sequence, entry) = self.entries.first_ready()?;
            if entry.expires > now.wall {
                return Some(sequence);
            }
            self.leave(sequence, Cause::Expired, Waiter::Nobody, out);
        }
    }

    fn lock(
        &mut self,
        sequence: u64,
        by: Holder,
        ends: Option<Duration>,
        now: Now,
        lock: LockToken,
        out: &mut Vec<Effect>,
    ) -> Option<Delivery> {
        self.entries.unready(sequence);
        let entry = self.entries.get_mut(sequence)?;
        entry.held = Some(Held {
            by,
            lock,
            since: now.stamp,
            ends,
        });
        if let Some(ends) = ends {
            out.push(Effect::Lock {
                ends,
                sequence,
                lock,
            });
        }
        Some(Delivery {
            sequence,
            lock,
            delivery_count: entry.delivery_count,
            expires: entry.expires,
            again: None,
            message: entry.message.clone(),
        })
    }

    /// Whoever holds the lock of a message is done with it.
    pub(super) fn settle(
        &mut self,
        (sequence, lock): (u64, LockToken),
        settlement: Settlement,
        waiter: Waiter,
        now: Now,
        rules: &Rules,
        out: &mut Vec<Effect>,
    ) {
        let held = self.entries.held(sequence);
        if held.is_none_or(|held| held.lock != lock) {
            out.push(Effect::Lost { waiter, sequence });
            return;
        }
        let (end, cause) = match settlement {
            Settlement::Complete => (AttemptEnd::Completed, Cause::Completed),
            Settlement::Reject => (AttemptEnd::Rejected, Cause::Rejected),
            Settlement::Abandon => {
                self.release(sequence, AttemptEnd::Abandoned, now, rules, waiter, out);
                return;
            }
        };
        self.note(sequence, end, out);
        self.leave(sequence, cause, waiter, out);
    }

    /// The message that a request holds under `lock`.
    pub(super) fn held_by_request(&self, lock: LockToken) -> Option<u64> {
        let by_request = |held: &Held| held.by == Holder::Request && held.lock == lock;
        self.entries.held_by(by_request).next()
    }

    /// A lock ends by itself, unless it ended before.
    pub(super) fn lock_ended(
        &mut self,
        sequence: u64,
        lock: LockToken,
        now: Now,
        rules: &Rules,
        out: &mut Vec<Effect>,
    ) {
        let held = self.entries.held(sequence);
        if held.is_some_and(|held| held.lock == lock) {
            self.release(
                sequence,
                AttemptEnd::LockExpired,
                now,
                rules,
                Waiter::Nobody,
                out,
            );
        }
    }

    /// A delivery was not taken: nobody has seen the message.
    pub(super) fn give_back(
        &mut self,
        sequence: u64,
        lock: LockToken,
        now: Now,
        out: &mut Vec<Effect>,
    ) {
        let held = self.entries.held(sequence);
        if held.is_none_or(|held| held.lock != lock) {
            return;
        }
        self.end_hold(sequence, out);
        self.wait(sequence, now, Waiter::Nobody, out);
    }

    /// Somebody outside says that a waiting message has to go: its time is over, or the queue is
    /// emptied. One that is held stays with its holder. Whether it goes.
    pub(super) fn remove(
        &mut self,
        message: QueuedMessage,
        cause: Cause,
        out: &mut Vec<Effect>,
    ) -> bool {
        let sequence = message.sequence;
        if self.settling.contains(&sequence) {
            return false;
        }
        match self.entries.get(sequence) {
            Some(entry) if entry.held.is_some() => false,
            Some(_) => {
                self.leave(sequence, cause, Waiter::Nobody, out);
                true
            }
            None => {
                self.settling.insert(sequence);
                out.push(Effect::Settle(Settled {
                    sequence,
                    cause,
                    message: message.message,
                    attempts: self.past.get(&sequence).cloned().unwrap_or_default(),
                    delivery_count: message.delivery_count,
                    waiter: Waiter::Nobody,
                }));
                true
            }
        }
    }

    /// The answer to [`Effect::Settle`]: whether the message is gone from the store. If not, it is
    /// read again, after [`Queue::retry`]: a device that completes at once would otherwise go round in
    /// circles with a store that takes nothing.
    pub(super) fn settled(&mut self, sequence: u64, is_gone: bool) {
        self.settling.remove(&sequence);
        if is_gone {
            self.failures = 0;
            self.past.remove(&sequence);
            if self.is_loading {
                self.gone.insert(sequence);
            }
        } else {
            self.read_through = self.read_through.min(sequence.saturating_sub(1));
            self.has_more = true;
            self.missed = true;
            self.pause();
        }
    }

    /// How long the store is left alone: the longer, the more often it has failed. A device that is
    /// told the same thing again and again may do it again and again.
    pub(super) fn pause_span(&self) -> Duration {
        let factor = 1_u32
            .checked_shl(self.failures.saturating_sub(1))
            .unwrap_or(u32::MAX);
        PAUSE_FIRST.saturating_mul(factor).min(PAUSE_MAX)
    }

    fn pause(&mut self) {
        // What fails together counts once.
        if !std::mem::replace(&mut self.is_paused, true) {
            self.failures = self.failures.saturating_add(1);
        }
    }

    /// The answer to [`Effect::Count`].
    pub(super) fn counted(&mut self) {
        self.counting = self.counting.saturating_sub(1);
    }

    /// Forgets everything, because the device was deleted; receivers hear no more.
    pub(super) fn clear(&mut self, out: &mut Vec<Effect>) {
        for request in std::mem::take(&mut self.requests) {
            out.push(Effect::Answer {
                request: request.id,
                delivery: None,
            });
        }
        self.forget();
        self.past.clear();
        self.detached.clear();
        self.has_more = false;
        self.is_void = self.is_loading;
    }

    /// Lets go of what can be read again, if nobody needs it at present. Whether that is so.
    pub(super) fn rest(&mut self) -> bool {
        let is_idle = self.receivers.is_empty()
            && self.requests.is_empty()
            && self.settling.is_empty()
            && self.counting == 0
            && !self.is_loading
            && !self.entries.is_any_held();
        if is_idle {
            self.forget();
        }
        is_idle
    }

    /// Whether a queue at rest holds nothing that the store does not have.
    pub(super) fn is_empty(&self) -> bool {
        self.past.is_empty() && self.detached.is_empty()
    }

    /// What is known of a message.
    pub(super) fn live(&self, sequence: u64) -> Live {
        let entry = self.entries.get(sequence);
        let held = entry.and_then(|entry| entry.held);
        Live {
            locked: held.map(|held| held.ends),
            delivery_count: entry.map(|entry| entry.delivery_count),
            attempts: self.past.get(&sequence).cloned().unwrap_or_default(),
        }
    }

    /// Whether somebody wants more than there is room for in memory: it is to be dispatched again when
    /// there is room.
    pub(super) fn is_starved(&self) -> bool {
        self.is_starved
    }

    /// Bytes of the messages that are in memory.
    pub(super) fn bytes(&self) -> usize {
        self.entries.bytes()
    }

    fn may_grow(&self, has_room: bool) -> bool {
        has_room || !self.entries.is_any_held()
    }

    fn forget(&mut self) {
        self.entries.clear();
        self.read_through = 0;
        self.has_more = true;
    }

    /// Whether there is little to deliver.
    fn is_low(&self) -> bool {
        !self.entries.has_ready(LOW, READ_AHEAD_BYTES)
    }

    /// A delivery ends and the message stays, unless it was the last one that it gets.
    fn release(
        &mut self,
        sequence: u64,
        end: AttemptEnd,
        now: Now,
        rules: &Rules,
        waiter: Waiter,
        out: &mut Vec<Effect>,
    ) {
        self.note(sequence, end, out);
        let Some(entry) = self.entries.get_mut(sequence) else {
            return;
        };
        let counts = match end {
            AttemptEnd::Abandoned => true,
            AttemptEnd::LockExpired => rules.counts_every_lock,
            AttemptEnd::Completed | AttemptEnd::Rejected | AttemptEnd::Disconnected => false,
        };
        if counts {
            entry.delivery_count = entry.delivery_count.saturating_add(1);
        }
        let count = entry.delivery_count;
        if counts && count >= rules.max_delivery_count {
            self.leave(sequence, Cause::DeliveryCountExceeded, waiter, out);
        } else if self.wait(sequence, now, waiter, out) && counts {
            self.counting += 1;
            out.push(Effect::Count {
                sequence,
                count,
                waiter,
            });
        }
    }

    /// A message that nobody holds any more waits again, unless its time is over. Whether it does.
    fn wait(&mut self, sequence: u64, now: Now, waiter: Waiter, out: &mut Vec<Effect>) -> bool {
        let expires = self.entries.get(sequence).map(|entry| entry.expires);
        if expires.is_none_or(|expires| expires <= now.wall) {
            // The sweeper has passed it.
            self.leave(sequence, Cause::Expired, waiter, out);
            return false;
        }
        self.entries.ready(sequence);
        true
    }

    /// Ends whoever's hold there is on a message, and writes it down.
    fn note(&mut self, sequence: u64, end: AttemptEnd, out: &mut Vec<Effect>) {
        let Some((held, receiver)) = self.end_hold(sequence, out) else {
            return;
        };
        self.past.entry(sequence).or_default().note(Attempt {
            at: held.since,
            receiver,
            end,
        });
    }

    fn end_hold(
        &mut self,
        sequence: u64,
        out: &mut Vec<Effect>,
    ) -> Option<(Held, AttemptReceiver)> {
        let held = self.entries.get_mut(sequence)?.held.take()?;
        if let Some(ends) = held.ends {
            let lock = held.lock;
            out.push(Effect::Unlock { ends, lock });
        }
        let receiver = match held.by {
            Holder::Request => AttemptReceiver::Request,
            Holder::Receiver(id) => {
                let attached = self.receivers.iter_mut().find(|r| r.id == id);
                AttemptReceiver::Connection {
                    epoch: attached.map_or(0, |attached| {
                        attached.holds = attached.holds.saturating_sub(1);
                        attached.epoch
                    }),
                }
            }
        };
        Some((held, receiver))
    }

    fn leave(&mut self, sequence: u64, cause: Cause, waiter: Waiter, out: &mut Vec<Effect>) {
        let Some(entry) = self.entries.remove(sequence) else {
            return;
        };
        self.settling.insert(sequence);
        out.push(Effect::Settle(Settled {
            sequence,
            cause,
            message: entry.message,
            attempts: self.past.get(&sequence).cloned().unwrap_or_default(),
            delivery_count: entry.delivery_count,
            waiter,
        }));
    }
}

#[cfg(test)]
mod tests;
