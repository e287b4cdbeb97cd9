//! A device, a reader and a service, on the client roles of the protocol engines.
//!
//! They speak to a hub as any SDK does: over TLS, with connection strings and SAS tokens, and devices with
//! certificates too. The demo, `monitor`, `send`, `c2d send`, benches and tests use them. None spawns tasks: whoever holds one drives it by
//! awaiting its methods, and dropping it closes the connection.

mod connection;
pub mod connection_string;
pub mod device;
mod link;
pub mod reader;
mod requests;
pub mod service;
#[cfg(test)]
mod testing;
pub mod token;
mod transport;

pub use connection::AmqpError;
pub use connection_string::{ConnectionString, InvalidConnectionString};
pub use device::{Command, Device, DeviceEvent, DeviceOptions};
pub use fieldpost_mqtt::PacketId;
pub use reader::{Event, Reader, ReaderOptions, Start};
pub use service::{Service, ServiceEvent, ServiceOptions};
pub use transport::{ConnectError, Dialing, Network, NetworkStream, OwnCertificate, Trust};
