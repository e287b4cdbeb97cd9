//! Looking into a record.

use crate::envelope::{self, Envelope, SenderStamps};
use crate::sections::{self, code};

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
    #[must_use]
    pub fn properties(&self) -> PropertyIter<'a> {
        PropertyIter {
            rest: self
                .split()
                .and_then(|(items, _)| items)
                .unwrap_or_default(),
        }
    }

    /// The body; `None` when the sections are not what a writer writes.
    #[must_use]
    pub fn body(&self) -> Option<&'a [u8]> {
        let (_, data) = self.split()?;
        let mut data = sections::after_descriptor(data, sections::DATA)?;
        sections::take_variable(&mut data, code::BINARY)?
    }

    /// The items of the application properties, if there is such a section, and what follows.
    fn split(&self) -> Option<(Option<&'a [u8]>, &'a [u8])> {
        let mut rest = sections::after_descriptor(self.sections, sections::PROPERTIES)?;
        sections::take_compound(&mut rest, code::LIST)?;
        match sections::after_descriptor(rest, sections::APPLICATION_PROPERTIES) {
            None => Some((None, rest)),
            Some(mut rest) => {
                let items = sections::take_compound(&mut rest, code::MAP)?;
                Some((Some(items), rest))
            }
        }
    }
}

/// Application properties of a record; made by [`RecordView::properties`].
#[derive(Clone, Debug)]
pub struct PropertyIter<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for PropertyIter<'a> {
    type Item = (&'a str, Option<&'a str>);

    fn next(&mut self) -> Option<Self::Item> {
        let name = sections::take_variable(&mut self.rest, code::STRING)??;
        let value = sections::take_variable(&mut self.rest, code::STRING)?;
        let text = |bytes| str::from_utf8(bytes).ok();
        match value {
            None => Some((text(name)?, None)),
            Some(value) => Some((text(name)?, Some(text(value)?))),
        }
    }
}
