//! Devices that take messages for ever and do with each what it says.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use fieldpost_client::device::{AmqpDevice, DeviceEvent, HttpsDevice, HttpsError};
use fieldpost_client::{Device, DeviceOptions};
use fieldpost_testkit::hub::now;

use super::book::Book;
use super::lock;
use super::plan::Fate;
use crate::RETRY;
use crate::fleet::{Member, Protocol};

/// How long a device that polls waits when there was nothing.
const POLL: Duration = Duration::from_millis(50);

/// Takes messages for ever, connecting as often as it takes.
pub(super) async fn take_forever(
    member: Member,
    mut options: DeviceOptions,
    book: Arc<Mutex<Book>>,
) {
    loop {
        options.now = now();
        let id = &member.id;
        // The connection ends with the hub.
        let _ended = match member.protocol {
            Protocol::Mqtt => over_mqtt(id, &options, &book).await,
            Protocol::Amqp => over_amqp(id, &options, &book).await,
            Protocol::Https => over_https(id, &options, &book).await,
        };
        tokio::time::sleep(RETRY).await;
    }
}

async fn over_mqtt(id: &str, options: &DeviceOptions, book: &Mutex<Book>) -> Result<()> {
    let mut device = Device::connect(options).await?;
    device.subscribe_commands().await?;
    loop {
        let DeviceEvent::Command(command) = device.next().await? else {
            continue;
        };
        let came = lock(book).deliver(id, &command.payload);
        // Written with the next exchange; what does not arrive brings the message again.
        match (command.packet_id, came) {
            (Some(packet), Some((_, Fate::Reject))) => drop(device.reject_command(packet)?),
            (Some(packet), Some((_, Fate::Abandon))) => drop(device.abandon_command(packet)?),
            (Some(packet), _) => device.acknowledge_command(packet)?,
            (None, _) => lock(book).fail(format!("{id} got a message at QoS 0")),
        }
    }
}

async fn over_amqp(id: &str, options: &DeviceOptions, book: &Mutex<Book>) -> Result<()> {
    let mut device = AmqpDevice::connect(options).await?;
    device.subscribe_commands().await?;
    loop {
        let command = device.next_command().await?;
        let came = lock(book).deliver(id, &command.payload);
        // Written with the next exchange; what does not arrive brings the message again.
        match came {
            Some((_, Fate::Reject)) => device.reject_command(&command)?,
            Some((_, Fate::Abandon)) => device.abandon_command(&command)?,
            _ => device.complete_command(&command)?,
        }
    }
}

async fn over_https(id: &str, options: &DeviceOptions, book: &Mutex<Book>) -> Result<()> {
    let mut device = HttpsDevice::connect(options).await?;
    loop {
        let Some(command) = device.receive().await? else {
            tokio::time::sleep(POLL).await;
            continue;
        };
        let came = lock(book).deliver(id, &command.payload);
        let (settled, confirmed) = match came {
            Some((number, Fate::Reject)) => {
                let rejected = device.reject_command(&command).await;
                (rejected, Some((number, "rejected")))
            }
            Some((_, Fate::Abandon)) => (device.abandon_command(&command).await, None),
            came => {
                let completed = device.complete_command(&command).await;
                (completed, came.map(|(number, _)| (number, "completed")))
            }
        };
        match (settled, confirmed) {
            (Ok(()), Some((number, how))) => lock(book).confirm(number, how),
            (Ok(()), None) => {}
            // Its time was over first, or its lock's: the connection is as good as before.
            (Err(HttpsError::Refused(..)), _) => {}
            (Err(ended), _) => return Err(ended.into()),
        }
    }
}
