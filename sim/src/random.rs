//! Chance, all of it from one seed.

use std::ops::Range;
use std::time::Duration;

use fieldpost_store_embedded::files::sim::splitmix;

/// A repeatable sequence of choices.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A sequence of its own for one part, so that what another part chooses does not change it.
    pub(crate) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        splitmix(&mut self.0)
    }

    /// A number below `bound`, or 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// True so many times of 100.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// A span in a range, in microseconds.
    pub(crate) fn within(&mut self, range: &Range<Duration>) -> Duration {
        let width = range.end.saturating_sub(range.start).as_micros();
        let width = u64::try_from(width).unwrap_or(u64::MAX);
        range.start + Duration::from_micros(self.below(width))
    }

    /// A span around a mean: from none to twice as long.
    pub(crate) fn around(&mut self, mean: Duration) -> Duration {
        self.within(&(Duration::ZERO..mean * 2))
    }
}
