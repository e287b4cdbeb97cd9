//! What the caller does with sessions, links and deliveries.

use std::ops::RangeInclusive;

use super::{Connection, Phase};
use crate::delivery::Delivery;
use crate::error::{Error, Misuse, SendError};
use crate::event::{LinkId, SessionId};
use crate::link::LinkReply;
use crate::performative::{Attach, DeliveryState};
use crate::session::{Session, SessionState};
use crate::shared::Shared;

impl Connection {
    /// Begins a session. [`Event::SessionBegun`](crate::Event::SessionBegun) follows.
    ///
    /// # Errors
    /// [`Misuse`] when the connection is not open or the peer allows no further session.
    pub fn begin(&mut self) -> Result<SessionId, Misuse> {
        if !self.is_open() {
            return Err(Misuse::NotOpen);
        }
        let id = self.add_session().ok_or(Misuse::LimitReached)?;
        let session = self
            .sessions
            .get(usize::from(id.channel))
            .and_then(Option::as_deref)
            .ok_or(Misuse::Gone)?;
        session.write_begin(&mut self.shared);
        Ok(id)
    }

    /// Ends a session with all its links. [`Event::SessionEnded`](crate::Event::SessionEnded)
    /// follows when the peer has confirmed.
    ///
    /// # Errors
    /// [`Misuse`] when the session is gone.
    pub fn end_session(&mut self, session: SessionId, error: Option<Error>) -> Result<(), Misuse> {
        let (session, shared) = self.session(session)?;
        session.end(error, false, shared);
        Ok(())
    }

    /// Asks for a link; the handle is filled in. [`Event::Attached`](crate::Event::Attached)
    /// follows, also when the peer refuses.
    ///
    /// # Errors
    /// [`Misuse`] when the session is gone or has not begun, there are too many links, or the
    /// peer's frames are too small for what is asked.
    pub fn attach(&mut self, session: SessionId, attach: Attach) -> Result<LinkId, Misuse> {
        let (session, shared) = self.begun(session)?;
        session.attach(attach, shared)
    }

    /// Accepts a link that the peer asked for. To accept and then end a link with an error, as
    /// some servers refuse, follow with [`detach`](Self::detach).
    ///
    /// # Errors
    /// [`Misuse`] when the link is gone or was answered before, or when the peer's frames are too
    /// small for the answer. The link is refused then, and no further event comes for it.
    pub fn accept_link(&mut self, link: LinkId, reply: LinkReply) -> Result<(), Misuse> {
        let (session, shared) = self.begun(link.session)?;
        session.accept_link(link, reply, shared)
    }

    /// Refuses a link that the peer asked for: answers with null source and target, then detaches
    /// with the error. No further event comes for the link.
    ///
    /// # Errors
    /// [`Misuse`] when the link is gone.
    pub fn refuse_link(&mut self, link: LinkId, error: Error) -> Result<(), Misuse> {
        let (session, shared) = self.begun(link.session)?;
        session.detach(link, Some(error), true, shared)
    }

    /// Detaches a link for good. Its deliveries are forgotten at once;
    /// [`Event::Detached`](crate::Event::Detached) follows when the peer has confirmed.
    ///
    /// # Errors
    /// [`Misuse`] when the link is gone.
    pub fn detach(&mut self, link: LinkId, error: Option<Error>) -> Result<(), Misuse> {
        let (session, shared) = self.begun(link.session)?;
        session.detach(link, error, false, shared)
    }

    /// How many messages the peer may send on a link now.
    #[must_use]
    pub fn credit(&self, link: LinkId) -> u32 {
        self.session_ref(link.session)
            .and_then(|session| session.link(link))
            .map_or(0, |link| link.credit)
    }

    /// Sets how many messages the peer may send from now on, replacing what was granted before.
    /// Lowering it is safe: messages that are on the way are still taken.
    ///
    /// # Errors
    /// [`Misuse`] when the link is gone, not attached, or sends.
    pub fn set_credit(&mut self, link: LinkId, credit: u32) -> Result<(), Misuse> {
        let (session, shared) = self.begun(link.session)?;
        session.set_credit(link, credit, false, shared)
    }

    /// As [`set_credit`](Self::set_credit), and grants the same again by itself whenever half of
    /// it is used up.
    ///
    /// # Errors
    /// As [`set_credit`](Self::set_credit).
    pub fn set_auto_credit(&mut self, link: LinkId, credit: u32) -> Result<(), Misuse> {
        let (session, shared) = self.begun(link.session)?;
        session.set_credit(link, credit, true, shared)
    }

    /// Asks the peer to use up its credit now. [`Event::Drained`](crate::Event::Drained) follows.
    ///
    /// # Errors
    /// As [`set_credit`](Self::set_credit).
    pub fn drain(&mut self, link: LinkId) -> Result<(), Misuse> {
        let (session, shared) = self.begun(link.session)?;
        session.request_drain(link, shared)
    }

    /// Settles messages of one link with one outcome. Ids may be late and in any order; they are
    /// those of [`Message`](crate::Message), first and last included, and all ids between them
    /// must be of this link, or settled.
    ///
    /// # Errors
    /// [`Misuse`] when the link is gone, not attached, or sends.
    pub fn settle_incoming(
        &mut self,
        link: LinkId,
        delivery_ids: RangeInclusive<u32>,
        outcome: DeliveryState,
    ) -> Result<(), Misuse> {
        let (session, shared) = self.begun(link.session)?;
        let (first, last) = delivery_ids.into_inner();
        session.settle_incoming(link, first, last, outcome, shared)
    }

    /// How many messages can be sent on a link now: its credit, or 0 while the session's window
    /// is closed.
    #[must_use]
    pub fn sendable(&self, link: LinkId) -> u32 {
        self.session_ref(link.session)
            .map_or(0, |session| session.sendable(link))
    }

    /// Sends a message and returns its delivery id. Nothing is kept of a settled one. What the
    /// peer's window does not allow of a message in several frames is held back, and nothing more
    /// is [`sendable`](Self::sendable) in the session until it has gone.
    ///
    /// # Errors
    /// [`SendError`]; nothing was written then.
    pub fn send(&mut self, link: LinkId, delivery: &Delivery<'_>) -> Result<u32, SendError> {
        let (session, shared) = self.begun(link.session)?;
        session.send(link, delivery, shared)
    }

    /// Settles a delivery of ours whose [`Outcome`](crate::Outcome) came unsettled.
    ///
    /// # Errors
    /// [`Misuse`] when the link is gone or the delivery is not waiting.
    pub fn settle_outgoing(
        &mut self,
        link: LinkId,
        delivery_id: u32,
        state: Option<DeliveryState>,
    ) -> Result<(), Misuse> {
        let (session, shared) = self.begun(link.session)?;
        session.settle_outgoing(link, delivery_id, state, shared)
    }

    /// How many of our deliveries in a session wait for an outcome or for settlement.
    #[must_use]
    pub fn unsettled(&self, session: SessionId) -> usize {
        self.session_ref(session).map_or(0, Session::unsettled_len)
    }

    /// Answers [`Event::Drain`](crate::Event::Drain) once everything that there was is sent: the
    /// rest of the credit is used up and the peer is told. Where messages use all of it up, that
    /// happens by itself.
    ///
    /// # Errors
    /// [`Misuse`] when the link is gone or no drain is asked for any longer.
    pub fn drained(&mut self, link: LinkId) -> Result<(), Misuse> {
        let (session, shared) = self.begun(link.session)?;
        session.drained(link, shared)
    }

    fn begun(&mut self, id: SessionId) -> Result<(&mut Session, &mut Shared), Misuse> {
        let (session, shared) = self.session(id)?;
        match session.state {
            SessionState::Begun => Ok((session, shared)),
            SessionState::Beginning => Err(Misuse::WrongState),
            SessionState::Ending { .. } => Err(Misuse::Gone),
        }
    }

    fn session(&mut self, id: SessionId) -> Result<(&mut Session, &mut Shared), Misuse> {
        if !matches!(self.phase, Phase::Open) {
            return Err(Misuse::NotOpen);
        }
        match self.sessions.get_mut(usize::from(id.channel)) {
            Some(Some(session))
                if session.id == id && !matches!(session.state, SessionState::Ending { .. }) =>
            {
                Ok((session, &mut self.shared))
            }
            _ => Err(Misuse::Gone),
        }
    }

    fn session_ref(&self, id: SessionId) -> Option<&Session> {
        let session = self.sessions.get(usize::from(id.channel))?.as_deref()?;
        (session.id == id).then_some(session)
    }
}
