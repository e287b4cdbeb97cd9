//! Device-to-cloud messages on their way into the log.
//!
//! What is promised: a message is acknowledged only after it is durable; the messages of a device
//! stand in the log in the order in which they were accepted; and however many senders there are,
//! memory for messages that are not yet durable is bounded, each connection by its window and all
//! together by one byte budget that is served in turn.

mod budget;
mod sender;
mod warden;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fieldpost_store::log::EventLog;
use fieldpost_store::{HealthLevel, Store, StoreError};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

pub use sender::Sender;

use crate::auth::DevicePrincipal;
use crate::clock::Timer;
use crate::faults::Faults;
use crate::probe::Probe;
use crate::throttles::{MessageLimit, Throttled, Throttles};
use budget::{Budget, Turn};
use warden::Orphan;

/// Messages of one connection that are not yet durable, at most. A batch that a client sent as one
/// unit is not cut for it.
pub const WINDOW_MESSAGES: usize = 256;

/// Bytes of messages of one connection that are not yet durable, at most.
pub const WINDOW_BYTES: usize = 1024 * 1024;

/// What is taken from the byte budget before a read from a connection, and the most that such a
/// read should bring. Afterwards the true size of the messages takes its place, which is more when
/// the read was the end of a message whose beginning was counted as incomplete until then.
pub const READ_RESERVATION: usize = 64 * 1024;

/// Accepts messages.
pub struct Ingest {
    inner: Arc<Inner>,
    warden: Mutex<Option<Warden>>,
}

struct Warden {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Shared by all senders.
struct Inner {
    log: Arc<dyn EventLog>,
    timer: Arc<dyn Timer>,
    throttles: Throttles,
    /// Of a hub in test mode.
    probe: Option<Arc<Probe>>,
    /// The same.
    faults: Option<Arc<Faults>>,
    budget: Budget,
    /// The position of the current level in [`LEVELS`].
    level: AtomicU8,
    /// Senders whose batches the log did not take, to be woken when it does.
    held: Mutex<Vec<Arc<Turn>>>,
    /// Batches whose connection is gone. Bounded by the byte budget.
    orphans: mpsc::UnboundedSender<Orphan>,
    messages: metrics::Counter,
    bytes: metrics::Counter,
}

const LEVELS: [HealthLevel; 4] = [
    HealthLevel::Ok,
    HealthLevel::HoldMessages,
    HealthLevel::HoldAll,
    HealthLevel::ReadOnly,
];

/// Whether messages are held back because of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// They are not.
    None,
    /// The disk is nearly full; it goes on by itself when there is space.
    Held {
        /// Since when, on the monotonic clock.
        since: Duration,
    },
    /// The store takes nothing until it is opened anew.
    ReadOnly,
}

/// Why a message is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageRefused {
    /// The message, or all messages of a batch together, are too large.
    #[error("a message or batch has at most {max} bytes, this one has {size}")]
    TooLarge {
        /// Body, values of system properties, names and values of application properties, in
        /// bytes.
        size: usize,
        /// The most there can be.
        max: usize,
    },
    /// Too many come; it goes on by itself.
    #[error(transparent)]
    Throttled(Throttled),
    /// As many came today as may come.
    #[error("the quota of messages is used up")]
    QuotaExceeded,
}

impl From<MessageLimit> for MessageRefused {
    fn from(limit: MessageLimit) -> Self {
        match limit {
            MessageLimit::Throttled(throttled) => Self::Throttled(throttled),
            MessageLimit::QuotaExceeded => Self::QuotaExceeded,
        }
    }
}

/// Why accepted messages will not become durable. None of those that were not yet reported durable
/// may be acknowledged.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IngestError {
    /// The store failed or is closed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Ingest {
    /// Starts accepting; `in_flight_bytes` is the byte budget.
    pub(crate) fn start(
        store: &Store,
        timer: Arc<dyn Timer>,
        in_flight_bytes: usize,
        throttles: Throttles,
        probe: Option<Arc<Probe>>,
        faults: Option<Arc<Faults>>,
    ) -> Self {
        let (orphans, orphan_queue) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            log: Arc::clone(&store.log),
            timer,
            throttles,
            probe,
            faults,
            budget: Budget::new(in_flight_bytes),
            level: AtomicU8::new(0),
            held: Mutex::default(),
            orphans,
            messages: metrics::counter!("fieldpost_messages_durable_total"),
            bytes: metrics::counter!("fieldpost_message_bytes_durable_total"),
        });
        let health = store.log.health();
        inner.set_level(health.borrow().level);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(warden::run(
            Arc::clone(&inner),
            health,
            orphan_queue,
            stopped,
        ));
        Self {
            inner,
            warden: Mutex::new(Some(Warden { stop, task })),
        }
    }

    /// A sender for one identity on one connection.
    #[must_use]
    pub fn sender(&self, principal: &DevicePrincipal) -> Sender {
        Sender::new(Arc::clone(&self.inner), principal)
    }

    /// Whether messages are held back at the moment, for callers without a sender.
    #[must_use]
    pub fn hold(&self) -> Hold {
        match self.inner.level() {
            HealthLevel::Ok => Hold::None,
            HealthLevel::HoldMessages | HealthLevel::HoldAll => Hold::Held {
                since: self.inner.timer.monotonic(),
            },
            HealthLevel::ReadOnly => Hold::ReadOnly,
        }
    }

    /// Bytes of messages that are not yet durable, with what is reserved for reads under way.
    #[must_use]
    pub fn in_flight_bytes(&self) -> usize {
        self.inner.budget.used()
    }

    /// Stops looking after batches whose connection is gone. The log still makes them durable.
    pub(crate) async fn close(&self) {
        let warden = {
            let mut warden = self.warden.lock().unwrap_or_else(PoisonError::into_inner);
            warden.take()
        };
        if let Some(Warden { stop, task }) = warden {
            // One that has ended already is what is wanted.
            let _ = stop.send(());
            if let Err(error) = task.await {
                tracing::error!(%error, "the warden of messages in flight did not end well");
            }
        }
    }
}

impl Inner {
    fn level(&self) -> HealthLevel {
        let index = usize::from(self.level.load(Ordering::Acquire));
        LEVELS.get(index).copied().unwrap_or(HealthLevel::ReadOnly)
    }

    /// Opens or shuts the way for messages and wakes everybody whom that concerns.
    fn set_level(&self, level: HealthLevel) {
        let index = LEVELS.iter().zip(0..).find(|(known, _)| **known == level);
        self.level
            .store(index.map_or(0, |(_, index)| index), Ordering::Release);
        self.budget.set_open(level == HealthLevel::Ok);
        for turn in std::mem::take(&mut *self.lock_held()) {
            turn.wake();
        }
    }

    /// Has `turn` woken at the next change of the level.
    fn await_change(&self, turn: &Arc<Turn>) {
        let mut held = self.lock_held();
        if !held.iter().any(|known| Arc::ptr_eq(known, turn)) {
            held.push(Arc::clone(turn));
        }
    }

    fn forget_change(&self, turn: &Arc<Turn>) {
        self.lock_held().retain(|known| !Arc::ptr_eq(known, turn));
    }

    fn lock_held(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Turn>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
