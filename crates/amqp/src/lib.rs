//! AMQP 1.0 as a pure state machine.
//!
//! This crate holds every protocol rule and nothing else: no sockets, no clock, no tasks. Bytes
//! and the time go in; bytes and events come out.
//!
//! - [`value`], [`performative`], [`sasl`], [`frame`]: the codec. It reads lazily from slices and
//!   is bounded: nesting depth, counts, and nothing allocated from an announced size.
//! - [`message`]: sections of a message over encoded bytes.
//!
//! - [`Connection`]: the engine, for servers and clients: handshake, sessions, links, credit,
//!   deliveries and their settlement.
//!
//! It does not know any service built on AMQP: no addresses, no claims-based security.

mod config;
mod connection;
mod delivery;
pub mod error;
mod event;
pub mod frame;
mod link;
pub mod message;
pub mod performative;
pub mod sasl;
mod session;
mod shared;
pub mod value;

pub use config::{ClientSasl, Config, Limits};
pub use connection::Connection;
pub use delivery::Delivery;
pub use error::{DecodeError, Error, Fatal, Misuse, SendError, condition};
pub use event::{Event, LinkId, Message, Outcome, SessionId};
pub use link::{LinkReply, MAX_MESSAGE_SIZE};
pub use value::{Decoder, Encoder, Map, Symbol, Value, ValueRef};
