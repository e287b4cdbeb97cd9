//! Topics that devices publish to.

use std::borrow::Cow;

use fieldpost_hub::c2d::Settlement;
use fieldpost_model::Identity;
use fieldpost_mqtt::PacketId;

use super::percent_decoded;

/// What a publish to a topic means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Topic<'a> {
    /// A device-to-cloud message; the property bag.
    Events {
        /// Everything behind `messages/events/`.
        bag: &'a str,
    },
    /// A request about the twin.
    Twin(TwinRequest<'a>),
    /// The answer to a direct method.
    MethodResponse,
    /// What becomes of a cloud-to-device message that this connection has sent to the device.
    Settle {
        /// Rejected or abandoned: a PUBACK is all that MQTT itself has, and it completes.
        settlement: Settlement,
        /// Which of the messages.
        delivery: DeliveryName<'a>,
    },
}

/// How a device names a message that was sent to it and that it has not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DeliveryName<'a> {
    /// By its message id.
    MessageId(Cow<'a, str>),
    /// By the id of the packet that brought it.
    PacketId(PacketId),
    /// By nothing that could be a name.
    Nothing,
}

/// A request about the twin, to be answered under its request id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TwinRequest<'a> {
    /// The text behind `$rid=`, to be given back as it is; empty when there is none.
    pub(crate) request_id: &'a str,
}

impl<'a> Topic<'a> {
    /// What `topic` means from `identity`; `None` when that identity has no such topic.
    pub(crate) fn parse(identity: &Identity, topic: &'a str) -> Option<Self> {
        if let Some(rest) = topic.strip_prefix("$iothub/") {
            return hub_topic(rest);
        }
        if let Some(rest) = topic.strip_prefix("$fieldpost/c2d/") {
            return settle_topic(rest);
        }
        let rest = own_topics(identity, topic)?.strip_prefix("/messages/events")?;
        let bag = match rest.as_bytes().first() {
            None | Some(b'?') => rest,
            Some(b'/') => rest.get(1..)?,
            Some(_) => return None,
        };
        Some(Self::Events { bag })
    }
}

/// What follows `devices/{device}` or `devices/{device}/modules/{module}` of one's own.
pub(super) fn own_topics<'a>(identity: &Identity, topic: &'a str) -> Option<&'a str> {
    let rest = topic
        .strip_prefix("devices/")?
        .strip_prefix(identity.device.as_str())?;
    match &identity.module {
        None => Some(rest),
        Some(module) => rest
            .strip_prefix("/modules/")?
            .strip_prefix(module.as_str()),
    }
}

/// Topics without an id: the connection says whose they are.
fn hub_topic(rest: &str) -> Option<Topic<'_>> {
    let twin = rest
        .strip_prefix("twin/GET/")
        .or_else(|| rest.strip_prefix("twin/PATCH/properties/reported/"));
    if let Some(parameters) = twin {
        return Some(Topic::Twin(TwinRequest {
            request_id: request_id(parameters),
        }));
    }
    rest.strip_prefix("methods/res/")
        .map(|_| Topic::MethodResponse)
}

/// `{reject|abandon}/?$mid={message id}` or `/?$pid={packet id}`. Our own, and therefore without an
/// id as well.
fn settle_topic(rest: &str) -> Option<Topic<'_>> {
    let (word, parameters) = rest.split_once('/')?;
    let settlement = match word {
        "reject" => Settlement::Reject,
        "abandon" => Settlement::Abandon,
        _ => return None,
    };
    let parameters = parameters.strip_prefix('?').unwrap_or(parameters);
    let delivery = parameters.split('&').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        let value = percent_decoded(value);
        match &*percent_decoded(name) {
            "$mid" => Some(DeliveryName::MessageId(value)),
            "$pid" => Some(DeliveryName::PacketId(value.parse().ok()?)),
            _ => None,
        }
    });
    Some(Topic::Settle {
        settlement,
        delivery: delivery.unwrap_or(DeliveryName::Nothing),
    })
}

fn request_id(parameters: &str) -> &str {
    let parameters = parameters.strip_prefix('?').unwrap_or(parameters);
    parameters
        .split('&')
        .find_map(|parameter| parameter.strip_prefix("$rid="))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use fieldpost_model::{DeviceId, ModuleId};

    use super::*;

    fn identity(device: &str, module: Option<&str>) -> Identity {
        Identity {
            device: DeviceId::new(device).unwrap(),
            module: module.map(|module| ModuleId::new(module).unwrap()),
        }
    }

    #[test]
    fn topics_of_an_identity_are_told_apart() {
        let check =
            |device: &str, module: Option<&str>, topic: &str, expected: Option<Topic<'_>>| {
                assert_eq!(
                    Topic::parse(&identity(device, module), topic),
                    expected,
                    "{topic}"
                );
            };
        let bag = |bag| Some(Topic::Events { bag });
        let twin = |request_id| Some(Topic::Twin(TwinRequest { request_id }));
        check("d", None, "devices/d/messages/events", bag(""));
        check("d", None, "devices/d/messages/events/", bag(""));
        check("d", None, "devices/d/messages/events/?a=b", bag("?a=b"));
        check(
            "d",
            None,
            "devices/d/messages/events/$.ct=application/json&k=a/b",
            bag("$.ct=application/json&k=a/b"),
        );
        check(
            "d",
            Some("m"),
            "devices/d/modules/m/messages/events/a=b/",
            bag("a=b/"),
        );
        check("d%41#+", None, "devices/d%41#+/messages/events/", bag(""));
        // Somebody else's, or nobody's.
        check("dA#+", None, "devices/d%41#+/messages/events/", None);
        check("d", None, "devices/d2/messages/events/", None);
        check("d", None, "devices/D/messages/events/", None);
        check("d", None, "devices/d/messages/eventsx", None);
        check("d", None, "devices/d/modules/m/messages/events/", None);
        check("d", Some("m"), "devices/d/messages/events/", None);
        check("d", None, "devices/d/messages/devicebound/", None);
        check("d", None, "elsewhere", None);
        check("d", None, "", None);
        // Without an id.
        check("d", None, "$iothub/twin/GET/?$rid=7f", twin("7f"));
        check(
            "d",
            Some("m"),
            "$iothub/twin/PATCH/properties/reported/?$rid=7f3a&$version=4",
            twin("7f3a"),
        );
        check("d", None, "$iothub/twin/GET/", twin(""));
        check(
            "d",
            None,
            "$iothub/methods/res/200/?$rid=1",
            Some(Topic::MethodResponse),
        );
        check("d", None, "$iothub/methods/POST/x/?$rid=1", None);
        check("d", None, "$iothub/twin/res/200/?$rid=1", None);
    }

    #[test]
    fn deliveries_are_named_by_message_or_packet() {
        let check = |topic: &str, expected: Option<(Settlement, DeliveryName<'_>)>| {
            let expected = expected.map(|(settlement, delivery)| Topic::Settle {
                settlement,
                delivery,
            });
            assert_eq!(
                Topic::parse(&identity("d", None), topic),
                expected,
                "{topic}"
            );
        };
        let message = |id: &'static str| DeliveryName::MessageId(id.into());
        let packet = |id| DeliveryName::PacketId(PacketId::new(id).unwrap());
        let reject = |delivery| Some((Settlement::Reject, delivery));
        let abandon = |delivery| Some((Settlement::Abandon, delivery));
        check("$fieldpost/c2d/reject/?$mid=m7", reject(message("m7")));
        check("$fieldpost/c2d/abandon/?$mid=m7", abandon(message("m7")));
        check(
            "$fieldpost/c2d/reject/?%24mid=a%20b%2Fc+d%26",
            reject(message("a b/c+d&")),
        );
        check("$fieldpost/c2d/abandon/?$pid=65535", abandon(packet(65535)));
        check("$fieldpost/c2d/abandon/?x=1&$pid=7", abandon(packet(7)));
        check("$fieldpost/c2d/abandon/$pid=7", abandon(packet(7)));
        // Names of nothing.
        for name in [
            "",
            "?",
            "?$mid",
            "?$pid=0",
            "?$pid=65536",
            "?$pid=x",
            "?mid=1",
        ] {
            let topic = format!("$fieldpost/c2d/reject/{name}");
            check(&topic, reject(DeliveryName::Nothing));
        }
        // An empty id is an id like any other.
        check("$fieldpost/c2d/reject/?$mid=", reject(message("")));
        // No topics of ours.
        check("$fieldpost/c2d/complete/?$mid=m7", None);
        check("$fieldpost/c2d/reject", None);
        check("$fieldpost/c2d/", None);
        check("$fieldpost/reject/?$mid=m7", None);
        check("$FIELDPOST/c2d/reject/?$mid=m7", None);
    }
}
