//! The simulated devices.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use fieldpost_client::device::{Device, DeviceOptions};
use fieldpost_client::{ConnectionString, PacketId, Trust};
use fieldpost_hub::Hub;
use fieldpost_hub::identity::{Authentication, DeviceSpec};
use fieldpost_model::DeviceId;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use super::figures::{Tally, body};
use crate::cli::peer::now;

/// Messages that a device has on their way at most.
const WINDOW: usize = 64;

/// Devices that connect at the same time.
const CONNECTING: usize = 64;

/// Time for the last acknowledgements.
const LAST_ACKNOWLEDGEMENTS: Duration = Duration::from_secs(10);

/// Devices that are connected and have sent nothing yet.
pub(super) struct Fleet {
    devices: Vec<Device>,
    tally: Arc<Tally>,
}

/// Devices that send.
pub(super) struct Sending {
    tasks: JoinSet<anyhow::Result<(usize, u32)>>,
    count: usize,
}

impl Fleet {
    /// Registers devices and connects them.
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
            connecting.spawn(connect(hub, number, address, trust));
            bar.inc(1);
        }
        while let Some(device) = connecting.join_next().await {
            devices.push(device??);
        }
        bar.finish_and_clear();
        devices.sort_by_key(|(number, _)| *number);
        Ok(Self {
            devices: devices.into_iter().map(|(_, device)| device).collect(),
            tally: Arc::default(),
        })
    }

    /// What all devices together have done.
    pub(super) fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    /// Sends from every device until told to stop.
    pub(super) fn send(self, started: Instant, rate: u32, stop: &watch::Receiver<bool>) -> Sending {
        let mut tasks = JoinSet::new();
        let count = self.devices.len();
        for (number, device) in self.devices.into_iter().enumerate() {
            let sender = Sender {
                number,
                device,
                started,
                sent: 0,
                acknowledged: 0,
                in_flight: VecDeque::new(),
                tally: Arc::clone(&self.tally),
            };
            tasks.spawn(sender.run(rate, stop.clone()));
        }
        Sending { tasks, count }
    }
}

impl Sending {
    /// Waits for the last acknowledgements; how many messages of each device were acknowledged.
    pub(super) async fn finish(mut self) -> anyhow::Result<Vec<u32>> {
        let mut acknowledged = vec![0; self.count];
        while let Some(device) = self.tasks.join_next().await {
            let (number, count) = device??;
            if let Some(entry) = acknowledged.get_mut(number) {
                *entry = count;
            }
        }
        Ok(acknowledged)
    }
}

async fn connect(
    hub: Hub,
    number: u32,
    address: SocketAddr,
    trust: Trust,
) -> anyhow::Result<(u32, Device)> {
    let id = DeviceId::new(&format!("demo-{number}"))?;
    let device = hub.registry().create(DeviceSpec::new(id.clone())).await?;
    let Authentication::Sas(keys) = &device.authentication else {
        anyhow::bail!("a new device has keys");
    };
    let device = Device::connect(&DeviceOptions {
        connection_string: ConnectionString {
            host_name: "localhost".to_owned(),
            device_id: Some(id.as_str().to_owned()),
            policy: None,
            key: keys.primary.expose().to_owned(),
            entity_path: None,
        },
        address: Some(address),
        trust,
        keep_alive_s: 240,
        now: now(),
    })
    .await
    .with_context(|| format!("connect device {id}"))?;
    Ok((number, device))
}

struct Sender {
    number: usize,
    device: Device,
    started: Instant,
    sent: u32,
    acknowledged: u32,
    /// When each message on its way was sent, oldest first.
    in_flight: VecDeque<(PacketId, Instant)>,
    tally: Arc<Tally>,
}

impl Sender {
    /// Sends until told to stop; gives its number and how many messages were acknowledged.
    async fn run(
        mut self,
        rate: u32,
        mut stop: watch::Receiver<bool>,
    ) -> anyhow::Result<(usize, u32)> {
        let pause = match rate {
            0 => Duration::ZERO,
            rate => Duration::from_secs(1) / rate,
        };
        // Devices do not all speak at the same moment.
        let offset = pause.mul_f64(phase(self.number));
        let mut turns =
            tokio::time::interval_at(self.started + offset, pause.max(Duration::from_micros(1)));
        turns.set_missed_tick_behavior(MissedTickBehavior::Burst);
        loop {
            if rate == 0 {
                while self.in_flight.len() < WINDOW {
                    self.publish()?;
                }
            }
            let has_room = rate != 0 && self.in_flight.len() < WINDOW;
            tokio::select! {
                changed = stop.wait_for(|stop| *stop) => {
                    changed?;
                    break;
                }
                _ = turns.tick(), if has_room => self.publish()?,
                done = acknowledge(&mut self.device, &mut self.in_flight, &self.tally) => {
                    self.acknowledged += done?;
                }
            }
        }
        let deadline = Instant::now() + LAST_ACKNOWLEDGEMENTS;
        while !self.in_flight.is_empty() {
            let last = acknowledge(&mut self.device, &mut self.in_flight, &self.tally);
            match tokio::time::timeout_at(deadline, last).await {
                Ok(done) => self.acknowledged += done?,
                // The figures tell of what was not acknowledged.
                Err(_elapsed) => return Ok((self.number, self.acknowledged)),
            }
        }
        self.device.disconnect().await?;
        Ok((self.number, self.acknowledged))
    }

    fn publish(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let body = body(self.number, self.sent, now.duration_since(self.started));
        let packet = self.device.publish("", body.as_bytes())?;
        self.in_flight.push_back((packet, now));
        self.sent += 1;
        self.tally.count_sent();
        Ok(())
    }
}

async fn acknowledge(
    device: &mut Device,
    in_flight: &mut VecDeque<(PacketId, Instant)>,
    tally: &Tally,
) -> anyhow::Result<u32> {
    let mut packets = Vec::new();
    device.acknowledged(|packet| packets.push(packet)).await?;
    let now = Instant::now();
    let mut count = 0;
    for packet in packets {
        let oldest = in_flight.pop_front();
        let (expected, sent) = oldest.context("an acknowledgement came for no message")?;
        // MQTT 3.1.1 has them come in the order of the messages, and the demo's count relies on it.
        ensure!(packet == expected, "acknowledgements came out of order");
        tally.count_acknowledged(now.duration_since(sent));
        count += 1;
    }
    Ok(count)
}

/// A number from 0 to 1 that spreads devices evenly, whatever their count: the fractional parts of
/// multiples of the golden ratio.
fn phase(number: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "device numbers are small")]
    let multiple = number as f64 * 0.618_033_988_749_895;
    multiple.fract()
}
