//! The health of the whole store, to which log, documents and disk watch contribute.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use fieldpost_store::{Health, HealthLevel, StoreError};
use tokio::sync::watch;

/// One store's health. What it shows is the worst of its causes.
#[derive(Debug)]
pub struct StoreHealth {
    /// The level by itself, so that a submission asks without a lock.
    level: AtomicU8,
    causes: Mutex<Causes>,
    shown: watch::Sender<Health>,
    /// Without what holds the log alone back.
    shown_to_queues: watch::Sender<Health>,
}

#[derive(Debug, Default)]
struct Causes {
    failure: Option<Arc<str>>,
    disk: Option<(HealthLevel, Arc<str>)>,
    log: Option<Arc<str>>,
}

impl Default for StoreHealth {
    fn default() -> Self {
        Self::new()
    }
}

impl StoreHealth {
    /// A store that takes everything.
    #[must_use]
    pub fn new() -> Self {
        Self {
            level: AtomicU8::new(0),
            causes: Mutex::default(),
            shown: watch::Sender::new(Health::OK),
            shown_to_queues: watch::Sender::new(Health::OK),
        }
    }

    /// Follows the health.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Health> {
        self.shown.subscribe()
    }

    /// Follows what of it concerns the queues: all but what holds the log alone back.
    #[must_use]
    pub fn subscribe_to_queues(&self) -> watch::Receiver<Health> {
        self.shown_to_queues.subscribe()
    }

    /// Turns the store read-only until it is opened anew, and says so in the log. The first
    /// failure is the one that is kept.
    pub fn fail(&self, reason: impl Into<Arc<str>>) {
        let reason = reason.into();
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        if causes.failure.is_some() {
            return;
        }
        tracing::error!(%reason, "the store failed and is read-only until it is opened anew");
        causes.failure = Some(reason);
        self.show(&causes);
    }

    /// Whether messages are taken.
    ///
    /// # Errors
    /// Why they are not.
    pub fn admit_message(&self) -> Result<(), StoreError> {
        if self.level.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        Err(self.refusal())
    }

    /// Whether small changes (documents) are taken.
    ///
    /// # Errors
    /// Why they are not.
    pub fn admit_change(&self) -> Result<(), StoreError> {
        if self.level.load(Ordering::Acquire) <= HealthLevel::HoldMessages as u8 {
            return Ok(());
        }
        Err(self.refusal())
    }

    /// The failure that turned the store read-only.
    #[must_use]
    pub fn failure(&self) -> Option<StoreError> {
        let causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        causes.failure.as_ref().map(|reason| StoreError::ReadOnly {
            reason: Arc::clone(reason),
        })
    }

    /// What the room on the disk allows: `Ok`, `HoldMessages` or `HoldAll`.
    pub(crate) fn set_disk(&self, level: HealthLevel, reason: &str) {
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        causes.disk = (level > HealthLevel::Ok).then(|| (level, reason.into()));
        self.show(&causes);
    }

    /// What the room on the disk allows, whatever else holds the store back.
    pub(crate) fn disk_level(&self) -> HealthLevel {
        let causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        causes
            .disk
            .as_ref()
            .map_or(HealthLevel::Ok, |(level, _)| *level)
    }

    /// Why the log can take no messages although the disk has room, or that it can again.
    pub(crate) fn set_log_hold(&self, reason: Option<&str>) {
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        if causes.log.as_deref() == reason {
            return;
        }
        causes.log = reason.map(Into::into);
        self.show(&causes);
    }

    fn refusal(&self) -> StoreError {
        self.failure().unwrap_or(StoreError::Full)
    }

    fn show(&self, causes: &Causes) {
        let of_queues = causes.worst_with(None);
        self.shown_to_queues.send_if_modified(|shown| {
            let is_other = *shown != of_queues;
            *shown = of_queues;
            is_other
        });
        let health = causes.worst_with(causes.log.as_ref());
        self.level.store(health.level as u8, Ordering::Release);
        self.shown.send_if_modified(|shown| {
            if *shown == health {
                return false;
            }
            if shown.level != health.level && health.level != HealthLevel::ReadOnly {
                let reason = health.reason.as_deref().unwrap_or("there is room again");
                tracing::warn!(level = ?health.level, reason, "what the store takes has changed");
            }
            *shown = health;
            true
        });
    }
}

impl Causes {
    /// The worst of failure, disk, and the log's reason if it counts.
    fn worst_with(&self, log: Option<&Arc<str>>) -> Health {
        if let Some(reason) = &self.failure {
            return Health {
                level: HealthLevel::ReadOnly,
                reason: Some(Arc::clone(reason)),
            };
        }
        let log = log.map(|reason| (HealthLevel::HoldMessages, reason));
        let disk = self.disk.as_ref().map(|(level, reason)| (*level, reason));
        match worse(log, disk) {
            Some((level, reason)) => Health {
                level,
                reason: Some(Arc::clone(reason)),
            },
            None => Health::OK,
        }
    }
}

type Cause<'a> = Option<(HealthLevel, &'a Arc<str>)>;

/// The worse of two causes; the second when they are equally bad.
fn worse<'a>(one: Cause<'a>, two: Cause<'a>) -> Cause<'a> {
    match (one, two) {
        (Some(one), Some(two)) => Some(if one.0 > two.0 { one } else { two }),
        (one, two) => one.or(two),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_cause_is_shown_and_a_failure_stays() {
        let health = StoreHealth::new();
        let shown = health.subscribe();
        let shown_to_queues = health.subscribe_to_queues();
        let level = || shown.borrow().level;
        let level_of_queues = || shown_to_queues.borrow().level;
        assert!(health.admit_message().is_ok());

        health.set_log_hold(Some("bound"));
        assert_eq!(level(), HealthLevel::HoldMessages);
        assert!(matches!(health.admit_message(), Err(StoreError::Full)));
        assert!(health.admit_change().is_ok());
        assert_eq!(level_of_queues(), HealthLevel::Ok);

        health.set_disk(HealthLevel::HoldAll, "no room");
        assert_eq!(level(), HealthLevel::HoldAll);
        assert!(matches!(health.admit_change(), Err(StoreError::Full)));
        assert_eq!(level_of_queues(), HealthLevel::HoldAll);

        health.set_disk(HealthLevel::Ok, "");
        assert_eq!(level(), HealthLevel::HoldMessages);
        health.set_log_hold(None);
        assert_eq!(level(), HealthLevel::Ok);

        health.fail("first");
        health.fail("second");
        assert_eq!(level(), HealthLevel::ReadOnly);
        assert_eq!(level_of_queues(), HealthLevel::ReadOnly);
        assert_eq!(shown.borrow().reason.as_deref(), Some("first"));
        assert!(matches!(
            health.admit_change(),
            Err(StoreError::ReadOnly { .. })
        ));
    }
}
