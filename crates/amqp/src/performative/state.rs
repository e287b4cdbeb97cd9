//! Delivery states and delivery tags.

use std::fmt;
use std::sync::Arc;

use super::field::{Field, Fields};
use super::type_code;
use crate::error::{DecodeError, Error};
use crate::value::{DescriptorRef, Encoder, ListRef, Map, Value, ValueRef};

/// What became of a delivery. Cheap to clone: a range of deliveries shares one state.
#[derive(Clone, Debug, PartialEq)]
pub enum DeliveryState {
    /// How far the delivery came; not an outcome.
    Received(Received),
    /// Taken.
    Accepted,
    /// Not valid; never to be sent again.
    Rejected(Option<Arc<Error>>),
    /// Not taken; may be sent again.
    Released,
    /// Not taken; may be sent again with changes.
    Modified(Arc<Modified>),
    /// A state of an extension, such as a transaction's.
    Other(Arc<Value>),
}

/// How far a delivery came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Section of the message.
    pub section_number: u32,
    /// Bytes of that section.
    pub section_offset: u64,
}

/// What to change before a delivery is sent again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Modified {
    /// Counts as a failed attempt.
    pub delivery_failed: bool,
    /// Not to be sent to this link again.
    pub undeliverable_here: bool,
    /// Annotations to merge into the message.
    pub message_annotations: Option<Map>,
}

impl DeliveryState {
    /// A `rejected` outcome.
    #[must_use]
    pub fn rejected(error: Error) -> Self {
        Self::Rejected(Some(Arc::new(error)))
    }
}

impl Field for DeliveryState {
    fn read(value: ValueRef<'_>) -> Result<Self, DecodeError> {
        let ValueRef::Described(described) = value else {
            return Err(DecodeError::WrongType("delivery state"));
        };
        let code = match described.descriptor {
            DescriptorRef::Code(code) => code,
            name @ DescriptorRef::Name(_) => type_code(name).unwrap_or(u64::MAX),
        };
        if !(0x23..=0x27).contains(&code) {
            return Ok(Self::Other(Arc::new(value.to_value()?)));
        }
        let ValueRef::List(list) = described.value()? else {
            return Err(DecodeError::WrongType("delivery state"));
        };
        Ok(match code {
            0x23 => {
                let mut fields = Fields::new(list);
                Self::Received(Received {
                    section_number: fields.required("section-number")?,
                    section_offset: fields.required("section-offset")?,
                })
            }
            0x24 => Self::Accepted,
            0x25 => Self::Rejected(Fields::new(list).optional()?.map(Arc::new)),
            0x26 => Self::Released,
            _ => Self::Modified(Arc::new(Modified::read(list)?)),
        })
    }

    fn write(&self, e: &mut Encoder<'_>) {
        match self {
            Self::Received(received) => e.described(0x23, |e| {
                e.list(|e| {
                    e.uint(received.section_number);
                    e.ulong(received.section_offset);
                });
            }),
            Self::Accepted => e.described(0x24, |e| e.list(|_| ())),
            Self::Rejected(error) => e.described(0x25, |e| {
                e.list(|e| match error {
                    Some(error) => error.encode(e),
                    None => e.null(),
                });
            }),
            Self::Released => e.described(0x26, |e| e.list(|_| ())),
            Self::Modified(modified) => e.described(0x27, |e| {
                e.list(|e| {
                    e.bool(modified.delivery_failed);
                    e.bool(modified.undeliverable_here);
                    match &modified.message_annotations {
                        Some(map) => e.map_value(map),
                        None => e.null(),
                    }
                });
            }),
            Self::Other(value) => e.value(value),
        }
    }
}

impl Modified {
    fn read(list: ListRef<'_>) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(list);
        Ok(Self {
            delivery_failed: fields.optional()?.unwrap_or(false),
            undeliverable_here: fields.optional()?.unwrap_or(false),
            message_annotations: fields.optional()?,
        })
    }
}

/// The name of a delivery on its link: up to 32 bytes, kept in place.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct DeliveryTag {
    length: u8,
    bytes: [u8; 32],
}

impl DeliveryTag {
    /// A tag with these bytes, or nothing when there are more than 32.
    #[must_use]
    pub fn new(tag: &[u8]) -> Option<Self> {
        let mut bytes = [0; 32];
        bytes.get_mut(..tag.len())?.copy_from_slice(tag);
        Some(Self {
            length: u8::try_from(tag.len()).ok()?,
            bytes,
        })
    }

    /// The tag's bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.length.into()).unwrap_or_default()
    }
}

impl fmt::Debug for DeliveryTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.as_bytes() {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl Field for DeliveryTag {
    fn read(value: ValueRef<'_>) -> Result<Self, DecodeError> {
        value
            .as_bytes()
            .and_then(Self::new)
            .ok_or(DecodeError::InvalidValue("delivery-tag"))
    }

    fn write(&self, e: &mut Encoder<'_>) {
        e.binary(self.as_bytes());
    }
}
