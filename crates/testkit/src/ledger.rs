//! What the hub owes: every message it acknowledged, and every event it ever showed.
//!
//! A sender numbers its messages from 0 and sends them in order; after a break it sends again
//! from the first that was not acknowledged. So for each sender, the first appearance of each
//! number in the log must come in rising order, and every acknowledged number must appear.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, bail, ensure};

/// The ledger. Kept outside the hub's process.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Per sender: how many of its messages are acknowledged (all numbers below).
    acknowledged: BTreeMap<String, u64>,
    /// Per partition: the events shown, by sequence number from 0. Long runs show a hundred million,
    /// so each is packed into one word: see [`Ledger::pack`].
    shown: HashMap<String, Vec<u64>>,
    /// Senders in the order in which they first appeared.
    senders: Vec<String>,
    /// Per sender: its place among `senders`, and the number that must be the next to appear for
    /// the first time.
    appeared: HashMap<String, (u16, u64)>,
}

/// Bits of a packed event that hold the message's number; the sender's place is above them.
const NUMBER_BITS: u32 = 48;

impl Ledger {
    /// Records that `sender`'s message `number` was acknowledged.
    pub fn acknowledge(&mut self, sender: &str, number: u64) {
        match self.acknowledged.get_mut(sender) {
            Some(count) => *count = (*count).max(number + 1),
            None => drop(self.acknowledged.insert(sender.to_owned(), number + 1)),
        }
    }

    /// Records that a reader was shown an event, and checks it against all that was shown before.
    ///
    /// # Errors
    /// When a sequence number shows another event than before, or was skipped, or a sender's
    /// messages first appear out of order.
    pub fn show(
        &mut self,
        partition: &str,
        sequence: u64,
        sender: &str,
        number: u64,
    ) -> Result<()> {
        let event = self.pack(sender, number)?;
        let at = usize::try_from(sequence)?;
        if let Some(known) = self.shown.get(partition).and_then(|shown| shown.get(at)) {
            ensure!(
                *known == event,
                "sequence number {sequence} of partition {partition} was {} and is {sender} {number}",
                self.unpack(*known)
            );
            return Ok(());
        }
        ensure!(
            sequence == self.shown(partition),
            "partition {partition} goes from sequence number {} to {sequence}",
            self.shown(partition)
        );
        match self.shown.get_mut(partition) {
            Some(shown) => shown.push(event),
            None => drop(self.shown.insert(partition.to_owned(), vec![event])),
        }
        let (_, next) = self.appeared.get_mut(sender).context("packed above")?;
        match number.cmp(next) {
            Ordering::Less => {}
            Ordering::Equal => *next += 1,
            Ordering::Greater => {
                bail!(
                    "message {number} of {sender} appears before {next}, at {sequence} of {partition}"
                )
            }
        }
        Ok(())
    }

    /// A sender and a number in one word.
    fn pack(&mut self, sender: &str, number: u64) -> Result<u64> {
        let place = match self.appeared.get(sender) {
            Some((place, _)) => *place,
            None => {
                let place = u16::try_from(self.senders.len()).context("too many senders")?;
                self.senders.push(sender.to_owned());
                self.appeared.insert(sender.to_owned(), (place, 0));
                place
            }
        };
        ensure!(number >> NUMBER_BITS == 0, "{number} is no message number");
        Ok(u64::from(place) << NUMBER_BITS | number)
    }

    fn unpack(&self, event: u64) -> String {
        let sender = usize::try_from(event >> NUMBER_BITS)
            .ok()
            .and_then(|at| self.senders.get(at));
        let number = event & ((1 << NUMBER_BITS) - 1);
        format!("{} {number}", sender.map_or("?", String::as_str))
    }

    /// How many events of a partition were shown so far; the next sequence number.
    #[must_use]
    pub fn shown(&self, partition: &str) -> u64 {
        self.shown.get(partition).map_or(0, Vec::len) as u64
    }

    /// Acknowledged messages in all.
    #[must_use]
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.values().sum()
    }

    /// Acknowledged messages of one sender.
    #[must_use]
    pub fn acknowledged_of(&self, sender: &str) -> u64 {
        self.acknowledged.get(sender).copied().unwrap_or_default()
    }

    /// Events shown in all.
    #[must_use]
    pub fn shown_in_all(&self) -> u64 {
        self.shown.values().map(|events| events.len() as u64).sum()
    }

    /// What is owed now: per sender, how many of its messages are acknowledged.
    #[must_use]
    pub fn owed(&self) -> BTreeMap<String, u64> {
        self.acknowledged.clone()
    }

    /// Of what was owed, the senders whose messages were not all shown: `(sender, first missing)`.
    #[must_use]
    pub fn lost(&self, owed: &BTreeMap<String, u64>) -> Vec<(String, u64)> {
        let appeared = |sender| self.appeared.get(sender).map_or(0, |(_, next)| *next);
        owed.iter()
            .filter(|(sender, count)| appeared(sender.as_str()) < **count)
            .map(|(sender, _)| (sender.clone(), appeared(sender.as_str())))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ledger_notices_loss_disorder_gaps_and_reuse() {
        let mut ledger = Ledger::default();
        ledger.show("0", 0, "a", 0).unwrap();
        ledger.show("0", 1, "b", 0).unwrap();
        ledger.show("0", 2, "a", 1).unwrap();
        // A resend is a new event.
        ledger.show("0", 3, "a", 0).unwrap();
        ledger.show("0", 4, "a", 2).unwrap();
        // Reading again shows the same.
        ledger.show("0", 1, "b", 0).unwrap();
        assert!(ledger.show("0", 1, "b", 1).is_err(), "reuse");
        assert!(ledger.show("0", 6, "b", 1).is_err(), "gap");
        assert!(ledger.show("0", 5, "b", 2).is_err(), "disorder");
        ledger.acknowledge("a", 2);
        assert!(ledger.lost(&ledger.owed()).is_empty());
        ledger.acknowledge("b", 1);
        assert_eq!(ledger.lost(&ledger.owed()), [("b".to_owned(), 1)]);
    }
}
