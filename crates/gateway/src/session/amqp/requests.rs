//! Requests over `$cbs` and `$management`, and the links on which their answers go.
//!
//! Clients attach a pair of links and few of them say which belongs to which: a request is
//! answered on a link from the same node in the same session, by preference on the one whose target
//! is the request's `reply-to`.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use bytes::{Bytes, BytesMut};
use fieldpost_amqp::message::Message;
use fieldpost_amqp::{Connection, Delivery, LinkId};
use fieldpost_hub::Hub;
use fieldpost_hub::auth::CbsGrant;
use fieldpost_hub::policies::Rights;
use fieldpost_hub::secrets::Secret;
use fieldpost_model::Timestamp;

use super::Node;
use super::grants::{Grants, NotKept};
use crate::dialect::amqp::cbs;
use crate::dialect::amqp::error::Status;
use crate::dialect::amqp::management::{self, Question, Subject};

/// Requests that a client may send ahead of their answers.
pub(super) const REQUEST_CREDIT: u32 = 100;

/// Answers that wait on one link for credit. A client gets so many requests ahead only by not
/// taking their answers.
const ANSWERS_MAX: usize = 100;

/// Answers that wait on all links of a connection.
pub(super) const ANSWERS_IN_ALL_MAX: usize = 1000;

/// How long the address may be by which a client knows its end of a link for answers. It makes one
/// up, mostly with a UUID in it.
pub(super) const REPLY_ADDRESS_BYTES_MAX: usize = 512;

/// A node that answers requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Service {
    /// Takes tokens.
    Cbs,
    /// Describes the Event Hubs endpoint.
    Management,
}

/// A link on which answers go to the client.
pub(super) struct Answers {
    pub(super) service: Service,
    /// The client's name for its end.
    address: Option<String>,
    waiting: VecDeque<Bytes>,
    next_tag: u32,
}

/// What a request came to.
pub(super) struct Answered {
    /// The encoded answer.
    pub(super) answer: Bytes,
    /// Where the client wants it.
    pub(super) reply_to: Option<String>,
}

impl Answers {
    pub(super) fn new(service: Service, address: Option<String>) -> Self {
        Self {
            service,
            address,
            waiting: VecDeque::new(),
            next_tag: 0,
        }
    }

    /// Queues an answer; false when too many wait.
    pub(super) fn push(&mut self, answer: Bytes) -> bool {
        let room = self.waiting.len() < ANSWERS_MAX;
        if room {
            self.waiting.push_back(answer);
        }
        room
    }

    /// Sends what waits, as far as the client's credit goes. True when nothing waits any longer.
    pub(super) fn flush(&mut self, link: LinkId, engine: &mut Connection) -> bool {
        while let Some(answer) = self.waiting.front() {
            let delivery = Delivery {
                tag: &self.next_tag.to_be_bytes(),
                settled: true,
                message_format: 0,
                payload: &[&answer[..]],
            };
            // Without credit it waits; when the link is gone, so is this queue in a moment.
            if engine.send(link, &delivery).is_err() {
                return false;
            }
            self.next_tag = self.next_tag.wrapping_add(1);
            self.waiting.pop_front();
        }
        true
    }
}

/// Answers that wait for credit, over all links. Only asked when a client lets some wait.
pub(super) fn answers_waiting(nodes: &BTreeMap<LinkId, Node>) -> usize {
    let waiting = nodes.values().map(|node| match node {
        Node::Answers(answers) => answers.waiting.len(),
        Node::Requests(_)
        | Node::Reader(_)
        | Node::Commands(_)
        | Node::Feedback(..)
        | Node::Device(_) => 0,
    });
    waiting.sum()
}

/// The link on which the answer to a request that came on `request` goes.
pub(super) fn answer_link(
    nodes: &BTreeMap<LinkId, Node>,
    request: LinkId,
    service: Service,
    reply_to: Option<&str>,
) -> Option<LinkId> {
    let candidates = nodes.iter().filter_map(|(link, node)| match node {
        Node::Answers(answers) if answers.service == service => Some((*link, answers)),
        _ => None,
    });
    let ranked = candidates.filter_map(|(link, answers)| {
        let named = reply_to.is_some() && answers.address.as_deref() == reply_to;
        let same_session = link.session() == request.session();
        (named || same_session).then_some(((same_session, named), link))
    });
    // The newest of equals: a client that attaches a new pair has given the old one up.
    ranked.max().map(|(_, link)| link)
}

/// A put-token request whose token was checked.
pub(super) struct PutToken {
    /// Where it came.
    pub(super) link: LinkId,
    request: Bytes,
    verified: Result<CbsGrant, Status>,
}

impl PutToken {
    /// Checks the token of a request, which is a message.
    pub(super) async fn check(
        hub: Hub,
        address: Option<IpAddr>,
        link: LinkId,
        request: Bytes,
    ) -> Self {
        let token = match Message::parse(&request) {
            Ok(message) => cbs::token(&message).map(|token| Secret::new(&*token)),
            Err(_) => Err(Status::bad_request("the request is not a message")),
        };
        let verified = match token {
            Ok(token) => {
                let access = hub.access().from(address);
                let verified = access.authenticate_cbs(token.expose()).await;
                verified.map_err(|error| Status::from(&error))
            }
            Err(status) => Err(status),
        };
        Self {
            link,
            request,
            verified,
        }
    }

    /// Keeps what the token grants; says whether it grants anything.
    pub(super) fn finish(self, grants: &mut Grants, now: Timestamp) -> (Answered, bool) {
        let message = Message::parse(&self.request).ok();
        let (correlation_id, reply_to) = message.as_ref().map_or((None, None), cbs::correlation);
        let kept = self.verified.and_then(|granted| {
            let name = message.as_ref().and_then(cbs::name).unwrap_or_default();
            grants
                .put(name, granted, now)
                .map_err(|reason| match reason {
                    NotKept::TooMany => Status::too_many_tokens(),
                    NotKept::Name => Status::bad_request("the name is too long"),
                })
        });
        let granted = kept.is_ok();
        let status = kept.err().unwrap_or_else(Status::ok);
        let mut answer = BytesMut::new();
        cbs::put_reply(&mut answer, correlation_id, &status);
        let answered = Answered {
            answer: answer.freeze(),
            reply_to: reply_to.map(str::to_owned),
        };
        (answered, granted)
    }
}

/// Answers a question about the Event Hubs endpoint.
pub(super) fn answer_question(
    hub: &Hub,
    address: Option<IpAddr>,
    grants: &Grants,
    message: &Message<'_>,
    now: Timestamp,
) -> Answered {
    let (correlation_id, reply_to) = cbs::correlation(message);
    let mut answer = BytesMut::new();
    let question = Question::of(message).and_then(|question| {
        authorise(hub, address, grants, &question, now)?;
        Ok(question)
    });
    let status = match question {
        Err(status) => Some(status),
        Ok(question) if !hub.events().is_entity(question.entity) => {
            Some(Status::not_found(question.entity))
        }
        Ok(Question {
            subject: Subject::EventHub,
            ..
        }) => {
            management::put_description(&mut answer, correlation_id, &hub.events().describe());
            None
        }
        Ok(Question {
            entity,
            subject: Subject::Partition(id),
            ..
        }) => {
            let events = hub.events();
            let properties = events
                .partition(id)
                .and_then(|partition| events.partition_properties(partition));
            match properties {
                Some(properties) => {
                    management::put_partition(&mut answer, correlation_id, entity, &properties);
                    None
                }
                None => Some(Status::not_found(&format!("{entity}/Partitions/{id}"))),
            }
        }
    };
    if let Some(status) = status {
        management::put_refusal(&mut answer, correlation_id, &status);
    }
    Answered {
        answer: answer.freeze(),
        reply_to: reply_to.map(str::to_owned),
    }
}

/// Checks the rights to ask: those of the connection, or of the token that the question brings.
fn authorise(
    hub: &Hub,
    address: Option<IpAddr>,
    grants: &Grants,
    question: &Question<'_>,
    now: Timestamp,
) -> Result<(), Status> {
    let path = format!("{}/$management", question.entity);
    let host = hub.name();
    if grants.allow(host, &path, now) {
        return Ok(());
    }
    let token = question.security_token.ok_or_else(Status::unauthorized)?;
    let verified = hub.access().from(address).verify_policy_token_now(token);
    let grant = verified.map_err(|error| Status::from(&error))?;
    if grant.allows(Rights::SERVICE_CONNECT, host, &path) {
        Ok(())
    } else {
        Err(Status::unauthorized())
    }
}
