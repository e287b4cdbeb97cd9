//! A link on which messages come, each locked until the client says what becomes of it: a device's own, or
//! for a service what became of those that it sent.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use fieldpost_amqp::performative::{DeliveryState, SndSettleMode};
use fieldpost_amqp::{Connection, Delivery, Error, LinkId, Outcome, SendError};
use fieldpost_hub::c2d::{Delivery as Locked, FeedbackMessage, Receiver, SettleError, Settlement};
use fieldpost_record::RecordError;
use metrics::{Gauge, gauge};

use super::OUTPUT_BYTES_MAX;
use crate::dialect::amqp::device_bound::put_command;
use crate::dialect::amqp::error;
use crate::dialect::amqp::feedback::{delivery_tag, put_feedback};
use crate::dialect::amqp::refusal::{self, TrackingId};
use crate::figures::{report_unreadable_command, report_unreadable_feedback};

/// Deliveries that a client may leave unsettled on one link, whatever credit it gives. The hub keeps
/// each of them in memory as long as its lock lasts.
const UNSETTLED_MAX: u32 = 256;

static FEEDBACK_OPEN: LazyLock<Gauge> =
    LazyLock::new(|| gauge!("fieldpost_c2d_feedback_links_open"));
static DEVICE_BOUND_OPEN: LazyLock<Gauge> =
    LazyLock::new(|| gauge!("fieldpost_c2d_receiver_links_open"));

/// What a link's messages are.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// Feedback, from the hub of this name, on `messages/serviceBound/feedback`.
    Feedback(Arc<str>),
    /// Messages for the device that receives them, on its `messages/devicebound`.
    Commands,
}

/// One such link.
///
/// Dropping it releases the locks of all that is unsettled.
pub(super) struct Deliveries {
    conn_id: u64,
    content: Content,
    receiver: Receiver,
    /// The client takes deliveries as settled: each is complete as soon as it is sent.
    settled: bool,
    /// The sequence number of each delivery that the client has not settled.
    unsettled: HashMap<u32, u64>,
    /// The last delivery of each message that the client has not settled. An earlier one of the same
    /// message has lost its lock.
    newest: HashMap<u64, u32>,
    /// Deliveries whose outcome the client wants confirmed, by sequence number.
    confirming: HashMap<u64, u32>,
    /// Deliveries that the client wanted to settle when they were locked no longer.
    lapsed: Vec<u32>,
    /// Locked for this link and not sent: the peer's window was closed, or what the client said of
    /// the message's last delivery is not confirmed yet.
    ready: Option<Locked>,
    draining: Draining,
    is_stopped: bool,
}

/// Whether the client wants its credit used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Draining {
    No,
    /// It does; the hub has yet to be asked whether there is anything more.
    Wanted,
    /// The hub has been asked.
    Asked,
}

/// What became of a message that was to be sent.
enum Sent {
    Yes,
    /// The peer's window closed.
    NotNow,
    /// It cannot be read, and is gone.
    Skipped,
}

/// How far a poll came.
#[derive(Debug)]
pub(super) enum Polled {
    /// Nothing was written, and a waker is left behind.
    Idle,
    /// Something was written.
    Sent,
    /// There may be more, when the output is shorter.
    Full,
    /// The link cannot go on.
    Failed(Error),
}

impl Content {
    fn open(&self) -> &'static Gauge {
        match self {
            Self::Feedback(_) => &FEEDBACK_OPEN,
            Self::Commands => &DEVICE_BOUND_OPEN,
        }
    }

    /// What becomes of a message that the client has settled without a word about that.
    fn without_outcome(&self) -> Settlement {
        match self {
            Self::Feedback(_) => Settlement::Abandon,
            Self::Commands => Settlement::Complete,
        }
    }

    fn put(&self, out: &mut BytesMut, locked: &Locked) -> Result<(), RecordError> {
        match self {
            Self::Feedback(hub_name) => {
                let message = FeedbackMessage::parse(&locked.message)?;
                let (sequence, count) = (locked.sequence, locked.delivery_count);
                put_feedback(out, hub_name, sequence, count, &message);
                Ok(())
            }
            Self::Commands => put_command(out, locked),
        }
    }

    fn report_unreadable(&self, sequence: u64, error: &RecordError, now: Duration) {
        match self {
            Self::Feedback(_) => report_unreadable_feedback(sequence, error, now),
            Self::Commands => report_unreadable_command(sequence, error, now),
        }
    }
}

impl Deliveries {
    /// A link of a connection, in this mode.
    pub(super) fn open(
        content: Content,
        receiver: Receiver,
        conn_id: u64,
        mode: SndSettleMode,
    ) -> Self {
        content.open().increment(1);
        Self {
            conn_id,
            content,
            receiver,
            settled: mode == SndSettleMode::Settled,
            unsettled: HashMap::new(),
            newest: HashMap::new(),
            lapsed: Vec::new(),
            confirming: HashMap::new(),
            ready: None,
            draining: Draining::No,
            is_stopped: false,
        }
    }

    /// The client wants its credit used up.
    pub(super) fn drain(&mut self) {
        self.draining = Draining::Wanted;
    }

    /// Sends nothing more, because the hub is being stopped.
    pub(super) fn stop(&mut self) {
        self.is_stopped = true;
    }

    /// Whether the client has settled something and was not told yet that this is durable.
    pub(super) fn is_owing(&self) -> bool {
        !(self.confirming.is_empty() && self.lapsed.is_empty())
    }

    /// The client has told an outcome.
    ///
    /// One that it has settled itself is only carried out. One that it has not is carried out,
    /// durably, and then settled with `accepted`, which .NET's client waits for.
    pub(super) fn on_outcome(&mut self, outcome: &Outcome) {
        let Some(sequence) = self.unsettled.remove(&outcome.delivery_id) else {
            return;
        };
        if self.newest.get(&sequence) != Some(&outcome.delivery_id) {
            if !outcome.settled {
                self.lapsed.push(outcome.delivery_id);
            }
            return;
        }
        self.newest.remove(&sequence);
        let settlement = match &outcome.state {
            Some(DeliveryState::Accepted) => Settlement::Complete,
            Some(DeliveryState::Rejected(_)) => Settlement::Reject,
            None => self.content.without_outcome(),
            Some(
                DeliveryState::Released
                | DeliveryState::Modified(_)
                | DeliveryState::Received(_)
                | DeliveryState::Other(_),
            ) => Settlement::Abandon,
        };
        if outcome.settled {
            // A lock that was lost meanwhile is counted by the hub; the client asked for no answer.
            self.receiver.settle(sequence, settlement);
        } else {
            if self.receiver.settle_and_tell(sequence, settlement) {
                self.confirming.insert(sequence, outcome.delivery_id);
            } else {
                self.lapsed.push(outcome.delivery_id);
            }
        }
    }

    /// Confirms what was settled, and sends what there is as far as the client's credit goes.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        link: LinkId,
        engine: &mut Connection,
        buffer: &mut BytesMut,
        now: Duration,
    ) -> Polled {
        let mut sent = self.poll_confirmed(cx, link, engine);
        let is_end = loop {
            let held = count(self.unsettled.len() + self.confirming.len());
            let room = if self.is_stopped {
                0
            } else {
                let credit = engine.sendable(link);
                credit.min(UNSETTLED_MAX.saturating_sub(held))
            };
            // With room again comes credit or an outcome, which lets this be asked again. Until then
            // the hub must lock nothing for this link, also not what loses its lock meanwhile.
            if room == 0 {
                self.receiver.set_window(0);
                if let Some(ready) = self.ready.take() {
                    self.receiver.give_back(&ready);
                }
                // What the hub had locked before it knew goes back, and so does what comes later: a
                // waker is left behind.
                let _ = self.receiver.poll_delivery(cx);
                break true;
            }
            let locked = self.newest.len() + self.confirming.len() + self.ready.iter().len();
            self.receiver.set_window(count(locked).saturating_add(room));
            if engine.output_len() >= OUTPUT_BYTES_MAX {
                return Polled::Full;
            }
            let delivery = match self.ready.take() {
                Some(ready) => ready,
                None => match self.receiver.poll_delivery(cx) {
                    Poll::Ready(delivery) => delivery,
                    Poll::Pending => break self.poll_end(cx),
                },
            };
            // The hub's answer names the message, which must have one meaning only.
            if self.confirming.contains_key(&delivery.sequence) {
                self.ready = Some(delivery);
                break false;
            }
            // If it was here before, that lock is gone.
            self.newest.remove(&delivery.sequence);
            match self.send(delivery, link, engine, buffer, now) {
                Ok(Sent::Yes) => sent = true,
                Ok(Sent::Skipped) => {}
                Ok(Sent::NotNow) => break false,
                Err(error) => return Polled::Failed(error),
            }
        };
        if is_end && self.draining != Draining::No {
            self.draining = Draining::No;
            // A client that changed its mind, or a link that is gone, needs no answer.
            sent |= engine.drained(link).is_ok();
        }
        if sent { Polled::Sent } else { Polled::Idle }
    }

    /// Whether the hub has nothing more for a client that wants its credit used up. A delivery that
    /// comes before the answer is sent first.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> bool {
        if self.draining == Draining::No {
            return false;
        }
        if self.draining == Draining::Wanted {
            self.draining = Draining::Asked;
            self.receiver.ask_end();
        }
        self.receiver.poll_end(cx).is_ready()
    }

    fn send(
        &mut self,
        delivery: Locked,
        link: LinkId,
        engine: &mut Connection,
        buffer: &mut BytesMut,
        now: Duration,
    ) -> Result<Sent, Error> {
        let sequence = delivery.sequence;
        buffer.clear();
        if let Err(error) = self.content.put(buffer, &delivery) {
            self.content.report_unreadable(sequence, &error, now);
            // It never will be read, and must be in nobody's way.
            self.receiver.settle(sequence, Settlement::Reject);
            return Ok(Sent::Skipped);
        }
        let sent = engine.send(
            link,
            &Delivery {
                tag: &delivery_tag(delivery.lock),
                settled: self.settled,
                message_format: 0,
                payload: &[&buffer[..]],
            },
        );
        match sent {
            Ok(_) if self.settled => {
                self.receiver.settle(sequence, Settlement::Complete);
            }
            Ok(delivery_id) => {
                self.unsettled.insert(delivery_id, sequence);
                self.newest.insert(sequence, delivery_id);
            }
            // Not now; the next credit or window brings it.
            Err(SendError::NoCredit | SendError::Misuse(_)) => {
                self.ready = Some(delivery);
                return Ok(Sent::NotNow);
            }
            Err(refused @ (SendError::TooLarge(_) | SendError::TagTooLong)) => {
                return Err(error::event_too_large(&refused));
            }
        }
        Ok(Sent::Yes)
    }

    fn poll_confirmed(
        &mut self,
        cx: &mut Context<'_>,
        link: LinkId,
        engine: &mut Connection,
    ) -> bool {
        let mut told = false;
        for delivery_id in std::mem::take(&mut self.lapsed) {
            told = true;
            let state = self.not_settled(&SettleError::LockLost, delivery_id);
            let _ = engine.settle_outgoing(link, delivery_id, Some(state));
        }
        while let Poll::Ready((sequence, settled)) = self.receiver.poll_settled(cx) {
            let Some(delivery_id) = self.confirming.remove(&sequence) else {
                continue;
            };
            told = true;
            let state = match settled {
                Ok(()) => DeliveryState::Accepted,
                Err(refused) => self.not_settled(&refused, delivery_id),
            };
            // The client may have settled it, or detached, in the meantime.
            let _ = engine.settle_outgoing(link, delivery_id, Some(state));
        }
        told
    }

    fn not_settled(&self, refused: &SettleError, delivery_id: u32) -> DeliveryState {
        let id = TrackingId {
            conn_id: self.conn_id,
            delivery_id,
        };
        DeliveryState::rejected(refusal::settle_refused(refused, id))
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        self.content.open().decrement(1);
    }
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
