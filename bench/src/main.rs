//! Benchmarks: each prints ratios measured in one run, because machines differ and are noisy.
//!
//! ```text
//! cargo build --release --package fieldpost-server
//! cargo run --release --package fieldpost-bench -- c2d
//! ```

mod c2d;
mod devices;
mod growth;
mod million;
mod null;
mod payload;
mod plot;
mod process;
mod registration;
mod storm;
mod telemetry;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures Fieldpost beside its peers.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Messages to devices, durably, beside mosquitto keeping them in memory.
    C2d(c2d::Arguments),
    /// Messages from devices, durably, beside a server that stores nothing.
    Telemetry(telemetry::Arguments),
    /// Messages from devices over AMQP and HTTPS beside MQTT and a server that stores nothing, and as many idle
    /// connections as the machine allows.
    Devices(devices::Arguments),
    /// Thousands of devices that come back at one moment, while others go on sending.
    Storm(storm::Arguments),
    /// The rate of telemetry where partitions, connections, payloads or the log grow, drawn as plots.
    Growth(growth::Arguments),
    /// That server.
    #[command(hide = true)]
    Null(null::Arguments),
    /// A message in each of a million queues: memory, restart, and the end of all of them at one instant.
    Million(million::Arguments),
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Arguments::parse().bench {
        Bench::C2d(arguments) => c2d::run(arguments).await,
        Bench::Telemetry(arguments) => telemetry::run(arguments).await,
        Bench::Devices(arguments) => devices::run(arguments).await,
        Bench::Storm(arguments) => storm::run(arguments).await,
        Bench::Growth(arguments) => growth::run(arguments).await,
        Bench::Null(arguments) => null::run(arguments).await,
        Bench::Million(arguments) => million::run(arguments).await,
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("FAILED: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::print_stdout, reason = "a benchmark talks to whoever runs it")]
fn say(line: &str) {
    println!("{line}");
}
