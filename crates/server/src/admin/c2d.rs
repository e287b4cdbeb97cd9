//! Messages to devices: what waits, where one message is, and those that no device took.
//!
//! Sending is not here: services and the command line send over the service endpoint, as SDKs do.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use fieldpost_hub::c2d::{
    AttemptReceiver, Attempts, DeadLetter, FeedbackState, MessageQuery, MessageState, MessageTrace,
    PurgeError, RequeueError, SendRefused, TraceState,
};
use fieldpost_model::{Identity, ModuleId};
use fieldpost_record::CommandView;
use fieldpost_store::StoreError;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::AdminParts;
use super::answer::{Parameters, Problem, Segment, invalid, problem};
use super::devices::{find, find_module, parse_id, store_status};

/// Messages and dead letters in one answer.
pub(super) const PAGE_MAX: usize = 1000;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ListQuery {
    pub(super) module_id: Option<String>,
    /// Only messages after this number.
    #[serde(default)]
    pub(super) after: u64,
    /// At most so many.
    pub(super) limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TraceQuery {
    module_id: Option<String>,
    message_id: Option<String>,
    sequence_number: Option<u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ModuleQuery {
    module_id: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DeadLettersQuery {
    device_id: Option<String>,
    module_id: Option<String>,
    /// Only dead letters after this number.
    #[serde(default)]
    after: u64,
    /// At most so many.
    limit: Option<usize>,
}

/// What waits for a device or is locked by it, in order:
/// `{"messages": [...], "continuation": NUMBER or null}`.
pub(super) async fn list(
    State(parts): State<AdminParts>,
    Segment(device): Segment<String>,
    Parameters(query): Parameters<ListQuery>,
) -> Result<Json<Value>, Problem> {
    let identity = registered(&parts, &device, query.module_id.as_deref()).await?;
    let limit = query.limit.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
    let c2d = parts.hub.c2d();
    let read = async |after, limit| {
        let messages = c2d.list(&identity, after, limit).await;
        messages.map_err(|error| unavailable(&error))
    };
    let messages = read(query.after, limit).await?;
    // A page may end before its limit, by its bytes.
    let continuation = match messages.last() {
        Some(last) if !read(last.sequence, 1).await?.is_empty() => Some(last.sequence),
        Some(_) | None => None,
    };
    let messages: Vec<_> = messages.iter().map(waiting).collect();
    Ok(Json(
        json!({"messages": messages, "continuation": continuation}),
    ))
}

/// Everything that is known of the messages with an id or a sequence number: `{"messages": [...]}`.
pub(super) async fn trace(
    State(parts): State<AdminParts>,
    Segment(device): Segment<String>,
    Parameters(query): Parameters<TraceQuery>,
) -> Result<Json<Value>, Problem> {
    // The device may have been deleted since.
    let identity = identity(&device, query.module_id.as_deref())?;
    let query = match (query.message_id, query.sequence_number) {
        (Some(id), None) => MessageQuery::Id(id),
        (None, Some(number)) => MessageQuery::Sequence(number),
        _ => return Err(invalid("either messageId or sequenceNumber is needed")),
    };
    let traces = parts
        .hub
        .c2d()
        .show(&identity, &query)
        .await
        .map_err(|error| unavailable(&error))?;
    let messages: Vec<_> = traces
        .iter()
        .map(|trace| traced(trace, &identity))
        .collect();
    Ok(Json(json!({"messages": messages})))
}

/// Removes what waits for a device and is not locked: `{"totalMessagesPurged": N, ...}`, the answer
/// that the REST API gives.
pub(super) async fn purge(
    State(parts): State<AdminParts>,
    Segment(device): Segment<String>,
    Parameters(query): Parameters<ModuleQuery>,
) -> Result<Json<Value>, Problem> {
    let identity = identity(&device, query.module_id.as_deref())?;
    let purged = parts
        .hub
        .c2d()
        .purge(&identity.device, identity.module.as_ref())
        .await;
    let count = purged.map_err(|error| match error {
        PurgeError::UnknownDevice => not_registered(&device),
        PurgeError::Store(error) => unavailable(&error),
    })?;
    Ok(Json(json!({
        "totalMessagesPurged": count,
        "deviceId": device,
        "moduleId": query.module_id,
    })))
}

/// Dead letters in the order of their numbers, without their bodies:
/// `{"deadLetters": [...], "continuation": NUMBER or null}`.
pub(super) async fn dead_letters(
    State(parts): State<AdminParts>,
    Parameters(query): Parameters<DeadLettersQuery>,
) -> Result<Json<Value>, Problem> {
    let identity = match (&query.device_id, &query.module_id) {
        (Some(device), module) => Some(identity(device, module.as_deref())?),
        (None, None) => None,
        (None, Some(_)) => return Err(invalid("moduleId goes with deviceId")),
    };
    let limit = query.limit.unwrap_or(PAGE_MAX).clamp(1, PAGE_MAX);
    let page = parts
        .hub
        .c2d()
        .dead_letters(query.after, limit, identity.as_ref())
        .await
        .map_err(|error| unavailable(&error))?;
    let letters: Vec<_> = page.letters.iter().map(dead_letter).collect();
    Ok(Json(
        json!({"deadLetters": letters, "continuation": page.next}),
    ))
}

/// One dead letter with its body.
pub(super) async fn show_dead_letter(
    State(parts): State<AdminParts>,
    Segment(number): Segment<u64>,
) -> Result<Json<Value>, Problem> {
    let found = parts.hub.c2d().dead_letter(number).await;
    let letter = found
        .map_err(|error| unavailable(&error))?
        .ok_or_else(|| no_letter(number))?;
    let mut shown = dead_letter(&letter);
    add_body(&mut shown, &letter.message);
    Ok(Json(shown))
}

/// Sends a dead letter anew: `{"sequenceNumber", "enqueuedTime", "expiryTime"}` of the new message.
pub(super) async fn requeue(
    State(parts): State<AdminParts>,
    Segment(number): Segment<u64>,
) -> Result<Json<Value>, Problem> {
    let requeued = parts.hub.c2d().requeue(number).await;
    let accepted = requeued.map_err(|error| not_requeued(&error, number))?;
    Ok(Json(json!({
        "sequenceNumber": accepted.sequence,
        "enqueuedTime": accepted.enqueued.to_string(),
        "expiryTime": accepted.expires.to_string(),
    })))
}

/// Removes a dead letter.
pub(super) async fn delete_dead_letter(
    State(parts): State<AdminParts>,
    Segment(number): Segment<u64>,
) -> Result<StatusCode, Problem> {
    let removed = parts.hub.c2d().remove_dead_letter(number).await;
    if removed.map_err(|error| unavailable(&error))? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(no_letter(number))
    }
}

pub(super) fn identity(device: &str, module: Option<&str>) -> Result<Identity, Problem> {
    let module = module.map(ModuleId::new).transpose();
    Ok(Identity {
        device: parse_id(device)?,
        module: module.map_err(|error| invalid(format!("moduleId: {error}")))?,
    })
}

pub(super) async fn registered(
    parts: &AdminParts,
    device: &str,
    module: Option<&str>,
) -> Result<Identity, Problem> {
    find(parts, device).await?;
    let identity = identity(device, module)?;
    if let Some(module) = &identity.module {
        find_module(parts, device, module).await?;
    }
    Ok(identity)
}

fn waiting(message: &MessageState) -> Value {
    let mut shown = json!({
        "sequenceNumber": message.sequence,
        "state": if message.locked.is_some() { "locked" } else { "enqueued" },
        "lockedUntil": message.locked.as_ref().and_then(|lock| lock.until).map(|t| t.to_string()),
        "expiryTime": message.expires.to_string(),
        "deliveryCount": message.delivery_count,
    });
    add_attempts(&mut shown, &message.attempts);
    add_message(&mut shown, &message.message);
    shown
}

fn dead_letter(letter: &DeadLetter) -> Value {
    let mut shown = json!({
        "number": letter.number,
        "deviceId": letter.identity.device.as_str(),
        "moduleId": letter.identity.module.as_ref().map(ModuleId::as_str),
        "generationId": letter.generation,
        "sequenceNumber": letter.sequence,
        "cause": letter.cause.feedback_status(),
        "deadLetteredTime": letter.at.to_string(),
        "deliveryCount": letter.delivery_count,
    });
    add_attempts(&mut shown, &letter.attempts);
    add_message(&mut shown, &letter.message);
    shown
}

fn traced(trace: &MessageTrace, identity: &Identity) -> Value {
    let mut shown = json!({
        "sequenceNumber": trace.sequence,
        "deviceId": identity.device.as_str(),
        "moduleId": identity.module.as_ref().map(ModuleId::as_str),
        "generationId": trace.generation,
        "messageId": trace.message_id,
        "sender": trace.sender,
        "enqueuedTime": trace.enqueued.to_string(),
        "expiryTime": trace.expires.to_string(),
        "storedBytes": trace.size,
        "deliveryCount": trace.delivery_count,
    });
    add_attempts(&mut shown, &trace.attempts);
    let state = match trace.state {
        TraceState::Waiting => json!({"state": "enqueued"}),
        TraceState::Locked { until } => {
            json!({"state": "locked", "lockedUntil": until.map(|time| time.to_string())})
        }
        TraceState::DeadLettered { number, cause, at } => json!({
            "state": "deadLettered",
            "deadLetter": number,
            "cause": cause.feedback_status(),
            "settledTime": at.to_string(),
        }),
        TraceState::Completed { at } => {
            json!({"state": "completed", "settledTime": at.to_string()})
        }
        TraceState::Purged { at } => {
            json!({"state": "purged", "settledTime": at.to_string()})
        }
    };
    let feedback = match trace.feedback {
        FeedbackState::None => json!({"feedback": "none"}),
        FeedbackState::Pending => json!({"feedback": "pending"}),
        FeedbackState::Sent { at } => {
            json!({"feedback": "sent", "feedbackTime": at.map(|time| time.to_string())})
        }
    };
    add(&mut shown, state);
    add(&mut shown, feedback);
    shown
}

fn add_attempts(shown: &mut Value, attempts: &Attempts) {
    let kept: Vec<_> = attempts
        .kept()
        .iter()
        .map(|attempt| {
            let connection = match attempt.receiver {
                AttemptReceiver::Connection { epoch } => Some(epoch),
                AttemptReceiver::Request => None,
            };
            json!({
                "time": attempt.at.to_string(),
                "connection": connection,
                "outcome": attempt.end.as_str(),
            })
        })
        .collect();
    add(
        shown,
        json!({"attemptCount": attempts.count(), "attempts": kept}),
    );
}

/// What the sender wrote, but for the body.
pub(super) fn add_message(shown: &mut Value, message: &Bytes) {
    let Ok(view) = CommandView::parse(message) else {
        add(shown, json!({"unreadable": true}));
        return;
    };
    let properties: Map<_, _> = view
        .properties()
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect();
    add(
        shown,
        json!({
            "messageId": view.message_id(),
            "correlationId": view.correlation_id(),
            "userIdBase64": view.user_id().map(|id| STANDARD.encode(id)),
            "to": view.to(),
            "ack": view.ack().as_str(),
            "sender": view.sender(),
            "enqueuedTime": view.enqueued().to_string(),
            "contentType": view.content_type(),
            "contentEncoding": view.content_encoding(),
            "properties": properties,
            "bodyBytes": view.body().map(<[u8]>::len),
        }),
    );
}

pub(super) fn add_body(shown: &mut Value, message: &Bytes) {
    let view = CommandView::parse(message).ok();
    let Some(body) = view.as_ref().and_then(CommandView::body) else {
        return;
    };
    let body = match std::str::from_utf8(body) {
        Ok(text) => json!({"body": text}),
        Err(_) => json!({"bodyBase64": STANDARD.encode(body)}),
    };
    add(shown, body);
}

fn add(shown: &mut Value, more: Value) {
    if let (Value::Object(members), Value::Object(more)) = (shown, more) {
        members.extend(more);
    }
}

pub(super) fn unavailable(error: &StoreError) -> Problem {
    problem(store_status(error), "ServiceUnavailable", error.to_string())
}

fn not_registered(device: &str) -> Problem {
    problem(
        StatusCode::NOT_FOUND,
        "DeviceNotFound",
        format!("no device with id `{device}` is registered"),
    )
}

fn no_letter(number: u64) -> Problem {
    problem(
        StatusCode::NOT_FOUND,
        "DeadLetterNotFound",
        format!("there is no dead letter {number}"),
    )
}

fn not_requeued(error: &RequeueError, number: u64) -> Problem {
    let (status, code) = match error {
        RequeueError::NotFound => return no_letter(number),
        RequeueError::Store(error) | RequeueError::Refused(SendRefused::Store(error)) => {
            return unavailable(error);
        }
        RequeueError::Unreadable => (StatusCode::INTERNAL_SERVER_ERROR, "ServerError"),
        RequeueError::Refused(SendRefused::UnknownDevice) => {
            (StatusCode::NOT_FOUND, "DeviceNotFound")
        }
        RequeueError::Refused(SendRefused::QueueFull { .. }) => {
            (StatusCode::FORBIDDEN, "DeviceMaximumQueueDepthExceeded")
        }
        RequeueError::Refused(SendRefused::TooLarge { .. }) => {
            (StatusCode::PAYLOAD_TOO_LARGE, "MessageTooLarge")
        }
        RequeueError::Refused(SendRefused::InvalidExpiry | SendRefused::Undeliverable { .. }) => {
            (StatusCode::BAD_REQUEST, "ArgumentInvalid")
        }
        RequeueError::Refused(SendRefused::Throttled(_)) => {
            (StatusCode::TOO_MANY_REQUESTS, "ThrottlingException")
        }
        RequeueError::Refused(SendRefused::QuotaExceeded) => {
            (StatusCode::FORBIDDEN, "IotHubQuotaExceeded")
        }
        RequeueError::Refused(SendRefused::NoRoom) => {
            (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable")
        }
    };
    problem(status, code, format!("dead letter {number}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::Router;
    use axum::body::Body;
    use axum::http::{Method, Request};
    use fieldpost_hub::c2d::Target;
    use fieldpost_hub::identity::DeviceSpec;
    use fieldpost_model::{Ack, CloudMessage, DeviceId};
    use tower::ServiceExt as _;

    use super::*;
    use crate::admin::{routes, testing_parts};

    async fn call(router: &Router, method: Method, path: &str) -> (u16, Value) {
        let request = Request::builder().method(method).uri(path);
        let request = request.body(Body::empty()).unwrap();
        let answer = router.clone().oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20)
            .await
            .unwrap();
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body).unwrap()
        };
        (status, body)
    }

    async fn get(router: &Router, path: &str) -> Value {
        let (status, body) = call(router, Method::GET, path).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    fn dev1() -> DeviceId {
        DeviceId::new("dev1").unwrap()
    }

    async fn send(parts: &AdminParts, message_id: &str, body: &[u8]) -> u64 {
        let mut message = CloudMessage {
            to: "/devices/dev1/messages/devicebound".into(),
            message_id: Some(message_id.into()),
            ack: Ack::Negative,
            body: body.into(),
            ..CloudMessage::default()
        };
        message.properties.set("p".into(), Some("v".into()));
        let target = Target {
            identity: Identity::of_device(dev1()),
            fallback: None,
        };
        let mut sender = parts.hub.c2d().sender("service");
        sender.send_one(target, &message).await.unwrap().sequence
    }

    #[tokio::test]
    async fn what_waits_is_listed_found_and_purged() {
        let (parts, _) = testing_parts().await;
        let device = DeviceSpec::new(dev1());
        parts.hub.registry().create(device).await.unwrap();
        let router = routes(parts.clone());
        let sequence = send(&parts, "m1", b"one").await;
        send(&parts, "m2", b"two").await;

        let all = get(&router, "/api/c2d/devices/dev1/messages").await;
        let message = &all["messages"][0];
        assert_eq!(all["messages"].as_array().unwrap().len(), 2);
        assert_eq!(all["continuation"], Value::Null);
        let expected = [
            ("sequenceNumber", json!(sequence)),
            ("state", json!("enqueued")),
            ("messageId", json!("m1")),
            ("sender", json!("service")),
            ("ack", json!("negative")),
            ("bodyBytes", json!(3)),
            ("properties", json!({"p": "v"})),
            ("attemptCount", json!(0)),
        ];
        for (member, value) in expected {
            assert_eq!(message[member], value, "{message}");
        }
        let page = get(&router, "/api/c2d/devices/dev1/messages?limit=1").await;
        assert_eq!(page["continuation"], sequence);
        let rest = format!("/api/c2d/devices/dev1/messages?after={sequence}");
        assert_eq!(get(&router, &rest).await["messages"][0]["messageId"], "m2");

        let by_id = get(&router, "/api/c2d/devices/dev1/trace?messageId=m1").await;
        let by_number = format!("/api/c2d/devices/dev1/trace?sequenceNumber={sequence}");
        assert_eq!(by_id, get(&router, &by_number).await);
        assert_eq!(by_id["messages"][0]["state"], "enqueued");
        let none = get(&router, "/api/c2d/devices/dev1/trace?messageId=m3").await;
        assert_eq!(none, json!({"messages": []}));

        let (_, purged) = call(&router, Method::POST, "/api/c2d/devices/dev1/purge").await;
        assert_eq!(purged["totalMessagesPurged"], 2);
        let all = get(&router, "/api/c2d/devices/dev1/messages").await;
        assert_eq!(all["messages"], json!([]));
    }

    #[tokio::test]
    async fn a_dead_letter_is_shown_requeued_and_deleted() {
        let (parts, clock) = testing_parts().await;
        let device = DeviceSpec::new(dev1());
        parts.hub.registry().create(device).await.unwrap();
        let router = routes(parts.clone());
        send(&parts, "m1", b"one").await;
        send(&parts, "m2", &[0xff]).await;
        let letters = loop {
            clock.advance(Duration::from_secs(3600));
            let page = get(&router, "/api/c2d/dead-letters?deviceId=dev1").await;
            if page["deadLetters"].as_array().unwrap().len() == 2 {
                break page;
            }
            tokio::task::yield_now().await;
        };
        let letter = &letters["deadLetters"][0];
        assert_eq!(letter["cause"], "Expired");
        assert_eq!(letter["messageId"], "m1");
        assert_eq!(letter["body"], Value::Null);
        let path = |n: usize| {
            format!(
                "/api/c2d/dead-letters/{}",
                letters["deadLetters"][n]["number"]
            )
        };
        assert_eq!(get(&router, &path(0)).await["body"], "one");
        assert_eq!(get(&router, &path(1)).await["bodyBase64"], "/w==");
        let trace = get(&router, "/api/c2d/devices/dev1/trace?messageId=m1").await;
        assert_eq!(trace["messages"][0]["state"], "deadLettered");
        assert_eq!(trace["messages"][0]["deadLetter"], letter["number"]);

        let requeue = format!("{}/requeue", path(0));
        let (status, requeued) = call(&router, Method::POST, &requeue).await;
        assert_eq!(status, 200, "{requeued}");
        let all = get(&router, "/api/c2d/devices/dev1/messages").await;
        assert_eq!(
            all["messages"][0]["sequenceNumber"],
            requeued["sequenceNumber"]
        );
        let (status, _) = call(&router, Method::POST, &requeue).await;
        assert_eq!(status, 404);
        for expected in [204, 404] {
            let (status, _) = call(&router, Method::DELETE, &path(1)).await;
            assert_eq!(status, expected);
        }
        let letters = get(&router, "/api/c2d/dead-letters").await;
        assert_eq!(letters["deadLetters"], json!([]));
    }

    #[tokio::test]
    async fn what_cannot_be_meant_is_refused() {
        let (parts, _) = testing_parts().await;
        let router = routes(parts);
        let check = async |method: Method, path: &str, expected: (u16, &str)| {
            let (status, body) = call(&router, method, path).await;
            let code = body["error"]["code"].as_str().unwrap();
            assert_eq!((status, code), expected, "{path}: {body}");
        };
        let wrong = (400, "ArgumentInvalid");
        let no_device = (404, "DeviceNotFound");
        check(Method::GET, "/api/c2d/devices/dev1/messages", no_device).await;
        check(Method::POST, "/api/c2d/devices/dev1/purge", no_device).await;
        check(Method::GET, "/api/c2d/devices/a%2Fb/messages", wrong).await;
        check(Method::GET, "/api/c2d/devices/dev1/trace", wrong).await;
        let both = "/api/c2d/devices/dev1/trace?messageId=a&sequenceNumber=1";
        check(Method::GET, both, wrong).await;
        let negative = "/api/c2d/devices/dev1/trace?sequenceNumber=-1";
        check(Method::GET, negative, wrong).await;
        check(Method::GET, "/api/c2d/dead-letters?moduleId=m", wrong).await;
        check(Method::GET, "/api/c2d/dead-letters?device=m", wrong).await;
        check(Method::GET, "/api/c2d/dead-letters/x", wrong).await;
        let no_letter = (404, "DeadLetterNotFound");
        check(Method::GET, "/api/c2d/dead-letters/7", no_letter).await;
        check(Method::DELETE, "/api/c2d/dead-letters/0", no_letter).await;
        check(Method::POST, "/api/c2d/dead-letters/7/requeue", no_letter).await;
    }
}
