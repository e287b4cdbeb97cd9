//! What all queues together may hold of messages in memory.
//!
//! A device may have some hundred kilobytes read ahead and a megabyte in flight; a hundred thousand of
//! them that are slow at the same time must not have that much each. While the budget is used up, a
//! queue goes on with one message at a time and reads no further ahead: everybody gets on, and what is
//! held is bounded by the number of devices that are there.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// Bytes of messages. It is not enforced here: whoever charges it asks first.
#[derive(Debug)]
pub(super) struct Budget {
    max: usize,
    used: AtomicUsize,
    /// Who waits for room. Nothing else is taken and nobody is woken while this is held.
    waiting: Mutex<Vec<Waker>>,
}

/// One user's part of what is used. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub(super) fn new(max: usize) -> Self {
        Self {
            max,
            used: AtomicUsize::new(0),
            waiting: Mutex::default(),
        }
    }

    /// Whether there is any left.
    pub(super) fn has_room(&self) -> bool {
        self.used() < self.max
    }

    /// Bytes that are used.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Acquire)
    }

    /// Ready when there is any left; the task is woken then.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        if self.has_room() {
            return Poll::Ready(());
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            waiting.push(cx.waker().clone());
        }
        drop(waiting);
        // Whoever made room before that has woken nobody.
        if self.has_room() {
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn change(&self, from: usize, to: usize) {
        if to > from {
            self.used.fetch_add(to - from, Ordering::AcqRel);
            return;
        }
        let given_back = from - to;
        let before = self.used.fetch_sub(given_back, Ordering::AcqRel);
        if before < self.max || before - given_back >= self.max {
            return;
        }
        let waiting = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

impl Charge {
    /// Charges `bytes`.
    pub(super) fn new(budget: &Arc<Budget>, bytes: usize) -> Self {
        budget.change(0, bytes);
        Self {
            budget: Arc::clone(budget),
            bytes,
        }
    }

    /// Charges `bytes` in place of what was charged before.
    pub(super) fn set(&mut self, bytes: usize) {
        if bytes != self.bytes {
            self.budget.change(self.bytes, bytes);
            self.bytes = bytes;
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::task::Wake;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Charge { bytes: usize },
        Set { charge: usize, bytes: usize },
        Drop { charge: usize },
        Wait,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..60_usize).prop_map(|bytes| Step::Charge { bytes }),
            (any::<usize>(), 0..60_usize).prop_map(|(charge, bytes)| Step::Set { charge, bytes }),
            any::<usize>().prop_map(|charge| Step::Drop { charge }),
            Just(Step::Wait),
        ]
    }

    proptest! {
        /// What is used is what is charged, and whoever waits is woken when there is room and not
        /// before.
        #[test]
        fn it_adds_up_and_nobody_waits_for_room_that_is_there(
            steps in prop::collection::vec(step(), 0..200),
        ) {
            const MAX: usize = 100;
            let budget = Arc::new(Budget::new(MAX));
            let woken = Arc::new(Woken::default());
            let waker = Waker::from(Arc::clone(&woken));
            let cx = Context::from_waker(&waker);
            let mut charges: Vec<Charge> = Vec::new();
            let mut waits = false;
            for step in steps {
                match step {
                    Step::Charge { bytes } => charges.push(Charge::new(&budget, bytes)),
                    Step::Set { charge, bytes } => {
                        if let Some(place) = charge.checked_rem(charges.len()) {
                            charges[place].set(bytes);
                        }
                    }
                    Step::Drop { charge } => {
                        if let Some(place) = charge.checked_rem(charges.len()) {
                            charges.remove(place);
                        }
                    }
                    Step::Wait => waits = budget.poll_room(&cx).is_pending(),
                }
                let used: usize = charges.iter().map(|charge| charge.bytes).sum();
                prop_assert_eq!(budget.used(), used);
                prop_assert_eq!(budget.has_room(), used < MAX);
                let was_woken = woken.0.swap(false, Ordering::Relaxed);
                prop_assert_eq!(was_woken, waits && used < MAX);
                waits &= used >= MAX;
            }
        }
    }
}
