//! Rows of the queues as bytes. `docs/formats/queues.md` describes each byte; the tests here pin
//! them.

use bytes::{Buf, BufMut, Bytes};
use fieldpost_model::Timestamp;
use fieldpost_store::queues::{
    DuePosition, Lane, LaneFigures, Outcome, OutcomeNumber, QUEUE_NAME_BYTES_MAX, QueueName,
    QueuedMessage,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::keyvalue::engine::Space;
use crate::keyvalue::rows::{ROW_HEADER_BYTES, RowError, exact, number, open, seal};

/// The key of the row in [`Space::Meta`] with the newest message's number.
pub(crate) const SEQUENCE_KEY: &[u8] = b"queues";

/// What the keys of lane rows in [`Space::Meta`] start with.
pub(crate) const LANE_PREFIX: &[u8] = b"lane";

/// Expiry and delivery count in front of a message.
const MESSAGE_HEAD_BYTES: usize = 12;

/// What stands in front of a queue and a record in a row of outcomes.
pub(super) const RECORD_HEAD_BYTES: usize = 18;

/// What one commit leaves of a lane to the next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LaneRow {
    /// The number of the last record written.
    pub(crate) last: OutcomeNumber,
    /// Records up to and with this one are forgotten, also where a row still has them.
    pub(crate) forgotten: OutcomeNumber,
    /// Records that are there.
    pub(crate) count: u64,
    /// Bytes of records that are there.
    pub(crate) bytes: u64,
}

impl LaneRow {
    pub(super) fn figures(self) -> LaneFigures {
        LaneFigures {
            last: self.last,
            count: self.count,
            bytes: self.bytes,
        }
    }
}

/// An outcome record where it stands in its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordView<'a> {
    pub(crate) number: OutcomeNumber,
    pub(crate) queue: &'a [u8],
    pub(crate) sequence: u64,
    pub(crate) record: &'a [u8],
}

impl RecordView<'_> {
    pub(super) fn to_outcome(self) -> Outcome {
        Outcome {
            number: self.number,
            queue: QueueName(Bytes::copy_from_slice(self.queue)),
            sequence: self.sequence,
            record: Bytes::copy_from_slice(self.record),
        }
    }
}

/// The key of a message. The length of the name stands in front of it, so that the messages of a
/// queue stand together whatever other queues are called; and in front of that a number made from
/// the name, because names begin alike, and the engine compares the first four bytes of keys many
/// times faster than the rest.
pub(crate) fn put_message_key(out: &mut Vec<u8>, queue: &[u8], sequence: u64) {
    out.put_u32(place(queue));
    // Names are bounded far below.
    out.put_u16(u16::try_from(queue.len()).unwrap_or(u16::MAX));
    out.put_slice(queue);
    out.put_u64(sequence);
}

fn place(queue: &[u8]) -> u32 {
    let number = xxh3_64(queue) >> 32;
    u32::try_from(number).unwrap_or(u32::MAX)
}

pub(crate) fn message_key(queue: &[u8], sequence: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(queue.len() + 14);
    put_message_key(&mut key, queue, sequence);
    key
}

pub(crate) fn split_message_key(mut key: &[u8]) -> Option<(&[u8], u64)> {
    let place = key.try_get_u32().ok()?;
    let length = usize::from(key.try_get_u16().ok()?);
    let (queue, mut rest) = key.split_at_checked(length)?;
    let sequence = rest.try_get_u64().ok()?;
    let sound = rest.is_empty() && is_name(queue) && place == self::place(queue);
    sound.then_some((queue, sequence))
}

pub(crate) fn parse_message_key(key: &[u8]) -> Result<(&[u8], u64), RowError> {
    split_message_key(key)
        .ok_or_else(|| RowError::new(Space::Messages, key, "the key is not one of a message"))
}

/// The fields of a message's row.
pub(crate) fn put_message(out: &mut Vec<u8>, expires: Timestamp, count: u32, message: &[u8]) {
    out.put_i64_le(expires.as_millis());
    out.put_u32_le(count);
    out.put_slice(message);
}

/// When the message of a row expires, and how often it was delivered.
pub(crate) fn parse_message_head(key: &[u8], row: &[u8]) -> Result<(Timestamp, u32), RowError> {
    let mut fields = open(Space::Messages, key, row)?;
    match (fields.try_get_i64_le(), fields.try_get_u32_le()) {
        (Ok(expires), Ok(count)) => Ok((Timestamp::from_millis(expires), count)),
        _ => Err(RowError::new(Space::Messages, key, "the row is too short")),
    }
}

/// A message from its row.
pub(crate) fn parse_message(
    key: &[u8],
    sequence: u64,
    row: &[u8],
) -> Result<QueuedMessage, RowError> {
    let (expires, delivery_count) = parse_message_head(key, row)?;
    Ok(QueuedMessage {
        sequence,
        expires,
        delivery_count,
        message: Bytes::copy_from_slice(message_of(row)),
    })
}

/// The message in a row that was parsed before.
pub(crate) fn message_of(row: &[u8]) -> &[u8] {
    row.get(ROW_HEADER_BYTES + MESSAGE_HEAD_BYTES..)
        .unwrap_or_default()
}

/// The key of a message in the order of expiry. The sign of the time is turned over, so that times
/// before 1970 come first.
pub(crate) fn put_due_key(out: &mut Vec<u8>, position: DuePosition) {
    out.put_i64(position.expires.as_millis() ^ i64::MIN);
    out.put_u64(position.sequence);
}

pub(crate) fn due_key(position: DuePosition) -> Vec<u8> {
    let mut key = Vec::with_capacity(16);
    put_due_key(&mut key, position);
    key
}

/// A place in the order of expiry as the number that its key is.
pub(crate) fn due_number(position: DuePosition) -> u128 {
    let key = due_key(position);
    key.iter().fold(0, |sum, byte| sum << 8 | u128::from(*byte))
}

pub(crate) fn split_due_key(mut key: &[u8]) -> Option<DuePosition> {
    let expires = key.try_get_i64().ok()?;
    let sequence = key.try_get_u64().ok()?;
    key.is_empty().then_some(DuePosition {
        expires: Timestamp::from_millis(expires ^ i64::MIN),
        sequence,
    })
}

/// Where a row stands in the order of expiry, and the queue of its message.
pub(crate) fn parse_due<'a>(
    key: &[u8],
    row: &'a [u8],
) -> Result<(DuePosition, &'a [u8]), RowError> {
    let position = split_due_key(key)
        .ok_or_else(|| RowError::new(Space::Due, key, "the key is not an expiry"))?;
    let queue = open(Space::Due, key, row)?;
    if !is_name(queue) {
        return Err(RowError::new(Space::Due, key, "the row has no queue"));
    }
    Ok((position, queue))
}

/// The key of a row of outcomes: the number of the last record that was written into it.
pub(crate) fn put_outcomes_key(out: &mut Vec<u8>, lane: Lane, last: OutcomeNumber) {
    out.put_u8(lane.0);
    out.put_u64(last);
}

pub(crate) fn outcomes_key(lane: Lane, last: OutcomeNumber) -> Vec<u8> {
    let mut key = Vec::with_capacity(9);
    put_outcomes_key(&mut key, lane, last);
    key
}

pub(crate) fn split_outcomes_key(mut key: &[u8]) -> Option<(Lane, OutcomeNumber)> {
    let lane = key.try_get_u8().ok()?;
    let last = key.try_get_u64().ok()?;
    key.is_empty().then_some((Lane(lane), last))
}

pub(crate) fn parse_outcomes_key(key: &[u8]) -> Result<(Lane, OutcomeNumber), RowError> {
    split_outcomes_key(key)
        .ok_or_else(|| RowError::new(Space::Outcomes, key, "the key is not one of outcomes"))
}

/// One record among the fields of a row of outcomes whose key has `last`.
pub(crate) fn put_record(out: &mut Vec<u8>, last: OutcomeNumber, record: RecordView<'_>) {
    // Records of one row are written in one commit, and their lengths are bounded far below.
    let back = u32::try_from(last.saturating_sub(record.number)).unwrap_or(u32::MAX);
    out.put_u32_le(back);
    out.put_u16_le(u16::try_from(record.queue.len()).unwrap_or(u16::MAX));
    out.put_u32_le(u32::try_from(record.record.len()).unwrap_or(u32::MAX));
    out.put_u64_le(record.sequence);
    out.put_slice(record.queue);
    out.put_slice(record.record);
}

/// The records of a row, at least one, in the order of their numbers.
pub(crate) fn parse_outcomes<'a>(
    key: &[u8],
    row: &'a [u8],
) -> Result<Vec<RecordView<'a>>, RowError> {
    let (_, last) = parse_outcomes_key(key)?;
    let mut rest = open(Space::Outcomes, key, row)?;
    let error = |what| RowError::new(Space::Outcomes, key, what);
    let mut records: Vec<RecordView<'_>> = Vec::new();
    while !rest.is_empty() {
        let record = take_record(last, &mut rest).ok_or_else(|| error("the row is too short"))?;
        let before = records.last().map_or(0, |before| before.number);
        if record.number <= before {
            return Err(error("the row's records are out of order"));
        }
        records.push(record);
    }
    if records.is_empty() {
        return Err(error("the row has no records"));
    }
    Ok(records)
}

fn take_record<'a>(last: OutcomeNumber, rest: &mut &'a [u8]) -> Option<RecordView<'a>> {
    let back = rest.try_get_u32_le().ok()?;
    let queue_length = usize::from(rest.try_get_u16_le().ok()?);
    let record_length = usize::try_from(rest.try_get_u32_le().ok()?).ok()?;
    let sequence = rest.try_get_u64_le().ok()?;
    let (queue, after) = rest.split_at_checked(queue_length)?;
    let (record, after) = after.split_at_checked(record_length)?;
    *rest = after;
    Some(RecordView {
        number: last.checked_sub(u64::from(back))?,
        queue,
        sequence,
        record,
    })
}

/// The mark of a queue in [`Space::Marks`]; its key is the queue's name.
pub(crate) fn parse_mark(queue: &[u8], row: &[u8]) -> Result<u64, RowError> {
    number(Space::Marks, queue, row)
}

/// The row in [`Space::Meta`] with the newest message's number and the lanes that have rows there.
pub(crate) fn sequence_row(sequence: u64, lanes: impl IntoIterator<Item = Lane>) -> Vec<u8> {
    seal(Space::Meta, SEQUENCE_KEY, 16, |row| {
        row.put_u64_le(sequence);
        row.extend(lanes.into_iter().map(|lane| lane.0));
    })
}

/// The newest message's number, and the lanes.
pub(crate) fn parse_sequence(row: &[u8]) -> Result<(u64, Vec<Lane>), RowError> {
    let mut fields = open(Space::Meta, SEQUENCE_KEY, row)?;
    let error = |what| RowError::new(Space::Meta, SEQUENCE_KEY, what);
    let sequence = fields
        .try_get_u64_le()
        .map_err(|_| error("the row is too short"))?;
    if !fields.is_sorted_by(|one, next| one < next) {
        return Err(error("the row's lanes are out of order"));
    }
    Ok((sequence, fields.iter().copied().map(Lane).collect()))
}

pub(crate) fn lane_key(lane: Lane) -> Vec<u8> {
    [LANE_PREFIX, &[lane.0]].concat()
}

pub(crate) fn split_lane_key(key: &[u8]) -> Option<Lane> {
    match key.strip_prefix(LANE_PREFIX)? {
        [lane] => Some(Lane(*lane)),
        _ => None,
    }
}

/// The fields of a lane's row in [`Space::Meta`].
pub(crate) fn put_lane(out: &mut Vec<u8>, lane: LaneRow) {
    out.put_u64_le(lane.last);
    out.put_u64_le(lane.forgotten);
    out.put_u64_le(lane.count);
    out.put_u64_le(lane.bytes);
}

pub(crate) fn parse_lane(key: &[u8], row: &[u8]) -> Result<LaneRow, RowError> {
    let fields: [u8; 32] = exact(Space::Meta, key, row)?;
    let mut fields = &fields[..];
    Ok(LaneRow {
        last: fields.get_u64_le(),
        forgotten: fields.get_u64_le(),
        count: fields.get_u64_le(),
        bytes: fields.get_u64_le(),
    })
}

fn is_name(queue: &[u8]) -> bool {
    !queue.is_empty() && queue.len() <= QUEUE_NAME_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::keyvalue::engine::Writes;

    /// Key and row of one write, in hexadecimal.
    fn written(write: impl FnOnce(&mut Writes)) -> (String, String) {
        let mut writes = Writes::default();
        write(&mut writes);
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let (_, key, row) = writes.rows().next().unwrap();
        (hex(key), hex(row.unwrap()))
    }

    #[test]
    fn the_bytes_of_each_row_are_those_of_format_2() {
        let check = |(key, row): (String, String), expected_key: &str, expected: &str| {
            assert_eq!((&key[..], &row[..]), (expected_key, expected));
        };
        let expires = Timestamp::from_millis(1_800_000_000_000);
        check(
            written(|writes| {
                writes.seal(
                    Space::Messages,
                    |key| put_message_key(key, b"q1", 258),
                    |row| put_message(row, expires, 3, b"on"),
                );
            }),
            "bb3db58d000271310000000000000102",
            "0c64e8030100505c18a3010000030000006f6e",
        );
        let position = DuePosition {
            expires,
            sequence: 258,
        };
        check(
            written(|writes| {
                writes.seal(
                    Space::Due,
                    |key| put_due_key(key, position),
                    |row| row.extend_from_slice(b"q1"),
                );
            }),
            "800001a3185c50000000000000000102",
            "4fded0af017131",
        );
        let records = [(6, 258, &b"done"[..]), (8, 259, b"gone")];
        check(
            written(|writes| {
                writes.seal(
                    Space::Outcomes,
                    |key| put_outcomes_key(key, Lane(2), 9),
                    |row| {
                        for (number, sequence, record) in records {
                            let view = RecordView {
                                number,
                                queue: b"q1",
                                sequence,
                                record,
                            };
                            put_record(row, 9, view);
                        }
                    },
                );
            }),
            "020000000000000009",
            "a972c127010300000002000400000002010000000000007131646f6e650100000002000400000003010000000000007131676f6e65",
        );
        check(
            written(|writes| {
                writes.seal(
                    Space::Marks,
                    |key| key.extend_from_slice(b"q1"),
                    |row| row.put_u64_le(7),
                );
            }),
            "7131",
            "3f756ff1010700000000000000",
        );
        check(
            written(|writes| {
                let row = sequence_row(259, [Lane(2)]);
                writes.put(Space::Meta, SEQUENCE_KEY, &row);
            }),
            "717565756573",
            "2251831501030100000000000002",
        );
        let lane = LaneRow {
            last: 9,
            forgotten: 5,
            count: 2,
            bytes: 8,
        };
        check(
            written(|writes| {
                let key = lane_key(Lane(2));
                writes.seal(
                    Space::Meta,
                    |out| out.extend_from_slice(&key),
                    |row| put_lane(row, lane),
                );
            }),
            "6c616e6502",
            "76d60fcb010900000000000000050000000000000002000000000000000800000000000000",
        );
    }

    #[test]
    fn keys_keep_the_order_of_what_they_stand_for() {
        let check = |earlier: (i64, u64), later: (i64, u64)| {
            let key = |(millis, sequence)| {
                due_key(DuePosition {
                    expires: Timestamp::from_millis(millis),
                    sequence,
                })
            };
            assert!(key(earlier) < key(later), "{earlier:?} {later:?}");
        };
        check((i64::MIN, 5), (-1, 0));
        check((-1, u64::MAX), (0, 0));
        check((0, 255), (0, 256));
        check((255, 9), (256, 1));
        check((1, 1), (i64::MAX, 0));
        assert!(message_key(b"q", 255) < message_key(b"q", 256));
        assert!(outcomes_key(Lane(1), u64::MAX) < outcomes_key(Lane(2), 0));
    }

    #[test]
    fn a_row_of_outcomes_has_records_in_order_up_to_its_key() {
        let key = outcomes_key(Lane(1), 10);
        let row = |numbers: &[u64]| {
            seal(Space::Outcomes, &key, 0, |row| {
                for number in numbers {
                    let view = RecordView {
                        number: *number,
                        queue: b"q",
                        sequence: 1,
                        record: b"",
                    };
                    put_record(row, 10, view);
                }
            })
        };
        let check = |numbers: &[u64], sound: bool| {
            assert_eq!(
                parse_outcomes(&key, &row(numbers)).is_ok(),
                sound,
                "{numbers:?}"
            );
        };
        check(&[1], true);
        check(&[8, 9, 10], true);
        check(&[3, 7], true);
        check(&[], false);
        check(&[0], false);
        check(&[8, 8], false);
        check(&[9, 8], false);
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_noticed_and_so_is_a_wrong_place(
            queue in prop::collection::vec(any::<u8>(), 1..40),
            sequence: u64,
            millis: i64,
            count: u32,
            message in prop::collection::vec(any::<u8>(), 0..300),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let expires = Timestamp::from_millis(millis);
            let key = message_key(&queue, sequence);
            prop_assert_eq!(split_message_key(&key), Some((&queue[..], sequence)));
            let row = seal(Space::Messages, &key, 0, |row| put_message(row, expires, count, &message));
            let read = parse_message(&key, sequence, &row).unwrap();
            prop_assert_eq!(
                (read.sequence, read.expires, read.delivery_count, &read.message[..]),
                (sequence, expires, count, &message[..])
            );
            let other = message_key(&queue, sequence ^ 1);
            prop_assert!(parse_message(&other, sequence, &row).is_err());
            let position = DuePosition { expires, sequence };
            prop_assert_eq!(split_due_key(&due_key(position)), Some(position));
            prop_assert!(parse_due(&due_key(position), &row).is_err());
            let cut = at.index(row.len());
            prop_assert!(parse_message(&key, sequence, &row[..cut]).is_err());
            let mut damaged = row;
            damaged[cut] ^= flip;
            prop_assert!(parse_message(&key, sequence, &damaged).is_err());
        }

        #[test]
        fn no_bytes_make_parsing_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = split_message_key(&bytes);
            let _ = split_due_key(&bytes);
            let _ = split_outcomes_key(&bytes);
            let _ = split_lane_key(&bytes);
            let key = outcomes_key(Lane(1), 7);
            let row = seal(Space::Outcomes, &key, 0, |row| row.extend_from_slice(&bytes));
            let _ = parse_outcomes(&key, &row);
            let row = seal(Space::Messages, b"k", 0, |row| row.extend_from_slice(&bytes));
            let _ = parse_message(b"k", 1, &row);
            let _ = parse_mark(b"k", &bytes);
            let _ = parse_lane(b"k", &bytes);
            let _ = parse_sequence(&bytes);
        }
    }
}
