//! The hub's settings: durable state, seeded once, changed while the hub runs.

mod cloud_to_device;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use fieldpost_model::limits::{CONSUMER_GROUP_NAME_MAX, CONSUMER_GROUPS_MAX, RETENTION_DAYS_RANGE};
use fieldpost_store::documents::{Action, Change, Condition, Documents};
use fieldpost_store::log::{AtBytesMax, EventLog, Retention};
use fieldpost_store::{Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::collections::SETTINGS;
use crate::events::Receivers;
use crate::identity::Registry;
use crate::throttles::{Throttles, ThrottlingSettings, Tier};

pub use cloud_to_device::{
    CloudToDeviceSetting, CloudToDeviceSettings, DeadLetterSettings, DeliveryCountMode,
    FeedbackSettings, HistorySettings,
};

/// The consumer group that always exists.
pub const DEFAULT_CONSUMER_GROUP: &str = "$Default";

/// What an operator may set on a running hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubSettings {
    /// How long events are kept at least, in days.
    pub retention_days: u32,
    /// The consumer groups of the built-in endpoint. [`DEFAULT_CONSUMER_GROUP`] is always one of
    /// them, named or not.
    pub consumer_groups: Vec<String>,
    /// A bound on the bytes that events take on disk, if there shall be one.
    pub bytes_max: Option<u64>,
    /// What happens when that bound is reached.
    pub at_bytes_max: AtBytesMax,
    /// The partitions of the built-in endpoint. Fixed when the store was created: to be shown, and
    /// refused when another number is given.
    pub partition_count: u16,
    /// Messages to devices, and the feedback about them.
    pub cloud_to_device: CloudToDeviceSettings,
    /// The tier whose limits hold, if any shall.
    pub throttling: ThrottlingSettings,
}

impl Default for HubSettings {
    fn default() -> Self {
        Self {
            retention_days: *RETENTION_DAYS_RANGE.start(),
            consumer_groups: vec![DEFAULT_CONSUMER_GROUP.to_owned()],
            bytes_max: None,
            at_bytes_max: AtBytesMax::HoldMessages,
            partition_count: 4,
            cloud_to_device: CloudToDeviceSettings::default(),
            throttling: ThrottlingSettings::default(),
        }
    }
}

impl HubSettings {
    /// Whether a hub would take them.
    ///
    /// # Errors
    /// Says which setting it would not.
    pub fn check(&self) -> Result<(), InvalidSettings> {
        validated(self.clone(), self.partition_count).map(|_| ())
    }
}

/// Which setting cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSettings {
    /// The retention is out of range.
    #[error(
        "retention is {} to {} days, not {given}",
        RETENTION_DAYS_RANGE.start(),
        RETENTION_DAYS_RANGE.end()
    )]
    Retention {
        /// The days given.
        given: u32,
    },
    /// There are too many consumer groups.
    #[error(
        "there can be {CONSUMER_GROUPS_MAX} consumer groups, {DEFAULT_CONSUMER_GROUP} included, \
         not {count}"
    )]
    TooManyConsumerGroups {
        /// How many there would be.
        count: usize,
    },
    /// A consumer group has a name that cannot be one.
    #[error(
        "{name:?} cannot be the name of a consumer group: 1 to {CONSUMER_GROUP_NAME_MAX} letters, \
         digits, periods, hyphens and underscores, the first and last a letter or digit"
    )]
    ConsumerGroupName {
        /// The name.
        name: String,
    },
    /// A consumer group stands twice; names differ in more than case.
    #[error("the consumer group {name:?} stands twice")]
    ConsumerGroupTwice {
        /// The name.
        name: String,
    },
    /// The byte bound is zero.
    #[error("a bound of no bytes leaves no room for events")]
    BytesMax,
    /// The number of partitions cannot be changed.
    #[error("the number of partitions is {fixed} since the store was created, not {given}")]
    PartitionCount {
        /// The number given.
        given: u16,
        /// The number that it is.
        fixed: u16,
    },
    /// The tier has not so many units, or none are asked for.
    #[error("tier {tier} has 1 to {} units, not {given}", tier.units_max())]
    Units {
        /// The tier.
        tier: Tier,
        /// The units given.
        given: u32,
    },
    /// A setting of cloud-to-device messages is out of its range.
    #[error("{}", OutOfRange(*setting, *given))]
    CloudToDevice {
        /// Which one.
        setting: CloudToDeviceSetting,
        /// The value given, in the unit of the setting's range.
        given: u64,
    },
}

struct OutOfRange(CloudToDeviceSetting, u64);

impl std::fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        cloud_to_device::describe(f, self.0, self.1)
    }
}

/// Why settings were not applied.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApplyError {
    /// They cannot be taken.
    #[error(transparent)]
    Invalid(#[from] InvalidSettings),
    /// The store did not take them.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What follows the settings at once, besides the log.
pub(crate) struct Governed {
    pub(crate) receivers: Receivers,
    pub(crate) throttles: Throttles,
}

/// The settings in force. Cloning is cheap.
#[derive(Clone)]
pub struct Settings(Arc<Inner>);

struct Inner {
    documents: Arc<dyn Documents>,
    log: Arc<dyn EventLog>,
    governed: Governed,
    registry: Registry,
    /// Guards the current settings; nothing else is taken while it is held.
    current: RwLock<Arc<HubSettings>>,
    /// Held across a change, so that memory follows the order of the store.
    changing: tokio::sync::Mutex<()>,
}

impl Settings {
    /// Loads the settings, or stores `seed` when there are none, and puts them into force.
    pub(crate) async fn open(
        store: &Store,
        governed: Governed,
        registry: Registry,
        seed: HubSettings,
    ) -> Result<Self, ApplyError> {
        let fixed = store.log.partitioning().count();
        let stored = store.documents.get(SETTINGS, key()).await?;
        let settings = match &stored {
            Some(document) => decode(&document.value, fixed)?,
            // The number of partitions is a choice of whoever creates the store, not of the seed.
            None => validated(
                HubSettings {
                    partition_count: fixed,
                    ..seed
                },
                fixed,
            )?,
        };
        if stored.is_none() {
            let change = put(&settings, Condition::Absent);
            store.documents.apply(vec![change]).await?;
        }
        let inner = Inner {
            documents: Arc::clone(&store.documents),
            log: Arc::clone(&store.log),
            governed,
            registry,
            current: RwLock::default(),
            changing: tokio::sync::Mutex::new(()),
        };
        inner.put_into_force(settings);
        Ok(Self(Arc::new(inner)))
    }

    /// The settings in force.
    #[must_use]
    pub fn get(&self) -> Arc<HubSettings> {
        let current = self.0.current.read();
        Arc::clone(&current.unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the settings, as a whole. Durable and in force when it returns; carried out even if
    /// the caller goes away. Receivers of a consumer group that is gone end.
    ///
    /// # Errors
    /// [`ApplyError::Invalid`] says which setting cannot be taken; nothing is changed then.
    pub async fn apply(&self, settings: HubSettings) -> Result<Arc<HubSettings>, ApplyError> {
        let settings = validated(settings, self.0.log.partitioning().count())?;
        let inner = Arc::clone(&self.0);
        self.0
            .registry
            .run_to_end(async move {
                let _one_at_a_time = inner.changing.lock().await;
                inner
                    .documents
                    .apply(vec![put(&settings, Condition::Any)])
                    .await?;
                tracing::info!(?settings, "hub settings changed");
                Ok(inner.put_into_force(settings))
            })
            .await
    }
}

impl Inner {
    fn put_into_force(&self, settings: HubSettings) -> Arc<HubSettings> {
        const SECONDS_PER_DAY: u64 = 24 * 60 * 60;
        self.log.set_retention(Retention {
            age_min: Duration::from_secs(u64::from(settings.retention_days) * SECONDS_PER_DAY),
            bytes_max: settings.bytes_max,
            at_bytes_max: settings.at_bytes_max,
        });
        self.governed
            .receivers
            .set_groups(&settings.consumer_groups);
        self.governed.throttles.set(settings.throttling);
        let settings = Arc::new(settings);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&settings);
        settings
    }
}

/// Checks settings and brings them into their normal form: the default group first, the others as
/// given.
fn validated(mut settings: HubSettings, fixed: u16) -> Result<HubSettings, InvalidSettings> {
    if !RETENTION_DAYS_RANGE.contains(&settings.retention_days) {
        return Err(InvalidSettings::Retention {
            given: settings.retention_days,
        });
    }
    if settings.bytes_max == Some(0) {
        return Err(InvalidSettings::BytesMax);
    }
    if settings.partition_count != fixed {
        return Err(InvalidSettings::PartitionCount {
            given: settings.partition_count,
            fixed,
        });
    }
    settings
        .consumer_groups
        .retain(|name| !name.eq_ignore_ascii_case(DEFAULT_CONSUMER_GROUP));
    let count = settings.consumer_groups.len() + 1;
    if count > CONSUMER_GROUPS_MAX {
        return Err(InvalidSettings::TooManyConsumerGroups { count });
    }
    for (index, name) in settings.consumer_groups.iter().enumerate() {
        if !is_group_name(name) {
            return Err(InvalidSettings::ConsumerGroupName { name: name.clone() });
        }
        let mut before = settings.consumer_groups.iter().take(index);
        if before.any(|other| other.eq_ignore_ascii_case(name)) {
            return Err(InvalidSettings::ConsumerGroupTwice { name: name.clone() });
        }
    }
    settings
        .consumer_groups
        .insert(0, DEFAULT_CONSUMER_GROUP.to_owned());
    settings.cloud_to_device = cloud_to_device::validated(settings.cloud_to_device)?;
    let ThrottlingSettings { tier, units: given } = settings.throttling;
    match tier {
        Some(tier) if !(1..=tier.units_max()).contains(&given) => {
            return Err(InvalidSettings::Units { tier, given });
        }
        Some(_) => {}
        // Without a tier they mean nothing.
        None => settings.throttling = ThrottlingSettings::default(),
    }
    Ok(settings)
}

/// The rule of Azure Event Hubs for names of consumer groups.
fn is_group_name(name: &str) -> bool {
    let ends_well = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    (1..=CONSUMER_GROUP_NAME_MAX).contains(&name.len())
        && ends_well(name.chars().next())
        && ends_well(name.chars().last())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
}

const FORM_VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredSettings {
    v: u8,
    retention_days: u32,
    consumer_groups: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes_max: Option<u64>,
    at_bytes_max: StoredAtBytesMax,
    #[serde(default)]
    cloud_to_device: cloud_to_device::Stored,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    throttling: Option<StoredThrottling>,
}

#[derive(Serialize, Deserialize)]
struct StoredThrottling {
    tier: Tier,
    units: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum StoredAtBytesMax {
    HoldMessages,
    DropOldest,
}

fn key() -> Bytes {
    Bytes::from_static(b"hub")
}

fn put(settings: &HubSettings, condition: Condition) -> Change {
    let stored = StoredSettings {
        v: FORM_VERSION,
        retention_days: settings.retention_days,
        consumer_groups: settings.consumer_groups.clone(),
        bytes_max: settings.bytes_max,
        at_bytes_max: match settings.at_bytes_max {
            AtBytesMax::HoldMessages => StoredAtBytesMax::HoldMessages,
            AtBytesMax::DropOldest => StoredAtBytesMax::DropOldest,
        },
        cloud_to_device: (&settings.cloud_to_device).into(),
        throttling: settings.throttling.tier.map(|tier| StoredThrottling {
            tier,
            units: settings.throttling.units,
        }),
    };
    Change {
        collection: SETTINGS,
        key: key(),
        condition,
        action: Action::Put {
            class: 0,
            value: serde_json::to_vec(&stored)
                .expect("a struct of plain values is JSON")
                .into(),
        },
    }
}

fn decode(value: &[u8], fixed: u16) -> Result<HubSettings, ApplyError> {
    let stored: StoredSettings = serde_json::from_slice(value)
        .ok()
        .filter(|stored: &StoredSettings| stored.v == FORM_VERSION)
        .ok_or_else(|| StoreError::Damaged {
            what: "hub settings: not of a known form".into(),
            resume: None,
        })?;
    let settings = HubSettings {
        retention_days: stored.retention_days,
        consumer_groups: stored.consumer_groups,
        bytes_max: stored.bytes_max,
        at_bytes_max: match stored.at_bytes_max {
            StoredAtBytesMax::HoldMessages => AtBytesMax::HoldMessages,
            StoredAtBytesMax::DropOldest => AtBytesMax::DropOldest,
        },
        partition_count: fixed,
        cloud_to_device: stored.cloud_to_device.into(),
        throttling: stored
            .throttling
            .map_or_else(ThrottlingSettings::default, |stored| ThrottlingSettings {
                tier: Some(stored.tier),
                units: stored.units,
            }),
    };
    Ok(validated(settings, fixed)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let check = |change: &dyn Fn(&mut HubSettings), expected: Result<(), InvalidSettings>| {
            let mut settings = HubSettings::default();
            change(&mut settings);
            assert_eq!(
                validated(settings.clone(), 4).map(|_| ()),
                expected,
                "{settings:?}"
            );
        };
        use InvalidSettings as E;
        check(&|_| {}, Ok(()));
        check(&|s| s.retention_days = 7, Ok(()));
        check(&|s| s.retention_days = 0, Err(E::Retention { given: 0 }));
        check(&|s| s.retention_days = 8, Err(E::Retention { given: 8 }));
        check(&|s| s.bytes_max = Some(0), Err(E::BytesMax));
        let other = E::PartitionCount { given: 8, fixed: 4 };
        check(&|s| s.partition_count = 8, Err(other));
        let set = |tier, units| {
            move |s: &mut HubSettings| {
                s.throttling = ThrottlingSettings {
                    tier: Some(tier),
                    units,
                };
            }
        };
        check(&set(Tier::S1, 200), Ok(()));
        let units = |tier, given| Err(E::Units { tier, given });
        check(&set(Tier::S1, 201), units(Tier::S1, 201));
        check(&set(Tier::F1, 2), units(Tier::F1, 2));
        check(&set(Tier::S3, 0), units(Tier::S3, 0));
        let numbered = |count: usize| (0..count).map(|n| format!("group{n}")).collect();
        check(&|s| s.consumer_groups = numbered(19), Ok(()));
        let many = E::TooManyConsumerGroups { count: 21 };
        check(&|s| s.consumer_groups = numbered(20), Err(many));

        let check_name = |name: &str, is_good: bool| {
            let wrong = E::ConsumerGroupName {
                name: name.to_owned(),
            };
            let expected = if is_good { Ok(()) } else { Err(wrong) };
            check(&|s| s.consumer_groups = vec![name.to_owned()], expected);
        };
        check_name("a", true);
        check_name("reports-2.eu_west", true);
        check_name(&"x".repeat(50), true);
        check_name(&"x".repeat(51), false);
        check_name("", false);
        check_name("-a", false);
        check_name("a.", false);
        check_name("a/b", false);
        check_name("$Other", false);
        check_name("\u{e9}t\u{e9}", false);
    }

    #[test]
    fn the_default_group_comes_first_and_names_differ_in_more_than_case() {
        let check = |groups: &[&str], expected: Result<&[&str], InvalidSettings>| {
            let settings = HubSettings {
                consumer_groups: groups.iter().map(|&g| g.to_owned()).collect(),
                ..HubSettings::default()
            };
            let groups = validated(settings, 4).map(|settings| settings.consumer_groups);
            assert_eq!(
                groups,
                expected.map(|g| g.iter().map(|&g| g.to_owned()).collect())
            );
        };
        check(&[], Ok(&["$Default"]));
        check(&["b", "$default", "a"], Ok(&["$Default", "b", "a"]));
        let name = "Reports".to_owned();
        let twice = Err(InvalidSettings::ConsumerGroupTwice { name });
        check(&["reports", "Reports"], twice);
    }

    #[test]
    fn stored_settings_are_read_back() {
        let settings = validated(
            HubSettings {
                retention_days: 3,
                consumer_groups: vec!["a".to_owned()],
                bytes_max: Some(1 << 40),
                at_bytes_max: AtBytesMax::DropOldest,
                partition_count: 8,
                cloud_to_device: CloudToDeviceSettings {
                    max_delivery_count: 7,
                    ..CloudToDeviceSettings::default()
                },
                throttling: ThrottlingSettings {
                    tier: Some(Tier::S2),
                    units: 3,
                },
            },
            8,
        )
        .unwrap();
        let Action::Put { value, .. } = put(&settings, Condition::Any).action else {
            panic!("settings are stored by a put");
        };
        assert_eq!(decode(&value, 8).unwrap(), settings);
        assert!(matches!(decode(b"{}", 8), Err(ApplyError::Store(_))));

        // As it was stored before there were cloud-to-device messages.
        let older = br#"{"v":1,"retentionDays":2,"consumerGroups":[],"atBytesMax":"dropOldest"}"#;
        let settings = decode(older, 8).unwrap();
        assert_eq!(settings.retention_days, 2);
        assert_eq!(settings.cloud_to_device, CloudToDeviceSettings::default());
        assert_eq!(settings.throttling, ThrottlingSettings::default());
    }
}
