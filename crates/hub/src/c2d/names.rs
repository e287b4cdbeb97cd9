//! Names of queues in the store. `docs/formats/outcomes.md` describes their bytes.

use std::fmt;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use fieldpost_model::{DeviceId, Identity, ModuleId};
use fieldpost_store::queues::QueueName;

use crate::presence::shard_of;

/// Which queue.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum QueueKey {
    /// Of one device or module, in one life of it: a device that is created anew has a new queue.
    Device {
        identity: Identity,
        generation: Arc<str>,
    },
    /// The hub's own, of feedback messages.
    Feedback,
}

/// A key with its name, so that the name is made once.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) key: QueueKey,
    pub(super) name: QueueName,
}

const KIND_DEVICE: u8 = 1;
const KIND_FEEDBACK: u8 = 2;
const SHARD_BYTES: usize = 2;

impl QueueKey {
    pub(super) fn of(identity: Identity, generation: Arc<str>) -> Self {
        Self::Device {
            identity,
            generation,
        }
    }

    pub(super) fn name(&self) -> QueueName {
        let Self::Device {
            identity,
            generation,
        } = self
        else {
            return QueueName(Bytes::from_static(&[KIND_FEEDBACK]));
        };
        let device = identity.device.as_str();
        let module = identity.module.as_ref().map_or("", ModuleId::as_str);
        let length = 1 + SHARD_BYTES + device.len() + 1 + module.len() + 1 + generation.len();
        let mut name = BytesMut::with_capacity(length);
        name.put_u8(KIND_DEVICE);
        // The shards of a later cluster are ranges of names.
        name.put_u16(u16::try_from(shard_of(&identity.device)).unwrap_or(u16::MAX));
        name.put_slice(device.as_bytes());
        if identity.module.is_some() {
            name.put_u8(b'/');
            name.put_slice(module.as_bytes());
        }
        name.put_u8(0);
        name.put_slice(generation.as_bytes());
        QueueName(name.freeze())
    }

    /// For people: the device, or the device and the module.
    pub(super) fn shown(&self) -> impl fmt::Display {
        match self {
            Self::Device { identity, .. } => identity.to_string(),
            Self::Feedback => "(feedback)".to_owned(),
        }
    }

    /// The key of a name; `None` when it is not one of this version's.
    pub(super) fn parse(name: &QueueName) -> Option<Self> {
        let (kind, rest) = name.0.split_first()?;
        match *kind {
            KIND_FEEDBACK if rest.is_empty() => Some(Self::Feedback),
            KIND_DEVICE => {
                let text = std::str::from_utf8(rest.get(SHARD_BYTES..)?).ok()?;
                let (identity, generation) = text.split_once('\0')?;
                // Ids hold no slash.
                let (device, module) = match identity.split_once('/') {
                    Some((device, module)) => (device, Some(ModuleId::new(module).ok()?)),
                    None => (identity, None),
                };
                Some(Self::Device {
                    identity: Identity {
                        device: DeviceId::new(device).ok()?,
                        module,
                    },
                    generation: generation.into(),
                })
            }
            _ => None,
        }
    }
}

impl Named {
    pub(super) fn new(key: QueueKey) -> Arc<Self> {
        let name = key.name();
        Arc::new(Self { key, name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        let check = |device: &str, module: Option<&str>| {
            let identity = Identity {
                device: DeviceId::new(device).unwrap(),
                module: module.map(|id| ModuleId::new(id).unwrap()),
            };
            let key = QueueKey::of(identity, "638000000000000000".into());
            assert_eq!(QueueKey::parse(&key.name()), Some(key));
        };
        check("d", None);
        check("d", Some("m"));
        check(&"x".repeat(128), Some(&"y".repeat(128)));
        check("a:b.c+d%e_f#g*h?i!j(k),l=m@n;o$p'", None);
        assert_eq!(
            QueueKey::parse(&QueueKey::Feedback.name()),
            Some(QueueKey::Feedback)
        );
        for other in [
            &b""[..],
            b"\x01",
            b"\x01\0",
            b"\x01\0\0d",
            b"\x02x",
            b"\x03d\0g",
        ] {
            assert_eq!(
                QueueKey::parse(&QueueName(Bytes::copy_from_slice(other))),
                None
            );
        }
    }
}
