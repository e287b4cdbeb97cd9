//! Sending: from a message in a sender's hands to one that is durable in its device's queue.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use fieldpost_model::{CloudMessage, Identity, Timestamp};
use fieldpost_record::command::{self, CommandEnvelope};
use fieldpost_store::StoreError;
use futures_util::future::{BoxFuture, FutureExt};
use futures_util::stream::{FuturesOrdered, StreamExt};
use futures_util::task::AtomicWaker;
use metrics::Counter;

use super::check::check;
use super::names::{Named, QueueKey};
use super::owner::Command;
use super::{Accepted, Inner, SendRefused, Target};
use crate::identity::{DeviceStatus, Registry};
use crate::throttles::Operation;

/// Messages of one sender that may be unanswered, and bytes of them.
const UNANSWERED_MAX: usize = 1024;
const UNANSWERED_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Bytes of all senders' messages that may be unanswered. A sender with none may always send one.
const BUDGET_BYTES: usize = 64 * 1024 * 1024;

/// What all senders have unanswered, in bytes.
#[derive(Default)]
pub(super) struct Budget(AtomicUsize);

/// Sends messages to devices, many at a time. Those to one device keep their order.
///
/// One task drives it. Messages that were sent are sent, also when it is dropped.
pub struct Sender {
    inner: Arc<Inner>,
    origin: Arc<str>,
    inbox: Arc<Answers>,
    /// Devices that are being looked up, or whose messages wait for their turn, in the order of those.
    looking: FuturesOrdered<BoxFuture<'static, Looked>>,
    unanswered: usize,
    unanswered_bytes: usize,
    /// Grows to a few messages and is cut up among them.
    buffer: BytesMut,
}

type Answer = Result<Accepted, SendRefused>;

/// What owners have answered.
#[derive(Default)]
pub(super) struct Answers {
    /// Guards the answers; nothing else is taken while it is held.
    state: Mutex<VecDeque<Answered>>,
    news: AtomicWaker,
}

struct Answered {
    ticket: u64,
    bytes: usize,
    answer: Answer,
}

/// Where an answer is owed. One that is dropped without is answered as if the hub were closed.
pub(super) struct Owed {
    inbox: Arc<Answers>,
    inner: Arc<Inner>,
    ticket: u64,
    bytes: usize,
    /// What the message counts for in the daily quota.
    charge: u64,
    is_answered: bool,
}

/// A message that is ready for its queue.
struct Ready {
    message: Bytes,
    enqueued: Timestamp,
    expires: Timestamp,
    owed: Owed,
}

struct Looked {
    ready: Ready,
    found: Result<Option<QueueKey>, StoreError>,
}

impl Sender {
    pub(super) fn new(inner: Arc<Inner>, origin: &str) -> Self {
        Self {
            inner,
            origin: origin.into(),
            inbox: Arc::default(),
            looking: FuturesOrdered::new(),
            unanswered: 0,
            unanswered_bytes: 0,
            buffer: BytesMut::new(),
        }
    }

    /// Whether a message should be sent now. It becomes true again with an answer.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.unanswered == 0
            || self.unanswered < UNANSWERED_MAX
                && self.unanswered_bytes < UNANSWERED_BYTES_MAX
                && self.inner.budget.0.load(Ordering::Relaxed) < BUDGET_BYTES
    }

    /// Sends a message. [`Sender::poll_answer`] gives `ticket` back with what became of it, and has
    /// to be polled for it to go on.
    pub fn send(&mut self, ticket: u64, target: Target, message: &CloudMessage<'_>) {
        let size = message.metered_size();
        self.unanswered += 1;
        self.unanswered_bytes += size;
        self.inner.budget.0.fetch_add(size, Ordering::Relaxed);
        let mut owed = Owed {
            inbox: Arc::clone(&self.inbox),
            inner: Arc::clone(&self.inner),
            ticket,
            bytes: size,
            charge: 0,
            is_answered: false,
        };
        let now = self.inner.wall.read();
        let enqueued = now.latest;
        let ttl = self.inner.settings.get().cloud_to_device.default_ttl;
        let expires = match check(message, &target.identity, now, ttl) {
            Ok(expires) => expires,
            Err(refused) => {
                owed.answer(Err(refused));
                return;
            }
        };
        let throttles = &self.inner.throttles;
        let turn = match throttles.message(Operation::CloudToDevice, std::iter::once(size)) {
            Ok(turn) => turn,
            Err(limit) => {
                owed.answer(Err(limit.into()));
                return;
            }
        };
        owed.charge = turn.charge;
        let envelope = CommandEnvelope {
            enqueued,
            expires,
            sender: &self.origin,
            ack: message.ack,
        };
        command::encode(&mut self.buffer, &envelope, message);
        let ready = Ready {
            message: self.buffer.split().freeze(),
            enqueued,
            expires,
            owed,
        };
        let known = match &target.identity {
            Identity {
                device,
                module: None,
            } => self.inner.registry.get_cached(device),
            // The store knows its modules.
            _ => None,
        };
        // Nothing may overtake a message whose device is still looked up: it could be the same.
        match known {
            Some(device)
                if turn.at.is_none()
                    && self.looking.is_empty()
                    && device.status == DeviceStatus::Enabled =>
            {
                let key = QueueKey::of(target.identity, Arc::clone(&device.generation_id));
                self.inner.enqueue_message(Named::new(key), ready);
            }
            _ => {
                let registry = self.inner.registry.clone();
                let sleep = turn.at.map(|at| self.inner.timer.sleep_until(at));
                let look = async move {
                    if let Some(sleep) = sleep {
                        sleep.await;
                    }
                    let found = find(&registry, target).await;
                    Looked { ready, found }
                };
                self.looking.push_back(look.boxed());
            }
        }
    }

    /// The next answer; [`Poll::Pending`] also when none is owed.
    ///
    /// Answers come in any order.
    pub fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<(u64, Answer)> {
        while let Poll::Ready(Some(Looked { mut ready, found })) = self.looking.poll_next_unpin(cx)
        {
            match found {
                Ok(Some(key)) => self.inner.enqueue_message(Named::new(key), ready),
                Ok(None) => ready.owed.answer(Err(SendRefused::UnknownDevice)),
                Err(error) => ready.owed.answer(Err(SendRefused::Store(error))),
            }
        }
        let answered = match self.inbox.take() {
            Some(answered) => answered,
            None => {
                self.inbox.news.register(cx.waker());
                // What came between the look and the registration must not be missed.
                match self.inbox.take() {
                    Some(answered) => answered,
                    None => return Poll::Pending,
                }
            }
        };
        self.unanswered = self.unanswered.saturating_sub(1);
        self.unanswered_bytes = self.unanswered_bytes.saturating_sub(answered.bytes);
        Poll::Ready((answered.ticket, answered.answer))
    }

    /// Sends a message and waits for what becomes of it. Of a sender that has nothing else to
    /// send.
    ///
    /// # Errors
    /// When the message is not taken.
    pub async fn send_one(&mut self, target: Target, message: &CloudMessage<'_>) -> Answer {
        const TICKET: u64 = u64::MAX;
        self.send(TICKET, target, message);
        std::future::poll_fn(|cx| {
            loop {
                match self.poll_answer(cx) {
                    Poll::Ready((TICKET, answer)) => return Poll::Ready(answer),
                    Poll::Ready(_) => {}
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if self.looking.is_empty() {
            return;
        }
        // What was sent is sent, also when its sender has gone meanwhile. Without a runtime the hub
        // is gone as well.
        let (mut looking, inner) = (std::mem::take(&mut self.looking), Arc::clone(&self.inner));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                while let Some(Looked { ready, found }) = looking.next().await {
                    if let Ok(Some(key)) = found {
                        inner.enqueue_message(Named::new(key), ready);
                    }
                }
            });
        }
    }
}

impl Inner {
    fn enqueue_message(&self, queue: Arc<Named>, ready: Ready) {
        let Ready {
            message,
            enqueued,
            expires,
            owed,
        } = ready;
        // An owner that has ended drops it, which answers it.
        self.command(Command::Enqueue {
            queue,
            message,
            enqueued,
            expires,
            owed,
        });
    }
}

impl Owed {
    pub(super) fn answer(&mut self, answer: Answer) {
        if std::mem::replace(&mut self.is_answered, true) {
            return;
        }
        self.inner.budget.0.fetch_sub(self.bytes, Ordering::Relaxed);
        // The outcome of nearly every message is not looked up by its label each time.
        static ACCEPTED: LazyLock<Counter> = LazyLock::new(|| sent("accepted"));
        match &answer {
            Ok(_) => ACCEPTED.increment(1),
            Err(refused) => {
                self.inner.throttles.give_back(self.charge);
                sent(refused.as_str()).increment(1);
            }
        }
        let answered = Answered {
            ticket: self.ticket,
            bytes: self.bytes,
            answer,
        };
        self.inbox.lock().push_back(answered);
        self.inbox.news.wake();
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.answer(Err(SendRefused::Store(StoreError::Closed)));
    }
}

impl Answers {
    fn take(&self) -> Option<Answered> {
        self.lock().pop_front()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Answered>> {
        // Nothing under the lock panics half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queue of the first of the target's spellings that means somebody who may be sent to.
async fn find(registry: &Registry, target: Target) -> Result<Option<QueueKey>, StoreError> {
    let Target { identity, fallback } = target;
    for identity in std::iter::once(identity).chain(fallback) {
        if let Some(found) = registry.find(&identity).await?
            && found.is_enabled()
        {
            let generation = Arc::clone(found.generation_id());
            return Ok(Some(QueueKey::of(identity, generation)));
        }
    }
    Ok(None)
}

fn sent(outcome: &'static str) -> Counter {
    metrics::counter!("fieldpost_c2d_messages_total", "outcome" => outcome)
}
