//! Requests to `$cbs` and `$management`, and their answers, as AMQP messages.

use bytes::BytesMut;
use fieldpost_amqp::message::{Message, Properties, put_map, put_properties, put_value, section};
use fieldpost_amqp::{DecodeError, Encoder, Map, Value, ValueRef};

/// A `put-token` request.
pub(crate) fn put_token(id: u64, resource: &str, token: &str) -> BytesMut {
    let entries = |e: &mut Encoder<'_>| {
        text_entry(e, "operation", "put-token");
        text_entry(e, "type", "servicebus.windows.net:sastoken");
        text_entry(e, "name", resource);
    };
    request(id, entries, |e| e.string(token))
}

/// A `READ` request for the properties of the entity or one of its partitions.
pub(crate) fn read_properties(
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
pub(crate) struct Reply {
    correlation: Option<u64>,
    status: Option<i64>,
    description: String,
    body: Option<Map>,
}

impl Reply {
    pub(crate) fn parse(payload: &[u8]) -> Result<Self, DecodeError> {
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
    pub(crate) fn answers(&self, id: u64) -> bool {
        self.correlation == Some(id)
    }

    /// What went wrong, if something did.
    pub(crate) fn succeeded(&self) -> Result<(), String> {
        match self.status {
            Some(200..=299) => Ok(()),
            Some(status) => Err(format!("{status} {}", self.description)),
            None => Err("an answer without a status".to_owned()),
        }
    }

    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        self.body.as_ref()?.get(name)?.as_i64()
    }

    pub(crate) fn texts(&self, name: &str) -> Option<Vec<String>> {
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
