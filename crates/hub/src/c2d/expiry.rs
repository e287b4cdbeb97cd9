//! Ends messages whose time is over, on time, whether or not their devices ever come.
//!
//! One task follows the store's order of expiry. It hands what is due to the queues' owners, a page at a
//! time, and waits until that is durable before it takes the next one, so that a million messages that
//! end at the same moment keep nobody else waiting.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use fieldpost_model::Timestamp;
use fieldpost_store::StoreError;
use fieldpost_store::queues::{DuePage, DuePosition, ListDue, QueueName, QueuedMessage};
use futures_util::future::{join_all, select};
use tokio::sync::{Notify, oneshot};

use super::Inner;
use super::deleted::drop_queue;
use super::names::{Named, QueueKey};
use super::outcome::Cause;
use super::owner::Command;

/// Messages in a page, and bytes of them.
const PAGE_MESSAGES: usize = 500;
const PAGE_BYTES: usize = 1024 * 1024;

/// The longest sleep. The wall clock may be set meanwhile.
const SLEEP_MAX: Duration = Duration::from_secs(5);

/// How long the task waits when the store fails.
const RETRY: Duration = Duration::from_secs(1);

/// When the next message ends, as far as the task knows.
pub(super) struct Due {
    next: AtomicI64,
    /// What was passed has to be looked at again.
    again: AtomicBool,
    sooner: Notify,
}

impl Default for Due {
    fn default() -> Self {
        Self {
            next: AtomicI64::new(i64::MAX),
            again: AtomicBool::new(false),
            sooner: Notify::new(),
        }
    }
}

impl Due {
    /// There is a new message that ends at `expires`.
    pub(super) fn note(&self, expires: Timestamp) {
        let expires = expires.as_millis();
        if expires < self.next.fetch_min(expires, Ordering::AcqRel) {
            self.sooner.notify_one();
        }
    }

    /// A message that was passed because somebody held it is free again, and the store still has
    /// it.
    pub(super) fn look_again(&self) {
        self.again.store(true, Ordering::Release);
        self.sooner.notify_one();
    }

    fn next(&self) -> Timestamp {
        Timestamp::from_millis(self.next.load(Ordering::Acquire))
    }
}

/// Works until `stopped` is answered or dropped, or the store is closed.
pub(super) async fn run(inner: Arc<Inner>, stopped: oneshot::Receiver<()>) {
    let sweeper = Sweeper {
        inner,
        passed: None,
        is_failing: false,
    };
    let run = pin!(sweeper.run());
    // What is due is due for the next hub as well.
    select(run, stopped).await;
}

struct Sweeper {
    inner: Arc<Inner>,
    /// What is due up to here is gone, or held by somebody on whose return it goes.
    passed: Option<DuePosition>,
    is_failing: bool,
}

impl Sweeper {
    async fn run(mut self) {
        loop {
            match self.sweep().await {
                Ok(()) => self.is_failing = false,
                Err(StoreError::Closed) => return,
                Err(error) => {
                    if !std::mem::replace(&mut self.is_failing, true) {
                        tracing::warn!(%error, "messages that are due cannot be ended");
                    }
                    // What went wrong is tried again from the beginning.
                    self.passed = None;
                    self.sleep(RETRY).await;
                    continue;
                }
            }
            let left = self.inner.due.next().since(self.inner.wall.now());
            let mut sooner = pin!(self.inner.due.sooner.notified());
            let sleep = pin!(self.sleep(left.min(SLEEP_MAX)));
            select(sleep, sooner.as_mut()).await;
        }
    }

    async fn sleep(&self, span: Duration) {
        let until = self.inner.timer.monotonic().saturating_add(span);
        self.inner.timer.sleep_until(until).await;
    }

    /// Ends everything that is due, and learns when the next one will be.
    async fn sweep(&mut self) -> Result<(), StoreError> {
        let now = self.inner.wall.now();
        // After a clock was set back, messages may end before what was passed.
        let is_set_back = self.passed.is_some_and(|passed| passed.expires > now);
        if self.inner.due.again.swap(false, Ordering::AcqRel) || is_set_back {
            self.passed = None;
        }
        if self.inner.due.next() > now && self.passed.is_some() {
            return Ok(());
        }
        loop {
            // Before the look: whatever comes during it is noted behind this.
            self.inner.due.next.store(i64::MAX, Ordering::Release);
            let page = self
                .inner
                .queues
                .due(ListDue {
                    until: self.inner.wall.now(),
                    after: self.passed,
                    limit: PAGE_MESSAGES,
                    bytes_max: PAGE_BYTES,
                })
                .await?;
            let more = page.more;
            self.end(page).await?;
            if !more {
                break;
            }
        }
        let next = self.inner.queues.next_due(self.passed).await?;
        if let Some(next) = next {
            self.inner
                .due
                .next
                .fetch_min(next.as_millis(), Ordering::AcqRel);
        }
        // Nothing that comes later lies before this.
        self.passed.get_or_insert(DuePosition {
            expires: Timestamp::from_millis(i64::MIN),
            sequence: 0,
        });
        Ok(())
    }

    async fn end(&mut self, page: DuePage) -> Result<(), StoreError> {
        let Some((_, last)) = page.messages.last() else {
            return Ok(());
        };
        let passed = DuePosition {
            expires: last.expires,
            sequence: last.sequence,
        };
        // In an order that a simulation can repeat.
        let mut lanes: BTreeMap<usize, Vec<(Arc<Named>, QueuedMessage)>> = BTreeMap::new();
        let mut known: HashMap<QueueName, Option<Arc<Named>>> = HashMap::new();
        for (name, message) in page.messages {
            let queue = match known.get(&name) {
                Some(queue) => queue.clone(),
                None => {
                    let queue = self.queue_of(&name).await?;
                    known.insert(name, queue.clone());
                    queue
                }
            };
            if let Some(queue) = queue {
                let lane = Inner::lane_of(&queue.key);
                lanes.entry(lane).or_default().push((queue, message));
            }
        }
        let removals = lanes.into_iter().map(|(lane, messages)| {
            let (reply, answered) = oneshot::channel();
            self.inner.command_lane(
                lane,
                Command::Remove {
                    messages,
                    cause: Cause::Expired,
                    reply,
                },
            );
            answered
        });
        for answer in join_all(removals).await {
            // An owner that has ended ends nothing any more.
            match answer.unwrap_or(Err(StoreError::Closed)) {
                Ok(_) => {}
                // What cannot be taken out is left alone, as what cannot be read is.
                Err(error @ StoreError::Damaged { .. }) => self.inner.tell_damage(&error),
                Err(error) => return Err(error),
            }
        }
        self.passed = Some(passed);
        Ok(())
    }

    /// The queue of a name, unless its device is gone: then everything in it goes as well, and
    /// nothing is told or kept of it.
    async fn queue_of(&self, name: &QueueName) -> Result<Option<Arc<Named>>, StoreError> {
        let Some(key) = QueueKey::parse(name) else {
            tracing::error!("a queue's name cannot be read; its messages do not end");
            return Ok(None);
        };
        if let QueueKey::Device {
            identity,
            generation,
        } = &key
        {
            match self.inner.registry.find(identity).await {
                Ok(Some(found)) if found.generation_id() == generation => {}
                Ok(_) => {
                    match drop_queue(&self.inner, name).await {
                        Ok(()) => {}
                        Err(error @ StoreError::Damaged { .. }) => self.inner.tell_damage(&error),
                        Err(error) => return Err(error),
                    }
                    return Ok(None);
                }
                // One device that cannot be read must not keep all others' messages from ending.
                Err(error @ StoreError::Damaged { .. }) => {
                    tracing::error!(%error, device = %identity.device, "a device cannot be read");
                }
                Err(error) => return Err(error),
            }
        }
        let name = name.clone();
        Ok(Some(Arc::new(Named { key, name })))
    }
}
