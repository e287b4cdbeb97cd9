//! Documents and queues: in memory, and kept over restarts of the hub as a durable engine keeps them.
//!
//! Changes wait for a disk in one line, as they do in front of the key-value engine's one committer. A
//! crash leaves the first few of those that waited.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fieldpost_model::Timestamp;
use fieldpost_store::documents::{
    Change, ChangeResult, Collection, Document, Documents, Feed, ListRequest, Page, Revision,
};
use fieldpost_store::memory::{MemoryDocuments, MemoryQueues};
use fieldpost_store::queues::{
    DeviceQueues, DuePage, DuePosition, Lane, LaneFigures, ListDue, ListOutcomes, ListQueue,
    Operation, OperationResult, Outcome, QueueName, QueuePage,
};
use fieldpost_store::{Answer, Health, StoreError};
use fieldpost_store_embedded::health::StoreHealth;
use futures_util::FutureExt;
use futures_util::future::pending;
use tokio::sync::{Notify, oneshot, watch};

use crate::store::Gate;

/// Documents and queues of one process.
pub(crate) struct Facets {
    pub(crate) gate: Arc<Gate>,
    pub(crate) health: Arc<StoreHealth>,
    pub(crate) documents: Arc<MemoryDocuments>,
    pub(crate) queues: Arc<MemoryQueues>,
    line: Mutex<VecDeque<Waiting>>,
    /// Rung when a change waits.
    pub(crate) arrived: Notify,
}

/// A change in the line.
type Waiting = Box<dyn FnOnce(Fate) + Send>;

/// What becomes of a change.
enum Fate {
    /// It is durable, and who waits is told.
    Durable,
    /// It is durable, and who waits is told that it failed, if he is still there.
    Untold(StoreError),
    /// It never was.
    Lost(StoreError),
}

impl Facets {
    pub(crate) fn new(
        gate: Arc<Gate>,
        health: Arc<StoreHealth>,
        documents: Arc<MemoryDocuments>,
        queues: Arc<MemoryQueues>,
    ) -> Self {
        Self {
            gate,
            health,
            documents,
            queues,
            line: Mutex::default(),
            arrived: Notify::new(),
        }
    }

    /// Changes in the line.
    pub(crate) fn waiting(&self) -> usize {
        self.line().len()
    }

    /// Makes the oldest changes durable, and tells whoever waits for them.
    pub(crate) fn commit(&self, count: usize) {
        for _ in 0..count {
            let Some(change) = self.line().pop_front() else {
                return;
            };
            change(match self.health.failure() {
                None => Fate::Durable,
                Some(error) => Fate::Lost(error),
            });
        }
    }

    /// Ends the line as a failed sync or a crash does: the first few changes are there, and nobody
    /// is told so.
    pub(crate) fn lose(&self, error: &StoreError) {
        let waiting = std::mem::take(&mut *self.line());
        let durable = self.gate.random().below(waiting.len() as u64 + 1);
        for (at, change) in (0..).zip(waiting) {
            change(if at < durable {
                Fate::Untold(error.clone())
            } else {
                Fate::Lost(error.clone())
            });
        }
    }

    /// Puts a change into the line.
    fn submit<T: Send + 'static>(
        self: &Arc<Self>,
        carry_out: impl FnOnce() -> Answer<Result<T, StoreError>> + Send + 'static,
    ) -> Answer<Result<T, StoreError>> {
        if !self.gate.power.is_on() {
            return pending().boxed();
        }
        let (answer, answered) = oneshot::channel();
        let change: Waiting = Box::new(move |fate| {
            let carry_out = || {
                (carry_out().now_or_never()).expect("the memory engine withholds no answer here")
            };
            let result = match fate {
                Fate::Durable => carry_out(),
                Fate::Untold(error) => carry_out().and(Err(error)),
                Fate::Lost(error) => Err(error),
            };
            // Nobody may wait for it any more.
            let _ = answer.send(result);
        });
        self.line().push_back(change);
        self.arrived.notify_one();
        let gate = Arc::clone(&self.gate);
        async move {
            match answered.await {
                Ok(result) => gate.pass(result).await,
                // The line ended with the process.
                Err(_) => pending().await,
            }
        }
        .boxed()
    }

    fn close(self: &Arc<Self>) -> Answer<()> {
        let this = Arc::clone(self);
        async move {
            this.gate.write().await;
            this.gate.pass(()).await;
            this.commit(usize::MAX);
        }
        .boxed()
    }

    fn line(&self) -> MutexGuard<'_, VecDeque<Waiting>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The documents of one process.
pub(crate) struct SimDocuments(pub(crate) Arc<Facets>);

/// The queues of one process.
pub(crate) struct SimQueues(pub(crate) Arc<Facets>);

impl Documents for SimDocuments {
    fn get(
        &self,
        collection: Collection,
        key: Bytes,
    ) -> Answer<Result<Option<Document>, StoreError>> {
        let documents = Arc::clone(&self.0.documents);
        self.0.gate.read(move || documents.get(collection, key))
    }

    fn apply(&self, changes: Vec<Change>) -> Answer<Result<Vec<ChangeResult>, StoreError>> {
        let documents = Arc::clone(&self.0.documents);
        self.0.submit(move || documents.apply(changes))
    }

    fn list(&self, request: ListRequest) -> Answer<Result<Page, StoreError>> {
        let documents = Arc::clone(&self.0.documents);
        self.0.gate.read(move || documents.list(request))
    }

    fn changes(&self, after: Revision, limit: usize) -> Answer<Result<Feed, StoreError>> {
        let documents = Arc::clone(&self.0.documents);
        self.0.gate.read(move || documents.changes(after, limit))
    }

    fn counts(&self, collection: Collection) -> Vec<(u8, u64)> {
        self.0.documents.counts(collection)
    }

    fn close(&self) -> Answer<()> {
        self.0.close()
    }
}

impl DeviceQueues for SimQueues {
    fn apply(
        &self,
        operations: Vec<Operation>,
    ) -> Answer<Result<Vec<OperationResult>, StoreError>> {
        let queues = Arc::clone(&self.0.queues);
        self.0.submit(move || queues.apply(operations))
    }

    fn list(&self, request: ListQueue) -> Answer<Result<QueuePage, StoreError>> {
        let queues = Arc::clone(&self.0.queues);
        self.0.gate.read(move || queues.list(request))
    }

    fn depths(&self, names: Vec<QueueName>) -> Answer<Result<Vec<u64>, StoreError>> {
        let queues = Arc::clone(&self.0.queues);
        self.0.gate.read(move || queues.depths(names))
    }

    fn due(&self, request: ListDue) -> Answer<Result<DuePage, StoreError>> {
        let queues = Arc::clone(&self.0.queues);
        self.0.gate.read(move || queues.due(request))
    }

    fn next_due(
        &self,
        after: Option<DuePosition>,
    ) -> Answer<Result<Option<Timestamp>, StoreError>> {
        let queues = Arc::clone(&self.0.queues);
        self.0.gate.read(move || queues.next_due(after))
    }

    fn outcomes(&self, request: ListOutcomes) -> Answer<Result<Vec<Outcome>, StoreError>> {
        let queues = Arc::clone(&self.0.queues);
        self.0.gate.read(move || queues.outcomes(request))
    }

    fn lane(&self, lane: Lane) -> LaneFigures {
        self.0.queues.lane(lane)
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.0.health.subscribe()
    }

    fn close(&self) -> Answer<()> {
        self.0.close()
    }
}
