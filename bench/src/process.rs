//! What the system says of another process.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Resource, getrlimit, setrlimit};

/// Ticks per second of the times in `/proc/<pid>/stat` (`USER_HZ`, 100 on every Linux there is).
const TICKS_PER_SECOND: u64 = 100;

/// Processor time that a process has used so far, in user and system mode, all threads.
///
/// # Errors
/// When there is no such process.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
        .with_context(|| format!("no process {pid}"))?;
    // The name of the program stands in parentheses and may hold blanks.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 = fields
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().context("processor time"))
        .sum::<Result<u64>>()?;
    Ok(Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND))
}

/// Processor time that everything on this machine has used so far, over all its cores.
///
/// # Errors
/// When the system does not say.
pub(crate) fn machine_cpu_time() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let fields = stat.lines().next().unwrap_or_default();
    // user, nice, system, idle, waiting, interrupts twice, stolen.
    let ticks: Vec<u64> = fields
        .split_ascii_whitespace()
        .skip(1)
        .take(8)
        .map(|field| field.parse().context("processor time"))
        .collect::<Result<_>>()?;
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    let busy = ticks.iter().sum::<u64>() - idle;
    Ok(Duration::from_millis(busy * 1000 / TICKS_PER_SECOND))
}

/// Resident memory of a process, in bytes.
///
/// # Errors
/// When there is no such process.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    memory(pid, "VmRSS:")
}

/// The most resident memory that a process ever had, in bytes.
///
/// # Errors
/// When there is no such process.
pub(crate) fn peak_resident_bytes(pid: u32) -> Result<u64> {
    memory(pid, "VmHWM:")
}

/// Memory of a process in bytes, where what it shares with others counts in proportion.
///
/// # Errors
/// When there is no such process, or it belongs to somebody else.
pub(crate) fn proportional_bytes(pid: u32) -> Result<u64> {
    kilobytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

/// Allows this process and those that it starts as many open files as the system lets it, and says how many.
///
/// # Errors
/// When the system refuses.
pub(crate) fn raise_descriptor_limit() -> Result<usize> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    let descriptors = limit.maximum.map(usize::try_from).transpose()?;
    Ok(descriptors.unwrap_or(usize::MAX))
}

fn memory(pid: u32, figure: &str) -> Result<u64> {
    kilobytes(&format!("/proc/{pid}/status"), figure)
}

fn kilobytes(file: &str, figure: &str) -> Result<u64> {
    let text = fs::read_to_string(file).with_context(|| format!("no {file}"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(figure))
        .with_context(|| format!("no {figure} in {file}"))?;
    let kilobytes = line.trim().trim_end_matches("kB").trim();
    Ok(kilobytes.parse::<u64>().context("memory")? * 1024)
}
