//! A link on which a service sends messages for devices.

use std::collections::VecDeque;
use std::sync::LazyLock;
use std::task::{Context, Poll};

use fieldpost_amqp::performative::DeliveryState;
use fieldpost_amqp::{Connection, LinkId, Message};
use fieldpost_hub::c2d::{Admission, CloudToDevice, Sender};
use metrics::{Gauge, gauge};

use super::grants::Permit;
use super::telemetry::settle_accepted;
use crate::dialect::amqp::command::{Command, InvalidCommand};
use crate::dialect::amqp::refusal::{self, TrackingId};

/// Messages that a service may have on the way and unanswered on one link. Some clients send
/// nothing before they are granted something, so that it is granted as soon as the link is there.
const CREDIT: u32 = 500;

/// How much of the credit must be free again before a client is told: one frame for many messages.
const CREDIT_STEP: u32 = CREDIT / 4;

/// Marks the ticket of a message that its client sent settled, so that no answer goes back. The
/// bits below it are the delivery id.
const SETTLED: u64 = 1 << 32;

static OPEN: LazyLock<Gauge> = LazyLock::new(|| gauge!("fieldpost_c2d_sender_links_open"));

/// One link to `messages/devicebound`.
///
/// What the client has in flight is bounded by its credit, what the hub holds of it by the sender's
/// room, and what waits for that room by not reading from the client meanwhile.
pub(super) struct Commands {
    pub(super) permit: Permit,
    conn_id: u64,
    hub: CloudToDevice,
    sender: Sender,
    /// Messages that the hub has not answered.
    unanswered: u32,
    /// Messages that came while the sender had no room, in order.
    waiting: VecDeque<Message>,
    /// Deliveries that were accepted, not yet told. Kept so that answering allocates nothing.
    accepted: Vec<u32>,
    is_stopped: bool,
}

impl Commands {
    /// A link of a connection, opened under `permit`.
    pub(super) fn open(hub: &CloudToDevice, permit: Permit, conn_id: u64) -> Self {
        OPEN.increment(1);
        Self {
            sender: hub.sender(permit.policy),
            hub: hub.clone(),
            permit,
            conn_id,
            unanswered: 0,
            waiting: VecDeque::new(),
            accepted: Vec::new(),
            is_stopped: false,
        }
    }

    /// Whether messages wait for the hub to have room. Nothing is read from the client until then.
    pub(super) fn is_crowded(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether the client has been granted less than it might, because the hub takes no messages
    /// at present. Nothing tells when that ends. It does not on a store that is read-only: there the
    /// client may send, and is refused.
    pub(super) fn is_held(&self) -> bool {
        self.hub.admission() == Admission::Held
    }

    /// Takes nothing more, because the hub is being stopped. The client sends what was not answered
    /// to the next one.
    pub(super) fn stop(&mut self) {
        self.is_stopped = true;
        self.waiting.clear();
    }

    /// Whether the client waits for the outcome of a message.
    pub(super) fn is_owing(&self) -> bool {
        self.unanswered > 0
    }

    /// Takes a message from the client.
    pub(super) fn on_message(&mut self, message: &Message, engine: &mut Connection) {
        if self.is_stopped {
            return;
        }
        if self.is_crowded() || !self.sender.has_room() {
            self.waiting.push_back(message.clone());
        } else {
            self.take(message, engine);
        }
    }

    /// Tells the client what the hub has answered, and grants it what it may send. True when
    /// something was told.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        link: LinkId,
        engine: &mut Connection,
    ) -> bool {
        let mut told = false;
        loop {
            while let Poll::Ready((ticket, answer)) = self.sender.poll_answer(cx) {
                self.unanswered = self.unanswered.saturating_sub(1);
                let Ok(delivery_id) = u32::try_from(ticket) else {
                    // It was sent settled: nobody waits for this.
                    continue;
                };
                told = true;
                match answer {
                    Ok(_) => self.accepted.push(delivery_id),
                    Err(refused) => {
                        let error = refusal::send_refused(&refused, self.tracking_id(delivery_id));
                        let state = DeliveryState::rejected(error);
                        // A link that is gone settles nothing.
                        let _ = engine.settle_incoming(link, delivery_id..=delivery_id, state);
                    }
                }
            }
            self.tell_accepted(link, engine);
            let mut taken = false;
            while self.sender.has_room()
                && let Some(message) = self.waiting.pop_front()
            {
                self.take(&message, engine);
                taken = true;
            }
            // What was just sent has left no waker behind.
            if !taken {
                break;
            }
        }
        told | self.grant(link, engine)
    }

    /// Tells which messages were accepted, those with consecutive numbers in one frame.
    fn tell_accepted(&mut self, link: LinkId, engine: &mut Connection) {
        // The hub answers in any order.
        self.accepted.sort_unstable();
        settle_accepted(&self.accepted, link, engine);
        self.accepted.clear();
    }

    /// Grants the client what is left of its credit, when that is worth telling.
    fn grant(&self, link: LinkId, engine: &mut Connection) -> bool {
        let granted = engine.credit(link);
        let held = self.is_held();
        let free = if held || self.is_stopped {
            0
        } else {
            let waiting = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
            CREDIT.saturating_sub(self.unanswered.saturating_add(waiting))
        };
        let worth_it = if held || self.is_stopped {
            granted > 0
        } else {
            free >= granted.saturating_add(CREDIT_STEP)
        };
        worth_it && engine.set_credit(link, free).is_ok()
    }

    fn take(&mut self, message: &Message, engine: &mut Connection) {
        let parsed = match message.message_format {
            0 => fieldpost_amqp::message::Message::parse(&message.payload)
                .map_err(InvalidCommand::from)
                .and_then(|parsed| Command::of(&parsed)),
            _ => Err(InvalidCommand::Format),
        };
        match parsed {
            Ok(command) => {
                let settled = if message.settled { SETTLED } else { 0 };
                let ticket = u64::from(message.delivery_id) | settled;
                self.sender.send(ticket, command.target, &command.message);
                self.unanswered = self.unanswered.saturating_add(1);
            }
            Err(invalid) => {
                // The hub counts all others under the same name.
                metrics::counter!("fieldpost_c2d_messages_total", "outcome" => "invalid")
                    .increment(1);
                tracing::debug!(%invalid, "a message for a device was refused");
                if !message.settled {
                    let id = message.delivery_id;
                    let error = refusal::invalid_command(&invalid, self.tracking_id(id));
                    let state = DeliveryState::rejected(error);
                    let _ = engine.settle_incoming(message.link, id..=id, state);
                }
            }
        }
    }

    fn tracking_id(&self, delivery_id: u32) -> TrackingId {
        TrackingId {
            conn_id: self.conn_id,
            delivery_id,
        }
    }
}

impl Drop for Commands {
    fn drop(&mut self) {
        OPEN.decrement(1);
    }
}
