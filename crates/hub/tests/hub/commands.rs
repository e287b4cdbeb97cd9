//! Helpers of the tests of cloud-to-device messages: a back end, a device, and a store that dies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use fieldpost_hub::auth::DevicePrincipal;
use fieldpost_hub::c2d::{
    Accepted, Cause, Delivery, FeedbackMessage, Receiver, SendRefused, SettleError, Settlement,
    Target,
};
use fieldpost_hub::clock::{ManualClock, SeededChance};
use fieldpost_hub::secrets::Keyring;
use fieldpost_hub::{Hub, HubConfig, HubParts};
use fieldpost_model::{Ack, CloudMessage, Timestamp};
use fieldpost_record::CommandView;
use fieldpost_store::memory::{MemoryQueues, MemoryStore};
use fieldpost_store::queues::{
    DeviceQueues, DuePage, DuePosition, Lane, LaneFigures, ListDue, ListOutcomes, ListQueue,
    Operation, OperationResult, Outcome, QueueName, QueuePage,
};
use fieldpost_store::{Answer, Health, Store, StoreError};
use serde_json::Value;
use tokio::sync::watch;

use crate::bench::{Bench, context, identity, settle};

/// Sends a message with a body to a device.
pub(crate) async fn send(
    hub: &Hub,
    device: &str,
    message_id: &str,
    ack: Ack,
) -> Result<Accepted, SendRefused> {
    let message = CloudMessage {
        to: format!("/devices/{device}/messages/deviceBound").into(),
        message_id: Some(message_id.into()),
        ack,
        body: b"on"[..].into(),
        ..CloudMessage::default()
    };
    let target = Target {
        identity: identity(device),
        fallback: None,
    };
    hub.c2d().sender("service").send_one(target, &message).await
}

/// Takes the next message of a device and settles it.
pub(crate) async fn take(hub: &Hub, device: &DevicePrincipal, settlement: Settlement) -> Delivery {
    let delivery = hub.c2d().receive_one(device, None).await.unwrap();
    let delivery = delivery.expect("a message waits");
    hub.c2d()
        .settle(device, delivery.lock, settlement)
        .await
        .unwrap();
    delivery
}

/// Sends a message and lets the device complete it.
pub(crate) async fn complete(hub: &Hub, device: &DevicePrincipal, message_id: &str, ack: Ack) {
    let name = device.identity.device.as_str();
    send(hub, name, message_id, ack).await.unwrap();
    take(hub, device, Settlement::Complete).await;
}

/// Takes one feedback message, if there is one, and completes it.
pub(crate) async fn feedback(hub: &Hub) -> Option<FeedbackMessage> {
    let feedback = hub.c2d().feedback();
    let delivery = feedback.receive_one().await.unwrap()?;
    let message = FeedbackMessage::parse(&delivery.message).unwrap();
    feedback
        .settle(delivery.lock, Settlement::Complete)
        .await
        .unwrap();
    Some(message)
}

/// The records of a feedback message: status and original message id.
pub(crate) fn records(message: &FeedbackMessage) -> Vec<(String, String)> {
    let records: Vec<Value> = serde_json::from_slice(&message.json).unwrap();
    assert_eq!(records.len(), usize::try_from(message.records).unwrap());
    let text = |record: &Value, name: &str| record[name].as_str().unwrap_or("").to_owned();
    records
        .iter()
        .map(|record| {
            (
                text(record, "statusCode"),
                text(record, "originalMessageId"),
            )
        })
        .collect()
}

/// A store whose hub has stopped without a word.
pub(crate) struct Stopped {
    pub(crate) memory: MemoryStore,
    pub(crate) clock: Arc<ManualClock>,
}

/// Drops the hub of a bench.
pub(crate) async fn stop(bench: Bench) -> Stopped {
    let Bench {
        hub, memory, clock, ..
    } = bench;
    drop(hub);
    settle().await;
    Stopped { memory, clock }
}

impl Stopped {
    /// A hub on the store, with queues of the caller's.
    pub(crate) async fn start(&self, queues: Arc<dyn DeviceQueues>) -> Hub {
        let clock: Arc<ManualClock> = Arc::clone(&self.clock);
        let hub = Hub::open(HubParts {
            store: Store {
                queues,
                ..self.memory.store()
            },
            timer: clock,
            chance: Arc::new(SeededChance::new(99)),
            keyring: Keyring::new(1, [7; 32]),
            config: HubConfig::default(),
        });
        hub.await.unwrap()
    }
}

/// The queues of a process that dies in the middle: batches are carried out up to one, and no call
/// is answered from there on.
pub(crate) struct DyingQueues {
    inner: Arc<MemoryQueues>,
    batches: AtomicU64,
    /// Batches that are carried out; the last of them is not answered any more.
    lives: AtomicU64,
    loses_forgets: AtomicBool,
}

impl DyingQueues {
    pub(crate) fn new(inner: &Arc<MemoryQueues>) -> Self {
        Self {
            inner: Arc::clone(inner),
            batches: AtomicU64::new(0),
            lives: AtomicU64::new(u64::MAX),
            loses_forgets: AtomicBool::new(false),
        }
    }

    /// From now on no lane's records are forgotten, and whoever asks for that waits.
    pub(crate) fn lose_forgets(&self) {
        self.loses_forgets.store(true, Ordering::Relaxed);
    }

    /// Lets so many more batches be carried out.
    pub(crate) fn die_after(&self, batches: u64) {
        let now = self.batches.load(Ordering::Relaxed);
        self.lives.store(now + batches, Ordering::Relaxed);
    }

    /// Whether there was more to do than it lived for.
    pub(crate) fn is_dead(&self) -> bool {
        self.batches.load(Ordering::Relaxed) >= self.lives.load(Ordering::Relaxed)
    }

    fn unless_dead<T: Send + 'static>(&self, answer: Answer<T>) -> Answer<T> {
        if self.is_dead() {
            Box::pin(std::future::pending())
        } else {
            answer
        }
    }
}

impl DeviceQueues for DyingQueues {
    fn apply(
        &self,
        operations: Vec<Operation>,
    ) -> Answer<Result<Vec<OperationResult>, StoreError>> {
        let is_forget = |operation: &Operation| matches!(operation, Operation::Forget { .. });
        let is_lost =
            self.loses_forgets.load(Ordering::Relaxed) && operations.iter().any(is_forget);
        if self.is_dead() || is_lost {
            return Box::pin(std::future::pending());
        }
        self.batches.fetch_add(1, Ordering::Relaxed);
        let answer = self.inner.apply(operations);
        self.unless_dead(answer)
    }

    fn list(&self, request: ListQueue) -> Answer<Result<QueuePage, StoreError>> {
        self.unless_dead(self.inner.list(request))
    }

    fn depths(&self, queues: Vec<QueueName>) -> Answer<Result<Vec<u64>, StoreError>> {
        self.unless_dead(self.inner.depths(queues))
    }

    fn due(&self, request: ListDue) -> Answer<Result<DuePage, StoreError>> {
        self.unless_dead(self.inner.due(request))
    }

    fn next_due(
        &self,
        after: Option<DuePosition>,
    ) -> Answer<Result<Option<Timestamp>, StoreError>> {
        self.unless_dead(self.inner.next_due(after))
    }

    fn outcomes(&self, request: ListOutcomes) -> Answer<Result<Vec<Outcome>, StoreError>> {
        self.unless_dead(self.inner.outcomes(request))
    }

    fn lane(&self, lane: Lane) -> LaneFigures {
        self.inner.lane(lane)
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.inner.health()
    }

    fn close(&self) -> Answer<()> {
        self.inner.close()
    }
}

/// What a queue of the store holds, past the hub.
pub(crate) fn lane(queues: &MemoryQueues, number: u8) -> LaneFigures {
    queues.lane(Lane(number))
}

/// The body of a stored message.
pub(crate) fn body(message: &Bytes) -> Vec<u8> {
    let view = CommandView::parse(message).unwrap();
    view.body().unwrap().to_vec()
}

/// Queues that have no room for messages when told so.
pub(crate) struct FullQueues {
    inner: Arc<MemoryQueues>,
    is_full: AtomicBool,
    refused: AtomicU64,
}

impl FullQueues {
    pub(crate) fn new(inner: &Arc<MemoryQueues>) -> Self {
        Self {
            inner: Arc::clone(inner),
            is_full: AtomicBool::new(false),
            refused: AtomicU64::new(0),
        }
    }

    pub(crate) fn fill(&self, is_full: bool) {
        self.is_full.store(is_full, Ordering::Relaxed);
    }

    /// Messages refused since the last call.
    pub(crate) fn take_refused(&self) -> u64 {
        self.refused.swap(0, Ordering::Relaxed)
    }
}

impl DeviceQueues for FullQueues {
    fn apply(
        &self,
        operations: Vec<Operation>,
    ) -> Answer<Result<Vec<OperationResult>, StoreError>> {
        let is_refused = |operation: &Operation| {
            self.is_full.load(Ordering::Relaxed) && matches!(operation, Operation::Enqueue { .. })
        };
        let refused: Vec<bool> = operations.iter().map(is_refused).collect();
        let count = refused.iter().filter(|is_refused| **is_refused).count();
        self.refused.fetch_add(count as u64, Ordering::Relaxed);
        let others = operations.into_iter().filter(|o| !is_refused(o)).collect();
        let others = self.inner.apply(others);
        Box::pin(async move {
            let mut others = others.await?.into_iter();
            let result = |is_refused| match is_refused {
                true => OperationResult::NoRoom,
                false => others.next().unwrap(),
            };
            Ok(refused.into_iter().map(result).collect())
        })
    }

    fn list(&self, request: ListQueue) -> Answer<Result<QueuePage, StoreError>> {
        self.inner.list(request)
    }

    fn depths(&self, queues: Vec<QueueName>) -> Answer<Result<Vec<u64>, StoreError>> {
        self.inner.depths(queues)
    }

    fn due(&self, request: ListDue) -> Answer<Result<DuePage, StoreError>> {
        self.inner.due(request)
    }

    fn next_due(
        &self,
        after: Option<DuePosition>,
    ) -> Answer<Result<Option<Timestamp>, StoreError>> {
        self.inner.next_due(after)
    }

    fn outcomes(&self, request: ListOutcomes) -> Answer<Result<Vec<Outcome>, StoreError>> {
        self.inner.outcomes(request)
    }

    fn lane(&self, lane: Lane) -> LaneFigures {
        self.inner.lane(lane)
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.inner.health()
    }

    fn close(&self) -> Answer<()> {
        self.inner.close()
    }
}

pub(crate) fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) async fn next(hub: &Hub, device: &DevicePrincipal) -> Option<Delivery> {
    hub.c2d().receive_one(device, None).await.unwrap()
}

pub(crate) fn message_id(delivery: &Delivery) -> String {
    let view = CommandView::parse(&delivery.message).unwrap();
    view.message_id().unwrap().to_owned()
}

/// Takes everything that a receiver has got.
pub(crate) async fn taken(receiver: &mut Receiver) -> Vec<Delivery> {
    settle().await;
    let mut taken = Vec::new();
    while let Poll::Ready(delivery) = receiver.poll_delivery(&mut context()) {
        taken.push(delivery);
    }
    taken
}

pub(crate) fn ids(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(message_id).collect()
}

pub(crate) async fn send_many(hub: &Hub, device: &str, ids: &[&str]) -> Vec<Accepted> {
    let mut accepted = Vec::new();
    for id in ids {
        accepted.push(send(hub, device, id, Ack::None).await.unwrap());
    }
    accepted
}

/// How many messages wait for a device, the held ones included.
pub(crate) async fn count(hub: &Hub, device: &DevicePrincipal) -> u64 {
    let of = [(device.identity.clone(), Arc::clone(&device.generation_id))];
    let counts = hub.c2d().message_counts(&of).await.unwrap();
    counts.into_iter().next().unwrap()
}

pub(crate) fn is_lost(outcome: &Result<(), SettleError>) -> bool {
    matches!(outcome, Err(SettleError::LockLost))
}

pub(crate) async fn dead(hub: &Hub) -> Vec<(Cause, u32)> {
    let page = hub.c2d().dead_letters(0, 1000, None).await.unwrap();
    let letters = page.letters.iter();
    letters.map(|l| (l.cause, l.delivery_count)).collect()
}
