//! As many idle connections as this machine lets one process have, and what more would take.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::task::block_in_place;

use super::{AT_ONCE, Arguments};
use crate::process::{proportional_bytes, raise_descriptor_limit, resident_bytes};
use crate::telemetry::Report;
use crate::telemetry::generator::{Fleet, Login};
use crate::telemetry::hub::Hub;

/// Files that hub and generator have open besides connections, and more.
const OTHER_FILES: usize = 500;

/// How long the hub is left alone before its memory is looked at.
const SETTLED: Duration = Duration::from_secs(3);

/// The number that the project speaks of.
const DERIVED: f64 = 1e5;

/// Bytes of the hub's memory.
#[derive(Clone, Copy)]
struct Memory {
    resident: f64,
    proportional: f64,
}

impl Memory {
    async fn settled(hub: &Hub) -> Result<Self> {
        tokio::time::sleep(SETTLED).await;
        let pid = hub.pid()?;
        Ok(Self {
            resident: resident_bytes(pid)? as f64,
            proportional: proportional_bytes(pid)? as f64,
        })
    }

    /// What each of so many connections has added.
    fn each(self, before: Self, connections: usize) -> Self {
        let each = |now: f64, before: f64| (now - before) / connections as f64;
        Self {
            resident: each(self.resident, before.resident),
            proportional: each(self.proportional, before.proportional),
        }
    }

    /// The same with so many connections more.
    fn with(self, connections: f64, each: Self) -> Self {
        Self {
            resident: self.resident + connections * each.resident,
            proportional: self.proportional + connections * each.proportional,
        }
    }
}

pub(super) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let limit = raise_descriptor_limit()?;
    let possible = limit.checked_sub(OTHER_FILES);
    let connections = possible.context("the limit of open files is too low")?;
    let connections = connections.min(arguments.idle_max);
    let mut hub = Hub::start(&arguments.fieldpost, connections).await?;
    let logins = hub.logins(connections, true)?;
    // What the import of the devices took is not asked.
    hub.stop().await?;
    hub.start_again().await?;
    let empty = Memory::settled(&hub).await?;
    let (first, second) = logins.split_at(connections / 2);
    let connect = |logins: &[Login]| {
        let target = hub.tls()?;
        block_in_place(|| Fleet::connect(&target, logins, arguments.threads, AT_ONCE))
    };
    let first_half = connect(first)?;
    let half = Memory::settled(&hub).await?;
    let second_half = connect(second)?;
    let all = Memory::settled(&hub).await?;

    let each = all.each(empty, connections);
    let of_second = all.each(half, second.len());
    let derived = empty.with(DERIVED, each);
    let took = first_half.connecting + second_half.connecting;
    let kib = 1024.0;
    let mib = kib * kib;
    report.row(
        "idle",
        &format!(
            "{connections} idle MQTT connections over TLS with one subscription (open files: {limit}), connected in {:.1} s: \
             {:.2} KiB resident each, {:.2} KiB proportional (aim: 16); of the second half {:.2} and {:.2}; the hub without \
             them {:.1} MiB, with them {:.1} MiB\n  DERIVED, not measured: with 100,000 the hub would have {:.0} MiB \
             resident, {:.0} MiB proportional",
            took.as_secs_f64(),
            each.resident / kib,
            each.proportional / kib,
            of_second.resident / kib,
            of_second.proportional / kib,
            empty.resident / mib,
            all.resident / mib,
            derived.resident / mib,
            derived.proportional / mib,
        ),
        json!({
            "connections": connections, "open_files": limit,
            "resident_bytes_each": each.resident, "proportional_bytes_each": each.proportional,
            "second_half_resident_bytes_each": of_second.resident,
            "second_half_proportional_bytes_each": of_second.proportional,
            "empty_resident_bytes": empty.resident, "resident_bytes": all.resident,
            "derived_for": DERIVED, "derived_resident_bytes": derived.resident,
            "derived_proportional_bytes": derived.proportional,
        }),
    );
    Ok(())
}
