//! Devices that send: a few threads, each with its own share of the connections.

mod amqp;
mod connection;
mod content;
mod http;
mod mqtt;
mod stream;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use rustls::ClientConfig;

pub(crate) use self::amqp::{AmqpDevice, AmqpLogin};
pub(crate) use self::connection::Login;
pub(crate) use self::content::Content;
pub(crate) use self::http::HttpLogin;
pub(crate) use self::mqtt::{MqttLogin, push_length};
use self::worker::{Schedule, Worker};
use crate::process::{cpu_time, machine_cpu_time};

/// Where devices connect.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

/// When a device sends its next message.
#[derive(Clone, Copy)]
pub(crate) enum Pace {
    /// As soon as fewer than so many of its messages are unacknowledged.
    InFlight(u64),
    /// At fixed moments, so many in a second over all devices, whatever is unacknowledged.
    PerSecond(u64),
}

/// What is sent.
pub(crate) struct Load {
    pub(crate) pace: Pace,
    /// Bytes of a payload.
    pub(crate) bytes: usize,
    /// Distinguishes the fleets that use the same devices on one hub.
    pub(crate) phase: u16,
    /// Time until measuring begins.
    pub(crate) warm: Duration,
    pub(crate) measured: Duration,
}

/// What came of it in the measured time.
pub(crate) struct Measured {
    /// Messages acknowledged.
    pub(crate) messages: u64,
    pub(crate) took: Duration,
    /// The server's processor time.
    pub(crate) cpu: Duration,
    /// The generator's.
    pub(crate) generator_cpu: Duration,
    /// Cores that were taken by others than server and generator.
    pub(crate) disturbed_cores: f64,
    /// Microseconds from the moment at which a message should have been sent to its acknowledgement.
    /// Of messages sent at fixed moments only.
    pub(crate) latency: Histogram<u64>,
    /// Messages that should have been sent, and could not be before the time was over.
    pub(crate) unsent: u64,
}

/// Connected devices. Dropping them closes their connections.
pub(crate) struct Fleet {
    workers: Vec<Worker>,
    /// How long it took to connect them all.
    pub(crate) connecting: Duration,
}

/// The moments at which devices send, in the order of their logins.
pub(crate) struct Timetable {
    started: Instant,
    schedules: Vec<Schedule>,
}

impl Timetable {
    /// How long after its moment a device's message has arrived `at` this one, if that moment is in the
    /// measured time.
    pub(crate) fn took(&self, device: usize, number: u64, at: Instant) -> Option<Duration> {
        let threads = self.schedules.len().max(1);
        let schedule = self.schedules.get(device % threads)?;
        schedule.took((device / threads) as u64, number, at - self.started)
    }
}

/// What a worker and whoever waits for it tell each other.
#[derive(Default)]
struct Shared {
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

/// Where things stand at one moment: messages acknowledged, and processor time used so far.
struct Look {
    at: Instant,
    acknowledged: u64,
    machine: Duration,
    generator: Duration,
    server: Duration,
}

impl Fleet {
    /// Connects all devices, `at_once` at a time, and returns when each has its last answer.
    pub(crate) fn connect(
        target: &Target,
        logins: &[Login],
        threads: usize,
        at_once: usize,
    ) -> Result<Self> {
        let threads = threads.clamp(1, logins.len().max(1));
        let started = Instant::now();
        let workers = thread::scope(|scope| {
            let handles: Vec<_> = (0..threads)
                .map(|first| {
                    let share: Vec<_> = logins.iter().skip(first).step_by(threads).collect();
                    scope.spawn(move || Worker::connect(target, &share, at_once.div_ceil(threads)))
                })
                .collect();
            join(handles)
        })?;
        Ok(Self {
            workers,
            connecting: started.elapsed(),
        })
    }

    /// Sends, and returns when everything sent is acknowledged. `cpu` asks for the server's processor
    /// time so far.
    pub(crate) fn run(
        &mut self,
        load: &Load,
        cpu: impl Fn() -> Result<Duration>,
    ) -> Result<Measured> {
        self.run_from(Instant::now(), load, cpu)
    }

    /// The same, where the fixed moments count from `started`, which is now.
    pub(crate) fn run_from(
        &mut self,
        started: Instant,
        load: &Load,
        cpu: impl Fn() -> Result<Duration>,
    ) -> Result<Measured> {
        let content = Content::new(load.bytes, load.phase);
        let shared: Vec<Shared> = self.workers.iter().map(|_| Shared::default()).collect();
        let connections: usize = self.workers.iter().map(Worker::connections).sum();
        thread::scope(|scope| {
            let handles: Vec<_> = self
                .workers
                .iter_mut()
                .zip(&shared)
                .map(|(worker, shared)| {
                    let content = &content;
                    scope.spawn(move || worker.run(load, content, connections, started, shared))
                })
                .collect();
            let look = || -> Result<_> {
                let acknowledged = shared
                    .iter()
                    .map(|s| s.acknowledged.load(Ordering::Relaxed));
                let acknowledged = acknowledged.sum::<u64>();
                Ok(Look {
                    at: Instant::now(),
                    acknowledged,
                    machine: machine_cpu_time()?,
                    generator: cpu_time(std::process::id())?,
                    server: cpu()?,
                })
            };
            thread::sleep(load.warm);
            let before = look();
            thread::sleep(load.measured);
            let after = look();
            for shared in &shared {
                shared.stop.store(true, Ordering::Relaxed);
            }
            let outcomes = join(handles)?;
            let (before, after) = (before?, after?);
            let mut latency = Histogram::new(3)?;
            let mut unsent = 0;
            for outcome in outcomes {
                latency.add(outcome.latency)?;
                unsent += outcome.unsent;
            }
            let took = after.at - before.at;
            let cpu = after.server.saturating_sub(before.server);
            let generator_cpu = after.generator.saturating_sub(before.generator);
            let others = after
                .machine
                .saturating_sub(before.machine)
                .saturating_sub(generator_cpu + cpu);
            Ok(Measured {
                messages: after.acknowledged - before.acknowledged,
                took,
                cpu,
                generator_cpu,
                disturbed_cores: others.as_secs_f64() / took.as_secs_f64(),
                latency,
                unsent,
            })
        })
    }

    /// When each device sends, for whoever sees its messages at their other end. Of devices that have
    /// not sent yet.
    pub(crate) fn timetable(&self, started: Instant, load: &Load, per_second: u64) -> Timetable {
        let connections: Vec<usize> = self.workers.iter().map(Worker::connections).collect();
        let of_all = connections.iter().sum();
        let schedule = |&share| Schedule::new(started, load, per_second, (share, of_all));
        Timetable {
            started,
            schedules: connections.iter().map(schedule).collect(),
        }
    }

    /// Messages acknowledged so far on each connection, in the order of the logins.
    pub(crate) fn acknowledged(&self) -> Vec<u64> {
        let threads = self.workers.len().max(1);
        let devices: usize = self.workers.iter().map(Worker::connections).sum();
        let count = |device: usize| {
            let worker = self.workers.get(device % threads)?;
            worker.acknowledged(device / threads)
        };
        (0..devices)
            .map(|device| count(device).unwrap_or(0))
            .collect()
    }
}

impl Measured {
    pub(crate) fn per_second(&self) -> f64 {
        self.messages as f64 / self.took.as_secs_f64()
    }

    /// Microseconds of the server's processor time for one message.
    pub(crate) fn cpu_us(&self) -> f64 {
        self.for_one(self.cpu)
    }

    /// Microseconds of the generator's.
    pub(crate) fn generator_cpu_us(&self) -> f64 {
        self.for_one(self.generator_cpu)
    }

    fn for_one(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / (self.messages as f64).max(1.0)
    }
}

fn join<T>(handles: Vec<thread::ScopedJoinHandle<'_, Result<T>>>) -> Result<Vec<T>> {
    let outcomes: Vec<_> = handles
        .into_iter()
        .map(|handle| handle.join().ok().context("a thread panicked")?)
        .collect();
    outcomes.into_iter().collect()
}
