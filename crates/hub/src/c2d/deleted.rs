//! Lets go of what was meant for devices that are no more.

use std::pin::pin;
use std::sync::Arc;

use fieldpost_store::StoreError;
use fieldpost_store::queues::{Operation, OperationResult, QueueName};
use futures_util::future::select;
use tokio::sync::{mpsc, oneshot};

use super::Inner;
use super::names::{Named, QueueKey};
use super::owner::Command;
use crate::identity::DeletedDevice;

/// Works until `stopped` is answered or dropped.
///
/// What is not done by then, or fails, goes when the first of it expires. Nobody sees it until then,
/// because a device that is created anew has another queue.
pub(super) async fn run(
    inner: Arc<Inner>,
    mut deletions: mpsc::UnboundedReceiver<DeletedDevice>,
    stopped: oneshot::Receiver<()>,
) {
    let run = pin!(async move {
        while let Some(deleted) = deletions.recv().await {
            let queue = Named::new(QueueKey::of(deleted.identity, deleted.generation_id));
            inner.command(Command::Forget {
                queue: Arc::clone(&queue),
            });
            if let Err(error) = drop_queue(&inner, &queue.name).await {
                tracing::warn!(%error, "messages of a deleted device stay until they expire");
            }
        }
    });
    select(run, stopped).await;
}

/// Removes a queue with everything in it, without outcomes.
pub(super) async fn drop_queue(inner: &Inner, queue: &QueueName) -> Result<(), StoreError> {
    loop {
        let queue = queue.clone();
        let results = inner.queues.apply(vec![Operation::Drop { queue }]).await?;
        if !matches!(
            results.first(),
            Some(OperationResult::Dropped { more: true, .. })
        ) {
            return Ok(());
        }
    }
}
