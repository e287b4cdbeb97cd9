//! The message that a client leaves for the case that it goes without a word.

use bytes::Bytes;
use fieldpost_model::{DeviceMessage, Identity};
use fieldpost_mqtt as mqtt;

use crate::dialect::mqtt::{Marks, Topic, decode};

/// A will, kept for the life of a connection.
pub(super) struct Will {
    bag: Box<str>,
    payload: Bytes,
    retain: bool,
}

impl Will {
    /// The will of `identity`; `None` when its topic is not the identity's own events topic.
    pub(super) fn of(identity: &Identity, will: &mqtt::Will<'_>) -> Option<Self> {
        let Some(Topic::Events { bag }) = Topic::parse(identity, will.topic) else {
            return None;
        };
        Some(Self {
            bag: bag.into(),
            payload: Bytes::copy_from_slice(will.payload),
            retain: will.retain,
        })
    }

    /// The message that consumers get.
    pub(super) fn message(&self, from_module: bool) -> DeviceMessage<'_> {
        let marks = Marks {
            from_module,
            retain: self.retain,
            will: true,
        };
        decode(&self.bag, &self.payload, marks)
    }
}
