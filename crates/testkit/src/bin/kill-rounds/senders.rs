//! Devices that send numbered messages for ever.

use std::time::Duration;

use anyhow::Result;
use fieldpost_client::device::{AmqpDevice, HttpsDevice};
use fieldpost_client::{ConnectError, Device, DeviceOptions};
use fieldpost_testkit::hub::now;

use super::fleet::{Member, Protocol};
use super::{RETRY, SharedLedger, lock};

/// A device fills its window this often: kills are what is wanted, not volume.
const PACE: Duration = Duration::from_millis(20);

/// Sends for ever, connecting as often as it takes.
pub(crate) async fn send_forever(
    member: Member,
    mut options: DeviceOptions,
    window: usize,
    ledger: SharedLedger,
) {
    let mut first_unacknowledged = 0;
    loop {
        options.now = now();
        // A refused connection is the hub being away; a device tries again soon.
        if let Ok(connected) = Connected::open(member.protocol, &options).await {
            let first = &mut first_unacknowledged;
            // The connection ends with the hub.
            let _ended = send_until_broken(&member.id, connected, window, first, &ledger).await;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn send_until_broken(
    id: &str,
    mut connected: Connected,
    window: usize,
    first_unacknowledged: &mut u64,
    ledger: &SharedLedger,
) -> Result<()> {
    let mut next = *first_unacknowledged;
    let mut pace = tokio::time::interval(PACE);
    loop {
        pace.tick().await;
        while connected.has_room(window) {
            connected.publish(id, next)?;
            next += 1;
        }
        let count = connected.acknowledged().await?;
        let mut ledger = lock(ledger);
        for _ in 0..count {
            ledger.acknowledge(id, *first_unacknowledged);
            *first_unacknowledged += 1;
        }
    }
}

/// A device's connection.
enum Connected {
    Mqtt(Box<Device>),
    Amqp(Box<AmqpDevice>),
    /// And the message that is to be sent next: a request has its answer before the next one.
    Https(Box<HttpsDevice>, Option<Vec<u8>>),
}

impl Connected {
    async fn open(protocol: Protocol, options: &DeviceOptions) -> Result<Self, ConnectError> {
        Ok(match protocol {
            Protocol::Mqtt => Self::Mqtt(Box::new(Device::connect(options).await?)),
            Protocol::Amqp => Self::Amqp(Box::new(AmqpDevice::connect(options).await?)),
            Protocol::Https => Self::Https(Box::new(HttpsDevice::connect(options).await?), None),
        })
    }

    /// Whether one message more may be in flight.
    fn has_room(&self, window: usize) -> bool {
        match self {
            Self::Mqtt(device) => device.in_flight() < window,
            Self::Amqp(device) => device.in_flight() < window && device.can_publish(),
            Self::Https(_, next) => next.is_none(),
        }
    }

    fn publish(&mut self, id: &str, number: u64) -> Result<()> {
        let payload = format!("{id} {number}").into_bytes();
        match self {
            Self::Mqtt(device) => drop(device.publish(&format!("n={number}"), &payload)?),
            Self::Amqp(device) => device.publish(&payload)?,
            Self::Https(_, next) => *next = Some(payload),
        }
        Ok(())
    }

    /// Waits until more of the oldest messages are acknowledged or, where none is in flight, until one can
    /// be sent, and says how many they are.
    async fn acknowledged(&mut self) -> Result<usize> {
        match self {
            // Acknowledgements come in the order of the messages.
            Self::Mqtt(device) => Ok(device.acknowledged(|_| {}).await?),
            Self::Amqp(device) if device.in_flight() == 0 => {
                device.ready().await?;
                Ok(0)
            }
            Self::Amqp(device) => Ok(device.acknowledged().await?),
            Self::Https(device, next) => {
                let Some(payload) = next.take() else {
                    return Ok(0);
                };
                device.send(&payload).await?;
                Ok(1)
            }
        }
    }
}
