//! `fieldpost verify`.

use std::process::ExitCode;

use clap::Args;

use super::{OutputArgs, PlaceArgs};

#[derive(Args, Debug)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(_args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("pending")
}
