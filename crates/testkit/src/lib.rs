//! Test-only parts: a hub process to start, kill and ask, requests over HTTP, the ledger that says what a
//! hub owes, and power cuts.
//!
//! Nothing here is part of a release.

pub mod admin;
pub mod http;
pub mod hub;
pub mod ledger;
pub mod power;
