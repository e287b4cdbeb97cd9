//! What the hub owes: every message it acknowledged, and every event it ever showed.
//!
//! A sender numbers its messages from 0 and sends them in order; after a break it sends again
//! from the first that was not acknowledged. So for each sender, the first appearance of each
//! number in the log must come in rising order, and every acknowledged number must appear.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fieldpost_client::{Reader, ReaderOptions, Start};

/// Longest wait for everything to be read.
const PATIENCE: Duration = Duration::from_secs(90);

/// The ledger. Kept outside the hub's process.
#[derive(Clone, Debug, Default)]
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

    /// Of each sender, how many messages were shown.
    pub fn appeared(&self) -> impl Iterator<Item = (&str, u64)> {
        let appeared = self.appeared.iter();
        appeared.map(|(sender, (_, next))| (sender.as_str(), *next))
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

/// Reads what is in the log now, or what came since it was last read, and shows it to the ledger.
///
/// Senders are devices, whose events end in their number as text.
///
/// # Errors
/// When the log cannot be read, the ledger does not agree with it, or something acknowledged is not there.
pub async fn read_all(
    options: &ReaderOptions,
    ledger: &Mutex<Ledger>,
    from_the_beginning: bool,
) -> Result<()> {
    // What is acknowledged now must be among what is read now.
    let owed = lock(ledger).owed();
    let mut reader = Reader::connect(options).await?;
    // Senders go on while this reads, so each partition has an end of its own to be read up to.
    let mut unread = HashMap::new();
    for partition in reader.partitions().await? {
        let end = reader.next_sequence(&partition).await?;
        let shown = lock(ledger).shown(&partition);
        ensure!(
            end >= shown,
            "partition {partition} became shorter: {end} after {shown}"
        );
        let from = if from_the_beginning { 0 } else { shown };
        if end > from {
            reader.receive(&partition, Start::Sequence(from)).await?;
            unread.insert(partition, end);
        }
    }
    let reading = async {
        while !unread.is_empty() {
            let event = reader.next().await?;
            let body = std::str::from_utf8(&event.body)?;
            let sender = event
                .device_id
                .as_deref()
                .context("an event without a device")?;
            // Raw devices write their name before the number, SDK clients the number alone.
            let number = body.rsplit(' ').next().unwrap_or_default().parse()?;
            lock(ledger).show(&event.partition, event.sequence, sender, number)?;
            if unread
                .get(&event.partition)
                .is_some_and(|end| event.sequence + 1 >= *end)
            {
                unread.remove(&event.partition);
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, reading)
        .await
        .context("reading takes too long")??;
    let lost = lock(ledger).lost(&owed);
    ensure!(
        lost.is_empty(),
        "acknowledged and not there, from these numbers on: {lost:?}"
    );
    Ok(())
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
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
