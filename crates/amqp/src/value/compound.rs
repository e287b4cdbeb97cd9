//! Compound values whose contents are read lazily.

use super::read::Decoder;
use super::{Descriptor, Map, OWNED_VALUES_MAX, Symbol, ValueRef};
use crate::error::DecodeError;

/// A list whose contents are read lazily.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ListRef<'a> {
    pub(super) count: u32,
    pub(super) body: &'a [u8],
    pub(super) depth: u8,
}

impl<'a> ListRef<'a> {
    /// The number of values that the list announces; never above the bytes it has.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.count
    }

    /// True when there is no value.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The encoded values, without count and size.
    #[must_use]
    pub const fn body(&self) -> &'a [u8] {
        self.body
    }

    /// The values in order.
    #[must_use]
    pub const fn iter(&self) -> ListIter<'a> {
        ListIter {
            decoder: Decoder {
                rest: self.body,
                depth: self.depth,
            },
            left: self.count,
        }
    }
}

/// The values of a [`ListRef`]; ends after the first error.
#[derive(Clone, Debug)]
pub struct ListIter<'a> {
    decoder: Decoder<'a>,
    left: u32,
}

impl<'a> Iterator for ListIter<'a> {
    type Item = Result<ValueRef<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let value = self.decoder.value();
        if value.is_err() {
            self.left = 0;
        }
        Some(value)
    }
}

/// A map whose contents are read lazily.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MapRef<'a> {
    pub(super) count: u32,
    pub(super) body: &'a [u8],
    pub(super) depth: u8,
}

impl<'a> MapRef<'a> {
    /// The number of entries that the map announces; never above the bytes it has.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.count / 2
    }

    /// True when there is no entry.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The encoded keys and values in turn, without count and size.
    #[must_use]
    pub const fn body(&self) -> &'a [u8] {
        self.body
    }

    /// The entries in order.
    #[must_use]
    pub const fn iter(&self) -> MapIter<'a> {
        MapIter {
            decoder: Decoder {
                rest: self.body,
                depth: self.depth,
            },
            left: self.count / 2,
        }
    }

    /// The value of the first key, string or symbol, that reads `key`. Entries before it are
    /// decoded no further than needed, those after it not at all.
    ///
    /// # Errors
    /// [`DecodeError`] when an entry up to there cannot be decoded.
    pub fn get(&self, key: &str) -> Result<Option<ValueRef<'a>>, DecodeError> {
        for entry in self.iter() {
            let (name, value) = entry?;
            if name.as_str() == Some(key) {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// The map with everything that it holds, copied.
    ///
    /// # Errors
    /// As [`ValueRef::to_value`].
    pub fn to_map(&self) -> Result<Map, DecodeError> {
        let mut budget = OWNED_VALUES_MAX;
        self.owned(&mut budget)
    }

    pub(super) fn owned(&self, budget: &mut u32) -> Result<Map, DecodeError> {
        let mut entries = Vec::new();
        for entry in self.iter() {
            let (key, value) = entry?;
            entries.push((key.owned(budget)?, value.owned(budget)?));
        }
        Ok(Map(entries))
    }
}

/// The entries of a [`MapRef`]; ends after the first error.
#[derive(Clone, Debug)]
pub struct MapIter<'a> {
    decoder: Decoder<'a>,
    left: u32,
}

impl<'a> MapIter<'a> {
    fn entry(&mut self) -> Result<(ValueRef<'a>, ValueRef<'a>), DecodeError> {
        Ok((self.decoder.value()?, self.decoder.value()?))
    }
}

impl<'a> Iterator for MapIter<'a> {
    type Item = Result<(ValueRef<'a>, ValueRef<'a>), DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let entry = self.entry();
        if entry.is_err() {
            self.left = 0;
        }
        Some(entry)
    }
}

/// An array whose contents are read lazily.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ArrayRef<'a> {
    pub(super) count: u32,
    pub(super) descriptor: Option<DescriptorRef<'a>>,
    pub(super) element: u8,
    pub(super) body: &'a [u8],
    pub(super) depth: u8,
}

impl<'a> ArrayRef<'a> {
    /// The number of values that the array announces; never above the bytes it has.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.count
    }

    /// True when there is no value.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The values in order.
    #[must_use]
    pub const fn iter(&self) -> ArrayIter<'a> {
        ArrayIter {
            decoder: Decoder {
                rest: self.body,
                depth: self.depth,
            },
            array: *self,
            left: self.count,
        }
    }

    pub(super) const fn parts(&self) -> (Option<DescriptorRef<'a>>, u8, &'a [u8]) {
        (self.descriptor, self.element, self.body)
    }
}

/// The values of an [`ArrayRef`]; ends after the first error.
#[derive(Clone, Debug)]
pub struct ArrayIter<'a> {
    decoder: Decoder<'a>,
    array: ArrayRef<'a>,
    left: u32,
}

impl<'a> ArrayIter<'a> {
    fn element(&mut self) -> Result<ValueRef<'a>, DecodeError> {
        let constructor = self.array.element;
        let Some(descriptor) = self.array.descriptor else {
            return self.decoder.value_of(constructor);
        };
        let start = self.decoder.rest;
        self.decoder.skip_body(constructor)?;
        let used = start.len() - self.decoder.rest.len();
        Ok(ValueRef::Described(DescribedRef {
            descriptor,
            constructor,
            body: start.get(..used).ok_or(DecodeError::Truncated)?,
            depth: self.decoder.inner_depth()?,
        }))
    }
}

impl<'a> Iterator for ArrayIter<'a> {
    type Item = Result<ValueRef<'a>, DecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let element = self.element();
        if element.is_err() {
            self.left = 0;
        }
        Some(element)
    }
}

/// A described value; the value itself is read lazily.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DescribedRef<'a> {
    /// What the value stands for.
    pub descriptor: DescriptorRef<'a>,
    pub(super) constructor: u8,
    pub(super) body: &'a [u8],
    pub(super) depth: u8,
}

impl<'a> DescribedRef<'a> {
    /// The value that the descriptor describes.
    ///
    /// # Errors
    /// [`DecodeError`] when it cannot be decoded.
    pub fn value(&self) -> Result<ValueRef<'a>, DecodeError> {
        let mut decoder = Decoder {
            rest: self.body,
            depth: self.depth,
        };
        decoder.value_of(self.constructor)
    }

    pub(super) const fn parts(&self) -> (u8, &'a [u8]) {
        (self.constructor, self.body)
    }
}

/// The two forms of a descriptor that AMQP defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorRef<'a> {
    /// A number: domain id in the upper half, descriptor id in the lower.
    Code(u64),
    /// A symbolic name.
    Name(&'a str),
}

impl DescriptorRef<'_> {
    /// The descriptor, copied.
    #[must_use]
    pub fn to_descriptor(&self) -> Descriptor {
        match *self {
            Self::Code(code) => Descriptor::Code(code),
            Self::Name(name) => Descriptor::Name(Symbol::from(name.to_owned())),
        }
    }
}
