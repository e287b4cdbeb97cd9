//! Kills a real hub at random moments, again and again, and checks that it loses nothing.
//!
//! Raw devices of every protocol and credential, one Python and one Node.js SDK client live through all
//! rounds, and a back end that sends messages to devices. A ledger outside the hub's process remembers what was acknowledged and what
//! was shown, an auditor what became of each message to a device and what feedback said. After every
//! round the new events are read through the Event Hubs endpoint; at the end everything is read again from the
//! beginning, and the store is verified offline.

mod commands;
mod fleet;
mod senders;

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use fieldpost_client::ReaderOptions;
use fieldpost_testkit::hub::{HubProcess, now};
use fieldpost_testkit::ledger::{Ledger, read_all};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use commands::Commands;
use fleet::{Credential, Member, Protocol, Registrar, Tally};
use senders::send_forever;

/// Kills a hub at random moments and checks that nothing acknowledged is lost.
#[derive(Parser)]
struct Arguments {
    /// How often the hub is killed.
    #[arg(long, default_value_t = 30)]
    rounds: u32,
    /// Raw devices that send all the time.
    #[arg(long, default_value_t = 64)]
    devices: u32,
    /// Messages that each raw device has in flight.
    #[arg(long, default_value_t = 8)]
    window: usize,
    /// The hub.
    #[arg(long, default_value = "target/release/fieldpost")]
    binary: PathBuf,
    /// A Python interpreter that has azure-iot-device.
    #[arg(long, default_value = "target/conformance/venv/bin/python")]
    python: PathBuf,
    /// Chooses the moments of the kills; printed, so that a run can be repeated.
    #[arg(long)]
    seed: Option<u64>,
    /// Where to write what was reached, as JSON.
    #[arg(long)]
    counts: Option<PathBuf>,
}

/// A hub lives this long after it is ready, at most, before it is killed.
const LIFE_MILLIS_MAX: u64 = 2500;

/// Longest wait for every client to be back, and for everything to be read.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long whoever lost the hub waits before the next try.
const RETRY: Duration = Duration::from_millis(50);

/// The devices on SDKs. They speak MQTT and have keys.
const SDK_CLIENTS: [&str; 2] = ["python", "node"];

type SharedLedger = Arc<Mutex<Ledger>>;

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("FAILED: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<()> {
    let seed = arguments
        .seed
        .unwrap_or_else(|| now().as_millis().unsigned_abs());
    say(&format!(
        "{} kill rounds, {} raw devices, seed {seed}",
        arguments.rounds, arguments.devices
    ));
    let mut chance = Chance(seed);
    let folder = tempfile::Builder::new()
        .prefix("fieldpost-kill-")
        .tempdir()?;
    let mut hub = HubProcess::new(&arguments.binary, folder.path());
    hub.start().await?;
    let ledger = SharedLedger::default();
    let result = rounds(&arguments, &mut chance, &mut hub, &ledger).await;
    if result.is_err() {
        let kept = folder.keep();
        say(&format!(
            "the hub's data and log are kept in {}",
            kept.display()
        ));
    }
    result
}

async fn rounds(
    arguments: &Arguments,
    chance: &mut Chance,
    hub: &mut HubProcess,
    ledger: &SharedLedger,
) -> Result<()> {
    let registrar = Registrar::new(hub).await?;
    let members: Vec<_> = (0..arguments.devices).map(Member::sender).collect();
    let mut senders = Vec::new();
    for member in &members {
        let options = registrar.register(member).await?;
        let (window, ledger) = (arguments.window, Arc::clone(ledger));
        senders.push(tokio::spawn(send_forever(
            member.clone(),
            options,
            window,
            ledger,
        )));
    }
    let [python, node] = SDK_CLIENTS;
    let clients = [
        spawn_client(
            hub,
            ledger,
            python,
            &arguments.python,
            "conformance/kill/client.py",
        )
        .await?,
        spawn_client(
            hub,
            ledger,
            node,
            &PathBuf::from("node"),
            "conformance/kill/client.js",
        )
        .await?,
    ];
    let raw = members.iter().map(|member| member.id.as_str());
    let sending: Vec<&str> = raw.chain(clients.iter().map(|(name, _)| *name)).collect();
    for name in &sending {
        await_progress(ledger, name, 0).await?;
    }

    let commands = Commands::start(hub, &registrar, &arguments.python).await?;

    for round in 1..=arguments.rounds {
        let life = Duration::from_millis(chance.below(LIFE_MILLIS_MAX));
        tokio::time::sleep(life).await;
        hub.kill().await?;
        hub.start().await?;
        read_all(&reader_options(hub).await?, ledger, false).await?;
        let (accepted, delivered) = commands.so_far()?;
        let ledger = lock(ledger);
        say(&format!(
            "round {round}: killed after {} ms; {} acknowledged, {} read; to devices {accepted} accepted, \
             {delivered} delivered",
            life.as_millis(),
            ledger.acknowledged(),
            ledger.shown_in_all()
        ));
    }

    // Every device comes back by itself.
    let before: Vec<u64> = sending
        .iter()
        .map(|name| lock(ledger).acknowledged_of(name))
        .collect();
    for (name, before) in sending.iter().zip(before) {
        await_progress(ledger, name, before).await?;
    }
    for (name, mut client) in clients {
        drop(client.stdin.take());
        let status = tokio::time::timeout(PATIENCE, client.wait())
            .await
            .context(name)??;
        ensure!(status.success(), "the {name} client ended with {status}");
    }
    for sender in senders {
        sender.abort();
    }

    let to_devices = commands.end().await?;

    read_all(&reader_options(hub).await?, ledger, true).await?;
    let status = hub.stop().await?;
    ensure!(status.success(), "the hub ended with {status}");
    let verified = hub.run(&["verify"]).await?;
    let log = hub.log();
    if let Some(line) = log
        .lines()
        .find(|line| line.contains("ERROR") || line.contains("panicked"))
    {
        bail!("the hub's log holds an error: {line}");
    }
    let ledger = lock(ledger);
    say(&verified);
    let mut over = Tally::default();
    for member in &members {
        let count = ledger.acknowledged_of(&member.id);
        over.add(member.protocol, member.credential, count);
    }
    for name in SDK_CLIENTS {
        let count = ledger.acknowledged_of(name);
        over.add(Protocol::Mqtt, Credential::Key, count);
    }
    let counts = json!({
        "kills": arguments.rounds,
        "telemetry": {
            "acknowledged": ledger.acknowledged(),
            "acknowledgedOver": over.to_json(),
            "read": ledger.shown_in_all(),
        },
        "toDevices": to_devices,
        "lost": 0,
    });
    say(&format!("{counts:#}"));
    if let Some(file) = &arguments.counts {
        std::fs::write(file, counts.to_string())
            .with_context(|| format!("write {}", file.display()))?;
    }
    Ok(())
}

/// Starts an SDK client and lets the ledger follow what it prints.
async fn spawn_client(
    hub: &HubProcess,
    ledger: &SharedLedger,
    name: &'static str,
    program: &std::path::Path,
    script: &str,
) -> Result<(&'static str, Child)> {
    hub.run(&["device", "create", name]).await?;
    let (connection_string, _) = hub.connection_string(Some(name)).await?;
    let mut child = Command::new(program)
        .arg(script)
        .arg(connection_string)
        .arg(hub.ca_file())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    let output = child
        .stdout
        .take()
        .context("the client's standard output")?;
    let ledger = Arc::clone(ledger);
    tokio::spawn(async move {
        let mut lines = BufReader::new(output).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if let Ok(number) = line.trim().parse() {
                lock(&ledger).acknowledge(name, number);
            }
        }
    });
    Ok((name, child))
}

/// Waits until a device has more messages acknowledged than `before`.
async fn await_progress(ledger: &SharedLedger, name: &str, before: u64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut tick = tokio::time::interval(Duration::from_millis(20));
    while lock(ledger).acknowledged_of(name) <= before {
        tick.tick().await;
        ensure!(
            Instant::now() < deadline,
            "the device {name} did not come back"
        );
    }
    Ok(())
}

async fn reader_options(hub: &HubProcess) -> Result<ReaderOptions> {
    let (_, connection_string) = hub.connection_string(None).await?;
    Ok(ReaderOptions {
        connection_string,
        address: Some(hub.at(5671)),
        trust: hub.trust()?,
        consumer_group: "$Default".to_owned(),
        now: now(),
    })
}

/// Numbers that look random and follow from a seed (SplitMix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

fn lock(ledger: &SharedLedger) -> std::sync::MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(clippy::print_stdout, reason = "a test tool talks to whoever runs it")]
fn say(line: &str) {
    println!("{line}");
}
