//! Stored rows that cannot be read: they are stepped over, and told of once.
//!
//! What is behind a damaged row must not wait for it, and whoever reads the same place again and
//! again, as each connection of a device does, must not fill the log with it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use fieldpost_store::StoreError;
use fieldpost_store::queues::{ListOutcomes, Outcome, OutcomeNumber};

use super::Shared;
use super::lanes::{DEAD_LETTERS, FEEDBACK, HISTORY};
use super::names::QueueKey;

/// Damages that are remembered as told. A store with more than that is told of some twice.
const TOLD_MAX: usize = 1024;

/// The damage that was told.
#[derive(Default)]
pub(super) struct ToldDamage(Mutex<Told>);

#[derive(Default)]
struct Told {
    /// For each place that has damage, ranges of numbers. Where a damaged block ends, or begins,
    /// nobody can say: what overlaps is one damage.
    places: BTreeMap<String, Vec<(u64, u64)>>,
    count: usize,
}

impl ToldDamage {
    /// Whether damage was not told before. It is from now on.
    fn is_new(&self, place: String, (first, last): (u64, u64)) -> bool {
        // Nothing under the lock panics half way through a change.
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = told.places.get_mut(&place).into_iter().flatten();
        if let Some(known) = known.find(|known| known.0 <= last && first <= known.1) {
            *known = (known.0.min(first), known.1.max(last));
            return false;
        }
        if told.count >= TOLD_MAX {
            *told = Told::default();
        }
        told.count += 1;
        told.places.entry(place).or_default().push((first, last));
        true
    }
}

/// What a lane showed.
#[derive(Debug)]
pub(super) struct LanePage {
    /// The records, in the order of their numbers.
    pub(super) records: Vec<Outcome>,
    /// The number up to which the lane was read, damage in front of the records included. Where it
    /// was asked to go on, at the end of the lane.
    pub(super) through: OutcomeNumber,
    /// The last number of the damage in front of the records, if there is any.
    pub(super) damaged: Option<OutcomeNumber>,
}

impl Shared {
    /// Where to go on reading a queue behind what cannot be read after a number.
    ///
    /// # Errors
    /// The error itself, when it is another one or nothing is known of what is behind.
    pub(super) fn behind_damaged_message(
        &self,
        key: &QueueKey,
        after: u64,
        error: StoreError,
    ) -> Result<u64, StoreError> {
        let (through, what) = behind(after, error)?;
        let device = key.shown().to_string();
        if self.damage.is_new(
            format!("queue {device}"),
            (after.saturating_add(1), through),
        ) {
            let sequence = through;
            tracing::error!(
                %device, sequence, %what,
                "a stored message cannot be read; it is not delivered, those behind it are"
            );
            count("message");
        }
        Ok(through)
    }

    /// Says, once, that a queue cannot be read at all.
    pub(super) fn tell_unreadable(&self, key: &QueueKey, error: &StoreError) {
        if !matches!(error, StoreError::Closed) && self.damage.is_new(error.to_string(), (0, 0)) {
            let device = key.shown();
            tracing::error!(%device, %error, "a queue cannot be read; its messages wait");
        }
    }

    /// Says, once, that something could not be removed because of damage.
    pub(super) fn tell_damage(&self, error: &StoreError) {
        if self.damage.is_new(error.to_string(), (0, 0)) {
            tracing::error!(%error, "what is damaged cannot be removed and is left alone");
        }
    }

    /// Reads a lane behind a number. Damage in front of what is sound is stepped over.
    ///
    /// # Errors
    /// When the store cannot be read, or nothing is known of what is behind the damage.
    pub(super) async fn lane_page(&self, request: ListOutcomes) -> Result<LanePage, StoreError> {
        let mut request = request;
        let mut damaged = None;
        loop {
            match self.queues.outcomes(request.clone()).await {
                Ok(records) => {
                    let last = records.last().map(|record| record.number);
                    return Ok(LanePage {
                        through: last.unwrap_or(request.after),
                        records,
                        damaged,
                    });
                }
                Err(error) => {
                    let first = request.after.saturating_add(1);
                    let (through, what) = behind(request.after, error)?;
                    let place = format!("lane {}", request.lane.0);
                    if self.damage.is_new(place, (first, through)) {
                        let of = match request.lane {
                            FEEDBACK => "feedback",
                            DEAD_LETTERS => "dead letters",
                            HISTORY => "history",
                            _ => "unknown",
                        };
                        tracing::error!(
                            of, first, last = through, %what,
                            "records of outcomes cannot be read; they are left out, and those \
                             behind them are not"
                        );
                        count("outcome");
                    }
                    request.after = through;
                    damaged = Some(through);
                }
            }
        }
    }
}

/// Where what is damaged after a number ends, and what is said of it.
fn behind(after: u64, error: StoreError) -> Result<(u64, Arc<str>), StoreError> {
    match error {
        StoreError::Damaged {
            what,
            resume: Some(resume),
        } if resume.saturating_sub(1) > after => Ok((resume.saturating_sub(1), what)),
        error => Err(error),
    }
}

/// Counts a damage that was met for the first time.
fn count(kind: &'static str) {
    metrics::counter!("fieldpost_damaged_rows_total", "kind" => kind).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_told_once_and_the_memory_of_it_is_bounded() {
        let told = ToldDamage::default();
        let check = |place: &str, range: (u64, u64), is_new: bool| {
            assert_eq!(
                told.is_new(place.to_owned(), range),
                is_new,
                "{place} {range:?}"
            );
        };
        check("a", (3, 3), true);
        check("a", (3, 3), false);
        check("a", (5, 5), true);
        check("b", (3, 3), true);
        // What was in front of it is gone, and cannot be told from it.
        check("a", (1, 3), false);
        check("a", (2, 2), false);
        check("a", (4, 4), true);
        // A block at the end of what there is, which grows.
        check("a", (10, 20), true);
        check("a", (10, 30), false);
        check("a", (25, 40), false);
        for n in 0..TOLD_MAX as u64 {
            check(&n.to_string(), (1, 1), true);
        }
        assert!(told.0.lock().unwrap().count <= TOLD_MAX);
        check("a", (3, 3), true);
    }
}
