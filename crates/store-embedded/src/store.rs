//! Opening a whole store.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fieldpost_model::{Clock, Partitioning};
use fieldpost_store::Store;

use crate::directory::{Description, DirectoryLock, keyvalue_path, log_path};
use crate::files::{DirectoryFiles, Files, sync_name};
use crate::health::StoreHealth;
use crate::keyvalue::{self, KeyValueStore};
use crate::log::{EmbeddedLog, LogId, LogIdentity, LogOpenError, LogSettings, parse_name};

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct EmbeddedConfig {
    /// The partitions of every stream. Counts when the store is created; later the store's own
    /// number does, and a different one here is mentioned in the log.
    pub partitioning: Partitioning,
    /// How the log is run.
    pub log: LogSettings,
    /// A test mode is on: the store is a test store for good, and is refused without this.
    pub mark_as_test: bool,
}

impl EmbeddedConfig {
    /// The defaults: segments of 16 MiB growing to 256 MiB, 64 MiB of recent records in
    /// memory, and everything is kept until [`EventLog::set_retention`] is called.
    ///
    /// [`EventLog::set_retention`]: fieldpost_store::log::EventLog::set_retention
    #[must_use]
    pub fn new(partitioning: Partitioning) -> Self {
        Self {
            partitioning,
            log: LogSettings::default(),
            mark_as_test: false,
        }
    }
}

/// The default engine: everything in one directory.
///
/// ```text
/// lock          locked while the store is open; the text is the process that has it
/// store.json    format, partitions, when it was created, whether it is a test store
/// log/          segments, indexes, the reserve for a filling disk
/// documents/    the key-value store of documents and queues
/// ```
#[derive(Debug)]
pub struct EmbeddedStore;

impl EmbeddedStore {
    /// Opens the store in a directory, and creates it where there is none.
    ///
    /// The directory is free again when all facets are closed.
    ///
    /// # Errors
    /// When the store is in use, is not a store that this program may open, or the disk fails.
    /// Damage alone does not keep a log from being opened; it is logged, and reads of what is
    /// damaged fail.
    pub fn open(
        path: &Path,
        config: EmbeddedConfig,
        clock: Arc<dyn Clock>,
    ) -> Result<Store, OpenError> {
        DirectoryFiles::open(path).map_err(OpenError::io("make", path))?;
        let lock = Arc::new(DirectoryLock::take(path)?);
        let mut description = match Description::load(path)? {
            Some(description) => description,
            None => begin(path, &config, &*clock)?,
        };
        if description.test_store && !config.mark_as_test {
            return Err(OpenError::TestStore {
                path: path.to_owned(),
            });
        }
        if config.mark_as_test && !description.test_store {
            description.test_store = true;
            description.save(path)?;
        }
        let (Some(id), Some(partitioning)) = (description.log_id(), description.partitioning())
        else {
            return Err(OpenError::Description {
                path: path.to_owned(),
                what: "a value is out of its range".to_owned(),
            });
        };
        if partitioning != config.partitioning {
            tracing::warn!(
                has = partitioning.count(),
                configured = config.partitioning.count(),
                "the number of partitions is fixed when a store is created; the configured one is not used"
            );
        }
        let health = Arc::new(StoreHealth::new());
        let log_files = DirectoryFiles::open(&log_path(path))
            .map_err(OpenError::io("make", &log_path(path)))?;
        if description.creating {
            empty(&log_files).map_err(OpenError::io("empty", &log_path(path)))?;
        } else {
            count_total_loss(&mut description, &log_files, path)?;
        }
        let KeyValueStore { documents, queues } =
            KeyValueStore::open(&keyvalue_path(path), Arc::clone(&health))?;
        let identity = LogIdentity {
            id,
            created: description.created(),
            partitioning,
            fresh: description.creating,
            losses: description.losses,
        };
        let (log, report) = EmbeddedLog::open(
            Arc::new(log_files),
            identity,
            &config.log,
            clock,
            health,
            Some(lock),
        )?;
        if description.creating {
            // Nothing is accepted into a directory that a power failure can unname, also where an
            // earlier start made it and went no further.
            sync_name(path).map_err(OpenError::io("sync the directory of", path))?;
            description.creating = false;
            description.save(path)?;
        }
        tracing::info!(
            path = %path.display(),
            segments = report.segments,
            records_walked = report.records,
            clean = report.clean,
            damaged = report.damage.len(),
            "the store is open"
        );
        Ok(Store {
            log,
            documents: Arc::new(documents),
            queues: Arc::new(queues),
        })
    }
}

/// Writes down what the new store will be, before anything else is made.
fn begin(
    path: &Path,
    config: &EmbeddedConfig,
    clock: &dyn Clock,
) -> Result<Description, OpenError> {
    for part in [log_path(path), keyvalue_path(path)] {
        let mut entries = match std::fs::read_dir(&part) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(OpenError::io("read", &part)(error)),
        };
        if entries.next().is_some() {
            return Err(OpenError::Description {
                path: path.join("store.json"),
                what: format!("it is missing, although there is {}", part.display()),
            });
        }
    }
    let mut id = [0; 16];
    let filled = rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| OpenError::io("choose an id for", path)(error.into()))?;
    if filled != id.len() {
        return Err(OpenError::io("choose an id for", path)(
            io::ErrorKind::UnexpectedEof.into(),
        ));
    }
    let description = Description::new(
        LogId(id),
        clock.now(),
        config.partitioning,
        config.mark_as_test,
    );
    description.save(path)?;
    Ok(description)
}

/// Notes when all segments of the log are gone.
pub(crate) fn count_total_loss(
    description: &mut Description,
    log_files: &dyn Files,
    path: &Path,
) -> Result<(), OpenError> {
    if !has_segments(log_files).map_err(OpenError::io("list", &log_path(path)))? {
        // Before any number is given out: the next time must know of this one.
        description.losses = description.losses.saturating_add(1);
        description.save(path)?;
    }
    Ok(())
}

/// Whether a log's directory holds any segment.
fn has_segments(files: &dyn Files) -> io::Result<bool> {
    let names = files.list()?;
    Ok(names
        .iter()
        .any(|name| parse_name(name, "segment").is_some()))
}

/// Removes what an interrupted creation left. Nothing was ever accepted into it.
fn empty(files: &dyn Files) -> io::Result<()> {
    for name in files.list()? {
        files.remove(&name)?;
    }
    files.sync_dir()
}

/// Why a store cannot be opened. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{} is in use by {}", .path.display(), describe(.holder))]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// The process, as far as is known.
        holder: Option<u32>,
    },
    /// It was written by a newer version.
    #[error(
        "{} has store format {found}, and this version knows formats up to {supported}: use the version that wrote it, or a newer one",
        .path.display()
    )]
    Newer {
        /// The data directory.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The newest format that this version knows.
        supported: u32,
    },
    /// It was used in a test mode once, and this is not one.
    #[error(
        "{} is a test store: its clock and its records may have been tampered with; use another data directory",
        .path.display()
    )]
    TestStore {
        /// The data directory.
        path: PathBuf,
    },
    /// `store.json` is not what was written.
    #[error("{} cannot be used: {what}; restore it from a backup", .path.display())]
    Description {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The documents and queues cannot be opened.
    #[error(transparent)]
    KeyValue(#[from] keyvalue::OpenError),
    /// The log cannot be opened.
    #[error(transparent)]
    Log(#[from] LogOpenError),
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

impl OpenError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}

fn describe(holder: &Option<u32>) -> String {
    match holder {
        Some(process) => format!("process {process}"),
        None => "another process".to_owned(),
    }
}
