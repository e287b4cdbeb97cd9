//! How a field of a composite type is read and written.

use crate::error::{DecodeError, Error};
use crate::value::{Encoder, ListIter, ListRef, Map, Symbol, Value, ValueRef};

/// How many symbols one field may hold: far more than any peer has capabilities or locales.
const SYMBOLS_MAX: usize = 256;

/// A type that a field can have.
pub(crate) trait Field: Sized {
    fn read(value: ValueRef<'_>) -> Result<Self, DecodeError>;
    fn write(&self, e: &mut Encoder<'_>);
}

/// The fields of a list in order. Missing trailing fields read as null; surplus ones are ignored.
pub(crate) struct Fields<'a> {
    values: ListIter<'a>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(list: ListRef<'a>) -> Self {
        Self {
            values: list.iter(),
        }
    }

    pub(crate) fn optional<T: Field>(&mut self) -> Result<Option<T>, DecodeError> {
        match self.values.next().transpose()? {
            None | Some(ValueRef::Null) => Ok(None),
            Some(value) => T::read(value).map(Some),
        }
    }

    pub(crate) fn required<T: Field>(&mut self, name: &'static str) -> Result<T, DecodeError> {
        self.optional()?.ok_or(DecodeError::MissingField(name))
    }

    /// A field that may hold one value or an array of them. A list is accepted too.
    pub(crate) fn many(&mut self) -> Result<Vec<Symbol>, DecodeError> {
        let mut all = Vec::new();
        let mut add = |value: ValueRef<'_>| {
            if all.len() >= SYMBOLS_MAX {
                return Err(DecodeError::TooManyValues);
            }
            all.push(Symbol::read(value)?);
            Ok(())
        };
        match self.values.next().transpose()? {
            None | Some(ValueRef::Null) => {}
            Some(ValueRef::Array(array)) => {
                for value in array.iter() {
                    add(value?)?;
                }
            }
            Some(ValueRef::List(list)) => {
                for value in list.iter() {
                    add(value?)?;
                }
            }
            Some(one) => add(one)?,
        }
        Ok(all)
    }
}

/// Writes a field that may be absent.
pub(crate) fn optional<T: Field>(e: &mut Encoder<'_>, field: &Option<T>) {
    match field {
        Some(value) => value.write(e),
        None => e.null(),
    }
}

/// Defines a composite type: the struct, its default, and its codec. Every field is written, with
/// an explicit null where there is nothing to say: some peers index fields by position.
///
/// Field kinds: `required`, `optional`, `default` (with the value that an absent field means) and
/// `many` (symbols; none is null).
macro_rules! composite {
    ($(#[$meta:meta])* $name:ident = $code:literal {
        $($(#[$field_meta:meta])* $field:ident: $kind:ident $type:ty $(= $default:expr)?,)*
    }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: composite!(@type $kind $type),)*
        }

        impl $name {
            /// Descriptor of this type.
            pub const CODE: u64 = $code;

            /// Writes the value, every field included.
            pub fn encode(&self, e: &mut $crate::value::Encoder<'_>) {
                e.described(Self::CODE, |e| e.list(|e| {
                    $(composite!(@write $kind e, self.$field);)*
                }));
            }

            /// Reads the fields from a list whose descriptor was read.
            ///
            /// # Errors
            /// [`DecodeError`](crate::DecodeError) when a field is missing, of another type or
            /// out of its bounds.
            pub fn decode(
                list: $crate::value::ListRef<'_>,
            ) -> Result<Self, $crate::error::DecodeError> {
                let mut fields = $crate::performative::field::Fields::new(list);
                Ok(Self {
                    $($field: composite!(@read $kind fields, $field $(, $default)?),)*
                })
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: composite!(@default $kind $($default)?),)* }
            }
        }
    };
    (@type optional $type:ty) => { Option<$type> };
    (@type many $type:ty) => { Vec<$type> };
    (@type $kind:ident $type:ty) => { $type };
    (@write optional $e:ident, $self:ident.$field:ident) => {
        $crate::performative::field::optional($e, &$self.$field)
    };
    (@write many $e:ident, $self:ident.$field:ident) => {
        if $self.$field.is_empty() { $e.null() } else { $e.symbols(&$self.$field) }
    };
    (@write $kind:ident $e:ident, $self:ident.$field:ident) => {
        $crate::performative::field::Field::write(&$self.$field, $e)
    };
    (@read optional $fields:ident, $field:ident) => { $fields.optional()? };
    (@read many $fields:ident, $field:ident) => { $fields.many()? };
    (@read required $fields:ident, $field:ident) => { $fields.required(stringify!($field))? };
    (@read default $fields:ident, $field:ident, $default:expr) => {
        $fields.optional()?.unwrap_or($default)
    };
    (@default default $default:expr) => { $default };
    (@default $kind:ident) => { Default::default() };
}
pub(crate) use composite;

impl Field for bool {
    fn read(value: ValueRef<'_>) -> Result<Self, DecodeError> {
        value.as_bool().ok_or(DecodeError::WrongType("boolean"))
    }

    fn write(&self, e: &mut Encoder<'_>) {
        e.bool(*self);
    }
}

/// Unsigned fields accept every integer type that holds a fitting number: not every peer is
/// strict about the width it writes.
macro_rules! unsigned {
    ($($type:ty: $write:ident),*) => {$(
        impl Field for $type {
            fn read(value: ValueRef<'_>) -> Result<Self, DecodeError> {
                value
                    .as_u64()
                    .and_then(|n| n.try_into().ok())
                    .ok_or(DecodeError::WrongType(stringify!($write)))
            }

            fn write(&self, e: &mut Encoder<'_>) {
                e.$write(*self);
            }
        }
    )*};
}
unsigned!(u8: ubyte, u16: ushort, u32: uint, u64: ulong);

impl Field for String {
    fn read(value: ValueRef<'_>) -> Result<Self, DecodeError> {
        value
            .as_str()
            .map(str::to_owned)
            .ok_or(DecodeError::WrongType("string"))
    }

    fn write(&self, e: &mut Encoder<'_>) {
        e.string(self);
    }
}

impl Field for Symbol {
    fn read(value: ValueRef<'_>) -> Result<Self, DecodeError> {
        value
            .as_str()
            .map(|name| Self::from(name.to_owned()))
            .ok_or(DecodeError::WrongType("symbol"))
    }

    fn write(&self, e: &mut Encoder<'_>) {
        e.symbol(self.as_str());
    }
}

impl Field for Map {
    fn read(value: ValueRef<'_>) -> Result<Self, DecodeError> {
        match value {
            ValueRef::Map(map) => map.to_map(),
            _ => Err(DecodeError::WrongType("map")),
        }
    }

    fn write(&self, e: &mut Encoder<'_>) {
        e.map_value(self);
    }
}

impl Field for Value {
    fn read(value: ValueRef<'_>) -> Result<Self, DecodeError> {
        value.to_value()
    }

    fn write(&self, e: &mut Encoder<'_>) {
        e.value(self);
    }
}

impl Field for Error {
    fn read(value: ValueRef<'_>) -> Result<Self, DecodeError> {
        match super::described_list(value)? {
            (Self::CODE, list) => Self::decode(list),
            (code, _) => Err(DecodeError::UnknownDescriptor(code)),
        }
    }

    fn write(&self, e: &mut Encoder<'_>) {
        self.encode(e);
    }
}
