//! The hub's time: that of the runtime, which stands still while anything is to be done.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use fieldpost_hub::clock::{Clock, Sleep, Timer};
use fieldpost_model::Timestamp;
use tokio::time::Instant;

/// When every run begins: 2027-01-15T08:00:00Z.
const START: Timestamp = Timestamp::from_millis(1_800_000_000_000);

/// By how many milliseconds a machine's clock is wrong.
#[derive(Clone, Debug, Default)]
pub(crate) struct ClockError(Arc<AtomicI64>);

impl ClockError {
    /// Sets the clock: so much ahead of the right time, or behind it.
    pub(crate) fn set(&self, millis: i64) {
        self.0.store(millis, Ordering::Relaxed);
    }
}

/// The clock of one process.
#[derive(Clone, Debug)]
pub(crate) struct SimTimer {
    world: Instant,
    process: Instant,
    error: ClockError,
}

impl SimTimer {
    /// The right time, in a world that begins now.
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self {
            world: now,
            process: now,
            error: ClockError::default(),
        }
    }

    /// The clock of a process that starts now in the same world, on a machine whose clock may be
    /// wrong.
    pub(crate) fn of_process(&self, error: &ClockError) -> Self {
        Self {
            world: self.world,
            process: Instant::now(),
            error: error.clone(),
        }
    }
}

impl Clock for SimTimer {
    fn now(&self) -> Timestamp {
        let right = START.saturating_add(self.world.elapsed());
        Timestamp::from_millis(right.as_millis() + self.error.0.load(Ordering::Relaxed))
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
