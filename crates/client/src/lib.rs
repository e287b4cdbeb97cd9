//! A device and a reader, on the client roles of the protocol engines.
//!
//! They speak to a hub as any SDK does: over TLS, with connection strings and SAS tokens. The demo,
//! `monitor`, `send`, benches and tests use them. Neither spawns tasks: whoever holds one drives it by
//! awaiting its methods, and dropping it closes the connection.

pub mod connection_string;
pub mod device;
mod link;
pub mod reader;
pub mod token;
mod transport;

pub use connection_string::{ConnectionString, InvalidConnectionString};
pub use device::{Device, DeviceOptions};
pub use fieldpost_mqtt::PacketId;
pub use reader::{Event, Reader, ReaderOptions, Start};
pub use transport::{ConnectError, Trust};
