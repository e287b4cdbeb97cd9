//! A link on which a device sends.

use std::collections::VecDeque;
use std::sync::LazyLock;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use fieldpost_amqp::performative::DeliveryState;
use fieldpost_amqp::{Connection, Error, LinkId, Message};
use fieldpost_hub::ingest::{Hold, Sender};
use metrics::{Gauge, gauge};

use crate::dialect::amqp::error;
use crate::dialect::amqp::refusal::{self, TrackingId};
use crate::dialect::amqp::telemetry::read;

/// Messages that a device may have on the way and unanswered on one link. The C library sends nothing
/// with less than 50.
const CREDIT: u32 = 100;

/// How much of the credit must be free again before a client is told: one frame for many messages.
const CREDIT_STEP: u32 = CREDIT / 4;

static OPEN: LazyLock<Gauge> = LazyLock::new(|| gauge!("fieldpost_telemetry_links_open"));

/// One link to a device's `messages/events`.
///
/// What the client has in flight is bounded by its credit, and in bytes by not reading from the
/// connection while much of it waits for the hub.
pub(super) struct Telemetry {
    conn_id: u64,
    sender: Sender,
    /// Came, and not taken by the hub yet, in order.
    waiting: VecDeque<Message>,
    waiting_bytes: usize,
    /// The first so many of them have memory of their own.
    owned: usize,
    /// Taken, by batch, and not durable yet; the deliveries whose client waits for that.
    taken: VecDeque<(u64, Vec<u32>)>,
    /// The last batch that is durable.
    durable: u64,
    is_stopped: bool,
}

impl Telemetry {
    /// A link of a connection, for the device that `sender` speaks for.
    pub(super) fn open(sender: Sender, conn_id: u64) -> Self {
        OPEN.increment(1);
        Self {
            conn_id,
            sender,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            owned: 0,
            taken: VecDeque::new(),
            durable: 0,
            is_stopped: false,
        }
    }

    /// Bytes that wait for the hub to take them.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Takes nothing more, because the hub is being stopped. The client sends what was not answered
    /// to the next one.
    pub(super) fn stop(&mut self) {
        self.is_stopped = true;
        self.waiting.clear();
        self.waiting_bytes = 0;
        self.owned = 0;
        self.sender.withdraw();
    }

    /// Whether the client waits to hear that a message is durable.
    pub(super) fn is_owing(&self) -> bool {
        self.taken
            .iter()
            .any(|(_, deliveries)| !deliveries.is_empty())
    }

    /// Since when something waits because the store holds messages back.
    pub(super) fn held_since(&self) -> Option<Duration> {
        if self.waiting.is_empty() && self.taken.is_empty() {
            return None;
        }
        match self.sender.hold() {
            Hold::Held { since } => Some(since),
            Hold::None | Hold::ReadOnly => None,
        }
    }

    /// A message has come; [`Telemetry::poll`] takes it.
    pub(super) fn on_message(&mut self, message: Message) {
        if !self.is_stopped {
            self.waiting_bytes += message.payload.len();
            self.waiting.push_back(message);
        }
    }

    /// Hands on what has come, and tells what is durable. True when something was told.
    ///
    /// # Errors
    /// The error to detach with, when the hub takes nothing any more.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        link: LinkId,
        engine: &mut Connection,
    ) -> Result<bool, Error> {
        let mut told = self.poll_durable(cx, link, engine)?;
        while !self.waiting.is_empty() && self.sender.poll_reserve(cx).is_ready() {
            told |= self.take(link, engine)?;
            // What was just handed on has left no waker behind.
            told |= self.poll_durable(cx, link, engine)?;
        }
        // What has to wait must not keep all that was read with it.
        for message in self.waiting.iter_mut().skip(self.owned) {
            message.payload = Bytes::copy_from_slice(&message.payload);
        }
        self.owned = self.waiting.len();
        Ok(told | self.grant(link, engine))
    }

    fn poll_durable(
        &mut self,
        cx: &mut Context<'_>,
        link: LinkId,
        engine: &mut Connection,
    ) -> Result<bool, Error> {
        while let Poll::Ready(durable) = self.sender.poll_durable(cx) {
            self.durable = durable.map_err(|error| {
                tracing::debug!(%error, "telemetry of a device cannot be kept");
                error::detach_forced()
            })?;
        }
        let durable = self.durable;
        let mut deliveries = Vec::new();
        while let Some((_, batch)) = self.taken.pop_front_if(|(batch, _)| *batch <= durable) {
            deliveries.extend(batch);
        }
        settle_accepted(&deliveries, link, engine);
        Ok(!deliveries.is_empty())
    }

    /// Hands on as much as there is room for, as one batch. True when something was told.
    fn take(&mut self, link: LinkId, engine: &mut Connection) -> Result<bool, Error> {
        let mut deliveries = Vec::new();
        let mut told = false;
        while self.sender.has_room()
            && let Some(message) = self.waiting.pop_front()
        {
            self.waiting_bytes = self.waiting_bytes.saturating_sub(message.payload.len());
            self.owned = self.owned.saturating_sub(1);
            let id = message.delivery_id;
            let accepted = read(message.message_format, &message.payload)
                .map_err(|invalid| refusal::invalid_telemetry(&invalid, self.tracking_id(id)))
                .and_then(|messages| {
                    let accepted = self.sender.accept_batch(&messages);
                    accepted.map_err(|refused| {
                        refusal::telemetry_refused(&refused, self.tracking_id(id))
                    })
                });
            match accepted {
                Ok(()) if message.settled => {}
                Ok(()) => deliveries.push(id),
                Err(error) => {
                    tracing::debug!(%error, "a message of a device was refused");
                    metrics::counter!("fieldpost_messages_refused_total").increment(1);
                    if !message.settled {
                        told = true;
                        let state = DeliveryState::rejected(error);
                        // A link that is gone settles nothing.
                        let _ = engine.settle_incoming(link, id..=id, state);
                    }
                }
            }
        }
        match self.sender.submit() {
            Ok(Some(batch)) => self.taken.push_back((batch, deliveries)),
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, "telemetry of a device cannot be kept");
                return Err(error::detach_forced());
            }
        }
        Ok(told)
    }

    /// Grants the client what is left of its credit, when that is worth telling.
    fn grant(&self, link: LinkId, engine: &mut Connection) -> bool {
        let granted = engine.credit(link);
        if self.is_stopped {
            return granted > 0 && engine.set_credit(link, 0).is_ok();
        }
        let in_flight: usize = self.taken.iter().map(|(_, batch)| batch.len()).sum();
        let used = u32::try_from(self.waiting.len() + in_flight).unwrap_or(u32::MAX);
        let free = CREDIT.saturating_sub(used);
        free >= granted.saturating_add(CREDIT_STEP) && engine.set_credit(link, free).is_ok()
    }

    fn tracking_id(&self, delivery_id: u32) -> TrackingId {
        TrackingId {
            conn_id: self.conn_id,
            delivery_id,
        }
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        OPEN.decrement(1);
    }
}

/// Tells which messages were accepted, those with consecutive numbers in one frame. They are in order.
pub(super) fn settle_accepted(deliveries: &[u32], link: LinkId, engine: &mut Connection) {
    let follow = |a: &u32, b: &u32| a.checked_add(1) == Some(*b);
    for run in deliveries.chunk_by(follow) {
        if let [first, ..] = run
            && let [.., last] = run
        {
            // A link that is gone settles nothing.
            let _ = engine.settle_incoming(link, *first..=*last, DeliveryState::Accepted);
        }
    }
}
