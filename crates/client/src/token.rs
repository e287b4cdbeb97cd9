//! Shared access signatures as clients make them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fieldpost_model::Timestamp;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::hmac;

/// Everything but the characters that URI components may hold unescaped.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'!');

/// How a key becomes the secret of the signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyRule {
    /// Base64-decoded, as IoT Hub clients do. A key that is not base64 is used as text.
    Decoded,
    /// The text itself, as Event Hubs clients do.
    Text,
}

/// A token for `resource` that is good until `expiry`, signed with a device's key or, when `policy`
/// is given, with that policy's.
#[must_use]
pub fn sign(
    resource: &str,
    key: &str,
    rule: KeyRule,
    policy: Option<&str>,
    expiry: Timestamp,
) -> String {
    let resource = utf8_percent_encode(resource, COMPONENT).to_string();
    let expiry_s = expiry.as_millis().div_euclid(1000);
    let secret = match rule {
        KeyRule::Decoded => STANDARD
            .decode(key)
            .unwrap_or_else(|_| key.as_bytes().to_vec()),
        KeyRule::Text => key.as_bytes().to_vec(),
    };
    let signature = hmac::sign(
        &hmac::Key::new(hmac::HMAC_SHA256, &secret),
        format!("{resource}\n{expiry_s}").as_bytes(),
    );
    let signature = STANDARD.encode(signature);
    let signature = utf8_percent_encode(&signature, COMPONENT);
    let mut token = format!("SharedAccessSignature sr={resource}&sig={signature}&se={expiry_s}");
    if let Some(policy) = policy {
        token.push_str("&skn=");
        token.push_str(policy);
    }
    token
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_those_of_the_sdks() {
        let expiry = Timestamp::from_millis(1_893_456_000_000);
        let key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
        assert_eq!(
            sign(
                "hub.localhost/devices/dev1",
                key,
                KeyRule::Decoded,
                None,
                expiry
            ),
            "SharedAccessSignature sr=hub.localhost%2Fdevices%2Fdev1\
             &sig=Z%2Bu%2BnTE%2FeTkyLU5M1f46%2FeddOjXPbX0gv%2Bj9OGgOlo0%3D&se=1893456000"
        );
    }
}
