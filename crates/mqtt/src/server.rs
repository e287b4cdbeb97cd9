//! The server's side of a connection.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;

use crate::assembler::Assembler;
use crate::output::Output;
use crate::packet::{self, DecodeError, has_wildcard};
use crate::packet_ids::PacketIds;
use crate::{
    Connack, Connect, Packet, PacketId, PacketType, Publish, Qos, Refusal, SendError, SubackCode,
    Subscribe, Timeout, Unsubscribe, Violation,
};

/// The queue of held acknowledgements keeps at most this capacity while it is empty.
const IDLE_QUEUE_CAPACITY_MAX: usize = 16;

/// Limits of a server connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerOptions {
    /// Longest packet in bytes, fixed header included, until a CONNECT has been accepted.
    pub packet_length_max_before_connect: u32,
    /// Longest packet in bytes, fixed header included, from then on.
    pub packet_length_max: u32,
    /// Time from the start of the connection within which CONNECT must have arrived.
    pub connect_timeout: Duration,
    /// Longest silence, whatever keep-alive the client names; also the silence allowed to a client
    /// that turns its keep-alive off, and the longest that one packet may be on its way while the
    /// client counts as alive for it.
    pub silence_max: Duration,
    /// Let topics of PUBLISH and will hold `+` and `#`. The specification forbids them
    /// [MQTT-3.3.2-2], but a client that encodes nothing may put one into a topic; where topics are
    /// only ever compared as text, it does no harm.
    pub wildcards_in_topics: bool,
    /// Most messages that may await a PUBACK of the client. Meant to be small: packet ids are
    /// looked for among them one by one.
    pub deliveries_max: u16,
}

impl Default for ServerOptions {
    /// 16 KiB, then 320 KiB; 30 seconds; 1,767 seconds; no wildcards; 256 deliveries.
    fn default() -> Self {
        Self {
            packet_length_max_before_connect: 16 * 1024,
            packet_length_max: 320 * 1024,
            connect_timeout: Duration::from_secs(30),
            silence_max: Duration::from_secs(1767),
            wildcards_in_topics: false,
            deliveries_max: 256,
        }
    }
}

/// What the client wants. Borrowed from the input or from the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerEvent<'a> {
    /// To be answered by [`ServerConnection::accept`] or [`ServerConnection::refuse`]; nothing more
    /// is read until then.
    Connect(Connect<'a>),
    /// A message, QoS 0 or 1.
    Publish {
        /// The message.
        publish: Publish<'a>,
        /// At QoS 1: to be handed to [`ServerConnection::acknowledge_through`] once the message is
        /// safe.
        ticket: Option<AckTicket>,
    },
    /// The client has taken a message that this connection sent it at QoS 1. Its id is free again.
    Puback {
        /// What [`ServerConnection::publish_at_least_once`] gave, or
        /// [`ServerConnection::publish_again`] was given.
        packet_id: PacketId,
    },
    /// To be answered by [`ServerConnection::suback`], with one code for each filter.
    Subscribe(Subscribe<'a>),
    /// To be answered by [`ServerConnection::unsuback`].
    Unsubscribe(Unsubscribe<'a>),
    /// The client leaves in good order: drop its will, close the socket.
    Disconnect,
}

/// The place of a QoS 1 message among all that this connection has received; later ones are
/// greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AckTicket(u64);

/// The server's side of one MQTT 3.1.1 connection.
///
/// Call [`next`](Self::next) with what has been read until it returns `None`; act on each event;
/// write and [`consume_output`](Self::consume_output) what [`output`](Self::output) holds after any
/// call; call [`tick`](Self::tick) at [`deadline`](Self::deadline). When
/// [`is_closed`](Self::is_closed), write the output and close the socket: MQTT 3.1.1 has no
/// farewell from a server.
///
/// # Bounds
/// `next` stops after each event and leaves the rest of the input with the caller. A caller
/// that has enough unfinished work ([`in_flight`](Self::in_flight), or bytes of its own counting)
/// or unread answers ([`output_len`](Self::output_len)) stops calling `next` and reading the
/// socket until there is room. Everything behind a held packet waits with it, a PINGREQ too.
/// The silence of such a time is not the client's: the caller leaves `tick` alone while it holds
/// input back and calls [`restart_silence`](Self::restart_silence) when it goes on.
///
/// The bytes it leaves with the caller are the caller's to keep, in front of what it reads next.
///
/// Apart from that the connection holds at most one incomplete packet, two bytes for each
/// unacknowledged publish of either side, and the output; nothing of these while idle.
#[derive(Debug)]
pub struct ServerConnection {
    options: LastingOptions,
    state: State,
    assembler: Assembler,
    output: Output,
    /// Packet ids of QoS 1 publishes that await their PUBACK, oldest first.
    unacknowledged: VecDeque<PacketId>,
    /// QoS 1 publishes received; the ticket of the last one.
    tickets: u64,
    /// Since when a part of a packet has been here without the rest.
    partial_since: Option<Duration>,
    /// Packet ids of what this side has sent.
    sent: PacketIds,
}

/// Those of the [`ServerOptions`] that are asked for again after the start.
#[derive(Debug, Clone, Copy)]
struct LastingOptions {
    packet_length_max: u32,
    silence_max: Duration,
    wildcards_in_topics: bool,
    deliveries_max: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    AwaitingConnect {
        deadline: Duration,
    },
    Deciding {
        keep_alive_s: u16,
        clean_session: bool,
    },
    Connected {
        silence_max: Duration,
        deadline: Duration,
    },
    Closed,
}

impl ServerConnection {
    /// A connection that has just been opened at `now`.
    #[must_use]
    pub fn new(options: ServerOptions, now: Duration) -> Self {
        Self {
            options: LastingOptions {
                packet_length_max: options.packet_length_max,
                silence_max: options.silence_max,
                wildcards_in_topics: options.wildcards_in_topics,
                deliveries_max: options.deliveries_max,
            },
            state: State::AwaitingConnect {
                deadline: now.saturating_add(options.connect_timeout),
            },
            assembler: Assembler::new(options.packet_length_max_before_connect),
            output: Output::default(),
            unacknowledged: VecDeque::new(),
            tickets: 0,
            partial_since: None,
            sent: PacketIds::default(),
        }
    }

    /// The next event, taking the bytes it came from off the front of `input`.
    ///
    /// Call it until it returns `None`, also when the input is used up: an event may live in memory
    /// of the connection, which is released only then.
    ///
    /// `None` means that the input is used up, or that a CONNECT is being decided: then the input
    /// is left as it is, to be offered again after the answer. Input after the end of the
    /// connection is dropped. PINGREQ is answered here, and a PUBACK that names no message in flight
    /// on this connection is read over: it may be one for an earlier connection, come too late to
    /// mean anything. Both show in no event.
    ///
    /// # Errors
    /// The client broke a rule; the connection is closed. The output may hold an answer.
    pub fn next<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
        now: Duration,
    ) -> Result<Option<ServerEvent<'a>>, Violation> {
        let located = loop {
            match self.state {
                State::Deciding { .. } => return Ok(None),
                State::Closed => {
                    *input = &[];
                    return Ok(None);
                }
                State::AwaitingConnect { .. } | State::Connected { .. } => {}
            }
            let has_news = !input.is_empty();
            let located = match self.assembler.advance(input) {
                Ok(Some(located)) => located,
                Ok(None) => {
                    if has_news {
                        self.hear_part(now);
                    }
                    return Ok(None);
                }
                Err(violation) => return Err(close(&mut self.state, violation)),
            };
            if let Err(violation) = self.admit(located.header.packet_type, now) {
                return Err(close(&mut self.state, violation));
            }
            let body = self.assembler.body(located);
            let checked = match located.header.packet_type {
                PacketType::Pingreq => packet::decode_empty(body).map(|()| None),
                PacketType::Puback => packet::decode_packet_id(body).map(Some),
                _ => break located,
            };
            match checked {
                Ok(None) => packet::put_pingresp(self.output.buffer()),
                Ok(Some(packet_id)) if self.sent.settle(packet_id) => {
                    return Ok(Some(ServerEvent::Puback { packet_id }));
                }
                Ok(Some(_)) => {}
                Err(error) => return Err(close(&mut self.state, error.into())),
            }
        };
        // The event borrows the assembler, so the rest of the connection is taken apart here.
        let Self {
            options,
            state,
            assembler,
            output,
            unacknowledged,
            tickets,
            partial_since: _,
            sent: _,
        } = self;
        let event = match Packet::decode(located.header, assembler.body(located)) {
            Ok(Packet::Connect(connect)) => {
                decide(&connect, options, state, output).map(|()| ServerEvent::Connect(connect))
            }
            Ok(Packet::Publish(publish)) => queue_ack(&publish, options, unacknowledged, tickets)
                .map(|ticket| ServerEvent::Publish { publish, ticket }),
            Ok(Packet::Subscribe(subscribe)) => Ok(ServerEvent::Subscribe(subscribe)),
            Ok(Packet::Unsubscribe(unsubscribe)) => Ok(ServerEvent::Unsubscribe(unsubscribe)),
            Ok(Packet::Disconnect) => {
                *state = State::Closed;
                Ok(ServerEvent::Disconnect)
            }
            Ok(_) => Err(Violation::Unexpected {
                packet: located.header.packet_type,
            }),
            Err(DecodeError::ProtocolLevel { level }) => {
                refuse_level(level, output);
                Err(Violation::UnsupportedLevel { level })
            }
            Err(error) => Err(Violation::Malformed(error)),
        };
        event.map(Some).map_err(|violation| close(state, violation))
    }

    /// Whether a packet of this type may come now. If so, the client is not silent.
    fn admit(&mut self, packet: PacketType, now: Duration) -> Result<(), Violation> {
        match (&mut self.state, packet) {
            (State::AwaitingConnect { .. }, PacketType::Connect) => Ok(()),
            (State::AwaitingConnect { .. }, packet) => Err(Violation::NotOpened { packet }),
            (_, PacketType::Connect) => Err(Violation::SecondConnect),
            (
                State::Connected {
                    silence_max,
                    deadline,
                },
                PacketType::Publish
                | PacketType::Puback
                | PacketType::Subscribe
                | PacketType::Unsubscribe
                | PacketType::Pingreq
                | PacketType::Disconnect,
            ) => {
                *deadline = now.saturating_add(*silence_max);
                self.partial_since = None;
                Ok(())
            }
            (_, packet) => Err(Violation::Unexpected { packet }),
        }
    }

    /// Part of a packet has come. On a slow line a large packet takes longer than a short
    /// keep-alive, and a client that is sending is not silent; but it cannot go on so for ever.
    fn hear_part(&mut self, now: Duration) {
        if let State::Connected {
            silence_max,
            deadline,
        } = &mut self.state
        {
            let since = *self.partial_since.get_or_insert(now);
            let latest = since.saturating_add(self.options.silence_max);
            let extended = now.saturating_add(*silence_max).min(latest);
            *deadline = extended.max(*deadline);
        }
    }

    /// Accepts the CONNECT at hand with CONNACK 0. `session_present` says that a stored session
    /// goes on; to a client that asked for a clean one it is not said [MQTT-3.2.2-1].
    ///
    /// Does nothing unless a CONNECT is being decided.
    pub fn accept(&mut self, session_present: bool, now: Duration) {
        let State::Deciding {
            keep_alive_s,
            clean_session,
        } = self.state
        else {
            return;
        };
        let session_present = session_present && !clean_session;
        Connack::Accepted { session_present }.put(self.output.buffer());
        self.assembler.release();
        self.assembler
            .set_packet_length_max(self.options.packet_length_max);
        let silence_max = match keep_alive_s {
            0 => self.options.silence_max,
            // One and a half times the keep-alive (section 3.1.2.10).
            seconds => {
                Duration::from_millis(u64::from(seconds) * 1500).min(self.options.silence_max)
            }
        };
        self.state = State::Connected {
            silence_max,
            deadline: now.saturating_add(silence_max),
        };
    }

    /// Refuses the CONNECT at hand and closes the connection. Does nothing unless a CONNECT
    /// is being decided.
    pub fn refuse(&mut self, refusal: Refusal) {
        if matches!(self.state, State::Deciding { .. }) {
            Connack::Refused(refusal).put(self.output.buffer());
            self.assembler.release();
            self.state = State::Closed;
        }
    }

    /// Writes the PUBACKs of all messages up to and including `ticket`, in the order in which
    /// the messages came. A ticket that has been passed already changes nothing.
    pub fn acknowledge_through(&mut self, ticket: AckTicket) {
        let behind = usize::try_from(self.tickets.saturating_sub(ticket.0)).unwrap_or(usize::MAX);
        let count = self.unacknowledged.len().saturating_sub(behind);
        if count == 0 {
            return;
        }
        packet::put_pubacks(self.output.buffer(), self.unacknowledged.drain(..count));
        if self.unacknowledged.is_empty()
            && self.unacknowledged.capacity() > IDLE_QUEUE_CAPACITY_MAX
        {
            self.unacknowledged = VecDeque::new();
        }
    }

    /// QoS 1 messages received and not acknowledged.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.unacknowledged.len()
    }

    /// Answers a SUBSCRIBE.
    ///
    /// # Errors
    /// The connection is not open, or there is no code.
    pub fn suback(&mut self, packet_id: PacketId, codes: &[SubackCode]) -> Result<(), SendError> {
        self.check_open()?;
        packet::encode_suback(self.output.buffer(), packet_id, codes)?;
        Ok(())
    }

    /// Answers an UNSUBSCRIBE.
    ///
    /// # Errors
    /// The connection is not open.
    pub fn unsuback(&mut self, packet_id: PacketId) -> Result<(), SendError> {
        self.check_open()?;
        packet::put_unsuback(self.output.buffer(), packet_id);
        Ok(())
    }

    /// Sends a message to the client at QoS 0.
    ///
    /// # Errors
    /// The connection is not open, or the topic is empty, too long or holds U+0000.
    pub fn publish_at_most_once(&mut self, topic: &str, payload: &[u8]) -> Result<(), SendError> {
        self.check_open()?;
        let publish = Publish {
            dup: false,
            qos: Qos::AtMostOnce,
            retain: false,
            topic,
            packet_id: None,
            payload,
        };
        publish.encode(self.output.buffer())?;
        Ok(())
    }

    /// Gives packet ids from `first` on. Chance should choose it: a PUBACK that a client sends late,
    /// for a connection that this side no longer remembers, then hardly ever names a message of this
    /// one.
    pub fn number_from(&mut self, first: PacketId) {
        self.sent.number_from(first);
    }

    /// Gives `packet_id` to no new message of this connection: the client knows it from an earlier
    /// connection of its session, whose message is to be sent by [`publish_again`](Self::publish_again)
    /// if at all.
    pub fn reserve(&mut self, packet_id: PacketId) {
        self.sent.reserve(packet_id);
    }

    /// Sends a message to the client at QoS 1 and returns the packet id that its PUBACK will name:
    /// neither in flight nor reserved.
    ///
    /// # Errors
    /// The connection is not open, [`deliveries_max`](ServerOptions::deliveries_max) messages are in
    /// flight, or the topic is empty, too long or holds U+0000.
    pub fn publish_at_least_once(
        &mut self,
        topic: &str,
        payload: &[u8],
    ) -> Result<PacketId, SendError> {
        self.check_room()?;
        let packet_id = self.sent.free_id().ok_or(SendError::WindowFull)?;
        self.deliver(packet_id, false, topic, payload)?;
        Ok(packet_id)
    }

    /// Sends a message of an earlier connection of the client's session once more, marked as a
    /// duplicate, under its old packet id. To be done in the old order, before any new message.
    ///
    /// # Errors
    /// As for [`publish_at_least_once`](Self::publish_at_least_once), or the id is in flight.
    pub fn publish_again(
        &mut self,
        packet_id: PacketId,
        topic: &str,
        payload: &[u8],
    ) -> Result<(), SendError> {
        self.check_room()?;
        if self.sent.is_in_flight(packet_id) {
            return Err(SendError::PacketIdInUse { packet_id });
        }
        self.deliver(packet_id, true, topic, payload)
    }

    fn deliver(
        &mut self,
        packet_id: PacketId,
        dup: bool,
        topic: &str,
        payload: &[u8],
    ) -> Result<(), SendError> {
        let publish = Publish {
            dup,
            qos: Qos::AtLeastOnce,
            retain: false,
            topic,
            packet_id: Some(packet_id),
            payload,
        };
        publish.encode(self.output.buffer())?;
        self.sent.send(packet_id, !dup);
        Ok(())
    }

    /// Messages sent at QoS 1 whose PUBACK has not come.
    #[must_use]
    pub fn deliveries_in_flight(&self) -> usize {
        self.sent.in_flight()
    }

    fn check_room(&self) -> Result<(), SendError> {
        self.check_open()?;
        if self.sent.in_flight() >= usize::from(self.options.deliveries_max) {
            return Err(SendError::WindowFull);
        }
        Ok(())
    }

    fn check_open(&self) -> Result<(), SendError> {
        match self.state {
            State::Connected { .. } => Ok(()),
            State::AwaitingConnect { .. } | State::Deciding { .. } | State::Closed => {
                Err(SendError::NotOpen)
            }
        }
    }

    /// When [`tick`](Self::tick) is due. Changes with everything that comes, so a caller may let
    /// its timer run to an earlier deadline, tick, and ask again. `None` while a CONNECT is being
    /// decided and when closed.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        match self.state {
            State::AwaitingConnect { deadline } | State::Connected { deadline, .. } => {
                Some(deadline)
            }
            State::Deciding { .. } | State::Closed => None,
        }
    }

    /// Closes the connection if its deadline has passed; calling it too early is harmless.
    ///
    /// # Errors
    /// The deadline has passed: close the socket.
    pub fn tick(&mut self, now: Duration) -> Result<(), Timeout> {
        let (deadline, timeout) = match self.state {
            State::AwaitingConnect { deadline } => (deadline, Timeout::Connect),
            State::Connected { deadline, .. } => (deadline, Timeout::KeepAlive),
            State::Deciding { .. } | State::Closed => return Ok(()),
        };
        if now < deadline {
            return Ok(());
        }
        self.state = State::Closed;
        Err(timeout)
    }

    /// Counts the client's silence from `now`. For a caller that goes on after it has held input
    /// back.
    pub fn restart_silence(&mut self, now: Duration) {
        if let State::Connected {
            silence_max,
            deadline,
        } = &mut self.state
        {
            *deadline = now.saturating_add(*silence_max);
            self.partial_since = self.partial_since.map(|_| now);
        }
    }

    /// Whether the connection is over: nothing more is read; write the output and close the socket.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Bytes to be written to the socket.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        self.output.as_slice()
    }

    /// How many they are. It grows without bound if a client asks and never reads, so a caller
    /// holds input back beyond a bound of its own.
    #[must_use]
    pub fn output_len(&self) -> usize {
        self.output.as_slice().len()
    }

    /// Drops the first `count` bytes of the output, which have been written. The buffer is released
    /// when it is empty.
    pub fn consume_output(&mut self, count: usize) {
        self.output.consume(count);
    }

    /// Takes the whole output, for a caller that writes buffers rather than bytes.
    #[must_use]
    pub fn take_output(&mut self) -> BytesMut {
        self.output.take()
    }

    /// Bytes held of a packet that has not arrived in full.
    #[must_use]
    pub fn incomplete_bytes(&self) -> usize {
        self.assembler.incomplete_bytes()
    }
}

fn close(state: &mut State, violation: Violation) -> Violation {
    *state = State::Closed;
    violation
}

fn decide(
    connect: &Connect<'_>,
    options: &LastingOptions,
    state: &mut State,
    output: &mut Output,
) -> Result<(), Violation> {
    // Section 3.1.3.1: a client without a name cannot come back to its session.
    if connect.client_id.is_empty() && !connect.clean_session {
        Connack::Refused(Refusal::IdentifierRejected).put(output.buffer());
        return Err(Violation::ClientIdMissing);
    }
    let will_topic = connect.will.map(|will| will.topic);
    if !options.wildcards_in_topics && will_topic.is_some_and(has_wildcard) {
        return Err(Violation::WildcardInTopic);
    }
    *state = State::Deciding {
        keep_alive_s: connect.keep_alive_s,
        clean_session: connect.clean_session,
    };
    Ok(())
}

fn queue_ack(
    publish: &Publish<'_>,
    options: &LastingOptions,
    unacknowledged: &mut VecDeque<PacketId>,
    tickets: &mut u64,
) -> Result<Option<AckTicket>, Violation> {
    if publish.qos == Qos::ExactlyOnce {
        return Err(Violation::QosTwo);
    }
    if !options.wildcards_in_topics && publish.has_wildcard() {
        return Err(Violation::WildcardInTopic);
    }
    Ok(publish.packet_id.map(|packet_id| {
        // An id that is in flight already is a client that has lost patience. It gets one
        // PUBACK for each time it sent, and the message is delivered at least once.
        unacknowledged.push_back(packet_id);
        *tickets += 1;
        AckTicket(*tickets)
    }))
}

/// Section 3.1.2.2 wants CONNACK 1; an MQTT 5 client only understands an answer of MQTT 5.
fn refuse_level(level: u8, output: &mut Output) {
    if level == 5 {
        packet::put_mqtt5_unsupported_version(output.buffer());
    } else {
        Connack::Refused(Refusal::UnacceptableProtocolLevel).put(output.buffer());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_connection_holds_no_buffers() {
        let check = |server: &mut ServerConnection| {
            server.consume_output(usize::MAX);
            assert_eq!(server.output.buffer().capacity(), 0);
            assert_eq!(server.assembler.capacity(), 0);
            assert!(server.unacknowledged.capacity() <= IDLE_QUEUE_CAPACITY_MAX);
        };
        let now = Duration::ZERO;
        let mut server = ServerConnection::new(ServerOptions::default(), now);
        check(&mut server);

        // A CONNECT that comes in two parts is kept until it has been decided.
        let (first, second) = b"\x10\x10\0\x04MQTT\x04\x02\0\x3c\0\x04dev1".split_at(9);
        assert_eq!(server.next(&mut { first }, now), Ok(None));
        let event = server.next(&mut { second }, now);
        assert!(matches!(event, Ok(Some(ServerEvent::Connect(_)))));
        server.accept(false, now);
        check(&mut server);

        // A burst of publishes that ends within one.
        let publish = b"\x32\x06\0\x01t\0\x01x";
        let burst = publish.repeat(1000);
        let (first, second) = burst.split_at(burst.len() - 3);
        let mut last = None;
        for mut input in [first, second] {
            while let Some(event) = server.next(&mut input, now).expect("well-formed") {
                let ServerEvent::Publish { ticket, .. } = event else {
                    panic!("{event:?}");
                };
                last = ticket;
            }
        }
        server.acknowledge_through(last.expect("a ticket"));
        assert_eq!((server.in_flight(), server.output_len()), (0, 4000));
        check(&mut server);
    }
}
