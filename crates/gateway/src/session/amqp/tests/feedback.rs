//! The service endpoint: what became of messages for devices.

use bytes::Bytes;
use fieldpost_amqp::message::Message;
use fieldpost_amqp::performative::{Attach, DeliveryState, Performative, SndSettleMode};
use fieldpost_amqp::value::Value;
use fieldpost_store::queues::{Operation, QueueName};

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

/// What nobody will ever read stands in nobody's way.
#[tokio::test]
async fn feedback_that_cannot_be_read_is_skipped_and_the_link_stays() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    let enqueue = |message: &'static [u8]| Operation::Enqueue {
        // `docs/formats/outcomes.md`: the feedback queue.
        queue: QueueName(Bytes::from_static(&[2])),
        message: Bytes::from_static(message),
        expires: Timestamp::NEVER,
        depth_max: u64::MAX,
        once: None,
    };
    let damaged = vec![enqueue(b""), enqueue(b"\xFF of a later version")];
    hub.store.store().queues.apply(damaged).await.unwrap();
    feedback_owed(&hub, &device).await;
    let mut peer = Peer::with_token(&hub).await;
    peer.feedback(10, |_| ()).await;
    let message = peer.later().await;
    assert_eq!(records(&message.payload).len(), 1);
    // They are gone for the next link as well.
    let waiting = hub
        .store
        .store()
        .queues
        .depths(vec![QueueName(Bytes::from_static(&[2]))]);
    assert_eq!(waiting.await.unwrap(), [1]);
}

/// A drain is a question for what there is: feedback that waits comes before the answer, although
/// the hub hears of credit and drain in the same moment.
#[tokio::test]
async fn a_drain_brings_the_feedback_that_waits_and_then_its_answer() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    feedback_owed(&hub, &device).await;
    // So that it is in its queue.
    let mut first = Peer::with_token(&hub).await;
    first.feedback(1, |_| ()).await;
    first.later().await;
    drop(first);
    nudge().await;
    let mut peer = Peer::with_token(&hub).await;
    let link = peer.feedback(10, |_| ()).await;
    peer.engine.drain(link).unwrap();
    match peer.event().await {
        Event::Message(message) => assert_eq!(message.link, link),
        other => panic!("{other:?}"),
    }
    assert_eq!(peer.event().await, Event::Drained(link));
}

/// The lock was lost while the client thought about it.
#[tokio::test]
async fn completing_what_is_no_longer_locked_is_answered_with_lock_lost() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    feedback_owed(&hub, &device).await;
    let mut wire = Wire::net_iot(&hub).await;
    wire.net_iot_feedback(1).await;
    let delivery_id = wire.feedback().await.0;
    hub.clock.advance(Duration::from_secs(61));
    for _ in 0..10 {
        nudge().await;
    }
    wire.judge(delivery_id, DeliveryState::Accepted, false)
        .await;
    let answer = wire.disposition().await;
    assert!(answer.settled);
    let Some(DeliveryState::Rejected(Some(error))) = answer.state else {
        panic!("{:?}", answer.state)
    };
    assert_eq!(error.condition, "com.microsoft:message-lock-lost");
}

/// A message that was given back comes again when that is durable and not before: until then
/// nobody could tell which of its deliveries an answer is about.
#[tokio::test]
async fn what_became_of_each_delivery_of_a_message_is_told_apart() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    feedback_owed(&hub, &device).await;
    let mut wire = Wire::net_iot(&hub).await;
    wire.net_iot_feedback(10).await;
    let first = wire.feedback().await.0;
    hub.store.queues.withhold(true);
    wire.judge(first, DeliveryState::Released, false).await;
    wire.put_token(0, "3", &hub.policy_token("service")).await;
    hub.store.queues.withhold(false);
    let mut heard = Vec::new();
    while heard.len() < 2 {
        match wire.hear().await.0 {
            Performative::Disposition(answer) => {
                assert_eq!(answer.state, Some(DeliveryState::Accepted));
                heard.push((answer.first, answer.settled));
            }
            Performative::Transfer(transfer) => {
                heard.push((
                    transfer.delivery_id.unwrap(),
                    transfer.settled == Some(true),
                ));
            }
            _ => {}
        }
    }
    let second = heard[1].0;
    assert_eq!(heard, [(first, true), (second, false)]);
    assert_ne!(first, second);
    wire.judge(second, DeliveryState::Accepted, false).await;
    let answer = wire.disposition().await;
    assert_eq!((answer.first, answer.settled), (second, true));
    assert_eq!(answer.state, Some(DeliveryState::Accepted));
}

#[tokio::test]
async fn a_hub_that_stops_confirms_what_was_settled_before() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    feedback_owed(&hub, &device).await;
    let mut wire = Wire::net_iot(&hub).await;
    wire.net_iot_feedback(10).await;
    let delivery = wire.feedback().await.0;
    hub.store.queues.withhold(true);
    wire.judge(delivery, DeliveryState::Accepted, false).await;
    wire.put_token(0, "3", &hub.policy_token("service")).await;
    wire.drain.begin();
    nudge().await;
    hub.store.queues.withhold(false);
    let answer = wire.disposition().await;
    assert_eq!((answer.first, answer.settled), (delivery, true));
    assert_eq!(answer.state, Some(DeliveryState::Accepted));
}

/// What was locked for a link that has no credit left was kept from all others until its lock ended.
#[tokio::test]
async fn feedback_that_a_link_cannot_take_is_free_for_others_at_once() {
    let hub = TestHub::automatic().await;
    let device = Device::new(&hub, "dev1").await;
    feedback_owed(&hub, &device).await;
    let mut wire = Wire::net_iot(&hub).await;
    let handle = wire.net_iot_feedback(10).await;
    let (first, _, bytes) = wire.feedback().await;
    // It is locked for this link again, which waits for the first answer.
    hub.store.queues.withhold(true);
    wire.judge(first, DeliveryState::Released, false).await;
    wire.put_token(0, "3", &hub.policy_token("service")).await;
    // All credit that the link ever had is one delivery.
    wire.credit(handle, 1).await;
    wire.put_token(0, "4", &hub.policy_token("service")).await;
    hub.store.queues.withhold(false);
    assert_eq!(wire.disposition().await.first, first);
    let before = hub.clock.now();
    let mut other = Peer::with_token(&hub).await;
    other.feedback(10, |_| ()).await;
    let message = other.later().await;
    let number = "x-opt-sequence-number";
    assert_eq!(annotation(&bytes, number), sequence(&message));
    assert_eq!(delivery_count(&message), Some(1));
    assert!(hub.clock.now().since(before) < Duration::from_secs(30));
}
