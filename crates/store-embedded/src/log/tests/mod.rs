//! Tests of the log as a whole.

mod contract;
mod crash;
mod damage;
mod every_block;
mod every_call;
mod faults;
mod keeping;
mod ledger;
mod threads;

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use fieldpost_model::{PartitionId, Partitioning, StreamId, Timestamp};
use fieldpost_store::log::{
    Appender, AtBytesMax, Batch, BatchBuilder, EventLog, ReadRequest, Records, Retention,
};
use fieldpost_store::suite::block_on;
use fieldpost_store::{HealthLevel, StoreError};

use super::{
    DiskMarks, LogId, LogIdentity, LogOpenError, LogSettings, RecoveryReport, SteppedLog, Turn,
};
use crate::files::sim::SimDisk;
use crate::health::StoreHealth;
use crate::testing::TestClock;

const PARTITIONS: u16 = 3;
const LOG_ID: LogId = LogId([0x5a; 16]);
const START_MS: i64 = 1_800_000_000_000;

/// Settings under which everything happens soon.
fn small() -> LogSettings {
    LogSettings {
        segment_bytes_first: 64 << 10,
        segment_bytes_max: 128 << 10,
        tail_bytes: 16 << 10,
        retention: Retention {
            age_min: Duration::from_secs(86_400),
            bytes_max: None,
            at_bytes_max: AtBytesMax::HoldMessages,
        },
        marks: DiskMarks {
            hold_messages: Some(0),
            hold_all: Some(0),
        },
        reserve_bytes: 0,
    }
}

fn partitioning() -> Partitioning {
    Partitioning::new(PARTITIONS).unwrap()
}

fn identity(fresh: bool) -> LogIdentity {
    LogIdentity {
        id: LOG_ID,
        created: Timestamp::from_millis(START_MS),
        partitioning: partitioning(),
        fresh,
        losses: 0,
    }
}

/// A log over a simulated disk.
struct Bench {
    disk: SimDisk,
    clock: Arc<TestClock>,
    log: Arc<SteppedLog>,
    report: RecoveryReport,
}

impl Bench {
    fn new() -> Self {
        Self::with(&small())
    }

    fn with(settings: &LogSettings) -> Self {
        let clock = Arc::new(TestClock::at(START_MS));
        Self::open(&SimDisk::new(), clock, settings, true).unwrap()
    }

    fn open(
        disk: &SimDisk,
        clock: Arc<TestClock>,
        settings: &LogSettings,
        fresh: bool,
    ) -> Result<Self, LogOpenError> {
        let (log, report) = SteppedLog::open(
            Arc::new(disk.clone()),
            identity(fresh),
            settings,
            Arc::clone(&clock) as _,
            Arc::new(StoreHealth::new()),
        )?;
        Ok(Self {
            disk: disk.clone(),
            clock,
            log,
            report,
        })
    }

    /// Opens a copy of the disk as it stands, as after a kill of the process.
    fn reopen(&self) -> Self {
        let disk = self.disk.copy();
        Self::open(&disk, Arc::clone(&self.clock), &small(), false).unwrap()
    }

    fn close(&self) {
        block_on(self.log.close());
    }

    fn appender(&self) -> Appender {
        Appender::new(Arc::clone(&self.log) as _)
    }

    fn append(&self, partition: u16, bodies: &[&[u8]]) {
        let mut appender = self.appender();
        appender.submit(batch(partition, bodies)).unwrap();
        assert_eq!(self.log.commit_once(), Turn::Committed { batches: 1 });
        assert_eq!(durable(&mut appender), Some(Ok(1)));
    }

    fn keep(&self) {
        while self.log.keep_once() {}
    }

    fn read(&self, partition: u16, from: u64) -> Result<Records, StoreError> {
        block_on(self.log.read(request(0, partition, from, usize::MAX)))
    }

    /// Everything in a partition, as far as it can be read.
    fn read_all(&self, partition: u16) -> Result<Vec<Bytes>, StoreError> {
        let mut from = 0;
        let mut all = Vec::new();
        loop {
            let records = self.read(partition, from)?;
            if records.records.is_empty() {
                return Ok(all);
            }
            from = records.next;
            all.extend(records.records.into_iter().map(|record| record.data));
        }
    }

    fn next(&self, partition: u16) -> u64 {
        self.log.bounds(StreamId(0), PartitionId(partition)).next
    }

    fn first(&self, partition: u16) -> u64 {
        self.log.bounds(StreamId(0), PartitionId(partition)).first
    }

    fn level(&self) -> HealthLevel {
        self.log.health().borrow().level
    }

    fn segments(&self) -> Vec<String> {
        use crate::files::Files;
        let mut names = self.disk.list().unwrap();
        names.retain(|name| name.ends_with(".segment"));
        names
    }

    fn verify(&self) -> super::verify::LogVerdict {
        super::verify::verify(&self.disk.copy(), LOG_ID, partitioning()).unwrap()
    }
}

fn batch(partition: u16, bodies: &[&[u8]]) -> Batch {
    let mut builder = BatchBuilder::new(PartitionId(partition));
    for body in bodies {
        builder.push(|out| out.extend_from_slice(body));
    }
    builder.take().unwrap()
}

fn request(stream: u16, partition: u16, from: u64, bytes_max: usize) -> ReadRequest {
    ReadRequest {
        stream: StreamId(stream),
        partition: PartitionId(partition),
        from,
        bytes_max,
        records_max: 1000,
    }
}

/// What an appender knows without waiting; errors as text.
fn durable(appender: &mut Appender) -> Option<Result<u64, String>> {
    match appender.poll_durable(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(news) => Some(news.map_err(|error| error.to_string())),
        Poll::Pending => None,
    }
}

/// Bytes that are not all the same.
fn body(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed;
    (0..length)
        .map(|_| crate::files::sim::splitmix(&mut state) as u8)
        .collect()
}
