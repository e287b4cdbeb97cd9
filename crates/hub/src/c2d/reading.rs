//! Reading queues for those who ask about them.

use std::sync::Arc;

use fieldpost_store::StoreError;
use fieldpost_store::queues::{ListQueue, QueuedMessage};
use tokio::sync::oneshot;

use super::names::{Named, QueueKey};
use super::owner::Command;
use super::{Inner, LockState, MessageState, PAGE_MESSAGES};

/// Bytes of messages that one page reads.
const PAGE_BYTES: usize = 4 * 1024 * 1024;

/// A question about all messages of a queue reads so many bytes at most.
const LIVE_BYTES_MAX: usize = 64 * 1024 * 1024;

impl Inner {
    /// Messages of a queue after a number; what cannot be read is left out.
    pub(super) async fn page(
        &self,
        queue: &Named,
        after: u64,
        limit: usize,
    ) -> Result<Vec<QueuedMessage>, StoreError> {
        let mut request = ListQueue {
            queue: queue.name.clone(),
            after,
            limit,
            bytes_max: PAGE_BYTES,
        };
        loop {
            match self.queues.list(request.clone()).await {
                Ok(page) => return Ok(page.messages),
                Err(error) => {
                    let after = request.after;
                    request.after = self.behind_damaged_message(&queue.key, after, error)?;
                }
            }
        }
    }

    /// The messages of a queue with their live state, from the first on, 64 MiB at most.
    pub(super) async fn live(&self, key: &QueueKey) -> Result<Vec<MessageState>, StoreError> {
        let queue = Named::new(key.clone());
        let mut messages = Vec::new();
        let (mut after, mut bytes) = (0, 0);
        while bytes < LIVE_BYTES_MAX {
            let page = self.page(&queue, after, PAGE_MESSAGES).await?;
            let Some(last) = page.last() else {
                break;
            };
            after = last.sequence;
            bytes += page.iter().map(|m| m.message.len()).sum::<usize>();
            messages.extend(self.with_live_state(&queue, page).await);
        }
        Ok(messages)
    }

    pub(super) async fn with_live_state(
        &self,
        queue: &Arc<Named>,
        messages: Vec<QueuedMessage>,
    ) -> Vec<MessageState> {
        let (reply, answered) = oneshot::channel();
        self.command(Command::Look {
            queue: Arc::clone(queue),
            sequences: messages.iter().map(|m| m.sequence).collect(),
            reply,
        });
        // An owner that has ended knows of no locks.
        let mut live = answered.await.unwrap_or_default().into_iter();
        let now = self.now();
        let state = |message: QueuedMessage| {
            let live = live.next().unwrap_or_default();
            MessageState {
                sequence: message.sequence,
                message: message.message,
                expires: message.expires,
                delivery_count: live.delivery_count.unwrap_or(message.delivery_count),
                locked: live.locked.map(|ends| LockState {
                    until: ends
                        .map(|at| now.stamp.saturating_add(at.saturating_sub(now.monotonic))),
                }),
                attempts: live.attempts,
            }
        };
        messages.into_iter().map(state).collect()
    }
}
