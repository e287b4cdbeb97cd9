//! What only a hub in test mode offers: moving the clock, cutting connections.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use fieldpost_model::{Identity, ModuleId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::AdminParts;
use super::answer::{Body, Problem, invalid, problem};
use super::devices::parse_id;

/// Ten years. The clock never goes back, so a slip of a few digits would end a test store's use.
const ADVANCE_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

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
    Body(advance): Body<Advance>,
) -> Result<Json<Value>, Problem> {
    let span = Duration::try_from_secs_f64(advance.advance_seconds)
        .map_err(|error| invalid(format!("advanceSeconds: {error}")))?;
    if span > ADVANCE_MAX {
        let max = ADVANCE_MAX.as_secs();
        return Err(invalid(format!("advanceSeconds: at most {max} at a time")));
    }
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
    Body(cut): Body<Cut>,
) -> Result<Json<Value>, Problem> {
    let module = cut.module_id.as_deref().map(ModuleId::new).transpose();
    let identity = Identity {
        device: parse_id(&cut.device_id)?,
        module: module.map_err(|error| invalid(format!("moduleId: {error}")))?,
    };
    let was_connected = parts.hub.presence().cut(&identity).await;
    Ok(Json(json!({"cut": was_connected})))
}
