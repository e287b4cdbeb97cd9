//! Feedback over REST: services that poll.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use axum::http::header::{self, HeaderName, HeaderValue};
use fieldpost_hub::c2d::{FeedbackMessage, Settlement};
use fieldpost_hub::policies::Rights;
use tracing::error;

use super::Api;
use super::call::Call;
use super::device_bound::no_content;
use super::refusal::Refusal;

/// The content type of a batch of records (Azure IoT Hub, "message feedback").
const CONTENT_TYPE: HeaderValue =
    HeaderValue::from_static("application/vnd.microsoft.iothub.feedback.json");

/// `GET /messages/serviceBound/feedback`: locks the next feedback message.
pub(crate) async fn receive(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    Call::open(&api, request, Rights::SERVICE_CONNECT).await?;
    let Some(delivery) = api.hub.c2d().feedback().receive_one().await? else {
        return Ok(no_content());
    };
    let message = FeedbackMessage::parse(&delivery.message).map_err(|error| {
        error!(sequence = delivery.sequence, %error, "a feedback message cannot be read");
        Refusal::Internal
    })?;
    let mut response = Response::new(Body::from(message.json));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, CONTENT_TYPE);
    for (name, value) in [
        (header::ETAG, format!("\"{}\"", delivery.lock)),
        (
            HeaderName::from_static("iothub-enqueuedtime"),
            message.enqueued.to_string(),
        ),
        (
            HeaderName::from_static("iothub-userid"),
            api.hub.name().to_owned(),
        ),
    ] {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    Ok(response)
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
