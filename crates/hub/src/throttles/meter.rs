//! How often something may be done: a burst at once, then a line of those who wait, served at the rate.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::tier::Rate;

/// One operation's meter: the moment up to which its rate is used up.
///
/// An idle meter lets what its rate gives in one period through at once. Whoever comes after that is
/// told when it is his turn; each has a turn of his own, in the order in which they came.
#[derive(Default)]
pub(super) struct Meter {
    /// Nothing else is taken while it is held.
    used_until: Mutex<Duration>,
}

impl Meter {
    /// Takes a turn and gives the wait until then.
    ///
    /// # Errors
    /// When the wait would be longer than `patience`; the wait until it would not. No turn is taken.
    pub(super) fn take(
        &self,
        rate: Rate,
        now: Duration,
        patience: Duration,
    ) -> Result<Duration, Duration> {
        let limit = u32::try_from(rate.limit.max(1)).unwrap_or(u32::MAX);
        let mut used_until = self.lock();
        let until = (*used_until).max(now).saturating_add(rate.period / limit);
        let wait = until.saturating_sub(now.saturating_add(rate.period));
        if wait > patience {
            return Err(wait - patience);
        }
        *used_until = until;
        Ok(wait)
    }

    fn lock(&self) -> MutexGuard<'_, Duration> {
        // One plain value is as good as it was.
        self.used_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: Rate = Rate {
        limit: 10,
        period: Duration::from_secs(1),
    };

    #[test]
    fn a_burst_passes_then_a_line_forms_then_it_is_full() {
        let meter = Meter::default();
        let take = |now_ms, patience_ms| {
            let [now, patience] = [now_ms, patience_ms].map(Duration::from_millis);
            let wait = meter.take(RATE, now, patience);
            wait.map(|w| w.as_millis()).map_err(|w| w.as_millis())
        };
        for _ in 0..10 {
            assert_eq!(take(5000, 0), Ok(0));
        }
        assert_eq!(take(5000, 0), Err(100));
        assert_eq!(take(5000, 200), Ok(100));
        assert_eq!(take(5000, 200), Ok(200));
        assert_eq!(take(5000, 200), Err(100));
        // Who was refused has taken nothing.
        assert_eq!(take(5100, 200), Ok(200));
        // An idle time is good for one burst, however long it was.
        for _ in 0..10 {
            assert_eq!(take(60_000, 0), Ok(0));
        }
        assert_eq!(take(60_000, 0), Err(100));
    }

    proptest! {
        /// Whoever comes when: in no stretch of time go more than the rate gives in it and one burst, the
        /// turns are in order, and nobody waits while there is room.
        #[test]
        fn turns_keep_to_the_rate(
            limit in 1_u64..50,
            steps in prop::collection::vec((0_u64..400, 0_u64..2000), 1..200),
        ) {
            let rate = Rate { limit, period: Duration::from_secs(1) };
            let meter = Meter::default();
            let (mut now, mut turns) = (Duration::ZERO, Vec::<Duration>::new());
            for (step, patience) in steps {
                now += Duration::from_millis(step);
                let patience = Duration::from_millis(patience);
                match meter.take(rate, now, patience) {
                    Ok(wait) => {
                        prop_assert!(wait <= patience);
                        prop_assert!(turns.last().is_none_or(|last| *last <= now + wait));
                        turns.push(now + wait);
                    }
                    Err(more) => prop_assert!(!more.is_zero()),
                }
            }
            for (first, from) in turns.iter().enumerate() {
                for (count, to) in turns[first..].iter().enumerate() {
                    let span = (*to - *from).as_secs_f64();
                    let most = span * limit as f64 + limit as f64;
                    prop_assert!((count + 1) as f64 <= most + 1e-3, "{count} in {span}");
                }
            }
        }
    }
}
