//! The key-value store under documents and queues.
//!
//! One thread writes: it groups what is waiting of both facets, evaluates conditions, gives out
//! numbers and makes one durable write of each group. A few threads read. Callers wait for their
//! answers and never for the disk. The key-value engine stands behind a seam of four calls.

mod committer;
pub(crate) mod engine;
mod files;
mod fjall_engine;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing;
mod journal;
mod load;
pub(crate) mod rows;
mod secret;
pub(crate) mod verify;
mod waiting;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use fieldpost_store::{Health, StoreError};
use futures_util::FutureExt;
use futures_util::future::ready;
use tokio::sync::{oneshot, watch};

pub(crate) use committer::Request;
use committer::{Answer, Committer, Submitted};
use engine::Engine;
use fjall_engine::FjallEngine;
pub(crate) use load::{damaged_store, visit};
pub use verify::verify;
use waiting::Waiting;

use crate::documents::EmbeddedDocuments;
use crate::health::StoreHealth;
use crate::queues::EmbeddedQueues;
use crate::queues::tally::Pass;

/// Threads that read. Rows of connected devices are in the hub's memory; these serve the rest.
const READERS: usize = 2;

/// Deletions that the change feed remembers.
const DELETIONS_KEPT: usize = 1_000_000;

/// How the key-value store is kept.
#[derive(Clone, Debug)]
pub struct KeyValueConfig {
    /// How many deletions of documents the change feed remembers, at least 1. By default 1,000,000.
    pub deletions_kept: usize,
}

impl Default for KeyValueConfig {
    fn default() -> Self {
        Self {
            deletions_kept: DELETIONS_KEPT,
        }
    }
}

/// Why the key-value store cannot be opened. Nothing has been changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{} is in use by another process", .path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// It was written by a newer version of this program.
    #[error(
        "{} has documents and queues of format {found}; this version reads format {supported}; \
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
         directory from a backup, or move the directory of documents away to begin with no \
         documents and no queues (events are kept elsewhere)",
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

/// An open key-value store: what it holds, a facet for each. Its directory is free when all of them
/// are closed or dropped; a dropped one needs some time for that.
pub struct KeyValueStore {
    /// Identities, settings, sessions.
    pub documents: EmbeddedDocuments,
    /// Messages to devices and what became of them.
    pub queues: EmbeddedQueues,
}

impl KeyValueStore {
    /// Opens the store in the directory `path`, which is made when there is none. The directory
    /// `<path>.new` beside it is used while it is made, and the file `<path>.upgrade` while one of
    /// an older format is upgraded.
    ///
    /// # Errors
    /// When the store is in use, damaged, or of a newer format.
    pub fn open(path: &Path, health: Arc<StoreHealth>) -> Result<Self, OpenError> {
        Self::open_with(path, health, &KeyValueConfig::default())
    }

    /// As [`KeyValueStore::open`], with settings.
    ///
    /// # Errors
    /// As [`KeyValueStore::open`].
    pub fn open_with(
        path: &Path,
        health: Arc<StoreHealth>,
        config: &KeyValueConfig,
    ) -> Result<Self, OpenError> {
        let engine = FjallEngine::open_or_create(path)?;
        Self::on_engine(path, Arc::new(engine), health, config)
    }

    fn on_engine(
        path: &Path,
        engine: Arc<dyn Engine>,
        health: Arc<StoreHealth>,
        config: &KeyValueConfig,
    ) -> Result<Self, OpenError> {
        let loaded = load::load(path, &*engine.snapshot())?;
        let (closed, closed_seen) = watch::channel(false);
        let shared = Arc::new(Shared {
            health: Arc::clone(&health),
            writes: Waiting::new(),
            reads: Waiting::new(),
            facets: AtomicUsize::new(2),
            closing: AtomicBool::new(false),
            closed: closed_seen,
        });
        let pass = Arc::new(Pass::default());
        let facet = || Facet {
            shared: Arc::clone(&shared),
            open: AtomicBool::new(true),
        };
        let (documents, documents_writer) =
            EmbeddedDocuments::new(facet(), loaded.documents, config.deletions_kept);
        let (queues, queues_writer) =
            EmbeddedQueues::new(facet(), loaded.queues, Arc::clone(&pass));
        let committer = Committer {
            engine,
            health,
            documents: documents_writer,
            queues: queues_writer,
        };
        // When a thread cannot be started, dropping the facets ends those that were.
        start(committer, &pass, &shared, closed).map_err(|source| OpenError::Io {
            action: "start threads for",
            path: path.to_owned(),
            source,
        })?;
        Ok(Self { documents, queues })
    }
}

fn start(
    mut committer: Committer,
    pass: &Arc<Pass>,
    shared: &Arc<Shared>,
    closed: watch::Sender<bool>,
) -> io::Result<()> {
    let mut readers = Vec::with_capacity(READERS + 1);
    readers.push(start_pass(&committer, pass, shared)?);
    for number in 0..READERS {
        let shared = Arc::clone(shared);
        let engine = Arc::clone(&committer.engine);
        let reader = thread::Builder::new()
            .name(format!("keyvalue-read-{number}"))
            .spawn(move || run_reader(&shared.reads, &*engine))?;
        readers.push(reader);
    }
    let shared = Arc::clone(shared);
    thread::Builder::new()
        .name("keyvalue-write".to_owned())
        .spawn(move || {
            committer.run(&shared.writes);
            end(committer, readers, &closed);
        })?;
    Ok(())
}

/// Starts the pass over the messages, and returns when it sees the store as it is now.
fn start_pass(
    committer: &Committer,
    pass: &Arc<Pass>,
    shared: &Arc<Shared>,
) -> io::Result<JoinHandle<()>> {
    let (seen, sees) = mpsc::channel();
    let pass = Arc::clone(pass);
    let shared = Arc::clone(shared);
    let engine = Arc::clone(&committer.engine);
    let thread = thread::Builder::new()
        .name("keyvalue-count".to_owned())
        .spawn(move || {
            // The store works without it, and whoever reads what is damaged is told of it.
            let _ = catch_unwind(AssertUnwindSafe(|| {
                let view = engine.snapshot();
                drop(seen);
                pass.run(&*view, &shared.closing)
            }));
        })?;
    // The other end goes when the view is there.
    let _: Result<Never, _> = sees.recv();
    Ok(thread)
}

/// Nothing is ever sent.
enum Never {}

fn run_reader(reads: &Waiting<Read>, engine: &dyn Engine) {
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

fn end(committer: Committer, readers: Vec<JoinHandle<()>>, closed: &watch::Sender<bool>) {
    for reader in readers {
        // A reader catches what it runs; there is nothing to learn from how it ended.
        let _ = reader.join();
    }
    // The last one that holds the engine closes it and frees the directory.
    drop(committer);
    closed.send_replace(true);
}

/// A read for whichever reader comes first.
type Read = Box<dyn FnOnce(&dyn Engine) + Send>;

/// What the facets share.
struct Shared {
    health: Arc<StoreHealth>,
    writes: Waiting<Submitted>,
    reads: Waiting<Read>,
    /// How many facets are open.
    facets: AtomicUsize,
    /// Whether none is, and long reads end early.
    closing: AtomicBool,
    /// True when the last thread is gone and the directory is free.
    closed: watch::Receiver<bool>,
}

/// One facet's way to the threads of the store. Dropping it closes it.
pub(crate) struct Facet {
    shared: Arc<Shared>,
    open: AtomicBool,
}

impl Facet {
    /// What the queues take.
    pub(crate) fn health_of_queues(&self) -> watch::Receiver<Health> {
        self.shared.health.subscribe_to_queues()
    }

    /// Has the writer carry out a request.
    pub(crate) fn write<T: Send + 'static>(
        &self,
        request: impl FnOnce(Answer<T>) -> Request,
    ) -> fieldpost_store::Answer<Result<T, StoreError>> {
        if let Err(refused) = self.shared.health.admit_change() {
            return ready(Err(refused)).boxed();
        }
        let (answer, answered) = oneshot::channel();
        let submitted = Submitted::from(request(answer));
        if !self.open.load(Ordering::Acquire) || self.shared.writes.push(submitted).is_err() {
            return ready(Err(StoreError::Closed)).boxed();
        }
        let health = Arc::clone(&self.shared.health);
        answered
            .map(move |answered| {
                answered.unwrap_or_else(|_| Err(health.failure().unwrap_or(StoreError::Closed)))
            })
            .boxed()
    }

    /// Has a reader do `work`.
    pub(crate) fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Engine) -> Result<T, StoreError> + Send + 'static,
    ) -> fieldpost_store::Answer<Result<T, StoreError>> {
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
        if !self.open.load(Ordering::Acquire) || self.shared.reads.push(read).is_err() {
            return ready(Err(StoreError::Closed)).boxed();
        }
        answered
            .map(|answered| answered.unwrap_or(Err(StoreError::Closed)))
            .boxed()
    }

    /// Takes nothing more. Answers when everything that was submitted here is durable and, when no
    /// other facet is open, the directory is free.
    pub(crate) fn close(&self) -> fieldpost_store::Answer<()> {
        if !self.shut() {
            let (answer, answered) = oneshot::channel();
            let barrier = Submitted::from(Request::Barrier { answer });
            if self.shared.writes.push(barrier).is_ok() {
                // However it ends, nothing is under way any more.
                return answered.map(|_| ()).boxed();
            }
        }
        let mut closed = self.shared.closed.clone();
        async move {
            // An error means that the threads are gone without a word, which is closed as well.
            let _ = closed.wait_for(|closed| *closed).await;
        }
        .boxed()
    }

    /// Takes nothing more; whether no facet is open now.
    fn shut(&self) -> bool {
        let facets = &self.shared.facets;
        if !self.open.swap(false, Ordering::AcqRel) {
            return facets.load(Ordering::Acquire) == 0;
        }
        let last = facets.fetch_sub(1, Ordering::AcqRel) == 1;
        if last {
            self.shared.closing.store(true, Ordering::Relaxed);
            self.shared.writes.close();
            self.shared.reads.close();
        }
        last
    }
}

impl Drop for Facet {
    fn drop(&mut self) {
        self.shut();
    }
}

#[cfg(test)]
mod tests;
