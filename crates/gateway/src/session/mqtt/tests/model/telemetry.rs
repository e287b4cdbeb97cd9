//! Messages from a device, its will and its subscriptions over connections that break, against a
//! reference model.
//!
//! The model is a list: everything that the hub took up, in order, wills in their places. What is
//! stored must be that list to the entry, whatever packet ids and DUP flags say; each connection is
//! acknowledged what it sent itself, in order, once it is durable and not before; and a session is
//! there with the subscriptions that were last acknowledged, over breaks and restarts of the hub.

mod courses;
mod walk;
mod world;

use fieldpost_hub::subscriptions::{Features, QoS};

use super::*;

/// The features that a device can subscribe to, each with its filter.
const FILTERS: [&str; 4] = [
    FILTER,
    "$iothub/twin/res/#",
    "$iothub/twin/PATCH/properties/desired/#",
    "$iothub/methods/POST/#",
];

/// The one of [`FILTERS`] without which twin requests are not answered.
const TWIN: usize = 1;

/// One thing that happens to a device or its hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The device sends new messages. Unless they are seen, the next step comes before the hub has
    /// had the time to read them.
    Publish {
        count: u8,
        qos: Qos,
        id: Id,
        seen: bool,
    },
    /// It sends everything again that was not acknowledged, marked as duplicates, under the old ids.
    Resend {
        seen: bool,
    },
    /// It sends a message up to some byte and nothing after it; then the connection ends.
    Cut {
        byte: usize,
        then: Break,
    },
    /// A request that is no message, in line with messages.
    Twin,
    /// It connects; if it is connected already, that takes the older connection's place.
    Connect {
        clean: bool,
        will: bool,
    },
    /// DISCONNECT is on its way when a newer connection comes.
    DisconnectAndTakeOver,
    Subscribe {
        filter: usize,
        qos: Qos,
    },
    Unsubscribe {
        filter: usize,
    },
    /// It subscribes, the store takes its time, and meanwhile something happens.
    SubscribeDuring {
        filter: usize,
        meanwhile: Meanwhile,
    },
    /// What waits for the log becomes durable.
    Commit,
    /// The same, and its acknowledgements are lost with the connection.
    CommitUnheard(Break),
    Disconnect,
    End(Break),
}

/// Under which packet id a new message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Id {
    Fresh,
    /// That of the newest message without an acknowledgement, whichever connection sent it.
    Reused,
}

/// How a connection ends without DISCONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Break {
    Closed,
    /// The first byte of DISCONNECT comes through.
    HalfDisconnect,
    Silent,
    /// The device does what no device may.
    Violation,
    TakenOver,
    /// The device is disabled, and enabled again.
    Disabled,
    /// The hub stops in order and starts again.
    Drained,
    /// The hub crashes.
    Crashed,
    /// The log fails with everything that waits for it, and the hub is started anew.
    LogLost,
}

/// What happens before the store has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    Nothing,
    Closed,
    TakenOver,
    Crashed,
    /// The store loses it.
    Lost,
}

/// What comes to the device.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Came {
    Connack {
        session_present: bool,
    },
    Puback(u16),
    Suback(u8),
    Unsuback,
    /// The answer to a twin request.
    TwinAnswer,
    Pingresp,
    Closed,
}

/// A PUBLISH as it stands on the wire. `transmission` tells the copies of one message apart for the
/// test alone.
fn publish_packet(number: u32, transmission: u32, qos: Qos, id: u16, dup: bool) -> Vec<u8> {
    let mut bytes = bytes::BytesMut::new();
    let body = number.to_string();
    let publish = Publish {
        dup,
        qos,
        retain: false,
        topic: &format!("{EVENTS}t={transmission}"),
        packet_id: (qos != Qos::AtMostOnce)
            .then(|| PacketId::new(id))
            .flatten(),
        payload: body.as_bytes(),
    };
    publish.encode(&mut bytes).unwrap();
    bytes.to_vec()
}

/// SUBSCRIBE or UNSUBSCRIBE for one filter.
fn subscription_packet(filter: &str, qos: Option<Qos>) -> Vec<u8> {
    let length = 2 + 2 + filter.len() + usize::from(qos.is_some());
    let mut packet = vec![if qos.is_some() { 0x82 } else { 0xa2 }];
    packet.push(u8::try_from(length).unwrap());
    packet.extend([0, 9, 0, u8::try_from(filter.len()).unwrap()]);
    packet.extend(filter.as_bytes());
    packet.extend(qos.map(wire_qos));
    packet
}

fn wire_qos(qos: Qos) -> u8 {
    match qos {
        Qos::AtMostOnce => 0,
        Qos::AtLeastOnce => 1,
        Qos::ExactlyOnce => 2,
    }
}

/// The next packet, waiting for it; read from the bytes, because a device that reuses packet ids is
/// none that the client's engine would be.
async fn next(device: &mut Device) -> Came {
    device.flush().await;
    loop {
        if let Some((came, length)) = parse(&device.input) {
            device.input.drain(..length);
            return came;
        }
        let read = device.stream.read_buf(&mut device.input);
        let read = tokio::time::timeout(Duration::from_secs(30), read).await;
        if read.expect("something must come").unwrap_or(0) == 0 {
            return Came::Closed;
        }
    }
}

fn parse(input: &[u8]) -> Option<(Came, usize)> {
    let length = usize::from(*input.get(1)?);
    // Nothing here is as long as to need a second byte for it, but answers to twin requests.
    let (body, length) = if length & 0x80 == 0 {
        (2, length)
    } else {
        (3, (length & 0x7f) + usize::from(*input.get(2)?) * 128)
    };
    let packet = input.get(..body + length)?;
    let came = match packet[0] {
        0x20 => Came::Connack {
            session_present: packet[2..] == [1, 0],
        },
        0x40 => Came::Puback(u16::from_be_bytes([packet[2], packet[3]])),
        0x90 => Came::Suback(packet[4]),
        0xb0 => Came::Unsuback,
        0xd0 => Came::Pingresp,
        0x30 => Came::TwinAnswer,
        other => panic!("a packet of type {other:#x}"),
    };
    Some((came, packet.len()))
}

/// Everything that has come, and comes while everybody does what there is to do.
async fn next_all(device: &mut Device) -> Vec<Came> {
    settle_down().await;
    device.raw(&PINGREQ).await;
    let mut all = Vec::new();
    loop {
        match next(device).await {
            Came::Pingresp => return all,
            Came::Closed => {
                all.push(Came::Closed);
                return all;
            }
            came => all.push(came),
        }
    }
}

/// What comes until the connection is closed.
async fn next_rest(device: &mut Device) -> Vec<Came> {
    let mut all = Vec::new();
    loop {
        match next(device).await {
            Came::Closed => return all,
            Came::Pingresp => {}
            came => all.push(came),
        }
    }
}
