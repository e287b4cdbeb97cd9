//! The stored form of a cloud-to-device message.
//!
//! Like an event's record: an *envelope* of ours, and behind it the message's *sections*, encoded
//! once when the hub accepts it. `docs/formats/command.md` describes every byte. The sequence number
//! is not part of it: the store gives that out.

use bytes::{Buf, BufMut, BytesMut};
use fieldpost_amqp::message::Message;
use fieldpost_amqp::value::ValueRef;
use fieldpost_model::{Ack, CloudMessage, Timestamp};

use crate::envelope::{field_size_max, length32, put_field, read_field};
use crate::sections::{Sections, To};
use crate::view::{RecordError, properties_of};

/// The version of the format that is written, and the only one that is read.
const VERSION: u8 = 1;

/// Bytes before the fields: version, acknowledgement, enqueued and expiry time, length of the fields.
const FIXED_BYTES: usize = 1 + 1 + 8 + 8 + 4;

const SENDER: u8 = 1;
const CREATION_TIME: u8 = 2;
const MESSAGE_SCHEMA: u8 = 3;

/// What the hub states about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandEnvelope<'a> {
    /// When the hub accepted it.
    pub enqueued: Timestamp,
    /// When it expires: as its sender said, or by the hub's time to live.
    pub expires: Timestamp,
    /// The policy by which its sender was let in.
    pub sender: &'a str,
    /// Which outcomes its sender wants to hear of.
    pub ack: Ack,
}

/// Appends the stored form of `message` to `out`. Its own expiry and acknowledgement do not count:
/// the envelope's do.
///
/// Grows `out` at most once and allocates nothing else. The caller has checked the message's size;
/// anything below 4 GiB in all can be encoded.
pub fn encode(out: &mut BytesMut, envelope: &CommandEnvelope<'_>, message: &CloudMessage<'_>) {
    let sections = Sections {
        message_id: message.message_id.as_deref(),
        user_id: message.user_id.as_deref(),
        to: To::Given(&message.to),
        correlation_id: message.correlation_id.as_deref(),
        content_type: message.content_type.as_deref(),
        content_encoding: message.content_encoding.as_deref(),
        expiry: Some(envelope.expires),
        properties: &message.properties,
        body: &message.body,
    };
    let fields = [
        (SENDER, Some(envelope.sender)),
        (CREATION_TIME, message.creation_time.as_deref()),
        (MESSAGE_SCHEMA, message.message_schema.as_deref()),
    ];
    let fields_max: usize = fields.iter().map(|(_, value)| field_size_max(*value)).sum();
    out.reserve(FIXED_BYTES + fields_max + sections.size_max());
    out.put_u8(VERSION);
    out.put_u8(ack_code(envelope.ack));
    out.put_i64_le(envelope.enqueued.as_millis());
    out.put_i64_le(envelope.expires.as_millis());
    let length_at = out.len();
    out.put_u32_le(0);
    for (tag, value) in fields {
        put_field(out, tag, value);
    }
    let length = length32(out.len() - length_at - 4).to_le_bytes();
    if let Some(slot) = out.get_mut(length_at..length_at + 4) {
        slot.copy_from_slice(&length);
    }
    sections.write(out);
}

/// A stored cloud-to-device message, read in place.
///
/// Everything but the application properties is checked when the view is made. Nothing here panics or
/// allocates, whatever the bytes are.
#[derive(Clone, Copy, Debug)]
pub struct CommandView<'a> {
    envelope: CommandEnvelope<'a>,
    creation_time: Option<&'a str>,
    message_schema: Option<&'a str>,
    to: &'a str,
    message_id: Option<&'a str>,
    correlation_id: Option<&'a str>,
    user_id: Option<&'a [u8]>,
    content_type: Option<&'a str>,
    content_encoding: Option<&'a str>,
    sections: &'a [u8],
}

impl<'a> CommandView<'a> {
    /// Reads a stored message.
    ///
    /// # Errors
    /// When the bytes are not one of a known version.
    pub fn parse(mut bytes: &'a [u8]) -> Result<Self, RecordError> {
        let version = bytes.try_get_u8().map_err(|_| RecordError::Truncated)?;
        if version != VERSION {
            return Err(RecordError::Version { version });
        }
        if bytes.len() < FIXED_BYTES - 1 {
            return Err(RecordError::Truncated);
        }
        let code = bytes.get_u8();
        let ack = Ack::ALL.into_iter().find(|ack| ack_code(*ack) == code);
        let ack = ack.ok_or(RecordError::Malformed {
            part: "acknowledgement",
        })?;
        let enqueued = Timestamp::from_millis(bytes.get_i64_le());
        let expires = Timestamp::from_millis(bytes.get_i64_le());
        let length = usize::try_from(bytes.get_u32_le()).unwrap_or(usize::MAX);
        let (mut fields, sections) = bytes
            .split_at_checked(length)
            .ok_or(RecordError::Truncated)?;
        let (mut sender, mut creation_time, mut message_schema) = (None, None, None);
        let mut last_tag = 0;
        while !fields.is_empty() {
            let (tag, value, rest) = read_field(fields, last_tag)?;
            (last_tag, fields) = (tag, rest);
            let slot = match tag {
                SENDER => &mut sender,
                CREATION_TIME => &mut creation_time,
                MESSAGE_SCHEMA => &mut message_schema,
                _ => return Err(RecordError::Malformed { part: "field tag" }),
            };
            *slot = Some(value);
        }

        let part = "properties section";
        let malformed = |_| RecordError::Malformed { part };
        let message = Message::parse(sections).map_err(malformed)?;
        let properties = message.properties().map_err(malformed)?;
        let text = |value: Option<ValueRef<'a>>| match value {
            None => Ok(None),
            Some(ValueRef::String(text) | ValueRef::Symbol(text)) => Ok(Some(text)),
            Some(_) => Err(RecordError::Malformed { part }),
        };
        let user_id = match properties.user_id {
            None => None,
            Some(ValueRef::Binary(bytes)) => Some(bytes),
            Some(_) => return Err(RecordError::Malformed { part }),
        };
        Ok(Self {
            envelope: CommandEnvelope {
                enqueued,
                expires,
                sender: sender.ok_or(RecordError::Malformed { part: "sender" })?,
                ack,
            },
            creation_time,
            message_schema,
            to: text(properties.to)?.ok_or(RecordError::Malformed { part })?,
            message_id: text(properties.message_id)?,
            correlation_id: text(properties.correlation_id)?,
            user_id,
            content_type: text(properties.content_type)?,
            content_encoding: text(properties.content_encoding)?,
            sections,
        })
    }

    /// When the hub accepted it.
    #[must_use]
    pub fn enqueued(&self) -> Timestamp {
        self.envelope.enqueued
    }

    /// When it expires.
    #[must_use]
    pub fn expires(&self) -> Timestamp {
        self.envelope.expires
    }

    /// The policy by which its sender was let in.
    #[must_use]
    pub fn sender(&self) -> &'a str {
        self.envelope.sender
    }

    /// Which outcomes its sender wants to hear of.
    #[must_use]
    pub fn ack(&self) -> Ack {
        self.envelope.ack
    }

    /// `to`, as the sender wrote it.
    #[must_use]
    pub fn to(&self) -> &'a str {
        self.to
    }

    /// `message-id`.
    #[must_use]
    pub fn message_id(&self) -> Option<&'a str> {
        self.message_id
    }

    /// `correlation-id`.
    #[must_use]
    pub fn correlation_id(&self) -> Option<&'a str> {
        self.correlation_id
    }

    /// `user-id`.
    #[must_use]
    pub fn user_id(&self) -> Option<&'a [u8]> {
        self.user_id
    }

    /// `content-type`.
    #[must_use]
    pub fn content_type(&self) -> Option<&'a str> {
        self.content_type
    }

    /// `content-encoding`.
    #[must_use]
    pub fn content_encoding(&self) -> Option<&'a str> {
        self.content_encoding
    }

    /// `iothub-creation-time-utc`, as the sender wrote it.
    #[must_use]
    pub fn creation_time(&self) -> Option<&'a str> {
        self.creation_time
    }

    /// `iothub-message-schema`.
    #[must_use]
    pub fn message_schema(&self) -> Option<&'a str> {
        self.message_schema
    }

    /// The application properties in the order in which they were sent.
    pub fn properties(&self) -> impl Iterator<Item = (&'a str, Option<&'a str>)> + use<'a> {
        properties_of(self.sections)
    }

    /// The body; `None` when the sections are not what a writer writes.
    #[must_use]
    pub fn body(&self) -> Option<&'a [u8]> {
        Message::parse(self.sections).ok()?.data().next()
    }

    /// The encoded AMQP sections: bare properties, application properties, body.
    #[must_use]
    pub fn sections(&self) -> &'a [u8] {
        self.sections
    }
}

fn ack_code(ack: Ack) -> u8 {
    match ack {
        Ack::None => 0,
        Ack::Positive => 1,
        Ack::Negative => 2,
        Ack::Full => 3,
    }
}
