//! The event log in memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use fieldpost_model::{Clock, PartitionId, Partitioning, SequenceNumber, StreamId, Timestamp};
use futures_util::FutureExt;
use futures_util::future::ready;
use smallvec::SmallVec;
use tokio::sync::watch;

use super::{SharedHealth, refusal};
use crate::log::{
    AtBytesMax, Bounds, Completion, EventLog, FramedRecords, LogFigures, ReadRequest, Records,
    Retention, StoredRecord, Submission, TailWatch,
};
use crate::{Answer, Health, HealthLevel, StoreError};

/// The most bytes of frames that one group takes, unless a single batch is larger.
pub const GROUP_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Everything is kept until told otherwise.
const RETENTION_DEFAULT: Retention = Retention {
    age_min: Duration::MAX,
    bytes_max: None,
    at_bytes_max: AtBytesMax::HoldMessages,
};

/// An event log in memory.
///
/// Automatic: each batch is a group of its own, committed inside `submit`. Manual: batches wait
/// until [`MemoryLog::step`] commits one group of them, first come first served.
pub struct MemoryLog {
    partitioning: Partitioning,
    created: Timestamp,
    clock: Arc<dyn Clock>,
    manual: bool,
    health: SharedHealth,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    partitions: BTreeMap<(StreamId, PartitionId), Partition>,
    waiting: VecDeque<Waiting>,
    /// Completions of committed batches that nobody is told of yet.
    withheld: Option<Vec<(Arc<Completion>, u64)>>,
    fail_next: bool,
    closed: bool,
    retention: Option<Retention>,
    /// Bytes of all records kept, each counted in every stream that has it.
    bytes_kept: u64,
    /// Whether this log has reported `HoldMessages` because of its byte bound.
    holding: bool,
    /// The newest time given out; store time never goes back.
    last_enqueued: Option<Timestamp>,
    figures: LogFigures,
}

/// A batch whose frames have been checked.
struct Waiting {
    streams: SmallVec<[StreamId; 2]>,
    partition: PartitionId,
    records: Vec<Bytes>,
    bytes: usize,
    number: u64,
    completion: Arc<Completion>,
}

#[derive(Default)]
struct Partition {
    next: SequenceNumber,
    records: VecDeque<StoredRecord>,
    last_enqueued: Option<Timestamp>,
    watches: Vec<Weak<TailWatch>>,
}

/// Whom to tell after the lock is released: a waker may run the task right away, and that task may
/// call the log.
#[derive(Default)]
struct News {
    completions: Vec<Arc<Completion>>,
    bells: Vec<Arc<TailWatch>>,
}

impl MemoryLog {
    /// A log that commits each batch before `submit` returns.
    #[must_use]
    pub fn automatic(partitioning: Partitioning, clock: Arc<dyn Clock>) -> Self {
        Self::sharing(SharedHealth::default(), partitioning, clock, false)
    }

    /// A log that commits in [`MemoryLog::step`] only.
    #[must_use]
    pub fn manual(partitioning: Partitioning, clock: Arc<dyn Clock>) -> Self {
        Self::sharing(SharedHealth::default(), partitioning, clock, true)
    }

    pub(super) fn sharing(
        health: SharedHealth,
        partitioning: Partitioning,
        clock: Arc<dyn Clock>,
        manual: bool,
    ) -> Self {
        Self {
            partitioning,
            created: clock.now(),
            clock,
            manual,
            health,
            state: Mutex::default(),
        }
    }

    /// Commits one group of what is waiting: batches in the order of their submission, as many as
    /// fit into [`GROUP_BYTES_MAX`] and at least one. Returns how many there were.
    pub fn step(&self) -> usize {
        let mut news = News::default();
        let count = self.commit_group(&mut self.lock(), &mut news);
        news.tell();
        count
    }

    /// Batches submitted and not yet committed.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Makes the next group fail as a failed sync does: it and everything waiting is lost, and the
    /// store is read-only until [`MemoryLog::set_health`] says otherwise.
    pub fn fail_next(&self) {
        self.lock().fail_next = true;
    }

    /// Sets the health of the whole store, and with it what is refused.
    pub fn set_health(&self, health: Health) {
        self.lock().holding = false;
        self.health.set(health);
    }

    /// Holds messages to the log back, and nothing else, as its byte bound does; or no longer.
    pub fn hold(&self, hold: bool) {
        self.lock().holding = hold;
        self.health.hold_log(hold);
    }

    /// Keeps acknowledgements back, or lets all that were kept back go, in order. Records are
    /// appended and can be read meanwhile.
    pub fn withhold(&self, withhold: bool) {
        let mut news = News::default();
        let mut state = self.lock();
        if withhold {
            state.withheld.get_or_insert_with(Vec::new);
        } else {
            state.release(&mut news);
        }
        drop(state);
        news.tell();
    }

    /// Drops what retention lets go. The log does not look at the clock for this by itself.
    pub fn housekeep(&self) {
        let mut state = self.lock();
        let retention = state.retention.unwrap_or(RETENTION_DEFAULT);
        let now = self.clock.now();
        let mut freed = 0;
        for partition in state.partitions.values_mut() {
            while partition
                .records
                .front()
                .is_some_and(|oldest| now.since(oldest.enqueued) > retention.age_min)
            {
                freed += partition.drop_oldest();
            }
        }
        state.bytes_kept -= freed;
        self.keep_byte_bound(&mut state);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit_group(&self, state: &mut State, news: &mut News) -> usize {
        let mut bytes = 0;
        let mut count = 0;
        for batch in &state.waiting {
            if count > 0 && bytes + batch.bytes > GROUP_BYTES_MAX {
                break;
            }
            bytes += batch.bytes;
            count += 1;
        }
        if count == 0 {
            return 0;
        }
        if std::mem::take(&mut state.fail_next) {
            let error = self.health.fail();
            for lost in state.waiting.drain(..) {
                lost.completion.set_failed(error.clone());
                news.add_completion(&lost.completion);
            }
            return count;
        }

        let now = self.clock.now();
        let enqueued = state.last_enqueued.map_or(now, |last| last.max(now));
        state.last_enqueued = Some(enqueued);
        let group: Vec<Waiting> = state.waiting.drain(..count).collect();
        for batch in group {
            state.append(batch, enqueued, news);
        }
        state.figures.groups += 1;
        self.keep_byte_bound(state);
        count
    }

    /// Holds messages back or drops the oldest when there are more bytes than allowed.
    fn keep_byte_bound(&self, state: &mut State) {
        let retention = state.retention.unwrap_or(RETENTION_DEFAULT);
        let bytes_max = retention.bytes_max.unwrap_or(u64::MAX);
        if retention.at_bytes_max == AtBytesMax::DropOldest {
            while state.bytes_kept > bytes_max && state.drop_oldest() {}
        }
        let hold = state.bytes_kept > bytes_max;
        if hold != state.holding {
            state.holding = hold;
            self.health.hold_log(hold);
        }
    }
}

impl State {
    fn append(&mut self, batch: Waiting, enqueued: Timestamp, news: &mut News) {
        for stream in batch.streams {
            let partition = self
                .partitions
                .entry((stream, batch.partition))
                .or_default();
            for data in &batch.records {
                self.bytes_kept += length(data);
                partition.records.push_back(StoredRecord {
                    sequence: partition.next,
                    enqueued,
                    data: data.clone(),
                });
                partition.next += 1;
            }
            partition.last_enqueued = Some(enqueued);
            partition.watches.retain(|watch| {
                let Some(watch) = watch.upgrade() else {
                    return false;
                };
                news.add_bell(watch);
                true
            });
        }
        self.figures.records += batch.records.len() as u64;
        self.figures.bytes += batch.records.iter().map(length).sum::<u64>();
        if let Some(withheld) = &mut self.withheld {
            withheld.push((batch.completion, batch.number));
        } else {
            batch.completion.set_durable(batch.number);
            news.add_completion(&batch.completion);
        }
    }

    /// Drops the oldest record of the whole log; false when there is none.
    fn drop_oldest(&mut self) -> bool {
        let oldest = self
            .partitions
            .values_mut()
            .filter(|partition| !partition.records.is_empty())
            .min_by_key(|partition| partition.records.front().map(|record| record.enqueued));
        let Some(partition) = oldest else {
            return false;
        };
        self.bytes_kept -= partition.drop_oldest();
        self.figures.records_dropped += 1;
        true
    }

    /// Ends withholding.
    fn release(&mut self, news: &mut News) {
        for (completion, number) in self.withheld.take().unwrap_or_default() {
            completion.set_durable(number);
            news.add_completion(&completion);
        }
    }
}

impl Partition {
    fn first(&self) -> SequenceNumber {
        self.next - self.records.len() as u64
    }

    /// Drops the oldest record and returns its bytes.
    fn drop_oldest(&mut self) -> u64 {
        self.records
            .pop_front()
            .map_or(0, |record| length(&record.data))
    }

    fn read(&self, request: &ReadRequest) -> Records {
        let from = request.from.max(self.first());
        let skip = usize::try_from(from - self.first()).unwrap_or(usize::MAX);
        let mut records = Vec::new();
        let mut bytes = 0usize;
        for record in self.records.iter().skip(skip) {
            let after = bytes.saturating_add(record.data.len());
            let full = records.len() >= request.records_max || after > request.bytes_max;
            if full && !records.is_empty() {
                break;
            }
            bytes = after;
            records.push(record.clone());
        }
        Records {
            next: from + records.len() as u64,
            records,
        }
    }
}

impl News {
    fn add_completion(&mut self, completion: &Arc<Completion>) {
        if !self
            .completions
            .iter()
            .any(|known| Arc::ptr_eq(known, completion))
        {
            self.completions.push(Arc::clone(completion));
        }
    }

    fn add_bell(&mut self, bell: Arc<TailWatch>) {
        if !self.bells.iter().any(|known| Arc::ptr_eq(known, &bell)) {
            self.bells.push(bell);
        }
    }

    fn tell(self) {
        for completion in self.completions {
            completion.wake();
        }
        for bell in self.bells {
            bell.ring();
        }
    }
}

impl EventLog for MemoryLog {
    fn submit(&self, submission: Submission) -> Result<(), StoreError> {
        let batch = submission.batch;
        let bytes = batch.frames.len();
        let records: Vec<Bytes> = FramedRecords::new(batch.frames)
            .collect::<Result<_, _>>()
            .map_err(|error| StoreError::Damaged {
                what: format!("a batch for partition {}: {error}", batch.partition).into(),
                resume: None,
            })?;
        let mut news = News::default();
        let mut state = self.lock();
        if state.closed {
            return Err(StoreError::Closed);
        }
        if let Some(refused) = refusal(&self.health.whole, HealthLevel::HoldMessages) {
            return Err(refused);
        }
        state.waiting.push_back(Waiting {
            streams: batch.streams,
            partition: batch.partition,
            records,
            bytes,
            number: submission.number,
            completion: submission.completion,
        });
        if !self.manual {
            self.commit_group(&mut state, &mut news);
        }
        drop(state);
        news.tell();
        Ok(())
    }

    fn read_recent(&self, request: &ReadRequest) -> Option<Records> {
        let state = self.lock();
        let partition = state.partitions.get(&(request.stream, request.partition))?;
        (partition.first()..partition.next)
            .contains(&request.from)
            .then(|| partition.read(request))
    }

    fn read(&self, request: ReadRequest) -> Answer<Result<Records, StoreError>> {
        let state = self.lock();
        let records = match state.partitions.get(&(request.stream, request.partition)) {
            Some(partition) => partition.read(&request),
            None => Records {
                records: Vec::new(),
                next: request.from,
            },
        };
        ready(Ok(records)).boxed()
    }

    fn bounds(&self, stream: StreamId, partition: PartitionId) -> Bounds {
        let state = self.lock();
        let found = state.partitions.get(&(stream, partition));
        Bounds {
            first: found.map_or(0, Partition::first),
            next: found.map_or(0, |partition| partition.next),
            last_enqueued: found.and_then(|partition| partition.last_enqueued),
        }
    }

    fn seek_time(
        &self,
        stream: StreamId,
        partition: PartitionId,
        after: Timestamp,
    ) -> Answer<Result<SequenceNumber, StoreError>> {
        let state = self.lock();
        let sequence = state
            .partitions
            .get(&(stream, partition))
            .map_or(0, |partition| {
                let earlier = partition
                    .records
                    .partition_point(|record| record.enqueued <= after);
                partition.first() + earlier as u64
            });
        ready(Ok(sequence)).boxed()
    }

    fn watch(&self, stream: StreamId, partition: PartitionId, watch: &Arc<TailWatch>) {
        let mut state = self.lock();
        let watches = &mut state
            .partitions
            .entry((stream, partition))
            .or_default()
            .watches;
        watches.retain(|known| known.strong_count() > 0 && known.as_ptr() != Arc::as_ptr(watch));
        watches.push(Arc::downgrade(watch));
    }

    fn partitioning(&self) -> Partitioning {
        self.partitioning
    }

    fn created(&self) -> Timestamp {
        self.created
    }

    fn set_retention(&self, retention: Retention) {
        let mut state = self.lock();
        state.retention = Some(retention);
        self.keep_byte_bound(&mut state);
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.whole.subscribe()
    }

    fn figures(&self) -> LogFigures {
        let state = self.lock();
        LogFigures {
            batches_waiting: state.waiting.len() as u64,
            ..state.figures
        }
    }

    fn close(&self) -> Answer<()> {
        let mut news = News::default();
        let mut state = self.lock();
        state.closed = true;
        while self.commit_group(&mut state, &mut news) > 0 {}
        state.release(&mut news);
        drop(state);
        news.tell();
        ready(()).boxed()
    }
}

fn length(data: &Bytes) -> u64 {
    data.len() as u64
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::log::{Appender, BatchBuilder};

    #[derive(Default)]
    struct TestClock(AtomicI64);

    impl Clock for TestClock {
        fn now(&self) -> Timestamp {
            Timestamp::from_millis(self.0.load(Ordering::Relaxed))
        }

        fn monotonic(&self) -> Duration {
            Duration::from_millis(u64::try_from(self.0.load(Ordering::Relaxed)).unwrap())
        }
    }

    fn manual() -> (Arc<TestClock>, Arc<MemoryLog>) {
        let clock = Arc::new(TestClock::default());
        let log = MemoryLog::manual(Partitioning::new(2).unwrap(), Arc::clone(&clock) as _);
        (clock, Arc::new(log))
    }

    fn submit(appender: &mut Appender, partition: u16, bytes: usize) -> Result<u64, StoreError> {
        let mut builder = BatchBuilder::new(PartitionId(partition));
        builder.push(|out| out.resize(out.len() + bytes, 7));
        appender.submit(builder.take().unwrap())
    }

    fn durable(appender: &mut Appender) -> Option<Result<u64, StoreError>> {
        match appender.poll_durable(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => None,
        }
    }

    fn next(log: &MemoryLog, partition: u16) -> u64 {
        log.bounds(StreamId::BUILT_IN, PartitionId(partition)).next
    }

    #[test]
    fn a_step_commits_one_group_first_come_first_served() {
        let (_, log) = manual();
        let mut one = Appender::new(Arc::clone(&log) as _);
        let mut two = Appender::new(Arc::clone(&log) as _);
        submit(&mut one, 0, 3 * 1024 * 1024).unwrap();
        submit(&mut two, 0, 3 * 1024 * 1024).unwrap();
        submit(&mut one, 0, 3 * 1024 * 1024).unwrap();
        assert_eq!((durable(&mut one).is_none(), next(&log, 0)), (true, 0));

        assert_eq!(
            log.step(),
            2,
            "a third batch would exceed the group's bytes"
        );
        assert!(matches!(durable(&mut one), Some(Ok(1))));
        assert!(matches!(durable(&mut two), Some(Ok(1))));
        assert_eq!((log.waiting(), next(&log, 0)), (1, 2));

        assert_eq!((log.step(), log.step()), (1, 0));
        assert!(matches!(durable(&mut one), Some(Ok(2))));
        assert_eq!(log.figures().groups, 2);

        submit(&mut one, 1, 2 * GROUP_BYTES_MAX).unwrap();
        assert_eq!(log.step(), 1, "a batch that is too large alone goes alone");
    }

    #[test]
    fn a_failed_group_turns_the_store_read_only_and_nothing_later_is_acknowledged() {
        let (_, log) = manual();
        let mut appender = Appender::new(Arc::clone(&log) as _);
        submit(&mut appender, 0, 10).unwrap();
        log.step();
        submit(&mut appender, 0, 10).unwrap();
        log.fail_next();
        log.step();
        assert!(matches!(durable(&mut appender), Some(Ok(1))));
        assert!(matches!(
            durable(&mut appender),
            Some(Err(StoreError::ReadOnly { .. }))
        ));
        assert!(matches!(
            submit(&mut appender, 0, 10),
            Err(StoreError::ReadOnly { .. })
        ));
        assert_eq!(log.health().borrow().level, HealthLevel::ReadOnly);
        assert_eq!(next(&log, 0), 1);
    }

    #[test]
    fn withheld_acknowledgements_come_when_they_are_let_go() {
        let (_, log) = manual();
        let mut appender = Appender::new(Arc::clone(&log) as _);
        log.withhold(true);
        submit(&mut appender, 0, 10).unwrap();
        submit(&mut appender, 0, 10).unwrap();
        log.step();
        assert_eq!((durable(&mut appender).is_none(), next(&log, 0)), (true, 2));
        log.withhold(false);
        assert!(matches!(durable(&mut appender), Some(Ok(2))));
    }

    #[test]
    fn health_decides_what_is_refused() {
        let (_, log) = manual();
        let mut appender = Appender::new(Arc::clone(&log) as _);
        let mut check = |level, taken: bool| {
            log.set_health(Health {
                level,
                reason: None,
            });
            assert_eq!(submit(&mut appender, 0, 1).is_ok(), taken, "{level:?}");
        };
        check(HealthLevel::HoldMessages, false);
        check(HealthLevel::HoldAll, false);
        check(HealthLevel::ReadOnly, false);
        check(HealthLevel::Ok, true);
    }

    #[test]
    fn records_go_by_age_and_by_bytes() {
        let (clock, log) = manual();
        let mut appender = Appender::new(Arc::clone(&log) as _);
        let retention = |bytes_max, at_bytes_max| Retention {
            age_min: Duration::from_millis(100),
            bytes_max,
            at_bytes_max,
        };
        log.set_retention(retention(None, AtBytesMax::DropOldest));
        for at in [0, 50] {
            clock.0.store(at, Ordering::Relaxed);
            submit(&mut appender, 0, 10).unwrap();
            log.step();
        }
        let first = || log.bounds(StreamId::BUILT_IN, PartitionId(0)).first;
        clock.0.store(100, Ordering::Relaxed);
        log.housekeep();
        assert_eq!(first(), 0, "kept for the whole of its minimum age");
        clock.0.store(101, Ordering::Relaxed);
        log.housekeep();
        assert_eq!(first(), 1);

        submit(&mut appender, 0, 10).unwrap();
        log.step();
        log.set_retention(retention(Some(15), AtBytesMax::DropOldest));
        assert_eq!((first(), log.figures().records_dropped), (2, 1));

        log.set_retention(retention(Some(5), AtBytesMax::HoldMessages));
        assert_eq!(first(), 2);
        assert!(matches!(
            submit(&mut appender, 0, 10),
            Err(StoreError::Full)
        ));
        clock.0.store(500, Ordering::Relaxed);
        log.housekeep();
        assert!(submit(&mut appender, 0, 10).is_ok());
    }

    #[test]
    fn closing_commits_what_waits_and_refuses_the_rest() {
        let (_, log) = manual();
        let mut appender = Appender::new(Arc::clone(&log) as _);
        submit(&mut appender, 0, 10).unwrap();
        log.close().now_or_never().unwrap();
        assert!(matches!(durable(&mut appender), Some(Ok(1))));
        assert!(matches!(
            submit(&mut appender, 0, 10),
            Err(StoreError::Closed)
        ));
    }
}
