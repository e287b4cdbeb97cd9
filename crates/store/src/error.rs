//! What can go wrong in a storage engine.

use std::sync::Arc;

use fieldpost_model::SequenceNumber;

/// Why a storage operation was not carried out.
///
/// Conditions that the caller set and that did not hold are not errors; each facet answers them in
/// its own result type.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A write or a sync failed earlier. The store takes no more writes until it is opened anew,
    /// because nobody can say which pages the failed sync left behind.
    #[error("the store is read-only since a failure: {reason}")]
    ReadOnly {
        /// The first failure.
        reason: Arc<str>,
    },
    /// The disk has less room than the mark for this kind of write; it goes on by itself when
    /// there is space.
    #[error("the disk is nearly full; the write was not taken")]
    Full,
    /// The store is being closed.
    #[error("the store is closed")]
    Closed,
    /// Stored bytes do not pass their check. The text names the exact range.
    #[error("stored data is damaged: {what}")]
    Damaged {
        /// File and range, and partition and sequence numbers where they are known.
        what: Arc<str>,
        /// For a read of the log, of a queue or of a lane, the number from which on it has sound
        /// records again, or will have them. Whoever goes on there leaves out what is damaged,
        /// knowingly.
        resume: Option<SequenceNumber>,
    },
    /// The caller gave something that the contract does not allow; nothing was written.
    #[error("the store does not take {what}")]
    OutOfBounds {
        /// What it was.
        what: &'static str,
    },
    /// Reading failed.
    #[error("reading from the store failed: {reason}")]
    Read {
        /// The system's error.
        reason: Arc<str>,
    },
}
