//! `fieldpost device ...`.

mod one;
mod transfer;

use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

use super::{OutputArgs, PlaceArgs};

#[derive(Debug, Subcommand)]
pub(super) enum DeviceCommand {
    /// Register a device. Without keys, the hub makes two.
    Create(CreateArgs),
    /// Print one device.
    Show(ShowArgs),
    /// Print all devices in the order of their ids, page by page.
    List(ListArgs),
    /// Change a device; what is not named stays.
    Update(UpdateArgs),
    /// Delete devices and end their connections.
    Delete(DeleteArgs),
    /// Create, change or delete devices from a file of JSON lines; exit 1 if any line failed.
    #[command(after_help = transfer::IMPORT_HELP)]
    Import(transfer::ImportArgs),
    /// Write every device as a JSON line, in the order of their ids.
    Export(transfer::ExportArgs),
}

#[derive(Args, Debug)]
pub(super) struct CreateArgs {
    /// The device's id.
    id: String,
    #[command(flatten)]
    credential: CredentialArgs,
    /// Whether the device may connect.
    #[arg(long, value_enum, default_value_t)]
    status: Status,
    /// Why it has that status.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
pub(super) struct ShowArgs {
    /// The device's id.
    id: String,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
pub(super) struct ListArgs {
    /// Only devices after this id.
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
pub(super) struct UpdateArgs {
    /// The device's id.
    id: String,
    #[command(flatten)]
    credential: CredentialArgs,
    /// Make two new keys.
    #[arg(long, conflicts_with_all = ["primary_key", "auth"])]
    new_keys: bool,
    /// Whether the device may connect.
    #[arg(long, value_enum)]
    status: Option<Status>,
    /// Why it has that status; an empty text removes the reason.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Only if the device still has this etag.
    #[arg(long, value_name = "ETAG")]
    if_match: Option<String>,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
pub(super) struct DeleteArgs {
    /// The devices' ids.
    #[arg(required = true)]
    ids: Vec<String>,
    /// Only if the device still has this etag.
    #[arg(long, value_name = "ETAG")]
    if_match: Option<String>,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Args, Debug)]
pub(super) struct CredentialArgs {
    /// How the device proves who it is.
    #[arg(long, value_enum)]
    auth: Option<Auth>,
    /// Primary key (base64).
    #[arg(long, value_name = "KEY", requires = "secondary_key")]
    primary_key: Option<String>,
    /// Secondary key (base64).
    #[arg(long, value_name = "KEY", requires = "primary_key")]
    secondary_key: Option<String>,
    /// Thumbprint of the device's certificate, with --auth self-signed.
    #[arg(long, value_name = "HEX")]
    primary_thumbprint: Option<String>,
    /// Thumbprint of a second certificate.
    #[arg(long, value_name = "HEX", requires = "primary_thumbprint")]
    secondary_thumbprint: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Auth {
    /// By keys.
    Sas,
    /// By certificates whose thumbprints are registered.
    SelfSigned,
    /// By certificates of a registered authority.
    CertificateAuthority,
    /// Not at all of its own.
    None,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Status {
    /// It may connect.
    #[default]
    Enabled,
    /// It may not; a connection that stands is ended.
    Disabled,
}

pub(super) fn run(command: DeviceCommand) -> anyhow::Result<ExitCode> {
    match command {
        DeviceCommand::Create(args) => one::create(&args),
        DeviceCommand::Show(args) => one::show(&args),
        DeviceCommand::List(args) => one::list(&args),
        DeviceCommand::Update(args) => one::update(&args),
        DeviceCommand::Delete(args) => one::delete(&args),
        DeviceCommand::Import(args) => transfer::import(&args),
        DeviceCommand::Export(args) => transfer::export(&args),
    }
}
