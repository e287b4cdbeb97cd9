//! `fieldpost connection-string`.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use serde_json::Value;

use super::{Format, OutputArgs, PlaceArgs, output, with_hub};
use crate::admin::NoStore;

#[derive(Args, Debug)]
pub(super) struct ConnectionStringArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// The shared access policy [default: iothubowner, or service with --event-hub].
    #[arg(long, value_name = "NAME", conflicts_with = "device")]
    policy: Option<String>,
    /// The device, for device SDKs.
    #[arg(long, value_name = "ID", conflicts_with = "event_hub")]
    device: Option<String>,
    /// A module of the device.
    #[arg(long, value_name = "ID", requires = "device")]
    module: Option<String>,
    /// For Event Hubs SDKs.
    #[arg(long)]
    event_hub: bool,
    /// For Event Hubs SDKs on this machine, without TLS.
    #[arg(long, requires = "event_hub")]
    emulator: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &ConnectionStringArgs) -> anyhow::Result<ExitCode> {
    let path = args.path();
    // A device that is asked for must exist, and so must its store.
    let no_store = match args.device {
        Some(_) => NoStore::Refuse,
        None => NoStore::Create,
    };
    let answer = with_hub(&args.place, no_store, async |client| {
        client.get(&path).await
    })?;
    match args.output.output {
        Format::Json => output::json(&answer)?,
        Format::Text => {
            let text = answer.get("connectionString").and_then(Value::as_str);
            output::line(text.context("the hub gave no connection string")?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl ConnectionStringArgs {
    fn path(&self) -> String {
        let mut path = format!(
            "/api/connection-string?eventHub={}&emulator={}",
            self.event_hub, self.emulator
        );
        for (name, value) in [
            ("policy", &self.policy),
            ("device", &self.device),
            ("module", &self.module),
        ] {
            if let Some(value) = value {
                path.push_str(&format!("&{name}={}", super::encoded(value)));
            }
        }
        path
    }
}
