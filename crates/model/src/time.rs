//! Points in time as the hub stores and shows them.

use std::fmt;
use std::time::Duration;

/// A point in wall-clock time: milliseconds since 1970-01-01T00:00:00Z, the resolution of AMQP
/// timestamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(i64);

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    pub const UNIX_EPOCH: Self = Self(0);

    /// 0001-01-01T00:00:00Z, which Azure's contracts use for "never".
    pub const NEVER: Self = Self(-62_135_596_800_000);

    /// From milliseconds since the Unix epoch.
    #[must_use]
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn as_millis(self) -> i64 {
        self.0
    }

    /// This time plus `span`, held at the largest representable value.
    #[must_use]
    pub fn saturating_add(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_add(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)),
        )
    }

    /// This time minus `span`, held at the smallest representable value.
    #[must_use]
    pub fn saturating_sub(self, span: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(i64::try_from(span.as_millis()).unwrap_or(i64::MAX)),
        )
    }

    /// The time from `earlier` to `self`; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Reads an ISO 8601 date and time with any number of fraction digits.
    ///
    /// A text without a zone is read as UTC (the Python device SDK sends such). Returns `None` for
    /// anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let with_zone = text.parse::<jiff::Timestamp>().ok();
        let instant = match with_zone {
            Some(instant) => instant,
            None => text
                .parse::<jiff::civil::DateTime>()
                .ok()?
                .to_zoned(jiff::tz::TimeZone::UTC)
                .ok()?
                .timestamp(),
        };
        Some(Self(instant.as_millisecond()))
    }
}

/// Where time comes from. Nothing below the binary asks the system itself, so that tests and
/// simulations own the time.
pub trait Clock: Send + Sync {
    /// Wall-clock time. May step in either direction.
    fn now(&self) -> Timestamp;

    /// Time since a fixed moment of this process. Never goes back.
    fn monotonic(&self) -> Duration;
}

/// ISO 8601 UTC with `Z` and, unless the second is whole, seven fraction digits, the form that
/// Azure's services print.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(instant) = jiff::Timestamp::from_millisecond(self.0) else {
            return write!(f, "{}ms", self.0);
        };
        let civil = jiff::tz::TimeZone::UTC.to_datetime(instant);
        write!(
            f,
            "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
            civil.year(),
            civil.month(),
            civil.day(),
            civil.hour(),
            civil.minute(),
            civil.second()
        )?;
        match self.0.rem_euclid(1000) {
            0 => write!(f, "Z"),
            millis => write!(f, ".{millis:03}0000Z"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_the_forms_that_sdks_write() {
        let check = |text: &str, millis: Option<i64>| {
            assert_eq!(
                Timestamp::parse(text).map(Timestamp::as_millis),
                millis,
                "{text}"
            );
        };
        check("2027-01-02T03:04:05", Some(1_798_859_045_000));
        check("2027-01-02T03:04:05.000Z", Some(1_798_859_045_000));
        check("2027-01-02T03:04:05.1230000Z", Some(1_798_859_045_123));
        check("2027-01-02T04:04:05+01:00", Some(1_798_859_045_000));
        check("tomorrow", None);
        check("", None);
    }

    #[test]
    fn times_are_printed_as_azure_prints_them() {
        assert_eq!(Timestamp::NEVER.to_string(), "0001-01-01T00:00:00Z");
        assert_eq!(
            Timestamp::from_millis(1_798_859_045_123).to_string(),
            "2027-01-02T03:04:05.1230000Z"
        );
        assert_eq!(
            Timestamp::from_millis(1_798_859_045_000).to_string(),
            "2027-01-02T03:04:05Z"
        );
    }
}
