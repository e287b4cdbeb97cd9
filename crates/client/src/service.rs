//! A back end that sends messages to devices over AMQP and learns what became of them.

mod wire;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use bytes::BytesMut;
use fieldpost_amqp::performative::DeliveryState;
use fieldpost_amqp::{Delivery, Error, Event as EngineEvent, LinkId, Outcome, SendError};
use fieldpost_model::{CloudMessage, DeviceId, ModuleId, Timestamp};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::connection::{Access, AmqpError, HubConnection, protocol};
use crate::connection_string::ConnectionString;
use crate::token::KeyRule;
use crate::transport::{ConnectError, Trust};

pub use wire::{FeedbackRecord, FeedbackStatus};

/// Where messages for devices go, and where their feedback comes from.
const DEVICE_BOUND: &str = "/messages/devicebound";
const FEEDBACK: &str = "/messages/serviceBound/feedback";

/// Batches of feedback that may come ahead of what was taken.
const FEEDBACK_CREDIT: u32 = 50;

/// What a service's connection needs to know.
#[derive(Clone)]
pub struct ServiceOptions {
    /// The IoT Hub connection string of a policy that may connect services.
    pub connection_string: ConnectionString,
    /// Where to connect instead of port 5671 of the host name.
    pub address: Option<SocketAddr>,
    /// How the hub's certificate is checked.
    pub trust: Trust,
    /// The present, from which tokens count.
    pub now: Timestamp,
}

/// A connection that sends messages to devices and receives feedback.
///
/// Sending writes into memory; [`Service::next`] moves bytes both ways. How many messages are in
/// flight is for the caller to bound, besides what the hub grants.
pub struct Service {
    connection: HubConnection,
    commands: LinkId,
    feedback: Option<LinkId>,
    /// Kept so that sending allocates nothing.
    buffer: BytesMut,
    /// The ticket of each message that the hub has not answered, by delivery id.
    in_flight: HashMap<u32, u64>,
    last_ticket: u64,
    events: VecDeque<ServiceEvent>,
}

/// What a service hears from the hub.
#[derive(Clone, Debug, PartialEq)]
pub enum ServiceEvent {
    /// The hub has answered a message.
    Answered {
        /// What [`Service::send`] gave for it.
        ticket: u64,
        /// The message is durable, or why it was not taken.
        outcome: Result<(), Refused>,
    },
    /// What became of earlier messages. Comes again unless it is completed.
    Feedback(FeedbackBatch),
}

/// Why the hub did not take a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{condition}: {description}")]
pub struct Refused {
    /// The AMQP condition.
    pub condition: String,
    /// The hub's text.
    pub description: String,
}

/// Several records of feedback.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedbackBatch {
    /// When the hub put it into its feedback queue.
    pub enqueued: Option<Timestamp>,
    /// The records, in order.
    pub records: Vec<FeedbackRecord>,
    delivery_id: u32,
}

impl Refused {
    /// The name of the refusal, such as `DeviceNotFound`.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        let (name, _) = self
            .description
            .strip_prefix("ErrorCode:")?
            .split_once(';')?;
        Some(name)
    }
}

/// The `to` of a message for a device or one of its modules.
#[must_use]
pub fn address_of(device: &DeviceId, module: Option<&ModuleId>) -> String {
    let device = utf8_percent_encode(device.as_str(), NON_ALPHANUMERIC);
    match module {
        None => format!("/devices/{device}{DEVICE_BOUND}"),
        Some(module) => {
            let module = utf8_percent_encode(module.as_str(), NON_ALPHANUMERIC);
            format!("/devices/{device}/modules/{module}{DEVICE_BOUND}")
        }
    }
}

impl Service {
    /// Connects, authenticates, and waits until messages can be sent.
    ///
    /// # Errors
    /// When there is no connection, or the hub refuses the key.
    pub async fn connect(options: &ServiceOptions) -> Result<Self, ConnectError> {
        let string = &options.connection_string;
        let access = Access {
            host: string.host_name.clone(),
            address: options.address,
            trust: options.trust.clone(),
            resource: string.host_name.clone(),
            key: string.key.clone(),
            rule: KeyRule::Decoded,
            policy: string.policy.clone(),
            now: options.now,
        };
        let mut connection = HubConnection::open(access).await?;
        let commands = attach_commands(&mut connection).await.map_err(|error| {
            let host = string.host_name.clone();
            error.into_connect_error(host)
        })?;
        Ok(Self {
            connection,
            commands,
            feedback: None,
            buffer: BytesMut::new(),
            in_flight: HashMap::new(),
            last_ticket: 0,
            events: VecDeque::new(),
        })
    }

    /// Whether the hub takes another message now.
    #[must_use]
    pub fn can_send(&self) -> bool {
        self.connection.engine.sendable(self.commands) > 0
    }

    /// Waits until the hub takes another message.
    ///
    /// # Errors
    /// When the connection or one of its links ended.
    pub async fn ready(&mut self) -> Result<(), AmqpError> {
        self.connection.await_credit(self.commands).await
    }

    /// Puts a message on its way and gives the ticket under which it is answered. Its `to` says whom
    /// it is for; see [`address_of`].
    ///
    /// # Errors
    /// When the hub takes no message now, or the message is larger than any that it takes.
    pub fn send(&mut self, message: &CloudMessage<'_>) -> Result<u64, SendError> {
        self.buffer.clear();
        wire::put_command(&mut self.buffer, message);
        let ticket = self.last_ticket + 1;
        let delivery = Delivery {
            tag: &ticket.to_be_bytes(),
            settled: false,
            message_format: 0,
            payload: &[&self.buffer[..]],
        };
        let delivery_id = self.connection.engine.send(self.commands, &delivery)?;
        self.last_ticket = ticket;
        self.in_flight.insert(delivery_id, ticket);
        Ok(ticket)
    }

    /// How many messages the hub has not answered.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Begins to receive feedback, which [`Service::next`] gives out.
    ///
    /// # Errors
    /// When the hub refuses the link.
    pub async fn receive_feedback(&mut self) -> Result<(), AmqpError> {
        let link = self.connection.attach_receiver(FEEDBACK, None)?;
        self.feedback = Some(link);
        self.connection.receive(link, FEEDBACK_CREDIT).await
    }

    /// The next thing that the hub says.
    ///
    /// May be dropped at an await; nothing is lost then.
    ///
    /// # Errors
    /// When the connection or one of its links ended, and all that came before that was given out.
    /// Nothing is known of messages in flight then.
    pub async fn next(&mut self) -> Result<ServiceEvent, AmqpError> {
        loop {
            self.collect()?;
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            self.connection.exchange_or_end().await?;
        }
    }

    /// Takes what has already come, without waiting.
    pub fn next_ready(&mut self) -> Option<ServiceEvent> {
        self.events.pop_front()
    }

    /// Completes a batch of feedback, which does not come again then. The next exchange of bytes
    /// tells the hub.
    ///
    /// # Errors
    /// When its link is gone.
    pub fn complete(&mut self, batch: &FeedbackBatch) -> Result<(), AmqpError> {
        self.settle(batch, DeliveryState::Accepted)
    }

    /// Gives a batch of feedback back. It comes again, and counts as one more delivery.
    ///
    /// # Errors
    /// When its link is gone.
    pub fn abandon(&mut self, batch: &FeedbackBatch) -> Result<(), AmqpError> {
        self.settle(batch, DeliveryState::Released)
    }

    /// Writes what was sent and settled so far.
    ///
    /// # Errors
    /// When the connection ended.
    pub async fn flush(&mut self) -> Result<(), AmqpError> {
        self.connection.flush().await
    }

    fn settle(&mut self, batch: &FeedbackBatch, state: DeliveryState) -> Result<(), AmqpError> {
        let link = self
            .feedback
            .ok_or_else(|| protocol("there is no link for feedback"))?;
        let id = batch.delivery_id;
        self.connection
            .engine
            .settle_incoming(link, id..=id, state)
            .map_err(protocol)
    }

    /// Makes events of what has come.
    fn collect(&mut self) -> Result<(), AmqpError> {
        while let Some(event) = self.connection.events.pop_front() {
            match event {
                EngineEvent::Outcome(outcome) if outcome.link == self.commands => {
                    self.answered(outcome)?;
                }
                EngineEvent::Message(message) if Some(message.link) == self.feedback => {
                    let batch = wire::feedback(&message).map_err(protocol)?;
                    self.events.push_back(ServiceEvent::Feedback(batch));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn answered(&mut self, outcome: Outcome) -> Result<(), AmqpError> {
        let Outcome {
            link,
            delivery_id,
            state,
            settled,
            ..
        } = outcome;
        if !settled {
            self.connection
                .engine
                .settle_outgoing(link, delivery_id, state.clone())
                .map_err(protocol)?;
        }
        let Some(ticket) = self.in_flight.remove(&delivery_id) else {
            return Ok(());
        };
        let outcome = match state {
            Some(DeliveryState::Accepted) => Ok(()),
            Some(DeliveryState::Rejected(Some(error))) => Err(Refused::of(&error)),
            other => Err(Refused {
                condition: "unknown".to_owned(),
                description: format!("the hub answered with {other:?}"),
            }),
        };
        self.events
            .push_back(ServiceEvent::Answered { ticket, outcome });
        Ok(())
    }
}

impl Refused {
    fn of(error: &Error) -> Self {
        Self {
            condition: error.condition.as_str().to_owned(),
            description: error.description.clone().unwrap_or_default(),
        }
    }
}

async fn attach_commands(connection: &mut HubConnection) -> Result<LinkId, AmqpError> {
    let commands = connection.attach_sender(DEVICE_BOUND, "commands".to_owned())?;
    connection.await_attached(commands).await?;
    Ok(commands)
}
