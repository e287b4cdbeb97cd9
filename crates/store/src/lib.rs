//! The storage contract.
//!
//! State is cut into *facets*: an event log, documents, and device queues. An operation on a facet
//! is a conditional state transition, evaluated by the store, submitted in batches and answered once
//! per batch, **after** the batch is on stable storage. There is no get/put, no cursor over raw keys
//! and no transaction across facets: whoever needs two facets to change writes the cause first and
//! derives the effect, idempotently.
//!
//! The store sees bytes. It knows nothing of devices' rights, routing or protocols. Locks, delivery
//! attempts and presence are live state of the hub and never reach it.
//!
//! [`memory`] is the reference engine; with the feature `suite`, the module `suite` holds the
//! contract as tests that every engine runs.

pub mod documents;
pub mod error;
pub mod health;
pub mod log;
pub mod memory;
pub mod queues;
#[cfg(feature = "suite")]
pub mod suite;

use std::sync::Arc;

pub use error::StoreError;
pub use health::{Health, HealthLevel};

/// The future of an operation that a storage engine answers later.
///
/// Dropping one abandons the answer and never the operation.
pub type Answer<T> = futures_util::future::BoxFuture<'static, T>;

/// One engine's facets.
#[derive(Clone)]
pub struct Store {
    /// Device-to-cloud events.
    pub log: Arc<dyn log::EventLog>,
    /// Identities, settings, MQTT sessions.
    pub documents: Arc<dyn documents::Documents>,
    /// Messages that wait for one receiver each, and what became of them.
    pub queues: Arc<dyn queues::DeviceQueues>,
}
