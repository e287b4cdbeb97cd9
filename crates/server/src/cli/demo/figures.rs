//! What the demo counts and shows.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use indicatif::ProgressStyle;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::board::{Board, CommandFigures};
use crate::cli::output;

/// Latencies up to a minute, in microseconds, to two digits.
const LATENCY_MICROS_MAX: u64 = 60_000_000;

/// What the devices have sent.
pub(super) struct Tally {
    sent: AtomicU64,
    acknowledged: AtomicU64,
    /// The messages of each device that were acknowledged.
    by_device: Vec<AtomicU32>,
    latency: Mutex<Histogram<u64>>,
    changed: Notify,
}

/// What the back end has read.
pub(super) struct Seen {
    started: Instant,
    state: Mutex<SeenState>,
}

struct SeenState {
    /// Per device: which of its messages have come.
    messages: Vec<Vec<bool>>,
    distinct: u64,
    latency: Histogram<u64>,
}

/// The outcome.
#[derive(Debug)]
pub(super) struct Figures {
    sent: u64,
    acknowledged: u64,
    read: u64,
    lost: u64,
    seconds: f64,
    acknowledged_latency: [Duration; 3],
    read_latency: [Duration; 3],
    commands: CommandFigures,
}

impl Tally {
    pub(super) fn new(devices: u32) -> Self {
        Self {
            sent: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            by_device: (0..devices).map(|_| AtomicU32::new(0)).collect(),
            latency: Mutex::new(histogram()),
            changed: Notify::new(),
        }
    }

    pub(super) fn count_sent(&self) {
        self.sent.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_acknowledged(&self, device: usize, latency: Duration) {
        lock(&self.latency).saturating_record(micros(latency));
        if let Some(count) = self.by_device.get(device) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.acknowledged.fetch_add(1, Ordering::Release);
        self.changed.notify_one();
    }

    /// Waits until everything sent is acknowledged.
    pub(super) async fn all_acknowledged(&self) {
        while self.acknowledged.load(Ordering::Acquire) < self.sent.load(Ordering::Relaxed) {
            self.changed.notified().await;
        }
    }

    /// How many messages of each device were acknowledged.
    pub(super) fn acknowledged_by_device(&self) -> Vec<u32> {
        let counts = self.by_device.iter();
        counts.map(|count| count.load(Ordering::Relaxed)).collect()
    }
}

impl Seen {
    pub(super) fn new(devices: u32, started: Instant) -> Self {
        let devices = usize::try_from(devices).unwrap_or_default();
        Self {
            started,
            state: Mutex::new(SeenState {
                messages: vec![Vec::new(); devices],
                distinct: 0,
                latency: histogram(),
            }),
        }
    }

    /// Notes a message by its body; a body that no device of this demo wrote is not counted.
    pub(super) fn note(&self, body: &[u8]) {
        let Some((device, number, sent_after)) = parse_body(body) else {
            return;
        };
        let mut state = lock(&self.state);
        let Some(messages) = state.messages.get_mut(device) else {
            return;
        };
        if messages.len() <= number {
            messages.resize(number + 1, false);
        }
        let Some(seen) = messages.get_mut(number) else {
            return;
        };
        if !std::mem::replace(seen, true) {
            state.distinct += 1;
            let latency = self.started.elapsed().saturating_sub(sent_after);
            state.latency.saturating_record(micros(latency));
        }
    }

    /// How many of the first `acknowledged` messages of each device have not come.
    pub(super) fn missing(&self, acknowledged: &[u32]) -> u64 {
        let state = lock(&self.state);
        let missing_of = |(messages, acknowledged): (&Vec<bool>, &u32)| {
            let expected = usize::try_from(*acknowledged).unwrap_or(usize::MAX);
            let came = messages.iter().take(expected).filter(|came| **came).count();
            u64::try_from(expected - came).unwrap_or(u64::MAX)
        };
        state
            .messages
            .iter()
            .zip(acknowledged)
            .map(missing_of)
            .sum()
    }
}

impl Figures {
    pub(super) fn new(
        tally: &Tally,
        seen: &Seen,
        acknowledged: &[u32],
        commands: CommandFigures,
        sent_for: Duration,
    ) -> Self {
        let state = lock(&seen.state);
        let (read, read_latency) = (state.distinct, percentiles(&state.latency));
        drop(state);
        Self {
            sent: tally.sent.load(Ordering::Relaxed),
            acknowledged: tally.acknowledged.load(Ordering::Relaxed),
            read,
            lost: seen.missing(acknowledged),
            seconds: sent_for.as_secs_f64(),
            acknowledged_latency: percentiles(&lock(&tally.latency)),
            read_latency,
            commands,
        }
    }

    /// Whether every message from a device was acknowledged and read, and every one to a device
    /// delivered, completed and told of.
    pub(super) fn is_complete(&self) -> bool {
        self.lost == 0
            && self.acknowledged == self.sent
            && self.sent > 0
            && self.commands.is_complete()
    }

    /// Both directions. The members of `d2c` stand at the top as well, where scripts of the time of
    /// one direction look for them.
    pub(super) fn as_json(&self) -> Value {
        let from_devices = json!({
            "sent": self.sent,
            "acknowledged": self.acknowledged,
            "read": self.read,
            "lost": self.lost,
            "acknowledgedLatencyMs": millis(self.acknowledged_latency),
            "readLatencyMs": millis(self.read_latency),
        });
        let mut all = from_devices.clone();
        if let Some(members) = all.as_object_mut() {
            members.insert("seconds".to_owned(), json!(self.seconds));
            members.insert("d2c".to_owned(), from_devices);
            members.insert("c2d".to_owned(), self.commands.as_json());
        }
        all
    }

    pub(super) fn as_table(&self) -> String {
        let row = |(name, count, latencies): (&str, u64, Option<[Duration; 3]>)| {
            let mut row = vec![name.to_owned(), count.to_string()];
            row.push(format!("{:.0}", as_float(count) / self.seconds));
            row.extend(latencies.iter().flatten().map(|latency| shown(*latency)));
            row
        };
        let from_devices = [
            ("sent", self.sent, None),
            (
                "acknowledged",
                self.acknowledged,
                Some(self.acknowledged_latency),
            ),
            ("read", self.read, Some(self.read_latency)),
            ("lost", self.lost, None),
        ];
        let table = |title, rows: Vec<Vec<String>>| {
            output::table(&[title, "COUNT", "PER SECOND", "P50", "P99", "MAX"], &rows)
        };
        format!(
            "{}\n{}",
            table("FROM DEVICES", from_devices.map(row).into()),
            table("TO DEVICES  ", self.commands.rows().map(row).into()),
        )
    }
}

/// The style of the live view.
pub(super) fn view_style() -> ProgressStyle {
    ProgressStyle::with_template("{bar:20} {pos}/{len} s  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// One line: counts, rate and latencies so far.
pub(super) fn view(tally: &Tally, seen: &Seen, board: &Board, elapsed: Duration) -> String {
    let acknowledged = tally.acknowledged.load(Ordering::Relaxed);
    let [ack_p50, ack_p99, _] = percentiles(&lock(&tally.latency));
    let state = lock(&seen.state);
    let [read_p50, read_p99, _] = percentiles(&state.latency);
    format!(
        "sent {}  acknowledged {acknowledged} ({:.0}/s, p50 {}, p99 {})  read {} (p50 {}, p99 {})  {}",
        tally.sent.load(Ordering::Relaxed),
        as_float(acknowledged) / elapsed.as_secs_f64().max(0.001),
        shown(ack_p50),
        shown(ack_p99),
        state.distinct,
        shown(read_p50),
        shown(read_p99),
        board.figures().view(),
    )
}

/// The body of a message from or to a device: the device, the message's number, and when after the
/// start it was sent.
pub(super) fn body(device: usize, number: usize, after: Duration) -> String {
    format!(
        "{{\"device\":{device},\"number\":{number},\"micros\":{}}}",
        micros(after)
    )
}

pub(super) fn parse_body(body: &[u8]) -> Option<(usize, usize, Duration)> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let number = |name| body.get(name).and_then(Value::as_u64);
    Some((
        usize::try_from(number("device")?).ok()?,
        usize::try_from(number("number")?).ok()?,
        Duration::from_micros(number("micros")?),
    ))
}

pub(super) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 2)
        .expect("the bounds are a fixed valid range")
}

pub(super) fn percentiles(histogram: &Histogram<u64>) -> [Duration; 3] {
    [
        histogram.value_at_quantile(0.5),
        histogram.value_at_quantile(0.99),
        histogram.max(),
    ]
    .map(Duration::from_micros)
}

pub(super) fn millis(latencies: [Duration; 3]) -> Value {
    let [p50, p99, max] = latencies.map(|latency| latency.as_secs_f64() * 1000.0);
    json!({"p50": p50, "p99": p99, "max": max})
}

fn shown(latency: Duration) -> String {
    format!("{:.1} ms", latency.as_secs_f64() * 1000.0)
}

pub(super) fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "counts for people")]
fn as_float(count: u64) -> f64 {
    count as f64
}

/// A panic elsewhere leaves plain counts as good as they were.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_and_did_not_come_is_lost() {
        let seen = Seen::new(2, Instant::now());
        let note = |device, number| seen.note(body(device, number, Duration::ZERO).as_bytes());
        for (device, number) in [(0, 0), (0, 2), (0, 2), (1, 0), (1, 1), (7, 0)] {
            note(device, number);
        }
        seen.note(b"not of this demo");
        let check = |acknowledged: [u32; 2], lost: u64| {
            assert_eq!(seen.missing(&acknowledged), lost, "{acknowledged:?}");
        };
        check([0, 0], 0);
        check([1, 2], 0);
        check([3, 2], 1);
        check([4, 3], 3);
        let tally = Tally::new(2);
        for device in [0, 0, 0, 1, 1] {
            tally.count_sent();
            tally.count_acknowledged(device, Duration::from_millis(1));
        }
        let acknowledged = tally.acknowledged_by_device();
        assert_eq!(acknowledged, [3, 2]);
        let figures = || {
            let commands = Board::new(2, Instant::now()).figures();
            Figures::new(
                &tally,
                &seen,
                &acknowledged,
                commands,
                Duration::from_secs(1),
            )
        };
        assert_eq!((figures().read, figures().lost), (4, 1));
        assert!(!figures().is_complete());
        note(0, 1);
        assert!(figures().is_complete());
        let json = figures().as_json();
        assert_eq!(
            (&json["lost"], &json["d2c"]["lost"]),
            (&json!(0), &json!(0))
        );
    }
}
