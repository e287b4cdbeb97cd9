//! A million devices with a message waiting for each: what the whole hub process needs for them, how
//! fast it is there again, and whether anything else notices when all of them end at one instant.

mod beside;
mod expiry;
mod hub;
mod messages;
mod report;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fieldpost_client::service::FeedbackStatus;
use fieldpost_testkit::hub::now;

use self::beside::Beside;
use self::hub::{End, Hub};
use self::messages::{Messages, Owed, PATIENCE, name, sample};
use self::report::{Phase, Report, Restart};
use crate::say;

/// How long after the beginning of the run the messages end, by the hub's clock.
const TIME_TO_LIVE: Duration = Duration::from_secs(6 * 3600);

/// Devices whose count of messages is asked for.
const CHECKED: usize = 100;

/// The hub's own count of messages that devices have completed, since it was started.
const COMPLETED: &str =
    r#"fieldpost_queue_messages_settled_total{queue="device",cause="completed"}"#;

/// What to run.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Devices with a message.
    #[arg(long, default_value_t = 1_000_000)]
    devices: u64,
    /// Bytes of a message, at least 8.
    #[arg(long, default_value_t = 256)]
    bytes: usize,
    /// Messages that the back end has in flight.
    #[arg(long, default_value_t = 256)]
    in_flight: usize,
    /// Devices that come for their message after each restart.
    #[arg(long, default_value_t = 1000)]
    sample: usize,
    /// Seconds for which other work is measured before all messages end.
    #[arg(long, default_value_t = 60)]
    baseline: u64,
    /// The hub.
    #[arg(long, default_value = "target/release/fieldpost")]
    fieldpost: PathBuf,
    /// How to print the figures.
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Runs all phases and prints the figures.
///
/// # Errors
/// When a message or owed feedback was lost. A figure alone is no error.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("fieldpost-bench-")
        .tempdir()?;
    let mut hub = Hub::start(&arguments.fieldpost, folder.path()).await?;
    let messages = Messages {
        count: arguments.devices,
        bytes: arguments.bytes,
        expires: now().saturating_add(TIME_TO_LIVE),
    };

    note("registering devices");
    let clock = PhaseClock::start(&hub, messages.count)?;
    let names = (0..messages.count).map(name).chain(Beside::names());
    hub.register(folder.path(), names).await?;
    let registered = clock.stop(&hub)?;
    let memory_registered = hub.memory()?;

    note("sending messages");
    let clock = PhaseClock::start(&hub, messages.count)?;
    let mut service = hub.service(now()).await?;
    messages.send(&mut service, arguments.in_flight).await?;
    drop(service);
    let sent = clock.stop(&hub)?;
    let memory_waiting = hub.memory()?;

    let mut lost = Vec::new();
    let mut fetched = BTreeSet::new();
    let mut restarts = Vec::new();
    for end in [End::Killed, End::Stopped] {
        note("restarting the hub");
        let took = hub.restart(end).await?;
        let (cpu, memory) = (hub.cpu()?, hub.memory()?);
        note("devices come for their messages");
        let coming = sample(messages.count, arguments.sample, &fetched);
        let clock = PhaseClock::start(&hub, coming.len() as u64)?;
        let mut missing = messages.fetch(&hub, &coming).await?;
        let is_all_fetched = missing.is_empty();
        lost.append(&mut missing);
        if is_all_fetched {
            // PUBACK is a device's last word: only the hub knows when it is durable.
            completed(&hub, coming.len() as u64).await?;
        }
        restarts.push(Restart {
            end,
            took,
            cpu,
            memory,
            fetched: clock.stop(&hub)?,
        });
        fetched.extend(coming);
        check_counts(&hub, &messages, &fetched, &mut lost).await?;
    }
    note("hearing feedback of the messages that were completed");
    let owed = Owed::of(fetched.iter().copied(), FeedbackStatus::Success);
    let mut service = hub.service(now()).await?;
    service.receive_feedback().await?;
    lost.append(&mut owed.hear(&mut service, PATIENCE).await?.lost);
    drop(service);

    let baseline = Duration::from_secs(arguments.baseline);
    let (expiry, mut missing) = expiry::run(&mut hub, &messages, &fetched, baseline).await?;
    lost.append(&mut missing);
    let report = Report {
        devices: messages.count,
        bytes: messages.bytes,
        registered,
        memory_registered,
        sent,
        memory_waiting,
        restarts,
        expiry,
        memory_end: hub.memory()?,
        lost: lost.len(),
    };
    match arguments.output {
        Output::Table => say(&report.table()),
        Output::Json => say(&report.json().to_string()),
    }
    for what in lost.iter().take(20) {
        note(what);
    }
    ensure!(lost.is_empty(), "{} things were lost", lost.len());
    Ok(())
}

/// Returns when the hub's own count of completed messages has come to `messages`.
async fn completed(hub: &Hub, messages: u64) -> Result<()> {
    let began = Instant::now();
    while hub.metric(COMPLETED).await? < messages {
        tokio::time::sleep(Duration::from_millis(20)).await;
        ensure!(began.elapsed() < PATIENCE, "messages are not completed");
    }
    Ok(())
}

/// Those that fetched their message have none, others have one.
async fn check_counts(
    hub: &Hub,
    messages: &Messages,
    fetched: &BTreeSet<u64>,
    lost: &mut Vec<String>,
) -> Result<()> {
    let without = fetched
        .iter()
        .copied()
        .take(CHECKED)
        .map(|number| (number, 0));
    let with = sample(messages.count, CHECKED, fetched);
    for (number, expected) in without.chain(with.into_iter().map(|number| (number, 1))) {
        let count = hub.waiting(&name(number)).await?;
        if count != expected {
            lost.push(format!(
                "{}: {count} messages counted, not {expected}",
                name(number)
            ));
        }
    }
    Ok(())
}

/// Measures a phase.
struct PhaseClock {
    began: Instant,
    cpu: Duration,
    count: u64,
}

impl PhaseClock {
    /// Begins a phase in which `count` things are done.
    fn start(hub: &Hub, count: u64) -> Result<Self> {
        Ok(Self {
            began: Instant::now(),
            cpu: hub.cpu()?,
            count,
        })
    }

    fn stop(self, hub: &Hub) -> Result<Phase> {
        Ok(Phase {
            count: self.count,
            took: self.began.elapsed(),
            cpu: hub.cpu()?.saturating_sub(self.cpu),
        })
    }
}

/// Says what goes on, beside the figures.
#[expect(clippy::print_stderr, reason = "standard output is for the figures")]
fn note(line: &str) {
    eprintln!("{line}");
}
