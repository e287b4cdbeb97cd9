//! A connection to a hub over AMQP, with a token that is renewed as long as it lasts.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use fieldpost_amqp::performative::{Attach, Role, Source, Target};
use fieldpost_amqp::sasl::mechanism;
use fieldpost_amqp::{ClientSasl, Config, Connection, Delivery, Event, LinkId, SessionId, Symbol};
use fieldpost_model::Timestamp;
use tokio::time::Instant;

use crate::link::Link;
use crate::requests::{self, Reply};
use crate::token::{self, KeyRule};
use crate::transport::{self, ConnectError, Trust};

/// The port of AMQP over TLS.
const AMQPS_PORT: u16 = 5671;

/// How long a token is good for, and when the next one is sent.
const TOKEN_LIFE: Duration = Duration::from_secs(3600);
const TOKEN_RENEWAL: Duration = Duration::from_secs(2700);

/// Where to connect and as whom.
pub(crate) struct Access {
    pub(crate) host: String,
    /// Where to connect instead of port 5671 of the host.
    pub(crate) address: Option<SocketAddr>,
    pub(crate) trust: Trust,
    /// What the token is for.
    pub(crate) resource: String,
    /// What signs tokens. Without it there are none, and the certificate that TLS has shown must do.
    pub(crate) key: Option<String>,
    pub(crate) rule: KeyRule,
    pub(crate) policy: Option<String>,
    /// The present, from which tokens count.
    pub(crate) now: Timestamp,
}

/// Why a connection or one of its links ended.
#[derive(Debug, thiserror::Error)]
pub enum AmqpError {
    /// The hub closed the connection, or the network did.
    #[error("the connection ended: {0}")]
    Ended(#[from] std::io::Error),
    /// The hub refused or ended a link: condition and description.
    #[error("the hub refused: {0}")]
    Refused(String),
    /// The hub broke the protocol, or sent what is not understood.
    #[error("protocol failure: {0}")]
    Protocol(String),
}

impl AmqpError {
    /// The same as the reason why a connection to `host` could not be opened.
    pub(crate) fn into_connect_error(self, host: String) -> ConnectError {
        match self {
            Self::Ended(source) => ConnectError::Network { host, source },
            Self::Refused(why) => ConnectError::Refused(why),
            Self::Protocol(why) => ConnectError::Protocol(why),
        }
    }
}

/// A connection on which a token was put, if tokens are what proves who this is.
pub(crate) struct HubConnection {
    pub(crate) engine: Connection,
    /// What happened on links other than those for requests, and was not looked at.
    pub(crate) events: VecDeque<Event>,
    link: Link,
    started: Instant,
    access: Access,
    session: Option<SessionId>,
    /// Where tokens go.
    cbs: Option<LinkId>,
    renew_at: Duration,
    /// Numbers requests and links.
    last_number: u64,
    /// The links on which answers come.
    answers: Vec<LinkId>,
    /// The request whose answer is waited for, and the answer once it came.
    awaited: Option<u64>,
    answer: Option<Reply>,
    /// The newest renewal of the token, which nobody waits for.
    renewal: Option<u64>,
    attached: Vec<LinkId>,
    /// Why the connection ended, to be told when everything that came before is handed out.
    end: Option<AmqpError>,
}

impl HubConnection {
    /// Connects and authenticates.
    pub(crate) async fn open(access: Access) -> Result<Self, ConnectError> {
        let host = access.host.clone();
        let config = Config {
            container_id: "fieldpost-client".to_owned(),
            hostname: Some(host.clone()),
            ..Config::default()
        };
        let sasl = ClientSasl {
            mechanism: Symbol::from_static(match access.key {
                Some(_) => mechanism::ANONYMOUS,
                None => mechanism::EXTERNAL,
            }),
            initial_response: None,
        };
        let stream = transport::open(&host, AMQPS_PORT, access.address, &access.trust).await?;
        let mut connection = Self {
            engine: Connection::client(Arc::new(config), Some(sasl)),
            events: VecDeque::new(),
            link: Link::new(stream),
            started: Instant::now(),
            access,
            session: None,
            cbs: None,
            renew_at: TOKEN_RENEWAL,
            last_number: 0,
            answers: Vec::new(),
            awaited: None,
            answer: None,
            renewal: None,
            attached: Vec::new(),
            end: None,
        };
        let authenticated = connection.authenticate().await;
        authenticated.map_err(|error| error.into_connect_error(host))?;
        Ok(connection)
    }

    async fn authenticate(&mut self) -> Result<(), AmqpError> {
        while !self.engine.is_open() {
            self.exchange().await?;
        }
        self.engine.begin().map_err(protocol)?;
        // No link can be asked for before the hub has begun its side.
        while self.session.is_none() {
            self.exchange().await?;
        }
        if self.access.key.is_none() {
            return Ok(());
        }
        let requests = self.request_links("$cbs").await?;
        self.cbs = Some(requests);
        let number = self.put_token(requests)?;
        let reply = self.reply(number).await?;
        reply.succeeded().map_err(AmqpError::Refused)
    }

    /// Sends a token for the next hour and gives the request's number.
    fn put_token(&mut self, requests: LinkId) -> Result<u64, AmqpError> {
        let access = &self.access;
        let key = access.key.as_deref();
        let key = key.ok_or_else(|| protocol("there is no key to sign a token with"))?;
        let now = access.now.saturating_add(self.started.elapsed());
        let token = token::sign(
            &access.resource,
            key,
            access.rule,
            access.policy.as_deref(),
            now.saturating_add(TOKEN_LIFE),
        );
        let resource = access.resource.clone();
        self.send_request(requests, |number| {
            requests::put_token(number, &resource, &token)
        })
    }

    /// Attaches both links to a node that answers requests, and gives the one that takes them.
    pub(crate) async fn request_links(&mut self, node: &str) -> Result<LinkId, AmqpError> {
        let requests = self.attach_sender(node, format!("{node}-requests"))?;
        let answers = self.attach_receiver(node, None)?;
        self.answers.push(answers);
        self.await_attached(requests).await?;
        self.receive(answers, 10).await?;
        self.await_credit(requests).await?;
        Ok(requests)
    }

    /// Sends a request, made for its number, and waits for the answer. One that somebody gave up
    /// waiting for is passed over.
    pub(crate) async fn request(
        &mut self,
        requests: LinkId,
        make: impl FnOnce(u64) -> BytesMut,
    ) -> Result<Reply, AmqpError> {
        let number = self.send_request(requests, make)?;
        self.reply(number).await
    }

    fn send_request(
        &mut self,
        requests: LinkId,
        make: impl FnOnce(u64) -> BytesMut,
    ) -> Result<u64, AmqpError> {
        let number = self.number();
        let request = make(number);
        let delivery = Delivery {
            tag: &number.to_be_bytes(),
            settled: true,
            message_format: 0,
            payload: &[request.as_ref()],
        };
        self.engine.send(requests, &delivery).map_err(protocol)?;
        Ok(number)
    }

    async fn reply(&mut self, number: u64) -> Result<Reply, AmqpError> {
        self.awaited = Some(number);
        self.answer = None;
        loop {
            if let Some(reply) = self.answer.take() {
                return Ok(reply);
            }
            self.exchange().await?;
        }
    }

    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Asks for a link that sends to `address`.
    pub(crate) fn attach_sender(
        &mut self,
        address: &str,
        name: String,
    ) -> Result<LinkId, AmqpError> {
        self.attach(Attach {
            name,
            role: Role::Sender,
            source: Some(Source::from_address(address)),
            target: Some(Target::to(address)),
            ..Attach::default()
        })
    }

    /// Asks for a link that receives from `address`.
    pub(crate) fn attach_receiver(
        &mut self,
        address: &str,
        filter: Option<fieldpost_amqp::Map>,
    ) -> Result<LinkId, AmqpError> {
        let name = format!("receiver-{}", self.number());
        self.attach(Attach {
            name,
            role: Role::Receiver,
            source: Some(Source {
                filter,
                ..Source::from_address(address)
            }),
            target: Some(Target::to(address)),
            ..Attach::default()
        })
    }

    fn attach(&mut self, attach: Attach) -> Result<LinkId, AmqpError> {
        let session = self
            .session
            .ok_or_else(|| protocol("there is no session"))?;
        self.engine.attach(session, attach).map_err(protocol)
    }

    /// Waits until the hub has accepted a link.
    pub(crate) async fn await_attached(&mut self, link: LinkId) -> Result<(), AmqpError> {
        while !self.attached.contains(&link) {
            self.exchange().await?;
        }
        self.attached.retain(|attached| *attached != link);
        Ok(())
    }

    /// Waits until the hub has accepted a link that receives, and lets so much come ahead of what is
    /// taken.
    pub(crate) async fn receive(&mut self, link: LinkId, credit: u32) -> Result<(), AmqpError> {
        self.await_attached(link).await?;
        self.engine.set_auto_credit(link, credit).map_err(protocol)
    }

    /// Waits until something can be sent on a link.
    pub(crate) async fn await_credit(&mut self, link: LinkId) -> Result<(), AmqpError> {
        while self.engine.sendable(link) == 0 {
            self.exchange().await?;
        }
        Ok(())
    }

    /// Writes what is to be written, reads once or lets the engine's timer act, and takes in what
    /// happened.
    ///
    /// May be dropped at an await; nothing is lost then.
    ///
    /// # Errors
    /// When the connection or one of the links ended. What came before that is in `events`.
    pub(crate) async fn exchange(&mut self) -> Result<(), AmqpError> {
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

    /// As [`exchange`](Self::exchange), but an end is told by the call after it: what came before is to
    /// be taken from `events` first.
    pub(crate) async fn exchange_or_end(&mut self) -> Result<(), AmqpError> {
        if let Some(end) = self.end.take() {
            return Err(end);
        }
        self.end = self.exchange().await.err();
        Ok(())
    }

    /// Writes what is to be written.
    ///
    /// # Errors
    /// When the connection ended.
    pub(crate) async fn flush(&mut self) -> Result<(), AmqpError> {
        Ok(self.link.flush(self.engine.output()).await?)
    }

    fn renew_token(&mut self) -> Result<(), AmqpError> {
        let now = self.started.elapsed();
        let Some(requests) = self.cbs.filter(|_| now >= self.renew_at) else {
            return Ok(());
        };
        self.renew_at = now + TOKEN_RENEWAL;
        self.renewal = Some(self.put_token(requests)?);
        Ok(())
    }

    fn take_in(&mut self, event: Event) -> Result<(), AmqpError> {
        match event {
            Event::SessionBegun(session) => self.session = Some(session),
            Event::Attached { link, attach } => {
                // Null instead of the hub's end refuses the link; the detach that follows says why.
                let accepted = match attach.role {
                    Role::Sender => attach.source.is_some(),
                    Role::Receiver => attach.target.is_some(),
                };
                if accepted {
                    self.attached.push(link);
                }
            }
            Event::Message(message) if self.answers.contains(&message.link) => {
                let reply = Reply::parse(&message.payload).map_err(protocol)?;
                self.take_reply(reply)?;
            }
            Event::Message(_) | Event::Outcome(_) => self.events.push_back(event),
            Event::Detached { error, .. }
            | Event::SessionEnded { error, .. }
            | Event::Closed(error) => {
                let why = error.map_or_else(
                    || "no reason given".to_owned(),
                    |error| {
                        let text = error.description.as_deref().unwrap_or_default();
                        format!("{}: {text}", error.condition.as_str())
                    },
                );
                return Err(AmqpError::Refused(why));
            }
            // Credit and windows are asked of the engine where they matter; the rest concerns servers.
            _ => {}
        }
        Ok(())
    }

    fn take_reply(&mut self, reply: Reply) -> Result<(), AmqpError> {
        if self.awaited.is_some_and(|number| reply.answers(number)) {
            self.answer = Some(reply);
        } else if self.renewal.is_some_and(|number| reply.answers(number)) {
            reply.succeeded().map_err(AmqpError::Refused)?;
        }
        Ok(())
    }
}

pub(crate) fn protocol(error: impl std::fmt::Display) -> AmqpError {
    AmqpError::Protocol(error.to_string())
}
