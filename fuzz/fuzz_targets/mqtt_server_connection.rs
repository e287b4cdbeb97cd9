//! An MQTT server connection under a random client, a random caller and a random clock.
#![no_main]

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;
use fieldpost_mqtt::{
    AckTicket, Assembler, Connect, Packet, PacketId, Publish, Qos, Refusal, ServerConnection,
    ServerEvent, ServerOptions, SubackCode, packet,
};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Plan {
    refuse: bool,
    wildcards_in_topics: bool,
    keep_alive_s: u16,
    steps: Vec<Step>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    /// Bytes of any kind.
    Feed(Vec<u8>),
    /// A well-formed CONNECT.
    Connect,
    /// A well-formed QoS 1 publish, cut in two.
    Publish {
        packet_id: u16,
        payload: u8,
        cut: u8,
    },
    /// The caller releases this many acknowledgements.
    Release(u8),
    /// The socket takes this many bytes.
    Write(u8),
    /// Milliseconds pass.
    Wait(u32),
    /// The caller sends a message.
    Send(u8),
    /// The caller sends a message at QoS 1, once more if it names an id.
    Deliver { again: u16, length: u8 },
    /// The caller keeps an id from new messages.
    Reserve(u16),
    /// A well-formed PUBACK.
    Puback(u16),
}

const DELIVERIES_MAX: u16 = 8;

struct Caller {
    server: ServerConnection,
    now: Duration,
    refuse: bool,
    /// What the connection left with the caller.
    held: Vec<u8>,
    unreleased: VecDeque<(AckTicket, PacketId)>,
    released: Vec<PacketId>,
    /// What was sent at QoS 1 and not acknowledged, and what may not be given again.
    delivered: Vec<PacketId>,
    reserved: Vec<PacketId>,
    written: Vec<u8>,
    failed: bool,
}

fuzz_target!(|plan: Plan| {
    let options = ServerOptions {
        wildcards_in_topics: plan.wildcards_in_topics,
        packet_length_max: 2000,
        deliveries_max: DELIVERIES_MAX,
        ..ServerOptions::default()
    };
    let mut caller = Caller {
        server: ServerConnection::new(options, Duration::ZERO),
        now: Duration::ZERO,
        refuse: plan.refuse,
        held: Vec::new(),
        unreleased: VecDeque::new(),
        released: Vec::new(),
        delivered: Vec::new(),
        reserved: Vec::new(),
        written: Vec::new(),
        failed: false,
    };
    for step in plan.steps {
        caller.take(step, plan.keep_alive_s);
        caller.check();
    }
    caller.write(usize::MAX);
    caller.check_written();
});

impl Caller {
    fn take(&mut self, step: Step, keep_alive_s: u16) {
        match step {
            Step::Feed(bytes) => self.feed(&bytes),
            Step::Connect => {
                let connect = Connect {
                    client_id: "d",
                    clean_session: false,
                    keep_alive_s,
                    will: None,
                    user_name: None,
                    password: None,
                };
                let mut bytes = BytesMut::new();
                connect.encode(&mut bytes).expect("valid");
                self.feed(&bytes);
            }
            Step::Publish {
                packet_id,
                payload,
                cut,
            } => {
                let packet_id = PacketId::new(packet_id);
                let publish = Publish {
                    dup: false,
                    qos: match packet_id {
                        None => Qos::AtMostOnce,
                        Some(_) => Qos::AtLeastOnce,
                    },
                    retain: false,
                    topic: "t",
                    packet_id,
                    payload: &vec![0; usize::from(payload)],
                };
                let mut bytes = BytesMut::new();
                publish.encode(&mut bytes).expect("valid");
                let second = bytes.split_off(usize::from(cut).min(bytes.len()));
                self.feed(&bytes);
                self.feed(&second);
            }
            Step::Release(count) => {
                let count = usize::from(count).min(self.unreleased.len());
                let mut last = None;
                for (ticket, packet_id) in self.unreleased.drain(..count) {
                    self.released.push(packet_id);
                    last = Some(ticket);
                }
                if let Some(ticket) = last {
                    self.server.acknowledge_through(ticket);
                }
            }
            Step::Write(count) => self.write(usize::from(count)),
            Step::Wait(milliseconds) => {
                self.now += Duration::from_millis(u64::from(milliseconds));
                let due = self.server.deadline().is_some_and(|at| at <= self.now);
                assert_eq!(self.server.tick(self.now).is_err(), due);
                assert!(!due || self.server.is_closed());
            }
            Step::Send(length) => {
                let payload = vec![0; usize::from(length)];
                let sent = self.server.publish_at_most_once("t", &payload);
                assert!(sent.is_err() || !self.server.is_closed());
            }
            Step::Deliver { again, length } => self.deliver(PacketId::new(again), length),
            Step::Reserve(packet_id) => {
                if let Some(packet_id) = PacketId::new(packet_id) {
                    self.server.reserve(packet_id);
                    self.reserved.push(packet_id);
                }
            }
            Step::Puback(packet_id) => {
                if let Some(packet_id) = PacketId::new(packet_id) {
                    let mut bytes = BytesMut::new();
                    packet::put_pubacks(&mut bytes, std::iter::once(packet_id));
                    self.feed(&bytes);
                }
            }
        }
    }

    fn deliver(&mut self, again: Option<PacketId>, length: u8) {
        let payload = vec![0; usize::from(length)];
        let room = self.delivered.len() < usize::from(DELIVERIES_MAX);
        let sent = match again {
            None => self.server.publish_at_least_once("t", &payload),
            Some(packet_id) => self
                .server
                .publish_again(packet_id, "t", &payload)
                .map(|()| packet_id),
        };
        if let Ok(packet_id) = sent {
            assert!(room && !self.server.is_closed());
            assert!(!self.delivered.contains(&packet_id));
            assert!(again.is_some() || !self.reserved.contains(&packet_id));
            self.delivered.push(packet_id);
        }
    }

    fn feed(&mut self, bytes: &[u8]) {
        if self.failed {
            return;
        }
        self.held.extend_from_slice(bytes);
        let held = std::mem::take(&mut self.held);
        let mut input = held.as_slice();
        loop {
            let event = match self.server.next(&mut input, self.now) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(_) => {
                    self.failed = true;
                    assert!(self.server.is_closed());
                    return;
                }
            };
            match event {
                ServerEvent::Connect(_) if self.refuse => {
                    self.server.refuse(Refusal::ServerUnavailable);
                }
                ServerEvent::Connect(_) => self.server.accept(true, self.now),
                ServerEvent::Publish { publish, ticket } => {
                    assert_eq!(ticket.is_some(), publish.qos == Qos::AtLeastOnce);
                    self.unreleased.extend(ticket.zip(publish.packet_id));
                }
                ServerEvent::Subscribe(subscribe) => {
                    let codes: Vec<_> = subscribe.filters().map(|_| SubackCode::Failure).collect();
                    let packet_id = subscribe.packet_id;
                    self.server.suback(packet_id, &codes).expect("open");
                }
                ServerEvent::Unsubscribe(unsubscribe) => {
                    assert!(unsubscribe.filters().count() > 0);
                    let packet_id = unsubscribe.packet_id;
                    self.server.unsuback(packet_id).expect("open");
                }
                ServerEvent::Puback { packet_id } => {
                    let at = self.delivered.iter().position(|id| *id == packet_id);
                    self.delivered.remove(at.expect("only what is in flight"));
                }
                ServerEvent::Disconnect => assert!(self.server.is_closed()),
            }
        }
        self.held = input.to_vec();
    }

    fn write(&mut self, count: usize) {
        let count = count.min(self.server.output_len());
        self.written
            .extend_from_slice(&self.server.output()[..count]);
        self.server.consume_output(count);
    }

    fn check(&self) {
        assert_eq!(self.server.in_flight(), self.unreleased.len());
        assert_eq!(self.server.deliveries_in_flight(), self.delivered.len());
        assert!(self.held.is_empty(), "every CONNECT is decided at once");
        assert!(self.server.incomplete_bytes() < 16 * 1024);
        assert_eq!(self.server.deadline().is_none(), self.server.is_closed());
    }

    /// Everything written is packets of a server, with the PUBACKs in the order of their release.
    fn check_written(&self) {
        // The answer to MQTT 5 is no packet of 3.1.1.
        if self.written == [0x20, 3, 0, 0x84, 0] {
            return;
        }
        let mut assembler = Assembler::new(u32::MAX);
        let mut input = self.written.as_slice();
        let mut pubacks = Vec::new();
        while let Some(raw) = assembler.next(&mut input).expect("packets") {
            match raw.decode().expect("a packet") {
                Packet::Puback { packet_id } => pubacks.push(packet_id),
                Packet::Connack(_)
                | Packet::Publish(_)
                | Packet::Suback(_)
                | Packet::Unsuback { .. }
                | Packet::Pingresp => {}
                packet => panic!("{packet:?}"),
            }
        }
        assert_eq!(assembler.incomplete_bytes(), 0);
        assert_eq!(pubacks, self.released);
    }
}
