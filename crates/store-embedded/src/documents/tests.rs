//! What the contract does not say: damage, failures, the lock, and formats.

use std::fs;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};

use fieldpost_store::documents::{Action, Condition};
use fieldpost_store::suite::block_on;
use fieldpost_store::{Health, HealthLevel};
use tempfile::TempDir;

use super::engine::{EngineError, Space, View, Writes};
use super::layout::{FORMAT_KEY, StateRow};
use super::*;

const DEVICES: Collection = Collection(1);

#[test]
fn a_failed_write_turns_the_store_read_only_and_reads_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("documents");
    let failing = Arc::new(Failing {
        engine: FjallEngine::open_or_create(&path).unwrap(),
        fail: AtomicBool::new(false),
    });
    let documents = start(Arc::clone(&failing) as _);
    put(&documents, "before").unwrap();
    failing.fail.store(true, Ordering::Relaxed);
    let refused = put(&documents, "lost");
    assert!(matches!(refused, Err(StoreError::ReadOnly { .. })));
    failing.fail.store(false, Ordering::Relaxed);
    drop(failing);
    // The disk works again; nobody can say what the failed write left.
    let refused = put(&documents, "later");
    let Err(StoreError::ReadOnly { reason }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(&*reason, "writing documents: no space left on device");
    let health: Health = documents.health.subscribe().borrow().clone();
    assert_eq!(health.level, HealthLevel::ReadOnly);
    assert_eq!(health.reason.as_deref(), Some(&*reason));

    let key = |key: &'static str| Bytes::from_static(key.as_bytes());
    assert!(
        block_on(documents.get(DEVICES, key("before")))
            .unwrap()
            .is_some()
    );
    assert!(
        block_on(documents.get(DEVICES, key("lost")))
            .unwrap()
            .is_none()
    );
    assert_eq!(documents.counts(DEVICES), [(0, 1)]);
    block_on(documents.close());
    let documents = open(&path).unwrap();
    assert_eq!(documents.counts(DEVICES), [(0, 1)]);
    put(&documents, "again").unwrap();
}

#[test]
fn what_waits_during_a_write_shares_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let (arrived, arrivals) = mpsc::channel();
    let (open_gate, gate) = mpsc::channel();
    let documents = start(Arc::new(Gated {
        engine: FjallEngine::open_or_create(&folder.path().join("documents")).unwrap(),
        arrived: Mutex::new(arrived),
        gate: Mutex::new(gate),
    }));
    let submit = |key| documents.apply(vec![change(key)]);
    let first = submit("first");
    arrivals.recv().unwrap();
    let keys = ["a", "b", "c", "a", "b", "a"];
    let waiting: Vec<_> = keys.into_iter().map(submit).collect();
    open_gate.send(()).unwrap();
    block_on(first).unwrap();
    // One more write for all of them.
    arrivals.recv().unwrap();
    assert_eq!(documents.counts(DEVICES), [(0, 1)], "nothing is told early");
    open_gate.send(()).unwrap();
    for (revision, answer) in (2..).zip(waiting) {
        assert_eq!(block_on(answer).unwrap(), [ChangeResult::Done(revision)]);
    }
    assert_eq!(documents.counts(DEVICES), [(0, 4)]);
    assert!(arrivals.try_recv().is_err(), "no third write");
    block_on(documents.close());
}

#[test]
fn documents_in_use_are_not_opened_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("documents");
    let documents = open(&path).unwrap();
    assert!(matches!(open(&path), Err(OpenError::Locked { .. })));
    assert!(matches!(verify(&path), Err(OpenError::Locked { .. })));
    block_on(documents.close());
    block_on(open(&path).unwrap().close());
    assert_eq!(verify(&path).unwrap(), [""; 0]);
}

#[test]
fn documents_of_a_newer_format_are_left_alone() {
    let (_folder, path) = stored(|_| {});
    let engine = FjallEngine::open(&path).unwrap();
    let mut writes = Writes::default();
    // Format 2 in the row's own layout.
    let crc = crc32c::crc32c(b"\x04format\x01\x02\x00\x00\x00");
    let row = [&crc.to_le_bytes()[..], b"\x01\x02\x00\x00\x00"].concat();
    writes.put(Space::Meta, FORMAT_KEY.to_vec(), row);
    engine.apply(writes).unwrap();
    drop(engine);
    let refused = open(&path).map(drop);
    assert!(
        matches!(
            refused,
            Err(OpenError::Newer {
                found: 2,
                supported: 1,
                ..
            })
        ),
        "{refused:?}"
    );
}

#[test]
fn a_creation_that_a_crash_ended_is_begun_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("documents");
    let staging = folder.path().join("documents.new");
    fs::create_dir_all(staging.join("keyspaces")).unwrap();
    fs::write(staging.join("lock"), "").unwrap();
    fs::write(staging.join("0.jnl"), [0; 100]).unwrap();
    let documents = open(&path).unwrap();
    put(&documents, "first").unwrap();
    assert!(!staging.exists());
}

#[test]
fn damage_is_found_and_named() {
    let check = |damage: &dyn Fn(&mut Writes), expected: &[&str]| {
        let (_folder, path) = stored(damage);
        let found = verify(&path).unwrap();
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (line, expected) in found.iter().zip(expected) {
            assert!(line.contains(expected), "{line:?} has no {expected:?}");
        }
    };
    check(&|_| {}, &[]);
    check(
        &|writes| writes.put(Space::Documents, b"\x01a".to_vec(), b"rubbish".to_vec()),
        &[
            "table documents, key 1/a: the row does not pass its check",
            "count of collection 1, class 0: 3, and there are 2 documents",
            "table documents, key 1/a: the row does not pass its check",
            "table feed, revision 1: 1/a is not at this revision in table documents",
        ],
    );
    check(
        &|writes| writes.remove(Space::Documents, b"\x01a".to_vec()),
        &[
            "count of collection 1, class 0: 3, and there are 2 documents",
            "table feed, revision 1: 1/a is not at this revision in table documents",
        ],
    );
    check(
        &|writes| writes.remove(Space::Feed, layout::revision_key(2)),
        &["table feed: no row for 1/b at revision 2"],
    );
    check(
        &|writes| {
            let key = layout::count_key(DEVICES, 7);
            let row = layout::count_row(&key, 9);
            writes.put(Space::Meta, key, row);
        },
        &["count of collection 1, class 7: 9, and there are no such documents"],
    );
    check(
        &|writes| writes.remove(Space::Deleted, b"\x01gone".to_vec()),
        &["table deletions, revision 5: 1/gone is not at this revision in table deleted"],
    );
    check(
        &|writes| {
            let row = layout::deleted_row(b"\x01a", 4);
            writes.put(Space::Deleted, b"\x01a".to_vec(), row);
        },
        &[
            "table deleted: 1/a was deleted at revision 4 and is a document",
            "table deletions: no row for 1/a at revision 4",
        ],
    );
    check(
        &|writes| {
            let row = layout::document_row(b"\x01c", 99, 0, b"");
            writes.put(Space::Documents, b"\x01c".to_vec(), row);
        },
        &[
            "table documents, 1/c: revision 99 was never given out; the newest is 5",
            "table feed: no row for 1/c at revision 99",
            "table feed, revision 3: 1/c is not at this revision in table documents",
        ],
    );
    let state = |revision, deletions| {
        move |writes: &mut Writes| {
            let row = layout::state_row(StateRow {
                revision,
                deletions_trimmed: 0,
                deletions,
            });
            writes.put(Space::Meta, layout::STATE_KEY.to_vec(), row);
        }
    };
    check(&state(5, 4), &["count of deletions: 4, and there are 1"]);
    check(
        &state(4, 1),
        &["the change feed does not end at revision 4, the newest one"],
    );
    check(
        &state(6, 1),
        &["the change feed does not end at revision 6, the newest one"],
    );
}

#[test]
fn a_damaged_document_fails_alone() {
    let (_folder, path) =
        stored(|writes| writes.put(Space::Documents, b"\x01a".to_vec(), vec![1; 40]));
    let documents = open(&path).unwrap();
    let key = |key: &'static str| Bytes::from_static(key.as_bytes());
    let read = block_on(documents.get(DEVICES, key("a")));
    assert!(matches!(read, Err(StoreError::Damaged { .. })));
    assert!(matches!(
        put(&documents, "a"),
        Err(StoreError::Damaged { .. })
    ));
    assert!(
        block_on(documents.get(DEVICES, key("b")))
            .unwrap()
            .is_some()
    );
    put(&documents, "b").unwrap();
    put(&documents, "new").unwrap();
}

#[test]
fn damage_in_the_middle_of_the_journal_is_an_error_that_names_the_file() {
    let (_folder, path) = stored(|_| {});
    let journal = path.join("0.jnl");
    let mut bytes = fs::read(&journal).unwrap();
    // In the second of five changes.
    let at = bytes.windows(2).position(|two| two == b"\x01b").unwrap();
    bytes[at] ^= 0x40;
    fs::write(&journal, &bytes).unwrap();
    let before = fs::metadata(&journal).unwrap().len();
    let Err(OpenError::Damaged { path: file, what }) = open(&path) else {
        panic!("opened");
    };
    assert_eq!(file, journal);
    assert!(
        what.contains("acknowledged changes follow after it"),
        "{what}"
    );
    assert_eq!(fs::metadata(&journal).unwrap().len(), before, "left alone");
    let lines = verify(&path).unwrap();
    assert!(lines.len() == 1 && lines[0].contains("0.jnl"), "{lines:?}");
}

#[test]
fn missing_files_are_errors_and_not_new_beginnings() {
    let check = |file: &str| {
        let (_folder, path) = stored(|_| {});
        let gone = path.join(file);
        if gone.is_dir() {
            fs::remove_dir_all(&gone).unwrap();
        } else {
            fs::remove_file(&gone).unwrap();
        }
        let refused = open(&path).map(drop);
        assert!(
            matches!(refused, Err(OpenError::Damaged { .. })),
            "{file}: {refused:?}"
        );
    };
    for file in [
        "0.jnl",
        "version",
        "keyspaces",
        "keyspaces/1/current",
        "keyspaces/1",
    ] {
        check(file);
    }
}

#[test]
fn a_torn_write_at_the_end_of_the_journal_does_not_keep_the_store_shut() {
    let (_folder, path) = stored(|_| {});
    let journal = path.join("0.jnl");
    let mut bytes = fs::read(&journal).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    bytes.truncate(end);
    bytes.extend_from_slice(b"\x01\x02\x00\x00\x00\xff\x00\x00\x00\x00\x00\x00\x00\x02\x00");
    fs::write(&journal, &bytes).unwrap();
    let documents = open(&path).unwrap();
    assert_eq!(documents.counts(DEVICES), [(0, 3)]);
    put(&documents, "next").unwrap();
    block_on(documents.close());
    assert_eq!(verify(&path).unwrap(), [""; 0]);
}

/// fjall with a write that can fail.
struct Failing {
    engine: FjallEngine,
    fail: AtomicBool,
}

impl Engine for Failing {
    fn apply(&self, writes: Writes) -> Result<(), EngineError> {
        if self.fail.load(Ordering::Relaxed) {
            return Err(EngineError::Failed("no space left on device".to_owned()));
        }
        self.engine.apply(writes)
    }

    fn snapshot(&self) -> Box<dyn View + '_> {
        self.engine.snapshot()
    }
}

/// fjall with writes that tell of their beginning and wait for leave.
struct Gated {
    engine: FjallEngine,
    arrived: Mutex<mpsc::Sender<()>>,
    gate: Mutex<mpsc::Receiver<()>>,
}

impl Engine for Gated {
    fn apply(&self, writes: Writes) -> Result<(), EngineError> {
        self.arrived.lock().unwrap().send(()).unwrap();
        self.gate.lock().unwrap().recv().unwrap();
        self.engine.apply(writes)
    }

    fn snapshot(&self) -> Box<dyn View + '_> {
        self.engine.snapshot()
    }
}

fn start(engine: Arc<dyn Engine>) -> EmbeddedDocuments {
    let health = Arc::new(StoreHealth::new());
    let counts = Arc::new(Counts::default());
    let state = read::state(&*engine.snapshot()).unwrap();
    let committer = Committer {
        state,
        engine,
        health: Arc::clone(&health),
        counts: Arc::clone(&counts),
        deletions_kept: 10,
    };
    EmbeddedDocuments::start(committer, health, counts).unwrap()
}

fn open(path: &Path) -> Result<EmbeddedDocuments, OpenError> {
    EmbeddedDocuments::open(path, Arc::new(StoreHealth::new()))
}

/// Closed documents at revision 5: `a`, `b`, `c`, and `gone`, which is deleted; then `damage`.
fn stored(damage: impl Fn(&mut Writes)) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("documents");
    let documents = open(&path).unwrap();
    for key in ["a", "b", "c", "gone"] {
        put(&documents, key).unwrap();
    }
    let delete = Change {
        collection: DEVICES,
        key: Bytes::from_static(b"gone"),
        condition: Condition::Present,
        action: Action::Delete,
    };
    block_on(documents.apply(vec![delete])).unwrap();
    block_on(documents.close());
    let engine = FjallEngine::open(&path).unwrap();
    let mut writes = Writes::default();
    damage(&mut writes);
    if !writes.is_empty() {
        engine.apply(writes).unwrap();
    }
    let mut rows = 0;
    engine
        .snapshot()
        .range(Space::Meta, Bound::Unbounded, &mut |_, _| {
            rows += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(rows >= 3, "format, state, a count");
    drop(engine);
    (folder, path)
}

fn put(documents: &EmbeddedDocuments, key: &'static str) -> Result<Vec<ChangeResult>, StoreError> {
    block_on(documents.apply(vec![change(key)]))
}

fn change(key: &'static str) -> Change {
    Change {
        collection: DEVICES,
        key: Bytes::from_static(key.as_bytes()),
        condition: Condition::Any,
        action: Action::Put {
            class: 0,
            value: Bytes::from_static(b"{\"status\":\"enabled\"}"),
        },
    }
}
