//! What only a hub in test mode offers: moving the clock, cutting connections, listing what a device
//! was sent, withholding acknowledgements.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use fieldpost_hub::probe::SentMessage;
use serde::Deserialize;
use serde_json::{Value, json};

use super::AdminParts;
use super::answer::{Body, Parameters, Problem, Segment, invalid, problem};
use super::c2d;

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

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Acknowledgements {
    device_id: String,
    module_id: Option<String>,
    withhold: bool,
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
    let identity = c2d::identity(&cut.device_id, cut.module_id.as_deref())?;
    let was_connected = parts.hub.presence().cut(&identity).await;
    Ok(Json(json!({"cut": was_connected})))
}

/// What a device or module was sent, oldest first:
/// `{"messages": [...], "continuation": NUMBER or null}`. Older than the last 10,000 deliveries, or
/// 64 MiB of them, nothing is known.
pub(super) async fn sent(
    State(parts): State<AdminParts>,
    Segment(device): Segment<String>,
    Parameters(query): Parameters<c2d::ListQuery>,
) -> Result<Json<Value>, Problem> {
    let identity = c2d::identity(&device, query.module_id.as_deref())?;
    let probe = parts.hub.probe().ok_or_else(not_in_test_mode)?;
    let limit = query.limit.unwrap_or(c2d::PAGE_MAX);
    let limit = limit.clamp(1, c2d::PAGE_MAX);
    let mut sent = probe.sent(&identity, query.after, limit + 1);
    let is_more = sent.len() > limit;
    sent.truncate(limit);
    let continuation = sent.last().filter(|_| is_more).map(|last| last.number);
    let messages: Vec<_> = sent.iter().map(shown).collect();
    Ok(Json(
        json!({"messages": messages, "continuation": continuation}),
    ))
}

/// Withholds the acknowledgements of what a device or module sends, or lets them go:
/// `{"withheld": BOOL}`.
pub(super) async fn acknowledgements(
    State(parts): State<AdminParts>,
    Body(wanted): Body<Acknowledgements>,
) -> Result<Json<Value>, Problem> {
    let module = wanted.module_id.as_deref();
    let identity = c2d::registered(&parts, &wanted.device_id, module).await?;
    let probe = parts.hub.probe().ok_or_else(not_in_test_mode)?;
    probe.withhold(&identity, wanted.withhold);
    Ok(Json(json!({"withheld": wanted.withhold})))
}

fn shown(sent: &SentMessage) -> Value {
    let mut shown = json!({
        "number": sent.number,
        "time": sent.at.to_string(),
        "connection": sent.connection,
        "sequenceNumber": sent.delivery.sequence,
        "deliveryCount": sent.delivery.delivery_count,
        "expiryTime": sent.delivery.expires.to_string(),
    });
    c2d::add_message(&mut shown, &sent.delivery.message);
    c2d::add_body(&mut shown, &sent.delivery.message);
    shown
}

fn not_in_test_mode() -> Problem {
    problem(
        StatusCode::CONFLICT,
        "NotInTestMode",
        "the hub is not in test mode",
    )
}
