//! A spike that the hub absorbs, then more connections than it can serve, which it holds back.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::task::block_in_place;

use super::generator::{Fleet, Load, Measured, Pace};
use super::hub::Hub;
use super::{Arguments, Report};
use crate::process::{cpu_time, peak_resident_bytes};

/// Devices of the first two parts.
const FEW: usize = 200;

const BYTES: usize = 256;

/// Messages that each of the many connections has in flight.
const IN_FLIGHT: u64 = 4;

/// What the hub's own bounds add up to with default settings: messages in flight, incomplete packets, recent
/// events, and as much again for everything that has a bound in messages or connections.
const BOUND: u64 = (256 + 64 + 64) * 2 * 1024 * 1024;

pub(super) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let hub = Hub::start(&arguments.fieldpost, arguments.connections.max(FEW)).await?;
    let mut acknowledged = HashMap::new();
    let heavy = Duration::from_secs_f64(arguments.spike_seconds);
    let cpu = || cpu_time(hub.pid()?);

    let few = hub.logins(FEW, false)?;
    let load = |pace, phase, warm, measured| Load {
        pace,
        bytes: BYTES,
        phase,
        warm,
        measured,
    };
    let (calm, spike) = block_in_place(|| -> Result<_> {
        let mut fleet = Fleet::connect(&hub.plain(), &few, arguments.threads, FEW)?;
        let calm = heavy.min(Duration::from_secs(10));
        let calm = load(Pace::PerSecond(20_000), 1, Duration::ZERO, calm);
        let spike = load(Pace::PerSecond(200_000), 1, Duration::ZERO, heavy);
        let (calm, spike) = (fleet.run(&calm, cpu)?, fleet.run(&spike, cpu)?);
        acknowledged.insert(1, fleet.acknowledged());
        Ok((calm, spike))
    })?;

    let many = hub.logins(arguments.connections, false)?;
    let held_back = block_in_place(|| -> Result<_> {
        let mut fleet = Fleet::connect(&hub.plain(), &many, arguments.threads, 256)?;
        let load = load(Pace::InFlight(IN_FLIGHT), 2, Duration::ZERO, heavy);
        let measured = fleet.run(&load, cpu)?;
        acknowledged.insert(2, fleet.acknowledged());
        Ok(measured)
    })?;
    let peak = peak_resident_bytes(hub.pid()?)?;

    let owed: u64 = acknowledged.values().flatten().sum();
    let stored = hub.stored().await?;
    ensure!(
        stored == owed,
        "{owed} messages acknowledged, {stored} stored"
    );
    let read = hub.read_back(&acknowledged).await?;

    let p99 = |part: &Measured| part.latency.value_at_quantile(0.99) as f64 / 1e3;
    let max = |part: &Measured| part.latency.max() as f64 / 1e3;
    let bound = if peak <= BOUND { "under" } else { "OVER" };
    report.row(
        "spike",
        &format!(
            "spike: 20,000/s offered: {:.0}/s (p99 {:.1} ms, max {:.0}); 200,000/s offered for {:.0} s: {:.0}/s (p99 {:.1} \
             ms, max {:.0}; {} held back at the end); {} connections x {IN_FLIGHT}: {:.0}/s at {:.2} us CPU; {read} \
             acknowledged and read back, each once and in order; peak {:.0} MB resident, {bound} {:.0}",
            calm.per_second(),
            p99(&calm),
            max(&calm),
            arguments.spike_seconds,
            spike.per_second(),
            p99(&spike),
            max(&spike),
            spike.unsent,
            arguments.connections,
            held_back.per_second(),
            held_back.cpu_us(),
            peak as f64 / 1e6,
            BOUND as f64 / 1e6,
        ),
        json!({
            "calm_per_second": calm.per_second(), "calm_p99_ms": p99(&calm), "spike_per_second": spike.per_second(),
            "spike_p99_ms": p99(&spike), "spike_max_ms": max(&spike), "spike_unsent": spike.unsent,
            "connections": arguments.connections, "held_back_per_second": held_back.per_second(),
            "read_back": read, "peak_resident_bytes": peak, "bound_bytes": BOUND,
        }),
    );
    Ok(())
}
