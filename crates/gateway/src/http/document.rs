//! Registry documents: the JSON of devices and of bulk requests, both ways.
//!
//! Pure, so that everything that reads or writes such documents shares it.

use fieldpost_hub::identity::{
    Authentication, AuthenticationSpec, BulkItem, BulkMode, Device, DeviceSpec, DeviceStatus,
    Module, ModuleSpec, RegistryError, Thumbprints,
};
use fieldpost_hub::presence::ConnectionState;
use fieldpost_hub::secrets::Secret;
use fieldpost_model::{DeviceId, ModuleId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::refusal::Refusal;

/// A device as the registry's clients see it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceDocument<'a> {
    device_id: &'a str,
    generation_id: &'a str,
    etag: String,
    connection_state: &'static str,
    status: &'static str,
    status_reason: Option<&'a str>,
    connection_state_updated_time: String,
    status_updated_time: String,
    last_activity_time: String,
    cloud_to_device_message_count: u64,
    authentication: AuthenticationDocument<'a>,
    capabilities: CapabilitiesDocument,
    device_scope: &'a str,
    parent_scopes: &'a [String],
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AuthenticationDocument<'a> {
    symmetric_key: SymmetricKeyDocument<'a>,
    x509_thumbprint: ThumbprintDocument<'a>,
    r#type: &'static str,
}

// No `Debug`: these are keys.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SymmetricKeyDocument<'a> {
    primary_key: Option<&'a str>,
    secondary_key: Option<&'a str>,
}

impl std::fmt::Debug for SymmetricKeyDocument<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SymmetricKeyDocument")
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ThumbprintDocument<'a> {
    primary_thumbprint: Option<&'a str>,
    secondary_thumbprint: Option<&'a str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CapabilitiesDocument {
    iot_edge: bool,
}

/// Why a document is not a device or a bulk item.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDocument {
    /// It has not the documented shape.
    #[error("{0}")]
    Shape(String),
    /// A member has a value that it must not have.
    #[error("{member}: {reason}")]
    Member {
        /// The member's name.
        member: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
}

/// A module as the registry's clients see it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ModuleDocument<'a> {
    module_id: &'a str,
    device_id: &'a str,
    managed_by: Option<&'a str>,
    generation_id: &'a str,
    etag: String,
    connection_state: &'static str,
    connection_state_updated_time: String,
    last_activity_time: String,
    cloud_to_device_message_count: u64,
    authentication: AuthenticationDocument<'a>,
}

/// The document of a module, to which `messages` messages wait.
pub(crate) fn module_document<'a>(
    module: &'a Module,
    state: &ConnectionState,
    messages: u64,
) -> ModuleDocument<'a> {
    ModuleDocument {
        module_id: module.module_id.as_str(),
        device_id: module.device_id.as_str(),
        managed_by: module.managed_by.as_deref(),
        generation_id: &module.generation_id,
        etag: module.etag(),
        connection_state: connection_state(state),
        connection_state_updated_time: state.state_updated.to_string(),
        last_activity_time: state.last_activity.to_string(),
        cloud_to_device_message_count: messages,
        authentication: authentication_document(&module.authentication),
    }
}

fn connection_state(state: &ConnectionState) -> &'static str {
    if state.connected {
        "Connected"
    } else {
        "Disconnected"
    }
}

fn authentication_document(authentication: &Authentication) -> AuthenticationDocument<'_> {
    let mut document = AuthenticationDocument {
        symmetric_key: SymmetricKeyDocument {
            primary_key: None,
            secondary_key: None,
        },
        x509_thumbprint: ThumbprintDocument {
            primary_thumbprint: None,
            secondary_thumbprint: None,
        },
        r#type: "none",
    };
    match authentication {
        Authentication::Sas(keys) => {
            document.symmetric_key.primary_key = Some(keys.primary.expose());
            document.symmetric_key.secondary_key = Some(keys.secondary.expose());
            document.r#type = "sas";
        }
        Authentication::SelfSigned(thumbprints) => {
            document.x509_thumbprint.primary_thumbprint = thumbprints.primary.as_deref();
            document.x509_thumbprint.secondary_thumbprint = thumbprints.secondary.as_deref();
            document.r#type = "selfSigned";
        }
        Authentication::CertificateAuthority => document.r#type = "certificateAuthority",
        Authentication::None => {}
    }
    document
}

/// The document of a device, to which `messages` messages wait.
#[must_use]
pub fn device_document<'a>(
    device: &'a Device,
    state: &ConnectionState,
    messages: u64,
) -> DeviceDocument<'a> {
    DeviceDocument {
        device_id: device.device_id.as_str(),
        generation_id: &device.generation_id,
        etag: device.etag(),
        connection_state: connection_state(state),
        status: match device.status {
            DeviceStatus::Enabled => "enabled",
            DeviceStatus::Disabled => "disabled",
        },
        status_reason: device.status_reason.as_deref(),
        connection_state_updated_time: state.state_updated.to_string(),
        status_updated_time: device.status_updated.to_string(),
        last_activity_time: state.last_activity.to_string(),
        cloud_to_device_message_count: messages,
        authentication: authentication_document(&device.authentication),
        capabilities: CapabilitiesDocument {
            iot_edge: device.iot_edge,
        },
        device_scope: device.device_scope.as_deref().unwrap_or_default(),
        parent_scopes: &device.parent_scopes,
    }
}

/// The six-digit code and the name by which clients know what the registry refused.
#[must_use]
pub fn registry_error_code(error: &RegistryError, device: &DeviceId) -> (u32, &'static str) {
    let (_, code, name) = Refusal::of_registry(error.clone(), device).code();
    (code, name)
}

/// Reads what a client says of a device. Unknown members are ignored, and a null member is an
/// absent one.
///
/// # Errors
/// When the document has another shape or a member a value that it must not have.
pub fn device_from_json(document: Value) -> Result<DeviceSpec, InvalidDocument> {
    let members: DeviceMembers = from_value(document)?;
    let id = members.device_id.as_deref().unwrap_or_default();
    spec(id, "deviceId", &members)
}

/// Reads a device document whose `deviceId` may be missing, because its path names the device.
pub(crate) fn device_at_path(
    device: &DeviceId,
    document: Value,
) -> Result<DeviceSpec, InvalidDocument> {
    let members: DeviceMembers = from_value(document)?;
    if members
        .device_id
        .as_deref()
        .is_some_and(|id| id != device.as_str())
    {
        return Err(InvalidDocument::Member {
            member: "deviceId",
            reason: "is not the device that the path names".to_owned(),
        });
    }
    spec(device.as_str(), "deviceId", &members)
}

/// Reads a module document; both ids may be missing, because its path names them.
pub(crate) fn module_at_path(
    device: &DeviceId,
    module: &ModuleId,
    document: Value,
) -> Result<ModuleSpec, InvalidDocument> {
    let members: ModuleMembers = from_value(document)?;
    for (member, given, named) in [
        ("deviceId", &members.device_id, device.as_str()),
        ("moduleId", &members.module_id, module.as_str()),
    ] {
        if given.as_deref().is_some_and(|id| id != named) {
            return Err(InvalidDocument::Member {
                member,
                reason: "is not the one that the path names".to_owned(),
            });
        }
    }
    let authentication = members.authentication.as_ref();
    Ok(ModuleSpec {
        device_id: device.clone(),
        module_id: module.clone(),
        authentication: authentication
            .map(authentication_spec)
            .transpose()?
            .unwrap_or(AuthenticationSpec::Unchanged),
        managed_by: members.managed_by,
    })
}

/// Reads one entry of a bulk request, or one line of an export.
///
/// # Errors
/// When it has another shape, a member has a value that it must not have, or it is not about a
/// device identity.
pub fn bulk_item_from_json(document: Value) -> Result<BulkItem, InvalidDocument> {
    let entry: BulkMembers = from_value(document)?;
    if entry.module_id.as_deref().is_some_and(|id| !id.is_empty()) {
        return Err(InvalidDocument::Member {
            member: "moduleId",
            reason: "modules are not taken in bulk".to_owned(),
        });
    }
    let mode = entry.import_mode.as_deref().unwrap_or("createOrUpdate");
    let mode = mode
        .parse::<BulkMode>()
        .map_err(|_| InvalidDocument::Member {
            member: "importMode",
            reason: format!("'{mode}' is no known mode"),
        })?;
    let id = entry.id.as_deref().unwrap_or_default();
    Ok(BulkItem {
        mode,
        device: spec(id, "id", &entry.device)?,
        etag: entry.etag.or(entry.e_tag).map(|etag| bare_etag(&etag)),
    })
}

fn bare_etag(etag: &str) -> String {
    let etag = etag.strip_prefix("W/").unwrap_or(etag);
    let bare = etag
        .strip_prefix('"')
        .and_then(|etag| etag.strip_suffix('"'));
    bare.unwrap_or(etag).to_owned()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeviceMembers {
    device_id: Option<String>,
    status: Option<String>,
    status_reason: Option<String>,
    authentication: Option<AuthenticationMembers>,
    capabilities: Option<CapabilitiesMembers>,
    device_scope: Option<String>,
    parent_scopes: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ModuleMembers {
    device_id: Option<String>,
    module_id: Option<String>,
    managed_by: Option<String>,
    authentication: Option<AuthenticationMembers>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuthenticationMembers {
    r#type: Option<String>,
    symmetric_key: Option<SymmetricKeyMembers>,
    x509_thumbprint: Option<ThumbprintMembers>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SymmetricKeyMembers {
    primary_key: Option<String>,
    secondary_key: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ThumbprintMembers {
    primary_thumbprint: Option<String>,
    secondary_thumbprint: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CapabilitiesMembers {
    iot_edge: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BulkMembers {
    id: Option<String>,
    module_id: Option<String>,
    import_mode: Option<String>,
    /// Node's spelling.
    etag: Option<String>,
    /// Python's and .NET's spelling.
    #[serde(rename = "eTag")]
    e_tag: Option<String>,
    #[serde(flatten)]
    device: DeviceMembers,
}

fn from_value<T: serde::de::DeserializeOwned>(document: Value) -> Result<T, InvalidDocument> {
    serde_json::from_value(document).map_err(|error| InvalidDocument::Shape(error.to_string()))
}

fn spec(
    id: &str,
    id_member: &'static str,
    members: &DeviceMembers,
) -> Result<DeviceSpec, InvalidDocument> {
    let device_id = DeviceId::new(id).map_err(|error| InvalidDocument::Member {
        member: id_member,
        reason: error.to_string(),
    })?;
    let mut spec = DeviceSpec::new(device_id);
    spec.status = match members.status.as_deref() {
        None => None,
        Some(word) if word.eq_ignore_ascii_case("enabled") => Some(DeviceStatus::Enabled),
        Some(word) if word.eq_ignore_ascii_case("disabled") => Some(DeviceStatus::Disabled),
        Some(word) => {
            return Err(InvalidDocument::Member {
                member: "status",
                reason: format!("'{word}' is neither enabled nor disabled"),
            });
        }
    };
    spec.status_reason.clone_from(&members.status_reason);
    if let Some(authentication) = &members.authentication {
        spec.authentication = authentication_spec(authentication)?;
    }
    spec.iot_edge = members
        .capabilities
        .as_ref()
        .and_then(|capabilities| capabilities.iot_edge)
        .unwrap_or(false);
    spec.device_scope = members
        .device_scope
        .clone()
        .filter(|scope| !scope.is_empty());
    spec.parent_scopes = members.parent_scopes.clone().unwrap_or_default();
    Ok(spec)
}

fn authentication_spec(
    members: &AuthenticationMembers,
) -> Result<AuthenticationSpec, InvalidDocument> {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let thumbprints = members
        .x509_thumbprint
        .as_ref()
        .map(|thumbprints| Thumbprints {
            primary: given(&thumbprints.primary_thumbprint),
            secondary: given(&thumbprints.secondary_thumbprint),
        })
        .unwrap_or(Thumbprints {
            primary: None,
            secondary: None,
        });
    // Documents of 2016 have no type: thumbprints alone tell.
    let kind = members.r#type.as_deref().unwrap_or(
        if thumbprints.primary.is_some() || thumbprints.secondary.is_some() {
            "selfSigned"
        } else {
            "sas"
        },
    );
    Ok(match kind.to_ascii_lowercase().as_str() {
        "sas" => {
            let keys = members.symmetric_key.as_ref();
            AuthenticationSpec::Sas {
                primary: keys.and_then(|k| given(&k.primary_key)).map(Secret::new),
                secondary: keys.and_then(|k| given(&k.secondary_key)).map(Secret::new),
            }
        }
        "selfsigned" => AuthenticationSpec::SelfSigned(thumbprints),
        "certificateauthority" => AuthenticationSpec::CertificateAuthority,
        "none" => AuthenticationSpec::None,
        _ => {
            return Err(InvalidDocument::Member {
                member: "authentication.type",
                reason: format!("'{kind}' is no known type"),
            });
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asks_for_keys(spec: &DeviceSpec) -> bool {
        matches!(
            spec.authentication,
            AuthenticationSpec::Sas {
                primary: None,
                secondary: None,
            }
        )
    }

    #[test]
    fn devices_are_read_as_sdks_write_them() {
        // Node's registry: keys of empty text mean "make some".
        let spec = device_from_json(json!({
            "deviceId": "dev1", "status": "enabled", "unknown": [1],
            "authentication": {"type": "sas",
                "symmetricKey": {"primaryKey": "", "secondaryKey": ""}},
        }))
        .unwrap();
        assert_eq!(spec.device_id.as_str(), "dev1");
        assert_eq!(spec.status, Some(DeviceStatus::Enabled));
        assert!(asks_for_keys(&spec));
        // Python's: an empty object, and nulls elsewhere.
        let spec = device_from_json(json!({
            "deviceId": "dev1", "status": null, "capabilities": {"iotEdge": true},
            "authentication": {"type": "sas", "symmetricKey": {}},
        }))
        .unwrap();
        assert_eq!(spec.status, None);
        assert!(spec.iot_edge);
        assert!(asks_for_keys(&spec));
        // 2016: no type.
        let spec = device_from_json(json!({
            "deviceId": "dev1",
            "authentication": {"x509Thumbprint": {"primaryThumbprint": "AA"}},
        }))
        .unwrap();
        assert!(matches!(
            spec.authentication,
            AuthenticationSpec::SelfSigned(_)
        ));
    }

    #[test]
    fn wrong_values_are_named() {
        let check = |document: Value, member: &str| match device_from_json(document) {
            Err(InvalidDocument::Member { member: named, .. }) => assert_eq!(named, member),
            other => panic!("{member}: {:?}", other.map(|_| ())),
        };
        check(json!({"deviceId": "a/b"}), "deviceId");
        check(json!({}), "deviceId");
        check(json!({"deviceId": "a", "status": "on"}), "status");
        check(
            json!({"deviceId": "a", "authentication": {"type": "magic"}}),
            "authentication.type",
        );
        assert!(matches!(
            device_from_json(json!({"deviceId": 5})),
            Err(InvalidDocument::Shape(_))
        ));
    }

    #[test]
    fn bulk_entries_are_read_in_both_spellings() {
        for (mode, etag) in [("updateIfMatchETag", "eTag"), ("UpdateIfMatchETag", "etag")] {
            let item =
                bulk_item_from_json(json!({"id": "dev1", "importMode": mode, etag: "\"MTA2\""}))
                    .unwrap();
            assert_eq!(item.mode, BulkMode::UpdateIfMatchETag);
            assert_eq!(item.etag.as_deref(), Some("MTA2"));
        }
        for (document, member) in [
            (json!({"id": "d", "importMode": "burn"}), "importMode"),
            (
                json!({"id": "d", "moduleId": "m", "importMode": "create"}),
                "moduleId",
            ),
            (json!({"importMode": "create"}), "id"),
        ] {
            let Err(InvalidDocument::Member { member: named, .. }) = bulk_item_from_json(document)
            else {
                panic!("{member} must be refused");
            };
            assert_eq!(named, member);
        }
    }
}
