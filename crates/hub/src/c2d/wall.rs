//! Wall-clock time that ends nothing by mistake.
//!
//! A clock that is set wrong for a while, by an operator, a bad time server or a flat battery, must
//! not expire every message there is: a step of more than five minutes counts only when it has held
//! for ten. A hub that starts goes on from the time that the last one wrote down, so that the same
//! holds over a restart; whether it was stopped for long or its clock is wrong, nobody can say at
//! first.
//!
//! While a step is doubted there are two times: by what was reckoned before, and by what the clock
//! shows. What ends by itself goes by the earlier one, so that it ends late rather than early; what is
//! written down, and what begins, goes by the later one, so that it does not end before its time
//! when that turns out to be the true one.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fieldpost_model::Timestamp;

use crate::clock::Timer;

/// A step that is believed at once.
const STEP_MAX: Duration = Duration::from_secs(5 * 60);

/// How long a larger one must hold.
const HOLD: Duration = Duration::from_secs(10 * 60);

/// The clock is followed in such steps. Less than that is not worth writing what all tasks read.
const FOLLOWED: Duration = Duration::from_secs(1);

/// A wall clock that does not believe all that it is shown.
pub(super) struct SteadyWall {
    timer: Arc<dyn Timer>,
    /// Wall-clock time at monotonic zero, as believed, in milliseconds.
    zero: AtomicI64,
    /// Whether there is anything in `doubted`.
    is_doubted: AtomicBool,
    /// Guards every change of the reckoning; nothing else is taken while it is held.
    doubted: Mutex<Option<Doubted>>,
}

/// What time it is. There are two answers while a step is doubted, and one otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// It is not earlier than this. What ends by itself goes by it.
    pub(super) earliest: Timestamp,
    /// It is not later than this. What is written down goes by it, and what is to last for a while.
    pub(super) latest: Timestamp,
}

/// Another time at monotonic zero, which the clock has shown since then.
#[derive(Clone, Copy)]
struct Doubted {
    zero: Timestamp,
    since: Duration,
}

impl SteadyWall {
    /// Goes on from the newest time that is known of the past; believes the clock when nothing is.
    pub(super) fn new(timer: Arc<dyn Timer>, newest: Option<Timestamp>) -> Self {
        let (wall, monotonic) = (timer.now(), timer.monotonic());
        let shown = wall.saturating_sub(monotonic);
        let zero = newest.map_or(shown, |newest| newest.saturating_sub(monotonic));
        let doubted = (apart(zero, shown) > STEP_MAX).then(|| {
            tracing::warn!(
                clock = %wall,
                last_known = %zero.saturating_add(monotonic),
                "the hub was stopped for long, or the wall clock is wrong; messages to devices expire \
                 by it once it has held for ten minutes"
            );
            Doubted {
                zero: shown,
                since: monotonic,
            }
        });
        Self {
            timer,
            zero: AtomicI64::new(zero.as_millis()),
            is_doubted: AtomicBool::new(doubted.is_some()),
            doubted: Mutex::new(doubted),
        }
    }

    /// The time by which things end: the earlier one while there are two.
    pub(super) fn now(&self) -> Timestamp {
        self.read().earliest
    }

    /// The time, as far as it is known.
    pub(super) fn read(&self) -> Reading {
        let (wall, monotonic) = (self.timer.now(), self.timer.monotonic());
        let shown = wall.saturating_sub(monotonic);
        let believed = Timestamp::from_millis(self.zero.load(Ordering::Relaxed));
        if apart(shown, believed) < FOLLOWED && !self.is_doubted.load(Ordering::Relaxed) {
            return Reading::certain(wall);
        }
        self.reckon(wall, monotonic)
    }

    /// The time, when there are no two of it.
    pub(super) fn believed(&self) -> Option<Timestamp> {
        let reading = self.read();
        (reading.earliest == reading.latest).then_some(reading.latest)
    }

    fn reckon(&self, wall: Timestamp, monotonic: Duration) -> Reading {
        let shown = wall.saturating_sub(monotonic);
        // No statement below can panic half way through a change.
        let mut doubted = self.doubted.lock().unwrap_or_else(PoisonError::into_inner);
        let believed = Timestamp::from_millis(self.zero.load(Ordering::Relaxed));
        let has_held = doubted.filter(|doubted| apart(shown, doubted.zero) <= STEP_MAX);
        let is_old = |doubted: Doubted| monotonic.saturating_sub(doubted.since) >= HOLD;
        if apart(shown, believed) <= STEP_MAX || has_held.is_some_and(is_old) {
            if doubted.take().is_some() {
                tracing::info!(clock = %wall, "the wall clock counts for messages to devices again");
            }
            self.zero.store(shown.as_millis(), Ordering::Relaxed);
            self.is_doubted.store(false, Ordering::Relaxed);
            return Reading::certain(wall);
        }
        let reckoned = believed.saturating_add(monotonic);
        if doubted.is_none() {
            tracing::warn!(
                clock = %wall,
                %reckoned,
                "the wall clock was set; messages to devices expire by it once it has held for ten \
                 minutes"
            );
        }
        if has_held.is_none() {
            // Set once more, it has to hold from now on.
            *doubted = Some(Doubted {
                zero: shown,
                since: monotonic,
            });
        }
        self.is_doubted.store(true, Ordering::Relaxed);
        Reading {
            earliest: wall.min(reckoned),
            latest: wall.max(reckoned),
        }
    }
}

impl Reading {
    pub(super) fn certain(now: Timestamp) -> Self {
        Self {
            earliest: now,
            latest: now,
        }
    }
}

fn apart(a: Timestamp, b: Timestamp) -> Duration {
    a.since(b).max(b.since(a))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const HOUR: i64 = 3600;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + seconds * 1000)
    }

    /// A clock that starts at 0 seconds, seen by a hub whose last one was there at `newest`.
    struct Watched {
        clock: Arc<ManualClock>,
        wall: SteadyWall,
    }

    impl Watched {
        fn after(newest: Option<i64>) -> Self {
            let clock = Arc::new(ManualClock::new(at(0)));
            let wall = SteadyWall::new(Arc::clone(&clock) as _, newest.map(at));
            Self { clock, wall }
        }

        /// Lets `pass` seconds go by, sets the clock to `set`, and compares what is known then.
        fn check(&self, pass: u64, set: Option<i64>, earliest: i64, latest: i64) {
            self.clock.advance(Duration::from_secs(pass));
            if let Some(set) = set {
                self.clock.set_wall(at(set));
            }
            let expected = Reading {
                earliest: at(earliest),
                latest: at(latest),
            };
            assert_eq!(self.wall.read(), expected, "+{pass} s, set to {set:?}");
            assert_eq!(self.wall.now(), at(earliest));
            let believed = (earliest == latest).then_some(at(latest));
            assert_eq!(self.wall.believed(), believed);
        }
    }

    #[test]
    fn a_large_step_counts_when_it_has_held() {
        let watched = Watched::after(None);
        watched.check(10, None, 10, 10);
        watched.check(0, Some(309), 309, 309);
        // An hour forwards, and back again.
        watched.check(0, Some(309 + HOUR), 309, 309 + HOUR);
        watched.check(599, None, 908, 908 + HOUR);
        watched.check(0, Some(908), 908, 908);
        // An hour back, for good.
        watched.check(0, Some(908 - HOUR), 908 - HOUR, 908);
        watched.check(599, None, 1507 - HOUR, 1507);
        watched.check(1, None, 1508 - HOUR, 1508 - HOUR);
    }

    #[test]
    fn a_clock_that_is_set_twice_has_to_hold_from_the_second_time_on() {
        let watched = Watched::after(None);
        watched.check(0, Some(HOUR), 0, HOUR);
        watched.check(595, Some(1000 * HOUR), 595, 1000 * HOUR);
        watched.check(10, None, 605, 1000 * HOUR + 10);
        watched.check(590, None, 1000 * HOUR + 600, 1000 * HOUR + 600);
    }

    #[test]
    fn a_clock_that_drifts_is_followed_however_far() {
        let watched = Watched::after(None);
        for n in 1..=100 {
            // Two minutes in which the clock shows four.
            watched.check(120, Some(n * 240), n * 240, n * 240);
        }
    }

    #[test]
    fn a_restart_makes_no_step_believable() {
        let week = 7 * 24 * HOUR;
        // A short stop.
        Watched::after(Some(-299)).check(0, None, 0, 0);
        Watched::after(Some(299)).check(0, None, 0, 0);
        // The clock is ahead, or the hub was stopped for a week.
        let watched = Watched::after(Some(-week));
        watched.check(0, None, -week, 0);
        watched.check(599, None, 599 - week, 599);
        watched.check(1, None, 600, 600);
        // It was ahead, and is set right.
        let watched = Watched::after(Some(-week));
        watched.check(60, None, 60 - week, 60);
        watched.check(0, Some(90 - week), 90 - week, 90 - week);
        // The clock stands at the beginning of time, until a time server is reached.
        let watched = Watched::after(Some(week));
        watched.check(30, None, 30, week + 30);
        watched.check(30, Some(week + 200), week + 200, week + 200);
    }
}
