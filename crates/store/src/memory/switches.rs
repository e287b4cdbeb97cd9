//! What tests turn at a facet that answers changes, and what it answers then.

use futures_util::FutureExt;
use futures_util::future::ready;
use tokio::sync::oneshot;

use super::{MemoryHealth, refusal};
use crate::{Answer, HealthLevel, StoreError};

/// How a facet is to go wrong.
#[derive(Default)]
pub(super) struct Switches {
    pub(super) fail_next: bool,
    pub(super) closed: bool,
    /// Whoever waits for what is kept back.
    withheld: Option<Vec<oneshot::Sender<()>>>,
}

impl Switches {
    /// Whether a batch is carried out that is within its bounds or not.
    pub(super) fn admit(
        &mut self,
        health: &MemoryHealth,
        in_bounds: Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        if self.closed {
            return Err(StoreError::Closed);
        }
        in_bounds?;
        if let Some(refused) = refusal(&health.facets, HealthLevel::HoldAll) {
            return Err(refused);
        }
        if std::mem::take(&mut self.fail_next) {
            return Err(health.fail());
        }
        Ok(())
    }

    /// The answer to a batch that was carried out, which may be kept back.
    pub(super) fn answer<T: Send + 'static>(
        &mut self,
        results: T,
    ) -> Answer<Result<T, StoreError>> {
        let Some(withheld) = &mut self.withheld else {
            return ready(Ok(results)).boxed();
        };
        let (release, released) = oneshot::channel();
        withheld.push(release);
        released
            .map(move |released| {
                // The sender goes without a word only with the whole engine.
                released.map_err(|_| StoreError::Closed)?;
                Ok(results)
            })
            .boxed()
    }

    /// Keeps answers back from now on, or gives those that were kept back to be let go.
    pub(super) fn withhold(&mut self, withhold: bool) -> Withheld {
        if withhold {
            self.withheld.get_or_insert_with(Vec::new);
            return Withheld(Vec::new());
        }
        Withheld(self.withheld.take().unwrap_or_default())
    }
}

/// Answers to be let go, without any lock.
#[must_use]
pub(super) struct Withheld(Vec<oneshot::Sender<()>>);

impl Withheld {
    /// Lets them go, in order.
    pub(super) fn release(self) {
        for answer in self.0 {
            // Nobody may be waiting for it any more.
            let _ = answer.send(());
        }
    }
}
