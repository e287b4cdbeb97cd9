//! One link: credit, assembling, attach and detach.

use std::sync::Arc;

use bytes::BytesMut;

use crate::connection::input::Payload;
use crate::error::{Error, condition};
use crate::event::{Event, LinkId, Message};
use crate::performative::{
    Attach, DeliveryTag, Detach, RcvSettleMode, Role, SndSettleMode, Source, Target, Transfer,
};
use crate::shared::Shared;
use crate::value::{Map, Symbol};

/// How an attach is answered. The default echoes what came.
#[derive(Clone, Debug)]
pub struct LinkReply {
    /// The source to answer with; nothing echoes the one that came. An empty one stands for one
    /// that did not come: some clients take null for a refusal.
    pub source: Option<Source>,
    /// The target to answer with; nothing echoes the one that came, as for the source.
    pub target: Option<Target>,
    /// The mode to answer with; nothing echoes the one that came.
    pub snd_settle_mode: Option<SndSettleMode>,
    /// The mode to answer with; nothing echoes the one that came.
    pub rcv_settle_mode: Option<RcvSettleMode>,
    /// Largest message in bytes; 0 is no limit. Told on every link, because some clients read an
    /// absent value as 0 and then send nothing; enforced where the peer sends.
    pub max_message_size: u64,
    /// Extensions that we support; empty is null.
    pub offered_capabilities: Vec<Symbol>,
    /// Facts about the link; empty is null.
    pub properties: Map,
}

/// What links accept unless told otherwise: 1 MiB.
pub const MAX_MESSAGE_SIZE: u64 = 1024 * 1024;

impl Default for LinkReply {
    fn default() -> Self {
        Self {
            source: None,
            target: None,
            snd_settle_mode: None,
            rcv_settle_mode: None,
            max_message_size: MAX_MESSAGE_SIZE,
            offered_capabilities: Vec::new(),
            properties: Map::new(),
        }
    }
}

pub(crate) struct Link {
    pub(crate) id: LinkId,
    pub(crate) remote_handle: Option<u32>,
    /// Our end.
    pub(crate) role: Role,
    pub(crate) state: LinkState,
    pub(crate) snd_settle_mode: SndSettleMode,
    /// Deliveries so far, as the sending end counts them.
    pub(crate) delivery_count: u32,
    /// Deliveries that may still be sent.
    pub(crate) credit: u32,
    /// When we receive: deliveries that may come beyond the credit, because the credit was lowered
    /// while they may have been on the way.
    overdraft: u32,
    /// Credit to keep the peer at by ourselves; 0 is not.
    pub(crate) auto_credit: u32,
    /// A drain is asked for: by the peer when we send, by us when we receive.
    pub(crate) drain: bool,
    /// Limit in bytes, 0 is none: the peer's when we send, ours when we receive.
    pub(crate) max_message_size: u64,
    pub(crate) assembly: Option<Box<Assembly>>,
}

pub(crate) enum LinkState {
    /// The peer asked, the caller has not answered.
    Asked {
        attach: Arc<Attach>,
        /// What it took on the wire.
        bytes: usize,
    },
    /// We asked under this name, the peer has not answered.
    Attaching(Box<str>),
    Attached,
    /// We detached, the peer has not answered; the name when it has not even attached.
    Detaching {
        name: Option<Box<str>>,
        /// The caller knows already.
        announced: bool,
    },
}

impl LinkState {
    /// No longer counts what waits for an answer: it has one, or nobody waits.
    pub(crate) fn release(&self, shared: &mut Shared) {
        if let Self::Asked { bytes, .. } = self {
            shared.asked_bytes = shared.asked_bytes.saturating_sub(*bytes);
        }
    }
}

/// A message of which more frames are to come.
pub(crate) struct Assembly {
    pub(crate) delivery_id: u32,
    pub(crate) tag: DeliveryTag,
    pub(crate) message_format: u32,
    pub(crate) settled: bool,
    pub(crate) payload: BytesMut,
}

impl Link {
    pub(crate) fn new(id: LinkId, role: Role, state: LinkState) -> Self {
        Self {
            id,
            remote_handle: None,
            role,
            state,
            snd_settle_mode: SndSettleMode::Mixed,
            delivery_count: 0,
            credit: 0,
            overdraft: 0,
            auto_credit: 0,
            drain: false,
            max_message_size: 0,
            assembly: None,
        }
    }

    pub(crate) fn take_peer_values(&mut self, attach: &Attach) {
        match self.role {
            Role::Sender => self.max_message_size = attach.max_message_size.unwrap_or(0),
            Role::Receiver => self.delivery_count = attach.initial_delivery_count.unwrap_or(0),
        }
    }

    /// Sets the peer's credit. What it had before it may have used already, on the wire.
    pub(crate) fn grant(&mut self, credit: u32) {
        let before = self.credit.saturating_add(self.overdraft);
        self.credit = credit;
        self.overdraft = before.saturating_sub(credit);
    }

    /// Takes one frame of a message; an error detaches the link.
    pub(crate) fn on_transfer(
        &mut self,
        transfer: &Transfer,
        payload: Payload<'_, '_>,
        shared: &mut Shared,
    ) -> Result<(), Error> {
        let Some(assembly) = &mut self.assembly else {
            return self.on_first_transfer(transfer, payload, shared);
        };
        if transfer
            .delivery_id
            .is_some_and(|id| id != assembly.delivery_id)
        {
            return Err(Error::new(
                condition::INVALID_FIELD,
                "a delivery started before the last one was complete",
            ));
        }
        if transfer.aborted {
            self.drop_assembly(shared);
            return Ok(());
        }
        let size = assembly.payload.len() + payload.bytes().len();
        check_size(size, self.max_message_size)?;
        assembly.payload.extend_from_slice(payload.bytes());
        assembly.settled |= transfer.settled.unwrap_or(false);
        shared.assembling += payload.bytes().len();
        if !transfer.more
            && let Some(assembly) = self.assembly.take()
        {
            shared.assembling = shared.assembling.saturating_sub(assembly.payload.len());
            shared.emit(Event::Message(Message {
                link: self.id,
                delivery_id: assembly.delivery_id,
                tag: assembly.tag,
                message_format: assembly.message_format,
                settled: assembly.settled,
                payload: assembly.payload.freeze(),
            }));
        }
        Ok(())
    }

    fn on_first_transfer(
        &mut self,
        transfer: &Transfer,
        payload: Payload<'_, '_>,
        shared: &mut Shared,
    ) -> Result<(), Error> {
        let Some(delivery_id) = transfer.delivery_id else {
            return Err(Error::new(
                condition::INVALID_FIELD,
                "the first frame of a delivery has no delivery-id",
            ));
        };
        if self.credit > 0 {
            self.credit -= 1;
        } else {
            self.overdraft = self.overdraft.checked_sub(1).ok_or_else(|| {
                Error::new(
                    condition::TRANSFER_LIMIT_EXCEEDED,
                    "the link has no credit left",
                )
            })?;
        }
        self.delivery_count = self.delivery_count.wrapping_add(1);
        if transfer.aborted {
            return Ok(());
        }
        check_size(payload.bytes().len(), self.max_message_size)?;
        let tag = transfer.delivery_tag.unwrap_or_default();
        let message_format = transfer.message_format.unwrap_or(0);
        let settled = transfer.settled.unwrap_or(false);
        if transfer.more {
            shared.assembling += payload.bytes().len();
            self.assembly = Some(Box::new(Assembly {
                delivery_id,
                tag,
                message_format,
                settled,
                payload: BytesMut::from(payload.bytes()),
            }));
        } else {
            shared.emit(Event::Message(Message {
                link: self.id,
                delivery_id,
                tag,
                message_format,
                settled,
                payload: payload.share(),
            }));
        }
        Ok(())
    }

    pub(crate) fn is_attached(&self) -> bool {
        matches!(self.state, LinkState::Attached)
    }

    pub(crate) fn is_detaching(&self) -> bool {
        matches!(self.state, LinkState::Detaching { .. })
    }

    /// True when an attach with this name answers ours. The direction must fit too: a name may
    /// stand for one link each way.
    pub(crate) fn awaits(&self, attach: &Attach) -> bool {
        let name = match &self.state {
            LinkState::Attaching(name) => name,
            LinkState::Detaching {
                name: Some(name), ..
            } => name,
            _ => return false,
        };
        **name == *attach.name && self.role == attach.role.opposite()
    }

    /// Answers an attach; `reply` is nothing when the link is refused, which always fits. False
    /// when nothing was written, because the peer takes no frame of that size.
    pub(crate) fn write_attach(
        &self,
        asked: &Attach,
        reply: Option<LinkReply>,
        shared: &mut Shared,
    ) -> bool {
        let refused = reply.is_none();
        let reply = reply.unwrap_or_default();
        let attach = Attach {
            name: asked.name.clone(),
            handle: self.id.handle,
            role: self.role,
            snd_settle_mode: reply.snd_settle_mode.unwrap_or(asked.snd_settle_mode),
            rcv_settle_mode: reply.rcv_settle_mode.unwrap_or(asked.rcv_settle_mode),
            source: match reply.source {
                _ if refused => None,
                None => asked.source.clone().or_else(|| Some(Source::default())),
                some => some,
            },
            target: match reply.target {
                _ if refused => None,
                None => asked.target.clone().or_else(|| Some(Target::default())),
                some => some,
            },
            unsettled: None,
            incomplete_unsettled: false,
            initial_delivery_count: (self.role == Role::Sender).then_some(0),
            max_message_size: Some(reply.max_message_size),
            offered_capabilities: reply.offered_capabilities,
            desired_capabilities: Vec::new(),
            properties: Some(reply.properties).filter(|map| !map.is_empty()),
        };
        shared.frame_that_fits(self.id.session.channel, |e| attach.encode(e))
    }

    /// Writes a detach, after the attach that must come before it.
    pub(crate) fn write_detach(&mut self, closed: bool, error: Option<Error>, shared: &mut Shared) {
        if let LinkState::Asked { attach, .. } = &self.state {
            self.write_attach(attach, None, shared);
        }
        let (handle, channel) = (self.id.handle, self.id.session.channel);
        shared.error_frame(channel, error.as_ref(), |e, error| {
            let error = error.cloned();
            let detach = Detach {
                handle,
                closed,
                error,
            };
            detach.encode(e);
        });
    }

    /// Enters the state of a link that we detached and forgets what it held.
    pub(crate) fn begin_detaching(&mut self, announced: bool, shared: &mut Shared) {
        let before = self.enter(
            LinkState::Detaching {
                name: None,
                announced,
            },
            shared,
        );
        if let LinkState::Attaching(waiting) = before {
            self.state = LinkState::Detaching {
                name: Some(waiting),
                announced,
            };
        }
        self.credit = 0;
        self.drop_assembly(shared);
    }

    /// Enters a state in which an attach of the peer's is answered; returns the state before.
    pub(crate) fn enter(&mut self, state: LinkState, shared: &mut Shared) -> LinkState {
        let before = std::mem::replace(&mut self.state, state);
        before.release(shared);
        before
    }

    pub(crate) fn drop_assembly(&mut self, shared: &mut Shared) {
        if let Some(assembly) = self.assembly.take() {
            shared.assembling = shared.assembling.saturating_sub(assembly.payload.len());
        }
    }
}

fn check_size(size: usize, limit: u64) -> Result<(), Error> {
    if limit != 0 && u64::try_from(size).map_or(true, |size| size > limit) {
        return Err(Error::new(
            condition::MESSAGE_SIZE_EXCEEDED,
            format!("the message is larger than the limit of {limit} bytes"),
        ));
    }
    Ok(())
}
