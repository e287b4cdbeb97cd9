//! A reader against a hub that does as the test says.

use bytes::BytesMut;
use fieldpost_amqp::message::put_data;
use fieldpost_amqp::{Error, LinkReply, condition};
use tokio::io::AsyncWriteExt;

use super::*;
use crate::testing::FakeHub;

/// A reader and the hub that it has connected to.
async fn connected() -> (Reader, FakeHub) {
    let (listener, address) = FakeHub::bind().await;
    let options = ReaderOptions {
        connection_string: "HostName=h;SharedAccessKey=k;EntityPath=hub"
            .parse()
            .unwrap(),
        address: Some(address),
        trust: Trust::Plain,
        consumer_group: "$Default".to_owned(),
        now: Timestamp::UNIX_EPOCH,
    };
    let (reader, hub) = tokio::join!(Reader::connect(&options), FakeHub::accept(listener));
    (reader.unwrap(), hub)
}

/// The events stood before the bad news in the same read, and were lost with it.
#[tokio::test]
async fn events_that_came_before_the_end_are_given_out_before_it() {
    let (mut reader, mut hub) = connected().await;
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
    let (mut reader, mut hub) = connected().await;
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
