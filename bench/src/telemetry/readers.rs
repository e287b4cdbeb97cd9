//! Events on their way to readers: what each costs the hub, how late it is there, and how fast a backlog
//! is read while devices go on sending.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fieldpost_client::reader::{Reader, Start};
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::task::{JoinSet, block_in_place};

use super::generator::{Content, Fleet, Load, Measured, Pace, Timetable};
use super::hub::{Hub, number};
use super::{Arguments, Report, Row, disk, median};
use crate::process::cpu_time;

const DEVICES: usize = 200;
const BYTES: usize = 256;
const IN_FLIGHT: u64 = 16;

/// Messages a second at fixed moments.
const CALM: u64 = 50_000;

/// Longest wait for an event that is owed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs those rows that are wanted.
pub(super) async fn run(arguments: &Arguments, report: &mut Report) -> Result<()> {
    if arguments.wants(Row::Readers) {
        readers(arguments, report).await?;
    }
    if arguments.wants(Row::CatchUp) {
        catch_up(arguments, report).await?;
    }
    Ok(())
}

/// Reads everything that comes, over one connection for each partition.
struct Readers {
    tasks: JoinSet<Result<()>>,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    events: AtomicU64,
    timetable: OnceLock<Timetable>,
}

/// What the readers of a fleet saw.
struct Delivered {
    /// The hub's processor time from the first message to the last event.
    cpu: Duration,
    /// Messages acknowledged and read.
    events: u64,
    sent: Measured,
    /// Microseconds from the moment at which a message should have been sent to its reader.
    late: Histogram<u64>,
}

impl Readers {
    /// Begins with what comes next; `late` takes how late each event is.
    async fn of_what_comes(hub: &Hub, late: &Arc<Mutex<Histogram<u64>>>) -> Result<Self> {
        let seen = Arc::new(Seen::default());
        let mut tasks = JoinSet::new();
        for partition in hub.reader().await?.partitions().await? {
            let mut reader = hub.reader().await?;
            reader.receive(&partition, Start::Latest).await?;
            let (seen, late) = (Arc::clone(&seen), Arc::clone(late));
            tasks.spawn(async move { watch(&mut reader, &seen, &late).await });
        }
        Ok(Self { tasks, seen })
    }

    /// Returns when so many events were read.
    async fn have_read(&mut self, owed: u64) -> Result<()> {
        let mut tick = tokio::time::interval(Duration::from_millis(1));
        let until = Instant::now() + PATIENCE;
        loop {
            let read = self.seen.events.load(Ordering::Relaxed);
            if read >= owed {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{read} of {owed} events were read");
            tokio::select! {
                _ = tick.tick() => {}
                ended = self.tasks.join_next() => match ended {
                    Some(ended) => ended??,
                    None => bail!("no reader is left"),
                },
            }
        }
    }
}

async fn watch(reader: &mut Reader, seen: &Seen, late: &Mutex<Histogram<u64>>) -> Result<()> {
    loop {
        let mut event = Some(reader.next().await?);
        let now = Instant::now();
        let mut late = late.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        while let Some(found) = event {
            count += 1;
            let device = found.device_id.as_deref().and_then(number);
            if let Some(timetable) = seen.timetable.get()
                && let Some((device, (_, message))) = device.zip(Content::read(&found.body))
                && let Some(took) = timetable.took(device, message, now)
            {
                late.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX))?;
            }
            event = reader.next_ready();
        }
        drop(late);
        seen.events.fetch_add(count, Ordering::Relaxed);
    }
}

/// What a reader on each partition adds, at fixed moments and in a closed loop.
async fn readers(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let mut hub = Hub::start(&arguments.fieldpost, DEVICES).await?;
    for (name, pace) in [
        ("readers", Pace::PerSecond(CALM)),
        ("readers-closed-loop", Pace::InFlight(IN_FLIGHT)),
    ] {
        let load = Load {
            pace,
            bytes: BYTES,
            phase: 0,
            warm: arguments.warm(),
            measured: arguments.measured(),
        };
        let (mut unread, mut read) = (Vec::new(), Vec::new());
        for _ in 0..arguments.rounds {
            unread.push(send(&hub, arguments, &load, false).await?);
            read.push(send(&hub, arguments, &load, true).await?);
        }
        show(name, pace, &unread, &read, report);
    }
    hub.kill().await
}

async fn send(
    hub: &Hub,
    arguments: &Arguments,
    load: &Load,
    with_readers: bool,
) -> Result<Delivered> {
    let late = Arc::new(Mutex::new(Histogram::new(3)?));
    let mut readers = match with_readers {
        true => Some(Readers::of_what_comes(hub, &late).await?),
        false => None,
    };
    let logins = hub.logins(DEVICES, false)?;
    let cpu = || cpu_time(hub.pid()?);
    let mut fleet =
        block_in_place(|| Fleet::connect(&hub.plain(), &logins, arguments.threads, DEVICES))?;
    let before = cpu()?;
    let started = Instant::now();
    if let (Pace::PerSecond(rate), Some(readers)) = (load.pace, &readers) {
        let timetable = fleet.timetable(started, load, rate);
        let set = readers.seen.timetable.set(timetable);
        set.ok().context("a second timetable")?;
    }
    let sent = block_in_place(|| fleet.run_from(started, load, cpu))?;
    let events = fleet.acknowledged().iter().sum();
    if let Some(readers) = &mut readers {
        readers.have_read(events).await?;
    }
    let cpu = cpu()?.saturating_sub(before);
    let late = late.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(Delivered {
        cpu,
        events,
        sent,
        late,
    })
}

impl Delivered {
    fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / (self.events as f64).max(1.0)
    }
}

fn show(name: &str, pace: Pace, unread: &[Delivered], read: &[Delivered], report: &mut Report) {
    let cpu = |rounds: &[Delivered]| median(rounds.iter().map(Delivered::cpu_us));
    let rate = |rounds: &[Delivered]| median(rounds.iter().map(|round| round.sent.per_second()));
    let added = median(
        unread
            .iter()
            .zip(read)
            .map(|(unread, read)| read.cpu_us() - unread.cpu_us()),
    );
    let disturbed = median(read.iter().map(|round| round.sent.disturbed_cores));
    let late = |share| {
        let value = |round: &Delivered| round.late.value_at_quantile(share) as f64 / 1e3;
        median(read.iter().map(value))
    };
    let (offered, latency) = match pace {
        Pace::PerSecond(rate) => (
            format!("{rate}/s at fixed moments"),
            format!(
                "; to the reader in ms p50 {:.2}, p99 {:.2} (aim: 10), max {:.1}",
                late(0.5),
                late(0.99),
                late(1.0)
            ),
        ),
        Pace::InFlight(count) => (format!("{count} in flight each"), String::new()),
    };
    report.row(
        name,
        &format!(
            "{DEVICES} connections, {BYTES} B, {offered}, an AMQP reader on each partition: {:.0}/s without, {:.0}/s \
             with readers; {:.2} us CPU per message, {:.2} with delivery: {added:.2} us for it (aim: 1){latency}; \
             {disturbed:.2} cores taken by others",
            rate(unread),
            rate(read),
            cpu(unread),
            cpu(read),
        ),
        json!({
            "without_per_second": rate(unread), "with_per_second": rate(read), "without_cpu_us": cpu(unread),
            "with_cpu_us": cpu(read), "delivery_cpu_us": added, "late_p50_ms": late(0.5), "late_p99_ms": late(0.99),
            "late_max_ms": late(1.0),
        }),
    );
}

/// A backlog that is on disk alone, read while devices send at fixed moments.
async fn catch_up(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let hub = Hub::start(&arguments.fieldpost, DEVICES).await?;
    let logins = hub.logins(DEVICES, false)?;
    let cpu = || cpu_time(hub.pid()?);
    let connect = || Fleet::connect(&hub.plain(), &logins, arguments.threads, DEVICES);
    let load = |pace, seconds| Load {
        pace,
        bytes: BYTES,
        phase: 0,
        warm: Duration::ZERO,
        measured: Duration::from_secs(seconds),
    };
    let events_wanted = arguments.backlog_gb * 1e9 / BYTES as f64;
    block_in_place(|| -> Result<_> {
        let mut fleet = connect()?;
        while (fleet.acknowledged().iter().sum::<u64>() as f64) < events_wanted {
            fleet.run(&load(Pace::InFlight(IN_FLIGHT), 1), cpu)?;
        }
        Ok(())
    })?;
    let segments = hub.segments()?;
    let (log_bytes, disk_rate) = block_in_place(|| disk::read_past_cache(&segments))?;

    let mut asked = hub.reader().await?;
    let mut tasks = JoinSet::new();
    let mut fleet = block_in_place(connect)?;
    let cpu_before = cpu()?;
    let begun = Instant::now();
    let mut events = 0;
    for partition in asked.partitions().await? {
        let behind = asked.next_sequence(&partition).await?;
        events += behind;
        let reader = hub.reader().await?;
        tasks.spawn(read_backlog(reader, partition, behind));
    }
    let mut beside = Vec::new();
    let mut latency = Histogram::<u64>::new(3)?;
    while !tasks.is_empty() {
        let measured = block_in_place(|| fleet.run(&load(Pace::PerSecond(CALM), 2), cpu))?;
        while let Some(ended) = tasks.try_join_next() {
            ended??;
        }
        // Readers that ended meanwhile had part of that time at most.
        if !tasks.is_empty() || beside.is_empty() {
            latency.add(&measured.latency)?;
            beside.push(measured);
        }
    }
    let took = begun.elapsed().as_secs_f64();
    let per_second = events as f64 / took;
    let read_rate = log_bytes as f64 / took;
    let sent: u64 = fleet.acknowledged().iter().sum();
    let cpu_us = (cpu()?.saturating_sub(cpu_before)).as_secs_f64() * 1e6 / events as f64;
    let ingest = median(beside.iter().map(Measured::per_second));
    let (p50, p99) = (
        latency.value_at_quantile(0.5),
        latency.value_at_quantile(0.99),
    );
    let (p50, p99) = (p50 as f64 / 1e3, p99 as f64 / 1e3);
    report.row(
        "catch-up",
        &format!(
            "a backlog of {events} events of {BYTES} B ({:.1} GB of log, not in the page cache) read in {took:.1} s by an AMQP \
             reader on each partition: {per_second:.0} events/s (aim: 1,000,000) or {:.0} MB/s, {:.2} of the disk's \
             {:.0} MB/s (aim: 0.5); {cpu_us:.2} us CPU per event with the sending beside it: {ingest:.0} of {CALM}/s, \
             p50 {p50:.2} ms, p99 {p99:.2} ms (aim: 20), {sent} in all",
            log_bytes as f64 / 1e9,
            read_rate / 1e6,
            read_rate / disk_rate,
            disk_rate / 1e6,
        ),
        json!({
            "events": events, "log_bytes": log_bytes, "seconds": took, "events_per_second": per_second,
            "of_disk_rate": read_rate / disk_rate, "disk_bytes_per_second": disk_rate, "cpu_us": cpu_us,
            "ingest_per_second": ingest, "ingest_p50_ms": p50, "ingest_p99_ms": p99,
        }),
    );
    Ok(())
}

/// Reads a partition from its beginning up to `behind`, and sees that no event is left out.
async fn read_backlog(mut reader: Reader, partition: String, behind: u64) -> Result<()> {
    reader.receive(&partition, Start::Earliest).await?;
    let mut next = 0;
    while next < behind {
        let event = tokio::time::timeout(PATIENCE, reader.next()).await;
        let mut event = Some(event.context("the reader starves")??);
        while let Some(found) = event {
            ensure!(
                found.sequence == next,
                "event {} where {next} belongs",
                found.sequence
            );
            next += 1;
            event = reader.next_ready();
        }
    }
    Ok(())
}
