//! The nine performatives and the types of their fields.

pub(crate) mod field;
mod state;
mod terminus;

use crate::error::{DecodeError, Error};
use crate::value::{Decoder, DescriptorRef, Encoder, ListRef, Map, Symbol, ValueRef};
use field::{Field, composite};

pub use state::{DeliveryState, DeliveryTag, Modified, Received};
pub use terminus::{Source, Target};

/// The end of a link that somebody holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Sends messages.
    #[default]
    Sender,
    /// Receives messages.
    Receiver,
}

impl Role {
    /// The role of the other end.
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Sender => Self::Receiver,
            Self::Receiver => Self::Sender,
        }
    }
}

/// How the sender settles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SndSettleMode {
    /// Every delivery is sent unsettled.
    Unsettled,
    /// Every delivery is sent settled.
    Settled,
    /// The sender chooses for each delivery.
    #[default]
    Mixed,
}

/// How the receiver settles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RcvSettleMode {
    /// The receiver settles by itself.
    #[default]
    First,
    /// The receiver tells the outcome and settles after the sender has settled.
    Second,
}

composite! {
    /// Starts a connection.
    Open = 0x10 {
        /// Name of the container.
        container_id: required String,
        /// Host that the client wants to reach.
        hostname: optional String,
        /// Largest frame that the sender of this accepts, in bytes.
        max_frame_size: default u32 = u32::MAX,
        /// Highest channel number that may be used.
        channel_max: default u16 = u16::MAX,
        /// Silence, in milliseconds, after which the sender of this gives up.
        idle_time_out: optional u32,
        /// Languages for texts that go out.
        outgoing_locales: many Symbol,
        /// Languages wanted for texts that come in.
        incoming_locales: many Symbol,
        /// Extensions that the sender supports.
        offered_capabilities: many Symbol,
        /// Extensions that the sender may use if the other end supports them.
        desired_capabilities: many Symbol,
        /// Facts about the container.
        properties: optional Map,
    }
}

composite! {
    /// Starts a session on a channel.
    Begin = 0x11 {
        /// The channel of the session that this answers.
        remote_channel: optional u16,
        /// Transfer id of the first transfer that will be sent.
        next_outgoing_id: required u32,
        /// Transfer frames that may come.
        incoming_window: required u32,
        /// Transfer frames that may be sent, as far as the sender of this is concerned.
        outgoing_window: required u32,
        /// Highest link handle that may be used.
        handle_max: default u32 = u32::MAX,
        /// Extensions that the sender supports.
        offered_capabilities: many Symbol,
        /// Extensions that the sender may use if the other end supports them.
        desired_capabilities: many Symbol,
        /// Facts about the session.
        properties: optional Map,
    }
}

composite! {
    /// Attaches a link to a session.
    Attach = 0x12 {
        /// Name of the link.
        name: required String,
        /// Number of the link in this session, chosen by the sender of this.
        handle: required u32,
        /// The end that the sender of this holds.
        role: required Role,
        /// How the sending end settles.
        snd_settle_mode: default SndSettleMode = SndSettleMode::Mixed,
        /// How the receiving end settles.
        rcv_settle_mode: default RcvSettleMode = RcvSettleMode::First,
        /// Where messages come from; null refuses the link.
        source: optional Source,
        /// Where messages go; null refuses the link.
        target: optional Target,
        /// Unsettled deliveries of a link that is resumed.
        unsettled: optional Map,
        /// True when `unsettled` is not complete.
        incomplete_unsettled: default bool = false,
        /// Delivery count at the start; must be given by the sending end.
        initial_delivery_count: optional u32,
        /// Largest message that the sender of this accepts, in bytes; 0 is no limit.
        max_message_size: optional u64,
        /// Extensions that the sender supports.
        offered_capabilities: many Symbol,
        /// Extensions that the sender may use if the other end supports them.
        desired_capabilities: many Symbol,
        /// Facts about the link.
        properties: optional Map,
    }
}

composite! {
    /// Tells the state of a session, and of a link when `handle` is given.
    Flow = 0x13 {
        /// The next transfer id that is expected.
        next_incoming_id: optional u32,
        /// Transfer frames that may come.
        incoming_window: required u32,
        /// The next transfer id that will be sent.
        next_outgoing_id: required u32,
        /// Transfer frames that may be sent.
        outgoing_window: required u32,
        /// The link that the rest is about.
        handle: optional u32,
        /// Deliveries so far on the link.
        delivery_count: optional u32,
        /// Deliveries that may come beyond `delivery_count`; null changes nothing.
        link_credit: optional u32,
        /// Messages that the sending end has waiting.
        available: optional u32,
        /// The sending end shall use up the credit at once.
        drain: default bool = false,
        /// The other end shall answer with its own state.
        echo: default bool = false,
        /// More facts.
        properties: optional Map,
    }
}

composite! {
    /// Carries a message or a part of one; the payload follows the performative.
    Transfer = 0x14 {
        /// The link.
        handle: required u32,
        /// Number of the delivery in this session; may be absent after the first frame.
        delivery_id: optional u32,
        /// Name of the delivery on its link; may be absent after the first frame.
        delivery_tag: optional DeliveryTag,
        /// Format of the payload: 0 is an AMQP message.
        message_format: optional u32,
        /// The sending end has settled already.
        settled: optional bool,
        /// More frames of this delivery follow.
        more: default bool = false,
        /// Overrides the link's mode for this delivery.
        rcv_settle_mode: optional RcvSettleMode,
        /// The sending end's view of the delivery.
        state: optional DeliveryState,
        /// This resumes a delivery.
        resume: default bool = false,
        /// The delivery is given up; what came of it is to be forgotten.
        aborted: default bool = false,
        /// An answer may be delayed.
        batchable: default bool = false,
    }
}

composite! {
    /// Tells the state of a range of deliveries.
    Disposition = 0x15 {
        /// The end that the sender of this holds.
        role: required Role,
        /// First delivery id.
        first: required u32,
        /// Last delivery id; absent means `first`.
        last: optional u32,
        /// The sender of this has settled.
        settled: default bool = false,
        /// State of each delivery in the range.
        state: optional DeliveryState,
        /// An answer may be delayed.
        batchable: default bool = false,
    }
}

composite! {
    /// Detaches a link.
    Detach = 0x16 {
        /// The link.
        handle: required u32,
        /// The link is over; false only suspends it.
        closed: default bool = false,
        /// Why.
        error: optional Error,
    }
}

composite! {
    /// Ends a session.
    End = 0x17 {
        /// Why.
        error: optional Error,
    }
}

composite! {
    /// Closes a connection.
    Close = 0x18 {
        /// Why.
        error: optional Error,
    }
}

/// Any performative.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "each variant holds the type of its name")]
pub enum Performative {
    Open(Box<Open>),
    Begin(Box<Begin>),
    Attach(Box<Attach>),
    Flow(Box<Flow>),
    Transfer(Transfer),
    Disposition(Disposition),
    Detach(Detach),
    End(End),
    Close(Close),
}

impl Performative {
    /// Reads the performative at the start of a frame's body; what follows is the payload.
    ///
    /// # Errors
    /// [`DecodeError`] when the body does not start with a valid performative.
    pub fn decode(body: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let mut decoder = Decoder::new(body);
        let code = type_code(decoder.descriptor()?)?;
        let list = decoder.list()?;
        let performative = match code {
            Open::CODE => Self::Open(Box::new(Open::decode(list)?)),
            Begin::CODE => Self::Begin(Box::new(Begin::decode(list)?)),
            Attach::CODE => Self::Attach(Box::new(Attach::decode(list)?)),
            Flow::CODE => Self::Flow(Box::new(Flow::decode(list)?)),
            Transfer::CODE => Self::Transfer(Transfer::decode(list)?),
            Disposition::CODE => Self::Disposition(Disposition::decode(list)?),
            Detach::CODE => Self::Detach(Detach::decode(list)?),
            End::CODE => Self::End(End::decode(list)?),
            Close::CODE => Self::Close(Close::decode(list)?),
            other => return Err(DecodeError::UnknownDescriptor(other)),
        };
        Ok((performative, decoder.remaining()))
    }

    /// Writes the performative, every field included.
    pub fn encode(&self, e: &mut Encoder<'_>) {
        match self {
            Self::Open(open) => open.encode(e),
            Self::Begin(begin) => begin.encode(e),
            Self::Attach(attach) => attach.encode(e),
            Self::Flow(flow) => flow.encode(e),
            Self::Transfer(transfer) => transfer.encode(e),
            Self::Disposition(disposition) => disposition.encode(e),
            Self::Detach(detach) => detach.encode(e),
            Self::End(end) => end.encode(e),
            Self::Close(close) => close.encode(e),
        }
    }
}

impl Field for Role {
    fn read(value: ValueRef<'_>) -> Result<Self, DecodeError> {
        Ok(if bool::read(value)? {
            Self::Receiver
        } else {
            Self::Sender
        })
    }

    fn write(&self, e: &mut Encoder<'_>) {
        e.bool(*self == Self::Receiver);
    }
}

impl Field for SndSettleMode {
    fn read(value: ValueRef<'_>) -> Result<Self, DecodeError> {
        match u8::read(value)? {
            0 => Ok(Self::Unsettled),
            1 => Ok(Self::Settled),
            2 => Ok(Self::Mixed),
            _ => Err(DecodeError::InvalidValue("snd-settle-mode")),
        }
    }

    fn write(&self, e: &mut Encoder<'_>) {
        e.ubyte(match self {
            Self::Unsettled => 0,
            Self::Settled => 1,
            Self::Mixed => 2,
        });
    }
}

impl Field for RcvSettleMode {
    fn read(value: ValueRef<'_>) -> Result<Self, DecodeError> {
        match u8::read(value)? {
            0 => Ok(Self::First),
            1 => Ok(Self::Second),
            _ => Err(DecodeError::InvalidValue("rcv-settle-mode")),
        }
    }

    fn write(&self, e: &mut Encoder<'_>) {
        e.ubyte(match self {
            Self::First => 0,
            Self::Second => 1,
        });
    }
}

/// The list of a described list, with its type's code.
pub(crate) fn described_list(value: ValueRef<'_>) -> Result<(u64, ListRef<'_>), DecodeError> {
    let ValueRef::Described(described) = value else {
        return Err(DecodeError::WrongType("described list"));
    };
    let code = type_code(described.descriptor)?;
    match described.value()? {
        ValueRef::List(list) => Ok((code, list)),
        _ => Err(DecodeError::WrongType("list")),
    }
}

/// The numeric code of a descriptor. Peers may use the symbolic names too.
pub(crate) fn type_code(descriptor: DescriptorRef<'_>) -> Result<u64, DecodeError> {
    const NAMES: [(&str, u64); 36] = [
        ("amqp:open:list", 0x10),
        ("amqp:begin:list", 0x11),
        ("amqp:attach:list", 0x12),
        ("amqp:flow:list", 0x13),
        ("amqp:transfer:list", 0x14),
        ("amqp:disposition:list", 0x15),
        ("amqp:detach:list", 0x16),
        ("amqp:end:list", 0x17),
        ("amqp:close:list", 0x18),
        ("amqp:error:list", 0x1d),
        ("amqp:received:list", 0x23),
        ("amqp:accepted:list", 0x24),
        ("amqp:rejected:list", 0x25),
        ("amqp:released:list", 0x26),
        ("amqp:modified:list", 0x27),
        ("amqp:source:list", 0x28),
        ("amqp:target:list", 0x29),
        ("amqp:coordinator:list", 0x30),
        ("amqp:declare:list", 0x31),
        ("amqp:discharge:list", 0x32),
        ("amqp:declared:list", 0x33),
        ("amqp:transactional-state:list", 0x34),
        ("amqp:sasl-mechanisms:list", 0x40),
        ("amqp:sasl-init:list", 0x41),
        ("amqp:sasl-challenge:list", 0x42),
        ("amqp:sasl-response:list", 0x43),
        ("amqp:sasl-outcome:list", 0x44),
        ("amqp:header:list", 0x70),
        ("amqp:delivery-annotations:map", 0x71),
        ("amqp:message-annotations:map", 0x72),
        ("amqp:properties:list", 0x73),
        ("amqp:application-properties:map", 0x74),
        ("amqp:data:binary", 0x75),
        ("amqp:amqp-sequence:list", 0x76),
        ("amqp:amqp-value:*", 0x77),
        ("amqp:footer:map", 0x78),
    ];
    match descriptor {
        DescriptorRef::Code(code) => Ok(code),
        DescriptorRef::Name(name) => NAMES
            .iter()
            .find_map(|(known, code)| (*known == name).then_some(*code))
            .ok_or(DecodeError::InvalidValue("descriptor")),
    }
}
