//! Feedback over REST: services that poll.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use axum::http::header::{self, HeaderName, HeaderValue};
use fieldpost_hub::c2d::{FeedbackMessage, LockToken, SettleError, Settlement};
use fieldpost_hub::policies::Rights;

use super::Api;
use super::call::Call;
use super::device_bound::{header_value, no_content};
use super::refusal::Refusal;
use crate::figures::report_unreadable_feedback;

/// The content type of a batch of records (Azure IoT Hub, "message feedback").
const CONTENT_TYPE: HeaderValue =
    HeaderValue::from_static("application/vnd.microsoft.iothub.feedback.json");

/// `GET /messages/serviceBound/feedback`: locks the next feedback message.
pub(crate) async fn receive(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    Call::open(&api, request, Rights::SERVICE_CONNECT).await?;
    let feedback = api.hub.c2d().feedback();
    while let Some(delivery) = feedback.receive_one().await? {
        match FeedbackMessage::parse(&delivery.message) {
            Ok(message) => return Ok(answer(&api, delivery.lock, message)),
            Err(error) => {
                report_unreadable_feedback(delivery.sequence, &error, api.hub.timer().monotonic());
                // It never will be, and must be in nobody's way.
                let rejected = feedback.settle(delivery.lock, Settlement::Reject);
                if let Err(SettleError::Store(error)) = rejected.await {
                    return Err(error.into());
                }
            }
        }
    }
    Ok(no_content())
}

fn answer(api: &Api, lock: LockToken, message: FeedbackMessage) -> Response<Body> {
    let mut response = Response::new(Body::from(message.json));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
    for (name, value) in [
        ("etag", format!("\"{lock}\"")),
        ("iothub-enqueuedtime", message.enqueued.to_string()),
        ("iothub-userid", api.hub.name().to_owned()),
    ] {
        headers.insert(HeaderName::from_static(name), header_value(&value));
    }
    response
}

/// `DELETE /messages/serviceBound/feedback/{lock}`: completes.
pub(crate) async fn complete(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    settle(&api, request, Settlement::Complete).await
}

/// `POST /messages/serviceBound/feedback/{lock}/abandon`.
pub(crate) async fn abandon(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    settle(&api, request, Settlement::Abandon).await
}

async fn settle(
    api: &Api,
    request: Request,
    settlement: Settlement,
) -> Result<Response<Body>, Refusal> {
    let call = Call::open(api, request, Rights::SERVICE_CONNECT).await?;
    let lock = call.lock()?;
    api.hub.c2d().feedback().settle(lock, settlement).await?;
    Ok(no_content())
}
