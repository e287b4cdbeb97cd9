//! Queues that count what is read, and keep answers back.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use fieldpost_model::Timestamp;
use fieldpost_store::memory::MemoryQueues;
use fieldpost_store::queues::{
    DeviceQueues, DuePage, DuePosition, Lane, LaneFigures, ListDue, ListOutcomes, ListQueue,
    Operation, OperationResult, Outcome, QueueName, QueuePage,
};
use fieldpost_store::{Answer, Health, StoreError};
use tokio::sync::{oneshot, watch};

/// More reads of lanes than any test needs: whoever reads more is busy for nothing, and is stopped.
const READS_MAX: u64 = 10_000;

pub(crate) struct WatchedQueues {
    inner: Arc<MemoryQueues>,
    reads: AtomicU64,
    batches: AtomicU64,
    holds_lists: AtomicBool,
    refuses_settlements: AtomicBool,
    /// The message that cannot be taken out, or 0.
    stuck: AtomicU64,
    has_marks: AtomicBool,
    held: Mutex<VecDeque<oneshot::Sender<()>>>,
}

impl WatchedQueues {
    pub(crate) fn new(inner: &Arc<MemoryQueues>) -> Self {
        Self {
            inner: Arc::clone(inner),
            reads: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            holds_lists: AtomicBool::new(false),
            refuses_settlements: AtomicBool::new(false),
            stuck: AtomicU64::new(0),
            has_marks: AtomicBool::new(true),
            held: Mutex::default(),
        }
    }

    /// Reads of lanes since the last call.
    pub(crate) fn take_reads(&self) -> u64 {
        self.reads.swap(0, Ordering::Relaxed)
    }

    /// Batches since the last call.
    pub(crate) fn take_batches(&self) -> u64 {
        self.batches.swap(0, Ordering::Relaxed)
    }

    /// Keeps back what is read of queues from now on.
    pub(crate) fn hold_lists(&self) {
        self.holds_lists.store(true, Ordering::Relaxed);
    }

    /// From now on batches that settle something fail, each time.
    pub(crate) fn refuse_settlements(&self) {
        self.refuses_settlements.store(true, Ordering::Relaxed);
    }

    /// From now on a message can be read and not taken out.
    pub(crate) fn stick(&self, sequence: u64) {
        self.stuck.store(sequence, Ordering::Relaxed);
    }

    /// From now on no mark of what was done once can be read.
    pub(crate) fn damage_marks(&self) {
        self.has_marks.store(false, Ordering::Relaxed);
    }

    /// How many answers are kept back.
    pub(crate) fn lists_held(&self) -> u64 {
        self.held.lock().unwrap().len() as u64
    }

    /// Lets the oldest of them go.
    pub(crate) fn release_list(&self) {
        let first = self.held.lock().unwrap().pop_front();
        first.unwrap().send(()).unwrap();
    }
}

impl DeviceQueues for WatchedQueues {
    fn apply(
        &self,
        operations: Vec<Operation>,
    ) -> Answer<Result<Vec<OperationResult>, StoreError>> {
        self.batches.fetch_add(1, Ordering::Relaxed);
        let settles = |operation: &Operation| matches!(operation, Operation::Settle { .. });
        if self.refuses_settlements.load(Ordering::Relaxed) && operations.iter().any(settles) {
            let reason = "refused".into();
            return Box::pin(std::future::ready(Err(StoreError::Read { reason })));
        }
        let stuck = self.stuck.load(Ordering::Relaxed);
        let is_stuck = |operation: &Operation| match operation {
            Operation::Settle { sequence, .. } => *sequence == stuck,
            _ => false,
        };
        if operations.iter().any(is_stuck) {
            return Box::pin(std::future::ready(Err(StoreError::Damaged {
                what: format!("message {stuck}").into(),
                resume: None,
            })));
        }
        let is_marked =
            |operation: &Operation| matches!(operation, Operation::Enqueue { once: Some(_), .. });
        if !self.has_marks.load(Ordering::Relaxed) && operations.iter().any(is_marked) {
            return Box::pin(std::future::ready(Err(StoreError::Damaged {
                what: "marks".into(),
                resume: None,
            })));
        }
        self.inner.apply(operations)
    }

    fn list(&self, request: ListQueue) -> Answer<Result<QueuePage, StoreError>> {
        let page = self.inner.list(request);
        if !self.holds_lists.load(Ordering::Relaxed) {
            return page;
        }
        let (release, released) = oneshot::channel();
        self.held.lock().unwrap().push_back(release);
        Box::pin(async move {
            released.await.unwrap();
            page.await
        })
    }

    fn depths(&self, queues: Vec<QueueName>) -> Answer<Result<Vec<u64>, StoreError>> {
        self.inner.depths(queues)
    }

    fn due(&self, request: ListDue) -> Answer<Result<DuePage, StoreError>> {
        self.inner.due(request)
    }

    fn next_due(
        &self,
        after: Option<DuePosition>,
    ) -> Answer<Result<Option<Timestamp>, StoreError>> {
        self.inner.next_due(after)
    }

    fn outcomes(&self, request: ListOutcomes) -> Answer<Result<Vec<Outcome>, StoreError>> {
        if self.reads.fetch_add(1, Ordering::Relaxed) > READS_MAX {
            return Box::pin(std::future::pending());
        }
        self.inner.outcomes(request)
    }

    fn lane(&self, lane: Lane) -> LaneFigures {
        self.inner.lane(lane)
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.inner.health()
    }

    fn close(&self) -> Answer<()> {
        self.inner.close()
    }
}
