//! What a queue is told and what it wants done.

use std::time::Duration;

use bytes::Bytes;
use fieldpost_model::Timestamp;

use super::super::outcome::{Attempts, Cause};
use super::super::receiver::{Delivery, LockToken};

/// What the settings say of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::c2d) struct Rules {
    /// How long a lock lasts that ends by itself.
    pub(in crate::c2d) lock: Duration,
    /// Counted deliveries before a message is dead-lettered.
    pub(in crate::c2d) max_delivery_count: u32,
    /// Whether a lock that expires counts, as an abandoned delivery does.
    pub(in crate::c2d) counts_every_lock: bool,
}

/// The present, on both clocks.
#[derive(Clone, Copy, Debug)]
pub(in crate::c2d) struct Now {
    /// What ends by itself goes by this.
    pub(in crate::c2d) wall: Timestamp,
    /// What is written down goes by this, which is later while the wall clock is doubted.
    pub(in crate::c2d) stamp: Timestamp,
    pub(in crate::c2d) monotonic: Duration,
}

/// A receiver that is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::c2d) struct ReceiverId(pub(in crate::c2d) u64);

/// A request for one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::c2d) struct RequestId(pub(in crate::c2d) u64);

/// Whom to tell when a settlement is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::c2d) enum Waiter {
    Nobody,
    Receiver(ReceiverId),
    Request(RequestId),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::c2d) enum Effect {
    /// A receiver gets a message, locked for it.
    Deliver { to: ReceiverId, delivery: Delivery },
    /// A request is answered.
    Answer {
        request: RequestId,
        delivery: Option<Delivery>,
    },
    /// A lock ends by itself at this moment of the monotonic clock.
    Lock {
        ends: Duration,
        sequence: u64,
        lock: LockToken,
    },
    /// It has ended before that.
    Unlock { ends: Duration, lock: LockToken },
    /// The message leaves the queue; [`Queue::settled`](super::Queue::settled) is owed.
    Settle(Settled),
    /// The count is to be remembered; [`Queue::counted`](super::Queue::counted) is owed, and then
    /// the waiter is told.
    Count {
        sequence: u64,
        count: u32,
        waiter: Waiter,
    },
    /// Whoever wanted to settle has lost the lock.
    Lost { waiter: Waiter, sequence: u64 },
    /// Messages after this number are to be read; [`Queue::loaded`](super::Queue::loaded) is owed.
    Load { after: u64 },
}

/// A message that leaves its queue.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::c2d) struct Settled {
    pub(in crate::c2d) sequence: u64,
    pub(in crate::c2d) cause: Cause,
    pub(in crate::c2d) message: Bytes,
    pub(in crate::c2d) attempts: Attempts,
    pub(in crate::c2d) delivery_count: u32,
    pub(in crate::c2d) waiter: Waiter,
}

/// What is known of a message's state besides what the store knows.
#[derive(Clone, Debug, Default)]
pub(in crate::c2d) struct Live {
    /// Until when it is locked, if it is; `Some(None)` for as long as its receiver stays.
    pub(in crate::c2d) locked: Option<Option<Duration>>,
    pub(in crate::c2d) delivery_count: Option<u32>,
    pub(in crate::c2d) attempts: Attempts,
}
