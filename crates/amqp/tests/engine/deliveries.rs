//! Messages: credit, windows, frames, settlement.

use bytes::{Bytes, BytesMut};
use fieldpost_amqp::frame::{FrameType, put_frame};
use fieldpost_amqp::performative::{
    Attach, DeliveryState, Disposition, Flow, Performative, RcvSettleMode, Role, SndSettleMode,
};
use fieldpost_amqp::{
    Config, Connection, Delivery, Error, Event, LinkId, LinkReply, Message, Misuse, Outcome,
    SendError, condition,
};

use crate::support::{Pair, receiver, sender};

fn pair() -> Pair {
    Pair::open(Config::default(), Config::default())
}

fn unsettled<'a>(tag: &'a [u8], payload: &'a [&'a [u8]]) -> Delivery<'a> {
    Delivery {
        tag,
        settled: false,
        message_format: 0,
        payload,
    }
}

fn messages(events: Vec<Event>) -> Vec<Message> {
    events
        .into_iter()
        .map(|event| match event {
            Event::Message(message) => message,
            other => panic!("expected a message, got {other:?}"),
        })
        .collect()
}

fn outcomes(events: Vec<Event>) -> Vec<Outcome> {
    events
        .into_iter()
        .map(|event| match event {
            Event::Outcome(outcome) => outcome,
            other => panic!("expected an outcome, got {other:?}"),
        })
        .collect()
}

/// A link from the client to the server with this credit.
fn upward(pair: &mut Pair, credit: u32) -> (LinkId, LinkId) {
    let (session, _) = pair.begin();
    let (ours, theirs) = pair.attach(session, sender("up"));
    let result = pair.server.engine.set_credit(theirs, credit);
    assert_eq!(result, Ok(()));
    pair.run();
    assert_eq!(pair.client.take(), [Event::Credit(ours)]);
    (ours, theirs)
}

/// A link from the server to the client with this credit.
fn downward(pair: &mut Pair, attach: Attach, credit: u32) -> (LinkId, LinkId) {
    let (session, _) = pair.begin();
    let (ours, theirs) = pair.attach(session, attach);
    let result = pair.client.engine.set_credit(ours, credit);
    assert_eq!(result, Ok(()));
    pair.run();
    assert_eq!(pair.server.take(), [Event::Credit(theirs)]);
    (ours, theirs)
}

#[test]
fn a_message_is_sent_received_and_settled() {
    let mut pair = pair();
    let (ours, theirs) = upward(&mut pair, 10);
    let tag = [7; 16];
    let delivery = Delivery {
        message_format: 0x8001_3700,
        ..unsettled(&tag, &[b"one", b"", b" message"])
    };
    let id = pair.client.engine.send(ours, &delivery).unwrap();
    pair.run();
    let got = messages(pair.server.take()).remove(0);
    assert_eq!(got.link, theirs);
    assert_eq!(got.tag.as_bytes(), tag);
    assert_eq!(got.message_format, 0x8001_3700);
    assert_eq!(got.payload, b"one message"[..]);
    assert!(!got.settled);
    assert_eq!(pair.client.engine.unsettled(ours.session()), 1);
    let range = got.delivery_id..=got.delivery_id;
    pair.server
        .engine
        .settle_incoming(theirs, range, DeliveryState::Accepted)
        .unwrap();
    pair.run();
    let outcome = outcomes(pair.client.take()).remove(0);
    assert_eq!((outcome.link, outcome.delivery_id), (ours, id));
    assert_eq!(outcome.tag.as_bytes(), tag);
    assert_eq!(outcome.state, Some(DeliveryState::Accepted));
    assert!(outcome.settled);
    assert_eq!(pair.client.engine.unsettled(ours.session()), 0);
}

#[test]
fn settled_messages_leave_no_state() {
    let mut pair = pair();
    let attach = Attach {
        snd_settle_mode: SndSettleMode::Settled,
        ..receiver("down")
    };
    let (_, theirs) = downward(&mut pair, attach, 100);
    for _ in 0..100 {
        // The mode of the link wins over the caller's flag.
        let delivery = unsettled(b"", &[b"x"]);
        pair.server.engine.send(theirs, &delivery).unwrap();
    }
    assert_eq!(pair.server.engine.unsettled(theirs.session()), 0);
    pair.run();
    let got = messages(pair.client.take());
    assert_eq!(got.len(), 100);
    assert!(got.iter().all(|message| message.settled));
}

#[test]
fn credit_is_never_exceeded() {
    let mut pair = pair();
    let (ours, theirs) = upward(&mut pair, 2);
    let delivery = unsettled(b"t", &[b"x"]);
    let client = &mut pair.client.engine;
    assert_eq!(client.sendable(ours), 2);
    client.send(ours, &delivery).unwrap();
    client.send(ours, &delivery).unwrap();
    assert_eq!(client.sendable(ours), 0);
    assert_eq!(client.send(ours, &delivery), Err(SendError::NoCredit));
    pair.run();
    assert_eq!(messages(pair.server.take()).len(), 2);
    assert_eq!(pair.server.engine.credit(theirs), 0);
    pair.server.engine.set_credit(theirs, 3).unwrap();
    pair.run();
    assert_eq!(pair.client.take(), [Event::Credit(ours)]);
    assert_eq!(pair.client.engine.sendable(ours), 3);
}

/// Messages may be on the way when the receiver takes its credit back.
#[test]
fn credit_can_be_lowered() {
    let mut pair = pair();
    let (ours, theirs) = upward(&mut pair, 3);
    let delivery = unsettled(b"t", &[b"x"]);
    for _ in 0..3 {
        pair.client.engine.send(ours, &delivery).unwrap();
    }
    pair.server.engine.set_credit(theirs, 0).unwrap();
    pair.run();
    assert_eq!(messages(pair.server.take()).len(), 3);
    assert_eq!(pair.client.take(), []);
    assert_eq!(pair.client.engine.sendable(ours), 0);
}

#[test]
fn automatic_credit_never_runs_dry() {
    let mut pair = pair();
    let (session, _) = pair.begin();
    let (ours, theirs) = pair.attach(session, sender("up"));
    pair.server.engine.set_auto_credit(theirs, 4).unwrap();
    pair.run();
    let mut sent = 0;
    while sent < 1_000 {
        while pair.client.engine.sendable(ours) > 0 {
            pair.client
                .engine
                .send(ours, &unsettled(b"t", &[b"x"]))
                .unwrap();
            sent += 1;
        }
        pair.run();
        assert!(pair.client.engine.sendable(ours) > 0);
    }
    assert_eq!(messages(pair.server.take()).len(), sent);
}

/// Large messages over the smallest frames that AMQP allows, both ways and cut into single bytes.
#[test]
fn messages_in_many_frames() {
    let small = Config {
        max_frame_size: 512,
        ..Config::default()
    };
    let mut pair = Pair::open(small.clone(), small);
    pair.chunk = 1;
    let (session, _) = pair.begin();
    let (up, at_server) = pair.attach(session, sender("up"));
    let (at_client, down) = pair.attach(session, receiver("down"));
    pair.server.engine.set_auto_credit(at_server, 10).unwrap();
    pair.client.engine.set_auto_credit(at_client, 10).unwrap();
    pair.run();
    pair.client.take();
    pair.server.take();
    let body: Vec<u8> = (0..20_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    for size in [0, 1, 400, 450, 460, 470, 480, 511, 512, 513, 1_000, 20_000] {
        let pieces: Vec<&[u8]> = body[..size].chunks(777).collect();
        let delivery = unsettled(&[9; 32], &pieces);
        pair.client.engine.send(up, &delivery).unwrap();
        pair.server.engine.send(down, &delivery).unwrap();
        pair.run();
        for side in [&mut pair.client, &mut pair.server] {
            let got: Vec<Message> = messages(
                side.take()
                    .into_iter()
                    .filter(|event| !matches!(event, Event::Credit(_)))
                    .collect(),
            );
            assert_eq!(got.len(), 1);
            assert_eq!(got[0].payload, body[..size]);
            assert_eq!(got[0].tag.as_bytes(), [9; 32]);
            assert_eq!(side.engine.incomplete_bytes(), 0);
        }
    }
}

#[test]
fn every_frame_keeps_the_peers_limit() {
    let small = Config {
        max_frame_size: 600,
        ..Config::default()
    };
    let mut pair = Pair::open(small, Config::default());
    let (_, theirs) = downward(&mut pair, receiver("down"), 1);
    let body = vec![1; 5_000];
    let pieces = [&body[..]];
    let delivery = unsettled(b"tag", &pieces);
    pair.server.engine.send(theirs, &delivery).unwrap();
    let mut rest = &pair.server.engine.output()[..];
    let mut frames = 0;
    while let Some(size) = rest.first_chunk::<4>() {
        let size = usize::try_from(u32::from_be_bytes(*size)).unwrap();
        assert!(size <= 600);
        rest = &rest[size..];
        frames += 1;
    }
    assert_eq!(frames, 9, "all frames but the last are full");
}

#[test]
fn too_large_messages() {
    let mut pair = pair();
    let (session, _) = pair.begin();
    let reply = LinkReply {
        max_message_size: 1_000,
        ..LinkReply::default()
    };
    let (ours, theirs) = pair.attach_with(session, sender("up"), reply);
    pair.server.engine.set_credit(theirs, 5).unwrap();
    pair.run();
    pair.client.take();
    let body = [0; 1_001];
    assert_eq!(
        pair.client.engine.send(ours, &unsettled(b"", &[&body])),
        Err(SendError::TooLarge(1_000))
    );
    assert_eq!(
        pair.client.engine.send(ours, &unsettled(&[0; 33], &[b"x"])),
        Err(SendError::TagTooLong)
    );
    assert_eq!(pair.client.engine.sendable(ours), 5, "nothing was used up");
    pair.client
        .engine
        .send(ours, &unsettled(b"", &[&body[..1_000]]))
        .unwrap();
    pair.run();
    assert_eq!(messages(pair.server.take()).len(), 1);
}

/// Devices settle late, in any order, in ranges, and again.
#[test]
fn late_ranged_and_repeated_settlement() {
    let mut pair = pair();
    let (ours, theirs) = downward(&mut pair, receiver("down"), 100);
    let ids: Vec<u32> = (0..10_u8)
        .map(|n| {
            let tag = [n; 16];
            pair.server
                .engine
                .send(theirs, &unsettled(&tag, &[b"x"]))
                .unwrap()
        })
        .collect();
    pair.run();
    assert_eq!(messages(pair.client.take()).len(), 10);
    let mut settle = |range: std::ops::RangeInclusive<usize>, state: DeliveryState| {
        let range = ids[*range.start()]..=ids[*range.end()];
        pair.client
            .engine
            .settle_incoming(ours, range, state)
            .unwrap();
        pair.run();
        outcomes(pair.server.take())
            .into_iter()
            .map(|outcome| {
                assert!(outcome.settled);
                assert_eq!(outcome.link, theirs);
                (outcome.tag.as_bytes()[0], outcome.state.unwrap())
            })
            .collect::<Vec<_>>()
    };
    let rejected = DeliveryState::rejected(Error::new("custom:error", "no"));
    assert_eq!(
        settle(7..=9, DeliveryState::Accepted),
        [7, 8, 9].map(|n| (n, DeliveryState::Accepted))
    );
    assert_eq!(settle(0..=0, rejected.clone()), [(0, rejected)]);
    assert_eq!(
        settle(0..=8, DeliveryState::Released),
        [1, 2, 3, 4, 5, 6].map(|n| (n, DeliveryState::Released))
    );
    assert_eq!(settle(0..=9, DeliveryState::Accepted), []);
    assert_eq!(pair.server.engine.unsettled(theirs.session()), 0);
}

/// With rcv-settle-mode second the receiver tells the outcome and waits for the sender.
#[test]
fn the_receiver_settles_second() {
    let mut pair = pair();
    let attach = Attach {
        rcv_settle_mode: RcvSettleMode::Second,
        ..receiver("down")
    };
    let (ours, theirs) = downward(&mut pair, attach, 10);
    let first = pair
        .server
        .engine
        .send(theirs, &unsettled(&[1; 16], &[b"x"]))
        .unwrap();
    let second = pair
        .server
        .engine
        .send(theirs, &unsettled(&[2; 16], &[b"y"]))
        .unwrap();
    pair.run();
    pair.client.take();
    // The receiving engine settles at once; an unsettled disposition needs a peer by hand.
    let mut bytes = BytesMut::new();
    let told = Disposition {
        role: Role::Receiver,
        first,
        last: Some(second),
        settled: false,
        state: Some(DeliveryState::Accepted),
        batchable: false,
    };
    put_frame(&mut bytes, FrameType::Amqp, 0, |e| told.encode(e));
    let twice = [&bytes[..], &bytes[..]].concat();
    pair.server.engine.feed(&twice, pair.now).unwrap();
    let told: Vec<Outcome> =
        outcomes(std::iter::from_fn(|| pair.server.engine.next_event()).collect());
    assert_eq!(told.len(), 2, "a repeated state is told once");
    assert!(told.iter().all(|outcome| !outcome.settled));
    assert_eq!(pair.server.engine.unsettled(theirs.session()), 2);
    let server = &mut pair.server.engine;
    for id in [second, first] {
        let state = Some(DeliveryState::Accepted);
        assert_eq!(server.settle_outgoing(theirs, id, state), Ok(()));
    }
    assert_eq!(
        server.settle_outgoing(theirs, first, None),
        Err(Misuse::UnknownDelivery)
    );
    assert_eq!(server.unsettled(theirs.session()), 0);
    pair.run();
    // The client had nothing unsettled of its own to hear of.
    assert_eq!(pair.client.take(), []);
    assert_eq!(pair.client.engine.credit(ours), 8);
}

#[test]
fn detaching_forgets_deliveries() {
    let mut pair = pair();
    let (_, theirs) = downward(&mut pair, receiver("down"), 10);
    pair.server
        .engine
        .send(theirs, &unsettled(&[1; 16], &[b"x"]))
        .unwrap();
    assert_eq!(pair.server.engine.unsettled(theirs.session()), 1);
    pair.server.engine.detach(theirs, None).unwrap();
    assert_eq!(pair.server.engine.unsettled(theirs.session()), 0);
    pair.run();
    assert!(matches!(pair.server.take()[..], [Event::Detached { .. }]));
}

#[test]
fn draining() {
    let mut pair = pair();
    let (ours, theirs) = downward(&mut pair, receiver("down"), 10);
    pair.server
        .engine
        .send(theirs, &unsettled(b"", &[b"x"]))
        .unwrap();
    pair.client.engine.drain(ours).unwrap();
    pair.run();
    assert_eq!(pair.server.take(), [Event::Drain(theirs)]);
    pair.server
        .engine
        .send(theirs, &unsettled(b"", &[b"last"]))
        .unwrap();
    pair.server.engine.drained(theirs).unwrap();
    assert_eq!(pair.server.engine.sendable(theirs), 0);
    assert_eq!(
        pair.server.engine.drained(theirs),
        Err(Misuse::WrongState),
        "once is enough"
    );
    pair.run();
    let events = pair.client.take();
    assert_eq!(events.last(), Some(&Event::Drained(ours)));
    assert_eq!(messages(events[..2].to_vec())[1].payload, b"last"[..]);
    assert_eq!(pair.client.engine.credit(ours), 0);
    // Without credit the answer comes by itself.
    pair.client.engine.drain(ours).unwrap();
    pair.run();
    assert_eq!(pair.server.take(), []);
    assert_eq!(pair.client.take(), [Event::Drained(ours)]);
    // And the counts still agree.
    pair.client.engine.set_credit(ours, 1).unwrap();
    pair.run();
    assert_eq!(pair.server.take(), [Event::Credit(theirs)]);
    assert_eq!(pair.server.engine.sendable(theirs), 1);
}

/// Credit that messages use up entirely is drained as well, and the peer waits to be told.
#[test]
fn draining_by_sending_alone() {
    let mut pair = pair();
    let (ours, theirs) = downward(&mut pair, receiver("down"), 2);
    pair.client.engine.drain(ours).unwrap();
    pair.run();
    assert_eq!(pair.server.take(), [Event::Drain(theirs)]);
    for payload in [b"1", b"2"] {
        pair.server
            .engine
            .send(theirs, &unsettled(b"", &[payload]))
            .unwrap();
    }
    assert_eq!(
        pair.server.engine.drained(theirs),
        Err(Misuse::WrongState),
        "it is told already"
    );
    pair.run();
    let events = pair.client.take();
    assert_eq!(events.last(), Some(&Event::Drained(ours)));
    assert_eq!(messages(events[..2].to_vec()).len(), 2);
}

/// Feeds the server a flow that the client's engine would not send.
fn feed_flow(pair: &mut Pair, flow: &Flow) {
    let mut bytes = BytesMut::new();
    put_frame(&mut bytes, FrameType::Amqp, 0, |e| flow.encode(e));
    assert_eq!(pair.server.engine.feed(&bytes, pair.now), Ok(bytes.len()));
}

fn flow(handle: u32, link_credit: Option<u32>) -> Flow {
    Flow {
        next_incoming_id: Some(1),
        incoming_window: 100,
        next_outgoing_id: 1,
        outgoing_window: 100,
        handle: Some(handle),
        link_credit,
        ..Flow::default()
    }
}

/// Credit that came before the server had answered the attach counts.
#[test]
fn early_credit() {
    let mut pair = pair();
    let (session, _) = pair.begin();
    pair.client.engine.attach(session, receiver("r")).unwrap();
    pair.run();
    let asked = pair.asked();
    feed_flow(&mut pair, &flow(0, Some(300)));
    assert_eq!(pair.server.engine.next_event(), None);
    pair.server
        .engine
        .accept_link(asked, LinkReply::default())
        .unwrap();
    assert_eq!(pair.server.engine.next_event(), Some(Event::Credit(asked)));
    assert_eq!(pair.server.engine.sendable(asked), 300);
}

/// One client sends flows without credit between real ones: they change nothing.
#[test]
fn a_flow_without_credit_changes_nothing() {
    let mut pair = pair();
    let (_, theirs) = downward(&mut pair, receiver("down"), 7);
    feed_flow(&mut pair, &flow(0, None));
    assert_eq!(pair.server.engine.next_event(), None);
    assert_eq!(pair.server.engine.sendable(theirs), 7);
}

/// The same client grants credit on links on which it is the sender.
#[test]
fn credit_from_a_sender_means_nothing() {
    let mut pair = pair();
    let (ours, theirs) = upward(&mut pair, 7);
    feed_flow(&mut pair, &flow(0, Some(10_000)));
    assert_eq!(pair.server.engine.next_event(), None);
    assert_eq!(pair.server.engine.credit(theirs), 7);
    assert_eq!(pair.server.engine.sendable(theirs), 0);
    pair.client
        .engine
        .send(ours, &unsettled(b"", &[b"x"]))
        .unwrap();
    pair.run();
    assert_eq!(messages(pair.server.take()).len(), 1);
}

/// The largest windows and credits there are.
#[test]
fn boundless_windows_and_credit() {
    let mut pair = pair();
    let (_, theirs) = downward(&mut pair, receiver("down"), 1);
    let boundless = Flow {
        incoming_window: u32::MAX,
        ..flow(0, Some(u32::MAX))
    };
    feed_flow(&mut pair, &boundless);
    assert_eq!(pair.server.engine.sendable(theirs), u32::MAX);
}

#[test]
fn echo_is_answered() {
    let mut pair = pair();
    let (_, theirs) = downward(&mut pair, receiver("down"), 7);
    let echo = Flow {
        echo: true,
        ..flow(0, None)
    };
    feed_flow(&mut pair, &echo);
    let output = pair.server.engine.output().split();
    let (answer, _) = Performative::decode(&output[8..]).unwrap();
    let Performative::Flow(answer) = answer else {
        panic!("expected a flow, got {answer:?}");
    };
    assert_eq!((answer.handle, answer.link_credit), (Some(0), Some(7)));
    assert_eq!(answer.delivery_count, Some(0));
    assert_eq!(answer.incoming_window, 5_000);
    assert_eq!(pair.server.engine.sendable(theirs), 7);
}

/// The client takes 3 frames at a time; a message of 9 frames waits for the window, and nothing
/// overtakes it.
#[test]
fn the_window_of_the_peer_is_kept() {
    let tight = Config {
        max_frame_size: 512,
        incoming_window: 3,
        ..Config::default()
    };
    let mut pair = Pair::open(tight, Config::default());
    let (session, at_server) = pair.begin();
    let (ours, theirs) = pair.attach(session, receiver("a"));
    let (other, their_other) = pair.attach(session, receiver("b"));
    for link in [ours, other] {
        pair.client.engine.set_credit(link, 10).unwrap();
    }
    pair.run();
    pair.server.take();
    let body: Vec<u8> = (0..4_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let server = &mut pair.server.engine;
    server
        .send(theirs, &unsettled(b"", &[&body[..5], &body[5..]]))
        .unwrap();
    let frames = server.output_len() / 512;
    assert_eq!(frames, 3, "as many frames as the window has");
    assert_eq!(server.sendable(their_other), 0);
    assert_eq!(
        server.send(their_other, &unsettled(b"", &[b"y"])),
        Err(SendError::NoCredit)
    );
    pair.run();
    assert_eq!(pair.server.take(), [Event::WindowOpen(at_server)]);
    let got = messages(pair.client.take());
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].payload, body);
    assert!(pair.server.engine.sendable(their_other) > 0);
}

/// A long stream through a narrow window, both windows at work.
#[test]
fn narrow_windows_do_not_stall() {
    let tight = Config {
        incoming_window: 4,
        ..Config::default()
    };
    let mut pair = Pair::open(tight.clone(), tight);
    let (session, _) = pair.begin();
    let (up, at_server) = pair.attach(session, sender("up"));
    let (at_client, down) = pair.attach(session, receiver("down"));
    pair.server.engine.set_credit(at_server, 1_000).unwrap();
    pair.client.engine.set_credit(at_client, 1_000).unwrap();
    pair.run();
    let mut sent = (0_u32, 0_u32);
    let mut rounds = 0;
    while sent.0 < 1_000 || sent.1 < 1_000 {
        rounds += 1;
        assert!(rounds < 2_000, "stalled after {sent:?}");
        let pump = |engine: &mut Connection, link, sent: &mut u32| {
            while engine.sendable(link) > 0 {
                engine
                    .send(link, &unsettled(b"", &[&sent.to_be_bytes()]))
                    .unwrap();
                *sent += 1;
            }
        };
        pump(&mut pair.client.engine, up, &mut sent.0);
        pump(&mut pair.server.engine, down, &mut sent.1);
        pair.run();
    }
    for side in [&mut pair.client, &mut pair.server] {
        let numbers: Vec<Bytes> = side
            .take()
            .into_iter()
            .filter_map(|event| match event {
                Event::Message(message) => Some(message.payload),
                _ => None,
            })
            .collect();
        let expected: Vec<Bytes> = (0..1_000_u32)
            .map(|n| Bytes::copy_from_slice(&n.to_be_bytes()))
            .collect();
        assert_eq!(numbers, expected);
    }
}

#[test]
fn errors_name_the_condition() {
    let error = Error::new(condition::NOT_FOUND, "no such queue");
    assert_eq!(error.to_string(), "amqp:not-found: no such queue");
}
