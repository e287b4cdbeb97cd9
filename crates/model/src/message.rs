//! A device-to-cloud message as every protocol's dialect hands it to the hub.

use std::borrow::Cow;
use std::collections::HashMap;

use smallvec::SmallVec;

use crate::time::Timestamp;

/// A device-to-cloud message: system properties, application properties and an opaque body.
///
/// Borrows from the receive buffer wherever the wire form needs no decoding, so that a message
/// costs no allocation on its way into the log.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceMessage<'a> {
    /// Properties with a meaning fixed by the hub's contract, as the sender set them.
    pub system: SystemProperties<'a>,
    /// The sender's own properties.
    pub properties: Properties<'a>,
    /// The payload, which the hub never interprets.
    pub body: Cow<'a, [u8]>,
}

/// Value of an application property: a text, or null (a bare `key` in an MQTT property bag).
pub type PropertyValue<'a> = Option<Cow<'a, str>>;

/// Application properties in the order sent. Names are unique without regard to ASCII case.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Properties<'a> {
    entries: SmallVec<[(Cow<'a, str>, PropertyValue<'a>); 8]>,
    /// Where each lower-cased name stands, kept only beyond [`SCAN_MAX`] entries: a hostile message
    /// of a hundred thousand names must not cost their square.
    index: Option<HashMap<String, usize>>,
}

/// Up to this many properties a scan beats an index.
const SCAN_MAX: usize = 32;

/// System properties that a sender may set on a device-to-cloud message.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SystemProperties<'a> {
    /// `message-id`.
    pub message_id: Option<Cow<'a, str>>,
    /// `correlation-id`.
    pub correlation_id: Option<Cow<'a, str>>,
    /// `user-id`.
    pub user_id: Option<Cow<'a, [u8]>>,
    /// `to`, as the sender wrote it.
    pub to: Option<Cow<'a, str>>,
    /// `content-type`.
    pub content_type: Option<Cow<'a, str>>,
    /// `content-encoding`.
    pub content_encoding: Option<Cow<'a, str>>,
    /// `absolute-expiry-time`, when it could be read as a time.
    pub absolute_expiry_time: Option<Timestamp>,
    /// `dt-subject`: the component of a plug-and-play device that speaks.
    pub component: Option<Cow<'a, str>>,
    /// `iothub-interface-id`.
    pub interface_id: Option<Cow<'a, str>>,
    /// `iothub-outputname`: the output of a module that speaks.
    pub output_name: Option<Cow<'a, str>>,
}

impl<'a> Properties<'a> {
    /// Sets a property. Names that differ only in case are one property: the first spelling is
    /// kept and the last value wins.
    pub fn set(&mut self, name: Cow<'a, str>, value: PropertyValue<'a>) {
        if self.entries.len() == SCAN_MAX && self.index.is_none() {
            let positions = self.entries.iter().enumerate();
            self.index = Some(
                positions
                    .map(|(at, (name, _))| (name.to_ascii_lowercase(), at))
                    .collect(),
            );
        }
        let known = match &self.index {
            None => self
                .entries
                .iter()
                .position(|(n, _)| n.eq_ignore_ascii_case(&name)),
            Some(index) => index.get(&name.to_ascii_lowercase()).copied(),
        };
        if let Some((_, existing)) = known.and_then(|at| self.entries.get_mut(at)) {
            *existing = value;
            return;
        }
        if let Some(index) = &mut self.index {
            index.insert(name.to_ascii_lowercase(), self.entries.len());
        }
        self.entries.push((name, value));
    }

    /// All properties in the order in which their names first came.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, Option<&str>)> {
        self.entries
            .iter()
            .map(|(name, value)| (&**name, value.as_deref()))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl DeviceMessage<'_> {
    /// The size that the 256 KB limit is about: body, values of system properties, names and
    /// values of application properties; no framing.
    #[must_use]
    pub fn metered_size(&self) -> usize {
        let system = &self.system;
        let text = |value: &Option<Cow<'_, str>>| value.as_ref().map_or(0, |v| v.len());
        let system_bytes = text(&system.message_id)
            + text(&system.correlation_id)
            + system.user_id.as_ref().map_or(0, |v| v.len())
            + text(&system.to)
            + text(&system.content_type)
            + text(&system.content_encoding)
            + system.absolute_expiry_time.map_or(0, |_| size_of::<i64>())
            + text(&system.component)
            + text(&system.interface_id)
            + text(&system.output_name);
        let property_bytes: usize = self
            .properties
            .iter()
            .map(|(name, value)| name.len() + value.map_or(0, str::len))
            .sum();
        self.body.len() + system_bytes + property_bytes
    }
}

/// How a connection proved who it speaks for; stamped on every message it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AuthStamp {
    /// Whose credential it was.
    pub scope: AuthScope,
    /// What kind of credential it was.
    pub kind: AuthKind,
}

/// Whose credential a connection used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuthScope {
    /// A shared access policy of the hub.
    Hub,
    /// The device's own.
    Device,
    /// The module's own.
    Module,
}

/// What kind of credential a connection used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuthKind {
    /// A shared access signature.
    Sas,
    /// An X.509 client certificate.
    X509,
}

impl AuthStamp {
    /// The JSON text that consumers find in `iothub-connection-auth-method`.
    #[must_use]
    pub fn as_json(self) -> &'static str {
        use {AuthKind as K, AuthScope as S};
        match (self.scope, self.kind) {
            (S::Hub, K::Sas) => {
                r#"{"scope":"hub","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}"#
            }
            (S::Device, K::Sas) => {
                r#"{"scope":"device","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}"#
            }
            (S::Module, K::Sas) => {
                r#"{"scope":"module","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}"#
            }
            (S::Hub, K::X509) => {
                r#"{"scope":"hub","type":"x509","issuer":"external","acceptingIpFilterRule":null}"#
            }
            (S::Device, K::X509) => {
                r#"{"scope":"device","type":"x509","issuer":"external","acceptingIpFilterRule":null}"#
            }
            (S::Module, K::X509) => {
                r#"{"scope":"module","type":"x509","issuer":"external","acceptingIpFilterRule":null}"#
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_names_that_differ_in_case_the_first_spelling_and_last_value_stay() {
        for others in [0, 5, 31, 32, 33, 500] {
            let mut properties = Properties::default();
            properties.set("Room".into(), Some("a".into()));
            for n in 0..others {
                properties.set(format!("other{n}").into(), None);
            }
            properties.set("room".into(), Some("b".into()));
            properties.set("OTHER0".into(), Some("c".into()));
            assert_eq!(properties.iter().next(), Some(("Room", Some("b"))));
            assert_eq!(properties.len(), 1 + others.max(1), "{others}");
        }
    }

    #[test]
    fn framing_does_not_count_towards_the_size() {
        let mut message = DeviceMessage {
            body: b"12345"[..].into(),
            ..Default::default()
        };
        message.system.message_id = Some("id".into());
        message.properties.set("ab".into(), Some("cde".into()));
        message.properties.set("n".into(), None);
        assert_eq!(message.metered_size(), 5 + 2 + 5 + 1);
    }
}
