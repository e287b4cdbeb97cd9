//! The stored form of an event.
//!
//! A record is an *envelope*, which is ours and versioned, followed by the message's *sections*:
//! the AMQP 1.0 encoding of its bare properties, application properties and body. The sections are
//! written once, when the message is accepted; a reader gets a transfer header, one annotations map
//! made from envelope and position ([`write_annotations`]), and a copy of the sections.
//!
//! This crate alone knows the form, which `docs/formats/record.md` describes byte by byte. It
//! stores nothing, waits for nothing and knows nothing of links or connections. Positions are not
//! part of a record: the log gives them out when it commits.

mod annotations;
pub mod command;
mod encode;
mod envelope;
mod sections;
mod view;

pub use annotations::{Position, write_annotations};
pub use command::{CommandEnvelope, CommandView};
pub use encode::encode;
pub use envelope::{Envelope, Source};
pub use view::{RecordError, RecordView};
