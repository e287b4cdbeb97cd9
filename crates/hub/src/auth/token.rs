//! Shared access signature tokens as text.

use std::borrow::Cow;
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use fieldpost_model::Timestamp;
use fieldpost_model::limits::TOKEN_CLOCK_SKEW;
use percent_encoding::percent_decode_str;
use ring::hmac;

use crate::secrets::Secret;

/// Longest token that is looked at, in bytes. Device ids, host and signature fit many times over.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// A token, taken apart. Nothing in it is verified yet.
///
/// `SharedAccessSignature sr={resource}&sig={signature}&se={expiry}[&skn={policy}]`, fields in any
/// order (Azure IoT Hub: control access with shared access signatures).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SasToken<'a> {
    /// `sr` exactly as it stands in the token. This text is signed, so it is never decoded and
    /// encoded again: clients differ in what they escape and in the case of the escapes.
    pub resource: &'a str,
    /// The name of the policy, when it is a policy's token.
    pub policy: Option<Cow<'a, str>>,
    /// When it ends.
    pub expires: Timestamp,
    expiry_text: &'a str,
    signature: [u8; 32],
}

/// Why a text is not a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedSas {
    /// Longer than [`TOKEN_BYTES_MAX`].
    #[error("longer than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    /// The leading word is missing.
    #[error("does not start with SharedAccessSignature")]
    Prefix,
    /// A part between two `&` is not `name=value`.
    #[error("a field is not name=value")]
    Field,
    /// A field stands in it twice.
    #[error("the field {name} stands twice")]
    Repeated {
        /// Its name.
        name: &'static str,
    },
    /// A field is missing or empty.
    #[error("the field {name} is missing")]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// `se` is not a number of seconds.
    #[error("se is not a number of seconds")]
    Expiry,
    /// `sig` is not the base64 of 32 bytes.
    #[error("sig is not the base64 of a SHA-256 signature")]
    Signature,
    /// `skn` is not text.
    #[error("skn is not text")]
    Policy,
}

/// Takes a token apart. Total: any text gives a token or an error.
///
/// # Errors
/// When the text is not of the form. Fields of other names are passed over.
pub fn parse_sas(text: &str) -> Result<SasToken<'_>, MalformedSas> {
    if text.len() > TOKEN_BYTES_MAX {
        return Err(MalformedSas::TooLong);
    }
    let fields = text
        .strip_prefix("SharedAccessSignature ")
        .ok_or(MalformedSas::Prefix)?;
    let [mut sr, mut sig, mut se, mut skn] = [None; 4];
    for field in fields.trim_matches(' ').split('&') {
        let (name, value) = field.split_once('=').ok_or(MalformedSas::Field)?;
        let (slot, name) = match name {
            "sr" => (&mut sr, "sr"),
            "sig" => (&mut sig, "sig"),
            "se" => (&mut se, "se"),
            "skn" => (&mut skn, "skn"),
            _ => continue,
        };
        if slot.replace(value).is_some() {
            return Err(MalformedSas::Repeated { name });
        }
    }
    let required = |value: Option<&'_ str>, name| match value {
        None | Some("") => Err(MalformedSas::Missing { name }),
        Some(_) => Ok(()),
    };
    required(sr, "sr")?;
    required(sig, "sig")?;
    required(se, "se")?;
    let expiry_text = se.unwrap_or_default();
    Ok(SasToken {
        resource: sr.unwrap_or_default(),
        policy: match skn.unwrap_or_default() {
            // The HTTP transport of the C SDK writes `&skn=` for a device's own key.
            "" => None,
            name => Some(
                percent_decode_str(name)
                    .decode_utf8()
                    .map_err(|_| MalformedSas::Policy)?,
            ),
        },
        expires: expiry(expiry_text)?,
        expiry_text,
        signature: signature(sig.unwrap_or_default())?,
    })
}

impl SasToken<'_> {
    /// Whether the token has ended at `now`, allowing for clocks that differ.
    pub(crate) fn is_expired(&self, now: Timestamp) -> bool {
        self.expires.saturating_add(TOKEN_CLOCK_SKEW) < now
    }

    /// Whether the token was signed with the bytes behind `key`, which is base64. In constant time.
    pub(crate) fn is_signed_by_decoded(&self, key: &Secret) -> bool {
        BASE64
            .decode(key.expose())
            .is_ok_and(|key| self.is_signed_by(&zeroize::Zeroizing::new(key)))
    }

    /// Whether the token was signed with the text `key` itself, as Event Hubs clients do. In
    /// constant time.
    pub(crate) fn is_signed_by_text(&self, key: &Secret) -> bool {
        self.is_signed_by(key.expose().as_bytes())
    }

    fn is_signed_by(&self, key: &[u8]) -> bool {
        // An empty key would let anyone sign.
        if key.is_empty() {
            return false;
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        let mut signed = String::with_capacity(self.resource.len() + 1 + self.expiry_text.len());
        signed.push_str(self.resource);
        signed.push('\n');
        signed.push_str(self.expiry_text);
        hmac::verify(&key, signed.as_bytes(), &self.signature).is_ok()
    }
}

/// Padding is sometimes lost on the way through URLs.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

fn expiry(text: &str) -> Result<Timestamp, MalformedSas> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(MalformedSas::Expiry);
    }
    // A number beyond all times means "never ends", which is what its writer wanted.
    let seconds = text.parse().unwrap_or(u64::MAX);
    Ok(Timestamp::UNIX_EPOCH.saturating_add(Duration::from_secs(seconds)))
}

/// A raw `+` means plus and not space.
fn signature(text: &str) -> Result<[u8; 32], MalformedSas> {
    let decoded: Vec<u8> = percent_decode_str(text).collect();
    BASE64
        .decode(decoded)
        .ok()
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(MalformedSas::Signature)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEVICE_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const POLICY_KEY: &str = "MDEyMzQ1Njc4OWFiY2RlZg==";

    #[test]
    fn signatures_of_the_sdks_are_verified() {
        let check = |sr: &str, sig: &str, se: &str| {
            for text in [
                format!("SharedAccessSignature sr={sr}&sig={sig}&se={se}"),
                format!("SharedAccessSignature sr={sr}&sig={sig}&skn=&se={se}"),
                format!("SharedAccessSignature sig={sig}&se={se}&sr={sr}"),
                format!(
                    "SharedAccessSignature se={se}&sr={sr}&sig={}",
                    sig.replace("%2B", "%2b")
                        .replace("%3D", "=")
                        .replace("%2F", "/")
                ),
                format!(
                    "SharedAccessSignature sr={sr}&se={se}&sig={}",
                    sig.replace("%2B", "+")
                ),
            ] {
                let token = parse_sas(&text).unwrap();
                assert!(
                    token.is_signed_by_decoded(&Secret::new(DEVICE_KEY)),
                    "{text}"
                );
                assert!(!token.is_signed_by_text(&Secret::new(DEVICE_KEY)), "{text}");
                assert!(
                    !token.is_signed_by_decoded(&Secret::new(POLICY_KEY)),
                    "{text}"
                );
                assert_eq!(token.resource, sr);
                assert_eq!(token.policy, None);
                assert_eq!(token.expires.as_millis(), se.parse::<i64>().unwrap() * 1000);
            }
            let tampered = [
                format!("SharedAccessSignature sr={sr}&sig={sig}&se={se}0"),
                format!("SharedAccessSignature sr={sr}x&sig={sig}&se={se}"),
                format!("SharedAccessSignature sr={sr}&sig=A{}&se={se}", &sig[1..]),
            ];
            for text in tampered {
                let verified = parse_sas(&text)
                    .is_ok_and(|token| token.is_signed_by_decoded(&Secret::new(DEVICE_KEY)));
                assert!(!verified, "{text}");
            }
        };
        check(
            "127.77.0.5%2Fdevices%2Fdev1",
            "tIRym659uFU9YW9yz11AYpYBjLkVJdlngPDJueD7scI%3D",
            "1795379478",
        );
        check(
            "hub.localhost%2Fdevices%2Fdev1",
            "Z%2Bu%2BnTE%2FeTkyLU5M1f46%2FeddOjXPbX0gv%2Bj9OGgOlo0%3D",
            "1893456000",
        );
        check(
            "hub.localhost%2fdevices%2fdev1",
            "IqerCRjo0%2B9cZBwy4hFLwpDKx7ZdYKZAHgQZ0saB9EY%3D",
            "1893456000",
        );
        check(
            "hub.localhost/devices/dev1",
            "1MTPb7siSymUMqgk%2BpieU%2Bs1iQ%2B0zvOFXEOdi8youCA%3D",
            "1893456000",
        );
        check(
            "hub.localhost%2Fdevices%2Fdev1%2Fmodules%2Fmod1",
            "jphz4y2ERftuVzajNQOYy7NrTQEbTvnkGb1oXKi5VGc%3D",
            "1893456000",
        );
        check(
            "hub.localhost",
            "1EbjhMc85lbZxQuJ5gXwPYDVdhaYZRT0fxClgFKForM%3D",
            "1893456000",
        );
    }

    #[test]
    fn policy_keys_sign_as_bytes_and_as_text() {
        let check = |sr: &str, sig: &str, as_text: bool| {
            let text = format!("SharedAccessSignature sr={sr}&sig={sig}&se=1900000000&skn=service");
            let token = parse_sas(&text).unwrap();
            let key = Secret::new(POLICY_KEY);
            assert_eq!(token.is_signed_by_text(&key), as_text, "{sr}");
            assert_eq!(token.is_signed_by_decoded(&key), !as_text, "{sr}");
            assert_eq!(token.policy.as_deref(), Some("service"));
        };
        check(
            "hub1.example.test",
            "q3PvgzgaE0wg1KCIUHUb2ieOySETbAnjrZghf7lkEKs=",
            false,
        );
        check(
            "sb%3A%2F%2Fhub1.example.test%2Fhub1%2Fconsumergroups%2F%24Default",
            "n/4Bp4MYmo2HWczTBTjjTGQkzeMrk4nLGXphghyo1i4=",
            true,
        );
        check(
            "sb%3a%2f%2fhub1.example.test%2fhub1",
            "PyBPmCSgZ0skB+OFaLI2K0gdyT5NI1R+UB0Dl09gtvU=",
            true,
        );
    }

    #[test]
    fn what_is_not_a_token_is_named() {
        let sig = "tIRym659uFU9YW9yz11AYpYBjLkVJdlngPDJueD7scI%3D";
        let check = |text: &str, expected: MalformedSas| {
            assert_eq!(parse_sas(text), Err(expected), "{text}");
        };
        use MalformedSas as E;
        check("", E::Prefix);
        check("sharedaccesssignature sr=a", E::Prefix);
        check(&format!("Bearer {sig}"), E::Prefix);
        check("SharedAccessSignature ", E::Field);
        check("SharedAccessSignature sr", E::Field);
        check("SharedAccessSignature sr=a", E::Missing { name: "sig" });
        let with = |rest: &str| format!("SharedAccessSignature sig={sig}&{rest}");
        check(&with("se=1"), E::Missing { name: "sr" });
        check(&with("sr=&se=1"), E::Missing { name: "sr" });
        check(&with("sr=a&sr=b&se=1"), E::Repeated { name: "sr" });
        check(&with("sr=a"), E::Missing { name: "se" });
        check(&with("sr=a&se=-1"), E::Expiry);
        check(&with("sr=a&se=1.5"), E::Expiry);
        check(&with("sr=a&se=1&skn=%ff"), E::Policy);
        check("SharedAccessSignature sr=a&se=1&sig=AAAA", E::Signature);
        check("SharedAccessSignature sr=a&se=1&sig=%20", E::Signature);
        check(&with(&format!("sr={}&se=1", "a".repeat(9000))), E::TooLong);
    }

    #[test]
    fn a_token_ends_five_minutes_after_its_expiry() {
        let text =
            "SharedAccessSignature sr=a&se=1000&sig=tIRym659uFU9YW9yz11AYpYBjLkVJdlngPDJueD7scI%3D";
        let token = parse_sas(text).unwrap();
        assert!(!token.is_expired(Timestamp::from_millis(1_300_000)));
        assert!(token.is_expired(Timestamp::from_millis(1_300_001)));
        let text = text.replace("1000", "99999999999999999999999");
        assert!(
            !parse_sas(&text)
                .unwrap()
                .is_expired(Timestamp::from_millis(i64::MAX))
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_token_or_an_error(text in ".{0,300}") {
            let _ = parse_sas(&text);
        }

        #[test]
        fn anything_behind_the_word_is_a_token_or_an_error(
            fields in prop::collection::vec(("(sr|sig|se|skn|x)?", "[=]{0,2}", "[a-zA-Z0-9%+/=é]{0,50}"), 0..7),
        ) {
            let fields: Vec<_> = fields.into_iter().map(|(a, b, c)| format!("{a}{b}{c}")).collect();
            let text = format!("SharedAccessSignature {}", fields.join("&"));
            if let Ok(token) = parse_sas(&text) {
                prop_assert!(!token.resource.is_empty());
                prop_assert!(!token.is_signed_by_text(&Secret::new("")));
                prop_assert!(!token.is_signed_by_decoded(&Secret::new("")));
            }
        }
    }
}
