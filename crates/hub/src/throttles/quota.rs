//! How many messages there have been today.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use fieldpost_model::Timestamp;
use fieldpost_store::documents::{Action, Change, Condition};
use fieldpost_store::{Store, StoreError};
use serde::{Deserialize, Serialize};

use crate::collections::SETTINGS;

const MILLIS_PER_DAY: i64 = 24 * 60 * 60 * 1000;
const KEY: Bytes = Bytes::from_static(b"quota");
const FORM_VERSION: u8 = 1;

/// Messages of one day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Days since the Unix epoch; they begin at midnight UTC.
    pub(super) day: i64,
    pub(super) messages: u64,
}

/// Counts the messages of the current day.
#[derive(Default)]
pub(super) struct Quota {
    /// Nothing else is taken while it is held.
    usage: Mutex<Usage>,
}

impl Quota {
    pub(super) fn new(usage: Usage) -> Self {
        Self {
            usage: Mutex::new(usage),
        }
    }

    /// Counts `messages` and gives how many there have been, unless that were more than `most`.
    pub(super) fn charge(&self, now: Timestamp, messages: u64, most: u64) -> Option<u64> {
        let mut usage = self.lock();
        let day = now.as_millis().div_euclid(MILLIS_PER_DAY);
        // A clock that is set back gives no second quota; one that was wrong by days must not leave
        // the hub without any until then.
        if day > usage.day || day < usage.day - 1 {
            *usage = Usage { day, messages: 0 };
        }
        let count = usage.messages.checked_add(messages)?;
        if count > most {
            return None;
        }
        usage.messages = count;
        Some(count)
    }

    /// Counts `messages` no longer: they were not taken after all.
    pub(super) fn give_back(&self, messages: u64) {
        let mut usage = self.lock();
        usage.messages = usage.messages.saturating_sub(messages);
    }

    pub(super) fn usage(&self) -> Usage {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Usage> {
        // Plain values, each as good as it was.
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    v: u8,
    day: i64,
    messages: u64,
}

/// What the store knows of the last day; nothing of a new one.
///
/// # Errors
/// When the store cannot be read. A damaged count is none: the day begins anew.
pub(super) async fn load(store: &Store) -> Result<Usage, StoreError> {
    let document = match store.documents.get(SETTINGS, KEY).await {
        Ok(document) => document,
        Err(error @ StoreError::Damaged { .. }) => {
            tracing::error!(%error, "how much of the daily quota is used cannot be read");
            None
        }
        Err(error) => return Err(error),
    };
    let stored = document
        .and_then(|document| serde_json::from_slice::<Stored>(&document.value).ok())
        .filter(|stored| stored.v == FORM_VERSION);
    Ok(stored.map_or_else(Usage::default, |stored| Usage {
        day: stored.day,
        messages: stored.messages,
    }))
}

pub(super) fn put(usage: Usage) -> Change {
    let stored = Stored {
        v: FORM_VERSION,
        day: usage.day,
        messages: usage.messages,
    };
    Change {
        collection: SETTINGS,
        key: KEY,
        condition: Condition::Any,
        action: Action::Put {
            class: 0,
            value: serde_json::to_vec(&stored)
                .expect("a struct of plain values is JSON")
                .into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_has_its_quota_and_no_clock_gives_it_twice() {
        let quota = Quota::default();
        let at = |text| Timestamp::parse(text).unwrap();
        let evening = at("2026-11-24T23:59:59.999Z");
        assert_eq!(quota.charge(evening, 7, 10), Some(7));
        assert_eq!(quota.charge(evening, 4, 10), None);
        assert_eq!(quota.charge(evening, 3, 10), Some(10));
        quota.give_back(2);
        assert_eq!(quota.charge(evening, 2, 10), Some(10));
        assert_eq!(quota.charge(evening, 1, 10), None);
        let midnight = at("2026-11-25T00:00:00Z");
        assert_eq!(quota.charge(midnight, 1, 10), Some(1));
        assert_eq!(quota.charge(evening, 9, 10), Some(10));
        assert_eq!(quota.charge(evening, 1, 10), None);
        assert_eq!(quota.charge(midnight, u64::MAX, u64::MAX), None);
        let wrong = at("2031-01-01T12:00:00Z");
        assert_eq!(quota.charge(wrong, 10, 10), Some(10));
        assert_eq!(quota.charge(midnight, 1, 10), Some(1));
    }
}
