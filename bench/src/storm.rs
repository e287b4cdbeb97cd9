//! A reconnect storm: thousands of devices that come back over TLS at one moment, while others go on sending.
//!
//! Each second is a line: how many are there, and how long the acknowledgements of those take that never left.
//! The same is done with whole handshakes and with sessions that are resumed.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::task::block_in_place;

use crate::plot::Plot;
use crate::process::{cpu_time, peak_resident_bytes, raise_descriptor_limit};
use crate::say;
use crate::telemetry::generator::{Fleet, Load, Login, Pace, Target};
use crate::telemetry::hub::Hub;
use crate::telemetry::{Output, Report};

/// Connections opened at a time while nobody is in a hurry.
const AT_ONCE: usize = 64;

/// How long those who stay are watched before the storm.
const CALM: u32 = 5;

/// And behind it.
const AFTER: u32 = 2;

const SLICE: Duration = Duration::from_secs(1);

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Devices that come back all at once.
    #[arg(long, default_value_t = 15_000)]
    devices: usize,
    /// Devices that stay and send.
    #[arg(long, default_value_t = 200)]
    staying: usize,
    /// Messages that those send in a second, all together, at fixed moments.
    #[arg(long, default_value_t = 1000)]
    per_second: u64,
    /// A folder for the curves, drawn as SVG.
    #[arg(long)]
    plots: Option<PathBuf>,
    /// How the result is printed.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// The hub.
    #[arg(long, default_value = "target/release/fieldpost")]
    fieldpost: PathBuf,
}

/// One second.
#[derive(Clone, Copy)]
struct Second {
    connected: f64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

/// What one storm came to.
struct Storm {
    calm: Vec<Second>,
    during: Vec<Second>,
    took: Duration,
    cpu: Duration,
}

/// Runs both storms and prints them.
///
/// # Errors
/// When a device is not let in, or something cannot be measured.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    ensure!(
        arguments.devices > 0 && arguments.staying > 0,
        "nothing to measure"
    );
    raise_descriptor_limit()?;
    let mut report = Report::new(arguments.output);
    let mut hub = Hub::start(&arguments.fieldpost, arguments.devices + arguments.staying).await?;
    let logins = hub.logins(arguments.devices + arguments.staying, true)?;
    let whole = block_in_place(|| storm(&arguments, &hub, &hub.tls()?, &logins))?;
    tell(&arguments, &mut report, "whole handshakes", &whole)?;
    hub.stop().await?;
    hub.start_again().await?;
    let resumed = block_in_place(|| storm(&arguments, &hub, &hub.tls_resumed()?, &logins))?;
    tell(&arguments, &mut report, "resumed sessions", &resumed)?;
    let peak = peak_resident_bytes(hub.pid()?)?;
    report.row(
        "peak",
        &format!("peak {:.0} MB resident", peak as f64 / 1e6),
        json!({ "peak_resident_bytes": peak }),
    );
    if let Some(folder) = &arguments.plots {
        draw(&arguments, folder, &whole, &resumed)?;
    }
    report.finish();
    Ok(())
}

fn storm(arguments: &Arguments, hub: &Hub, target: &Target, logins: &[Login]) -> Result<Storm> {
    let (staying, crowd) = logins.split_at(arguments.staying);
    let mut staying = Fleet::connect(target, staying, 1, AT_ONCE)?;
    // So that they have sessions to resume, and the hub has seen them.
    drop(Fleet::connect(target, crowd, 1, AT_ONCE)?);
    while connected(hub)? > arguments.staying as f64 {
        thread::sleep(Duration::from_millis(50));
    }
    let mut second = || -> Result<Second> {
        let load = Load {
            pace: Pace::PerSecond(arguments.per_second),
            bytes: 256,
            phase: 0,
            warm: Duration::ZERO,
            measured: SLICE,
        };
        let latency = staying.run(&load, || Ok(Duration::ZERO))?.latency;
        let ms = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
        Ok(Second {
            connected: connected(hub)?,
            p50_ms: ms(0.5),
            p99_ms: ms(0.99),
            max_ms: latency.max() as f64 / 1e3,
        })
    };
    let calm = (0..CALM).map(|_| second()).collect::<Result<Vec<_>>>()?;
    let cpu = cpu_time(hub.pid()?)?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let coming = scope.spawn(|| {
            let came = Fleet::connect(target, crowd, 1, crowd.len());
            is_over.store(true, Ordering::Release);
            came
        });
        let mut during = Vec::new();
        while !is_over.load(Ordering::Acquire) {
            during.push(second()?);
        }
        let cpu = cpu_time(hub.pid()?)?.saturating_sub(cpu);
        let came = coming.join();
        let came = came.map_err(|_| anyhow::anyhow!("the crowd panicked"))??;
        for _ in 0..AFTER {
            during.push(second()?);
        }
        Ok(Storm {
            calm,
            during,
            took: came.connecting,
            cpu,
        })
    })
}

/// How many devices the hub says are connected.
fn connected(hub: &Hub) -> Result<f64> {
    let mut stream = TcpStream::connect(hub.admin())?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let asked = Instant::now();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let mut lines = answer.lines();
    let line = lines.find_map(|line| line.strip_prefix("fieldpost_devices_connected "));
    let value = line.with_context(|| format!("no answer in {:?}", asked.elapsed()))?;
    Ok(value.trim().parse()?)
}

fn worst(seconds: &[Second], of: fn(&Second) -> f64) -> f64 {
    seconds.iter().map(of).fold(0.0, f64::max)
}

fn tell(arguments: &Arguments, report: &mut Report, what: &str, storm: &Storm) -> Result<()> {
    let Storm {
        calm,
        during,
        took,
        cpu,
    } = storm;
    if arguments.output == Output::Text {
        say(&format!("{what}, second by second:"));
        for (number, second) in during.iter().enumerate() {
            say(&format!(
                "  {:>3} s: {:>6.0} connected; those who stayed: p50 {:.1} ms, p99 {:.1}, max {:.0}",
                number + 1,
                second.connected,
                second.p50_ms,
                second.p99_ms,
                second.max_ms,
            ));
        }
    }
    let last = during.last().context("no second")?;
    let all = (arguments.devices + arguments.staying) as f64;
    ensure!(
        last.connected >= all,
        "{} of {all} are there",
        last.connected
    );
    let p99 = |second: &Second| second.p99_ms;
    let max = |second: &Second| second.max_ms;
    report.row(
        what,
        &format!(
            "{what}: {} devices at once were let in within {:.1} s ({:.0}/s, {:.0} us CPU each); {} that stayed sent {}/s \
             meanwhile: worst p99 of a second {:.1} ms (before: {:.1}), worst message {:.0} ms (before: {:.0})",
            arguments.devices,
            took.as_secs_f64(),
            arguments.devices as f64 / took.as_secs_f64(),
            cpu.as_secs_f64() * 1e6 / arguments.devices as f64,
            arguments.staying,
            arguments.per_second,
            worst(during, p99),
            worst(calm, p99),
            worst(during, max),
            worst(calm, max),
        ),
        json!({
            "devices": arguments.devices, "seconds": took.as_secs_f64(),
            "cpu_us_each": cpu.as_secs_f64() * 1e6 / arguments.devices as f64,
            "p99_ms": worst(during, p99), "p99_ms_before": worst(calm, p99),
            "max_ms": worst(during, max), "max_ms_before": worst(calm, max),
        }),
    );
    Ok(())
}

fn draw(
    arguments: &Arguments,
    folder: &std::path::Path,
    whole: &Storm,
    resumed: &Storm,
) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let longest = whole.during.len().max(resumed.during.len());
    let line = |storm: &Storm, of: fn(&Second) -> f64, before: f64| -> Vec<f64> {
        let values = storm.during.iter().map(of);
        let last = storm.during.last().map_or(before, of);
        let padded = values.chain(std::iter::repeat(last));
        std::iter::once(before)
            .chain(padded)
            .take(longest + 1)
            .collect()
    };
    let labels: Vec<String> = (0..=longest).map(|second| second.to_string()).collect();
    let staying = arguments.staying as f64;
    Plot {
        title: "Devices connected after all of them came at once",
        axis: "seconds",
        unit: "devices",
        labels: labels.clone(),
        lines: vec![
            ("whole handshakes", line(whole, |s| s.connected, staying)),
            ("resumed sessions", line(resumed, |s| s.connected, staying)),
        ],
    }
    .write(&folder.join("storm-connected.svg"))?;
    Plot {
        title: "Acknowledgements of those who had stayed, p99 of each second",
        axis: "seconds",
        unit: "ms",
        labels,
        lines: vec![
            (
                "whole handshakes",
                line(whole, |s| s.p99_ms, worst(&whole.calm, |s| s.p99_ms)),
            ),
            (
                "resumed sessions",
                line(resumed, |s| s.p99_ms, worst(&resumed.calm, |s| s.p99_ms)),
            ),
        ],
    }
    .write(&folder.join("storm-latency.svg"))
}
