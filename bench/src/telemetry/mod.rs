//! Messages from devices over MQTT, QoS 1, with real tokens, acknowledged when they are on disk.
//!
//! Every row is a ratio against the null server in the same run, in turns, because the machine is noisy and
//! shared with the generator.

mod disk;
pub(crate) mod generator;
pub(crate) mod hub;
mod idle;
mod readers;
mod spike;
mod start;
mod throughput;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;
use serde_json::{Map, Value};

use crate::say;

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
    /// Rounds; the null server and the hub take turns in each.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Threads of the generator.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Connections of the rows about many idle ones, and of the spike's last part.
    #[arg(long, default_value_t = 15_000)]
    connections: usize,
    /// Seconds of each of the spike's two heavy parts.
    #[arg(long, default_value_t = 60.0)]
    spike_seconds: f64,
    /// Gigabytes of payload in the backlog.
    #[arg(long, default_value_t = 5.0)]
    backlog_gb: f64,
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// The hub.
    #[arg(long, default_value = "target/release/fieldpost")]
    fieldpost: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Text,
    /// One object with a member for each row.
    Json,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Row {
    /// 200 connections, 16 in flight, 256 B.
    Pipelined,
    /// 2,000 connections, 4 in flight, 256 B.
    Many,
    /// 200 connections, 16 in flight, 4 KB.
    Large,
    /// One connection, one in flight, 256 B.
    Single,
    /// 200 connections, 16 in flight, 256 B, over TLS.
    Tls,
    /// 100,000 messages a second at fixed moments.
    Latency,
    /// 20,000/s, then 200,000/s, then a closed loop of as many connections as there are; all read back.
    Spike,
    /// What a reader on each partition adds.
    Readers,
    /// A backlog that is read while devices go on sending.
    CatchUp,
    /// Memory of idle connections that have subscribed, plain and TLS, and how fast they connect.
    Idle,
    /// From launch to ready, size of the binary, memory of a hub that does nothing.
    Start,
    /// From launch to ready with a large log and a million devices.
    StartFull,
}

impl Row {
    fn all() -> Vec<Self> {
        Self::value_variants().to_vec()
    }

    fn is_throughput(self) -> bool {
        !matches!(
            self,
            Self::Spike
                | Self::Readers
                | Self::CatchUp
                | Self::Idle
                | Self::Start
                | Self::StartFull
        )
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.to_possible_value();
        f.write_str(name.as_ref().map_or("", |value| value.get_name()))
    }
}

impl Arguments {
    fn wants(&self, row: Row) -> bool {
        self.rows.contains(&row)
    }

    fn measured(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }

    fn warm(&self) -> Duration {
        Duration::from_secs_f64(self.warm)
    }
}

/// Rows as they come: text at once, or everything as JSON at the end.
pub(crate) struct Report {
    output: Output,
    rows: Map<String, Value>,
}

impl Report {
    pub(crate) fn new(output: Output) -> Self {
        Self {
            output,
            rows: Map::new(),
        }
    }

    /// A row's name, what it says to people, and what it says to programs.
    pub(crate) fn row(&mut self, name: &str, text: &str, figures: Value) {
        if self.output == Output::Text {
            say(text);
        }
        self.rows.insert(name.to_owned(), figures);
    }

    /// Prints what was not printed yet.
    pub(crate) fn finish(self) {
        if self.output == Output::Json {
            say(&Value::Object(self.rows).to_string());
        }
    }
}

/// Runs the rows and prints them.
///
/// # Errors
/// When something acknowledged is lost, or cannot be measured.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    if arguments.rounds == 0 || arguments.seconds <= 0.0 {
        bail!("nothing to measure");
    }
    let mut report = Report::new(arguments.output);
    if arguments.wants(Row::Start) {
        start::run(&arguments, &mut report).await?;
    }
    if arguments.wants(Row::StartFull) {
        start::full(&arguments, &mut report).await?;
    }
    if arguments.rows.iter().any(|row| row.is_throughput()) {
        throughput::run(&arguments, &mut report).await?;
    }
    if arguments.wants(Row::Spike) {
        spike::run(&arguments, &mut report).await?;
    }
    readers::run(&arguments, &mut report).await?;
    if arguments.wants(Row::Idle) {
        idle::run(&arguments, &mut report).await?;
    }
    report.finish();
    Ok(())
}

/// The value in the middle.
pub(crate) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
