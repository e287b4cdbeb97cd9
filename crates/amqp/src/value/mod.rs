//! AMQP 1.0 values: owned ([`Value`]), borrowed and lazy ([`ValueRef`]), and their encoder.
//!
//! Limits that hold for every decode, whatever the peer announces: values nest at most
//! [`DEPTH_MAX`] deep, an announced count is never above the bytes that are left, and nothing is
//! allocated from an announced size.

mod compound;
mod read;
mod write;

use std::borrow::{Borrow, Cow};
use std::fmt;

pub use compound::{
    ArrayIter, ArrayRef, DescribedRef, DescriptorRef, ListIter, ListRef, MapIter, MapRef,
};
pub use read::{Decoder, ValueRef};
pub use write::Encoder;
pub(crate) use write::{length32, overwrite};

/// How deep values may nest before decoding refuses them.
pub const DEPTH_MAX: u8 = 32;

/// How many values one owned [`Value`] may hold in all. An owned value takes up to 32 times the
/// bytes it had on the wire, so this bounds what one frame can make us allocate. No peer has more
/// than some dozens of properties, filters or capabilities to tell.
pub const OWNED_VALUES_MAX: u32 = 1_024;

/// An AMQP symbol: a name from a constrained domain. Compares with `str`.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Symbol(Cow<'static, str>);

impl Symbol {
    /// A symbol that costs no allocation.
    #[must_use]
    pub const fn from_static(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }

    /// The symbol's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&'static str> for Symbol {
    fn from(name: &'static str) -> Self {
        Self::from_static(name)
    }
}

impl From<String> for Symbol {
    fn from(name: String) -> Self {
        Self(Cow::Owned(name))
    }
}

impl AsRef<str> for Symbol {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Symbol {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl PartialEq<str> for Symbol {
    fn eq(&self, other: &str) -> bool {
        self.0 == other
    }
}

impl PartialEq<&str> for Symbol {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, ":{}", self.0)
    }
}

/// Any AMQP value, owned.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Value {
    /// `null`
    #[default]
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
    Binary(Vec<u8>),
    /// `string`
    String(String),
    /// `symbol`
    Symbol(Symbol),
    /// `list`
    List(Vec<Value>),
    /// `map`
    Map(Map),
    /// `array`
    Array(Array),
    /// A described value
    Described(Box<Described>),
}

impl Value {
    /// The text of a string or a symbol.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            Self::Symbol(symbol) => Some(symbol.as_str()),
            _ => None,
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

    /// True for `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::String(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::String(text)
    }
}

impl From<Symbol> for Value {
    fn from(symbol: Symbol) -> Self {
        Self::Symbol(symbol)
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Bool(flag)
    }
}

impl From<i32> for Value {
    fn from(n: i32) -> Self {
        Self::Int(n)
    }
}

impl From<i64> for Value {
    fn from(n: i64) -> Self {
        Self::Long(n)
    }
}

/// An AMQP map, in the order of the wire.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Map(pub Vec<(Value, Value)>);

impl Map {
    /// An empty map.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds an entry with a symbol as key, as `fields` and annotations have them.
    #[must_use]
    pub fn with(mut self, key: impl Into<Symbol>, value: impl Into<Value>) -> Self {
        self.0.push((Value::Symbol(key.into()), value.into()));
        self
    }

    /// The value of the first key, string or symbol, that reads `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0
            .iter()
            .find_map(|(k, v)| (k.as_str() == Some(key)).then_some(v))
    }

    /// True when there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// An AMQP array: values of one type.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Array(Vec<Value>);

/// The values given for an array are of different types, or of a type that takes no bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an array holds values of one type, and no nulls")]
pub struct MixedArray;

impl Array {
    /// An array of these values.
    ///
    /// # Errors
    /// [`MixedArray`] unless all values have the same type (for described values: the same
    /// descriptor and the same type inside) and none is null.
    pub fn new(values: Vec<Value>) -> Result<Self, MixedArray> {
        if let Some(first) = values.first()
            && (!first.may_stand_in_array() || !values.iter().all(|v| v.same_type(first)))
        {
            return Err(MixedArray);
        }
        Ok(Self(values))
    }

    /// An array of strings.
    pub fn of_strings<T: Into<String>>(strings: impl IntoIterator<Item = T>) -> Self {
        Self(
            strings
                .into_iter()
                .map(|s| Value::String(s.into()))
                .collect(),
        )
    }

    /// The values.
    #[must_use]
    pub fn values(&self) -> &[Value] {
        &self.0
    }
}

impl Value {
    fn may_stand_in_array(&self) -> bool {
        match self {
            Self::Null => false,
            Self::Described(inner) => {
                inner.value.may_stand_in_array() && !matches!(inner.value, Self::Described(_))
            }
            _ => true,
        }
    }

    fn same_type(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Described(a), Self::Described(b)) => {
                a.descriptor == b.descriptor && a.value.same_type(&b.value)
            }
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

/// A value with the descriptor that tells what it stands for.
#[derive(Clone, Debug, PartialEq)]
pub struct Described {
    /// What the value stands for.
    pub descriptor: Descriptor,
    /// The value itself.
    pub value: Value,
}

/// The two forms of a descriptor that AMQP defines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// A number: domain id in the upper half, descriptor id in the lower.
    Code(u64),
    /// A symbolic name.
    Name(Symbol),
}
