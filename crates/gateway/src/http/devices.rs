//! Routes of single devices, lists and statistics.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderValue};
use axum::http::{Response, StatusCode};
use fieldpost_hub::Hub;
use fieldpost_hub::c2d::PurgeError;
use fieldpost_hub::identity::{Device, Precondition};
use fieldpost_hub::policies::Rights;
use fieldpost_model::limits::REGISTRY_LIST_MAX;
use fieldpost_model::{Identity, ModuleId};
use serde::Serialize;
use serde_json::Value;
use tracing::warn;

use super::Api;
use super::call::Call;
use super::document::{InvalidDocument, device_at_path, device_document};
use super::refusal::{Refusal, set_json};
use crate::quiet::RepeatLimit;

/// `PUT /devices/{id}`: creates without `If-Match`, updates with one.
pub(crate) async fn put(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let call = Call::open(&api, request, Rights::REGISTRY_WRITE).await?;
    let id = call.device_id()?;
    let condition = call.if_match()?;
    let document: Value = call.json(&api).await?;
    let spec = device_at_path(&id, document)?;
    let registry = api.hub.registry();
    let refusal = |error| Refusal::of_registry(error, &id);
    match condition {
        None => {
            let device = registry.create(spec).await.map_err(refusal)?;
            // Nobody can have sent it anything, and what is created must not be answered as an error.
            Ok(answer(&api, &device, 0).await)
        }
        Some(condition) => {
            let device = registry.update(spec, condition).await.map_err(refusal)?;
            let messages = messages_after_change(&api.hub, &device).await;
            Ok(answer(&api, &device, messages).await)
        }
    }
}

/// `GET /devices/{id}`.
pub(crate) async fn get(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let call = Call::open(&api, request, Rights::REGISTRY_READ).await?;
    let id = call.device_id()?;
    match api.hub.registry().get(&id).await? {
        None => Err(Refusal::DeviceNotFound(id)),
        Some(device) => one_device(&api, &device).await,
    }
}

/// `DELETE /devices/{id}`.
pub(crate) async fn delete(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let call = Call::open(&api, request, Rights::REGISTRY_WRITE).await?;
    let id = call.device_id()?;
    let condition = call.if_match()?.unwrap_or(Precondition::Any);
    api.hub
        .registry()
        .delete(&id, condition)
        .await
        .map_err(|error| Refusal::of_registry(error, &id))?;
    let mut response = Response::new(Body::empty());
    // Python's service SDK takes 200 for a failure.
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

/// `DELETE /devices/{id}/commands`: empties the queue of messages to the device or module.
pub(crate) async fn purge(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Purged<'a> {
        device_id: &'a str,
        /// Empty for the device itself.
        module_id: &'a str,
        total_messages_purged: u64,
    }
    let call = Call::open(&api, request, Rights::SERVICE_CONNECT).await?;
    let (device, module) = (call.device_id()?, call.module_id()?);
    let purged = api.hub.c2d().purge(&device, module.as_ref()).await;
    let total_messages_purged = purged.map_err(|error| match error {
        PurgeError::UnknownDevice if module.is_some() => Refusal::ModuleNotFound,
        PurgeError::UnknownDevice => Refusal::DeviceNotFound(device.clone()),
        PurgeError::Store(error) => error.into(),
    })?;
    Ok(json(&Purged {
        device_id: device.as_str(),
        module_id: module.as_ref().map_or("", ModuleId::as_str),
        total_messages_purged,
    }))
}

/// `GET /devices?top=n`.
pub(crate) async fn list(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let call = Call::open(&api, request, Rights::REGISTRY_READ).await?;
    let top = call
        .parameter("top")
        .and_then(|top| top.parse().ok())
        .filter(|top| (1..=REGISTRY_LIST_MAX).contains(top))
        .unwrap_or(REGISTRY_LIST_MAX);
    let devices = api
        .hub
        .registry()
        .list(None, top)
        .await
        .map_err(Refusal::of_listing)?
        .devices;
    let identities: Vec<_> = devices
        .iter()
        .map(|device| Identity::of_device(device.device_id.clone()))
        .collect();
    let states = api.hub.presence().states(&identities).await;
    let queues: Vec<_> = identities
        .into_iter()
        .zip(&devices)
        .map(|(identity, device)| (identity, Arc::clone(&device.generation_id)))
        .collect();
    let counts = api.hub.c2d().message_counts(&queues).await?;
    let documents: Vec<_> = devices
        .iter()
        .zip(&states)
        .zip(counts)
        .map(|((device, state), messages)| device_document(device, state, messages))
        .collect();
    Ok(json(&documents))
}

/// `GET /statistics/devices`.
pub(crate) async fn device_statistics(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Statistics {
        total_device_count: u64,
        enabled_device_count: u64,
        disabled_device_count: u64,
    }
    Call::open(&api, request, Rights::REGISTRY_READ).await?;
    let statistics = api.hub.registry().statistics();
    Ok(json(&Statistics {
        total_device_count: statistics.total,
        enabled_device_count: statistics.enabled,
        disabled_device_count: statistics.disabled,
    }))
}

/// `GET /statistics/service`.
pub(crate) async fn service_statistics(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Statistics {
        connected_device_count: u64,
    }
    Call::open(&api, request, Rights::REGISTRY_READ).await?;
    Ok(json(&Statistics {
        connected_device_count: api.hub.presence().connected_devices(),
    }))
}

/// How many messages wait for a device that was just changed. The change is durable and must not be
/// answered as an error: when the queue cannot be read, there are none, and the log says why.
pub async fn messages_after_change(hub: &Hub, device: &Device) -> u64 {
    static LIMIT: RepeatLimit = RepeatLimit::new();
    let identity = Identity::of_device(device.device_id.clone());
    let queue = [(identity, Arc::clone(&device.generation_id))];
    match hub.c2d().message_counts(&queue).await {
        Ok(counts) => counts.first().copied().unwrap_or(0),
        Err(error) => {
            if let Some(left_out) = LIMIT.pass(hub.timer().monotonic()) {
                warn!(
                    device_id = %device.device_id,
                    %error,
                    left_out,
                    "a device was changed, but the messages that wait for it cannot be counted"
                );
            }
            0
        }
    }
}

async fn one_device(api: &Api, device: &Device) -> Result<Response<Body>, Refusal> {
    let identity = Identity::of_device(device.device_id.clone());
    let queue = [(identity, Arc::clone(&device.generation_id))];
    let counts = api.hub.c2d().message_counts(&queue).await?;
    Ok(answer(api, device, counts.first().copied().unwrap_or(0)).await)
}

/// The document of a device to which so many messages wait.
async fn answer(api: &Api, device: &Device, messages: u64) -> Response<Body> {
    let identity = Identity::of_device(device.device_id.clone());
    let state = api.hub.presence().state(&identity).await;
    let mut response = json(&device_document(device, &state, messages));
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{}\"", device.etag())) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

pub(crate) fn json(value: &impl Serialize) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    set_json(&mut response, value);
    response
}

impl From<InvalidDocument> for Refusal {
    fn from(invalid: InvalidDocument) -> Self {
        match invalid {
            InvalidDocument::Shape(text) => Self::Format(text.into()),
            InvalidDocument::Member { .. } => Self::argument(invalid.to_string()),
        }
    }
}
