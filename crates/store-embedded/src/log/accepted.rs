//! Losses that the operator has accepted: what is damaged, and is to be left out from now on.
//!
//! They are kept beside the segments, so that it stays known what is missing and why. A reader goes
//! on behind an accepted loss; damage that nobody accepted still stops him.

use std::collections::BTreeMap;
use std::io;

use fieldpost_model::{SequenceNumber, Timestamp};

use super::format::accepted::{decode, encode};
use super::format::{FormatError, Key, LogId, size};
use super::segment::NEW_SUFFIX;
use crate::damage::{Damage, LostRecords};
use crate::files::{Files, write_all_at};

/// The name of the file.
pub(super) const ACCEPTED_NAME: &str = "accepted-losses";

/// No file that was written here is larger.
const BYTES_MAX: u64 = 256 * 1024 * 1024;

/// A loss that the operator has accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedLoss {
    /// When.
    pub accepted: Timestamp,
    /// What was damaged, and the records that went with it.
    pub damage: Damage,
}

/// All losses that were accepted in a log.
#[derive(Clone, Debug, Default)]
pub(super) struct Accepted {
    losses: Vec<AcceptedLoss>,
    /// Where stretches of lost records begin and end; they neither touch nor overlap.
    ranges: BTreeMap<Key, BTreeMap<SequenceNumber, SequenceNumber>>,
}

impl Accepted {
    /// Reads what was accepted in a log. The second part says what is wrong with the file; then
    /// nothing counts as accepted.
    pub(super) fn load(
        files: &dyn Files,
        log: LogId,
    ) -> io::Result<Result<(Self, Option<Damage>), FormatError>> {
        let file = match files.open(ACCEPTED_NAME) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Ok((Self::default(), None)));
            }
            Err(error) => return Err(error),
        };
        let bytes = file.bytes()?;
        let mut content = vec![0; size(bytes.min(BYTES_MAX))];
        let read = file.read_at(&mut content, 0)?;
        content.truncate(read);
        Ok(match decode(log, &content) {
            Ok(losses) => Ok((Self::of(losses), None)),
            Err(error @ FormatError::Newer(_)) => Err(error),
            Err(error) => Ok((
                Self::default(),
                Some(Damage {
                    file: ACCEPTED_NAME.to_owned(),
                    from: 0,
                    to: bytes,
                    what: format!("the losses that were accepted cannot be read: {error}"),
                    lost: Vec::new(),
                }),
            )),
        })
    }

    fn of(losses: Vec<AcceptedLoss>) -> Self {
        let mut accepted = Self::default();
        for loss in losses {
            accepted.add(loss);
        }
        accepted
    }

    /// Takes one more loss in.
    pub(super) fn add(&mut self, loss: AcceptedLoss) {
        for lost in &loss.damage.lost {
            let ranges = self
                .ranges
                .entry((lost.stream, lost.partition))
                .or_default();
            let (mut from, mut to) = (lost.from, lost.to);
            // All that touch the new one begin at or before its end; the nearest comes first.
            while let Some((&first, &last)) = ranges.range(..=to).next_back() {
                if last < from {
                    break;
                }
                from = from.min(first);
                to = to.max(last);
                ranges.remove(&first);
            }
            ranges.insert(from, to);
        }
        self.losses.push(loss);
    }

    /// Writes all of it down, durably.
    pub(super) fn save(&self, files: &dyn Files, log: LogId) -> io::Result<()> {
        let new = format!("{ACCEPTED_NAME}{NEW_SUFFIX}");
        let file = files.create(&new)?;
        let content = encode(log, &self.losses);
        write_all_at(&*file, &[io::IoSlice::new(&content)], 0)?;
        file.sync()?;
        files.rename(&new, ACCEPTED_NAME)?;
        files.sync_dir()
    }

    /// The losses, in the order of acceptance.
    pub(super) fn losses(&self) -> &[AcceptedLoss] {
        &self.losses
    }

    /// If a record is part of an accepted loss, the number behind the last one of it.
    pub(super) fn until(&self, key: Key, sequence: SequenceNumber) -> Option<SequenceNumber> {
        let (_, &to) = self.ranges.get(&key)?.range(..=sequence).next_back()?;
        (to > sequence).then_some(to)
    }

    /// Whether a damage is accepted: every record that it costs, or, if it costs none, its bytes.
    pub(super) fn covers(&self, damage: &Damage) -> bool {
        let lost = |lost: &LostRecords| {
            let key = (lost.stream, lost.partition);
            self.until(key, lost.from).is_some_and(|to| to >= lost.to)
        };
        if !damage.lost.is_empty() {
            return damage.lost.iter().all(lost);
        }
        self.losses.iter().any(|loss| {
            let accepted = &loss.damage;
            accepted.file == damage.file && accepted.from <= damage.from && damage.to <= accepted.to
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldpost_model::{PartitionId, StreamId};

    fn loss(from: u64, to: u64) -> AcceptedLoss {
        AcceptedLoss {
            accepted: Timestamp::from_millis(1),
            damage: Damage {
                file: "a".to_owned(),
                from: 4096,
                to: 8192,
                what: String::new(),
                lost: vec![LostRecords {
                    stream: StreamId(0),
                    partition: PartitionId(1),
                    from,
                    to,
                }],
            },
        }
    }

    #[test]
    fn stretches_grow_together() {
        let check = |stretches: &[(u64, u64)], expected: &[(u64, u64)]| {
            let losses = stretches.iter().map(|&(from, to)| loss(from, to)).collect();
            let accepted = Accepted::of(losses);
            let ranges = &accepted.ranges[&(StreamId(0), PartitionId(1))];
            let found: Vec<_> = ranges.iter().map(|(&from, &to)| (from, to)).collect();
            assert_eq!(found, expected, "{stretches:?}");
        };
        check(&[(5, 9)], &[(5, 9)]);
        check(&[(5, 9), (9, 12)], &[(5, 12)]);
        check(&[(9, 12), (5, 9)], &[(5, 12)]);
        check(&[(1, 3), (5, 9), (2, 6)], &[(1, 9)]);
        check(&[(1, 3), (5, 9), (0, 20)], &[(0, 20)]);
        check(&[(0, 20), (5, 9)], &[(0, 20)]);
        check(&[(1, 3), (5, 9), (10, 12)], &[(1, 3), (5, 9), (10, 12)]);
        check(
            &[(10, 12), (1, 3), (5, 9), (3, 4)],
            &[(1, 4), (5, 9), (10, 12)],
        );
    }

    #[test]
    fn a_damage_is_accepted_with_every_record_that_it_costs() {
        let accepted = Accepted::of(vec![loss(5, 9), loss(9, 12)]);
        let check = |from: u64, to: u64, expected: bool| {
            assert_eq!(
                accepted.covers(&loss(from, to).damage),
                expected,
                "{from} to {to}"
            );
        };
        check(5, 12, true);
        check(7, 8, true);
        check(4, 8, false);
        check(7, 13, false);
        check(12, 13, false);
        assert_eq!(accepted.until((StreamId(0), PartitionId(1)), 6), Some(12));
        assert_eq!(accepted.until((StreamId(0), PartitionId(1)), 12), None);
        assert_eq!(accepted.until((StreamId(0), PartitionId(0)), 6), None);

        // What costs no record is known by its bytes.
        let mut no_record = loss(0, 0).damage;
        no_record.lost.clear();
        assert!(accepted.covers(&no_record));
        no_record.to += 1;
        assert!(!accepted.covers(&no_record));
    }
}
