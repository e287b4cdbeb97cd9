//! Devices that send over AMQP, one or many on a connection, each with a token of its own and a link.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use bytes::BytesMut;
use fieldpost_amqp::message::{Message, Properties, put_map, put_properties, put_value, section};
use fieldpost_amqp::performative::{Attach, DeliveryState, Role, Source, Target};
use fieldpost_amqp::sasl::mechanism;
use fieldpost_amqp::{
    ClientSasl, Config, Connection, Delivery, Event, LinkId, Outcome, SessionId, Symbol, ValueRef,
};

use super::connection::{Count, Dialect};
use super::content::Content;

/// Who shares a connection.
pub(crate) struct AmqpLogin {
    /// The hub's name.
    pub(crate) host: String,
    pub(crate) devices: Vec<AmqpDevice>,
}

/// Who a device is.
pub(crate) struct AmqpDevice {
    /// What its token is for.
    pub(crate) resource: String,
    pub(crate) token: String,
    /// Where it sends.
    pub(crate) address: String,
}

/// Where tokens go.
const CBS: &str = "$cbs";

/// Answers about tokens that may come ahead.
const ANSWERS: u32 = 100;

/// How far a connection has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Opening,
    Beginning,
    /// The links for tokens are asked for.
    Asking,
    /// Tokens are on their way.
    Proving,
    /// The devices' links are asked for.
    Attaching,
    Ready,
}

/// A device's link, and its messages.
struct Sending {
    link: LinkId,
    sent: u64,
    acknowledged: u64,
}

pub(super) struct Amqp {
    engine: Connection,
    started: Instant,
    login: Arc<AmqpLogin>,
    stage: Stage,
    session: Option<SessionId>,
    /// The links of requests and of answers.
    cbs: Option<(LinkId, LinkId)>,
    attached: usize,
    /// Tokens that were sent, and that were taken.
    put: usize,
    taken: usize,
    devices: Vec<Sending>,
    /// The devices whose messages were acknowledged, and who is next where there are none.
    turns: VecDeque<usize>,
    next: usize,
    /// Messages that wait for credit or for the session's window.
    unsent: u64,
}

impl Amqp {
    pub(super) fn new(login: Arc<AmqpLogin>) -> Self {
        let config = Config {
            container_id: "fieldpost-bench".to_owned(),
            hostname: Some(login.host.clone()),
            // Fleets wait for each other, and say nothing meanwhile.
            idle_time_out: None,
            ..Config::default()
        };
        let sasl = ClientSasl {
            mechanism: Symbol::from_static(mechanism::ANONYMOUS),
            initial_response: None,
        };
        Self {
            engine: Connection::client(Arc::new(config), Some(sasl)),
            started: Instant::now(),
            login,
            stage: Stage::Opening,
            session: None,
            cbs: None,
            attached: 0,
            put: 0,
            taken: 0,
            devices: Vec::new(),
            turns: VecDeque::new(),
            next: 0,
            unsent: 0,
        }
    }

    fn take_in(&mut self, event: Event, count: &mut Count) -> Result<()> {
        match event {
            Event::Outcome(outcome) => self.answered(&outcome, count)?,
            Event::SessionBegun(session) => self.session = Some(session),
            Event::Attached { .. } => self.attached += 1,
            Event::Message(message) => {
                let reply = Message::parse(&message.payload)?;
                let facts = reply.application_properties.context("no status")?;
                let status = facts.get("status-code")?.and_then(|code| code.as_i64());
                ensure!(status == Some(200), "a token was refused with {status:?}");
                self.taken += 1;
                if !message.settled {
                    let id = message.delivery_id;
                    let accepted = DeliveryState::Accepted;
                    self.engine
                        .settle_incoming(message.link, id..=id, accepted)?;
                }
            }
            Event::Detached { error, .. }
            | Event::SessionEnded { error, .. }
            | Event::Closed(error) => bail!("ended by the hub: {error:?}"),
            // Credit and windows are asked of the engine.
            _ => {}
        }
        Ok(())
    }

    fn answered(&mut self, outcome: &Outcome, count: &mut Count) -> Result<()> {
        let state = &outcome.state;
        ensure!(
            matches!(state, Some(DeliveryState::Accepted)),
            "a message was not accepted: {state:?}"
        );
        if !outcome.settled {
            let (link, id) = (outcome.link, outcome.delivery_id);
            self.engine
                .settle_outgoing(link, id, Some(DeliveryState::Accepted))?;
        }
        let (device, number) = read_tag(outcome.tag.as_bytes()).context("a tag")?;
        let sending = self.devices.get_mut(device).context("a device")?;
        ensure!(
            number == low(sending.acknowledged),
            "an outcome out of its order"
        );
        sending.acknowledged += 1;
        count.acknowledged += 1;
        self.turns.push_back(device);
        Ok(())
    }

    /// Goes on with signing in.
    fn advance(&mut self) -> Result<()> {
        match self.stage {
            Stage::Opening if self.engine.is_open() => {
                self.engine.begin()?;
                self.stage = Stage::Beginning;
            }
            Stage::Beginning if self.session.is_some() => {
                let requests = self.attach(Role::Sender, CBS)?;
                let answers = self.attach(Role::Receiver, CBS)?;
                self.cbs = Some((requests, answers));
                self.stage = Stage::Asking;
            }
            Stage::Asking if self.attached == 2 => {
                let (_, answers) = self.cbs.context("links for tokens")?;
                self.engine.set_auto_credit(answers, ANSWERS)?;
                self.stage = Stage::Proving;
                self.put_tokens()?;
            }
            Stage::Proving if self.taken < self.login.devices.len() => self.put_tokens()?,
            Stage::Proving => {
                let login = Arc::clone(&self.login);
                for device in &login.devices {
                    let link = self.attach(Role::Sender, &device.address)?;
                    self.devices.push(Sending {
                        link,
                        sent: 0,
                        acknowledged: 0,
                    });
                }
                self.stage = Stage::Attaching;
            }
            Stage::Attaching => {
                let mut links = self.devices.iter().map(|device| device.link);
                if links.all(|link| self.engine.sendable(link) > 0) {
                    self.stage = Stage::Ready;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn attach(&mut self, role: Role, address: &str) -> Result<LinkId> {
        let session = self.session.context("a session")?;
        let link = Attach {
            name: format!("{address}-{role:?}"),
            role,
            source: Some(Source::from_address(address)),
            target: Some(Target::to(address)),
            ..Attach::default()
        };
        Ok(self.engine.attach(session, link)?)
    }

    /// Sends as many tokens as there is credit for.
    fn put_tokens(&mut self) -> Result<()> {
        let (requests, _) = self.cbs.context("links for tokens")?;
        while self.engine.sendable(requests) > 0
            && let Some(device) = self.login.devices.get(self.put)
        {
            let request = put_token(self.put as u64, device);
            let delivery = Delivery {
                tag: &self.put.to_be_bytes(),
                settled: true,
                message_format: 0,
                payload: &[&request],
            };
            self.engine.send(requests, &delivery)?;
            self.put += 1;
        }
        Ok(())
    }

    fn take_output(&mut self, output: &mut Vec<u8>) {
        let written = self.engine.output();
        output.extend_from_slice(written);
        written.clear();
    }
}

impl Dialect for Amqp {
    fn devices(&self) -> usize {
        self.login.devices.len()
    }

    fn is_ready(&self) -> bool {
        self.stage == Stage::Ready
    }

    fn greet(&mut self, output: &mut Vec<u8>) {
        self.take_output(output);
    }

    fn hear(&mut self, bytes: &[u8], count: &mut Count, output: &mut Vec<u8>) -> Result<usize> {
        let now = self.started.elapsed();
        let mut rest = bytes;
        loop {
            let used = self.engine.feed(rest, now)?;
            rest = rest.get(used..).unwrap_or_default();
            while let Some(event) = self.engine.next_event() {
                self.take_in(event, count)?;
            }
            self.advance()?;
            self.take_output(output);
            if rest.is_empty() {
                return Ok(bytes.len());
            }
        }
    }

    fn send(
        &mut self,
        messages: u64,
        content: &Content,
        count: &mut Count,
        output: &mut Vec<u8>,
    ) -> Result<()> {
        self.unsent += messages;
        count.sent += messages;
        let head = data_head(content.bytes())?;
        while self.unsent > 0 {
            let turn = self.turns.front().copied();
            let place = turn.unwrap_or(self.next);
            let device = self.devices.get_mut(place).context("a device")?;
            if self.engine.sendable(device.link) == 0 {
                break;
            }
            let (mark, noise) = content.payload(device.sent);
            let delivery = Delivery {
                tag: &tag(place, device.sent),
                settled: false,
                message_format: 0,
                payload: &[&head, &mark, noise],
            };
            self.engine.send(device.link, &delivery)?;
            device.sent += 1;
            self.unsent -= 1;
            if turn.is_some() {
                self.turns.pop_front();
            } else {
                self.next = (place + 1) % self.login.devices.len();
            }
        }
        self.take_output(output);
        Ok(())
    }
}

/// What stands before the bytes of a message's only section.
fn data_head(bytes: usize) -> Result<[u8; 8]> {
    let [a, b, c, d] = u32::try_from(bytes)?.to_be_bytes();
    Ok([0x00, 0x53, 0x75, 0xb0, a, b, c, d])
}

/// Names a message by the place of its device and its number there.
fn tag(device: usize, number: u64) -> [u8; 8] {
    ((device as u64) << 32 | u64::from(low(number))).to_be_bytes()
}

fn read_tag(tag: &[u8]) -> Option<(usize, u32)> {
    let tag = u64::from_be_bytes(tag.try_into().ok()?);
    Some((usize::try_from(tag >> 32).ok()?, low(tag)))
}

fn low(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).unwrap_or_default()
}

fn put_token(number: u64, device: &AmqpDevice) -> BytesMut {
    let mut request = BytesMut::new();
    put_properties(
        &mut request,
        &Properties {
            message_id: Some(ValueRef::ULong(number)),
            ..Properties::default()
        },
    );
    put_map(&mut request, section::APPLICATION_PROPERTIES, |e| {
        for text in ["operation", "put-token", "type"] {
            e.string(text);
        }
        e.string("servicebus.windows.net:sastoken");
        e.string("name");
        e.string(&device.resource);
    });
    put_value(&mut request, |e| e.string(&device.token));
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_data_section_and_its_tag_names_it() {
        let content = Content::new(300, 1);
        let (mark, noise) = content.payload(7);
        let message = [&data_head(300).unwrap()[..], &mark, noise].concat();
        let parsed = Message::parse(&message).unwrap();
        let data = parsed.joined_data();
        assert_eq!((data.len(), Content::read(&data)), (300, Some((1, 7))));
        let wrapped = (1 << 32) + 5;
        assert_eq!(read_tag(&tag(999, wrapped)), Some((999, 5)));
    }
}
