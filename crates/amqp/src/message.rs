//! Messages: sections over encoded bytes (AMQP 1.0 part 3, section 3.2).
//!
//! [`Message::parse`] finds the sections in one pass and copies nothing; what they hold is decoded
//! when it is asked for. The `put_*` functions write sections one by one.

use std::borrow::Cow;

use bytes::BytesMut;

use crate::error::DecodeError;
use crate::performative::field::{Fields, optional};
use crate::performative::type_code;
use crate::value::{Decoder, Encoder, ListRef, MapRef, ValueRef};

/// Codes of the sections.
pub mod section {
    /// Delivery details.
    pub const HEADER: u64 = 0x70;
    /// Annotations from the sender of this transfer.
    pub const DELIVERY_ANNOTATIONS: u64 = 0x71;
    /// Annotations that travel with the message.
    pub const MESSAGE_ANNOTATIONS: u64 = 0x72;
    /// The 13 standard properties.
    pub const PROPERTIES: u64 = 0x73;
    /// The application's own properties.
    pub const APPLICATION_PROPERTIES: u64 = 0x74;
    /// Body: bytes.
    pub const DATA: u64 = 0x75;
    /// Body: a list.
    pub const SEQUENCE: u64 = 0x76;
    /// Body: any value.
    pub const VALUE: u64 = 0x77;
    /// What follows the body.
    pub const FOOTER: u64 = 0x78;
}

/// One section of a message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Section<'a> {
    /// What the section is; see [`section`].
    pub code: u64,
    /// The section's value, encoded, without the descriptor.
    pub encoded: &'a [u8],
}

impl<'a> Section<'a> {
    /// The section's value.
    ///
    /// # Errors
    /// [`DecodeError`] when it cannot be decoded.
    pub fn value(&self) -> Result<ValueRef<'a>, DecodeError> {
        Decoder::new(self.encoded).value()
    }
}

/// The sections of an encoded message, in the order of the bytes, unknown ones included.
#[derive(Clone, Debug)]
pub struct Sections<'a> {
    decoder: Decoder<'a>,
    failed: bool,
}

impl<'a> Sections<'a> {
    /// The sections of these bytes.
    #[must_use]
    pub const fn new(message: &'a [u8]) -> Self {
        Self {
            decoder: Decoder::new(message),
            failed: false,
        }
    }

    fn section(&mut self) -> Result<Section<'a>, DecodeError> {
        // A section with a symbolic name that AMQP does not define is an unknown section.
        let code = type_code(self.decoder.descriptor()?).unwrap_or(u64::MAX);
        Ok(Section {
            code,
            encoded: self.decoder.skip()?,
        })
    }
}

impl<'a> Iterator for Sections<'a> {
    type Item = Result<Section<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.decoder.is_empty() {
            return None;
        }
        let section = self.section();
        self.failed = section.is_err();
        Some(section)
    }
}

/// What a message carries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Body<'a> {
    /// No body section at all.
    None,
    /// Data sections; see [`Message::data`].
    Data,
    /// Sequence sections.
    Sequence,
    /// One value.
    Value(ValueRef<'a>),
}

/// A message whose sections were found. Sections may come in any order and unknown ones are
/// skipped; a section other than the body that comes twice is an error.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    bytes: &'a [u8],
    /// Delivery details.
    pub header: Option<Header>,
    /// Annotations from the sender of this transfer.
    pub delivery_annotations: Option<MapRef<'a>>,
    /// Annotations that travel with the message.
    pub message_annotations: Option<MapRef<'a>>,
    properties: Option<ListRef<'a>>,
    /// The application's own properties.
    pub application_properties: Option<MapRef<'a>>,
    /// What the message carries.
    pub body: Body<'a>,
    /// What follows the body.
    pub footer: Option<MapRef<'a>>,
}

impl<'a> Message<'a> {
    /// Finds the sections of an encoded message.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are no sequence of sections, a section has another type
    /// than it should, comes twice, or body sections of different kinds are mixed.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut message = Self {
            bytes,
            header: None,
            delivery_annotations: None,
            message_annotations: None,
            properties: None,
            application_properties: None,
            body: Body::None,
            footer: None,
        };
        for section in Sections::new(bytes) {
            message.add(section?)?;
        }
        Ok(message)
    }

    fn add(&mut self, section: Section<'a>) -> Result<(), DecodeError> {
        let code = section.code;
        let map = |place: &mut Option<MapRef<'a>>| match section.value()? {
            ValueRef::Map(map) if place.is_none() => {
                *place = Some(map);
                Ok(())
            }
            // Some writers send an empty section as null.
            ValueRef::Null => Ok(()),
            ValueRef::Map(_) => Err(DecodeError::DuplicateSection(code)),
            _ => Err(DecodeError::WrongType("map")),
        };
        let list = || match section.value()? {
            ValueRef::List(list) => Ok(list),
            _ => Err(DecodeError::WrongType("list")),
        };
        match code {
            section::HEADER => match self.header {
                None => self.header = Some(Header::read(list()?)?),
                Some(_) => return Err(DecodeError::DuplicateSection(code)),
            },
            section::DELIVERY_ANNOTATIONS => map(&mut self.delivery_annotations)?,
            section::MESSAGE_ANNOTATIONS => map(&mut self.message_annotations)?,
            section::PROPERTIES => match self.properties {
                None => self.properties = Some(list()?),
                Some(_) => return Err(DecodeError::DuplicateSection(code)),
            },
            section::APPLICATION_PROPERTIES => map(&mut self.application_properties)?,
            section::FOOTER => map(&mut self.footer)?,
            section::DATA => match (self.body, section.value()?) {
                (Body::None | Body::Data, ValueRef::Binary(_)) => self.body = Body::Data,
                (Body::None | Body::Data, _) => return Err(DecodeError::WrongType("binary")),
                _ => return Err(DecodeError::DuplicateSection(code)),
            },
            section::SEQUENCE => match (self.body, list()?) {
                (Body::None | Body::Sequence, _) => self.body = Body::Sequence,
                _ => return Err(DecodeError::DuplicateSection(code)),
            },
            section::VALUE => {
                if self.body != Body::None {
                    return Err(DecodeError::DuplicateSection(code));
                }
                self.body = Body::Value(section.value()?);
            }
            _ => {}
        }
        Ok(())
    }

    /// The standard properties, decoded now.
    ///
    /// # Errors
    /// [`DecodeError`] when one of them cannot be decoded.
    pub fn properties(&self) -> Result<Properties<'a>, DecodeError> {
        self.properties
            .map_or(Ok(Properties::default()), Properties::read)
    }

    /// The contents of the Data sections, in order. A batch has one section for each message, any
    /// other message one for each piece of its body.
    pub fn data(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        Sections::new(self.bytes).filter_map(|section| match section {
            // `parse` has seen every section, so that nothing is lost here.
            Ok(section) if section.code == section::DATA => section.value().ok()?.as_bytes(),
            _ => None,
        })
    }

    /// The contents of all Data sections as one; copied only when there are several.
    #[must_use]
    pub fn joined_data(&self) -> Cow<'a, [u8]> {
        let mut sections = self.data();
        let first = sections.next().unwrap_or_default();
        match sections.next() {
            None => Cow::Borrowed(first),
            Some(second) => {
                let mut all = [first, second].concat();
                sections.for_each(|more| all.extend_from_slice(more));
                all.into()
            }
        }
    }

    /// The encoded message.
    #[must_use]
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// The header section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Not to be lost; absent means false.
    pub durable: Option<bool>,
    /// Priority; absent means 4.
    pub priority: Option<u8>,
    /// Life time in milliseconds.
    pub ttl: Option<u32>,
    /// Nobody got the message before.
    pub first_acquirer: Option<bool>,
    /// Attempts that failed; absent means 0.
    pub delivery_count: Option<u32>,
}

impl Header {
    fn read(list: ListRef<'_>) -> Result<Self, DecodeError> {
        let mut fields = Fields::new(list);
        Ok(Self {
            durable: fields.optional()?,
            priority: fields.optional()?,
            ttl: fields.optional()?,
            first_acquirer: fields.optional()?,
            delivery_count: fields.optional()?,
        })
    }
}

/// The properties section, borrowed. Values keep the type they came with, because peers differ in
/// the types they use, and a correlation id must go back in the type of the message id.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Properties<'a> {
    /// Identity of the message: ulong, uuid, binary or string.
    pub message_id: Option<ValueRef<'a>>,
    /// Who made the message: binary.
    pub user_id: Option<ValueRef<'a>>,
    /// Address of the destination.
    pub to: Option<ValueRef<'a>>,
    /// What the message is about: string.
    pub subject: Option<ValueRef<'a>>,
    /// Address for answers.
    pub reply_to: Option<ValueRef<'a>>,
    /// The message id that this answers, in the same type.
    pub correlation_id: Option<ValueRef<'a>>,
    /// Media type of the body: symbol.
    pub content_type: Option<ValueRef<'a>>,
    /// Encoding of the body: symbol.
    pub content_encoding: Option<ValueRef<'a>>,
    /// When the message ends its life: timestamp.
    pub absolute_expiry_time: Option<ValueRef<'a>>,
    /// When the message was made: timestamp.
    pub creation_time: Option<ValueRef<'a>>,
    /// The group: string.
    pub group_id: Option<ValueRef<'a>>,
    /// Position in the group: uint.
    pub group_sequence: Option<ValueRef<'a>>,
    /// The group for answers: string.
    pub reply_to_group_id: Option<ValueRef<'a>>,
}

impl<'a> Properties<'a> {
    fn read(list: ListRef<'a>) -> Result<Self, DecodeError> {
        let mut values = list.iter();
        let mut next = || -> Result<Option<ValueRef<'a>>, DecodeError> {
            Ok(values.next().transpose()?.filter(|value| !value.is_null()))
        };
        Ok(Self {
            message_id: next()?,
            user_id: next()?,
            to: next()?,
            subject: next()?,
            reply_to: next()?,
            correlation_id: next()?,
            content_type: next()?,
            content_encoding: next()?,
            absolute_expiry_time: next()?,
            creation_time: next()?,
            group_id: next()?,
            group_sequence: next()?,
            reply_to_group_id: next()?,
        })
    }

    fn fields(&self) -> [Option<ValueRef<'a>>; 13] {
        [
            self.message_id,
            self.user_id,
            self.to,
            self.subject,
            self.reply_to,
            self.correlation_id,
            self.content_type,
            self.content_encoding,
            self.absolute_expiry_time,
            self.creation_time,
            self.group_id,
            self.group_sequence,
            self.reply_to_group_id,
        ]
    }
}

/// Appends a header section.
pub fn put_header(buffer: &mut BytesMut, header: &Header) {
    Encoder::new(buffer).described(section::HEADER, |e| {
        e.list(|e| {
            optional(e, &header.durable);
            optional(e, &header.priority);
            optional(e, &header.ttl);
            optional(e, &header.first_acquirer);
            optional(e, &header.delivery_count);
        });
    });
}

/// Appends a properties section; fields after the last one given are left out.
pub fn put_properties(buffer: &mut BytesMut, properties: &Properties<'_>) {
    let fields = properties.fields();
    let used = fields
        .iter()
        .rposition(Option::is_some)
        .map_or(0, |last| last + 1);
    Encoder::new(buffer).described(section::PROPERTIES, |e| {
        e.list(|e| {
            for field in fields.iter().take(used) {
                match field {
                    Some(value) => e.value_ref(value),
                    None => e.null(),
                }
            }
        });
    });
}

/// Appends a section that is a map, such as annotations or application properties; `entries`
/// writes keys and values in turn.
pub fn put_map(buffer: &mut BytesMut, code: u64, entries: impl FnOnce(&mut Encoder<'_>)) {
    Encoder::new(buffer).described(code, |e| e.map(entries));
}

/// Appends a Data section.
pub fn put_data(buffer: &mut BytesMut, data: &[u8]) {
    Encoder::new(buffer).described(section::DATA, |e| e.binary(data));
}

/// Appends a Value section; `value` writes exactly one value.
pub fn put_value(buffer: &mut BytesMut, value: impl FnOnce(&mut Encoder<'_>)) {
    Encoder::new(buffer).described(section::VALUE, value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_joined_and_copied_only_where_it_must_be() {
        let check = |pieces: &[&str]| {
            let mut bytes = BytesMut::new();
            for piece in pieces {
                put_data(&mut bytes, piece.as_bytes());
            }
            let joined = Message::parse(&bytes).unwrap().joined_data();
            assert_eq!(&*joined, pieces.concat().as_bytes());
            assert_eq!(
                matches!(joined, Cow::Borrowed(_)),
                pieces.len() < 2,
                "{pieces:?}"
            );
        };
        check(&[]);
        check(&["one"]);
        check(&["one", "", "three"]);
    }

    fn sections(bytes: &[u8]) -> Vec<u64> {
        Sections::new(bytes).map(|s| s.unwrap().code).collect()
    }

    /// The reply to a put-token request whose message id was the ulong 0, as the hosted service
    /// sends it: the id's type must be kept.
    #[test]
    fn token_reply_keeps_the_type_of_the_id() {
        let mut request = BytesMut::new();
        put_properties(
            &mut request,
            &Properties {
                message_id: Some(ValueRef::ULong(0)),
                ..Properties::default()
            },
        );
        let asked = Message::parse(&request).unwrap().properties().unwrap();

        let mut reply = BytesMut::new();
        put_properties(
            &mut reply,
            &Properties {
                correlation_id: asked.message_id,
                ..Properties::default()
            },
        );
        put_map(&mut reply, section::APPLICATION_PROPERTIES, |e| {
            e.string("status-code");
            e.int(200);
            e.string("status-description");
            e.string("OK");
        });
        let expected = [
            b"\x00\x53\x73\xc0\x07\x06\x40\x40\x40\x40\x40\x44".as_slice(),
            b"\x00\x53\x74\xc1\x2b\x04\xa1\x0bstatus-code\x71\x00\x00\x00\xc8",
            b"\xa1\x12status-description\xa1\x02OK",
        ]
        .concat();
        assert_eq!(reply, expected);
        let message = Message::parse(&reply).unwrap();
        assert_eq!(message.body, Body::None);
        let properties = message.application_properties.unwrap();
        assert_eq!(properties.get("status-code"), Ok(Some(ValueRef::Int(200))));
        assert_eq!(properties.get("status"), Ok(None));
    }

    /// A method call as the hosted service writes it.
    #[test]
    fn method_call_bytes() {
        let mut call = BytesMut::new();
        let mut id = [0; 16];
        for (at, byte) in id.iter_mut().enumerate() {
            *byte = u8::try_from(at).unwrap() * 0x11;
        }
        put_properties(
            &mut call,
            &Properties {
                correlation_id: Some(ValueRef::Uuid(id)),
                ..Properties::default()
            },
        );
        put_map(&mut call, section::APPLICATION_PROPERTIES, |e| {
            e.string("IoThub-methodname");
            e.string("reboot");
        });
        put_data(&mut call, b"{}");
        let expected = [
            b"\x00\x53\x73\xc0\x17\x06\x40\x40\x40\x40\x40\x98".as_slice(),
            b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff",
            b"\x00\x53\x74\xc1\x1c\x02\xa1\x11IoThub-methodname\xa1\x06reboot",
            b"\x00\x53\x75\xa0\x02{}",
        ]
        .concat();
        assert_eq!(call, expected);
    }

    /// A batch: each Data section is one encoded message.
    #[test]
    fn batch_of_two() {
        let inner = b"\x00\x53\x74\xc1\x07\x02\xa1\x01k\xa1\x01v\x00\x53\x75\xa0\x01A";
        let batch = [
            b"\x00\x53\x75\xa0\x12".as_slice(),
            inner,
            b"\x00\x53\x75\xa0\x06\x00\x53\x75\xa0\x01B",
        ]
        .concat();
        let message = Message::parse(&batch).unwrap();
        let bodies: Vec<Vec<u8>> = message
            .data()
            .map(|inner| {
                Message::parse(inner)
                    .unwrap()
                    .data()
                    .flatten()
                    .copied()
                    .collect()
            })
            .collect();
        assert_eq!(bodies, [b"A".to_vec(), b"B".to_vec()]);
        let first = Message::parse(message.data().next().unwrap()).unwrap();
        let value = first.application_properties.unwrap().get("k");
        assert_eq!(value, Ok(Some(ValueRef::String("v"))));
    }

    /// The C library writes annotations after the application properties; unknown sections are
    /// skipped wherever they stand.
    #[test]
    fn any_order_and_unknown_sections() {
        let mut bytes = BytesMut::new();
        put_properties(&mut bytes, &Properties::default());
        put_map(&mut bytes, section::APPLICATION_PROPERTIES, |e| {
            e.string("a");
            e.bool(true);
        });
        Encoder::new(&mut bytes).described(0x79, |e| e.list(|e| e.null()));
        put_map(&mut bytes, section::MESSAGE_ANNOTATIONS, |e| {
            e.symbol("x");
            e.long(7);
        });
        Encoder::new(&mut bytes).described_name("vendor:section", |e| e.null());
        put_data(&mut bytes, b"body");
        let header = Header {
            priority: Some(9),
            ..Header::default()
        };
        put_header(&mut bytes, &header);
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(
            sections(&bytes),
            [0x73, 0x74, 0x79, 0x72, u64::MAX, 0x75, 0x70]
        );
        assert_eq!(message.properties(), Ok(Properties::default()));
        assert_eq!(message.header, Some(header));
        let annotation = message.message_annotations.unwrap().get("x");
        assert_eq!(annotation, Ok(Some(ValueRef::Long(7))));
        assert_eq!(message.data().collect::<Vec<_>>(), [b"body"]);
    }

    #[test]
    fn what_is_no_message() {
        let check = |bytes: &[u8], expected: DecodeError| {
            assert_eq!(
                Message::parse(bytes).map(|_| ()),
                Err(expected),
                "{bytes:02x?}"
            );
        };
        check(b"\x40", DecodeError::WrongType("described value"));
        check(b"\x00\x53\x75\xa0\x02A", DecodeError::Truncated);
        check(b"\x00\x53\x75\x40", DecodeError::WrongType("binary"));
        check(b"\x00\x53\x72\xa1\x00", DecodeError::WrongType("map"));
        check(b"\x00\x53\x73\x41", DecodeError::WrongType("list"));
        check(
            b"\x00\x53\x74\xc1\x01\x00\x00\x53\x74\xc1\x01\x00",
            DecodeError::DuplicateSection(0x74),
        );
        check(
            b"\x00\x53\x75\xa0\x00\x00\x53\x77\x40",
            DecodeError::DuplicateSection(0x77),
        );
        check(
            b"\x00\x53\x77\x40\x00\x53\x75\xa0\x00",
            DecodeError::DuplicateSection(0x75),
        );
    }
}
