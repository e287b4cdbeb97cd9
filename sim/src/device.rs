//! A device that never gives up: it sends all it has, again where nobody acknowledged it, and works
//! off its commands.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use fieldpost_client::{
    Command, ConnectionString, Device, DeviceEvent, DeviceOptions, PacketId, Trust,
};
use fieldpost_hub::clock::Clock;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::phase::{Phase, Phases};
use crate::random::Random;
use crate::world::World;

/// How long a device waits for the hub before it tries anew.
const PATIENCE: Duration = Duration::from_secs(20);

/// One device.
pub(crate) struct SimDevice {
    pub(crate) id: String,
    pub(crate) connection_string: ConnectionString,
    pub(crate) world: Arc<World>,
    pub(crate) phases: Phases,
    pub(crate) random: Random,
    /// Sent and not acknowledged, by number.
    pub(crate) unacknowledged: BTreeMap<u64, Vec<u8>>,
    /// Messages sent so far.
    pub(crate) sent: u64,
}

/// What one connection has on its way.
#[derive(Default)]
struct Window {
    /// By packet id: the message, and the commands acknowledged before it was sent.
    in_flight: HashMap<PacketId, (u64, Vec<String>)>,
    /// What says that a command is rejected or given back.
    verdicts: HashSet<PacketId>,
    /// Commands acknowledged since the last message was sent.
    acknowledged: Vec<String>,
    /// Commands that are worked on, with the time when they are done.
    working: VecDeque<(Instant, PacketId, String)>,
}

impl SimDevice {
    /// Runs until the world ends.
    pub(crate) async fn run(mut self) {
        loop {
            let wait = self
                .random
                .within(&(Duration::ZERO..Duration::from_secs(2)));
            tokio::select! {
                biased;
                () = self.phases.until(Phase::Over) => return,
                () = sleep(wait) => {}
            }
            let mut phases = self.phases.clone();
            tokio::select! {
                biased;
                () = phases.until(Phase::Over) => return,
                why = self.connect() => {
                    self.world.auditor.note(format_args!("{} lost its connection: {why}", self.id));
                }
            }
        }
    }

    /// Connects and goes on until something breaks; says what.
    async fn connect(&mut self) -> String {
        let options = DeviceOptions {
            connection_string: self.connection_string.clone(),
            address: None,
            trust: Trust::Network(Arc::new(self.world.network.clone())),
            keep_alive_s: 10,
            now: self.world.timer.now(),
        };
        let mut device = match timeout(PATIENCE, Device::connect(&options)).await {
            Ok(Ok(device)) => device,
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "no answer to CONNECT".to_owned(),
        };
        match timeout(PATIENCE, device.subscribe_commands()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return error.to_string(),
            Err(_) => return "no answer to SUBSCRIBE".to_owned(),
        }
        let auditor = &self.world.auditor;
        auditor.note(format_args!("{} is connected", self.id));
        let window_max = usize::try_from(1 + self.random.below(16)).unwrap_or(1);
        let mut window = Window::default();
        // What nobody acknowledged goes first, in its order.
        let mut next = 0;
        let mut publish_at = Instant::now();
        loop {
            while window.in_flight.len() < window_max {
                let Some((number, body)) = self.next_message(&mut next, &mut publish_at) else {
                    break;
                };
                match device.publish("", &body) {
                    Ok(packet_id) => {
                        let before = std::mem::take(&mut window.acknowledged);
                        window.in_flight.insert(packet_id, (number, before));
                    }
                    Err(error) => return error.to_string(),
                }
            }
            let idle = self.is_done() || window.in_flight.len() >= window_max;
            let publish = if idle {
                Instant::now() + PATIENCE
            } else {
                publish_at
            };
            let done = window.working.front().map_or(publish, |(at, ..)| *at);
            let event = tokio::select! {
                biased;
                event = device.next() => match event {
                    Ok(event) => event,
                    Err(error) => return error.to_string(),
                },
                () = sleep_until(publish.min(done)) => {
                    if let Err(error) = self.finish_commands(&mut device, &mut window) {
                        return error;
                    }
                    continue;
                }
            };
            match event {
                DeviceEvent::Acknowledged(packet_id) => self.acknowledged(packet_id, &mut window),
                DeviceEvent::Command(command) => {
                    if let Err(why) = self.command(command, &mut window) {
                        return why;
                    }
                }
            }
        }
    }

    /// The next message to send on this connection, if it is time for one.
    fn next_message(&mut self, next: &mut u64, due: &mut Instant) -> Option<(u64, Vec<u8>)> {
        if let Some((number, body)) = self.unacknowledged.range(*next..).next() {
            *next = number + 1;
            return Some((*number, body.clone()));
        }
        if self.is_done() || *due > Instant::now() {
            return None;
        }
        *due = Instant::now() + self.random.within(&self.world.scenario.publish_every);
        let padding = match self.random.below(100) {
            0..70 => self.random.below(300),
            70..98 => self.random.below(4000),
            _ => self.random.below(40_000),
        };
        let seed = self.random.next();
        let (number, body) = self.world.auditor.sent(&self.id, |number| {
            let mut body = format!("{} {number} ", self.id).into_bytes();
            let mut noise = Random::new(seed);
            body.extend((0..padding).map(|_| b"0123456789abcdef"[(noise.next() >> 60) as usize]));
            body
        });
        self.sent += 1;
        self.world.did_one();
        self.unacknowledged.insert(number, body.clone());
        *next = number + 1;
        Some((number, body))
    }

    fn acknowledged(&mut self, packet_id: PacketId, window: &mut Window) {
        if window.verdicts.remove(&packet_id) {
            return;
        }
        let auditor = &self.world.auditor;
        let Some((number, commands)) = window.in_flight.remove(&packet_id) else {
            auditor.violation(format_args!(
                "{} heard of {packet_id:?}, which it did not send",
                self.id
            ));
            return;
        };
        self.unacknowledged.remove(&number);
        auditor.acknowledged(&self.id, number);
        // The hub has read this device's bytes in their order. What it took in and had not yet made
        // durable is gone with it when it falls: MQTT has no word for the end of a PUBACK's effect.
        if self.world.scenario.is_steady() {
            for command in commands {
                auditor.command_completed(&command);
            }
        }
    }

    /// Takes a command: works on it for a while, or loses its connection over it.
    fn command(&mut self, command: Command, window: &mut Window) -> Result<(), String> {
        let id = String::from_utf8_lossy(&command.payload);
        let id = id.split(' ').next().unwrap_or_default().to_owned();
        self.world.auditor.command_delivered(&self.id, &id);
        let Some(packet_id) = command.packet_id else {
            return Err(format!("command {id} came at QoS 0"));
        };
        let span = match self.random.below(100) {
            0..80 => Duration::ZERO,
            80..97 => self.random.around(Duration::from_secs(2)),
            _ if self.world.scenario.cut_every.is_some() && self.phases.is(Phase::Load) => {
                return Err(format!("it crashed over command {id}"));
            }
            _ => Duration::from_millis(1),
        };
        // In the order in which they came, as MQTT wants it.
        let before = window.working.back().map(|(at, ..)| *at);
        let done = (Instant::now() + span).max(before.unwrap_or_else(Instant::now));
        window.working.push_back((done, packet_id, id));
        Ok(())
    }

    /// Acknowledges the commands that are worked off. A few are rejected or given back.
    fn finish_commands(&mut self, device: &mut Device, window: &mut Window) -> Result<(), String> {
        let now = Instant::now();
        while let Some((_, packet_id, id)) = window.working.pop_front_if(|(done, ..)| *done <= now)
        {
            let auditor = &self.world.auditor;
            let verdict = match self.random.below(100) {
                0..6 => {
                    auditor.command_rejected(&id);
                    device.reject_command(packet_id)
                }
                // So few that none is given back as often as the hub allows.
                6..12 => {
                    auditor.note(format_args!("command {id} given back"));
                    device.abandon_command(packet_id)
                }
                _ => {
                    auditor.command_acknowledged(&id);
                    (device.acknowledge_command(packet_id)).map_err(|error| error.to_string())?;
                    window.acknowledged.push(id);
                    continue;
                }
            };
            window
                .verdicts
                .insert(verdict.map_err(|error| error.to_string())?);
        }
        Ok(())
    }

    /// Whether there is nothing new to send.
    fn is_done(&self) -> bool {
        self.sent >= self.world.scenario.messages
    }
}
