//! Tasks that the hub cannot do without.
//!
//! A task that panics has met a defect, and nobody knows what it left half done in memory. What is in
//! the store is whole, so the hub says so and asks to be started anew.

use std::sync::Arc;

use tokio::sync::watch;

/// Whether all vital tasks are well.
pub(super) struct Vitals {
    failed: watch::Sender<Option<Arc<str>>>,
}

impl Default for Vitals {
    fn default() -> Self {
        Self {
            failed: watch::Sender::new(None),
        }
    }
}

impl Vitals {
    /// What failed first, as soon as something has.
    pub(super) fn failed(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.failed.subscribe()
    }
}

/// Runs a task that the hub cannot do without. `what` names it for operators.
pub(super) async fn guarded(vitals: Arc<Vitals>, what: &'static str, task: impl Future) {
    let _guard = Guard { vitals, what };
    task.await;
}

struct Guard {
    vitals: Arc<Vitals>,
    what: &'static str,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        tracing::error!("{} failed; the hub has to be started anew", self.what);
        self.vitals.failed.send_if_modified(|failed| {
            let is_first = failed.is_none();
            failed.get_or_insert_with(|| format!("{} failed", self.what).into());
            is_first
        });
    }
}
