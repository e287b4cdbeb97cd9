//! Telemetry over HTTPS: a message, or many as one.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::Response;
use fieldpost_hub::ingest::{Hold, IngestError, MessageRefused};
use fieldpost_model::limits::D2C_MESSAGE_BYTES_MAX;
use tracing::debug;

use super::Api;
use super::call::DeviceCall;
use super::device_bound::no_content;
use super::refusal::Refusal;
use crate::clock::within;
use crate::dialect::http::telemetry::{InvalidBatch, is_batch, message, messages};

/// `POST /devices/{id}/messages/events`: answered when everything in it is durable.
pub(crate) async fn send(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let (call, body) = DeviceCall::open(&api, request).await?;
    let body = call.read(&api, body, D2C_MESSAGE_BYTES_MAX).await?;
    // Whoever polls has no use for an open connection: it is told at once to come again.
    if api.hub.ingest().hold() != Hold::None {
        return Err(Refusal::Unavailable);
    }
    let kept = within(
        api.hub.timer(),
        api.limits.held_max,
        keep(&api, &call, &body),
    )
    .await;
    kept.unwrap_or(Err(Refusal::Unavailable))?;
    Ok(no_content())
}

/// Ends when all messages of a request are durable. Those of one that is given up may still become so.
async fn keep(api: &Api, call: &DeviceCall, body: &[u8]) -> Result<(), Refusal> {
    let mut sender = api.hub.ingest().sender(&call.principal);
    sender.reserve().await;
    // Read when there is room for it: messages in memory are many times larger than in a batch.
    if is_batch(call.header("content-type")) {
        sender.accept_batch(&messages(body)?)?;
    } else {
        sender.accept_batch(&[message(&call.headers(), body)])?;
    }
    if let Some(number) = sender.submit()? {
        sender.durable(number).await?;
    }
    Ok(())
}

impl From<InvalidBatch> for Refusal {
    fn from(invalid: InvalidBatch) -> Self {
        Self::Format(invalid.to_string().into())
    }
}

impl From<MessageRefused> for Refusal {
    fn from(refused: MessageRefused) -> Self {
        match refused {
            MessageRefused::TooLarge { .. } => Self::BodyTooLarge,
            MessageRefused::Throttled(throttled) => throttled.into(),
            MessageRefused::QuotaExceeded => Self::QuotaExceeded,
        }
    }
}

impl From<IngestError> for Refusal {
    fn from(error: IngestError) -> Self {
        debug!(%error, "telemetry of a device cannot be kept");
        match error {
            IngestError::Store(error) => error.into(),
        }
    }
}
