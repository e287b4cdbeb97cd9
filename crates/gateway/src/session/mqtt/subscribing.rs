//! What the client of an open connection has subscribed to, and how that changes.

use fieldpost_hub::subscriptions::{Features, QoS};
use fieldpost_model::Identity;
use fieldpost_mqtt::{PacketId, Qos, SubackCode, Subscribe, Unsubscribe};
use fieldpost_store::StoreError;
use futures_util::future::BoxFuture;

use super::ending::Ending;
use crate::dialect::mqtt::{EmptyValues, Feature, features};

/// What the client has subscribed to.
pub(super) struct SubscriptionState {
    pub(super) features: Features,
    /// Whether they outlive the connection.
    pub(super) durable: bool,
    pub(super) empty_values: EmptyValues,
    /// A change on its way to the store.
    pub(super) change: Option<Box<Change>>,
}

/// A change, and what becomes of it.
pub(super) struct Change {
    pub(super) features: Features,
    pub(super) answer: Answer,
    pub(super) stored: BoxFuture<'static, Result<(), StoreError>>,
}

/// What the client is told when a change is durable.
pub(super) enum Answer {
    Suback(PacketId, Vec<SubackCode>),
    Unsuback(PacketId),
}

impl SubscriptionState {
    /// What a SUBSCRIBE changes, and its answer once that is durable.
    pub(super) fn subscribe(
        &self,
        identity: &Identity,
        subscribe: &Subscribe<'_>,
    ) -> Result<(Features, Answer), Ending> {
        let mut changed = self.features;
        let mut codes = Vec::new();
        for (filter, asked) in subscribe.filters() {
            // SDKs do not look at a failure code; the device would wait in silence for ever.
            let asked_for = features(identity, filter).ok_or(Ending::ForeignFilter)?;
            let (kept, granted) = match asked {
                Qos::AtMostOnce => (QoS::AtMostOnce, Qos::AtMostOnce),
                Qos::AtLeastOnce | Qos::ExactlyOnce => (QoS::AtLeastOnce, Qos::AtLeastOnce),
            };
            for feature in asked_for {
                *place(&mut changed, *feature) = Some(kept);
            }
            codes.push(SubackCode::Granted(granted));
        }
        Ok((changed, Answer::Suback(subscribe.packet_id, codes)))
    }

    /// What an UNSUBSCRIBE changes, and its answer once that is durable.
    pub(super) fn unsubscribe(
        &self,
        identity: &Identity,
        unsubscribe: &Unsubscribe<'_>,
    ) -> (Features, Answer) {
        let mut changed = self.features;
        for filter in unsubscribe.filters() {
            for feature in features(identity, filter).unwrap_or_default() {
                *place(&mut changed, *feature) = None;
            }
        }
        (changed, Answer::Unsuback(unsubscribe.packet_id))
    }
}

/// Where a feature's subscription is kept.
fn place(features: &mut Features, feature: Feature) -> &mut Option<QoS> {
    match feature {
        Feature::DeviceBound => &mut features.device_bound,
        Feature::TwinResponses => &mut features.twin_responses,
        Feature::DesiredProperties => &mut features.desired_properties,
        Feature::Methods => &mut features.methods,
        Feature::Inputs => &mut features.inputs,
    }
}
