//! Questions about the Event Hubs endpoint, and the answers.

use bytes::BytesMut;
use fieldpost_amqp::message::{Message, Properties, put_map, put_properties, put_value, section};
use fieldpost_amqp::value::ValueRef;
use fieldpost_hub::events::{EventsDescription, PartitionProperties};
use fieldpost_model::Timestamp;

use super::error::Status;

const EVENT_HUB: &str = "com.microsoft:eventhub";
const PARTITION: &str = "com.microsoft:partition";

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question<'a> {
    /// The Event Hub-compatible name that it is about.
    pub(crate) entity: &'a str,
    /// What is asked.
    pub(crate) subject: Subject<'a>,
    /// A token that stands for the rights to ask, beside those of the connection.
    pub(crate) security_token: Option<&'a str>,
}

/// What a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject<'a> {
    /// The endpoint as a whole.
    EventHub,
    /// One partition, by the id given.
    Partition(&'a str),
}

impl<'a> Question<'a> {
    /// Reads a request, or gives the status that refuses it.
    pub(crate) fn of(message: &Message<'a>) -> Result<Self, Status> {
        let property = |name| {
            let map = message.application_properties?;
            map.get(name).ok()??.as_str()
        };
        if !property("operation").is_some_and(|operation| operation.eq_ignore_ascii_case("READ")) {
            return Err(Status::bad_request("the operation must be READ"));
        }
        let entity = property("name").ok_or_else(|| Status::bad_request("the name is missing"))?;
        let subject = match property("type") {
            Some(EVENT_HUB) => Subject::EventHub,
            Some(PARTITION) => Subject::Partition(
                property("partition")
                    .ok_or_else(|| Status::bad_request("the partition is missing"))?,
            ),
            _ => return Err(Status::bad_request("the type is not known")),
        };
        Ok(Self {
            entity,
            subject,
            security_token: property("security_token"),
        })
    }
}

/// Appends the description of the endpoint.
pub(crate) fn put_description(
    out: &mut BytesMut,
    correlation_id: Option<ValueRef<'_>>,
    description: &EventsDescription,
) {
    put_head(out, correlation_id, &Status::ok());
    let ids: Vec<String> = (0..description.partition_count)
        .map(|id| id.to_string())
        .collect();
    put_value(out, |e| {
        e.map(|e| {
            e.string("name");
            e.string(&description.name);
            e.string("type");
            e.string(EVENT_HUB);
            e.string("created_at");
            e.timestamp(description.created.as_millis());
            e.string("partition_count");
            e.int(description.partition_count.into());
            e.string("partition_ids");
            // The .NET client takes an array and nothing else.
            e.strings(ids.iter().map(String::as_str));
            e.string("georeplication_factor");
            e.int(1);
        });
    });
}

/// Appends the state of a partition.
pub(crate) fn put_partition(
    out: &mut BytesMut,
    correlation_id: Option<ValueRef<'_>>,
    entity: &str,
    partition: &PartitionProperties,
) {
    put_head(out, correlation_id, &Status::ok());
    put_value(out, |e| {
        e.map(|e| {
            e.string("name");
            e.string(entity);
            e.string("type");
            e.string(PARTITION);
            e.string("partition");
            e.string(&partition.partition.to_string());
            e.string("begin_sequence_number");
            e.long(number(partition.first));
            e.string("last_enqueued_sequence_number");
            e.long(partition.last.map_or(-1, number));
            e.string("last_enqueued_offset");
            e.string(&last_offset(partition.last));
            e.string("last_enqueued_time_utc");
            e.timestamp(
                partition
                    .last_enqueued
                    .unwrap_or(Timestamp::NEVER)
                    .as_millis(),
            );
            e.string("is_partition_empty");
            e.bool(partition.is_empty);
        });
    });
}

/// Appends the refusal of a request.
pub(crate) fn put_refusal(
    out: &mut BytesMut,
    correlation_id: Option<ValueRef<'_>>,
    status: &Status,
) {
    put_head(out, correlation_id, status);
    put_value(out, |value| value.null());
}

/// The offset of the last event of a partition, as clients are shown it.
pub(crate) fn last_offset(last: Option<u64>) -> String {
    last.map_or_else(|| "-1".to_owned(), |last| last.to_string())
}

pub(crate) fn number(sequence: u64) -> i64 {
    i64::try_from(sequence).unwrap_or(i64::MAX)
}

/// The properties of an answer. Clients look for the status under either of two spellings.
fn put_head(out: &mut BytesMut, correlation_id: Option<ValueRef<'_>>, status: &Status) {
    put_properties(
        out,
        &Properties {
            correlation_id,
            ..Properties::default()
        },
    );
    put_map(out, section::APPLICATION_PROPERTIES, |e| {
        for key in ["status-code", "statusCode"] {
            e.string(key);
            e.int(status.code);
        }
        for key in ["status-description", "statusDescription"] {
            e.string(key);
            e.string(&status.description);
        }
        if let Some(condition) = status.condition {
            for key in ["error-condition", "errorCondition"] {
                e.string(key);
                e.symbol(condition);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use fieldpost_amqp::message::Body;
    use fieldpost_amqp::value::{Array, Value};
    use fieldpost_model::PartitionId;

    use super::*;

    #[test]
    fn questions_are_read_and_incomplete_ones_refused() {
        let check = |properties: &[(&str, &str)], expected: Result<Question<'_>, i32>| {
            let mut bytes = BytesMut::new();
            put_map(&mut bytes, section::APPLICATION_PROPERTIES, |e| {
                for (key, value) in properties {
                    e.string(key);
                    e.string(value);
                }
            });
            let message = Message::parse(&bytes).unwrap();
            let read = Question::of(&message).map_err(|status| status.code);
            assert_eq!(read, expected, "{properties:?}");
        };
        let read = ("operation", "READ");
        let name = ("name", "hub");
        let hub = ("type", EVENT_HUB);
        let partition = ("type", PARTITION);
        check(
            &[read, name, hub, ("security_token", "t")],
            Ok(Question {
                entity: "hub",
                subject: Subject::EventHub,
                security_token: Some("t"),
            }),
        );
        check(
            &[read, name, partition, ("partition", "3")],
            Ok(Question {
                entity: "hub",
                subject: Subject::Partition("3"),
                security_token: None,
            }),
        );
        check(&[read, name, partition], Err(400));
        check(&[read, name, ("type", "com.microsoft:other")], Err(400));
        check(&[read, hub], Err(400));
        check(&[("operation", "DELETE"), name, hub], Err(400));
        check(&[], Err(400));
    }

    #[test]
    fn answers_have_the_types_that_clients_cast_to() {
        let body = |bytes: &BytesMut| match Message::parse(bytes).unwrap().body {
            Body::Value(ValueRef::Map(map)) => map.to_map().unwrap(),
            other => panic!("{other:?}"),
        };
        let mut out = BytesMut::new();
        let description = EventsDescription {
            name: "hub".to_owned(),
            created: Timestamp::from_millis(5),
            partition_count: 2,
        };
        put_description(&mut out, Some(ValueRef::Uuid([7; 16])), &description);
        let answer = body(&out);
        let check = |key: &str, expected: Value| assert_eq!(answer.get(key), Some(&expected));
        check("name", Value::from("hub"));
        check("created_at", Value::Timestamp(5));
        check("partition_count", Value::Int(2));
        check("partition_ids", Value::Array(Array::of_strings(["0", "1"])));
        let properties = Message::parse(&out).unwrap().properties().unwrap();
        assert_eq!(properties.correlation_id, Some(ValueRef::Uuid([7; 16])));

        let mut out = BytesMut::new();
        let empty = PartitionProperties {
            partition: PartitionId(1),
            first: 0,
            last: None,
            last_enqueued: None,
            is_empty: true,
        };
        put_partition(&mut out, None, "hub", &empty);
        let answer = body(&out);
        let check = |key: &str, expected: Value| assert_eq!(answer.get(key), Some(&expected));
        check("partition", Value::from("1"));
        check("begin_sequence_number", Value::Long(0));
        check("last_enqueued_sequence_number", Value::Long(-1));
        check("last_enqueued_offset", Value::from("-1"));
        check(
            "last_enqueued_time_utc",
            Value::Timestamp(-62_135_596_800_000),
        );
        check("is_partition_empty", Value::Bool(true));
    }
}
