//! Frames of an open connection: which session they belong to, and what ends when they break
//! the rules.

use std::sync::Arc;
use std::time::Duration;

use super::input::{Input, Payload};
use super::{Connection, Phase};
use crate::error::{DecodeError, Error, Fatal, condition};
use crate::event::{Event, SessionId};
use crate::performative::{
    Attach, Begin, Close, Detach, Disposition, End, Flow, Open, Transfer, type_code,
};
use crate::session::{Session, SessionState, Violation};
use crate::value::{Decoder, ListRef};

/// How many sessions beyond the limit may be waiting for the peer to confirm their refusal.
const REFUSALS_MAX: usize = 8;

impl Connection {
    /// A frame whose body is the bytes `from..to` of the input.
    pub(super) fn on_frame(
        &mut self,
        channel: u16,
        input: &mut Input<'_>,
        from: usize,
        to: usize,
        now: Duration,
    ) -> Result<(), Fatal> {
        let mut decoder = Decoder::new(input.bytes().get(from..to).unwrap_or_default());
        let (code, list) = match performative(&mut decoder) {
            Ok(parts) => parts,
            Err(error) => return Err(self.fail_decode(error)),
        };
        let payload = Payload::new(input, to - decoder.remaining().len(), to);
        match self.phase {
            Phase::ServerOpen | Phase::ClientOpen => {
                if code != Open::CODE {
                    return Err(self.fail(Error::new(
                        condition::NOT_ALLOWED,
                        "the first frame must be open",
                    )));
                }
                let open = Open::decode(list).map_err(|error| self.fail_decode(error))?;
                self.on_open(open, now);
                Ok(())
            }
            Phase::Open => self.on_performative(channel, code, list, payload),
            Phase::CloseSent if code == Close::CODE => {
                let error = Close::decode(list).ok().and_then(|close| close.error);
                self.phase = Phase::Closed;
                self.shared.emit(Event::Closed(error.map(Arc::new)));
                Ok(())
            }
            // Frames that crossed our close on the wire.
            _ => Ok(()),
        }
    }

    fn on_performative(
        &mut self,
        channel: u16,
        code: u64,
        list: ListRef<'_>,
        payload: Payload<'_, '_>,
    ) -> Result<(), Fatal> {
        let result = match code {
            Begin::CODE => match Begin::decode(list) {
                Ok(begin) => return self.on_begin(channel, &begin),
                Err(error) => Err(error),
            },
            End::CODE => match End::decode(list) {
                Ok(end) => return self.on_end(channel, end),
                Err(error) => Err(error),
            },
            Close::CODE => match Close::decode(list) {
                Ok(close) => {
                    self.finish(None);
                    let error = close.error.map(Arc::new);
                    self.shared.emit(Event::Closed(error));
                    return Ok(());
                }
                Err(error) => Err(error),
            },
            Open::CODE => {
                return Err(self.fail(Error::new(
                    condition::NOT_ALLOWED,
                    "the connection is open already",
                )));
            }
            _ => self.on_session_frame(channel, code, list, payload),
        };
        let violation = match result {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(violation)) => violation,
            Err(error) => return Err(self.fail_decode(error)),
        };
        match violation {
            Violation::Connection(error) => Err(self.fail(error)),
            Violation::Session(error) => {
                self.fail_session(channel, error);
                Ok(())
            }
        }
    }

    fn on_session_frame(
        &mut self,
        channel: u16,
        code: u64,
        list: ListRef<'_>,
        payload: Payload<'_, '_>,
    ) -> Result<Result<(), Violation>, DecodeError> {
        let session = self
            .channels
            .get(&channel)
            .and_then(|ours| self.sessions.get_mut(usize::from(*ours)))
            .and_then(Option::as_deref_mut);
        let Some(session) = session else {
            if code == Detach::CODE {
                // The Python Event Hubs client detaches links after it has ended their session.
                return Ok(Ok(()));
            }
            return Ok(Err(Violation::Connection(Error::new(
                condition::FRAMING_ERROR,
                "no session has this channel",
            ))));
        };
        let shared = &mut self.shared;
        if session.state != SessionState::Begun {
            // Frames that crossed our end on the wire.
            return Ok(Ok(()));
        }
        Ok(match code {
            Transfer::CODE => session.on_transfer(&Transfer::decode(list)?, payload, shared),
            Disposition::CODE => {
                session.on_disposition(Disposition::decode(list)?, shared);
                Ok(())
            }
            Flow::CODE => session.on_flow(&Flow::decode(list)?, shared),
            Attach::CODE => session.on_attach(Attach::decode(list)?, list.body().len(), shared),
            Detach::CODE => session.on_detach(Detach::decode(list)?, shared),
            other => return Err(DecodeError::UnknownDescriptor(other)),
        })
    }

    fn on_begin(&mut self, channel: u16, begin: &Begin) -> Result<(), Fatal> {
        if channel > self.shared.config.channel_max {
            return Err(self.fail(Error::new(
                condition::FRAMING_ERROR,
                "the channel is over channel-max",
            )));
        }
        if self.channels.contains_key(&channel) {
            return Err(self.fail(Error::new(
                condition::NOT_ALLOWED,
                "the channel has a session already",
            )));
        }
        match begin.remote_channel {
            Some(ours) => self.on_begin_answer(channel, ours, begin),
            None => self.on_begin_request(channel, begin),
        }
    }

    fn on_begin_answer(&mut self, channel: u16, ours: u16, begin: &Begin) -> Result<(), Fatal> {
        let session = self
            .sessions
            .get_mut(usize::from(ours))
            .and_then(Option::as_deref_mut)
            .filter(|session| session.remote_channel.is_none());
        let Some(session) = session else {
            return Err(self.fail(Error::new(
                condition::NOT_ALLOWED,
                "the remote-channel waits for no begin",
            )));
        };
        session.on_begin(channel, begin);
        self.channels.insert(channel, ours);
        if session.state == SessionState::Beginning {
            session.state = SessionState::Begun;
            let id = session.id;
            self.shared.emit(Event::SessionBegun(id));
        }
        Ok(())
    }

    fn on_begin_request(&mut self, channel: u16, begin: &Begin) -> Result<(), Fatal> {
        let limit = self.shared.sessions_max();
        let refused = self.session_count >= limit;
        let id = if self.session_count >= limit + REFUSALS_MAX {
            None
        } else {
            self.add_session()
        };
        let Some(id) = id else {
            return Err(self.fail(Error::new(
                condition::RESOURCE_LIMIT_EXCEEDED,
                "too many sessions",
            )));
        };
        self.channels.insert(channel, id.channel);
        let shared = &mut self.shared;
        if let Some(session) = self
            .sessions
            .get_mut(usize::from(id.channel))
            .and_then(Option::as_deref_mut)
        {
            session.on_begin(channel, begin);
            session.state = SessionState::Begun;
            session.write_begin(shared);
            if refused {
                let error = Error::new(condition::RESOURCE_LIMIT_EXCEEDED, "too many sessions");
                session.end(Some(error), true, shared);
            } else {
                shared.emit(Event::SessionBegun(id));
            }
        }
        Ok(())
    }

    /// Makes a session on the lowest free channel; nothing when the peer allows none.
    pub(super) fn add_session(&mut self) -> Option<SessionId> {
        let free = self.sessions.iter().position(Option::is_none);
        let at = free.unwrap_or(self.sessions.len());
        let channel = u16::try_from(at).ok()?;
        if channel > self.peer_channel_max {
            return None;
        }
        if free.is_none() {
            self.sessions.push(None);
        }
        let id = SessionId {
            channel,
            serial: self.shared.serial(),
        };
        *self.sessions.get_mut(at)? = Some(Box::new(Session::new(id, &self.shared)));
        self.session_count += 1;
        Some(id)
    }

    fn on_end(&mut self, channel: u16, end: End) -> Result<(), Fatal> {
        let ours = self.channels.remove(&channel);
        let session = ours.and_then(|ours| self.sessions.get_mut(usize::from(ours))?.take());
        let Some(mut session) = session else {
            return Err(self.fail(Error::new(
                condition::FRAMING_ERROR,
                "no session has this channel",
            )));
        };
        while matches!(self.sessions.last(), Some(None)) {
            self.sessions.pop();
        }
        self.session_count = self.session_count.saturating_sub(1);
        session.clear(&mut self.shared);
        let announced = match session.state {
            SessionState::Ending { announced } => announced,
            _ => {
                self.shared
                    .frame(session.id.channel, |e| End { error: None }.encode(e));
                false
            }
        };
        if !announced {
            self.shared.emit(Event::SessionEnded {
                session: session.id,
                error: end.error.map(Arc::new),
            });
        }
        Ok(())
    }

    /// Ends a session in which the peer broke the rules.
    fn fail_session(&mut self, channel: u16, error: Error) {
        let session = self
            .channels
            .get(&channel)
            .and_then(|ours| self.sessions.get_mut(usize::from(*ours)))
            .and_then(Option::as_deref_mut);
        if let Some(session) = session {
            session.end(Some(error.clone()), true, &mut self.shared);
            self.shared.emit(Event::SessionEnded {
                session: session.id,
                error: Some(Arc::new(error)),
            });
        }
    }

    fn fail_decode(&mut self, error: DecodeError) -> Fatal {
        self.fail(Error::new(condition::DECODE_ERROR, error.to_string()))
    }
}

fn performative<'a>(decoder: &mut Decoder<'a>) -> Result<(u64, ListRef<'a>), DecodeError> {
    let code = type_code(decoder.descriptor()?)?;
    Ok((code, decoder.list()?))
}
