//! The gate between one process of the hub and its machine, and the log behind it.
//!
//! Every call passes a gate that belongs to one process of the hub. When the power of that process
//! is off, nothing that is left of it reaches the disk any more, and nothing is answered: its tasks
//! may go on for a while, and nobody notices.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fieldpost_model::{PartitionId, Partitioning, SequenceNumber, StreamId, Timestamp};
use fieldpost_store::log::{
    Bounds, EventLog, LogFigures, ReadRequest, Records, Retention, Submission, TailWatch,
};
use fieldpost_store::{Answer, Health, StoreError};
use fieldpost_store_embedded::log::SteppedLog;
use futures_util::FutureExt;
use futures_util::future::pending;
use tokio::sync::{Notify, watch};

use crate::random::Random;

/// Whether one process of the hub is running.
#[derive(Debug)]
pub(crate) struct Power(AtomicBool);

/// The log of one process.
pub(crate) struct GatedLog {
    pub(crate) log: Arc<SteppedLog>,
    pub(crate) gate: Arc<Gate>,
    /// Rung when something was submitted.
    pub(crate) submitted: Notify,
}

/// How long a disk takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskSpeed {
    /// A fraction of a millisecond, a few at times.
    Fast,
    /// Tens of milliseconds, and now and then it stands still for seconds.
    Slow,
}

/// What one process may do, and how long its disk takes.
pub(crate) struct Gate {
    pub(crate) power: Power,
    random: Mutex<Random>,
    pub(crate) speed: DiskSpeed,
}

impl Power {
    pub(crate) fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn off(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl DiskSpeed {
    fn write(self, random: &mut Random) -> Duration {
        let millis = Duration::from_millis;
        match (self, random.below(1000)) {
            (Self::Fast, 0..950) => random.within(&(Duration::from_micros(100)..millis(2))),
            (Self::Fast, _) => random.within(&(millis(2)..millis(30))),
            (Self::Slow, 0..950) => random.within(&(millis(5)..millis(100))),
            (Self::Slow, 950..995) => random.within(&(millis(100)..millis(2000))),
            (Self::Slow, _) => random.within(&(millis(2000)..millis(25_000))),
        }
    }

    /// `None` for what is in the page cache.
    fn read(self, random: &mut Random) -> Option<Duration> {
        random.percent(50).then(|| self.write(random) / 4)
    }
}

impl Gate {
    pub(crate) fn new(random: Random, speed: DiskSpeed) -> Arc<Self> {
        Arc::new(Self {
            power: Power(AtomicBool::new(true)),
            random: Mutex::new(random),
            speed,
        })
    }

    pub(crate) fn random(&self) -> MutexGuard<'_, Random> {
        self.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes as long as the disk does to write something and sync it.
    pub(crate) async fn write(&self) {
        let span = self.speed.write(&mut self.random());
        tokio::time::sleep(span).await;
    }

    /// `answer` once the disk has been asked, as long as the process is there to hear it.
    pub(crate) fn read<T: Send + 'static>(
        self: &Arc<Self>,
        answer: impl FnOnce() -> Answer<T> + Send + 'static,
    ) -> Answer<T> {
        let gate = Arc::clone(self);
        let span = gate.speed.read(&mut gate.random());
        async move {
            if let Some(span) = span {
                tokio::time::sleep(span).await;
            }
            gate.pass(answer().await).await
        }
        .boxed()
    }

    pub(crate) async fn pass<T>(&self, answer: T) -> T {
        if self.power.is_on() {
            answer
        } else {
            pending().await
        }
    }
}

impl EventLog for GatedLog {
    fn submit(&self, submission: Submission) -> Result<(), StoreError> {
        if self.gate.power.is_on() {
            self.log.submit(submission)?;
            self.submitted.notify_one();
        }
        Ok(())
    }

    fn read_recent(&self, request: &ReadRequest) -> Option<Records> {
        self.log.read_recent(request)
    }

    fn read(&self, request: ReadRequest) -> Answer<Result<Records, StoreError>> {
        let log = Arc::clone(&self.log);
        self.gate.read(move || log.read(request))
    }

    fn bounds(&self, stream: StreamId, partition: PartitionId) -> Bounds {
        self.log.bounds(stream, partition)
    }

    fn seek_time(
        &self,
        stream: StreamId,
        partition: PartitionId,
        after: Timestamp,
    ) -> Answer<Result<SequenceNumber, StoreError>> {
        let log = Arc::clone(&self.log);
        self.gate
            .read(move || log.seek_time(stream, partition, after))
    }

    fn watch(&self, stream: StreamId, partition: PartitionId, watch: &Arc<TailWatch>) {
        self.log.watch(stream, partition, watch);
    }

    fn partitioning(&self) -> Partitioning {
        self.log.partitioning()
    }

    fn created(&self) -> Timestamp {
        self.log.created()
    }

    fn set_retention(&self, retention: Retention) {
        self.log.set_retention(retention);
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.log.health()
    }

    fn figures(&self) -> LogFigures {
        self.log.figures()
    }

    fn close(&self) -> Answer<()> {
        let (gate, log) = (Arc::clone(&self.gate), Arc::clone(&self.log));
        async move {
            gate.write().await;
            gate.pass(()).await;
            log.close().await;
        }
        .boxed()
    }
}
