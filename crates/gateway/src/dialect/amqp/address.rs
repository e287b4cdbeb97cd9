//! Link addresses.
//!
//! Clients write one address in three ways: as a URI (`amqps://host:5671/a/b`), with a leading
//! slash (`/a/b`) and without one (`a/b`). The authority is never used for routing: clients sign and
//! write the name that they were given, also when they reached the hub under another one. Fixed
//! words compare without case.

use std::borrow::Cow;

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
    /// Anything else.
    Unknown,
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
        let mut segments = path(address).split('/').map(decoded);
        let parts = [(); 6].map(|()| segments.next());
        let word = |part: &Cow<'a, str>, word: &str| part.eq_ignore_ascii_case(word);
        match parts {
            [Some(only), None, ..] if word(&only, "$cbs") => Self::Cbs,
            [Some(only), None, ..] if word(&only, "$management") => Self::Management,
            [Some(entity), None, ..] if !entity.is_empty() => Self::Entity { entity },
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
    let rest = match address.split_once("://") {
        // A scheme is a short word; a path may well hold "://" further in.
        Some((scheme, rest)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => {
            rest.split_once('/').map_or("", |(_authority, path)| path)
        }
        _ => address,
    };
    rest.trim_matches('/')
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
        check("/messages/devicebound", Address::Unknown);
        check(
            "/messages/events/ConsumerGroups/g/Partitions/0",
            Address::Unknown,
        );
        check("hub/ConsumerGroups/g/Partitions/0/more", Address::Unknown);
        check("hub/ConsumerGroups/g/Partition/0", Address::Unknown);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,60}") {
            let _ = Address::parse(&text);
        }
    }
}
