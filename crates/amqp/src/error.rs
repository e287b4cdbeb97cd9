//! Error conditions of the protocol, and what can go wrong on our side.

use std::fmt;
use std::sync::Arc;

use crate::value::{Encoder, ListRef, Map, Symbol, ValueRef};

/// Error conditions that AMQP 1.0 names (part 2, sections 2.8.15 to 2.8.18).
pub mod condition {
    /// An internal error occurred.
    pub const INTERNAL_ERROR: &str = "amqp:internal-error";
    /// The peer asked for something that does not exist.
    pub const NOT_FOUND: &str = "amqp:not-found";
    /// The peer may not use this.
    pub const UNAUTHORIZED_ACCESS: &str = "amqp:unauthorized-access";
    /// Data could not be decoded.
    pub const DECODE_ERROR: &str = "amqp:decode-error";
    /// A limit of the server was exceeded.
    pub const RESOURCE_LIMIT_EXCEEDED: &str = "amqp:resource-limit-exceeded";
    /// The peer did what the rules or the present state do not allow.
    pub const NOT_ALLOWED: &str = "amqp:not-allowed";
    /// A field has a value that is not valid.
    pub const INVALID_FIELD: &str = "amqp:invalid-field";
    /// The peer asked for something that is not implemented.
    pub const NOT_IMPLEMENTED: &str = "amqp:not-implemented";
    /// Somebody else holds what the peer asked for.
    pub const RESOURCE_LOCKED: &str = "amqp:resource-locked";
    /// A precondition did not hold.
    pub const PRECONDITION_FAILED: &str = "amqp:precondition-failed";
    /// What the link was attached to is gone.
    pub const RESOURCE_DELETED: &str = "amqp:resource-deleted";
    /// A frame came that the present state does not allow.
    pub const ILLEGAL_STATE: &str = "amqp:illegal-state";
    /// A frame is too small for what it should hold.
    pub const FRAME_SIZE_TOO_SMALL: &str = "amqp:frame-size-too-small";
    /// An operator closed the connection.
    pub const CONNECTION_FORCED: &str = "amqp:connection:forced";
    /// The bytes are no valid frame.
    pub const FRAMING_ERROR: &str = "amqp:connection:framing-error";
    /// Connect to another address.
    pub const CONNECTION_REDIRECT: &str = "amqp:connection:redirect";
    /// The peer exceeded the incoming window.
    pub const WINDOW_VIOLATION: &str = "amqp:session:window-violation";
    /// A transfer came for a link that was detached with an error.
    pub const ERRANT_LINK: &str = "amqp:session:errant-link";
    /// An attach came for a handle in use.
    pub const HANDLE_IN_USE: &str = "amqp:session:handle-in-use";
    /// A frame came for a handle that is not attached.
    pub const UNATTACHED_HANDLE: &str = "amqp:session:unattached-handle";
    /// An operator detached the link.
    pub const DETACH_FORCED: &str = "amqp:link:detach-forced";
    /// The peer sent more than its credit allows.
    pub const TRANSFER_LIMIT_EXCEEDED: &str = "amqp:link:transfer-limit-exceeded";
    /// A message is larger than the link allows.
    pub const MESSAGE_SIZE_EXCEEDED: &str = "amqp:link:message-size-exceeded";
    /// Attach to another address.
    pub const LINK_REDIRECT: &str = "amqp:link:redirect";
    /// Another link took over.
    pub const STOLEN: &str = "amqp:link:stolen";
}

/// An error as AMQP carries it: in `detach`, `end`, `close` and in a `rejected` outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    /// What went wrong, for programs; see [`condition`].
    pub condition: Symbol,
    /// What went wrong, for people.
    pub description: Option<String>,
    /// More facts, such as a new address.
    pub info: Map,
}

impl Error {
    /// Descriptor of the `error` type.
    pub const CODE: u64 = 0x1d;

    /// An error without further facts.
    pub fn new(condition: impl Into<Symbol>, description: impl Into<String>) -> Self {
        Self {
            condition: condition.into(),
            description: Some(description.into()),
            info: Map::new(),
        }
    }

    /// Adds a fact.
    #[must_use]
    pub fn with_info(mut self, info: Map) -> Self {
        self.info = info;
        self
    }

    /// The error without what makes it long, for a peer whose frames are short.
    pub(crate) fn shortened(&self) -> Self {
        /// With the condition, this leaves room in the 512 bytes that every peer accepts.
        const TEXT_BYTES_MAX: usize = 128;
        let short = |text: &str| {
            let end = text.floor_char_boundary(TEXT_BYTES_MAX);
            text.get(..end).unwrap_or_default().to_owned()
        };
        Self {
            condition: Symbol::from(short(self.condition.as_str())),
            description: self.description.as_deref().map(short),
            info: Map::new(),
        }
    }

    /// Writes all three fields: some peers index them by position.
    pub fn encode(&self, e: &mut Encoder<'_>) {
        e.described(Self::CODE, |e| {
            e.list(|e| {
                e.symbol(self.condition.as_str());
                match &self.description {
                    Some(description) => e.string(description),
                    None => e.null(),
                }
                if self.info.is_empty() {
                    e.null();
                } else {
                    e.map_value(&self.info);
                }
            });
        });
    }

    pub(crate) fn decode(list: ListRef<'_>) -> Result<Self, DecodeError> {
        let mut fields = list.iter();
        let condition = match fields.next().transpose()? {
            Some(ValueRef::Symbol(name) | ValueRef::String(name)) => Symbol::from(name.to_owned()),
            _ => return Err(DecodeError::MissingField("condition")),
        };
        let description = fields.next().transpose()?;
        let info = match fields.next().transpose()? {
            Some(ValueRef::Map(map)) => map.to_map()?,
            _ => Map::new(),
        };
        Ok(Self {
            condition,
            description: description.and_then(|d| d.as_str()).map(str::to_owned),
            info,
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.description {
            Some(description) => write!(f, "{}: {description}", self.condition),
            None => write!(f, "{}", self.condition),
        }
    }
}

impl std::error::Error for Error {}

/// Bytes that are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end before the value does.
    #[error("the value goes beyond the end of the bytes")]
    Truncated,
    /// A constructor byte that AMQP does not define.
    #[error("unknown constructor 0x{0:02x}")]
    UnknownConstructor(u8),
    /// More levels than [`DEPTH_MAX`](crate::value::DEPTH_MAX).
    #[error("values are nested too deep")]
    TooDeep,
    /// A count that the bytes cannot hold.
    #[error("the count {0} is higher than the bytes that are left")]
    CountTooLarge(u32),
    /// More values than [`OWNED_VALUES_MAX`](crate::value::OWNED_VALUES_MAX).
    #[error("too many values")]
    TooManyValues,
    /// A string or symbol that is not UTF-8.
    #[error("text is not UTF-8")]
    InvalidUtf8,
    /// A value of this type that the type does not allow.
    #[error("invalid {0}")]
    InvalidValue(&'static str),
    /// Another type than this one was expected.
    #[error("expected {0}")]
    WrongType(&'static str),
    /// A field that must be given is absent or null.
    #[error("the field {0} is missing")]
    MissingField(&'static str),
    /// A descriptor that nothing known has, or that does not belong here.
    #[error("unknown descriptor 0x{0:x}")]
    UnknownDescriptor(u64),
    /// A message section that came twice.
    #[error("the message section 0x{0:x} came twice")]
    DuplicateSection(u64),
}

/// Why the connection is over. The caller writes what is in the output, then closes the socket.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Fatal {
    /// The peer speaks something else; the supported header is in the output.
    #[error("unsupported protocol header {0:02x?}")]
    UnsupportedHeader([u8; 8]),
    /// The peer broke the protocol; a close with this error is in the output, if one was due.
    #[error("protocol violation: {0}")]
    Violation(Arc<Error>),
    /// The peer was silent for longer than the idle time-out; a close is in the output.
    #[error("the peer was silent for longer than the idle time-out")]
    IdleTimeOut,
    /// The server refused our credentials (client role).
    #[error("authentication failed with code {0:?}")]
    Authentication(crate::sasl::SaslCode),
    /// The server does not offer the mechanism we are set to use (client role).
    #[error("the server does not offer the SASL mechanism {0}")]
    MechanismNotOffered(Symbol),
}

/// Why an operation on a connection, a session or a link was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// The connection is not open: not yet, or no longer.
    #[error("the connection is not open")]
    NotOpen,
    /// The session or link is gone; the event that says so may still be waiting.
    #[error("the session or link is gone")]
    Gone,
    /// The session or link is not in the state that this needs.
    #[error("the session or link is not in the right state")]
    WrongState,
    /// The link has the other direction.
    #[error("the link has the other direction")]
    WrongRole,
    /// Our own limit, or the peer's, on sessions or links is reached.
    #[error("no more sessions or links are allowed")]
    LimitReached,
    /// No such delivery is unsettled.
    #[error("no such delivery is unsettled")]
    UnknownDelivery,
    /// What there is to write is larger than the frames that the peer accepts.
    #[error("the peer's frame limit leaves no room for this")]
    FrameTooSmall,
}

/// Why a message was not sent. Nothing was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The link cannot send.
    #[error(transparent)]
    Misuse(#[from] Misuse),
    /// The link has no credit, or the session's window is closed: see
    /// [`Connection::sendable`](crate::Connection::sendable).
    #[error("no credit")]
    NoCredit,
    /// The message is larger than the peer accepts; the limit in bytes.
    #[error("the message is larger than the peer's limit of {0} bytes")]
    TooLarge(u64),
    /// A delivery tag has at most 32 bytes.
    #[error("the delivery tag is longer than 32 bytes")]
    TagTooLong,
}
