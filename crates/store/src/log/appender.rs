//! The writer's end of the log: submit in order, learn how far it is durable.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;

use super::{Batch, EventLog};
use crate::StoreError;

/// A batch on its way to the committer.
#[derive(Debug)]
pub struct Submission {
    /// What is to be appended.
    pub batch: Batch,
    /// The number of the batch at its appender, from 1.
    pub number: u64,
    /// Whom to tell.
    pub completion: Arc<Completion>,
}

/// Shared by an appender and the committer: how far the appender's batches are durable.
///
/// One wake-up serves all batches of a group: engines record every batch of a group as durable
/// first and wake afterwards.
#[derive(Debug, Default)]
pub struct Completion {
    durable: AtomicU64,
    failed: OnceLock<StoreError>,
    waker: AtomicWaker,
}

impl Completion {
    /// Records that the batches up to `number` are durable. Called by engines, in order.
    pub fn set_durable(&self, number: u64) {
        self.durable.store(number, Ordering::Release);
    }

    /// Records that no further batch will become durable. Called by engines.
    pub fn set_failed(&self, error: StoreError) {
        // The first failure is the cause of the later ones.
        let _ = self.failed.set(error);
    }

    /// Whether the appender was told of the batch with this number, be it durable or failed.
    #[must_use]
    pub fn is_decided(&self, number: u64) -> bool {
        self.durable.load(Ordering::Acquire) >= number || self.failed.get().is_some()
    }

    /// Wakes the appender. Called by engines after all of a group is recorded.
    pub fn wake(&self) {
        self.waker.wake();
    }
}

/// Appends batches to a log in order. One per connection; owned by one task.
///
/// Dropping an appender abandons the answers and not the batches.
pub struct Appender {
    log: Arc<dyn EventLog>,
    /// Made with the first batch: most connections never have one.
    completion: Option<Arc<Completion>>,
    submitted: u64,
    reported: u64,
}

impl Appender {
    /// An appender for `log`.
    #[must_use]
    pub fn new(log: Arc<dyn EventLog>) -> Self {
        Self {
            log,
            completion: None,
            submitted: 0,
            reported: 0,
        }
    }

    /// Submits a batch and returns its number, one more than the last.
    ///
    /// # Errors
    /// When the log takes no messages at the moment. The batch is dropped and has no number.
    pub fn submit(&mut self, batch: Batch) -> Result<u64, StoreError> {
        let number = self.submitted + 1;
        self.log.submit(Submission {
            batch,
            number,
            completion: Arc::clone(self.completion.get_or_insert_default()),
        })?;
        self.submitted = number;
        Ok(number)
    }

    /// The number of the last batch submitted; 0 before the first.
    #[must_use]
    pub fn submitted(&self) -> u64 {
        self.submitted
    }

    /// The number of the last batch reported durable; 0 before the first.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.reported
    }

    /// Ready when more batches are durable than were last reported; gives the highest number. Before
    /// the first batch it leaves no waker behind, so that it is to be called again after that.
    ///
    /// # Errors
    /// When the log failed and nothing more will become durable.
    pub fn poll_durable(&mut self, cx: &mut Context<'_>) -> Poll<Result<u64, StoreError>> {
        if let Some(news) = self.news() {
            return Poll::Ready(news);
        }
        let Some(completion) = &self.completion else {
            return Poll::Pending;
        };
        completion.waker.register(cx.waker());
        // What happened between the look and the registration must not be missed.
        self.news().map_or(Poll::Pending, Poll::Ready)
    }

    fn news(&mut self) -> Option<Result<u64, StoreError>> {
        let completion = self.completion.as_ref()?;
        let durable = completion.durable.load(Ordering::Acquire);
        if durable > self.reported {
            self.reported = durable;
            return Some(Ok(durable));
        }
        if self.submitted > durable {
            return completion.failed.get().map(|error| Err(error.clone()));
        }
        None
    }
}
