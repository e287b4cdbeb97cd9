//! Rates in a closed loop, and latency at fixed moments.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::task::block_in_place;

use super::generator::{Fleet, Load, Measured, Pace, Target};
use super::hub::{Hub, Null};
use super::{Arguments, Report, Row, disk, median};
use crate::process::cpu_time;

/// What the null server must do at 200 x 16, or the generator or the machine is the limit.
const NULL_MIN: f64 = 1e6;

/// Connections opened at a time.
const AT_ONCE: usize = 64;

/// A closed loop.
struct Shape {
    row: Row,
    connections: usize,
    in_flight: u64,
    bytes: usize,
    /// The least ratio that the project aims at.
    aim: f64,
}

const SHAPES: [Shape; 4] = [
    Shape {
        row: Row::Pipelined,
        connections: 200,
        in_flight: 16,
        bytes: 256,
        aim: 0.25,
    },
    Shape {
        row: Row::Many,
        connections: 2000,
        in_flight: 4,
        bytes: 256,
        aim: 0.45,
    },
    Shape {
        row: Row::Large,
        connections: 200,
        in_flight: 16,
        bytes: 4096,
        aim: 0.25,
    },
    Shape {
        row: Row::Single,
        connections: 1,
        in_flight: 1,
        bytes: 256,
        aim: 0.65,
    },
];

/// Runs those rows that are wanted.
pub(super) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let bench = Bench {
        arguments,
        null: Null::start().await?,
        hub: Hub::start(&arguments.fieldpost, 2000).await?,
    };
    let mut acknowledged = 0;
    for shape in &SHAPES {
        let tls = shape.row == Row::Pipelined && arguments.wants(Row::Tls);
        if arguments.wants(shape.row) || tls {
            acknowledged += bench.closed(shape, tls, report)?;
        }
    }
    if arguments.wants(Row::Latency) {
        acknowledged += bench.open(100_000, report)?;
    }
    let stored = bench.hub.stored().await?;
    ensure!(
        stored == acknowledged,
        "{acknowledged} messages acknowledged, {stored} stored"
    );
    report.row(
        "stored",
        &format!("{stored} messages acknowledged, as many stored"),
        json!({ "acknowledged": acknowledged, "stored": stored }),
    );
    Ok(())
}

struct Bench<'a> {
    arguments: &'a Arguments,
    null: Null,
    hub: Hub,
}

/// One round of a shape.
struct Round {
    null: Measured,
    hub: Measured,
    tls: Option<Measured>,
    /// Writes with their syncs in a second, for the shape that waits for each.
    disk: Option<f64>,
}

impl Bench<'_> {
    /// A closed loop in turns; how many messages the hub has acknowledged.
    fn closed(&self, shape: &Shape, tls: bool, report: &mut Report) -> Result<u64> {
        let mut acknowledged = 0;
        let mut rounds = Vec::new();
        for _ in 0..self.arguments.rounds {
            let (null, _) = self.measure(&self.null.target(), shape, || self.null.cpu())?;
            let cpu = || cpu_time(self.hub.pid()?);
            let (hub, count) = self.measure(&self.hub.plain(), shape, cpu)?;
            acknowledged += count;
            let mut round = Round {
                null,
                hub,
                tls: None,
                disk: None,
            };
            if tls {
                let (measured, count) = self.measure(&self.hub.tls()?, shape, cpu)?;
                acknowledged += count;
                round.tls = Some(measured);
            }
            if shape.row == Row::Single {
                let time = self.arguments.measured().min(Duration::from_secs(2));
                let rate = block_in_place(|| disk::syncs_per_second(self.hub.folder(), time));
                round.disk = Some(rate?);
            }
            rounds.push(round);
        }
        show(shape, &rounds, report)?;
        Ok(acknowledged)
    }

    fn measure(
        &self,
        target: &Target,
        shape: &Shape,
        cpu: impl Fn() -> Result<Duration>,
    ) -> Result<(Measured, u64)> {
        let pace = Pace::InFlight(shape.in_flight);
        self.load(target, shape.connections, shape.bytes, pace, cpu)
    }

    fn load(
        &self,
        target: &Target,
        connections: usize,
        bytes: usize,
        pace: Pace,
        cpu: impl Fn() -> Result<Duration>,
    ) -> Result<(Measured, u64)> {
        let logins = self.hub.logins(connections, false)?;
        let load = Load {
            pace,
            bytes,
            phase: 0,
            warm: self.arguments.warm(),
            measured: self.arguments.measured(),
        };
        block_in_place(|| {
            let mut fleet = Fleet::connect(target, &logins, self.arguments.threads, AT_ONCE)?;
            let measured = fleet.run(&load, cpu)?;
            Ok((measured, fleet.acknowledged().iter().sum()))
        })
    }

    /// Messages at fixed moments; how many the hub has acknowledged.
    fn open(&self, per_second: u64, report: &mut Report) -> Result<u64> {
        let mut acknowledged = 0;
        let (mut nulls, mut hubs) = (Vec::new(), Vec::new());
        for _ in 0..self.arguments.rounds {
            let pace = Pace::PerSecond(per_second);
            let null = self.load(&self.null.target(), 200, 256, pace, || self.null.cpu())?;
            nulls.push(null.0);
            let cpu = || cpu_time(self.hub.pid()?);
            let (hub, count) = self.load(&self.hub.plain(), 200, 256, pace, cpu)?;
            hubs.push(hub);
            acknowledged += count;
        }
        let beside = percentiles(&nulls);
        let hub = percentiles(&hubs);
        let rate = median(hubs.iter().map(Measured::per_second));
        let disturbed = median(hubs.iter().map(|round| round.disturbed_cores));
        let unsent: u64 = hubs.iter().map(|round| round.unsent).sum();
        let cpu = median(hubs.iter().map(Measured::cpu_us));
        let null_cpu = median(nulls.iter().map(Measured::cpu_us));
        report.row(
            "latency",
            &format!(
                "{per_second}/s offered at fixed moments by 200 connections, 256 B: hub {rate:.0}/s, {cpu:.2} us CPU \
                 per message, latency in ms {hub} (aim: p99 5); null server {beside}, {null_cpu:.2} us; {unsent} not sent in time; \
                 {disturbed:.2} cores taken by others"
            ),
            json!({
                "offered_per_second": per_second, "per_second": rate, "cpu_us": cpu, "null_cpu_us": null_cpu,
                "unsent": unsent,
                "disturbed_cores": disturbed,
                "hub_ms": hub.json(), "null_ms": beside.json(),
            }),
        );
        Ok(acknowledged)
    }
}

fn show(shape: &Shape, rounds: &[Round], report: &mut Report) -> Result<()> {
    let beside = median(rounds.iter().map(|round| round.null.per_second()));
    let hub = median(rounds.iter().map(|round| round.hub.per_second()));
    let null_cpu = median(rounds.iter().map(|round| round.null.cpu_us()));
    let hub_cpu = median(rounds.iter().map(|round| round.hub.cpu_us()));
    let ratio = median(
        rounds
            .iter()
            .map(|r| r.hub.per_second() / r.null.per_second()),
    );
    let name = shape.row.to_string();
    let mut figures = json!({
        "connections": shape.connections, "in_flight": shape.in_flight, "bytes": shape.bytes,
        "null_per_second": beside, "hub_per_second": hub, "ratio": ratio, "aim": shape.aim,
        "null_cpu_us": null_cpu, "hub_cpu_us": hub_cpu,
    });
    let mut text = format!(
        "{} x {} in flight, {} B: null server {beside:.0}/s ({null_cpu:.2} us), hub {hub:.0}/s ({hub_cpu:.2} us CPU per \
         message), ratio {ratio:.3}",
        shape.connections, shape.in_flight, shape.bytes
    );
    let mut add = |key: &str, value: Value| {
        if let Value::Object(figures) = &mut figures {
            figures.insert(key.to_owned(), value);
        }
    };
    if shape.row == Row::Single {
        let disk = median(rounds.iter().filter_map(|round| round.disk));
        let possible = |round: &Round| {
            let disk = round.disk.context("disk")?;
            anyhow::Ok(1.0 / (1.0 / round.null.per_second() + 1.0 / disk))
        };
        let shares: Vec<f64> = rounds
            .iter()
            .map(|round| Ok(round.hub.per_second() / possible(round)?))
            .collect::<Result<_>>()?;
        let share = median(shares.into_iter());
        text += &format!(
            "; disk {disk:.0} syncs/s, {share:.3} of 1/(1/null + 1/disk) (aim: {})",
            shape.aim
        );
        add("disk_syncs_per_second", json!(disk));
        add("of_possible", json!(share));
    } else {
        text += &format!(" (aim: {})", shape.aim);
    }
    let disturbed = median(rounds.iter().map(|round| round.hub.disturbed_cores));
    text += &format!("; {disturbed:.2} cores taken by others");
    add("disturbed_cores", json!(disturbed));
    if shape.row == Row::Pipelined && beside < NULL_MIN {
        text += "; VOID: the null server does less than 1,000,000/s";
        add("void", json!(true));
    }
    report.row(&name, &text, figures);
    let tls: Vec<(&Round, &Measured)> = rounds
        .iter()
        .filter_map(|round| Some((round, round.tls.as_ref()?)))
        .collect();
    if tls.is_empty() {
        return Ok(());
    }
    let rate = median(tls.iter().map(|(_, tls)| tls.per_second()));
    let cpu = median(tls.iter().map(|(_, tls)| tls.cpu_us()));
    let ratio = median(
        tls.iter()
            .map(|(r, tls)| tls.per_second() / r.hub.per_second()),
    );
    report.row(
        "tls",
        &format!(
            "the same over TLS: hub {rate:.0}/s ({cpu:.2} us CPU per message), ratio to plain {ratio:.3} (aim: 0.5)"
        ),
        json!({ "hub_per_second": rate, "hub_cpu_us": cpu, "ratio_to_plain": ratio, "aim": 0.5 }),
    );
    Ok(())
}

/// Latencies in milliseconds, medians over the rounds; the maximum is that of all of them.
struct Percentiles {
    p50: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

fn percentiles(rounds: &[Measured]) -> Percentiles {
    let at = |share| {
        let value = |latency: &Histogram<u64>| latency.value_at_quantile(share) as f64 / 1e3;
        median(rounds.iter().map(|round| value(&round.latency)))
    };
    let max = rounds.iter().map(|round| round.latency.max()).max();
    Percentiles {
        p50: at(0.5),
        p99: at(0.99),
        p999: at(0.999),
        max: max.unwrap_or(0) as f64 / 1e3,
    }
}

impl Percentiles {
    fn json(&self) -> Value {
        json!({ "p50": self.p50, "p99": self.p99, "p99.9": self.p999, "max": self.max })
    }
}

impl std::fmt::Display for Percentiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            p50,
            p99,
            p999,
            max,
        } = self;
        write!(
            f,
            "p50 {p50:.2}, p99 {p99:.2}, p99.9 {p999:.2}, max {max:.1}"
        )
    }
}
