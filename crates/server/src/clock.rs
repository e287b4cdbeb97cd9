//! The system's clock and source of chance.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fieldpost_hub::clock::{Chance, Sleep, Timer};
use fieldpost_model::{Clock, Timestamp};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::watch;

/// The system's clock, with timers of the async runtime.
///
/// In test mode it can be moved ahead, which wakes whoever's moment has come.
#[derive(Debug)]
pub(crate) struct SystemClock {
    started: Instant,
    /// How far the clock was moved; `None` outside test mode, where it cannot be.
    ahead: Option<watch::Sender<Duration>>,
}

/// The system's source of random bytes.
#[derive(Debug)]
pub(crate) struct SystemChance(SystemRandom);

impl Default for SystemChance {
    fn default() -> Self {
        Self(SystemRandom::new())
    }
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    pub(crate) fn new() -> Self {
        Self {
            started: Instant::now(),
            ahead: None,
        }
    }

    /// A clock that can be moved.
    pub(crate) fn movable() -> Self {
        Self {
            started: Instant::now(),
            ahead: Some(watch::Sender::new(Duration::ZERO)),
        }
    }

    /// Moves both times on. Answers whether this clock can be moved at all.
    pub(crate) fn advance(&self, span: Duration) -> bool {
        let Some(ahead) = &self.ahead else {
            return false;
        };
        ahead.send_modify(|ahead| *ahead = ahead.saturating_add(span));
        true
    }

    fn ahead(&self) -> Duration {
        self.ahead
            .as_ref()
            .map_or(Duration::ZERO, |ahead| *ahead.borrow())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp::UNIX_EPOCH
            .saturating_add(since)
            .saturating_add(self.ahead())
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed().saturating_add(self.ahead())
    }
}

impl Timer for SystemClock {
    fn sleep_until(&self, at: Duration) -> Sleep {
        let started = self.started;
        let due_with = move |ahead: Duration| started.checked_add(at.saturating_sub(ahead));
        let Some(ahead) = &self.ahead else {
            return match due_with(Duration::ZERO) {
                Some(due) => Box::pin(tokio::time::sleep_until(due.into())),
                None => Box::pin(std::future::pending()),
            };
        };
        let mut ahead = ahead.subscribe();
        Box::pin(async move {
            loop {
                let due = due_with(*ahead.borrow_and_update());
                tokio::select! {
                    () = sleep_until(due) => return,
                    moved = ahead.changed() => {
                        if moved.is_err() {
                            // The clock is gone and moves no more.
                            return sleep_until(due).await;
                        }
                    }
                }
            }
        })
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

impl Chance for SystemChance {
    fn fill(&self, out: &mut [u8]) {
        self.0
            .fill(out)
            .expect("the system's random source works: TLS could not start without it");
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn moving_the_clock_wakes_sleepers_whose_moment_has_come() {
        let clock = SystemClock::movable();
        let before = clock.now();
        let mut soon = clock.sleep_until(clock.monotonic() + HOUR);
        let mut later = clock.sleep_until(clock.monotonic() + 3 * HOUR);
        assert!((&mut soon).now_or_never().is_none());
        assert!(clock.advance(2 * HOUR));
        soon.await;
        assert!((&mut later).now_or_never().is_none());
        assert!(clock.now().since(before) >= 2 * HOUR);
        assert!(clock.monotonic() >= 2 * HOUR);
        clock.sleep_until(Duration::ZERO).await;
    }

    #[tokio::test]
    async fn outside_test_mode_the_clock_stands_firm() {
        let clock = SystemClock::new();
        assert!(!clock.advance(HOUR));
        assert!(clock.monotonic() < HOUR);
        clock.sleep_until(clock.monotonic()).await;
        assert!(clock.sleep_until(Duration::MAX).now_or_never().is_none());
    }

    #[test]
    fn chance_does_not_repeat() {
        let mut first = [0; 32];
        let mut second = [0; 32];
        SystemChance::default().fill(&mut first);
        SystemChance::default().fill(&mut second);
        assert_ne!(first, second);
    }
}
