//! A device that sends telemetry and takes commands over AMQP.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use fieldpost_amqp::message::{Message, put_data};
use fieldpost_amqp::performative::DeliveryState;
use fieldpost_amqp::{Delivery, Error, Event, LinkId, Outcome, SendError};

use super::DeviceOptions;
use crate::connection::{Access, AmqpError, HubConnection, protocol};
use crate::token::KeyRule;
use crate::transport::ConnectError;

/// Commands that may come ahead of what was settled.
const COMMANDS_CREDIT: u32 = 50;

/// A device's connection over AMQP.
///
/// Publishing and settling write into memory; [`AmqpDevice::acknowledged`] and
/// [`AmqpDevice::next_command`] move bytes both ways.
pub struct AmqpDevice {
    connection: HubConnection,
    telemetry: LinkId,
    commands: Option<LinkId>,
    commands_address: String,
    /// Kept so that sending allocates nothing.
    buffer: BytesMut,
    /// Names deliveries.
    published: u64,
    /// Messages that were published, in their order, up to the newest.
    in_flight: VecDeque<InFlight>,
    /// What came while something else was waited for; no more than the credit.
    kept: VecDeque<AmqpCommand>,
}

struct InFlight {
    delivery_id: u32,
    is_accepted: bool,
}

/// A cloud-to-device message over AMQP, which is the device's until it is completed, rejected or abandoned,
/// or its lock ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmqpCommand {
    /// The body.
    pub payload: Bytes,
    delivery_id: u32,
}

impl AmqpDevice {
    /// Connects, authenticates, and waits until telemetry can be sent.
    ///
    /// # Errors
    /// When there is no connection, or the hub refuses the device.
    pub async fn connect(options: &DeviceOptions) -> Result<Self, ConnectError> {
        let string = &options.connection_string;
        let host = string.host_name.clone();
        let access = Access {
            host: host.clone(),
            address: options.address,
            trust: options.trust.clone(),
            resource: options.resource(),
            key: string.key.clone(),
            rule: KeyRule::Decoded,
            policy: None,
            now: options.now,
        };
        let mut connection = HubConnection::open(access).await?;
        let path = options.path();
        let telemetry = attach_telemetry(&mut connection, &format!("{path}/messages/events"))
            .await
            .map_err(|error| error.into_connect_error(host))?;
        Ok(Self {
            connection,
            telemetry,
            commands: None,
            commands_address: format!("{path}/messages/devicebound"),
            buffer: BytesMut::new(),
            published: 0,
            in_flight: VecDeque::new(),
            kept: VecDeque::new(),
        })
    }

    /// Whether the hub takes another message now.
    #[must_use]
    pub fn can_publish(&self) -> bool {
        self.connection.engine.sendable(self.telemetry) > 0
    }

    /// Waits until the hub takes another message.
    ///
    /// # Errors
    /// When the connection ended.
    pub async fn ready(&mut self) -> Result<(), AmqpError> {
        self.connection.await_credit(self.telemetry).await
    }

    /// Puts a message on its way.
    ///
    /// # Errors
    /// When the hub takes no message now, or none that is so large.
    pub fn publish(&mut self, payload: &[u8]) -> Result<(), SendError> {
        self.buffer.clear();
        put_data(&mut self.buffer, payload);
        let delivery = Delivery {
            tag: &self.published.to_be_bytes(),
            settled: false,
            message_format: 0,
            payload: &[&self.buffer],
        };
        let delivery_id = self.connection.engine.send(self.telemetry, &delivery)?;
        self.published += 1;
        self.in_flight.push_back(InFlight {
            delivery_id,
            is_accepted: false,
        });
        Ok(())
    }

    /// How many published messages were not given out as acknowledged yet.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Moves bytes both ways until the oldest message in flight is acknowledged, and says how many are
    /// from there on without a gap: an AMQP hub may answer in any order.
    ///
    /// May be dropped at an await; nothing is lost then.
    ///
    /// # Errors
    /// When the connection ended or a message was refused. Nothing is known of messages in flight then.
    pub async fn acknowledged(&mut self) -> Result<usize, AmqpError> {
        loop {
            self.collect()?;
            let mut count = 0;
            while self.in_flight.pop_front_if(|it| it.is_accepted).is_some() {
                count += 1;
            }
            if count > 0 {
                return Ok(count);
            }
            self.connection.exchange_or_end().await?;
        }
    }

    /// Asks for commands, and waits until the hub has granted it.
    ///
    /// # Errors
    /// When the hub refuses, or the connection ended.
    pub async fn subscribe_commands(&mut self) -> Result<(), AmqpError> {
        let link = self
            .connection
            .attach_receiver(&self.commands_address, None)?;
        self.commands = Some(link);
        self.connection.receive(link, COMMANDS_CREDIT).await
    }

    /// Moves bytes both ways until there is a command, and gives it.
    ///
    /// May be dropped at an await; nothing is lost then.
    ///
    /// # Errors
    /// When the connection ended.
    pub async fn next_command(&mut self) -> Result<AmqpCommand, AmqpError> {
        loop {
            self.collect()?;
            if let Some(command) = self.kept.pop_front() {
                return Ok(command);
            }
            self.connection.exchange_or_end().await?;
        }
    }

    /// Tells the hub that a command was worked off: it does not come again. The bytes go out with the
    /// next wait, and the hub says nothing to them.
    ///
    /// # Errors
    /// When its link is gone.
    pub fn complete_command(&mut self, command: &AmqpCommand) -> Result<(), AmqpError> {
        self.settle(command, DeliveryState::Accepted)
    }

    /// Tells the hub that a command is of no use: it is dead-lettered and does not come again.
    /// Otherwise as [`complete_command`](Self::complete_command).
    ///
    /// # Errors
    /// When its link is gone.
    pub fn reject_command(&mut self, command: &AmqpCommand) -> Result<(), AmqpError> {
        self.settle(command, DeliveryState::Rejected(None))
    }

    /// Gives a command back to its queue: it comes again until that has happened as often as the hub
    /// allows. Otherwise as [`complete_command`](Self::complete_command).
    ///
    /// # Errors
    /// When its link is gone.
    pub fn abandon_command(&mut self, command: &AmqpCommand) -> Result<(), AmqpError> {
        self.settle(command, DeliveryState::Released)
    }

    fn settle(&mut self, command: &AmqpCommand, state: DeliveryState) -> Result<(), AmqpError> {
        let link = self
            .commands
            .ok_or_else(|| protocol("there is no link for commands"))?;
        let id = command.delivery_id;
        self.connection
            .engine
            .settle_incoming(link, id..=id, state)
            .map_err(protocol)
    }

    /// Takes in what has come.
    fn collect(&mut self) -> Result<(), AmqpError> {
        while let Some(event) = self.connection.events.pop_front() {
            match event {
                Event::Outcome(outcome) if outcome.link == self.telemetry => {
                    self.answered(&outcome)?;
                }
                Event::Message(message) if Some(message.link) == self.commands => {
                    let parsed = Message::parse(&message.payload).map_err(protocol)?;
                    self.kept.push_back(AmqpCommand {
                        payload: Bytes::copy_from_slice(&parsed.joined_data()),
                        delivery_id: message.delivery_id,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn answered(&mut self, outcome: &Outcome) -> Result<(), AmqpError> {
        if outcome.state != Some(DeliveryState::Accepted) {
            return Err(AmqpError::Refused(match &outcome.state {
                Some(DeliveryState::Rejected(Some(error))) => text(error),
                other => format!("a message was answered with {other:?}"),
            }));
        }
        if !outcome.settled {
            self.connection
                .engine
                .settle_outgoing(outcome.link, outcome.delivery_id, outcome.state.clone())
                .map_err(protocol)?;
        }
        let mut in_flight = self.in_flight.iter_mut();
        if let Some(message) = in_flight.find(|it| it.delivery_id == outcome.delivery_id) {
            message.is_accepted = true;
        }
        Ok(())
    }
}

fn text(error: &Error) -> String {
    let description = error.description.as_deref().unwrap_or_default();
    format!("{}: {description}", error.condition.as_str())
}

async fn attach_telemetry(
    connection: &mut HubConnection,
    address: &str,
) -> Result<LinkId, AmqpError> {
    let telemetry = connection.attach_sender(address, "telemetry".to_owned())?;
    connection.await_attached(telemetry).await?;
    connection.await_credit(telemetry).await?;
    Ok(telemetry)
}

#[cfg(test)]
mod tests;
