//! The one writer: groups what is waiting of both facets, decides each operation, writes once,
//! answers everybody.
//!
//! The engine holds its lock while it syncs, so that callers on many threads would each pay for a
//! sync of their own. Grouping is therefore done here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use fieldpost_store::documents::{Action, Change, ChangeResult};
use fieldpost_store::queues::{Operation, OperationResult};
use fieldpost_store::{HealthLevel, StoreError};
use tokio::sync::oneshot;

use super::engine::{Engine, Writes};
use super::waiting::Waiting;
use crate::documents::group::{DocumentsGroup, DocumentsWriter};
use crate::health::StoreHealth;
use crate::queues::group::{QueuesGroup, QueuesWriter};

/// The most bytes of keys and values that one group takes, unless a single batch is larger.
const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;

/// What each change or operation is taken for besides its key and value.
const STEP_BYTES: usize = 64;

/// Whom to answer.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// A batch of one facet and whom to answer.
pub(crate) enum Request {
    /// Changes of documents.
    Documents {
        changes: Vec<Change>,
        answer: Answer<Vec<ChangeResult>>,
    },
    /// Operations on queues.
    Queues {
        operations: Vec<Operation>,
        answer: Answer<Vec<OperationResult>>,
    },
    /// Answered when everything before it is durable.
    Barrier { answer: Answer<()> },
}

/// A request that waits.
pub(crate) struct Submitted {
    bytes: usize,
    request: Request,
}

impl From<Request> for Submitted {
    fn from(request: Request) -> Self {
        let bytes = match &request {
            Request::Documents { changes, .. } => changes.iter().map(change_bytes).sum(),
            Request::Queues { operations, .. } => operations.iter().map(operation_bytes).sum(),
            Request::Barrier { .. } => 0,
        };
        Self { bytes, request }
    }
}

impl Submitted {
    /// How many operations on queues it holds.
    fn operations(&self) -> usize {
        match &self.request {
            Request::Queues { operations, .. } => operations.len(),
            Request::Documents { .. } | Request::Barrier { .. } => 0,
        }
    }
}

/// The state of the writer's thread.
pub(crate) struct Committer {
    pub(super) engine: Arc<dyn Engine>,
    pub(super) health: Arc<StoreHealth>,
    pub(super) documents: DocumentsWriter,
    pub(super) queues: QueuesWriter,
}

impl Committer {
    /// Commits groups until nothing waits and nothing comes any more.
    pub(super) fn run(&mut self, waiting: &Waiting<Submitted>) {
        loop {
            let mut bytes = 0usize;
            let group = waiting.take(|submitted| {
                bytes = bytes.saturating_add(submitted.bytes);
                bytes <= GROUP_BYTES_MAX
            });
            if group.is_empty() {
                return;
            }
            // An engine that trips over its own files must not take the waiting callers with it.
            let committed = catch_unwind(AssertUnwindSafe(|| self.commit(group)));
            if committed.is_err() {
                self.health
                    .fail("the writer of documents and queues panicked");
            }
        }
    }

    fn commit(&mut self, submitted: Vec<Submitted>) {
        if let Some(error) = self.health.failure() {
            for Submitted { request, .. } in submitted {
                request.refuse(&error);
            }
            return;
        }
        let engine = Arc::clone(&self.engine);
        let view = engine.snapshot();
        let mut documents = DocumentsGroup::new(&*view, &self.documents);
        let room = self.health.disk_level() < HealthLevel::HoldMessages;
        let operations = submitted.iter().map(Submitted::operations).sum();
        let mut queues = QueuesGroup::new(&*view, &self.queues, room, operations);
        let mut decided = Vec::with_capacity(submitted.len());
        let mut bytes = 0;
        let mut submitted = submitted.into_iter();
        while let Some(Submitted {
            request,
            bytes: more,
        }) = submitted.next()
        {
            bytes += more;
            match request {
                Request::Documents { changes, answer } => {
                    let result = documents.take_batch(changes);
                    decided.push(Decided::Documents { answer, result });
                }
                Request::Queues { operations, answer } => {
                    if let Err(error) = queues.prepare(&operations) {
                        let result = Err(error);
                        decided.push(Decided::Queues { answer, result });
                        continue;
                    }
                    let result = queues.take_batch(operations);
                    let failed = result.as_ref().err().cloned();
                    decided.push(Decided::Queues { answer, result });
                    if let Some(error) = failed {
                        // A part of a batch may have been decided; nothing of the group is written.
                        for Submitted { request, .. } in submitted {
                            request.refuse(&error);
                        }
                        for decided in decided {
                            decided.refuse(&error);
                        }
                        return;
                    }
                }
                Request::Barrier { answer } => decided.push(Decided::Barrier { answer }),
            }
        }
        // Keys and checks come twice for a message.
        let mut writes = Writes::with_capacity(bytes.saturating_mul(2));
        let documents = documents.finish(&mut writes);
        let queues = queues.finish(&mut writes);
        drop(view);
        if !writes.is_empty()
            && let Err(error) = engine.apply(&writes)
        {
            self.health
                .fail(format!("writing documents and queues: {error}"));
            let error = self.health.failure().unwrap_or(StoreError::Closed);
            for decided in decided {
                decided.refuse(&error);
            }
            return;
        }
        self.documents.committed(documents);
        self.queues.committed(queues);
        for decided in decided {
            decided.tell();
        }
    }
}

/// What became of a request, once the group is durable.
enum Decided {
    Documents {
        answer: Answer<Vec<ChangeResult>>,
        result: Result<Vec<ChangeResult>, StoreError>,
    },
    Queues {
        answer: Answer<Vec<OperationResult>>,
        result: Result<Vec<OperationResult>, StoreError>,
    },
    Barrier {
        answer: Answer<()>,
    },
}

// Whoever gave up waiting needs no answer.
impl Decided {
    fn tell(self) {
        match self {
            Self::Documents { answer, result } => drop(answer.send(result)),
            Self::Queues { answer, result } => drop(answer.send(result)),
            Self::Barrier { answer } => drop(answer.send(Ok(()))),
        }
    }

    fn refuse(self, error: &StoreError) {
        match self {
            Self::Documents { answer, .. } => drop(answer.send(Err(error.clone()))),
            Self::Queues { answer, .. } => drop(answer.send(Err(error.clone()))),
            Self::Barrier { answer } => drop(answer.send(Err(error.clone()))),
        }
    }
}

impl Request {
    fn refuse(self, error: &StoreError) {
        match self {
            Self::Documents { answer, .. } => drop(answer.send(Err(error.clone()))),
            Self::Queues { answer, .. } => drop(answer.send(Err(error.clone()))),
            Self::Barrier { answer } => drop(answer.send(Err(error.clone()))),
        }
    }
}

fn change_bytes(change: &Change) -> usize {
    let value = match &change.action {
        Action::Put { value, .. } => value.len(),
        Action::Delete => 0,
    };
    STEP_BYTES + change.key.len() + value
}

fn operation_bytes(operation: &Operation) -> usize {
    let queue = operation.queue().map_or(0, |queue| queue.0.len());
    let content = match operation {
        Operation::Enqueue { message, .. } => message.len(),
        Operation::Settle { outcomes, .. } => {
            let lengths = outcomes.iter().map(|(_, record)| record.len() + queue);
            lengths.sum()
        }
        Operation::Record { record, .. } => record.len(),
        Operation::SetDeliveryCount { .. }
        | Operation::Drop { .. }
        | Operation::Forget { .. }
        | Operation::Remove { .. } => 0,
    };
    STEP_BYTES + queue + content
}
