//! Devices by the protocols and in the numbers of the real world: over AMQP, alone on a connection or a
//! thousand on one; over HTTPS; and very many that are silent.
//!
//! What can be compared takes turns in one run. All messages are durable before they are acknowledged, and at
//! the end the hub must have stored as many as were.

mod https;
mod idle;
mod logins;
mod protocols;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use serde_json::json;
use tokio::task::block_in_place;

use crate::process::cpu_time;
use crate::telemetry::generator::{Fleet, Load, Login, Measured, Pace, Target};
use crate::telemetry::hub::Hub;
use crate::telemetry::{Output, Report, median};

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Which rows.
    #[arg(long, value_delimiter = ',', default_values_t = Row::all())]
    rows: Vec<Row>,
    /// Seconds that each row is measured in each round.
    #[arg(long, default_value_t = 4.0)]
    seconds: f64,
    /// Seconds before measuring begins.
    #[arg(long, default_value_t = 1.0)]
    warm: f64,
    /// Rounds; what is compared takes turns in each.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Threads of the generator.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Devices that send over MQTT and AMQP.
    #[arg(long, default_value_t = 1000)]
    devices: usize,
    /// Messages that each of them has in flight.
    #[arg(long, default_value_t = 4)]
    in_flight: u64,
    /// Devices that send over HTTPS, each on a connection that it keeps, one message at a time.
    #[arg(long, default_value_t = 200)]
    https_devices: usize,
    /// Bytes of a message.
    #[arg(long, default_value_t = 256)]
    bytes: usize,
    /// Most idle connections, where the limit of open files allows more.
    #[arg(long, default_value_t = 100_000)]
    idle_max: usize,
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// The hub.
    #[arg(long, default_value = "target/release/fieldpost")]
    fieldpost: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Row {
    /// AMQP, all devices on one connection and each on one of its own, beside MQTT; TLS.
    Amqp,
    /// HTTPS, beside an axum handler that stores nothing.
    Https,
    /// Memory of as many idle MQTT connections over TLS as there may be open files.
    Idle,
}

impl Row {
    fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.to_possible_value();
        f.write_str(name.as_ref().map_or("", |value| value.get_name()))
    }
}

/// Connections opened at a time.
const AT_ONCE: usize = 64;

/// The least ratio that the project aims at, of AMQP to MQTT and of HTTPS to the null handler.
const AIM: f64 = 0.5;

/// Runs the rows and prints them.
///
/// # Errors
/// When something acknowledged is lost, or cannot be measured.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    if arguments.rounds == 0 || arguments.seconds <= 0.0 || arguments.devices == 0 {
        bail!("nothing to measure");
    }
    let wants = |row| arguments.rows.contains(&row);
    let mut report = Report::new(arguments.output);
    if wants(Row::Amqp) || wants(Row::Https) {
        let devices = arguments.devices.max(arguments.https_devices);
        let hub = Hub::start(&arguments.fieldpost, devices).await?;
        let mut acknowledged = 0;
        if wants(Row::Amqp) {
            acknowledged += protocols::run(&arguments, &hub, &mut report)?;
        }
        if wants(Row::Https) {
            acknowledged += https::run(&arguments, &hub, &mut report).await?;
        }
        let stored = hub.stored().await?;
        ensure!(
            stored == acknowledged,
            "{acknowledged} messages acknowledged, {stored} stored"
        );
        report.row(
            "stored",
            &format!("{stored} messages acknowledged, as many stored"),
            json!({ "acknowledged": acknowledged, "stored": stored }),
        );
    }
    if wants(Row::Idle) {
        idle::run(&arguments, &mut report).await?;
    }
    report.finish();
    Ok(())
}

/// One round of one contender: connects, sends, and says how much came of it and how many messages were
/// acknowledged in all.
fn measure(
    arguments: &Arguments,
    (target, pid): (&Target, u32),
    logins: &[Login],
    in_flight: u64,
) -> Result<(Measured, u64)> {
    let load = Load {
        pace: Pace::InFlight(in_flight),
        bytes: arguments.bytes,
        phase: 0,
        warm: Duration::from_secs_f64(arguments.warm),
        measured: Duration::from_secs_f64(arguments.seconds),
    };
    block_in_place(|| {
        let mut fleet = Fleet::connect(target, logins, arguments.threads, AT_ONCE)?;
        let measured = fleet.run(&load, || cpu_time(pid))?;
        Ok((measured, fleet.acknowledged().iter().sum()))
    })
}

/// The medians of a contender's rounds.
struct Medians {
    per_second: f64,
    cpu_us: f64,
    generator_cpu_us: f64,
    disturbed_cores: f64,
}

impl Medians {
    fn of(rounds: &[Measured]) -> Self {
        let of = |figure: fn(&Measured) -> f64| median(rounds.iter().map(figure));
        Self {
            per_second: of(Measured::per_second),
            cpu_us: of(Measured::cpu_us),
            generator_cpu_us: of(Measured::generator_cpu_us),
            disturbed_cores: of(|round| round.disturbed_cores),
        }
    }
}

impl std::fmt::Display for Medians {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.0}/s ({:.2} us CPU per message, generator {:.2} us)",
            self.per_second, self.cpu_us, self.generator_cpu_us
        )
    }
}

/// A ratio of rates, each of two rounds that followed each other.
struct Ratio {
    median: f64,
    least: f64,
    most: f64,
}

impl Ratio {
    fn of(rounds: &[Measured], beside: &[Measured]) -> Self {
        let pairs = rounds.iter().zip(beside);
        let ratios: Vec<f64> = pairs
            .map(|(a, b)| a.per_second() / b.per_second())
            .collect();
        Self {
            median: median(ratios.iter().copied()),
            least: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            most: ratios.iter().copied().fold(0.0, f64::max),
        }
    }
}

impl std::fmt::Display for Ratio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            median,
            least,
            most,
        } = self;
        write!(
            f,
            "ratio {median:.3} ({least:.3} to {most:.3}; aim: {AIM}{})",
            if *median < AIM { ", NOT REACHED" } else { "" }
        )
    }
}
