//! CONNACK.

use bytes::{BufMut, BytesMut};

use super::DecodeError;
use super::wire::Reader;

/// The server's answer to CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connack {
    /// Return code 0.
    Accepted {
        /// The server already had a session for this client.
        session_present: bool,
    },
    /// Any other return code; the server closes the connection after it.
    Refused(Refusal),
}

/// Why a CONNECT is refused (section 3.2.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Refusal {
    /// The server does not support the client's version of MQTT.
    UnacceptableProtocolLevel = 1,
    /// The client id is not allowed.
    IdentifierRejected = 2,
    /// The server cannot serve now.
    ServerUnavailable = 3,
    /// The user name or password is malformed.
    BadUserNameOrPassword = 4,
    /// The client is not authorised.
    NotAuthorized = 5,
}

impl Connack {
    pub(super) fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let flags = reader.u8()?;
        let code = reader.u8()?;
        reader.finish()?;
        let refusal = match code {
            0 if flags <= 1 => {
                return Ok(Self::Accepted {
                    session_present: flags == 1,
                });
            }
            1 => Refusal::UnacceptableProtocolLevel,
            2 => Refusal::IdentifierRejected,
            3 => Refusal::ServerUnavailable,
            4 => Refusal::BadUserNameOrPassword,
            5 => Refusal::NotAuthorized,
            0 => return Err(DecodeError::ReturnCode { byte: flags }),
            byte => return Err(DecodeError::ReturnCode { byte }),
        };
        // A refusal knows no session [MQTT-3.2.2-4].
        if flags != 0 {
            return Err(DecodeError::ReturnCode { byte: flags });
        }
        Ok(Self::Refused(refusal))
    }

    /// Appends the packet.
    pub fn put(self, out: &mut BytesMut) {
        let (flags, code) = match self {
            Self::Accepted { session_present } => (u8::from(session_present), 0),
            Self::Refused(refusal) => (0, refusal.number()),
        };
        out.put_slice(&[0x20, 2, flags, code]);
    }
}

impl Refusal {
    /// The return code on the wire, 1 to 5.
    #[must_use]
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// Appends a CONNACK in the form of MQTT 5 that says "unsupported protocol version" (reason code
/// 0x84, no properties; MQTT 5.0 section 3.2).
pub fn put_mqtt5_unsupported_version(out: &mut BytesMut) {
    out.put_slice(&[0x20, 3, 0, 0x84, 0]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Packet, decode_whole};

    #[test]
    fn connacks() {
        let check = |bytes: &[u8], expected: Result<Connack, DecodeError>| {
            assert_eq!(decode_whole(bytes), expected.map(Packet::Connack));
            if let Ok(connack) = expected {
                let mut out = BytesMut::new();
                connack.put(&mut out);
                assert_eq!(out, bytes);
            }
        };
        let accepted = |session_present| Ok(Connack::Accepted { session_present });
        check(&[0x20, 2, 0, 0], accepted(false));
        check(&[0x20, 2, 1, 0], accepted(true));
        for (code, refusal) in [
            (1, Refusal::UnacceptableProtocolLevel),
            (2, Refusal::IdentifierRejected),
            (3, Refusal::ServerUnavailable),
            (4, Refusal::BadUserNameOrPassword),
            (5, Refusal::NotAuthorized),
        ] {
            check(&[0x20, 2, 0, code], Ok(Connack::Refused(refusal)));
            check(
                &[0x20, 2, 1, code],
                Err(DecodeError::ReturnCode { byte: 1 }),
            );
        }
        check(&[0x20, 2, 2, 0], Err(DecodeError::ReturnCode { byte: 2 }));
        check(&[0x20, 2, 0, 6], Err(DecodeError::ReturnCode { byte: 6 }));
        check(&[0x20, 1, 0], Err(DecodeError::Truncated));
        check(&[0x20, 3, 0, 0, 0], Err(DecodeError::TrailingBytes));
    }
}
