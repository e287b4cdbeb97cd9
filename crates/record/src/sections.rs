//! The AMQP sections that every stored message has: written once, copied to every reader.

use bytes::BytesMut;
use fieldpost_amqp::message::{put_data, put_map, section};
use fieldpost_amqp::value::Encoder;
use fieldpost_model::{Properties, Timestamp};

use crate::envelope::length32;

/// What goes into the sections.
pub(crate) struct Sections<'a, 'p> {
    pub(crate) message_id: Option<&'a str>,
    pub(crate) user_id: Option<&'a [u8]>,
    pub(crate) to: To<'a>,
    pub(crate) correlation_id: Option<&'a str>,
    pub(crate) content_type: Option<&'a str>,
    pub(crate) content_encoding: Option<&'a str>,
    pub(crate) expiry: Option<Timestamp>,
    pub(crate) properties: &'a Properties<'p>,
    pub(crate) body: &'a [u8],
}

/// The `to` property.
pub(crate) enum To<'a> {
    /// What the sender wrote.
    Given(&'a str),
    /// Where a device's telemetry goes.
    Endpoint {
        device: &'a str,
        module: Option<&'a str>,
    },
}

impl Sections<'_, '_> {
    /// Appends bare properties, application properties if there are any, and body.
    pub(crate) fn write(&self, out: &mut BytesMut) {
        self.write_properties(out);
        if !self.properties.is_empty() {
            put_map(out, section::APPLICATION_PROPERTIES, |e| {
                for (name, value) in self.properties.iter() {
                    e.string(name);
                    optional(e, value, |e, v| e.string(v));
                }
            });
        }
        put_data(out, self.body);
    }

    fn write_properties(&self, out: &mut BytesMut) {
        // Nulls at the end of a list may be left off, and most messages have nothing after `to`.
        let has_encoding = self.content_encoding.is_some() || self.expiry.is_some();
        let has_type = self.content_type.is_some() || has_encoding;
        let has_correlation = self.correlation_id.is_some() || has_type;

        Encoder::new(out).described(section::PROPERTIES, |e| {
            e.list(|e| {
                optional(e, self.message_id, |e, v| e.string(v));
                optional(e, self.user_id, |e, v| e.binary(v));
                self.to.write(e);
                if has_correlation {
                    // subject and reply-to, which no sender can set
                    e.null();
                    e.null();
                    optional(e, self.correlation_id, |e, v| e.string(v));
                }
                if has_type {
                    optional(e, self.content_type, |e, v| e.symbol(v));
                }
                if has_encoding {
                    optional(e, self.content_encoding, |e, v| e.symbol(v));
                }
                if let Some(expiry) = self.expiry {
                    e.timestamp(expiry.as_millis());
                }
            });
        });
    }

    /// An upper bound on the bytes of all sections.
    pub(crate) fn size_max(&self) -> usize {
        /// Constructor and length of one value in the long form.
        const VALUE_OVERHEAD: usize = 1 + 4;
        /// Descriptor, constructor, size and count of one section in the long form.
        const SECTION_OVERHEAD: usize = 3 + 1 + 4 + 4;
        const PROPERTIES: usize = 9;

        let properties: usize = self
            .properties
            .iter()
            .map(|(name, value)| 2 * VALUE_OVERHEAD + name.len() + value.map_or(0, str::len))
            .sum();
        let length = |text: Option<&str>| text.map_or(0, str::len);
        3 * SECTION_OVERHEAD
            + PROPERTIES * VALUE_OVERHEAD
            + size_of::<i64>()
            + self.to.len()
            + length(self.message_id)
            + length(self.correlation_id)
            + length(self.content_type)
            + length(self.content_encoding)
            + self.user_id.map_or(0, <[u8]>::len)
            + properties
            + VALUE_OVERHEAD
            + self.body.len()
    }
}

impl<'a> To<'a> {
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
                let [a, b, c, d] = length32(length).to_be_bytes();
                e.raw(&[0xB1, a, b, c, d]);
            }
        }
        for part in self.parts() {
            e.raw_values(part.as_bytes(), 0);
        }
    }
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
