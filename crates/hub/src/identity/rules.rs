//! What a device's fields must be.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fieldpost_model::limits::STATUS_REASON_CHARS_MAX;
use zeroize::Zeroizing;

use super::device::{Authentication, AuthenticationSpec, DeviceSpec, SymmetricKeys, Thumbprints};
use crate::clock::Chance;
use crate::policies::random_key;
use crate::secrets::Secret;

/// Fewest and most bytes of a device's key, before base64 (Azure IoT Hub identity registry).
pub const KEY_BYTES_RANGE: std::ops::RangeInclusive<usize> = 16..=64;

/// Hexadecimal digits of a thumbprint: SHA-1 or SHA-256.
pub const THUMBPRINT_DIGITS: [usize; 2] = [40, 64];

/// Longest scope of a device in characters; a bound of our own.
pub const SCOPE_CHARS_MAX: usize = 1024;

/// Longest name of who looks after a module, in characters; a bound of our own.
pub const MANAGED_BY_CHARS_MAX: usize = 128;

/// Most parent scopes of a device; a bound of our own, above Azure's single parent.
pub const PARENT_SCOPES_MAX: usize = 16;

/// Which field of a device is not what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDevice {
    /// One key without the other.
    #[error("a device has two keys or, to have them made, none; the {missing} key is missing")]
    OneKey {
        /// Which key is missing.
        missing: &'static str,
    },
    /// A key is not base64.
    #[error("the {which} key is not base64")]
    KeyNotBase64 {
        /// Which key.
        which: &'static str,
    },
    /// A key is too short or too long.
    #[error(
        "a key has {} to {} bytes, the {which} key has {bytes}",
        KEY_BYTES_RANGE.start(),
        KEY_BYTES_RANGE.end()
    )]
    KeyLength {
        /// Which key.
        which: &'static str,
        /// Its length in bytes.
        bytes: usize,
    },
    /// A device with a certificate of its own has no thumbprint.
    #[error("a self-signed device needs a thumbprint")]
    NoThumbprint,
    /// A thumbprint is not 40 or 64 hexadecimal digits.
    #[error("the {which} thumbprint is not 40 or 64 hexadecimal digits")]
    Thumbprint {
        /// Which thumbprint.
        which: &'static str,
    },
    /// The status reason is too long.
    #[error(
        "a status reason has at most {STATUS_REASON_CHARS_MAX} characters, this one has {chars}"
    )]
    StatusReason {
        /// Its length in characters.
        chars: usize,
    },
    /// A scope is too long.
    #[error("a scope has at most {SCOPE_CHARS_MAX} characters, this one has {chars}")]
    Scope {
        /// Its length in characters.
        chars: usize,
    },
    /// The name of who looks after a module is too long.
    #[error("managedBy has at most {MANAGED_BY_CHARS_MAX} characters, this one has {chars}")]
    ManagedBy {
        /// Its length in characters.
        chars: usize,
    },
    /// There are too many parent scopes.
    #[error("a device has at most {PARENT_SCOPES_MAX} parent scopes, this one has {count}")]
    ParentScopes {
        /// How many there are.
        count: usize,
    },
}

/// Checks who looks after a module.
pub(super) fn check_managed_by(managed_by: Option<&str>) -> Result<(), InvalidDevice> {
    let chars = managed_by.map_or(0, |text| text.chars().count());
    if chars > MANAGED_BY_CHARS_MAX {
        return Err(InvalidDevice::ManagedBy { chars });
    }
    Ok(())
}

/// Checks everything but the keys.
pub(super) fn check(spec: &DeviceSpec) -> Result<(), InvalidDevice> {
    let chars = |text: &Option<String>| text.as_ref().map_or(0, |text| text.chars().count());
    let reason = chars(&spec.status_reason);
    if reason > STATUS_REASON_CHARS_MAX {
        return Err(InvalidDevice::StatusReason { chars: reason });
    }
    let parents = spec.parent_scopes.iter().map(|scope| scope.chars().count());
    let longest = parents
        .chain([chars(&spec.device_scope)])
        .max()
        .unwrap_or(0);
    if longest > SCOPE_CHARS_MAX {
        return Err(InvalidDevice::Scope { chars: longest });
    }
    let count = spec.parent_scopes.len();
    if count > PARENT_SCOPES_MAX {
        return Err(InvalidDevice::ParentScopes { count });
    }
    Ok(())
}

/// The authentication that `spec` asks for, for a device that has `known` so far.
pub(super) fn authentication(
    spec: &AuthenticationSpec,
    known: Option<&Authentication>,
    chance: &dyn Chance,
) -> Result<Authentication, InvalidDevice> {
    let made_keys = || SymmetricKeys {
        primary: random_key(chance),
        secondary: random_key(chance),
    };
    match spec {
        AuthenticationSpec::Unchanged => Ok(match known {
            Some(known) => known.clone(),
            None => Authentication::Sas(made_keys()),
        }),
        AuthenticationSpec::Sas { primary, secondary } => {
            let given = |key: &Option<Secret>| -> Option<Secret> {
                key.clone().filter(|key| !key.expose().is_empty())
            };
            let keys = match (given(primary), given(secondary)) {
                (Some(primary), Some(secondary)) => SymmetricKeys {
                    primary: checked_key(primary, "primary")?,
                    secondary: checked_key(secondary, "secondary")?,
                },
                (None, None) => match known {
                    Some(Authentication::Sas(keys)) => keys.clone(),
                    _ => made_keys(),
                },
                (Some(_), None) => {
                    return Err(InvalidDevice::OneKey {
                        missing: "secondary",
                    });
                }
                (None, Some(_)) => return Err(InvalidDevice::OneKey { missing: "primary" }),
            };
            Ok(Authentication::Sas(keys))
        }
        AuthenticationSpec::SelfSigned(given) => {
            let thumbprints = Thumbprints {
                primary: checked_thumbprint(given.primary.as_deref(), "primary")?,
                secondary: checked_thumbprint(given.secondary.as_deref(), "secondary")?,
            };
            if thumbprints == Thumbprints::default() {
                return Err(InvalidDevice::NoThumbprint);
            }
            Ok(Authentication::SelfSigned(thumbprints))
        }
        AuthenticationSpec::CertificateAuthority => Ok(Authentication::CertificateAuthority),
        AuthenticationSpec::None => Ok(Authentication::None),
    }
}

fn checked_key(key: Secret, which: &'static str) -> Result<Secret, InvalidDevice> {
    let decoded = STANDARD
        .decode(key.expose())
        .map_err(|_| InvalidDevice::KeyNotBase64 { which })?;
    let bytes = Zeroizing::new(decoded).len();
    if !KEY_BYTES_RANGE.contains(&bytes) {
        return Err(InvalidDevice::KeyLength { which, bytes });
    }
    Ok(key)
}

fn checked_thumbprint(
    text: Option<&str>,
    which: &'static str,
) -> Result<Option<String>, InvalidDevice> {
    match text {
        None | Some("") => Ok(None),
        Some(text)
            if THUMBPRINT_DIGITS.contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_hexdigit()) =>
        {
            Ok(Some(text.to_owned()))
        }
        Some(_) => Err(InvalidDevice::Thumbprint { which }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SeededChance;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[test]
    fn keys_are_two_given_ones_or_two_made_ones() {
        let known = Authentication::Sas(SymmetricKeys {
            primary: Secret::new("known"),
            secondary: Secret::new("known too"),
        });
        // What the primary key is: the one given, or one that was made where `None` is expected.
        let check = |primary: Option<&str>,
                     secondary: Option<&str>,
                     expected: Result<Option<&str>, InvalidDevice>| {
            let spec = AuthenticationSpec::Sas {
                primary: primary.map(Secret::new),
                secondary: secondary.map(Secret::new),
            };
            let chance = SeededChance::new(1);
            match (authentication(&spec, None, &chance), expected) {
                (Ok(Authentication::Sas(keys)), Ok(Some(given))) => {
                    assert_eq!(keys.primary.expose(), given);
                }
                (Ok(Authentication::Sas(keys)), Ok(None)) => {
                    assert_ne!(keys.primary, keys.secondary);
                    assert_eq!(STANDARD.decode(keys.primary.expose()).unwrap().len(), 32);
                    let kept = authentication(&spec, Some(&known), &chance).unwrap();
                    assert_eq!(kept, known);
                }
                (outcome, expected) => assert_eq!(outcome.err(), expected.err(), "{spec:?}"),
            }
        };
        use InvalidDevice as E;
        let of_bytes = |bytes: usize| STANDARD.encode(vec![1; bytes]);
        check(Some(KEY), Some(&of_bytes(16)), Ok(Some(KEY)));
        check(Some(KEY), Some(&of_bytes(64)), Ok(Some(KEY)));
        check(None, None, Ok(None));
        check(Some(""), Some(""), Ok(None));
        check(Some(""), None, Ok(None));
        let missing = |missing| Err(E::OneKey { missing });
        check(Some(KEY), None, missing("secondary"));
        check(Some(""), Some(KEY), missing("primary"));
        let which = "secondary";
        check(
            Some(KEY),
            Some("no base64!"),
            Err(E::KeyNotBase64 { which }),
        );
        let length = |bytes| Err(E::KeyLength { which, bytes });
        check(Some(KEY), Some(&of_bytes(15)), length(15));
        check(Some(KEY), Some(&of_bytes(65)), length(65));
    }

    #[test]
    fn what_is_not_said_of_authentication_stays_as_it_is() {
        let chance = SeededChance::new(1);
        let own = Authentication::SelfSigned(Thumbprints {
            primary: Some("ab".repeat(20)),
            secondary: None,
        });
        let unchanged = AuthenticationSpec::Unchanged;
        assert_eq!(authentication(&unchanged, Some(&own), &chance), Ok(own));
        let made = authentication(&unchanged, None, &chance);
        assert!(matches!(made, Ok(Authentication::Sas(_))), "{made:?}");
    }

    #[test]
    fn thumbprints_are_hexadecimal_of_a_known_length() {
        let check = |primary: Option<&str>, secondary: Option<&str>, expected| {
            let spec = AuthenticationSpec::SelfSigned(Thumbprints {
                primary: primary.map(str::to_owned),
                secondary: secondary.map(str::to_owned),
            });
            let outcome = authentication(&spec, None, &SeededChance::new(1)).map(|_| ());
            assert_eq!(outcome, expected, "{spec:?}");
        };
        let sha1 = "aB".repeat(20);
        let sha256 = "0f".repeat(32);
        check(Some(&sha1), None, Ok(()));
        check(None, Some(&sha256), Ok(()));
        check(Some(&sha1), Some(&sha256), Ok(()));
        check(None, None, Err(InvalidDevice::NoThumbprint));
        check(Some(""), None, Err(InvalidDevice::NoThumbprint));
        let wrong = |which| Err(InvalidDevice::Thumbprint { which });
        check(Some(&sha1[1..]), None, wrong("primary"));
        check(Some(&sha1), Some(&"g".repeat(40)), wrong("secondary"));
    }

    #[test]
    fn texts_are_bounded_in_characters() {
        let check = |change: &dyn Fn(&mut DeviceSpec), expected| {
            let mut spec = DeviceSpec::new("d".parse().unwrap());
            change(&mut spec);
            assert_eq!(check(&spec), expected, "{spec:?}");
        };
        check(&|spec| spec.status_reason = Some("é".repeat(128)), Ok(()));
        check(
            &|spec| spec.status_reason = Some("x".repeat(129)),
            Err(InvalidDevice::StatusReason { chars: 129 }),
        );
        check(
            &|spec| spec.parent_scopes = vec!["x".repeat(1025)],
            Err(InvalidDevice::Scope { chars: 1025 }),
        );
        check(
            &|spec| spec.parent_scopes = vec![String::new(); 17],
            Err(InvalidDevice::ParentScopes { count: 17 }),
        );
    }
}
