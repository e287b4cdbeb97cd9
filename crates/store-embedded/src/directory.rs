//! The data directory: its lock, and the file that says what it is.
//!
//! `store.json` is written first of all and says that the store is being created until everything
//! is there; a start that was interrupted begins anew.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use fieldpost_model::{Partitioning, Timestamp};
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use crate::log::LogId;
use crate::store::OpenError;

/// The format of the directory as a whole.
pub(crate) const STORE_FORMAT: u32 = 1;

const LOCK_NAME: &str = "lock";
const DESCRIPTION_NAME: &str = "store.json";

/// The right to use a data directory, as long as this lives.
#[derive(Debug)]
pub(crate) struct DirectoryLock {
    _file: fs::File,
}

impl DirectoryLock {
    /// Takes the lock of a directory. The file stays when the lock is let go; only the kernel's
    /// lock on it counts.
    pub(crate) fn take(directory: &Path) -> Result<Self, OpenError> {
        let path = directory.join(LOCK_NAME);
        let mut file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(OpenError::io("open", &path))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut holder = String::new();
                // Who holds it is a courtesy.
                let _ = (&file).take(32).read_to_string(&mut holder);
                return Err(OpenError::InUse {
                    path: directory.to_owned(),
                    holder: holder.trim().parse().ok(),
                });
            }
            Err(error) => return Err(OpenError::io("lock", &path)(error.into())),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(file, "{}", std::process::id()));
        written.map_err(OpenError::io("write", &path))?;
        Ok(Self { _file: file })
    }
}

/// What `store.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Description {
    /// [`STORE_FORMAT`] of the version that wrote it.
    format: u32,
    /// The id of the log, in hexadecimal.
    log: String,
    /// Milliseconds since 1970.
    created: i64,
    partitions: u16,
    /// A test mode was used on it once; it is a test store for good.
    pub(crate) test_store: bool,
    /// Nothing was ever accepted into it yet.
    pub(crate) creating: bool,
    /// How many times all segments of the log were found to be gone.
    #[serde(default)]
    pub(crate) losses: u32,
}

impl Description {
    pub(crate) fn new(
        log: LogId,
        created: Timestamp,
        partitioning: Partitioning,
        test_store: bool,
    ) -> Self {
        Self {
            format: STORE_FORMAT,
            log: log.0.iter().map(|byte| format!("{byte:02x}")).collect(),
            created: created.as_millis(),
            partitions: partitioning.count(),
            test_store,
            creating: true,
            losses: 0,
        }
    }

    /// Reads the description of a directory, if there is one.
    pub(crate) fn load(directory: &Path) -> Result<Option<Self>, OpenError> {
        let path = directory.join(DESCRIPTION_NAME);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(OpenError::io("read", &path)(error)),
        };
        // The format alone first: nothing else about a newer one is known.
        #[derive(Deserialize)]
        struct FormatOnly {
            format: u32,
        }
        let broken = |what: String| OpenError::Description {
            path: path.clone(),
            what,
        };
        let FormatOnly { format } =
            serde_json::from_str(&text).map_err(|error| broken(error.to_string()))?;
        if format > STORE_FORMAT {
            return Err(OpenError::Newer {
                path: directory.to_owned(),
                found: format,
                supported: STORE_FORMAT,
            });
        }
        let description: Self =
            serde_json::from_str(&text).map_err(|error| broken(error.to_string()))?;
        if description.log_id().is_none() || description.partitioning().is_none() {
            return Err(broken("a value is out of its range".to_owned()));
        }
        Ok(Some(description))
    }

    /// Replaces the description of a directory, durably.
    pub(crate) fn save(&self, directory: &Path) -> Result<(), OpenError> {
        let path = directory.join(DESCRIPTION_NAME);
        let new = directory.join("store.json.new");
        let write = || -> io::Result<()> {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&new)?;
            let mut text = serde_json::to_string_pretty(self).map_err(io::Error::other)?;
            text.push('\n');
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            fs::File::open(directory)?.sync_all()
        };
        write().map_err(OpenError::io("write", &path))
    }

    pub(crate) fn log_id(&self) -> Option<LogId> {
        if self.log.len() != 32 {
            return None;
        }
        let number = u128::from_str_radix(&self.log, 16).ok()?;
        Some(LogId(number.to_be_bytes()))
    }

    pub(crate) fn partitioning(&self) -> Option<Partitioning> {
        Partitioning::new(self.partitions)
    }

    pub(crate) fn created(&self) -> Timestamp {
        Timestamp::from_millis(self.created)
    }
}

/// Where the log of a store is.
pub(crate) fn log_path(directory: &Path) -> PathBuf {
    directory.join("log")
}

/// Where the documents and queues of a store are. The name is that of their first format.
pub(crate) fn keyvalue_path(directory: &Path) -> PathBuf {
    directory.join("documents")
}
