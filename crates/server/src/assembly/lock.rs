//! One process per data directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::files;

/// Locked by whoever uses the data directory. Nobody else ever tries to.
const LOCK: &str = "lock";

/// Locked by the same process, and for the moment of a look by those who want to know whether there is
/// one. A look at the other file would turn away a process that takes it in that moment.
const IN_USE: &str = "in-use";

/// Held while a process uses a data directory. The system lets go of it when the process ends,
/// however it ends.
#[derive(Debug)]
pub(crate) struct DataLock {
    // Let go of in this order, so that whoever finds the directory free can have it.
    _lock: File,
    _in_use: File,
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
        let open = |name| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(files::PRIVATE)
                .open(data.join(name))
        };
        let mut file = open(LOCK).map_err(failed)?;
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
        let in_use = open(IN_USE).map_err(failed)?;
        // Whoever else has it looks at it and goes.
        in_use.lock().map_err(failed)?;
        Ok(Self {
            _lock: file,
            _in_use: in_use,
        })
    }
}

/// Whether a process uses a data directory.
pub(crate) fn is_held(data: &Path) -> bool {
    let Ok(file) = File::open(data.join(IN_USE)) else {
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
    use std::sync::atomic::{AtomicUsize, Ordering};

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

    /// A hub that started while a command looked for one was told that the directory is in use.
    #[test]
    fn whoever_looks_is_in_nobodys_way() {
        const TIMES: usize = 50;
        // A directory each time: other tests start processes, which hold whatever is locked here for
        // the moment before they become what they are.
        let folder = tempfile::tempdir().unwrap();
        let data = |time: usize| folder.path().join(time.to_string());
        for time in 0..TIMES {
            std::fs::create_dir(data(time)).unwrap();
            for name in [LOCK, IN_USE] {
                File::create(data(time).join(name)).unwrap();
            }
        }
        let time = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while let now @ 0..TIMES = time.load(Ordering::Relaxed) {
                        is_held(&data(now));
                    }
                });
            }
            let taken = (0..TIMES).try_for_each(|now| {
                time.store(now, Ordering::Relaxed);
                std::thread::yield_now();
                DataLock::take(&data(now)).map(drop)
            });
            time.store(TIMES, Ordering::Relaxed);
            taken.unwrap();
        });
    }
}
