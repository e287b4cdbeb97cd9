//! How fast files are filled ahead beside a log that is being written.
//!
//! Filling is worth its while only where it is ahead of the log, and every sync of it stands in the
//! way of the committer's. So it follows the log: at full speed while nothing is written, at a
//! multiple of the log's rate while little is, and not at all in a burst, when a group is large
//! enough for the first write to a reserved block not to matter.

use std::time::Duration;

use super::segment::FILL_BYTES;

/// How often the log's rate is looked at.
pub(super) const PACE_PERIOD: Duration = Duration::from_millis(50);

/// Above this many bytes of log a second nothing is filled.
const LOG_RATE_MAX: u64 = 32 * 1024 * 1024;

/// Bytes filled for each byte of the log: the next file is up to twice as large as the one being
/// written, of which a quarter is full when the next one is begun.
const FILL_PER_LOG: u64 = 3;

/// What may be filled at the moment.
#[derive(Default)]
pub(super) struct Pace {
    looked: Option<Duration>,
    /// What the log had written when it was looked at.
    written: u64,
    /// Bytes that may be filled until the next look; no end of them while the log is still.
    left: Option<u64>,
}

impl Pace {
    /// Whether one step of filling may be done at this moment, when the log has written so many
    /// bytes since it was opened. A step that is allowed is counted as done.
    ///
    /// A log that shows nothing new is still only if nobody waits for it: otherwise the disk is slow,
    /// and filling would make it slower.
    pub(super) fn allows(&mut self, now: Duration, written: u64, is_awaited: bool) -> bool {
        let elapsed = self.looked.map(|looked| now.saturating_sub(looked));
        if elapsed.is_none_or(|elapsed| elapsed >= PACE_PERIOD) {
            let new = written.saturating_sub(self.written);
            self.left = elapsed.map_or(Some(0), |elapsed| allowance(new, elapsed));
            self.looked = Some(now);
            self.written = written;
        }
        let Some(left) = &mut self.left else {
            return !is_awaited;
        };
        match left.checked_sub(FILL_BYTES) {
            Some(rest) => {
                *left = rest;
                true
            }
            None => false,
        }
    }
}

/// What may be filled in the next period after so many bytes in this time; `None` for any amount.
fn allowance(new: u64, elapsed: Duration) -> Option<u64> {
    if new == 0 {
        return None;
    }
    let micros = u64::try_from(elapsed.as_micros())
        .unwrap_or(u64::MAX)
        .max(1);
    let rate = new.saturating_mul(1_000_000) / micros;
    if rate > LOG_RATE_MAX {
        return Some(0);
    }
    let period = u64::try_from(PACE_PERIOD.as_micros()).unwrap_or(u64::MAX);
    Some((rate.saturating_mul(FILL_PER_LOG).saturating_mul(period) / 1_000_000).max(FILL_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps that are allowed in one period after the log wrote at this rate for as long.
    fn steps(bytes_a_second: u64) -> u64 {
        let mut pace = Pace::default();
        let start = Duration::from_secs(7);
        assert!(!pace.allows(start, 1 << 30, false), "nothing is known yet");
        let written = (1 << 30) + bytes_a_second / 20;
        let now = start + PACE_PERIOD;
        (0..100_000)
            .take_while(|_| pace.allows(now, written, bytes_a_second > 0))
            .count() as u64
    }

    #[test]
    fn a_still_log_has_its_files_filled_at_full_speed() {
        assert_eq!(steps(0), 100_000);
    }

    #[test]
    fn a_slow_log_has_them_filled_a_little_faster_than_it_writes() {
        assert_eq!(steps(1024), 1);
        assert_eq!(steps(20 << 20), 3 * (20 << 20) / 20 / FILL_BYTES);
    }

    #[test]
    fn a_burst_is_left_alone_until_it_is_over() {
        assert_eq!(steps(100 << 20), 0);
        let mut pace = Pace::default();
        let second = Duration::from_secs(1);
        pace.allows(second, 0, false);
        assert!(!pace.allows(2 * second, 1 << 30, false));
        assert!(
            !pace.allows(2 * second + PACE_PERIOD / 2, 1 << 30, false),
            "too early for a look"
        );
        assert!(pace.allows(3 * second, 1 << 30, false));
    }

    #[test]
    fn a_sync_that_takes_long_is_no_silence() {
        let mut pace = Pace::default();
        let second = Duration::from_secs(1);
        pace.allows(second, 0, true);
        assert!(!pace.allows(2 * second, 0, true));
        // It is over, and nobody has come since.
        assert!(pace.allows(3 * second, 0, false));
        assert!(!pace.allows(3 * second, 0, true), "somebody has");
    }

    #[test]
    fn what_a_long_silence_saved_up_is_measured_over_all_of_it() {
        let mut pace = Pace::default();
        let second = Duration::from_secs(1);
        pace.allows(second, 0, false);
        assert!(
            pace.allows(2 * second, 16 << 20, true),
            "16 MB in a second are no burst"
        );
    }
}
