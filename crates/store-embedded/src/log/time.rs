//! Wall-clock time that does not believe a step at once.

use std::time::Duration;

use fieldpost_model::{Clock, Timestamp};

/// A jump of the wall clock against monotonic time by more than this is a step.
const STEP: Duration = Duration::from_secs(5 * 60);

/// A step is believed after it has held for this long.
const HOLD: Duration = Duration::from_secs(10 * 60);

/// A step is believed after it has held for this long where records get their times: a wrong one
/// stays in the log, and so does one that was held back.
const HOLD_RECORDS: Duration = Duration::from_secs(60);

/// Decides what time it is for things that cannot be undone.
pub(super) struct SteadyTime {
    hold: Duration,
    /// What a step means for the time being, for the operator.
    meanwhile: &'static str,
    /// Wall-clock time at monotonic zero, as believed.
    believed: Option<Timestamp>,
    /// Another one, and since when it has been seen.
    stepped: Option<(Timestamp, Duration)>,
}

impl SteadyTime {
    /// Begins after the newest time in the log: when the clock is far from it, nobody knows
    /// whether the log rested or the clock is wrong, so it is taken for a step.
    pub(super) fn after(newest: Option<Timestamp>, clock: &dyn Clock) -> Self {
        let elapsed = clock.monotonic();
        Self {
            believed: Some(
                newest
                    .unwrap_or_else(|| clock.now())
                    .saturating_sub(elapsed),
            ),
            stepped: None,
            hold: HOLD,
            meanwhile: "nothing expires until that has held for 10 minutes",
        }
    }

    /// Begins with the clock as it is, for the times of records.
    pub(super) fn of_records(clock: &dyn Clock) -> Self {
        Self {
            hold: HOLD_RECORDS,
            meanwhile: "records go on with the expected time until that has held for a minute",
            ..Self::after(None, clock)
        }
    }

    /// The time, without a step ahead that has not held for long enough.
    pub(super) fn not_ahead(&mut self, clock: &dyn Clock) -> Timestamp {
        let expected = |zero: Timestamp| zero.saturating_add(clock.monotonic());
        match self.now(clock) {
            Some(now) => now,
            None => (self.believed.map(expected)).map_or(clock.now(), |time| time.min(clock.now())),
        }
    }

    /// The time, or `None` while a step has not held for long enough.
    pub(super) fn now(&mut self, clock: &dyn Clock) -> Option<Timestamp> {
        let (wall, elapsed) = (clock.now(), clock.monotonic());
        let zero = wall.saturating_sub(elapsed);
        if self
            .believed
            .is_none_or(|believed| distance(believed, zero) <= STEP)
        {
            // Slow drift and small corrections are followed.
            self.believed = Some(zero);
            self.stepped = None;
            return Some(wall);
        }
        match self.stepped {
            Some((seen, since)) if distance(seen, zero) <= STEP => {
                if elapsed.saturating_sub(since) >= self.hold {
                    self.believed = Some(zero);
                    self.stepped = None;
                    return Some(wall);
                }
            }
            _ => {
                tracing::warn!(
                    now = %wall,
                    "the clock is more than 5 minutes off what was expected; {}",
                    self.meanwhile
                );
                self.stepped = Some((zero, elapsed));
            }
        }
        None
    }
}

fn distance(one: Timestamp, two: Timestamp) -> Duration {
    one.since(two).max(two.since(one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestClock;

    #[test]
    fn a_step_is_believed_after_it_has_held() {
        let clock = TestClock::at(1_000_000_000);
        let mut time = SteadyTime::after(None, &clock);
        let mut check = |advance: u64, step: i64, believed: bool| {
            clock.advance(Duration::from_secs(advance));
            clock.step(step * 1000);
            assert_eq!(
                time.now(&clock).is_some(),
                believed,
                "+{advance} s, step {step} s"
            );
        };
        check(1, 0, true);
        check(86_400, 0, true);
        check(1, 299, true);
        check(1, -299, true);
        check(1, 301, false);
        check(599, 0, false);
        check(2, 0, true);
        // Back and forth: each step begins anew.
        check(1, -4000, false);
        check(500, 4000, true);
        check(1, 90_000, false);
        check(300, 90_000, false);
        check(400, 0, false);
        check(201, 0, true);
    }

    #[test]
    fn after_a_rest_the_clock_must_hold_before_it_is_believed() {
        let clock = TestClock::at(1_000_000_000);
        let newest = Timestamp::from_millis(1_000_000_000 - 86_400_000);
        let mut time = SteadyTime::after(Some(newest), &clock);
        assert_eq!(time.now(&clock), None);
        clock.advance(HOLD);
        assert_eq!(time.now(&clock), Some(clock.now()));
    }
}
