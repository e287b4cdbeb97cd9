//! A clock for tests.

use std::sync::Mutex;
use std::time::Duration;

use fieldpost_model::{Clock, Timestamp};

/// Time that moves when it is told.
#[derive(Debug)]
pub(crate) struct TestClock {
    state: Mutex<(Timestamp, Duration)>,
}

impl TestClock {
    pub(crate) fn at(millis: i64) -> Self {
        Self {
            state: Mutex::new((Timestamp::from_millis(millis), Duration::ZERO)),
        }
    }

    /// Lets time pass.
    pub(crate) fn advance(&self, span: Duration) {
        let mut state = self.state.lock().unwrap();
        state.0 = state.0.saturating_add(span);
        state.1 += span;
    }

    /// Sets the wall clock forward or back.
    pub(crate) fn step(&self, millis: i64) {
        let mut state = self.state.lock().unwrap();
        state.0 = Timestamp::from_millis(state.0.as_millis() + millis);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        self.state.lock().unwrap().0
    }

    fn monotonic(&self) -> Duration {
        self.state.lock().unwrap().1
    }
}
