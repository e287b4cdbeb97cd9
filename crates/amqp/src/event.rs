//! What happened on a connection.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Error;
use crate::performative::{Attach, DeliveryState, DeliveryTag, Open};
use crate::sasl::SaslInit;

/// Names a session of one connection. Never used twice, also when the channel is; a later session
/// compares as greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    // The order of the fields is what makes the later one greater.
    pub(crate) serial: u32,
    pub(crate) channel: u16,
}

/// Names a link of one connection. Never used twice, also when the handle is; a later link
/// compares as greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId {
    pub(crate) serial: u32,
    pub(crate) session: SessionId,
    pub(crate) handle: u32,
}

impl LinkId {
    /// The session that the link belongs to.
    #[must_use]
    pub const fn session(&self) -> SessionId {
        self.session
    }
}

/// What happened. Events come in the order of the peer's frames.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Server: the client wants to authenticate. No more input is taken until
    /// [`Connection::sasl_outcome`](crate::Connection::sasl_outcome).
    SaslInit(Box<SaslInit>),
    /// The peer's `open` came; ours has been sent.
    Opened(Box<Open>),
    /// A session is there, begun by the peer or by us.
    SessionBegun(SessionId),
    /// A session is over with all its links and deliveries, for which no other event comes. An
    /// error is the peer's, or ours if the peer broke the rules.
    SessionEnded {
        /// The session.
        session: SessionId,
        /// Why.
        error: Option<Arc<Error>>,
    },
    /// The peer wants a link. Answer with
    /// [`accept_link`](crate::Connection::accept_link) or
    /// [`refuse_link`](crate::Connection::refuse_link), at any time.
    Attach {
        /// The link.
        link: LinkId,
        /// What the peer asks for; the role is the peer's.
        attach: Arc<Attach>,
    },
    /// The peer answered a link that we asked for. When what should be the peer's end (source or
    /// target) is null, the link was refused and `Detached` follows.
    Attached {
        /// The link.
        link: LinkId,
        /// The peer's answer.
        attach: Arc<Attach>,
    },
    /// A link that we send on has more credit than before.
    Credit(LinkId),
    /// The peer's session window was closed and is open again: every link of the session that has
    /// credit can send.
    WindowOpen(SessionId),
    /// The peer wants its credit used up: send what there is, then call
    /// [`drained`](crate::Connection::drained).
    Drain(LinkId),
    /// The peer used up the credit that we asked it to drain.
    Drained(LinkId),
    /// A whole message came.
    Message(Message),
    /// The peer told what became of a delivery that we sent unsettled.
    Outcome(Outcome),
    /// A link is over with its deliveries, for which no other event comes. The peer has been
    /// answered.
    Detached {
        /// The link.
        link: LinkId,
        /// False when the peer only wants to suspend the link; it is gone here nevertheless.
        closed: bool,
        /// Why; the peer's error, or ours if the peer broke the rules.
        error: Option<Arc<Error>>,
    },
    /// The peer closed the connection, or confirmed our close. Write the output, then close the
    /// socket.
    Closed(Option<Arc<Error>>),
}

/// A message from the peer. Its `Debug` form does not show the payload, which may hold tokens.
#[derive(Clone, PartialEq)]
pub struct Message {
    /// The link.
    pub link: LinkId,
    /// Names the delivery when it is settled.
    pub delivery_id: u32,
    /// The peer's own name for it.
    pub tag: DeliveryTag,
    /// Format of the payload: 0 is an AMQP message.
    pub message_format: u32,
    /// True when the peer wants no settlement.
    pub settled: bool,
    /// The encoded message. May share memory with other messages of the same read; copy it to keep
    /// it for long.
    pub payload: Bytes,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("link", &self.link)
            .field("delivery_id", &self.delivery_id)
            .field("tag", &self.tag)
            .field("message_format", &self.message_format)
            .field("settled", &self.settled)
            .field("payload_bytes", &self.payload.len())
            .finish()
    }
}

/// What became of a delivery that we sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The link.
    pub link: LinkId,
    /// The id that `send` returned.
    pub delivery_id: u32,
    /// The tag that `send` was given.
    pub tag: DeliveryTag,
    /// The peer's state; nothing when it settled without one.
    pub state: Option<DeliveryState>,
    /// False when the peer waits for our
    /// [`settle_outgoing`](crate::Connection::settle_outgoing). Comes once for each delivery.
    pub settled: bool,
}
