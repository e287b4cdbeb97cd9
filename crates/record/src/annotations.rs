//! The message annotations that consumers of the built-in endpoint get with each event.

use bytes::{BufMut, BytesMut};
use fieldpost_model::{SequenceNumber, Timestamp};

use crate::sections::{self, code, length32};
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
    sections::put_descriptor(out, sections::MESSAGE_ANNOTATIONS);
    out.put_u8(code::MAP.long);
    let size_at = out.len();
    out.put_u32(0);
    let count_at = out.len();
    out.put_u32(0);
    let mut map = Map { out, entries: 0 };

    // The numbers of 2^63 and beyond would take longer than the sun lasts.
    let sequence = i64::try_from(position.sequence).unwrap_or(i64::MAX);
    map.number("x-opt-sequence-number", code::LONG, sequence);
    map.offset("x-opt-offset", position.sequence);
    map.number(
        "x-opt-enqueued-time",
        code::TIMESTAMP,
        position.enqueued.as_millis(),
    );
    map.text("x-opt-partition-key", Some(envelope.device_id));
    map.text("iothub-connection-device-id", Some(envelope.device_id));
    map.text("iothub-connection-module-id", envelope.module_id);
    map.text(
        "iothub-connection-auth-method",
        Some(envelope.auth.as_json()),
    );
    map.text(
        "iothub-connection-auth-generation-id",
        Some(envelope.generation_id),
    );
    map.number(
        "iothub-enqueuedtime",
        code::TIMESTAMP,
        envelope.accepted.as_millis(),
    );
    map.text("iothub-message-source", Some(envelope.source.as_str()));
    map.text("dt-dataschema", envelope.model_id);
    map.text("dt-subject", record.component());
    map.text("iothub-interface-id", record.interface_id());

    let items = 2 * map.entries;
    if let Some(count) = out.get_mut(count_at..count_at + 4) {
        count.copy_from_slice(&length32(items).to_be_bytes());
    }
    sections::patch_length32(out, size_at, u32::to_be_bytes);
}

struct Map<'a> {
    out: &'a mut BytesMut,
    entries: usize,
}

impl Map<'_> {
    fn text(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.key(key);
            sections::put_variable(self.out, code::STRING, value.as_bytes());
        }
    }

    fn number(&mut self, key: &str, constructor: u8, value: i64) {
        self.key(key);
        self.out.put_u8(constructor);
        self.out.put_i64(value);
    }

    fn offset(&mut self, key: &str, sequence: SequenceNumber) {
        self.key(key);
        let (digits, start) = decimal(sequence);
        let digits = digits.get(start..).unwrap_or_default();
        sections::put_variable(self.out, code::STRING, digits);
    }

    fn key(&mut self, key: &str) {
        self.entries += 1;
        sections::put_variable(self.out, code::SYMBOL, key.as_bytes());
    }
}

/// The decimal digits of a number, at the end of the array from the index returned; on the stack
/// because this happens for each event delivered.
fn decimal(mut number: u64) -> ([u8; 20], usize) {
    let mut digits = [b'0'; 20];
    let mut start = digits.len();
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        let [low, ..] = (number % 10).to_le_bytes();
        *digit = b'0' + low;
        start = at;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    (digits, start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_plain_decimal_numbers() {
        for number in [0, 7, 10, 4200, u64::from(u32::MAX), u64::MAX] {
            let (digits, start) = decimal(number);
            assert_eq!(digits[start..], *number.to_string().as_bytes());
        }
    }
}
