//! Requests, answers and events as AMQP messages.

use bytes::{Bytes, BytesMut};
use fieldpost_amqp::message::{Message, Properties, put_map, put_properties, put_value, section};
use fieldpost_amqp::value::{Described, Descriptor};
use fieldpost_amqp::{DecodeError, Encoder, Map, Symbol, Value, ValueRef};
use fieldpost_model::{SequenceNumber, Timestamp};

use super::{Event, Start};

const SELECTOR: &str = "apache.org:selector-filter:string";

/// The source filter that begins at a position.
pub(super) fn selector(start: Start) -> (Symbol, Value) {
    let expression = match start {
        Start::Earliest => "amqp.annotation.x-opt-offset > '-1'".to_owned(),
        Start::Latest => "amqp.annotation.x-opt-offset > '@latest'".to_owned(),
        Start::Sequence(number) => format!("amqp.annotation.x-opt-sequence-number >= '{number}'"),
        Start::After(time) => {
            format!(
                "amqp.annotation.x-opt-enqueued-time > '{}'",
                time.as_millis()
            )
        }
    };
    let described = Described {
        descriptor: Descriptor::Name(Symbol::from_static(SELECTOR)),
        value: Value::String(expression),
    };
    (
        Symbol::from_static(SELECTOR),
        Value::Described(Box::new(described)),
    )
}

/// A `put-token` request.
pub(super) fn put_token(id: u64, resource: &str, token: &str) -> BytesMut {
    let entries = |e: &mut Encoder<'_>| {
        text_entry(e, "operation", "put-token");
        text_entry(e, "type", "servicebus.windows.net:sastoken");
        text_entry(e, "name", resource);
    };
    request(id, entries, |e| e.string(token))
}

/// A `READ` request for the properties of the entity or one of its partitions.
pub(super) fn read_properties(
    id: u64,
    kind: &str,
    entity: &str,
    partition: Option<&str>,
) -> BytesMut {
    let entries = |e: &mut Encoder<'_>| {
        text_entry(e, "operation", "READ");
        text_entry(e, "type", kind);
        text_entry(e, "name", entity);
        if let Some(partition) = partition {
            text_entry(e, "partition", partition);
        }
    };
    request(id, entries, |e| e.null())
}

fn request(
    id: u64,
    entries: impl FnOnce(&mut Encoder<'_>),
    body: impl FnOnce(&mut Encoder<'_>),
) -> BytesMut {
    let mut out = BytesMut::new();
    put_properties(
        &mut out,
        &Properties {
            message_id: Some(ValueRef::ULong(id)),
            ..Properties::default()
        },
    );
    put_map(&mut out, section::APPLICATION_PROPERTIES, entries);
    put_value(&mut out, body);
    out
}

fn text_entry(e: &mut Encoder<'_>, name: &str, value: &str) {
    e.string(name);
    e.string(value);
}

/// An answer of `$cbs` or `$management`.
pub(super) struct Reply {
    correlation: Option<u64>,
    status: Option<i64>,
    description: String,
    body: Option<Map>,
}

impl Reply {
    pub(super) fn parse(payload: &[u8]) -> Result<Self, DecodeError> {
        let message = Message::parse(payload)?;
        let correlation = message
            .properties()?
            .correlation_id
            .and_then(|id| id.as_u64());
        let mut status = None;
        let mut description = String::new();
        if let Some(properties) = &message.application_properties {
            for entry in properties.iter() {
                let (name, value) = entry?;
                match name.as_str() {
                    Some("status-code" | "statusCode") => status = value.as_i64(),
                    Some("status-description" | "statusDescription") => {
                        description = value.as_str().unwrap_or_default().to_owned();
                    }
                    _ => {}
                }
            }
        }
        let body = match message.body {
            fieldpost_amqp::message::Body::Value(ValueRef::Map(map)) => Some(map.to_map()?),
            _ => None,
        };
        Ok(Self {
            correlation,
            status,
            description,
            body,
        })
    }

    /// Whether this answers the request with this id.
    pub(super) fn answers(&self, id: u64) -> bool {
        self.correlation == Some(id)
    }

    /// What went wrong, if something did.
    pub(super) fn succeeded(&self) -> Result<(), String> {
        match self.status {
            Some(200..=299) => Ok(()),
            Some(status) => Err(format!("{status} {}", self.description)),
            None => Err("an answer without a status".to_owned()),
        }
    }

    pub(super) fn number(&self, name: &str) -> Option<i64> {
        self.body.as_ref()?.get(name)?.as_i64()
    }

    pub(super) fn texts(&self, name: &str) -> Option<Vec<String>> {
        let Value::Array(array) = self.body.as_ref()?.get(name)? else {
            return None;
        };
        array
            .values()
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect()
    }
}

/// Reads a transfer's payload as an event.
pub(super) fn event(partition: &str, payload: &Bytes) -> Result<Event, DecodeError> {
    let message = Message::parse(payload)?;
    let mut event = Event {
        partition: partition.to_owned(),
        sequence: 0,
        enqueued: Timestamp::UNIX_EPOCH,
        accepted: None,
        device_id: None,
        message_id: None,
        content_type: None,
        properties: Vec::new(),
        body: body_of(&message, payload),
    };
    if let Some(annotations) = &message.message_annotations {
        for entry in annotations.iter() {
            let (name, value) = entry?;
            let time = || value.as_timestamp().map(Timestamp::from_millis);
            match name.as_str().unwrap_or_default() {
                "x-opt-sequence-number" => {
                    let number = value.as_i64().unwrap_or_default();
                    event.sequence = SequenceNumber::try_from(number).unwrap_or_default();
                }
                "x-opt-enqueued-time" => event.enqueued = time().unwrap_or(event.enqueued),
                "iothub-enqueuedtime" => event.accepted = time(),
                "iothub-connection-device-id" => {
                    event.device_id = value.as_str().map(str::to_owned);
                }
                _ => {}
            }
        }
    }
    let properties = message.properties()?;
    let text = |value: Option<ValueRef<'_>>| value.and_then(|v| v.as_str().map(str::to_owned));
    event.message_id = text(properties.message_id);
    event.content_type = text(properties.content_type);
    if let Some(properties) = &message.application_properties {
        for entry in properties.iter() {
            let (name, value) = entry?;
            let name = name.as_str().unwrap_or_default().to_owned();
            event
                .properties
                .push((name, value.as_str().map(str::to_owned)));
        }
    }
    Ok(event)
}

/// The body: shares memory with the payload unless it came in several sections.
fn body_of(message: &Message<'_>, payload: &Bytes) -> Bytes {
    let mut sections = message.data();
    match (sections.next(), sections.next()) {
        (None, _) => Bytes::new(),
        (Some(only), None) => payload.slice_ref(only),
        (Some(_), Some(_)) => message.data().flatten().copied().collect(),
    }
}
