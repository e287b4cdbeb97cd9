//! The simulated devices.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use fieldpost_client::device::{Command, Device, DeviceEvent, DeviceOptions};
use fieldpost_client::{ConnectionString, PacketId, Trust};
use fieldpost_hub::Hub;
use fieldpost_hub::identity::{Authentication, DeviceSpec};
use fieldpost_model::DeviceId;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::board::Board;
use super::figures::{Tally, body};
use crate::cli::peer::now;

/// Messages that a device has on their way at most.
const WINDOW: usize = 64;

/// Devices that connect at the same time.
const CONNECTING: usize = 64;

/// One device of so many is away at first, and gets what was sent to it meanwhile.
const AWAY_EVERY: u32 = 3;

/// Devices that are registered, most of them connected, and have sent nothing yet.
pub(super) struct Fleet {
    devices: Vec<Post>,
    tally: Arc<Tally>,
}

/// A device, connected or not.
enum Post {
    Connected(Box<Device>),
    Away(DeviceOptions),
}

/// Devices that send and receive.
pub(super) struct Sending {
    tasks: JoinSet<anyhow::Result<()>>,
}

/// When devices do what.
pub(super) struct Schedule {
    /// From when on they send.
    pub(super) started: Instant,
    /// When those that were away at first come back.
    pub(super) back: Instant,
    /// Messages per second and device; 0 for as many as the hub acknowledges.
    pub(super) rate: u32,
    /// Turns true when devices shall send nothing more.
    pub(super) stop: watch::Receiver<bool>,
    /// Turns true when nothing more will be sent to them either.
    pub(super) end: watch::Receiver<bool>,
}

/// The id of a simulated device.
pub(super) fn device_id(number: usize) -> anyhow::Result<DeviceId> {
    Ok(DeviceId::new(&format!("demo-{number}"))?)
}

impl Fleet {
    /// Registers devices and connects those that are not away at first.
    pub(super) async fn connect(
        hub: &Hub,
        count: u32,
        address: SocketAddr,
        trust: &Trust,
    ) -> anyhow::Result<Self> {
        let bar = crate::cli::output::progress("connecting", Some(count.into()), "devices");
        let mut connecting = JoinSet::new();
        let mut devices = Vec::new();
        for number in 0..count {
            if connecting.len() == CONNECTING {
                devices.extend(connecting.join_next().await.transpose()?.transpose()?);
            }
            let (hub, trust) = (hub.clone(), trust.clone());
            connecting.spawn(async move {
                let options = register(&hub, number, address, trust).await?;
                if number % AWAY_EVERY == 1 {
                    return Ok((number, Post::Away(options)));
                }
                let device = connect(&options).await;
                anyhow::Ok((number, Post::Connected(Box::new(device?))))
            });
            bar.inc(1);
        }
        while let Some(device) = connecting.join_next().await {
            devices.push(device??);
        }
        bar.finish_and_clear();
        devices.sort_by_key(|(number, _)| *number);
        Ok(Self {
            devices: devices.into_iter().map(|(_, device)| device).collect(),
            tally: Arc::new(Tally::new(count)),
        })
    }

    /// What all devices together have done.
    pub(super) fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    /// Sends from every device until told to stop, and receives until told that it is over.
    pub(super) fn send(self, schedule: &Schedule, board: &Arc<Board>) -> Sending {
        let mut tasks = JoinSet::new();
        for (number, post) in self.devices.into_iter().enumerate() {
            let worker = Worker {
                number,
                connected: schedule.started,
                started: schedule.started,
                sent: 0,
                in_flight: VecDeque::new(),
                tally: Arc::clone(&self.tally),
                board: Arc::clone(board),
                stop: schedule.stop.clone(),
                end: schedule.end.clone(),
            };
            tasks.spawn(worker.run(post, schedule.back, schedule.rate));
        }
        Sending { tasks }
    }
}

impl Sending {
    /// Waits for the devices to go.
    pub(super) async fn finish(mut self) -> anyhow::Result<()> {
        while let Some(device) = self.tasks.join_next().await {
            device??;
        }
        Ok(())
    }
}

async fn register(
    hub: &Hub,
    number: u32,
    address: SocketAddr,
    trust: Trust,
) -> anyhow::Result<DeviceOptions> {
    let id = device_id(usize::try_from(number)?)?;
    let device = hub.registry().create(DeviceSpec::new(id.clone())).await?;
    let Authentication::Sas(keys) = &device.authentication else {
        anyhow::bail!("a new device has keys");
    };
    Ok(DeviceOptions {
        connection_string: ConnectionString {
            host_name: "localhost".to_owned(),
            device_id: Some(id.as_str().to_owned()),
            policy: None,
            key: Some(keys.primary.expose().to_owned()),
            entity_path: None,
        },
        address: Some(address),
        trust,
        keep_alive_s: 240,
        now: now(),
    })
}

/// Connects a device, which then hears what is sent to it.
async fn connect(options: &DeviceOptions) -> anyhow::Result<Device> {
    let id = options.connection_string.device_id.as_deref();
    let context = || format!("connect device {}", id.unwrap_or_default());
    let mut device = Device::connect(options).await.with_context(context)?;
    device.subscribe_commands().await.with_context(context)?;
    Ok(device)
}

struct Worker {
    number: usize,
    /// Since when the device is connected.
    connected: Instant,
    started: Instant,
    sent: u32,
    /// When each message on its way was sent, oldest first.
    in_flight: VecDeque<(PacketId, Instant)>,
    tally: Arc<Tally>,
    board: Arc<Board>,
    stop: watch::Receiver<bool>,
    end: watch::Receiver<bool>,
}

impl Worker {
    async fn run(mut self, post: Post, back: Instant, rate: u32) -> anyhow::Result<()> {
        let mut device = match post {
            Post::Connected(device) => *device,
            Post::Away(mut options) => {
                tokio::select! {
                    () = tokio::time::sleep_until(back) => {}
                    // It comes back in any case: something may wait for it.
                    changed = self.stop.wait_for(|stop| *stop) => { changed?; }
                }
                options.now = now();
                self.connected = Instant::now();
                connect(&options).await?
            }
        };
        self.send(&mut device, rate).await?;
        self.serve(&mut device).await?;
        device.disconnect().await?;
        Ok(())
    }

    /// Sends until told to stop, and receives meanwhile.
    async fn send(&mut self, device: &mut Device, rate: u32) -> anyhow::Result<()> {
        let pause = match rate {
            0 => Duration::ZERO,
            rate => Duration::from_secs(1) / rate,
        };
        // Devices do not all speak at the same moment.
        let begin = self.connected + pause.mul_f64(phase(self.number));
        let mut turns = tokio::time::interval_at(begin, pause.max(Duration::from_micros(1)));
        turns.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut stop = self.stop.clone();
        loop {
            if rate == 0 {
                while self.in_flight.len() < WINDOW && !*stop.borrow() {
                    self.publish(device)?;
                }
            }
            let has_room = rate != 0 && self.in_flight.len() < WINDOW;
            tokio::select! {
                biased;
                changed = stop.wait_for(|stop| *stop) => {
                    changed?;
                    return Ok(());
                }
                _ = turns.tick(), if has_room => self.publish(device)?,
                event = device.next() => self.note(device, event?)?,
            }
        }
    }

    /// Receives until it is over. The figures tell of what was not acknowledged by then.
    async fn serve(&mut self, device: &mut Device) -> anyhow::Result<()> {
        let mut end = self.end.clone();
        loop {
            tokio::select! {
                changed = end.wait_for(|end| *end) => {
                    changed?;
                    return Ok(());
                }
                event = device.next() => self.note(device, event?)?,
            }
        }
    }

    fn publish(&mut self, device: &mut Device) -> anyhow::Result<()> {
        let now = Instant::now();
        let number = usize::try_from(self.sent)?;
        let body = body(self.number, number, now.duration_since(self.started));
        let packet = device.publish("", body.as_bytes())?;
        self.in_flight.push_back((packet, now));
        self.sent += 1;
        self.tally.count_sent();
        Ok(())
    }

    fn note(&mut self, device: &mut Device, event: DeviceEvent) -> anyhow::Result<()> {
        match event {
            DeviceEvent::Acknowledged(packet) => {
                let oldest = self.in_flight.pop_front();
                let (expected, sent) = oldest.context("an acknowledgement came for no message")?;
                // MQTT 3.1.1 has them come in the order of the messages, and the demo's count
                // relies on it.
                ensure!(packet == expected, "acknowledgements came out of order");
                self.tally.count_acknowledged(self.number, sent.elapsed());
            }
            DeviceEvent::Command(Command {
                packet_id, payload, ..
            }) => {
                self.board.delivered(&payload, self.connected);
                let packet = packet_id.context("a message came at QoS 0")?;
                device.acknowledge_command(packet)?;
                self.board.completed(&payload);
            }
        }
        Ok(())
    }
}

/// A number from 0 to 1 that spreads devices evenly, whatever their count: the fractional parts of
/// multiples of the golden ratio.
fn phase(number: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "device numbers are small")]
    let multiple = number as f64 * 0.618_033_988_749_895;
    multiple.fract()
}
