//! From an accepted message to its record.

use bytes::{BufMut, BytesMut};
use fieldpost_model::DeviceMessage;

use crate::envelope::{self, Envelope, SenderStamps};
use crate::sections::{self, code};

/// Appends the record of `message` to `out`.
///
/// Grows `out` at most once and allocates nothing else. The caller has checked the message's size;
/// anything below 4 GiB in all can be encoded.
pub fn encode(out: &mut BytesMut, envelope: &Envelope<'_>, message: &DeviceMessage<'_>) {
    let stamps = SenderStamps::of(&message.system);
    let to = To::of(envelope, message);
    let properties_size = properties_size(&to, message);
    let application_size = application_properties_size(message);
    out.reserve(
        envelope::size_max(envelope, &stamps)
            + sections::compound_size(properties_size)
            + sections::compound_size(application_size)
            + sections::SECTION_HEADER_BYTES
            + sections::variable_size(message.body.len()),
    );
    envelope::write(out, envelope, &stamps);
    write_properties(out, &to, message, properties_size);
    write_application_properties(out, message, application_size);
    sections::put_descriptor(out, sections::DATA);
    sections::put_variable(out, code::BINARY, &message.body);
}

/// The `to` property: what the sender wrote, else the address it sent to.
enum To<'a> {
    Given(&'a str),
    Endpoint {
        device: &'a str,
        module: Option<&'a str>,
    },
}

impl<'a> To<'a> {
    fn of(envelope: &Envelope<'a>, message: &'a DeviceMessage<'_>) -> Self {
        match message.system.to.as_deref() {
            Some(to) => Self::Given(to),
            None => Self::Endpoint {
                device: envelope.device_id,
                module: envelope.module_id,
            },
        }
    }

    fn parts(&self) -> [&'a str; 5] {
        match *self {
            Self::Given(to) => [to, "", "", "", ""],
            Self::Endpoint {
                device,
                module: None,
            } => ["/devices/", device, "", "", "/messages/events"],
            Self::Endpoint {
                device,
                module: Some(module),
            } => ["/devices/", device, "/modules/", module, "/messages/events"],
        }
    }

    fn len(&self) -> usize {
        self.parts().into_iter().map(str::len).sum()
    }
}

/// Bytes of the values of the properties list.
fn properties_size(to: &To<'_>, message: &DeviceMessage<'_>) -> usize {
    let system = &message.system;
    let text = |value: Option<&str>| value.map_or(1, |v| sections::variable_size(v.len()));
    let last = last_property(message);
    let sizes = [
        text(system.message_id.as_deref()),
        system
            .user_id
            .as_ref()
            .map_or(1, |v| sections::variable_size(v.len())),
        sections::variable_size(to.len()),
        1,
        1,
        text(system.correlation_id.as_deref()),
        text(system.content_type.as_deref()),
        text(system.content_encoding.as_deref()),
        1 + size_of::<i64>(),
    ];
    sizes.into_iter().take(last + 1).sum()
}

/// Index of the last property that has a value; at least that of `to`, which always has one.
fn last_property(message: &DeviceMessage<'_>) -> usize {
    let system = &message.system;
    if system.absolute_expiry_time.is_some() {
        8
    } else if system.content_encoding.is_some() {
        7
    } else if system.content_type.is_some() {
        6
    } else if system.correlation_id.is_some() {
        5
    } else {
        2
    }
}

fn write_properties(out: &mut BytesMut, to: &To<'_>, message: &DeviceMessage<'_>, size: usize) {
    let system = &message.system;
    let last = last_property(message);
    sections::put_descriptor(out, sections::PROPERTIES);
    sections::put_compound(out, code::LIST, size, last + 1);
    put_optional(
        out,
        code::STRING,
        system.message_id.as_deref().map(str::as_bytes),
    );
    put_optional(out, code::BINARY, system.user_id.as_deref());
    sections::put_variable_header(out, code::STRING, to.len());
    for part in to.parts() {
        out.put_slice(part.as_bytes());
    }
    if last >= 5 {
        // subject and reply-to, which senders of telemetry cannot set
        out.put_slice(&[code::NULL, code::NULL]);
        put_optional(
            out,
            code::STRING,
            system.correlation_id.as_deref().map(str::as_bytes),
        );
    }
    if last >= 6 {
        put_optional(
            out,
            code::SYMBOL,
            system.content_type.as_deref().map(str::as_bytes),
        );
    }
    if last >= 7 {
        put_optional(
            out,
            code::SYMBOL,
            system.content_encoding.as_deref().map(str::as_bytes),
        );
    }
    if let Some(expiry) = system.absolute_expiry_time {
        out.put_u8(code::TIMESTAMP);
        out.put_i64(expiry.as_millis());
    }
}

/// Bytes of the names and values of the application properties map.
fn application_properties_size(message: &DeviceMessage<'_>) -> usize {
    message
        .properties
        .iter()
        .map(|(name, value)| {
            sections::variable_size(name.len())
                + value.map_or(1, |value| sections::variable_size(value.len()))
        })
        .sum()
}

fn write_application_properties(out: &mut BytesMut, message: &DeviceMessage<'_>, size: usize) {
    if message.properties.is_empty() {
        return;
    }
    sections::put_descriptor(out, sections::APPLICATION_PROPERTIES);
    sections::put_compound(out, code::MAP, size, 2 * message.properties.len());
    for (name, value) in message.properties.iter() {
        sections::put_variable(out, code::STRING, name.as_bytes());
        put_optional(out, code::STRING, value.map(str::as_bytes));
    }
}

fn put_optional(out: &mut BytesMut, constructor: code::Variable, value: Option<&[u8]>) {
    match value {
        Some(value) => sections::put_variable(out, constructor, value),
        None => out.put_u8(code::NULL),
    }
}
