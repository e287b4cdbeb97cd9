//! The memory engine: the reference for the contract, and the store of tests.
//!
//! It keeps everything in maps under one lock per facet and forgets it when it is dropped. Besides
//! being right, it can be told to go wrong: commits can be stepped by hand, failed and withheld,
//! so that order and fairness above it can be shown without chance.

mod documents;
mod log;
mod queues;
mod switches;

use std::sync::Arc;

use fieldpost_model::{Clock, Partitioning};
use tokio::sync::watch;

pub use documents::MemoryDocuments;
pub use log::{GROUP_BYTES_MAX, MemoryLog};
pub use queues::MemoryQueues;

use crate::{Health, HealthLevel, Store, StoreError};

/// A store in memory that commits everything at once.
#[must_use]
pub fn store(partitioning: Partitioning, clock: Arc<dyn Clock>) -> Store {
    MemoryStore::automatic(partitioning, clock).store()
}

/// All facets in memory, with the handles that tests steer them by.
///
/// The facets share their health, as those of a durable engine do.
#[derive(Clone)]
pub struct MemoryStore {
    /// The event log.
    pub log: Arc<MemoryLog>,
    /// The documents.
    pub documents: Arc<MemoryDocuments>,
    /// The device queues.
    pub queues: Arc<MemoryQueues>,
}

impl MemoryStore {
    /// Commits each submission before `submit` returns.
    #[must_use]
    pub fn automatic(partitioning: Partitioning, clock: Arc<dyn Clock>) -> Self {
        Self::new(partitioning, clock, false)
    }

    /// Commits submissions to the log in [`MemoryLog::step`] only. The other facets are not stepped.
    #[must_use]
    pub fn manual(partitioning: Partitioning, clock: Arc<dyn Clock>) -> Self {
        Self::new(partitioning, clock, true)
    }

    /// The facets as the hub takes them.
    #[must_use]
    pub fn store(&self) -> Store {
        Store {
            log: Arc::clone(&self.log) as _,
            documents: Arc::clone(&self.documents) as _,
            queues: Arc::clone(&self.queues) as _,
        }
    }

    fn new(partitioning: Partitioning, clock: Arc<dyn Clock>, manual: bool) -> Self {
        let health = SharedHealth::default();
        let log = MemoryLog::sharing(Arc::clone(&health), partitioning, clock, manual);
        Self {
            log: Arc::new(log),
            documents: Arc::new(MemoryDocuments::sharing(Arc::clone(&health))),
            queues: Arc::new(MemoryQueues::sharing(health)),
        }
    }
}

/// The health shared by the facets.
type SharedHealth = Arc<MemoryHealth>;

/// The health of a store, and that of all of it but the log.
#[derive(Debug)]
struct MemoryHealth {
    /// Of facets that the log's own bound does not concern.
    facets: watch::Sender<Health>,
    whole: watch::Sender<Health>,
}

impl Default for MemoryHealth {
    fn default() -> Self {
        Self {
            facets: watch::Sender::new(Health::OK),
            whole: watch::Sender::new(Health::OK),
        }
    }
}

impl MemoryHealth {
    /// Sets the health of all facets.
    fn set(&self, health: Health) {
        self.facets.send_replace(health.clone());
        self.whole.send_replace(health);
    }

    /// The log holds messages back, or does no longer.
    fn hold_log(&self, hold: bool) {
        self.whole.send_if_modified(|health| {
            let (from, to) = if hold {
                (HealthLevel::Ok, HealthLevel::HoldMessages)
            } else {
                (HealthLevel::HoldMessages, HealthLevel::Ok)
            };
            // A worse state has causes of its own.
            if health.level != from {
                return false;
            }
            health.level = to;
            health.reason = hold.then(|| "the log holds as many bytes as it may".into());
            true
        });
    }

    /// Turns the store read-only as a failed sync does and gives the error for the waiting callers.
    fn fail(&self) -> StoreError {
        let reason: Arc<str> = "an injected failure".into();
        self.set(Health {
            level: HealthLevel::ReadOnly,
            reason: Some(Arc::clone(&reason)),
        });
        StoreError::ReadOnly { reason }
    }
}

/// Why a write of a kind that is held from `held_from` on is refused now, if it is.
fn refusal(health: &watch::Sender<Health>, held_from: HealthLevel) -> Option<StoreError> {
    let health = health.borrow();
    match health.level {
        HealthLevel::ReadOnly => Some(StoreError::ReadOnly {
            reason: health.reason.clone().unwrap_or_else(|| "unknown".into()),
        }),
        level if level >= held_from => Some(StoreError::Full),
        _ => None,
    }
}
