//! What the hub owes: every message it acknowledged, and every event it ever showed.
//!
//! A sender numbers its messages from 0 and sends them in order; after a break it sends again
//! from the first that was not acknowledged. So for each sender, the first appearance of each
//! number in the log must come in rising order, and every acknowledged number must appear.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Result, bail, ensure};

/// The ledger. Kept outside the hub's process.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Per sender: how many of its messages are acknowledged (all numbers below).
    acknowledged: BTreeMap<String, u64>,
    /// Per partition: the events shown, by sequence number from 0.
    shown: HashMap<String, Vec<(String, u64)>>,
    /// Per sender: the number that must be the next to appear for the first time.
    appeared: HashMap<String, u64>,
}

impl Ledger {
    /// Records that `sender`'s message `number` was acknowledged.
    pub fn acknowledge(&mut self, sender: &str, number: u64) {
        let count = self.acknowledged.entry(sender.to_owned()).or_default();
        *count = (*count).max(number + 1);
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
        let shown = self.shown.entry(partition.to_owned()).or_default();
        let at = usize::try_from(sequence)?;
        if let Some((known_sender, known_number)) = shown.get(at) {
            ensure!(
                known_sender == sender && *known_number == number,
                "sequence number {sequence} of partition {partition} was {known_sender} {known_number} \
                 and is {sender} {number}"
            );
            return Ok(());
        }
        ensure!(
            at == shown.len(),
            "partition {partition} goes from sequence number {} to {sequence}",
            shown.len()
        );
        shown.push((sender.to_owned(), number));
        let next = self.appeared.entry(sender.to_owned()).or_default();
        match number.cmp(next) {
            std::cmp::Ordering::Less => {}
            std::cmp::Ordering::Equal => *next += 1,
            std::cmp::Ordering::Greater => {
                bail!(
                    "message {number} of {sender} appears before {next}, at {sequence} of {partition}"
                )
            }
        }
        Ok(())
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
        let appeared = |sender| self.appeared.get(sender).copied().unwrap_or_default();
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
