//! A process that changes documents is killed at any moment; what it reported as done is there.
//!
//! The test starts itself as that process, which writes the number of each acknowledged batch to
//! its standard output, a pipe that outlives it. Afterwards the store holds exactly the first so
//! many batches, and at least those that were reported.
//!
//! `FIELDPOST_CRASH_ROUNDS` sets how often the process is killed, 4 times by default.

#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test without the usual harness reports by itself and stops where it fails"
)]

use std::collections::{BTreeMap, VecDeque};
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use fieldpost_store::documents::{Action, Change, Collection, Condition, Documents, ListRequest};
use fieldpost_store::suite::block_on;
use fieldpost_store_embedded::documents::{EmbeddedDocuments, verify};
use fieldpost_store_embedded::health::StoreHealth;

/// Set for the process that is to be killed: the directory of its documents.
const VICTIM: &str = "FIELDPOST_CRASH_VICTIM";

/// Batches in flight at a time.
const WINDOW: usize = 16;

/// After so many batches the names come again.
const NAMES: u64 = 400;

const DEVICES: Collection = Collection(1);
const MARKS: Collection = Collection(2);

fn main() {
    if let Some(path) = env::var_os(VICTIM) {
        change_until_killed(Path::new(&path));
    }
    let rounds = env::var("FIELDPOST_CRASH_ROUNDS").map_or(4, |rounds| rounds.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("documents");
    block_on(open(&path).close());
    let mut chance = u64::from(std::process::id()) | 1;
    for round in 1..=rounds {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        let acknowledged = kill_after(&path, 1 + chance % 1_000);

        assert_eq!(verify(&path).unwrap(), [""; 0]);
        let documents = open(&path);
        let done = last_batch(&documents);
        assert!(
            done >= acknowledged,
            "round {round}: batch {acknowledged} was acknowledged, {done} is the last one there"
        );
        assert_eq!(stored(&documents), expected(done), "round {round}");
        let counts = documents.counts(DEVICES);
        let mut classes = BTreeMap::new();
        for (class, _) in expected(done).values() {
            *classes.entry(*class).or_insert(0u64) += 1;
        }
        assert_eq!(counts, classes.into_iter().collect::<Vec<_>>());
        block_on(documents.close());
        println!("round {round}: {acknowledged} batches acknowledged, {done} found");
    }
}

/// Lets a process change documents until it has reported `reports` batches, and kills it. Returns
/// the last batch reported.
fn kill_after(path: &Path, reports: u64) -> u64 {
    let mut victim = Command::new(env::current_exe().unwrap())
        .env(VICTIM, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ledger = BufReader::new(victim.stdout.take().unwrap()).lines();
    let mut last = 0;
    for _ in 0..reports {
        let line = ledger.next().expect("the process goes on until killed");
        last = line.unwrap().trim_end_matches('.').parse().unwrap();
    }
    victim.kill().unwrap();
    victim.wait().unwrap();
    // What it had reported and we had not read yet; the last line may be cut short.
    for line in ledger.map_while(Result::ok) {
        let Some(number) = line.strip_suffix('.') else {
            break;
        };
        last = number.parse().unwrap();
    }
    last
}

fn change_until_killed(path: &Path) -> ! {
    let documents = open(path);
    let mut ledger = std::io::stdout().lock();
    let mut in_flight = VecDeque::new();
    for number in last_batch(&documents) + 1.. {
        in_flight.push_back((number, documents.apply(batch(number))));
        if in_flight.len() == WINDOW {
            let (number, answer) = in_flight.pop_front().unwrap();
            block_on(answer).unwrap();
            writeln!(ledger, "{number}.").unwrap();
            ledger.flush().unwrap();
        }
    }
    unreachable!("there is always another number")
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

fn open(path: &Path) -> EmbeddedDocuments {
    EmbeddedDocuments::open(path, Arc::new(StoreHealth::new())).unwrap()
}
