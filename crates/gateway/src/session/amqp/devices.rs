//! The devices that a connection speaks for, and their links.
//!
//! A connection may carry many, each by a credential of its own or all by a policy's. With its first link a
//! device takes its place among the connected ones, and lets go of it with the last; whatever ends one
//! device's links leaves those of the others alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fieldpost_amqp::performative::{Attach, Role};
use fieldpost_amqp::value::Value;
use fieldpost_amqp::{Error, LinkId, LinkReply, Message, Outcome, SessionId};
use fieldpost_hub::auth::{AuthError, DevicePrincipal};
use fieldpost_hub::faults::Fault;
use fieldpost_hub::presence;
use fieldpost_hub::throttles::{Operation, Throttled};
use fieldpost_model::{Identity, Timestamp};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};

use super::deliveries::{Content, Deliveries, Polled};
use super::grants::Credential;
use super::links::NotOpened;
use super::ready::{Bell, Ready};
use super::requests::Service;
use super::telemetry::Telemetry;
use super::{Node, OUTPUT_BYTES_MAX, Served, Session};
use crate::dialect::amqp::address::DeviceNode;
use crate::dialect::amqp::{error, refusal};
use crate::listen::limits::counted_address;

/// Links of devices that one connection may have: some for each of a thousand.
const DEVICE_LINKS_MAX: usize = 4096;

/// Bytes of telemetry that may wait for the hub before nothing more is read from the connection.
const WAITING_BYTES_MAX: usize = 1024 * 1024;

/// Longest plug-and-play model id that is looked at, in bytes (DTDL version 2, "Digital twin model
/// identifier").
const MODEL_ID_BYTES_MAX: usize = 128;

/// Names a device on this connection.
type Number = u64;

/// Whose bell it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Device(Number),
    Link(LinkId),
}

/// A device that has a link, or is about to have one.
struct Member {
    identity: Identity,
    standing: Standing,
    /// Those that are open.
    links: Vec<LinkId>,
    /// Until when its credential is good, once that is known.
    until: Option<Timestamp>,
    waker: Waker,
}

enum Standing {
    /// It is taking its place. These links wait for that.
    Coming(Vec<(LinkId, Arc<Attach>, DeviceNode)>),
    Here(Box<(DevicePrincipal, presence::Session)>),
}

/// What an attempt of a device to take its place came to.
type Arrival = (
    Number,
    Result<(DevicePrincipal, presence::Session), NotArrived>,
);

/// Why a device does not get its place.
enum NotArrived {
    Denied(AuthError),
    Throttled(Throttled),
}

impl From<AuthError> for NotArrived {
    fn from(error: AuthError) -> Self {
        Self::Denied(error)
    }
}

impl From<Throttled> for NotArrived {
    fn from(throttled: Throttled) -> Self {
        Self::Throttled(throttled)
    }
}

/// The devices of a connection.
#[derive(Default)]
pub(super) struct Devices {
    ready: Arc<Ready<Part>>,
    numbers: HashMap<Identity, Number>,
    /// In an order that a simulation can repeat.
    members: BTreeMap<Number, Member>,
    last_number: Number,
    arrivals: FuturesUnordered<BoxFuture<'static, Arrival>>,
    /// Links that have something to tell when the output is shorter.
    held_back: BTreeMap<LinkId, Arc<Bell<Part>>>,
    /// Open or waiting to be.
    links: usize,
    /// Telemetry that waits for the hub, in bytes.
    waiting_bytes: usize,
    /// When to see whether some of it has been held back for too long.
    held_due: Option<Duration>,
}

/// What stands behind one link of a device.
pub(super) struct DeviceLink {
    device: Number,
    bell: Arc<Bell<Part>>,
    waker: Waker,
    work: Work,
}

enum Work {
    Telemetry(Box<Telemetry>),
    DeviceBound(Box<Deliveries>),
    /// A module's inputs. What comes to them is routed by an edge gateway, which this hub is none of; the
    /// library of Node gives its connection up when the link is refused.
    Inputs {
        is_draining: bool,
    },
}

impl DeviceLink {
    /// Takes and sends nothing more, because the hub is being stopped.
    pub(super) fn stop(&mut self) {
        match &mut self.work {
            Work::Telemetry(telemetry) => telemetry.stop(),
            Work::DeviceBound(deliveries) => deliveries.stop(),
            Work::Inputs { .. } => {}
        }
        self.bell.ring();
    }

    /// Whether the client waits to hear that something is durable.
    pub(super) fn is_owing(&self) -> bool {
        match &self.work {
            Work::Telemetry(telemetry) => telemetry.is_owing(),
            Work::DeviceBound(deliveries) => deliveries.is_owing(),
            Work::Inputs { .. } => false,
        }
    }

    /// There is credit, or a window has opened.
    pub(super) fn on_credit(&self) {
        self.bell.ring();
    }

    /// The client wants its credit used up.
    pub(super) fn drain(&mut self) {
        match &mut self.work {
            Work::DeviceBound(deliveries) => deliveries.drain(),
            Work::Inputs { is_draining } => {
                *is_draining = true;
                self.bell.ring();
            }
            Work::Telemetry(_) => {}
        }
    }

    /// The client has told an outcome.
    pub(super) fn on_outcome(&mut self, outcome: &Outcome) {
        if let Work::DeviceBound(deliveries) = &mut self.work {
            deliveries.on_outcome(outcome);
            self.bell.ring();
        }
    }

    fn waiting_bytes(&self) -> usize {
        match &self.work {
            Work::Telemetry(telemetry) => telemetry.waiting_bytes(),
            Work::DeviceBound(_) | Work::Inputs { .. } => 0,
        }
    }

    fn held_since(&self) -> Option<Duration> {
        match &self.work {
            Work::Telemetry(telemetry) => telemetry.held_since(),
            Work::DeviceBound(_) | Work::Inputs { .. } => None,
        }
    }
}

impl Devices {
    /// Whether so much telemetry waits for the hub that nothing more is read.
    pub(super) fn is_crowded(&self) -> bool {
        self.waiting_bytes > WAITING_BYTES_MAX
    }

    /// When [`Session::check_held`] is to be called.
    pub(super) fn held_due(&self) -> Option<Duration> {
        self.held_due
    }

    /// Whether the connection speaks for any device now.
    pub(super) fn is_any(&self) -> bool {
        !self.members.is_empty()
    }

    /// A message has come on a link.
    pub(super) fn on_message(&mut self, link: &mut DeviceLink, message: &Message) {
        if let Work::Telemetry(telemetry) = &mut link.work {
            let before = telemetry.waiting_bytes();
            telemetry.on_message(message.clone());
            self.waiting_bytes += telemetry.waiting_bytes().saturating_sub(before);
            link.bell.ring();
        }
    }

    /// A link is gone, whatever it was.
    pub(super) fn forget(&mut self, link: LinkId, node: Option<DeviceLink>) {
        let Some(node) = node else {
            // It may not have been opened yet.
            for member in self.members.values_mut() {
                if let Standing::Coming(waiting) = &mut member.standing {
                    let before = waiting.len();
                    waiting.retain(|(known, ..)| *known != link);
                    self.links -= before - waiting.len();
                }
            }
            return;
        };
        self.links -= 1;
        self.waiting_bytes -= node.waiting_bytes();
        let device = node.device;
        // What it held goes back before somebody else may take the device's place.
        drop(node);
        let Some(member) = self.members.get_mut(&device) else {
            return;
        };
        member.links.retain(|known| *known != link);
        if member.links.is_empty() {
            self.remove(device);
        }
    }

    /// Links that wait to be opened in a session that has ended.
    pub(super) fn forget_session(&mut self, session: SessionId) {
        for member in self.members.values_mut() {
            if let Standing::Coming(waiting) = &mut member.standing {
                let before = waiting.len();
                waiting.retain(|(link, ..)| link.session() != session);
                self.links -= before - waiting.len();
            }
        }
    }

    /// Forgets everything: the connection is over.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    fn remove(&mut self, device: Number) -> Option<Member> {
        let member = self.members.remove(&device)?;
        self.numbers.remove(&member.identity);
        Some(member)
    }
}

impl Session {
    /// Opens a link of a device, or has it wait until the device has its place.
    pub(super) fn attach_device(
        &mut self,
        link: LinkId,
        attach: &Arc<Attach>,
        identities: [Option<Identity>; 2],
        node: DeviceNode,
    ) -> Result<(), NotOpened> {
        let wall = self.context.timer().now();
        let host = self.context.hub.name();
        let known = identities.iter().flatten().find_map(|identity| {
            let credential = self.grants.credential(host, identity, wall)?;
            Some((identity.clone(), credential))
        });
        let (identity, credential) = known
            .or_else(|| self.by_certificate(identities))
            .ok_or_else(NotOpened::unauthorized)?;
        match (attach.role, node) {
            (Role::Sender, DeviceNode::Events) | (Role::Receiver, DeviceNode::DeviceBound) => {}
            // The inputs of a module have the address to which it sends.
            (Role::Receiver, DeviceNode::Events) if identity.module.is_some() => {}
            _ => {
                let what = "direct methods and twins are not served here";
                return Err(NotOpened::new(
                    "not-implemented",
                    error::not_implemented(what),
                ));
            }
        }
        if self.devices.links >= DEVICE_LINKS_MAX {
            let error = error::too_many_device_links(DEVICE_LINKS_MAX);
            return Err(NotOpened::new("links", error));
        }
        self.devices.links += 1;
        let known = self.devices.numbers.get(&identity).copied();
        if let Some(number) = known
            && let Some(member) = self.devices.members.get_mut(&number)
        {
            match &mut member.standing {
                Standing::Coming(waiting) => waiting.push((link, Arc::clone(attach), node)),
                Standing::Here(_) => self.open_device_link(number, link, attach, node),
            }
            return Ok(());
        }
        let number = self.devices.last_number + 1;
        self.devices.last_number = number;
        let bell = self.devices.ready.bell(Part::Device(number));
        let member = Member {
            identity: identity.clone(),
            standing: Standing::Coming(vec![(link, Arc::clone(attach), node)]),
            links: Vec::new(),
            until: credential.until(),
            waker: bell.waker(),
        };
        if let Some(until) = member.until {
            self.watch_expiry(until, self.context.monotonic());
        }
        self.devices.numbers.insert(identity.clone(), number);
        self.devices.members.insert(number, member);
        let hub = self.context.hub.clone();
        let address = counted_address(self.context.peer.ip());
        let arrival = async move {
            let principal = match credential {
                Credential::Own(principal) => principal,
                Credential::Policy(grant) => {
                    hub.access().authorize_device(&grant, &identity).await?
                }
                Credential::Certificate(certificate) => {
                    let access = hub.access().from(address);
                    access
                        .authenticate_certificate(&identity, hub.name(), &certificate)
                        .await?
                }
            };
            hub.throttles().pass(Operation::Connection).await?;
            let generation = Arc::clone(&principal.generation_id);
            let connected = hub
                .presence()
                .connect(principal.identity.clone(), generation);
            Ok((principal, connected.await))
        };
        let arrival = arrival.map(move |arrived| (number, arrived)).boxed();
        self.devices.arrivals.push(arrival);
        Ok(())
    }

    /// Whether the client showed a certificate when TLS began.
    pub(super) fn is_certified(&self) -> bool {
        self.context.client_certificate.is_some()
    }

    /// What the certificate that TLS began with may open: the links of one device, the first that asks.
    fn by_certificate(&self, identities: [Option<Identity>; 2]) -> Option<(Identity, Credential)> {
        let certificate = self.context.client_certificate.as_ref()?;
        let identity = identities.into_iter().flatten().next()?;
        // Who has shown who he is, or is about to, is nobody else as well.
        let is_other = |member: &Member| member.identity != identity;
        if self.grants.is_device_login() || self.devices.members.values().any(is_other) {
            return None;
        }
        Some((identity, Credential::Certificate(Arc::clone(certificate))))
    }

    fn open_device_link(
        &mut self,
        number: Number,
        link: LinkId,
        attach: &Attach,
        node: DeviceNode,
    ) {
        let Some(member) = self.devices.members.get_mut(&number) else {
            return;
        };
        let Standing::Here(place) = &member.standing else {
            return;
        };
        let (principal, session) = &**place;
        // A link that is gone again needs no node.
        if self.engine.accept_link(link, LinkReply::default()).is_err() {
            self.devices.links -= 1;
            return;
        }
        let (hub, conn_id) = (&self.context.hub, self.context.conn_id);
        let work = match node {
            DeviceNode::Events if attach.role == Role::Receiver => {
                Work::Inputs { is_draining: false }
            }
            DeviceNode::Events => {
                let mut sender = hub.ingest().sender(principal);
                sender.set_model_id(model_id(attach));
                Work::Telemetry(Box::new(Telemetry::open(sender, conn_id)))
            }
            DeviceNode::DeviceBound | DeviceNode::Other => {
                let receiver = hub.c2d().locking_receiver(principal, session.epoch());
                let mode = attach.snd_settle_mode;
                let deliveries = Deliveries::open(Content::Commands, receiver, conn_id, mode);
                Work::DeviceBound(Box::new(deliveries))
            }
        };
        tracing::debug!(device_id = %principal.identity, ?node, "a device's link is open");
        member.links.push(link);
        let bell = self.devices.ready.bell(Part::Link(link));
        let node = DeviceLink {
            device: number,
            waker: bell.waker(),
            bell,
            work,
        };
        self.nodes.insert(link, Node::Device(node));
    }

    /// Lets the devices do what they have to do.
    pub(super) fn poll_devices(&mut self, cx: &mut Context<'_>, now: Duration) -> Served {
        let mut served = Served::Nothing;
        while let Poll::Ready(Some((number, arrived))) = self.devices.arrivals.poll_next_unpin(cx) {
            self.on_arrival(number, arrived, now);
            served = Served::Told;
        }
        if self.engine.output_len() < OUTPUT_BYTES_MAX {
            for bell in std::mem::take(&mut self.devices.held_back).values() {
                bell.ring();
            }
        }
        let Poll::Ready(rung) = self.devices.ready.poll_rung(cx) else {
            return served;
        };
        for bell in rung {
            match bell.key {
                Part::Device(number) => {
                    if self.poll_member(number) {
                        served = Served::Told;
                    }
                }
                Part::Link(link) => match self.poll_device_link(link, now) {
                    Served::Nothing => {}
                    Served::HeldBack => {
                        self.devices.held_back.insert(link, bell);
                        if served == Served::Nothing {
                            served = Served::HeldBack;
                        }
                    }
                    Served::Told => served = Served::Told,
                },
            }
        }
        served
    }

    fn on_arrival(
        &mut self,
        number: Number,
        arrived: Result<(DevicePrincipal, presence::Session), NotArrived>,
        now: Duration,
    ) {
        let Some(member) = self.devices.members.get_mut(&number) else {
            return;
        };
        let Standing::Coming(waiting) = &mut member.standing else {
            return;
        };
        let waiting = std::mem::take(waiting);
        match arrived {
            Ok(place) => {
                if member.until.is_none() {
                    // By the certificate of the connection, which speaks for this device from now on.
                    self.grants.log_in_device(place.0.clone());
                    member.until = self.grants.login_expires();
                    self.granted(now);
                }
                let Some(member) = self.devices.members.get_mut(&number) else {
                    return;
                };
                member.standing = Standing::Here(Box::new(place));
                for (link, attach, node) in waiting {
                    self.open_device_link(number, link, &attach, node);
                }
                // All may have given up meanwhile.
                let is_idle = |member: &Member| member.links.is_empty();
                if self.devices.members.get(&number).is_some_and(is_idle) {
                    self.devices.remove(number);
                } else {
                    // Somebody may have taken its place already.
                    self.poll_member(number);
                }
            }
            Err(error) => {
                self.devices.remove(number);
                for (link, attach, _) in waiting {
                    self.devices.links -= 1;
                    let not_opened = match &error {
                        NotArrived::Denied(AuthError::Unauthorized(_)) => NotOpened::unauthorized(),
                        NotArrived::Denied(
                            AuthError::TooManyFailures | AuthError::Unavailable(_),
                        ) => NotOpened::new("busy", error::busy()),
                        NotArrived::Throttled(throttled) => {
                            NotOpened::new("throttled", refusal::throttled(*throttled))
                        }
                    };
                    self.refuse(link, &attach.name, not_opened, now);
                }
            }
        }
    }

    /// Looks whether a device has lost its place. True when its links were detached.
    fn poll_member(&mut self, number: Number) -> bool {
        let Some(member) = self.devices.members.get_mut(&number) else {
            return false;
        };
        let Standing::Here(place) = &mut member.standing else {
            return false;
        };
        let mut cx = Context::from_waker(&member.waker);
        let evicted = place.1.poll_evicted(&mut cx);
        if let Some(fault) = place.1.take_fault() {
            self.on_fault(number, fault);
            return true;
        }
        let Poll::Ready(eviction) = evicted else {
            return false;
        };
        tracing::debug!(
            device_id = %member.identity,
            reason = eviction.as_str(),
            "a device's links are detached"
        );
        self.detach_device(number, &error::device_evicted(eviction));
        true
    }

    /// Has happen what a test asked for.
    fn on_fault(&mut self, number: Number, fault: Fault) {
        let now = self.context.monotonic();
        let Some(member) = self.devices.members.get(&number) else {
            return;
        };
        let is_telemetry = |link: &LinkId| {
            let node = self.nodes.get(link);
            matches!(node, Some(Node::Device(node)) if matches!(node.work, Work::Telemetry(_)))
        };
        let error = error::on_demand(fault);
        let links = match fault {
            Fault::KillTcp => return self.cut("fault", now),
            Fault::KillConnection => return self.close(error, "fault", now),
            Fault::ShutDown => return self.close(None, "fault", now),
            Fault::KillSession => {
                let sessions: BTreeSet<_> = member.links.iter().map(LinkId::session).collect();
                for session in sessions {
                    self.end_session(session, error.clone());
                }
                return;
            }
            Fault::KillCbsRequestLink | Fault::KillCbsResponseLink => {
                let is_it = |node: &Node| match node {
                    Node::Requests(Service::Cbs) => fault == Fault::KillCbsRequestLink,
                    Node::Answers(answers) => {
                        answers.service == Service::Cbs && fault == Fault::KillCbsResponseLink
                    }
                    _ => false,
                };
                let nodes = self.nodes.iter();
                nodes
                    .filter(|(_, node)| is_it(node))
                    .map(|(link, _)| *link)
                    .collect()
            }
            Fault::KillTelemetryLink => member.links.iter().copied().filter(is_telemetry).collect(),
            Fault::KillDeviceBoundLink => {
                let is_other = |link: &LinkId| !is_telemetry(link);
                member.links.iter().copied().filter(is_other).collect()
            }
            Fault::AuthError => member.links.clone(),
        };
        for link in links {
            self.detach(link, error.clone());
        }
    }

    fn detach_device(&mut self, number: Number, error: &Error) {
        let Some(member) = self.devices.members.get(&number) else {
            return;
        };
        for link in member.links.clone() {
            self.detach(link, error.clone());
        }
    }

    fn poll_device_link(&mut self, link: LinkId, now: Duration) -> Served {
        let Some(Node::Device(node)) = self.nodes.get_mut(&link) else {
            return Served::Nothing;
        };
        let before = node.waiting_bytes();
        let mut cx = Context::from_waker(&node.waker);
        let engine = &mut self.engine;
        let polled = match &mut node.work {
            Work::Telemetry(telemetry) => match telemetry.poll(&mut cx, link, engine) {
                Ok(true) => Polled::Sent,
                Ok(false) => Polled::Idle,
                Err(error) => Polled::Failed(error),
            },
            Work::DeviceBound(deliveries) => {
                deliveries.poll(&mut cx, link, engine, &mut self.head, now)
            }
            Work::Inputs { is_draining } => {
                if std::mem::take(is_draining) && engine.drained(link).is_ok() {
                    Polled::Sent
                } else {
                    Polled::Idle
                }
            }
        };
        self.devices.waiting_bytes -= before.saturating_sub(node.waiting_bytes());
        if let Some(since) = node.held_since() {
            let due = since.saturating_add(self.context.limits.held_max);
            self.devices.held_due = self.devices.held_due.into_iter().chain([due]).min();
        }
        match polled {
            Polled::Idle => Served::Nothing,
            Polled::Full => Served::HeldBack,
            Polled::Sent => {
                self.touch(link);
                Served::Told
            }
            Polled::Failed(error) => {
                self.detach(link, error);
                Served::Told
            }
        }
    }

    /// Gives up a connection whose telemetry the store has held back for too long: its devices try again
    /// elsewhere, or later.
    pub(super) fn check_held(&mut self, now: Duration) {
        if self.devices.held_due.take_if(|due| *due <= now).is_none() {
            return;
        }
        let held_max = self.context.limits.held_max;
        let nodes = self.nodes.values().filter_map(|node| match node {
            Node::Device(device) => device.held_since(),
            _ => None,
        });
        let next = nodes.map(|since| since.saturating_add(held_max)).min();
        if next.is_some_and(|due| due <= now) {
            self.cut("held", now);
        } else {
            self.devices.held_due = next;
        }
    }

    /// Notes that a device has sent or received something.
    fn touch(&self, link: LinkId) {
        if let Some(Node::Device(node)) = self.nodes.get(&link)
            && let Some(member) = self.devices.members.get(&node.device)
            && let Standing::Here(place) = &member.standing
        {
            place.1.touch(self.context.timer().now());
        }
    }

    /// Detaches the links of devices whose credentials have expired; gives when the next one does.
    pub(super) fn check_devices(&mut self, wall: Timestamp) -> Option<Timestamp> {
        let host = self.context.hub.name();
        let mut expired = Vec::new();
        let mut next = None;
        for (number, member) in &mut self.devices.members {
            let Some(until) = member.until else {
                continue;
            };
            if until <= wall {
                match self.grants.credential(host, &member.identity, wall) {
                    Some(credential) => member.until = credential.until(),
                    None => {
                        expired.push(*number);
                        continue;
                    }
                }
            }
            next = next.into_iter().chain(member.until).min();
        }
        for number in expired {
            self.detach_device(number, &error::grant_expired());
        }
        next
    }
}

/// The plug-and-play model that the client names when it attaches.
fn model_id(attach: &Attach) -> Option<Arc<str>> {
    let named = attach.properties.as_ref()?.get("com.microsoft:model-id")?;
    let Value::String(text) = named else {
        return None;
    };
    let is_one = !text.is_empty() && text.len() <= MODEL_ID_BYTES_MAX;
    is_one.then(|| Arc::from(text.as_str()))
}
