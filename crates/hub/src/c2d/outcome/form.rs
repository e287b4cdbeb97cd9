//! The stored forms of outcomes, as `docs/formats/outcomes.md` describes them.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fieldpost_model::Timestamp;
use fieldpost_record::RecordError;

use super::{ATTEMPTS_KEPT, Attempt, AttemptEnd, AttemptReceiver, Attempts, Cause};

/// The version of all records here but one.
const VERSION: u8 = 1;

/// The version of [`Told`], which tells it from the lines of history beside it.
const VERSION_TOLD: u8 = 2;

/// A record that is owed to the sender of a message, as the follower reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::c2d) struct FeedbackOwed<'a> {
    pub(in crate::c2d) cause: Cause,
    pub(in crate::c2d) at: Timestamp,
    pub(in crate::c2d) message_id: Option<&'a str>,
}

impl<'a> FeedbackOwed<'a> {
    pub(super) fn encode(&self) -> Bytes {
        let id_length = self.message_id.map_or(0, str::len);
        let mut out = BytesMut::with_capacity(1 + 1 + 8 + 4 + id_length);
        out.put_u8(VERSION);
        out.put_u8(self.cause.code());
        out.put_i64_le(self.at.as_millis());
        put_text(&mut out, self.message_id);
        out.freeze()
    }

    pub(in crate::c2d) fn decode(mut record: &'a [u8]) -> Result<Self, RecordError> {
        let bytes = &mut record;
        read_version(bytes)?;
        let owed = Self {
            cause: read_cause(bytes)?,
            at: read_time(bytes)?,
            message_id: read_text(bytes)?,
        };
        at_end(bytes)?;
        Ok(owed)
    }
}

/// What dead letters and history have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::c2d) struct Settled {
    pub(in crate::c2d) cause: Cause,
    pub(in crate::c2d) at: Timestamp,
    /// Whether the sender is told.
    pub(in crate::c2d) is_told: bool,
    pub(in crate::c2d) delivery_count: u32,
    pub(in crate::c2d) attempts: Attempts,
}

/// One completed message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::c2d) struct HistoryLine {
    pub(in crate::c2d) settled: Settled,
    pub(in crate::c2d) enqueued: Timestamp,
    pub(in crate::c2d) expires: Timestamp,
    /// Bytes of the stored message.
    pub(in crate::c2d) size: u32,
    pub(in crate::c2d) sender: String,
    pub(in crate::c2d) message_id: Option<String>,
}

impl HistoryLine {
    pub(super) fn encode(&self) -> Bytes {
        let texts = self.sender.len() + self.message_id.as_ref().map_or(0, String::len);
        let mut out = BytesMut::with_capacity(self.settled.size() + 8 + 8 + 4 + 4 + 4 + texts);
        self.settled.encode(&mut out);
        out.put_i64_le(self.enqueued.as_millis());
        out.put_i64_le(self.expires.as_millis());
        out.put_u32_le(self.size);
        put_text(&mut out, Some(&self.sender));
        put_text(&mut out, self.message_id.as_deref());
        out.freeze()
    }

    pub(in crate::c2d) fn decode(mut record: &[u8]) -> Result<Self, RecordError> {
        let bytes = &mut record;
        let line = Self {
            settled: Settled::decode(bytes)?,
            enqueued: read_time(bytes)?,
            expires: read_time(bytes)?,
            size: bytes.try_get_u32_le().map_err(|_| RecordError::Truncated)?,
            sender: read_text(bytes)?
                .ok_or(RecordError::Malformed { part: "sender" })?
                .to_owned(),
            message_id: read_text(bytes)?.map(str::to_owned),
        };
        at_end(bytes)?;
        Ok(line)
    }
}

/// That senders were told: what one feedback message tells of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::c2d) struct Told {
    /// When the message was put into the feedback queue.
    pub(in crate::c2d) at: Timestamp,
    /// The numbers of the messages to devices.
    pub(in crate::c2d) sequences: Vec<u64>,
}

impl Told {
    pub(in crate::c2d) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(1 + 8 + 8 * self.sequences.len());
        out.put_u8(VERSION_TOLD);
        out.put_i64_le(self.at.as_millis());
        for sequence in &self.sequences {
            out.put_u64_le(*sequence);
        }
        out.freeze()
    }

    /// Reads one; `None` when the record is something else.
    pub(in crate::c2d) fn decode(record: &[u8]) -> Option<Self> {
        let (version, mut rest) = record.split_first()?;
        if *version != VERSION_TOLD {
            return None;
        }
        let at = read_time(&mut rest).ok()?;
        let (sequences, rest) = rest.as_chunks::<8>();
        let sequences = sequences.iter().map(|bytes| u64::from_le_bytes(*bytes));
        rest.is_empty().then(|| Self {
            at,
            sequences: sequences.collect(),
        })
    }
}

pub(super) fn encode_dead_letter(settled: &Settled, message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(settled.size() + message.len());
    settled.encode(&mut out);
    out.put_slice(message);
    out.freeze()
}

/// Reads a dead letter: what is known of it, and the message as it was stored.
pub(in crate::c2d) fn decode_dead_letter(record: &Bytes) -> Result<(Settled, Bytes), RecordError> {
    let mut rest: &[u8] = record;
    let settled = Settled::decode(&mut rest)?;
    let message = record.slice(record.len() - rest.len()..);
    Ok((settled, message))
}

/// When the message of a dead letter or of a line of history left its queue, without reading more.
pub(in crate::c2d) fn settled_at(mut record: &[u8]) -> Result<Timestamp, RecordError> {
    let bytes = &mut record;
    read_version(bytes)?;
    read_cause(bytes)?;
    read_time(bytes)
}

const ATTEMPT_BYTES: usize = 8 + 1 + 8 + 1;

impl Settled {
    fn size(&self) -> usize {
        1 + 1 + 8 + 1 + 4 + 4 + 1 + ATTEMPT_BYTES * self.attempts.kept.len()
    }

    fn encode(&self, out: &mut BytesMut) {
        out.put_u8(VERSION);
        out.put_u8(self.cause.code());
        out.put_i64_le(self.at.as_millis());
        out.put_u8(self.is_told.into());
        out.put_u32_le(self.delivery_count);
        out.put_u32_le(self.attempts.count);
        let kept = u8::try_from(self.attempts.kept.len());
        out.put_u8(kept.expect("attempts are kept up to twice four"));
        for attempt in &self.attempts.kept {
            let (receiver, epoch) = match attempt.receiver {
                AttemptReceiver::Connection { epoch } => (1, epoch),
                AttemptReceiver::Request => (2, 0),
            };
            out.put_i64_le(attempt.at.as_millis());
            out.put_u8(receiver);
            out.put_u64_le(epoch);
            out.put_u8(attempt.end.code());
        }
    }

    fn decode(bytes: &mut &[u8]) -> Result<Self, RecordError> {
        read_version(bytes)?;
        let cause = read_cause(bytes)?;
        let at = read_time(bytes)?;
        let is_told = match read_byte(bytes)? {
            0 => false,
            1 => true,
            _ => return Err(RecordError::Malformed { part: "mark" }),
        };
        let delivery_count = bytes.try_get_u32_le().map_err(|_| RecordError::Truncated)?;
        let count = bytes.try_get_u32_le().map_err(|_| RecordError::Truncated)?;
        let kept = read_byte(bytes)?;
        if usize::from(kept) > 2 * ATTEMPTS_KEPT || u32::from(kept) > count {
            let part = "number of attempts";
            return Err(RecordError::Malformed { part });
        }
        let kept: Result<Vec<_>, _> = (0..kept).map(|_| read_attempt(bytes)).collect();
        Ok(Self {
            cause,
            at,
            is_told,
            delivery_count,
            attempts: Attempts { count, kept: kept? },
        })
    }
}

fn read_attempt(bytes: &mut &[u8]) -> Result<Attempt, RecordError> {
    let at = read_time(bytes)?;
    let receiver = read_byte(bytes)?;
    let epoch = bytes.try_get_u64_le().map_err(|_| RecordError::Truncated)?;
    Ok(Attempt {
        at,
        receiver: match (receiver, epoch) {
            (1, epoch) => AttemptReceiver::Connection { epoch },
            (2, 0) => AttemptReceiver::Request,
            _ => return Err(RecordError::Malformed { part: "receiver" }),
        },
        end: AttemptEnd::from_code(read_byte(bytes)?)
            .ok_or(RecordError::Malformed { part: "attempt" })?,
    })
}

impl Cause {
    fn code(self) -> u8 {
        match self {
            Self::Completed => 1,
            Self::Rejected => 2,
            Self::Expired => 3,
            Self::DeliveryCountExceeded => 4,
            Self::Purged => 5,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Completed),
            2 => Some(Self::Rejected),
            3 => Some(Self::Expired),
            4 => Some(Self::DeliveryCountExceeded),
            5 => Some(Self::Purged),
            _ => None,
        }
    }
}

impl AttemptEnd {
    fn code(self) -> u8 {
        match self {
            Self::Completed => 1,
            Self::Rejected => 2,
            Self::Abandoned => 3,
            Self::LockExpired => 4,
            Self::Disconnected => 5,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Completed),
            2 => Some(Self::Rejected),
            3 => Some(Self::Abandoned),
            4 => Some(Self::LockExpired),
            5 => Some(Self::Disconnected),
            _ => None,
        }
    }
}

fn read_version(bytes: &mut &[u8]) -> Result<(), RecordError> {
    match read_byte(bytes)? {
        VERSION => Ok(()),
        version => Err(RecordError::Version { version }),
    }
}

fn read_cause(bytes: &mut &[u8]) -> Result<Cause, RecordError> {
    Cause::from_code(read_byte(bytes)?).ok_or(RecordError::Malformed { part: "cause" })
}

fn read_byte(bytes: &mut &[u8]) -> Result<u8, RecordError> {
    bytes.try_get_u8().map_err(|_| RecordError::Truncated)
}

fn read_time(bytes: &mut &[u8]) -> Result<Timestamp, RecordError> {
    let millis = bytes.try_get_i64_le().map_err(|_| RecordError::Truncated)?;
    Ok(Timestamp::from_millis(millis))
}

/// Marks a text that is not there; no text is so long.
const NO_TEXT: u32 = u32::MAX;

fn put_text(out: &mut BytesMut, text: Option<&str>) {
    match text {
        None => out.put_u32_le(NO_TEXT),
        Some(text) => {
            let length = u32::try_from(text.len());
            out.put_u32_le(length.expect("texts of a message are bounded by its size"));
            out.put_slice(text.as_bytes());
        }
    }
}

fn read_text<'a>(bytes: &mut &'a [u8]) -> Result<Option<&'a str>, RecordError> {
    let length = bytes.try_get_u32_le().map_err(|_| RecordError::Truncated)?;
    if length == NO_TEXT {
        return Ok(None);
    }
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let (text, rest) = bytes
        .split_at_checked(length)
        .ok_or(RecordError::Truncated)?;
    *bytes = rest;
    std::str::from_utf8(text)
        .map(Some)
        .map_err(|_| RecordError::Malformed { part: "text" })
}

fn at_end(bytes: &[u8]) -> Result<(), RecordError> {
    if bytes.is_empty() {
        Ok(())
    } else {
        Err(RecordError::Malformed { part: "tail" })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CAUSES: [Cause; 5] = [
        Cause::Completed,
        Cause::Rejected,
        Cause::Expired,
        Cause::DeliveryCountExceeded,
        Cause::Purged,
    ];

    fn any_attempt() -> impl Strategy<Value = Attempt> {
        let receiver = prop_oneof![
            any::<u64>().prop_map(|epoch| AttemptReceiver::Connection { epoch }),
            Just(AttemptReceiver::Request),
        ];
        let end = (1_u8..=5).prop_map(|code| AttemptEnd::from_code(code).unwrap());
        (any::<i64>(), receiver, end).prop_map(|(at, receiver, end)| Attempt {
            at: Timestamp::from_millis(at),
            receiver,
            end,
        })
    }

    fn any_settled() -> impl Strategy<Value = Settled> {
        let attempts = prop::collection::vec(any_attempt(), 0..12);
        (
            0..5_usize,
            any::<i64>(),
            any::<bool>(),
            any::<u32>(),
            attempts,
        )
            .prop_map(|(cause, at, is_told, delivery_count, noted)| {
                let mut attempts = Attempts::default();
                noted.into_iter().for_each(|attempt| attempts.note(attempt));
                Settled {
                    cause: CAUSES[cause],
                    at: Timestamp::from_millis(at),
                    is_told,
                    delivery_count,
                    attempts,
                }
            })
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded_and_a_cut_one_is_refused(
            settled in any_settled(),
            sender in ".{0,20}",
            message_id in proptest::option::of(".{0,20}"),
            times in any::<(i64, i64, u32)>(),
            body in prop::collection::vec(any::<u8>(), 0..50),
        ) {
            let line = HistoryLine {
                settled: settled.clone(),
                enqueued: Timestamp::from_millis(times.0),
                expires: Timestamp::from_millis(times.1),
                size: times.2,
                sender,
                message_id: message_id.clone(),
            };
            let encoded = line.encode();
            prop_assert_eq!(HistoryLine::decode(&encoded), Ok(line));
            for cut in 0..encoded.len() {
                prop_assert!(HistoryLine::decode(&encoded[..cut]).is_err());
            }

            let owed = FeedbackOwed {
                cause: settled.cause,
                at: settled.at,
                message_id: message_id.as_deref(),
            };
            let encoded = owed.encode();
            prop_assert_eq!(FeedbackOwed::decode(&encoded), Ok(owed));
            for cut in 0..encoded.len() {
                prop_assert!(FeedbackOwed::decode(&encoded[..cut]).is_err());
            }

            let told = Told {
                at: settled.at,
                sequences: body.iter().map(|byte| u64::from(*byte) << 40).collect(),
            };
            let encoded = told.encode();
            prop_assert_eq!(Told::decode(&encoded), Some(told));
            prop_assert!(HistoryLine::decode(&encoded).is_err());
            prop_assert!(body.is_empty() || Told::decode(&encoded[..encoded.len() - 1]).is_none());

            let letter = encode_dead_letter(&settled, &body);
            prop_assert_eq!(letter.len(), settled.size() + body.len());
            prop_assert_eq!(
                decode_dead_letter(&letter),
                Ok((settled, Bytes::from(body)))
            );
        }

        #[test]
        fn other_bytes_are_an_error_and_no_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..80),
            is_known in any::<bool>(),
        ) {
            if let (true, Some(first)) = (is_known, bytes.first_mut()) {
                *first = 1 + (*first & 1);
            }
            // Whatever is read says again what was written.
            if let Ok(owed) = FeedbackOwed::decode(&bytes) {
                prop_assert_eq!(&owed.encode()[..], &bytes[..]);
            }
            if let Ok(line) = HistoryLine::decode(&bytes) {
                prop_assert_eq!(&line.encode()[..], &bytes[..]);
            }
            if let Some(told) = Told::decode(&bytes) {
                prop_assert_eq!(&told.encode()[..], &bytes[..]);
            }
            let record = Bytes::from(bytes);
            if let Ok((settled, message)) = decode_dead_letter(&record) {
                prop_assert_eq!(encode_dead_letter(&settled, &message), record);
            }
        }
    }
}
