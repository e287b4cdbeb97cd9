//! Wall-clock time that expires nothing by mistake.
//!
//! A clock that is set wrong for a while, by an operator or a bad time server, must not expire
//! every message there is: a step of more than five minutes counts only when it has held for ten.
//! That is for a hub that runs. One that starts takes the clock as it finds it, and while a step is
//! doubted, new messages are stamped by the old reckoning.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fieldpost_model::Timestamp;

use crate::clock::Timer;

/// A step that is believed at once.
const STEP_MAX: Duration = Duration::from_secs(5 * 60);

/// How long a larger one must hold.
const HOLD: Duration = Duration::from_secs(10 * 60);

pub(super) struct SteadyWall {
    timer: Arc<dyn Timer>,
    /// Guards the reckoning; nothing else is taken while it is held.
    state: Mutex<State>,
}

struct State {
    wall: Timestamp,
    monotonic: Duration,
    /// Another reckoning, which the clock has shown since it began.
    doubted: Option<Doubted>,
}

#[derive(Clone, Copy)]
struct Doubted {
    wall: Timestamp,
    since: Duration,
}

impl SteadyWall {
    pub(super) fn new(timer: Arc<dyn Timer>) -> Self {
        let state = Mutex::new(State {
            wall: timer.now(),
            monotonic: timer.monotonic(),
            doubted: None,
        });
        Self { timer, state }
    }

    /// The time, as far as it is believed.
    pub(super) fn now(&self) -> Timestamp {
        let (wall, monotonic) = (self.timer.now(), self.timer.monotonic());
        // No statement below can panic half way through a change.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let reckoned = reckon(state.wall, state.monotonic, monotonic);
        let has_held = state.doubted.is_some_and(|doubted| {
            let expected = reckon(doubted.wall, doubted.since, monotonic);
            apart(wall, expected) <= STEP_MAX
        });
        let is_old = |doubted: Doubted| monotonic.saturating_sub(doubted.since) >= HOLD;
        let believed =
            apart(wall, reckoned) <= STEP_MAX || has_held && state.doubted.is_some_and(is_old);
        if believed {
            *state = State {
                wall,
                monotonic,
                doubted: None,
            };
            return wall;
        }
        if state.doubted.is_none() {
            tracing::warn!(
                clock = %wall,
                reckoned = %reckoned,
                "the wall clock was set; it does not count for messages to devices before ten minutes"
            );
        }
        if !has_held {
            // Set once more, it has to hold from now on.
            state.doubted = Some(Doubted {
                wall,
                since: monotonic,
            });
        }
        reckoned
    }
}

/// What a clock shows that showed `wall` at `then`.
fn reckon(wall: Timestamp, then: Duration, now: Duration) -> Timestamp {
    wall.saturating_add(now.saturating_sub(then))
}

fn apart(a: Timestamp, b: Timestamp) -> Duration {
    a.since(b).max(b.since(a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn a_large_step_counts_when_it_has_held() {
        let start = Timestamp::from_millis(1_800_000_000_000);
        let seconds = |count| start.saturating_add(Duration::from_secs(count));
        let clock = Arc::new(ManualClock::new(start));
        let wall = SteadyWall::new(Arc::clone(&clock) as _);
        clock.advance(Duration::from_secs(10));
        assert_eq!(wall.now(), seconds(10));
        clock.set_wall(seconds(10 + 299));
        assert_eq!(wall.now(), seconds(309));
        // An hour forwards, and back again.
        clock.set_wall(seconds(309).saturating_add(HOUR));
        assert_eq!(wall.now(), seconds(309));
        clock.advance(Duration::from_secs(599));
        assert_eq!(wall.now(), seconds(908));
        clock.set_wall(seconds(908));
        assert_eq!(wall.now(), seconds(908));
        // An hour back, for good.
        clock.set_wall(seconds(908).saturating_sub(HOUR));
        assert_eq!(wall.now(), seconds(908));
        clock.advance(Duration::from_secs(600));
        assert_eq!(wall.now(), seconds(1508).saturating_sub(HOUR));

        // Set twice: the second time counts from its own beginning.
        let before = seconds(1508).saturating_sub(HOUR);
        clock.set_wall(before.saturating_add(HOUR));
        assert_eq!(wall.now(), before);
        clock.advance(Duration::from_secs(595));
        clock.set_wall(before.saturating_add(1000 * HOUR));
        assert_eq!(wall.now(), before.saturating_add(Duration::from_secs(595)));
        clock.advance(Duration::from_secs(10));
        assert_eq!(wall.now(), before.saturating_add(Duration::from_secs(605)));
        clock.advance(Duration::from_secs(590));
        assert_eq!(
            wall.now(),
            before
                .saturating_add(1000 * HOUR)
                .saturating_add(Duration::from_secs(600))
        );
    }
}
