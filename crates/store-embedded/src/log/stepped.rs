//! A log without threads, for tests and simulations that decide what happens when.

use std::sync::{Arc, Mutex, PoisonError};

use fieldpost_model::{Clock, PartitionId, Partitioning, SequenceNumber, StreamId, Timestamp};
use fieldpost_store::log::{
    Bounds, EventLog, LogFigures, ReadRequest, Records, Retention, Submission, TailWatch,
};
use fieldpost_store::{Answer, Health, StoreError};
use futures_util::FutureExt;
use futures_util::future::ready;
use tokio::sync::watch;

use super::check::{Check, CheckBell};
use super::committer::{Committer, Turn};
use super::keeper::Keeper;
use super::{LogIdentity, LogOpenError, LogSettings, Opened, RecoveryReport, Shared};
use crate::damage::Damage;
use crate::files::Files;
use crate::health::StoreHealth;

/// An event log whose committer and keeper move when they are told. Reads are answered at once.
pub struct SteppedLog {
    shared: Arc<Shared>,
    committer: Mutex<Committer>,
    keeper: Mutex<Keeper>,
    check: Check,
}

impl SteppedLog {
    /// Opens a log over a file layer.
    ///
    /// # Errors
    /// When the log cannot be opened.
    pub fn open(
        files: Arc<dyn Files>,
        identity: LogIdentity,
        settings: &LogSettings,
        clock: Arc<dyn Clock>,
        health: Arc<StoreHealth>,
    ) -> Result<(Arc<Self>, RecoveryReport), LogOpenError> {
        let Opened {
            shared,
            committer,
            keeper,
            check,
            report,
        } = super::open(files, identity, settings, clock, health)?;
        let log = Self {
            shared,
            committer: Mutex::new(committer),
            keeper: Mutex::new(keeper),
            check: check.at_once(),
        };
        Ok((Arc::new(log), report))
    }

    /// One turn of the committer.
    pub fn commit_once(&self) -> Turn {
        let mut arrived = Vec::new();
        self.shared.intake.take(&mut arrived);
        let mut committer = self
            .committer
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        committer.run_once(&mut arrived)
    }

    /// The check of older segments that follows a start: what it found damaged.
    pub fn check_older(&self) -> Vec<Damage> {
        self.check.run(&CheckBell::default())
    }

    /// One step of the keeper; true when there is more to be done at once.
    pub fn keep_once(&self) -> bool {
        self.keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .step()
    }
}

impl EventLog for SteppedLog {
    fn submit(&self, submission: Submission) -> Result<(), StoreError> {
        self.shared.submit(submission)
    }

    fn read_recent(&self, request: &ReadRequest) -> Option<Records> {
        self.shared.tail.read(request)
    }

    fn read(&self, request: ReadRequest) -> Answer<Result<Records, StoreError>> {
        ready(self.shared.read(&request)).boxed()
    }

    fn bounds(&self, stream: StreamId, partition: PartitionId) -> Bounds {
        self.shared.tail.bounds((stream, partition))
    }

    fn seek_time(
        &self,
        stream: StreamId,
        partition: PartitionId,
        after: Timestamp,
    ) -> Answer<Result<SequenceNumber, StoreError>> {
        ready(self.shared.seek_time((stream, partition), after)).boxed()
    }

    fn watch(&self, stream: StreamId, partition: PartitionId, watch: &Arc<TailWatch>) {
        self.shared.watches.add((stream, partition), watch);
    }

    fn partitioning(&self) -> Partitioning {
        self.shared.partitioning
    }

    fn created(&self) -> Timestamp {
        self.shared.created
    }

    fn set_retention(&self, retention: Retention) {
        self.shared.set_retention(retention);
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe()
    }

    fn figures(&self) -> LogFigures {
        self.shared.figures()
    }

    fn close(&self) -> Answer<()> {
        self.shared.intake.close();
        let mut arrived = Vec::new();
        self.shared.intake.take(&mut arrived);
        self.committer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .finish(&mut arrived);
        ready(()).boxed()
    }
}
