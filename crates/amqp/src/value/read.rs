//! Reading values from bytes.

use super::compound::{ArrayRef, DescribedRef, DescriptorRef, ListRef, MapRef};
use super::{Array, DEPTH_MAX, Described, OWNED_VALUES_MAX, Symbol, Value};
use crate::error::DecodeError;

/// Reads values one after the other from a byte slice, without copying.
#[derive(Clone, Copy, Debug)]
pub struct Decoder<'a> {
    pub(super) rest: &'a [u8],
    pub(super) depth: u8,
}

/// Any AMQP value, borrowed from the bytes it was read from. Compound values are read lazily:
/// their frame is checked, their contents only when they are iterated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ValueRef<'a> {
    /// `null`
    Null,
    /// `boolean`
    Bool(bool),
    /// `ubyte`
    UByte(u8),
    /// `ushort`
    UShort(u16),
    /// `uint`
    UInt(u32),
    /// `ulong`
    ULong(u64),
    /// `byte`
    Byte(i8),
    /// `short`
    Short(i16),
    /// `int`
    Int(i32),
    /// `long`
    Long(i64),
    /// `float`
    Float(f32),
    /// `double`
    Double(f64),
    /// `decimal32`, kept as it came
    Decimal32([u8; 4]),
    /// `decimal64`, kept as it came
    Decimal64([u8; 8]),
    /// `decimal128`, kept as it came
    Decimal128([u8; 16]),
    /// `char`
    Char(char),
    /// `timestamp`: milliseconds since the Unix epoch
    Timestamp(i64),
    /// `uuid`, in network byte order
    Uuid([u8; 16]),
    /// `binary`
    Binary(&'a [u8]),
    /// `string`
    String(&'a str),
    /// `symbol`
    Symbol(&'a str),
    /// `list`
    List(ListRef<'a>),
    /// `map`
    Map(MapRef<'a>),
    /// `array`
    Array(ArrayRef<'a>),
    /// A described value
    Described(DescribedRef<'a>),
}

impl<'a> Decoder<'a> {
    /// A decoder that starts at the first byte.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self {
            rest: bytes,
            depth: 0,
        }
    }

    /// True when every byte was read.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The bytes that were not read yet.
    #[must_use]
    pub const fn remaining(&self) -> &'a [u8] {
        self.rest
    }

    /// Reads one value.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes are no value within the limits of this module.
    pub fn value(&mut self) -> Result<ValueRef<'a>, DecodeError> {
        let constructor = self.byte()?;
        self.value_of(constructor)
    }

    /// Reads a descriptor and stops before the value that it describes.
    ///
    /// # Errors
    /// [`DecodeError`] when no described value starts here.
    pub fn descriptor(&mut self) -> Result<DescriptorRef<'a>, DecodeError> {
        if self.byte()? != 0x00 {
            return Err(DecodeError::WrongType("described value"));
        }
        self.descriptor_body()
    }

    /// Reads a value that must be a list.
    ///
    /// # Errors
    /// [`DecodeError`] when the next value is not a list.
    pub fn list(&mut self) -> Result<ListRef<'a>, DecodeError> {
        match self.value()? {
            ValueRef::List(list) => Ok(list),
            _ => Err(DecodeError::WrongType("list")),
        }
    }

    /// Steps over one value and returns its encoded bytes, constructor included. Looks only at
    /// sizes, so the cost does not depend on what the value holds.
    ///
    /// # Errors
    /// [`DecodeError`] when the bytes end before the value does.
    pub fn skip(&mut self) -> Result<&'a [u8], DecodeError> {
        let start = self.rest;
        for _ in 0..=DEPTH_MAX {
            let constructor = self.byte()?;
            if constructor != 0x00 {
                self.skip_body(constructor)?;
                let used = start.len() - self.rest.len();
                return start.get(..used).ok_or(DecodeError::Truncated);
            }
            self.descriptor_body()?;
        }
        Err(DecodeError::TooDeep)
    }

    pub(super) fn value_of(&mut self, constructor: u8) -> Result<ValueRef<'a>, DecodeError> {
        Ok(match constructor {
            0x00 => ValueRef::Described(self.described()?),
            0x40 => ValueRef::Null,
            0x41 => ValueRef::Bool(true),
            0x42 => ValueRef::Bool(false),
            0x43 => ValueRef::UInt(0),
            0x44 => ValueRef::ULong(0),
            0x45 => ValueRef::List(ListRef {
                count: 0,
                body: &[],
                depth: self.inner_depth()?,
            }),
            0x50 => ValueRef::UByte(self.byte()?),
            0x51 => ValueRef::Byte(i8::from_be_bytes(self.fixed()?)),
            0x52 => ValueRef::UInt(self.byte()?.into()),
            0x53 => ValueRef::ULong(self.byte()?.into()),
            0x54 => ValueRef::Int(i8::from_be_bytes(self.fixed()?).into()),
            0x55 => ValueRef::Long(i8::from_be_bytes(self.fixed()?).into()),
            0x56 => match self.byte()? {
                0 => ValueRef::Bool(false),
                1 => ValueRef::Bool(true),
                _ => return Err(DecodeError::InvalidValue("boolean")),
            },
            0x60 => ValueRef::UShort(u16::from_be_bytes(self.fixed()?)),
            0x61 => ValueRef::Short(i16::from_be_bytes(self.fixed()?)),
            0x70 => ValueRef::UInt(u32::from_be_bytes(self.fixed()?)),
            0x71 => ValueRef::Int(i32::from_be_bytes(self.fixed()?)),
            0x72 => ValueRef::Float(f32::from_be_bytes(self.fixed()?)),
            0x73 => ValueRef::Char(
                char::from_u32(u32::from_be_bytes(self.fixed()?))
                    .ok_or(DecodeError::InvalidValue("char"))?,
            ),
            0x74 => ValueRef::Decimal32(self.fixed()?),
            0x80 => ValueRef::ULong(u64::from_be_bytes(self.fixed()?)),
            0x81 => ValueRef::Long(i64::from_be_bytes(self.fixed()?)),
            0x82 => ValueRef::Double(f64::from_be_bytes(self.fixed()?)),
            0x83 => ValueRef::Timestamp(i64::from_be_bytes(self.fixed()?)),
            0x84 => ValueRef::Decimal64(self.fixed()?),
            0x94 => ValueRef::Decimal128(self.fixed()?),
            0x98 => ValueRef::Uuid(self.fixed()?),
            0xa0 | 0xb0 => ValueRef::Binary(self.variable(constructor)?),
            0xa1 | 0xb1 => ValueRef::String(text(self.variable(constructor)?)?),
            0xa3 | 0xb3 => ValueRef::Symbol(text(self.variable(constructor)?)?),
            0xc0 | 0xd0 => {
                let (count, body) = self.compound(constructor)?;
                ValueRef::List(ListRef {
                    count,
                    body,
                    depth: self.inner_depth()?,
                })
            }
            0xc1 | 0xd1 => {
                let (count, body) = self.compound(constructor)?;
                if count % 2 != 0 {
                    return Err(DecodeError::InvalidValue("map"));
                }
                ValueRef::Map(MapRef {
                    count,
                    body,
                    depth: self.inner_depth()?,
                })
            }
            0xe0 | 0xf0 => ValueRef::Array(self.array(constructor)?),
            other => return Err(DecodeError::UnknownConstructor(other)),
        })
    }

    fn described(&mut self) -> Result<DescribedRef<'a>, DecodeError> {
        let depth = self.inner_depth()?;
        let descriptor = self.descriptor_body()?;
        let (constructor, body) = self.skip()?.split_first().ok_or(DecodeError::Truncated)?;
        Ok(DescribedRef {
            descriptor,
            constructor: *constructor,
            body,
            depth,
        })
    }

    fn descriptor_body(&mut self) -> Result<DescriptorRef<'a>, DecodeError> {
        let constructor = self.byte()?;
        match constructor {
            0x44 => Ok(DescriptorRef::Code(0)),
            0x53 => Ok(DescriptorRef::Code(self.byte()?.into())),
            0x80 => Ok(DescriptorRef::Code(u64::from_be_bytes(self.fixed()?))),
            0xa3 | 0xb3 => Ok(DescriptorRef::Name(text(self.variable(constructor)?)?)),
            _ => Err(DecodeError::InvalidValue("descriptor")),
        }
    }

    fn array(&mut self, constructor: u8) -> Result<ArrayRef<'a>, DecodeError> {
        let depth = self.inner_depth()?;
        let (count, body) = self.compound(constructor)?;
        let mut inner = Decoder { rest: body, depth };
        let mut element = inner.byte()?;
        let mut descriptor = None;
        if element == 0x00 {
            descriptor = Some(inner.descriptor_body()?);
            element = inner.byte()?;
            if element == 0x00 {
                return Err(DecodeError::TooDeep);
            }
        }
        // The elements of an array may take no bytes at all, as those of an array of nulls. Nobody
        // has a use for such an array, and its count could be anything.
        check_count(count, inner.rest)?;
        Ok(ArrayRef {
            count,
            descriptor,
            element,
            body: inner.rest,
            depth,
        })
    }

    /// Count and contents of a list, map or array whose constructor was read.
    fn compound(&mut self, constructor: u8) -> Result<(u32, &'a [u8]), DecodeError> {
        let (count, body) = if constructor & 0x10 == 0 {
            let size = usize::from(self.byte()?);
            let (count, body) = self
                .take(size)?
                .split_first()
                .ok_or(DecodeError::Truncated)?;
            (u32::from(*count), body)
        } else {
            let size = self.length32()?;
            let (count, body) = self
                .take(size)?
                .split_first_chunk::<4>()
                .ok_or(DecodeError::Truncated)?;
            (u32::from_be_bytes(*count), body)
        };
        check_count(count, body)?;
        Ok((count, body))
    }

    pub(super) fn skip_body(&mut self, constructor: u8) -> Result<(), DecodeError> {
        let size = match constructor >> 4 {
            0x4 => 0,
            0x5 => 1,
            0x6 => 2,
            0x7 => 4,
            0x8 => 8,
            0x9 => 16,
            0xa | 0xc | 0xe => usize::from(self.byte()?),
            0xb | 0xd | 0xf => self.length32()?,
            _ => return Err(DecodeError::UnknownConstructor(constructor)),
        };
        self.take(size)?;
        Ok(())
    }

    fn variable(&mut self, constructor: u8) -> Result<&'a [u8], DecodeError> {
        let size = if constructor & 0x10 == 0 {
            usize::from(self.byte()?)
        } else {
            self.length32()?
        };
        self.take(size)
    }

    pub(super) fn inner_depth(&self) -> Result<u8, DecodeError> {
        if self.depth >= DEPTH_MAX {
            return Err(DecodeError::TooDeep);
        }
        Ok(self.depth + 1)
    }

    fn length32(&mut self) -> Result<usize, DecodeError> {
        usize::try_from(u32::from_be_bytes(self.fixed()?)).map_err(|_| DecodeError::Truncated)
    }

    fn byte(&mut self) -> Result<u8, DecodeError> {
        let (first, rest) = self.rest.split_first().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*first)
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    fn take(&mut self, size: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self
            .rest
            .split_at_checked(size)
            .ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }
}

/// Every value takes at least one byte, so a higher count is a lie that must not drive a loop.
fn check_count(count: u32, body: &[u8]) -> Result<(), DecodeError> {
    match usize::try_from(count) {
        Ok(fits) if fits <= body.len() => Ok(()),
        _ => Err(DecodeError::CountTooLarge(count)),
    }
}

fn text(bytes: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(bytes).map_err(|_| DecodeError::InvalidUtf8)
}

impl<'a> ValueRef<'a> {
    /// True for `null`.
    #[must_use]
    pub const fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// The text of a string or a symbol.
    #[must_use]
    pub const fn as_str(&self) -> Option<&'a str> {
        match *self {
            Self::String(text) | Self::Symbol(text) => Some(text),
            _ => None,
        }
    }

    /// The bytes of a binary, a string or a symbol.
    #[must_use]
    pub const fn as_bytes(&self) -> Option<&'a [u8]> {
        match *self {
            Self::Binary(bytes) => Some(bytes),
            Self::String(text) | Self::Symbol(text) => Some(text.as_bytes()),
            _ => None,
        }
    }

    /// A boolean's value.
    #[must_use]
    pub const fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(flag) => Some(flag),
            _ => None,
        }
    }

    /// The number in any integer type, if it is not negative.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::ULong(n) => Some(n),
            _ => u64::try_from(self.as_i64()?).ok(),
        }
    }

    /// The number in any integer type, if it fits.
    #[must_use]
    pub fn as_i64(&self) -> Option<i64> {
        match *self {
            Self::UByte(n) => Some(n.into()),
            Self::UShort(n) => Some(n.into()),
            Self::UInt(n) => Some(n.into()),
            Self::ULong(n) => i64::try_from(n).ok(),
            Self::Byte(n) => Some(n.into()),
            Self::Short(n) => Some(n.into()),
            Self::Int(n) => Some(n.into()),
            Self::Long(n) => Some(n),
            _ => None,
        }
    }

    /// A timestamp's milliseconds since the Unix epoch.
    #[must_use]
    pub const fn as_timestamp(&self) -> Option<i64> {
        match *self {
            Self::Timestamp(ms) => Some(ms),
            _ => None,
        }
    }

    /// The value with everything that it holds, copied.
    ///
    /// # Errors
    /// [`DecodeError`] when something inside cannot be decoded, or when there are more than
    /// [`OWNED_VALUES_MAX`] values inside.
    pub fn to_value(&self) -> Result<Value, DecodeError> {
        let mut budget = OWNED_VALUES_MAX;
        self.owned(&mut budget)
    }

    // Recursion is bounded: each level of `ListRef` and its like carries its depth.
    pub(super) fn owned(&self, budget: &mut u32) -> Result<Value, DecodeError> {
        *budget = budget.checked_sub(1).ok_or(DecodeError::TooManyValues)?;
        Ok(match *self {
            Self::Null => Value::Null,
            Self::Bool(v) => Value::Bool(v),
            Self::UByte(v) => Value::UByte(v),
            Self::UShort(v) => Value::UShort(v),
            Self::UInt(v) => Value::UInt(v),
            Self::ULong(v) => Value::ULong(v),
            Self::Byte(v) => Value::Byte(v),
            Self::Short(v) => Value::Short(v),
            Self::Int(v) => Value::Int(v),
            Self::Long(v) => Value::Long(v),
            Self::Float(v) => Value::Float(v),
            Self::Double(v) => Value::Double(v),
            Self::Decimal32(v) => Value::Decimal32(v),
            Self::Decimal64(v) => Value::Decimal64(v),
            Self::Decimal128(v) => Value::Decimal128(v),
            Self::Char(v) => Value::Char(v),
            Self::Timestamp(v) => Value::Timestamp(v),
            Self::Uuid(v) => Value::Uuid(v),
            Self::Binary(v) => Value::Binary(v.to_vec()),
            Self::String(v) => Value::String(v.to_owned()),
            Self::Symbol(v) => Value::Symbol(Symbol::from(v.to_owned())),
            Self::List(list) => {
                let mut values = Vec::new();
                for value in list.iter() {
                    values.push(value?.owned(budget)?);
                }
                Value::List(values)
            }
            Self::Map(map) => Value::Map(map.owned(budget)?),
            Self::Array(array) => {
                let mut values = Vec::new();
                for value in array.iter() {
                    values.push(value?.owned(budget)?);
                }
                let array = Array::new(values).map_err(|_| DecodeError::InvalidValue("array"))?;
                Value::Array(array)
            }
            Self::Described(described) => Value::Described(Box::new(Described {
                descriptor: described.descriptor.to_descriptor(),
                value: described.value()?.owned(budget)?,
            })),
        })
    }
}
