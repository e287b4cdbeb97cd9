//! What a disk can hold after a power cut, from the system calls of a real process.
//!
//! A [`Story`] is what one or more processes did to a folder, one after the other, and what they said
//! that they had promised. From it come images of what may be left when the power fails after any of the
//! calls: what was synced, and of the rest nothing, all, or any part, torn and out of order. Whoever
//! tests says how an image is checked.

#![expect(
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a part of tests: it stops where something is not as it was taken for"
)]

mod disk;
mod image;
mod story;
mod trace;

pub use disk::Promises;
pub use image::{Chance, Data, Mode, Names};
pub use story::{Checked, Coverage, Ledger, Lost, Phase, Process, Story, Whose};
pub use trace::{NOTES, is_possible};

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use tempfile::TempDir;

/// Copies a folder with all that is in it. Others can read none of it.
pub fn copy(from: &Path, to: &Path) {
    fs::DirBuilder::new().mode(0o700).create(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Less free memory than this is not used for images.
const MEMORY_BYTES_MIN: u64 = 1 << 30;

/// A folder in memory, where there is enough: a sync costs nothing there.
#[must_use]
pub fn image_folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let is_large = rustix::fs::statvfs(memory)
        .is_ok_and(|figures| figures.f_bavail.saturating_mul(figures.f_frsize) > MEMORY_BYTES_MIN);
    let in_memory = is_large
        .then(|| tempfile::tempdir_in(memory).ok())
        .flatten();
    in_memory.unwrap_or_else(|| tempfile::tempdir().unwrap())
}
