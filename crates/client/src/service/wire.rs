//! Messages for devices and feedback as they go over AMQP.

use bytes::BytesMut;
use fieldpost_amqp::message::{self, Properties, put_data, put_map, put_properties, section};
use fieldpost_amqp::{DecodeError, Message, ValueRef};
use fieldpost_model::{Ack, CloudMessage, Timestamp};
use serde::Deserialize;

use super::FeedbackBatch;

/// One record of feedback: what became of one message.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FeedbackRecord {
    /// The message's id, if its sender gave it one.
    #[serde(default)]
    pub original_message_id: Option<String>,
    /// What became of it.
    pub status_code: FeedbackStatus,
    /// The device that it was for.
    pub device_id: String,
    /// The generation of that device.
    pub device_generation_id: String,
    /// When it happened, in ISO 8601.
    pub enqueued_time_utc: String,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
pub enum FeedbackStatus {
    /// The device completed it.
    Success,
    /// Its time was over before that.
    Expired,
    /// It was given back as often as the hub allows.
    DeliveryCountExceeded,
    /// The device rejected it.
    Rejected,
    /// An operator emptied the queue.
    Purged,
}

/// Why a message is no batch of feedback.
#[derive(Debug, thiserror::Error)]
pub(super) enum InvalidFeedback {
    #[error(transparent)]
    Amqp(#[from] DecodeError),
    #[error("the feedback records cannot be read: {0}")]
    Json(#[from] serde_json::Error),
}

/// Appends a message for a device.
pub(super) fn put_command(out: &mut BytesMut, message: &CloudMessage<'_>) {
    put_properties(
        out,
        &Properties {
            message_id: message.message_id.as_deref().map(ValueRef::String),
            user_id: message.user_id.as_deref().map(ValueRef::Binary),
            to: Some(ValueRef::String(&message.to)),
            correlation_id: message.correlation_id.as_deref().map(ValueRef::String),
            content_type: message.content_type.as_deref().map(ValueRef::Symbol),
            content_encoding: message.content_encoding.as_deref().map(ValueRef::Symbol),
            absolute_expiry_time: message
                .expires
                .map(|time| ValueRef::Timestamp(time.as_millis())),
            ..Properties::default()
        },
    );
    let ack = (message.ack != Ack::None).then(|| message.ack.as_str());
    let system = [
        ("iothub-ack", ack),
        ("iothub-message-schema", message.message_schema.as_deref()),
        ("iothub-creation-time-utc", message.creation_time.as_deref()),
    ];
    put_map(out, section::APPLICATION_PROPERTIES, |e| {
        for (name, value) in system {
            if let Some(value) = value {
                e.string(name);
                e.string(value);
            }
        }
        for (name, value) in message.properties.iter() {
            e.string(name);
            match value {
                Some(value) => e.string(value),
                None => e.null(),
            }
        }
    });
    put_data(out, &message.body);
}

/// Reads a batch of feedback.
pub(super) fn feedback(message: &Message) -> Result<FeedbackBatch, InvalidFeedback> {
    let parsed = message::Message::parse(&message.payload)?;
    let enqueued = parsed
        .message_annotations
        .and_then(|map| map.get("iothub-enqueuedtime").ok()?)
        .and_then(|value| value.as_timestamp())
        .map(Timestamp::from_millis);
    Ok(FeedbackBatch {
        enqueued,
        records: serde_json::from_slice(&parsed.joined_data())?,
        delivery_id: message.delivery_id,
    })
}
