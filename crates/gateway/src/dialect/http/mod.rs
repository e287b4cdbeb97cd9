//! What the HTTPS interface of devices writes, and what it means.

pub(crate) mod telemetry;
