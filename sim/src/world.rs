//! What everybody in a run shares.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use crate::auditor::Auditor;
use crate::clock::SimTimer;
use crate::network::Network;
use crate::scenario::Scenario;

/// One simulated world.
pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) timer: SimTimer,
    pub(crate) network: Network,
    pub(crate) auditor: Auditor,
    /// Messages and commands that are still to be sent for the first time.
    remaining: AtomicU64,
    /// Rung when there are none.
    sent_all: Notify,
}

impl World {
    pub(crate) fn new(
        scenario: Scenario,
        timer: SimTimer,
        network: Network,
        auditor: Auditor,
    ) -> Self {
        let messages = scenario.devices * scenario.messages;
        let commands = scenario.services * scenario.commands;
        Self {
            scenario,
            timer,
            network,
            auditor,
            remaining: AtomicU64::new(messages + commands),
            sent_all: Notify::new(),
        }
    }

    /// Somebody has sent something for the first time.
    pub(crate) fn did_one(&self) {
        if self.remaining.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.sent_all.notify_one();
        }
    }

    /// Waits until everything was sent once.
    pub(crate) async fn all_sent(&self) {
        self.sent_all.notified().await;
    }
}
