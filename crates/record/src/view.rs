//! Looking into a record.

use fieldpost_amqp::message::Message;
use fieldpost_amqp::value::ValueRef;

use crate::envelope::{self, Envelope, SenderStamps};

/// A stored record, read in place.
///
/// The envelope is checked when the view is made; the sections are only walked when something in
/// them is asked for. Nothing here panics or allocates, whatever the bytes are.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    envelope: Envelope<'a>,
    stamps: SenderStamps<'a>,
    sections: &'a [u8],
}

/// Why bytes are not a record that this version can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Written in a version of the format that is not known here.
    #[error("record format version {version} is not known")]
    Version {
        /// The version found.
        version: u8,
    },
    /// The bytes end too early.
    #[error("a record is cut short")]
    Truncated,
    /// A part holds a value that no writer writes.
    #[error("a record has an unknown {part}")]
    Malformed {
        /// Which part of the envelope.
        part: &'static str,
    },
}

impl<'a> RecordView<'a> {
    /// Reads the envelope of `record`, which is one whole record.
    ///
    /// # Errors
    /// When the envelope is not one of a known version.
    pub fn parse(record: &'a [u8]) -> Result<Self, RecordError> {
        let (envelope, stamps, sections) = envelope::read(record)?;
        Ok(Self {
            envelope,
            stamps,
            sections,
        })
    }

    /// What the hub states about the message.
    #[must_use]
    pub fn envelope(&self) -> &Envelope<'a> {
        &self.envelope
    }

    /// The component of a plug-and-play device that spoke.
    #[must_use]
    pub fn component(&self) -> Option<&'a str> {
        self.stamps.component
    }

    /// The interface that the message belongs to.
    #[must_use]
    pub fn interface_id(&self) -> Option<&'a str> {
        self.stamps.interface_id
    }

    /// The output of a module on which the message was sent.
    #[must_use]
    pub fn output_name(&self) -> Option<&'a str> {
        self.stamps.output_name
    }

    /// The encoded AMQP sections, to be copied behind the annotations as they are.
    #[must_use]
    pub fn sections(&self) -> &'a [u8] {
        self.sections
    }

    /// The value of an application property: `None` when there is none of that name, `Some(None)`
    /// when its value is null. Names compare without ASCII case.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<Option<&'a str>> {
        self.properties()
            .find(|(candidate, _)| candidate.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }

    /// The application properties in the order in which they were sent.
    pub fn properties(&self) -> impl Iterator<Item = (&'a str, Option<&'a str>)> + use<'a> {
        properties_of(self.sections)
    }

    /// The body; `None` when the sections are not what a writer writes.
    #[must_use]
    pub fn body(&self) -> Option<&'a [u8]> {
        self.message()?.data().next()
    }

    fn message(&self) -> Option<Message<'a>> {
        Message::parse(self.sections).ok()
    }
}

/// The application properties in `sections`, up to the first that no writer writes.
pub(crate) fn properties_of<'a>(
    sections: &'a [u8],
) -> impl Iterator<Item = (&'a str, Option<&'a str>)> + use<'a> {
    let message = Message::parse(sections).ok();
    let map = message.and_then(|message| message.application_properties);
    map.into_iter()
        .flat_map(|map| map.iter())
        .map_while(|entry| {
            let (name, value) = entry.ok()?;
            match value {
                ValueRef::Null => Some((name.as_str()?, None)),
                value => Some((name.as_str()?, Some(value.as_str()?))),
            }
        })
}
