//! Time and chance from outside, so that tests and simulations own both.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

pub use fieldpost_model::Clock;
use fieldpost_model::Timestamp;

/// A future that is ready at a moment of the clock.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A clock that can also wake a task.
pub trait Timer: Clock {
    /// Ready once [`Clock::monotonic`] has reached `at`; at once when it has.
    fn sleep_until(&self, at: Duration) -> Sleep;
}

/// A source of chance, good enough for keys.
pub trait Chance: Send + Sync {
    /// Fills `out` with random bytes.
    fn fill(&self, out: &mut [u8]);
}

/// A clock that moves only when told to; for tests and simulations.
#[derive(Debug)]
pub struct ManualClock {
    state: Arc<Mutex<ManualState>>,
}

#[derive(Debug)]
struct ManualState {
    wall: Timestamp,
    monotonic: Duration,
    next_sleeper: u64,
    sleepers: BTreeMap<u64, (Duration, Option<Waker>)>,
}

/// A repeatable source of bytes for tests and simulations. Never for real keys.
#[derive(Debug)]
pub struct SeededChance {
    state: AtomicU64,
}

impl ManualClock {
    /// A clock that stands at `now`, with a monotonic time of zero.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            state: Arc::new(Mutex::new(ManualState {
                wall: now,
                monotonic: Duration::ZERO,
                next_sleeper: 0,
                sleepers: BTreeMap::new(),
            })),
        }
    }

    /// Moves both times on and wakes whoever's moment has come.
    pub fn advance(&self, span: Duration) {
        let mut state = lock(&self.state);
        state.wall = state.wall.saturating_add(span);
        state.monotonic = state.monotonic.saturating_add(span);
        let now = state.monotonic;
        let due: Vec<Waker> = state
            .sleepers
            .values_mut()
            .filter(|(at, _)| *at <= now)
            .filter_map(|(_, waker)| waker.take())
            .collect();
        drop(state);
        due.into_iter().for_each(Waker::wake);
    }

    /// Steps the wall clock, in either direction, and leaves the monotonic time alone.
    pub fn set_wall(&self, now: Timestamp) {
        lock(&self.state).wall = now;
    }

    /// How many sleeps are being waited for.
    #[must_use]
    pub fn sleepers(&self) -> usize {
        lock(&self.state).sleepers.len()
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        lock(&self.state).wall
    }

    fn monotonic(&self) -> Duration {
        lock(&self.state).monotonic
    }
}

impl Timer for ManualClock {
    fn sleep_until(&self, at: Duration) -> Sleep {
        let mut state = lock(&self.state);
        let id = state.next_sleeper;
        state.next_sleeper += 1;
        state.sleepers.insert(id, (at, None));
        Box::pin(ManualSleep {
            state: Arc::clone(&self.state),
            id,
            at,
        })
    }
}

struct ManualSleep {
    state: Arc<Mutex<ManualState>>,
    id: u64,
    at: Duration,
}

impl Future for ManualSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = lock(&self.state);
        if state.monotonic >= self.at {
            return Poll::Ready(());
        }
        state
            .sleepers
            .insert(self.id, (self.at, Some(cx.waker().clone())));
        Poll::Pending
    }
}

impl Drop for ManualSleep {
    fn drop(&mut self) {
        lock(&self.state).sleepers.remove(&self.id);
    }
}

impl SeededChance {
    /// The source that `seed` names.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            state: AtomicU64::new(seed),
        }
    }
}

impl Chance for SeededChance {
    fn fill(&self, out: &mut [u8]) {
        // SplitMix64: every step of the counter gives an unrelated word.
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        for chunk in out.chunks_mut(size_of::<u64>()) {
            let mut word = self
                .state
                .fetch_add(STEP, Ordering::Relaxed)
                .wrapping_add(STEP);
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^= word >> 31;
            for (to, from) in chunk.iter_mut().zip(word.to_le_bytes()) {
                *to = from;
            }
        }
    }
}

/// A panic elsewhere leaves the plain values in there as good as they were.
fn lock(state: &Mutex<ManualState>) -> MutexGuard<'_, ManualState> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn sleepers_wake_when_their_moment_has_come_and_not_before() {
        let clock = ManualClock::new(Timestamp::UNIX_EPOCH);
        let mut sleep = clock.sleep_until(Duration::from_secs(5));
        assert!((&mut sleep).now_or_never().is_none());
        clock.advance(Duration::from_secs(4));
        assert!((&mut sleep).now_or_never().is_none());
        clock.advance(Duration::from_secs(1));
        assert!((&mut sleep).now_or_never().is_some());
        assert_eq!(clock.now(), Timestamp::from_millis(5000));
        drop(sleep);
        assert_eq!(clock.sleepers(), 0);
    }

    #[test]
    fn a_seed_names_one_sequence_of_bytes() {
        let bytes = |seed| {
            let mut out = [0; 37];
            SeededChance::new(seed).fill(&mut out);
            out
        };
        assert_eq!(bytes(1), bytes(1));
        assert_ne!(bytes(1), bytes(2));
    }
}
