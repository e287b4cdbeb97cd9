//! A device that sends telemetry and takes commands over MQTT; below, the same over AMQP and HTTPS.

mod amqp;
mod https;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use fieldpost_model::Timestamp;
use fieldpost_mqtt::{
    ClientConnection, ClientEvent, ClientOptions, Connack, Connect, Message, PacketId, Publish,
    Qos, SubackCode,
};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::Instant;

use crate::connection_string::ConnectionString;
use crate::link::Link;
use crate::token::{self, KeyRule};
use crate::transport::{self, ConnectError, Trust};

pub use amqp::{AmqpCommand, AmqpDevice};
pub use https::{HttpsCommand, HttpsDevice, HttpsError};

/// The port of MQTT over TLS.
const MQTTS_PORT: u16 = 8883;

/// What a device's connection needs to know.
#[derive(Clone)]
pub struct DeviceOptions {
    /// Who the device is and where its hub is.
    pub connection_string: ConnectionString,
    /// Where to connect instead of the protocol's port of the host name.
    pub address: Option<SocketAddr>,
    /// How the hub's certificate is checked, and which is shown by a device that has no key.
    pub trust: Trust,
    /// Longest silence over MQTT, in seconds; 0 for none.
    pub keep_alive_s: u16,
    /// The present, from which the token's hour of life counts.
    pub now: Timestamp,
}

/// A device's connection.
///
/// Publishing and acknowledging write into memory; [`Device::acknowledged`] and [`Device::next`]
/// move bytes both ways. A device that publishes without awaiting one of them fills its window and
/// is told so.
///
/// Its session outlives the connection: a subscription to commands holds until the next one too,
/// and what was not acknowledged comes again.
pub struct Device {
    engine: ClientConnection,
    link: Link,
    output: BytesMut,
    /// What came while something else was waited for. A hub sends a few commands and waits until
    /// they are acknowledged, so they are few.
    kept: VecDeque<DeviceEvent>,
    commands_filter: String,
    topic: String,
    events_prefix: usize,
    started: Instant,
}

/// What a hub says to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceEvent {
    /// A published message is safe with the hub.
    Acknowledged(PacketId),
    /// A cloud-to-device message.
    Command(Command),
}

/// A cloud-to-device message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// To be given to [`Device::acknowledge_command`] when the message was worked off; `None` for
    /// one that the hub sends once and does not hear of again.
    pub packet_id: Option<PacketId>,
    /// The hub sent it before and saw no acknowledgement.
    pub again: bool,
    /// `devices/{id}/messages/devicebound/` and the property bag in wire form.
    pub topic: String,
    /// The body.
    pub payload: Bytes,
}

/// Why a device's connection ended.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The hub closed the connection, or the network did.
    #[error("the connection ended: {0}")]
    Ended(#[from] std::io::Error),
    /// The hub broke the protocol, or was silent for too long.
    #[error("protocol failure: {0}")]
    Protocol(String),
    /// The hub does not let the device have its commands.
    #[error("the hub refused the subscription to commands")]
    NotSubscribed,
    /// The message does not fit an MQTT packet, or the window is full.
    #[error("the message cannot be sent now: {0}")]
    Send(#[from] fieldpost_mqtt::SendError),
}

impl DeviceOptions {
    pub(crate) fn device_id(&self) -> &str {
        self.connection_string
            .device_id
            .as_deref()
            .unwrap_or_default()
    }

    /// What the device's tokens are for.
    pub(crate) fn resource(&self) -> String {
        format!(
            "{}/devices/{}",
            self.connection_string.host_name,
            self.device_id()
        )
    }

    /// A token that is good for an hour; none of a device that shows a certificate.
    pub(crate) fn token(&self) -> Option<String> {
        let key = self.connection_string.key.as_deref()?;
        Some(token::sign(
            &self.resource(),
            key,
            KeyRule::Decoded,
            None,
            self.now.saturating_add(Duration::from_secs(3600)),
        ))
    }

    /// The beginning of the device's paths and addresses, `/devices/{id}`.
    pub(crate) fn path(&self) -> String {
        let id = utf8_percent_encode(self.device_id(), NON_ALPHANUMERIC);
        format!("/devices/{id}")
    }
}

impl Device {
    /// Connects and waits until the hub has accepted the device.
    ///
    /// # Errors
    /// When there is no connection, or the hub refuses the device.
    pub async fn connect(options: &DeviceOptions) -> Result<Self, ConnectError> {
        let string = &options.connection_string;
        let device_id = options.device_id();
        let host = &string.host_name;
        let token = options.token();
        let user_name = format!("{host}/{device_id}/?api-version=2021-04-12");
        let connect = Connect {
            client_id: device_id,
            clean_session: false,
            keep_alive_s: options.keep_alive_s,
            will: None,
            user_name: Some(&user_name),
            password: token.as_deref().map(str::as_bytes),
        };
        let limits = ClientOptions {
            // Device ids may hold them, and stand in topics as they are.
            wildcards_in_topics: true,
            ..ClientOptions::default()
        };
        let engine = ClientConnection::new(&connect, limits, Duration::ZERO)
            .map_err(|error| ConnectError::Protocol(error.to_string()))?;
        let stream = transport::open(host, MQTTS_PORT, options.address, &options.trust).await?;
        let topic = format!("devices/{device_id}/messages/events/");
        let mut device = Self {
            engine,
            link: Link::new(stream),
            output: BytesMut::new(),
            kept: VecDeque::new(),
            commands_filter: format!("devices/{device_id}/messages/devicebound/#"),
            events_prefix: topic.len(),
            topic,
            started: Instant::now(),
        };
        device.await_connack(host).await?;
        Ok(device)
    }

    async fn await_connack(&mut self, host: &str) -> Result<(), ConnectError> {
        loop {
            self.exchange().await.map_err(|error| match error {
                DeviceError::Ended(source) => ConnectError::Network {
                    host: host.into(),
                    source,
                },
                other => ConnectError::Protocol(other.to_string()),
            })?;
            let event = self.read_on(|heard| match heard {
                Heard::Connack(connack) => Some(connack),
                _ => None,
            });
            match event.map_err(|error| ConnectError::Protocol(error.to_string()))? {
                Some(Connack::Accepted { .. }) => return Ok(()),
                Some(Connack::Refused(refusal)) => {
                    return Err(ConnectError::Refused(format!("{refusal:?}")));
                }
                None => {}
            }
        }
    }

    /// Asks for commands at QoS 1, and waits until the hub has granted it. What comes meanwhile is
    /// kept for [`next`](Self::next).
    ///
    /// # Errors
    /// When the hub refuses, or the connection ended.
    pub async fn subscribe_commands(&mut self) -> Result<(), DeviceError> {
        let filters = [(self.commands_filter.as_str(), Qos::AtLeastOnce)];
        let asked = self.engine.subscribe(&filters, self.started.elapsed())?;
        loop {
            let granted = self.read_on(|heard| match heard {
                Heard::Suback { packet_id, granted } if packet_id == asked => Some(granted),
                _ => None,
            })?;
            match granted {
                Some(true) => return Ok(()),
                Some(false) => return Err(DeviceError::NotSubscribed),
                None => self.exchange().await?,
            }
        }
    }

    /// Puts a message on its way at QoS 1 and returns its packet id.
    ///
    /// `bag` is the property bag in wire form: percent-encoded `name=value` pairs joined by `&`.
    ///
    /// # Errors
    /// When the window is full or the message does not fit a packet.
    pub fn publish(&mut self, bag: &str, payload: &[u8]) -> Result<PacketId, DeviceError> {
        self.topic.truncate(self.events_prefix);
        self.topic.push_str(bag);
        let message = Message {
            topic: &self.topic,
            payload,
            retain: false,
        };
        Ok(self
            .engine
            .publish_at_least_once(message, self.started.elapsed())?)
    }

    /// Tells the hub that a command was worked off: it is completed and does not come again. The
    /// bytes go out with the next wait or with [`disconnect`](Self::disconnect).
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn acknowledge_command(&mut self, packet_id: PacketId) -> Result<(), DeviceError> {
        Ok(self.engine.acknowledge(packet_id, self.started.elapsed())?)
    }

    /// Tells the hub that a command is of no use: it is dead-lettered and does not come again. The
    /// hub answers with [`DeviceEvent::Acknowledged`] and the id that is returned.
    ///
    /// A hub that does not know this takes it for an event or closes the connection.
    ///
    /// # Errors
    /// When the window is full or the connection has ended.
    pub fn reject_command(&mut self, packet_id: PacketId) -> Result<PacketId, DeviceError> {
        self.give_back("reject", packet_id)
    }

    /// Gives a command back to its queue: it comes again until that has happened as often as the hub
    /// allows. Otherwise as [`reject_command`](Self::reject_command).
    ///
    /// # Errors
    /// When the window is full or the connection has ended.
    pub fn abandon_command(&mut self, packet_id: PacketId) -> Result<PacketId, DeviceError> {
        self.give_back("abandon", packet_id)
    }

    fn give_back(&mut self, how: &str, packet_id: PacketId) -> Result<PacketId, DeviceError> {
        let message = Message {
            topic: &format!("$fieldpost/c2d/{how}/?$pid={packet_id}"),
            payload: b"",
            retain: false,
        };
        let said = self
            .engine
            .publish_at_least_once(message, self.started.elapsed())?;
        // Without it the packet id would stay taken; the hub does not count it any more.
        self.acknowledge_command(packet_id)?;
        Ok(said)
    }

    /// Moves bytes both ways until the hub has said something, and gives that.
    ///
    /// May be dropped at an await; nothing is lost then.
    ///
    /// # Errors
    /// When the connection ended. Nothing is known of messages in flight then.
    pub async fn next(&mut self) -> Result<DeviceEvent, DeviceError> {
        loop {
            if let Some(event) = self.next_ready()? {
                return Ok(event);
            }
            self.exchange().await?;
        }
    }

    /// The next thing that was read from the hub already.
    ///
    /// # Errors
    /// When the hub broke the protocol.
    pub fn next_ready(&mut self) -> Result<Option<DeviceEvent>, DeviceError> {
        if self.kept.is_empty() {
            self.read_on(|_| None::<()>)?;
        }
        Ok(self.kept.pop_front())
    }

    /// How many published messages are not acknowledged yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.engine.in_flight()
    }

    /// Moves bytes both ways until acknowledgements came; gives `on_acknowledged` each packet id
    /// and returns how many there were. Commands are kept for [`next`](Self::next).
    ///
    /// May be dropped at an await; nothing is lost then.
    ///
    /// # Errors
    /// When the connection ended. Nothing is known of messages in flight then.
    pub async fn acknowledged(
        &mut self,
        mut on_acknowledged: impl FnMut(PacketId),
    ) -> Result<usize, DeviceError> {
        loop {
            self.read_on(|_| None::<()>)?;
            let mut count = 0;
            self.kept.retain(|event| match event {
                DeviceEvent::Acknowledged(packet_id) => {
                    on_acknowledged(*packet_id);
                    count += 1;
                    false
                }
                DeviceEvent::Command(_) => true,
            });
            if count > 0 {
                return Ok(count);
            }
            self.exchange().await?;
        }
    }

    /// Says farewell and closes the connection.
    ///
    /// # Errors
    /// When the connection has ended already.
    pub async fn disconnect(mut self) -> Result<(), DeviceError> {
        self.engine.disconnect();
        self.gather_output();
        Ok(self.link.flush(&mut self.output).await?)
    }

    /// Writes what is to be written and reads once, or lets the keep-alive timer act.
    async fn exchange(&mut self) -> Result<(), DeviceError> {
        self.gather_output();
        let deadline = self.engine.deadline().map(|at| self.started + at);
        let exchange = self.link.exchange(&mut self.output);
        match deadline {
            None => exchange.await?,
            Some(deadline) => match tokio::time::timeout_at(deadline, exchange).await {
                Ok(exchanged) => exchanged?,
                Err(_elapsed) => self
                    .engine
                    .tick(self.started.elapsed())
                    .map_err(|timeout| DeviceError::Protocol(timeout.to_string()))?,
            },
        }
        Ok(())
    }

    fn gather_output(&mut self) {
        if self.output.is_empty() {
            self.output = self.engine.take_output();
        } else {
            self.output.unsplit(self.engine.take_output());
        }
    }

    /// Works off what was read, up to the first thing that `pick` wants. Events that it does not
    /// want are kept.
    fn read_on<T>(
        &mut self,
        mut pick: impl FnMut(Heard) -> Option<T>,
    ) -> Result<Option<T>, DeviceError> {
        let mut whole = self.link.input.split();
        let mut rest: &[u8] = &whole;
        let mut picked = None;
        while picked.is_none() {
            let event = match self.engine.next(&mut rest) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(violation) => return Err(DeviceError::Protocol(violation.to_string())),
            };
            match Heard::of(event) {
                Some(Heard::Event(event)) => self.kept.push_back(event),
                Some(heard) => picked = pick(heard),
                None => {}
            }
        }
        // What the engine has not looked at yet stays for the next call.
        let used = whole.len() - rest.len();
        whole.advance(used);
        self.link.input = whole;
        Ok(picked)
    }
}

/// An event of the engine, owned.
enum Heard {
    Connack(Connack),
    Suback { packet_id: PacketId, granted: bool },
    Event(DeviceEvent),
}

impl Heard {
    fn of(event: ClientEvent<'_>) -> Option<Self> {
        Some(match event {
            ClientEvent::Connack(connack) => Self::Connack(connack),
            ClientEvent::Suback(suback) => Self::Suback {
                packet_id: suback.packet_id,
                granted: suback.codes().all(|code| code != SubackCode::Failure),
            },
            ClientEvent::Puback { packet_id } => Self::Event(DeviceEvent::Acknowledged(packet_id)),
            ClientEvent::Publish(publish) => Self::Event(DeviceEvent::Command(command(&publish))),
            ClientEvent::Unsuback { .. } | ClientEvent::Pingresp => return None,
        })
    }
}

fn command(publish: &Publish<'_>) -> Command {
    Command {
        packet_id: publish.packet_id,
        again: publish.dup,
        topic: publish.topic.to_owned(),
        payload: Bytes::copy_from_slice(publish.payload),
    }
}

#[cfg(test)]
mod tests;
