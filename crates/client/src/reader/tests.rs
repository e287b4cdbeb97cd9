//! A reader against a hub that does as the test says.

use std::time::Duration;

use fieldpost_amqp::message::{Message, Properties, put_data, put_map, put_properties, section};
use fieldpost_amqp::sasl::SaslCode;
use fieldpost_amqp::{Error, LinkReply, condition};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// The hub's end of one connection, at which every request for a token is granted.
struct FakeHub {
    engine: Connection,
    stream: TcpStream,
    /// Where answers go.
    answers: Option<LinkId>,
}

impl FakeHub {
    /// A reader and the hub that it has connected to.
    async fn connected() -> (Reader, Self) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = ReaderOptions {
            connection_string: "HostName=h;SharedAccessKey=k;EntityPath=hub"
                .parse()
                .unwrap(),
            address: Some(listener.local_addr().unwrap()),
            trust: Trust::Plain,
            consumer_group: "$Default".to_owned(),
            now: Timestamp::UNIX_EPOCH,
        };
        let accepting = async {
            let (stream, _) = listener.accept().await.unwrap();
            let mut hub = Self {
                engine: Connection::server(Arc::default(), &[mechanism::ANONYMOUS]),
                stream,
                answers: None,
            };
            hub.grant().await;
            hub
        };
        let (reader, hub) = tokio::join!(Reader::connect(&options), accepting);
        (reader.unwrap(), hub)
    }

    /// Lets the reader in.
    async fn grant(&mut self) {
        loop {
            match self.event().await {
                EngineEvent::SaslInit(_) => self.engine.sasl_outcome(SaslCode::Ok).unwrap(),
                EngineEvent::Attach { link, attach } => {
                    self.engine.accept_link(link, LinkReply::default()).unwrap();
                    match attach.role {
                        Role::Sender => self.engine.set_auto_credit(link, 10).unwrap(),
                        Role::Receiver => self.answers = Some(link),
                    }
                }
                EngineEvent::Message(message) => {
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
    async fn asked(&mut self) -> LinkId {
        loop {
            if let EngineEvent::Attach { link, .. } = self.event().await {
                return link;
            }
        }
    }

    async fn event(&mut self) -> EngineEvent {
        let mut buffer = vec![0; 4096];
        loop {
            self.flush().await;
            if let Some(event) = self.engine.next_event() {
                return event;
            }
            let read = tokio::time::timeout(Duration::from_secs(20), self.stream.read(&mut buffer));
            let count = read.await.expect("the reader goes on").unwrap();
            assert!(count > 0, "the reader is gone");
            let taken = self.engine.feed(&buffer[..count], Duration::ZERO);
            assert_eq!(taken, Ok(count));
        }
    }

    async fn flush(&mut self) {
        let output = self.engine.output().split();
        self.stream.write_all(&output).await.unwrap();
    }

    fn send(&mut self, link: LinkId, message: &[u8]) {
        let delivery = Delivery {
            tag: b"",
            settled: true,
            message_format: 0,
            payload: &[message],
        };
        self.engine.send(link, &delivery).unwrap();
    }
}

/// The events stood before the bad news in the same read, and were lost with it.
#[tokio::test]
async fn events_that_came_before_the_end_are_given_out_before_it() {
    let (mut reader, mut hub) = FakeHub::connected().await;
    let (received, link) = tokio::join!(reader.receive("0", Start::Earliest), async {
        let link = hub.asked().await;
        hub.engine.accept_link(link, LinkReply::default()).unwrap();
        hub.flush().await;
        link
    });
    received.unwrap();
    let (first, ()) = tokio::join!(reader.next(), async {
        while !matches!(hub.event().await, EngineEvent::Credit(of) if of == link) {}
        for body in ["1", "2", "3"] {
            let mut event = BytesMut::new();
            put_data(&mut event, body.as_bytes());
            hub.send(link, &event);
        }
        let error = Error::new(condition::STOLEN, "by another");
        hub.engine.detach(link, Some(error)).unwrap();
        hub.flush().await;
    });
    assert_eq!(first.unwrap().body, "1");
    assert_eq!(reader.next().await.unwrap().body, "2");
    assert_eq!(reader.next().await.unwrap().body, "3");
    let end = reader.next().await.unwrap_err().to_string();
    assert!(
        end.contains("stolen") && end.contains("by another"),
        "{end}"
    );
}

/// A refusal is an attach with nothing at the hub's end, and the reason comes later.
#[tokio::test]
async fn a_refused_link_is_refused_where_it_was_asked_for() {
    let (mut reader, mut hub) = FakeHub::connected().await;
    let (received, ()) = tokio::join!(reader.receive("9", Start::Latest), async {
        let link = hub.asked().await;
        let error = Error::new(condition::NOT_FOUND, "no such partition");
        hub.engine.refuse_link(link, error).unwrap();
        // In two writes: the reader sees the attach alone first.
        let mut output = hub.engine.output().split();
        let size = u32::from_be_bytes(*output.first_chunk().unwrap());
        let attach = output.split_to(usize::try_from(size).unwrap());
        hub.stream.write_all(&attach).await.unwrap();
        tokio::task::yield_now().await;
        hub.stream.write_all(&output).await.unwrap();
    });
    let refused = received.unwrap_err().to_string();
    assert!(refused.contains("no such partition"), "{refused}");
}
