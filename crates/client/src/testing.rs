//! A hub that does as a test says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use fieldpost_amqp::message::{Message, Properties, put_map, put_properties, section};
use fieldpost_amqp::performative::Role;
use fieldpost_amqp::sasl::{SaslCode, mechanism};
use fieldpost_amqp::{Connection, Delivery, Event, LinkId, LinkReply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The hub's end of one connection, at which every request for a token is granted.
pub(crate) struct FakeHub {
    pub(crate) engine: Connection,
    pub(crate) stream: TcpStream,
    /// Where answers go.
    answers: Option<LinkId>,
}

impl FakeHub {
    /// A socket that a client can connect to, and its address.
    pub(crate) async fn bind() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// Takes one connection and lets the client in, which puts a token.
    pub(crate) async fn accept(listener: TcpListener) -> Self {
        let mut hub = Self::listen(listener, &[mechanism::ANONYMOUS]).await;
        hub.grant().await;
        hub
    }

    /// Takes one connection and lets the client in by its certificate.
    pub(crate) async fn accept_certificate(listener: TcpListener) -> Self {
        let mut hub = Self::listen(listener, &[mechanism::EXTERNAL]).await;
        while !matches!(hub.event().await, Event::SaslInit(_)) {}
        hub.engine.sasl_outcome(SaslCode::Ok).unwrap();
        hub
    }

    async fn listen(listener: TcpListener, mechanisms: &'static [&'static str]) -> Self {
        let (stream, _) = listener.accept().await.unwrap();
        Self {
            engine: Connection::server(Arc::default(), mechanisms),
            stream,
            answers: None,
        }
    }

    /// Lets the client in.
    async fn grant(&mut self) {
        loop {
            match self.event().await {
                Event::SaslInit(_) => self.engine.sasl_outcome(SaslCode::Ok).unwrap(),
                Event::Attach { link, attach } => {
                    self.engine.accept_link(link, LinkReply::default()).unwrap();
                    match attach.role {
                        Role::Sender => self.engine.set_auto_credit(link, 10).unwrap(),
                        Role::Receiver => self.answers = Some(link),
                    }
                }
                Event::Message(message) => {
                    let request = Message::parse(&message.payload).unwrap();
                    let id = request.properties().unwrap().message_id;
                    let mut answer = BytesMut::new();
                    let properties = Properties {
                        correlation_id: id,
                        ..Properties::default()
                    };
                    put_properties(&mut answer, &properties);
                    put_map(&mut answer, section::APPLICATION_PROPERTIES, |e| {
                        e.string("status-code");
                        e.int(200);
                    });
                    self.send(self.answers.unwrap(), &answer);
                    self.flush().await;
                    return;
                }
                _ => {}
            }
        }
    }

    /// The next link that is asked for.
    pub(crate) async fn asked(&mut self) -> LinkId {
        loop {
            if let Event::Attach { link, .. } = self.event().await {
                return link;
            }
        }
    }

    pub(crate) async fn event(&mut self) -> Event {
        let mut buffer = vec![0; 4096];
        loop {
            self.flush().await;
            if let Some(event) = self.engine.next_event() {
                return event;
            }
            let read = tokio::time::timeout(Duration::from_secs(20), self.stream.read(&mut buffer));
            let count = read.await.expect("the client goes on").unwrap();
            assert!(count > 0, "the client is gone");
            let taken = self.engine.feed(&buffer[..count], Duration::ZERO);
            assert_eq!(taken, Ok(count));
        }
    }

    pub(crate) async fn flush(&mut self) {
        let output = self.engine.output().split();
        self.stream.write_all(&output).await.unwrap();
    }

    pub(crate) fn send(&mut self, link: LinkId, message: &[u8]) {
        let delivery = Delivery {
            tag: b"",
            settled: true,
            message_format: 0,
            payload: &[message],
        };
        self.engine.send(link, &delivery).unwrap();
    }
}
