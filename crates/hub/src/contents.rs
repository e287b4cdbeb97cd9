//! What a store holds that no hub is open on.

use fieldpost_model::{PartitionId, StreamId};
use fieldpost_store::{Store, StoreError};

use crate::c2d::LANES;
use crate::collections::{DEVICES, SESSIONS};

/// Whether a store holds anything besides what every new hub puts there, its settings and policies:
/// devices or their sessions, events, messages to devices, or what became of such messages.
///
/// # Errors
/// When the store cannot be read.
pub async fn holds_data(store: &Store) -> Result<bool, StoreError> {
    let partitions = store.log.partitioning().count();
    let has_events = (0..partitions)
        .map(PartitionId)
        .any(|partition| store.log.bounds(StreamId::BUILT_IN, partition).next > 0);
    let has_devices = [DEVICES, SESSIONS]
        .into_iter()
        .any(|collection| !store.documents.counts(collection).is_empty());
    let has_outcomes = LANES
        .into_iter()
        .any(|lane| store.queues.lane(lane).last > 0);
    // Every message in a queue expires some time.
    let has_messages = store.queues.next_due(None).await?.is_some();
    Ok(has_events || has_devices || has_outcomes || has_messages)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use fieldpost_model::{Partitioning, Timestamp};
    use fieldpost_store::documents::{Action, Change, Collection, Condition};
    use fieldpost_store::memory::MemoryStore;
    use fieldpost_store::queues::{Operation, QueueName};

    use super::*;
    use crate::clock::ManualClock;
    use crate::collections::{CLOCK, POLICIES, SETTINGS};

    #[tokio::test]
    async fn everything_but_a_hubs_own_documents_counts() {
        let new = || {
            let clock = Arc::new(ManualClock::new(Timestamp::UNIX_EPOCH));
            MemoryStore::automatic(Partitioning::new(2).unwrap(), clock).store()
        };
        let document = async |collection: Collection| {
            let store = new();
            let change = Change {
                collection,
                key: Bytes::from_static(b"key"),
                condition: Condition::Any,
                action: Action::Put {
                    value: Bytes::from_static(b"value"),
                    class: 0,
                },
            };
            store.documents.apply(vec![change]).await.unwrap();
            holds_data(&store).await.unwrap()
        };
        assert!(!holds_data(&new()).await.unwrap());
        for own in [SETTINGS, POLICIES, CLOCK] {
            assert!(!document(own).await, "{own:?}");
        }
        for data in [DEVICES, SESSIONS] {
            assert!(document(data).await, "{data:?}");
        }
        let operation = async |operation: Operation| {
            let store = new();
            store.queues.apply(vec![operation]).await.unwrap();
            holds_data(&store).await.unwrap()
        };
        let queue = QueueName(Bytes::from_static(b"queue"));
        let enqueue = Operation::Enqueue {
            queue: queue.clone(),
            message: Bytes::from_static(b"message"),
            expires: Timestamp::NEVER,
            depth_max: 1,
            once: None,
        };
        assert!(operation(enqueue).await);
        for lane in LANES {
            let record = Operation::Record {
                lane,
                queue: queue.clone(),
                sequence: 1,
                record: Bytes::from_static(b"record"),
            };
            assert!(operation(record).await, "{lane:?}");
        }
    }
}
