//! Topic filters that devices subscribe to.

use fieldpost_model::Identity;

use super::topic::own_topics;

/// What a subscription turns on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Feature {
    /// Cloud-to-device messages.
    DeviceBound,
    /// Answers to requests about the twin.
    TwinResponses,
    /// Changes of desired properties.
    DesiredProperties,
    /// Direct methods.
    Methods,
    /// Messages routed to a module's inputs.
    Inputs,
}

/// What a filter of `identity` asks for; `None` when the identity may not subscribe to it.
///
/// Besides the documented filters every narrower one is taken. The own id is compared as text
/// before any wildcard means something, because it may hold `#` and `+` itself.
pub(crate) fn features(identity: &Identity, filter: &str) -> Option<&'static [Feature]> {
    use Feature::{DesiredProperties, DeviceBound, Inputs, Methods, TwinResponses};
    if let Some(rest) = filter.strip_prefix("$iothub/") {
        return [
            ("twin/res", &[TwinResponses] as &[Feature]),
            ("twin/PATCH/properties/desired", &[DesiredProperties]),
            ("methods/POST", &[Methods]),
        ]
        .into_iter()
        .find(|(prefix, _)| is_below(rest, prefix))
        .map(|(_, features)| features);
    }
    let rest = own_topics(identity, filter)?;
    if is_below(rest, "/messages/devicebound") {
        return Some(&[DeviceBound]);
    }
    identity.module.as_ref()?;
    if rest == "/#" {
        // The C and .NET SDKs ask for all of a module's topics at once.
        return Some(&[DeviceBound, Inputs]);
    }
    is_below(rest, "/inputs").then_some(&[Inputs])
}

/// Whether `text` is `prefix`, or continues it behind a slash.
fn is_below(text: &str, prefix: &str) -> bool {
    text.strip_prefix(prefix)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use fieldpost_model::{DeviceId, ModuleId};

    use super::*;

    #[test]
    fn filters_are_granted_to_their_owner_only() {
        use Feature::{DesiredProperties, DeviceBound, Inputs, Methods, TwinResponses};
        let check = |device: &str, module: Option<&str>, filter: &str, expected: &[Feature]| {
            let identity = Identity {
                device: DeviceId::new(device).unwrap(),
                module: module.map(|module| ModuleId::new(module).unwrap()),
            };
            let granted = features(&identity, filter).unwrap_or_default();
            assert_eq!(granted, expected, "{filter}");
        };
        check(
            "dev1",
            None,
            "devices/dev1/messages/devicebound/#",
            &[DeviceBound],
        );
        check("$iothub", None, "$iothub/twin/res/#", &[TwinResponses]);
        check(
            "d",
            None,
            "$iothub/twin/PATCH/properties/desired/#",
            &[DesiredProperties],
        );
        check("d", None, "$iothub/methods/POST/#", &[Methods]);
        check("d", None, "$iothub/twin/res/200/?$rid=x", &[TwinResponses]);
        check(
            "a#b",
            None,
            "devices/a#b/messages/devicebound/#",
            &[DeviceBound],
        );
        check(
            "a+%41",
            None,
            "devices/a+%41/messages/devicebound/#",
            &[DeviceBound],
        );
        check(
            "d",
            Some("m"),
            "devices/d/modules/m/#",
            &[DeviceBound, Inputs],
        );
        check("d", Some("m"), "devices/d/modules/m/inputs/#", &[Inputs]);
        check(
            "d",
            Some("m"),
            "devices/d/modules/m/messages/devicebound/#",
            &[DeviceBound],
        );
        check("d", Some("m"), "$iothub/twin/res/#", &[TwinResponses]);
        // Wider, or not one's own.
        check("d", None, "#", &[]);
        check("d", None, "devices/#", &[]);
        check("d", None, "devices/+/messages/devicebound/#", &[]);
        check("+", None, "devices/d/messages/devicebound/#", &[]);
        check("d", None, "devices/d/#", &[]);
        check("d", None, "devices/d2/messages/devicebound/#", &[]);
        check("d", None, "devices/d/messages/events/#", &[]);
        check("d", None, "devices/d/inputs/#", &[]);
        check("d", None, "devices/d/modules/m/#", &[]);
        check("d", None, "$iothub/#", &[]);
        check("d", None, "$iothub/twin/#", &[]);
        check("d", None, "$iothub/twin/resx/#", &[]);
        check("d", None, "", &[]);
    }
}
