//! MQTT 3.1.1 as a pure state machine: bytes and time in, events and bytes out.
//!
//! [`ServerConnection`] is the server's side of one connection, [`ClientConnection`] the client's.
//! Both own no socket and no clock: the caller feeds what it has read, passes the time as a
//! [`Duration`](std::time::Duration) since any fixed moment of its choice, writes what
//! `output()` holds, and calls `tick` at `deadline()`. Below them, [`Assembler`] cuts a byte
//! stream into packets and [`packet`] turns packets into values and back.
//!
//! Properties the rest of the system relies on:
//! - Events borrow the input (or the one kept partial packet); payloads are not copied.
//! - No allocation follows an announced size: memory grows with bytes that have arrived, and an
//!   idle connection holds no buffers.
//! - `PUBACK`s leave in the order the publishes came, and only once the caller releases them.
//! - Whatever a peer sends ends in an event, in silence or in a [`Violation`]; never in a panic.
//!
//! This crate must not know topics, devices, tokens, sockets or async runtimes. It implements
//! QoS 0 and QoS 1; the QoS 2 flow is a violation. A CONNECT of MQTT 5 is recognised and refused in
//! the form that an MQTT 5 client understands.

#![forbid(unsafe_code)]

mod assembler;
mod client;
mod output;
pub mod packet;
mod packet_ids;
mod server;
mod violation;

pub use assembler::{Assembler, RawPacket};
pub use client::{ClientConnection, ClientEvent, ClientOptions, Message};
pub use packet::{
    Connack, Connect, DecodeError, EncodeError, Packet, PacketId, PacketType, Publish, Qos,
    Refusal, Suback, SubackCode, Subscribe, Unsubscribe, Will,
};
pub use server::{AckTicket, ServerConnection, ServerEvent, ServerOptions};
pub use violation::{SendError, Timeout, Violation};
