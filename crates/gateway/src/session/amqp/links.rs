//! Attaching and detaching.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use fieldpost_amqp::performative::{Attach, DeliveryState, Role, SndSettleMode};
use fieldpost_amqp::{Error, LinkId, LinkReply, Message};
use fieldpost_hub::events::{OpenReceiver, ReceiverRefused};
use fieldpost_model::Timestamp;
use futures_util::{FutureExt, StreamExt};

use super::commands::Commands;
use super::deliveries::{Content, Deliveries};
use super::grants::Permit;
use super::reader::{FetchFailed, Fetched, Opening, Reader};
use super::requests::{
    self, ANSWERS_IN_ALL_MAX, Answered, Answers, PutToken, REPLY_ADDRESS_BYTES_MAX, REQUEST_CREDIT,
    Service,
};
use super::{Node, STARTS_MAX, Session, queue_turn};
use crate::context::Transport;
use crate::dialect::amqp::address::{self, Address, PartitionAddress};
use crate::dialect::amqp::receiver::ReceiverRequest;
use crate::dialect::amqp::{error, redirect};
use crate::listen::limits::counted_address;
use crate::quiet::RepeatLimit;

/// How long a refusal is kept back that a client answers by trying again at once. The Python Event
/// Hubs client does so for ever, and tells its user nothing.
const REFUSAL_DELAY: Duration = Duration::from_secs(1);

/// Links to the service endpoint that one connection may have. A client needs one for each kind;
/// every one of them is asked for news whenever the connection's task runs.
const SERVICE_LINKS_MAX: usize = 64;

static REFUSED_LINKS: RepeatLimit = RepeatLimit::new();

/// A link that will be refused.
pub(super) struct Refusal {
    pub(super) due: Duration,
    pub(super) link: LinkId,
    error: Error,
}

/// Why a link is not opened.
pub(super) struct NotOpened {
    error: Error,
    /// The word under which it is counted.
    reason: &'static str,
    /// The client knows at once what to do.
    at_once: bool,
}

impl NotOpened {
    pub(super) fn new(reason: &'static str, error: Error) -> Self {
        Self {
            error,
            reason,
            at_once: false,
        }
    }

    pub(super) fn unauthorized() -> Self {
        Self::new("unauthorized", error::unauthorized())
    }
}

impl Session {
    pub(super) fn on_attach(&mut self, link: LinkId, attach: &Arc<Attach>, now: Duration) {
        let address = match attach.role {
            Role::Sender => attach
                .target
                .as_ref()
                .and_then(|end| end.address.as_deref()),
            Role::Receiver => attach
                .source
                .as_ref()
                .and_then(|end| end.address.as_deref()),
        };
        let opened = match (attach.role, Address::parse(address.unwrap_or_default())) {
            (role, Address::Cbs) => self.open_service(link, role, attach, Service::Cbs),
            (role, Address::Management) => {
                self.open_service(link, role, attach, Service::Management)
            }
            (Role::Receiver, Address::Partition(partition)) => {
                self.open_reader(link, attach, &partition)
            }
            _ if address.is_none() => Err(NotOpened::new("address", error::address_missing())),
            // Who has proved nothing is told nothing of what there is.
            _ if self.grants.last_expiry().is_none() && !self.is_certified() => {
                Err(NotOpened::unauthorized())
            }
            (_, Address::Device { identities, node }) if self.is_hub() => {
                self.attach_device(link, attach, identities, node)
            }
            // A certificate is a device's.
            _ if self.grants.last_expiry().is_none() => Err(NotOpened::unauthorized()),
            (Role::Sender, Address::DeviceBound) if self.is_hub() => {
                self.open_commands(link, attach)
            }
            (Role::Receiver, Address::Feedback) if self.is_hub() => {
                self.open_feedback(link, attach)
            }
            (Role::Receiver, Address::FileNotifications) if self.is_hub() => self
                .service_permit("messages/serviceBound/filenotifications")
                .and_then(|_| {
                    let what = "this hub does not take file uploads and has no news of them";
                    Err(NotOpened::new(
                        "not-implemented",
                        error::not_implemented(what),
                    ))
                }),
            (_, Address::Events { below }) if self.is_hub() => {
                self.redirect(address.unwrap_or_default(), below)
            }
            (Role::Sender, Address::Entity { entity })
                if self.context.hub.events().is_entity(&entity) =>
            {
                Err(NotOpened::new("sender", error::sending_not_allowed()))
            }
            _ => {
                let error = error::address_not_found(address.unwrap_or_default());
                Err(NotOpened::new("not-found", error))
            }
        };
        if let Err(not_opened) = opened {
            self.refuse(link, address.unwrap_or_default(), not_opened, now);
        }
    }

    /// Opens one direction of a node that answers requests.
    fn open_service(
        &mut self,
        link: LinkId,
        role: Role,
        attach: &Attach,
        service: Service,
    ) -> Result<(), NotOpened> {
        let (node, reply) = match role {
            Role::Sender => (Node::Requests(service), LinkReply::default()),
            Role::Receiver => {
                let address = attach.target.as_ref().and_then(|end| end.address.clone());
                if address.as_ref().map_or(0, String::len) > REPLY_ADDRESS_BYTES_MAX {
                    let error = error::address_too_long(REPLY_ADDRESS_BYTES_MAX);
                    return Err(NotOpened::new("address", error));
                }
                let reply = LinkReply {
                    // Not every client settles answers that it gets unsettled.
                    snd_settle_mode: Some(SndSettleMode::Settled),
                    ..LinkReply::default()
                };
                (Node::Answers(Answers::new(service, address)), reply)
            }
        };
        // A link that is gone again needs no node.
        if self.engine.accept_link(link, reply).is_ok() {
            self.nodes.insert(link, node);
            if role == Role::Sender {
                let _ = self.engine.set_auto_credit(link, REQUEST_CREDIT);
            }
        }
        Ok(())
    }

    /// Whether the hub's own addresses are served here, and not those of Event Hubs alone.
    fn is_hub(&self) -> bool {
        self.context.over != Transport::LoopbackEventHubs
    }

    /// The permit to use an address of the service endpoint.
    fn service_permit(&self, path: &str) -> Result<Permit, NotOpened> {
        let wall = self.context.timer().now();
        self.grants
            .permit(self.context.hub.name(), path.to_owned(), wall)
            .ok_or_else(NotOpened::unauthorized)
    }

    /// Opens a link on which a service sends messages for devices.
    fn open_commands(&mut self, link: LinkId, attach: &Attach) -> Result<(), NotOpened> {
        let permit = self.service_permit("messages/devicebound")?;
        self.check_service_links()?;
        tracing::debug!(name = %shortened(&attach.name), policy = permit.policy, "a service sends");
        let until = permit.until;
        let commands = Commands::open(self.context.hub.c2d(), permit, self.context.conn_id);
        // The limit of the link is above that of a message, so that a message that is too large is
        // refused by itself and the link stays.
        if self.engine.accept_link(link, LinkReply::default()).is_ok() {
            // Its credit is granted when it is first asked, in a moment.
            self.add_service_link(link, Node::Commands(Box::new(commands)), until);
        }
        Ok(())
    }

    /// Opens a link on which a service learns what became of its messages.
    fn open_feedback(&mut self, link: LinkId, attach: &Attach) -> Result<(), NotOpened> {
        let permit = self.service_permit("messages/serviceBound/feedback")?;
        self.check_service_links()?;
        let until = permit.until;
        let hub = &self.context.hub;
        let feedback = Deliveries::open(
            Content::Feedback(hub.name().into()),
            hub.c2d().feedback().receiver(),
            self.context.conn_id,
            attach.snd_settle_mode,
        );
        if self.engine.accept_link(link, LinkReply::default()).is_ok() {
            self.add_service_link(link, Node::Feedback(Box::new(feedback), permit), until);
        }
        Ok(())
    }

    fn check_service_links(&self) -> Result<(), NotOpened> {
        if self.service_links.len() < SERVICE_LINKS_MAX {
            return Ok(());
        }
        let error = error::too_many_links(SERVICE_LINKS_MAX);
        Err(NotOpened::new("links", error))
    }

    fn add_service_link(&mut self, link: LinkId, node: Node, until: Timestamp) {
        self.nodes.insert(link, node);
        self.service_links.push(link);
        self.watch_expiry(until, self.context.monotonic());
    }

    /// Sends a client that looks for events here to where they are.
    fn redirect(&self, address: &str, below: &str) -> Result<(), NotOpened> {
        let permit = self.service_permit("messages/events")?;
        let hub = &self.context.hub;
        // The name by which the client reached us is one by which it reaches us again.
        let host = self
            .hostname
            .as_deref()
            .filter(|host| !host.is_empty())
            .or_else(|| address::authority(address))
            .map_or(hub.name(), redirect::without_port);
        tracing::debug!(
            host,
            policy = permit.policy,
            "sent on to the Event Hubs endpoint"
        );
        let entity = hub.events().describe().name;
        Err(match redirect::to_events(host, &entity, below) {
            Some(error) => NotOpened {
                error,
                reason: "redirect",
                at_once: true,
            },
            None => NotOpened::new("not-found", error::address_not_found(address)),
        })
    }

    fn open_reader(
        &mut self,
        link: LinkId,
        attach: &Attach,
        address: &PartitionAddress<'_>,
    ) -> Result<(), NotOpened> {
        let hub = &self.context.hub;
        let wall = self.context.timer().now();
        let path = format!(
            "{}/ConsumerGroups/{}/Partitions/{}",
            address.entity, address.group, address.partition
        );
        let permit = self
            .grants
            .permit(hub.name(), path.clone(), wall)
            .ok_or_else(NotOpened::unauthorized)?;
        let not_found = || NotOpened::new("not-found", error::address_not_found(&path));
        if !hub.events().is_entity(&address.entity) {
            return Err(not_found());
        }
        let partition = hub
            .events()
            .partition(&address.partition)
            .ok_or_else(not_found)?;
        let request = ReceiverRequest::of(attach)
            .map_err(|invalid| NotOpened::new("argument", error::invalid_receiver(invalid)))?;
        if self.fetches.len() >= STARTS_MAX {
            return Err(NotOpened::new("busy", error::busy()));
        }
        // All but a search by time is known at once, and nobody has to give way to a receiver that
        // cannot start. It matters for "latest" too, which is meant from this moment on.
        let mut start = hub.events().resolve_start(partition, request.start);
        let known = (&mut start)
            .now_or_never()
            .transpose()
            .map_err(|error| NotOpened::new("start", error::start_refused(&error)))?;
        let receiver = hub
            .events()
            .open_receiver(OpenReceiver {
                group: address.group.clone().into_owned(),
                partition,
                owner_level: request.owner_level,
                receiver_name: request.receiver_name.clone(),
                bell: Arc::clone(&self.bell),
            })
            .map_err(|refused| {
                let name = request.receiver_name.as_deref();
                NotOpened {
                    error: error::receiver_refused(&refused, address, name),
                    reason: refusal_word(&refused),
                    // Clients give a partition up by themselves that somebody else owns.
                    at_once: matches!(
                        refused,
                        ReceiverRefused::HigherOwnerLevel { .. }
                            | ReceiverRefused::ExclusiveHolder { .. }
                    ),
                }
            })?;
        let allowed_until = permit.until;
        let mut reader = Reader::open(Opening {
            receiver,
            permit,
            name: request.receiver_name,
            runtime_metric: request.runtime_metric,
            start: known,
        });
        let reply = LinkReply {
            snd_settle_mode: Some(SndSettleMode::Settled),
            ..LinkReply::default()
        };
        if self.engine.accept_link(link, reply).is_err() {
            // The client has gone again, or takes no frames of that size and was told so.
            return Ok(());
        }
        if known.is_none() {
            self.fetches.push(
                start
                    .map(move |found| (link, Fetched::Start(found)))
                    .boxed(),
            );
        }
        queue_turn(&mut self.turns, link, &mut reader);
        self.nodes.insert(link, Node::Reader(Box::new(reader)));
        self.watch_expiry(allowed_until, self.context.monotonic());
        Ok(())
    }

    pub(super) fn on_credit(&mut self, link: LinkId) {
        match self.nodes.get_mut(&link) {
            Some(Node::Reader(reader)) => queue_turn(&mut self.turns, link, reader),
            Some(Node::Answers(answers)) => {
                answers.flush(link, &mut self.engine);
            }
            Some(Node::Device(device)) => device.on_credit(),
            // The links to the service endpoint are asked in the next round.
            Some(Node::Requests(_) | Node::Commands(_) | Node::Feedback(..)) | None => {}
        }
    }

    pub(super) fn on_message(&mut self, message: &Message) {
        let service = match self.nodes.get_mut(&message.link) {
            Some(Node::Requests(service)) => *service,
            Some(Node::Commands(commands)) => {
                commands.on_message(message, &mut self.engine);
                return;
            }
            Some(Node::Device(device)) => {
                self.devices.on_message(device, message);
                return;
            }
            _ => return,
        };
        let request = fieldpost_amqp::message::Message::parse(&message.payload);
        if !message.settled {
            let outcome = match &request {
                Ok(_) => DeliveryState::Accepted,
                Err(error) => DeliveryState::rejected(error::undecodable(error)),
            };
            let id = message.delivery_id;
            // A link that is gone again settles nothing.
            let _ = self.engine.settle_incoming(message.link, id..=id, outcome);
        }
        let Ok(request) = request else { return };
        match service {
            Service::Cbs => {
                let hub = self.context.hub.clone();
                let address = counted_address(self.context.peer.ip());
                let put = PutToken::check(hub, address, message.link, message.payload.clone());
                // Most are decided at once.
                self.puts.push_back(put.boxed());
            }
            Service::Management => {
                let wall = self.context.timer().now();
                let (hub, grants) = (&self.context.hub, &self.grants);
                let address = counted_address(self.context.peer.ip());
                let answered = requests::answer_question(hub, address, grants, &request, wall);
                self.answer(message.link, service, answered);
            }
        }
    }

    /// Takes tokens that were checked.
    pub(super) fn poll_puts(&mut self, cx: &mut Context<'_>, now: Duration) {
        while let Poll::Ready(Some(put)) = self.puts.poll_next_unpin(cx) {
            let wall = self.context.timer().now();
            let link = put.link;
            let (answered, granted) = put.finish(&mut self.grants, wall);
            if granted {
                self.granted(now);
            }
            self.answer(link, Service::Cbs, answered);
        }
    }

    /// Sends the answer to a request that came on `request`.
    fn answer(&mut self, request: LinkId, service: Service, answered: Answered) {
        let reply_to = answered.reply_to.as_deref();
        let Some(link) = requests::answer_link(&self.nodes, request, service, reply_to) else {
            return;
        };
        let Some(Node::Answers(answers)) = self.nodes.get_mut(&link) else {
            return;
        };
        let taken = answers.push(answered.answer)
            && (answers.flush(link, &mut self.engine)
                || requests::answers_waiting(&self.nodes) <= ANSWERS_IN_ALL_MAX);
        if !taken {
            self.detach(link, error::answers_not_taken());
        }
    }

    /// Detaches a link and forgets what stood behind it.
    pub(super) fn detach(&mut self, link: LinkId, error: Error) {
        tracing::debug!(%error, "link detached");
        self.forget(link);
        // A link that is gone already needs no detach.
        let _ = self.engine.detach(link, Some(error));
    }

    pub(super) fn on_fetch_failed(&mut self, link: LinkId, failed: &FetchFailed) {
        if let Some(left_out) = REFUSED_LINKS.pass(self.context.monotonic()) {
            tracing::warn!(
                error = %failed,
                left_out,
                "a reader was detached: its events could not be read"
            );
        }
        self.detach(link, failed.to_amqp());
    }

    pub(super) fn refuse(
        &mut self,
        link: LinkId,
        address: &str,
        not_opened: NotOpened,
        now: Duration,
    ) {
        let NotOpened {
            error,
            reason,
            at_once,
        } = not_opened;
        metrics::counter!("fieldpost_links_refused_total", "reason" => reason).increment(1);
        if let Some(left_out) = REFUSED_LINKS.pass(now) {
            tracing::info!(
                address = shortened(address),
                %error,
                left_out,
                "refused a link"
            );
        }
        if at_once {
            let _ = self.engine.refuse_link(link, error);
            return;
        }
        self.refusals.push(Refusal {
            due: now.saturating_add(REFUSAL_DELAY),
            link,
            error,
        });
    }

    /// Refuses the links whose time has come.
    pub(super) fn refuse_due(&mut self, now: Duration) {
        let engine = &mut self.engine;
        self.refusals.retain(|refusal| {
            let keep = refusal.due > now;
            if !keep {
                // The client may have given up in the meantime.
                let _ = engine.refuse_link(refusal.link, refusal.error.clone());
            }
            keep
        });
    }
}

/// A text of the peer's for a log.
fn shortened(text: &str) -> &str {
    let end = text.floor_char_boundary(256);
    text.get(..end).unwrap_or_default()
}

fn refusal_word(refused: &ReceiverRefused) -> &'static str {
    match refused {
        ReceiverRefused::UnknownGroup | ReceiverRefused::UnknownPartition { .. } => "not-found",
        ReceiverRefused::HigherOwnerLevel { .. } | ReceiverRefused::ExclusiveHolder { .. } => {
            "stolen"
        }
        ReceiverRefused::TooManyReaders { .. } => "readers",
    }
}
