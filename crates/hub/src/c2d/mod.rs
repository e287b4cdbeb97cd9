//! Messages from the cloud to devices.
//!
//! Each device has a durable queue. A [`Sender`] puts messages in and hears when they are durable; a
//! [`Receiver`], or a request, gets them one after the other, each locked for it, and says what
//! becomes of them. What is settled leaves the queue in one durable step together with what is owed for
//! it: a record for [`Feedback`], a dead letter, a line of history.
//!
//! Messages are in the store. Locks, receivers and attempts are here, with the queues' owners; a hub
//! that is started anew has none, and every message that was not settled is there again.

mod budget;
mod check;
mod clock_mark;
mod damage;
mod dead_letters;
mod deleted;
mod expiry;
mod feedback;
mod history;
mod keeping;
mod lanes;
mod names;
mod outcome;
mod owner;
mod queue;
mod reading;
mod receiver;
mod sender;
mod vital;
mod wall;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fieldpost_model::limits::LOCK_RANGE;
use fieldpost_model::{DeviceId, Identity, ModuleId, Timestamp};
use fieldpost_store::documents::Documents;
use fieldpost_store::queues::{DeviceQueues, LaneFigures, OperationResult, QueuedMessage};
use fieldpost_store::{Health, HealthLevel, Store, StoreError};
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

pub use dead_letters::{DeadLetter, DeadLetterPage, RequeueError};
pub use feedback::{FEEDBACK_INTERVAL, FEEDBACK_RECORDS_MAX, FeedbackMessage};
pub use history::{FeedbackState, MessageQuery, MessageTrace, TraceState};
pub(crate) use lanes::LANES;
pub use outcome::{Attempt, AttemptEnd, AttemptReceiver, Attempts, Cause};
use receiver::Pickup;
pub use receiver::{Delivery, InvalidLockToken, LockToken, Receiver, SettleError, Settlement};
pub use sender::Sender;

use crate::auth::DevicePrincipal;
use crate::clock::{Chance, Timer};
use crate::identity::Registry;
use crate::presence::shard_of;
use crate::probe::Probe;
use crate::settings::Settings;
use crate::throttles::{MessageLimit, Throttled, Throttles};
use damage::ToldDamage;
use expiry::Due;
use feedback::FeedbackProgress;
use lanes::{DEAD_LETTERS, FEEDBACK, HISTORY};
use names::{Named, QueueKey};
use owner::{Command, DeliveriesHeld, Owner};
use queue::Now;
use sender::Budget;
use vital::{Vitals, guarded};
use wall::SteadyWall;

/// Tasks that share the queues.
const OWNERS: usize = 4;

/// Messages that one question about a queue reads.
const PAGE_MESSAGES: usize = 500;

/// Receives feedback messages.
pub type FeedbackReceiver = Receiver;

/// A delivery whose message is a [`FeedbackMessage`].
pub type FeedbackDelivery = Delivery;

/// To whom a message goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The device or module.
    pub identity: Identity,
    /// Another reading of what the sender wrote, which counts when the first means nobody.
    pub fallback: Option<Identity>,
}

/// A message is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its number.
    pub sequence: u64,
    /// When the hub took it.
    pub enqueued: Timestamp,
    /// When it expires.
    pub expires: Timestamp,
}

/// Why a message was not taken.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SendRefused {
    /// There is no such device or module, or it is disabled.
    #[error("there is no such device, or it is disabled")]
    UnknownDevice,
    /// As many messages wait for the device as may.
    #[error("{max} messages wait for the device, as many as may")]
    QueueFull {
        /// How many that is.
        max: u64,
    },
    /// The message is too large.
    #[error("the message has {size} bytes and may have {max}")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The largest.
        max: usize,
    },
    /// The expiry has passed, or is too far away.
    #[error("the expiry has passed, or is more than two days ahead")]
    InvalidExpiry,
    /// The message could never be delivered.
    #[error("the message could never be delivered: {what}")]
    Undeliverable {
        /// Why.
        what: String,
    },
    /// Services send more than the hub's tier lets through.
    #[error(transparent)]
    Throttled(Throttled),
    /// As many messages were sent today as may be.
    #[error("the quota of messages is used up")]
    QuotaExceeded,
    /// The disk has no room for messages at present.
    #[error("the disk is nearly full; no messages are taken until there is room")]
    NoRoom,
    /// The store did not take it, or it is not known whether it did.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for SendRefused {
    fn from(error: StoreError) -> Self {
        match error {
            // The second mark of a filling disk, where the first one is answered by itself.
            StoreError::Full => Self::NoRoom,
            error => Self::Store(error),
        }
    }
}

impl From<MessageLimit> for SendRefused {
    fn from(limit: MessageLimit) -> Self {
        match limit {
            MessageLimit::Throttled(throttled) => Self::Throttled(throttled),
            MessageLimit::QuotaExceeded => Self::QuotaExceeded,
        }
    }
}

impl SendRefused {
    /// A short name for labels.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::UnknownDevice => "unknown_device",
            Self::QueueFull { .. } => "queue_full",
            Self::TooLarge { .. } => "too_large",
            Self::InvalidExpiry => "invalid_expiry",
            Self::Undeliverable { .. } => "undeliverable",
            Self::Throttled(_) => "throttled",
            Self::QuotaExceeded => "quota",
            Self::NoRoom => "no_room",
            Self::Store(_) => "store",
        }
    }
}

/// Whether messages for devices are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// They are.
    Open,
    /// The disk has no room for them. It goes on by itself when there is some, so that senders
    /// should wait.
    Held,
    /// The store takes nothing until it is opened anew: to wait is of no use, and every message is
    /// refused.
    ReadOnly,
}

/// Why a queue was not emptied, or not to its end.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PurgeError {
    /// There is no such device or module.
    #[error("there is no such device")]
    UnknownDevice,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A message in its queue, with its live state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageState {
    /// Its number.
    pub sequence: u64,
    /// The stored message, to be read with the `record` crate.
    pub message: Bytes,
    /// When it expires.
    pub expires: Timestamp,
    /// How many of its deliveries counted.
    pub delivery_count: u32,
    /// By whom it is held, if by anybody.
    pub locked: Option<LockState>,
    /// Its deliveries that have ended.
    pub attempts: Attempts,
}

/// A lock of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockState {
    /// When it ends by itself; `None` when it lasts as long as its connection.
    pub until: Option<Timestamp>,
}

/// What the lanes of outcomes hold, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CloudToDeviceFigures {
    /// Records that wait for their feedback message.
    pub feedback_owed: LaneFigures,
    /// Dead letters.
    pub dead_letters: LaneFigures,
    /// Lines of history.
    pub history: LaneFigures,
    /// Bytes of messages that are in memory, read ahead or in flight.
    pub held_bytes: usize,
}

/// What the hub's operator decides about messages to devices before it starts.
pub(crate) struct CloudToDeviceConfig {
    /// Bytes of messages that are read ahead or in flight, of all queues together.
    pub(crate) held_bytes: usize,
    /// Whether the clock is believed at the start, whatever the store knows of the past.
    pub(crate) trusts_clock: bool,
    /// Of a hub in test mode.
    pub(crate) probe: Option<Arc<Probe>>,
    /// The limits of the hub's tier.
    pub(crate) throttles: Throttles,
}

/// Messages to devices. Cloning is cheap.
#[derive(Clone)]
pub struct CloudToDevice(Arc<Tasks>);

/// The feedback queue of the hub.
pub struct Feedback {
    inner: Arc<Inner>,
}

/// The tasks end when nobody is left who could want anything of them.
struct Tasks {
    inner: Arc<Inner>,
    feedback: Feedback,
    /// Dropping them ends the followers.
    stops: Mutex<Vec<oneshot::Sender<()>>>,
    followers: Mutex<Vec<JoinHandle<()>>>,
    owners: Mutex<Vec<JoinHandle<()>>>,
}

/// What owners and everybody else share.
struct Shared {
    queues: Arc<dyn DeviceQueues>,
    throttles: Throttles,
    settings: Settings,
    timer: Arc<dyn Timer>,
    chance: Arc<dyn Chance>,
    /// What the queues hold in memory.
    held: Arc<budget::Budget>,
    /// Of a hub in test mode.
    probe: Option<Arc<Probe>>,
    wall: SteadyWall,
    feedback: FeedbackProgress,
    due: Due,
    damage: ToldDamage,
    vitals: Arc<Vitals>,
    deliveries_held: DeliveriesHeld,
}

/// What everybody but owners has: the ways to the owners.
struct Inner {
    shared: Arc<Shared>,
    registry: Registry,
    documents: Arc<dyn Documents>,
    /// Bounded by what is unanswered: messages by each sender, everything else by each receiver's
    /// window and each request.
    lanes: Vec<mpsc::UnboundedSender<Command>>,
    health: watch::Receiver<Health>,
    budget: Budget,
    last_receiver: AtomicU64,
    /// Held while a dead letter is sent anew.
    requeueing: tokio::sync::Mutex<()>,
}

impl std::ops::Deref for Inner {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Shared {
    fn now(&self) -> Now {
        let wall = self.wall.read();
        Now {
            wall: wall.earliest,
            stamp: wall.latest,
            monotonic: self.timer.monotonic(),
        }
    }
}

impl CloudToDevice {
    /// Starts the owners and followers on the current runtime.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn start(
        store: &Store,
        registry: Registry,
        settings: Settings,
        timer: Arc<dyn Timer>,
        chance: Arc<dyn Chance>,
        config: CloudToDeviceConfig,
    ) -> Result<Self, StoreError> {
        let newest = if config.trusts_clock {
            None
        } else {
            clock_mark::newest(store).await?
        };
        let shared = Arc::new(Shared {
            queues: Arc::clone(&store.queues),
            settings,
            held: Arc::new(budget::Budget::new(config.held_bytes)),
            probe: config.probe,
            throttles: config.throttles,
            wall: SteadyWall::new(Arc::clone(&timer), newest),
            timer,
            chance,
            feedback: FeedbackProgress::default(),
            due: Due::default(),
            damage: ToldDamage::default(),
            vitals: Arc::default(),
            deliveries_held: DeliveriesHeld::default(),
        });
        let (mut lanes, mut owners) = (Vec::new(), Vec::new());
        for _ in 0..OWNERS {
            let (lane, commands) = mpsc::unbounded_channel();
            lanes.push(lane);
            let owner = Owner::new(Arc::clone(&shared), commands).run();
            let owner = guarded(Arc::clone(&shared.vitals), "an owner of queues", owner);
            owners.push(tokio::spawn(owner));
        }
        let deletions = registry.watch_deletions();
        let inner = Arc::new(Inner {
            shared,
            registry,
            documents: Arc::clone(&store.documents),
            lanes,
            health: store.queues.health(),
            budget: Budget::default(),
            last_receiver: AtomicU64::new(0),
            requeueing: tokio::sync::Mutex::default(),
        });
        let (mut stops, mut followers) = (Vec::new(), Vec::new());
        let mut follow = |what, run: BoxFuture<'static, ()>| {
            let vitals = Arc::clone(&inner.vitals);
            followers.push(tokio::spawn(guarded(vitals, what, run)));
        };
        let mut stop = || {
            let (stop, stopped) = oneshot::channel();
            stops.push(stop);
            (Arc::clone(&inner), stopped)
        };
        let (feedback, stopped) = stop();
        follow(
            "the follower of feedback",
            feedback::run(feedback, stopped).boxed(),
        );
        let (keeping, stopped) = stop();
        follow(
            "the keeper of dead letters and history",
            keeping::run(keeping, stopped).boxed(),
        );
        let (expiry, stopped) = stop();
        follow(
            "the sweeper of expired messages",
            expiry::run(expiry, stopped).boxed(),
        );
        let (deleted, stopped) = stop();
        follow(
            "the remover of deleted devices' messages",
            deleted::run(deleted, deletions, stopped).boxed(),
        );
        let (marking, stopped) = stop();
        follow(
            "the marker of the time",
            clock_mark::run(marking, stopped).boxed(),
        );
        Ok(Self(Arc::new(Tasks {
            feedback: Feedback {
                inner: Arc::clone(&inner),
            },
            inner,
            stops: Mutex::new(stops),
            followers: Mutex::new(followers),
            owners: Mutex::new(owners),
        })))
    }

    /// Ends the tasks; what is under way is finished. Senders and receivers that are left are
    /// answered that the store is closed.
    pub(crate) async fn close(&self) {
        take(&self.0.stops);
        for follower in take(&self.0.followers) {
            finish(follower).await;
        }
        for lane in &self.0.inner.lanes {
            // An owner that has ended is what is wanted.
            let _ = lane.send(Command::Close);
        }
        for owner in take(&self.0.owners) {
            finish(owner).await;
        }
    }

    /// A sender of messages; `origin` is the policy by which it was let in, for those who ask later
    /// who sent what.
    #[must_use]
    pub fn sender(&self, origin: &str) -> Sender {
        Sender::new(Arc::clone(self.inner()), origin)
    }

    /// Whether messages are taken at present, as far as the store says.
    #[must_use]
    pub fn admission(&self) -> Admission {
        match self.inner().health.borrow().level {
            HealthLevel::Ok => Admission::Open,
            HealthLevel::HoldMessages | HealthLevel::HoldAll => Admission::Held,
            HealthLevel::ReadOnly => Admission::ReadOnly,
        }
    }

    /// Attaches a connection to its device's queue. What an earlier connection left in flight means
    /// nothing any more.
    #[must_use]
    pub fn receiver(&self, principal: &DevicePrincipal, session_epoch: u64) -> Receiver {
        Receiver::attach(
            self.inner(),
            queue_of(principal),
            session_epoch,
            false,
            false,
        )
    }

    /// As [`CloudToDevice::receiver`], for a protocol in which locks end by themselves.
    #[must_use]
    pub fn locking_receiver(&self, principal: &DevicePrincipal, session_epoch: u64) -> Receiver {
        Receiver::attach(
            self.inner(),
            queue_of(principal),
            session_epoch,
            true,
            false,
        )
    }

    /// Attaches a connection whose session goes on: what the last one left in flight comes first,
    /// under the tags that it had, as long as the hub remembers and nobody else holds it.
    #[must_use]
    pub fn resume(&self, principal: &DevicePrincipal, session_epoch: u64) -> Receiver {
        Receiver::attach(
            self.inner(),
            queue_of(principal),
            session_epoch,
            false,
            true,
        )
    }

    /// Forgets what an earlier connection left in flight.
    pub fn forget(&self, principal: &DevicePrincipal) {
        let queue = queue_of(principal);
        self.inner().command(Command::ForgetDetached { queue });
    }

    /// Locks the next message of a device, for 60 seconds or as long as was asked for, within 5 to
    /// 300 seconds. `None` when there is none.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn receive_one(
        &self,
        principal: &DevicePrincipal,
        lock: Option<Duration>,
    ) -> Result<Option<Delivery>, StoreError> {
        let lock = lock.map(|lock| lock.clamp(*LOCK_RANGE.start(), *LOCK_RANGE.end()));
        self.inner().receive_one(queue_of(principal), lock).await
    }

    /// Settles what [`CloudToDevice::receive_one`] gave. Durable when it returns.
    ///
    /// # Errors
    /// [`SettleError::LockLost`] when the lock has ended or was used before.
    pub async fn settle(
        &self,
        principal: &DevicePrincipal,
        lock: LockToken,
        settlement: Settlement,
    ) -> Result<(), SettleError> {
        let queue = queue_of(principal);
        self.inner().settle_one(queue, lock, settlement).await
    }

    /// The feedback queue.
    #[must_use]
    pub fn feedback(&self) -> &Feedback {
        &self.0.feedback
    }

    /// How many messages wait for some devices or modules, each of a generation; those that are
    /// locked count as well.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn message_counts(
        &self,
        of: &[(Identity, Arc<str>)],
    ) -> Result<Vec<u64>, StoreError> {
        let names = of.iter().map(|(identity, generation)| {
            QueueKey::of(identity.clone(), Arc::clone(generation)).name()
        });
        self.inner().queues.depths(names.collect()).await
    }

    /// Removes all messages of a device, or of one of its modules, that nobody holds. Durable when it
    /// returns. How many there were.
    ///
    /// # Errors
    /// When there is no such device, or the store fails; a part may be gone then.
    pub async fn purge(
        &self,
        device: &DeviceId,
        module: Option<&ModuleId>,
    ) -> Result<u64, PurgeError> {
        let identity = Identity {
            device: device.clone(),
            module: module.cloned(),
        };
        let queue = self.inner().queue_of(&identity).await?;
        let queue = queue.ok_or(PurgeError::UnknownDevice)?;
        let mut purged = 0;
        let mut after = 0;
        loop {
            let page = self.inner().page(&queue, after, PAGE_MESSAGES).await?;
            let Some(last) = page.last() else {
                return Ok(purged);
            };
            after = last.sequence;
            let messages = page.into_iter().map(|m| (Arc::clone(&queue), m)).collect();
            let lane = Inner::lane_of(&queue.key);
            purged += self.inner().remove(lane, messages, Cause::Purged).await?;
        }
    }

    /// Reads messages of a device or module after a number (0 for all), with their live state; at
    /// most `limit`, and no further one once 4 MiB are read. None when there is no such device.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn list(
        &self,
        identity: &Identity,
        after: u64,
        limit: usize,
    ) -> Result<Vec<MessageState>, StoreError> {
        let Some(queue) = self.inner().queue_of(identity).await? else {
            return Ok(Vec::new());
        };
        let limit = limit.clamp(1, PAGE_MESSAGES);
        let page = self.inner().page(&queue, after, limit).await?;
        Ok(self.inner().with_live_state(&queue, page).await)
    }

    /// What the lanes of outcomes hold.
    #[must_use]
    pub fn figures(&self) -> CloudToDeviceFigures {
        let lane = |lane| self.inner().queues.lane(lane);
        CloudToDeviceFigures {
            feedback_owed: lane(FEEDBACK),
            dead_letters: lane(DEAD_LETTERS),
            history: lane(HISTORY),
            held_bytes: self.inner().held.used(),
        }
    }

    /// What has failed that the hub cannot do without, as soon as something has.
    pub(crate) fn failed(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.inner().vitals.failed()
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.0.inner
    }
}

impl Feedback {
    /// Attaches a receiver of feedback messages; several compete. Its locks end by themselves.
    #[must_use]
    pub fn receiver(&self) -> FeedbackReceiver {
        Receiver::attach(&self.inner, Named::new(QueueKey::Feedback), 0, true, false)
    }

    /// Locks the next feedback message. `None` when there is none.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn receive_one(&self) -> Result<Option<FeedbackDelivery>, StoreError> {
        let queue = Named::new(QueueKey::Feedback);
        self.inner.receive_one(queue, None).await
    }

    /// Settles what [`Feedback::receive_one`] gave. Durable when it returns.
    ///
    /// # Errors
    /// [`SettleError::LockLost`] when the lock has ended or was used before.
    pub async fn settle(&self, lock: LockToken, settlement: Settlement) -> Result<(), SettleError> {
        let queue = Named::new(QueueKey::Feedback);
        self.inner.settle_one(queue, lock, settlement).await
    }
}

impl Inner {
    fn lane_of(key: &QueueKey) -> usize {
        match key {
            QueueKey::Device { identity, .. } => shard_of(&identity.device) % OWNERS,
            QueueKey::Feedback => 0,
        }
    }

    fn command_lane(&self, lane: usize, command: Command) {
        if let Some(lane) = self.lanes.get(lane) {
            // An owner that has ended drops the command, which answers whoever waits.
            let _ = lane.send(command);
        }
    }

    fn command(&self, command: Command) {
        let lane = command.queue().map_or(0, |queue| Self::lane_of(&queue.key));
        self.command_lane(lane, command);
    }

    fn next_receiver(&self) -> queue::ReceiverId {
        queue::ReceiverId(self.last_receiver.fetch_add(1, Ordering::Relaxed) + 1)
    }

    async fn queue_of(&self, identity: &Identity) -> Result<Option<Arc<Named>>, StoreError> {
        let found = self.registry.find(identity).await?;
        Ok(found.map(|found| {
            let generation = Arc::clone(found.generation_id());
            Named::new(QueueKey::of(identity.clone(), generation))
        }))
    }

    async fn receive_one(
        &self,
        queue: Arc<Named>,
        lock: Option<Duration>,
    ) -> Result<Option<Delivery>, StoreError> {
        let mut pickup = Pickup::ask(self, queue, lock);
        let answer = pickup.answer().await;
        if let Ok(Some(delivery)) = &answer {
            self.note_sent(pickup.queue(), None, delivery);
        }
        answer
    }

    /// Notes for tests of users that a message is handed over.
    fn note_sent(&self, queue: &Named, connection: Option<u64>, delivery: &Delivery) {
        if let Some(probe) = &self.probe
            && let QueueKey::Device { identity, .. } = &queue.key
        {
            probe.note(identity, self.wall.read().latest, connection, delivery);
        }
    }

    async fn settle_one(
        &self,
        queue: Arc<Named>,
        lock: LockToken,
        settlement: Settlement,
    ) -> Result<(), SettleError> {
        let (reply, answered) = oneshot::channel();
        self.command(Command::SettleRequested {
            queue,
            lock,
            settlement,
            reply,
        });
        let closed = Err(SettleError::Store(StoreError::Closed));
        answered.await.unwrap_or(closed)
    }

    async fn enqueue(
        &self,
        key: QueueKey,
        message: Bytes,
        expires: Timestamp,
        depth_max: u64,
        once: Option<u64>,
    ) -> Result<OperationResult, StoreError> {
        let (reply, answered) = oneshot::channel();
        self.command(Command::EnqueueOwn {
            queue: Named::new(key),
            message,
            expires,
            depth_max,
            once,
            reply,
        });
        answered.await.unwrap_or(Err(StoreError::Closed))
    }

    async fn remove(
        &self,
        lane: usize,
        messages: Vec<(Arc<Named>, QueuedMessage)>,
        cause: Cause,
    ) -> Result<u64, StoreError> {
        let (reply, answered) = oneshot::channel();
        self.command_lane(
            lane,
            Command::Remove {
                messages,
                cause,
                reply,
            },
        );
        answered.await.unwrap_or(Err(StoreError::Closed))
    }
}

fn queue_of(principal: &DevicePrincipal) -> Arc<Named> {
    Named::new(QueueKey::of(
        principal.identity.clone(),
        Arc::clone(&principal.generation_id),
    ))
}

fn take<T>(from: &Mutex<Vec<T>>) -> Vec<T> {
    std::mem::take(&mut *from.lock().unwrap_or_else(PoisonError::into_inner))
}

async fn finish(task: JoinHandle<()>) {
    // A panic was told of when it came.
    if let Err(error) = task.await
        && !error.is_panic()
    {
        tracing::error!(%error, "a task of messages to devices did not end well");
    }
}
