//! What an operator may set for cloud-to-device messages.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use fieldpost_model::limits::{
    C2D_LOCK, C2D_QUEUE_DEPTH_DEFAULT, DELIVERY_COUNT_RANGE, LOCK_RANGE, TTL_RANGE,
};
use serde::{Deserialize, Serialize};

use super::InvalidSettings;

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Settings of cloud-to-device messages and of the feedback about them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloudToDeviceSettings {
    /// How many counted deliveries a message gets before it is dead-lettered; 1 to 100.
    pub max_delivery_count: u32,
    /// How long a message lives whose sender set no expiry; 1 minute to 2 days.
    pub default_ttl: Duration,
    /// The queue of feedback messages.
    pub feedback: FeedbackSettings,
    /// Which deliveries count.
    pub delivery_count_mode: DeliveryCountMode,
    /// The most messages in the queue of one device, locked ones included; 1 to 10,000.
    pub queue_depth_max: u64,
    /// How long dead-lettered messages are kept.
    pub dead_letters: DeadLetterSettings,
    /// How long it is remembered what became of completed messages.
    pub history: HistorySettings,
}

/// Settings of the queue of feedback messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedbackSettings {
    /// How long a receiver holds a feedback message; 5 seconds to 5 minutes.
    pub lock: Duration,
    /// How long a feedback message waits for a receiver; 1 minute to 2 days.
    pub ttl: Duration,
    /// How many counted deliveries a feedback message gets before it is dropped; 1 to 100.
    pub max_delivery_count: u32,
}

/// Which deliveries raise a message's delivery count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeliveryCountMode {
    /// Those that the receiver abandons.
    #[default]
    Abandon,
    /// Those that are abandoned or whose lock expires.
    EveryLock,
}

/// Bounds of the dead letters. With either at zero, none are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadLetterSettings {
    /// How long one is kept; at most 365 days.
    pub keep: Duration,
    /// Bytes that all of them may take; the oldest go first.
    pub bytes_max: u64,
}

impl DeadLetterSettings {
    /// Whether dead letters are kept at all.
    #[must_use]
    pub fn keeps_any(&self) -> bool {
        !self.keep.is_zero() && self.bytes_max > 0
    }
}

/// Bounds of the history of completed messages; the oldest go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistorySettings {
    /// Whether there is one. When it is turned off, what there is goes.
    pub enabled: bool,
    /// How many messages are remembered; 1 to 100,000,000.
    pub messages_max: u64,
    /// Bytes that their records may take; at least 1.
    pub bytes_max: u64,
}

impl Default for CloudToDeviceSettings {
    fn default() -> Self {
        Self {
            max_delivery_count: 10,
            default_ttl: HOUR,
            feedback: FeedbackSettings::default(),
            delivery_count_mode: DeliveryCountMode::default(),
            queue_depth_max: C2D_QUEUE_DEPTH_DEFAULT,
            dead_letters: DeadLetterSettings::default(),
            history: HistorySettings::default(),
        }
    }
}

impl Default for FeedbackSettings {
    fn default() -> Self {
        Self {
            lock: C2D_LOCK,
            ttl: HOUR,
            max_delivery_count: 10,
        }
    }
}

impl Default for DeadLetterSettings {
    fn default() -> Self {
        Self {
            keep: 7 * DAY,
            bytes_max: 1 << 30,
        }
    }
}

impl Default for HistorySettings {
    fn default() -> Self {
        Self {
            enabled: true,
            messages_max: 1_000_000,
            bytes_max: 256 << 20,
        }
    }
}

/// A setting of cloud-to-device messages, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloudToDeviceSetting {
    /// [`CloudToDeviceSettings::max_delivery_count`]
    MaxDeliveryCount,
    /// [`CloudToDeviceSettings::default_ttl`], in milliseconds
    DefaultTtl,
    /// [`FeedbackSettings::lock`], in milliseconds
    FeedbackLock,
    /// [`FeedbackSettings::ttl`], in milliseconds
    FeedbackTtl,
    /// [`FeedbackSettings::max_delivery_count`]
    FeedbackMaxDeliveryCount,
    /// [`CloudToDeviceSettings::queue_depth_max`]
    QueueDepthMax,
    /// [`DeadLetterSettings::keep`], in milliseconds
    DeadLettersKeep,
    /// [`HistorySettings::messages_max`]
    HistoryMessagesMax,
    /// [`HistorySettings::bytes_max`]
    HistoryBytesMax,
}

impl CloudToDeviceSetting {
    /// What may be given.
    #[must_use]
    pub fn range(self) -> RangeInclusive<u64> {
        let spans = |range: RangeInclusive<Duration>| millis(*range.start())..=millis(*range.end());
        match self {
            Self::MaxDeliveryCount | Self::FeedbackMaxDeliveryCount => {
                (*DELIVERY_COUNT_RANGE.start()).into()..=(*DELIVERY_COUNT_RANGE.end()).into()
            }
            Self::DefaultTtl | Self::FeedbackTtl => spans(TTL_RANGE),
            Self::FeedbackLock => spans(LOCK_RANGE),
            Self::QueueDepthMax => 1..=10_000,
            Self::DeadLettersKeep => spans(Duration::ZERO..=365 * DAY),
            Self::HistoryMessagesMax => 1..=100_000_000,
            Self::HistoryBytesMax => 1..=u64::MAX,
        }
    }

    fn is_span(self) -> bool {
        match self {
            Self::DefaultTtl | Self::FeedbackLock | Self::FeedbackTtl | Self::DeadLettersKeep => {
                true
            }
            Self::MaxDeliveryCount
            | Self::FeedbackMaxDeliveryCount
            | Self::QueueDepthMax
            | Self::HistoryMessagesMax
            | Self::HistoryBytesMax => false,
        }
    }
}

impl fmt::Display for CloudToDeviceSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MaxDeliveryCount => "the maximum delivery count of cloud-to-device messages",
            Self::DefaultTtl => "the default time to live of cloud-to-device messages",
            Self::FeedbackLock => "the lock duration of feedback messages",
            Self::FeedbackTtl => "the time to live of feedback messages",
            Self::FeedbackMaxDeliveryCount => "the maximum delivery count of feedback messages",
            Self::QueueDepthMax => "the maximum depth of a device's queue",
            Self::DeadLettersKeep => "the retention of dead letters",
            Self::HistoryMessagesMax => "the number of messages in the history",
            Self::HistoryBytesMax => "the bytes of the history",
        })
    }
}

/// A value out of its range, as a sentence.
pub(super) fn describe(
    f: &mut fmt::Formatter<'_>,
    setting: CloudToDeviceSetting,
    given: u64,
) -> fmt::Result {
    let range = setting.range();
    let value = |value: u64| Value {
        value,
        is_span: setting.is_span(),
    };
    write!(f, "{setting} is ")?;
    match *range.end() {
        u64::MAX => write!(f, "at least {}", value(*range.start()))?,
        end => write!(f, "{} to {}", value(*range.start()), value(end))?,
    }
    write!(f, ", not {}", value(given))
}

struct Value {
    value: u64,
    is_span: bool,
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_span, self.value % 1000) {
            (false, _) => write!(f, "{}", self.value),
            (true, 0) => write!(f, "{} s", self.value / 1000),
            (true, _) => write!(f, "{} ms", self.value),
        }
    }
}

/// Checks the settings and brings them into their normal form: spans in whole milliseconds.
pub(super) fn validated(
    mut settings: CloudToDeviceSettings,
) -> Result<CloudToDeviceSettings, InvalidSettings> {
    use CloudToDeviceSetting as S;
    for (setting, span) in [
        (S::DefaultTtl, &mut settings.default_ttl),
        (S::FeedbackLock, &mut settings.feedback.lock),
        (S::FeedbackTtl, &mut settings.feedback.ttl),
        (S::DeadLettersKeep, &mut settings.dead_letters.keep),
    ] {
        let millis = millis(*span);
        check(setting, millis)?;
        *span = Duration::from_millis(millis);
    }
    check(S::MaxDeliveryCount, settings.max_delivery_count.into())?;
    check(
        S::FeedbackMaxDeliveryCount,
        settings.feedback.max_delivery_count.into(),
    )?;
    check(S::QueueDepthMax, settings.queue_depth_max)?;
    check(S::HistoryMessagesMax, settings.history.messages_max)?;
    check(S::HistoryBytesMax, settings.history.bytes_max)?;
    Ok(settings)
}

fn check(setting: CloudToDeviceSetting, given: u64) -> Result<(), InvalidSettings> {
    if setting.range().contains(&given) {
        Ok(())
    } else {
        Err(InvalidSettings::CloudToDevice { setting, given })
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// The stored form. Every member may be absent: documents of before it existed have none.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Stored {
    max_delivery_count: u32,
    default_ttl_ms: u64,
    feedback: StoredFeedback,
    delivery_count_mode: StoredMode,
    queue_depth_max: u64,
    dead_letters: StoredDeadLetters,
    history: StoredHistory,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StoredFeedback {
    lock_ms: u64,
    ttl_ms: u64,
    max_delivery_count: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum StoredMode {
    Abandon,
    EveryLock,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StoredDeadLetters {
    keep_ms: u64,
    bytes_max: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct StoredHistory {
    enabled: bool,
    messages_max: u64,
    bytes_max: u64,
}

impl From<&CloudToDeviceSettings> for Stored {
    fn from(settings: &CloudToDeviceSettings) -> Self {
        Self {
            max_delivery_count: settings.max_delivery_count,
            default_ttl_ms: millis(settings.default_ttl),
            feedback: StoredFeedback {
                lock_ms: millis(settings.feedback.lock),
                ttl_ms: millis(settings.feedback.ttl),
                max_delivery_count: settings.feedback.max_delivery_count,
            },
            delivery_count_mode: match settings.delivery_count_mode {
                DeliveryCountMode::Abandon => StoredMode::Abandon,
                DeliveryCountMode::EveryLock => StoredMode::EveryLock,
            },
            queue_depth_max: settings.queue_depth_max,
            dead_letters: StoredDeadLetters {
                keep_ms: millis(settings.dead_letters.keep),
                bytes_max: settings.dead_letters.bytes_max,
            },
            history: StoredHistory {
                enabled: settings.history.enabled,
                messages_max: settings.history.messages_max,
                bytes_max: settings.history.bytes_max,
            },
        }
    }
}

impl From<Stored> for CloudToDeviceSettings {
    fn from(stored: Stored) -> Self {
        Self {
            max_delivery_count: stored.max_delivery_count,
            default_ttl: Duration::from_millis(stored.default_ttl_ms),
            feedback: FeedbackSettings {
                lock: Duration::from_millis(stored.feedback.lock_ms),
                ttl: Duration::from_millis(stored.feedback.ttl_ms),
                max_delivery_count: stored.feedback.max_delivery_count,
            },
            delivery_count_mode: match stored.delivery_count_mode {
                StoredMode::Abandon => DeliveryCountMode::Abandon,
                StoredMode::EveryLock => DeliveryCountMode::EveryLock,
            },
            queue_depth_max: stored.queue_depth_max,
            dead_letters: DeadLetterSettings {
                keep: Duration::from_millis(stored.dead_letters.keep_ms),
                bytes_max: stored.dead_letters.bytes_max,
            },
            history: HistorySettings {
                enabled: stored.history.enabled,
                messages_max: stored.history.messages_max,
                bytes_max: stored.history.bytes_max,
            },
        }
    }
}

impl Default for Stored {
    fn default() -> Self {
        Self::from(&CloudToDeviceSettings::default())
    }
}

impl Default for StoredFeedback {
    fn default() -> Self {
        Stored::default().feedback
    }
}

impl Default for StoredDeadLetters {
    fn default() -> Self {
        Stored::default().dead_letters
    }
}

impl Default for StoredHistory {
    fn default() -> Self {
        Stored::default().history
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_has_its_range_and_says_so() {
        use CloudToDeviceSetting as S;
        let check = |change: &dyn Fn(&mut CloudToDeviceSettings), expected: Option<(S, &str)>| {
            let mut settings = CloudToDeviceSettings::default();
            change(&mut settings);
            let found = match validated(settings.clone()) {
                Ok(_) => None,
                Err(InvalidSettings::CloudToDevice { setting, given }) => {
                    let error = InvalidSettings::CloudToDevice { setting, given };
                    Some((setting, error.to_string()))
                }
                Err(other) => panic!("{settings:?}: {other}"),
            };
            let expected = expected.map(|(setting, text)| (setting, text.to_owned()));
            assert_eq!(found, expected, "{settings:?}");
        };
        let seconds = Duration::from_secs;
        check(&|_| {}, None);
        for good in [1, 100] {
            check(&|s| s.max_delivery_count = good, None);
            check(&|s| s.feedback.max_delivery_count = good, None);
        }
        let text = "the maximum delivery count of cloud-to-device messages is 1 to 100, not 0";
        check(
            &|s| s.max_delivery_count = 0,
            Some((S::MaxDeliveryCount, text)),
        );
        let text = "the maximum delivery count of feedback messages is 1 to 100, not 101";
        check(
            &|s| s.feedback.max_delivery_count = 101,
            Some((S::FeedbackMaxDeliveryCount, text)),
        );
        for good in [60, 172_800] {
            check(&|s| s.default_ttl = seconds(good), None);
            check(&|s| s.feedback.ttl = seconds(good), None);
        }
        let text =
            "the default time to live of cloud-to-device messages is 60 s to 172800 s, not 59 s";
        check(
            &|s| s.default_ttl = seconds(59),
            Some((S::DefaultTtl, text)),
        );
        let text = "the time to live of feedback messages is 60 s to 172800 s, not 172800001 ms";
        check(
            &|s| s.feedback.ttl = Duration::from_millis(172_800_001),
            Some((S::FeedbackTtl, text)),
        );
        for good in [5, 300] {
            check(&|s| s.feedback.lock = seconds(good), None);
        }
        let text = "the lock duration of feedback messages is 5 s to 300 s, not 4 s";
        check(
            &|s| s.feedback.lock = seconds(4),
            Some((S::FeedbackLock, text)),
        );
        check(&|s| s.queue_depth_max = 10_000, None);
        let text = "the maximum depth of a device's queue is 1 to 10000, not 0";
        check(&|s| s.queue_depth_max = 0, Some((S::QueueDepthMax, text)));
        check(&|s| s.dead_letters.keep = Duration::ZERO, None);
        check(&|s| s.dead_letters.bytes_max = 0, None);
        let text = "the retention of dead letters is 0 s to 31536000 s, not 31536001 s";
        check(
            &|s| s.dead_letters.keep = seconds(31_536_001),
            Some((S::DeadLettersKeep, text)),
        );
        let text = "the number of messages in the history is 1 to 100000000, not 0";
        check(
            &|s| s.history.messages_max = 0,
            Some((S::HistoryMessagesMax, text)),
        );
        let text = "the bytes of the history is at least 1, not 0";
        check(
            &|s| s.history.bytes_max = 0,
            Some((S::HistoryBytesMax, text)),
        );
    }

    #[test]
    fn spans_are_kept_in_whole_milliseconds() {
        let settings = CloudToDeviceSettings {
            default_ttl: Duration::from_nanos(90_000_999_999),
            ..CloudToDeviceSettings::default()
        };
        let settings = validated(settings).unwrap();
        assert_eq!(settings.default_ttl, Duration::from_secs(90));
    }

    #[test]
    fn the_stored_form_is_read_back_and_absent_members_have_their_defaults() {
        let check = |json: &str, expected: CloudToDeviceSettings| {
            let stored: Stored = serde_json::from_str(json).unwrap();
            assert_eq!(CloudToDeviceSettings::from(stored), expected, "{json}");
        };
        let default = CloudToDeviceSettings::default();
        check("{}", default.clone());
        let ttl = FeedbackSettings {
            ttl: Duration::from_secs(90),
            ..FeedbackSettings::default()
        };
        check(
            r#"{"feedback": {"ttlMs": 90000}, "deliveryCountMode": "everyLock"}"#,
            CloudToDeviceSettings {
                feedback: ttl,
                delivery_count_mode: DeliveryCountMode::EveryLock,
                ..default
            },
        );
        let odd = CloudToDeviceSettings {
            max_delivery_count: 3,
            default_ttl: Duration::from_millis(61_001),
            feedback: FeedbackSettings {
                lock: Duration::from_secs(7),
                ttl: Duration::from_secs(70),
                max_delivery_count: 5,
            },
            delivery_count_mode: DeliveryCountMode::EveryLock,
            queue_depth_max: 9,
            dead_letters: DeadLetterSettings {
                keep: Duration::from_secs(11),
                bytes_max: 12,
            },
            history: HistorySettings {
                enabled: false,
                messages_max: 13,
                bytes_max: 14,
            },
        };
        let json = serde_json::to_string(&Stored::from(&odd)).unwrap();
        check(&json, odd);
    }
}
