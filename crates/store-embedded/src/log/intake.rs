//! The queue between those who submit and the one who commits.
//!
//! First come, first served. A connection that floods is bounded by its own window, so it cannot
//! put more in front of the others than that window holds.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use fieldpost_store::StoreError;
use fieldpost_store::log::Submission;

/// A batch that the log has taken on. Whatever becomes of it, whoever submitted it is told.
pub(super) struct Accepted(Submission);

impl Deref for Accepted {
    type Target = Submission;

    fn deref(&self) -> &Submission {
        &self.0
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        // Only a panic comes between a batch and its answer.
        if !self.completion.is_decided(self.number) {
            self.completion.set_failed(StoreError::ReadOnly {
                reason: "the log was left without an answer to a batch".into(),
            });
            self.completion.wake();
        }
    }
}

/// Batches that were submitted and not yet taken by the committer.
#[derive(Default)]
pub(super) struct Intake {
    queue: Mutex<Queue>,
    arrived: Condvar,
    /// Batches submitted and not yet decided on, those that the committer holds included.
    pub(super) waiting: AtomicU64,
}

#[derive(Default)]
struct Queue {
    batches: Vec<Accepted>,
    /// The committer sleeps; whoever comes first wakes it.
    sleeping: bool,
    /// Somebody asks the committer to look around although there are no batches.
    nudged: bool,
    /// The committer waits for room.
    held: bool,
    closing: bool,
    /// Nothing is taken any more, and why.
    refused: Option<StoreError>,
}

/// Why the committer woke up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// There is something to look at.
    Work,
    /// The log is being closed; what was taken now is all there will be.
    Closing,
}

impl Intake {
    /// Queues a batch.
    pub(super) fn submit(&self, submission: Submission) -> Result<(), StoreError> {
        let mut queue = self.lock();
        if let Some(error) = &queue.refused {
            return Err(error.clone());
        }
        queue.batches.push(Accepted(submission));
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let wake = std::mem::take(&mut queue.sleeping);
        drop(queue);
        if wake {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Takes all that is queued, without waiting. `into` must be empty; its memory is used for
    /// what comes next.
    pub(super) fn take(&self, into: &mut Vec<Accepted>) -> Woken {
        let mut queue = self.lock();
        queue.take(into)
    }

    /// Takes all that is queued, and waits when there is nothing.
    pub(super) fn wait(&self, into: &mut Vec<Accepted>) -> Woken {
        let mut queue = self.lock();
        while queue.batches.is_empty() && !queue.closing && !queue.nudged {
            queue.sleeping = true;
            queue = self
                .arrived
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        queue.sleeping = false;
        queue.take(into)
    }

    /// Waits for a nudge and leaves batches where they are: the committer holds more than it can
    /// write at the moment.
    pub(super) fn wait_for_nudge(&self) -> Woken {
        let mut queue = self.lock();
        while !queue.closing && !queue.nudged {
            queue.held = true;
            queue = self
                .arrived
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        queue.held = false;
        queue.nudged = false;
        if queue.closing {
            Woken::Closing
        } else {
            Woken::Work
        }
    }

    /// Makes the committer look around.
    pub(super) fn nudge(&self) {
        self.lock().nudged = true;
        self.arrived.notify_one();
    }

    /// Makes the committer try again if it waits for room.
    pub(super) fn nudge_held(&self) {
        let mut queue = self.lock();
        if queue.held {
            queue.nudged = true;
            self.arrived.notify_one();
        }
    }

    /// Takes nothing more and lets the committer come to its end.
    pub(super) fn close(&self) {
        let mut queue = self.lock();
        queue.closing = true;
        queue.refused.get_or_insert(StoreError::Closed);
        drop(queue);
        self.arrived.notify_one();
    }

    /// Takes nothing more because of a failure, and gives what was queued.
    pub(super) fn refuse(&self, error: StoreError) -> Vec<Accepted> {
        let mut queue = self.lock();
        queue.refused = Some(error);
        std::mem::take(&mut queue.batches)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing under the lock panics half way through a change.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn take(&mut self, into: &mut Vec<Accepted>) -> Woken {
        self.nudged = false;
        if into.is_empty() {
            std::mem::swap(&mut self.batches, into);
        } else {
            into.append(&mut self.batches);
        }
        if self.closing {
            Woken::Closing
        } else {
            Woken::Work
        }
    }
}
