//! Import and export of all devices.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use axum::body::Body;
use axum::http::Method;
use clap::Args;
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::{Format, OutputArgs, PlaceArgs, output, with_hub};
use crate::admin::{AdminClient, NoStore};

pub(super) const IMPORT_HELP: &str = r#"Each line is an entry of Azure IoT Hub's bulk registry request, such as
  {"id":"dev1","status":"enabled","authentication":{"type":"sas","symmetricKey":{"primaryKey":"...","secondaryKey":"..."}}}
importMode may be create, update, updateIfMatchETag, createOrUpdate (default),
createOrUpdateIfMatchETag, delete or deleteIfMatchETag. Without keys, the hub makes two.
Running an import again after a failure does no harm."#;

/// Lines sent in one call, and a bound on their bytes.
const CHUNK_LINES: u64 = 10_000;
const CHUNK_BYTES: usize = 8 * 1024 * 1024;

/// Answers larger than this are none of the import: every line of a chunk may fail with a text.
const RESULT_BYTES_MAX: usize = 64 * 1024 * 1024;

#[derive(Args, Debug)]
pub(in crate::cli) struct ImportArgs {
    /// The file; - reads standard input.
    file: PathBuf,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct ExportArgs {
    /// The file; standard output when it is left out or -.
    file: Option<PathBuf>,
    /// Leave the devices' keys out.
    #[arg(long)]
    exclude_keys: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Debug, Default, Deserialize)]
struct ChunkResult {
    applied: u64,
    failed: u64,
    errors: Vec<Value>,
}

/// Sums up an import and tells of each failure as it comes.
struct Tally {
    format: Format,
    lines: u64,
    applied: u64,
    failed: u64,
    /// Failures printed or kept so far.
    told: u64,
    /// Kept for JSON output alone.
    errors: Vec<Value>,
}

/// Failures printed or kept; more are only counted.
const FAILURES_MAX: u64 = 10_000;

pub(super) fn import(args: &ImportArgs) -> anyhow::Result<ExitCode> {
    let (mut reader, bytes): (Box<dyn BufRead + Send>, _) = if args.file.as_os_str() == "-" {
        (Box::new(BufReader::new(io::stdin())), None)
    } else {
        let file =
            File::open(&args.file).with_context(|| format!("read {}", args.file.display()))?;
        let bytes = file.metadata().ok().map(|metadata| metadata.len());
        (Box::new(BufReader::new(file)), bytes)
    };
    let mut tally = Tally {
        format: args.output.output,
        lines: 0,
        applied: 0,
        failed: 0,
        told: 0,
        errors: Vec::new(),
    };
    with_hub(&args.place, NoStore::Create, async |client| {
        let bar = output::progress("importing", bytes, "bytes");
        loop {
            let (chunk, lines) = next_chunk(&mut reader)?;
            if chunk.is_empty() {
                break;
            }
            let sent = u64::try_from(chunk.len()).unwrap_or_default();
            let result = send_chunk(client, chunk)
                .await
                .with_context(|| format!("import the lines from {} on", tally.lines + 1))?;
            bar.suspend(|| tally.add(result, lines));
            bar.inc(sent);
        }
        bar.finish_and_clear();
        Ok(())
    })?;
    tally.print()
}

pub(super) fn export(args: &ExportArgs) -> anyhow::Result<ExitCode> {
    let file = args.file.as_deref().filter(|file| file.as_os_str() != "-");
    with_hub(&args.place, NoStore::Refuse, async |client| match file {
        None => write_lines(client, args.exclude_keys, &mut io::stdout()).await,
        // A pipe or a device such as /dev/stdout is written to, and never replaced by a file.
        Some(path) if is_special(path) => {
            let mut out = std::fs::OpenOptions::new()
                .write(true)
                .open(path)
                .with_context(|| format!("open {}", path.display()))?;
            write_lines(client, args.exclude_keys, &mut out).await
        }
        Some(path) => {
            // By rename, so that a failed export leaves no file that looks whole.
            let temporary = temporary_path(path);
            let mut file = private_file(&temporary)?;
            let written = write_lines(client, args.exclude_keys, &mut file).await;
            let done = written.and_then(|()| {
                file.sync_all()?;
                std::fs::rename(&temporary, path)?;
                Ok(())
            });
            if done.is_err() {
                // The failure that matters is the first one.
                let _ = crate::files::remove(&temporary);
            }
            done.with_context(|| format!("write {}", path.display()))
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Whole lines, at least one unless the input is at its end.
fn next_chunk(reader: &mut dyn BufRead) -> io::Result<(Vec<u8>, u64)> {
    let mut chunk = Vec::new();
    let mut lines = 0;
    while lines < CHUNK_LINES && chunk.len() < CHUNK_BYTES {
        // A line without an end is cut at the chunk's bound; the hub then refuses it.
        let room = u64::try_from(CHUNK_BYTES).unwrap_or(u64::MAX);
        let mut bounded = io::Read::take(&mut *reader, room);
        if bounded.read_until(b'\n', &mut chunk)? == 0 {
            break;
        }
        lines += 1;
    }
    Ok((chunk, lines))
}

async fn send_chunk(client: &AdminClient, chunk: Vec<u8>) -> anyhow::Result<ChunkResult> {
    let answer = client
        .send(Method::POST, "/api/registry/import", &[], Body::from(chunk))
        .await?;
    let bytes = axum::body::to_bytes(answer.into_body(), RESULT_BYTES_MAX).await?;
    Ok(serde_json::from_slice(&bytes)?)
}

impl Tally {
    fn add(&mut self, result: ChunkResult, lines: u64) {
        for mut error in result.errors {
            if self.told >= FAILURES_MAX {
                break;
            }
            self.told += 1;
            let line = error
                .get("line")
                .and_then(Value::as_u64)
                .unwrap_or_default()
                + self.lines;
            if let Some(members) = error.as_object_mut() {
                members.insert("line".to_owned(), json!(line));
            }
            match self.format {
                Format::Json => self.errors.push(error),
                Format::Text => {
                    let text = |member| {
                        error
                            .get(member)
                            .and_then(Value::as_str)
                            .unwrap_or_default()
                    };
                    output::note(&format!(
                        "line {line}: {} ({})",
                        text("errorStatus"),
                        text("errorCode")
                    ));
                }
            }
        }
        self.lines += lines;
        self.applied += result.applied;
        self.failed += result.failed;
    }

    fn print(self) -> anyhow::Result<ExitCode> {
        match self.format {
            Format::Json => output::json(&json!({
                "applied": self.applied,
                "failed": self.failed,
                "errors": self.errors,
            }))?,
            Format::Text => {
                output::line(&format!("{} applied, {} failed", self.applied, self.failed))?
            }
        }
        Ok(if self.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

async fn write_lines(
    client: &AdminClient,
    exclude_keys: bool,
    out: &mut (dyn io::Write + Send),
) -> anyhow::Result<()> {
    let counts = client.get("/api/registry/statistics").await?;
    let total = counts.get("totalDeviceCount").and_then(Value::as_u64);
    let bar = output::progress("exporting", total, "devices");
    let path = format!("/api/registry/export?excludeKeys={exclude_keys}");
    let mut pieces = std::pin::pin!(client.stream(&path).await?);
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        out.write_all(&piece)?;
        let lines = piece.iter().filter(|byte| **byte == b'\n').count();
        bar.inc(u64::try_from(lines).unwrap_or_default());
    }
    bar.finish_and_clear();
    out.flush()?;
    Ok(())
}

fn is_special(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| !metadata.is_file())
}

fn temporary_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

/// Exports hold keys.
fn private_file(path: &Path) -> anyhow::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    crate::files::remove(path)?;
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(crate::files::PRIVATE)
        .open(path)
        .with_context(|| format!("create {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_hold_whole_lines_and_the_last_needs_no_end() {
        let text: String = (0..CHUNK_LINES + 5)
            .map(|n| format!("{n}\n"))
            .collect::<String>()
            + "last";
        let mut reader = BufReader::with_capacity(7, text.as_bytes());
        let (first, lines) = next_chunk(&mut reader).unwrap();
        assert_eq!(lines, CHUNK_LINES);
        assert!(first.ends_with(b"9999\n"));
        let (second, lines) = next_chunk(&mut reader).unwrap();
        assert_eq!(lines, 6);
        assert!(second.ends_with(b"last"));
        assert_eq!(next_chunk(&mut reader).unwrap().1, 0);
    }
}
