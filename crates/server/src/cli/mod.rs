//! The command line.

mod c2d;
mod ca;
mod config;
mod connection;
mod demo;
mod device;
mod hub;
mod monitor;
mod output;
mod peer;
mod repair;
mod send;
mod verify;

pub(crate) use output::print;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::admin::{AdminClient, NoStore};
use crate::assembly;
use crate::config::{Config, LogConfig, Settings, Sources};

/// A self-hosted hub for devices that speak to Azure IoT Hub.
#[derive(Debug, Parser)]
#[command(
    name = "fieldpost",
    version,
    propagate_version = true,
    after_help = "Start with:\n  fieldpost serve\n  fieldpost device create my-device\n  fieldpost connection-string --device my-device"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a hub until it is told to stop.
    #[command(after_help = SERVE_EXAMPLES)]
    Serve(ServeArgs),
    /// Start a hub, devices and a back end in one command and show that nothing is lost.
    #[command(after_help = demo::EXAMPLES)]
    Demo(demo::DemoArgs),
    /// Print a connection string, beside a running hub or without one.
    #[command(after_help = CONNECTION_EXAMPLES)]
    ConnectionString(connection::ConnectionStringArgs),
    /// Create, show, change and delete device identities.
    #[command(subcommand, after_help = DEVICE_EXAMPLES)]
    Device(device::DeviceCommand),
    /// Say which certificate authorities may vouch for devices.
    #[command(subcommand, after_help = ca::EXAMPLES)]
    Ca(ca::CaCommand),
    /// Show or change the hub's settings.
    #[command(subcommand, after_help = HUB_EXAMPLES)]
    Hub(hub::HubCommand),
    /// Print messages as they come in, read through the Event Hubs-compatible endpoint.
    #[command(after_help = monitor::EXAMPLES)]
    Monitor(monitor::MonitorArgs),
    /// Send a message as a device, over MQTT and TLS; returns when it is acknowledged.
    #[command(after_help = send::EXAMPLES)]
    Send(send::SendArgs),
    /// Send messages to devices, see where they are, and look after those that no device took.
    #[command(subcommand, name = "c2d", after_help = c2d::EXAMPLES)]
    C2d(c2d::C2dCommand),
    /// Check every byte of a store while no hub runs on it; exit 1 on any damage.
    Verify(verify::VerifyArgs),
    /// Go on without what `verify` finds damaged in the event log, while no hub runs on it.
    Repair(repair::RepairArgs),
    /// Check or print the configuration.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Print a completion script for a shell.
    #[command(
        after_help = "Example:\n  fieldpost completions bash > /etc/bash_completion.d/fieldpost"
    )]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

const SERVE_EXAMPLES: &str = "Examples:
  fieldpost serve
  fieldpost serve --data /var/lib/fieldpost --host-name hub.example.org
  fieldpost serve --set listeners.https.port=8443 --set log.level=debug
  fieldpost serve --test-mode --data /tmp/hub-under-test

Every key can be set in the file, by an environment variable such as
FIELDPOST_LISTENERS__MQTTS__PORT, and by --set; the last of these wins.
`fieldpost config print` shows all keys.";

const CONNECTION_EXAMPLES: &str = "Examples:
  fieldpost connection-string                        # service SDKs, policy iothubowner
  fieldpost connection-string --policy registryRead
  fieldpost connection-string --device my-device     # device SDKs
  fieldpost connection-string --event-hub            # Event Hubs SDKs, policy service
  fieldpost connection-string --event-hub --emulator # the same without TLS, on this machine";

const DEVICE_EXAMPLES: &str = "Examples:
  fieldpost device create my-device
  fieldpost device list --output json
  fieldpost device update my-device --status disabled --reason \"stolen\"
  fieldpost device import devices.ndjson
  fieldpost device export devices.ndjson";

const HUB_EXAMPLES: &str = "Examples:
  fieldpost hub show > hub.json
  fieldpost hub apply hub.json";

/// Where a hub's configuration and data are.
#[derive(Args, Clone, Debug)]
pub(crate) struct PlaceArgs {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", env = "FIELDPOST_CONFIG")]
    config: Option<PathBuf>,
    /// Data directory [default: ./fieldpost-data].
    #[arg(long, value_name = "DIR")]
    data: Option<String>,
}

#[derive(Args, Clone, Debug)]
struct ServeArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// The name by which clients reach this hub [default: localhost].
    #[arg(long, value_name = "NAME")]
    host_name: Option<String>,
    /// Set a configuration key.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    assignments: Vec<String>,
    /// Let tests move the clock; marks the store as a test store for good and listens on loopback only.
    #[arg(long)]
    test_mode: bool,
    /// Go on without a port that cannot be had.
    #[arg(long)]
    allow_missing_ports: bool,
}

/// How a command prints its data.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct OutputArgs {
    /// How to print.
    #[arg(long, value_enum, default_value_t)]
    output: Format,
}

/// For people or for programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Runs the command that the process was started with.
pub(crate) fn run() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Serve(args) => serve(&args),
        Command::Demo(args) => demo::run(&args),
        Command::ConnectionString(args) => connection::run(&args),
        Command::Device(command) => device::run(command),
        Command::Ca(command) => ca::run(&command),
        Command::Hub(command) => hub::run(&command),
        Command::Monitor(args) => monitor::run(&args),
        Command::Send(args) => send::run(&args),
        Command::C2d(command) => c2d::run(&command),
        Command::Verify(args) => verify::run(&args),
        Command::Repair(args) => repair::run(&args),
        Command::Config(command) => config::run(&command),
        Command::Completions { shell } => completions(shell),
    };
    match done {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            ExitCode::FAILURE
        }
    }
}

impl PlaceArgs {
    /// The configuration that a command beside `serve` sees: file, environment, `--data`.
    pub(crate) fn load(&self) -> anyhow::Result<(Config, Settings)> {
        Ok(Config::load(&self.sources())?)
    }

    fn sources(&self) -> Sources {
        let mut sources = Sources {
            file: self.config.clone(),
            environment: environment(),
            ..Sources::default()
        };
        if let Some(data) = &self.data {
            sources.flags.push(("data", data.clone(), "--data"));
        }
        sources
    }
}

impl ServeArgs {
    fn sources(&self) -> Sources {
        let mut sources = self.place.sources();
        sources.assignments.clone_from(&self.assignments);
        if let Some(name) = &self.host_name {
            sources
                .flags
                .push(("host_name", name.clone(), "--host-name"));
        }
        if self.test_mode {
            sources
                .flags
                .push(("run.test_mode", "true".to_owned(), "--test-mode"));
        }
        if self.allow_missing_ports {
            sources.flags.push((
                "run.allow_missing_ports",
                "true".to_owned(),
                "--allow-missing-ports",
            ));
        }
        sources
    }
}

fn serve(args: &ServeArgs) -> anyhow::Result<ExitCode> {
    let (config, settings) = Config::load(&args.sources())?;
    crate::logging::start(&config.log)?;
    block_on(assembly::serve(config, settings))??;
    Ok(ExitCode::SUCCESS)
}

/// Reaches the hub of a place, does something with it, and lets go of it again.
fn with_hub<T>(
    place: &PlaceArgs,
    no_store: NoStore,
    action: impl AsyncFnOnce(&AdminClient) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let (config, _) = place.load()?;
    crate::logging::start(&LogConfig {
        json: false,
        // What the command has to say it says itself.
        level: "error".to_owned(),
    })?;
    block_on(async {
        let client = AdminClient::open(&config, no_store).await?;
        let done = action(&client).await;
        client.close().await;
        done
    })?
}

/// A text as a path segment or a value in a query.
fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn completions(shell: Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "fieldpost", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs what a command does, on a runtime of its own.
///
/// Blocking calls that have not come back when it is done are left to the end of the process: a
/// disk that hangs must not keep a hub from ending in time.
fn block_on<T>(action: impl Future<Output = T>) -> std::io::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let done = runtime.block_on(action);
    runtime.shutdown_background();
    Ok(done)
}

fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("FIELDPOST_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_blocking_call_that_hangs_does_not_keep_a_command_from_ending() {
        let (_never, hangs) = std::sync::mpsc::channel::<()>();
        let done = block_on(async {
            let (begun, begins) = tokio::sync::oneshot::channel();
            tokio::task::spawn_blocking(move || {
                begun.send(()).unwrap();
                hangs.recv()
            });
            begins.await.unwrap();
            7
        });
        assert_eq!(done.unwrap(), 7);
    }

    #[test]
    fn flags_win_over_assignments_and_are_named_in_errors() {
        let sources = |line: &str| {
            let cli = Cli::parse_from(line.split(' '));
            match cli.command {
                Command::Serve(args) => Sources {
                    environment: vec![],
                    ..args.sources()
                },
                other => panic!("{other:?}"),
            }
        };
        let line = "fieldpost serve --host-name a.example --set host_name=b.example --test-mode";
        let (config, _) = Config::load(&sources(line)).unwrap();
        assert_eq!(config.host_name, "a.example");
        assert!(config.test_mode && !config.allow_missing_ports);
        let error = Config::load(&sources("fieldpost serve --host-name x-")).map(|_| ());
        assert!(error.is_err_and(|e| e.to_string().starts_with("command line --host-name: ")));
    }
}
