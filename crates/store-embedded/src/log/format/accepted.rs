//! The file that keeps which losses were accepted.

use bytes::{Buf, BufMut};
use fieldpost_model::{PartitionId, StreamId, Timestamp};

use super::{FORMAT_VERSION, FormatError, LogId, NUMBER_MAX, size};
use crate::damage::{Damage, LostRecords};
use crate::log::accepted::AcceptedLoss;

const MAGIC: &[u8; 8] = b"FPLOGACC";
const FIXED_BYTES: usize = 32;
const LOST_BYTES: usize = 24;
const CHECK_BYTES: usize = 4;

/// The losses as a file.
pub(crate) fn encode(log: LogId, losses: &[AcceptedLoss]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_slice(MAGIC);
    out.put_u16_le(FORMAT_VERSION);
    out.put_u16_le(0);
    out.put_u32_le(u32::try_from(losses.len()).unwrap_or(u32::MAX));
    out.put_slice(&log.0);
    for loss in losses {
        out.put_i64_le(loss.accepted.as_millis());
        out.put_u64_le(loss.damage.from);
        out.put_u64_le(loss.damage.to);
        put_text(&mut out, &loss.damage.file);
        put_text(&mut out, &loss.damage.what);
        out.put_u32_le(u32::try_from(loss.damage.lost.len()).unwrap_or(u32::MAX));
        for lost in &loss.damage.lost {
            out.put_u16_le(lost.stream.0);
            out.put_u16_le(lost.partition.0);
            out.put_u32_le(0);
            out.put_u64_le(lost.from);
            out.put_u64_le(lost.to);
        }
    }
    let check = crc32c::crc32c(&out);
    out.put_u32_le(check);
    out
}

/// Reads the file back.
pub(crate) fn decode(log: LogId, bytes: &[u8]) -> Result<Vec<AcceptedLoss>, FormatError> {
    let body = (bytes.len().checked_sub(CHECK_BYTES)).ok_or(FormatError::Truncated)?;
    let (body, mut check) = bytes.split_at(body);
    if body.len() < FIXED_BYTES || !body.starts_with(MAGIC) {
        return Err(FormatError::Absent);
    }
    if check.get_u32_le() != crc32c::crc32c(body) {
        return Err(FormatError::Checksum);
    }
    let mut fields = body;
    fields.advance(MAGIC.len());
    // Behind the check: a damaged version is no newer one.
    let version = fields.get_u16_le();
    if version > FORMAT_VERSION {
        return Err(FormatError::Newer(version));
    }
    fields.advance(2);
    let count = fields.get_u32_le();
    if fields.get(..log.0.len()) != Some(&log.0) {
        return Err(FormatError::Absent);
    }
    fields.advance(log.0.len());
    let mut losses = Vec::new();
    for _ in 0..count {
        losses.push(loss(&mut fields)?);
    }
    if fields.is_empty() {
        Ok(losses)
    } else {
        Err(FormatError::Invalid)
    }
}

fn loss(fields: &mut &[u8]) -> Result<AcceptedLoss, FormatError> {
    let short = |_| FormatError::Truncated;
    let accepted = Timestamp::from_millis(fields.try_get_i64_le().map_err(short)?);
    let from = fields.try_get_u64_le().map_err(short)?;
    let to = fields.try_get_u64_le().map_err(short)?;
    let file = text(fields)?;
    let what = text(fields)?;
    let count = size(u64::from(fields.try_get_u32_le().map_err(short)?));
    if count > fields.len() / LOST_BYTES {
        return Err(FormatError::Truncated);
    }
    let mut lost = Vec::with_capacity(count);
    for _ in 0..count {
        let stream = StreamId(fields.get_u16_le());
        let partition = PartitionId(fields.get_u16_le());
        fields.advance(4);
        let (from, to) = (fields.get_u64_le(), fields.get_u64_le());
        if from > to || from > NUMBER_MAX {
            return Err(FormatError::Invalid);
        }
        lost.push(LostRecords {
            stream,
            partition,
            from,
            to,
        });
    }
    Ok(AcceptedLoss {
        accepted,
        damage: Damage {
            file,
            from,
            to,
            what,
            lost,
        },
    })
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(usize::from(u16::MAX));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.put_u16_le(u16::try_from(end).unwrap_or(u16::MAX));
    out.put_slice(text.as_bytes().get(..end).unwrap_or_default());
}

fn text(fields: &mut &[u8]) -> Result<String, FormatError> {
    let length = fields
        .try_get_u16_le()
        .map_err(|_| FormatError::Truncated)?;
    let (text, rest) =
        (fields.split_at_checked(usize::from(length))).ok_or(FormatError::Truncated)?;
    *fields = rest;
    String::from_utf8(text.to_vec()).map_err(|_| FormatError::Invalid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn losses() -> impl Strategy<Value = Vec<AcceptedLoss>> {
        let lost =
            (0u16..9, 0u16..128, 0..NUMBER_MAX, 0..NUMBER_MAX).prop_map(|(s, p, from, more)| {
                LostRecords {
                    stream: StreamId(s),
                    partition: PartitionId(p),
                    from,
                    to: from + more,
                }
            });
        let loss = (
            any::<i64>(),
            any::<u64>(),
            any::<u64>(),
            ".{0,40}",
            ".{0,40}",
            prop::collection::vec(lost, 0..5),
        );
        let loss = loss.prop_map(|(accepted, from, to, file, what, lost)| AcceptedLoss {
            accepted: Timestamp::from_millis(accepted),
            damage: Damage {
                file,
                from,
                to,
                what,
                lost,
            },
        });
        prop::collection::vec(loss, 0..5)
    }

    proptest! {
        #[test]
        fn losses_are_read_back_by_their_own_log_and_any_changed_byte_is_noticed(
            losses in losses(),
            at in any::<prop::sample::Index>(),
            flip in 1u8..,
        ) {
            let log = LogId([9; 16]);
            let mut bytes = encode(log, &losses);
            prop_assert_eq!(decode(log, &bytes), Ok(losses));
            prop_assert_eq!(decode(LogId([8; 16]), &bytes), Err(FormatError::Absent));
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(decode(log, &bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_refused(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let log = LogId([9; 16]);
            prop_assert!(decode(log, &bytes).is_err());
            // With a check that holds, nothing that is announced is believed.
            let head = encode(log, &[]);
            for (place, byte) in bytes.iter_mut().zip(&head[..12]) {
                *place = *byte;
            }
            let check = crc32c::crc32c(&bytes);
            bytes.extend(check.to_le_bytes());
            let _ = decode(log, &bytes);
        }
    }
}
