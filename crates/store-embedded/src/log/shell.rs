//! The threads of an open log.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use fieldpost_model::{Clock, PartitionId, Partitioning, SequenceNumber, StreamId, Timestamp};
use fieldpost_store::log::{
    Bounds, EventLog, LogFigures, ReadRequest, Records, Retention, Submission, TailWatch,
};
use fieldpost_store::{Answer, Health, StoreError};
use futures_util::FutureExt;
use tokio::sync::{oneshot, watch};

use super::check::CheckBell;
use super::committer::{Committer, Turn};
use super::intake::Woken;
use super::keeper::Keeper;
use super::{LogIdentity, LogOpenError, LogSettings, Opened, RecoveryReport, Shared};
use crate::files::Files;
use crate::health::StoreHealth;

/// Threads that read from the disk.
const READERS: usize = 2;

/// The event log on files, with a thread that commits, one that keeps house, and two that read.
pub struct EmbeddedLog {
    shared: Arc<Shared>,
    reads: Arc<ReadQueue>,
    /// Ends the check of older segments.
    check: Arc<CheckBell>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Whether every thread has come to its end.
    ended: Arc<watch::Sender<bool>>,
}

/// Something to hold on to as long as a thread of the log is running: the lock on the directory.
pub(crate) type Guard = Arc<dyn Send + Sync>;

type Job = Box<dyn FnOnce(&Shared) + Send>;

#[derive(Default)]
struct ReadQueue {
    jobs: Mutex<Jobs>,
    arrived: Condvar,
}

#[derive(Default)]
struct Jobs {
    queue: VecDeque<Job>,
    closing: bool,
}

impl EmbeddedLog {
    /// Opens a log and starts its threads.
    pub(crate) fn open(
        files: Arc<dyn Files>,
        identity: LogIdentity,
        settings: &LogSettings,
        clock: Arc<dyn Clock>,
        health: Arc<StoreHealth>,
        guard: Option<Guard>,
    ) -> Result<(Arc<Self>, RecoveryReport), LogOpenError> {
        let Opened {
            shared,
            committer,
            keeper,
            check,
            report,
        } = super::open(files, identity, settings, clock, health)?;
        let reads = Arc::new(ReadQueue::default());
        let log = Self {
            shared: Arc::clone(&shared),
            reads: Arc::clone(&reads),
            check: Arc::default(),
            threads: Mutex::default(),
            ended: Arc::default(),
        };
        // When a thread cannot be started, dropping `log` ends those that were.
        let start = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let guard = guard.clone();
            let thread = spawn(name, move || {
                run();
                drop(guard);
            })?;
            log.threads
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(thread);
            Ok::<_, io::Error>(())
        };
        start(
            "log-commit",
            Box::new(move || commit_until_closed(committer)),
        )?;
        start("log-keep", Box::new(move || keep_until_closed(keeper)))?;
        for reader in 0..READERS {
            let (shared, reads) = (Arc::clone(&shared), Arc::clone(&reads));
            let read = move || {
                while let Some(job) = reads.next() {
                    job(&shared);
                }
            };
            start(&format!("log-read-{reader}"), Box::new(read))?;
        }
        let bell = Arc::clone(&log.check);
        let walk = move || {
            check.run(&bell);
        };
        start("log-check", Box::new(walk))?;
        Ok((Arc::new(log), report))
    }

    /// Has a reader thread find an answer.
    fn ask<T: Send + 'static>(
        &self,
        find: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Answer<Result<T, StoreError>> {
        let (answer, receiver) = oneshot::channel();
        let queued = self.reads.push(Box::new(move |shared| {
            // Nobody waits for it any more: the disk has better things to do.
            if !answer.is_closed() {
                let _ = answer.send(find(shared));
            }
        }));
        if !queued {
            return futures_util::future::ready(Err(StoreError::Closed)).boxed();
        }
        async move { receiver.await.unwrap_or(Err(StoreError::Closed)) }.boxed()
    }

    /// Lets every thread come to its end.
    fn stop(&self) {
        self.shared.intake.close();
        self.shared.keeper.close();
        self.check.close();
        self.reads.close();
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        // The threads finish what was submitted by themselves.
        self.stop();
    }
}

impl EventLog for EmbeddedLog {
    fn submit(&self, submission: Submission) -> Result<(), StoreError> {
        self.shared.submit(submission)
    }

    fn read_recent(&self, request: &ReadRequest) -> Option<Records> {
        self.shared.tail.read(request)
    }

    fn read(&self, request: ReadRequest) -> Answer<Result<Records, StoreError>> {
        if let Some(records) = self.shared.tail.read(&request) {
            return futures_util::future::ready(Ok(records)).boxed();
        }
        // A reader at the end is not to wait behind those that keep the disk busy.
        if let Some(nothing) = self.shared.read_at_end(&request)
            && !self.reads.is_closing()
        {
            return futures_util::future::ready(Ok(nothing)).boxed();
        }
        self.ask(move |shared| shared.read(&request))
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
        self.ask(move |shared| shared.seek_time((stream, partition), after))
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
        self.stop();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let threads = std::mem::take(&mut *threads);
        // Whoever closes it first has them waited for, and all others wait for that.
        if !threads.is_empty() {
            let ended = Arc::clone(&self.ended);
            let joiner = spawn("log-close", move || {
                for thread in threads {
                    // A thread that panicked has nothing more to do either.
                    let _ = thread.join();
                }
                ended.send_replace(true);
            });
            if let Err(error) = joiner {
                tracing::warn!(%error, "no thread to wait for the log's threads");
                self.ended.send_replace(true);
            }
        }
        let mut ended = self.ended.subscribe();
        async move {
            let _ = ended.wait_for(|ended| *ended).await;
        }
        .boxed()
    }
}

impl ReadQueue {
    /// Queues a job; false when the log is being closed.
    fn push(&self, job: Job) -> bool {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs.closing {
            return false;
        }
        jobs.queue.push_back(job);
        drop(jobs);
        self.arrived.notify_one();
        true
    }

    fn is_closing(&self) -> bool {
        (self.jobs.lock().unwrap_or_else(PoisonError::into_inner)).closing
    }

    fn next(&self) -> Option<Job> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        while jobs.queue.is_empty() && !jobs.closing {
            jobs = self
                .arrived
                .wait(jobs)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if jobs.closing {
            return None;
        }
        jobs.queue.pop_front()
    }

    fn close(&self) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.closing = true;
        // Dropping a job answers it with `Closed`.
        let unanswered = std::mem::take(&mut jobs.queue);
        drop(jobs);
        drop(unanswered);
        self.arrived.notify_all();
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).spawn(run)
}

/// Turns the store read-only should the committer panic: else everybody would wait for ever.
struct CommitterWatch(Arc<Shared>);

impl Drop for CommitterWatch {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        self.0.health.fail("the thread that commits panicked");
        if let Some(error) = self.0.health.failure() {
            for submission in self.0.intake.refuse(error.clone()) {
                submission.completion.set_failed(error.clone());
                submission.completion.wake();
            }
        }
    }
}

fn commit_until_closed(mut committer: Committer) {
    let shared = Arc::clone(&committer.shared);
    let _watch = CommitterWatch(Arc::clone(&shared));
    let mut arrived = Vec::new();
    let mut turn = Turn::Idle;
    loop {
        let woken = match turn {
            Turn::Held => shared.intake.wait_for_nudge(),
            _ if committer.has_pending() => shared.intake.take(&mut arrived),
            _ => shared.intake.wait(&mut arrived),
        };
        if woken == Woken::Closing {
            shared.intake.take(&mut arrived);
            break;
        }
        turn = committer.run_once(&mut arrived);
    }
    committer.finish(&mut arrived);
}

fn keep_until_closed(mut keeper: Keeper) {
    let shared = Arc::clone(&keeper.shared);
    loop {
        while keeper.step() {
            if shared.keeper.is_closing() {
                return;
            }
        }
        if !shared.keeper.wait(keeper.pause()) {
            return;
        }
    }
}
