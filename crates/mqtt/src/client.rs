//! The client's side of a connection.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;

use crate::assembler::Assembler;
use crate::output::Output;
use crate::packet;
use crate::{
    Connack, Connect, EncodeError, Packet, PacketId, PacketType, Publish, Qos, SendError, Suback,
    Timeout, Violation,
};

/// Limits of a client connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientOptions {
    /// Longest packet in bytes, fixed header included, that is taken from the server.
    pub packet_length_max: u32,
    /// Most packets that may await an acknowledgement.
    pub in_flight_max: u16,
    /// Time within which CONNACK must come.
    pub connack_timeout: Duration,
    /// Time within which PINGRESP must come.
    pub pingresp_timeout: Duration,
    /// Whether topics of messages from the server may hold `+` and `#`, which the standard forbids
    /// [MQTT-3.3.2-2]. Where topics hold names that a user chose, they may.
    pub wildcards_in_topics: bool,
}

impl Default for ClientOptions {
    /// 320 KiB, 1,024 packets, 60 seconds, 30 seconds, no wildcards.
    fn default() -> Self {
        Self {
            packet_length_max: 320 * 1024,
            in_flight_max: 1024,
            connack_timeout: Duration::from_secs(60),
            pingresp_timeout: Duration::from_secs(30),
            wildcards_in_topics: false,
        }
    }
}

/// A message to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// Topic name, not empty. Whether the server takes one with wildcards is for the caller to know.
    pub topic: &'a str,
    /// Content.
    pub payload: &'a [u8],
    /// Ask the server to keep it as the topic's retained message.
    pub retain: bool,
}

/// What the server says. Borrowed from the input or from the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientEvent<'a> {
    /// The answer to CONNECT. After a refusal the connection is closed.
    Connack(Connack),
    /// A message. At QoS 1, [`ClientConnection::acknowledge`] is owed.
    Publish(Publish<'a>),
    /// A message sent at QoS 1 has arrived; its packet id is free again.
    Puback {
        /// As returned when it was sent.
        packet_id: PacketId,
    },
    /// The answer to [`ClientConnection::subscribe`].
    Suback(Suback<'a>),
    /// The answer to [`ClientConnection::unsubscribe`].
    Unsuback {
        /// As returned when it was sent.
        packet_id: PacketId,
    },
    /// The answer to a ping.
    Pingresp,
}

/// The client's side of one MQTT 3.1.1 connection.
///
/// Driven like [`ServerConnection`](crate::ServerConnection): [`next`](Self::next) until `None`,
/// write the output after any call, [`tick`](Self::tick) at [`deadline`](Self::deadline), close the
/// socket when [`is_closed`](Self::is_closed).
///
/// The connection remembers the packet ids in flight, not the messages. A caller that keeps its
/// session over a reconnect asks the old connection for
/// [`unacknowledged_publishes`](Self::unacknowledged_publishes) and gives the new one those
/// messages, in that order and before any new one, by [`publish_again`](Self::publish_again).
#[derive(Debug)]
pub struct ClientConnection {
    options: ClientOptions,
    state: State,
    keep_alive: Duration,
    /// When the last packet was put into the output.
    last_sent: Duration,
    assembler: Assembler,
    output: Output,
    /// What awaits an acknowledgement, oldest first. Going round from the first id to the last
    /// one, all others lie between them, so one comparison tells whether an id is free.
    in_flight: VecDeque<InFlight>,
    last_packet_id: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    AwaitingConnack { deadline: Duration },
    Connected { pingresp_deadline: Option<Duration> },
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct InFlight {
    packet_id: PacketId,
    /// The type that acknowledges it.
    awaits: PacketType,
}

impl ClientConnection {
    /// A connection that opens with `connect`, which is put into the output. Messages and
    /// subscriptions may follow at once, without waiting for CONNACK.
    ///
    /// # Errors
    /// `connect` does not fit into a packet.
    pub fn new(
        connect: &Connect<'_>,
        options: ClientOptions,
        now: Duration,
    ) -> Result<Self, EncodeError> {
        let mut output = Output::default();
        connect.encode(output.buffer())?;
        Ok(Self {
            options,
            state: State::AwaitingConnack {
                deadline: now.saturating_add(options.connack_timeout),
            },
            keep_alive: Duration::from_secs(u64::from(connect.keep_alive_s)),
            last_sent: now,
            assembler: Assembler::new(options.packet_length_max),
            output,
            in_flight: VecDeque::new(),
            last_packet_id: 0,
        })
    }

    /// The next event, taking the bytes it came from off the front of `input`. `None` once the
    /// input is used up. Input after the end of the connection is dropped.
    ///
    /// # Errors
    /// The server broke a rule; the connection is closed.
    pub fn next<'a, 'i: 'a>(
        &'a mut self,
        input: &mut &'i [u8],
    ) -> Result<Option<ClientEvent<'a>>, Violation> {
        if self.state == State::Closed {
            *input = &[];
            return Ok(None);
        }
        let Self {
            options,
            state,
            assembler,
            in_flight,
            ..
        } = self;
        let outcome = match assembler.next(input) {
            Ok(None) => return Ok(None),
            Ok(Some(raw)) => match raw.decode() {
                Ok(packet) => take(packet, raw.header.packet_type, options, state, in_flight),
                Err(error) => Err(error.into()),
            },
            Err(violation) => Err(violation),
        };
        if outcome.is_err() {
            *state = State::Closed;
        }
        outcome.map(Some)
    }

    /// Sends a message at QoS 0.
    ///
    /// # Errors
    /// The connection is closed, or the message does not fit into a packet.
    pub fn publish_at_most_once(
        &mut self,
        message: Message<'_>,
        now: Duration,
    ) -> Result<(), SendError> {
        self.check_open()?;
        publish(message, None, false).encode(self.output.buffer())?;
        self.last_sent = now;
        Ok(())
    }

    /// Sends a message at QoS 1 and returns the packet id that its PUBACK will name.
    ///
    /// # Errors
    /// The connection is closed, the window is full, or the message does not fit into a packet.
    pub fn publish_at_least_once(
        &mut self,
        message: Message<'_>,
        now: Duration,
    ) -> Result<PacketId, SendError> {
        let packet_id = self.free_packet_id()?;
        publish(message, Some(packet_id), false).encode(self.output.buffer())?;
        self.await_acknowledgement(packet_id, PacketType::Puback, now);
        Ok(packet_id)
    }

    /// Sends a message of an earlier connection once more, marked as a duplicate, under its old
    /// packet id.
    ///
    /// # Errors
    /// The connection is closed, the window is full, the id lies among those in flight (the
    /// messages were not given in their old order), or the message does not fit into a packet.
    pub fn publish_again(
        &mut self,
        packet_id: PacketId,
        message: Message<'_>,
        now: Duration,
    ) -> Result<(), SendError> {
        self.check_room()?;
        if !self.is_free(packet_id) {
            return Err(SendError::PacketIdInUse { packet_id });
        }
        publish(message, Some(packet_id), true).encode(self.output.buffer())?;
        self.await_acknowledgement(packet_id, PacketType::Puback, now);
        Ok(())
    }

    /// Packet ids of the messages sent at QoS 1 and not acknowledged, in the order of sending.
    pub fn unacknowledged_publishes(&self) -> impl Iterator<Item = PacketId> {
        self.in_flight
            .iter()
            .filter(|sent| sent.awaits == PacketType::Puback)
            .map(|sent| sent.packet_id)
    }

    /// Messages and requests that await an acknowledgement.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Asks for subscriptions, each with the highest QoS wanted. The SUBACK will name the packet
    /// id.
    ///
    /// # Errors
    /// The connection is closed, the window is full, or the filters do not fit into a packet.
    pub fn subscribe(
        &mut self,
        filters: &[(&str, Qos)],
        now: Duration,
    ) -> Result<PacketId, SendError> {
        let packet_id = self.free_packet_id()?;
        packet::encode_subscribe(self.output.buffer(), packet_id, filters)?;
        self.await_acknowledgement(packet_id, PacketType::Suback, now);
        Ok(packet_id)
    }

    /// Ends subscriptions. The UNSUBACK will name the packet id.
    ///
    /// # Errors
    /// The connection is closed, the window is full, or the filters do not fit into a packet.
    pub fn unsubscribe(&mut self, filters: &[&str], now: Duration) -> Result<PacketId, SendError> {
        let packet_id = self.free_packet_id()?;
        packet::encode_unsubscribe(self.output.buffer(), packet_id, filters)?;
        self.await_acknowledgement(packet_id, PacketType::Unsuback, now);
        Ok(packet_id)
    }

    /// Acknowledges a message that came at QoS 1.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn acknowledge(&mut self, packet_id: PacketId, now: Duration) -> Result<(), SendError> {
        self.check_open()?;
        packet::put_pubacks(self.output.buffer(), std::iter::once(packet_id));
        self.last_sent = now;
        Ok(())
    }

    /// Leaves in good order: the server drops the will. The connection is closed once the output is
    /// written.
    pub fn disconnect(&mut self) {
        if self.state != State::Closed {
            packet::put_disconnect(self.output.buffer());
            self.state = State::Closed;
        }
    }

    /// When [`tick`](Self::tick) is due. Moves with each packet sent, so a caller may let its timer
    /// run to an earlier deadline, tick, and ask again. `None` when there is nothing to wait for.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        match self.state {
            State::AwaitingConnack { deadline } => Some(deadline),
            State::Connected {
                pingresp_deadline: Some(deadline),
            } => Some(deadline),
            State::Connected {
                pingresp_deadline: None,
            } => self.ping_due(),
            State::Closed => None,
        }
    }

    /// Sends a PINGREQ if one is due, and closes the connection if the server owes CONNACK or
    /// PINGRESP for too long. Calling it too early is harmless.
    ///
    /// # Errors
    /// The server is silent: close the socket.
    pub fn tick(&mut self, now: Duration) -> Result<(), Timeout> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return Ok(());
        }
        let timeout = match &mut self.state {
            State::Connected {
                pingresp_deadline: pingresp_deadline @ None,
            } => {
                packet::put_pingreq(self.output.buffer());
                self.last_sent = now;
                *pingresp_deadline = Some(now.saturating_add(self.options.pingresp_timeout));
                return Ok(());
            }
            State::Connected { .. } => Timeout::Pingresp,
            State::AwaitingConnack { .. } => Timeout::Connack,
            State::Closed => return Ok(()),
        };
        self.state = State::Closed;
        Err(timeout)
    }

    /// A quarter before the keep-alive ends, so that the ping is on its way in time.
    fn ping_due(&self) -> Option<Duration> {
        if self.keep_alive.is_zero() {
            return None;
        }
        Some(self.last_sent.saturating_add(self.keep_alive * 3 / 4))
    }

    /// Whether the connection is over: write the output and close the socket.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Bytes to be written to the socket.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        self.output.as_slice()
    }

    /// How many they are.
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

    fn check_open(&self) -> Result<(), SendError> {
        match self.state {
            State::AwaitingConnack { .. } | State::Connected { .. } => Ok(()),
            State::Closed => Err(SendError::NotOpen),
        }
    }

    fn check_room(&self) -> Result<(), SendError> {
        self.check_open()?;
        if self.in_flight.len() >= usize::from(self.options.in_flight_max) {
            return Err(SendError::WindowFull);
        }
        Ok(())
    }

    /// The packet id after the last one, if there is room. All ids are in use when it is not free.
    fn free_packet_id(&self) -> Result<PacketId, SendError> {
        self.check_room()?;
        let packet_id = PacketId::new(self.last_packet_id.wrapping_add(1)).unwrap_or(PacketId::MIN);
        if self.is_free(packet_id) {
            Ok(packet_id)
        } else {
            Err(SendError::WindowFull)
        }
    }

    fn is_free(&self, packet_id: PacketId) -> bool {
        let (Some(first), Some(last)) = (self.in_flight.front(), self.in_flight.back()) else {
            return true;
        };
        let from_first = |id: PacketId| id.get().wrapping_sub(first.packet_id.get());
        from_first(packet_id) > from_first(last.packet_id)
    }

    fn await_acknowledgement(&mut self, packet_id: PacketId, awaits: PacketType, now: Duration) {
        self.in_flight.push_back(InFlight { packet_id, awaits });
        self.last_packet_id = packet_id.get();
        self.last_sent = now;
    }
}

fn publish<'a>(message: Message<'a>, packet_id: Option<PacketId>, dup: bool) -> Publish<'a> {
    Publish {
        dup,
        qos: match packet_id {
            None => Qos::AtMostOnce,
            Some(_) => Qos::AtLeastOnce,
        },
        retain: message.retain,
        topic: message.topic,
        packet_id,
        payload: message.payload,
    }
}

fn take<'a>(
    packet: Packet<'a>,
    packet_type: PacketType,
    options: &ClientOptions,
    state: &mut State,
    in_flight: &mut VecDeque<InFlight>,
) -> Result<ClientEvent<'a>, Violation> {
    let pingresp_deadline = match (state, packet) {
        (state @ State::AwaitingConnack { .. }, Packet::Connack(connack)) => {
            *state = match connack {
                Connack::Accepted { .. } => State::Connected {
                    pingresp_deadline: None,
                },
                Connack::Refused(_) => State::Closed,
            };
            return Ok(ClientEvent::Connack(connack));
        }
        (State::AwaitingConnack { .. } | State::Closed, _) => {
            return Err(Violation::NotOpened {
                packet: packet_type,
            });
        }
        (State::Connected { pingresp_deadline }, packet) => (pingresp_deadline, packet),
    };
    let (pingresp_deadline, packet) = pingresp_deadline;
    let mut settle = |packet_id| settle(in_flight, packet_id, packet_type);
    match packet {
        Packet::Publish(publish) if publish.qos == Qos::ExactlyOnce => Err(Violation::QosTwo),
        Packet::Publish(publish) if !options.wildcards_in_topics && publish.has_wildcard() => {
            Err(Violation::WildcardInTopic)
        }
        Packet::Publish(publish) => Ok(ClientEvent::Publish(publish)),
        Packet::Puback { packet_id } => {
            settle(packet_id).map(|()| ClientEvent::Puback { packet_id })
        }
        Packet::Suback(suback) => settle(suback.packet_id).map(|()| ClientEvent::Suback(suback)),
        Packet::Unsuback { packet_id } => {
            settle(packet_id).map(|()| ClientEvent::Unsuback { packet_id })
        }
        Packet::Pingresp => {
            *pingresp_deadline = None;
            Ok(ClientEvent::Pingresp)
        }
        _ => Err(Violation::Unexpected {
            packet: packet_type,
        }),
    }
}

/// Takes what `packet_id` names off the packets in flight. Acknowledgements come in the order
/// of sending as a rule, so the search ends at the front.
fn settle(
    in_flight: &mut VecDeque<InFlight>,
    packet_id: PacketId,
    packet: PacketType,
) -> Result<(), Violation> {
    let sent = InFlight {
        packet_id,
        awaits: packet,
    };
    let Some(index) = in_flight.iter().position(|candidate| *candidate == sent) else {
        return Err(Violation::NotInFlight { packet, packet_id });
    };
    in_flight.remove(index);
    Ok(())
}
