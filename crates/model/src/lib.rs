//! The words of the domain: identities, messages, positions, limits and time.
//!
//! Everything here is plain data with its rules. The crate knows nothing of async code, storage,
//! frames or JSON; every other crate may use it.

pub mod cloud_message;
pub mod id;
pub mod limits;
pub mod message;
pub mod position;
pub mod time;

pub use cloud_message::{Ack, CloudMessage, InvalidAck};
pub use id::{DeviceId, Identity, InvalidId, ModuleId};
pub use message::{AuthKind, AuthScope, AuthStamp, DeviceMessage, Properties, SystemProperties};
pub use position::{PartitionId, Partitioning, SequenceNumber, StreamId};
pub use time::{Clock, Timestamp};
