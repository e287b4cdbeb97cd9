//! One process per data directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::files;

/// Held while a process uses a data directory. The system lets go of it when the process ends,
/// however it ends.
#[derive(Debug)]
pub(crate) struct DataLock {
    _file: File,
}

/// Why a data directory is not ours.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LockError {
    #[error("the data directory {} is in use by another process{}", path.display(), of_holder(.holder))]
    Held { path: PathBuf, holder: String },
    #[error("cannot lock the data directory {}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
}

impl DataLock {
    /// Takes the lock, or says who has it.
    pub(crate) fn take(data: &Path) -> Result<Self, LockError> {
        let failed = |error| LockError::Io {
            path: data.to_owned(),
            error,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(files::PRIVATE)
            .open(data.join("lock"))
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Only told to the user; an unreadable file leaves it empty.
                let _ = file.read_to_string(&mut holder);
                return Err(LockError::Held {
                    path: data.to_owned(),
                    holder: holder.trim().to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        let written = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()));
        written.map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// Whether a process uses a data directory.
pub(crate) fn is_held(data: &Path) -> bool {
    let Ok(file) = File::open(data.join("lock")) else {
        return false;
    };
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

fn of_holder(id: &str) -> String {
    if id.is_empty() {
        String::new()
    } else {
        format!(" (process {id})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_user_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_held(folder.path()));
        let lock = DataLock::take(folder.path()).unwrap();
        assert!(is_held(folder.path()));
        let error = DataLock::take(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(lock);
        assert!(!is_held(folder.path()));
        DataLock::take(folder.path()).unwrap();
    }
}
