//! How far a run is.

use tokio::sync::watch;

/// The parts of a run, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// There is work, and everything that can break does.
    Load,
    /// Nothing new is sent and nothing breaks any more: what was promised is to come.
    Settle,
    /// Everybody stops.
    Over,
}

/// Follows how far the run is.
#[derive(Clone)]
pub(crate) struct Phases(pub(crate) watch::Receiver<Phase>);

impl Phases {
    /// Whether the run is just there.
    pub(crate) fn is(&self, phase: Phase) -> bool {
        *self.0.borrow() == phase
    }

    /// Waits until the run has come to a phase.
    pub(crate) async fn until(&mut self, phase: Phase) {
        // A world that is gone is over.
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }
}
