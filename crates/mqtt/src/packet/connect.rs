//! CONNECT.

use std::fmt;

use bytes::{BufMut, BytesMut};

use super::wire::{Field, Reader, put_fixed_header};
use super::{DecodeError, EncodeError, Qos};

const CLEAN_SESSION: u8 = 0b0000_0010;
const WILL: u8 = 0b0000_0100;
const WILL_QOS_SHIFT: u8 = 3;
const WILL_RETAIN: u8 = 0b0010_0000;
const PASSWORD: u8 = 0b0100_0000;
const USER_NAME: u8 = 0b1000_0000;
const RESERVED: u8 = 0b0000_0001;

/// A client's request for a connection. Its `Debug` form shows neither password nor will payload.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Connect<'a> {
    /// Names the client; may be empty.
    pub client_id: &'a str,
    /// Start without, and leave behind, no session.
    pub clean_session: bool,
    /// Longest time in seconds between two packets of the client; 0 turns the check off.
    pub keep_alive_s: u16,
    /// To be published by the server if the connection ends without a DISCONNECT.
    pub will: Option<Will<'a>>,
    /// Who the client says it is.
    pub user_name: Option<&'a str>,
    /// Proof of that; never without a user name.
    pub password: Option<&'a [u8]>,
}

/// The message that a client leaves for the case that it vanishes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Will<'a> {
    /// Topic to publish it to, not empty.
    pub topic: &'a str,
    /// Its content.
    pub payload: &'a [u8],
    /// Quality of service to publish it with.
    pub qos: Qos,
    /// Whether to publish it as a retained message.
    pub retain: bool,
}

impl<'a> Connect<'a> {
    pub(super) fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        let name = reader.binary()?;
        let level = reader.u8()?;
        match (name, level) {
            (b"MQTT", 4) => {}
            // MQTT 3.1 called itself MQIsdp.
            (b"MQTT" | b"MQIsdp", level) => return Err(DecodeError::ProtocolLevel { level }),
            _ => return Err(DecodeError::ProtocolName),
        }
        let flags = ConnectFlags::parse(reader.u8()?)?;
        let keep_alive_s = reader.u16()?;
        let client_id = reader.string()?;
        let will = match flags.will {
            None => None,
            Some((qos, retain)) => Some(Will {
                topic: reader.topic()?,
                payload: reader.binary()?,
                qos,
                retain,
            }),
        };
        let user_name = flags.user_name.then(|| reader.string()).transpose()?;
        let password = flags.password.then(|| reader.binary()).transpose()?;
        reader.finish()?;
        Ok(Self {
            client_id,
            clean_session: flags.clean_session,
            keep_alive_s,
            will,
            user_name,
            password,
        })
    }

    /// Appends the packet.
    ///
    /// # Errors
    /// A field is too long or holds U+0000, the will's topic is empty, or there is a password
    /// without a user name.
    pub fn encode(&self, out: &mut BytesMut) -> Result<(), EncodeError> {
        if self.password.is_some() && self.user_name.is_none() {
            return Err(EncodeError::PasswordAlone);
        }
        let will = match &self.will {
            None => [None, None],
            Some(will) => [
                Some(Field::topic(will.topic)?),
                Some(Field::binary(will.payload)?),
            ],
        };
        let [will_topic, will_payload] = will;
        let payload = [
            Some(Field::string(self.client_id)?),
            will_topic,
            will_payload,
            self.user_name.map(Field::string).transpose()?,
            self.password.map(Field::binary).transpose()?,
        ];
        let payload_length: usize = payload.iter().flatten().map(|f| f.encoded_length()).sum();
        put_fixed_header(out, 0x10, 10 + payload_length)?;
        out.put_slice(b"\x00\x04MQTT\x04");
        out.put_u8(self.flags());
        out.put_u16(self.keep_alive_s);
        for field in payload.into_iter().flatten() {
            field.put(out);
        }
        Ok(())
    }

    fn flags(&self) -> u8 {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let will = self.will.map_or(0, |will| {
            WILL | (will.qos.number() << WILL_QOS_SHIFT) | flag(will.retain, WILL_RETAIN)
        });
        will | flag(self.clean_session, CLEAN_SESSION)
            | flag(self.user_name.is_some(), USER_NAME)
            | flag(self.password.is_some(), PASSWORD)
    }
}

struct ConnectFlags {
    clean_session: bool,
    will: Option<(Qos, bool)>,
    user_name: bool,
    password: bool,
}

impl ConnectFlags {
    fn parse(flags: u8) -> Result<Self, DecodeError> {
        let error = DecodeError::ConnectFlags { flags };
        let is_set = |bit: u8| flags & bit != 0;
        let qos = (flags >> WILL_QOS_SHIFT) & 0b11;
        let will = if is_set(WILL) {
            let qos = Qos::from_byte(qos).map_err(|_| error)?;
            Some((qos, is_set(WILL_RETAIN)))
        } else if qos != 0 || is_set(WILL_RETAIN) {
            return Err(error);
        } else {
            None
        };
        if is_set(RESERVED) || (is_set(PASSWORD) && !is_set(USER_NAME)) {
            return Err(error);
        }
        Ok(Self {
            clean_session: is_set(CLEAN_SESSION),
            will,
            user_name: is_set(USER_NAME),
            password: is_set(PASSWORD),
        })
    }
}

impl fmt::Debug for Connect<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("client_id", &self.client_id)
            .field("clean_session", &self.clean_session)
            .field("keep_alive_s", &self.keep_alive_s)
            .field("will", &self.will)
            .field("user_name", &self.user_name)
            .field("password", &self.password.map(|_| "***"))
            .finish()
    }
}

impl fmt::Debug for Will<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Will")
            .field("topic", &self.topic)
            .field("payload_length", &self.payload.len())
            .field("qos", &self.qos)
            .field("retain", &self.retain)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Packet, decode_whole};
    use proptest::prelude::*;

    const PLAIN: Connect<'static> = Connect {
        client_id: "dev1",
        clean_session: false,
        keep_alive_s: 60,
        will: None,
        user_name: None,
        password: None,
    };

    /// A packet with these flags and this payload, keep-alive 60.
    fn connect(flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(10 + payload.len()).unwrap();
        let head = [0x10, length, 0, 4, b'M', b'Q', b'T', b'T', 4, flags, 0, 60];
        [&head, payload].concat()
    }

    #[test]
    fn packet_as_a_device_with_a_token_sends_it() {
        let user_name = "hub.localhost/dev1/?api-version=2021-04-12";
        let password = "SharedAccessSignature sr=hub.localhost%2Fdevices%2Fdev1\
            &sig=Z%2Bu%2BnTE%2FeTkyLU5M1f46%2FeddOjXPbX0gv%2Bj9OGgOlo0%3D&se=1893456000";
        let mut bytes = vec![
            0x10, 0xc0, 0x01, 0x00, 0x04, 0x4d, 0x51, 0x54, 0x54, 0x04, 0xc0, 0x00, 0x3c,
        ];
        bytes.extend_from_slice(b"\x00\x04dev1\x00\x2a");
        bytes.extend_from_slice(user_name.as_bytes());
        bytes.extend_from_slice(&[0x00, 0x82]);
        bytes.extend_from_slice(password.as_bytes());
        assert_eq!(bytes.len(), 195);

        let expected = Connect {
            user_name: Some(user_name),
            password: Some(password.as_bytes()),
            ..PLAIN
        };
        assert_eq!(decode_whole(&bytes), Ok(Packet::Connect(expected)));
        let mut out = BytesMut::new();
        expected.encode(&mut out).unwrap();
        assert_eq!(out, bytes);
    }

    #[test]
    fn flags_and_the_fields_they_announce() {
        let check = |flags: u8, payload: &[u8], expected: Result<Connect<'_>, DecodeError>| {
            let bytes = connect(flags, payload);
            assert_eq!(decode_whole(&bytes), expected.map(Packet::Connect));
        };
        let flags_error = |flags| Err(DecodeError::ConnectFlags { flags });
        let id = b"\0\x04dev1";
        check(0, id, Ok(PLAIN));
        let clean = Connect {
            clean_session: true,
            ..PLAIN
        };
        check(2, id, Ok(clean));
        check(1, id, flags_error(1));
        let will = Connect {
            will: Some(Will {
                topic: "t",
                payload: b"\xff\0",
                qos: Qos::ExactlyOnce,
                retain: true,
            }),
            ..PLAIN
        };
        check(0x34, b"\0\x04dev1\0\x01t\0\x02\xff\0", Ok(will));
        // Will QoS 3; will QoS and will retain without a will.
        check(0x1c, b"\0\x04dev1\0\x01t\0\0", flags_error(0x1c));
        check(0x08, id, flags_error(0x08));
        check(0x20, id, flags_error(0x20));
        check(0x04, b"\0\x04dev1\0\0\0\0", Err(DecodeError::EmptyTopic));
        // A password needs a user name, not the other way round.
        check(0x40, b"\0\x04dev1\0\x01p", flags_error(0x40));
        let named = Connect {
            user_name: Some("u"),
            ..PLAIN
        };
        check(0x80, b"\0\x04dev1\0\x01u", Ok(named));
        let empty = Connect {
            client_id: "",
            user_name: Some(""),
            password: Some(b""),
            ..PLAIN
        };
        check(0xc0, b"\0\0\0\0\0\0", Ok(empty));
        check(0xc0, b"\0\0\0\0", Err(DecodeError::Truncated));
        check(0x00, b"\0\x04dev1\0", Err(DecodeError::TrailingBytes));
        check(0x00, b"\0\x01\0", Err(DecodeError::NulInString));
        check(0x00, b"\0\x01\xff", Err(DecodeError::NotUtf8));
    }

    #[test]
    fn other_protocols_and_versions() {
        let check = |body: &[u8], expected: DecodeError| {
            assert_eq!(Connect::decode(body), Err(expected));
        };
        // MQTT 3.1 and MQTT 5, cut after the level: the rest has another form.
        check(b"\0\x06MQIsdp\x03", DecodeError::ProtocolLevel { level: 3 });
        check(b"\0\x04MQTT\x05", DecodeError::ProtocolLevel { level: 5 });
        check(
            b"\0\x04MQTT\x84",
            DecodeError::ProtocolLevel { level: 0x84 },
        );
        check(b"\0\x04mqtt\x04", DecodeError::ProtocolName);
        check(b"\0\x04AMQP\x04", DecodeError::ProtocolName);
        check(b"\0\x04MQTT", DecodeError::Truncated);
    }

    #[test]
    fn secrets_stay_out_of_the_debug_form() {
        let connect = Connect {
            user_name: Some("u"),
            password: Some(b"hush"),
            will: Some(Will {
                topic: "t",
                payload: b"private",
                qos: Qos::AtMostOnce,
                retain: false,
            }),
            ..PLAIN
        };
        let debug = format!("{connect:?}");
        for secret in ["hush", "104, 117", "private", "112, 114"] {
            assert!(!debug.contains(secret), "{debug}");
        }
    }

    #[test]
    fn encoding_refuses_a_password_alone() {
        let connect = Connect {
            password: Some(b"p"),
            ..PLAIN
        };
        let mut out = BytesMut::new();
        assert_eq!(connect.encode(&mut out), Err(EncodeError::PasswordAlone));
        assert!(out.is_empty());
    }

    proptest! {
        #[test]
        fn decoding_gives_back_what_was_encoded(
            client_id in "[^\0]{0,40}",
            clean_session: bool,
            keep_alive_s: u16,
            will in proptest::option::of((
                "[^\0]{1,40}",
                proptest::collection::vec(any::<u8>(), 0..40),
                0_u8..3,
                any::<bool>(),
            )),
            user in proptest::option::of((
                "[^\0]{0,40}",
                proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
            )),
        ) {
            let connect = Connect {
                client_id: &client_id,
                clean_session,
                keep_alive_s,
                will: will.as_ref().map(|(topic, payload, qos, retain)| Will {
                    topic,
                    payload,
                    qos: Qos::from_byte(*qos).unwrap(),
                    retain: *retain,
                }),
                user_name: user.as_ref().map(|(name, _)| name.as_str()),
                password: user.as_ref().and_then(|(_, password)| password.as_deref()),
            };
            let mut out = BytesMut::new();
            connect.encode(&mut out).unwrap();
            prop_assert_eq!(decode_whole(&out), Ok(Packet::Connect(connect)));
        }
    }
}
