//! A reader of the built-in endpoint over AMQP: tokens by CBS, properties by `$management`, events
//! by receiver links, as the Event Hubs SDKs do it.

#[cfg(test)]
mod tests;
mod wire;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use fieldpost_amqp::performative::{Attach, Role, Source, Target};
use fieldpost_amqp::sasl::mechanism;
use fieldpost_amqp::{
    ClientSasl, Config, Connection, Delivery, Event as EngineEvent, LinkId, Map, SessionId, Symbol,
    Value,
};
use fieldpost_model::{SequenceNumber, Timestamp};
use tokio::time::Instant;

use crate::connection_string::ConnectionString;
use crate::link::Link;
use crate::token::{self, KeyRule};
use crate::transport::{self, ConnectError, Trust};

/// The port of AMQP over TLS.
const AMQPS_PORT: u16 = 5671;

/// How long a token is good for, and when the next one is sent.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
const TOKEN_RENEWAL: Duration = Duration::from_secs(2700);

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
    engine: Connection,
    link: Link,
    started: Instant,
    options: ReaderOptions,
    session: Option<SessionId>,
    /// Where requests to the nodes go.
    cbs: Option<LinkId>,
    management: Option<LinkId>,
    renew_at: Duration,
    /// Numbers requests and links.
    last_number: u64,
    /// The request whose answer is waited for, and the answer once it came.
    awaited: Option<u64>,
    answer: Option<wire::Reply>,
    /// The newest renewal of the token, which nobody waits for.
    renewal: Option<u64>,
    /// Partitions by the link that brings their events.
    partitions: HashMap<LinkId, String>,
    attached: Vec<LinkId>,
    events: VecDeque<Event>,
    /// Why the connection ended, to be told when all events are handed out.
    end: Option<ReadError>,
}

/// Why reading ended.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The hub closed the connection, or the network did.
    #[error("the connection ended: {0}")]
    Ended(#[from] std::io::Error),
    /// The hub refused or ended a link: condition and description.
    #[error("the hub refused: {0}")]
    Refused(String),
    /// The hub broke the protocol, or sent what is not an event.
    #[error("protocol failure: {0}")]
    Protocol(String),
}

impl Reader {
    /// Connects and authenticates.
    ///
    /// # Errors
    /// When there is no connection, or the hub refuses the key.
    pub async fn connect(options: &ReaderOptions) -> Result<Self, ConnectError> {
        let host = options.connection_string.host_name.clone();
        let config = Config {
            container_id: "fieldpost-client".to_owned(),
            hostname: Some(host.clone()),
            ..Config::default()
        };
        let sasl = ClientSasl {
            mechanism: Symbol::from_static(mechanism::ANONYMOUS),
            initial_response: None,
        };
        let stream = transport::open(&host, AMQPS_PORT, options.address, &options.trust).await?;
        let mut reader = Self {
            engine: Connection::client(Arc::new(config), Some(sasl)),
            link: Link::new(stream),
            started: Instant::now(),
            options: options.clone(),
            session: None,
            cbs: None,
            management: None,
            renew_at: TOKEN_RENEWAL,
            last_number: 0,
            awaited: None,
            answer: None,
            renewal: None,
            partitions: HashMap::new(),
            attached: Vec::new(),
            events: VecDeque::new(),
            end: None,
        };
        reader.open().await.map_err(|error| match error {
            ReadError::Ended(source) => ConnectError::Network { host, source },
            ReadError::Refused(why) => ConnectError::Refused(why),
            ReadError::Protocol(why) => ConnectError::Protocol(why),
        })?;
        Ok(reader)
    }

    /// The ids of all partitions.
    ///
    /// # Errors
    /// When the hub does not answer.
    pub async fn partitions(&mut self) -> Result<Vec<String>, ReadError> {
        let reply = self.read_properties("com.microsoft:eventhub", None).await?;
        reply
            .texts("partition_ids")
            .ok_or_else(|| protocol("the answer has no partition ids"))
    }

    /// The sequence number that the next event of a partition will get.
    ///
    /// # Errors
    /// When the hub does not answer.
    pub async fn next_sequence(&mut self, partition: &str) -> Result<SequenceNumber, ReadError> {
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
    pub async fn receive(&mut self, partition: &str, start: Start) -> Result<(), ReadError> {
        let entity = self.entity();
        let group = &self.options.consumer_group;
        let address = format!("{entity}/ConsumerGroups/{group}/Partitions/{partition}");
        let link = self.attach_receiver(&address, Some(wire::selector(start)))?;
        self.partitions.insert(link, partition.to_owned());
        self.await_attached(link).await?;
        self.engine.set_auto_credit(link, CREDIT).map_err(protocol)
    }

    /// The next event of any partition.
    ///
    /// May be dropped at an await; nothing is lost then.
    ///
    /// # Errors
    /// When the connection or one of the links ended, and every event that came before that was
    /// given out.
    pub async fn next(&mut self) -> Result<Event, ReadError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(event);
            }
            if let Some(end) = self.end.take() {
                return Err(end);
            }
            match self.exchange().await {
                Err(end) if !self.events.is_empty() => self.end = Some(end),
                exchanged => exchanged?,
            }
        }
    }

    /// Takes the next event that has already come, without waiting.
    pub fn next_ready(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    async fn open(&mut self) -> Result<(), ReadError> {
        while !self.engine.is_open() {
            self.exchange().await?;
        }
        self.engine.begin().map_err(protocol)?;
        // No link can be asked for before the hub has begun its side.
        while self.session.is_none() {
            self.exchange().await?;
        }
        let requests = self.request_links("$cbs").await?;
        self.cbs = Some(requests);
        let number = self.put_token(requests)?;
        let reply = self.reply(number).await?;
        reply.succeeded().map_err(ReadError::Refused)
    }

    /// Sends a token for the next hour and gives the request's number.
    fn put_token(&mut self, requests: LinkId) -> Result<u64, ReadError> {
        let string = &self.options.connection_string;
        let resource = format!("sb://{}/{}", string.host_name, self.entity());
        let now = self.options.now.saturating_add(self.started.elapsed());
        let token = token::sign(
            &resource,
            &string.key,
            KeyRule::Text,
            string.policy.as_deref(),
            now.saturating_add(TOKEN_LIFE),
        );
        let number = self.number();
        let request = wire::put_token(number, &resource, &token);
        self.request(requests, number, &request)?;
        Ok(number)
    }

    async fn read_properties(
        &mut self,
        kind: &str,
        partition: Option<&str>,
    ) -> Result<wire::Reply, ReadError> {
        let requests = match self.management {
            Some(requests) => requests,
            None => {
                let requests = self.request_links("$management").await?;
                self.management = Some(requests);
                requests
            }
        };
        let number = self.number();
        let request = wire::read_properties(number, kind, &self.entity(), partition);
        self.request(requests, number, &request)?;
        let reply = self.reply(number).await?;
        reply.succeeded().map_err(ReadError::Refused)?;
        Ok(reply)
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn request(
        &mut self,
        requests: LinkId,
        number: u64,
        request: &BytesMut,
    ) -> Result<(), ReadError> {
        let tag = number.to_be_bytes();
        let delivery = Delivery {
            tag: &tag,
            settled: true,
            message_format: 0,
            payload: &[request.as_ref()],
        };
        self.engine.send(requests, &delivery).map_err(protocol)?;
        Ok(())
    }

    /// The answer to a request. One that somebody gave up waiting for is passed over.
    async fn reply(&mut self, number: u64) -> Result<wire::Reply, ReadError> {
        self.awaited = Some(number);
        self.answer = None;
        loop {
            if let Some(reply) = self.answer.take() {
                return Ok(reply);
            }
            self.exchange().await?;
        }
    }

    async fn request_links(&mut self, node: &str) -> Result<LinkId, ReadError> {
        let requests = self.attach(Attach {
            name: format!("{node}-requests"),
            role: Role::Sender,
            source: Some(Source {
                address: Some(node.to_owned()),
                ..Source::default()
            }),
            target: Some(Target {
                address: Some(node.to_owned()),
                ..Target::default()
            }),
            initial_delivery_count: Some(0),
            ..Attach::default()
        })?;
        let answers = self.attach_receiver(node, None)?;
        self.await_attached(requests).await?;
        self.await_attached(answers).await?;
        self.engine.set_auto_credit(answers, 10).map_err(protocol)?;
        while self.engine.sendable(requests) == 0 {
            self.exchange().await?;
        }
        Ok(requests)
    }

    fn attach_receiver(
        &mut self,
        address: &str,
        selector: Option<(Symbol, Value)>,
    ) -> Result<LinkId, ReadError> {
        let filter = selector.map(|(name, value)| Map(vec![(Value::Symbol(name), value)]));
        let address = Some(address.to_owned());
        let name = format!("receiver-{}", self.number());
        self.attach(Attach {
            name,
            role: Role::Receiver,
            source: Some(Source {
                address: address.clone(),
                filter,
                ..Source::default()
            }),
            target: Some(Target {
                address,
                ..Target::default()
            }),
            ..Attach::default()
        })
    }

    fn attach(&mut self, attach: Attach) -> Result<LinkId, ReadError> {
        let session = self
            .session
            .ok_or_else(|| protocol("there is no session"))?;
        self.engine.attach(session, attach).map_err(protocol)
    }

    async fn await_attached(&mut self, link: LinkId) -> Result<(), ReadError> {
        while !self.attached.contains(&link) {
            self.exchange().await?;
        }
        self.attached.retain(|attached| *attached != link);
        Ok(())
    }

    /// Writes what is to be written, reads once or lets the engine's timer act, and takes in what
    /// happened.
    async fn exchange(&mut self) -> Result<(), ReadError> {
        self.renew_token()?;
        if self.link.input.is_empty() || self.engine.output_full() {
            let wake = self
                .engine
                .deadline()
                .unwrap_or(Duration::MAX)
                .min(self.renew_at);
            let deadline = self.started + wake;
            let exchange = self.link.exchange(self.engine.output());
            if let Ok(exchanged) = tokio::time::timeout_at(deadline, exchange).await {
                exchanged?;
            }
        }
        let now = self.started.elapsed();
        self.engine.tick(now).map_err(protocol)?;
        let fed = self.engine.feed(&self.link.input, now);
        // What came before the engine gave up counts.
        while let Some(event) = self.engine.next_event() {
            self.take_in(event)?;
        }
        self.link.input.advance(fed.map_err(protocol)?);
        Ok(())
    }

    fn renew_token(&mut self) -> Result<(), ReadError> {
        let now = self.started.elapsed();
        let Some(requests) = self.cbs.filter(|_| now >= self.renew_at) else {
            return Ok(());
        };
        self.renew_at = now + TOKEN_RENEWAL;
        self.renewal = Some(self.put_token(requests)?);
        Ok(())
    }

    fn take_in(&mut self, event: EngineEvent) -> Result<(), ReadError> {
        match event {
            EngineEvent::SessionBegun(session) => self.session = Some(session),
            EngineEvent::Attached { link, attach } => {
                // Null instead of the hub's end refuses the link; the detach that follows says why.
                let accepted = match attach.role {
                    Role::Sender => attach.source.is_some(),
                    Role::Receiver => attach.target.is_some(),
                };
                if accepted {
                    self.attached.push(link);
                }
            }
            EngineEvent::Message(message) => match self.partitions.get(&message.link) {
                Some(partition) => {
                    let event = wire::event(partition, &message.payload).map_err(protocol)?;
                    self.events.push_back(event);
                }
                None => {
                    let reply = wire::Reply::parse(&message.payload).map_err(protocol)?;
                    self.take_reply(reply)?;
                }
            },
            EngineEvent::Detached { error, .. }
            | EngineEvent::SessionEnded { error, .. }
            | EngineEvent::Closed(error) => {
                let why = error.map_or_else(
                    || "no reason given".to_owned(),
                    |error| {
                        let text = error.description.as_deref().unwrap_or_default();
                        format!("{}: {text}", error.condition.as_str())
                    },
                );
                return Err(ReadError::Refused(why));
            }
            // Credit and windows are asked of the engine where they matter; the rest concerns servers.
            _ => {}
        }
        Ok(())
    }

    fn take_reply(&mut self, reply: wire::Reply) -> Result<(), ReadError> {
        if self.awaited.is_some_and(|number| reply.answers(number)) {
            self.answer = Some(reply);
        } else if self.renewal.is_some_and(|number| reply.answers(number)) {
            reply.succeeded().map_err(ReadError::Refused)?;
        }
        Ok(())
    }

    fn entity(&self) -> String {
        self.options
            .connection_string
            .entity_path
            .clone()
            .unwrap_or_default()
    }
}

fn protocol(error: impl std::fmt::Display) -> ReadError {
    ReadError::Protocol(error.to_string())
}
