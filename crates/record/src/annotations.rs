//! The message annotations that consumers of the built-in endpoint get with each event.

use bytes::BytesMut;
use fieldpost_amqp::message::{put_map, section};
use fieldpost_amqp::value::Encoder;
use fieldpost_model::{SequenceNumber, Timestamp};

use crate::view::RecordView;

/// Where an event stands in its partition; given out by the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Its sequence number, which in decimal is its offset.
    pub sequence: SequenceNumber,
    /// When it was appended.
    pub enqueued: Timestamp,
}

/// Appends the `message-annotations` section of an event to `out`.
///
/// Keys are symbols; names and types are those of Azure IoT Hub's built-in endpoint. The offset is
/// the sequence number in decimal, as a string.
pub fn write_annotations(out: &mut BytesMut, record: &RecordView<'_>, position: Position) {
    let envelope = record.envelope();
    put_map(out, section::MESSAGE_ANNOTATIONS, |e| {
        e.symbol("x-opt-sequence-number");
        // At a million events a second, 2^63 is 292,000 years away.
        e.long(i64::try_from(position.sequence).unwrap_or(i64::MAX));
        e.symbol("x-opt-offset");
        e.string(Decimal::of(position.sequence).as_str());
        e.symbol("x-opt-enqueued-time");
        e.timestamp(position.enqueued.as_millis());
        text(e, "x-opt-partition-key", Some(envelope.device_id));
        text(e, "iothub-connection-device-id", Some(envelope.device_id));
        text(e, "iothub-connection-module-id", envelope.module_id);
        text(
            e,
            "iothub-connection-auth-method",
            Some(envelope.auth.as_json()),
        );
        text(
            e,
            "iothub-connection-auth-generation-id",
            Some(envelope.generation_id),
        );
        e.symbol("iothub-enqueuedtime");
        e.timestamp(envelope.accepted.as_millis());
        text(e, "iothub-message-source", Some(envelope.source.as_str()));
        text(e, "dt-dataschema", envelope.model_id);
        text(e, "dt-subject", record.component());
        text(e, "iothub-interface-id", record.interface_id());
    });
}

fn text(e: &mut Encoder<'_>, key: &str, value: Option<&str>) {
    if let Some(value) = value {
        e.symbol(key);
        e.string(value);
    }
}

/// A number in decimal, without an allocation: one is written for each event delivered.
struct Decimal {
    digits: [u8; 20],
    start: usize,
}

impl Decimal {
    fn of(mut number: u64) -> Self {
        let mut digits = [b'0'; 20];
        let mut start = digits.len();
        for digit in digits.iter_mut().rev() {
            let [low, ..] = (number % 10).to_le_bytes();
            *digit = b'0' + low;
            start -= 1;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        Self { digits, start }
    }

    fn as_str(&self) -> &str {
        let digits = self.digits.get(self.start..).unwrap_or_default();
        str::from_utf8(digits).expect("digits are ASCII")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_plain_decimal_numbers() {
        for number in [0, 7, 10, 4200, u64::from(u32::MAX), u64::MAX] {
            assert_eq!(Decimal::of(number).as_str(), number.to_string());
        }
    }
}
