//! Random histories, and a ledger of what was sent, acknowledged and seen in them.

use std::collections::HashMap;

use fieldpost_store::log::{Appender, Batch, BatchBuilder};
use smallvec::SmallVec;

use super::*;
use crate::files::sim::splitmix;
use crate::log::format::Key;

const STREAMS: [u16; 2] = [0, 3];

/// Chance from a seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        splitmix(&mut self.0) % bound
    }

    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }
}

/// One who sends, and what he sent that he has no answer for.
struct Sender {
    id: u32,
    appender: Appender,
    /// The next number in each partition that he wants to see.
    partition: u16,
}

/// What the world outside knows.
#[derive(Default)]
pub(super) struct Ledger {
    /// Records per sender in the order of sending, with the batch they were in.
    sent: HashMap<u32, Vec<SentBatch>>,
    /// How many batches of a sender were acknowledged.
    acked: HashMap<u32, u64>,
    /// Every record that a reader ever got.
    seen: HashMap<(Key, u64), Bytes>,
    /// Where readers are.
    next: HashMap<Key, u64>,
    senders: u32,
    pub(super) acked_batches: u64,
}

struct SentBatch {
    streams: SmallVec<[StreamId; 2]>,
    partition: u16,
    records: u32,
}

/// A record says who sent it, in which batch and place, and to where.
fn record(sender: u32, number: u64, index: u32, partition: u16, length: usize) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(sender.to_le_bytes());
    out.extend(number.to_le_bytes());
    out.extend(index.to_le_bytes());
    out.extend(partition.to_le_bytes());
    out.extend(body(u64::from(sender) << 32 | number, length));
    out
}

fn parse(data: &[u8]) -> (u32, u64, u32, u16) {
    (
        u32::from_le_bytes(data[0..4].try_into().unwrap()),
        u64::from_le_bytes(data[4..12].try_into().unwrap()),
        u32::from_le_bytes(data[12..16].try_into().unwrap()),
        u16::from_le_bytes(data[16..18].try_into().unwrap()),
    )
}

fn keys() -> impl Iterator<Item = Key> {
    STREAMS.into_iter().flat_map(|stream| {
        (0..PARTITIONS).map(move |partition| (StreamId(stream), PartitionId(partition)))
    })
}

/// Lives through a random history until it ends or the disk is gone.
pub(super) fn live(bench: &Bench, ledger: &mut Ledger, dice: &mut Dice, steps: u64) {
    let mut senders: Vec<Sender> = (0..3)
        .map(|_| {
            ledger.senders += 1;
            Sender {
                id: ledger.senders,
                appender: bench.appender(),
                partition: dice.below(u64::from(PARTITIONS)) as u16,
            }
        })
        .collect();
    for _ in 0..steps {
        match dice.below(10) {
            0..5 => {
                let at = dice.below(senders.len() as u64) as usize;
                ledger.send(&mut senders[at], dice);
            }
            5..8 => {
                bench.log.commit_once();
            }
            8 => {
                for _ in 0..dice.below(3) {
                    bench.log.keep_once();
                }
            }
            _ => bench.clock.advance(Duration::from_millis(dice.below(2000))),
        }
        for sender in &mut senders {
            ledger.hear(sender);
        }
        if bench.disk.crashed() {
            return;
        }
        ledger.look(bench, dice);
    }
}

impl Ledger {
    fn send(&mut self, sender: &mut Sender, dice: &mut Dice) {
        let number = sender.appender.submitted() + 1;
        let records = 1 + dice.below(4) as u32;
        let mut builder = BatchBuilder::new(PartitionId(sender.partition));
        for index in 0..records {
            let length = match dice.below(20) {
                0 => dice.below(20_000),
                1..4 => dice.below(6000),
                _ => dice.below(300),
            };
            let record = record(sender.id, number, index, sender.partition, length as usize);
            builder.push(|out| out.extend_from_slice(&record));
        }
        let mut batch: Batch = builder.take().unwrap();
        if dice.percent(20) {
            batch.streams.push(StreamId(3));
        }
        let sent = SentBatch {
            streams: batch.streams.clone(),
            partition: sender.partition,
            records,
        };
        if sender.appender.submit(batch).is_ok() {
            self.sent.entry(sender.id).or_default().push(sent);
        }
    }

    fn hear(&mut self, sender: &mut Sender) {
        if let Some(Ok(number)) = durable(&mut sender.appender) {
            let before = self.acked.insert(sender.id, number).unwrap_or(0);
            self.acked_batches += number - before;
        }
    }

    /// Readers look at what is new.
    fn look(&mut self, bench: &Bench, dice: &mut Dice) {
        for key in keys() {
            let bounds = bench.log.bounds(key.0, key.1);
            let next = self.next.entry(key).or_default();
            *next = (*next).max(bounds.first);
            while *next < bounds.next {
                let bytes_max = 1 + dice.below(5000) as usize;
                let asked = request(key.0.0, key.1.0, *next, bytes_max);
                let records = match block_on(bench.log.read(asked)) {
                    Ok(records) => records,
                    // A failed read is the reader's alone; he comes again.
                    Err(StoreError::Read { .. }) => break,
                    Err(error) => panic!("{error}"),
                };
                assert!(!records.records.is_empty(), "{key:?} {next}");
                for record in records.records {
                    assert_eq!(record.sequence, *next);
                    self.seen.insert((key, *next), record.data);
                    *next += 1;
                }
            }
        }
    }

    /// After coming back: what was seen is there, what was acknowledged is there, in order, and
    /// nothing that was never sent.
    pub(super) fn check(&self, bench: &Bench) {
        let mut found: HashMap<(u32, u64, u32, u16), u64> = HashMap::new();
        for key in keys() {
            let bounds = bench.log.bounds(key.0, key.1);
            let mut last_of: HashMap<u32, (u64, u32)> = HashMap::new();
            let mut next = bounds.first;
            while next < bounds.next {
                let asked = request(key.0.0, key.1.0, next, 3000);
                let records = block_on(bench.log.read(asked)).unwrap();
                assert!(!records.records.is_empty());
                for record in records.records {
                    assert_eq!(record.sequence, next);
                    let (sender, number, index, partition) = parse(&record.data);
                    assert_eq!(partition, key.1.0, "a record stands in a strange partition");
                    let sent = &self.sent[&sender][number as usize - 1];
                    assert!(index < sent.records && sent.streams.contains(&key.0));
                    assert_eq!(sent.partition, partition);
                    let last = last_of.insert(sender, (number, index));
                    assert!(
                        last < Some((number, index)),
                        "{last:?} before {:?}",
                        (number, index)
                    );
                    if let Some(seen) = self.seen.get(&(key, next)) {
                        assert_eq!(seen, &record.data, "a number was used twice");
                    }
                    found.insert((sender, number, index, key.0.0), next);
                    next += 1;
                }
            }
            // What was seen was durable.
            let newest = self.seen.keys().filter(|(other, _)| *other == key);
            if let Some(newest) = newest.map(|(_, sequence)| *sequence).max() {
                assert!(
                    newest < bounds.next,
                    "{key:?}: {newest} was seen and is gone"
                );
            }
        }
        for (sender, acked) in &self.acked {
            for number in 1..=*acked {
                let sent = &self.sent[sender][number as usize - 1];
                for stream in &sent.streams {
                    let key = (*stream, PartitionId(sent.partition));
                    let first = bench.log.bounds(key.0, key.1).first;
                    for index in 0..sent.records {
                        let there = found.contains_key(&(*sender, number, index, stream.0));
                        // With a byte bound the oldest may have been dropped.
                        assert!(
                            there || first > 0,
                            "sender {sender} batch {number} record {index} was acknowledged"
                        );
                    }
                }
            }
        }
    }

    /// What readers remember of records that are gone now must not count as there.
    pub(super) fn forget_before(&mut self, bench: &Bench) {
        for key in keys() {
            let bounds = bench.log.bounds(key.0, key.1);
            self.next.insert(key, bounds.first);
        }
    }
}
