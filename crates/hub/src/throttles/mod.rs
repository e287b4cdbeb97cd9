//! Throttles and the daily quota of a hub that plays one of Azure's tiers.
//!
//! A hub has no tier unless its operator gives it one. With one, a burst passes at once, as much as the
//! rate gives in its period. After that each has to wait for its turn; when the wait would be longer than
//! [`BACKLOG`], it is refused. A message from a device is stored at once, and its acknowledgement waits:
//! that holds the device back and can lose nothing.

mod meter;
mod quota;
mod tier;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use fieldpost_store::documents::Documents;
use fieldpost_store::{Store, StoreError};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::clock::Timer;
use meter::Meter;
use quota::{Quota, Usage};
use tier::Profile;

pub use tier::{Operation, Tier};

/// How long somebody waits for his turn, at most: well below the patience of the SDKs.
pub const BACKLOG: Duration = Duration::from_secs(10);

/// How often the count of the day is written, in parts of the quota: so much is forgotten at most when the
/// hub is killed.
const SAVES_PER_DAY: u64 = 100;

/// Which tier the hub plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThrottlingSettings {
    /// The tier; without one, nothing is limited.
    pub tier: Option<Tier>,
    /// How many units of it, 1 to [`Tier::units_max`].
    pub units: u32,
}

impl Default for ThrottlingSettings {
    fn default() -> Self {
        Self {
            tier: None,
            units: 1,
        }
    }
}

/// Somebody came too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more comes than may; try again in {} ms", retry_after.as_millis())]
pub struct Throttled {
    /// Whether there is a line of those who wait, and it is full. Otherwise nobody may wait.
    pub is_backlog_full: bool,
    /// After what time it is worth another try.
    pub retry_after: Duration,
}

/// Why a message is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessageLimit {
    #[error(transparent)]
    Throttled(#[from] Throttled),
    #[error("the quota of messages is used up")]
    QuotaExceeded,
}

/// A message may be taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MessageTurn {
    /// When, on the monotonic clock, if it has to wait.
    pub(crate) at: Option<Duration>,
    /// What it counts for in the quota.
    pub(crate) charge: u64,
}

/// The throttles of a hub. Cloning is cheap.
#[derive(Clone)]
pub struct Throttles(Arc<Inner>);

struct Inner {
    timer: Arc<dyn Timer>,
    documents: Arc<dyn Documents>,
    /// Whether there is a profile: nearly no hub has one, and all ask for each message.
    is_on: AtomicBool,
    /// Nothing else is taken while it is held.
    profile: RwLock<Option<Profile>>,
    meters: Meters,
    quota: Quota,
    /// The count of the day is to be written, or nobody counts any more.
    is_due: Arc<Notify>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

/// One for each operation.
#[derive(Default)]
struct Meters {
    identity: Meter,
    connection: Meter,
    device_to_cloud: Meter,
    cloud_to_device: Meter,
    http_receive: Meter,
}

impl Throttles {
    /// Those of a store's hub, without a tier yet.
    pub(crate) async fn open(store: &Store, timer: Arc<dyn Timer>) -> Result<Self, StoreError> {
        let inner = Arc::new(Inner {
            timer,
            documents: Arc::clone(&store.documents),
            is_on: AtomicBool::new(false),
            profile: RwLock::default(),
            meters: Meters::default(),
            quota: Quota::new(quota::load(store).await?),
            is_due: Arc::default(),
            keeper: Mutex::default(),
        });
        let keeper = tokio::spawn(keep(Arc::clone(&inner.is_due), Arc::downgrade(&inner)));
        *inner.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
        Ok(Self(inner))
    }

    /// Puts a tier into force.
    pub(crate) fn set(&self, settings: ThrottlingSettings) {
        let profile = settings.tier.map(|tier| Profile {
            tier,
            units: settings.units,
        });
        let mut current = self
            .0
            .profile
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *current = profile;
        self.0.is_on.store(profile.is_some(), Ordering::Release);
    }

    /// Lets an operation through whose caller does not wait.
    ///
    /// # Errors
    /// When it is done too often.
    pub fn admit(&self, operation: Operation) -> Result<(), Throttled> {
        match self.profile() {
            None => Ok(()),
            Some(profile) => self.turn(profile, operation, Duration::ZERO).map(|_| ()),
        }
    }

    /// Lets an operation through when it is its turn.
    ///
    /// # Errors
    /// When too many wait already.
    pub async fn pass(&self, operation: Operation) -> Result<(), Throttled> {
        if let Some(profile) = self.profile()
            && let Some(at) = self.turn(profile, operation, BACKLOG)?
        {
            self.0.timer.sleep_until(at).await;
        }
        Ok(())
    }

    /// Takes a turn for messages that were sent as one, of those sizes in bytes, and counts them.
    ///
    /// # Errors
    /// When too many wait already, or the quota is used up.
    pub(crate) fn message(
        &self,
        operation: Operation,
        sizes: impl Iterator<Item = usize>,
    ) -> Result<MessageTurn, MessageLimit> {
        let Some(profile) = self.profile() else {
            return Ok(MessageTurn::default());
        };
        let charge = sizes.map(|size| profile.metered(size)).sum();
        self.charge(profile, charge)?;
        match self.turn(profile, operation, BACKLOG) {
            Ok(at) => Ok(MessageTurn { at, charge }),
            Err(throttled) => {
                self.0.quota.give_back(charge);
                Err(throttled.into())
            }
        }
    }

    /// Counts a message no longer, which was not taken after all.
    pub(crate) fn give_back(&self, charge: u64) {
        if charge > 0 {
            self.0.quota.give_back(charge);
        }
    }

    /// Writes what is to be kept.
    pub(crate) async fn close(&self) {
        let keeper = self
            .0
            .keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(keeper) = keeper {
            keeper.abort();
            let _ = keeper.await;
        }
        if self.0.is_on.load(Ordering::Acquire) {
            save(&*self.0.documents, self.0.quota.usage()).await;
        }
    }

    fn profile(&self) -> Option<Profile> {
        if !self.0.is_on.load(Ordering::Acquire) {
            return None;
        }
        *self
            .0
            .profile
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The moment of an operation's turn; `None` when that is now.
    fn turn(
        &self,
        profile: Profile,
        operation: Operation,
        patience: Duration,
    ) -> Result<Option<Duration>, Throttled> {
        let now = self.0.timer.monotonic();
        let meter = self.0.meters.of(operation);
        match meter.take(profile.rate(operation), now, patience) {
            Ok(wait) if wait.is_zero() => Ok(None),
            Ok(wait) => {
                count("fieldpost_throttle_delayed_total", operation);
                Ok(Some(now.saturating_add(wait)))
            }
            Err(retry_after) => {
                count("fieldpost_throttle_refused_total", operation);
                Err(Throttled {
                    is_backlog_full: !patience.is_zero(),
                    retry_after,
                })
            }
        }
    }

    fn charge(&self, profile: Profile, messages: u64) -> Result<(), MessageLimit> {
        let daily = profile.daily();
        let now = self.0.timer.now();
        let Some(count) = self.0.quota.charge(now, messages, daily) else {
            metrics::counter!("fieldpost_quota_refused_total").increment(1);
            return Err(MessageLimit::QuotaExceeded);
        };
        let step = (daily / SAVES_PER_DAY).max(1);
        if count / step != (count - messages.min(count)) / step {
            self.0.is_due.notify_one();
        }
        Ok(())
    }
}

impl Meters {
    fn of(&self, operation: Operation) -> &Meter {
        match operation {
            Operation::Identity => &self.identity,
            Operation::Connection => &self.connection,
            Operation::DeviceToCloud => &self.device_to_cloud,
            Operation::CloudToDevice => &self.cloud_to_device,
            Operation::HttpReceive => &self.http_receive,
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.is_due.notify_one();
    }
}

/// Writes the count of the day whenever it is due, until the throttles are gone.
async fn keep(is_due: Arc<Notify>, throttles: Weak<Inner>) {
    loop {
        is_due.notified().await;
        let Some(inner) = throttles.upgrade() else {
            return;
        };
        save(&*inner.documents, inner.quota.usage()).await;
    }
}

async fn save(documents: &dyn Documents, usage: Usage) {
    if let Err(error) = documents.apply(vec![quota::put(usage)]).await {
        // The store's health says why, once.
        tracing::debug!(%error, "how much of the daily quota is used was not written");
    }
}

fn count(name: &'static str, operation: Operation) {
    metrics::counter!(name, "operation" => operation.as_str()).increment(1);
}
