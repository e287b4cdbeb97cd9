//! Device identities, one at a time and page by page.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use fieldpost_gateway::http::document::{self, device_document};
use fieldpost_gateway::http::messages_after_change;
use fieldpost_hub::identity::{Device, Module, Precondition, RegistryError};
use fieldpost_model::limits::REGISTRY_LIST_MAX;
use fieldpost_model::{DeviceId, Identity, ModuleId};
use fieldpost_store::StoreError;
use serde::Deserialize;
use serde_json::{Value, json};

use super::AdminParts;
use super::answer::{Body, Parameters, Problem, Segment, invalid, problem};
use super::c2d::unavailable;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ListQuery {
    /// Only devices after this id.
    after: Option<String>,
    /// At most so many.
    limit: Option<usize>,
}

/// Devices in the order of their ids: `{"devices": [...], "continuation": ID or null}`.
pub(super) async fn list(
    State(parts): State<AdminParts>,
    Parameters(query): Parameters<ListQuery>,
) -> Result<Json<Value>, Problem> {
    let after = query.after.as_deref().map(parse_id).transpose()?;
    let limit = query
        .limit
        .unwrap_or(REGISTRY_LIST_MAX)
        .clamp(1, REGISTRY_LIST_MAX);
    let page = parts
        .hub
        .registry()
        .list(after.as_ref(), limit)
        .await
        .map_err(|error| refused(&error, ""))?;
    let identities: Vec<_> = page
        .devices
        .iter()
        .map(|device| Identity::of_device(device.device_id.clone()))
        .collect();
    let states = parts.hub.presence().states(&identities).await;
    let queues: Vec<_> = identities
        .into_iter()
        .zip(&page.devices)
        .map(|(identity, device)| (identity, Arc::clone(&device.generation_id)))
        .collect();
    let counts = parts.hub.c2d().message_counts(&queues).await;
    let counts = counts.map_err(|error| unavailable(&error))?;
    let documents: Vec<_> = page
        .devices
        .iter()
        .zip(&states)
        .zip(counts)
        .map(|((device, state), messages)| device_document(device, state, messages))
        .collect();
    let last = page.devices.last().map(|device| device.device_id.as_str());
    let continuation = last.filter(|_| page.more);
    Ok(Json(
        json!({"devices": documents, "continuation": continuation}),
    ))
}

/// How many devices there are.
pub(super) async fn statistics(State(parts): State<AdminParts>) -> Json<Value> {
    let counts = parts.hub.registry().statistics();
    Json(json!({
        "totalDeviceCount": counts.total,
        "enabledDeviceCount": counts.enabled,
        "disabledDeviceCount": counts.disabled,
        "connectedDeviceCount": parts.hub.presence().connected_devices(),
    }))
}

/// One device.
pub(super) async fn show(
    State(parts): State<AdminParts>,
    Segment(id): Segment<String>,
) -> Result<Json<Value>, Problem> {
    let device = find(&parts, &id).await?;
    one_device(&parts, &device).await
}

/// Creates a device, or with `If-Match` (an etag or `*`) updates one.
pub(super) async fn put(
    State(parts): State<AdminParts>,
    Segment(id): Segment<String>,
    headers: HeaderMap,
    Body(mut document): Body<Value>,
) -> Result<Json<Value>, Problem> {
    if let Some(members) = document.as_object_mut() {
        let named = members.entry("deviceId").or_insert_with(|| json!(id));
        if named.as_str() != Some(&id) {
            return Err(invalid("deviceId is not the device that the path names"));
        }
    }
    let spec = document::device_from_json(document).map_err(|error| invalid(error.to_string()))?;
    let registry = parts.hub.registry();
    let device = match condition(&headers)? {
        None => registry.create(spec).await,
        Some(condition) => registry.update(spec, condition).await,
    };
    let device = device.map_err(|error| refused(&error, &id))?;
    let messages = messages_after_change(&parts.hub, &device).await;
    Ok(answer(&parts, &device, messages).await)
}

/// Deletes a device.
pub(super) async fn delete(
    State(parts): State<AdminParts>,
    Segment(id): Segment<String>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let condition = condition(&headers)?.unwrap_or(Precondition::Any);
    let deleted = parts
        .hub
        .registry()
        .delete(&parse_id(&id)?, condition)
        .await;
    deleted.map_err(|error| refused(&error, &id))?;
    Ok(StatusCode::NO_CONTENT)
}

/// The device of this id.
pub(super) async fn find(parts: &AdminParts, id: &str) -> Result<Arc<Device>, Problem> {
    let found = parts.hub.registry().get(&parse_id(id)?).await;
    let found = found.map_err(|error| refused(&RegistryError::Store(error), id))?;
    found.ok_or_else(|| refused(&RegistryError::NotFound, id))
}

/// The module of that id, of the device of that id.
pub(super) async fn find_module(
    parts: &AdminParts,
    device: &str,
    module: &ModuleId,
) -> Result<Module, Problem> {
    let found = parts
        .hub
        .registry()
        .module(&parse_id(device)?, module)
        .await;
    let found = found.map_err(|error| refused(&RegistryError::Store(error), device))?;
    found.ok_or_else(|| refused(&RegistryError::ModuleNotFound, device))
}

/// Reads a device id.
pub(super) fn parse_id(id: &str) -> Result<DeviceId, Problem> {
    DeviceId::new(id).map_err(|error| invalid(format!("`{id}` cannot be a device id: {error}")))
}

/// Code and text of what the registry refused, the code as clients of the REST API know it.
pub(super) fn explained(error: &RegistryError, id: &str) -> (&'static str, String) {
    let text = match error {
        RegistryError::NotFound => format!("no device with id `{id}` is registered"),
        RegistryError::AlreadyExists => format!("a device with id `{id}` is registered already"),
        RegistryError::ModuleNotFound | RegistryError::TooManyModules => {
            format!("device `{id}`: {error}")
        }
        RegistryError::PreconditionFailed => format!("device `{id}` has another etag"),
        RegistryError::DefinedTwice => format!("device `{id}` is named more than once"),
        RegistryError::InvalidArgument(invalid) => format!("device `{id}`: {invalid}"),
        RegistryError::Store(error) => error.to_string(),
    };
    let device = DeviceId::new(id).or_else(|_| DeviceId::new("unknown"));
    let code = device.map_or("ServerError", |device| {
        document::registry_error_code(error, &device).1
    });
    (code, text)
}

fn refused(error: &RegistryError, id: &str) -> Problem {
    let (code, text) = explained(error, id);
    let status = match error {
        RegistryError::NotFound | RegistryError::ModuleNotFound => StatusCode::NOT_FOUND,
        RegistryError::AlreadyExists | RegistryError::TooManyModules => StatusCode::CONFLICT,
        RegistryError::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
        RegistryError::DefinedTwice | RegistryError::InvalidArgument(_) => StatusCode::BAD_REQUEST,
        RegistryError::Store(error) => store_status(error),
    };
    problem(status, code, text)
}

/// The status of a failure of the store.
pub(super) fn store_status(error: &StoreError) -> StatusCode {
    match error {
        StoreError::ReadOnly { .. } | StoreError::Full | StoreError::Closed => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        StoreError::Damaged { .. } | StoreError::Read { .. } | StoreError::OutOfBounds { .. } => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

async fn one_device(parts: &AdminParts, device: &Device) -> Result<Json<Value>, Problem> {
    let identity = Identity::of_device(device.device_id.clone());
    let queue = [(identity, Arc::clone(&device.generation_id))];
    let counts = parts.hub.c2d().message_counts(&queue).await;
    let counts = counts.map_err(|error| unavailable(&error))?;
    Ok(answer(parts, device, counts.first().copied().unwrap_or(0)).await)
}

/// The document of a device to which so many messages wait.
async fn answer(parts: &AdminParts, device: &Device, messages: u64) -> Json<Value> {
    let identity = Identity::of_device(device.device_id.clone());
    let state = parts.hub.presence().state(&identity).await;
    Json(json!(device_document(device, &state, messages)))
}

fn condition(headers: &HeaderMap) -> Result<Option<Precondition>, Problem> {
    let Some(value) = headers.get(header::IF_MATCH) else {
        return Ok(None);
    };
    let text = value
        .to_str()
        .map_err(|_| invalid("If-Match is not text"))?
        .trim();
    let bare = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'));
    Ok(Some(Precondition::matching(bare.unwrap_or(text))))
}

#[cfg(test)]
mod tests {
    use axum::body::Body as RequestBody;
    use axum::http::Request;
    use tower::ServiceExt as _;

    use crate::admin::{routes, testing_parts_and_store};

    /// An operator who is told of a failure does it again, and with an etag cannot.
    #[tokio::test]
    async fn a_change_that_is_durable_is_answered_when_messages_cannot_be_counted() {
        let (parts, _, store) = testing_parts_and_store().await;
        store.queues.fail_depths();
        let router = routes(parts);
        for condition in [None, Some("*")] {
            let mut request = Request::builder().method("PUT").uri("/api/devices/dev1");
            if let Some(condition) = condition {
                request = request.header("if-match", condition);
            }
            let request = request.header("content-type", "application/json");
            let request = request.body(RequestBody::from("{}")).unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.status(), 200, "{condition:?}");
        }
    }
}
