//! What time it was when the hub last looked, kept for the next one.
//!
//! Without it a hub that starts could only believe its clock, and would expire everything that waits
//! when that is wrong. A doubted time is not written down.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fieldpost_model::{PartitionId, StreamId, Timestamp};
use fieldpost_store::documents::{Action, Change, Condition, Document};
use fieldpost_store::{Store, StoreError};
use futures_util::future::select;
use tokio::sync::oneshot;

use super::Inner;
use crate::collections::CLOCK;

/// How old the mark gets: well below a step that is believed at once, so that a hub that is
/// started anew within minutes believes its clock.
const INTERVAL: Duration = Duration::from_secs(60);

const KEY: Bytes = Bytes::from_static(b"mark");

/// The newest time that is known of a store's past; `None` of a new one.
///
/// # Errors
/// When the store cannot be read. Damage to the mark is none: the newest event tells the time as
/// well.
pub(super) async fn newest(store: &Store) -> Result<Option<Timestamp>, StoreError> {
    let document = match store.documents.get(CLOCK, KEY).await {
        Ok(document) => document,
        Err(error @ StoreError::Damaged { .. }) => {
            tracing::error!(%error, "the time that the hub last knew cannot be read");
            None
        }
        Err(error) => return Err(error),
    };
    if let Some(mark) = document.as_ref().and_then(decode) {
        return Ok(Some(mark));
    }
    let partitions = 0..store.log.partitioning().count();
    Ok(partitions
        .filter_map(|partition| {
            let bounds = store.log.bounds(StreamId(0), PartitionId(partition));
            bounds.last_enqueued
        })
        .max())
}

/// Works until `stopped` is answered or dropped, or the store is closed.
pub(super) async fn run(inner: Arc<Inner>, stopped: oneshot::Receiver<()>) {
    let run = pin!(keep(&inner));
    select(run, stopped).await;
}

async fn keep(inner: &Inner) {
    let mut is_failing = false;
    loop {
        if let Some(now) = inner.wall.believed() {
            let mark = Change {
                collection: CLOCK,
                key: KEY,
                condition: Condition::Any,
                action: Action::Put {
                    class: 0,
                    value: Bytes::copy_from_slice(&now.as_millis().to_le_bytes()),
                },
            };
            match inner.documents.apply(vec![mark]).await {
                Ok(_) => is_failing = false,
                Err(StoreError::Closed) => return,
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        tracing::warn!(%error, "the time cannot be written down for the next start");
                    }
                }
            }
        }
        let until = inner.timer.monotonic().saturating_add(INTERVAL);
        inner.timer.sleep_until(until).await;
    }
}

fn decode(document: &Document) -> Option<Timestamp> {
    let bytes = <[u8; 8]>::try_from(&document.value[..]).ok()?;
    Some(Timestamp::from_millis(i64::from_le_bytes(bytes)))
}
