//! One connection: the surface of the engine.

mod dispatch;
mod handshake;
pub(crate) mod input;
mod operate;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::config::{ClientSasl, Config};
use crate::error::{Error, Fatal, condition};
use crate::event::Event;
use crate::frame::{AMQP_HEADER, FRAME_HEADER_LENGTH, FrameHeader, FrameType, SASL_HEADER};
use crate::performative::Close;
use crate::session::Session;
use crate::shared::Shared;
use input::Input;

/// How many events may wait before no more input is taken.
const EVENTS_MAX: usize = 256;

/// Shortest pause between heartbeats, whatever the peer asks for: a peer cannot make us busy.
const HEARTBEAT_MIN: Duration = Duration::from_millis(400);

/// An AMQP 1.0 connection without a socket and without a clock.
///
/// The caller loops over four calls:
///
/// - [`feed`](Self::feed) takes bytes that were read;
/// - [`next_event`](Self::next_event) tells what happened;
/// - [`output`](Self::output) holds bytes to write, after any call that takes `&mut self`;
/// - [`deadline`](Self::deadline) tells when to call [`tick`](Self::tick). It may change after
///   `feed`, `tick` and `close`. Calling `tick` too often is harmless.
///
/// Time is a [`Duration`] since any fixed moment; it must not go back.
///
/// `feed` stops early, and takes no more input, while output or events pile up or while a decision
/// of the caller is awaited ([`wants_input`](Self::wants_input)). So a peer that never reads, or
/// that floods, costs bounded memory as long as the caller stops reading then.
///
/// Operations on links and sessions answer [`Misuse`](crate::Misuse) when their object is gone.
/// That is normal: the event that says so may still be waiting.
pub struct Connection {
    phase: Phase,
    shared: Shared,
    /// An incomplete frame or protocol header.
    partial: BytesMut,
    /// By our channel.
    sessions: Vec<Option<Box<Session>>>,
    /// From the peer's channels to ours.
    channels: BTreeMap<u16, u16>,
    /// Sessions, those being ended included.
    session_count: usize,
    peer_channel_max: u16,
    last_received: Duration,
    heartbeat: Option<Heartbeat>,
}

/// Where the connection stands; what only the handshake needs lives in here.
enum Phase {
    /// Server: any protocol header.
    ServerHeader {
        mechanisms: &'static [&'static str],
    },
    /// Server: `sasl-init`.
    ServerInit,
    /// Server: the caller's decision.
    ServerDecision,
    /// Server: the protocol header after the SASL layer.
    ServerHeaderAfterSasl,
    /// Server: `open`.
    ServerOpen,
    /// Client: the SASL protocol header.
    ClientSaslHeader(Box<ClientSasl>),
    /// Client: the mechanisms.
    ClientMechanisms(Box<ClientSasl>),
    /// Client: the outcome.
    ClientOutcome,
    /// Client: the protocol header; `open` has been sent.
    ClientHeader,
    /// Client: `open`.
    ClientOpen,
    Open,
    /// We sent `close` and wait for the peer's.
    CloseSent,
    Closed,
}

struct Heartbeat {
    every: Duration,
    next: Duration,
}

impl Connection {
    /// The server's end. `mechanisms` is what the SASL layer offers, in order; a client may also
    /// skip the layer. With none, only clients without the layer are accepted.
    #[must_use]
    pub fn server(config: Arc<Config>, mechanisms: &'static [&'static str]) -> Self {
        Self::new(config, Phase::ServerHeader { mechanisms }, false)
    }

    /// The client's end, with or without a SASL layer.
    #[must_use]
    pub fn client(config: Arc<Config>, sasl: Option<ClientSasl>) -> Self {
        let mut connection = Self::new(config, Phase::Closed, true);
        match sasl {
            Some(sasl) => {
                connection.shared.output.extend_from_slice(&SASL_HEADER);
                connection.phase = Phase::ClientSaslHeader(Box::new(sasl));
            }
            None => connection.start_client(),
        }
        connection
    }

    fn new(config: Arc<Config>, phase: Phase, authenticated: bool) -> Self {
        Self {
            phase,
            shared: Shared {
                config,
                output: BytesMut::new(),
                events: VecDeque::new(),
                // What every peer accepts (AMQP 1.0, 2.7.1), until it has told its own limit.
                peer_frame_size: 512,
                authenticated,
                links: 0,
                next_serial: 0,
                assembling: 0,
                asked_bytes: 0,
            },
            partial: BytesMut::new(),
            sessions: Vec::new(),
            channels: BTreeMap::new(),
            session_count: 0,
            peer_channel_max: 0,
            last_received: Duration::ZERO,
            heartbeat: None,
        }
    }

    /// Takes bytes that were read, and returns how many: fewer than given when
    /// [`wants_input`](Self::wants_input) turned false on the way. The caller keeps the rest and
    /// feeds it again later. After the end of the connection everything is taken and dropped.
    ///
    /// # Errors
    /// [`Fatal`] when the connection is over. Write the output, then close the socket.
    pub fn feed(&mut self, input: &[u8], now: Duration) -> Result<usize, Fatal> {
        let mut fresh = Input::new(input);
        let mut at = 0;
        while let Some(rest) = input.get(at..).filter(|rest| !rest.is_empty()) {
            if self.is_closed() {
                return Ok(input.len());
            }
            if !self.wants_input() {
                break;
            }
            if self.partial.is_empty() {
                match self.unit_size(rest)? {
                    Some(size) if size <= rest.len() => {
                        self.on_unit(&mut fresh, at, at + size, now)?;
                        at += size;
                    }
                    _ => {
                        self.partial.extend_from_slice(rest);
                        at = input.len();
                    }
                }
            } else {
                at += self.complete(rest, now)?;
            }
        }
        Ok(at)
    }

    /// Adds to the incomplete unit, no more than it lacks; returns how much that was.
    fn complete(&mut self, rest: &[u8], now: Duration) -> Result<usize, Fatal> {
        let partial = self.partial.len();
        let wanted = match self.partial.first_chunk::<FRAME_HEADER_LENGTH>().copied() {
            Some(header) => self.unit_size(&header)?.unwrap_or(partial),
            None => FRAME_HEADER_LENGTH,
        };
        let missing = wanted.saturating_sub(partial).min(rest.len());
        self.partial
            .extend_from_slice(rest.get(..missing).unwrap_or_default());
        let header = self.partial.first_chunk::<FRAME_HEADER_LENGTH>().copied();
        if let Some(header) = header
            && self.unit_size(&header)? == Some(self.partial.len())
        {
            let unit: Bytes = std::mem::take(&mut self.partial).freeze();
            self.on_unit(&mut Input::from_shared(&unit), 0, unit.len(), now)?;
        }
        Ok(missing)
    }

    /// Size of the frame or protocol header that starts here, once that can be told.
    fn unit_size(&mut self, bytes: &[u8]) -> Result<Option<usize>, Fatal> {
        let Some(header) = bytes.first_chunk::<FRAME_HEADER_LENGTH>() else {
            return Ok(None);
        };
        if self.phase.awaits_protocol_header() {
            return Ok(Some(FRAME_HEADER_LENGTH));
        }
        match FrameHeader::parse(*header, self.shared.frame_limit()) {
            Ok(header) => Ok(Some(header.size)),
            Err(error) => Err(self.fail(Error::new(condition::FRAMING_ERROR, error.to_string()))),
        }
    }

    /// A whole frame or protocol header.
    fn on_unit(
        &mut self,
        input: &mut Input<'_>,
        from: usize,
        to: usize,
        now: Duration,
    ) -> Result<(), Fatal> {
        self.last_received = now;
        let bytes = input.bytes().get(from..to).unwrap_or_default();
        let Some(header) = bytes.first_chunk::<FRAME_HEADER_LENGTH>() else {
            return Ok(());
        };
        if self.phase.awaits_protocol_header() {
            return self.on_protocol_header(*header);
        }
        let header = match FrameHeader::parse(*header, self.shared.frame_limit()) {
            Ok(header) => header,
            Err(error) => {
                return Err(self.fail(Error::new(condition::FRAMING_ERROR, error.to_string())));
            }
        };
        let body = bytes.get(header.body..).unwrap_or_default();
        match (header.frame_type, self.phase.is_sasl()) {
            (FrameType::Sasl, true) => self.on_sasl_frame(body),
            (FrameType::Amqp, false) if body.is_empty() => Ok(()),
            (FrameType::Amqp, false) => {
                self.on_frame(header.channel, input, from + header.body, to, now)
            }
            _ => Err(self.fail(Error::new(
                condition::FRAMING_ERROR,
                "this frame type does not belong here",
            ))),
        }
    }

    /// The next thing that happened, in the order of the peer's frames.
    pub fn next_event(&mut self) -> Option<Event> {
        self.shared.events.pop_front()
    }

    /// Bytes to write. The caller removes what it has written.
    pub fn output(&mut self) -> &mut BytesMut {
        &mut self.shared.output
    }

    /// How many bytes wait to be written. Stop sending messages at about 128 KiB, so that links
    /// get their turn and memory stays bounded.
    #[must_use]
    pub fn output_len(&self) -> usize {
        self.shared.output.len()
    }

    /// True when so much output waits that no more input is taken.
    #[must_use]
    pub fn output_full(&self) -> bool {
        self.shared.output_full()
    }

    /// False while no input is taken: output or events must be taken away first, or the caller
    /// owes [`sasl_outcome`](Self::sasl_outcome).
    #[must_use]
    pub fn wants_input(&self) -> bool {
        !self.output_full()
            && self.shared.events.len() < EVENTS_MAX
            && !matches!(self.phase, Phase::ServerDecision)
    }

    /// Bytes held of frames and messages that are not complete: what this peer costs before it
    /// has said anything.
    #[must_use]
    pub fn incomplete_bytes(&self) -> usize {
        self.partial.len() + self.shared.assembling
    }

    /// Gives memory back that only helps a busy connection. Call it when the connection goes
    /// quiet; what waits to be read or written is kept.
    pub fn release_memory(&mut self) {
        if self.shared.output.is_empty() {
            self.shared.output = BytesMut::new();
        }
        if self.shared.events.is_empty() {
            self.shared.events = VecDeque::new();
        }
    }

    /// When to call [`tick`](Self::tick), if at all.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        if !matches!(self.phase, Phase::Open | Phase::CloseSent) {
            return None;
        }
        let idle = self.idle_deadline();
        let heartbeat = self.heartbeat.as_ref().map(|heartbeat| heartbeat.next);
        match (idle, heartbeat) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (one, None) | (None, one) => one,
        }
    }

    /// Does what time demands: heartbeats, and giving up a silent peer.
    ///
    /// # Errors
    /// [`Fatal::IdleTimeOut`] when the connection is over. Write the output, then close the
    /// socket.
    pub fn tick(&mut self, now: Duration) -> Result<(), Fatal> {
        if !matches!(self.phase, Phase::Open | Phase::CloseSent) {
            return Ok(());
        }
        if self.idle_deadline().is_some_and(|deadline| now >= deadline) {
            self.finish(Some(Error::new(
                condition::RESOURCE_LIMIT_EXCEEDED,
                "nothing came for longer than the idle time-out",
            )));
            return Err(Fatal::IdleTimeOut);
        }
        if let Some(heartbeat) = &mut self.heartbeat
            && now >= heartbeat.next
        {
            heartbeat.next = now + heartbeat.every;
            // Waiting output says the same, and more would only pile up.
            if self.shared.output.is_empty() && matches!(self.phase, Phase::Open) {
                self.shared.frame(0, |_| ());
            }
        }
        Ok(())
    }

    fn idle_deadline(&self) -> Option<Duration> {
        Some(self.last_received + self.shared.config.idle_time_out?)
    }

    /// Raises the limits to those of an authenticated peer, or lowers them again. Clients start
    /// with the high ones.
    pub fn set_authenticated(&mut self, authenticated: bool) {
        self.shared.authenticated = authenticated;
    }

    /// True between the peer's `open` and the end of the connection.
    #[must_use]
    pub fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Open)
    }

    /// True when nothing more will come of the connection: write the output and close the socket.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self.phase, Phase::Closed)
    }

    /// Closes the connection. Events and frames that come later are dropped, until the peer's
    /// answer gives [`Event::Closed`]. During the handshake the connection just ends
    /// ([`is_closed`](Self::is_closed)).
    pub fn close(&mut self, error: Option<Error>) {
        match self.phase {
            Phase::Open => {
                self.write_close(error);
                self.forget_sessions();
                self.shared.events.clear();
                self.phase = Phase::CloseSent;
            }
            Phase::CloseSent | Phase::Closed => {}
            _ => self.finish(error),
        }
    }

    /// The peer broke the protocol: ends the connection with this error.
    fn fail(&mut self, error: Error) -> Fatal {
        self.finish(Some(error.clone()));
        Fatal::Violation(Arc::new(error))
    }

    /// Ends the connection here and now, with a close where the protocol has come so far.
    fn finish(&mut self, error: Option<Error>) {
        match self.phase {
            Phase::Open | Phase::ClientOpen => self.write_close(error),
            Phase::ServerOpen => {
                self.write_open();
                self.write_close(error);
            }
            _ => {}
        }
        self.forget_sessions();
        self.partial = BytesMut::new();
        self.phase = Phase::Closed;
    }

    fn write_close(&mut self, error: Option<Error>) {
        self.shared.error_frame(0, error.as_ref(), |e, error| {
            let error = error.cloned();
            Close { error }.encode(e);
        });
    }

    fn forget_sessions(&mut self) {
        self.sessions = Vec::new();
        self.channels = BTreeMap::new();
        self.session_count = 0;
        self.shared.links = 0;
        self.shared.assembling = 0;
    }

    fn write_protocol_header(&mut self, header: [u8; 8]) {
        self.shared.output.extend_from_slice(&header);
    }

    fn start_client(&mut self) {
        self.write_protocol_header(AMQP_HEADER);
        self.write_open();
        self.phase = Phase::ClientHeader;
    }
}

impl Phase {
    const fn awaits_protocol_header(&self) -> bool {
        matches!(
            self,
            Self::ServerHeader { .. }
                | Self::ServerHeaderAfterSasl
                | Self::ClientSaslHeader(_)
                | Self::ClientHeader
        )
    }

    const fn is_sasl(&self) -> bool {
        matches!(
            self,
            Self::ServerInit
                | Self::ServerDecision
                | Self::ClientMechanisms(_)
                | Self::ClientOutcome
        )
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("open", &self.is_open())
            .field("sessions", &self.session_count)
            .field("links", &self.shared.links)
            .field("output", &self.shared.output.len())
            .finish_non_exhaustive()
    }
}
