//! What the contracts do not say: damage, failures, the lock, and formats.

mod blocks;
mod damage;
mod faults;
mod formats;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fieldpost_model::Timestamp;
use fieldpost_store::StoreError;
use fieldpost_store::documents::{Action, Change, ChangeResult, Collection, Condition, Documents};
use fieldpost_store::queues::{
    DeviceQueues, Lane, ListQueue, Operation, OperationResult, QueueName, QueuedMessage,
};
use fieldpost_store::suite::block_on;
use tempfile::TempDir;

use super::engine::{ALL_KEYS, Engine, Space, Writes};
use super::fjall_engine::FjallEngine;
use super::{KeyValueStore, OpenError};
use crate::health::StoreHealth;

const DEVICES: Collection = Collection(1);
const LANE: Lane = Lane(2);

fn open(path: &Path) -> Result<KeyValueStore, OpenError> {
    KeyValueStore::open(path, Arc::new(StoreHealth::new()))
}

fn close(store: &KeyValueStore) {
    block_on(store.queues.close());
    block_on(store.documents.close());
}

/// A closed store with documents at revision 5: `a`, `b`, `c`, and `gone`, which is deleted; in queue
/// `q` messages 1 and 2, of which the first was delivered once; 3 is settled with records 1 to 3, of
/// which the first is forgotten, and a mark at queue `f` with message 4; then `damage`.
fn stored(damage: impl Fn(&mut Writes)) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("documents");
    let store = open(&path).unwrap();
    for key in ["a", "b", "c", "gone"] {
        put(&store, key).unwrap();
    }
    let delete = Change {
        collection: DEVICES,
        key: Bytes::from_static(b"gone"),
        condition: Condition::Present,
        action: Action::Delete,
    };
    block_on(store.documents.apply(vec![delete])).unwrap();
    let delivered = Operation::SetDeliveryCount {
        queue: queue("q"),
        sequence: 1,
        count: 1,
    };
    let enqueues = vec![enqueue("q", 1), enqueue("q", 2), enqueue("q", 3), delivered];
    block_on(store.queues.apply(enqueues)).unwrap();
    let mut marked = enqueue("f", 4);
    if let Operation::Enqueue { once, .. } = &mut marked {
        *once = Some(7);
    }
    block_on(store.queues.apply(vec![settle("q", 3, 3), marked])).unwrap();
    let forget = Operation::Forget {
        lane: LANE,
        through: 1,
    };
    block_on(store.queues.apply(vec![forget])).unwrap();
    close(&store);

    let engine = FjallEngine::open_as_it_is(&path).unwrap();
    let mut writes = Writes::default();
    damage(&mut writes);
    if !writes.is_empty() {
        engine.apply(&writes).unwrap();
    }
    assert!(
        rows(&engine, Space::Meta) >= 5,
        "format, states, count, lane"
    );
    assert_eq!(rows(&engine, Space::Due), 3);
    drop(engine);
    (folder, path)
}

fn rows(engine: &FjallEngine, space: Space) -> usize {
    let mut rows = 0;
    engine
        .snapshot()
        .range(space, ALL_KEYS, &mut |_, _| {
            rows += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    rows
}

fn put(store: &KeyValueStore, key: &'static str) -> Result<Vec<ChangeResult>, StoreError> {
    block_on(store.documents.apply(vec![change(key)]))
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

fn document(store: &KeyValueStore, key: &'static str) -> Result<bool, StoreError> {
    let key = Bytes::from_static(key.as_bytes());
    let read = block_on(store.documents.get(DEVICES, key))?;
    Ok(read.is_some())
}

fn queue(name: &'static str) -> QueueName {
    QueueName(Bytes::from_static(name.as_bytes()))
}

fn enqueue(name: &'static str, millis: i64) -> Operation {
    Operation::Enqueue {
        queue: queue(name),
        message: Bytes::from_static(b"message"),
        expires: Timestamp::from_millis(millis),
        depth_max: 50,
        once: None,
    }
}

fn settle(name: &'static str, sequence: u64, records: usize) -> Operation {
    Operation::Settle {
        queue: queue(name),
        sequence,
        outcomes: vec![(LANE, Bytes::from_static(b"record")); records],
    }
}

fn operate(store: &KeyValueStore, operation: Operation) -> Result<OperationResult, StoreError> {
    let mut results = block_on(store.queues.apply(vec![operation]))?;
    Ok(results.pop().unwrap())
}

fn messages(store: &KeyValueStore, name: &'static str) -> Result<Vec<QueuedMessage>, StoreError> {
    let request = ListQueue {
        queue: queue(name),
        after: 0,
        limit: 100,
        bytes_max: usize::MAX,
    };
    Ok(block_on(store.queues.list(request))?.messages)
}
