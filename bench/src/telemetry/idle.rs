//! Connections that do nothing but wait for messages, and how fast they come.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;
use tokio::task::block_in_place;

use super::generator::{Fleet, Login, Target};
use super::hub::{Hub, Null};
use super::{Arguments, Report};
use crate::process::{cpu_time, resident_bytes};

/// Connections opened at a time.
const AT_ONCE: usize = 64;

/// How long a server is left alone before its memory is looked at.
const SETTLED: Duration = Duration::from_secs(2);

/// What many connections came to.
struct Figures {
    resident_bytes_each: f64,
    connects_per_second: f64,
    cpu_us_each: f64,
}

pub(super) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let mut hub = Hub::start(&arguments.fieldpost, arguments.connections).await?;
    let subscribing = hub.logins(arguments.connections, true)?;
    let silent = hub.logins(arguments.connections, false)?;

    hub.stop().await?;
    hub.start_again().await?;
    let plain = measure(arguments, &hub.plain(), hub.pid()?, &subscribing).await?;
    hub.stop().await?;
    hub.start_again().await?;
    let connects = measure(arguments, &hub.plain(), hub.pid()?, &silent).await?;
    hub.stop().await?;
    hub.start_again().await?;
    let tls = measure(arguments, &hub.tls()?, hub.pid()?, &subscribing).await?;
    let tls_connects = measure(arguments, &hub.tls()?, hub.pid()?, &silent).await?;
    let (null, target) = Null::start_tls(hub.folder()).await?;
    let bare = measure(arguments, &target, null.pid()?, &silent).await?;

    report.row(
        "idle",
        &format!(
            "{} idle connections with one subscription: {:.1} KiB resident each plain (aim: 4; {:.1} \
             without subscription), {:.1} with TLS (aim: 16; a \
             bare tokio-rustls server {:.1})",
            arguments.connections,
            plain.resident_bytes_each / 1024.0,
            connects.resident_bytes_each / 1024.0,
            tls.resident_bytes_each / 1024.0,
            bare.resident_bytes_each / 1024.0,
        ),
        json!({
            "connections": arguments.connections, "plain_bytes": plain.resident_bytes_each,
            "plain_silent_bytes": connects.resident_bytes_each,
            "tls_bytes": tls.resident_bytes_each, "bare_tls_bytes": bare.resident_bytes_each,
        }),
    );
    report.row(
        "connect",
        &format!(
            "connects with token check: plain {:.0}/s at {:.0} us CPU (aim: 6,000/s), with one subscription {:.0}/s at {:.0} \
             us; TLS {:.0}/s at {:.0} us (aim: 1,500/s, twice the bare CPU); bare tokio-rustls {:.0}/s at {:.0} us",
            connects.connects_per_second,
            connects.cpu_us_each,
            plain.connects_per_second,
            plain.cpu_us_each,
            tls_connects.connects_per_second,
            tls_connects.cpu_us_each,
            bare.connects_per_second,
            bare.cpu_us_each,
        ),
        json!({
            "plain_per_second": connects.connects_per_second, "plain_cpu_us": connects.cpu_us_each,
            "plain_subscribing_per_second": plain.connects_per_second,
            "plain_subscribing_cpu_us": plain.cpu_us_each,
            "tls_per_second": tls_connects.connects_per_second, "tls_cpu_us": tls_connects.cpu_us_each,
            "bare_tls_per_second": bare.connects_per_second, "bare_tls_cpu_us": bare.cpu_us_each,
        }),
    );
    Ok(())
}

async fn measure(
    arguments: &Arguments,
    target: &Target,
    pid: u32,
    logins: &[Login],
) -> Result<Figures> {
    tokio::time::sleep(SETTLED).await;
    let (memory, cpu) = (resident_bytes(pid)?, cpu_time(pid)?);
    let fleet = block_in_place(|| Fleet::connect(target, logins, arguments.threads, AT_ONCE))?;
    let cpu = cpu_time(pid)?.saturating_sub(cpu);
    tokio::time::sleep(SETTLED).await;
    let grown = resident_bytes(pid)? as f64 - memory as f64;
    let count = logins.len() as f64;
    Ok(Figures {
        resident_bytes_each: grown / count,
        connects_per_second: count / fleet.connecting.as_secs_f64(),
        cpu_us_each: cpu.as_secs_f64() * 1e6 / count,
    })
}
