//! AMQP connections of back ends and of devices: tokens, questions about the endpoint, readers of
//! partitions, messages for devices and what became of them; telemetry of devices, and their messages.
//!
//! One task per connection drives the protocol engine and calls the hub. It sleeps on the socket,
//! on one bell that the log rings for all partitions read here, on fetches from the log, on the hub's
//! answers and deliveries of the service endpoint, on a bell for each device and link of one, and on the
//! clock. Nothing is pushed to it, and what a peer does not read is bounded: no more than
//! [`OUTPUT_BYTES_MAX`] and one turn of one reader wait to be written, and no input is taken while
//! twice as much does.

mod commands;
mod deliveries;
mod devices;
mod grants;
mod links;
mod login;
mod reader;
mod ready;
mod requests;
mod telemetry;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use fieldpost_amqp::sasl::mechanism;
use fieldpost_amqp::{Config, Connection, Error, Event, Fatal, LinkId, SessionId};
use fieldpost_hub::auth::{AuthError, PlainLogin};
use fieldpost_store::log::TailWatch;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use self::commands::Commands;
use self::deliveries::{Deliveries, Polled};
use self::devices::{DeviceLink, Devices};
use self::grants::{Grants, Permit};
use self::links::Refusal;
use self::reader::{Fetched, Reader, Turn};
use self::requests::{Answers, PutToken, Service};
use crate::clock::{Alarm, within};
use crate::context::ConnectionContext;
use crate::dialect::amqp::error;
use crate::figures::count_refused;
use crate::io::{Input, SCRATCH_BYTES, poll_read_scratch_up_to, poll_write_all};

/// Bytes of output from which on no reader gets a turn.
const OUTPUT_BYTES_MAX: usize = 128 * 1024;

/// Fetches from the log that one connection has under way. Readers beyond it wait.
const FETCHES_MAX: usize = 32;

/// Fetches from the log that one connection has under way with those that look for the start of a
/// reader. A client that attaches and detaches faster than the log answers gets this far.
const STARTS_MAX: usize = 1024;

/// Tokens that one connection may have checked at a time. Nothing is read from it meanwhile.
const PUTS_MAX: usize = 256;

/// How long a connection is silent before it gives memory back.
const QUIET: Duration = Duration::from_secs(5);

/// Rounds of a poll after which other tasks get their chance.
const ROUNDS_MAX: usize = 32;

/// How long a hub that is being stopped waits for a peer to confirm its close, once that is written.
/// The Python Event Hubs client looks at each of its connections only about once a second.
const STOP_LINGER: Duration = Duration::from_millis(500);

/// How often a hub that takes no messages for want of disk is asked whether it does again.
const HELD_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// What the SASL layer offers: the last three, or all to a client that showed a certificate.
const MECHANISMS: &[&str] = &[
    mechanism::EXTERNAL,
    mechanism::MSSBCBS,
    mechanism::ANONYMOUS,
    mechanism::PLAIN,
];

static CONFIG: LazyLock<Arc<Config>> = LazyLock::new(Arc::default);

/// Serves one AMQP connection until its end.
///
/// May be dropped at any await: readers are detached and grants forgotten with it.
pub(crate) async fn serve<S>(mut stream: S, context: ConnectionContext)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let timer = Arc::clone(context.timer());
    let linger = context.limits.linger;
    let mut session = Session::new(context);
    let end = poll_fn(|cx| session.poll(cx, &mut stream)).await;
    if let Some(reason) = end.refusal() {
        count_refused("amqp", reason);
    }
    tracing::debug!(%end, "AMQP connection over");
    drop(session);
    // Whether the peer sees the end of the stream or not, there is nothing more to say to it.
    let _ = within(&timer, linger, stream.shutdown()).await;
}

/// The mechanisms for one connection.
fn mechanisms(context: &ConnectionContext) -> &'static [&'static str] {
    let without_external = MECHANISMS.get(1..).unwrap_or_default();
    if context.client_certificate.is_some() {
        MECHANISMS
    } else {
        without_external
    }
}

/// Why a session is over.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the peer closed the connection")]
    Closed,
    #[error("the peer is gone")]
    PeerGone,
    #[error("the socket failed: {0}")]
    Socket(#[from] std::io::Error),
    #[error("{0}")]
    Fatal(Fatal),
    #[error("closed by the hub: {0}")]
    ByHub(&'static str),
    #[error("too many bytes of incomplete frames")]
    Incomplete,
}

impl End {
    /// The word under which the end is counted, if it was the peer's doing.
    fn refusal(&self) -> Option<&'static str> {
        match self {
            Self::Fatal(Fatal::IdleTimeOut) => Some("idle"),
            Self::Fatal(Fatal::UnsupportedHeader(_)) => Some("header"),
            Self::Fatal(_) => Some("protocol"),
            Self::ByHub(reason @ ("authentication" | "login" | "held")) => Some(reason),
            Self::Incomplete => Some("incomplete"),
            _ => None,
        }
    }
}

/// What became of the peer's bytes in one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intake {
    /// The engine took some; there may be more.
    Taken,
    /// There are none; the socket wakes the task when they come.
    Awaited,
    /// The engine takes none before its output is written or a login is decided.
    Blocked,
}

/// What the links to the service endpoint did in one round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    /// Nothing; wakers are left behind.
    Nothing,
    /// There is more to tell, once the output is written.
    HeldBack,
    /// Something was written.
    Told,
}

/// What stands at the hub's end of a link.
enum Node {
    /// Takes requests.
    Requests(Service),
    /// Sends answers to requests.
    Answers(Answers),
    /// Sends the events of a partition.
    Reader(Box<Reader>),
    /// Takes messages for devices.
    Commands(Box<Commands>),
    /// Sends what became of such messages.
    Feedback(Box<Deliveries>, Permit),
    /// A device's.
    Device(DeviceLink),
}

struct Session {
    context: ConnectionContext,
    engine: Connection,
    /// Read, and not yet taken by the engine.
    leftover: BytesMut,
    grants: Grants,
    /// In an order that a simulation can repeat.
    nodes: BTreeMap<LinkId, Node>,
    /// The links to the service endpoint, which are asked whenever the task runs.
    service_links: Vec<LinkId>,
    /// Behind the nodes: what their links hold goes back before a device lets go of its place.
    devices: Devices,
    /// Tokens that are being checked, in order.
    puts: FuturesOrdered<BoxFuture<'static, PutToken>>,
    /// The host by which the client called the hub, if it did.
    hostname: Option<String>,
    /// Rung by the log for every partition read here, and by the hub when a reader is thrown out.
    bell: Arc<TailWatch>,
    /// Readers that want a turn, in order.
    turns: VecDeque<LinkId>,
    fetches: FuturesUnordered<BoxFuture<'static, (LinkId, Fetched)>>,
    /// Readers that wait until there are fewer fetches.
    fetch_waiters: VecDeque<LinkId>,
    refusals: Vec<Refusal>,
    /// A login whose credentials are being checked.
    login: Option<BoxFuture<'static, Result<PlainLogin, AuthError>>>,
    draining: Pin<Box<dyn Future<Output = ()> + Send>>,
    drained: bool,
    /// While the hub is being stopped and answers are still owed: when they are awaited no longer.
    stopping_due: Option<Duration>,
    alarm: Alarm,
    /// When the connection is closed unless a valid grant has come; none while there is one.
    authentication_due: Option<Duration>,
    /// When grants are looked at again.
    grants_due: Option<Duration>,
    /// When a hub that takes no messages for devices is asked again.
    held_due: Option<Duration>,
    /// When the memory is given back that only a busy connection needs.
    quiet_due: Option<Duration>,
    /// Why the connection is ending, and when the peer is waited for no longer.
    ending: Option<(End, Duration)>,
    /// In front of an event's sections; kept so that sending allocates nothing.
    head: BytesMut,
}

impl Session {
    fn new(context: ConnectionContext) -> Self {
        let now = context.monotonic();
        Self {
            engine: Connection::server(Arc::clone(&CONFIG), mechanisms(&context)),
            leftover: BytesMut::new(),
            grants: Grants::default(),
            nodes: BTreeMap::new(),
            service_links: Vec::new(),
            devices: Devices::default(),
            puts: FuturesOrdered::new(),
            hostname: None,
            bell: Arc::default(),
            turns: VecDeque::new(),
            fetches: FuturesUnordered::new(),
            fetch_waiters: VecDeque::new(),
            refusals: Vec::new(),
            login: None,
            draining: Box::pin(context.draining()),
            drained: false,
            stopping_due: None,
            alarm: Alarm::default(),
            authentication_due: Some(now.saturating_add(context.limits.amqp_authentication)),
            grants_due: None,
            held_due: None,
            quiet_due: None,
            ending: None,
            head: BytesMut::new(),
            context,
        }
    }

    /// Runs the connection as far as it goes without waiting.
    fn poll<S>(&mut self, cx: &mut Context<'_>, stream: &mut S) -> Poll<End>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        for _ in 0..ROUNDS_MAX {
            let now = self.context.monotonic();
            if let Some(end) = self.on_time(now) {
                return Poll::Ready(end);
            }
            if !self.drained && self.draining.as_mut().poll(cx).is_ready() {
                self.drained = true;
                self.stop(now);
            }
            if self.context.incomplete.poll_evicted(cx).is_ready() {
                return Poll::Ready(End::Incomplete);
            }
            self.poll_login(cx);
            self.poll_puts(cx, now);
            self.poll_bell(cx);
            self.poll_fetches(cx);
            let served = self.poll_service_links(cx, now);
            if self.stopping_due.is_some() && !self.owes_answers() {
                self.finish_stop(now);
            }
            let intake = match self.poll_input(cx, stream, now) {
                Ok(intake) => intake,
                Err(end) => return Poll::Ready(end),
            };
            while let Some(event) = self.engine.next_event() {
                self.on_event(event, now);
            }
            let devices = self.poll_devices(cx, now);
            let told = [served, devices].contains(&Served::Told);
            let sent = self.take_turns() | told;
            let written = match poll_write_all(stream, cx, self.engine.output()) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(error)) => return Poll::Ready(End::Socket(error)),
                Poll::Pending => false,
            };
            if self.engine.is_closed() {
                self.end_with(End::ByHub("login"), now);
                if written && let Some((end, _)) = self.ending.take() {
                    return Poll::Ready(end);
                }
            }
            if self.drained
                && written
                && let Some((_, due)) = &mut self.ending
            {
                *due = now.saturating_add(STOP_LINGER).min(*due);
            }
            let read = intake == Intake::Taken;
            if read || sent {
                self.quiet_due = Some(now.saturating_add(QUIET));
            }
            // What the full output held back goes on as soon as all of that is written: no waker
            // stands for it.
            let freed = !self.turns.is_empty()
                || [served, devices].contains(&Served::HeldBack)
                || (intake == Intake::Blocked && self.wants_input());
            if read || (written && (sent || freed)) {
                continue;
            }
            let (timer, deadline) = (self.context.timer(), self.deadline());
            if self.alarm.poll(cx, timer, deadline).is_pending() {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Notes why the connection is ending, unless that is known. The peer gets a moment to take
    /// what is written to it, and to confirm a close.
    fn end_with(&mut self, end: End, now: Duration) {
        if self.ending.is_none() {
            let due = now.saturating_add(self.context.limits.linger);
            self.ending = Some((end, due));
        }
    }

    // Time.

    fn deadline(&self) -> Option<Duration> {
        // They all wait for as long, so the first is due first.
        let refusal = self.refusals.first().map(|refusal| refusal.due);
        let ending = self.ending.as_ref().map(|(_, due)| *due);
        [
            self.engine.deadline(),
            self.authentication_due,
            self.grants_due,
            self.held_due,
            self.devices.held_due(),
            self.stopping_due,
            self.quiet_due,
            refusal,
            ending,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what the time demands; `Some` when the session is over.
    fn on_time(&mut self, now: Duration) -> Option<End> {
        if let Some((end, _)) = self.ending.take_if(|(_, due)| *due <= now) {
            return Some(end);
        }
        if let Err(fatal) = self.engine.tick(now) {
            // A peer that was silent for so long is not waited for: its socket may be dead.
            return Some(End::Fatal(fatal));
        }
        if self.authentication_due.is_some_and(|due| due <= now) {
            self.authentication_due = None;
            self.close(error::not_authenticated_in_time(), "authentication", now);
        }
        if self.grants_due.is_some_and(|due| due <= now) {
            self.check_grants(now);
        }
        // The service links are asked in a moment.
        self.held_due.take_if(|due| *due <= now);
        self.check_held(now);
        if self.stopping_due.is_some_and(|due| due <= now) {
            self.finish_stop(now);
        }
        if self.quiet_due.take_if(|due| *due <= now).is_some() {
            self.engine.release_memory();
            self.head = BytesMut::new();
        }
        self.refuse_due(now);
        None
    }

    /// Closes the connection for a reason of the hub's.
    fn close(&mut self, error: impl Into<Option<Error>>, reason: &'static str, now: Duration) {
        if self.ending.is_some() {
            return;
        }
        self.nodes.clear();
        self.devices.clear();
        self.puts.clear();
        self.service_links.clear();
        self.held_due = None;
        self.stopping_due = None;
        self.turns.clear();
        self.fetch_waiters.clear();
        self.refusals.clear();
        self.authentication_due = None;
        self.grants_due = None;
        self.engine.close(error.into());
        self.end_with(End::ByHub(reason), now);
    }

    /// Ends a session with all its links for a reason of the hub's.
    fn end_session(&mut self, session: SessionId, error: Error) {
        self.forget_session(session);
        // A session that is gone already needs no end.
        let _ = self.engine.end_session(session, Some(error));
    }

    fn forget_session(&mut self, session: SessionId) {
        for link in self.links_in(session) {
            self.forget(link);
        }
        self.devices.forget_session(session);
        self.refusals
            .retain(|refusal| refusal.link.session() != session);
    }

    /// Begins to end everything in good order: the hub is being stopped. Nothing new is taken, and
    /// what was taken is answered first: a service must not send again what is durable.
    fn stop(&mut self, now: Duration) {
        if self.ending.is_some() {
            return;
        }
        for node in self.nodes.values_mut() {
            match node {
                Node::Commands(commands) => commands.stop(),
                Node::Feedback(feedback, _) => feedback.stop(),
                Node::Device(device) => device.stop(),
                Node::Requests(_) | Node::Answers(_) | Node::Reader(_) => {}
            }
        }
        self.stopping_due = Some(now.saturating_add(self.context.limits.linger));
    }

    /// Whether a client waits for the hub to tell what has become of something.
    fn owes_answers(&self) -> bool {
        self.nodes.values().any(|node| match node {
            Node::Commands(commands) => commands.is_owing(),
            Node::Feedback(feedback, _) => feedback.is_owing(),
            Node::Device(device) => device.is_owing(),
            Node::Requests(_) | Node::Answers(_) | Node::Reader(_) => false,
        })
    }

    /// Ends the connection without a word, once what was told before is written.
    fn cut(&mut self, reason: &'static str, now: Duration) {
        self.nodes.clear();
        self.devices.clear();
        let linger = match self.engine.output_len() {
            0 => Duration::ZERO,
            _ => self.context.limits.linger,
        };
        let due = now.saturating_add(linger);
        self.ending.get_or_insert((End::ByHub(reason), due));
    }

    fn finish_stop(&mut self, now: Duration) {
        self.stopping_due = None;
        if self.devices.is_any() {
            // As though the network had failed, after which every library for devices connects anew. Told
            // that its links or its connection are closed, Node's waits 45 s for its own first.
            self.cut("drain", now);
            return;
        }
        for (link, _) in std::mem::take(&mut self.nodes) {
            // A link that is gone already needs no detach.
            let _ = self.engine.detach(link, Some(error::detach_forced()));
        }
        self.close(error::connection_forced(), "drain", now);
    }

    // The peer's bytes.

    /// Feeds the engine.
    fn poll_input<S>(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut S,
        now: Duration,
    ) -> Result<Intake, End>
    where
        S: AsyncRead + Unpin,
    {
        if !self.wants_input() {
            return Ok(Intake::Blocked);
        }
        let unauthenticated = self.grants.last_expiry().is_none();
        let few = self.context.limits.unauthenticated_bytes_max;
        let before = self.engine.incomplete_bytes();
        let taken = if self.leftover.is_empty() {
            let room = if unauthenticated { few } else { SCRATCH_BYTES };
            let (engine, leftover) = (&mut self.engine, &mut self.leftover);
            let read = poll_read_scratch_up_to(stream, cx, room, |bytes| {
                let taken = engine.feed(bytes, now);
                if let Ok(count) = taken {
                    leftover.extend_from_slice(bytes.get(count..).unwrap_or_default());
                }
                taken
            });
            match read {
                Poll::Pending => return Ok(Intake::Awaited),
                Poll::Ready(Err(error)) => return Err(End::Socket(error)),
                Poll::Ready(Ok(Input::End)) => return Err(End::PeerGone),
                Poll::Ready(Ok(Input::Bytes { made: taken, .. })) => taken,
            }
        } else {
            let taken = self.engine.feed(&self.leftover, now);
            match taken {
                Ok(count) if count >= self.leftover.len() => self.leftover = BytesMut::new(),
                Ok(count) => self.leftover.advance(count),
                Err(_) => {}
            }
            taken
        };
        match taken {
            Ok(count) => {
                let incomplete = self.engine.incomplete_bytes();
                let fresh = incomplete < before.saturating_add(count);
                let held = incomplete + self.leftover.len();
                self.context.incomplete.hold(held, fresh, now);
                if unauthenticated && incomplete > few {
                    return Err(End::Incomplete);
                }
            }
            Err(fatal) => self.end_with(End::Fatal(fatal), now),
        }
        Ok(Intake::Taken)
    }

    fn on_event(&mut self, event: Event, now: Duration) {
        match event {
            Event::SaslInit(init) => self.on_sasl_init(&init),
            Event::Opened(open) => {
                self.hostname = open.hostname;
                let hostname = self.hostname.as_deref().unwrap_or_default();
                tracing::debug!(hostname, "AMQP connection open");
            }
            Event::SessionEnded { session, .. } => self.forget_session(session),
            // They find out soon enough.
            Event::Attach { .. } if self.stopping_due.is_some() => {}
            Event::Attach { link, attach } => self.on_attach(link, &attach, now),
            Event::Credit(link) => self.on_credit(link),
            Event::WindowOpen(session) => {
                let links = self.links_in(session);
                links.into_iter().for_each(|link| self.on_credit(link));
            }
            Event::Drain(link) => {
                match self.nodes.get_mut(&link) {
                    Some(Node::Reader(reader)) => reader.drain(),
                    Some(Node::Answers(answers)) => {
                        answers.flush(link, &mut self.engine);
                        let _ = self.engine.drained(link);
                    }
                    Some(Node::Feedback(feedback, _)) => feedback.drain(),
                    Some(Node::Device(device)) => device.drain(),
                    Some(Node::Requests(_) | Node::Commands(_)) | None => {}
                }
                self.on_credit(link);
            }
            Event::Message(message) => self.on_message(&message),
            Event::Outcome(outcome) => match self.nodes.get_mut(&outcome.link) {
                Some(Node::Feedback(feedback, _)) => feedback.on_outcome(&outcome),
                Some(Node::Device(device)) => device.on_outcome(&outcome),
                _ if outcome.settled => {}
                _ => {
                    // A link that is gone in the meantime has nothing to settle.
                    let _ = self.engine.settle_outgoing(
                        outcome.link,
                        outcome.delivery_id,
                        outcome.state,
                    );
                }
            },
            Event::Detached { link, .. } => {
                self.forget(link);
                self.refusals.retain(|refusal| refusal.link != link);
            }
            Event::Closed(_) => self.end_with(End::Closed, now),
            // Only the side that begins sessions, asks for links or drains gets these.
            Event::SessionBegun(_) | Event::Attached { .. } | Event::Drained(_) => {}
        }
    }

    // Readers' turns.

    fn poll_bell(&mut self, cx: &mut Context<'_>) {
        // Only a poll that finds the bell silent leaves a waker behind.
        while self.bell.poll_rung(cx).is_ready() {
            let mut ended = Vec::new();
            for (link, node) in &mut self.nodes {
                let Node::Reader(reader) = node else { continue };
                match reader.ended() {
                    Some(error) => ended.push((*link, error)),
                    None => queue_turn(&mut self.turns, *link, reader),
                }
            }
            for (link, error) in ended {
                self.detach(link, error);
            }
        }
    }

    fn poll_fetches(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some((link, fetched))) = self.fetches.poll_next_unpin(cx) {
            self.turns.extend(self.fetch_waiters.pop_front());
            let Some(Node::Reader(reader)) = self.nodes.get_mut(&link) else {
                continue;
            };
            match reader.take(fetched) {
                Ok(()) => queue_turn(&mut self.turns, link, reader),
                Err(failed) => self.on_fetch_failed(link, &failed),
            }
        }
    }

    /// Lets readers send, each one turn at a time, until the output is long enough or nobody has
    /// anything to send. True when something was sent.
    fn take_turns(&mut self) -> bool {
        let now = self.context.timer().now();
        let mut sent = false;
        while self.engine.output_len() < OUTPUT_BYTES_MAX {
            let Some(link) = self.turns.pop_front() else {
                break;
            };
            let Some(Node::Reader(reader)) = self.nodes.get_mut(&link) else {
                continue;
            };
            reader.queued = false;
            match reader.turn(link, &mut self.engine, &mut self.head, now) {
                Turn::Idle => {}
                Turn::More => {
                    sent = true;
                    queue_turn(&mut self.turns, link, reader);
                }
                Turn::Fetch if self.fetches.len() < FETCHES_MAX => {
                    let fetch = reader.fetch(self.engine.sendable(link));
                    self.fetches
                        .push(Box::pin(async move { (link, fetch.await) }));
                    // So that the fetch is polled before this task sleeps.
                    sent = true;
                }
                Turn::Fetch => {
                    // It is queued still, only elsewhere: nobody may queue it a second time.
                    reader.queued = true;
                    self.fetch_waiters.push_back(link);
                }
                Turn::Failed(error) => self.detach(link, error),
            }
        }
        sent
    }

    // The service endpoint.

    /// Lets the links to the service endpoint tell their clients what the hub has for them.
    fn poll_service_links(&mut self, cx: &mut Context<'_>, now: Duration) -> Served {
        let mut served = Served::Nothing;
        let mut failed = Vec::new();
        for link in &self.service_links {
            match self.nodes.get_mut(link) {
                Some(Node::Commands(commands)) => {
                    if commands.poll(cx, *link, &mut self.engine) {
                        served = Served::Told;
                    }
                    if commands.is_held() {
                        let due = now.saturating_add(HELD_CHECK_INTERVAL);
                        self.held_due.get_or_insert(due);
                    }
                }
                Some(Node::Feedback(feedback, _)) => {
                    let polled = feedback.poll(cx, *link, &mut self.engine, &mut self.head, now);
                    match polled {
                        Polled::Idle => {}
                        Polled::Sent => served = Served::Told,
                        Polled::Full if served == Served::Nothing => served = Served::HeldBack,
                        Polled::Full => {}
                        Polled::Failed(error) => failed.push((*link, error)),
                    }
                }
                _ => {}
            }
        }
        for (link, error) in failed {
            self.detach(link, error);
            served = Served::Told;
        }
        served
    }

    /// Whether bytes are taken from the peer: not while there is much to write to it, and not while
    /// the hub has no room for the messages that it sent.
    fn wants_input(&self) -> bool {
        let crowded = self.service_links.iter().any(|link| {
            matches!(self.nodes.get(link), Some(Node::Commands(commands)) if commands.is_crowded())
        });
        let is_busy = self.devices.is_crowded() || self.puts.len() >= PUTS_MAX;
        !crowded && !is_busy && self.engine.wants_input()
    }

    /// The links of a session behind which something stands.
    fn links_in(&self, session: SessionId) -> Vec<LinkId> {
        let links = self.nodes.keys().copied();
        links.filter(|link| link.session() == session).collect()
    }

    /// Forgets what stood behind a link.
    fn forget(&mut self, link: LinkId) {
        let device = match self.nodes.remove(&link) {
            Some(Node::Device(device)) => Some(device),
            Some(_) | None => None,
        };
        self.devices.forget(link, device);
        self.service_links.retain(|known| *known != link);
        self.fetch_waiters.retain(|waiter| *waiter != link);
    }
}

fn queue_turn(turns: &mut VecDeque<LinkId>, link: LinkId, reader: &mut Reader) {
    if !std::mem::replace(&mut reader.queued, true) {
        turns.push_back(link);
    }
}
