//! Keeps the dead letters and the history within their bounds.
//!
//! One task looks at the lanes' figures every few seconds and lets the oldest records go, a chunk
//! and a pause at a time, so that a bound that was lowered by a gibibyte delays nobody.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use fieldpost_model::Timestamp;
use fieldpost_store::StoreError;
use fieldpost_store::queues::{Lane, ListOutcomes, Operation, Outcome, OutcomeNumber};
use futures_util::future::select;
use tokio::sync::oneshot;

use super::Inner;
use super::damage::LanePage;
use super::lanes::{DEAD_LETTERS, HISTORY};
use super::outcome;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(10);

/// Between two chunks.
const PAUSE: Duration = Duration::from_millis(50);

/// Records in a chunk, and bytes of them.
const CHUNK_RECORDS: usize = 4096;
const CHUNK_BYTES: usize = 1 << 20;

/// Works until `stopped` is answered or dropped, or the store is closed.
pub(super) async fn run(inner: Arc<Inner>, stopped: oneshot::Receiver<()>) {
    let keeper = Keeper {
        inner,
        is_failing: false,
        oldest_letter: None,
    };
    let run = pin!(keeper.run());
    // What was about to go goes later.
    select(run, stopped).await;
}

struct Keeper {
    inner: Arc<Inner>,
    is_failing: bool,
    /// Since when the oldest dead letter is one, as last read: until it is old enough, none need
    /// be read again.
    oldest_letter: Option<Timestamp>,
}

/// How much a lane may hold.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    records: u64,
    bytes: u64,
    /// Records of outcomes at or before this go in any case.
    older_than: Option<Timestamp>,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            self.sleep(INTERVAL).await;
            match self.look().await {
                Ok(()) => self.is_failing = false,
                Err(StoreError::Closed) => return,
                Err(error) => {
                    if !self.is_failing {
                        tracing::warn!(%error, "old outcomes of messages cannot be let go");
                    }
                    self.is_failing = true;
                }
            }
        }
    }

    async fn sleep(&self, span: Duration) {
        let until = self.inner.timer.monotonic().saturating_add(span);
        self.inner.timer.sleep_until(until).await;
    }

    async fn look(&mut self) -> Result<(), StoreError> {
        // What is wrong with one lane must not let the other grow.
        let dead_letters = self.look_at_dead_letters().await;
        while self.trim_history().await? {
            self.sleep(PAUSE).await;
        }
        dead_letters
    }

    async fn look_at_dead_letters(&mut self) -> Result<(), StoreError> {
        while self.trim_dead_letters().await? {
            self.sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Lets a chunk go. Whether there may be more to go.
    async fn trim_dead_letters(&mut self) -> Result<bool, StoreError> {
        let now = self.inner.wall.now();
        let settings = self.inner.settings.get().cloud_to_device.dead_letters;
        let bounds = Bounds {
            records: if settings.keeps_any() { u64::MAX } else { 0 },
            bytes: settings.bytes_max,
            older_than: Some(now.saturating_sub(settings.keep)),
        };
        let is_over = self.over(DEAD_LETTERS, bounds);
        let is_due = self.inner.queues.lane(DEAD_LETTERS).count > 0
            && self
                .oldest_letter
                .is_none_or(|at| bounds.older_than.is_some_and(|bound| at <= bound));
        if !is_over && !is_due {
            return Ok(false);
        }
        let page = self.read(DEAD_LETTERS).await?;
        if is_over && let Some(damaged) = page.damaged {
            return self.forget_damage(DEAD_LETTERS, damaged).await;
        }
        let (gone, left) = self.divide(DEAD_LETTERS, bounds, &page.records);
        self.oldest_letter = left
            .iter()
            .find_map(|r| outcome::settled_at(&r.record).ok());
        self.forget(DEAD_LETTERS, gone).await?;
        Ok(!gone.is_empty() && left.is_empty())
    }

    async fn trim_history(&mut self) -> Result<bool, StoreError> {
        let settings = self.inner.settings.get().cloud_to_device.history;
        let bounds = Bounds {
            records: if settings.enabled {
                settings.messages_max
            } else {
                0
            },
            bytes: settings.bytes_max,
            older_than: None,
        };
        if !self.over(HISTORY, bounds) {
            return Ok(false);
        }
        let page = self.read(HISTORY).await?;
        if let Some(damaged) = page.damaged {
            return self.forget_damage(HISTORY, damaged).await;
        }
        let (gone, left) = self.divide(HISTORY, bounds, &page.records);
        self.forget(HISTORY, gone).await?;
        Ok(!gone.is_empty() && left.is_empty())
    }

    fn over(&self, lane: Lane, bounds: Bounds) -> bool {
        let figures = self.inner.queues.lane(lane);
        figures.count > bounds.records || figures.bytes > bounds.bytes
    }

    /// The oldest records. Damage in front of them goes with the first of them that does, if not
    /// before.
    async fn read(&self, lane: Lane) -> Result<LanePage, StoreError> {
        self.inner
            .lane_page(ListOutcomes {
                lane,
                after: 0,
                limit: CHUNK_RECORDS,
                bytes_max: CHUNK_BYTES,
                queue: None,
            })
            .await
    }

    /// Lets the damage at the beginning of a lane go that holds too much. How much that was, the
    /// lane's figures say. Whether there may be more to go.
    async fn forget_damage(&self, lane: Lane, through: OutcomeNumber) -> Result<bool, StoreError> {
        let before = self.inner.queues.lane(lane).count;
        let forget = Operation::Forget { lane, through };
        self.inner.queues.apply(vec![forget]).await?;
        // A store that keeps it all the same is not asked in circles.
        Ok(self.inner.queues.lane(lane).count < before)
    }

    /// Divides the oldest records of a lane into those that go and those that stay.
    fn divide<'a>(
        &self,
        lane: Lane,
        bounds: Bounds,
        records: &'a [Outcome],
    ) -> (&'a [Outcome], &'a [Outcome]) {
        let figures = self.inner.queues.lane(lane);
        let count = outside(
            figures.count.saturating_sub(bounds.records),
            figures.bytes.saturating_sub(bounds.bytes),
            bounds.older_than,
            records,
        );
        records.split_at_checked(count).unwrap_or((records, &[]))
    }

    async fn forget(&self, lane: Lane, gone: &[Outcome]) -> Result<(), StoreError> {
        let Some(last) = gone.last() else {
            return Ok(());
        };
        let forget = Operation::Forget {
            lane,
            through: last.number,
        };
        self.inner.queues.apply(vec![forget]).await?;
        let kind = if lane == DEAD_LETTERS {
            "dead_letters"
        } else {
            "history"
        };
        metrics::counter!("fieldpost_outcomes_trimmed_total", "kind" => kind)
            .increment(gone.len() as u64);
        Ok(())
    }
}

/// How many of a lane's oldest records go, when it has so many records and bytes too many and those
/// of outcomes at or before a time go in any case.
fn outside(
    mut records_over: u64,
    mut bytes_over: u64,
    older_than: Option<Timestamp>,
    records: &[Outcome],
) -> usize {
    let mut count = 0;
    for (record, nth) in records.iter().zip(1..) {
        let at = outcome::settled_at(&record.record);
        let is_old = match (older_than, at) {
            (Some(bound), Ok(at)) => at <= bound,
            _ => false,
        };
        if records_over > 0 || bytes_over > 0 || is_old {
            count = nth;
        } else if at.is_ok() {
            // One that cannot be read is as old as the first one after it that can.
            break;
        }
        records_over = records_over.saturating_sub(1);
        bytes_over = bytes_over.saturating_sub(record.record.len() as u64);
    }
    count
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use fieldpost_store::queues::QueueName;

    use super::*;

    /// A record of an outcome at a second, ten bytes long; of no known form when there is none.
    fn record(number: u64, at: Option<i64>) -> Outcome {
        let mut record = vec![u8::from(at.is_some()), 3];
        record.extend((at.unwrap_or(0) * 1000).to_le_bytes());
        Outcome {
            number,
            queue: QueueName(Bytes::from_static(b"q")),
            sequence: number,
            record: record.into(),
        }
    }

    #[test]
    fn the_oldest_go_until_every_bound_is_kept() {
        let check = |over: (u64, u64), older_than: Option<i64>, at: &[Option<i64>], gone: usize| {
            let records: Vec<_> = (1..).zip(at).map(|(n, at)| record(n, *at)).collect();
            let bound = older_than.map(|seconds| Timestamp::from_millis(seconds * 1000));
            let found = outside(over.0, over.1, bound, &records);
            assert_eq!(found, gone, "{over:?} {older_than:?} {at:?}");
        };
        let four = [Some(1), Some(2), Some(3), Some(4)];
        check((0, 0), None, &four, 0);
        check((2, 0), None, &four, 2);
        check((9, 0), None, &four, 4);
        check((0, 1), None, &four, 1);
        check((0, 10), None, &four, 1);
        check((0, 11), None, &four, 2);
        check((1, 30), None, &four, 3);
        check((0, 0), Some(0), &four, 0);
        check((0, 0), Some(2), &four, 2);
        check((3, 0), Some(2), &four, 3);
        // The clock was set back: what is in front stays, and what is behind it waits.
        check((0, 0), Some(2), &[Some(1), Some(9), Some(2)], 1);
        // What cannot be read goes with what follows it.
        check((0, 0), Some(2), &[None, Some(2), None, Some(3)], 2);
        check((0, 0), Some(2), &[None, None], 0);
        check((1, 0), Some(2), &[None, None], 1);
        check((5, 5), Some(5), &[], 0);
    }
}
