//! From an accepted message to its record.

use bytes::BytesMut;
use fieldpost_amqp::message::{put_data, put_map, section};
use fieldpost_amqp::value::Encoder;
use fieldpost_model::DeviceMessage;

use crate::envelope::{self, Envelope, SenderStamps};

/// Appends the record of `message` to `out`.
///
/// Grows `out` at most once and allocates nothing else. The caller has checked the message's size;
/// anything below 4 GiB in all can be encoded.
pub fn encode(out: &mut BytesMut, envelope: &Envelope<'_>, message: &DeviceMessage<'_>) {
    let stamps = SenderStamps::of(&message.system);
    let to = To::of(envelope, message);
    out.reserve(envelope::size_max(envelope, &stamps) + sections_size_max(&to, message));
    envelope::write(out, envelope, &stamps);
    write_properties(out, &to, message);
    if !message.properties.is_empty() {
        put_map(out, section::APPLICATION_PROPERTIES, |e| {
            for (name, value) in message.properties.iter() {
                e.string(name);
                optional(e, value, |e, v| e.string(v));
            }
        });
    }
    put_data(out, &message.body);
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

    /// Writes a string out of several parts, which the encoder's own `string` could only do from
    /// an allocated one.
    fn write(&self, e: &mut Encoder<'_>) {
        let length = self.len();
        match u8::try_from(length) {
            Ok(length) => e.raw(&[0xA1, length]),
            Err(_) => {
                let [a, b, c, d] = envelope::length32(length).to_be_bytes();
                e.raw(&[0xB1, a, b, c, d]);
            }
        }
        for part in self.parts() {
            e.raw_values(part.as_bytes(), 0);
        }
    }
}

fn write_properties(out: &mut BytesMut, to: &To<'_>, message: &DeviceMessage<'_>) {
    let system = &message.system;
    let content_type = system.content_type.as_deref();
    let content_encoding = system.content_encoding.as_deref();
    let expiry = system.absolute_expiry_time;
    // Nulls at the end of a list may be left off, and most messages have nothing after `to`.
    let has_encoding = content_encoding.is_some() || expiry.is_some();
    let has_type = content_type.is_some() || has_encoding;
    let has_correlation = system.correlation_id.is_some() || has_type;

    Encoder::new(out).described(section::PROPERTIES, |e| {
        e.list(|e| {
            optional(e, system.message_id.as_deref(), |e, v| e.string(v));
            optional(e, system.user_id.as_deref(), |e, v| e.binary(v));
            to.write(e);
            if has_correlation {
                // subject and reply-to, which senders of telemetry cannot set
                e.null();
                e.null();
                optional(e, system.correlation_id.as_deref(), |e, v| e.string(v));
            }
            if has_type {
                optional(e, content_type, |e, v| e.symbol(v));
            }
            if has_encoding {
                optional(e, content_encoding, |e, v| e.symbol(v));
            }
            if let Some(expiry) = expiry {
                e.timestamp(expiry.as_millis());
            }
        });
    });
}

/// An upper bound on the bytes of all sections.
fn sections_size_max(to: &To<'_>, message: &DeviceMessage<'_>) -> usize {
    /// Constructor and length of one value in the long form.
    const VALUE_OVERHEAD: usize = 1 + 4;
    /// Descriptor, constructor, size and count of one section in the long form.
    const SECTION_OVERHEAD: usize = 3 + 1 + 4 + 4;
    const PROPERTIES: usize = 9;

    let properties: usize = message
        .properties
        .iter()
        .map(|(name, value)| 2 * VALUE_OVERHEAD + name.len() + value.map_or(0, str::len))
        .sum();
    let system = &message.system;
    let length = |text: Option<&str>| text.map_or(0, str::len);
    3 * SECTION_OVERHEAD
        + PROPERTIES * VALUE_OVERHEAD
        + size_of::<i64>()
        + to.len()
        + length(system.message_id.as_deref())
        + length(system.correlation_id.as_deref())
        + length(system.content_type.as_deref())
        + length(system.content_encoding.as_deref())
        + system.user_id.as_deref().map_or(0, <[u8]>::len)
        + properties
        + VALUE_OVERHEAD
        + message.body.len()
}

fn optional<T: ?Sized>(
    e: &mut Encoder<'_>,
    value: Option<&T>,
    write: impl FnOnce(&mut Encoder<'_>, &T),
) {
    match value {
        Some(value) => write(e, value),
        None => e.null(),
    }
}
