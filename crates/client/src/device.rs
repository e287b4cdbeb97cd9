//! A device that sends telemetry over MQTT.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use fieldpost_model::Timestamp;
use fieldpost_mqtt::{
    ClientConnection, ClientEvent, ClientOptions, Connack, Connect, Message, PacketId,
};
use tokio::time::Instant;

use crate::connection_string::ConnectionString;
use crate::link::Link;
use crate::token::{self, KeyRule};
use crate::transport::{self, ConnectError, Trust};

/// The port of MQTT over TLS.
const MQTTS_PORT: u16 = 8883;

/// What a device's connection needs to know.
#[derive(Clone)]
pub struct DeviceOptions {
    /// Who the device is and where its hub is.
    pub connection_string: ConnectionString,
    /// Where to connect instead of port 8883 of the host name.
    pub address: Option<SocketAddr>,
    /// How the hub's certificate is checked.
    pub trust: Trust,
    /// Longest silence, in seconds; 0 for none.
    pub keep_alive_s: u16,
    /// The present, from which the token's hour of life counts.
    pub now: Timestamp,
}

/// A device's connection.
///
/// Publishing writes into memory; [`Device::acknowledged`] moves bytes both ways. A device that
/// publishes without awaiting the latter fills its window and is told so.
pub struct Device {
    engine: ClientConnection,
    link: Link,
    output: BytesMut,
    topic: String,
    events_prefix: usize,
    started: Instant,
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
    /// The message does not fit an MQTT packet, or the window is full.
    #[error("the message cannot be sent now: {0}")]
    Send(#[from] fieldpost_mqtt::SendError),
}

impl Device {
    /// Connects and waits until the hub has accepted the device.
    ///
    /// # Errors
    /// When there is no connection, or the hub refuses the device.
    pub async fn connect(options: &DeviceOptions) -> Result<Self, ConnectError> {
        let string = &options.connection_string;
        let device_id = string.device_id.as_deref().unwrap_or_default();
        let host = &string.host_name;
        let token = token::sign(
            &format!("{host}/devices/{device_id}"),
            &string.key,
            KeyRule::Decoded,
            None,
            options.now.saturating_add(Duration::from_secs(3600)),
        );
        let user_name = format!("{host}/{device_id}/?api-version=2021-04-12");
        let connect = Connect {
            client_id: device_id,
            clean_session: false,
            keep_alive_s: options.keep_alive_s,
            will: None,
            user_name: Some(&user_name),
            password: Some(token.as_bytes()),
        };
        let engine = ClientConnection::new(&connect, ClientOptions::default(), Duration::ZERO)
            .map_err(|error| ConnectError::Protocol(error.to_string()))?;
        let stream = transport::open(host, MQTTS_PORT, options.address, &options.trust).await?;
        let topic = format!("devices/{device_id}/messages/events/");
        let mut device = Self {
            engine,
            link: Link::new(stream),
            output: BytesMut::new(),
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
            let event = next(
                &mut self.engine,
                &mut self.link.input,
                |event| match event {
                    ClientEvent::Connack(connack) => Some(connack),
                    _ => None,
                },
            );
            match event.map_err(|error| ConnectError::Protocol(error.to_string()))? {
                Some(Connack::Accepted { .. }) => return Ok(()),
                Some(Connack::Refused(refusal)) => {
                    return Err(ConnectError::Refused(format!("{refusal:?}")));
                }
                None => {}
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

    /// How many published messages are not acknowledged yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.engine.in_flight()
    }

    /// Moves bytes both ways until acknowledgements came; gives `on_acknowledged` each packet id
    /// and returns how many there were.
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
            let mut count = 0;
            while let Some(packet_id) =
                next(
                    &mut self.engine,
                    &mut self.link.input,
                    |event| match event {
                        ClientEvent::Puback { packet_id } => Some(packet_id),
                        _ => None,
                    },
                )?
            {
                on_acknowledged(packet_id);
                count += 1;
            }
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
}

/// The next event that `pick` wants; `None` when the input is used up.
fn next<T>(
    engine: &mut ClientConnection,
    input: &mut BytesMut,
    mut pick: impl FnMut(ClientEvent<'_>) -> Option<T>,
) -> Result<Option<T>, DeviceError> {
    let whole = input.split();
    let mut rest: &[u8] = &whole;
    let mut picked = None;
    while picked.is_none() {
        match engine.next(&mut rest) {
            Ok(Some(event)) => picked = pick(event),
            Ok(None) => break,
            Err(violation) => return Err(DeviceError::Protocol(violation.to_string())),
        }
    }
    // What the engine has not looked at yet stays for the next call.
    let used = whole.len() - rest.len();
    let mut whole = whole;
    bytes::Buf::advance(&mut whole, used);
    *input = whole;
    Ok(picked)
}
