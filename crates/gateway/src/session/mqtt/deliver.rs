//! Cloud-to-device messages on their way to the client.
//!
//! The hub hands out a few of a device's messages at a time. Each goes to the client in a PUBLISH,
//! and what happens to that decides about the message: at QoS 1 the PUBACK completes it, at QoS 0
//! that it was written to the socket. Whatever is left when the connection ends goes back to the
//! queue; if the session goes on, together with the packet ids, under which the next connection
//! sends it again.

use std::cell::Cell;
use std::collections::VecDeque;
use std::task::{Context, Poll};
use std::time::Duration;

use fieldpost_hub::c2d::{Delivery, Receiver, SettleError, Settlement};
use fieldpost_hub::subscriptions::QoS;
use fieldpost_model::Identity;
use fieldpost_mqtt::{PacketId, SendError, ServerConnection};
use fieldpost_record::CommandView;
use fieldpost_store::StoreError;
use metrics::counter;
use tracing::{debug, warn};

use crate::context::ConnectionContext;
use crate::dialect::mqtt::{DeliveryName, EmptyValues, put_topic};
use crate::quiet::RepeatLimit;

/// Messages that the client may leave unacknowledged. Any SDK takes as many; the one for .NET
/// acknowledges in the order of arrival.
const WINDOW: u32 = 16;

/// Packet ids that the client may leave unacknowledged, those of messages included that it has
/// rejected or abandoned. Less than the engine's own bound, which is therefore never met.
const PACKET_IDS_MAX: usize = 128;

/// With more unread output than this, nothing more is sent. So one message at a time waits in the
/// memory of a client's connection that is as large as messages can be.
const OUTPUT_BYTES_MAX: usize = 16 * 1024;

/// While nothing is in flight, at most this much room is kept for it.
const IDLE_CAPACITY_MAX: usize = 4;

/// Topics that are longer than this leave no buffer behind.
const TOPIC_CAPACITY_MAX: usize = 4 * 1024;

thread_local! {
    /// Where topics are written, one for each worker thread.
    static TOPIC: Cell<String> = const { Cell::new(String::new()) };
}

/// The device's messages that this connection holds.
///
/// Dropping it gives them back, so it must go before the session does: the next connection of the
/// device takes them up as soon as it has the session.
pub(super) struct Deliveries {
    /// Always there but in the drop.
    receiver: Option<Receiver>,
    /// The packet ids of the session's last connection have been reserved.
    knows_expected: bool,
    /// Sent at QoS 1 and not acknowledged, oldest first.
    in_flight: VecDeque<Sent>,
    /// How many of these the client has judged.
    judged: usize,
    /// Sent at QoS 0 and not written to the socket yet.
    unwritten: Vec<u64>,
    /// Whether the next connection goes on with the packet ids of this one.
    session_persists: bool,
    /// Nothing more was sent because the client had not read what it was sent before.
    backlogged: bool,
    /// The client has unsubscribed; what it was sent before may still be acknowledged.
    stopped: bool,
    /// Verdicts of the client so far.
    verdicts: u64,
    /// Those that are not safe yet, with the messages that they are about.
    unsettled: VecDeque<(u64, u64)>,
    /// The connection's number, for the log.
    conn_id: u64,
}

struct Sent {
    packet_id: PacketId,
    sequence: u64,
    message_id: Option<Box<str>>,
    /// The client has said what becomes of it, so its PUBACK says nothing more.
    judged: bool,
}

/// To whom messages go, and how.
#[derive(Clone, Copy)]
pub(super) struct Recipient<'a> {
    pub(super) identity: &'a Identity,
    pub(super) qos: QoS,
    pub(super) empty_values: EmptyValues,
    /// For the log, with the monotonic time.
    pub(super) context: &'a ConnectionContext,
    pub(super) now: Duration,
}

impl Deliveries {
    /// Begins to take messages from `receiver`. The client's verdicts are numbered from `verdicts`
    /// on.
    pub(super) fn new(
        mut receiver: Receiver,
        engine: &mut ServerConnection,
        first_packet_id: PacketId,
        session_persists: bool,
        verdicts: u64,
        conn_id: u64,
    ) -> Self {
        engine.number_from(first_packet_id);
        receiver.set_window(WINDOW);
        Self {
            receiver: Some(receiver),
            knows_expected: false,
            in_flight: VecDeque::new(),
            judged: 0,
            unwritten: Vec::new(),
            session_persists,
            backlogged: false,
            stopped: false,
            verdicts,
            unsettled: VecDeque::new(),
            conn_id,
        }
    }

    /// Goes on after [`stop`](Self::stop). Returns whether it was stopped.
    pub(super) fn resume(&mut self) -> bool {
        let stopped = std::mem::take(&mut self.stopped);
        if stopped && let Some(receiver) = &mut self.receiver {
            receiver.set_window(WINDOW);
        }
        stopped
    }

    /// Sends nothing more. What was sent can still be acknowledged [MQTT-3.10.4-3].
    pub(super) fn stop(&mut self) {
        self.stopped = true;
        if let Some(receiver) = &mut self.receiver {
            receiver.set_window(0);
        }
    }

    /// Gives back what the hub has delivered since this was [stopped](Self::stop), before it knew, so
    /// that somebody else may have it. Leaves a waker for more.
    pub(super) fn return_late(&mut self, cx: &mut Context<'_>) {
        if self.stopped
            && let Some(receiver) = &mut self.receiver
        {
            // With its window closed, the receiver gives everything back by itself.
            let _ = receiver.poll_delivery(cx);
        }
    }

    /// Whether it was stopped and nothing is left to be done.
    pub(super) fn is_over(&self) -> bool {
        self.stopped
            && self.in_flight.is_empty()
            && self.unwritten.is_empty()
            && self.unsettled.is_empty()
    }

    /// Sends what the hub has for the client, as long as that reads.
    pub(super) fn send(
        &mut self,
        cx: &mut Context<'_>,
        engine: &mut ServerConnection,
        recipient: Recipient<'_>,
    ) {
        while self.has_room() {
            if engine.output_len() > OUTPUT_BYTES_MAX {
                self.backlogged = true;
                return;
            }
            let Some(receiver) = &mut self.receiver else {
                return;
            };
            let Poll::Ready(delivery) = receiver.poll_delivery(cx) else {
                return;
            };
            if !std::mem::replace(&mut self.knows_expected, true) {
                // A PUBACK that the client still has for its last connection must not meet another
                // message than the one that it is about.
                let expected = receiver.take_expected();
                for packet_id in expected.into_iter().filter_map(PacketId::new) {
                    engine.reserve(packet_id);
                }
            }
            if !self.publish(engine, recipient, &delivery) {
                return;
            }
        }
    }

    fn has_room(&self) -> bool {
        let held = self.in_flight.len() - self.judged + self.unwritten.len();
        !self.stopped && held < WINDOW as usize && self.in_flight.len() < PACKET_IDS_MAX
    }

    /// False when nothing can be sent any more. What is held then goes back when the connection
    /// ends.
    fn publish(
        &mut self,
        engine: &mut ServerConnection,
        recipient: Recipient<'_>,
        delivery: &Delivery,
    ) -> bool {
        let command = match CommandView::parse(&delivery.message) {
            Ok(command) => command,
            Err(error) => {
                self.give_up(delivery.sequence, recipient, &error);
                return true;
            }
        };
        let payload = command.body().unwrap_or_default();
        let mut topic = TOPIC.take();
        topic.clear();
        put_topic(
            &mut topic,
            recipient.identity,
            recipient.empty_values,
            &command,
        );
        let published = match recipient.qos {
            QoS::AtMostOnce => engine.publish_at_most_once(&topic, payload).map(|()| None),
            QoS::AtLeastOnce => {
                publish_at_least_once(engine, delivery.again, &topic, payload).map(Some)
            }
        };
        if topic.capacity() <= TOPIC_CAPACITY_MAX {
            TOPIC.set(topic);
        }
        match published {
            Ok(None) => self.unwritten.push(delivery.sequence),
            Ok(Some(packet_id)) => self.in_flight.push_back(Sent {
                packet_id,
                sequence: delivery.sequence,
                message_id: command.message_id().map(Box::from),
                judged: false,
            }),
            Err(SendError::NotOpen | SendError::WindowFull) => return false,
            Err(error) => self.give_up(delivery.sequence, recipient, &error),
        }
        true
    }

    /// Rejects a message that cannot be sent and never will be, so that it is found among the dead
    /// letters instead of coming round and round.
    fn give_up(&mut self, sequence: u64, recipient: Recipient<'_>, error: &dyn std::error::Error) {
        static LIMIT: RepeatLimit = RepeatLimit::new();
        if let Some(left_out) = LIMIT.pass(recipient.now) {
            let span = recipient.context.span(Some(recipient.identity));
            span.in_scope(|| {
                warn!(sequence, %error, left_out, "a message that cannot be delivered was rejected");
            });
        }
        self.settle(sequence, Settlement::Reject);
    }

    fn settle(&mut self, sequence: u64, settlement: Settlement) {
        if let Some(receiver) = &mut self.receiver
            && !receiver.settle(sequence, settlement)
        {
            debug!(
                conn_id = self.conn_id,
                sequence, "a message was settled that is no longer this connection's"
            );
        }
    }

    /// Completes the message that `packet_id` brought.
    pub(super) fn acknowledged(&mut self, packet_id: PacketId) {
        // Oldest first: most clients acknowledge in the order of arrival.
        let of_packet = |sent: &Sent| sent.packet_id == packet_id;
        let Some(index) = self.in_flight.iter().position(of_packet) else {
            return;
        };
        let Some(sent) = self.in_flight.remove(index) else {
            return;
        };
        if self.in_flight.is_empty() && self.in_flight.capacity() > IDLE_CAPACITY_MAX {
            self.in_flight = VecDeque::new();
        }
        if sent.judged {
            self.judged -= 1;
        } else {
            self.settle(sent.sequence, Settlement::Complete);
        }
    }

    /// Everything that was sent has been written to the socket, which completes what was sent at
    /// QoS 0. Returns whether more can be sent now.
    pub(super) fn written(&mut self) -> bool {
        let goes_on = std::mem::take(&mut self.backlogged) || !self.unwritten.is_empty();
        for sequence in std::mem::take(&mut self.unwritten) {
            self.settle(sequence, Settlement::Complete);
        }
        goes_on
    }

    /// Does to the oldest unacknowledged message of this name what the client says. Returns the
    /// number of the verdict, which [`verdicts_settled`](Self::verdicts_settled) reaches when it is
    /// safe; `None` when there is no such message.
    pub(super) fn judge(&mut self, settlement: Settlement, name: &DeliveryName<'_>) -> Option<u64> {
        let named = |sent: &&mut Sent| {
            !sent.judged
                && match name {
                    DeliveryName::MessageId(id) => sent.message_id.as_deref() == Some(&**id),
                    DeliveryName::PacketId(id) => sent.packet_id == *id,
                    DeliveryName::Nothing => false,
                }
        };
        let sent = self.in_flight.iter_mut().find(named)?;
        let receiver = self.receiver.as_mut()?;
        sent.judged = true;
        self.judged += 1;
        self.verdicts += 1;
        if receiver.settle_and_tell(sent.sequence, settlement) {
            self.unsettled.push_back((self.verdicts, sent.sequence));
        }
        Some(self.verdicts)
    }

    /// The last verdict that is safe together with all before it.
    pub(super) fn verdicts_settled(&mut self, cx: &mut Context<'_>) -> Result<u64, StoreError> {
        while !self.unsettled.is_empty()
            && let Some(receiver) = &mut self.receiver
            && let Poll::Ready((sequence, settled)) = receiver.poll_settled(cx)
        {
            // Those about one message are told in their order.
            let told = self.unsettled.iter().position(|(_, of)| *of == sequence);
            told.and_then(|index| self.unsettled.remove(index));
            match settled {
                Ok(()) => {}
                Err(SettleError::LockLost) => {
                    debug!(
                        conn_id = self.conn_id,
                        sequence, "a verdict came for a message that was gone"
                    );
                    count_unmatched();
                }
                Err(SettleError::Store(error)) => return Err(error),
            }
        }
        let first = self.unsettled.front();
        Ok(first.map_or(self.verdicts, |(number, _)| number - 1))
    }
}

impl Drop for Deliveries {
    fn drop(&mut self) {
        let Some(receiver) = self.receiver.take() else {
            return;
        };
        if !self.session_persists {
            return;
        }
        // Judged ones as well: the client has not seen the end of their packet ids. A message that
        // came again after it was abandoned is known by its newer one.
        let mut resume: Vec<(u16, u64)> = Vec::with_capacity(self.in_flight.len());
        for sent in &self.in_flight {
            resume.retain(|(_, sequence)| *sequence != sent.sequence);
            resume.push((sent.packet_id.get(), sent.sequence));
        }
        receiver.detach(resume);
    }
}

/// Counts a verdict on no message of the connection.
pub(super) fn count_unmatched() {
    counter!("fieldpost_c2d_unmatched_total").increment(1);
}

/// Under the packet id of an earlier connection if there is one.
fn publish_at_least_once(
    engine: &mut ServerConnection,
    again: Option<u16>,
    topic: &str,
    payload: &[u8],
) -> Result<PacketId, SendError> {
    if let Some(packet_id) = again.and_then(PacketId::new) {
        match engine.publish_again(packet_id, topic, payload) {
            Err(SendError::PacketIdInUse { .. }) => {}
            sent => return sent.map(|()| packet_id),
        }
    }
    engine.publish_at_least_once(topic, payload)
}
