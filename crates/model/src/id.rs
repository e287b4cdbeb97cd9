//! Device and module ids.

use std::fmt;
use std::sync::Arc;

use crate::limits::ID_LENGTH_MAX;

/// The id of a device: 1 to 128 ASCII characters, case-sensitive.
///
/// Letters, digits and `- : . + % _ # * ? ! ( ) , = @ ; $ '` are allowed (Azure IoT Hub identity
/// registry). Cloning is cheap.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(Arc<str>);

/// The id of a module of a device; the same rule as for [`DeviceId`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModuleId(Arc<str>);

/// Who a device-side connection speaks for: a device, or one of its modules.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The device.
    pub device: DeviceId,
    /// The module, when the connection is a module's own.
    pub module: Option<ModuleId>,
}

/// Why a text is not a device or module id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// The text is empty.
    #[error("an id must not be empty")]
    Empty,
    /// The text is longer than [`ID_LENGTH_MAX`] characters.
    #[error("an id has at most {ID_LENGTH_MAX} characters, this one has {length}")]
    TooLong {
        /// Length of the text in characters.
        length: usize,
    },
    /// The text holds a character that ids must not have.
    #[error("an id must not contain {character:?}")]
    Character {
        /// The first such character.
        character: char,
    },
}

macro_rules! id_type {
    ($name:ident) => {
        impl $name {
            /// Checks `text` and makes an id of it.
            pub fn new(text: &str) -> Result<Self, InvalidId> {
                check(text)?;
                Ok(Self(text.into()))
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::new(text)
            }
        }
    };
}

id_type!(DeviceId);
id_type!(ModuleId);

impl Identity {
    /// The identity of a device itself.
    #[must_use]
    pub fn of_device(device: DeviceId) -> Self {
        Self {
            device,
            module: None,
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.module {
            None => write!(f, "{}", self.device),
            Some(module) => write!(f, "{}/{}", self.device, module),
        }
    }
}

fn check(text: &str) -> Result<(), InvalidId> {
    if text.is_empty() {
        return Err(InvalidId::Empty);
    }
    if let Some(character) = text.chars().find(|c| !is_id_character(*c)) {
        return Err(InvalidId::Character { character });
    }
    // All characters are ASCII here, so bytes are characters.
    if text.len() > ID_LENGTH_MAX {
        return Err(InvalidId::TooLong { length: text.len() });
    }
    Ok(())
}

fn is_id_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-:.+%_#*?!(),=@;$'".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_the_documented_alphabet_are_taken_and_others_refused() {
        let check = |text: &str, expected: Result<(), InvalidId>| {
            assert_eq!(DeviceId::new(text).map(|_| ()), expected, "{text:?}");
        };
        check("dev1", Ok(()));
        check("A-:.+%_#*?!(),=@;$'9", Ok(()));
        check(&"x".repeat(128), Ok(()));
        check(&"x".repeat(129), Err(InvalidId::TooLong { length: 129 }));
        check("", Err(InvalidId::Empty));
        check("a/b", Err(InvalidId::Character { character: '/' }));
        check("a b", Err(InvalidId::Character { character: ' ' }));
        check(
            "\u{e9}",
            Err(InvalidId::Character {
                character: '\u{e9}',
            }),
        );
        check("a&b", Err(InvalidId::Character { character: '&' }));
    }
}
