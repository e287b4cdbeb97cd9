//! The SASL layer: its frames, and what the mechanisms carry (AMQP 1.0 part 5, section 5.3).

use crate::error::DecodeError;
use crate::performative::field::{Field, composite};
use crate::performative::type_code;
use crate::value::{Decoder, Encoder, Symbol, ValueRef};

/// Names of mechanisms.
pub mod mechanism {
    /// The identity comes from the TLS client certificate.
    pub const EXTERNAL: &str = "EXTERNAL";
    /// Like ANONYMOUS; says that claims-based security follows.
    pub const MSSBCBS: &str = "MSSBCBS";
    /// No identity in this layer.
    pub const ANONYMOUS: &str = "ANONYMOUS";
    /// Name and password.
    pub const PLAIN: &str = "PLAIN";
}

composite! {
    /// The server's list of mechanisms.
    SaslMechanisms = 0x40 {
        /// What the server offers, in order of preference.
        mechanisms: many Symbol,
    }
}

composite! {
    /// The client's choice.
    SaslInit = 0x41 {
        /// The mechanism.
        mechanism: required Symbol,
        /// What the mechanism starts with.
        initial_response: optional Secret,
        /// The host that the client wants to reach.
        hostname: optional String,
    }
}

composite! {
    /// How authentication ended.
    SaslOutcome = 0x44 {
        /// The result.
        code: required SaslCode,
    }
}

/// How authentication ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SaslCode {
    /// The client is who it claims to be.
    #[default]
    Ok,
    /// The credentials are wrong.
    Auth,
    /// A system error.
    Sys,
    /// A system error that will not go away by itself.
    SysPerm,
    /// A system error that may go away.
    SysTemp,
}

impl Field for SaslCode {
    fn read(value: ValueRef<'_>) -> Result<Self, DecodeError> {
        match u8::read(value)? {
            0 => Ok(Self::Ok),
            1 => Ok(Self::Auth),
            2 => Ok(Self::Sys),
            3 => Ok(Self::SysPerm),
            4 => Ok(Self::SysTemp),
            _ => Err(DecodeError::InvalidValue("sasl-code")),
        }
    }

    fn write(&self, e: &mut Encoder<'_>) {
        e.ubyte(match self {
            Self::Ok => 0,
            Self::Auth => 1,
            Self::Sys => 2,
            Self::SysPerm => 3,
            Self::SysTemp => 4,
        });
    }
}

/// Bytes that must not reach a log: their `Debug` form does not show them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

impl std::ops::Deref for Secret {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Field for Secret {
    fn read(value: ValueRef<'_>) -> Result<Self, DecodeError> {
        value
            .as_bytes()
            .map(|bytes| Self(bytes.to_vec()))
            .ok_or(DecodeError::WrongType("binary"))
    }

    fn write(&self, e: &mut Encoder<'_>) {
        e.binary(&self.0);
    }
}

/// The frames of the SASL layer that this engine speaks; no mechanism here needs a challenge.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant holds the type of its name")]
pub enum SaslFrame {
    Mechanisms(SaslMechanisms),
    Init(SaslInit),
    Outcome(SaslOutcome),
}

impl SaslFrame {
    /// Reads the body of a SASL frame.
    ///
    /// # Errors
    /// [`DecodeError`] when the body is none of the three frames.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder::new(body);
        let code = type_code(decoder.descriptor()?)?;
        let list = decoder.list()?;
        match code {
            SaslMechanisms::CODE => SaslMechanisms::decode(list).map(Self::Mechanisms),
            SaslInit::CODE => SaslInit::decode(list).map(Self::Init),
            SaslOutcome::CODE => SaslOutcome::decode(list).map(Self::Outcome),
            other => Err(DecodeError::UnknownDescriptor(other)),
        }
    }
}

/// What a PLAIN initial response carries (RFC 4616).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Plain<'a> {
    /// Identity to act as; usually empty.
    pub authzid: &'a str,
    /// Identity that the password belongs to.
    pub authcid: &'a str,
    /// The password. A secret.
    pub password: &'a str,
}

impl<'a> Plain<'a> {
    /// Takes an initial response apart; nothing when it has another form.
    #[must_use]
    pub fn parse(initial_response: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(initial_response).ok()?;
        let (authzid, rest) = text.split_once('\0')?;
        let (authcid, password) = rest.split_once('\0')?;
        (!password.contains('\0')).then_some(Self {
            authzid,
            authcid,
            password,
        })
    }

    /// The initial response with these parts.
    #[must_use]
    pub fn to_initial_response(&self) -> Vec<u8> {
        format!("{}\0{}\0{}", self.authzid, self.authcid, self.password).into_bytes()
    }
}

impl std::fmt::Debug for Plain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plain")
            .field("authzid", &self.authzid)
            .field("authcid", &self.authcid)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::frame::{FrameType, put_frame};

    fn frame(body: impl FnOnce(&mut Encoder<'_>)) -> BytesMut {
        let mut buffer = BytesMut::new();
        put_frame(&mut buffer, FrameType::Sasl, 0, body);
        buffer
    }

    /// Bytes as the hosted service sends them.
    #[test]
    fn mechanisms_as_the_hosted_service_writes_them() {
        let mechanisms = SaslMechanisms {
            mechanisms: ["EXTERNAL", "MSSBCBS", "ANONYMOUS", "PLAIN"]
                .map(Symbol::from)
                .to_vec(),
        };
        let expected = [
            b"\x00\x00\x00\x3f\x02\x01\x00\x00\x00\x53\x40\xc0\x32\x01\xe0\x2f\x04\xb3".as_slice(),
            b"\x00\x00\x00\x08EXTERNAL\x00\x00\x00\x07MSSBCBS",
            b"\x00\x00\x00\x09ANONYMOUS\x00\x00\x00\x05PLAIN",
        ]
        .concat();
        let bytes = frame(|e| mechanisms.encode(e));
        assert_eq!(bytes, expected);
        assert_eq!(
            SaslFrame::decode(&bytes[8..]),
            Ok(SaslFrame::Mechanisms(mechanisms))
        );
    }

    #[test]
    fn init_round_trip() {
        let init = SaslInit {
            mechanism: Symbol::from("PLAIN"),
            initial_response: Some(Secret(b"\0user\0secret".to_vec())),
            hostname: Some("hub".into()),
        };
        let bytes = frame(|e| init.encode(e));
        assert!(
            !format!("{init:?}").contains("115, 101"),
            "the secret shows"
        );
        assert_eq!(SaslFrame::decode(&bytes[8..]), Ok(SaslFrame::Init(init)));
    }

    #[test]
    fn plain_parts() {
        let check = |response: &[u8], expected: Option<(&str, &str, &str)>| {
            let parts = Plain::parse(response).map(|p| (p.authzid, p.authcid, p.password));
            assert_eq!(parts, expected);
        };
        check(b"\0dev@sas.hub\0token", Some(("", "dev@sas.hub", "token")));
        check(b"a\0b\0c", Some(("a", "b", "c")));
        check(b"\0\0", Some(("", "", "")));
        check(b"", None);
        check(b"\0only", None);
        check(b"a\0b\0c\0d", None);
        check(b"a\0b\0\xff", None);
        let plain = Plain {
            authzid: "",
            authcid: "me",
            password: "secret",
        };
        assert_eq!(Plain::parse(&plain.to_initial_response()), Some(plain));
        assert!(!format!("{plain:?}").contains("secret"));
    }

    /// Bytes as the hosted service sends them.
    #[test]
    fn outcome_as_the_hosted_service_writes_it() {
        let outcome = SaslOutcome { code: SaslCode::Ok };
        let bytes = frame(|e| outcome.encode(e));
        let expected = b"\x00\x00\x00\x10\x02\x01\x00\x00\x00\x53\x44\xc0\x03\x01\x50\x00";
        assert_eq!(&bytes[..], expected);
        // Other servers add the field for additional data.
        let longer = b"\x00\x53\x44\xc0\x04\x02\x50\x01\x40";
        let refused = SaslOutcome {
            code: SaslCode::Auth,
        };
        assert_eq!(SaslFrame::decode(longer), Ok(SaslFrame::Outcome(refused)));
    }
}
