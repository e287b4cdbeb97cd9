//! Whether a store takes writes, and why not.

use std::sync::Arc;

/// How much a store takes at the moment, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HealthLevel {
    /// Every write.
    Ok,
    /// The first mark of a filling disk is passed: messages are held back, small changes
    /// (registry, sessions, settings, settlements) still go on.
    HoldMessages,
    /// The second mark is passed: no writes until there is space again.
    HoldAll,
    /// A write or sync failed: no writes until the store is opened anew.
    ReadOnly,
}

/// A store's health, published through a watch channel by [`crate::log::EventLog::health`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What is taken.
    pub level: HealthLevel,
    /// Why, unless everything is taken.
    pub reason: Option<Arc<str>>,
}

impl Health {
    /// Everything is taken.
    pub const OK: Self = Self {
        level: HealthLevel::Ok,
        reason: None,
    };
}
