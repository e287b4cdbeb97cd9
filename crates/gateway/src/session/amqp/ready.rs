//! Which of a connection's many parts have something to do.
//!
//! A connection may carry a thousand devices. Whatever wakes one of them rings its bell, and the
//! connection's task then asks those alone whose bell has rung.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// The bells that have rung, in order.
pub(super) struct Ready<K> {
    /// Guards the list; nothing else is taken while it is held.
    rung: Mutex<Vec<Arc<Bell<K>>>>,
    task: AtomicWaker,
}

/// What wakes one part.
pub(super) struct Bell<K> {
    /// Whose it is.
    pub(super) key: K,
    /// It is in the list.
    is_rung: AtomicBool,
    /// The list may hold this bell when the connection ends.
    ready: Weak<Ready<K>>,
}

impl<K> Default for Ready<K> {
    fn default() -> Self {
        Self {
            rung: Mutex::default(),
            task: AtomicWaker::new(),
        }
    }
}

impl<K: Send + Sync + 'static> Ready<K> {
    /// A bell for a new part. It has rung: whatever is new wants to be asked.
    pub(super) fn bell(self: &Arc<Self>, key: K) -> Arc<Bell<K>> {
        let bell = Arc::new(Bell {
            key,
            is_rung: AtomicBool::new(false),
            ready: Arc::downgrade(self),
        });
        bell.ring();
        bell
    }

    /// Whose bells have rung since the last time. Each is rung anew by whatever happens from here on.
    pub(super) fn poll_rung(&self, cx: &Context<'_>) -> Poll<Vec<Arc<Bell<K>>>> {
        self.task.register(cx.waker());
        let rung = std::mem::take(&mut *self.rung.lock().unwrap_or_else(PoisonError::into_inner));
        if rung.is_empty() {
            return Poll::Pending;
        }
        for bell in &rung {
            bell.is_rung.store(false, Ordering::Release);
        }
        Poll::Ready(rung)
    }
}

impl<K: Send + Sync + 'static> Bell<K> {
    /// Has the part asked.
    pub(super) fn ring(self: &Arc<Self>) {
        if self.is_rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(ready) = self.ready.upgrade() else {
            return;
        };
        let mut rung = ready.rung.lock().unwrap_or_else(PoisonError::into_inner);
        rung.push(Arc::clone(self));
        drop(rung);
        ready.task.wake();
    }

    /// Something that rings it.
    pub(super) fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::clone(self))
    }
}

impl<K: Send + Sync + 'static> Wake for Bell<K> {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::task::noop_waker_ref;

    use super::*;

    #[test]
    fn each_bell_is_told_once_until_it_rings_again() {
        let ready = Arc::new(Ready::default());
        let (first, second) = (ready.bell(1), ready.bell(2));
        let rung = || {
            let cx = Context::from_waker(noop_waker_ref());
            match ready.poll_rung(&cx) {
                Poll::Ready(rung) => rung.iter().map(|bell| bell.key).collect(),
                Poll::Pending => Vec::new(),
            }
        };
        assert_eq!(rung(), [1, 2]);
        assert_eq!(rung(), Vec::<i32>::new());
        second.waker().wake();
        second.ring();
        assert_eq!(rung(), [2]);
        first.waker().wake_by_ref();
        assert_eq!(rung(), [1]);
    }

    #[test]
    fn a_bell_wakes_the_task() {
        struct Woken(AtomicBool);
        impl Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.store(true, Ordering::Release);
            }
        }
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let waker = Waker::from(Arc::clone(&woken));
        let ready = Arc::new(Ready::default());
        let bell = ready.bell(());
        assert!(ready.poll_rung(&Context::from_waker(&waker)).is_ready());
        assert!(ready.poll_rung(&Context::from_waker(&waker)).is_pending());
        bell.ring();
        assert!(woken.0.load(Ordering::Acquire));
    }
}
