//! What is to become of each message. It follows from the message's number, so that the auditor knows
//! it of a message too whose acceptance it never heard of.

use std::time::Duration;

use fieldpost_client::service::FeedbackStatus;
use fieldpost_model::Ack;

use crate::fleet::{Credential, Member, Protocol};

/// Devices that take messages and do with each what it says, by protocol.
const OVER_MQTT: u64 = 10;
const OVER_AMQP: u64 = 6;
const OVER_HTTPS: u64 = 4;

/// All of them.
const TAKERS: u64 = OVER_MQTT + OVER_AMQP + OVER_HTTPS;

/// One of those over HTTPS, which speaks through another library.
pub(super) const POLLER: &str = "poller";

/// The device that is always away, and whose queue is purged again and again.
pub(super) const PURGED: &str = "purged";

/// Devices that are always away, and whose messages expire.
const AWAY: u64 = 2;

/// Times to live of messages to devices that are away: some end while the hub runs, and some while it
/// is down.
const AWAY_MILLIS: u64 = 500;

/// Times to live of messages that may expire before they reach their device or after.
const HURRIED_MILLIS_MAX: u64 = 40;

/// After so many deliveries that were abandoned, a message is given up; set at the hub.
pub(super) const DELIVERIES_MAX: u32 = 4;

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Complete,
    Reject,
    Abandon,
    Expire,
    Purge,
    /// Its device completes it, if it comes in time.
    Hurry,
}

/// A message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) device: String,
    pub(super) fate: Fate,
    pub(super) ack: Ack,
    /// From when it is sent.
    pub(super) ttl: Option<Duration>,
}

impl Plan {
    pub(super) fn of(number: u64) -> Self {
        // Of 32 messages, 24 go to devices that work them off, and 18 are completed.
        let fate = match number % 32 {
            0 | 8 => Fate::Expire,
            16 => Fate::Purge,
            4 | 20 => Fate::Hurry,
            12 | 24 => Fate::Reject,
            28 => Fate::Abandon,
            _ => Fate::Complete,
        };
        // Counts turns of the pattern above, so that each fate meets each device and each ack.
        let turn = number / 32;
        let device = match fate {
            Fate::Expire => format!("away-{}", turn % AWAY),
            Fate::Purge => PURGED.to_owned(),
            Fate::Complete | Fate::Reject | Fate::Abandon | Fate::Hurry => {
                taker((turn + number) % TAKERS).id
            }
        };
        let ack = match turn / 3 % 4 {
            // Which of two ways such a message went is known from its feedback only.
            _ if fate == Fate::Hurry => Ack::Full,
            0 => Ack::None,
            1 => Ack::Positive,
            2 => Ack::Negative,
            _ => Ack::Full,
        };
        let ttl = match fate {
            Fate::Expire => Some(AWAY_MILLIS),
            Fate::Hurry => Some(1 + turn % HURRIED_MILLIS_MAX),
            Fate::Complete | Fate::Reject | Fate::Abandon | Fate::Purge => None,
        };
        Self {
            device,
            fate,
            ack,
            ttl: ttl.map(Duration::from_millis),
        }
    }

    /// The body: the number, and what the device is to do.
    pub(super) fn body(&self, number: u64) -> String {
        let what = match self.fate {
            Fate::Reject => "reject",
            Fate::Abandon => "abandon",
            Fate::Complete | Fate::Hurry => "complete",
            Fate::Expire | Fate::Purge => "nobody",
        };
        format!("{number} {what}")
    }

    /// Whether its device gets it for certain.
    pub(super) fn must_come(&self) -> bool {
        matches!(self.fate, Fate::Complete | Fate::Reject | Fate::Abandon)
    }

    /// Whether a record is owed at all.
    pub(super) fn is_told(&self) -> bool {
        self.statuses()
            .iter()
            .any(|status| self.may_be_told(*status))
    }

    /// Whether the sender may hear this of it.
    pub(super) fn may_be_told(&self, status: FeedbackStatus) -> bool {
        let asked = match self.ack {
            Ack::None => false,
            Ack::Positive => status == FeedbackStatus::Success,
            Ack::Negative => status != FeedbackStatus::Success,
            Ack::Full => true,
        };
        asked && self.statuses().contains(&status)
    }

    fn statuses(&self) -> &'static [FeedbackStatus] {
        match self.fate {
            Fate::Complete => &[FeedbackStatus::Success],
            Fate::Reject => &[FeedbackStatus::Rejected],
            Fate::Abandon => &[FeedbackStatus::DeliveryCountExceeded],
            Fate::Expire => &[FeedbackStatus::Expired],
            Fate::Purge => &[FeedbackStatus::Purged],
            Fate::Hurry => &[FeedbackStatus::Success, FeedbackStatus::Expired],
        }
    }
}

/// A device that takes messages, by its place among them.
fn taker(place: u64) -> Member {
    let (protocol, name, place) = match place {
        place if place < OVER_MQTT => (Protocol::Mqtt, "mqtt", place),
        place if place < OVER_MQTT + OVER_AMQP => (Protocol::Amqp, "amqp", place - OVER_MQTT),
        place => (Protocol::Https, "https", place - OVER_MQTT - OVER_AMQP),
    };
    let id = match (protocol, place) {
        (Protocol::Https, 0) => POLLER.to_owned(),
        _ => format!("{name}-{place}"),
    };
    Member {
        id,
        protocol,
        credential: Credential::of(place),
    }
}

/// All devices that take messages.
pub(super) fn takers() -> impl Iterator<Item = Member> {
    (0..TAKERS).map(taker)
}

/// The devices that are never there.
pub(super) fn absent() -> impl Iterator<Item = Member> {
    let away = (0..AWAY).map(|place| format!("away-{place}"));
    away.chain([PURGED.to_owned()]).map(|id| Member {
        id,
        protocol: Protocol::Mqtt,
        credential: Credential::Key,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_fate_meets_every_ack_and_every_device_that_can_bring_it_about() {
        let mut met = HashSet::new();
        let mut causes = HashSet::new();
        for plan in (0..32 * TAKERS * 12).map(Plan::of) {
            met.insert((format!("{:?}", plan.fate), format!("{:?}", plan.ack)));
            causes.insert((format!("{:?}", plan.fate), plan.device));
        }
        assert_eq!(met.len(), 5 * 4 + 1);
        assert_eq!(causes.len(), 4 * 20 + 2 + 1);
    }

    #[test]
    fn messages_are_taken_over_every_protocol_with_every_credential() {
        let kinds: HashSet<_> = takers()
            .map(|taker| format!("{:?} {:?}", taker.protocol, taker.credential))
            .collect();
        assert_eq!(kinds.len(), 9);
        let ids: HashSet<_> = takers().chain(absent()).map(|device| device.id).collect();
        assert_eq!(ids.len(), 23);
    }

    #[test]
    fn who_is_told_what() {
        let plan = |fate, ack| Plan {
            device: String::new(),
            fate,
            ack,
            ttl: None,
        };
        use FeedbackStatus::{Expired, Rejected, Success};
        assert!(plan(Fate::Complete, Ack::Positive).may_be_told(Success));
        assert!(!plan(Fate::Complete, Ack::Negative).is_told());
        assert!(plan(Fate::Reject, Ack::Negative).may_be_told(Rejected));
        assert!(!plan(Fate::Reject, Ack::Positive).is_told());
        assert!(!plan(Fate::Reject, Ack::Full).may_be_told(Success));
        assert!(!plan(Fate::Reject, Ack::Full).may_be_told(Expired));
        assert!(plan(Fate::Hurry, Ack::Full).may_be_told(Expired));
        assert!(!plan(Fate::Expire, Ack::None).is_told());
    }
}
