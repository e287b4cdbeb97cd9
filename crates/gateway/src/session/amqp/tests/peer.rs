//! The client's side of the conversations, and what they need of the hub.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use fieldpost_amqp::message::{Message, Properties, put_map, put_properties, put_value, section};
use fieldpost_amqp::performative::{Attach, Role, Source, Target};
use fieldpost_amqp::sasl::mechanism;
use fieldpost_amqp::value::{Map, Symbol, Value, ValueRef};
use fieldpost_amqp::{ClientSasl, Config, Connection, Delivery, Error, Event, LinkId, SessionId};
use fieldpost_hub::clock::Clock;
use fieldpost_model::{AuthKind, AuthScope, AuthStamp, DeviceMessage, PartitionId};
use fieldpost_record::{Envelope, Source as EventSource, encode};
use fieldpost_store::log::{Appender, BatchBuilder, EventLog};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::super::*;
use crate::context::{Drain, Transport};
use crate::testing::TestHub;

/// A partition that the client reads.
pub(super) const DEFAULT_GROUP: &str = "hub/ConsumerGroups/$Default/Partitions/0";

/// A client and the session that serves it.
pub(super) struct Peer {
    pub(super) stream: Pipe,
    pub(super) engine: Connection,
    pub(super) clock: Arc<fieldpost_hub::clock::ManualClock>,
    session: SessionId,
    pub(super) served: JoinHandle<()>,
    pub(super) drain: Drain,
    next_name: u32,
}

impl Peer {
    /// Connects without proving anything.
    pub(super) async fn anonymous(hub: &TestHub) -> Self {
        let sasl = ClientSasl {
            mechanism: Symbol::from_static(mechanism::ANONYMOUS),
            initial_response: None,
        };
        Self::connect(hub, Some(sasl)).await.unwrap()
    }

    /// Connects and puts a token for the whole hub.
    pub(super) async fn with_token(hub: &TestHub) -> Self {
        let mut peer = Self::anonymous(hub).await;
        let status = peer.put_token(&hub.policy_token("service")).await;
        assert_eq!(status.0, 200, "{status:?}");
        peer
    }

    /// Connects; `None` when the hub ends the connection before it is open.
    pub(super) async fn connect(hub: &TestHub, sasl: Option<ClientSasl>) -> Option<Self> {
        Self::connect_with(hub, sasl, |_| ()).await
    }

    /// The same on a connection of which `shape` changes what the hub knows.
    pub(super) async fn connect_with(
        hub: &TestHub,
        sasl: Option<ClientSasl>,
        shape: impl FnOnce(&mut ConnectionContext),
    ) -> Option<Self> {
        Self::connect_by(hub, Config::default(), sasl, shape).await
    }

    async fn connect_by(
        hub: &TestHub,
        config: Config,
        sasl: Option<ClientSasl>,
        shape: impl FnOnce(&mut ConnectionContext),
    ) -> Option<Self> {
        let (near, far) = duplex(64 * 1024);
        let (mut context, drain) = ConnectionContext::of_test(hub.hub.clone(), Transport::Tls);
        shape(&mut context);
        let served = tokio::spawn(serve(far, context));
        let mut engine = Connection::client(Arc::new(config), sasl);
        let mut stream = Pipe {
            stream: near,
            rest: BytesMut::new(),
        };
        let opened = next_event(&mut engine, &mut stream, &hub.clock).await?;
        assert!(matches!(opened, Event::Opened(_)), "{opened:?}");
        let session = engine.begin().unwrap();
        let mut peer = Self {
            stream,
            engine,
            clock: Arc::clone(&hub.clock),
            session,
            served,
            drain,
            next_name: 0,
        };
        let begun = peer.event().await;
        assert_eq!(begun, Event::SessionBegun(session));
        Some(peer)
    }

    /// As [`connect`](Self::connect), by a client that calls the hub so.
    pub(super) async fn connect_as(hub: &TestHub, hostname: Option<&str>) -> Self {
        let config = Config {
            hostname: hostname.map(str::to_owned),
            ..Config::default()
        };
        let peer = Self::connect_by(hub, config, None, |_| ()).await;
        peer.expect("a connection")
    }

    /// The next message, while time passes.
    pub(super) async fn later(&mut self) -> fieldpost_amqp::Message {
        let clock = Arc::clone(&self.clock);
        loop {
            tokio::select! {
                biased;
                event = self.event() => match event {
                    Event::Message(message) => return message,
                    Event::Detached { error: None, .. } => {}
                    other => panic!("{other:?}"),
                },
                () = nudge() => clock.advance(Duration::from_secs(1)),
            }
        }
    }

    /// Says what there is to say, gives the hub time, and hears nothing from it.
    pub(super) async fn hears_nothing(&mut self) {
        tokio::select! {
            biased;
            event = self.event() => panic!("{event:?}"),
            () = nudge() => {}
        }
    }

    /// The next event, which must come; news of credit aside.
    pub(super) async fn event(&mut self) -> Event {
        loop {
            let event = next_event(&mut self.engine, &mut self.stream, &self.clock).await;
            match event.expect("the connection lasts") {
                Event::Credit(_) => {}
                event => return event,
            }
        }
    }

    pub(super) fn attach(&mut self, attach: Attach) -> LinkId {
        self.next_name += 1;
        let attach = Attach {
            name: format!("link-{}", self.next_name),
            ..attach
        };
        self.engine.attach(self.session, attach).unwrap()
    }

    /// Asks for a link to send to `address`.
    pub(super) fn sender(&mut self, address: &str) -> LinkId {
        self.attach(Attach {
            role: Role::Sender,
            source: Some(Source::default()),
            target: Some(Target::to(address)),
            ..Attach::default()
        })
    }

    /// Asks for a link to receive from `address`, as `shape` has it.
    pub(super) fn receiver(&mut self, address: &str, shape: impl FnOnce(&mut Attach)) -> LinkId {
        let mut attach = Attach {
            role: Role::Receiver,
            source: Some(Source::from_address(address)),
            target: Some(Target::to("here")),
            ..Attach::default()
        };
        shape(&mut attach);
        self.attach(attach)
    }

    /// Asks for a link that reads from a position and takes `credit` events.
    pub(super) fn reader(&mut self, address: &str, selector: &str, credit: u32) -> LinkId {
        let link = self.receiver(address, |attach| select(attach, selector));
        self.engine.set_credit(link, credit).ok();
        link
    }

    /// Waits until the hub has accepted a link.
    pub(super) async fn accepted(&mut self, link: LinkId) -> Arc<Attach> {
        match self.event().await {
            Event::Attached { link: of, attach } if of == link => {
                let end = match attach.role {
                    Role::Sender => attach.source.is_some(),
                    Role::Receiver => attach.target.is_some(),
                };
                assert!(end, "refused: {:?}", self.event().await);
                attach
            }
            other => panic!("{other:?}"),
        }
    }

    /// Attaches a reader and grants it credit.
    pub(super) async fn read_from(&mut self, selector: &str, credit: u32) -> LinkId {
        let link = self.receiver(DEFAULT_GROUP, |attach| select(attach, selector));
        self.accepted(link).await;
        self.engine.set_credit(link, credit).unwrap();
        link
    }

    /// Waits until the hub has ended a link, and gives the reason.
    pub(super) async fn detached(&mut self, link: LinkId) -> Error {
        loop {
            match self.event().await {
                Event::Attached { .. } => {}
                Event::Detached {
                    link: of, error, ..
                } if of == link => return (*error.expect("a reason")).clone(),
                other => panic!("{other:?}"),
            }
        }
    }

    /// Waits until the hub has closed the connection, and gives the reason.
    pub(super) async fn closed(&mut self) -> Error {
        match self.event().await {
            Event::Closed(error) => (*error.expect("a reason")).clone(),
            other => panic!("{other:?}"),
        }
    }

    /// Waits for a message and gives its link and bytes.
    pub(super) async fn message(&mut self) -> (LinkId, Vec<u8>) {
        match self.event().await {
            Event::Message(message) => {
                assert!(message.settled);
                (message.link, message.payload.to_vec())
            }
            other => panic!("{other:?}"),
        }
    }

    /// Waits for `count` events and gives their bodies.
    pub(super) async fn bodies(&mut self, count: usize) -> Vec<String> {
        let mut bodies = Vec::new();
        for _ in 0..count {
            let (_, bytes) = self.message().await;
            let message = Message::parse(&bytes).unwrap();
            let body = message.data().next().unwrap();
            bodies.push(String::from_utf8_lossy(body).into_owned());
        }
        bodies
    }

    /// Opens the two links to a node that answers requests.
    pub(super) async fn request_links(&mut self, address: &str) -> (LinkId, LinkId) {
        let requests = self.sender(address);
        self.accepted(requests).await;
        let answers = self.receiver(address, |_| ());
        self.accepted(answers).await;
        self.engine.set_credit(answers, 10).unwrap();
        assert!(self.engine.sendable(requests) > 0);
        (requests, answers)
    }

    /// Sends a request and waits for its answer.
    pub(super) async fn ask(
        &mut self,
        links: (LinkId, LinkId),
        id: ValueRef<'_>,
        properties: &[(&str, &str)],
        body: &str,
    ) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        put_properties(
            &mut bytes,
            &Properties {
                message_id: Some(id),
                ..Properties::default()
            },
        );
        put_map(&mut bytes, section::APPLICATION_PROPERTIES, |e| {
            for (key, value) in properties {
                e.string(key);
                e.string(value);
            }
        });
        put_value(&mut bytes, |e| e.string(body));
        let delivery = Delivery {
            tag: &[1],
            settled: true,
            message_format: 0,
            payload: &[&bytes[..]],
        };
        self.engine.send(links.0, &delivery).unwrap();
        let (link, answer) = self.message().await;
        assert_eq!(link, links.1);
        let message = Message::parse(&answer).unwrap();
        let correlation = message.properties().unwrap().correlation_id;
        assert_eq!(correlation, Some(id), "type and value of the id come back");
        answer
    }

    /// Attaches a link for answers that never gets credit, and sends as many requests as get one
    /// there. Gives their number, or the error with which the hub ended the link.
    pub(super) async fn answers_without_credit(
        &mut self,
        requests: LinkId,
    ) -> Result<usize, Error> {
        let answers = self.receiver("$cbs", |_| ());
        match self.event().await {
            Event::Attached { link, .. } if link == answers => {}
            Event::Detached { error, .. } => return Err((*error.expect("a reason")).clone()),
            other => panic!("{other:?}"),
        }
        let mut bytes = BytesMut::new();
        put_value(&mut bytes, |e| e.string("no token"));
        // Below the number at which one link is full.
        for count in 0..90 {
            while self.engine.sendable(requests) == 0 {
                match next_event(&mut self.engine, &mut self.stream, &self.clock).await {
                    Some(Event::Credit(_) | Event::Outcome(_)) => {}
                    Some(Event::Detached { error, .. }) => {
                        return Err((*error.expect("a reason")).clone());
                    }
                    other => panic!("{count}: {other:?}"),
                }
            }
            let delivery = Delivery {
                tag: &[1],
                settled: true,
                message_format: 0,
                payload: &[&bytes[..]],
            };
            self.engine.send(requests, &delivery).unwrap();
        }
        Ok(90)
    }

    /// Puts a token on links made for it, and gives the status.
    pub(super) async fn put_token(&mut self, token: &str) -> (i64, String) {
        let links = self.request_links("$cbs").await;
        let properties = [("operation", "put-token"), ("name", "sb://localhost/hub")];
        let answer = self
            .ask(links, ValueRef::ULong(0), &properties, token)
            .await;
        status(&answer)
    }
}

/// The client's end of a stream, and what it has read and not used.
pub(super) struct Pipe {
    stream: DuplexStream,
    rest: BytesMut,
}

/// Lets everybody else go on for a while.
pub(super) async fn nudge() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

pub(super) async fn next_event(
    engine: &mut Connection,
    pipe: &mut Pipe,
    clock: &fieldpost_hub::clock::ManualClock,
) -> Option<Event> {
    let Pipe { stream, rest } = pipe;
    loop {
        while engine.output().has_remaining() {
            // The hub may have closed; what it wrote before that still counts.
            let Ok(written) = stream.write(engine.output()).await else {
                engine.output().clear();
                break;
            };
            engine.output().advance(written);
        }
        if let Some(event) = engine.next_event() {
            return Some(event);
        }
        if rest.is_empty() {
            let read = stream.read_buf(rest);
            let watchdog = tokio::time::timeout(Duration::from_secs(20), read);
            let count = watchdog.await.expect("the hub answers").unwrap_or(0);
            if count == 0 {
                return None;
            }
        }
        // The engine takes no more than it has room for events of.
        match engine.feed(rest, clock.monotonic()) {
            Ok(taken) => rest.advance(taken),
            Err(_) => return engine.next_event(),
        }
    }
}

pub(super) fn select(attach: &mut Attach, selector: &str) {
    if let Some(source) = &mut attach.source {
        let filter = Map::new().with("apache.org:selector-filter:string", selector);
        source.filter = Some(filter);
    }
}

pub(super) fn own(attach: &mut Attach, level: i64, name: &str) {
    let properties = Map::new().with("com.microsoft:epoch", level);
    attach.properties = Some(properties.with("com.microsoft:receiver-name", name));
}

pub(super) fn status(answer: &[u8]) -> (i64, String) {
    let message = Message::parse(answer).unwrap();
    let properties = message.application_properties.unwrap().to_map().unwrap();
    (
        properties.get("status-code").unwrap().as_i64().unwrap(),
        properties
            .get("status-description")
            .unwrap()
            .as_str()
            .unwrap()
            .to_owned(),
    )
}

/// Stores events with these bodies in partition 0.
pub(super) fn store(hub: &TestHub, bodies: &[&str]) {
    let log = Arc::clone(&hub.store.log) as Arc<dyn EventLog>;
    let mut appender = Appender::new(log);
    let mut builder = BatchBuilder::new(PartitionId(0));
    for body in bodies {
        let envelope = Envelope {
            source: EventSource::Telemetry,
            accepted: hub.clock.now(),
            auth: AuthStamp {
                scope: AuthScope::Device,
                kind: AuthKind::Sas,
            },
            device_id: "dev1",
            module_id: None,
            generation_id: "7",
            model_id: None,
        };
        let message = DeviceMessage {
            body: body.as_bytes().into(),
            ..DeviceMessage::default()
        };
        builder.push(|out| encode(out, &envelope, &message));
    }
    appender.submit(builder.take().unwrap()).unwrap();
}

pub(super) fn annotation(bytes: &[u8], key: &str) -> Value {
    let message = Message::parse(bytes).unwrap();
    let map = message.message_annotations.unwrap().to_map().unwrap();
    map.get(key).cloned().unwrap_or_default()
}
