//! One thread's share of the connections.

use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hdrhistogram::Histogram;
use mio::{Events, Interest, Poll, Token};

use super::connection::{Connection, Login};
use super::content::Content;
use super::{Load, Pace, Shared, Target};

/// Bytes that one read may bring: many more acknowledgements than are ever there.
const READ_BYTES: usize = 64 * 1024;

/// Messages at fixed moments are sent in ticks of this length: waiting shorter would cost the server
/// processor time.
const TICK: Duration = Duration::from_micros(200);

/// Unacknowledged messages of a connection that sends at fixed moments: packet ids are not used twice.
const IN_FLIGHT_MAX: u64 = 60_000;

/// Longest silence of the server while something is owed.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Worker {
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    buffer: Vec<u8>,
    scratch: Vec<u8>,
}

pub(super) struct Outcome {
    pub(super) latency: Histogram<u64>,
    pub(super) unsent: u64,
}

impl Worker {
    pub(super) fn connect(target: &Target, logins: &[&Login], at_once: usize) -> Result<Self> {
        let mut worker = Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1024),
            connections: Vec::with_capacity(logins.len()),
            buffer: vec![0; READ_BYTES],
            scratch: Vec::new(),
        };
        let mut ready = 0;
        while ready < logins.len() {
            while let Some(login) = logins.get(worker.connections.len())
                && worker.connections.len() < ready + at_once.max(1)
            {
                let mut connection = Connection::open(target.address, target.tls.as_ref(), login)?;
                worker.poll.registry().register(
                    connection.socket(),
                    Token(worker.connections.len()),
                    Interest::READABLE | Interest::WRITABLE,
                )?;
                worker.connections.push(connection);
            }
            worker.poll.poll(&mut worker.events, Some(PATIENCE))?;
            ensure!(!worker.events.is_empty(), "the server greets nobody");
            for event in &worker.events {
                let place = event.token().0;
                let connection = worker.connections.get_mut(place).context("token")?;
                let was_ready = connection.is_ready();
                connection.work(&mut worker.buffer)?;
                ready += usize::from(connection.is_ready() && !was_ready);
            }
        }
        Ok(worker)
    }

    pub(super) fn connections(&self) -> usize {
        self.connections.len()
    }

    pub(super) fn acknowledged(&self, connection: usize) -> Option<u64> {
        Some(self.connections.get(connection)?.acknowledged())
    }

    pub(super) fn run(
        &mut self,
        load: &Load,
        content: &Content,
        connections_of_all: usize,
        started: Instant,
        shared: &Shared,
    ) -> Result<Outcome> {
        match load.pace {
            Pace::InFlight(count) => self.run_closed(count, content, shared),
            Pace::PerSecond(rate) => {
                let share = (self.connections.len(), connections_of_all);
                let schedule = Schedule::new(started, load, rate, share);
                self.run_open(&schedule, content, shared)
            }
        }
    }

    fn run_closed(
        &mut self,
        in_flight: u64,
        content: &Content,
        shared: &Shared,
    ) -> Result<Outcome> {
        let mut owed = 0;
        for connection in &mut self.connections {
            let messages = in_flight * connection.devices() as u64;
            connection.send(messages, content, &mut self.scratch)?;
            owed += messages;
        }
        let mut heard = Instant::now();
        while owed > 0 {
            let stop = shared.stop.load(Ordering::Relaxed);
            self.poll
                .poll(&mut self.events, Some(Duration::from_millis(100)))?;
            if self.events.is_empty() {
                ensure!(heard.elapsed() < PATIENCE, "{owed} messages unacknowledged");
                continue;
            }
            let mut acknowledged = 0;
            for event in &self.events {
                let connection = self.connections.get_mut(event.token().0).context("token")?;
                let count = connection.work(&mut self.buffer)?;
                acknowledged += count;
                let next = if stop { 0 } else { count };
                connection.send(next, content, &mut self.scratch)?;
            }
            if stop {
                owed -= acknowledged;
            }
            heard = Instant::now();
            shared
                .acknowledged
                .fetch_add(acknowledged, Ordering::Relaxed);
        }
        Ok(Outcome {
            latency: Histogram::new(3)?,
            unsent: 0,
        })
    }

    fn run_open(
        &mut self,
        schedule: &Schedule,
        content: &Content,
        shared: &Shared,
    ) -> Result<Outcome> {
        let mut latency = Histogram::new(3)?;
        // Where each connection stood when this began.
        let first: Vec<u64> = self.connections.iter().map(|c| c.sent()).collect();
        let mut heard = Instant::now();
        let mut tick = Instant::now();
        loop {
            let stop = shared.stop.load(Ordering::Relaxed);
            self.poll.poll(&mut self.events, Some(Duration::ZERO))?;
            let mut acknowledged = 0;
            for event in &self.events {
                let place = event.token().0;
                let connection = self.connections.get_mut(place).context("token")?;
                let before = connection.acknowledged();
                let count = connection.work(&mut self.buffer)?;
                acknowledged += count;
                let now = schedule.started.elapsed();
                let first = first.get(place).copied().unwrap_or_default();
                for number in before..before + count {
                    if let Some(took) = schedule.took(place as u64, number - first, now) {
                        latency.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX))?;
                    }
                }
            }
            shared
                .acknowledged
                .fetch_add(acknowledged, Ordering::Relaxed);
            let now = schedule.started.elapsed().min(schedule.measured_to);
            let mut in_flight = 0;
            let mut unsent = 0;
            for (place, (connection, first)) in self.connections.iter_mut().zip(&first).enumerate()
            {
                let due = schedule.due(place as u64, now) - (connection.sent() - first);
                if due > 0 && !connection.is_held_back() && !stop {
                    let count = due.min(IN_FLIGHT_MAX - connection.in_flight().min(IN_FLIGHT_MAX));
                    connection.send(count, content, &mut self.scratch)?;
                    unsent += due - count;
                } else {
                    unsent += due;
                }
                in_flight += connection.in_flight();
            }
            if acknowledged > 0 {
                heard = Instant::now();
            }
            if stop && in_flight == 0 {
                return Ok(Outcome { latency, unsent });
            }
            if in_flight > 0 {
                ensure!(heard.elapsed() < PATIENCE, "{in_flight} unacknowledged");
            }
            tick = (tick + TICK).max(Instant::now() - TICK);
            thread::sleep(tick.saturating_duration_since(Instant::now()));
        }
    }
}

/// The fixed moments at which one thread's connections send, one after the other.
pub(super) struct Schedule {
    per_second: f64,
    connections: u64,
    started: Instant,
    measured_from: Duration,
    measured_to: Duration,
}

impl Schedule {
    /// The schedule of a thread that has so many of all connections, which send `rate` messages a
    /// second together.
    pub(super) fn new(
        started: Instant,
        load: &Load,
        rate: u64,
        (connections, of_all): (usize, usize),
    ) -> Self {
        Self {
            per_second: rate as f64 * connections as f64 / of_all.max(1) as f64,
            connections: connections as u64,
            started,
            measured_from: load.warm,
            measured_to: load.warm + load.measured,
        }
    }

    /// How long after its moment a message has arrived `now`, if that moment is in the measured time.
    pub(super) fn took(&self, connection: u64, number: u64, now: Duration) -> Option<Duration> {
        let intended = self.intended(connection, number);
        let is_measured = (self.measured_from..self.measured_to).contains(&intended);
        is_measured.then(|| now.saturating_sub(intended))
    }

    /// When a connection's message is to be sent, since the start.
    fn intended(&self, connection: u64, number: u64) -> Duration {
        let index = number * self.connections + connection;
        Duration::from_secs_f64(index as f64 / self.per_second)
    }

    /// How many messages a connection should have sent by `now`.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a time since the start by a rate is small and not negative"
    )]
    fn due(&self, connection: u64, now: Duration) -> u64 {
        let of_all = (now.as_secs_f64() * self.per_second) as u64;
        (of_all + self.connections - 1).saturating_sub(connection) / self.connections
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_was_intended_before() {
        let schedule = Schedule {
            per_second: 1000.0,
            connections: 3,
            started: Instant::now(),
            measured_from: Duration::ZERO,
            measured_to: Duration::ZERO,
        };
        for ms in 0..50 {
            let now = Duration::from_micros(ms * 1000 + 500);
            let due: Vec<u64> = (0..3).map(|c| schedule.due(c, now)).collect();
            assert_eq!(due.iter().sum::<u64>(), ms);
            for (connection, &due) in (0..).zip(&due) {
                assert!(due == 0 || schedule.intended(connection, due - 1) <= now);
                assert!(schedule.intended(connection, due) + Duration::from_micros(500) >= now);
            }
        }
    }
}
