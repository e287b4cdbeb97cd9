//! The default storage engine: one directory, no other process.
//!
//! Events live in a segment log of our own ([`log`]), everything else in a key-value store
//! ([`keyvalue`]): [`documents`] and [`queues`]. [`EmbeddedStore::open`] puts them together under one
//! lock, [`verify`] checks a store that nobody has open, and [`accept_loss`] lets it go on without what
//! is damaged. All facets share one
//! [`health::StoreHealth`]: a failed write or sync of any turns the whole store read-only.
//!
//! The crate knows what is stored as bytes only, and nothing of the hub's rules.

#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "test data is small; the build without tests has these lints"
    )
)]

mod damage;
mod directory;
pub mod documents;
pub mod files;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod health;
pub mod keyvalue;
pub mod log;
pub mod queues;
mod repair;
mod store;
#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod testing;
mod verify;

pub use damage::{Damage, LostRecords};
pub use log::verify::LogVerdict;
pub use log::{AcceptedLoss, DiskMarks, LogSettings};
pub use repair::{RepairReport, accept_loss};
pub use store::{EmbeddedConfig, EmbeddedStore, OpenError};
pub use verify::{VerifyReport, verify};
