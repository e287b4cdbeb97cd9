//! Cloud-to-device messages over connections that break, against a reference model.
//!
//! What it is about: nothing that the device has acknowledged, durably, is delivered again; nothing
//! that it has not acknowledged is lost; packet ids and DUP say what MQTT wants them to say; and an
//! acknowledgement counts for its own connection only.

mod courses;
mod points;
mod telemetry;

use fieldpost_hub::c2d::{Sender, Target};
use fieldpost_model::{CloudMessage, Identity};
use fieldpost_mqtt::PacketId;

use super::*;

const FILTER: &str = "devices/dev1/messages/devicebound/#";

/// More turns of the runtime than anything in these tests takes from task to task.
const TURNS: usize = 60;

/// Lets every task go on until it waits for somebody.
async fn settle_down() {
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
}

/// What comes to the device.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Heard {
    Connack { session_present: bool },
    Command(Command),
    Puback,
    Suback,
    Unsuback,
    Pingresp,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Command {
    number: u32,
    dup: bool,
    /// `None` at QoS 0.
    packet_id: Option<PacketId>,
}

/// The next thing that comes to the device, waiting for it.
async fn hear(device: &mut Device) -> Heard {
    device.flush().await;
    loop {
        let mut input = &device.input[..];
        let heard = device
            .client
            .next(&mut input)
            .unwrap()
            .map(|event| match event {
                ClientEvent::Connack(Connack::Accepted { session_present }) => {
                    Heard::Connack { session_present }
                }
                ClientEvent::Connack(refused) => panic!("{refused:?}"),
                ClientEvent::Publish(publish) => {
                    let number = std::str::from_utf8(publish.payload).unwrap();
                    let number = number.parse().unwrap();
                    let message_id = format!("%24.mid={}&", message_id(number));
                    assert!(publish.topic.contains(&message_id), "{}", publish.topic);
                    Heard::Command(Command {
                        number,
                        dup: publish.dup,
                        packet_id: publish.packet_id,
                    })
                }
                ClientEvent::Puback { .. } => Heard::Puback,
                ClientEvent::Suback(_) => Heard::Suback,
                ClientEvent::Unsuback { .. } => Heard::Unsuback,
                ClientEvent::Pingresp => Heard::Pingresp,
            });
        let left = input.len();
        device.input.drain(..device.input.len() - left);
        if let Some(heard) = heard {
            return heard;
        }
        let read = device.stream.read_buf(&mut device.input);
        let read = tokio::time::timeout(Duration::from_secs(20), read).await;
        if read.expect("something must come").unwrap_or(0) == 0 {
            return Heard::Closed;
        }
    }
}

/// Everything that comes until nothing more does.
async fn hear_all(device: &mut Device) -> Vec<Heard> {
    let mut all = Vec::new();
    loop {
        device.flush().await;
        settle_down().await;
        device.raw(&PINGREQ).await;
        let before = all.len();
        loop {
            match hear(device).await {
                Heard::Pingresp => break,
                Heard::Closed => {
                    all.push(Heard::Closed);
                    return all;
                }
                heard => all.push(heard),
            }
        }
        if all.len() == before {
            return all;
        }
    }
}

/// What comes on a connection until it is closed.
async fn hear_rest(device: &mut Device) -> Vec<Heard> {
    let mut all = Vec::new();
    loop {
        match hear(device).await {
            Heard::Closed => return all,
            heard => all.push(heard),
        }
    }
}

async fn send(sender: &mut Sender, number: u32) {
    let to = "/devices/dev1/messages/deviceBound";
    let message = CloudMessage {
        to: to.into(),
        message_id: Some(message_id(number).into()),
        body: number.to_string().into_bytes().into(),
        ..CloudMessage::default()
    };
    sender.send_one(target(), &message).await.unwrap();
}

/// Nothing says that ids of messages are unique.
fn message_id(number: u32) -> String {
    format!("m{}", number % 2)
}

fn target() -> Target {
    Target {
        identity: Identity::of_device(DeviceId::new("dev1").unwrap()),
        fallback: None,
    }
}

fn puback(packet_id: PacketId) -> Vec<u8> {
    let mut bytes = bytes::BytesMut::new();
    packet::put_pubacks(&mut bytes, std::iter::once(packet_id));
    bytes.to_vec()
}

/// How many messages wait for the device, in whatever state.
async fn waiting(fleet: &Fleet) -> u64 {
    let registry = fleet.hub.hub.registry();
    let device = registry
        .get(&target().identity.device)
        .await
        .unwrap()
        .unwrap();
    let of = (target().identity, Arc::clone(&device.generation_id));
    fleet.hub.hub.c2d().message_counts(&[of]).await.unwrap()[0]
}

/// Ends a connection as a crash of the hub does.
async fn kill(device: Device) {
    device.task.abort();
    let _ = device.task.await;
}
