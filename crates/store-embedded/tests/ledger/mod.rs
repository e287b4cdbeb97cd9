//! Work on documents and queues that can be checked afterwards, and a ledger of what was promised.
//!
//! Batches of documents are numbered. Each writes over what older ones left, so that what the first
//! so many batches leave behind is known. With each go messages, most of which a later one settles.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use fieldpost_model::Timestamp;
use fieldpost_store::documents::{Action, Change, Collection, Condition, Documents, ListRequest};
use fieldpost_store::queues::{
    DeviceQueues, Lane, ListOutcomes, ListQueue, Operation, OperationResult, QUEUE_NAME_BYTES_MAX,
    QueueName,
};
use fieldpost_store::suite::block_on;
use fieldpost_store_embedded::documents::EmbeddedDocuments;
use fieldpost_store_embedded::health::StoreHealth;
use fieldpost_store_embedded::keyvalue::{KeyValueStore, OpenError};
use fieldpost_store_embedded::queues::EmbeddedQueues;
use xxhash_rust::xxh3::xxh3_64;

/// Batches in flight at a time.
const WINDOW: usize = 16;

/// After so many batches the names come again.
const NAMES: u64 = 100;

const DEVICES: Collection = Collection(101);
const MARKS: Collection = Collection(102);

/// So many queues take turns.
const QUEUES: u64 = 64;
const OWED: Lane = Lane(101);
const HISTORY: Lane = Lane(103);

/// Messages of a batch.
const MESSAGES: u64 = 4;

/// Everything that was promised.
#[derive(Default)]
pub(crate) struct Ledger {
    /// The last batch that was sent.
    sent: u64,
    /// The last batch of documents that was acknowledged.
    pub(crate) documents: u64,
    /// Messages that were enqueued, with batch and part.
    pub(crate) enqueued: BTreeMap<u64, (u64, u64)>,
    /// Those whose settlement was sent.
    settling: BTreeSet<u64>,
    /// Those that were settled.
    pub(crate) settled: BTreeSet<u64>,
}

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) batches: u64,
    /// Messages that wait.
    pub(crate) waiting: usize,
    /// Records of settlements.
    pub(crate) records: usize,
}

impl Ledger {
    /// Takes note of a line of [`work`]. Whatever is not whole was not said.
    pub(crate) fn note(&mut self, line: &str) {
        let Some(line) = line.strip_suffix('.') else {
            return;
        };
        let (is_sent, line) = match line.strip_prefix("sent ") {
            Some(line) => (true, line),
            None => (false, line),
        };
        let parts: Vec<Vec<u64>> = line
            .split(';')
            .map(|part| {
                let numbers = part.split_whitespace();
                numbers.map(|number| number.parse().unwrap()).collect()
            })
            .collect();
        let [number, enqueued, settled] = &parts[..] else {
            panic!("{line:?}");
        };
        if is_sent {
            self.sent = number[0];
            self.settling.extend(settled);
            return;
        }
        self.documents = number[0];
        for (part, sequence) in enqueued.iter().enumerate() {
            let message = (number[0], part as u64);
            let other = self.enqueued.insert(*sequence, message);
            assert_eq!(other, None, "message {sequence} twice");
        }
        self.settled.extend(settled);
    }

    /// Panics where a store is not as was promised. Puts one message into it.
    pub(crate) fn check(&self, store: &KeyValueStore) -> Found {
        let batches = self.check_documents(&store.documents);
        let (waiting, records) = self.check_queues(&store.queues);
        Found {
            batches,
            waiting,
            records,
        }
    }

    /// Returns the number of batches that were found.
    fn check_documents(&self, documents: &EmbeddedDocuments) -> u64 {
        let done = last_batch(documents);
        let acknowledged = self.documents;
        assert!(
            done >= acknowledged,
            "batch {acknowledged} was acknowledged, {done} is the last one there"
        );
        let sent = self.sent;
        assert!(done <= sent, "batch {done} is there, {sent} was the last");
        let expected = expected(done);
        assert!(stored(documents) == expected, "not what {done} leave");
        let mut classes = BTreeMap::new();
        for (class, _) in expected.values() {
            *classes.entry(*class).or_insert(0u64) += 1;
        }
        let counts = documents.counts(DEVICES);
        assert_eq!(counts, classes.into_iter().collect::<Vec<_>>());
        done
    }

    /// Returns the number of messages that wait, and of records of settlements.
    fn check_queues(&self, queues: &EmbeddedQueues) -> (usize, usize) {
        let mut waiting = BTreeSet::new();
        for number in 0..QUEUES {
            let mut contents = BTreeSet::new();
            for [batch, part, sequence] in messages(queues, queue_of(number)) {
                assert_eq!(place(batch, part), number, "in its queue");
                assert!(batch <= self.sent, "batch {batch} was never sent");
                assert!(contents.insert((batch, part)), "{batch} {part} twice");
                assert!(waiting.insert(sequence), "{sequence} twice");
                let known = self.enqueued.get(&sequence);
                assert!(known.is_none_or(|known| *known == (batch, part)));
            }
        }
        let [owed, history] = [OWED, HISTORY].map(|lane| records(queues, lane));
        assert_eq!(owed, history);
        for sequence in &owed {
            let known = self.enqueued.get(sequence);
            let known = known.is_some_and(|(batch, part)| is_recorded(*batch, *part));
            assert!(
                known && self.settling.contains(sequence),
                "a record of {sequence}"
            );
        }
        for (sequence, (batch, part)) in &self.enqueued {
            let waits = waiting.contains(sequence);
            let recorded = owed.contains(sequence);
            assert!(!(waits && recorded), "{sequence} waits and is settled");
            let settled = self.settled.contains(sequence);
            assert!(!(waits && settled), "{sequence} is back");
            let gone = self.settling.contains(sequence);
            assert!(waits || gone, "{sequence} is lost");
            let is_whole = waits || recorded || !is_recorded(*batch, *part);
            assert!(is_whole, "the record of {sequence} is lost");
        }
        // Nothing of the next number is anywhere.
        let next = match block_on(queues.apply(vec![enqueue(0, 0, 13, None)])).unwrap()[..] {
            [OperationResult::Enqueued { sequence }] => sequence,
            ref other => panic!("{other:?}"),
        };
        let known = self.enqueued.keys().copied().collect();
        for given in [&waiting, &owed, &known] {
            assert!(given.last() < Some(&next), "{next} again");
        }
        // The next check knows only what was sent by the rules.
        let settle = Operation::Settle {
            queue: queue_of(0),
            sequence: next,
            outcomes: Vec::new(),
        };
        let settled = block_on(queues.apply(vec![settle])).unwrap();
        assert_eq!(settled, [OperationResult::Done]);
        (waiting.len(), owed.len())
    }
}

/// Number of batch, part, and sequence number of each message of a queue, whose bytes are as sent.
fn messages(queues: &EmbeddedQueues, queue: QueueName) -> Vec<[u64; 3]> {
    let request = ListQueue {
        queue,
        after: 0,
        limit: usize::MAX,
        bytes_max: usize::MAX,
    };
    let messages = block_on(queues.list(request)).unwrap().messages;
    let messages = messages.into_iter().map(|queued| {
        let (number, rest) = queued.message.split_first_chunk().unwrap();
        let number = u64::from_be_bytes(*number);
        let part = u64::from(rest[0]);
        let expected = content(number, part, queued.message.len());
        assert!(queued.message == expected, "{number} {part}");
        [number, part, queued.sequence]
    });
    messages.collect()
}

/// The messages that a lane has records of.
fn records(queues: &EmbeddedQueues, lane: Lane) -> BTreeSet<u64> {
    let records = block_on(queues.outcomes(ListOutcomes {
        lane,
        after: 0,
        limit: usize::MAX,
        bytes_max: usize::MAX,
        queue: None,
    }));
    let records = records.unwrap();
    let figures = queues.lane(lane);
    assert_eq!(figures.count, records.len() as u64);
    let numbers: Vec<_> = records.iter().map(|record| record.number).collect();
    assert_eq!(numbers, (1..=figures.last).collect::<Vec<_>>());
    let settled: BTreeSet<_> = records.iter().map(|record| record.sequence).collect();
    assert_eq!(settled.len(), records.len(), "one record each");
    settled
}

/// Sends batches and messages after those that a store holds until so many were sent now. Says
/// before each that it is sent, and after each what was acknowledged. All messages have a length, or
/// each its own.
pub(crate) fn work(
    store: &KeyValueStore,
    batches: u64,
    length: Option<usize>,
    mut say: impl FnMut(&str),
) {
    let mut in_flight = VecDeque::new();
    let mut to_settle = Vec::new();
    let next = last_batch(&store.documents) + 1;
    let end = next.saturating_add(batches);
    for number in next.. {
        if number < end {
            let length = length.unwrap_or_else(|| usual_length(number));
            let mut operations: Vec<_> = (0..MESSAGES)
                .map(|part| enqueue(number, part, length, Some(number * MESSAGES + part)))
                .collect();
            operations.extend(to_settle.drain(..).map(settle));
            let settled: Vec<u64> = operations.iter().filter_map(settled_by).collect();
            say(&format!("sent {number};;{}.", words(&settled)));
            in_flight.push_back((
                number,
                settled,
                store.documents.apply(batch(number)),
                store.queues.apply(operations),
            ));
            if in_flight.len() < WINDOW {
                continue;
            }
        }
        let Some((number, settled, documents, queues)) = in_flight.pop_front() else {
            return;
        };
        block_on(documents).unwrap();
        let results = block_on(queues).unwrap();
        let enqueued: Vec<u64> = results
            .iter()
            .filter_map(|result| match result {
                OperationResult::Enqueued { sequence } => Some(*sequence),
                other => {
                    assert_eq!(*other, OperationResult::Done);
                    None
                }
            })
            .collect();
        let parts = (0..).zip(&enqueued);
        let gone = parts.filter(|(part, _)| *part > 0 || number % 8 > 0);
        to_settle.extend(gone.map(|(part, sequence)| (number, part, *sequence)));
        say(&format!(
            "{number};{};{}.",
            words(&enqueued),
            words(&settled)
        ));
    }
}

fn words(numbers: &[u64]) -> String {
    let words: Vec<_> = numbers.iter().map(u64::to_string).collect();
    words.join(" ")
}

/// The queue of a message.
fn place(number: u64, part: u64) -> u64 {
    (number * MESSAGES + part) % QUEUES
}

/// Whether the settlement of a message leaves records.
fn is_recorded(number: u64, part: u64) -> bool {
    part == 1 && number.is_multiple_of(2)
}

/// A name as long as any, so that the tables of marks and of what is due fill soon.
fn queue_of(place: u64) -> QueueName {
    let mut name = format!("device-{place}-").into_bytes();
    name.resize(QUEUE_NAME_BYTES_MAX, b'x');
    QueueName(Bytes::from(name))
}

/// How long the messages of a batch are, unless they are of one length.
fn usual_length(number: u64) -> usize {
    match number {
        // Longer than what is written at a time.
        number if number % 50 == 0 => 20_000,
        number if number % 5 == 0 => 1_500,
        _ => 100,
    }
}

/// What a message is: which one, its length, and, if there is room, something that looks like whole
/// batches of a journal.
fn content(number: u64, part: u64, length: usize) -> Bytes {
    let mut content = number.to_be_bytes().to_vec();
    content.push(u8::try_from(part).unwrap());
    content.extend(u32::try_from(length).unwrap().to_be_bytes());
    if length > 1_000 {
        for ahead in 0..8 {
            content.extend(journal_batch(number * 40 + ahead * 100));
        }
    }
    content.resize(length, 7);
    Bytes::from(content)
}

/// A batch as it stands in a journal, with one row.
fn journal_batch(sequence: u64) -> Vec<u8> {
    let mut items = vec![2, 0, 0];
    items.extend(1u64.to_le_bytes());
    items.extend(3u16.to_le_bytes());
    items.extend([6u32.to_le_bytes(), 6u32.to_le_bytes()].concat());
    items.extend(b"keyvalue!");
    let mut batch = vec![1];
    batch.extend(1u32.to_le_bytes());
    batch.extend(sequence.to_le_bytes());
    batch.extend(&items);
    batch.push(3);
    batch.extend(xxh3_64(&items).to_le_bytes());
    batch.extend(b"FJL\x03");
    batch
}

fn enqueue(number: u64, part: u64, length: usize, once: Option<u64>) -> Operation {
    Operation::Enqueue {
        queue: queue_of(place(number, part)),
        message: content(number, part, length),
        expires: Timestamp::from_millis(1_800_000_000_000),
        depth_max: 1_000_000,
        once,
    }
}

fn settle((number, part, sequence): (u64, u64, u64)) -> Operation {
    let outcomes = if is_recorded(number, part) {
        vec![
            (OWED, Bytes::from_static(b"owed")),
            (HISTORY, Bytes::from(vec![1; 100])),
        ]
    } else {
        Vec::new()
    };
    Operation::Settle {
        queue: queue_of(place(number, part)),
        sequence,
        outcomes,
    }
}

fn settled_by(operation: &Operation) -> Option<u64> {
    match operation {
        Operation::Settle { sequence, .. } => Some(*sequence),
        _ => None,
    }
}

/// What batch `number` does: writes four documents, removes one of an older batch, and leaves its
/// mark.
fn batch(number: u64) -> Vec<Change> {
    let mut changes: Vec<_> = (0..4u8)
        .map(|part| Change {
            collection: DEVICES,
            key: key(number, part),
            condition: Condition::Any,
            action: put(part, number, 100),
        })
        .collect();
    changes.push(Change {
        collection: DEVICES,
        key: key(number + NAMES / 2, 3),
        condition: Condition::Any,
        action: Action::Delete,
    });
    changes.push(Change {
        collection: MARKS,
        key: Bytes::from_static(b"last"),
        condition: Condition::Any,
        action: put(0, number, 8),
    });
    changes
}

fn key(number: u64, part: u8) -> Bytes {
    Bytes::from(format!("device-{}-{part}", number % NAMES))
}

fn put(class: u8, number: u64, bytes: usize) -> Action {
    let mut value = number.to_be_bytes().to_vec();
    value.resize(bytes, class);
    Action::Put {
        class,
        value: value.into(),
    }
}

/// What the first `done` batches leave behind.
fn expected(done: u64) -> BTreeMap<Bytes, (u8, Bytes)> {
    let mut left = BTreeMap::new();
    // Older batches are written over.
    for number in done.saturating_sub(2 * NAMES).max(1)..=done {
        for change in batch(number) {
            match change.action {
                _ if change.collection != DEVICES => {}
                Action::Put { class, value } => {
                    left.insert(change.key, (class, value));
                }
                Action::Delete => {
                    left.remove(&change.key);
                }
            }
        }
    }
    left
}

fn stored(documents: &EmbeddedDocuments) -> BTreeMap<Bytes, (u8, Bytes)> {
    let request = ListRequest {
        collection: DEVICES,
        prefix: Bytes::new(),
        after: None,
        limit: usize::MAX,
    };
    let page = block_on(documents.list(request)).unwrap();
    page.documents
        .into_iter()
        .map(|document| (document.key, (document.class, document.value)))
        .collect()
}

fn last_batch(documents: &EmbeddedDocuments) -> u64 {
    let mark = block_on(documents.get(MARKS, Bytes::from_static(b"last"))).unwrap();
    mark.map_or(0, |mark| {
        u64::from_be_bytes(mark.value.as_ref().try_into().unwrap())
    })
}

pub(crate) fn open(path: &Path) -> Result<KeyValueStore, OpenError> {
    KeyValueStore::open(path, Arc::new(StoreHealth::new()))
}

pub(crate) fn close(store: &KeyValueStore) {
    block_on(store.documents.close());
    block_on(store.queues.close());
}
