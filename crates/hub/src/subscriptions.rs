//! What MQTT devices have subscribed to, durable for sessions that outlive their connections.
//!
//! Some device SDKs subscribe once in their life and never again after a reconnect, so a hub that
//! forgot would leave them deaf. There is one document per identity, tied to its generation: what a
//! deleted device subscribed to means nothing for a new one of its id.

use std::sync::Arc;

use bytes::Bytes;
use fieldpost_store::documents::{Action, Change, Condition, Documents};
use fieldpost_store::{Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::auth::DevicePrincipal;
use crate::collections::SESSIONS;

/// The stored sessions.
pub struct Subscriptions {
    documents: Arc<dyn Documents>,
}

/// The quality of service that a subscription was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum QoS {
    /// QoS 0.
    AtMostOnce,
    /// QoS 1.
    AtLeastOnce,
}

/// The features that a device or module has subscribed to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Messages from the cloud to the device.
    #[serde(rename = "c2d", default, skip_serializing_if = "Option::is_none")]
    pub device_bound: Option<QoS>,
    /// Answers to its twin requests.
    #[serde(rename = "twinRes", default, skip_serializing_if = "Option::is_none")]
    pub twin_responses: Option<QoS>,
    /// Changes of its desired properties.
    #[serde(rename = "desired", default, skip_serializing_if = "Option::is_none")]
    pub desired_properties: Option<QoS>,
    /// Direct methods.
    #[serde(rename = "methods", default, skip_serializing_if = "Option::is_none")]
    pub methods: Option<QoS>,
    /// Messages for a module's inputs.
    #[serde(rename = "inputs", default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<QoS>,
}

impl Subscriptions {
    pub(crate) fn new(store: &Store) -> Self {
        Self {
            documents: Arc::clone(&store.documents),
        }
    }

    /// The session that is stored for an identity: `None` when there is none.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn load(&self, principal: &DevicePrincipal) -> Result<Option<Features>, StoreError> {
        let key = key_of(principal);
        let Some(document) = self.documents.get(SESSIONS, key).await? else {
            return Ok(None);
        };
        let stored: StoredSession = serde_json::from_slice(&document.value)
            .ok()
            .filter(|stored: &StoredSession| stored.v == FORM_VERSION)
            .ok_or_else(|| StoreError::Damaged {
                what: format!("session of {}: not of a known form", principal.identity).into(),
                resume: None,
            })?;
        Ok((stored.generation == *principal.generation_id).then_some(stored.features))
    }

    /// Stores the session of an identity. Durable when it returns; writes nothing when nothing has
    /// changed. One connection per identity does this at a time.
    ///
    /// # Errors
    /// When the store does not take it; the subscription must then not be granted.
    pub async fn store(
        &self,
        principal: &DevicePrincipal,
        features: Features,
    ) -> Result<(), StoreError> {
        if self.load(principal).await? == Some(features) {
            return Ok(());
        }
        let stored = StoredSession {
            v: FORM_VERSION,
            generation: principal.generation_id.to_string(),
            features,
        };
        self.apply(
            principal,
            Action::Put {
                class: 0,
                value: serde_json::to_vec(&stored)
                    .expect("a struct of plain values is JSON")
                    .into(),
            },
        )
        .await
    }

    /// Removes the session of an identity, as a connection with a clean session asks for. Durable
    /// when it returns.
    ///
    /// # Errors
    /// When the store does not take it.
    pub async fn remove(&self, principal: &DevicePrincipal) -> Result<(), StoreError> {
        let stored = self.documents.get(SESSIONS, key_of(principal)).await?;
        if stored.is_none() {
            return Ok(());
        }
        self.apply(principal, Action::Delete).await
    }

    async fn apply(&self, principal: &DevicePrincipal, action: Action) -> Result<(), StoreError> {
        let change = Change {
            collection: SESSIONS,
            key: key_of(principal),
            condition: Condition::Any,
            action,
        };
        self.documents.apply(vec![change]).await.map(|_| ())
    }
}

const FORM_VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
struct StoredSession {
    v: u8,
    generation: String,
    #[serde(flatten)]
    features: Features,
}

/// `device` or `device/module`: the form in which identities are printed.
fn key_of(principal: &DevicePrincipal) -> Bytes {
    principal.identity.to_string().into()
}

impl From<QoS> for u8 {
    fn from(qos: QoS) -> Self {
        match qos {
            QoS::AtMostOnce => 0,
            QoS::AtLeastOnce => 1,
        }
    }
}

impl TryFrom<u8> for QoS {
    type Error = &'static str;

    fn try_from(qos: u8) -> Result<Self, &'static str> {
        match qos {
            0 => Ok(Self::AtMostOnce),
            1 => Ok(Self::AtLeastOnce),
            _ => Err("not a quality of service of this hub"),
        }
    }
}
