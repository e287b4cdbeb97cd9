//! Devices as they are, and as callers describe them.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fieldpost_model::{DeviceId, Timestamp};
use fieldpost_store::documents::Revision;

use crate::secrets::Secret;

/// A registered device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its id.
    pub device_id: DeviceId,
    /// Made by the hub; another one after the id was deleted and created again.
    pub generation_id: Arc<str>,
    /// Grows with every change.
    pub revision: Revision,
    /// Whether it may connect.
    pub status: DeviceStatus,
    /// Why, in the words of whoever set it.
    pub status_reason: Option<String>,
    /// When the status last changed; [`Timestamp::NEVER`] until then.
    pub status_updated: Timestamp,
    /// How it signs in.
    pub authentication: Authentication,
    /// Whether it is an edge gateway.
    pub iot_edge: bool,
    /// Its own scope, as given.
    pub device_scope: Option<String>,
    /// The scopes of its parents, as given.
    pub parent_scopes: Vec<String>,
}

impl Device {
    /// The entity tag of this state of the device: short base64 text, without quotes.
    #[must_use]
    pub fn etag(&self) -> String {
        etag_of(self.revision)
    }
}

/// The entity tag of a revision.
pub(super) fn etag_of(revision: Revision) -> String {
    STANDARD.encode(revision.to_string())
}

/// The revision behind an entity tag; `None` when no device ever had such a tag.
pub(super) fn revision_of_etag(etag: &str) -> Option<Revision> {
    let digits = String::from_utf8(STANDARD.decode(etag).ok()?).ok()?;
    let revision: Revision = digits.parse().ok()?;
    // Other spellings of the number were never given out.
    (revision.to_string() == digits).then_some(revision)
}

/// Whether a device may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceStatus {
    /// It may.
    Enabled,
    /// It may not; service operations on it go on.
    Disabled,
}

impl DeviceStatus {
    /// The class of the device's document, which the store counts by.
    pub(super) fn class(self) -> u8 {
        match self {
            Self::Enabled => 1,
            Self::Disabled => 2,
        }
    }

    pub(super) fn from_class(class: u8) -> Option<Self> {
        match class {
            1 => Some(Self::Enabled),
            2 => Some(Self::Disabled),
            _ => None,
        }
    }
}

/// How a device signs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authentication {
    /// With tokens signed by either of two keys.
    Sas(SymmetricKeys),
    /// With a certificate of its own, known by thumbprint.
    SelfSigned(Thumbprints),
    /// With a certificate from a registered authority.
    CertificateAuthority,
    /// Not at all.
    None,
}

/// Two keys in base64, both good at any time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymmetricKeys {
    /// The first key.
    pub primary: Secret,
    /// The second key.
    pub secondary: Secret,
}

/// Thumbprints of certificates, in hexadecimal, as given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thumbprints {
    /// Of the first certificate.
    pub primary: Option<String>,
    /// Of the second certificate.
    pub secondary: Option<String>,
}

/// A device as a caller wants it.
#[derive(Clone, Debug)]
pub struct DeviceSpec {
    /// Which device.
    pub device_id: DeviceId,
    /// Enabled for a new device and unchanged for a known one, unless given.
    pub status: Option<DeviceStatus>,
    /// Why.
    pub status_reason: Option<String>,
    /// How it signs in.
    pub authentication: AuthenticationSpec,
    /// Whether it is an edge gateway.
    pub iot_edge: bool,
    /// Its own scope.
    pub device_scope: Option<String>,
    /// The scopes of its parents.
    pub parent_scopes: Vec<String>,
}

/// How a device shall sign in.
#[derive(Clone, Debug)]
pub enum AuthenticationSpec {
    /// As it does; a new device with keys that the hub makes.
    Unchanged,
    /// With keys. Absent and empty are the same; with neither key given, a device keeps those it
    /// has, or gets two random ones.
    Sas {
        /// The first key.
        primary: Option<Secret>,
        /// The second key.
        secondary: Option<Secret>,
    },
    /// With a certificate of its own.
    SelfSigned(Thumbprints),
    /// With a certificate from a registered authority.
    CertificateAuthority,
    /// Not at all.
    None,
}

impl DeviceSpec {
    /// A device of which nothing but the id is said: it signs in as it does, or, when it is new,
    /// with keys that the hub makes.
    #[must_use]
    pub fn new(device_id: DeviceId) -> Self {
        Self {
            device_id,
            status: None,
            status_reason: None,
            authentication: AuthenticationSpec::Unchanged,
            iot_edge: false,
            device_scope: None,
            parent_scopes: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entity_tag_names_one_revision() {
        let check = |etag: &str, expected: Option<Revision>| {
            assert_eq!(revision_of_etag(etag), expected, "{etag}");
        };
        check("MTA2NzYxNzE4", Some(106_761_718));
        check(&STANDARD.encode("0106761718"), None);
        check(&STANDARD.encode("+1"), None);
        check(&STANDARD.encode("99999999999999999999999"), None);
        check("", None);
        check("*", None);
        check("MTA2NzYxNzE4=", None);
    }
}
