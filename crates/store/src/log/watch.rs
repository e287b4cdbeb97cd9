//! Waking readers that have reached the end of a partition.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;

/// A reader's bell, rung by the log after a group. One serves any number of partitions, and one
/// task.
#[derive(Debug, Default)]
pub struct TailWatch {
    rung: AtomicBool,
    waker: AtomicWaker,
}

impl TailWatch {
    /// Rings the bell. Called by engines, at most once per group.
    pub fn ring(&self) {
        // A bell that nobody has answered yet needs no second ring.
        if !self.rung.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// Ready when the bell was rung since the last time this was ready.
    ///
    /// One task polls it: a second one would take the place of the first, which then sleeps on.
    /// The reader looks at its partitions after this is ready, so nothing is missed.
    pub fn poll_rung(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.rung.swap(false, Ordering::AcqRel) {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        if self.rung.swap(false, Ordering::AcqRel) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}
