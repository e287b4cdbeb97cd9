//! `fieldpost demo`: a hub, devices and a back end in one process, in both directions, over the real
//! protocols.

mod board;
mod commander;
mod devices;
mod figures;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use fieldpost_client::service::ServiceOptions;
use fieldpost_client::{ConnectionString, Event, Reader, ReaderOptions, Start};
use tokio::sync::watch;
use tokio::time::Instant;

use super::peer::{now, read_trust};
use super::{Format, OutputArgs, block_on, output};
use crate::assembly::Process;
use crate::config::{Config, ListenerName, LogConfig, Sources};
use board::Board;
use commander::Commander;
use devices::{Fleet, Schedule};
use figures::{Figures, Seen};

pub(super) const EXAMPLES: &str = "Examples:
  fieldpost demo
  fieldpost demo --devices 200 --seconds 30
  fieldpost demo --rate 0 --output json     # as fast as the hub goes";

/// How long the reader may find nothing new, after the devices have stopped, before what is
/// missing counts as lost.
const READ_PATIENCE: Duration = Duration::from_secs(10);

/// Time for the last acknowledgements of what the devices sent.
const LAST_ACKNOWLEDGEMENTS: Duration = Duration::from_secs(10);

/// How long devices that are away at first stay away at most.
const AWAY_MAX: Duration = Duration::from_secs(10);

const VIEW_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Args, Debug)]
pub(super) struct DemoArgs {
    /// Simulated devices.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    devices: u32,
    /// How long they send.
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// Messages per second and device; 0 for as many as the hub acknowledges.
    #[arg(long, value_name = "R", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    rate: u32,
    /// Messages per second to each device; 0 for as many as the devices take.
    #[arg(long, value_name = "R", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    commands: u32,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    crate::logging::start(&LogConfig {
        json: false,
        level: "warn".to_owned(),
    })?;
    let folder = tempfile::tempdir().context("make a temporary folder")?;
    let (config, settings) = Config::load(&Sources {
        assignments: assignments(),
        flags: vec![(
            "data",
            folder.path().join("data").to_string_lossy().into_owned(),
            "demo",
        )],
        ..Sources::default()
    })?;
    let figures = block_on(async {
        let process = Process::start(&config, &settings).await?;
        let figures = play(args, &process).await;
        process.stop().await?;
        figures
    })??;
    match args.output.output {
        Format::Json => output::line(&figures.as_json().to_string())?,
        Format::Text => output::print(&figures.as_table())?,
    }
    Ok(if figures.is_complete() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Everything on loopback and free ports; only what the demo uses.
fn assignments() -> Vec<String> {
    let mut assignments = Vec::new();
    for name in ListenerName::ALL {
        let is_used = matches!(name, ListenerName::Mqtts | ListenerName::Amqps);
        let name = name.as_str();
        assignments.push(format!("listeners.{name}.enabled={is_used}"));
        assignments.push(format!("listeners.{name}.address=127.0.0.1"));
        assignments.push(format!("listeners.{name}.port=0"));
    }
    assignments
}

async fn play(args: &DemoArgs, process: &Process) -> anyhow::Result<Figures> {
    let endpoints = process.endpoints();
    let address = |name| {
        endpoints
            .address(name)
            .context("the demo's listeners are on")
    };
    let ca = endpoints
        .ca_certificate
        .clone()
        .context("the demo's hub has a CA")?;
    let trust = read_trust(ca)?;

    let mut reader = Reader::connect(&ReaderOptions {
        connection_string: reader_string(process)?,
        address: Some(address(ListenerName::Amqps)?),
        trust: trust.clone(),
        consumer_group: "$Default".to_owned(),
        now: now(),
    })
    .await?;
    for partition in reader.partitions().await? {
        reader.receive(&partition, Start::Earliest).await?;
    }

    let fleet = Fleet::connect(
        process.hub(),
        args.devices,
        address(ListenerName::Mqtts)?,
        &trust,
    )
    .await?;
    let started = Instant::now();
    let board = Arc::new(Board::new(args.devices, started));
    let commander = Commander::connect(
        &ServiceOptions {
            connection_string: service_string(process)?,
            address: Some(address(ListenerName::Amqps)?),
            trust,
            now: now(),
        },
        args.devices,
        Arc::clone(&board),
        started,
    )
    .await?;
    let seen = Arc::new(Seen::new(args.devices, started));
    // The numbers acknowledged per device, once the devices have stopped.
    let (expect, expected) = watch::channel(None);
    let reading = tokio::spawn(read(reader, Arc::clone(&seen), expected));
    let tally = fleet.tally();
    let (stop, stopped) = watch::channel(false);
    let (end, ended) = watch::channel(false);
    let commanding = tokio::spawn(commander.run(args.commands, stopped.clone()));
    let length = Duration::from_secs(args.seconds);
    let schedule = Schedule {
        started,
        back: started + (length / 2).min(AWAY_MAX),
        rate: args.rate,
        stop: stopped,
        end: ended,
    };
    let sending = fleet.send(&schedule, &board);

    let bar = output::progress("demo", Some(args.seconds), "s");
    bar.set_style(figures::view_style());
    let look = || {
        bar.set_position(started.elapsed().as_secs());
        bar.set_message(figures::view(&tally, &seen, &board, started.elapsed()));
    };
    view_until(started + length, look).await?;
    let sent_for = started.elapsed();
    stop.send_replace(true);
    let waiting = async {
        // What is not acknowledged by then counts as sent and as nothing more.
        let _ = tokio::time::timeout(LAST_ACKNOWLEDGEMENTS, tally.all_acknowledged()).await;
        let acknowledged = tally.acknowledged_by_device();
        expect.send_replace(Some(acknowledged.clone()));
        reading.await?.context("read the messages back")?;
        // The hub collects feedback for up to 15 seconds.
        bar.println("waiting for the last feedback");
        commanding.await?.context("send messages to devices")?;
        end.send_replace(true);
        sending.finish().await?;
        anyhow::Ok(acknowledged)
    };
    let acknowledged = tokio::select! {
        acknowledged = waiting => acknowledged?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            bail!("interrupted before the last messages came");
        }
    };
    bar.finish_and_clear();
    let commands = board.figures();
    Ok(Figures::new(
        &tally,
        &seen,
        &acknowledged,
        commands,
        sent_for,
    ))
}

/// Shows how it goes until a time, or until Ctrl-C.
async fn view_until(end: Instant, look: impl Fn()) -> anyhow::Result<()> {
    loop {
        let next = (Instant::now() + VIEW_INTERVAL).min(end);
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
        }
        look();
        if next == end {
            return Ok(());
        }
    }
}

fn reader_string(process: &Process) -> anyhow::Result<ConnectionString> {
    Ok(ConnectionString {
        entity_path: Some(process.hub().name().to_owned()),
        ..service_string(process)?
    })
}

fn service_string(process: &Process) -> anyhow::Result<ConnectionString> {
    let policy = process
        .hub()
        .access()
        .policy("service")
        .context("every hub has the policy service")?;
    Ok(ConnectionString {
        host_name: process.endpoints().host_name.clone(),
        device_id: None,
        policy: Some(policy.name.to_owned()),
        key: Some(policy.primary.expose().to_owned()),
        entity_path: None,
    })
}

/// Reads until everything that was acknowledged has come, or nothing more comes.
async fn read(
    mut reader: Reader,
    seen: Arc<Seen>,
    mut expected: watch::Receiver<Option<Vec<u32>>>,
) -> anyhow::Result<()> {
    let note = |event: &Event| seen.note(&event.body);
    let mut deadline = None;
    loop {
        if let Some(acknowledged) = &*expected.borrow_and_update() {
            if seen.missing(acknowledged) == 0 {
                return Ok(());
            }
            deadline.get_or_insert_with(|| Instant::now() + READ_PATIENCE);
        }
        tokio::select! {
            event = reader.next() => {
                note(&event?);
                while let Some(event) = reader.next_ready() {
                    note(&event);
                }
                deadline = None;
            }
            changed = expected.changed() => changed?,
            () = until(deadline) => return Ok(()),
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
