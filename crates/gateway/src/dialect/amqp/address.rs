//! Link addresses.
//!
//! Clients write one address in three ways: as a URI (`amqps://host:5671/a/b`), with a leading
//! slash (`/a/b`) and without one (`a/b`). The authority is never used for routing: clients sign and
//! write the name that they were given, also when they reached the hub under another one. Fixed
//! words compare without case.

use std::borrow::Cow;

use fieldpost_model::Identity;
use percent_encoding::percent_decode_str;

/// What a link address names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address<'a> {
    /// `$cbs`: where clients put their tokens.
    Cbs,
    /// `$management`: questions about the Event Hubs endpoint.
    Management,
    /// `<entity>/ConsumerGroups/<group>/Partitions/<partition>`: a partition to read.
    Partition(PartitionAddress<'a>),
    /// `<entity>` or `<entity>/Partitions/<partition>`: where Event Hubs clients send.
    Entity {
        /// The Event Hub-compatible name.
        entity: Cow<'a, str>,
    },
    /// `devices/<device>[/modules/<module>]/...`: what one device or module uses.
    Device {
        /// Whom it names, as [`BelowDevice::identities`] has it.
        identities: [Option<Identity>; 2],
        /// What of it.
        node: DeviceNode,
    },
    /// `messages/devicebound`: where services send messages for devices.
    DeviceBound,
    /// `messages/serviceBound/feedback`: what became of such messages.
    Feedback,
    /// `messages/serviceBound/filenotifications`: news of uploaded files.
    FileNotifications,
    /// `messages/events` and everything below it: the Event Hubs endpoint under an IoT Hub address.
    Events {
        /// What follows in the address, as the client wrote it, without a leading slash.
        below: &'a str,
    },
    /// Anything else.
    Unknown,
}

/// What a device or module uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceNode {
    /// `messages/events`: where it sends.
    Events,
    /// `messages/devicebound`: where its messages are.
    DeviceBound,
    /// `methods/devicebound` and `twin`.
    Other,
}

/// A path below a device or module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BelowDevice<'a> {
    device: &'a str,
    module: Option<&'a str>,
    /// What follows the ids, without slashes at either end.
    pub(crate) rest: &'a str,
}

impl<'a> BelowDevice<'a> {
    /// Reads an address in any of its spellings; `None` when it is below no device.
    pub(crate) fn parse(address: &'a str) -> Option<Self> {
        let (devices, rest) = path(address).split_once('/')?;
        let (device, mut rest) = rest.split_once('/')?;
        let mut module = None;
        if let Some((modules, below)) = rest.split_once('/')
            && modules.eq_ignore_ascii_case("modules")
        {
            let (id, after) = below.split_once('/')?;
            (module, rest) = (Some(id), after);
        }
        devices.eq_ignore_ascii_case("devices").then_some(Self {
            device,
            module,
            rest,
        })
    }

    /// Whom it names.
    ///
    /// Some clients percent-encode ids and some do not, and ids may hold `%`. So the decoded id comes
    /// first, and the text as it stands after it if that is another id. A `+` is a `+`.
    pub(crate) fn identities(&self) -> [Option<Identity>; 2] {
        let raw = identity(self.device, self.module);
        let ids = [Some(self.device), self.module];
        if !ids.into_iter().flatten().any(|id| id.contains('%')) {
            return [raw, None];
        }
        let decode = |id| percent_decode_str(id).decode_utf8().ok();
        let decoded = match (decode(self.device), self.module.map(decode)) {
            (Some(device), None) => identity(&device, None),
            (Some(device), Some(Some(module))) => identity(&device, Some(&module)),
            _ => None,
        };
        match decoded {
            Some(_) => [
                decoded.clone(),
                raw.filter(|raw| decoded.as_ref() != Some(raw)),
            ],
            None => [raw, None],
        }
    }
}

fn identity(device: &str, module: Option<&str>) -> Option<Identity> {
    Some(Identity {
        device: device.parse().ok()?,
        module: module.map(str::parse).transpose().ok()?,
    })
}

/// The parts of a partition's address, as the client wrote them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartitionAddress<'a> {
    /// The Event Hub-compatible name.
    pub(crate) entity: Cow<'a, str>,
    /// The consumer group.
    pub(crate) group: Cow<'a, str>,
    /// The partition id.
    pub(crate) partition: Cow<'a, str>,
}

impl<'a> Address<'a> {
    /// Reads an address in any of its spellings.
    pub(crate) fn parse(address: &'a str) -> Self {
        if let Some(below) = BelowDevice::parse(address) {
            let is = |word: &str| below.rest.eq_ignore_ascii_case(word);
            let node = match () {
                () if is("messages/events") => Some(DeviceNode::Events),
                () if is("messages/devicebound") => Some(DeviceNode::DeviceBound),
                () if is("methods/devicebound") || is("twin") => Some(DeviceNode::Other),
                () => None,
            };
            if let Some(node) = node {
                return Self::Device {
                    identities: below.identities(),
                    node,
                };
            }
        }
        let path = path(address);
        let mut segments = path.split('/').map(decoded);
        let parts = [(); 6].map(|()| segments.next());
        let word = |part: &Cow<'a, str>, word: &str| part.eq_ignore_ascii_case(word);
        match parts {
            [Some(only), None, ..] if word(&only, "$cbs") => Self::Cbs,
            [Some(only), None, ..] if word(&only, "$management") => Self::Management,
            [Some(entity), None, ..] if !entity.is_empty() => Self::Entity { entity },
            [Some(messages), Some(bound), None, ..]
                if word(&messages, "messages") && word(&bound, "devicebound") =>
            {
                Self::DeviceBound
            }
            [Some(messages), Some(bound), Some(node), None, ..]
                if word(&messages, "messages") && word(&bound, "servicebound") =>
            {
                match () {
                    () if word(&node, "feedback") => Self::Feedback,
                    () if word(&node, "filenotifications") => Self::FileNotifications,
                    () => Self::Unknown,
                }
            }
            [Some(messages), Some(events), ..]
                if word(&messages, "messages") && word(&events, "events") =>
            {
                Self::Events {
                    below: path.splitn(3, '/').nth(2).unwrap_or_default(),
                }
            }
            [Some(entity), Some(partitions), Some(_), None, ..]
                if word(&partitions, "Partitions") =>
            {
                Self::Entity { entity }
            }
            [
                Some(entity),
                Some(groups),
                Some(group),
                Some(partitions),
                Some(partition),
                None,
            ] if word(&groups, "ConsumerGroups") && word(&partitions, "Partitions") => {
                Self::Partition(PartitionAddress {
                    entity,
                    group,
                    partition,
                })
            }
            _ => Self::Unknown,
        }
    }
}

/// The path of an address: without scheme, authority and slashes at either end.
pub(crate) fn path(address: &str) -> &str {
    let path = match split_uri(address) {
        Some((_authority, path)) => path,
        None => address,
    };
    path.trim_matches('/')
}

/// Host and port of an address that is a URI.
pub(crate) fn authority(address: &str) -> Option<&str> {
    split_uri(address).map(|(authority, _path)| authority)
}

fn split_uri(address: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = address.split_once("://")?;
    // A scheme is a short word; a path may well hold "://" further in.
    let is_scheme = scheme.bytes().all(|b| b.is_ascii_alphanumeric());
    is_scheme.then(|| rest.split_once('/').unwrap_or((rest, "")))
}

/// A segment without percent escapes; as it stands when they do not make UTF-8.
fn decoded(segment: &str) -> Cow<'_, str> {
    percent_decode_str(segment)
        .decode_utf8()
        .unwrap_or(Cow::Borrowed(segment))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_spelling_of_an_address_names_the_same() {
        let check = |address: &str, expected: Address<'_>| {
            assert_eq!(Address::parse(address), expected, "{address}");
        };
        let partition = |entity, group, partition| {
            Address::Partition(PartitionAddress {
                entity: Cow::Borrowed(entity),
                group: Cow::Borrowed(group),
                partition: Cow::Borrowed(partition),
            })
        };
        let entity = |entity| Address::Entity {
            entity: Cow::Borrowed(entity),
        };
        // azure-eventhub (Python), @azure/event-hubs (Node), Azure.Messaging.EventHubs (.NET)
        check(
            "amqps://localhost:5672/hub/ConsumerGroups/$Default/Partitions/0",
            partition("hub", "$Default", "0"),
        );
        check(
            "hub/ConsumerGroups/$default/Partitions/11",
            partition("hub", "$default", "11"),
        );
        check(
            "/hub/consumergroups/%24Default/partitions/1/",
            partition("hub", "$Default", "1"),
        );
        check("$cbs", Address::Cbs);
        check("$CBS", Address::Cbs);
        check("amqps://hub.example/$cbs", Address::Cbs);
        check("$management", Address::Management);
        check("hub/$management", Address::Unknown);
        check("hub", entity("hub"));
        check("amqps://localhost/hub", entity("hub"));
        check("/hub/Partitions/3", entity("hub"));
        check("", Address::Unknown);
        check("amqps://localhost", Address::Unknown);
        // azure-iot-hub (Python), azure-iothub (Node), Java's, and those of .NET and C.
        check(
            "amqps://hub1.example.test/messages/devicebound",
            Address::DeviceBound,
        );
        check("/messages/devicebound", Address::DeviceBound);
        check("/messages/deviceBound", Address::DeviceBound);
        check("messages/devicebound/", Address::DeviceBound);
        check("/messages/devicebound/dev1", Address::Unknown);
        check("/messages/serviceBound/feedback", Address::Feedback);
        check("/messages/servicebound/feedback", Address::Feedback);
        check(
            "amqps://hub1.example.test:5671/messages/servicebound/feedback",
            Address::Feedback,
        );
        check(
            "/messages/serviceBound/filenotifications",
            Address::FileNotifications,
        );
        check("/messages/serviceBound/other", Address::Unknown);
        let events = |below| Address::Events { below };
        check("messages/events", events(""));
        check("/messages/events/", events(""));
        check(
            "amqps://hub1.example.test/messages/events/$management",
            events("$management"),
        );
        check(
            "/messages/events/ConsumerGroups/g/Partitions/0",
            events("ConsumerGroups/g/Partitions/0"),
        );
        check("hub/ConsumerGroups/g/Partitions/0/more", Address::Unknown);
        check("hub/ConsumerGroups/g/Partition/0", Address::Unknown);
    }

    #[test]
    fn a_uri_has_an_authority_and_a_path_has_none() {
        let check = |address: &str, expected: Option<&str>| {
            assert_eq!(authority(address), expected, "{address}");
        };
        check("amqps://h.example:5671/a/b", Some("h.example:5671"));
        check("amqps://h.example", Some("h.example"));
        check("/a/b", None);
        check("a/b://c", None);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,60}") {
            let _ = Address::parse(&text);
        }
    }
}
