//! Start positions and events as they go over AMQP.

use bytes::Bytes;
use fieldpost_amqp::message::Message;
use fieldpost_amqp::value::{Described, Descriptor};
use fieldpost_amqp::{DecodeError, Symbol, Value, ValueRef};
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
