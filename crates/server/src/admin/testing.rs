//! What only a hub in test mode offers: moving the clock, cutting connections.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use fieldpost_model::{Identity, ModuleId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::AdminParts;
use super::answer::{Problem, invalid, problem};
use super::devices::parse_id;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Advance {
    advance_seconds: f64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Cut {
    device_id: String,
    module_id: Option<String>,
}

/// Moves the clock ahead and wakes whoever's moment has come: `{"now": TIME}`.
pub(super) async fn advance(
    State(parts): State<AdminParts>,
    Json(advance): Json<Advance>,
) -> Result<Json<Value>, Problem> {
    let span = Duration::try_from_secs_f64(advance.advance_seconds)
        .map_err(|error| invalid(format!("advanceSeconds: {error}")))?;
    let moved = parts.movable_clock.is_some_and(|clock| clock.advance(span));
    if !moved {
        return Err(problem(
            StatusCode::CONFLICT,
            "NotInTestMode",
            "the clock cannot be moved",
        ));
    }
    Ok(Json(json!({"now": parts.hub.timer().now().to_string()})))
}

/// Cuts the connection of a device or module: `{"cut": BOOL}`, false when there was none.
pub(super) async fn cut(
    State(parts): State<AdminParts>,
    Json(cut): Json<Cut>,
) -> Result<Json<Value>, Problem> {
    let module = cut.module_id.as_deref().map(ModuleId::new).transpose();
    let identity = Identity {
        device: parse_id(&cut.device_id)?,
        module: module.map_err(|error| invalid(format!("moduleId: {error}")))?,
    };
    let was_connected = parts.hub.presence().cut(&identity).await;
    Ok(Json(json!({"cut": was_connected})))
}
