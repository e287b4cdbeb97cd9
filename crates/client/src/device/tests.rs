use fieldpost_mqtt::{ServerConnection, ServerEvent, ServerOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const TOPIC: &str = "devices/d/messages/devicebound/%24.to=x";

/// A hub that does as a test says, and the device that is connected to it.
struct FakeHub {
    engine: ServerConnection,
    stream: TcpStream,
    input: Vec<u8>,
}

/// What the hub hears from the device.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Connect,
    Subscribe(PacketId, String),
    /// Of an event, which is acknowledged at once.
    Event(PacketId),
    /// About a command, and acknowledged at once too.
    GaveBack(PacketId, String),
    Puback(PacketId),
    Disconnect,
}

impl FakeHub {
    async fn with_device() -> (Self, Device) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = DeviceOptions {
            connection_string: "HostName=h;DeviceId=d;SharedAccessKey=k".parse().unwrap(),
            address: Some(listener.local_addr().unwrap()),
            trust: Trust::Plain,
            keep_alive_s: 0,
            now: Timestamp::UNIX_EPOCH,
        };
        let (device, hub) = tokio::join!(Device::connect(&options), async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut hub = Self {
                engine: ServerConnection::new(ServerOptions::default(), Duration::ZERO),
                stream,
                input: Vec::new(),
            };
            assert_eq!(hub.heard().await, Said::Connect);
            hub.engine.accept(true, Duration::ZERO);
            hub.flush().await;
            hub
        });
        (hub, device.unwrap())
    }

    async fn heard(&mut self) -> Said {
        loop {
            self.flush().await;
            let mut input = &self.input[..];
            let event = self.engine.next(&mut input, Duration::ZERO).unwrap();
            let mut ticket_due = None;
            let said = event.map(|event| match event {
                ServerEvent::Connect(_) => Said::Connect,
                ServerEvent::Subscribe(subscribe) => {
                    let (filter, qos) = subscribe.filters().next().unwrap();
                    assert_eq!(qos, Qos::AtLeastOnce);
                    Said::Subscribe(subscribe.packet_id, filter.to_owned())
                }
                ServerEvent::Publish { publish, ticket } => {
                    ticket_due = ticket;
                    let packet_id = publish.packet_id.unwrap();
                    match publish.topic.strip_prefix("$fieldpost/c2d/") {
                        Some(what) => Said::GaveBack(packet_id, what.to_owned()),
                        None => Said::Event(packet_id),
                    }
                }
                ServerEvent::Puback { packet_id } => Said::Puback(packet_id),
                ServerEvent::Disconnect => Said::Disconnect,
                ServerEvent::Unsubscribe(_) => panic!("no device unsubscribes"),
            });
            let left = input.len();
            self.input.drain(..self.input.len() - left);
            if let Some(ticket) = ticket_due {
                self.engine.acknowledge_through(ticket);
            }
            if let Some(said) = said {
                return said;
            }
            let read = self.stream.read_buf(&mut self.input);
            let read = tokio::time::timeout(Duration::from_secs(20), read).await;
            assert!(read.expect("it goes on").unwrap() > 0, "the device is gone");
        }
    }

    async fn flush(&mut self) {
        let output = self.engine.take_output();
        self.stream.write_all(&output).await.unwrap();
    }
}

fn command(packet_id: PacketId, payload: &'static str) -> DeviceEvent {
    DeviceEvent::Command(Command {
        packet_id: Some(packet_id),
        again: false,
        topic: TOPIC.to_owned(),
        payload: Bytes::from_static(payload.as_bytes()),
    })
}

async fn subscribed() -> (FakeHub, Device) {
    let (mut hub, mut device) = FakeHub::with_device().await;
    let (subscribed, ()) = tokio::join!(device.subscribe_commands(), async {
        let Said::Subscribe(packet_id, filter) = hub.heard().await else {
            panic!("it must subscribe");
        };
        assert_eq!(filter, "devices/d/messages/devicebound/#");
        let granted = SubackCode::Granted(Qos::AtLeastOnce);
        hub.engine.suback(packet_id, &[granted]).unwrap();
        hub.flush().await;
    });
    subscribed.unwrap();
    (hub, device)
}

#[tokio::test]
async fn commands_and_acknowledgements_come_in_their_order() {
    let (mut hub, mut device) = subscribed().await;
    let event = device.publish("", b"1").unwrap();
    let (next, first) = tokio::join!(device.next(), async {
        let first = hub.engine.publish_at_least_once(TOPIC, b"a").unwrap();
        hub.flush().await;
        assert_eq!(hub.heard().await, Said::Event(event));
        hub.engine.publish_at_most_once(TOPIC, b"b").unwrap();
        hub.flush().await;
        first
    });
    assert_eq!(next.unwrap(), command(first, "a"));
    let next = device.next().await.unwrap();
    assert_eq!(next, DeviceEvent::Acknowledged(event));
    let DeviceEvent::Command(last) = device.next().await.unwrap() else {
        panic!("a command must come");
    };
    assert_eq!((last.packet_id, &last.payload[..]), (None, &b"b"[..]));
    assert_eq!(device.next_ready().unwrap(), None);
    device.acknowledge_command(first).unwrap();
    let (left, ()) = tokio::join!(device.disconnect(), async {
        assert_eq!(hub.heard().await, Said::Puback(first));
        assert_eq!(hub.heard().await, Said::Disconnect);
    });
    left.unwrap();
}

/// A restored session's commands come right behind CONNACK, before anybody has asked for them.
#[tokio::test]
async fn what_comes_while_something_else_is_waited_for_is_kept() {
    let (mut hub, mut device) = FakeHub::with_device().await;
    let first = hub.engine.publish_at_least_once(TOPIC, b"a").unwrap();
    let (subscribed, second) = tokio::join!(device.subscribe_commands(), async {
        let Said::Subscribe(packet_id, _) = hub.heard().await else {
            panic!("it must subscribe");
        };
        let second = hub.engine.publish_at_least_once(TOPIC, b"b").unwrap();
        let granted = SubackCode::Granted(Qos::AtLeastOnce);
        hub.engine.suback(packet_id, &[granted]).unwrap();
        hub.flush().await;
        second
    });
    subscribed.unwrap();
    let event = device.publish("", b"1").unwrap();
    let mut acknowledged = Vec::new();
    let (count, third) = tokio::join!(device.acknowledged(|id| acknowledged.push(id)), async {
        let third = hub.engine.publish_again(PacketId::MAX, TOPIC, b"c");
        third.unwrap();
        assert_eq!(hub.heard().await, Said::Event(event));
        hub.flush().await;
        PacketId::MAX
    });
    assert_eq!((count.unwrap(), acknowledged), (1, vec![event]));
    assert_eq!(device.next().await.unwrap(), command(first, "a"));
    assert_eq!(device.next().await.unwrap(), command(second, "b"));
    let DeviceEvent::Command(last) = device.next().await.unwrap() else {
        panic!("a command must come");
    };
    assert_eq!((last.packet_id, last.again), (Some(third), true));
}

#[tokio::test]
async fn a_wait_that_is_given_up_loses_nothing() {
    let (mut hub, mut device) = subscribed().await;
    let first = hub.engine.publish_at_least_once(TOPIC, b"a").unwrap();
    let bytes = hub.engine.take_output();
    for byte in bytes.iter().take(bytes.len() - 1) {
        hub.stream.write_all(&[*byte]).await.unwrap();
        let given_up = async {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            event = device.next() => panic!("{event:?} came too early"),
            () = given_up => {}
        }
    }
    hub.stream
        .write_all(&bytes[bytes.len() - 1..])
        .await
        .unwrap();
    assert_eq!(device.next().await.unwrap(), command(first, "a"));
}

/// Were the acknowledgement first, the command would be completed.
#[tokio::test]
async fn a_command_is_given_back_before_it_is_acknowledged() {
    let (mut hub, mut device) = subscribed().await;
    for how in ["reject", "abandon"] {
        let id = hub.engine.publish_at_least_once(TOPIC, b"a").unwrap();
        hub.flush().await;
        assert_eq!(device.next().await.unwrap(), command(id, "a"));
        let said = match how {
            "reject" => device.reject_command(id).unwrap(),
            _ => device.abandon_command(id).unwrap(),
        };
        let (next, ()) = tokio::join!(device.next(), async {
            let topic = format!("{how}/?$pid={id}");
            assert_eq!(hub.heard().await, Said::GaveBack(said, topic));
            assert_eq!(hub.heard().await, Said::Puback(id));
            hub.flush().await;
        });
        assert_eq!(next.unwrap(), DeviceEvent::Acknowledged(said));
    }
}

#[tokio::test]
async fn a_refused_subscription_is_an_error() {
    let (mut hub, mut device) = FakeHub::with_device().await;
    let (subscribed, ()) = tokio::join!(device.subscribe_commands(), async {
        let Said::Subscribe(packet_id, _) = hub.heard().await else {
            panic!("it must subscribe");
        };
        let refused = [SubackCode::Failure];
        hub.engine.suback(packet_id, &refused).unwrap();
        hub.flush().await;
    });
    assert!(matches!(subscribed, Err(DeviceError::NotSubscribed)));
}

/// A device id may hold what MQTT forbids in topics, and no SDK encodes it there.
#[tokio::test]
async fn ids_with_wildcards_stand_in_topics_as_they_are() {
    let (mut hub, mut device) = subscribed().await;
    let topic = "devices/a+b#c/messages/devicebound/%24.to=x";
    hub.engine.publish_at_most_once(topic, b"a").unwrap();
    hub.flush().await;
    let DeviceEvent::Command(command) = device.next().await.unwrap() else {
        panic!("a command must come");
    };
    assert_eq!(command.topic, topic);
}
