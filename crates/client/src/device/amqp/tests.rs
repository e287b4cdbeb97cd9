use fieldpost_amqp::LinkReply;
use fieldpost_amqp::condition;
use fieldpost_amqp::performative::Role;

use super::*;
use crate::testing::FakeHub;
use crate::transport::Trust;

/// A device, the hub that it has connected to, and the hub's end of its link for telemetry.
async fn connected(credential: &str) -> (AmqpDevice, FakeHub, LinkId) {
    let (listener, address) = FakeHub::bind().await;
    let options = DeviceOptions {
        connection_string: format!("HostName=h;DeviceId=d#1;{credential}")
            .parse()
            .unwrap(),
        address: Some(address),
        trust: Trust::Plain,
        keep_alive_s: 0,
        now: fieldpost_model::Timestamp::UNIX_EPOCH,
    };
    let shows_certificate = options.connection_string.key.is_none();
    let (device, (hub, link)) = tokio::join!(AmqpDevice::connect(&options), async {
        let mut hub = if shows_certificate {
            FakeHub::accept_certificate(listener).await
        } else {
            FakeHub::accept(listener).await
        };
        let link = hub.asked().await;
        hub.engine.accept_link(link, LinkReply::default()).unwrap();
        hub.engine.set_credit(link, 3).unwrap();
        hub.flush().await;
        (hub, link)
    });
    (device.unwrap(), hub, link)
}

async fn heard(hub: &mut FakeHub) -> fieldpost_amqp::Message {
    loop {
        if let Event::Message(message) = hub.event().await {
            return message;
        }
    }
}

#[tokio::test]
async fn telemetry_counts_as_acknowledged_up_to_the_first_gap() {
    let (mut device, mut hub, link) = connected("SharedAccessKey=k").await;
    for payload in [b"a", b"b", b"c"] {
        device.publish(payload).unwrap();
    }
    assert!(!device.can_publish());
    assert_eq!(device.in_flight(), 3);
    let (count, ()) = tokio::join!(device.acknowledged(), async {
        let mut ids = Vec::new();
        for payload in [b"a", b"b", b"c"] {
            let message = heard(&mut hub).await;
            let parsed = Message::parse(&message.payload).unwrap();
            assert_eq!(&*parsed.joined_data(), payload);
            ids.push(message.delivery_id);
        }
        // The third before the second, which stays unanswered.
        for at in [2, 0] {
            let id = ids[at];
            let accepted = DeliveryState::Accepted;
            hub.engine.settle_incoming(link, id..=id, accepted).unwrap();
        }
        hub.flush().await;
    });
    assert_eq!(count.unwrap(), 1);
    assert_eq!(device.in_flight(), 2);
}

#[tokio::test]
async fn a_refused_message_ends_it() {
    let (mut device, mut hub, link) = connected("SharedAccessKey=k").await;
    device.publish(b"a").unwrap();
    let (ended, ()) = tokio::join!(device.acknowledged(), async {
        let id = heard(&mut hub).await.delivery_id;
        let error = Error::new(condition::RESOURCE_LIMIT_EXCEEDED, "too much");
        let rejected = DeliveryState::rejected(error);
        hub.engine.settle_incoming(link, id..=id, rejected).unwrap();
        hub.flush().await;
    });
    assert!(matches!(ended, Err(AmqpError::Refused(why)) if why.contains("too much")));
}

#[tokio::test]
async fn a_device_with_a_certificate_puts_no_token_and_settles_its_commands() {
    let (mut device, mut hub, _) = connected("x509=true").await;
    let (subscribed, link) = tokio::join!(device.subscribe_commands(), async {
        let link = loop {
            if let Event::Attach { link, attach } = hub.event().await {
                assert_eq!(attach.role, Role::Receiver);
                let address = attach.source.as_ref().map(|source| &source.address);
                let address = format!("{address:?}");
                assert!(address.contains("/devices/d%231/messages/devicebound"));
                break link;
            }
        };
        hub.engine.accept_link(link, LinkReply::default()).unwrap();
        hub.flush().await;
        link
    });
    subscribed.unwrap();
    let (first, ()) = tokio::join!(device.next_command(), async {
        while hub.engine.sendable(link) == 0 {
            hub.event().await;
        }
        for body in [b"1", b"2", b"3"] {
            let mut message = BytesMut::new();
            put_data(&mut message, body);
            let delivery = Delivery {
                tag: body,
                settled: false,
                message_format: 0,
                payload: &[&message],
            };
            hub.engine.send(link, &delivery).unwrap();
        }
        hub.flush().await;
    });
    let mut command = first.unwrap();
    for body in ["1", "2", "3"] {
        assert_eq!(command.payload, body);
        match body {
            "1" => device.complete_command(&command).unwrap(),
            "2" => device.reject_command(&command).unwrap(),
            _ => {
                device.abandon_command(&command).unwrap();
                break;
            }
        }
        command = device.next_command().await.unwrap();
    }
    let settled = async {
        let mut states = Vec::new();
        while states.len() < 3 {
            if let Event::Outcome(outcome) = hub.event().await {
                assert_eq!(outcome.link, link);
                states.push(outcome.state.unwrap());
            }
        }
        states
    };
    // Bytes move while it waits for more.
    let states = tokio::select! {
        more = device.next_command() => panic!("{more:?}"),
        states = settled => states,
    };
    assert_eq!(
        states,
        [
            DeliveryState::Accepted,
            DeliveryState::Rejected(None),
            DeliveryState::Released
        ]
    );
}
