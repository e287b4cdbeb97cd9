//! Failures, grouping, closing, and the lock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, mpsc};

use fieldpost_store::queues::LaneFigures;
use fieldpost_store::{Health, HealthLevel};

use super::*;
use crate::keyvalue::engine::{EngineError, View};
use crate::keyvalue::{KeyValueConfig, verify};

#[test]
fn a_failed_write_turns_the_store_read_only_and_reads_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("documents");
    let failing = Arc::new(Failing {
        engine: FjallEngine::open_or_create(&path).unwrap(),
        fail: AtomicBool::new(false),
    });
    let (store, health) = start(Arc::clone(&failing) as _);
    put(&store, "before").unwrap();
    operate(&store, enqueue("q", 1)).unwrap();
    failing.fail.store(true, Ordering::Relaxed);
    let refused = operate(&store, settle("q", 1, 1));
    assert!(matches!(refused, Err(StoreError::ReadOnly { .. })));
    failing.fail.store(false, Ordering::Relaxed);
    drop(failing);
    // The disk works again; nobody can say what the failed write left.
    let refused = operate(&store, enqueue("q", 2));
    assert!(matches!(refused, Err(StoreError::ReadOnly { .. })));
    let refused = put(&store, "later");
    let Err(StoreError::ReadOnly { reason }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!(
        &*reason,
        "writing documents and queues: no space left on device"
    );
    let health: Health = health.subscribe().borrow().clone();
    assert_eq!(health.level, HealthLevel::ReadOnly);
    assert_eq!(health.reason.as_deref(), Some(&*reason));

    let check = |store: &KeyValueStore| {
        assert!(document(store, "before").unwrap());
        assert!(!document(store, "later").unwrap());
        assert_eq!(store.documents.counts(DEVICES), [(0, 1)]);
        assert_eq!(messages(store, "q").unwrap().len(), 1);
        assert_eq!(store.queues.lane(LANE), LaneFigures::default());
    };
    check(&store);
    close(&store);
    let store = open(&path).unwrap();
    check(&store);
    put(&store, "again").unwrap();
    assert_eq!(
        operate(&store, enqueue("q", 3)).unwrap(),
        OperationResult::Enqueued { sequence: 2 },
        "nobody was told of a second one before"
    );
}

#[test]
fn what_waits_during_a_write_shares_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let (arrived, arrivals) = mpsc::channel();
    let (open_gate, gate) = mpsc::channel();
    let (store, _) = start(Arc::new(Gated {
        engine: FjallEngine::open_or_create(&folder.path().join("documents")).unwrap(),
        arrived: Mutex::new(arrived),
        gate: Mutex::new(gate),
    }));
    let first = store.documents.apply(vec![change("first")]);
    arrivals.recv().unwrap();
    let keys = ["a", "b", "c", "a", "b", "a"];
    let waiting: Vec<_> = keys
        .into_iter()
        .map(|key| store.documents.apply(vec![change(key)]))
        .collect();
    let steps = [
        enqueue("q", 1),
        settle("q", 1, 2),
        enqueue("q", 2),
        settle("q", 1, 1),
    ];
    let queued: Vec<_> = steps
        .into_iter()
        .map(|step| store.queues.apply(vec![step]))
        .collect();
    open_gate.send(()).unwrap();
    block_on(first).unwrap();
    // One more write for all of them.
    arrivals.recv().unwrap();
    assert_eq!(
        store.documents.counts(DEVICES),
        [(0, 1)],
        "nothing is told early"
    );
    assert_eq!(store.queues.lane(LANE), LaneFigures::default());
    open_gate.send(()).unwrap();
    for (revision, answer) in (2..).zip(waiting) {
        assert_eq!(block_on(answer).unwrap(), [ChangeResult::Done(revision)]);
    }
    let expected = [
        OperationResult::Enqueued { sequence: 1 },
        OperationResult::Done,
        OperationResult::Enqueued { sequence: 2 },
        OperationResult::Gone,
    ];
    for (expected, answer) in expected.into_iter().zip(queued) {
        assert_eq!(block_on(answer).unwrap(), [expected]);
    }
    assert_eq!(store.documents.counts(DEVICES), [(0, 4)]);
    assert_eq!(store.queues.lane(LANE).count, 2);
    assert_eq!(messages(&store, "q").unwrap().len(), 1);
    assert!(arrivals.try_recv().is_err(), "no third write");
    close(&store);
}

#[test]
fn a_store_in_use_is_not_opened_twice() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("documents");
    let store = open(&path).unwrap();
    assert!(matches!(open(&path), Err(OpenError::Locked { .. })));
    assert!(matches!(verify(&path), Err(OpenError::Locked { .. })));
    close(&store);
    close(&open(&path).unwrap());
    assert_eq!(verify(&path).unwrap(), [""; 0]);
}

#[test]
fn the_directory_is_free_when_both_facets_are_closed_in_whatever_way() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("documents");
    let check = |end: &dyn Fn(KeyValueStore)| {
        end(open(&path).unwrap());
        assert_eq!(verify(&path).unwrap(), [""; 0]);
    };
    check(&|store| {
        block_on(store.documents.close());
        let refused = put(&store, "late");
        assert!(matches!(refused, Err(StoreError::Closed)));
        let refused = document(&store, "late");
        assert!(matches!(refused, Err(StoreError::Closed)));
        // The other one goes on.
        operate(&store, enqueue("q", 1)).unwrap();
        assert_eq!(messages(&store, "q").unwrap().len(), 1);
        block_on(store.queues.close());
        let refused = operate(&store, enqueue("q", 1));
        assert!(matches!(refused, Err(StoreError::Closed)));
        block_on(store.documents.close());
    });
    check(&|store| {
        let waiting = store.queues.apply(vec![enqueue("q", 2)]);
        block_on(store.queues.close());
        block_on(waiting).unwrap();
        block_on(store.queues.close());
        put(&store, "late").unwrap();
        block_on(store.documents.close());
    });
    check(&|store| {
        let (documents, queues) = (store.documents.close(), store.queues.close());
        block_on(documents);
        block_on(queues);
    });
    check(&|KeyValueStore { documents, queues }| {
        drop(queues);
        block_on(documents.close());
    });
    check(&|KeyValueStore { documents, queues }| {
        drop(documents);
        block_on(queues.close());
    });
}

#[test]
fn a_filling_disk_holds_messages_first_and_then_everything() {
    let folder = tempfile::tempdir().unwrap();
    let health = Arc::new(StoreHealth::new());
    let path = folder.path().join("documents");
    let store = KeyValueStore::open(&path, Arc::clone(&health)).unwrap();
    operate(&store, enqueue("q", 1)).unwrap();
    health.set_disk(HealthLevel::HoldMessages, "filling");
    let batch = vec![enqueue("q", 2), settle("q", 1, 1), enqueue("q", 3)];
    let results = block_on(store.queues.apply(batch)).unwrap();
    let expected = [
        OperationResult::NoRoom,
        OperationResult::Done,
        OperationResult::NoRoom,
    ];
    assert_eq!(results, expected);
    put(&store, "a").unwrap();
    health.set_disk(HealthLevel::HoldAll, "full");
    let refused = operate(&store, settle("q", 1, 1));
    assert!(matches!(refused, Err(StoreError::Full)));
    health.set_disk(HealthLevel::Ok, "");
    assert_eq!(
        operate(&store, enqueue("q", 4)).unwrap(),
        OperationResult::Enqueued { sequence: 2 }
    );
    close(&store);
}

/// fjall with a write that can fail.
struct Failing {
    engine: FjallEngine,
    fail: AtomicBool,
}

impl Engine for Failing {
    fn apply(&self, writes: &Writes) -> Result<(), EngineError> {
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
    fn apply(&self, writes: &Writes) -> Result<(), EngineError> {
        self.arrived.lock().unwrap().send(()).unwrap();
        self.gate.lock().unwrap().recv().unwrap();
        self.engine.apply(writes)
    }

    fn snapshot(&self) -> Box<dyn View + '_> {
        self.engine.snapshot()
    }
}

fn start(engine: Arc<dyn Engine>) -> (KeyValueStore, Arc<StoreHealth>) {
    let health = Arc::new(StoreHealth::new());
    let config = KeyValueConfig { deletions_kept: 10 };
    let store =
        KeyValueStore::on_engine(Path::new("test"), engine, Arc::clone(&health), &config).unwrap();
    (store, health)
}
