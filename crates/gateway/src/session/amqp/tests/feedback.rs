//! The service endpoint: what became of messages for devices.

use fieldpost_amqp::message::Message;
use fieldpost_amqp::performative::{
    Attach, DeliveryState, Disposition, Performative, RcvSettleMode, Role, SndSettleMode, Source,
    Target,
};
use fieldpost_amqp::value::Value;

use super::service::{Device, FEEDBACK, feedback_owed, records};
use super::wire::Wire;
use super::*;

impl Peer {
    /// A link that receives feedback, with this credit.
    pub(super) async fn feedback(
        &mut self,
        credit: u32,
        shape: impl FnOnce(&mut Attach),
    ) -> LinkId {
        let link = self.receiver(FEEDBACK, shape);
        self.accepted(link).await;
        self.engine.set_credit(link, credit).unwrap();
        link
    }
}

fn sequence(message: &fieldpost_amqp::Message) -> Value {
    annotation(&message.payload, "x-opt-sequence-number")
}

fn delivery_count(message: &fieldpost_amqp::Message) -> Option<u32> {
    let parsed = Message::parse(&message.payload).unwrap();
    parsed.header.unwrap().delivery_count
}

#[tokio::test]
async fn feedback_that_was_accepted_is_gone() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    feedback_owed(&hub, &device).await;
    let mut peer = Peer::with_token(&hub).await;
    let link = peer.feedback(1000, |_| ()).await;
    let first = peer.later().await;
    assert!(!first.settled);
    assert_eq!(records(&first.payload).len(), 1);
    // As rhea does it: accepted and settled as soon as it is there.
    let id = first.delivery_id;
    let accepted = DeliveryState::Accepted;
    peer.engine
        .settle_incoming(link, id..=id, accepted)
        .unwrap();
    feedback_owed(&hub, &device).await;
    let second = peer.later().await;
    assert_ne!(sequence(&first), sequence(&second));
}

#[tokio::test]
async fn feedback_that_was_rejected_is_gone() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    feedback_owed(&hub, &device).await;
    let mut peer = Peer::with_token(&hub).await;
    let link = peer.feedback(10, |_| ()).await;
    let first = peer.later().await;
    let id = first.delivery_id;
    let rejected = DeliveryState::Rejected(None);
    peer.engine
        .settle_incoming(link, id..=id, rejected)
        .unwrap();
    feedback_owed(&hub, &device).await;
    let second = peer.later().await;
    assert_ne!(sequence(&first), sequence(&second));
}

#[tokio::test]
async fn feedback_that_was_released_comes_again_and_counts() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    feedback_owed(&hub, &device).await;
    let mut peer = Peer::with_token(&hub).await;
    let link = peer.feedback(10, |_| ()).await;
    let mut expected = None;
    for count in 0..3 {
        let message = peer.later().await;
        assert_eq!(delivery_count(&message), Some(count));
        let found = sequence(&message);
        assert_eq!(*expected.get_or_insert_with(|| found.clone()), found);
        let id = message.delivery_id;
        let state = match count {
            0 => DeliveryState::Released,
            _ => DeliveryState::Modified(Arc::default()),
        };
        peer.engine.settle_incoming(link, id..=id, state).unwrap();
    }
}

/// Who loses his connection has not failed to handle what he had.
#[tokio::test]
async fn feedback_is_released_uncounted_when_its_link_or_connection_is_lost() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    feedback_owed(&hub, &device).await;
    let mut peer = Peer::with_token(&hub).await;
    let link = peer.feedback(10, |_| ()).await;
    let first = peer.later().await;
    peer.engine.detach(link, None).unwrap();
    let detached = peer.event().await;
    assert!(matches!(detached, Event::Detached { link: of, .. } if of == link));
    peer.feedback(10, |_| ()).await;
    let second = peer.later().await;
    assert_eq!(sequence(&first), sequence(&second));
    assert_eq!(delivery_count(&second), Some(0));
    drop(peer);
    let mut other = Peer::with_token(&hub).await;
    other.feedback(10, |_| ()).await;
    let third = other.later().await;
    assert_eq!(sequence(&first), sequence(&third));
    assert_eq!(delivery_count(&third), Some(0));
}

#[tokio::test]
async fn feedback_that_nobody_settles_comes_again_when_its_lock_is_over() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    feedback_owed(&hub, &device).await;
    let mut peer = Peer::with_token(&hub).await;
    peer.feedback(10, |_| ()).await;
    let first = peer.later().await;
    let locked = hub.clock.now();
    let second = peer.later().await;
    assert_eq!(sequence(&first), sequence(&second));
    assert!(hub.clock.now().since(locked) >= Duration::from_secs(59));
}

#[tokio::test]
async fn feedback_goes_to_one_of_its_receivers_within_its_credit() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    let mut peer = Peer::with_token(&hub).await;
    let one = peer.feedback(1, |_| ()).await;
    feedback_owed(&hub, &device).await;
    let first = peer.later().await;
    assert_eq!(first.link, one);
    feedback_owed(&hub, &device).await;
    // The first has no credit left.
    let two = peer.feedback(1, |_| ()).await;
    let second = peer.later().await;
    assert_eq!(second.link, two);
    assert_ne!(sequence(&first), sequence(&second));
}

#[tokio::test]
async fn a_client_that_takes_feedback_settled_gets_each_once() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    feedback_owed(&hub, &device).await;
    let mut peer = Peer::with_token(&hub).await;
    let settled = |attach: &mut Attach| attach.snd_settle_mode = SndSettleMode::Settled;
    peer.feedback(10, settled).await;
    let first = peer.later().await;
    assert!(first.settled);
    feedback_owed(&hub, &device).await;
    let second = peer.later().await;
    assert_ne!(sequence(&first), sequence(&second));
}

#[tokio::test]
async fn a_drain_is_answered_when_there_is_no_feedback() {
    let hub = TestHub::automatic().await;
    let mut peer = Peer::with_token(&hub).await;
    let link = peer.feedback(10, |_| ()).await;
    peer.engine.drain(link).unwrap();
    assert_eq!(peer.event().await, Event::Drained(link));
}

/// The lock was lost while the client thought about it.
#[tokio::test]
async fn completing_what_is_no_longer_locked_is_answered_with_lock_lost() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    feedback_owed(&hub, &device).await;
    let mut wire = Wire::net_iot(&hub).await;
    wire.attach(Attach {
        name: "feedback".to_owned(),
        handle: 9,
        role: Role::Receiver,
        rcv_settle_mode: RcvSettleMode::Second,
        source: Some(Source::from_address(FEEDBACK)),
        target: Some(Target::to("here")),
        ..Attach::default()
    })
    .await;
    wire.credit(9, 1).await;
    let delivery_id = loop {
        if let Performative::Transfer(transfer) = wire.hear_later().await.0 {
            break transfer.delivery_id.unwrap();
        }
    };
    hub.clock.advance(Duration::from_secs(61));
    for _ in 0..10 {
        nudge().await;
    }
    let disposition = Disposition {
        role: Role::Receiver,
        first: delivery_id,
        last: None,
        settled: false,
        state: Some(DeliveryState::Accepted),
        batchable: false,
    };
    wire.send(&Performative::Disposition(disposition)).await;
    loop {
        if let Performative::Disposition(answer) = wire.hear().await.0 {
            assert!(answer.settled);
            let Some(DeliveryState::Rejected(Some(error))) = answer.state else {
                panic!("{:?}", answer.state)
            };
            assert_eq!(error.condition, "com.microsoft:message-lock-lost");
            break;
        }
    }
}
