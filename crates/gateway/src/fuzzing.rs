//! The functions that read what peers send, for fuzz targets in another workspace.
//!
//! Everything here is what a session or a route calls itself, under a name of its own and with
//! nothing but public types. The product does not use this module.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{self, HeaderValue};
use axum::http::{HeaderMap, Request};
use bytes::{Bytes, BytesMut};
use fieldpost_amqp::Error;
use fieldpost_amqp::message::Message;
use fieldpost_amqp::performative::Attach;
use fieldpost_hub::Hub;
use fieldpost_hub::c2d::{Delivery, LockToken, Settlement, Target};
use fieldpost_hub::clock::Timer;
use fieldpost_hub::events::StartPosition;
use fieldpost_hub::identity::{DeviceSpec, Precondition};
use fieldpost_model::{CloudMessage, DeviceId, DeviceMessage, Identity, Timestamp};
use fieldpost_mqtt::PacketId;
use fieldpost_record::CommandView;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::GatewayLimits;
use crate::dialect::amqp::address::{Address, PartitionAddress};
use crate::dialect::amqp::command::Command;
use crate::dialect::amqp::device_bound::put_command;
use crate::dialect::amqp::error::Status;
use crate::dialect::amqp::management::{self, Question};
use crate::dialect::amqp::receiver::ReceiverRequest;
use crate::dialect::amqp::{cbs, redirect, selector, telemetry};
use crate::dialect::http::telemetry as http_dialect;
use crate::dialect::mqtt::{self, DeliveryName, EmptyValues, Marks, Topic, UserName};
use crate::http::document::InvalidDocument;
use crate::http::{Routes, call, device_bound, document, path, spelling};
use crate::listen::websocket::WebSocketBytes;

/// The routes of a hub over HTTP.
pub struct HttpRoutes(Routes);

/// What was answered.
#[derive(Debug)]
pub struct HttpAnswer {
    /// The status.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl HttpRoutes {
    /// The routes of a hub that takes bodies of so many bytes.
    #[must_use]
    pub fn new(hub: Hub, body_bytes_max: usize) -> Self {
        let limits = GatewayLimits {
            http_body_bytes_max: body_bytes_max,
            ..GatewayLimits::default()
        };
        Self(Routes::new(hub, Arc::new(limits)))
    }

    /// Answers a request; `None` when a server of HTTP does not take it for one.
    ///
    /// # Errors
    /// When the answer's body has more than `answer_bytes_max`.
    pub async fn answer(
        &self,
        method: &str,
        target: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        answer_bytes_max: usize,
    ) -> Option<Result<HttpAnswer, TooLong>> {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Body::from(Bytes::copy_from_slice(body)))
            .ok()?;
        let (parts, body) = self.0.clone().answer(request).await.into_parts();
        let body = axum::body::to_bytes(body, answer_bytes_max).await;
        Some(body.map_err(|_| TooLong).map(|body| HttpAnswer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body,
        }))
    }
}

/// An answer has more bytes than it may.
#[derive(Debug)]
pub struct TooLong;

/// What the user name of a CONNECT says, and whether `client_id` goes with it.
#[must_use]
pub fn mqtt_user_name(text: &str, client_id: &str) -> Option<(Identity, Option<String>, bool)> {
    let name = UserName::parse(text).ok()?;
    let fits = name.fits_client_id(client_id);
    Some((name.identity, name.model_id, fits))
}

/// The message that a publish of `identity` makes; `None` when its topic is not one for messages.
#[must_use]
pub fn mqtt_message<'a>(
    identity: &Identity,
    topic: &'a str,
    payload: &'a [u8],
    retain: bool,
    will: bool,
) -> Option<DeviceMessage<'a>> {
    let Some(Topic::Events { bag }) = Topic::parse(identity, topic) else {
        return None;
    };
    let marks = Marks {
        from_module: identity.module.is_some(),
        retain,
        will,
    };
    Some(mqtt::decode(bag, payload, marks))
}

/// How a publish of `identity` settles a message that was sent to it: whether it rejects it, and the
/// message id or the packet id that it names; `None` when its topic is not one for that.
#[must_use]
pub fn mqtt_settlement<'a>(
    identity: &Identity,
    topic: &'a str,
) -> Option<(bool, Option<Cow<'a, str>>, Option<PacketId>)> {
    let Some(Topic::Settle {
        settlement,
        delivery,
    }) = Topic::parse(identity, topic)
    else {
        return None;
    };
    let (message_id, packet_id) = match delivery {
        DeliveryName::MessageId(id) => (Some(id), None),
        DeliveryName::PacketId(id) => (None, Some(id)),
        DeliveryName::Nothing => (None, None),
    };
    Some((settlement == Settlement::Reject, message_id, packet_id))
}

/// The topic under which `identity` gets a message for devices.
#[must_use]
pub fn mqtt_command_topic(
    identity: &Identity,
    command: &CommandView<'_>,
    empty_values_kept: bool,
) -> String {
    let empty_values = if empty_values_kept {
        EmptyValues::Kept
    } else {
        EmptyValues::LeftOut
    };
    let mut topic = String::new();
    mqtt::put_topic(&mut topic, identity, empty_values, command);
    topic
}

/// How many features a topic filter turns on for `identity`; `None` when it may not have it.
#[must_use]
pub fn mqtt_filter(identity: &Identity, filter: &str) -> Option<usize> {
    mqtt::features(identity, filter).map(<[_]>::len)
}

/// Entity, consumer group and partition of a link address that names a partition.
#[must_use]
pub fn amqp_partition(address: &str) -> Option<[Cow<'_, str>; 3]> {
    match Address::parse(address) {
        Address::Partition(PartitionAddress {
            entity,
            group,
            partition,
        }) => Some([entity, group, partition]),
        _ => None,
    }
}

/// Where a selector filter wants to start.
#[must_use]
pub fn amqp_selector(text: &str) -> Option<StartPosition> {
    selector::parse(text).ok()
}

/// Where a client that attaches wants to start, and its owner level.
#[must_use]
pub fn amqp_receiver(attach: &Attach) -> Option<(StartPosition, Option<i64>)> {
    let request = ReceiverRequest::of(attach).ok()?;
    Some((request.start, request.owner_level))
}

/// The message for a device that a service sends, and whom it means: the identity tried first, and
/// the one tried after it.
#[must_use]
pub fn amqp_command<'a>(
    message: &Message<'a>,
) -> Option<(CloudMessage<'a>, [Option<Identity>; 2])> {
    let command = Command::of(message).ok()?;
    let Target { identity, fallback } = command.target;
    Some((command.message, [Some(identity), fallback]))
}

/// The messages that a device's transfer of this format holds.
#[must_use]
pub fn amqp_telemetry(message_format: u32, payload: &[u8]) -> Option<Vec<DeviceMessage<'_>>> {
    telemetry::read(message_format, payload).ok()
}

/// A stored message as a device receives it over AMQP.
#[must_use]
pub fn amqp_device_bound(stored: Bytes) -> Option<BytesMut> {
    let delivery = Delivery {
        sequence: 1,
        lock: LockToken([7; 16]),
        delivery_count: 0,
        expires: Timestamp::NEVER,
        again: None,
        message: stored,
    };
    let mut out = BytesMut::new();
    put_command(&mut out, &delivery).ok()?;
    Some(out)
}

/// What a client is told that looks for events under `address` of a hub that it calls `hostname`.
#[must_use]
pub fn amqp_redirect(hostname: &str, address: &str) -> Option<Error> {
    match Address::parse(address) {
        Address::Events { below } => {
            redirect::to_events(redirect::without_port(hostname), "hub", below)
        }
        _ => None,
    }
}

/// Reads a message as a request to `$cbs` and as one to `$management`, and writes what answers
/// each.
#[must_use]
pub fn amqp_answers(request: &Message<'_>) -> [BytesMut; 2] {
    let (correlation_id, _) = cbs::correlation(request);
    let _ = cbs::name(request);
    let put = cbs::token(request).map_or_else(|refused| refused, |_| Status::ok());
    let asked = Question::of(request).map_or_else(
        |refused| refused,
        |question| Status::not_found(question.entity),
    );
    let mut answers = [BytesMut::new(), BytesMut::new()];
    let [to_put, to_question] = &mut answers;
    cbs::put_reply(to_put, correlation_id, &put);
    management::put_refusal(to_question, correlation_id, &asked);
    answers
}

/// Reads a device document that is sent to the path of `device`.
///
/// # Errors
/// When the route refuses it.
pub fn device_at_path(device: &DeviceId, document: Value) -> Result<DeviceSpec, InvalidDocument> {
    document::device_at_path(device, document)
}

/// The condition of an `If-Match` header; `None` when the value is refused.
#[must_use]
pub fn if_match(value: &[u8]) -> Option<Precondition> {
    let mut headers = HeaderMap::new();
    headers.insert(header::IF_MATCH, HeaderValue::from_bytes(value).ok()?);
    call::if_match(&headers).ok()?
}

/// How many headers a message to a device has over HTTPS; `None` when the stored message cannot be
/// read.
#[must_use]
pub fn http_command(stored: Bytes) -> Option<usize> {
    let delivery = Delivery {
        sequence: u64::MAX,
        lock: LockToken([0xF0; 16]),
        delivery_count: u32::MAX,
        expires: Timestamp::UNIX_EPOCH,
        again: None,
        message: stored,
    };
    let response = device_bound::message(&delivery).ok()?;
    Some(response.headers().len())
}

/// The one spelling of a path; `None` when `path` has it already.
#[must_use]
pub fn normalised_path(path: &str) -> Option<String> {
    path::normalised_path(path)
}

/// The server's end of a WebSocket connection as a stream of bytes. `early` is what came together
/// with the upgrade request.
pub fn websocket<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    early: Bytes,
    timer: Arc<dyn Timer>,
) -> impl AsyncRead + AsyncWrite + Unpin {
    WebSocketBytes::new(stream, early, timer)
}

/// Telemetry as a batch over HTTPS carries it; `None` when the body is none.
#[must_use]
pub fn http_batch(body: &[u8]) -> Option<Vec<DeviceMessage<'_>>> {
    http_dialect::messages(body).ok()
}

/// Telemetry as a request over HTTPS carries it, with headers as they were sent.
#[must_use]
pub fn http_message<'a>(headers: &[(&'a str, &'a [u8])], body: &'a [u8]) -> DeviceMessage<'a> {
    http_dialect::message(headers, body)
}

/// Headers as they were sent, found in what was read before a request was parsed.
#[must_use]
pub fn http_headers_sent(
    read: &[u8],
    method: &str,
    parsed: &HeaderMap,
) -> Option<Vec<(String, Vec<u8>)>> {
    let head = spelling::RawHead::of(Bytes::copy_from_slice(read));
    let headers = head.headers(method, parsed)?.into_iter();
    Some(
        headers
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
    )
}
