//! The figures of a run, for people and for programs.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::expiry::{Compared, Figures, Latency};
use super::hub::{End, Memory};

/// What is asked of a hub with a million queues.
const RESIDENT_ASKED: u64 = 1536 * 1024 * 1024;
const START_ASKED: Duration = Duration::from_secs(5);

/// One phase: so many things done.
pub(super) struct Phase {
    pub(super) count: u64,
    pub(super) took: Duration,
    /// Processor time of the hub.
    pub(super) cpu: Duration,
}

/// One end and new beginning of the process, and the devices that came for their messages then.
pub(super) struct Restart {
    pub(super) end: End,
    pub(super) took: Duration,
    pub(super) cpu: Duration,
    /// Just after it.
    pub(super) memory: Memory,
    pub(super) fetched: Phase,
}

pub(super) struct Report {
    pub(super) devices: u64,
    pub(super) bytes: usize,
    pub(super) registered: Phase,
    pub(super) memory_registered: Memory,
    pub(super) sent: Phase,
    pub(super) memory_waiting: Memory,
    pub(super) restarts: Vec<Restart>,
    pub(super) expiry: Figures,
    pub(super) memory_end: Memory,
    pub(super) lost: usize,
}

impl Phase {
    fn per_second(&self) -> f64 {
        self.count as f64 / self.took.as_secs_f64()
    }

    fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.count.max(1) as f64
    }

    fn json(&self) -> Value {
        json!({
            "count": self.count,
            "seconds": self.took.as_secs_f64(),
            "perSecond": self.per_second(),
            "cpuMicrosecondsEach": self.cpu_us(),
        })
    }
}

impl Report {
    /// Lines of a table.
    pub(super) fn table(&self) -> String {
        let mut rows = vec![
            phase_row("registered", &self.registered),
            row("  resident", &memory(self.memory_registered)),
            phase_row("sent, each accepted when durable", &self.sent),
            row(
                "  resident while all wait",
                &format!(
                    "{}; asked: < {:.0} MB (1.5 GiB)",
                    memory(self.memory_waiting),
                    megabytes(RESIDENT_ASKED)
                ),
            ),
        ];
        for restart in &self.restarts {
            let text = format!(
                "{:.2} s with {:.2} s CPU; asked: < {} s",
                restart.took.as_secs_f64(),
                restart.cpu.as_secs_f64(),
                START_ASKED.as_secs()
            );
            rows.push(row(&format!("started after {}", restart.end.name()), &text));
            rows.push(row("  resident", &memory(restart.memory)));
            rows.push(phase_row("  devices fetched theirs", &restart.fetched));
        }
        let expiry = &self.expiry;
        let ended = format!(
            "{} in {:.1} s: {:.0}/s at {:.1} us CPU each; {} dead letters",
            expiry.ended,
            expiry.took.as_secs_f64(),
            expiry.ended as f64 / expiry.took.as_secs_f64(),
            expiry.cpu.as_secs_f64() * 1e6,
            expiry.dead_letters,
        );
        rows.push(row("all ended at one instant", &ended));
        let feedback = format!(
            "{} owed, the last after {:.1} s, {} more than once",
            expiry.feedback,
            expiry.feedback_took.as_secs_f64(),
            expiry.feedback_again
        );
        rows.push(row("  feedback", &feedback));
        rows.push(row("  resident afterwards", &memory(self.memory_end)));
        rows.push(row("lost", &self.lost.to_string()));
        let mut text = format!(
            "{} devices, one message of {} B for each\n{}\n",
            self.devices,
            self.bytes,
            rows.join("\n")
        );
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "other work, {:.0} s before the instant and {0:.0} s from it on; it takes {:.0} % of a \
             processor of the hub; latency in ms p50/p99/max",
            expiry.compared.as_secs_f64(),
            expiry.beside_cpu * 100.0,
        );
        let rows = expiry.beside.iter().map(Compared::row);
        text.push_str(&rows.collect::<Vec<_>>().join("\n"));
        text
    }

    /// The same for programs. Memory is in bytes, latencies in milliseconds.
    pub(super) fn json(&self) -> Value {
        let restarts = self.restarts.iter().map(|restart| {
            json!({
                "after": restart.end.name(),
                "seconds": restart.took.as_secs_f64(),
                "cpuSeconds": restart.cpu.as_secs_f64(),
                "memory": memory_json(restart.memory),
                "fetched": restart.fetched.json(),
            })
        });
        let expiry = &self.expiry;
        json!({
            "devices": self.devices,
            "messageBytes": self.bytes,
            "registered": self.registered.json(),
            "memoryRegistered": memory_json(self.memory_registered),
            "sent": self.sent.json(),
            "memoryWaiting": memory_json(self.memory_waiting),
            "restarts": restarts.collect::<Vec<_>>(),
            "expiry": {
                "ended": expiry.ended,
                "seconds": expiry.took.as_secs_f64(),
                "cpuMicrosecondsEach": expiry.cpu.as_secs_f64() * 1e6,
                "otherWorkProcessors": expiry.beside_cpu,
                "deadLetters": expiry.dead_letters,
                "feedback": expiry.feedback,
                "feedbackSeconds": expiry.feedback_took.as_secs_f64(),
                "feedbackAgain": expiry.feedback_again,
                "comparedSeconds": expiry.compared.as_secs_f64(),
                "otherWork": expiry.beside.iter().map(Compared::json).collect::<Vec<_>>(),
            },
            "memoryEnd": memory_json(self.memory_end),
            "lost": self.lost,
        })
    }
}

impl End {
    fn name(self) -> &'static str {
        match self {
            Self::Killed => "SIGKILL",
            Self::Stopped => "SIGTERM",
        }
    }
}

impl Compared {
    fn row(&self) -> String {
        let ratio = |of: fn(&Latency) -> Duration| ratio(of(&self.during), of(&self.before));
        format!(
            "  {:<34} before {:>20}, from it on {:>22} ({} of them); ratio {:.2}/{:.2}/{:.2}; worst until all ended {:.1}",
            self.work.name(),
            latency(&self.before),
            latency(&self.during),
            self.during.count,
            ratio(|latency| latency.p50),
            ratio(|latency| latency.p99),
            ratio(|latency| latency.max),
            millis(self.worst),
        )
    }

    fn json(&self) -> Value {
        let latency = |latency: &Latency| {
            json!({
                "count": latency.count,
                "p50": millis(latency.p50),
                "p99": millis(latency.p99),
                "max": millis(latency.max),
            })
        };
        json!({
            "work": self.work.name(),
            "before": latency(&self.before),
            "during": latency(&self.during),
            "ratioP50": ratio(self.during.p50, self.before.p50),
            "ratioP99": ratio(self.during.p99, self.before.p99),
            "ratioMax": ratio(self.during.max, self.before.max),
            "worst": millis(self.worst),
        })
    }
}

fn row(what: &str, figures: &str) -> String {
    format!("{what:<34} {figures}")
}

fn phase_row(what: &str, phase: &Phase) -> String {
    let figures = format!(
        "{} in {:.1} s: {:.0}/s at {:.1} us CPU each",
        phase.count,
        phase.took.as_secs_f64(),
        phase.per_second(),
        phase.cpu_us()
    );
    row(what, &figures)
}

fn memory(memory: Memory) -> String {
    format!(
        "{:.0} MB, at most {:.0} MB since the start",
        megabytes(memory.resident),
        megabytes(memory.peak)
    )
}

fn memory_json(memory: Memory) -> Value {
    json!({"residentBytes": memory.resident, "peakBytes": memory.peak})
}

fn latency(latency: &Latency) -> String {
    format!(
        "{:.1}/{:.1}/{:.1}",
        millis(latency.p50),
        millis(latency.p99),
        millis(latency.max)
    )
}

fn ratio(during: Duration, before: Duration) -> f64 {
    during.as_secs_f64() / before.as_secs_f64()
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn millis(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}
