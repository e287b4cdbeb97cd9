//! AMQP 1.0 as a pure state machine.
//!
//! This crate holds every protocol rule and nothing else: no sockets, no clock, no tasks. Bytes
//! and the time go in; bytes and events come out.
//!
//! - [`value`], [`performative`], [`sasl`], [`frame`]: the codec. It reads lazily from slices and
//!   is bounded: nesting depth, counts, and nothing allocated from an announced size.
//! - [`message`]: sections of a message over encoded bytes.
//!
//! It does not know any service built on AMQP: no addresses, no claims-based security.

pub mod error;
pub mod frame;
pub mod message;
pub mod performative;
pub mod sasl;
pub mod value;

pub use error::{DecodeError, Error, Fatal, Misuse, SendError, condition};
pub use value::{Decoder, Encoder, Map, Symbol, Value, ValueRef};
