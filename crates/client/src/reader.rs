//! A reader of the built-in endpoint over AMQP: tokens by CBS, properties by `$management`, events
//! by receiver links, as the Event Hubs SDKs do it.

#[cfg(test)]
mod tests;
mod wire;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use bytes::Bytes;
use fieldpost_amqp::{Event as EngineEvent, LinkId, Map, Value};
use fieldpost_model::{SequenceNumber, Timestamp};

use crate::connection::{Access, AmqpError, HubConnection, protocol};
use crate::connection_string::ConnectionString;
use crate::requests::{self, Reply};
use crate::token::KeyRule;
use crate::transport::{ConnectError, Trust};

/// Events that a partition may send ahead of what was taken.
const CREDIT: u32 = 2000;

/// What a reader needs to know.
#[derive(Clone)]
pub struct ReaderOptions {
    /// The Event Hubs connection string.
    pub connection_string: ConnectionString,
    /// Where to connect instead of port 5671 of the host name.
    pub address: Option<SocketAddr>,
    /// How the hub's certificate is checked.
    pub trust: Trust,
    /// The consumer group.
    pub consumer_group: String,
    /// The present, from which tokens count.
    pub now: Timestamp,
}

/// Where to begin in a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the oldest event kept.
    Earliest,
    /// With the next event that comes.
    Latest,
    /// At this sequence number.
    Sequence(SequenceNumber),
    /// With the first event stored later than this.
    After(Timestamp),
}

/// An event as the hub shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// The partition.
    pub partition: String,
    /// Its number there.
    pub sequence: SequenceNumber,
    /// When it was stored.
    pub enqueued: Timestamp,
    /// When the hub accepted it.
    pub accepted: Option<Timestamp>,
    /// The device that the hub stamped on it.
    pub device_id: Option<String>,
    /// `message-id`.
    pub message_id: Option<String>,
    /// `content-type`.
    pub content_type: Option<String>,
    /// Application properties in their order; `None` is null.
    pub properties: Vec<(String, Option<String>)>,
    /// The payload.
    pub body: Bytes,
}

/// A connection that reads any number of partitions.
pub struct Reader {
    connection: HubConnection,
    entity: String,
    consumer_group: String,
    /// Where questions go.
    management: Option<LinkId>,
    /// Partitions by the link that brings their events.
    partitions: HashMap<LinkId, String>,
    events: VecDeque<Event>,
}

impl Reader {
    /// Connects and authenticates.
    ///
    /// # Errors
    /// When there is no connection, or the hub refuses the key.
    pub async fn connect(options: &ReaderOptions) -> Result<Self, ConnectError> {
        let string = &options.connection_string;
        let entity = string.entity_path.clone().unwrap_or_default();
        let access = Access {
            host: string.host_name.clone(),
            address: options.address,
            trust: options.trust.clone(),
            resource: format!("sb://{}/{entity}", string.host_name),
            key: string.key.clone(),
            rule: KeyRule::Text,
            policy: string.policy.clone(),
            now: options.now,
        };
        Ok(Self {
            connection: HubConnection::open(access).await?,
            entity,
            consumer_group: options.consumer_group.clone(),
            management: None,
            partitions: HashMap::new(),
            events: VecDeque::new(),
        })
    }

    /// The ids of all partitions.
    ///
    /// # Errors
    /// When the hub does not answer.
    pub async fn partitions(&mut self) -> Result<Vec<String>, AmqpError> {
        let reply = self.read_properties("com.microsoft:eventhub", None).await?;
        reply
            .texts("partition_ids")
            .ok_or_else(|| protocol("the answer has no partition ids"))
    }

    /// The sequence number that the next event of a partition will get.
    ///
    /// # Errors
    /// When the hub does not answer.
    pub async fn next_sequence(&mut self, partition: &str) -> Result<SequenceNumber, AmqpError> {
        let reply = self
            .read_properties("com.microsoft:partition", Some(partition))
            .await?;
        let last = reply
            .number("last_enqueued_sequence_number")
            .ok_or_else(|| protocol("the answer has no sequence number"))?;
        SequenceNumber::try_from(last.saturating_add(1)).map_err(protocol)
    }

    /// Begins to receive a partition's events, which [`Reader::next`] gives out.
    ///
    /// # Errors
    /// When the hub refuses the link.
    pub async fn receive(&mut self, partition: &str, start: Start) -> Result<(), AmqpError> {
        let (entity, group) = (&self.entity, &self.consumer_group);
        let address = format!("{entity}/ConsumerGroups/{group}/Partitions/{partition}");
        let (name, value) = wire::selector(start);
        let filter = Map(vec![(Value::Symbol(name), value)]);
        let link = self.connection.attach_receiver(&address, Some(filter))?;
        self.partitions.insert(link, partition.to_owned());
        self.connection.receive(link, CREDIT).await
    }

    /// The next event of any partition.
    ///
    /// May be dropped at an await; nothing is lost then.
    ///
    /// # Errors
    /// When the connection or one of the links ended, and every event that came before that was
    /// given out.
    pub async fn next(&mut self) -> Result<Event, AmqpError> {
        loop {
            self.collect()?;
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            self.connection.exchange_or_end().await?;
        }
    }

    /// Takes the next event that has already come, without waiting.
    pub fn next_ready(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Makes events of what has come.
    fn collect(&mut self) -> Result<(), AmqpError> {
        while let Some(event) = self.connection.events.pop_front() {
            if let EngineEvent::Message(message) = event
                && let Some(partition) = self.partitions.get(&message.link)
            {
                let event = wire::event(partition, &message.payload).map_err(protocol)?;
                self.events.push_back(event);
            }
        }
        Ok(())
    }

    async fn read_properties(
        &mut self,
        kind: &str,
        partition: Option<&str>,
    ) -> Result<Reply, AmqpError> {
        let node = match self.management {
            Some(node) => node,
            None => {
                let node = self.connection.request_links("$management").await?;
                self.management = Some(node);
                node
            }
        };
        let entity = &self.entity;
        let request = self.connection.request(node, |number| {
            requests::read_properties(number, kind, entity, partition)
        });
        let reply = request.await?;
        reply.succeeded().map_err(AmqpError::Refused)?;
        Ok(reply)
    }
}
