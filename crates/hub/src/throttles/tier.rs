//! The tiers of Azure IoT Hub: how many operations each lets through, and how many messages a day.
//!
//! The numbers are those of Azure's page "IoT Hub quotas and throttling".

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// A tier. A hub that has none is limited by nothing but its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Tier {
    /// Free, of one unit.
    F1,
    /// Standard, of 1 to 200 units.
    S1,
    /// Standard, of 1 to 200 units.
    S2,
    /// Standard, of 1 to 10 units.
    S3,
}

/// What is counted by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A request to the identity registry.
    Identity,
    /// A device that connects.
    Connection,
    /// A message from a device, or a batch that it sent as one.
    DeviceToCloud,
    /// A message to a device, when it is sent.
    CloudToDevice,
    /// A request of a device over HTTPS for the next message to it.
    HttpReceive,
}

/// So many operations in such a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) limit: u64,
    pub(super) period: Duration,
}

/// A tier, and how many units of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Profile {
    pub(super) tier: Tier,
    pub(super) units: u32,
}

impl Tier {
    /// The most units of it that a hub can have.
    #[must_use]
    pub const fn units_max(self) -> u32 {
        match self {
            Self::F1 => 1,
            Self::S1 | Self::S2 => 200,
            Self::S3 => 10,
        }
    }

    /// The bytes that count as one message against the daily quota.
    pub(super) const fn meter_bytes(self) -> usize {
        match self {
            Self::F1 => 512,
            Self::S1 | Self::S2 | Self::S3 => 4096,
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl Operation {
    /// The metric label.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Connection => "connection",
            Self::DeviceToCloud => "device_to_cloud",
            Self::CloudToDevice => "cloud_to_device",
            Self::HttpReceive => "http_receive",
        }
    }
}

impl Profile {
    /// How often an operation may be done.
    pub(super) fn rate(self, operation: Operation) -> Rate {
        let units = u64::from(self.units);
        let (limit, period) = match (operation, self.tier) {
            (Operation::Identity | Operation::CloudToDevice, Tier::S3) => (5000 * units, MINUTE),
            (Operation::Identity | Operation::CloudToDevice, _) => (100 * units, MINUTE),
            (Operation::HttpReceive, Tier::S3) => (50_000 * units, MINUTE),
            (Operation::HttpReceive, _) => (1000 * units, MINUTE),
            (Operation::Connection | Operation::DeviceToCloud, tier) => match tier {
                Tier::F1 | Tier::S1 => ((12 * units).max(100), SECOND),
                Tier::S2 => (120 * units, SECOND),
                Tier::S3 => (6000 * units, SECOND),
            },
        };
        Rate { limit, period }
    }

    /// The messages of a day.
    pub(super) fn daily(self) -> u64 {
        let unit = match self.tier {
            Tier::F1 => 8000,
            Tier::S1 => 400_000,
            Tier::S2 => 6_000_000,
            Tier::S3 => 300_000_000,
        };
        unit * u64::from(self.units)
    }

    /// How many messages one of `bytes` bytes counts for.
    pub(super) fn metered(self, bytes: usize) -> u64 {
        let messages = bytes.div_ceil(self.tier.meter_bytes()).max(1);
        u64::try_from(messages).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limits_are_the_documented_ones() {
        let check = |tier, units, operation, limit, period| {
            let rate = Profile { tier, units }.rate(operation);
            assert_eq!(
                rate,
                Rate { limit, period },
                "{tier:?} {units} {operation:?}"
            );
        };
        use Operation as O;
        for tier in [Tier::F1, Tier::S1, Tier::S2] {
            check(tier, 1, O::Identity, 100, MINUTE);
            check(tier, 1, O::CloudToDevice, 100, MINUTE);
            check(tier, 1, O::HttpReceive, 1000, MINUTE);
        }
        check(Tier::S2, 7, O::Identity, 700, MINUTE);
        check(Tier::S3, 2, O::CloudToDevice, 10_000, MINUTE);
        check(Tier::S3, 2, O::HttpReceive, 100_000, MINUTE);
        for operation in [O::Connection, O::DeviceToCloud] {
            check(Tier::F1, 1, operation, 100, SECOND);
            check(Tier::S1, 1, operation, 100, SECOND);
            check(Tier::S1, 8, operation, 100, SECOND);
            check(Tier::S1, 9, operation, 108, SECOND);
            check(Tier::S2, 1, operation, 120, SECOND);
            check(Tier::S3, 10, operation, 60_000, SECOND);
        }
    }

    #[test]
    fn messages_are_metered_in_the_blocks_of_their_tier() {
        let (free, paid) = (
            Profile {
                tier: Tier::F1,
                units: 1,
            },
            Profile {
                tier: Tier::S1,
                units: 2,
            },
        );
        let metered = |bytes| (free.metered(bytes), paid.metered(bytes));
        assert_eq!(metered(0), (1, 1));
        assert_eq!(metered(512), (1, 1));
        assert_eq!(metered(513), (2, 1));
        assert_eq!(metered(4096), (8, 1));
        assert_eq!(metered(4097), (9, 2));
        assert_eq!(metered(256 * 1024), (512, 64));
        assert_eq!((free.daily(), paid.daily()), (8000, 800_000));
    }
}
