//! The hub's time: that of the runtime, which stands still while anything is to be done.

use std::time::Duration;

use fieldpost_hub::clock::{Clock, Sleep, Timer};
use fieldpost_model::Timestamp;
use tokio::time::Instant;

/// When every run begins: 2027-01-15T08:00:00Z.
const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// The clock of one process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SimTimer {
    world: Instant,
    process: Instant,
}

impl SimTimer {
    /// A clock in a world that begins now.
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            world: now,
            process: now,
        }
    }

    /// The clock of a process that starts now in the same world.
    pub(crate) fn restarted(self) -> Self {
        Self {
            process: Instant::now(),
            ..self
        }
    }
}

impl Clock for SimTimer {
    fn now(&self) -> Timestamp {
        START.saturating_add(self.world.elapsed())
    }

    fn monotonic(&self) -> Duration {
        self.process.elapsed()
    }
}

impl Timer for SimTimer {
    fn sleep_until(&self, at: Duration) -> Sleep {
        // Further off than any run, and within what an instant can hold.
        let at = at.min(Duration::from_secs(1 << 32));
        Box::pin(tokio::time::sleep_until(self.process + at))
    }
}
