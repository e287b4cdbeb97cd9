//! One session: windows, handles, and what its frames mean.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::connection::input::Payload;
use crate::delivery::{Held, Unsettled};
use crate::error::{Error, Misuse, condition};
use crate::event::{Event, LinkId, SessionId};
use crate::link::{Link, LinkReply, LinkState};
use crate::performative::{
    Attach, Begin, DeliveryState, Detach, Disposition, End, Flow, Role, Transfer,
};
use crate::shared::Shared;

/// Our first transfer id.
const INITIAL_OUTGOING_ID: u32 = 1;

/// How many links beyond the limit may be waiting for the peer to confirm their refusal.
const REFUSALS_MAX: usize = 8;

/// What a frame that refuses a link takes besides the link's name, generously.
const REFUSAL_BYTES: usize = 128;

pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) remote_channel: Option<u16>,
    pub(crate) state: SessionState,
    next_incoming_id: u32,
    /// Transfer frames that the peer may still send.
    incoming_window: u32,
    pub(crate) next_outgoing_id: u32,
    /// Transfer frames that we may still send.
    pub(crate) peer_window: u32,
    peer_handle_max: u32,
    /// By our handle.
    links: Vec<Option<Box<Link>>>,
    /// Links that we asked for and the peer has not answered.
    asked: usize,
    /// From the peer's handles to ours.
    handles: BTreeMap<u32, u32>,
    pub(crate) unsettled: Unsettled,
    pub(crate) held: Option<Box<Held>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionState {
    /// We began, the peer has not answered.
    Beginning,
    Begun,
    /// We ended, the peer has not answered.
    Ending {
        /// The caller knows already.
        announced: bool,
    },
}

/// The peer broke a rule, and this is what ends for it.
pub(crate) enum Violation {
    Session(Error),
    Connection(Error),
}

fn session_error(condition: &'static str, description: &str) -> Violation {
    Violation::Session(Error::new(condition, description))
}

impl Session {
    pub(crate) fn new(id: SessionId, shared: &Shared) -> Self {
        Self {
            id,
            remote_channel: None,
            state: SessionState::Beginning,
            next_incoming_id: 0,
            incoming_window: shared.config.incoming_window,
            next_outgoing_id: INITIAL_OUTGOING_ID,
            peer_window: 0,
            peer_handle_max: u32::MAX,
            links: Vec::new(),
            asked: 0,
            handles: BTreeMap::new(),
            unsettled: Unsettled::default(),
            held: None,
        }
    }

    pub(crate) fn write_begin(&self, shared: &mut Shared) {
        let begin = Begin {
            remote_channel: self.remote_channel,
            next_outgoing_id: self.next_outgoing_id,
            incoming_window: shared.config.incoming_window,
            outgoing_window: shared.config.outgoing_window,
            handle_max: shared.config.handle_max,
            ..Begin::default()
        };
        shared.frame(self.id.channel, |e| begin.encode(e));
    }

    pub(crate) fn on_begin(&mut self, remote_channel: u16, begin: &Begin) {
        self.remote_channel = Some(remote_channel);
        self.next_incoming_id = begin.next_outgoing_id;
        self.peer_window = begin.incoming_window;
        self.peer_handle_max = begin.handle_max;
    }

    /// Ends the session; the peer's answer is awaited.
    pub(crate) fn end(&mut self, error: Option<Error>, announced: bool, shared: &mut Shared) {
        shared.error_frame(self.id.channel, error.as_ref(), |e, error| {
            let error = error.cloned();
            End { error }.encode(e);
        });
        self.clear(shared);
        self.state = SessionState::Ending { announced };
    }

    pub(crate) fn link(&self, id: LinkId) -> Option<&Link> {
        let link = self.links.get(index(id.handle))?.as_deref()?;
        (link.id == id).then_some(link)
    }

    fn link_mut(&mut self, id: LinkId) -> Result<&mut Link, Misuse> {
        match self.links.get_mut(index(id.handle)) {
            Some(Some(link)) if link.id == id => Ok(link),
            _ => Err(Misuse::Gone),
        }
    }

    /// A link that messages can go over.
    pub(crate) fn attached_link(&mut self, id: LinkId) -> Result<&mut Link, Misuse> {
        let link = self.link_mut(id)?;
        match link.state {
            LinkState::Attached => Ok(link),
            LinkState::Detaching { .. } => Err(Misuse::Gone),
            _ => Err(Misuse::WrongState),
        }
    }

    fn receiver(&mut self, id: LinkId) -> Result<&mut Link, Misuse> {
        let link = self.attached_link(id)?;
        match link.role {
            Role::Receiver => Ok(link),
            Role::Sender => Err(Misuse::WrongRole),
        }
    }

    pub(crate) fn unsettled_len(&self) -> usize {
        self.unsettled.len()
    }

    /// Forgets everything; the connection's counts no longer include this session.
    pub(crate) fn clear(&mut self, shared: &mut Shared) {
        for link in self.links.iter_mut().flatten() {
            link.drop_assembly(shared);
            link.state.release(shared);
            shared.links = shared.links.saturating_sub(1);
        }
        self.links = Vec::new();
        self.asked = 0;
        self.handles = BTreeMap::new();
        self.unsettled = Unsettled::default();
        self.held = None;
    }

    // What the caller asks for.

    pub(crate) fn attach(
        &mut self,
        mut attach: Attach,
        shared: &mut Shared,
    ) -> Result<LinkId, Misuse> {
        if shared.links >= shared.config.limits.links {
            return Err(Misuse::LimitReached);
        }
        let name = attach.name.clone().into_boxed_str();
        let link = self
            .add_link(attach.role, LinkState::Attaching(name), shared)
            .ok_or(Misuse::LimitReached)?;
        link.snd_settle_mode = attach.snd_settle_mode;
        match attach.role {
            Role::Sender => attach.initial_delivery_count = Some(0),
            Role::Receiver => link.max_message_size = attach.max_message_size.unwrap_or(0),
        }
        let id = link.id;
        attach.handle = id.handle;
        if !shared.frame_that_fits(self.id.channel, |e| attach.encode(e)) {
            self.take_link(id, shared);
            return Err(Misuse::FrameTooSmall);
        }
        self.asked += 1;
        Ok(id)
    }

    pub(crate) fn accept_link(
        &mut self,
        id: LinkId,
        reply: LinkReply,
        shared: &mut Shared,
    ) -> Result<(), Misuse> {
        let link = self.link_mut(id)?;
        let LinkState::Asked { attach: asked, .. } = &link.state else {
            return Err(match link.state {
                LinkState::Detaching { .. } => Misuse::Gone,
                _ => Misuse::WrongState,
            });
        };
        let asked = Arc::clone(asked);
        link.snd_settle_mode = reply.snd_settle_mode.unwrap_or(asked.snd_settle_mode);
        if link.role == Role::Receiver {
            link.max_message_size = reply.max_message_size;
        }
        if !link.write_attach(&asked, Some(reply), shared) {
            let error = Error::new(
                condition::FRAME_SIZE_TOO_SMALL,
                "the answer to the attach does not fit the peer's max-frame-size",
            );
            self.detach(id, Some(error), true, shared)?;
            return Err(Misuse::FrameTooSmall);
        }
        link.enter(LinkState::Attached, shared);
        // Credit may have come before the answer.
        if link.role == Role::Sender {
            let (credit, drain) = (link.credit, link.drain);
            if drain {
                self.on_drain_request(id, shared);
            } else if credit > 0 {
                shared.emit(Event::Credit(id));
            }
        }
        Ok(())
    }

    /// Detaches a link, refuses one that the peer asks for, or gives up one that we asked for.
    pub(crate) fn detach(
        &mut self,
        id: LinkId,
        error: Option<Error>,
        announced: bool,
        shared: &mut Shared,
    ) -> Result<(), Misuse> {
        let link = self.link_mut(id)?;
        if link.is_detaching() {
            return Err(Misuse::Gone);
        }
        link.write_detach(true, error, shared);
        link.begin_detaching(announced, shared);
        self.forget_deliveries(id);
        Ok(())
    }

    pub(crate) fn set_credit(
        &mut self,
        id: LinkId,
        credit: u32,
        auto: bool,
        shared: &mut Shared,
    ) -> Result<(), Misuse> {
        let link = self.receiver(id)?;
        link.auto_credit = if auto { credit } else { 0 };
        link.grant(credit);
        link.drain = false;
        self.write_flow(Some(id), shared);
        Ok(())
    }

    pub(crate) fn request_drain(&mut self, id: LinkId, shared: &mut Shared) -> Result<(), Misuse> {
        let link = self.receiver(id)?;
        link.auto_credit = 0;
        link.drain = true;
        self.write_flow(Some(id), shared);
        Ok(())
    }

    pub(crate) fn drained(&mut self, id: LinkId, shared: &mut Shared) -> Result<(), Misuse> {
        let link = self.attached_link(id)?;
        if link.role != Role::Sender {
            return Err(Misuse::WrongRole);
        }
        if !link.drain {
            return Err(Misuse::WrongState);
        }
        link.delivery_count = link.delivery_count.wrapping_add(link.credit);
        link.credit = 0;
        self.write_flow(Some(id), shared);
        self.link_mut(id)?.drain = false;
        Ok(())
    }

    pub(crate) fn settle_incoming(
        &mut self,
        id: LinkId,
        first: u32,
        last: u32,
        state: DeliveryState,
        shared: &mut Shared,
    ) -> Result<(), Misuse> {
        self.receiver(id)?;
        let disposition = Disposition {
            role: Role::Receiver,
            first,
            last: Some(last),
            settled: true,
            state: Some(state),
            batchable: false,
        };
        disposition.write(self.id.channel, shared);
        Ok(())
    }

    // What the peer sends.

    /// Takes an attach that took so many bytes on the wire.
    pub(crate) fn on_attach(
        &mut self,
        attach: Attach,
        bytes: usize,
        shared: &mut Shared,
    ) -> Result<(), Violation> {
        if attach.handle > shared.config.handle_max {
            return Err(Violation::Connection(Error::new(
                condition::FRAMING_ERROR,
                "the handle is over handle-max",
            )));
        }
        if self.handles.contains_key(&attach.handle) {
            return Err(session_error(
                condition::HANDLE_IN_USE,
                "the handle is attached already",
            ));
        }
        if self.answer_to_ours(&attach, shared) {
            return Ok(());
        }
        if attach.name.len() + REFUSAL_BYTES > shared.peer_frame_size {
            return Err(session_error(
                condition::FRAME_SIZE_TOO_SMALL,
                "the link's name does not fit the peer's max-frame-size",
            ));
        }
        if shared.links >= shared.links_max() + REFUSALS_MAX {
            return Err(session_error(
                condition::RESOURCE_LIMIT_EXCEEDED,
                "too many links",
            ));
        }
        let refusal = if shared.links >= shared.links_max() {
            Some(Error::new(
                condition::RESOURCE_LIMIT_EXCEEDED,
                "too many links",
            ))
        } else if attach.target.as_ref().is_some_and(|t| t.coordinator) {
            Some(Error::new(
                condition::NOT_IMPLEMENTED,
                "there are no transactions",
            ))
        } else if shared.asked_bytes + bytes > shared.asked_bytes_max() {
            Some(Error::new(
                condition::RESOURCE_LIMIT_EXCEEDED,
                "too much waits to be attached",
            ))
        } else {
            None
        };
        let attach = Arc::new(attach);
        let remote_handle = attach.handle;
        let state = LinkState::Asked {
            attach: Arc::clone(&attach),
            bytes,
        };
        let Some(link) = self.add_link(attach.role.opposite(), state, shared) else {
            return Err(session_error(
                condition::RESOURCE_LIMIT_EXCEEDED,
                "the peer's handle-max allows no further link",
            ));
        };
        link.remote_handle = Some(remote_handle);
        link.take_peer_values(&attach);
        let id = link.id;
        shared.asked_bytes += bytes;
        self.handles.insert(remote_handle, id.handle);
        match refusal {
            None => shared.emit(Event::Attach { link: id, attach }),
            // The caller never hears of this link.
            some => drop(self.detach(id, some, true, shared)),
        }
        Ok(())
    }

    /// Takes an attach as the answer to one of ours, if it is one.
    fn answer_to_ours(&mut self, attach: &Attach, shared: &mut Shared) -> bool {
        if self.asked == 0 {
            return false;
        }
        let mut links = self.links.iter_mut().flatten();
        let Some(link) = links.find(|link| link.awaits(attach)) else {
            return false;
        };
        self.asked -= 1;
        link.remote_handle = Some(attach.handle);
        link.take_peer_values(attach);
        self.handles.insert(attach.handle, link.id.handle);
        match &mut link.state {
            LinkState::Detaching { name, .. } => *name = None,
            state => {
                *state = LinkState::Attached;
                let (id, attach) = (link.id, Arc::new(attach.clone()));
                shared.emit(Event::Attached { link: id, attach });
            }
        }
        true
    }

    pub(crate) fn on_detach(
        &mut self,
        detach: Detach,
        shared: &mut Shared,
    ) -> Result<(), Violation> {
        let id = self.by_remote(detach.handle)?;
        self.handles.remove(&detach.handle);
        let Some(mut link) = self.take_link(id, shared) else {
            return Ok(());
        };
        link.drop_assembly(shared);
        self.forget_deliveries(id);
        let announced = match link.state {
            LinkState::Detaching { announced, .. } => announced,
            _ => {
                link.write_detach(detach.closed, None, shared);
                false
            }
        };
        if !announced {
            shared.emit(Event::Detached {
                link: id,
                closed: detach.closed,
                error: detach.error.map(Arc::new),
            });
        }
        Ok(())
    }

    pub(crate) fn on_flow(&mut self, flow: &Flow, shared: &mut Shared) -> Result<(), Violation> {
        let was_closed = self.peer_window == 0;
        self.next_incoming_id = flow.next_outgoing_id;
        let seen = flow.next_incoming_id.unwrap_or(INITIAL_OUTGOING_ID);
        let under_way = ahead(self.next_outgoing_id, seen);
        self.peer_window = flow.incoming_window.saturating_sub(under_way);
        if was_closed && self.peer_window > 0 {
            self.resume_held(shared);
            if self.held.is_none() && self.peer_window > 0 {
                shared.emit(Event::WindowOpen(self.id));
            }
        }
        let Some(handle) = flow.handle else {
            if flow.echo {
                self.write_flow(None, shared);
            }
            return Ok(());
        };
        let id = self.by_remote(handle)?;
        let Ok(link) = self.link_mut(id) else {
            return Ok(());
        };
        if link.is_detaching() {
            return Ok(());
        }
        match link.role {
            Role::Sender => {
                let before = link.credit;
                // Null means no change; some clients send it between real ones.
                if let Some(credit) = flow.link_credit {
                    let under_way = ahead(link.delivery_count, flow.delivery_count.unwrap_or(0));
                    link.credit = credit.saturating_sub(under_way);
                }
                link.drain = flow.drain;
                let (now, attached) = (link.credit, link.is_attached());
                if attached && flow.drain {
                    self.on_drain_request(id, shared);
                } else if attached && now > before {
                    shared.emit(Event::Credit(id));
                }
            }
            Role::Receiver => {
                // The credit in here is meaningless: the peer is the one who sends.
                let used = flow
                    .delivery_count
                    .map_or(0, |count| ahead(count, link.delivery_count));
                link.delivery_count = link.delivery_count.wrapping_add(used);
                link.credit = link.credit.saturating_sub(used);
                if link.drain && link.credit == 0 {
                    link.drain = false;
                    shared.emit(Event::Drained(id));
                }
            }
        }
        if flow.echo {
            self.write_flow(Some(id), shared);
        }
        Ok(())
    }

    /// The peer wants its credit used up: with none left that is answered at once.
    fn on_drain_request(&mut self, id: LinkId, shared: &mut Shared) {
        let Ok(link) = self.link_mut(id) else {
            return;
        };
        if link.credit > 0 {
            shared.emit(Event::Drain(id));
        } else {
            self.write_flow(Some(id), shared);
            if let Ok(link) = self.link_mut(id) {
                link.drain = false;
            }
        }
    }

    pub(crate) fn on_disposition(&mut self, disposition: Disposition, shared: &mut Shared) {
        // As sender, the peer only confirms what we have settled already.
        if disposition.role == Role::Receiver {
            self.unsettled.on_disposition(disposition, shared);
        }
    }

    pub(crate) fn on_transfer(
        &mut self,
        transfer: &Transfer,
        payload: Payload<'_, '_>,
        shared: &mut Shared,
    ) -> Result<(), Violation> {
        let Some(left) = self.incoming_window.checked_sub(1) else {
            return Err(session_error(
                condition::WINDOW_VIOLATION,
                "the incoming window is used up",
            ));
        };
        self.incoming_window = left;
        self.next_incoming_id = self.next_incoming_id.wrapping_add(1);
        let id = self.by_remote(transfer.handle)?;
        if let Ok(link) = self.link_mut(id) {
            // Transfers cross our detach on the wire; they are dropped.
            if !link.is_detaching() {
                if link.role == Role::Sender {
                    return Err(session_error(
                        condition::NOT_ALLOWED,
                        "a transfer came on a link that receives",
                    ));
                }
                if let Err(error) = link.on_transfer(transfer, payload, shared) {
                    self.fail_link(id, error, shared);
                }
            }
        }
        self.replenish(id, shared);
        Ok(())
    }

    /// Opens the session's window and, where that is automatic, the link's credit again.
    fn replenish(&mut self, id: LinkId, shared: &mut Shared) {
        let mut wanted = false;
        if let Ok(link) = self.attached_link(id)
            && link.auto_credit > 0
            && link.credit <= link.auto_credit / 2
        {
            link.grant(link.auto_credit);
            wanted = true;
        }
        if wanted {
            self.write_flow(Some(id), shared);
        } else if self.incoming_window <= shared.config.incoming_window / 2 {
            self.write_flow(None, shared);
        }
    }

    /// Detaches a link on which the peer broke the rules.
    fn fail_link(&mut self, id: LinkId, error: Error, shared: &mut Shared) {
        if self.detach(id, Some(error.clone()), true, shared).is_ok() {
            shared.emit(Event::Detached {
                link: id,
                closed: true,
                error: Some(Arc::new(error)),
            });
        }
    }

    fn forget_deliveries(&mut self, id: LinkId) {
        self.unsettled.forget_link(id);
        if self.held.as_ref().is_some_and(|held| held.link == id) {
            self.held = None;
        }
    }

    fn by_remote(&self, handle: u32) -> Result<LinkId, Violation> {
        self.handles
            .get(&handle)
            .and_then(|ours| self.links.get(index(*ours))?.as_ref())
            .map(|link| link.id)
            .ok_or_else(|| {
                session_error(condition::UNATTACHED_HANDLE, "the handle is not attached")
            })
    }

    /// Makes a link with the lowest free handle; nothing when the peer allows none.
    fn add_link(&mut self, role: Role, state: LinkState, shared: &mut Shared) -> Option<&mut Link> {
        let free = self.links.iter().position(Option::is_none);
        let at = free.unwrap_or(self.links.len());
        let handle = u32::try_from(at).ok()?;
        if handle > self.peer_handle_max {
            return None;
        }
        if free.is_none() {
            self.links.push(None);
        }
        let id = LinkId {
            session: self.id,
            handle,
            serial: shared.serial(),
        };
        shared.links += 1;
        let link = Link::new(id, role, state);
        let slot = self.links.get_mut(at)?;
        Some(slot.insert(Box::new(link)))
    }

    fn take_link(&mut self, id: LinkId, shared: &mut Shared) -> Option<Box<Link>> {
        let link = self.links.get_mut(index(id.handle))?.take()?;
        while matches!(self.links.last(), Some(None)) {
            self.links.pop();
        }
        link.state.release(shared);
        shared.links = shared.links.saturating_sub(1);
        Some(link)
    }

    /// Writes the session's state, and a link's. That opens the session's window again.
    pub(crate) fn write_flow(&mut self, id: Option<LinkId>, shared: &mut Shared) {
        self.incoming_window = shared.config.incoming_window;
        let mut flow = Flow {
            next_incoming_id: self.remote_channel.map(|_| self.next_incoming_id),
            incoming_window: self.incoming_window,
            next_outgoing_id: self.next_outgoing_id,
            outgoing_window: shared.config.outgoing_window,
            ..Flow::default()
        };
        if let Some(link) = id.and_then(|id| self.link(id)) {
            flow.handle = Some(link.id.handle);
            flow.delivery_count = Some(link.delivery_count);
            flow.link_credit = Some(link.credit);
            flow.available = Some(0);
            flow.drain = link.drain;
        }
        shared.frame(self.id.channel, |e| flow.encode(e));
    }
}

/// How far `a` is ahead of `b`, counted modulo 2^32; 0 when it is behind.
fn ahead(a: u32, b: u32) -> u32 {
    let distance = a.wrapping_sub(b);
    if distance > u32::MAX / 2 { 0 } else { distance }
}

fn index(handle: u32) -> usize {
    usize::try_from(handle).unwrap_or(usize::MAX)
}
