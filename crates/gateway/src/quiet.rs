//! Keeping repeated log lines few.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Time between two lines of one kind.
const INTERVAL_MS: u64 = 10_000;

/// Lets one line of a kind through every ten seconds and counts the others.
#[derive(Debug, Default)]
pub(crate) struct RepeatLimit {
    /// When the next line may come, in monotonic milliseconds.
    next_ms: AtomicU64,
    left_out: AtomicU64,
}

impl RepeatLimit {
    pub(crate) const fn new() -> Self {
        Self {
            next_ms: AtomicU64::new(0),
            left_out: AtomicU64::new(0),
        }
    }

    /// `Some` when a line may be written, with how many were left out since the last one.
    pub(crate) fn pass(&self, now: Duration) -> Option<u64> {
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let next_ms = self.next_ms.load(Ordering::Relaxed);
        let due = now_ms >= next_ms
            && self
                .next_ms
                .compare_exchange(
                    next_ms,
                    now_ms.saturating_add(INTERVAL_MS),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok();
        if due {
            Some(self.left_out.swap(0, Ordering::Relaxed))
        } else {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_ten_seconds_passes_and_says_how_many_did_not() {
        let limit = RepeatLimit::new();
        let at = Duration::from_secs;
        assert_eq!(limit.pass(at(1)), Some(0));
        assert_eq!(limit.pass(at(2)), None);
        assert_eq!(limit.pass(at(10)), None);
        assert_eq!(limit.pass(at(11)), Some(2));
        assert_eq!(limit.pass(at(12)), None);
    }
}
