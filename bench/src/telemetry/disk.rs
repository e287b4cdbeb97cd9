//! What the disk does, without anything above it.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;

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
