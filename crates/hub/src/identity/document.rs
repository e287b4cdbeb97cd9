//! The stored form of a device: JSON with a version. Its status is the document's class; its keys
//! are sealed for this device and generation.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fieldpost_model::{DeviceId, Timestamp};
use fieldpost_store::StoreError;
use fieldpost_store::documents::{Action, Document};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::device::{Authentication, Device, DeviceStatus, SymmetricKeys, Thumbprints};
use crate::clock::Chance;
use crate::secrets::{Keyring, Secret};

const FORM_VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
struct StoredDevice {
    v: u8,
    generation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// When the status changed, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    changed: Option<i64>,
    auth: StoredAuthentication,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    edge: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    parents: Vec<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum StoredAuthentication {
    /// Both keys, sealed, in base64.
    Sas(String),
    SelfSigned {
        primary: Option<String>,
        secondary: Option<String>,
    },
    CertificateAuthority,
    None,
}

/// The stored form of how an identity signs in. Keys are sealed for `context` alone.
pub(super) fn seal(
    authentication: &Authentication,
    keyring: &Keyring,
    chance: &dyn Chance,
    context: &[&str],
) -> StoredAuthentication {
    match authentication {
        Authentication::Sas(keys) => {
            let plain = Zeroizing::new(format!(
                "{}\0{}",
                keys.primary.expose(),
                keys.secondary.expose()
            ));
            let sealed = keyring.seal(chance, context, plain.as_bytes());
            StoredAuthentication::Sas(STANDARD.encode(sealed))
        }
        Authentication::SelfSigned(thumbprints) => StoredAuthentication::SelfSigned {
            primary: thumbprints.primary.clone(),
            secondary: thumbprints.secondary.clone(),
        },
        Authentication::CertificateAuthority => StoredAuthentication::CertificateAuthority,
        Authentication::None => StoredAuthentication::None,
    }
}

/// How an identity signs in, of its stored form; what is wrong when that cannot be read.
pub(super) fn open(
    stored: StoredAuthentication,
    keyring: &Keyring,
    context: &[&str],
) -> Result<Authentication, String> {
    Ok(match stored {
        StoredAuthentication::Sas(sealed) => {
            let sealed = STANDARD
                .decode(sealed)
                .map_err(|_| "keys are not base64".to_owned())?;
            let plain = keyring
                .open(context, &sealed)
                .map_err(|error| error.to_string())?;
            let (primary, secondary) = str::from_utf8(&plain)
                .ok()
                .and_then(|text| text.split_once('\0'))
                .ok_or_else(|| "keys are not a pair".to_owned())?;
            Authentication::Sas(SymmetricKeys {
                primary: Secret::new(primary),
                secondary: Secret::new(secondary),
            })
        }
        StoredAuthentication::SelfSigned { primary, secondary } => {
            Authentication::SelfSigned(Thumbprints { primary, secondary })
        }
        StoredAuthentication::CertificateAuthority => Authentication::CertificateAuthority,
        StoredAuthentication::None => Authentication::None,
    })
}

/// The write that stores a device.
pub(super) fn encode(device: &Device, keyring: &Keyring, chance: &dyn Chance) -> Action {
    let context = context(&device.device_id, &device.generation_id);
    let auth = seal(&device.authentication, keyring, chance, &context);
    let changed = device.status_updated;
    let stored = StoredDevice {
        v: FORM_VERSION,
        generation: device.generation_id.to_string(),
        reason: device.status_reason.clone(),
        changed: (changed != Timestamp::NEVER).then_some(changed.as_millis()),
        auth,
        edge: device.iot_edge,
        scope: device.device_scope.clone(),
        parents: device.parent_scopes.clone(),
    };
    Action::Put {
        class: device.status.class(),
        value: serde_json::to_vec(&stored)
            .map(Bytes::from)
            .expect("a struct of plain values is JSON"),
    }
}

/// Reads a stored device.
///
/// # Errors
/// [`StoreError::Damaged`] when it cannot be read or its keys do not open.
pub(super) fn decode(document: &Document, keyring: &Keyring) -> Result<Device, StoreError> {
    let id = String::from_utf8_lossy(&document.key);
    let damaged = |what: &str| StoreError::Damaged {
        what: format!("device {id}: {what}").into(),
        resume: None,
    };
    let device_id: DeviceId = id.parse().map_err(|_| damaged("not an id"))?;
    let stored: StoredDevice =
        serde_json::from_slice(&document.value).map_err(|_| damaged("not of a known form"))?;
    if stored.v != FORM_VERSION {
        return Err(damaged("of a later form"));
    }
    let authentication = open(
        stored.auth,
        keyring,
        &context(&device_id, &stored.generation),
    )
    .map_err(|what| damaged(&what))?;
    Ok(Device {
        device_id,
        generation_id: Arc::from(stored.generation),
        revision: document.revision,
        status: DeviceStatus::from_class(document.class)
            .ok_or_else(|| damaged("of an unknown class"))?,
        status_reason: stored.reason,
        status_updated: stored
            .changed
            .map_or(Timestamp::NEVER, Timestamp::from_millis),
        authentication,
        iot_edge: stored.edge,
        device_scope: stored.scope,
        parent_scopes: stored.parents,
    })
}

fn context<'a>(id: &'a DeviceId, generation: &'a str) -> [&'a str; 3] {
    ["device", id.as_str(), generation]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SeededChance;

    fn document(device: &Device, keyring: &Keyring) -> Document {
        let Action::Put { class, value } = encode(device, keyring, &SeededChance::new(3)) else {
            panic!("a device is stored by a put");
        };
        Document {
            key: Bytes::copy_from_slice(device.device_id.as_str().as_bytes()),
            revision: device.revision,
            class,
            value,
        }
    }

    fn device(authentication: Authentication) -> Device {
        Device {
            device_id: "dev1".parse().unwrap(),
            generation_id: "638000000000000000".into(),
            revision: 7,
            status: DeviceStatus::Disabled,
            status_reason: Some("lost \u{1f680}".to_owned()),
            status_updated: Timestamp::from_millis(1_798_859_045_123),
            authentication,
            iot_edge: true,
            device_scope: Some("ms-azure-iot-edge://dev1-1".to_owned()),
            parent_scopes: vec!["p".to_owned()],
        }
    }

    #[test]
    fn a_stored_device_is_read_back_and_its_keys_are_not_in_it() {
        let keyring = Keyring::new(1, [5; 32]);
        let keys = SymmetricKeys {
            primary: Secret::new("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="),
            secondary: Secret::new("MDEyMzQ1Njc4OWFiY2RlZg=="),
        };
        for authentication in [
            Authentication::Sas(keys.clone()),
            Authentication::SelfSigned(Thumbprints {
                primary: Some("ab".repeat(20)),
                secondary: None,
            }),
            Authentication::CertificateAuthority,
            Authentication::None,
        ] {
            let device = device(authentication);
            let document = document(&device, &keyring);
            let text = String::from_utf8_lossy(&document.value);
            assert!(!text.contains(keys.primary.expose()), "{text}");
            assert_eq!(decode(&document, &keyring).unwrap(), device);
        }
        let mut plain = device(Authentication::None);
        plain.status = DeviceStatus::Enabled;
        plain.status_reason = None;
        plain.status_updated = Timestamp::NEVER;
        plain.device_scope = None;
        assert_eq!(
            decode(&document(&plain, &keyring), &keyring).unwrap(),
            plain
        );
    }

    #[test]
    fn sealed_keys_do_not_move_to_another_device() {
        let keyring = Keyring::new(1, [5; 32]);
        let device = device(Authentication::Sas(SymmetricKeys {
            primary: Secret::new("a"),
            secondary: Secret::new("b"),
        }));
        let mut moved = document(&device, &keyring);
        moved.key = Bytes::from_static(b"dev2");
        assert!(matches!(
            decode(&moved, &keyring),
            Err(StoreError::Damaged { .. })
        ));
    }
}
