//! What the disk does, without anything above it.

use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::fs::{Advice, fadvise};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 1024;

/// Overwrites of 4 KB in a file that is there already, each with its `fdatasync`, one after the other:
/// how many in a second.
pub(crate) fn syncs_per_second(folder: &Path, time: Duration) -> Result<f64> {
    let path = folder.join("disk-measure");
    let file = std::fs::File::create(&path)?;
    let block = [0x5a; BLOCK];
    for number in 0..BLOCKS {
        file.write_all_at(&block, number * BLOCK as u64)?;
    }
    file.sync_all()?;
    let started = Instant::now();
    let mut done = 0_u64;
    while started.elapsed() < time {
        file.write_all_at(&block, done % BLOCKS * BLOCK as u64)?;
        file.sync_data()?;
        done += 1;
    }
    let rate = done as f64 / started.elapsed().as_secs_f64();
    std::fs::remove_file(&path)?;
    Ok(rate)
}

/// Reads files from the disk alone, one after the other: their bytes, and how many in a second. Leaves
/// nothing of them in the page cache.
pub(crate) fn read_past_cache(files: &[PathBuf]) -> Result<(u64, f64)> {
    let mut buffer = vec![0; 1024 * 1024];
    let mut bytes = 0_u64;
    let mut took = Duration::ZERO;
    for path in files {
        let mut file = std::fs::File::open(path)?;
        file.sync_all()?;
        fadvise(&file, 0, None, Advice::DontNeed)?;
        let started = Instant::now();
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            bytes += count as u64;
        }
        took += started.elapsed();
        fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok((bytes, bytes as f64 / took.as_secs_f64()))
}
