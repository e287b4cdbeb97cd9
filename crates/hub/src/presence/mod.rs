//! Which identities are connected, and that each is connected once.
//!
//! The live state of a device has one owner: devices are spread over 1,024 shards by the hash that
//! also places them in partitions, and a handful of tasks own the shards. Everybody else holds a
//! [`Session`] or sends a message; events do not pass through here. The newest connection of an
//! identity wins, and gets its session only after the older one has let go.

mod owner;
mod shard;

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use fieldpost_model::position::placement_hash;
use fieldpost_model::{DeviceId, Identity, Timestamp};
use futures_util::future::{Either, select};
use futures_util::task::AtomicWaker;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::clock::Timer;
use crate::faults::{FAULTS, Fault};
use crate::identity::Registry;
use owner::{Command, Departure, Owner, Target};

/// Shards of live state.
pub const SHARDS: usize = 1024;

/// Tasks that own the shards.
const OWNERS: usize = 4;

/// Messages that wait for an owner; whoever has more to say waits.
const COMMANDS_MAX: usize = 1024;

/// How long an older session may take to let go before the newer one gets its place regardless.
pub const TAKE_OVER_MAX: Duration = Duration::from_secs(5);

/// Who is connected.
pub struct Presence {
    owners: Owners,
    registry: Registry,
}

/// Why a session has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Eviction {
    /// A newer connection of the same identity.
    Replaced,
    /// The device was disabled.
    Disabled,
    /// The device was deleted, or deleted and created again.
    Deleted,
    /// The connection was cut on request, for a test.
    Cut,
    /// The hub is closing.
    Closing,
}

impl Eviction {
    /// A short name for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Replaced => "replaced",
            Self::Disabled => "disabled",
            Self::Deleted => "deleted",
            Self::Cut => "cut",
            Self::Closing => "closing",
        }
    }
}

/// What is known of an identity's connection. For debugging and statistics alone: it is kept in
/// memory, and after a disconnection only for a bounded number of identities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionState {
    /// Whether it is connected.
    pub connected: bool,
    /// When that last changed; [`Timestamp::NEVER`] when not known.
    pub state_updated: Timestamp,
    /// When it last connected, sent or received; [`Timestamp::NEVER`] when not known.
    pub last_activity: Timestamp,
}

impl ConnectionState {
    /// Nothing is known.
    pub const UNKNOWN: Self = Self {
        connected: false,
        state_updated: Timestamp::NEVER,
        last_activity: Timestamp::NEVER,
    };
}

/// The place of one connection as the only one of its identity. Dropping it lets go.
#[derive(Debug)]
pub struct Session {
    identity: Identity,
    epoch: u64,
    cell: Arc<Cell>,
    departures: mpsc::UnboundedSender<Departure>,
}

/// Shared by a session and its owner.
#[derive(Debug)]
struct Cell {
    /// 0, or one more than the position of the reason in [`REASONS`].
    eviction: AtomicU8,
    evicted: AtomicWaker,
    /// 0, or one more than the position of a fault in [`FAULTS`] that has not been noticed yet. Its
    /// waker is that of an eviction.
    fault: AtomicU8,
    /// Milliseconds since 1970.
    last_activity: AtomicI64,
    /// The session was dropped. Set before the departure is sent, because that message may overtake
    /// the one that announced the session.
    gone: AtomicBool,
}

const REASONS: [Eviction; 5] = [
    Eviction::Replaced,
    Eviction::Disabled,
    Eviction::Deleted,
    Eviction::Cut,
    Eviction::Closing,
];

impl Session {
    /// Ready when the session has to end; the holder then stops acting for the identity and drops
    /// the session.
    pub fn poll_evicted(&mut self, cx: &mut Context<'_>) -> Poll<Eviction> {
        if let Some(reason) = self.cell.reason() {
            return Poll::Ready(reason);
        }
        self.cell.evicted.register(cx.waker());
        // What happened between the look and the registration must not be missed.
        self.cell.reason().map_or(Poll::Pending, Poll::Ready)
    }

    /// Ends when the session has to.
    pub async fn evicted(&mut self) -> Eviction {
        std::future::poll_fn(|cx| self.poll_evicted(cx)).await
    }

    /// What a test has happen to the connection, once. Wakes whoever waits in
    /// [`Session::poll_evicted`].
    pub fn take_fault(&self) -> Option<Fault> {
        // A look costs less than an exchange, and there is hardly ever one.
        if self.cell.fault.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let code = self.cell.fault.swap(0, Ordering::AcqRel);
        FAULTS.get(usize::from(code).checked_sub(1)?).copied()
    }

    /// The number of this session. Later sessions of the same identity have larger ones.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whose session it is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Notes that the identity sent or received something. Cheap; once per read or write will do.
    pub fn touch(&self, now: Timestamp) {
        self.cell.touch(now);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.cell.gone.store(true, Ordering::Release);
        // An owner that has ended has nothing to be told.
        let _ = self.departures.send(Departure {
            identity: self.identity.clone(),
            epoch: self.epoch,
        });
    }
}

impl Cell {
    fn new(now: Timestamp) -> Self {
        Self {
            eviction: AtomicU8::new(0),
            evicted: AtomicWaker::new(),
            fault: AtomicU8::new(0),
            last_activity: AtomicI64::new(now.as_millis()),
            gone: AtomicBool::new(false),
        }
    }

    fn disturb(&self, fault: Fault) {
        let code = FAULTS.iter().zip(1..).find(|(known, _)| **known == fault);
        self.fault
            .store(code.map_or(0, |(_, code)| code), Ordering::Release);
        self.evicted.wake();
    }

    /// The first reason stays.
    fn evict(&self, reason: Eviction) {
        let code = REASONS.iter().zip(1..).find(|(known, _)| **known == reason);
        let code = code.map_or(0, |(_, code)| code);
        let first = self
            .eviction
            .compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
        if first.is_ok() {
            metrics::counter!("fieldpost_evictions_total", "reason" => reason.as_str())
                .increment(1);
            self.evicted.wake();
        }
    }

    fn reason(&self) -> Option<Eviction> {
        let code = usize::from(self.eviction.load(Ordering::Acquire));
        REASONS.get(code.checked_sub(1)?).copied()
    }

    fn touch(&self, now: Timestamp) {
        self.last_activity.store(now.as_millis(), Ordering::Relaxed);
    }

    fn last_activity(&self) -> Timestamp {
        Timestamp::from_millis(self.last_activity.load(Ordering::Relaxed))
    }
}

impl Presence {
    pub(crate) fn new(owners: Owners, registry: Registry) -> Self {
        Self { owners, registry }
    }

    /// Makes a connection the only one of its identity. `generation` is the one that was
    /// authenticated.
    ///
    /// An older session is told to end, and this waits until it has been dropped, at most
    /// [`TAKE_OVER_MAX`]. When the device was changed since it was authenticated so that it may no
    /// longer connect, or a newer connection came meanwhile, the session is an evicted one. May be
    /// dropped at any time.
    pub async fn connect(&self, identity: Identity, generation: Arc<str>) -> Session {
        let session = self.owners.connect(identity.clone()).await;
        // The look comes after the registration: whoever changes the device first writes and then
        // evicts, so that one of the two notices.
        match self.registry.find(&identity).await {
            Ok(Some(found)) if *found.generation_id() == generation => {
                if !found.is_enabled() {
                    session.cell.evict(Eviction::Disabled);
                }
            }
            Ok(_) => session.cell.evict(Eviction::Deleted),
            Err(error) => {
                // One line for each connecting device would be a flood when the store is broken.
                tracing::debug!(%error, %identity, "a connection is refused unchecked");
                session.cell.evict(Eviction::Cut);
            }
        }
        session
    }

    /// Notes that an identity sent or received something by a protocol that has no connections.
    /// Nobody loses a place by it.
    pub async fn touch(&self, identity: &Identity) {
        let identity = identity.clone();
        let commands = &self.owners.lane(&identity.device).commands;
        // A hub that is closing notes nothing any more.
        let _ = commands.send(Command::Touch { identity }).await;
    }

    /// What is known of an identity's connection.
    pub async fn state(&self, identity: &Identity) -> ConnectionState {
        let states = self.states(std::slice::from_ref(identity)).await;
        states
            .into_iter()
            .next()
            .unwrap_or(ConnectionState::UNKNOWN)
    }

    /// What is known of the connections of several identities, in their order.
    pub async fn states(&self, identities: &[Identity]) -> Vec<ConnectionState> {
        self.owners.states(identities).await
    }

    /// How many devices are connected; their modules do not count.
    #[must_use]
    pub fn connected_devices(&self) -> u64 {
        self.owners.0.connected.load(Ordering::Relaxed)
    }

    /// Ends the connection of an identity, for tests of what follows. Whether there was one.
    pub async fn cut(&self, identity: &Identity) -> bool {
        let target = Target::Identity(identity.clone());
        self.owners
            .evict_targets(vec![(target, Eviction::Cut)])
            .await
            > 0
    }
}

/// The tasks that own the live state. Cloning is cheap.
#[derive(Clone)]
pub(crate) struct Owners(Arc<OwnersInner>);

struct OwnersInner {
    lanes: Vec<Lane>,
    connected: Arc<AtomicU64>,
    next_epoch: AtomicU64,
    timer: Arc<dyn Timer>,
    /// The tasks, until somebody awaits their end.
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// The ways to one owner.
struct Lane {
    commands: mpsc::Sender<Command>,
    /// Never holds more than one message per session there is, which listeners bound. It has no
    /// bound of its own because a drop cannot wait.
    departures: mpsc::UnboundedSender<Departure>,
}

impl Owners {
    /// Starts the owners on the current runtime.
    pub(crate) fn start(timer: Arc<dyn Timer>) -> Self {
        let connected = Arc::new(AtomicU64::new(0));
        let mut tasks = Vec::with_capacity(OWNERS);
        let lanes = (0..OWNERS)
            .map(|_| {
                let (commands, command_queue) = mpsc::channel(COMMANDS_MAX);
                let (departures, departure_queue) = mpsc::unbounded_channel();
                let owner = Owner::new(
                    command_queue,
                    departure_queue,
                    Arc::clone(&timer),
                    Arc::clone(&connected),
                );
                tasks.push(tokio::spawn(owner.run()));
                Lane {
                    commands,
                    departures,
                }
            })
            .collect();
        Self(Arc::new(OwnersInner {
            lanes,
            connected,
            next_epoch: AtomicU64::new(1),
            timer,
            tasks: Mutex::new(tasks),
        }))
    }

    /// Ends the connections of devices and of their modules. Returns when all of them were told.
    pub(crate) async fn evict(&self, devices: Vec<(DeviceId, Eviction)>) {
        let targets = devices
            .into_iter()
            .map(|(device, reason)| (Target::Device(device), reason))
            .collect();
        self.evict_targets(targets).await;
    }

    /// Has something happen to the connection of an identity, for a test.
    pub(crate) async fn disturb(&self, identity: Identity, fault: Fault) {
        let commands = &self.lane(&identity.device).commands;
        // A hub that is closing has no connections any more.
        let _ = commands.send(Command::Disturb { identity, fault }).await;
    }

    /// Ends the connections of single identities. Returns when all of them were told.
    pub(crate) async fn evict_identities(&self, identities: Vec<(Identity, Eviction)>) {
        let targets = identities
            .into_iter()
            .map(|(identity, reason)| (Target::Identity(identity), reason))
            .collect();
        self.evict_targets(targets).await;
    }

    /// Tells all sessions to end, stops the owners and waits for their end.
    pub(crate) async fn close(&self) {
        for lane in &self.0.lanes {
            // An owner that has ended is what is wanted.
            let _ = lane.commands.send(Command::Close).await;
        }
        let tasks = {
            let mut tasks = self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *tasks)
        };
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "an owner of connections did not end well");
            }
        }
    }

    async fn connect(&self, identity: Identity) -> Session {
        let lane = self.lane(&identity.device);
        let epoch = self.0.next_epoch.fetch_add(1, Ordering::Relaxed);
        let cell = Arc::new(Cell::new(self.0.timer.now()));
        // Made before the first await: if this future is dropped, so is the session, and the owner
        // hears of it.
        let session = Session {
            identity: identity.clone(),
            epoch,
            cell: Arc::clone(&cell),
            departures: lane.departures.clone(),
        };
        let (ready, became_ready) = oneshot::channel();
        let command = Command::Connect {
            identity: identity.clone(),
            epoch,
            cell,
            ready,
        };
        if lane.commands.send(command).await.is_err() {
            session.cell.evict(Eviction::Closing);
            return session;
        }
        let deadline = self.0.timer.monotonic().saturating_add(TAKE_OVER_MAX);
        let mut answer = became_ready;
        let mut outcome = {
            let wait = select(&mut answer, self.0.timer.sleep_until(deadline));
            match wait.await {
                Either::Left((outcome, _)) => Some(outcome),
                Either::Right(_) => None,
            }
        };
        if outcome.is_none() {
            metrics::counter!("fieldpost_take_overs_forced_total").increment(1);
            tracing::debug!(%identity, "an older session did not let go in time");
            let take_over = Command::TakeOver { identity, epoch };
            outcome = match lane.commands.send(take_over).await {
                Ok(()) => Some(answer.await),
                Err(_) => None,
            };
        }
        if outcome != Some(Ok(())) {
            // A newer connection got the place, and has said so, or the owner has ended. The first
            // reason stays.
            session.cell.evict(Eviction::Closing);
        }
        session
    }

    async fn states(&self, identities: &[Identity]) -> Vec<ConnectionState> {
        let mut by_lane: Vec<Vec<(usize, Identity)>> = vec![Vec::new(); OWNERS];
        for (index, identity) in identities.iter().enumerate() {
            if let Some(part) = by_lane.get_mut(lane_of(&identity.device)) {
                part.push((index, identity.clone()));
            }
        }
        let mut states = vec![ConnectionState::UNKNOWN; identities.len()];
        for (lane, part) in self.0.lanes.iter().zip(by_lane) {
            if part.is_empty() {
                continue;
            }
            let (answer, answered) = oneshot::channel();
            let question = Command::States {
                identities: part,
                answer,
            };
            if lane.commands.send(question).await.is_err() {
                continue;
            }
            for (index, state) in answered.await.unwrap_or_default() {
                if let Some(slot) = states.get_mut(index) {
                    *slot = state;
                }
            }
        }
        states
    }

    /// How many sessions were told.
    async fn evict_targets(&self, targets: Vec<(Target, Eviction)>) -> usize {
        let mut by_lane: Vec<Vec<(Target, Eviction)>> = (0..OWNERS).map(|_| Vec::new()).collect();
        for (target, reason) in targets {
            if let Some(part) = by_lane.get_mut(lane_of(target.device())) {
                part.push((target, reason));
            }
        }
        let mut told = 0;
        for (lane, part) in self.0.lanes.iter().zip(by_lane) {
            if part.is_empty() {
                continue;
            }
            let (done, answered) = oneshot::channel();
            let command = Command::Evict {
                targets: part,
                done,
            };
            if lane.commands.send(command).await.is_ok() {
                told += answered.await.unwrap_or(0);
            }
        }
        told
    }

    fn lane(&self, device: &DeviceId) -> &Lane {
        self.0
            .lanes
            .get(lane_of(device))
            .expect("there is a lane for each owner")
    }
}

/// The shard of a device.
pub(crate) fn shard_of(device: &DeviceId) -> usize {
    usize::try_from(placement_hash(device) % SHARDS as u64).unwrap_or_default()
}

/// The owner of a device's shard.
fn lane_of(device: &DeviceId) -> usize {
    shard_of(device) % OWNERS
}
