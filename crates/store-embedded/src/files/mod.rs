//! The file layer: the few calls that the log makes of one directory.
//!
//! The log's rules are written against these traits, so that a test can put a disk under them that
//! forgets, tears and fails. [`DirectoryFiles`] is the real one.

mod direct;
mod real;
#[cfg(any(test, feature = "sim"))]
pub mod sim;

use std::io::{self, IoSlice};
use std::sync::Arc;

pub use real::DirectoryFiles;
pub(crate) use real::sync_name;

/// One flat directory of files.
///
/// Creating, renaming and removing are durable after [`Files::sync_dir`] and not before.
pub trait Files: Send + Sync + 'static {
    /// Creates a file or empties the one that has this name.
    ///
    /// # Errors
    /// As the system reports.
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Opens an existing file for reading and writing.
    ///
    /// Each call gives a handle that learns of failed syncs for itself.
    ///
    /// # Errors
    /// As the system reports.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Gives a file another name; a file that had it before is gone.
    ///
    /// # Errors
    /// As the system reports.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a name. Open handles stay usable.
    ///
    /// # Errors
    /// As the system reports.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// The names of all files, in no order.
    ///
    /// # Errors
    /// As the system reports.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes all creations, renamings and removals so far durable.
    ///
    /// # Errors
    /// As the system reports.
    fn sync_dir(&self) -> io::Result<()>;

    /// Room on the disk that holds the directory.
    ///
    /// # Errors
    /// As the system reports.
    fn space(&self) -> io::Result<Space>;
}

/// One open file.
pub trait File: Send + Sync {
    /// Its length.
    ///
    /// # Errors
    /// As the system reports.
    fn bytes(&self) -> io::Result<u64>;

    /// Reads from a position; fewer bytes than asked for mean that the file ends there.
    ///
    /// # Errors
    /// As the system reports.
    fn read_at(&self, out: &mut [u8], at: u64) -> io::Result<usize>;

    /// Writes parts one after the other and returns how many bytes were taken.
    ///
    /// # Errors
    /// As the system reports.
    fn write_at(&self, parts: &[IoSlice<'_>], at: u64) -> io::Result<usize>;

    /// Makes the file at least this long, with disk space behind it where the file system can
    /// promise that. New space reads as zeros.
    ///
    /// # Errors
    /// As the system reports.
    fn allocate(&self, bytes: u64) -> io::Result<()>;

    /// Makes what was written durable, and the length that is needed to read it back.
    ///
    /// # Errors
    /// As the system reports. What was written since the last sync is then in an unknown state,
    /// and a second call would not tell.
    fn sync(&self) -> io::Result<()>;
}

/// Room on a disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What this process can still use.
    pub free: u64,
    /// The size of the disk.
    pub total: u64,
}

/// Parts that one system call takes at most.
const PARTS_MAX: usize = 1024;

/// Writes all parts one after the other. A disk that fills up often takes a part of a write first,
/// and says why with the next one.
pub(crate) fn write_all_at(file: &dyn File, parts: &[IoSlice<'_>], at: u64) -> io::Result<()> {
    let mut at = at;
    for chunk in parts.chunks(PARTS_MAX) {
        let expected: usize = chunk.iter().map(|part| part.len()).sum();
        let written = file.write_at(chunk, at)?;
        if written < expected {
            write_rest(file, chunk, at, written)?;
        }
        at += expected as u64;
    }
    Ok(())
}

/// Goes on after a write that took only the first `written` bytes.
fn write_rest(
    file: &dyn File,
    parts: &[IoSlice<'_>],
    at: u64,
    mut written: usize,
) -> io::Result<()> {
    let mut parts = parts.to_vec();
    let mut rest = parts.as_mut_slice();
    let mut at = at;
    loop {
        at += written as u64;
        IoSlice::advance_slices(&mut rest, written);
        if rest.is_empty() {
            return Ok(());
        }
        written = file.write_at(rest, at)?;
        if written == 0 {
            return Err(io::Error::new(
                io::ErrorKind::WriteZero,
                format!("a write at {at} took nothing"),
            ));
        }
    }
}

/// Whether an error says that the disk, or this user's share of it, is full.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}
