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

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde_json::{Value, json};
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
    /// Rounds; what is compared takes turns in each. There are more where others disturb them, and the calmest
    /// count.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Threads of the generator.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Devices that send over MQTT and AMQP.
    #[arg(long, default_value_t = 1000)]
    devices: usize,
    /// Messages that each of them has in flight.
    #[arg(long, default_value_t = 4)]
    in_flight: u64,
    /// Devices that send over HTTPS, each on a connection that it keeps, one message at a time: first so many,
    /// then so many.
    #[arg(long, value_delimiter = ',', default_values_t = [200, 1000])]
    https_devices: Vec<usize>,
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

/// Cores that others may take in a round that is called calm.
const CALM_CORES: f64 = 0.15;

/// For each round that is wanted there are so many at most, until enough are calm.
const ROUNDS_MAX: usize = 3;

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
        let https = arguments.https_devices.iter().copied().max();
        let devices = arguments.devices.max(https.unwrap_or(0));
        let mut hub = Hub::start(&arguments.fieldpost, devices).await?;
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
        hub.stop().await?;
    }
    if wants(Row::Idle) {
        idle::run(&arguments, &mut report).await?;
    }
    report.finish();
    Ok(())
}

/// Devices, and the server to which they send.
struct Contender {
    target: Target,
    pid: u32,
    logins: Vec<Login>,
    in_flight: u64,
}

/// What came of the calmest rounds; each has the contenders in their order.
struct Rounds<const N: usize> {
    calmest: Vec<[Measured; N]>,
    /// Rounds that there were in all.
    tried: usize,
    /// Messages acknowledged by each contender, in all rounds.
    acknowledged: [u64; N],
}

impl<const N: usize> Rounds<N> {
    /// Has the contenders take turns, in so many rounds as are wanted and calm, or more where others want the
    /// machine as well, and keeps those of them in which others took the least.
    fn run(arguments: &Arguments, contenders: &[Contender; N]) -> Result<Self> {
        let wanted = arguments.rounds;
        let mut acknowledged = [0; N];
        let mut rounds: Vec<[Measured; N]> = Vec::new();
        let calm = |round: &&[Measured; N]| disturbed(round) <= CALM_CORES;
        while rounds.len() < wanted * ROUNDS_MAX && rounds.iter().filter(calm).count() < wanted {
            let mut round = Vec::with_capacity(N);
            for (contender, acknowledged) in contenders.iter().zip(&mut acknowledged) {
                let (measured, count) = contender.measure(arguments)?;
                *acknowledged += count;
                round.push(measured);
            }
            let round = round.try_into().ok();
            rounds.push(round.context("as many as there are contenders")?);
        }
        let tried = rounds.len();
        rounds.sort_by(|a, b| disturbed(a).total_cmp(&disturbed(b)));
        rounds.truncate(wanted);
        Ok(Self {
            calmest: rounds,
            tried,
            acknowledged,
        })
    }

    /// One contender's part.
    fn of(&self, contender: usize) -> Vec<&Measured> {
        let rounds = self.calmest.iter();
        rounds.filter_map(|round| round.get(contender)).collect()
    }
}

impl<const N: usize> std::fmt::Display for Rounds<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let most = self.calmest.last().map_or(0.0, disturbed);
        write!(
            f,
            "medians of the calmest {} of {} rounds (others took {most:.2} cores at most)",
            self.calmest.len(),
            self.tried
        )
    }
}

/// Cores that others took while one of the contenders was measured.
fn disturbed<const N: usize>(round: &[Measured; N]) -> f64 {
    let cores = round.iter().map(|measured| measured.disturbed_cores);
    cores.fold(0.0, f64::max)
}

impl Contender {
    /// Connects, sends, and says what came of it and how many messages were acknowledged in all.
    fn measure(&self, arguments: &Arguments) -> Result<(Measured, u64)> {
        let load = Load {
            pace: Pace::InFlight(self.in_flight),
            bytes: arguments.bytes,
            phase: 0,
            warm: Duration::from_secs_f64(arguments.warm),
            measured: Duration::from_secs_f64(arguments.seconds),
        };
        block_in_place(|| {
            let threads = arguments.threads;
            let mut fleet = Fleet::connect(&self.target, &self.logins, threads, AT_ONCE)?;
            let measured = fleet.run(&load, || cpu_time(self.pid))?;
            Ok((measured, fleet.acknowledged().iter().sum()))
        })
    }
}

/// The medians of a contender's rounds.
struct Medians {
    per_second: f64,
    cpu_us: f64,
    generator_cpu_us: f64,
}

impl Medians {
    fn of(rounds: &[&Measured]) -> Self {
        let of = |figure: fn(&Measured) -> f64| median(rounds.iter().map(|round| figure(round)));
        Self {
            per_second: of(Measured::per_second),
            cpu_us: of(Measured::cpu_us),
            generator_cpu_us: of(Measured::generator_cpu_us),
        }
    }

    fn json(&self) -> Value {
        json!({
            "per_second": self.per_second, "cpu_us": self.cpu_us,
            "generator_cpu_us": self.generator_cpu_us,
        })
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

/// A ratio of rates that were measured one after the other.
struct Ratio {
    median: f64,
    least: f64,
    most: f64,
}

impl Ratio {
    fn of(rounds: &[&Measured], beside: &[&Measured]) -> Self {
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

    fn json(&self) -> Value {
        json!({ "median": self.median, "least": self.least, "most": self.most })
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
