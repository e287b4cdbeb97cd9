//! How soon a hub is there, and what it needs for nothing.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::hub::Hub;
use super::{Arguments, Report, median};
use crate::process::resident_bytes;

/// How long a hub is left alone before its memory is looked at.
const SETTLED: Duration = Duration::from_secs(2);

/// What a full store holds.
const DEVICES: usize = 1_000_000;
const LOG_GB: f64 = 10.0;

pub(super) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let (mut first, mut again, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        let begun = Instant::now();
        let mut hub = Hub::start(&arguments.fieldpost, 0).await?;
        first.push(begun.elapsed().as_secs_f64() * 1e3);
        hub.stop().await?;
        let begun = Instant::now();
        hub.start_again().await?;
        again.push(begun.elapsed().as_secs_f64() * 1e3);
        tokio::time::sleep(SETTLED).await;
        memory.push(resident_bytes(hub.pid()?)? as f64 / 1e6);
    }
    let size = std::fs::metadata(&arguments.fieldpost)?.len() as f64 / 1e6;
    let stripped = stripped_bytes(arguments)? as f64 / 1e6;
    let (first, again) = (median(first.into_iter()), median(again.into_iter()));
    let memory = median(memory.into_iter());
    report.row(
        "start",
        &format!(
            "launch to ready: {first:.0} ms with a new store, {again:.0} ms with an empty one that is there (aim: 50); binary \
             {stripped:.1} MB without, {size:.1} MB with line tables (aim: 25); {memory:.1} MB resident when idle (aim: 30)"
        ),
        json!({
            "new_store_ms": first, "empty_store_ms": again, "binary_mb": size, "stripped_mb": stripped,
            "idle_resident_mb": memory,
        }),
    );
    Ok(())
}

/// Starts after a stop and after a crash, with what a machine may hold.
pub(super) async fn full(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let mut hub = Hub::start(&arguments.fieldpost, DEVICES).await?;
    hub.fill_log(LOG_GB, arguments.threads)?;
    let (mut stopped, mut killed) = (Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        hub.stop().await?;
        let begun = Instant::now();
        hub.start_again().await?;
        stopped.push(begun.elapsed().as_secs_f64() * 1e3);
        hub.kill().await?;
        let begun = Instant::now();
        hub.start_again().await?;
        killed.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let memory = resident_bytes(hub.pid()?)? as f64 / 1e6;
    let (stopped, killed) = (median(stopped.into_iter()), median(killed.into_iter()));
    report.row(
        "start-full",
        &format!(
            "launch to ready with {LOG_GB} GB of log and {DEVICES} devices: {stopped:.0} ms after a stop, {killed:.0} ms \
             after SIGKILL (aim: 3000); {memory:.1} MB resident then"
        ),
        json!({
            "log_gb": LOG_GB, "devices": DEVICES, "stopped_ms": stopped, "killed_ms": killed, "resident_mb": memory,
        }),
    );
    Ok(())
}

fn stripped_bytes(arguments: &Arguments) -> Result<u64> {
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("stripped");
    let status = Command::new("strip")
        .arg("-o")
        .args([&copy, &arguments.fieldpost])
        .status()
        .context("strip, of binutils")?;
    anyhow::ensure!(status.success(), "strip failed");
    Ok(std::fs::metadata(copy)?.len())
}
