//! What waits between callers and the threads of the store.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// First in, first out. What is in it is bounded by its callers: each connection and each request
/// has one unanswered operation at a time.
pub(crate) struct Waiting<T> {
    state: Mutex<State<T>>,
    news: Condvar,
}

struct State<T> {
    items: VecDeque<T>,
    closed: bool,
}

impl<T> Waiting<T> {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                items: VecDeque::new(),
                closed: false,
            }),
            news: Condvar::new(),
        }
    }

    /// Adds an item unless the queue is closed, which gives it back.
    pub(crate) fn push(&self, item: T) -> Result<(), T> {
        let mut state = self.lock();
        if state.closed {
            return Err(item);
        }
        state.items.push_back(item);
        drop(state);
        self.news.notify_one();
        Ok(())
    }

    /// Waits for items and takes the first of them and, from the rest, as many as `fits` allows.
    /// Empty once the queue is closed and everything was taken.
    pub(crate) fn take(&self, mut fits: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut state = self.lock();
        while state.items.is_empty() && !state.closed {
            state = self
                .news
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let mut count = 0;
        for item in &state.items {
            if !fits(item) && count > 0 {
                break;
            }
            count += 1;
        }
        state.items.drain(..count).collect()
    }

    /// Takes no more items.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.news.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing under the lock panics half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
