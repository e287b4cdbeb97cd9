//! Routes of modules, the identities below a device.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use axum::http::header::{self, HeaderValue};
use fieldpost_hub::identity::{Module, Precondition};
use fieldpost_hub::policies::Rights;
use fieldpost_model::ModuleId;
use fieldpost_store::StoreError;
use serde_json::Value;
use tracing::debug;

use super::Api;
use super::call::Call;
use super::device_bound::no_content;
use super::devices::json;
use super::document::{module_at_path, module_document};
use super::refusal::Refusal;

/// `PUT /devices/{id}/modules/{module}`: creates without `If-Match`, updates with one.
pub(crate) async fn put(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let call = Call::open(&api, request, Rights::REGISTRY_WRITE).await?;
    let (device, id) = (call.device_id()?, module_id(&call)?);
    let condition = call.if_match()?;
    let document: Value = call.json(&api).await?;
    let spec = module_at_path(&device, &id, document)?;
    let registry = api.hub.registry();
    let written = match condition {
        None => registry.create_module(spec).await,
        Some(condition) => registry.update_module(spec, condition).await,
    };
    let module = written.map_err(|error| Refusal::of_module(error, &device))?;
    // What was changed must not be answered as an error.
    let messages = messages(&api, &module).await.unwrap_or_else(|error| {
        debug!(%error, "messages that wait for a module cannot be counted");
        0
    });
    Ok(answer(&api, &module, messages).await)
}

/// `GET /devices/{id}/modules/{module}`.
pub(crate) async fn get(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let call = Call::open(&api, request, Rights::REGISTRY_READ).await?;
    let (device, id) = (call.device_id()?, module_id(&call)?);
    let module = api.hub.registry().module(&device, &id).await?;
    let module = module.ok_or(Refusal::ModuleNotFound)?;
    let messages = messages(&api, &module).await?;
    Ok(answer(&api, &module, messages).await)
}

/// `GET /devices/{id}/modules`: an array in any case, Python's service SDK takes nothing else.
pub(crate) async fn list(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let call = Call::open(&api, request, Rights::REGISTRY_READ).await?;
    let device = call.device_id()?;
    let modules = api.hub.registry().modules(&device).await;
    let modules = modules.map_err(|error| Refusal::of_module(error, &device))?;
    let identities: Vec<_> = modules.iter().map(Module::identity).collect();
    let states = api.hub.presence().states(&identities).await;
    let queues: Vec<_> = identities
        .into_iter()
        .zip(&modules)
        .map(|(identity, module)| (identity, Arc::clone(&module.generation_id)))
        .collect();
    let counts = api.hub.c2d().message_counts(&queues).await?;
    let documents: Vec<_> = modules
        .iter()
        .zip(&states)
        .zip(counts)
        .map(|((module, state), messages)| module_document(module, state, messages))
        .collect();
    Ok(json(&documents))
}

/// `DELETE /devices/{id}/modules/{module}`.
pub(crate) async fn delete(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let call = Call::open(&api, request, Rights::REGISTRY_WRITE).await?;
    let (device, id) = (call.device_id()?, module_id(&call)?);
    let condition = call.if_match()?.unwrap_or(Precondition::Any);
    let deleted = api.hub.registry().delete_module(&device, &id, condition);
    let deleted = deleted.await;
    deleted.map_err(|error| Refusal::of_module(error, &device))?;
    Ok(no_content())
}

fn module_id(call: &Call) -> Result<ModuleId, Refusal> {
    call.module_id()?.ok_or(Refusal::ModuleNotFound)
}

async fn messages(api: &Api, module: &Module) -> Result<u64, StoreError> {
    let queue = [(module.identity(), Arc::clone(&module.generation_id))];
    let counts = api.hub.c2d().message_counts(&queue).await?;
    Ok(counts.first().copied().unwrap_or(0))
}

/// The document of a module to which so many messages wait.
async fn answer(api: &Api, module: &Module, messages: u64) -> Response<Body> {
    let state = api.hub.presence().state(&module.identity()).await;
    let mut response = json(&module_document(module, &state, messages));
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{}\"", module.etag())) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}
