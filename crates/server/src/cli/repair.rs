//! `fieldpost repair`.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::bail;
use clap::Args;
use serde_json::json;

use super::{Format, OutputArgs, PlaceArgs, output, verify};
use crate::assembly::{self, DataLock};
use crate::clock::SystemClock;

#[derive(Args, Debug)]
pub(super) struct RepairArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Whatever is damaged in the event log is lost: it is written down, and readers go on behind it.
    #[arg(long, required = true)]
    accept_loss: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &RepairArgs) -> anyhow::Result<ExitCode> {
    let (config, _) = args.place.load()?;
    if !assembly::store_exists(&config) {
        bail!("there is no hub in {}", config.data.display());
    }
    let _lock = DataLock::take(&config.data)?;
    let bar = output::progress("repairing", None, "s");
    bar.set_style(output::spinner_style());
    let report = fieldpost_store_embedded::accept_loss(
        &assembly::store_path(&config),
        &assembly::engine_config(&config),
        Arc::new(SystemClock::new()),
    );
    bar.finish_and_clear();
    let report = report?;
    match args.output.output {
        Format::Json => {
            let accepted: Vec<_> = report.accepted.iter().map(verify::accepted).collect();
            output::json(&json!({"accepted": accepted, "left": verify::as_json(&report.left)}))?;
        }
        Format::Text => output::line(&report.to_string())?,
    }
    Ok(if report.left.is_sound() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
