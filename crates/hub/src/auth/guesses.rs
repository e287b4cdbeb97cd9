//! Whoever guesses credentials is slowed, by address and identity together: the device next to him, and
//! the same device elsewhere, are not.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Failures that are free. People mistype, and libraries try again at once.
const FREE: u32 = 10;

/// How long a failure is remembered.
const REMEMBERED: Duration = Duration::from_secs(10 * 60);

/// The pause between two attempts after the first failure that is not free; each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(250);

/// The longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// How long an attempt is kept waiting. One that would wait longer is not looked at.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Guessers that are known at a time; a few MiB. Further ones are not slowed.
const KNOWN_MAX: usize = 16 * 1024;

/// Where an attempt comes from, and as whom.
pub(super) type Guesser = (IpAddr, String);

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    last: Duration,
    /// When the next attempt may be looked at.
    next: Duration,
}

/// The failures of late.
#[derive(Debug, Default)]
pub(super) struct Guesses(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    guessers: HashMap<Guesser, Failures>,
    /// When those that are forgotten were last looked for.
    cleared: Duration,
}

/// How often, at most, it is looked for those that are forgotten: that takes a walk over all.
const CLEAR_INTERVAL: Duration = Duration::from_secs(10);

impl Guesses {
    /// How long an attempt has to wait before it is looked at; `None` when it is too long.
    pub(super) fn wait(&self, guesser: &Guesser, now: Duration) -> Option<Duration> {
        let guessers = &mut self.lock().guessers;
        let Some(failures) = guessers.get_mut(guesser) else {
            return Some(Duration::ZERO);
        };
        if failures.is_forgotten(now) {
            guessers.remove(guesser);
            return Some(Duration::ZERO);
        }
        let wait = failures.next.saturating_sub(now);
        if wait > WAIT_MAX {
            return None;
        }
        // Those that come meanwhile wait behind it.
        failures.next = failures.next.max(now).saturating_add(failures.pause());
        Some(wait)
    }

    /// An attempt has failed.
    pub(super) fn failed(&self, guesser: Guesser, now: Duration) {
        let mut known = self.lock();
        if known.guessers.len() >= KNOWN_MAX && !known.guessers.contains_key(&guesser) {
            if now.saturating_sub(known.cleared) >= CLEAR_INTERVAL {
                known.cleared = now;
                known
                    .guessers
                    .retain(|_, failures| !failures.is_forgotten(now));
            }
            if known.guessers.len() >= KNOWN_MAX {
                return;
            }
        }
        let fresh = Failures {
            count: 0,
            last: now,
            next: now,
        };
        let failures = known.guessers.entry(guesser).or_insert(fresh);
        if failures.is_forgotten(now) {
            *failures = fresh;
        }
        failures.count = failures.count.saturating_add(1);
        failures.last = now;
        failures.next = failures.next.max(now.saturating_add(failures.pause()));
    }

    /// An attempt has succeeded.
    pub(super) fn succeeded(&self, guesser: &Guesser) {
        self.lock().guessers.remove(guesser);
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing under the lock panics half way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Failures {
    fn is_forgotten(&self, now: Duration) -> bool {
        now.saturating_sub(self.last) > REMEMBERED
    }

    /// Between two attempts, as things stand.
    fn pause(&self) -> Duration {
        match self.count.checked_sub(FREE) {
            None => Duration::ZERO,
            Some(doublings) => {
                let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
                PAUSE_MIN.saturating_mul(factor).min(PAUSE_MAX)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guesser(address: &str, identity: &str) -> Guesser {
        (address.parse().unwrap(), identity.to_owned())
    }

    #[test]
    fn guessing_gets_slower_and_slower_for_the_guesser_alone() {
        let guesses = Guesses::default();
        let (guesser, other) = (guesser("10.0.0.1", "dev1"), guesser("10.0.0.1", "dev2"));
        let mut now = Duration::from_secs(100);
        let mut looked_at = 0;
        let end = now + Duration::from_secs(3600);
        while now < end {
            match guesses.wait(&guesser, now) {
                // As fast as it can.
                Some(wait) => {
                    now += wait;
                    looked_at += 1;
                    guesses.failed(guesser.clone(), now);
                }
                None => now += Duration::from_secs(1),
            }
            assert_eq!(guesses.wait(&other, now), Some(Duration::ZERO));
        }
        // Ten for nothing, some more, and then two a minute.
        assert!((110..150).contains(&looked_at), "{looked_at}");
        now += REMEMBERED + Duration::from_secs(1);
        assert_eq!(guesses.wait(&guesser, now), Some(Duration::ZERO));
    }

    #[test]
    fn attempts_at_the_same_time_wait_for_each_other() {
        let guesses = Guesses::default();
        let guesser = guesser("10.0.0.1", "dev1");
        let now = Duration::from_secs(1);
        for _ in 0..12 {
            guesses.failed(guesser.clone(), now);
        }
        let waits: Vec<_> = (0..20).map(|_| guesses.wait(&guesser, now)).collect();
        let seconds = |n| Some(Duration::from_secs(n));
        assert_eq!(waits[..3], [seconds(1), seconds(2), seconds(3)]);
        assert_eq!(waits[9..12], [seconds(10), None, None]);
        guesses.succeeded(&guesser);
        assert_eq!(guesses.wait(&guesser, now), Some(Duration::ZERO));
    }

    #[test]
    fn what_is_known_of_guessers_is_bounded() {
        let guesses = Guesses::default();
        let now = Duration::from_secs(1);
        for n in 0..2 * KNOWN_MAX {
            guesses.failed(guesser("10.0.0.1", &n.to_string()), now);
        }
        assert_eq!(guesses.lock().guessers.len(), KNOWN_MAX);
        let later = now + REMEMBERED + Duration::from_secs(1);
        guesses.failed(guesser("10.0.0.1", "late"), later);
        assert_eq!(guesses.lock().guessers.len(), 1);
    }
}
