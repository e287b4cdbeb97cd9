//! What the examples tell of a process and its files.

use std::fs;
use std::path::Path;

/// Resident memory of this process, where the system tells.
pub(crate) fn memory() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = |name: &str| {
        let found = status.lines().find(|line| line.starts_with(name));
        found.map_or("unknown", |line| line.trim_start_matches(name).trim())
    };
    format!("resident {}, at most {}", line("VmRSS:"), line("VmHWM:"))
}

/// Bytes of all files in a folder.
pub(crate) fn bytes_below(path: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() {
            bytes_below(&entry.path())?
        } else {
            entry.metadata()?.len()
        };
    }
    Ok(bytes)
}
