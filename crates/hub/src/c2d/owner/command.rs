//! What owners of queues are asked to do.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fieldpost_model::Timestamp;
use fieldpost_store::StoreError;
use fieldpost_store::queues::{OperationResult, QueuedMessage};
use tokio::sync::oneshot;

use super::super::names::Named;
use super::super::outcome::Cause;
use super::super::queue::{Live, ReceiverId};
use super::super::receiver::{Delivery, Inbox, LockToken, SettleError, Settlement};
use super::super::sender::Owed;

/// What an owner is asked to do.
pub(in crate::c2d) enum Command {
    /// Put a message for a device in.
    Enqueue {
        queue: Arc<Named>,
        message: Bytes,
        enqueued: Timestamp,
        expires: Timestamp,
        owed: Owed,
    },
    /// Put a message of the hub's own in.
    EnqueueOwn {
        queue: Arc<Named>,
        message: Bytes,
        expires: Timestamp,
        depth_max: u64,
        once: Option<u64>,
        reply: oneshot::Sender<Result<OperationResult, StoreError>>,
    },
    /// Add a receiver.
    Attach {
        queue: Arc<Named>,
        id: ReceiverId,
        epoch: u64,
        is_timed: bool,
        resume: bool,
        inbox: Arc<Inbox>,
    },
    /// Let it hold so many.
    Window {
        queue: Arc<Named>,
        id: ReceiverId,
        window: usize,
    },
    /// Say when it has been offered everything there is.
    AskEnd {
        queue: Arc<Named>,
        id: ReceiverId,
        number: u64,
    },
    /// Remove it.
    Detach {
        queue: Arc<Named>,
        id: ReceiverId,
        in_flight: Vec<(u64, u16)>,
    },
    /// A receiver is done with a message.
    Settle {
        queue: Arc<Named>,
        sequence: u64,
        lock: LockToken,
        settlement: Settlement,
        tell: Option<ReceiverId>,
    },
    /// A delivery was not taken.
    GiveBack {
        queue: Arc<Named>,
        sequence: u64,
        lock: LockToken,
    },
    /// Lock the next message for a request.
    Receive {
        queue: Arc<Named>,
        lock: Option<Duration>,
        reply: oneshot::Sender<Result<Option<Delivery>, StoreError>>,
    },
    /// A request is done with a message.
    SettleRequested {
        queue: Arc<Named>,
        lock: LockToken,
        settlement: Settlement,
        reply: oneshot::Sender<Result<(), SettleError>>,
    },
    /// Messages that wait have to go, for one cause. Answered when that is durable, with how many
    /// went and, if some did not for the store's sake, its error.
    Remove {
        messages: Vec<(Arc<Named>, QueuedMessage)>,
        cause: Cause,
        reply: oneshot::Sender<Result<u64, StoreError>>,
    },
    /// What is known of some messages of a queue.
    Look {
        queue: Arc<Named>,
        sequences: Vec<u64>,
        reply: oneshot::Sender<Vec<Live>>,
    },
    /// What a session had in flight means nothing any more.
    ForgetDetached { queue: Arc<Named> },
    /// The device is gone.
    Forget { queue: Arc<Named> },
    /// Finish what is under way, and end.
    Close,
}

impl Command {
    /// The queue that it is about, if it is about one.
    pub(in crate::c2d) fn queue(&self) -> Option<&Arc<Named>> {
        match self {
            Self::Enqueue { queue, .. }
            | Self::EnqueueOwn { queue, .. }
            | Self::Attach { queue, .. }
            | Self::Window { queue, .. }
            | Self::AskEnd { queue, .. }
            | Self::Detach { queue, .. }
            | Self::Settle { queue, .. }
            | Self::GiveBack { queue, .. }
            | Self::Receive { queue, .. }
            | Self::SettleRequested { queue, .. }
            | Self::Look { queue, .. }
            | Self::ForgetDetached { queue }
            | Self::Forget { queue } => Some(queue),
            Self::Remove { .. } | Self::Close => None,
        }
    }
}
