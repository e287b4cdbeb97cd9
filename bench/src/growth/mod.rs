//! How the rate of telemetry changes with what grows: partitions, connections, payloads, the log.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::task::block_in_place;

use crate::plot::Plot;
use crate::process::cpu_time;
use crate::say;
use crate::telemetry::generator::{Fleet, Load, Measured, Pace, Target};
use crate::telemetry::hub::{Hub, Null};

const PARTITIONS: [usize; 4] = [1, 4, 16, 64];
const CONNECTIONS: [usize; 7] = [1, 10, 100, 1000, 5000, 10_000, 15_000];
/// The largest is what fits into Azure's limit of 256 KB with its properties.
const BYTES: [usize; 7] = [64, 256, 1024, 4096, 16 * 1024, 64 * 1024, 255 * 1024];

/// Where nothing else is said.
const SHAPE: Shape = Shape {
    connections: 200,
    in_flight: 16,
    bytes: 256,
};

/// Connections opened at a time.
const AT_ONCE: usize = 256;

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The folder for the plots.
    #[arg(long, default_value = "docs/plots")]
    plots: PathBuf,
    /// Seconds that each point is measured.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Sizes of the log, in gigabytes, from small to large.
    #[arg(long, value_delimiter = ',', default_values_t = [1.0, 2.0, 5.0, 10.0, 20.0])]
    log_gb: Vec<f64>,
    /// Threads of the generator.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// The hub.
    #[arg(long, default_value = "target/release/fieldpost")]
    fieldpost: PathBuf,
}

/// A closed loop.
#[derive(Clone, Copy)]
struct Shape {
    connections: usize,
    in_flight: u64,
    bytes: usize,
}

/// Measures point by point, prints each, and draws.
///
/// # Errors
/// When a point cannot be measured, or a plot not be written.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    if arguments.seconds <= 0.0 {
        bail!("nothing to measure");
    }
    std::fs::create_dir_all(&arguments.plots)?;
    let bench = Bench {
        null: Null::start().await?,
        arguments,
    };
    bench.partitions().await?;
    bench.connections().await?;
    bench.bytes().await?;
    bench.log().await
}

struct Bench {
    arguments: Arguments,
    null: Null,
}

/// Messages a second of the hub and, a moment before, of the null server.
struct Point {
    label: String,
    bytes: usize,
    hub: f64,
    null: f64,
}

/// What a plot shows of a rate.
#[derive(Clone, Copy)]
enum Unit {
    Messages,
    Megabytes,
}

impl Bench {
    async fn partitions(&self) -> Result<()> {
        let mut points = Vec::new();
        for count in PARTITIONS {
            let setting = format!("hub.partition_count={count}");
            let binary = &self.arguments.fieldpost;
            let mut hub = Hub::start_with(binary, SHAPE.connections, &[&setting]).await?;
            points.push(self.point(&hub, SHAPE, format!("{count}"), "partitions")?);
            hub.kill().await?;
        }
        let title = "200 connections, 16 in flight each, 256 B";
        self.draw("partitions", title, "partitions", Unit::Messages, &points)
    }

    async fn connections(&self) -> Result<()> {
        let most = CONNECTIONS.into_iter().max().unwrap_or(0);
        let mut hub = Hub::start(&self.arguments.fieldpost, most).await?;
        let mut points = Vec::new();
        for connections in CONNECTIONS {
            let shape = Shape {
                connections,
                in_flight: 4,
                ..SHAPE
            };
            points.push(self.point(&hub, shape, format!("{connections}"), "connections")?);
        }
        hub.kill().await?;
        let title = "4 in flight on each connection, 256 B";
        self.draw("connections", title, "connections", Unit::Messages, &points)
    }

    async fn bytes(&self) -> Result<()> {
        let mut hub = Hub::start(&self.arguments.fieldpost, SHAPE.connections).await?;
        let mut points = Vec::new();
        for bytes in BYTES {
            let shape = Shape {
                in_flight: 4,
                bytes,
                ..SHAPE
            };
            let label = match bytes {
                0..1024 => format!("{bytes} B"),
                _ => format!("{} KiB", bytes / 1024),
            };
            points.push(self.point(&hub, shape, label, "payload")?);
        }
        hub.kill().await?;
        let title = "200 connections, 4 in flight each";
        self.draw("payload", title, "payload", Unit::Megabytes, &points)
    }

    async fn log(&self) -> Result<()> {
        let mut hub = Hub::start(&self.arguments.fieldpost, SHAPE.connections).await?;
        let (mut points, mut starts) = (Vec::new(), Vec::new());
        for &gigabytes in &self.arguments.log_gb {
            hub.fill_log(gigabytes, self.arguments.threads)?;
            hub.stop().await?;
            let begun = Instant::now();
            hub.start_again().await?;
            let start = begun.elapsed().as_secs_f64() * 1e3;
            starts.push(start);
            points.push(self.point(&hub, SHAPE, format!("{gigabytes} GB"), "log")?);
            say(&format!("from launch to ready with it: {start:.0} ms"));
        }
        hub.kill().await?;
        let title = "200 connections, 16 in flight each, 256 B";
        self.draw("log", title, "log", Unit::Messages, &points)?;
        Plot {
            title: "From launch to ready",
            axis: "log",
            unit: "ms",
            labels: labels(&points),
            lines: vec![("Fieldpost", starts)],
        }
        .write(&self.arguments.plots.join("start.svg"))
    }

    fn point(&self, hub: &Hub, shape: Shape, label: String, axis: &str) -> Result<Point> {
        let null = self.measure(hub, &self.null.target(), shape, || self.null.cpu())?;
        let hub = self.measure(hub, &hub.plain(), shape, || cpu_time(hub.pid()?))?;
        say(&format!(
            "{axis} {label}: null server {:.0}/s, hub {:.0}/s, {:.2} us CPU per message, ratio {:.2}; {:.2} cores taken by others",
            null.per_second(),
            hub.per_second(),
            hub.cpu_us(),
            hub.per_second() / null.per_second(),
            hub.disturbed_cores,
        ));
        Ok(Point {
            label,
            bytes: shape.bytes,
            hub: hub.per_second(),
            null: null.per_second(),
        })
    }

    fn measure(
        &self,
        hub: &Hub,
        target: &Target,
        shape: Shape,
        cpu: impl Fn() -> Result<Duration>,
    ) -> Result<Measured> {
        let logins = hub.logins(shape.connections, false)?;
        let load = Load {
            pace: Pace::InFlight(shape.in_flight),
            bytes: shape.bytes,
            phase: 0,
            warm: Duration::from_millis(500),
            measured: Duration::from_secs_f64(self.arguments.seconds),
        };
        block_in_place(|| {
            let threads = self.arguments.threads;
            Fleet::connect(target, &logins, threads, AT_ONCE)?.run(&load, cpu)
        })
    }

    fn draw(
        &self,
        name: &str,
        title: &str,
        axis: &str,
        unit: Unit,
        points: &[Point],
    ) -> Result<()> {
        let of = |point: &Point, rate: f64| match unit {
            Unit::Messages => rate,
            Unit::Megabytes => rate * point.bytes as f64 / 1e6,
        };
        let null = points.iter().map(|point| of(point, point.null)).collect();
        let hub = points.iter().map(|point| of(point, point.hub)).collect();
        Plot {
            title,
            axis,
            unit: match unit {
                Unit::Messages => "messages per second",
                Unit::Megabytes => "MB of payload per second",
            },
            labels: labels(points),
            lines: vec![("stores nothing", null), ("Fieldpost, durable", hub)],
        }
        .write(&self.arguments.plots.join(format!("{name}.svg")))
    }
}

fn labels(points: &[Point]) -> Vec<String> {
    points.iter().map(|point| point.label.clone()).collect()
}
