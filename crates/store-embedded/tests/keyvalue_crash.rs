//! A process that changes documents and queues is killed at any moment; what it reported as done is
//! there.
//!
//! The test starts itself as that process, which writes a line for each acknowledged batch to its
//! standard output, a pipe that outlives it. Afterwards the store holds exactly the first so many
//! batches of documents, and at least those that were reported; every message that was reported as
//! enqueued and not as settled; none that was reported as settled; a record for each that is gone;
//! and it gives out no number again.
//!
//! `FIELDPOST_CRASH_ROUNDS` sets how often the process is killed, 4 times by default.

#![expect(
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test without the usual harness reports by itself and stops where it fails"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use fieldpost_model::Timestamp;
use fieldpost_store::documents::{Action, Change, Collection, Condition, Documents, ListRequest};
use fieldpost_store::queues::{
    DeviceQueues, Lane, ListOutcomes, ListQueue, Operation, OperationResult, QueueName,
};
use fieldpost_store::suite::block_on;
use fieldpost_store_embedded::documents::EmbeddedDocuments;
use fieldpost_store_embedded::health::StoreHealth;
use fieldpost_store_embedded::keyvalue::{KeyValueStore, verify};
use fieldpost_store_embedded::queues::EmbeddedQueues;

/// Set for the process that is to be killed: the directory of its documents.
const VICTIM: &str = "FIELDPOST_CRASH_VICTIM";

/// Batches in flight at a time.
const WINDOW: usize = 16;

/// After so many batches the names come again.
const NAMES: u64 = 400;

const DEVICES: Collection = Collection(1);
const MARKS: Collection = Collection(2);

/// So many queues take turns.
const QUEUES: u64 = 50;
const OWED: Lane = Lane(1);
const HISTORY: Lane = Lane(3);

/// Everything that was reported, over all rounds.
#[derive(Default)]
struct Ledger {
    /// The last batch of documents.
    documents: u64,
    /// Messages that were enqueued.
    enqueued: BTreeSet<u64>,
    /// Those that were settled.
    settled: BTreeSet<u64>,
}

fn main() {
    if let Some(path) = env::var_os(VICTIM) {
        change_until_killed(Path::new(&path));
    }
    let rounds = env::var("FIELDPOST_CRASH_ROUNDS").map_or(4, |rounds| rounds.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("documents");
    close(&open(&path));
    let mut chance = u64::from(std::process::id()) | 1;
    let mut ledger = Ledger::default();
    for round in 1..=rounds {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        kill_after(&path, 1 + chance % 1_000, &mut ledger);

        assert_eq!(verify(&path).unwrap(), [""; 0]);
        let store = open(&path);
        let done = check_documents(&store.documents, ledger.documents, round);
        let (waiting, records) = check_queues(&store.queues, &ledger, round);
        close(&store);
        println!(
            "round {round}: {} batches acknowledged, {done} found; {} messages enqueued and {} \
             settled, {waiting} waiting and {records} settled found",
            ledger.documents,
            ledger.enqueued.len(),
            ledger.settled.len(),
        );
    }
}

/// Returns the number of batches that were found.
fn check_documents(documents: &EmbeddedDocuments, acknowledged: u64, round: u32) -> u64 {
    let done = last_batch(documents);
    assert!(
        done >= acknowledged,
        "round {round}: batch {acknowledged} was acknowledged, {done} is the last one there"
    );
    assert_eq!(stored(documents), expected(done), "round {round}");
    let mut classes = BTreeMap::new();
    for (class, _) in expected(done).values() {
        *classes.entry(*class).or_insert(0u64) += 1;
    }
    let counts = documents.counts(DEVICES);
    assert_eq!(counts, classes.into_iter().collect::<Vec<_>>());
    done
}

/// Returns the number of messages that wait, and of those that were settled.
fn check_queues(queues: &EmbeddedQueues, ledger: &Ledger, round: u32) -> (usize, usize) {
    let mut waiting = BTreeSet::new();
    for number in 0..QUEUES {
        let request = ListQueue {
            queue: queue(number),
            after: 0,
            limit: usize::MAX,
            bytes_max: usize::MAX,
        };
        for message in block_on(queues.list(request)).unwrap().messages {
            assert_eq!(message.message, content(number), "round {round}");
            assert!(waiting.insert(message.sequence), "round {round}: twice");
        }
    }
    let [owed, history] = [OWED, HISTORY].map(|lane| settled(queues, lane));
    assert_eq!(owed, history, "round {round}");
    for sequence in &ledger.settled {
        assert!(
            owed.contains(sequence),
            "round {round}: no record of {sequence}"
        );
    }
    for sequence in &ledger.enqueued {
        assert!(
            waiting.contains(sequence) != owed.contains(sequence),
            "round {round}: message {sequence} is neither or both"
        );
    }
    // Nothing of the next number is anywhere.
    let next = match block_on(queues.apply(vec![enqueue(0)])).unwrap()[..] {
        [OperationResult::Enqueued { sequence }] => sequence,
        ref other => panic!("{other:?}"),
    };
    for given in [&waiting, &owed, &ledger.enqueued] {
        assert!(given.last() < Some(&next), "round {round}: {next} again");
    }
    (waiting.len(), owed.len())
}

/// The messages that a lane has records of.
fn settled(queues: &EmbeddedQueues, lane: Lane) -> BTreeSet<u64> {
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

/// Lets a process work until it has reported `reports` batches, and kills it.
fn kill_after(path: &Path, reports: u64, ledger: &mut Ledger) {
    let mut victim = Command::new(env::current_exe().unwrap())
        .env(VICTIM, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    for _ in 0..reports {
        let line = lines.next().expect("the process goes on until killed");
        ledger.note(line.unwrap().strip_suffix('.').unwrap());
    }
    victim.kill().unwrap();
    victim.wait().unwrap();
    // What it had reported and we had not read yet; the last line may be cut short.
    for line in lines.map_while(Result::ok) {
        let Some(line) = line.strip_suffix('.') else {
            break;
        };
        ledger.note(line);
    }
}

impl Ledger {
    /// Takes note of a line: a batch of documents, messages enqueued, and messages settled.
    fn note(&mut self, line: &str) {
        let parts: Vec<Vec<u64>> = line
            .split(';')
            .map(|part| {
                let numbers = part.split_whitespace();
                numbers.map(|number| number.parse().unwrap()).collect()
            })
            .collect();
        let [documents, enqueued, settled] = &parts[..] else {
            panic!("{line:?}");
        };
        self.documents = documents[0];
        self.enqueued.extend(enqueued);
        self.settled.extend(settled);
    }
}

fn change_until_killed(path: &Path) -> ! {
    let store = open(path);
    let mut lines = std::io::stdout().lock();
    let mut in_flight = VecDeque::new();
    let mut to_settle = Vec::new();
    for number in last_batch(&store.documents) + 1.. {
        // Two messages, and the settlement of the second of an older batch.
        let mut operations = vec![enqueue(number), enqueue(number)];
        operations.extend(to_settle.drain(..).map(settle));
        let settled: Vec<u64> = operations.iter().filter_map(settled_by).collect();
        in_flight.push_back((
            number,
            settled,
            store.documents.apply(batch(number)),
            store.queues.apply(operations),
        ));
        if in_flight.len() == WINDOW {
            let (number, settled, documents, queues) = in_flight.pop_front().unwrap();
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
            to_settle.push((number, enqueued[1]));
            let words = |numbers: &[u64]| {
                let words: Vec<_> = numbers.iter().map(u64::to_string).collect();
                words.join(" ")
            };
            writeln!(lines, "{number};{};{}.", words(&enqueued), words(&settled)).unwrap();
            lines.flush().unwrap();
        }
    }
    unreachable!("there is always another number")
}

fn queue(number: u64) -> QueueName {
    QueueName(Bytes::from(format!("device-{}", number % QUEUES)))
}

/// What each message of a queue is.
fn content(number: u64) -> Bytes {
    let byte = u8::try_from(number % QUEUES).unwrap();
    Bytes::from(vec![byte; 256])
}

fn enqueue(number: u64) -> Operation {
    Operation::Enqueue {
        queue: queue(number),
        message: content(number),
        expires: Timestamp::from_millis(1_800_000_000_000),
        depth_max: 1_000_000,
        once: None,
    }
}

fn settle((number, sequence): (u64, u64)) -> Operation {
    Operation::Settle {
        queue: queue(number),
        sequence,
        outcomes: vec![
            (OWED, Bytes::from_static(b"owed")),
            (HISTORY, Bytes::from(vec![1; 400])),
        ],
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
            action: put(part, number, 300),
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

fn open(path: &Path) -> KeyValueStore {
    KeyValueStore::open(path, Arc::new(StoreHealth::new())).unwrap()
}

fn close(store: &KeyValueStore) {
    block_on(store.documents.close());
    block_on(store.queues.close());
}
