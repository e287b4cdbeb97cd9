//! Test-only parts: a hub process to start, kill and ask, and the ledger that says what it owes.
//!
//! Nothing here is part of a release.

pub mod hub;
pub mod ledger;
