//! A service against a hub that does as the test says.

use fieldpost_amqp::message::{Message, put_data, put_map, section};
use fieldpost_amqp::performative::Role;
use fieldpost_amqp::{LinkReply, condition};
use fieldpost_model::Ack;

use super::*;
use crate::testing::FakeHub;

/// A service, the hub that it has connected to, and the hub's end of its link.
async fn connected() -> (Service, FakeHub, LinkId) {
    let (listener, address) = FakeHub::bind().await;
    let options = ServiceOptions {
        connection_string: "HostName=h;SharedAccessKeyName=service;SharedAccessKey=k"
            .parse()
            .unwrap(),
        address: Some(address),
        trust: Trust::Plain,
        now: Timestamp::UNIX_EPOCH,
    };
    let (service, (hub, link)) = tokio::join!(Service::connect(&options), async {
        let mut hub = FakeHub::accept(listener).await;
        let link = hub.asked().await;
        hub.engine.accept_link(link, LinkReply::default()).unwrap();
        hub.engine.set_credit(link, 3).unwrap();
        hub.flush().await;
        (hub, link)
    });
    (service.unwrap(), hub, link)
}

fn command(body: &'static str) -> CloudMessage<'static> {
    CloudMessage {
        to: address_of(&"dev#1".parse().unwrap(), None).into(),
        message_id: Some("m".into()),
        ack: Ack::Full,
        body: body.as_bytes().into(),
        ..CloudMessage::default()
    }
}

#[test]
fn ids_are_encoded_in_addresses() {
    let device: DeviceId = "a+b".parse().unwrap();
    let module: ModuleId = "m#1".parse().unwrap();
    assert_eq!(
        address_of(&device, None),
        "/devices/a%2Bb/messages/devicebound"
    );
    assert_eq!(
        address_of(&device, Some(&module)),
        "/devices/a%2Bb/modules/m%231/messages/devicebound"
    );
}

#[tokio::test]
async fn messages_go_out_within_the_credit_and_their_answers_come_back() {
    let (mut service, mut hub, link) = connected().await;
    service.ready().await.unwrap();
    let tickets: Vec<u64> = ["a", "b", "c"]
        .map(|body| service.send(&command(body)).unwrap())
        .into();
    assert!(!service.can_send());
    assert_eq!(service.send(&command("d")), Err(SendError::NoCredit));
    assert_eq!(service.in_flight(), 3);
    let (first, ()) = tokio::join!(service.next(), async {
        let mut ids = Vec::new();
        for body in ["a", "b", "c"] {
            let EngineEvent::Message(message) = hub.event().await else {
                panic!("a message")
            };
            ids.push(message.delivery_id);
            let parsed = Message::parse(&message.payload).unwrap();
            assert_eq!(&*parsed.joined_data(), body.as_bytes());
            let to = parsed.properties().unwrap().to.unwrap();
            assert_eq!(to.as_str(), Some("/devices/dev%231/messages/devicebound"));
            let ack = parsed.application_properties.unwrap().get("iothub-ack");
            assert_eq!(ack.unwrap().unwrap().as_str(), Some("full"));
        }
        let accepted = DeliveryState::Accepted;
        hub.engine
            .settle_incoming(link, ids[0]..=ids[1], accepted)
            .unwrap();
        let error = Error::new(condition::NOT_FOUND, "ErrorCode:DeviceNotFound;no device");
        let rejected = DeliveryState::rejected(error);
        hub.engine
            .settle_incoming(link, ids[2]..=ids[2], rejected)
            .unwrap();
        hub.flush().await;
    });
    let mut answers = vec![first.unwrap()];
    answers.push(service.next().await.unwrap());
    answers.push(service.next().await.unwrap());
    for (answer, expected) in answers.into_iter().zip(tickets) {
        let ServiceEvent::Answered { ticket, outcome } = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(ticket, expected);
        match outcome {
            Ok(()) => assert_ne!(ticket, 3),
            Err(refused) => {
                assert_eq!((ticket, refused.code()), (3, Some("DeviceNotFound")));
            }
        }
    }
    assert_eq!(service.in_flight(), 0);
}

#[tokio::test]
async fn feedback_is_read_and_completed() {
    let (mut service, mut hub, _) = connected().await;
    let (received, link) = tokio::join!(service.receive_feedback(), async {
        let link = hub.asked().await;
        hub.engine.accept_link(link, LinkReply::default()).unwrap();
        hub.flush().await;
        link
    });
    received.unwrap();
    let (batch, ()) = tokio::join!(service.next(), async {
        while !matches!(hub.event().await, EngineEvent::Credit(of) if of == link) {}
        let mut bytes = BytesMut::new();
        put_map(&mut bytes, section::MESSAGE_ANNOTATIONS, |e| {
            e.symbol("iothub-enqueuedtime");
            e.timestamp(5);
        });
        put_data(
            &mut bytes,
            br#"[{"originalMessageId":"m","description":"Expired","deviceGenerationId":"7",
                "deviceId":"dev1","enqueuedTimeUtc":"2026-01-05T10:20:30.123Z",
                "statusCode":"Expired"}]"#,
        );
        let delivery = Delivery {
            tag: b"0123456789abcdef",
            settled: false,
            message_format: 0,
            payload: &[&bytes[..]],
        };
        hub.engine.send(link, &delivery).unwrap();
        hub.flush().await;
    });
    let ServiceEvent::Feedback(batch) = batch.unwrap() else {
        panic!("feedback")
    };
    assert_eq!(batch.enqueued, Some(Timestamp::from_millis(5)));
    assert_eq!(batch.records.len(), 1);
    assert_eq!(batch.records[0].status_code, FeedbackStatus::Expired);
    assert_eq!(batch.records[0].original_message_id.as_deref(), Some("m"));
    service.complete(&batch).unwrap();
    service.flush().await.unwrap();
    loop {
        if let EngineEvent::Outcome(outcome) = hub.event().await {
            assert_eq!(outcome.state, Some(DeliveryState::Accepted));
            assert!(outcome.settled);
            break;
        }
    }
}

#[tokio::test]
async fn a_refused_link_says_why_the_connection_fails() {
    let (listener, address) = FakeHub::bind().await;
    let options = ServiceOptions {
        connection_string: "HostName=h;SharedAccessKeyName=device;SharedAccessKey=k"
            .parse()
            .unwrap(),
        address: Some(address),
        trust: Trust::Plain,
        now: Timestamp::UNIX_EPOCH,
    };
    let (service, ()) = tokio::join!(Service::connect(&options), async {
        let mut hub = FakeHub::accept(listener).await;
        let link = loop {
            if let EngineEvent::Attach { link, attach } = hub.event().await {
                assert_eq!(attach.role, Role::Sender);
                break link;
            }
        };
        let error = Error::new(condition::UNAUTHORIZED_ACCESS, "no right");
        hub.engine.refuse_link(link, error).unwrap();
        hub.flush().await;
    });
    let refused = service.map(|_| ()).unwrap_err();
    assert!(matches!(refused, ConnectError::Refused(why) if why.contains("no right")));
}
