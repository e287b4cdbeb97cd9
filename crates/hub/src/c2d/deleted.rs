//! Lets go of what was meant for devices that are no more.

use std::pin::pin;
use std::sync::Arc;

use fieldpost_store::StoreError;
use fieldpost_store::queues::{Operation, OperationResult};
use futures_util::future::select;
use tokio::sync::{mpsc, oneshot};

use super::Inner;
use super::names::{Named, QueueKey};
use super::owner::Command;
use crate::identity::DeletedDevice;

/// Works until `stopped` is answered or dropped.
///
/// What is not done by then, or fails, is left to expire: nobody sees it, because a device that is
/// created anew has another queue.
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
            if let Err(error) = drop_queue(&inner, &queue).await {
                tracing::warn!(%error, "messages of a deleted device stay until they expire");
            }
        }
    });
    select(run, stopped).await;
}

async fn drop_queue(inner: &Inner, queue: &Named) -> Result<(), StoreError> {
    loop {
        let queue = queue.name.clone();
        let results = inner.queues.apply(vec![Operation::Drop { queue }]).await?;
        if !matches!(
            results.first(),
            Some(OperationResult::Dropped { more: true, .. })
        ) {
            return Ok(());
        }
    }
}
