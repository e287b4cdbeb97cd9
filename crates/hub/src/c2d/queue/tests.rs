//! Random histories of one queue, beside a plain model of what a queue is.
//!
//! The model is the store with its true contents, who holds what, and what the queue was told. Each
//! effect is checked against it when it comes out, and at the end of a history everything that is
//! left has to be delivered, in order, and to go.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};

use proptest::prelude::*;

use super::*;

/// One step of a history. Numbers choose among what there is.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// A message that lives so many seconds goes to the store.
    Enqueue {
        ttl: u64,
    },
    /// The oldest message of those is known to be durable.
    Arrive,
    Attach {
        is_timed: bool,
        resume: bool,
    },
    Window {
        receiver: usize,
        window: usize,
    },
    /// A receiver goes, and leaves what it holds in flight if the session goes on.
    Detach {
        receiver: usize,
        is_kept: bool,
    },
    Request {
        lock: u64,
    },
    Settle {
        held: usize,
        settlement: Settlement,
        told: bool,
    },
    /// With the lock of a delivery that has ended.
    SettleLate {
        ended: usize,
    },
    GiveBack {
        held: usize,
    },
    /// The oldest operation at the store is answered.
    Answer {
        is_done: bool,
    },
    /// The read in progress is answered, with what the store held when it began or holds now.
    Load {
        is_done: bool,
        is_late: bool,
    },
    Retry,
    Advance {
        seconds: u64,
    },
    /// There is room in memory, or there is none.
    Room {
        has_room: bool,
    },
    Sweep,
    Purge,
    Rest,
}

const MAX_COUNT: u32 = 3;

/// What a test's page of the store holds; few, so that histories need several.
const PAGE: usize = 3;

struct Stored {
    expires: Timestamp,
    count: u32,
    attempts: u32,
}

#[derive(Clone, Copy)]
struct Held {
    sequence: u64,
    lock: LockToken,
    by: Option<ReceiverId>,
}

struct Member {
    id: ReceiverId,
    window: usize,
    /// Tags that it may see again.
    expected: Vec<(u64, u16)>,
    is_timed: bool,
}

enum AtStore {
    Settle(Settled),
    Count,
}

struct History {
    queue: Queue,
    rules: Rules,
    now: Now,
    stored: BTreeMap<u64, Stored>,
    last_sequence: u64,
    /// In the store, and not yet known to be.
    arriving: VecDeque<u64>,
    at_store: VecDeque<AtStore>,
    settling: BTreeSet<u64>,
    /// Not carried out by the store; known again when it is read again.
    unread: BTreeSet<u64>,
    load: Option<(u64, Vec<QueuedMessage>, bool)>,
    is_paused: bool,
    has_room: bool,
    held: Vec<Held>,
    ended: Vec<(u64, LockToken)>,
    timers: BTreeMap<(Duration, [u8; 16]), u64>,
    members: Vec<Member>,
    requests: VecDeque<RequestId>,
    detached: Vec<(u64, u16)>,
    tags: u16,
    next_id: u64,
    tokens: u128,
    seen_tokens: HashSet<[u8; 16]>,
    /// Why messages may leave in this step: the one that is settled, or all.
    leaving: Leaving,
    /// Sequences delivered, in order.
    delivered: Vec<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Leaving {
    Nothing,
    Settled(u64, Settlement, Waiter),
    Purged,
}

fn body(sequence: u64) -> Bytes {
    Bytes::from(sequence.to_string())
}

impl History {
    fn new(counts_every_lock: bool) -> Self {
        Self {
            queue: Queue::new(),
            rules: Rules {
                lock: Duration::from_secs(60),
                max_delivery_count: MAX_COUNT,
                counts_every_lock,
            },
            now: Now {
                wall: Timestamp::from_millis(1_000_000),
                stamp: Timestamp::from_millis(1_000_000),
                monotonic: Duration::from_secs(5),
            },
            stored: BTreeMap::new(),
            last_sequence: 0,
            arriving: VecDeque::new(),
            at_store: VecDeque::new(),
            settling: BTreeSet::new(),
            unread: BTreeSet::new(),
            load: None,
            is_paused: false,
            has_room: true,
            held: Vec::new(),
            ended: Vec::new(),
            timers: BTreeMap::new(),
            members: Vec::new(),
            requests: VecDeque::new(),
            detached: Vec::new(),
            tags: 0,
            next_id: 0,
            tokens: 0,
            seen_tokens: HashSet::new(),
            leaving: Leaving::Nothing,
            delivered: Vec::new(),
        }
    }

    fn step(&mut self, step: Step) {
        let mut out = Vec::new();
        let now = self.now;
        let rules = self.rules;
        match step {
            Step::Enqueue { ttl } => {
                self.last_sequence += 1;
                let stored = Stored {
                    expires: now.wall.saturating_add(Duration::from_secs(ttl)),
                    count: 0,
                    attempts: 0,
                };
                self.stored.insert(self.last_sequence, stored);
                self.arriving.push_back(self.last_sequence);
            }
            Step::Arrive => {
                let Some(sequence) = self.arriving.pop_front() else {
                    return;
                };
                let expires = self.stored[&sequence].expires;
                let message = body(sequence);
                self.queue
                    .enqueued(sequence, message, expires, now, self.has_room, &mut out);
            }
            Step::Attach { is_timed, resume } => {
                self.next_id += 1;
                let id = ReceiverId(self.next_id);
                let tags = self.queue.attach(id, self.next_id, is_timed, resume);
                let mut expected = std::mem::take(&mut self.detached);
                if !resume {
                    expected.clear();
                }
                // Those of which it was seen that somebody else holds them are forgotten.
                expected.retain(|(_, tag)| tags.contains(tag));
                let known: Vec<_> = expected.iter().map(|(_, tag)| *tag).collect();
                assert_eq!(tags, known);
                self.members.push(Member {
                    id,
                    window: 0,
                    expected,
                    is_timed,
                });
            }
            Step::Window { receiver, window } => {
                let Some(place) = pick(receiver, self.members.len()) else {
                    return;
                };
                let member = &mut self.members[place];
                member.window = window;
                self.queue.set_window(member.id, window);
            }
            Step::Detach { receiver, is_kept } => {
                let Some(place) = pick(receiver, self.members.len()) else {
                    return;
                };
                let member = self.members.remove(place);
                let mut in_flight = Vec::new();
                let by_member = |held: &Held| held.by == Some(member.id);
                for held in self.held.iter().copied().filter(by_member) {
                    self.tags += 1;
                    if is_kept {
                        in_flight.push((held.sequence, self.tags));
                    }
                }
                for held in self.take_held(by_member) {
                    self.attempted(held.sequence, false);
                }
                self.detached = in_flight.clone();
                self.detached.extend(member.expected);
                self.queue
                    .detach(member.id, in_flight, now, &rules, &mut out);
            }
            Step::Request { lock } => {
                self.next_id += 1;
                let id = RequestId(self.next_id);
                self.requests.push_back(id);
                self.queue.request(id, Duration::from_secs(lock));
            }
            Step::Settle {
                held,
                settlement,
                told,
            } => {
                let Some(place) = pick(held, self.held.len()) else {
                    return;
                };
                let held = self.held.remove(place);
                self.ended.push((held.sequence, held.lock));
                self.attempted(held.sequence, settlement == Settlement::Abandon);
                if held.by.is_none() {
                    let found = self.queue.held_by_request(held.lock);
                    assert_eq!(found, Some(held.sequence));
                }
                let waiter = match (told, held.by) {
                    (false, _) => Waiter::Nobody,
                    (true, Some(id)) => Waiter::Receiver(id),
                    (true, None) => Waiter::Request(RequestId(u64::MAX)),
                };
                self.leaving = Leaving::Settled(held.sequence, settlement, waiter);
                let (sequence, lock) = (held.sequence, held.lock);
                self.queue
                    .settle((sequence, lock), settlement, waiter, now, &rules, &mut out);
                let told = out.iter().any(|effect| match effect {
                    Effect::Count { waiter: to, .. } => *to == waiter,
                    Effect::Settle(settled) => settled.waiter == waiter,
                    _ => false,
                });
                assert!(told || waiter == Waiter::Nobody, "{out:?}");
            }
            Step::SettleLate { ended } => {
                let Some(place) = pick(ended, self.ended.len()) else {
                    return;
                };
                let (sequence, lock) = self.ended[place];
                assert_eq!(self.queue.held_by_request(lock), None);
                let waiter = Waiter::Request(RequestId(u64::MAX));
                let settlement = Settlement::Complete;
                self.queue
                    .settle((sequence, lock), settlement, waiter, now, &rules, &mut out);
                let lost = Effect::Lost { waiter, sequence };
                assert_eq!(out, [lost]);
            }
            Step::GiveBack { held } => {
                let Some(place) = pick(held, self.held.len()) else {
                    return;
                };
                let held = self.held.remove(place);
                self.ended.push((held.sequence, held.lock));
                let (sequence, lock) = (held.sequence, held.lock);
                self.queue.give_back(sequence, lock, now, &mut out);
            }
            Step::Answer { is_done } => match self.at_store.pop_front() {
                None => return,
                Some(AtStore::Settle(settled)) if self.arriving.contains(&settled.sequence) => {
                    // Answers come in the order of the operations.
                    self.at_store.push_front(AtStore::Settle(settled));
                    self.step(Step::Arrive);
                    self.step(step);
                    return;
                }
                Some(AtStore::Count) => self.queue.counted(),
                Some(AtStore::Settle(settled)) => {
                    let sequence = settled.sequence;
                    self.settling.remove(&sequence);
                    if is_done {
                        self.stored.remove(&sequence);
                    } else {
                        self.is_paused = true;
                        self.unread.insert(sequence);
                    }
                    self.queue.settled(sequence, is_done);
                }
            },
            Step::Load { is_done, is_late } => {
                let Some((after, mut messages, mut more)) = self.load.take() else {
                    return;
                };
                if is_done {
                    if is_late {
                        (messages, more) = self.page(after);
                    }
                    for message in &messages {
                        self.unread.remove(&message.sequence);
                    }
                    let through = messages.last().map_or(after, |last| last.sequence);
                    self.queue.loaded(after, messages, through, more);
                } else {
                    self.is_paused = true;
                    let told = self.queue.load_failed();
                    assert_eq!(told, self.requests.drain(..).collect::<Vec<_>>());
                }
            }
            Step::Retry => {
                self.is_paused = false;
                self.queue.retry();
            }
            Step::Advance { seconds } => {
                let span = Duration::from_secs(seconds);
                self.now.wall = now.wall.saturating_add(span);
                self.now.stamp = self.now.wall;
                self.now.monotonic += span;
                let now = self.now;
                let is_due = |((at, _), _): &(&(Duration, [u8; 16]), &u64)| *at <= now.monotonic;
                let due: Vec<_> = self.timers.iter().filter(is_due).collect();
                let due: Vec<_> = due.into_iter().map(|(key, s)| (*key, *s)).collect();
                for (key, sequence) in due {
                    self.timers.remove(&key);
                    let lock = LockToken(key.1);
                    let ended = self.take_held(|held| held.lock == lock);
                    assert_eq!(ended.len(), 1, "a timer of a lock that has ended");
                    self.attempted(sequence, rules.counts_every_lock);
                    self.queue.lock_ended(sequence, lock, now, &rules, &mut out);
                    self.carry_out(std::mem::take(&mut out));
                }
            }
            Step::Room { has_room } => self.has_room = has_room,
            Step::Sweep => {
                let due: Vec<_> = self.messages().collect();
                for message in due.into_iter().filter(|m| m.expires <= now.wall) {
                    self.queue.remove(message, Cause::Expired, &mut out);
                }
            }
            Step::Purge => {
                self.leaving = Leaving::Purged;
                let all: Vec<_> = self.messages().collect();
                for message in all {
                    let is_free = self.is_free(message.sequence);
                    let goes = self.queue.remove(message, Cause::Purged, &mut out);
                    assert_eq!(goes, is_free);
                }
            }
            Step::Rest => {
                let is_idle = self.queue.rest();
                let is_busy = !self.members.is_empty()
                    || !self.requests.is_empty()
                    || !self.held.is_empty()
                    || !self.settling.is_empty()
                    || self.load.is_some();
                assert!(!is_idle || !is_busy);
                if is_idle && self.queue.is_empty() {
                    assert_eq!(self.detached, []);
                    self.queue = Queue::new();
                    self.is_paused = false;
                }
                if is_idle {
                    // Whatever the store has is read again.
                    self.unread.clear();
                }
            }
        }
        self.carry_out(out);
        self.dispatch();
        self.leaving = Leaving::Nothing;
    }

    fn dispatch(&mut self) {
        let mut out = Vec::new();
        let tokens = &mut self.tokens;
        let mut next = || {
            *tokens += 1;
            LockToken(tokens.to_be_bytes())
        };
        self.queue
            .dispatch(self.now, &self.rules, self.has_room, &mut next, &mut out);
        self.carry_out(out);
        // Nobody waits for what could be had.
        let wants =
            !self.requests.is_empty() || self.members.iter().any(|member| self.has_room(member));
        if wants && self.load.is_none() && !self.is_paused {
            let waits = self.first_waiting().is_some();
            assert!(!waits || self.may_wait_for_room());
            assert!(!waits || self.queue.is_starved());
            assert!(self.requests.is_empty());
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Deliver { to, delivery } => {
                    let place = self.members.iter().position(|member| member.id == to);
                    let place = place.expect("a receiver that is attached");
                    assert!(self.has_room(&self.members[place]), "beyond its window");
                    let is_timed = self.members[place].is_timed;
                    let has_timer = self.timers.keys().any(|(_, lock)| *lock == delivery.lock.0);
                    assert_eq!(has_timer, is_timed);
                    match delivery.again {
                        Some(tag) => {
                            let expected = &mut self.members[place].expected;
                            let at = expected
                                .iter()
                                .position(|known| *known == (delivery.sequence, tag));
                            // In their old order; those in front can come no more.
                            expected.drain(..=at.expect("a tag that was left for it"));
                        }
                        None => {
                            self.is_first(delivery.sequence);
                            // Those with a tag come before all others.
                            self.members[place].expected.clear();
                        }
                    }
                    self.hold(&delivery, Some(to));
                }
                Effect::Answer { request, delivery } => {
                    assert_eq!(self.requests.pop_front(), Some(request));
                    match delivery {
                        Some(delivery) => {
                            assert_eq!(delivery.again, None);
                            self.is_first(delivery.sequence);
                            self.hold(&delivery, None);
                        }
                        None => assert!(self.first_waiting().is_none() || self.may_wait_for_room()),
                    }
                }
                Effect::Lock {
                    ends,
                    sequence,
                    lock,
                } => {
                    assert!(ends > self.now.monotonic);
                    self.timers.insert((ends, lock.0), sequence);
                }
                Effect::Unlock { ends, lock } => {
                    self.timers.remove(&(ends, lock.0));
                }
                Effect::Settle(settled) => self.leaves(settled),
                Effect::Count {
                    sequence,
                    count,
                    waiter,
                } => {
                    let stored = &self.stored[&sequence];
                    assert_eq!(stored.count, count);
                    assert!(count < MAX_COUNT);
                    match self.leaving {
                        Leaving::Settled(of, settlement, to) => {
                            let abandoned = (sequence, Settlement::Abandon, waiter);
                            assert_eq!((of, settlement, to), abandoned);
                        }
                        _ => assert_eq!(waiter, Waiter::Nobody),
                    }
                    self.at_store.push_back(AtStore::Count);
                }
                Effect::Lost { .. } => assert_eq!(self.leaving, Leaving::Nothing),
                Effect::Load { after } => {
                    assert!(self.load.is_none() && !self.is_paused);
                    let (messages, more) = self.page(after);
                    self.load = Some((after, messages, more));
                }
            }
        }
    }

    /// A message goes out of the queue for a reason that holds.
    fn leaves(&mut self, settled: Settled) {
        let sequence = settled.sequence;
        let stored = &self.stored[&sequence];
        assert!(self.settling.insert(sequence), "it was on its way already");
        assert!(self.held.iter().all(|held| held.sequence != sequence));
        assert_eq!(settled.message, body(sequence));
        assert_eq!(settled.attempts.count(), stored.attempts, "{sequence}");
        assert_eq!(settled.delivery_count, stored.count, "{sequence}");
        let by = match self.leaving {
            Leaving::Settled(of, settlement, waiter) if of == sequence => {
                assert_eq!(settled.waiter, waiter);
                Some(settlement)
            }
            _ => {
                assert_eq!(settled.waiter, Waiter::Nobody);
                None
            }
        };
        let is_over = stored.expires <= self.now.wall;
        let holds = match settled.cause {
            Cause::Completed => by == Some(Settlement::Complete),
            Cause::Rejected => by == Some(Settlement::Reject),
            Cause::DeliveryCountExceeded => stored.count >= MAX_COUNT,
            Cause::Expired => is_over,
            Cause::Purged => self.leaving == Leaving::Purged,
        };
        assert!(holds, "{sequence}: {:?}", settled.cause);
        self.at_store.push_back(AtStore::Settle(settled));
    }

    fn hold(&mut self, delivery: &Delivery, by: Option<ReceiverId>) {
        let sequence = delivery.sequence;
        assert!(self.is_free(sequence), "{sequence} is held, or leaves");
        let stored = &self.stored[&sequence];
        assert!(stored.expires > self.now.wall, "{sequence} has expired");
        assert_eq!(delivery.expires, stored.expires);
        assert_eq!(delivery.delivery_count, stored.count);
        assert_eq!(delivery.message, body(sequence));
        assert!(self.seen_tokens.insert(delivery.lock.0), "a lock twice");
        self.unread.remove(&sequence);
        self.delivered.push(sequence);
        self.held.push(Held {
            sequence,
            lock: delivery.lock,
            by,
        });
    }

    /// A delivery has ended.
    fn attempted(&mut self, sequence: u64, counts: bool) {
        if let Some(stored) = self.stored.get_mut(&sequence) {
            stored.attempts += 1;
            stored.count += u32::from(counts);
        }
    }

    fn take_held(&mut self, which: impl Fn(&Held) -> bool) -> Vec<Held> {
        let (taken, left) = self.held.iter().partition(|held| which(held));
        self.held = left;
        let taken: Vec<Held> = taken;
        self.ended
            .extend(taken.iter().map(|held| (held.sequence, held.lock)));
        taken
    }

    fn has_room(&self, member: &Member) -> bool {
        let holds = self.held.iter().filter(|held| held.by == Some(member.id));
        holds.count() < member.window
    }

    /// In the store, and nobody's.
    fn is_free(&self, sequence: u64) -> bool {
        self.stored.contains_key(&sequence)
            && !self.settling.contains(&sequence)
            && self.held.iter().all(|held| held.sequence != sequence)
    }

    /// No message that the queue knows of comes before this one.
    /// One message at a time goes on without room.
    fn may_wait_for_room(&self) -> bool {
        !self.has_room && !self.held.is_empty()
    }

    fn is_first(&self, sequence: u64) {
        let first = self.first_waiting();
        assert!(first.is_none_or(|first| first >= sequence), "{first:?}");
    }

    fn first_waiting(&self) -> Option<u64> {
        self.stored
            .iter()
            .filter(|(sequence, stored)| {
                self.is_free(**sequence)
                    && !self.arriving.contains(sequence)
                    && !self.unread.contains(sequence)
                    && stored.expires > self.now.wall
            })
            .map(|(sequence, _)| *sequence)
            .next()
    }

    fn messages(&self) -> impl Iterator<Item = QueuedMessage> {
        self.stored.iter().map(|(sequence, stored)| QueuedMessage {
            sequence: *sequence,
            expires: stored.expires,
            delivery_count: stored.count,
            message: body(*sequence),
        })
    }

    fn page(&self, after: u64) -> (Vec<QueuedMessage>, bool) {
        let mut messages = self.messages().filter(|m| m.sequence > after);
        let page = messages
            .by_ref()
            .take(if self.has_room { PAGE } else { 1 })
            .collect();
        (page, messages.next().is_some())
    }

    /// Answers everything, as a store does that is well.
    fn calm_down(&mut self) {
        self.step(Step::Retry);
        while !self.arriving.is_empty() || !self.at_store.is_empty() || self.load.is_some() {
            self.step(Step::Arrive);
            self.step(Step::Answer { is_done: true });
            self.step(Step::Load {
                is_done: true,
                is_late: false,
            });
        }
    }

    /// Whoever takes everything gets everything, in order, and nothing is left.
    fn end(mut self) {
        self.step(Step::Room { has_room: true });
        while !self.members.is_empty() {
            self.step(Step::Detach {
                receiver: 0,
                is_kept: false,
            });
        }
        while !self.held.is_empty() {
            self.step(Step::GiveBack { held: 0 });
        }
        self.calm_down();
        assert!(self.requests.is_empty() && self.held.len() <= self.delivered.len());
        while !self.held.is_empty() {
            self.step(Step::GiveBack { held: 0 });
        }
        self.calm_down();
        let is_alive = |stored: &Stored| stored.expires > self.now.wall;
        let left = self.stored.iter().filter(|(_, stored)| is_alive(stored));
        let left: Vec<_> = left.map(|(sequence, _)| *sequence).collect();
        self.delivered.clear();
        // What the store did not carry out is read again, behind what is known.
        let is_all_known = self.unread.is_empty();
        self.step(Step::Attach {
            is_timed: false,
            resume: false,
        });
        self.step(Step::Window {
            receiver: 0,
            window: usize::MAX,
        });
        self.calm_down();
        if !is_all_known {
            self.delivered.sort_unstable();
        }
        assert_eq!(self.delivered, left);
        while !self.held.is_empty() {
            self.step(Step::Settle {
                held: 0,
                settlement: Settlement::Complete,
                told: true,
            });
        }
        self.step(Step::Sweep);
        self.calm_down();
        assert!(self.stored.is_empty());
        self.step(Step::Detach {
            receiver: 0,
            is_kept: false,
        });
        assert!(self.queue.rest() && self.queue.is_empty());
    }
}

fn pick(choice: usize, among: usize) -> Option<usize> {
    choice.checked_rem(among)
}

fn any_step() -> impl Strategy<Value = Step> {
    let settlement = prop_oneof![
        3 => Just(Settlement::Complete),
        1 => Just(Settlement::Reject),
        3 => Just(Settlement::Abandon),
    ];
    let is_mostly = || prop::bool::weighted(0.8);
    prop_oneof![
        6 => prop_oneof![1..100_u64, 1000..2000_u64].prop_map(|ttl| Step::Enqueue { ttl }),
        6 => Just(Step::Arrive),
        2 => any::<(bool, bool)>()
            .prop_map(|(is_timed, resume)| Step::Attach { is_timed, resume }),
        4 => (0..4_usize, 0..5_usize)
            .prop_map(|(receiver, window)| Step::Window { receiver, window }),
        1 => (0..4_usize, any::<bool>())
            .prop_map(|(receiver, is_kept)| Step::Detach { receiver, is_kept }),
        3 => (5..300_u64).prop_map(|lock| Step::Request { lock }),
        8 => (0..20_usize, settlement, any::<bool>()).prop_map(|(held, settlement, told)| {
            Step::Settle { held, settlement, told }
        }),
        1 => (0..20_usize).prop_map(|ended| Step::SettleLate { ended }),
        1 => (0..20_usize).prop_map(|held| Step::GiveBack { held }),
        8 => is_mostly().prop_map(|is_done| Step::Answer { is_done }),
        8 => (is_mostly(), any::<bool>())
            .prop_map(|(is_done, is_late)| Step::Load { is_done, is_late }),
        3 => Just(Step::Retry),
        2 => (1..90_u64).prop_map(|seconds| Step::Advance { seconds }),
        2 => any::<bool>().prop_map(|has_room| Step::Room { has_room }),
        1 => Just(Step::Sweep),
        1 => Just(Step::Purge),
        1 => Just(Step::Rest),
    ]
}

proptest! {
    #[test]
    fn a_queue_delivers_what_there_is_in_order_and_loses_nothing(
        steps in prop::collection::vec(any_step(), 0..120),
        counts_every_lock in any::<bool>(),
    ) {
        let mut history = History::new(counts_every_lock);
        for step in steps {
            history.step(step);
        }
        history.end();
    }
}

#[test]
fn what_is_read_ahead_is_bounded_in_bytes_too() {
    let mut queue = Queue::new();
    let rules = History::new(false).rules;
    let now = History::new(false).now;
    let mut out = Vec::new();
    let mut token = || LockToken([0; 16]);
    queue.attach(ReceiverId(1), 1, false, false);
    queue.set_window(ReceiverId(1), 1);
    queue.dispatch(now, &rules, true, &mut token, &mut out);
    queue.loaded(0, Vec::new(), 0, false);
    let expires = now.wall.saturating_add(Duration::from_secs(60));
    let message = Bytes::from(vec![0; 64 * 1024]);
    for sequence in 1..100 {
        queue.enqueued(sequence, message.clone(), expires, now, true, &mut out);
        queue.dispatch(now, &rules, true, &mut token, &mut out);
    }
    let bytes = queue.bytes();
    // And the one that is held.
    assert!(bytes <= READ_AHEAD_BYTES + 64 * 1024, "{bytes}");
    let loads = out.iter().filter(|e| matches!(e, Effect::Load { .. }));
    assert_eq!(loads.count(), 1);
}
