//! Messages to devices: one back end with a window of messages in flight, thousands of devices.
//!
//! The same devices, messages and window are run against Fieldpost, which acknowledges what is on
//! disk, and against mosquitto, which keeps everything in memory. Both talk plain MQTT to the devices.
//! To the back end Fieldpost speaks AMQP over TLS, as its contract has it.

mod devices;
mod fieldpost;
mod mosquitto;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use self::devices::{Devices, Login, Tally};
use self::fieldpost::Fieldpost;
use self::mosquitto::Mosquitto;
use crate::payload::Payload;
use crate::process::{cpu_time, resident_bytes};
use crate::say;

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Devices.
    #[arg(long, default_value_t = 5000)]
    devices: usize,
    /// Messages of a round with the devices connected.
    #[arg(long, default_value_t = 200_000)]
    online: u64,
    /// Messages for each device of a round with the devices away; a queue holds 50.
    #[arg(long, default_value_t = 40)]
    away: u64,
    /// Messages that the back end has in flight.
    #[arg(long, default_value_t = 256)]
    in_flight: u16,
    /// Bytes of a message, at least 8.
    #[arg(long, default_value_t = 256)]
    bytes: usize,
    /// Rounds; peers take turns in each.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// The hub.
    #[arg(long, default_value = "target/release/fieldpost")]
    fieldpost: PathBuf,
    /// The peer. Debian has it as the package mosquitto.
    #[arg(long, default_value = "/usr/sbin/mosquitto")]
    mosquitto: PathBuf,
}

/// What is sent in one phase.
pub(crate) struct Load {
    pub(crate) devices: Arc<[String]>,
    pub(crate) messages: u64,
    pub(crate) in_flight: u16,
    pub(crate) bytes: usize,
}

/// What one round of one peer came to.
struct Figures {
    /// Messages delivered and completed per second with all devices connected.
    online_rate: f64,
    /// The broker's processor time for one message, from its acceptance to its completion.
    online_cpu: Duration,
    /// Messages accepted per second while the devices are away.
    away_accepted_rate: f64,
    /// Messages delivered and completed per second from the moment the devices come back, their
    /// connecting included.
    away_delivered_rate: f64,
    resident_bytes: u64,
    duplicates: u64,
}

enum Peer {
    Fieldpost(Fieldpost),
    Mosquitto(Mosquitto),
}

/// Runs the rounds and prints them, and the medians' ratios at the end.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    say(&format!(
        "{} devices, {} in flight, {} B; online {} messages, away {} for each device",
        arguments.devices, arguments.in_flight, arguments.bytes, arguments.online, arguments.away
    ));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 1..=arguments.rounds {
        let folder = tempfile::Builder::new()
            .prefix("fieldpost-bench-")
            .tempdir()?;
        let peer = Mosquitto::start(&arguments.mosquitto, folder.path()).await?;
        let figures = measure(&arguments, Peer::Mosquitto(peer)).await?;
        show(round, "mosquitto, in memory", &figures);
        theirs.push(figures);
        let peer = Fieldpost::start(&arguments.fieldpost, folder.path(), arguments.devices).await?;
        let figures = measure(&arguments, Peer::Fieldpost(peer)).await?;
        show(round, "Fieldpost, durable", &figures);
        ours.push(figures);
    }
    let ratio = |of: fn(&Figures) -> f64| median(&ours, of) / median(&theirs, of);
    say(&format!(
        "Fieldpost : mosquitto, medians of {}: online {:.2}, away accepted {:.2}, away delivered {:.2}, \
         CPU per message {:.2} ({:.1} us)",
        arguments.rounds,
        ratio(|f| f.online_rate),
        ratio(|f| f.away_accepted_rate),
        ratio(|f| f.away_delivered_rate),
        ratio(|f| f.online_cpu.as_secs_f64()),
        median(&ours, |f| f.online_cpu.as_secs_f64() * 1e6),
    ));
    Ok(())
}

async fn measure(arguments: &Arguments, peer: Peer) -> Result<Figures> {
    let names: Arc<[String]> = (0..arguments.devices).map(name).collect();
    let logins = peer.logins(&names)?;
    let load = |messages| Load {
        devices: Arc::clone(&names),
        messages,
        in_flight: arguments.in_flight,
        bytes: arguments.bytes,
    };

    let online = load(arguments.online);
    let tally = Tally::of(online.messages);
    let mut devices = Devices::connect(peer.mqtt(), &logins, &tally).await?;
    let cpu_before = cpu_time(peer.pid()?)?;
    let started = Instant::now();
    let sending = async {
        peer.command(&online).await?;
        tally.complete().await;
        peer.completed(online.messages).await
    };
    let online_took = timed(&mut devices, started, sending).await?;
    let online_cpu = cpu_time(peer.pid()?)?.saturating_sub(cpu_before);
    let (_, mut duplicates) = tally.so_far();

    drop(devices);
    let away = load(arguments.away * arguments.devices as u64);
    let started = Instant::now();
    peer.command(&away).await?;
    let accepted_took = started.elapsed();

    let tally = Tally::of(away.messages);
    let started = Instant::now();
    let mut devices = Devices::connect(peer.mqtt(), &logins, &tally).await?;
    let delivering = async {
        tally.complete().await;
        peer.completed(online.messages + away.messages).await
    };
    let delivered_took = timed(&mut devices, started, delivering).await?;
    duplicates += tally.so_far().1;

    let rate = |messages: u64, took: Duration| messages as f64 / took.as_secs_f64();
    Ok(Figures {
        online_rate: rate(online.messages, online_took),
        online_cpu: online_cpu.div_f64(online.messages as f64),
        away_accepted_rate: rate(away.messages, accepted_took),
        away_delivered_rate: rate(away.messages, delivered_took),
        resident_bytes: resident_bytes(peer.pid()?)?,
        duplicates,
    })
}

/// Waits for `work` while the devices live, and says how long it is since `started`.
async fn timed(
    devices: &mut Devices,
    started: Instant,
    work: impl Future<Output = Result<()>>,
) -> Result<Duration> {
    let mut outcome = None;
    devices.until(async { outcome = Some(work.await) }).await?;
    outcome.context("the work was not done")??;
    Ok(started.elapsed())
}

impl Peer {
    fn logins(&self, names: &[String]) -> Result<Vec<Login>> {
        match self {
            Self::Fieldpost(fieldpost) => fieldpost.logins(names),
            Self::Mosquitto(_) => Ok(names.iter().map(|name| Mosquitto::login(name)).collect()),
        }
    }

    fn mqtt(&self) -> std::net::SocketAddr {
        match self {
            Self::Fieldpost(fieldpost) => fieldpost.mqtt,
            Self::Mosquitto(mosquitto) => mosquitto.address,
        }
    }

    fn pid(&self) -> Result<u32> {
        match self {
            Self::Fieldpost(fieldpost) => fieldpost.pid(),
            Self::Mosquitto(mosquitto) => mosquitto.pid(),
        }
    }

    async fn command(&self, load: &Load) -> Result<()> {
        match self {
            Self::Fieldpost(fieldpost) => fieldpost.command(load).await,
            Self::Mosquitto(mosquitto) => mosquitto.command(load).await,
        }
    }

    /// Returns when so many messages in all are completed in the peer's own books. mosquitto keeps
    /// none that could be asked; a PUBACK that was written has to do.
    async fn completed(&self, messages: u64) -> Result<()> {
        match self {
            Self::Fieldpost(fieldpost) => fieldpost.completed(messages).await,
            Self::Mosquitto(_) => Ok(()),
        }
    }
}

impl Load {
    /// Messages go round the devices.
    pub(crate) fn device_of(&self, number: u64) -> Result<&str> {
        let place = usize::try_from(number)? % self.devices.len().max(1);
        let device = self.devices.get(place).context("no devices")?;
        Ok(device)
    }

    pub(crate) fn payload(&self) -> Payload {
        Payload::of(self.bytes)
    }
}

fn name(number: usize) -> String {
    format!("device-{number}")
}

fn show(round: u32, peer: &str, figures: &Figures) {
    say(&format!(
        "round {round}: {peer:<20} online {:>7.0}/s at {:>5.1} us CPU; away: accepted {:>7.0}/s, \
         delivered {:>7.0}/s; {:.0} MB resident, {} duplicates",
        figures.online_rate,
        figures.online_cpu.as_secs_f64() * 1e6,
        figures.away_accepted_rate,
        figures.away_delivered_rate,
        figures.resident_bytes as f64 / 1e6,
        figures.duplicates,
    ));
}

fn median(rounds: &[Figures], of: fn(&Figures) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
