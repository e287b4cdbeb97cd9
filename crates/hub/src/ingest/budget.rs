//! The byte budget of all messages that are not yet durable, given out in turn.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

use super::READ_RESERVATION;

/// The budget. Taking and giving back happen once per read and per group, never per message.
#[derive(Debug)]
pub(super) struct Budget {
    limit: usize,
    /// No other lock is taken and nobody is woken while this is held.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    /// Shut while the store holds messages back.
    is_shut: bool,
    queue: VecDeque<Arc<Turn>>,
    /// Those in the queue that have left it in spirit.
    abandoned: usize,
}

/// A sender's place in the queue.
#[derive(Debug, Default)]
pub(super) struct Turn {
    waker: AtomicWaker,
    /// The flags change under the budget's lock.
    is_queued: AtomicBool,
    is_granted: AtomicBool,
    is_abandoned: AtomicBool,
}

impl Turn {
    pub(super) fn register(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
    }

    /// Whether its sender waits, or was served and has not come for it.
    pub(super) fn is_taken(&self) -> bool {
        self.is_queued.load(Ordering::Relaxed) || self.is_granted.load(Ordering::Relaxed)
    }

    pub(super) fn wake(&self) {
        self.waker.wake();
    }
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            state: Mutex::default(),
        }
    }

    /// Takes [`READ_RESERVATION`] bytes for somebody who does not wait, if there are any and nobody
    /// does; they are then the caller's to exchange or give back.
    pub(super) fn try_take(&self) -> bool {
        let mut state = self.lock();
        let may_take = state.queue.is_empty() && state.has_room(self.limit);
        if may_take {
            state.used += READ_RESERVATION;
        }
        may_take
    }

    /// Ready when `turn` has [`READ_RESERVATION`] bytes of the budget, as
    /// [`try_take`](Self::try_take) takes them. Whoever asked first is served first.
    pub(super) fn poll_take(&self, turn: &Arc<Turn>, cx: &Context<'_>) -> Poll<()> {
        turn.register(cx);
        let mut state = self.lock();
        if turn.is_granted.swap(false, Ordering::Relaxed) {
            return Poll::Ready(());
        }
        if turn.is_queued.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        if state.queue.is_empty() && state.has_room(self.limit) {
            state.used += READ_RESERVATION;
            return Poll::Ready(());
        }
        turn.is_queued.store(true, Ordering::Relaxed);
        state.queue.push_back(Arc::clone(turn));
        Poll::Pending
    }

    /// Puts the true size in the place of what was reserved.
    pub(super) fn exchange(&self, reserved: usize, actual: usize) {
        let mut state = self.lock();
        state.used = state.used.saturating_sub(reserved).saturating_add(actual);
        if actual < reserved {
            self.serve(state);
        }
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.exchange(bytes, 0);
    }

    /// Takes a sender that is gone out of the queue.
    pub(super) fn leave(&self, turn: &Turn) {
        let mut state = self.lock();
        if turn.is_granted.swap(false, Ordering::Relaxed) {
            state.used = state.used.saturating_sub(READ_RESERVATION);
            self.serve(state);
        } else if turn.is_queued.load(Ordering::Relaxed) {
            turn.is_abandoned.store(true, Ordering::Relaxed);
            state.abandoned += 1;
            // Looking for each one that leaves would cost the square of a mass disconnection.
            if state.abandoned * 2 > state.queue.len() {
                state.abandoned = 0;
                state
                    .queue
                    .retain(|turn| !turn.is_abandoned.load(Ordering::Relaxed));
            }
        }
    }

    /// While the budget is shut nobody gets anything, and everybody who waits is told once.
    pub(super) fn set_open(&self, is_open: bool) {
        let mut state = self.lock();
        state.is_shut = !is_open;
        if is_open {
            self.serve(state);
            return;
        }
        let waiting: Vec<Arc<Turn>> = state.queue.iter().cloned().collect();
        drop(state);
        waiting.iter().for_each(|turn| turn.wake());
    }

    pub(super) fn used(&self) -> usize {
        self.lock().used
    }

    /// Serves those who wait, in order, as far as the budget goes.
    fn serve(&self, mut state: MutexGuard<'_, State>) {
        let mut served = Vec::new();
        while state.has_room(self.limit)
            && let Some(turn) = state.queue.pop_front()
        {
            turn.is_queued.store(false, Ordering::Relaxed);
            if turn.is_abandoned.load(Ordering::Relaxed) {
                state.abandoned = state.abandoned.saturating_sub(1);
                continue;
            }
            state.used += READ_RESERVATION;
            turn.is_granted.store(true, Ordering::Relaxed);
            served.push(turn);
        }
        drop(state);
        served.iter().for_each(|turn| turn.wake());
    }

    /// A panic elsewhere leaves numbers that are as good as they were.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A budget below one reservation still lets one sender go on at a time.
    fn has_room(&self, limit: usize) -> bool {
        !self.is_shut && (self.used == 0 || self.used.saturating_add(READ_RESERVATION) <= limit)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn take(budget: &Budget, turn: &Arc<Turn>) -> bool {
        budget
            .poll_take(turn, &Context::from_waker(Waker::noop()))
            .is_ready()
    }

    fn turns<const N: usize>() -> [Arc<Turn>; N] {
        std::array::from_fn(|_| Arc::default())
    }

    #[test]
    fn senders_are_served_in_the_order_in_which_they_asked() {
        let budget = Budget::new(READ_RESERVATION);
        let [a, b, c, late] = turns();
        assert!(take(&budget, &a));
        assert!(!take(&budget, &b) && !take(&budget, &c) && !take(&budget, &b));
        budget.give_back(READ_RESERVATION);
        // The room is b's, although it has not come for it yet.
        assert!(!take(&budget, &late) && !take(&budget, &c) && take(&budget, &b));
        budget.exchange(READ_RESERVATION, 10);
        assert!(!take(&budget, &c));
        budget.give_back(10);
        assert!(take(&budget, &c) && !take(&budget, &late));
        assert_eq!(budget.used(), READ_RESERVATION);
    }

    #[test]
    fn those_who_leave_lose_their_place_and_what_they_were_given() {
        let budget = Budget::new(READ_RESERVATION);
        let [a, b, c, d, e] = turns();
        assert!(take(&budget, &a));
        for turn in [&b, &c, &d, &e] {
            assert!(!take(&budget, turn));
        }
        budget.leave(&b);
        budget.give_back(READ_RESERVATION);
        budget.leave(&c);
        assert!(!take(&budget, &e) && take(&budget, &d));
        budget.leave(&e);
        assert_eq!(budget.lock().queue.len(), 0);
        budget.give_back(READ_RESERVATION);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_shut_budget_gives_nothing_until_it_opens() {
        let budget = Budget::new(10 * READ_RESERVATION);
        let [a, b, c] = turns();
        assert!(take(&budget, &a));
        budget.set_open(false);
        assert!(!take(&budget, &b) && !take(&budget, &c));
        budget.give_back(READ_RESERVATION);
        assert!(!take(&budget, &b));
        budget.set_open(true);
        assert!(take(&budget, &b) && take(&budget, &c));
    }

    #[test]
    fn a_budget_smaller_than_one_reservation_serves_one_at_a_time() {
        let budget = Budget::new(1);
        let [a, b] = turns();
        assert!(take(&budget, &a) && !take(&budget, &b));
        budget.give_back(READ_RESERVATION);
        assert!(take(&budget, &b));
    }
}
