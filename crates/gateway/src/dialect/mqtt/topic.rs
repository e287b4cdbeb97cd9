//! Topics that devices publish to.

use fieldpost_model::Identity;

/// What a publish to a topic means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
}
