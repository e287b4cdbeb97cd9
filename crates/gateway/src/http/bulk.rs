//! `POST /devices`: many identities in one request.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{HeaderName, HeaderValue};
use axum::http::{Response, StatusCode};
use fieldpost_hub::identity::BulkItem;
use fieldpost_hub::policies::Rights;
use fieldpost_model::limits::BULK_REGISTRY_ITEMS_MAX;
use serde::Serialize;
use serde_json::Value;

use super::Api;
use super::call::Call;
use super::devices::json;
use super::document::bulk_item_from_json;
use super::refusal::Refusal;

/// .NET's service SDK returns the result of a partial failure only with this header, and throws
/// without it.
const FAILURE_HEADER: HeaderName = HeaderName::from_static("iothuberrorcode");
const FAILURE: HeaderValue = HeaderValue::from_static("BulkRegistryOperationFailure");

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BulkResult {
    is_successful: bool,
    errors: Vec<BulkError>,
    warnings: [(); 0],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BulkError {
    device_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    module_id: Option<String>,
    error_code: &'static str,
    error_status: String,
}

/// Applies every entry for itself and reports the ones that failed.
pub(crate) async fn apply(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let call = Call::open(&api, request, Rights::REGISTRY_WRITE).await?;
    let entries: Vec<Value> = call.json(&api).await?;
    if !(1..=BULK_REGISTRY_ITEMS_MAX).contains(&entries.len()) {
        return Err(Refusal::argument(format!(
            "a bulk request holds 1 to {BULK_REGISTRY_ITEMS_MAX} entries, this one {}",
            entries.len()
        )));
    }
    let mut errors = Vec::new();
    let mut items = Vec::<BulkItem>::with_capacity(entries.len());
    for entry in entries {
        let named = |member| {
            let text = entry.get(member).and_then(Value::as_str);
            text.filter(|text| !text.is_empty()).map(str::to_owned)
        };
        let (device_id, module_id) = (named("id").unwrap_or_default(), named("moduleId"));
        match bulk_item_from_json(entry) {
            Ok(item) => items.push(item),
            Err(invalid) => errors.push(error(device_id, module_id, &invalid.into())),
        }
    }
    let ids: Vec<_> = items
        .iter()
        .map(|item| item.device.device_id.clone())
        .collect();
    let results = api.hub.registry().bulk(items).await;
    for (id, result) in ids.iter().zip(results) {
        if let Err(refused) = result {
            let refusal = Refusal::of_registry(refused, id);
            // When the store takes nothing at all, the whole request is to be tried again.
            if refusal == Refusal::Unavailable {
                return Err(refusal);
            }
            errors.push(error(id.as_str().to_owned(), None, &refusal));
        }
    }
    let is_successful = errors.is_empty();
    let mut response = json(&BulkResult {
        is_successful,
        errors,
        warnings: [],
    });
    if !is_successful {
        *response.status_mut() = StatusCode::BAD_REQUEST;
        response.headers_mut().insert(FAILURE_HEADER, FAILURE);
    }
    Ok(response)
}

fn error(device_id: String, module_id: Option<String>, refusal: &Refusal) -> BulkError {
    let (_, _, error_code) = refusal.code();
    BulkError {
        device_id,
        module_id,
        error_code,
        error_status: refusal.text().into_owned(),
    }
}
