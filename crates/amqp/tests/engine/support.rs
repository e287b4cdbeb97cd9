//! A client and a server engine joined by two byte queues and a fake clock.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use fieldpost_amqp::performative::{Attach, Role, Source, Target};
use fieldpost_amqp::sasl::SaslCode;
use fieldpost_amqp::{ClientSasl, Config, Connection, Event, Fatal, LinkId, LinkReply, SessionId};

pub(crate) const MECHANISMS: &[&str] = &["EXTERNAL", "MSSBCBS", "ANONYMOUS", "PLAIN"];

pub(crate) struct Pair {
    pub(crate) client: Side,
    pub(crate) server: Side,
    pub(crate) now: Duration,
    /// Bytes given to one `feed`.
    pub(crate) chunk: usize,
}

pub(crate) struct Side {
    pub(crate) engine: Connection,
    /// Events that no test has looked at yet.
    pub(crate) events: Vec<Event>,
    /// Bytes on the way to this side.
    pub(crate) inbox: BytesMut,
    pub(crate) fatal: Option<Fatal>,
}

impl Side {
    fn new(engine: Connection) -> Self {
        Self {
            engine,
            events: Vec::new(),
            inbox: BytesMut::new(),
            fatal: None,
        }
    }

    /// Takes the waiting events.
    pub(crate) fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    fn read(&mut self, now: Duration, chunk: usize) {
        while !self.inbox.is_empty() && self.fatal.is_none() {
            let end = self.inbox.len().min(chunk);
            let input = self.inbox.get(..end).unwrap_or_default();
            match self.engine.feed(input, now) {
                Ok(used) => {
                    let _ = self.inbox.split_to(used);
                    let before = self.events.len();
                    self.events
                        .extend(std::iter::from_fn(|| self.engine.next_event()));
                    if used == 0 && self.events.len() == before {
                        return;
                    }
                }
                Err(fatal) => {
                    self.inbox.clear();
                    self.fatal = Some(fatal);
                }
            }
        }
        self.events
            .extend(std::iter::from_fn(|| self.engine.next_event()));
    }
}

impl Pair {
    pub(crate) fn new(client: Config, server: Config, sasl: Option<ClientSasl>) -> Self {
        Self {
            client: Side::new(Connection::client(Arc::new(client), sasl)),
            server: Side::new(Connection::server(Arc::new(server), MECHANISMS)),
            now: Duration::from_secs(1),
            chunk: usize::MAX,
        }
    }

    /// Moves bytes both ways until nothing moves any more.
    pub(crate) fn run(&mut self) {
        loop {
            let to_server = self.client.engine.output().split();
            let to_client = self.server.engine.output().split();
            if to_server.is_empty() && to_client.is_empty() {
                return;
            }
            self.server.inbox.extend_from_slice(&to_server);
            self.client.inbox.extend_from_slice(&to_client);
            self.server.read(self.now, self.chunk);
            self.client.read(self.now, self.chunk);
        }
    }

    /// A pair that is open and authenticated.
    pub(crate) fn open(client: Config, server: Config) -> Self {
        let mut pair = Self::new(client, server, None);
        pair.run();
        pair.server.engine.set_authenticated(true);
        assert!(matches!(pair.client.take()[..], [Event::Opened(_)]));
        assert!(matches!(pair.server.take()[..], [Event::Opened(_)]));
        pair
    }

    /// Begins a session; the client's and the server's names for it.
    pub(crate) fn begin(&mut self) -> (SessionId, SessionId) {
        let ours = self.client.engine.begin().expect("the connection is open");
        self.run();
        let client = self.client.take();
        assert_eq!(client, [Event::SessionBegun(ours)]);
        match self.server.take()[..] {
            [Event::SessionBegun(theirs)] => (ours, theirs),
            ref other => panic!("expected a session, got {other:?}"),
        }
    }

    /// Attaches a link with the default answer; the client's and the server's names for it.
    pub(crate) fn attach(&mut self, session: SessionId, attach: Attach) -> (LinkId, LinkId) {
        self.attach_with(session, attach, LinkReply::default())
    }

    pub(crate) fn attach_with(
        &mut self,
        session: SessionId,
        attach: Attach,
        reply: LinkReply,
    ) -> (LinkId, LinkId) {
        let ours = self
            .client
            .engine
            .attach(session, attach)
            .expect("the session has begun");
        self.run();
        let theirs = self.asked();
        self.server
            .engine
            .accept_link(theirs, reply)
            .expect("the link was asked for");
        self.run();
        match &self.client.take()[..] {
            [Event::Attached { link, .. }] => assert_eq!(*link, ours),
            other => panic!("expected attached, got {other:?}"),
        }
        (ours, theirs)
    }

    /// The link that the server is asked for.
    pub(crate) fn asked(&mut self) -> LinkId {
        match self.server.take()[..] {
            [Event::Attach { link, .. }] => link,
            ref other => panic!("expected an attach, got {other:?}"),
        }
    }

    pub(crate) fn finish_sasl(&mut self, code: SaslCode) {
        self.server
            .engine
            .sasl_outcome(code)
            .expect("a decision is due");
        self.server.read(self.now, self.chunk);
        self.run();
    }
}

pub(crate) fn sender(name: &str) -> Attach {
    Attach {
        name: name.to_owned(),
        role: Role::Sender,
        source: Some(Source::default()),
        target: Some(Target::to("queue")),
        ..Attach::default()
    }
}

pub(crate) fn receiver(name: &str) -> Attach {
    Attach {
        name: name.to_owned(),
        role: Role::Receiver,
        source: Some(Source::from_address("queue")),
        target: Some(Target::default()),
        ..Attach::default()
    }
}
