//! What a client asks for when it attaches a receiver to a partition.

use fieldpost_amqp::performative::{Attach, Source};
use fieldpost_amqp::value::{Descriptor, Map, Value};
use fieldpost_hub::events::StartPosition;

use super::selector::{self, SelectorError};

/// Link property: the owner level ("epoch"). Absent means that the receiver has none; 0 is one.
const EPOCH: &str = "com.microsoft:epoch";
/// Link property: a name for the texts that tell receivers apart.
const RECEIVER_NAME: &str = "com.microsoft:receiver-name";
/// Desired capability: the state of the partition with each event.
const RUNTIME_METRIC: &str = "com.microsoft:enable-receiver-runtime-metric";
/// Name of the filter that holds the start position.
const SELECTOR: &str = "apache.org:selector-filter:string";
/// Descriptors under which clients send that filter besides its name: registered with Apache, and
/// that of .NET's AMQP library.
const SELECTOR_CODES: [u64; 2] = [0x0000_468C_0000_0004, 0x0000_0013_7000_000A];

/// Characters of a receiver's name that are kept (Event Hubs allows 64).
const RECEIVER_NAME_CHARS_MAX: usize = 64;

/// The wishes of a client that attaches to a partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReceiverRequest {
    /// Its owner level, if it has one.
    pub(crate) owner_level: Option<i64>,
    /// How it calls itself.
    pub(crate) receiver_name: Option<String>,
    /// Whether it wants the state of the partition with each event.
    pub(crate) runtime_metric: bool,
    /// Where it wants to start.
    pub(crate) start: StartPosition,
}

/// Why a client's wishes cannot be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidReceiver {
    /// The owner level is not a number from 0 on.
    #[error("the owner level must be a number that is not negative")]
    OwnerLevel,
    /// The filter is not a text.
    #[error("the selector filter must be a string")]
    Filter,
    /// The filter's text is not understood.
    #[error(transparent)]
    Selector(#[from] SelectorError),
}

impl ReceiverRequest {
    /// Reads an attach whose role is receiver.
    pub(crate) fn of(attach: &Attach) -> Result<Self, InvalidReceiver> {
        let property = |name| attach.properties.as_ref().and_then(|map| map.get(name));
        let owner_level = match property(EPOCH) {
            None | Some(Value::Null) => None,
            Some(value) => Some(
                value
                    .as_i64()
                    .filter(|level| *level >= 0)
                    .ok_or(InvalidReceiver::OwnerLevel)?,
            ),
        };
        let receiver_name = property(RECEIVER_NAME)
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
            .map(|name| name.chars().take(RECEIVER_NAME_CHARS_MAX).collect());
        let runtime_metric = attach
            .desired_capabilities
            .iter()
            .any(|capability| capability.as_str() == RUNTIME_METRIC);
        let start = match attach.source.as_ref().and_then(selector_text) {
            None => StartPosition::Earliest,
            Some(text) => selector::parse(text.ok_or(InvalidReceiver::Filter)?)?,
        };
        Ok(Self {
            owner_level,
            receiver_name,
            runtime_metric,
            start,
        })
    }
}

/// The text of the selector filter; the inner `None` when there is one that is not a text.
fn selector_text(source: &Source) -> Option<Option<&str>> {
    let Map(filters) = source.filter.as_ref()?;
    let (_, value) = filters.iter().find(|(name, value)| {
        !value.is_null() && (name.as_str() == Some(SELECTOR) || has_selector_descriptor(value))
    })?;
    Some(match value {
        Value::Described(described) => described.value.as_str(),
        plain => plain.as_str(),
    })
}

fn has_selector_descriptor(value: &Value) -> bool {
    let Value::Described(described) = value else {
        return false;
    };
    match &described.descriptor {
        Descriptor::Code(code) => SELECTOR_CODES.contains(code),
        Descriptor::Name(name) => name.as_str() == SELECTOR,
    }
}

#[cfg(test)]
mod tests {
    use fieldpost_amqp::value::{Described, Symbol};

    use super::*;

    fn attach(filter: Option<Map>, properties: Map, capability: &'static str) -> Attach {
        Attach {
            source: Some(Source {
                filter,
                ..Source::default()
            }),
            properties: Some(properties),
            desired_capabilities: vec![Symbol::from_static(capability)],
            ..Attach::default()
        }
    }

    #[test]
    fn the_start_is_found_under_each_descriptor_that_clients_use() {
        let check = |filter: Option<Map>, expected: Result<StartPosition, InvalidReceiver>| {
            let attach = attach(filter.clone(), Map::new(), "other");
            let start = ReceiverRequest::of(&attach).map(|request| request.start);
            assert_eq!(start, expected, "{filter:?}");
        };
        let text = || Value::from("amqp.annotation.x-opt-offset > '7'");
        let described =
            |descriptor, value| Value::Described(Box::new(Described { descriptor, value }));
        let named = |value: Value| Some(Map::new().with(SELECTOR, value));
        let seven = Ok(StartPosition::Offset {
            number: 7,
            inclusive: false,
        });
        check(None, Ok(StartPosition::Earliest));
        check(Some(Map::new()), Ok(StartPosition::Earliest));
        check(named(Value::Null), Ok(StartPosition::Earliest));
        check(named(text()), seven);
        let code = Descriptor::Code;
        check(named(described(code(0x0000_468C_0000_0004), text())), seven);
        check(named(described(code(0x0000_0013_7000_000A), text())), seven);
        let name = Descriptor::Name(Symbol::from_static(SELECTOR));
        check(named(described(name.clone(), text())), seven);
        check(
            Some(Map::new().with("mine", described(name, text()))),
            seven,
        );
        check(
            Some(Map::new().with("jms-no-local", described(code(3), Value::Null))),
            Ok(StartPosition::Earliest),
        );
        check(named(Value::Int(7)), Err(InvalidReceiver::Filter));
        check(
            named(Value::from("colour = 'red'")),
            Err(InvalidReceiver::Selector(SelectorError::Syntax)),
        );
    }

    #[test]
    fn owner_level_name_and_metric_are_read_from_the_attach() {
        let check = |properties: Map, expected: Result<(Option<i64>, Option<&str>), _>| {
            let request = ReceiverRequest::of(&attach(None, properties, RUNTIME_METRIC));
            let read = request.as_ref().map(|request| {
                assert!(request.runtime_metric);
                (request.owner_level, request.receiver_name.as_deref())
            });
            assert_eq!(read, expected.as_ref().map(|e| *e));
        };
        check(Map::new(), Ok((None, None)));
        check(Map::new().with(EPOCH, Value::Null), Ok((None, None)));
        check(Map::new().with(EPOCH, 0i64), Ok((Some(0), None)));
        check(Map::new().with(EPOCH, Value::Int(5)), Ok((Some(5), None)));
        check(
            Map::new().with(RECEIVER_NAME, "reader"),
            Ok((None, Some("reader"))),
        );
        check(
            Map::new().with(EPOCH, -1i64),
            Err(InvalidReceiver::OwnerLevel),
        );
        check(
            Map::new().with(EPOCH, "high"),
            Err(InvalidReceiver::OwnerLevel),
        );
    }
}
