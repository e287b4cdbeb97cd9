//! What became of a message, and what is written down about it.
//!
//! A message leaves its queue for a [`Cause`]. In the same durable step the store writes the records
//! that [`records`] makes: one for the feedback follower when the sender asked to be told, a dead
//! letter or a line of history for the operator. The forms are described in
//! `docs/formats/outcomes.md`; whoever reads them gets an error, never a panic, for other bytes.

mod form;

use std::fmt;
use std::sync::LazyLock;

use bytes::Bytes;
use fieldpost_model::{Ack, Timestamp};
use fieldpost_record::CommandView;
use fieldpost_store::queues::Lane;
use metrics::Counter;

use super::lanes::{DEAD_LETTERS, FEEDBACK, HISTORY};
use super::names::QueueKey;
use crate::settings::CloudToDeviceSettings;

use form::encode_dead_letter;
pub(super) use form::{FeedbackOwed, HistoryLine, Settled, Told, decode_dead_letter, settled_at};

/// Why a message left its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Its receiver completed it.
    Completed,
    /// Its receiver rejected it.
    Rejected,
    /// Its time to live ended.
    Expired,
    /// It was given back as often as the settings allow.
    DeliveryCountExceeded,
    /// An operator emptied the queue.
    Purged,
}

impl Cause {
    /// The name that feedback has for it (`statusCode` of Azure IoT Hub's feedback records).
    #[must_use]
    pub fn feedback_status(self) -> &'static str {
        match self {
            Self::Completed => "Success",
            Self::Rejected => "Rejected",
            Self::Expired => "Expired",
            Self::DeliveryCountExceeded => "DeliveryCountExceeded",
            Self::Purged => "Purged",
        }
    }

    /// A short name for labels and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Rejected => "rejected",
            Self::Expired => "expired",
            Self::DeliveryCountExceeded => "delivery_count_exceeded",
            Self::Purged => "purged",
        }
    }

    /// Whether a sender that asked for `ack` is told (Azure IoT Hub, "message feedback": positive
    /// asks for completed messages, negative for dead-lettered ones). A purge is bad news too.
    #[must_use]
    pub fn is_told(self, ack: Ack) -> bool {
        match (ack, self) {
            (Ack::None, _) => false,
            (Ack::Full, _) => true,
            (Ack::Positive, cause) => cause == Self::Completed,
            (Ack::Negative, cause) => cause != Self::Completed,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One delivery that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// When it began, which is when the message was locked.
    pub at: Timestamp,
    /// To whom.
    pub receiver: AttemptReceiver,
    /// How it ended.
    pub end: AttemptEnd,
}

/// Who got a message in one delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttemptReceiver {
    /// A connection of the device, or of a reader of feedback.
    Connection {
        /// Its session's number.
        epoch: u64,
    },
    /// A request that asked for one message.
    Request,
}

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttemptEnd {
    /// The receiver completed the message.
    Completed,
    /// The receiver rejected it.
    Rejected,
    /// The receiver gave it back.
    Abandoned,
    /// The lock expired.
    LockExpired,
    /// The connection ended first.
    Disconnected,
}

impl AttemptEnd {
    /// A short name for people and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Rejected => "rejected",
            Self::Abandoned => "abandoned",
            Self::LockExpired => "lock_expired",
            Self::Disconnected => "disconnected",
        }
    }
}

/// The deliveries of one message: how many there were, and the first and last few of them, so that
/// a message that goes to and fro for days takes no more memory than another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    count: u32,
    /// The first ones, then the last ones, in their order.
    kept: Vec<Attempt>,
}

/// How many of the first attempts are kept, and how many of the last.
const ATTEMPTS_KEPT: usize = 4;

impl Attempts {
    /// Adds a delivery that has ended.
    pub fn note(&mut self, attempt: Attempt) {
        self.count = self.count.saturating_add(1);
        if self.kept.len() >= 2 * ATTEMPTS_KEPT {
            self.kept.remove(ATTEMPTS_KEPT);
        }
        self.kept.push(attempt);
    }

    /// How many there were since the hub started.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Those that are kept, in their order: all of them when there were eight or fewer, else the
    /// first four and the last four.
    #[must_use]
    pub fn kept(&self) -> &[Attempt] {
        &self.kept
    }
}

/// Decides what is written down when a message leaves a queue, and makes it: records for lanes, to
/// be written in the step that settles the message.
///
/// Of a feedback message nothing is written. `message` is the stored message, `at` the time of the
/// outcome.
pub(super) fn records(
    settings: &CloudToDeviceSettings,
    key: &QueueKey,
    cause: Cause,
    at: Timestamp,
    message: &Bytes,
    attempts: &Attempts,
    delivery_count: u32,
) -> Vec<(Lane, Bytes)> {
    let mut records = Vec::new();
    if matches!(key, QueueKey::Feedback) {
        return records;
    }
    // A message that cannot be read any more still leaves its queue; nobody knows whether its
    // sender wants to be told.
    let view = CommandView::parse(message).ok();
    let ack = view.as_ref().map_or(Ack::None, CommandView::ack);
    let is_told = cause.is_told(ack);
    let settled = Settled {
        cause,
        at,
        is_told,
        delivery_count,
        attempts: attempts.clone(),
    };
    let message_id = view.as_ref().and_then(CommandView::message_id);
    if is_told {
        let owed = FeedbackOwed {
            cause,
            at,
            message_id,
        };
        records.push((FEEDBACK, owed.encode()));
    }
    match cause {
        Cause::Completed | Cause::Purged if settings.history.enabled => {
            let line = HistoryLine {
                settled,
                enqueued: view
                    .as_ref()
                    .map_or(Timestamp::NEVER, CommandView::enqueued),
                expires: view.as_ref().map_or(Timestamp::NEVER, CommandView::expires),
                size: u32::try_from(message.len()).unwrap_or(u32::MAX),
                sender: view.as_ref().map_or("", CommandView::sender).to_owned(),
                message_id: message_id.map(str::to_owned),
            };
            records.push((HISTORY, line.encode()));
        }
        Cause::Rejected | Cause::Expired | Cause::DeliveryCountExceeded
            if settings.dead_letters.keeps_any() =>
        {
            records.push((DEAD_LETTERS, encode_dead_letter(&settled, message)));
        }
        Cause::Completed
        | Cause::Rejected
        | Cause::Expired
        | Cause::DeliveryCountExceeded
        | Cause::Purged => {}
    }
    records
}

/// Counts a message that has left a queue. To be called when that is durable.
pub(super) fn count(key: &QueueKey, cause: Cause) {
    // What every message comes to in the end is not looked up by its labels each time.
    static COMPLETED: LazyLock<Counter> = LazyLock::new(|| settled("device", Cause::Completed));
    match (key, cause) {
        (QueueKey::Device { .. }, Cause::Completed) => COMPLETED.increment(1),
        (QueueKey::Device { .. }, _) => settled("device", cause).increment(1),
        (QueueKey::Feedback, _) => settled("feedback", cause).increment(1),
    }
}

fn settled(queue: &'static str, cause: Cause) -> Counter {
    metrics::counter!(
        "fieldpost_queue_messages_settled_total",
        "queue" => queue,
        "cause" => cause.as_str()
    )
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use fieldpost_model::{CloudMessage, Identity};
    use fieldpost_record::command::{self, CommandEnvelope};

    use super::*;
    use crate::settings::{DeadLetterSettings, HistorySettings};

    fn key() -> QueueKey {
        QueueKey::Device {
            identity: Identity::of_device("dev1".parse().unwrap()),
            generation: "638".into(),
        }
    }

    fn stored(ack: Ack, message_id: Option<&str>) -> Bytes {
        let mut out = BytesMut::new();
        let envelope = CommandEnvelope {
            enqueued: Timestamp::from_millis(1000),
            expires: Timestamp::from_millis(9000),
            sender: "service",
            ack,
        };
        let message = CloudMessage {
            message_id: message_id.map(Into::into),
            ack,
            body: b"on"[..].into(),
            ..CloudMessage::default()
        };
        command::encode(&mut out, &envelope, &message);
        out.freeze()
    }

    fn attempt(millis: i64) -> Attempt {
        Attempt {
            at: Timestamp::from_millis(millis),
            receiver: AttemptReceiver::Connection { epoch: 7 },
            end: AttemptEnd::Abandoned,
        }
    }

    const CAUSES: [Cause; 5] = [
        Cause::Completed,
        Cause::Rejected,
        Cause::Expired,
        Cause::DeliveryCountExceeded,
        Cause::Purged,
    ];

    /// The table of Azure IoT Hub's "message feedback": each line an `ack`, each column a cause in
    /// the order above.
    #[test]
    fn senders_are_told_what_they_asked_for() {
        let check = |ack: Ack, expected: [bool; 5]| {
            assert_eq!(CAUSES.map(|cause| cause.is_told(ack)), expected, "{ack:?}");
        };
        check(Ack::None, [false, false, false, false, false]);
        check(Ack::Positive, [true, false, false, false, false]);
        check(Ack::Negative, [false, true, true, true, true]);
        check(Ack::Full, [true, true, true, true, true]);
        let words = CAUSES.map(Cause::feedback_status);
        let expected = [
            "Success",
            "Rejected",
            "Expired",
            "DeliveryCountExceeded",
            "Purged",
        ];
        assert_eq!(words, expected);
    }

    #[test]
    fn each_outcome_goes_to_its_lanes() {
        let check = |change: &dyn Fn(&mut CloudToDeviceSettings),
                     key: QueueKey,
                     ack: Ack,
                     expected: [&[Lane]; 5]| {
            let mut settings = CloudToDeviceSettings::default();
            change(&mut settings);
            for (cause, expected) in CAUSES.into_iter().zip(expected) {
                let at = Timestamp::from_millis(2000);
                let (message, attempts) = (stored(ack, None), Attempts::default());
                let records = records(&settings, &key, cause, at, &message, &attempts, 0);
                let lanes: Vec<_> = records.into_iter().map(|(lane, _)| lane).collect();
                assert_eq!(lanes, expected, "{settings:?} {ack:?} {cause:?}");
            }
        };
        let (told, dead, done) = (FEEDBACK, DEAD_LETTERS, HISTORY);
        let full: [&[Lane]; 5] = [
            &[told, done],
            &[told, dead],
            &[told, dead],
            &[told, dead],
            &[told, done],
        ];
        check(&|_| {}, key(), Ack::Full, full);
        let none: [&[Lane]; 5] = [&[done], &[dead], &[dead], &[dead], &[done]];
        check(&|_| {}, key(), Ack::None, none);
        let positive: [&[Lane]; 5] = [&[told, done], &[dead], &[dead], &[dead], &[done]];
        check(&|_| {}, key(), Ack::Positive, positive);
        let without_history = |settings: &mut CloudToDeviceSettings| {
            settings.history = HistorySettings {
                enabled: false,
                ..HistorySettings::default()
            };
        };
        let negative: [&[Lane]; 5] = [&[], &[told, dead], &[told, dead], &[told, dead], &[told]];
        check(&without_history, key(), Ack::Negative, negative);
        let without_letters = |settings: &mut CloudToDeviceSettings| {
            settings.dead_letters = DeadLetterSettings {
                bytes_max: 0,
                ..DeadLetterSettings::default()
            };
        };
        let neither: [&[Lane]; 5] = [&[done], &[], &[], &[], &[done]];
        check(&without_letters, key(), Ack::None, neither);
        check(&|_| {}, QueueKey::Feedback, Ack::Full, [&[]; 5]);
    }

    #[test]
    fn a_message_that_cannot_be_read_leaves_its_queue_untold() {
        let settings = CloudToDeviceSettings::default();
        let (at, attempts) = (Timestamp::from_millis(5), Attempts::default());
        let damaged = Bytes::from_static(b"\xffnonsense");
        let lanes = |cause| -> Vec<Lane> {
            let records = records(&settings, &key(), cause, at, &damaged, &attempts, 0);
            records.into_iter().map(|(lane, _)| lane).collect()
        };
        assert_eq!(lanes(Cause::Expired), [DEAD_LETTERS]);
        assert_eq!(lanes(Cause::Completed), [HISTORY]);
    }

    #[test]
    fn records_hold_what_was_known() {
        let settings = CloudToDeviceSettings::default();
        let at = Timestamp::from_millis(2000);
        let message = stored(Ack::Full, Some("m1"));
        let mut attempts = Attempts::default();
        attempts.note(attempt(1500));
        let of = |cause: Cause, lane: Lane| -> Bytes {
            let records = records(&settings, &key(), cause, at, &message, &attempts, 3);
            records.into_iter().find(|(l, _)| *l == lane).unwrap().1
        };
        let owed = of(Cause::Rejected, FEEDBACK);
        let expected = FeedbackOwed {
            cause: Cause::Rejected,
            at,
            message_id: Some("m1"),
        };
        assert_eq!(FeedbackOwed::decode(&owed), Ok(expected));
        // The example of docs/formats/outcomes.md.
        assert_eq!(owed[..], *b"\x01\x02\xd0\x07\0\0\0\0\0\0\x02\0\0\0m1");

        let settled = Settled {
            cause: Cause::Rejected,
            at,
            is_told: true,
            delivery_count: 3,
            attempts: attempts.clone(),
        };
        let letter = of(Cause::Rejected, DEAD_LETTERS);
        assert_eq!(settled_at(&letter), Ok(at));
        let decoded = decode_dead_letter(&letter).unwrap();
        assert_eq!(decoded, (settled.clone(), message.clone()));

        let line = of(Cause::Completed, HISTORY);
        assert_eq!(settled_at(&line), Ok(at));
        let expected = HistoryLine {
            settled: Settled {
                cause: Cause::Completed,
                ..settled
            },
            enqueued: Timestamp::from_millis(1000),
            expires: Timestamp::from_millis(9000),
            size: u32::try_from(message.len()).unwrap(),
            sender: "service".to_owned(),
            message_id: Some("m1".to_owned()),
        };
        assert_eq!(HistoryLine::decode(&line), Ok(expected));
        // A line of history is small whatever the body was.
        assert!(line.len() < 100, "{}", line.len());
    }

    #[test]
    fn the_first_and_the_last_attempts_are_kept_and_all_are_counted() {
        let check = |count: i64, expected: &[i64]| {
            let mut attempts = Attempts::default();
            for n in 1..=count {
                attempts.note(attempt(n));
            }
            let kept: Vec<_> = attempts.kept().iter().map(|a| a.at.as_millis()).collect();
            assert_eq!(kept, expected);
            assert_eq!(i64::from(attempts.count()), count);
        };
        check(0, &[]);
        check(3, &[1, 2, 3]);
        check(8, &[1, 2, 3, 4, 5, 6, 7, 8]);
        check(9, &[1, 2, 3, 4, 6, 7, 8, 9]);
        check(1000, &[1, 2, 3, 4, 997, 998, 999, 1000]);
    }
}
