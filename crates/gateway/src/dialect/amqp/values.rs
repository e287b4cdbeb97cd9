//! Values of messages as clients of many languages write them.

use std::borrow::Cow;

use fieldpost_amqp::message::{Body, Message};
use fieldpost_amqp::value::ValueRef;
use fieldpost_model::Timestamp;

/// A simple value as text; `None` for what is not simple.
///
/// Node turns ids that look like a UUID into one, so that a UUID gets the spelling it had before.
pub(crate) fn text(value: ValueRef<'_>) -> Option<Cow<'_, str>> {
    Some(match value {
        ValueRef::String(text) | ValueRef::Symbol(text) => Cow::Borrowed(text),
        ValueRef::Binary(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Cow::Borrowed(text),
            Err(_) => bytes
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect::<String>()
                .into(),
        },
        ValueRef::Uuid(bytes) => uuid(bytes).into(),
        ValueRef::Bool(value) => Cow::Borrowed(if value { "true" } else { "false" }),
        ValueRef::Float(value) => value.to_string().into(),
        ValueRef::Double(value) => value.to_string().into(),
        ValueRef::Char(value) => value.to_string().into(),
        ValueRef::Timestamp(millis) => Timestamp::from_millis(millis).to_string().into(),
        number => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => number.to_string().into(),
            (None, Some(number)) => number.to_string().into(),
            (None, None) => return None,
        },
    })
}

/// The canonical form of RFC 9562: lower-case, with dashes.
fn uuid(bytes: [u8; 16]) -> String {
    let digits = format!("{:032x}", u128::from_be_bytes(bytes));
    let part = |range: std::ops::Range<usize>| digits.get(range).unwrap_or_default();
    let parts = [
        part(0..8),
        part(8..12),
        part(12..16),
        part(16..20),
        part(20..32),
    ];
    parts.join("-")
}

/// A time in one of the forms in which applications put it there.
pub(crate) fn time(value: ValueRef<'_>) -> Option<Timestamp> {
    let millis = value.as_timestamp().or_else(|| value.as_i64());
    millis
        .map(Timestamp::from_millis)
        .or_else(|| Timestamp::parse(value.as_str()?))
}

/// The bytes of a body; `None` when it is something else than bytes or a text.
pub(crate) fn body<'a>(message: &Message<'a>) -> Option<Cow<'a, [u8]>> {
    match message.body {
        Body::None | Body::Value(ValueRef::Null) => Some(Cow::Borrowed(&[])),
        Body::Value(ValueRef::Binary(bytes)) => Some(Cow::Borrowed(bytes)),
        Body::Value(ValueRef::String(text) | ValueRef::Symbol(text)) => {
            Some(Cow::Borrowed(text.as_bytes()))
        }
        Body::Data => Some(message.joined_data()),
        Body::Sequence | Body::Value(_) => None,
    }
}
