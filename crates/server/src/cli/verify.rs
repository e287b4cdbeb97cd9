//! `fieldpost verify`.

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use fieldpost_store_embedded::{AcceptedLoss, Damage, VerifyReport};
use serde_json::{Value, json};

use super::{Format, OutputArgs, PlaceArgs, output};
use crate::assembly::{self, DataLock};

#[derive(Args, Debug)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let (config, _) = args.place.load()?;
    if !assembly::store_exists(&config) {
        bail!("there is no hub in {}", config.data.display());
    }
    let _lock = DataLock::take(&config.data)?;
    let bar = output::progress("verifying", None, "s");
    bar.set_style(output::spinner_style());
    let report = fieldpost_store_embedded::verify(&assembly::store_path(&config));
    bar.finish_and_clear();
    let report = report?;
    match args.output.output {
        Format::Json => output::json(&as_json(&report))?,
        Format::Text => output::line(&report.to_string())?,
    }
    Ok(if report.is_sound() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

pub(super) fn as_json(report: &VerifyReport) -> Value {
    let log = &report.log;
    let in_documents = report
        .documents
        .iter()
        .map(|what| json!({"part": "documents", "what": what}));
    let damage: Vec<_> = log.damage.iter().map(in_log).chain(in_documents).collect();
    json!({
        "sound": report.is_sound(),
        "segments": log.segments,
        "groups": log.groups,
        "records": log.records,
        "unfinished": log.torn.as_ref().map(in_log),
        "damage": damage,
        "accepted": log.accepted.iter().map(accepted).collect::<Vec<_>>(),
    })
}

/// A loss that the operator accepted.
pub(super) fn accepted(loss: &AcceptedLoss) -> Value {
    let mut value = in_log(&loss.damage);
    if let Value::Object(members) = &mut value {
        members.insert("accepted".to_owned(), json!(loss.accepted.to_string()));
    }
    value
}

fn in_log(damage: &Damage) -> Value {
    let lost: Vec<_> = damage
        .lost
        .iter()
        .map(|records| {
            json!({
                "stream": records.stream.0,
                "partition": records.partition.0,
                "from": records.from,
                "to": records.to,
            })
        })
        .collect();
    json!({
        "part": "log",
        "file": damage.file,
        "fromByte": damage.from,
        "toByte": damage.to,
        "what": damage.what,
        "lost": lost,
    })
}
