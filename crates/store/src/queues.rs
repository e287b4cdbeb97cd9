//! The device queues facet: messages that wait for one receiver each, and what became of them.
//!
//! A queue exists as soon as a message is put into it. Messages have sequence numbers from one
//! sequence of the whole store, which begins at 1, only grows and may leave numbers out: a number is
//! never used twice, in any queue, and order in a queue is the order of numbers. A message leaves its queue by being *settled*; in the same durable
//! step the store writes the *outcome records* that the caller gives, each into a *lane*, where
//! followers read them in order and forget them when their effect is durable elsewhere. The records
//! of a lane are numbered from 1 without gaps, also when earlier ones are gone.
//!
//! Locks, receivers and attempts in progress are live state of the hub. After a restart every message
//! that was not settled is simply there.

use bytes::Bytes;
use fieldpost_model::Timestamp;
use tokio::sync::watch;

use crate::{Answer, Health, StoreError};

/// The most bytes of a queue's name.
pub const QUEUE_NAME_BYTES_MAX: usize = 400;

/// The most bytes of a message or an outcome record.
pub const ITEM_BYTES_MAX: usize = 256 * 1024;

/// The name of a queue: 1 to [`QUEUE_NAME_BYTES_MAX`] bytes of the caller's.
///
/// Whoever deletes and makes a receiver anew gives its queue a new name, so that old messages are
/// never seen again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueName(pub Bytes);

/// Where outcome records are kept. The number is part of the stored format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lane(pub u8);

/// The place of an outcome record in its lane; the first is 1.
pub type OutcomeNumber = u64;

/// The device queues facet.
pub trait DeviceQueues: Send + Sync + 'static {
    /// Carries out operations as one batch, in order, and answers when all of them are durable.
    ///
    /// Each operation stands alone: whether it is carried out does not depend on its neighbours'
    /// success, and results come in the order of the operations. Batches of one caller are carried
    /// out in the order of the calls. The engine queues whatever it is given; the caller bounds what
    /// it has in flight. A batch with anything outside its bounds is refused as a whole.
    ///
    /// Reads and figures show nothing that is not durable, and everything that was answered before
    /// they were asked for.
    ///
    /// On a disk that fills, the first mark holds back [`Operation::Enqueue`] alone, with
    /// [`OperationResult::NoRoom`]; beyond the second, batches are refused as a whole with
    /// [`StoreError::Full`].
    fn apply(&self, operations: Vec<Operation>)
    -> Answer<Result<Vec<OperationResult>, StoreError>>;

    /// Reads the messages of a queue in the order of their numbers.
    ///
    /// An answer ends in front of a message that cannot be read. Where that is the first one, it is
    /// [`StoreError::Damaged`] with the number from which to go on.
    fn list(&self, request: ListQueue) -> Answer<Result<QueuePage, StoreError>>;

    /// How many messages are in each of some queues, in the order asked for; 0 where there is no
    /// such queue.
    fn depths(&self, queues: Vec<QueueName>) -> Answer<Result<Vec<u64>, StoreError>>;

    /// Messages whose expiry is at or before a time, of all queues, soonest first, after a position
    /// that an earlier answer gave. Reading does not remove them: whoever reads settles. Messages
    /// that cannot be read are passed over.
    fn due(&self, request: ListDue) -> Answer<Result<DuePage, StoreError>>;

    /// The soonest expiry of any message after a position. `None` when there is none.
    fn next_due(&self, after: Option<DuePosition>)
    -> Answer<Result<Option<Timestamp>, StoreError>>;

    /// Reads a lane in the order of its numbers. Damage is told as [`DeviceQueues::list`] does.
    fn outcomes(&self, request: ListOutcomes) -> Answer<Result<Vec<Outcome>, StoreError>>;

    /// What a lane holds, without reading it.
    fn lane(&self, lane: Lane) -> LaneFigures;

    /// What of the store's health concerns the queues, and its changes: the disk's room and failures,
    /// and nothing that holds the event log alone back.
    fn health(&self) -> watch::Receiver<Health>;

    /// Makes what was submitted durable, stops, and answers when everything is closed.
    fn close(&self) -> Answer<()>;
}

/// One conditional step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Puts a message at the end of a queue, unless [`OperationResult::DoneBefore`],
    /// [`OperationResult::QueueFull`] or [`OperationResult::NoRoom`] stands against it, looked at in
    /// this order.
    Enqueue {
        /// The queue.
        queue: QueueName,
        /// The message, at most [`ITEM_BYTES_MAX`].
        message: Bytes,
        /// When it expires; only [`DeviceQueues::due`] looks at it.
        expires: Timestamp,
        /// Refused when the queue holds so many messages or more.
        depth_max: u64,
        /// A mark of the caller's that only grows: carried out only when it is larger than the
        /// queue's last one. A follower that starts anew cannot do the same thing twice. Only an
        /// operation that is carried out moves the mark. It outlives the queue's messages and goes
        /// with [`Operation::Drop`].
        once: Option<u64>,
    },
    /// Takes a message out of its queue, and writes what became of it.
    Settle {
        /// The queue.
        queue: QueueName,
        /// The message.
        sequence: u64,
        /// The records to write with it, in order; none are written when the message is gone.
        outcomes: Vec<(Lane, Bytes)>,
    },
    /// Remembers how often a message was delivered.
    SetDeliveryCount {
        /// The queue.
        queue: QueueName,
        /// The message.
        sequence: u64,
        /// The count.
        count: u32,
    },
    /// Removes the messages of a queue and its mark, and writes no outcomes; records about it stay
    /// in their lanes. An engine may remove a part, oldest messages first and at least one, and say
    /// that there is more; the mark goes with the last part.
    Drop {
        /// The queue.
        queue: QueueName,
    },
    /// Writes a record that belongs to no settlement.
    Record {
        /// The lane.
        lane: Lane,
        /// The queue that it is about.
        queue: QueueName,
        /// The message that it is about.
        sequence: u64,
        /// The record, at most [`ITEM_BYTES_MAX`].
        record: Bytes,
    },
    /// Removes a lane's records up to and with a number, or all that there are when the number is
    /// beyond them.
    Forget {
        /// The lane.
        lane: Lane,
        /// The last one to go.
        through: OutcomeNumber,
    },
    /// Removes one record of a lane.
    Remove {
        /// The lane.
        lane: Lane,
        /// The record.
        number: OutcomeNumber,
    },
}

/// What became of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OperationResult {
    /// The message is in the queue.
    Enqueued {
        /// Its number.
        sequence: u64,
    },
    /// The queue holds as many messages as it may; the message was not taken.
    QueueFull,
    /// An operation with this mark or a larger one has been carried out before.
    DoneBefore,
    /// The disk has no room for messages at present; the message was not taken.
    NoRoom,
    /// It was settled, counted, recorded, forgotten or removed. Forgetting is always done, also when
    /// there was nothing to forget.
    Done,
    /// There is no such message in that queue, or no such record.
    Gone,
    /// Messages of a queue were removed.
    Dropped {
        /// How many.
        messages: u64,
        /// Whether there are more; drop it again.
        more: bool,
    },
}

/// Which messages of a queue to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListQueue {
    /// The queue.
    pub queue: QueueName,
    /// Only messages after this number; 0 for all.
    pub after: u64,
    /// At most so many, at least 1.
    pub limit: usize,
    /// No further message once so many bytes of messages are read; the first is always read.
    pub bytes_max: usize,
}

/// Messages of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueuePage {
    /// The messages, in the order of their numbers.
    pub messages: Vec<QueuedMessage>,
    /// Whether there are more after the last one.
    pub more: bool,
}

/// A message in its queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueuedMessage {
    /// Its number.
    pub sequence: u64,
    /// When it expires.
    pub expires: Timestamp,
    /// How often it was delivered, as the caller last said; 0 at first.
    pub delivery_count: u32,
    /// The message.
    pub message: Bytes,
}

/// Which messages that are due to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListDue {
    /// Expiry at or before this.
    pub until: Timestamp,
    /// Only after this position.
    pub after: Option<DuePosition>,
    /// At most so many, at least 1.
    pub limit: usize,
    /// No further message once so many bytes of messages are read; the first is always read.
    pub bytes_max: usize,
}

/// A place in the order of expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DuePosition {
    /// The expiry.
    pub expires: Timestamp,
    /// Among those that expire together, the number.
    pub sequence: u64,
}

/// Messages that are due.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DuePage {
    /// The messages with their queues, soonest expiry first.
    pub messages: Vec<(QueueName, QueuedMessage)>,
    /// Whether there are more, until the time asked for.
    pub more: bool,
}

/// Which outcome records to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListOutcomes {
    /// The lane.
    pub lane: Lane,
    /// Only records after this number; 0 for all.
    pub after: OutcomeNumber,
    /// At most so many, at least 1.
    pub limit: usize,
    /// No further record once so many bytes of records are given; the first is always given.
    pub bytes_max: usize,
    /// Only those about this queue; others count for neither limit. An engine may have to read the
    /// whole lane for that.
    pub queue: Option<QueueName>,
}

/// A stored outcome record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its place in the lane.
    pub number: OutcomeNumber,
    /// The queue that the message was in.
    pub queue: QueueName,
    /// The message's number.
    pub sequence: u64,
    /// The caller's record.
    pub record: Bytes,
}

/// What a lane holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneFigures {
    /// The number of the last record written; 0 when there never was one.
    pub last: OutcomeNumber,
    /// Records in it.
    pub count: u64,
    /// Bytes of records in it.
    pub bytes: u64,
}

/// Whether everything in a batch is within its bounds. For engines, which refuse a batch otherwise.
///
/// # Errors
/// [`StoreError::OutOfBounds`] with what is too large or missing.
pub fn check_bounds(operations: &[Operation]) -> Result<(), StoreError> {
    for operation in operations {
        if let Some(QueueName(name)) = operation.queue() {
            if name.is_empty() {
                return Err(StoreError::OutOfBounds {
                    what: "a queue without a name",
                });
            }
            if name.len() > QUEUE_NAME_BYTES_MAX {
                return Err(StoreError::OutOfBounds {
                    what: "a queue's name longer than 400 bytes",
                });
            }
        }
        let largest = match operation {
            Operation::Enqueue { message, .. } => message.len(),
            Operation::Settle { outcomes, .. } => {
                let lengths = outcomes.iter().map(|(_, record)| record.len());
                lengths.max().unwrap_or(0)
            }
            Operation::Record { record, .. } => record.len(),
            Operation::SetDeliveryCount { .. }
            | Operation::Drop { .. }
            | Operation::Forget { .. }
            | Operation::Remove { .. } => 0,
        };
        if largest > ITEM_BYTES_MAX {
            return Err(StoreError::OutOfBounds {
                what: "a message or record larger than 256 KiB",
            });
        }
    }
    Ok(())
}

impl Operation {
    /// The queue that the operation names.
    #[must_use]
    pub fn queue(&self) -> Option<&QueueName> {
        match self {
            Self::Enqueue { queue, .. }
            | Self::Settle { queue, .. }
            | Self::SetDeliveryCount { queue, .. }
            | Self::Drop { queue }
            | Self::Record { queue, .. } => Some(queue),
            Self::Forget { .. } | Self::Remove { .. } => None,
        }
    }
}
