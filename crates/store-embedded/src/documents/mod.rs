//! Documents on a key-value engine.
//!
//! One thread writes: it groups what is waiting, evaluates conditions, gives out revisions and
//! makes one durable write of each group. A few threads read. Callers wait for their answers and
//! never for the disk. The key-value engine stands behind a seam of four calls.

mod committer;
mod engine;
mod fjall_engine;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod journal;
mod layout;
mod queue;
mod read;
mod verify;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use fieldpost_store::documents::{
    Change, ChangeResult, Collection, Document, Documents, Feed, ListRequest, Page, Revision,
    check_bounds,
};
use fieldpost_store::{Answer, StoreError};
use futures_util::FutureExt;
use futures_util::future::ready;
use tokio::sync::{oneshot, watch};

use committer::{Committer, Counts, Request};
use engine::Engine;
use fjall_engine::FjallEngine;
use queue::Queue;
pub use verify::verify;

use crate::health::StoreHealth;

/// Threads that read. Rows of connected devices are in the hub's memory; these serve the rest.
const READERS: usize = 2;

/// Deletions that the change feed remembers.
const DELETIONS_KEPT: usize = 1_000_000;

/// How documents are kept.
#[derive(Clone, Debug)]
pub struct DocumentsConfig {
    /// How many deletions the change feed remembers, at least 1. By default 1,000,000.
    pub deletions_kept: usize,
}

impl Default for DocumentsConfig {
    fn default() -> Self {
        Self {
            deletions_kept: DELETIONS_KEPT,
        }
    }
}

/// Why documents cannot be opened. Nothing has been changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has them open.
    #[error("{} is in use by another process", .path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// They were written by a newer version of this program.
    #[error(
        "{} has documents of format {found}; this version reads format {supported}; \
         use the version that wrote them, or a newer one",
        .path.display()
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The newest format that this program knows.
        supported: u32,
    },
    /// Stored bytes are not what was written.
    #[error(
        "{} is damaged: {what}; opening it would lose acknowledged changes; restore the data \
         directory from a backup, or move the directory of documents away to begin with none \
         (events are kept elsewhere)",
        .path.display()
    )]
    Damaged {
        /// The file, where it is known, or the directory.
        path: PathBuf,
        /// What is wrong with it, and where.
        what: String,
    },
    /// The key-value engine could not be opened.
    #[error("cannot open {}: {reason}", .path.display())]
    Failed {
        /// The directory.
        path: PathBuf,
        /// The engine's error.
        reason: String,
    },
    /// The system refused.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// Documents in a directory of their own.
///
/// [`Documents::close`] before dropping it; dropping it alone finishes what was submitted in the
/// background and lets go of the directory some time later.
pub struct EmbeddedDocuments {
    health: Arc<StoreHealth>,
    counts: Arc<Counts>,
    writes: Arc<Queue<Request>>,
    reads: Arc<Queue<Read>>,
    /// True when the last thread is gone and the directory is free.
    closed: watch::Receiver<bool>,
}

/// A read for whichever reader comes first.
type Read = Box<dyn FnOnce(&dyn Engine) + Send>;

impl EmbeddedDocuments {
    /// Opens the documents in the directory `path`, which is made when there is none. The
    /// directory `<path>.new` beside it is used while it is made.
    ///
    /// # Errors
    /// When the documents are in use, damaged, or of a newer format.
    pub fn open(path: &Path, health: Arc<StoreHealth>) -> Result<Self, OpenError> {
        Self::open_with(path, health, &DocumentsConfig::default())
    }

    /// As [`EmbeddedDocuments::open`], with settings.
    ///
    /// # Errors
    /// As [`EmbeddedDocuments::open`].
    pub fn open_with(
        path: &Path,
        health: Arc<StoreHealth>,
        config: &DocumentsConfig,
    ) -> Result<Self, OpenError> {
        let engine: Arc<dyn Engine> = Arc::new(FjallEngine::open_or_create(path)?);
        let loaded = read::load(path, &*engine.snapshot())?;
        let counts = Arc::new(Counts::new(loaded.counts));
        let committer = Committer {
            engine,
            health: Arc::clone(&health),
            counts: Arc::clone(&counts),
            state: loaded.state,
            deletions_kept: config.deletions_kept.max(1) as u64,
        };
        Self::start(committer, health, counts).map_err(|source| OpenError::Io {
            action: "start threads for",
            path: path.to_owned(),
            source,
        })
    }

    fn start(
        committer: Committer,
        health: Arc<StoreHealth>,
        counts: Arc<Counts>,
    ) -> io::Result<Self> {
        let (closed, closed_seen) = watch::channel(false);
        let this = Self {
            health,
            counts,
            writes: Arc::new(Queue::new()),
            reads: Arc::new(Queue::new()),
            closed: closed_seen,
        };
        // When a thread cannot be started, dropping `this` ends those that were.
        let mut readers = Vec::with_capacity(READERS);
        for number in 0..READERS {
            let reads = Arc::clone(&this.reads);
            let engine = Arc::clone(&committer.engine);
            let reader = thread::Builder::new()
                .name(format!("documents-read-{number}"))
                .spawn(move || run_reader(&reads, &*engine))?;
            readers.push(reader);
        }
        let writes = Arc::clone(&this.writes);
        thread::Builder::new()
            .name("documents-write".to_owned())
            .spawn(move || run_committer(committer, &writes, readers, &closed))?;
        Ok(this)
    }

    /// Has a reader do `work`.
    fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Engine) -> Result<T, StoreError> + Send + 'static,
    ) -> Answer<Result<T, StoreError>> {
        let (answer, answered) = oneshot::channel();
        let read: Read = Box::new(move |engine| {
            // An engine that trips over its own files must not take the reader with it.
            let result = catch_unwind(AssertUnwindSafe(|| work(engine)));
            let result = result.unwrap_or_else(|_| {
                Err(StoreError::Read {
                    reason: "the key-value engine gave up on its files".into(),
                })
            });
            // Whoever gave up waiting needs no answer.
            let _ = answer.send(result);
        });
        if self.reads.push(read).is_err() {
            return ready(Err(StoreError::Closed)).boxed();
        }
        answered
            .map(|answered| answered.unwrap_or(Err(StoreError::Closed)))
            .boxed()
    }
}

impl Documents for EmbeddedDocuments {
    fn get(
        &self,
        collection: Collection,
        key: Bytes,
    ) -> Answer<Result<Option<Document>, StoreError>> {
        self.read(move |engine| read::get(&*engine.snapshot(), collection, &key))
    }

    fn apply(&self, changes: Vec<Change>) -> Answer<Result<Vec<ChangeResult>, StoreError>> {
        let admitted = check_bounds(&changes).and_then(|()| self.health.admit_change());
        if let Err(refused) = admitted {
            return ready(Err(refused)).boxed();
        }
        let (request, answered) = Request::new(changes);
        if self.writes.push(request).is_err() {
            return ready(Err(StoreError::Closed)).boxed();
        }
        let health = Arc::clone(&self.health);
        answered
            .map(move |answered| {
                answered.unwrap_or_else(|_| Err(health.failure().unwrap_or(StoreError::Closed)))
            })
            .boxed()
    }

    fn list(&self, request: ListRequest) -> Answer<Result<Page, StoreError>> {
        self.read(move |engine| read::list(&*engine.snapshot(), &request))
    }

    fn changes(&self, after: Revision, limit: usize) -> Answer<Result<Feed, StoreError>> {
        self.read(move |engine| read::changes(&*engine.snapshot(), after, limit))
    }

    fn counts(&self, collection: Collection) -> Vec<(u8, u64)> {
        self.counts.of(collection)
    }

    fn close(&self) -> Answer<()> {
        self.writes.close();
        self.reads.close();
        let mut closed = self.closed.clone();
        async move {
            // An error means that the threads are gone without a word, which is closed as well.
            let _ = closed.wait_for(|closed| *closed).await;
        }
        .boxed()
    }
}

impl Drop for EmbeddedDocuments {
    fn drop(&mut self) {
        self.writes.close();
        self.reads.close();
    }
}

fn run_reader(reads: &Queue<Read>, engine: &dyn Engine) {
    loop {
        let taken = reads.take(|_| false);
        if taken.is_empty() {
            return;
        }
        for read in taken {
            read(engine);
        }
    }
}

fn run_committer(
    mut committer: Committer,
    writes: &Queue<Request>,
    readers: Vec<JoinHandle<()>>,
    closed: &watch::Sender<bool>,
) {
    committer.run(writes);
    for reader in readers {
        // A reader catches what it runs; there is nothing to learn from how it ended.
        let _ = reader.join();
    }
    // The last one that holds the engine closes it and frees the directory.
    drop(committer);
    closed.send_replace(true);
}

#[cfg(test)]
mod tests;
