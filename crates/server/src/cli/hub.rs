//! `fieldpost hub show` and `fieldpost hub apply`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use axum::http::Method;
use clap::{Args, Subcommand};
use serde_json::Value;

use super::{OutputArgs, PlaceArgs, output, with_hub};
use crate::admin::NoStore;

#[derive(Debug, Subcommand)]
pub(super) enum HubCommand {
    /// Print the hub's settings in the JSON shape of Azure's hub resource.
    Show(ShowArgs),
    /// Change the settings that a file names; the others stay. Takes effect at once.
    Apply(ApplyArgs),
}

#[derive(Args, Debug)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Always JSON, which `apply` reads.
    #[command(flatten)]
    _output: OutputArgs,
}

#[derive(Args, Debug)]
pub(super) struct ApplyArgs {
    /// The file, as `show` prints it, whole or in part; - reads standard input.
    file: PathBuf,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    _output: OutputArgs,
}

pub(super) fn run(command: &HubCommand) -> anyhow::Result<ExitCode> {
    let settings = match command {
        HubCommand::Show(args) => with_hub(&args.place, NoStore::Refuse, async |client| {
            client.get("/api/hub").await
        })?,
        HubCommand::Apply(args) => {
            let document = read_document(&args.file)?;
            with_hub(&args.place, NoStore::Create, async |client| {
                client
                    .call(Method::PUT, "/api/hub", &[], Some(&document))
                    .await
            })?
        }
    };
    output::json(&settings)?;
    Ok(ExitCode::SUCCESS)
}

fn read_document(file: &PathBuf) -> anyhow::Result<Value> {
    let text = if file.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin()).context("read standard input")?
    } else {
        std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?
    };
    serde_json::from_str(&text).with_context(|| format!("read {} as JSON", file.display()))
}
