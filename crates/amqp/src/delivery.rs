//! Deliveries that we send: writing transfers, holding back what the window does not allow, and
//! the state of unsettled ones.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use crate::error::{Misuse, SendError};
use crate::event::{Event, LinkId, Outcome};
use crate::frame::{self, FrameType};
use crate::performative::field::Field;
use crate::performative::{DeliveryState, DeliveryTag, Disposition, Role, SndSettleMode, Transfer};
use crate::session::Session;
use crate::shared::Shared;
use crate::value::{Encoder, overwrite};

/// A message to send.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// Name of the delivery on its link, at most 32 bytes; comes back with the outcome.
    pub tag: &'a [u8],
    /// Sent without waiting for an outcome. Where the link's snd-settle-mode leaves no choice, the
    /// mode wins.
    pub settled: bool,
    /// Format of the payload: 0 is an AMQP message.
    pub message_format: u32,
    /// The encoded message, in pieces that are written one after the other.
    pub payload: &'a [&'a [u8]],
}

/// Deliveries that wait for an outcome, by their number since the session began: the wire's 32
/// bits wrap, these do not.
#[derive(Default)]
pub(crate) struct Unsettled {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
}

struct Waiting {
    link: LinkId,
    tag: DeliveryTag,
    /// The peer has told an outcome and waits for our settlement.
    told: bool,
}

/// The rest of a message whose first frames filled the peer's window.
pub(crate) struct Held {
    pub(crate) link: LinkId,
    head: TransferHead,
    rest: Bytes,
}

#[derive(Clone, Copy)]
struct TransferHead {
    handle: u32,
    delivery_id: u32,
    tag: DeliveryTag,
    message_format: u32,
    settled: bool,
}

impl Session {
    pub(crate) fn sendable(&self, link: LinkId) -> u32 {
        match self.link(link) {
            Some(found)
                if found.is_attached()
                    && found.role == Role::Sender
                    && self.held.is_none()
                    && self.peer_window > 0 =>
            {
                found.credit
            }
            _ => 0,
        }
    }

    pub(crate) fn send(
        &mut self,
        id: LinkId,
        delivery: &Delivery<'_>,
        shared: &mut Shared,
    ) -> Result<u32, SendError> {
        let window_open = self.held.is_none() && self.peer_window > 0;
        let link = self.attached_link(id)?;
        if link.role != Role::Sender {
            return Err(Misuse::WrongRole.into());
        }
        if link.credit == 0 || !window_open {
            return Err(SendError::NoCredit);
        }
        let mut pieces = Pieces::new(delivery.payload);
        let limit = link.max_message_size;
        if limit != 0 && u64::try_from(pieces.left).map_or(true, |size| size > limit) {
            return Err(SendError::TooLarge(limit));
        }
        let tag = DeliveryTag::new(delivery.tag).ok_or(SendError::TagTooLong)?;
        link.credit -= 1;
        link.delivery_count = link.delivery_count.wrapping_add(1);
        let settled = match link.snd_settle_mode {
            SndSettleMode::Settled => true,
            SndSettleMode::Unsettled => false,
            SndSettleMode::Mixed => delivery.settled,
        };
        let delivery_id = self.unsettled.add(id, tag, settled);
        let head = TransferHead {
            handle: id.handle,
            delivery_id,
            tag,
            message_format: delivery.message_format,
            settled,
        };
        if !self.write_transfers(&head, &mut pieces, shared) {
            self.held = Some(Box::new(Held {
                link: id,
                head,
                rest: pieces.copy_rest(),
            }));
        }
        let link = self.attached_link(id)?;
        if link.drain && link.credit == 0 {
            // The credit is used up as the peer wanted; it waits to be told.
            self.write_flow(Some(id), shared);
            self.attached_link(id)?.drain = false;
        }
        Ok(delivery_id)
    }

    /// Goes on with a message that was held back, as far as the window allows.
    pub(crate) fn resume_held(&mut self, shared: &mut Shared) {
        let Some(mut held) = self.held.take() else {
            return;
        };
        let rest = [&held.rest[..]];
        let mut pieces = Pieces::new(&rest);
        if self.write_transfers(&held.head, &mut pieces, shared) {
            return;
        }
        let sent = held.rest.len() - pieces.left;
        held.rest = held.rest.slice(sent..);
        self.held = Some(held);
    }

    /// Settles a delivery of ours whose outcome the peer has told without settling it.
    pub(crate) fn settle_outgoing(
        &mut self,
        id: LinkId,
        delivery_id: u32,
        state: Option<DeliveryState>,
        shared: &mut Shared,
    ) -> Result<(), Misuse> {
        self.attached_link(id)?;
        if !self.unsettled.forget(id, delivery_id) {
            return Err(Misuse::UnknownDelivery);
        }
        let disposition = Disposition {
            role: Role::Sender,
            first: delivery_id,
            last: Some(delivery_id),
            settled: true,
            state,
            batchable: false,
        };
        disposition.write(self.id.channel, shared);
        Ok(())
    }

    /// Writes frames until the payload or the peer's window is used up; true when it is done.
    fn write_transfers(
        &mut self,
        head: &TransferHead,
        pieces: &mut Pieces<'_>,
        shared: &mut Shared,
    ) -> bool {
        loop {
            if self.peer_window == 0 {
                return false;
            }
            self.peer_window -= 1;
            self.next_outgoing_id = self.next_outgoing_id.wrapping_add(1);
            let limit = shared.peer_frame_size;
            head.write(self.id.channel, pieces, limit, &mut shared.output);
            if pieces.left == 0 {
                return true;
            }
        }
    }
}

impl TransferHead {
    /// Writes one frame with as much of the payload as fits. All eleven fields are written, and
    /// the same ones on every frame of a message: some peers count fields to find the payload,
    /// and settle by the id of the last frame.
    fn write(&self, channel: u16, pieces: &mut Pieces<'_>, limit: usize, output: &mut BytesMut) {
        let start = frame::put_header(output, FrameType::Amqp, channel);
        let mut more_at = 0;
        Encoder::new(output).described(Transfer::CODE, |e| {
            e.list(|e| {
                e.uint(self.handle);
                e.uint(self.delivery_id);
                self.tag.write(e);
                e.uint(self.message_format);
                e.bool(self.settled);
                more_at = e.position();
                e.bool(false); // more
                e.null(); // rcv-settle-mode
                e.null(); // state
                e.bool(false); // resume
                e.bool(false); // aborted
                e.bool(false); // batchable
            });
        });
        let room = limit.saturating_sub(output.len() - start).max(1);
        if pieces.left > room {
            overwrite(output, more_at, &[0x41]);
        }
        pieces.write(room, output);
        frame::finish(output, start);
    }
}

impl Disposition {
    /// Writes the frame, with less of an error where the peer's limit leaves no room for all.
    pub(crate) fn write(mut self, channel: u16, shared: &mut Shared) {
        if shared.frame_that_fits(channel, |e| self.encode(e)) {
            return;
        }
        if let Some(DeliveryState::Rejected(Some(error))) = &self.state {
            self.state = Some(DeliveryState::rejected(error.shortened()));
        }
        shared.frame(channel, |e| self.encode(e));
    }
}

impl Unsettled {
    /// Gives out the next delivery id, and remembers the delivery unless it is settled.
    fn add(&mut self, link: LinkId, tag: DeliveryTag, settled: bool) -> u32 {
        let id = self.next;
        self.next += 1;
        if !settled {
            let waiting = Waiting {
                link,
                tag,
                told: false,
            };
            self.waiting.insert(id, waiting);
        }
        low(id)
    }

    pub(crate) fn forget_link(&mut self, link: LinkId) {
        self.waiting.retain(|_, waiting| waiting.link != link);
    }

    fn forget(&mut self, link: LinkId, delivery_id: u32) -> bool {
        let Some(id) = self.number(delivery_id) else {
            return false;
        };
        match self.waiting.get(&id) {
            Some(waiting) if waiting.link == link => self.waiting.remove(&id).is_some(),
            _ => false,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The peer, as receiver, tells the state of a range. Ids that are not waiting (never sent,
    /// sent settled, settled before) are passed over: late dispositions are normal. So is a state
    /// that is no outcome, while the delivery is not settled.
    pub(crate) fn on_disposition(&mut self, disposition: Disposition, shared: &mut Shared) {
        let span = disposition
            .last
            .unwrap_or(disposition.first)
            .wrapping_sub(disposition.first);
        let Some(first) = self.number(disposition.first) else {
            return;
        };
        if span > u32::MAX / 2 {
            return;
        }
        let range = first..=first + u64::from(span);
        let mut emit = |id: u64, waiting: &Waiting| {
            shared.emit(Event::Outcome(Outcome {
                link: waiting.link,
                delivery_id: low(id),
                tag: waiting.tag,
                state: disposition.state.clone(),
                settled: disposition.settled,
            }));
        };
        if disposition.settled {
            while let Some((&id, _)) = self.waiting.range(range.clone()).next() {
                if let Some(waiting) = self.waiting.remove(&id) {
                    emit(id, &waiting);
                }
            }
        } else if !matches!(disposition.state, None | Some(DeliveryState::Received(_))) {
            for (id, waiting) in self.waiting.range_mut(range) {
                // Once each: a peer that repeats itself cannot multiply events.
                if !std::mem::replace(&mut waiting.told, true) {
                    emit(*id, waiting);
                }
            }
        }
    }

    /// The number since the session began of an id on the wire, if it was given out.
    fn number(&self, delivery_id: u32) -> Option<u64> {
        let back = low(self.next).wrapping_sub(delivery_id);
        if back == 0 || back > u32::MAX / 2 {
            return None;
        }
        self.next.checked_sub(u64::from(back))
    }
}

/// The low half, as it goes over the wire.
fn low(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).expect("masked to 32 bits")
}

/// A payload in pieces, and how much of it was written.
struct Pieces<'a> {
    pieces: &'a [&'a [u8]],
    /// Bytes of the first piece that were written.
    offset: usize,
    left: usize,
}

impl<'a> Pieces<'a> {
    fn new(pieces: &'a [&'a [u8]]) -> Self {
        Self {
            pieces,
            offset: 0,
            left: pieces.iter().map(|piece| piece.len()).sum(),
        }
    }

    fn write(&mut self, mut room: usize, output: &mut BytesMut) {
        while let Some((first, others)) = self.pieces.split_first() {
            let rest = first.get(self.offset..).unwrap_or_default();
            if rest.len() > room {
                output.extend_from_slice(rest.get(..room).unwrap_or_default());
                self.offset += room;
                self.left -= room;
                return;
            }
            output.extend_from_slice(rest);
            room -= rest.len();
            self.left -= rest.len();
            self.offset = 0;
            self.pieces = others;
        }
    }

    fn copy_rest(mut self) -> Bytes {
        let mut rest = BytesMut::with_capacity(self.left);
        self.write(self.left, &mut rest);
        rest.freeze()
    }
}
