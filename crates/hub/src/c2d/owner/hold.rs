//! Whether deliveries are begun: not while the store takes no completions.
//!
//! A device would complete what it gets, the store would not take that, and the device would get the
//! same again, for as long as the disk is full or the store read-only.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use fieldpost_store::{Health, HealthLevel, StoreError};
use futures_util::future::{BoxFuture, FutureExt};
use tokio::sync::watch;

/// Whether operators were told that deliveries are held. All owners hold together.
#[derive(Default)]
pub(in crate::c2d) struct DeliveriesHeld(AtomicBool);

impl DeliveriesHeld {
    /// Tells it, unless another owner has.
    pub(super) fn tell(&self, refusal: Option<&StoreError>) {
        let is_held = refusal.is_some();
        if self.0.swap(is_held, Ordering::Relaxed) == is_held {
            return;
        }
        match refusal {
            Some(reason) => tracing::warn!(%reason, "no deliveries to devices are begun"),
            None => tracing::info!("deliveries to devices go on"),
        }
    }
}

/// Follows the health of the store.
pub(super) struct Hold {
    /// Ready at the next change; none when there will be no further one.
    change: Option<BoxFuture<'static, Option<watch::Receiver<Health>>>>,
    refusal: Option<StoreError>,
}

impl Hold {
    pub(super) fn new(mut health: watch::Receiver<Health>) -> Self {
        let refusal = refusal(&health.borrow_and_update());
        Self {
            change: Some(next(health)),
            refusal,
        }
    }

    /// Why nothing is delivered at present, if nothing is.
    pub(super) fn refusal(&self) -> Option<&StoreError> {
        self.refusal.as_ref()
    }

    /// Ready when deliveries begin to be held, and when they go on.
    pub(super) fn poll_change(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(change) = &mut self.change {
            let Poll::Ready(health) = change.poll_unpin(cx) else {
                return Poll::Pending;
            };
            self.change = None;
            let Some(mut health) = health else {
                // The store is gone, which every read and write says by itself.
                return Poll::Pending;
            };
            let before = self.refusal.is_some();
            self.refusal = refusal(&health.borrow_and_update());
            self.change = Some(next(health));
            if self.refusal.is_some() != before {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

fn next(
    mut health: watch::Receiver<Health>,
) -> BoxFuture<'static, Option<watch::Receiver<Health>>> {
    async move {
        health.changed().await.ok()?;
        Some(health)
    }
    .boxed()
}

fn refusal(health: &Health) -> Option<StoreError> {
    match health.level {
        HealthLevel::Ok | HealthLevel::HoldMessages => None,
        HealthLevel::HoldAll => Some(StoreError::Full),
        HealthLevel::ReadOnly => Some(StoreError::ReadOnly {
            reason: health.reason.clone().unwrap_or_else(|| "unknown".into()),
        }),
    }
}
