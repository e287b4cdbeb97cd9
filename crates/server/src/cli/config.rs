//! `fieldpost config check` and `fieldpost config print`.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{Format, OutputArgs, PlaceArgs, output};
use crate::config::{self, Config, Sources};

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Check the configuration and say what is wrong with it; exit 1 if anything is.
    Check(ConfigArgs),
    /// Print every key with its effective value and where that comes from.
    Print(PrintArgs),
}

#[derive(Args, Debug)]
pub(super) struct ConfigArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// Set a configuration key.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    assignments: Vec<String>,
}

#[derive(Args, Debug)]
pub(super) struct PrintArgs {
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(command: &ConfigCommand) -> anyhow::Result<ExitCode> {
    match command {
        ConfigCommand::Check(args) => {
            let (config, _) = Config::load(&args.sources())?;
            crate::trust::check(&config)?;
            output::note("The configuration is valid.");
        }
        ConfigCommand::Print(args) => {
            let (_, settings) = Config::load(&args.config.sources())?;
            match args.output.output {
                Format::Text => output::print(&config::as_toml(&settings))?,
                Format::Json => output::json(&config::as_json(&settings))?,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl ConfigArgs {
    fn sources(&self) -> Sources {
        Sources {
            assignments: self.assignments.clone(),
            ..self.place.sources()
        }
    }
}
