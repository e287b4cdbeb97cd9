//! An open connection: reads, submits, acknowledges what is durable, until something ends it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use fieldpost_hub::auth::DevicePrincipal;
use fieldpost_hub::faults::Fault;
use fieldpost_hub::ingest::{Hold, Sender, WINDOW_MESSAGES};
use fieldpost_hub::presence::{Eviction, Session};
use fieldpost_hub::subscriptions::Features;
use fieldpost_model::Timestamp;
use fieldpost_model::limits::TOKEN_CLOCK_SKEW;
use fieldpost_mqtt::{AckTicket, PacketId, ServerConnection, ServerEvent};
use fieldpost_store::StoreError;
use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::{Span, debug};

use super::deliver::{Deliveries, Recipient, count_unmatched};
use super::ending::Ending;
use super::handshake::Opened;
use super::publishing::{Published, Refusing, publish_to_hub};
use super::subscribing::{Answer, Change, SubscriptionState};
use super::twin;
use super::will::Will;
use crate::clock::{Alarm, within};
use crate::context::ConnectionContext;
use crate::figures::count_refused;
use crate::io::{Input, SCRATCH_BYTES, poll_read_scratch_up_to, poll_write_all};

/// Answers that a client may leave unread before nothing more is read from it. Messages that it has
/// yet to take in do not count: their number and size have bounds of their own, and a client may well
/// send its own first.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// A small PUBLISH. Reads are as large as the free window filled with such, or with packets of the
/// client's usual size when that is more, and at least [`READ_BYTES_MIN`].
const SMALL_PACKET_BYTES: usize = 128;
const READ_BYTES_MIN: usize = 4 * 1024;

/// How slowly the usual size of a client's packets follows that of the packets of one read.
const USUAL_PACKET_WEIGHT: usize = 4;

/// Time that a will may wait for room in the hub. A newer connection of the device waits for it.
const WILL_WAIT_MAX: Duration = Duration::from_secs(2);

/// An open connection.
pub(super) struct Running<S> {
    stream: S,
    core: Core,
}

/// Everything but the socket.
struct Core {
    engine: ServerConnection,
    context: ConnectionContext,
    /// Who the client is.
    principal: DevicePrincipal,
    /// The device's messages that this connection holds, while it is subscribed to them. Goes
    /// before the session, which the device's next connection waits for.
    deliveries: Option<Box<Deliveries>>,
    session: Session,
    sender: Sender,
    subscriptions: SubscriptionState,
    will: Option<Box<Will>>,
    /// Acknowledgements that wait until something is durable, oldest first. At most one entry for
    /// each batch and each verdict in flight, which sender and delivery window bound.
    acks: VecDeque<HeldAck>,
    submitted: u64,
    durable: u64,
    /// Verdicts of the client on messages that were sent to it.
    verdict: u64,
    /// Read and not worked off, because something must be answered first.
    held_input: Vec<u8>,
    /// Bytes of the client's packets, a running mean.
    usual_packet_bytes: usize,
    /// Nothing is read, for the store's or the window's sake.
    paused: bool,
    draining_until: Option<Duration>,
    refusing: Option<Box<Refusing>>,
    unflushed: bool,
    /// How much of the unwritten output is messages to the device, at most.
    delivery_bytes: usize,
    /// The peer takes nothing any more. What it said before is still read.
    write_error: Option<io::Error>,
    alarm: Alarm,
    expiry_due: Duration,
}

/// Acknowledgements up to a ticket, and what must be durable before they go out.
struct HeldAck {
    batch: u64,
    verdict: u64,
    ticket: AckTicket,
}

/// What a round of work came to.
enum Round {
    /// Something was done that others have to do something about.
    Progress,
    /// Nothing more can be done at present.
    Idle,
}

/// The engine's unwritten output as a buffer.
pub(super) struct Unwritten<'a>(pub(super) &'a mut ServerConnection);

impl Buf for Unwritten<'_> {
    fn remaining(&self) -> usize {
        self.0.output_len()
    }

    fn chunk(&self) -> &[u8] {
        self.0.output()
    }

    fn advance(&mut self, count: usize) {
        self.0.consume_output(count);
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Running<S> {
    /// Goes on with a connection whose CONNECT was accepted.
    pub(super) fn new(
        stream: S,
        engine: ServerConnection,
        context: ConnectionContext,
        opened: Opened,
    ) -> Self {
        let principal = opened.principal;
        let mut sender = context.hub.ingest().sender(&principal);
        sender.set_model_id(opened.model_id);
        let expiry_due = due(&context, expiry(&principal));
        Self {
            stream,
            core: Core {
                engine,
                deliveries: None,
                session: opened.session,
                sender,
                subscriptions: SubscriptionState {
                    features: opened.features,
                    durable: opened.durable,
                    empty_values: opened.empty_values,
                    change: None,
                },
                principal,
                will: opened.will,
                acks: VecDeque::new(),
                submitted: 0,
                durable: 0,
                verdict: 0,
                held_input: opened.early,
                usual_packet_bytes: SMALL_PACKET_BYTES,
                paused: false,
                draining_until: None,
                refusing: None,
                unflushed: true,
                delivery_bytes: 0,
                write_error: None,
                alarm: Alarm::default(),
                expiry_due,
                context,
            },
        }
    }

    /// Runs until the connection ends.
    pub(super) fn run(&mut self) -> impl Future<Output = Ending> {
        poll_fn(|cx| match self.poll(cx) {
            Poll::Ready(Err(ending)) => Poll::Ready(ending),
            Poll::Ready(Ok(never)) => match never {},
            Poll::Pending => Poll::Pending,
        })
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Infallible, Ending>> {
        let Self { stream, core } = self;
        loop {
            let now = core.context.monotonic();
            core.look_for_ends(cx, now)?;
            core.release_acks(cx)?;
            core.finish_change(cx)?;
            core.deliver(cx, now);
            let delivered = core.write(stream, cx);
            core.leave_when_drained()?;
            let read = core.read_on(stream, cx, now)?;
            if matches!(read, Round::Progress) || matches!(delivered, Round::Progress) {
                continue;
            }
            std::task::ready!(core.wait(cx, now));
            core.look_at_times()?;
        }
    }

    /// What log lines about the connection have in common.
    pub(super) fn span(&self) -> Span {
        self.core.span()
    }

    /// Logs and counts the end.
    pub(super) fn report(&self, ending: &Ending) {
        ending.report(self.core.context.monotonic());
    }

    /// Gives back what the client was sent and did not acknowledge.
    pub(super) fn end_deliveries(&mut self) {
        self.core.deliveries = None;
    }

    /// Leaves the will to the log, if the end calls for it.
    ///
    /// Bounded in time; a will that finds no room is dropped, as a device without one would be.
    pub(super) async fn publish_will(&mut self, ending: &Ending) {
        let core = &mut self.core;
        let Some(will) = core.will.take() else { return };
        match ending {
            Ending::Disconnected => return,
            // Whoever may not connect may not send.
            Ending::Evicted(Eviction::Deleted | Eviction::Disabled) => return,
            _ => {}
        }
        let timer = Arc::clone(core.context.timer());
        let room = within(&timer, WILL_WAIT_MAX, core.sender.reserve()).await;
        let message = will.message(core.principal.identity.module.is_some());
        let published = room.is_some()
            && core.sender.accept(&message).is_ok()
            && matches!(core.sender.submit(), Ok(Some(_)));
        if published {
            core.context.mqtt_figures.messages.increment(1);
            core.context
                .mqtt_figures
                .payload_bytes
                .increment(message.body.len() as u64);
        } else {
            metrics::counter!("fieldpost_wills_dropped_total").increment(1);
            debug!("a will was dropped: the hub had no room for it");
        }
    }

    /// Ends the device's session and gives the socket back, and what is known of the connection.
    pub(super) fn into_parts(self) -> (S, ConnectionContext) {
        (self.stream, self.core.context)
    }
}

impl Core {
    /// For what is logged now and then: an open connection has none that lasts.
    fn span(&self) -> Span {
        self.context.span(Some(&self.principal.identity))
    }

    /// Whether somebody else has ended the connection, or is about to.
    fn look_for_ends(&mut self, cx: &mut Context<'_>, now: Duration) -> Result<(), Ending> {
        if let Poll::Ready(eviction) = self.session.poll_evicted(cx) {
            return Err(Ending::Evicted(eviction));
        }
        match self.session.take_fault() {
            None => {}
            Some(fault @ (Fault::KillTcp | Fault::ShutDown | Fault::AuthError)) => {
                return Err(Ending::OnDemand(fault));
            }
            Some(fault) => debug!(?fault, "a fault that means nothing over MQTT"),
        }
        if self.context.incomplete.poll_evicted(cx).is_ready() {
            return Err(Ending::IncompleteForTooLong);
        }
        if self.draining_until.is_none() && self.context.is_draining() {
            self.draining_until = Some(now.saturating_add(self.context.limits.linger));
        }
        Ok(())
    }

    /// Acknowledges what has become durable.
    fn release_acks(&mut self, cx: &mut Context<'_>) -> Result<(), Ending> {
        while let Poll::Ready(durable) = self.sender.poll_durable(cx) {
            self.durable = durable?;
        }
        let verdicts_settled = match &mut self.deliveries {
            Some(deliveries) => deliveries.verdicts_settled(cx).map_err(Ending::Store)?,
            // Whoever still had one would not be gone.
            None => self.verdict,
        };
        let mut last = None;
        while let Some(held) = self.acks.front()
            && held.batch <= self.durable
            && held.verdict <= verdicts_settled
        {
            last = Some(held.ticket);
            self.acks.pop_front();
        }
        if let Some(ticket) = last {
            self.engine.acknowledge_through(ticket);
        }
        Ok(())
    }

    /// Answers a SUBSCRIBE or UNSUBSCRIBE whose change is durable.
    fn finish_change(&mut self, cx: &mut Context<'_>) -> Result<(), Ending> {
        let Some(change) = &mut self.subscriptions.change else {
            return Ok(());
        };
        let Poll::Ready(stored) = change.stored.as_mut().poll(cx) else {
            return Ok(());
        };
        let change = self.subscriptions.change.take();
        // The client asks again on its next connection; without an answer it may not rely on it.
        stored.map_err(Ending::Store)?;
        let Some(change) = change else { return Ok(()) };
        self.subscriptions.features = change.features;
        if change.features.device_bound.is_none()
            && let Some(deliveries) = &mut self.deliveries
        {
            deliveries.stop();
        }
        let answered = match &change.answer {
            Answer::Suback(packet_id, codes) => self.engine.suback(*packet_id, codes),
            Answer::Unsuback(packet_id) => self.engine.unsuback(*packet_id),
        };
        if let Err(error) = answered {
            self.span()
                .in_scope(|| debug!(%error, "a subscription was not answered"));
        }
        Ok(())
    }

    /// Sends what the hub has for the device, if the client has subscribed to that and reads.
    fn deliver(&mut self, cx: &mut Context<'_>, now: Duration) {
        let Some(deliveries) = &mut self.deliveries else {
            return;
        };
        if deliveries.is_over() {
            self.deliveries = None;
            return;
        }
        deliveries.return_late(cx);
        if self.draining_until.is_some() || self.write_error.is_some() {
            return;
        }
        let Some(qos) = self.subscriptions.features.device_bound else {
            return;
        };
        let recipient = Recipient {
            identity: &self.principal.identity,
            qos,
            empty_values: self.subscriptions.empty_values,
            context: &self.context,
            now,
        };
        let before = self.engine.output_len();
        deliveries.send(cx, &mut self.engine, recipient);
        self.delivery_bytes += self.engine.output_len() - before;
    }

    /// Writes what there is to write. A failure does not end the connection by itself: a client
    /// that sends, says DISCONNECT and goes without waiting for answers has been heard out first.
    fn write<S>(&mut self, stream: &mut S, cx: &mut Context<'_>) -> Round
    where
        S: AsyncWrite + Unpin,
    {
        if self.unflushed || self.engine.output_len() > 0 {
            let written = match &self.write_error {
                None => poll_write_all(stream, cx, &mut Unwritten(&mut self.engine)),
                Some(_) => {
                    drop(self.engine.take_output());
                    Poll::Ready(Ok(()))
                }
            };
            self.unflushed = written.is_pending();
            if let Poll::Ready(Err(error)) = written {
                drop(self.engine.take_output());
                self.write_error = Some(error);
            }
            self.delivery_bytes = self.delivery_bytes.min(self.engine.output_len());
        }
        if self.unflushed || self.write_error.is_some() {
            return Round::Idle;
        }
        self.follow_flush()
    }

    /// Everything the client was answered is on its way: CONNACK and SUBACK go before any delivery,
    /// and what was sent at QoS 0 is over and done with.
    fn follow_flush(&mut self) -> Round {
        let subscribed =
            self.subscriptions.features.device_bound.is_some() && self.draining_until.is_none();
        match &mut self.deliveries {
            None if !subscribed => Round::Idle,
            None => {
                self.deliveries = Some(Box::new(self.attach()));
                Round::Progress
            }
            Some(deliveries) => {
                let resumed = subscribed && deliveries.resume();
                if deliveries.written() || resumed {
                    Round::Progress
                } else {
                    Round::Idle
                }
            }
        }
    }

    fn attach(&mut self) -> Deliveries {
        let c2d = self.context.hub.c2d();
        let principal = &self.principal;
        let epoch = self.session.epoch();
        let session_persists = self.subscriptions.durable;
        let receiver = if session_persists {
            c2d.resume(principal, epoch)
        } else {
            c2d.receiver(principal, epoch)
        };
        let mut first = [0; 2];
        self.context.hub.chance().fill(&mut first);
        let first = PacketId::new(u16::from_ne_bytes(first)).unwrap_or(PacketId::MIN);
        Deliveries::new(
            receiver,
            &mut self.engine,
            first,
            session_persists,
            self.verdict,
            self.context.conn_id,
        )
    }

    /// A drained connection ends when everything read from it is durable and acknowledged.
    fn leave_when_drained(&self) -> Result<(), Ending> {
        let done = self.acks.is_empty() && self.sender.in_flight() == 0 && !self.unflushed;
        if self.draining_until.is_some() && done {
            return Err(Ending::Drained);
        }
        Ok(())
    }

    /// Reads until nothing more can be read at present, or until something came that is not only
    /// for the log.
    fn read_on<S>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        now: Duration,
    ) -> Result<Round, Ending>
    where
        S: AsyncRead + Unpin,
    {
        loop {
            let unwritten = self.engine.output_len();
            let Some(read) = self.read(stream, cx, now)? else {
                return Ok(Round::Idle);
            };
            // The log may have taken it already, and if not, has to know whom to wake.
            self.release_acks(cx)?;
            if read.concerns_others
                || self.subscriptions.change.is_some()
                || self.engine.output_len() > unwritten
            {
                return Ok(Round::Progress);
            }
            // To try again when all was read would only cost time: the socket wakes this task.
            if read.is_all && self.held_input.is_empty() {
                return Ok(Round::Idle);
            }
        }
    }

    /// Reads once, or works off what was read before, if there is room for what it may bring.
    fn read<S>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        now: Duration,
    ) -> Result<Option<Taken>, Ending>
    where
        S: AsyncRead + Unpin,
    {
        // A client that does not take its answers is silent, whatever it sends meanwhile.
        if self.draining_until.is_some() || !self.is_read() {
            // Its turn at the byte budget must not lie idle meanwhile.
            self.sender.withdraw();
            self.resume(now);
            return Ok(None);
        }
        if self.subscriptions.change.is_some() {
            self.paused = true;
            return Ok(None);
        }
        if self.sender.poll_reserve(cx).is_pending() {
            self.paused = true;
            if let Hold::ReadOnly = self.sender.hold() {
                let reason = "the hub takes no messages".into();
                return Err(Ending::Store(StoreError::ReadOnly { reason }));
            }
            return Ok(None);
        }
        self.resume(now);
        if !self.held_input.is_empty() {
            let input = std::mem::take(&mut self.held_input);
            let concerns_others = self.work_off(&input, now)?;
            return Ok(Some(Taken {
                concerns_others,
                is_all: false,
            }));
        }
        let bytes_max = self.read_bytes_max();
        let read =
            poll_read_scratch_up_to(stream, cx, bytes_max, |input| self.work_off(input, now));
        match read {
            Poll::Ready(Ok(Input::Bytes { made, is_all })) => Ok(Some(Taken {
                concerns_others: made?,
                is_all,
            })),
            Poll::Ready(Ok(Input::End)) => Err(match self.write_error.take() {
                None => Ending::Closed,
                Some(error) => error.into(),
            }),
            Poll::Ready(Err(error)) => Err(error.into()),
            Poll::Pending => {
                self.sender.unreserve();
                Ok(None)
            }
        }
    }

    /// Whether the client takes its answers.
    fn is_read(&self) -> bool {
        self.engine.output_len().saturating_sub(self.delivery_bytes) <= ANSWER_BYTES_MAX
    }

    /// Counts the client's silence again; until now it was this side's.
    fn resume(&mut self, now: Duration) {
        if std::mem::take(&mut self.paused) {
            self.engine.restart_silence(now);
        }
    }

    /// As much as will most likely fit the window, so that what does not is left with the client.
    fn read_bytes_max(&self) -> usize {
        let messages = WINDOW_MESSAGES.saturating_sub(self.sender.in_flight());
        (messages * self.usual_packet_bytes).clamp(READ_BYTES_MIN, SCRATCH_BYTES)
    }

    /// Works `input` off, as far as there is room, and submits the messages in it together. True when
    /// there was something in it that others have to do something about.
    fn work_off(&mut self, mut input: &[u8], now: Duration) -> Result<bool, Ending> {
        self.session.touch(self.context.timer().now());
        let bytes = input.len();
        let mut read = ReadSoFar::default();
        let outcome = self.take_packets(&mut input, now, &mut read);
        // What came before a breach is as good as ever.
        self.finish_read(&read)?;
        outcome?;
        self.held_input.extend_from_slice(input);
        let held = self.engine.incomplete_bytes() + self.held_input.len();
        self.context.incomplete.hold(held, read.packets > 0, now);
        self.note_packets(bytes - input.len(), read.packets);
        Ok(read.concerns_others)
    }

    /// Follows the usual size of the client's packets.
    fn note_packets(&mut self, bytes: usize, packets: usize) {
        // Of a large packet that is still to come to its end, a part was taken in this read.
        let mean = bytes / packets.max(1);
        let before = self.usual_packet_bytes * (USUAL_PACKET_WEIGHT - 1);
        self.usual_packet_bytes =
            ((before + mean) / USUAL_PACKET_WEIGHT).clamp(SMALL_PACKET_BYTES, SCRATCH_BYTES);
    }

    fn take_packets(
        &mut self,
        input: &mut &[u8],
        now: Duration,
        read: &mut ReadSoFar,
    ) -> Result<(), Ending> {
        while self.subscriptions.change.is_none() && self.sender.has_room() && self.is_read() {
            let Some(event) = self.engine.next(input, now)? else {
                return Ok(());
            };
            read.packets += 1;
            match event {
                // Acknowledgements are cumulative, and one that was refused came before it.
                ServerEvent::Publish { .. } if self.refusing.is_some() => {}
                ServerEvent::Publish { publish, ticket } => {
                    let published =
                        publish_to_hub(&self.principal.identity, &mut self.sender, &publish)?;
                    match published {
                        Published::Refused(refused) => {
                            count_refused("mqtt", "not_taken");
                            self.refusing = Some(Box::new(Refusing::new(refused, now)));
                            continue;
                        }
                        Published::Verdict(settlement, name) => {
                            read.concerns_others = true;
                            let deliveries = self.deliveries.as_mut();
                            match deliveries.and_then(|d| d.judge(settlement, &name)) {
                                Some(number) => self.verdict = number,
                                None => count_unmatched(),
                            }
                        }
                        Published::Accepted => {
                            read.messages += 1;
                            read.payload_bytes += publish.payload.len() as u64;
                        }
                        Published::TwinRequest(request_id) => self.answer_twin(&request_id),
                        Published::Ignored => {}
                    }
                    read.ticket = ticket.or(read.ticket);
                }
                ServerEvent::Puback { packet_id } => {
                    read.concerns_others = true;
                    if let Some(deliveries) = &mut self.deliveries {
                        deliveries.acknowledged(packet_id);
                    }
                }
                ServerEvent::Subscribe(subscribe) => {
                    let change = self
                        .subscriptions
                        .subscribe(&self.principal.identity, &subscribe)?;
                    self.start_change(change);
                }
                ServerEvent::Unsubscribe(unsubscribe) => {
                    let change = self
                        .subscriptions
                        .unsubscribe(&self.principal.identity, &unsubscribe);
                    self.start_change(change);
                }
                ServerEvent::Disconnect => return Err(Ending::Disconnected),
                // The engine gives the first packet only to the handshake.
                ServerEvent::Connect(_) => return Err(Ending::Closed),
            }
        }
        Ok(())
    }

    /// Submits what a read brought and remembers what is to be acknowledged with it.
    fn finish_read(&mut self, read: &ReadSoFar) -> Result<(), Ending> {
        if let Some(batch) = self.sender.submit()? {
            self.submitted = batch;
            self.context.mqtt_figures.messages.increment(read.messages);
            self.context
                .mqtt_figures
                .payload_bytes
                .increment(read.payload_bytes);
        }
        let Some(ticket) = read.ticket else {
            return Ok(());
        };
        // Acknowledgements go out in the order of the messages, so even what needs no storing
        // waits for what was submitted before it.
        match self.acks.back_mut() {
            Some(held) if held.batch == self.submitted && held.verdict == self.verdict => {
                held.ticket = ticket;
            }
            _ => self.acks.push_back(HeldAck {
                batch: self.submitted,
                verdict: self.verdict,
                ticket,
            }),
        }
        Ok(())
    }

    fn answer_twin(&mut self, request_id: &str) {
        if self.subscriptions.features.twin_responses.is_none() {
            return;
        }
        let (topic, body) = twin::not_supported(&self.context.hub, request_id);
        if let Err(error) = self.engine.publish_at_most_once(&topic, &body) {
            self.span()
                .in_scope(|| debug!(%error, "a twin request was not answered"));
        }
    }

    fn start_change(&mut self, (features, answer): (Features, Answer)) {
        let state = &mut self.subscriptions;
        let stored: BoxFuture<'static, _> = if state.durable && features != state.features {
            let hub = self.context.hub.clone();
            let principal = self.principal.clone();
            Box::pin(async move { hub.subscriptions().store(&principal, features).await })
        } else {
            Box::pin(std::future::ready(Ok(())))
        };
        state.change = Some(Box::new(Change {
            features,
            answer,
            stored,
        }));
    }

    /// Ready when the next deadline has come.
    fn wait(&mut self, cx: &mut Context<'_>, now: Duration) -> Poll<()> {
        // While nothing is read, the client's silence cannot be told from this side's.
        let silence = self.engine.deadline().filter(|_| !self.paused);
        let due = [
            silence,
            self.held_until(),
            self.draining_until,
            self.refusing.as_ref().map(|refusing| refusing.until),
            Some(self.expiry_due),
        ];
        let (timer, due) = (self.context.timer(), due.into_iter().flatten().min());
        self.alarm.poll_at(cx, timer, now, due)
    }

    /// When the connection is to be closed because the store holds its messages back.
    fn held_until(&self) -> Option<Duration> {
        match self.sender.hold() {
            Hold::Held { since } => Some(since.saturating_add(self.context.limits.held_max)),
            Hold::None | Hold::ReadOnly => None,
        }
    }

    /// Looks which deadlines have passed.
    fn look_at_times(&mut self) -> Result<(), Ending> {
        let now = self.context.monotonic();
        if self.draining_until.is_some_and(|until| now >= until) {
            return Err(Ending::Drained);
        }
        if let Some(refusing) = self.refusing.take_if(|refusing| now >= refusing.until) {
            return Err(Ending::NotTaken(refusing.refused));
        }
        if now >= self.expiry_due {
            // The wall clock decides, and it may have been set since.
            let expiry = expiry(&self.principal);
            if self.context.timer().now() >= expiry {
                return Err(Ending::TokenExpired);
            }
            self.expiry_due = due(&self.context, expiry);
        }
        if self.held_until().is_some_and(|until| now >= until) {
            return Err(Ending::HeldTooLong);
        }
        if !self.paused {
            self.engine.tick(now).map_err(Ending::Silent)?;
        }
        Ok(())
    }
}

/// What became of a read.
struct Taken {
    /// It brought something that others have to do something about: what waits for delivery, or for
    /// the client's verdict.
    concerns_others: bool,
    /// The socket has no more at present, and will wake this task.
    is_all: bool,
}

/// What a read has brought so far.
#[derive(Default)]
struct ReadSoFar {
    concerns_others: bool,
    packets: usize,
    messages: u64,
    payload_bytes: u64,
    ticket: Option<AckTicket>,
}

/// When the connection ends with its token. No SDK can renew its token on a live connection, and the
/// real service lets go late.
fn expiry(principal: &DevicePrincipal) -> Timestamp {
    principal.expires.saturating_add(TOKEN_CLOCK_SKEW)
}

/// When, in monotonic time, the wall clock will show `at` if nobody sets it.
fn due(context: &ConnectionContext, at: Timestamp) -> Duration {
    let timer = context.timer();
    timer.monotonic().saturating_add(at.since(timer.now()))
}
