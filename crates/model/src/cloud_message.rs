//! A cloud-to-device message as every protocol's dialect hands it to the hub.

use std::borrow::Cow;
use std::str::FromStr;

use crate::message::Properties;
use crate::time::Timestamp;

/// A message from a back end to one device: system properties, application properties and an
/// opaque body.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CloudMessage<'a> {
    /// `to`, as the sender wrote it: devices see it letter for letter.
    pub to: Cow<'a, str>,
    /// `message-id`. Absent stays absent; feedback can then not be correlated.
    pub message_id: Option<Cow<'a, str>>,
    /// `correlation-id`.
    pub correlation_id: Option<Cow<'a, str>>,
    /// `user-id`.
    pub user_id: Option<Cow<'a, [u8]>>,
    /// `content-type`.
    pub content_type: Option<Cow<'a, str>>,
    /// `content-encoding`.
    pub content_encoding: Option<Cow<'a, str>>,
    /// `absolute-expiry-time`, if the sender set it; otherwise the hub's time to live applies.
    pub expires: Option<Timestamp>,
    /// `iothub-ack`: which outcomes the sender wants to hear of.
    pub ack: Ack,
    /// `iothub-creation-time-utc`, as the sender wrote it.
    pub creation_time: Option<Cow<'a, str>>,
    /// `iothub-message-schema`.
    pub message_schema: Option<Cow<'a, str>>,
    /// The sender's own properties.
    pub properties: Properties<'a>,
    /// The payload, which the hub never interprets.
    pub body: Cow<'a, [u8]>,
}

impl CloudMessage<'_> {
    /// The size that the 64 KB limit is about: body, values of system properties, names and values
    /// of application properties; no framing.
    #[must_use]
    pub fn metered_size(&self) -> usize {
        let text = |value: &Option<Cow<'_, str>>| value.as_ref().map_or(0, |v| v.len());
        let system_bytes = self.to.len()
            + text(&self.message_id)
            + text(&self.correlation_id)
            + self.user_id.as_ref().map_or(0, |v| v.len())
            + text(&self.content_type)
            + text(&self.content_encoding)
            + self.expires.map_or(0, |_| size_of::<i64>())
            + text(&self.creation_time)
            + text(&self.message_schema);
        let property_bytes: usize = self
            .properties
            .iter()
            .map(|(name, value)| name.len() + value.map_or(0, str::len))
            .sum();
        self.body.len() + system_bytes + property_bytes
    }
}

/// Which outcomes of a message its sender wants to hear of (Azure IoT Hub, `iothub-ack`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Ack {
    /// None.
    #[default]
    None,
    /// That the device completed it.
    Positive,
    /// That it will never be completed.
    Negative,
    /// Both.
    Full,
}

impl Ack {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::None, Self::Positive, Self::Negative, Self::Full];

    /// The word of the contract, in lower case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Positive => "positive",
            Self::Negative => "negative",
            Self::Full => "full",
        }
    }
}

/// A text that is not one of the words of [`Ack`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an acknowledgement is none, positive, negative or full")]
pub struct InvalidAck;

impl FromStr for Ack {
    type Err = InvalidAck;

    /// In any case.
    fn from_str(text: &str) -> Result<Self, InvalidAck> {
        let is_text = |ack: &Self| ack.as_str().eq_ignore_ascii_case(text);
        Self::ALL.into_iter().find(is_text).ok_or(InvalidAck)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_are_read_in_any_case() {
        let check = |text: &str, expected: Result<Ack, InvalidAck>| {
            assert_eq!(text.parse(), expected, "{text:?}");
        };
        for ack in Ack::ALL {
            check(ack.as_str(), Ok(ack));
            check(&ack.as_str().to_uppercase(), Ok(ack));
        }
        check("Full", Ok(Ack::Full));
        check("", Err(InvalidAck));
        check(" full", Err(InvalidAck));
        check("all", Err(InvalidAck));
    }

    #[test]
    fn framing_does_not_count_towards_the_size() {
        let mut message = CloudMessage {
            to: "/devices/d/messages/devicebound".into(),
            message_id: Some("id".into()),
            user_id: Some(b"me"[..].into()),
            expires: Some(Timestamp::UNIX_EPOCH),
            ack: Ack::Full,
            body: b"12345"[..].into(),
            ..Default::default()
        };
        message.properties.set("ab".into(), Some("cde".into()));
        message.properties.set("n".into(), None);
        assert_eq!(message.metered_size(), 31 + 2 + 2 + 8 + 5 + 5 + 1);
    }
}
