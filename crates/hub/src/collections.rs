//! Where the hub's documents live. The numbers are part of the stored format and never change.

use fieldpost_store::documents::Collection;

/// Device identities, by device id.
pub(crate) const DEVICES: Collection = Collection(1);

/// MQTT sessions, by `device` or `device/module`; ids hold no slash.
pub(crate) const SESSIONS: Collection = Collection(2);

/// The hub's settings, one document.
pub(crate) const SETTINGS: Collection = Collection(3);

/// Shared access policies, by name.
pub(crate) const POLICIES: Collection = Collection(4);

/// The newest time that the hub knew, one document.
pub(crate) const CLOCK: Collection = Collection(5);

/// Module identities, by `device/module`.
pub(crate) const MODULES: Collection = Collection(7);

/// Certificate authorities, by name.
pub(crate) const AUTHORITIES: Collection = Collection(6);
