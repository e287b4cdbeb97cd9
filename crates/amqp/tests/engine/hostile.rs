//! Peers that break the rules, or mean harm.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};
use fieldpost_amqp::frame::{AMQP_HEADER, FrameType, put_frame};
use fieldpost_amqp::performative::{
    Attach, Begin, Close, Detach, Disposition, End, Flow, Open, Performative, Role, Transfer,
};
use fieldpost_amqp::{Config, Connection, Encoder, Event, Fatal, Limits, LinkReply, condition};
use proptest::prelude::*;

use crate::support::{MECHANISMS, receiver, sender};

const NOW: Duration = Duration::ZERO;

fn frame(channel: u16, body: impl FnOnce(&mut Encoder<'_>)) -> Vec<u8> {
    let mut buffer = BytesMut::new();
    put_frame(&mut buffer, FrameType::Amqp, channel, body);
    buffer.to_vec()
}

fn raw_frame(body: &[u8]) -> Vec<u8> {
    let mut buffer = BytesMut::new();
    let size = u32::try_from(body.len() + 8).expect("small");
    buffer.put_u32(size);
    buffer.put_slice(&[2, 0, 0, 0]);
    buffer.put_slice(body);
    buffer.to_vec()
}

fn server() -> Connection {
    Connection::server(Arc::new(Config::default()), MECHANISMS)
}

/// A server after open, and with a session on the peer's channel 0.
fn begun() -> Connection {
    let mut server = server();
    let open = frame(0, |e| Open::default().encode(e));
    let begin = frame(0, |e| begin().encode(e));
    let input = [&AMQP_HEADER[..], &open, &begin].concat();
    server.feed(&input, NOW).expect("good so far");
    while server.next_event().is_some() {}
    server.output().clear();
    server
}

/// A server with a link from the peer on handle 0, and one credit.
fn attached() -> Connection {
    let mut server = begun();
    server
        .feed(&frame(0, |e| sender("s").encode(e)), NOW)
        .expect("a good attach");
    let Some(Event::Attach { link, .. }) = server.next_event() else {
        panic!("no attach");
    };
    let reply = LinkReply {
        max_message_size: 100,
        ..LinkReply::default()
    };
    server.accept_link(link, reply).expect("asked for");
    server.set_credit(link, 1).expect("attached");
    server.output().clear();
    server
}

fn begin() -> Begin {
    Begin {
        incoming_window: 100,
        outgoing_window: 100,
        ..Begin::default()
    }
}

fn transfer() -> Transfer {
    Transfer {
        delivery_id: Some(0),
        ..Transfer::default()
    }
}

fn written(server: &mut Connection) -> Vec<Performative> {
    let output = server.output().split();
    let mut rest = &output[..];
    let mut all = Vec::new();
    while let Some(size) = rest.first_chunk::<4>() {
        let size = usize::try_from(u32::from_be_bytes(*size)).expect("small");
        let body = rest.get(8..size).unwrap_or_default();
        if !body.is_empty() {
            all.push(Performative::decode(body).expect("our own frame").0);
        }
        rest = rest.get(size..).unwrap_or_default();
    }
    all
}

/// The peer's bytes end the connection with this condition.
fn check_closes(mut server: Connection, input: &[u8], expected: &str) {
    let started = Instant::now();
    let result = server.feed(input, NOW);
    assert!(started.elapsed() < Duration::from_secs(1), "slow");
    match result {
        Err(Fatal::Violation(error)) => assert_eq!(error.condition, expected),
        other => panic!("expected {expected}, got {other:?}"),
    }
    match written(&mut server).last() {
        Some(Performative::Close(Close { error: Some(error) })) => {
            assert_eq!(error.condition, expected);
        }
        other => panic!("expected a close, got {other:?}"),
    }
    assert!(server.is_closed());
    assert_eq!(server.feed(b"more", NOW), Ok(4));
}

/// The peer's bytes end session 0 with this condition.
fn check_ends(mut server: Connection, input: &[u8], expected: &str) {
    server.feed(input, NOW).expect("only the session ends");
    match written(&mut server).last() {
        Some(Performative::End(End { error: Some(error) })) => {
            assert_eq!(error.condition, expected);
        }
        other => panic!("expected an end, got {other:?}"),
    }
    let events: Vec<Event> = std::iter::from_fn(|| server.next_event()).collect();
    assert!(matches!(
        events.last(),
        Some(Event::SessionEnded { error: Some(e), .. }) if e.condition == expected
    ));
    // What crosses the end on the wire is dropped, and the confirmation is taken.
    server
        .feed(&frame(0, |e| transfer().encode(e)), NOW)
        .expect("dropped");
    server
        .feed(&frame(0, |e| End::default().encode(e)), NOW)
        .expect("confirmed");
    assert_eq!(server.next_event(), None);
    assert_eq!(server.output_len(), 0);
    server
        .feed(&frame(0, |e| begin().encode(e)), NOW)
        .expect("the channel is free");
    assert!(matches!(server.next_event(), Some(Event::SessionBegun(_))));
}

/// The peer's bytes detach link 0 with this condition.
fn check_detaches(mut server: Connection, input: &[u8], expected: &str) {
    server.feed(input, NOW).expect("only the link ends");
    match written(&mut server).last() {
        Some(Performative::Detach(Detach {
            error: Some(error),
            closed: true,
            ..
        })) => assert_eq!(error.condition, expected),
        other => panic!("expected a detach, got {other:?}"),
    }
    let events: Vec<Event> = std::iter::from_fn(|| server.next_event()).collect();
    assert!(matches!(
        events.last(),
        Some(Event::Detached { error: Some(e), .. }) if e.condition == expected
    ));
    assert_eq!(server.incomplete_bytes(), 0);
    // What crosses the detach on the wire is dropped.
    server
        .feed(&frame(0, |e| transfer().encode(e)), NOW)
        .expect("dropped");
    assert_eq!(server.next_event(), None);
}

/// Such a frame made another library try to allocate 274 GB.
#[test]
fn an_announced_count_of_four_billion() {
    for constructor in [0xd0, 0xd1, 0xf0] {
        let mut body =
            b"\x00\x53\x12\xd0\x00\x00\x00\x45\xff\xff\xff\xf0\xa1\x01n\x43\x42".to_vec();
        body.resize(81, 0x40);
        check_closes(begun(), &raw_frame(&body), condition::DECODE_ERROR);
        // The same inside, as the link's properties.
        let mut server = begun();
        let mut attach = frame(0, |e| sender("s").encode(e));
        attach.pop(); // the null properties
        attach.extend_from_slice(&[constructor, 0, 0, 0, 5, 0xff, 0xff, 0xff, 0xf0, 0x40]);
        let size = u32::try_from(attach.len()).unwrap();
        attach[..4].copy_from_slice(&size.to_be_bytes());
        attach[12] += 9; // the list's size
        let result = server.feed(&attach, NOW);
        assert!(matches!(result, Err(Fatal::Violation(_))), "{result:?}");
    }
}

/// Such a frame made another library overflow its stack and abort.
#[test]
fn values_nested_60000_bytes_deep() {
    let nested = |unit: &[u8], levels: usize| unit.repeat(levels);
    let lists = {
        let mut inner = vec![0x40];
        while inner.len() < 60_000 {
            let mut outer = vec![0xd0];
            outer.extend_from_slice(&u32::try_from(inner.len() + 4).unwrap().to_be_bytes());
            outer.extend_from_slice(&1_u32.to_be_bytes());
            outer.append(&mut inner);
            inner = outer;
        }
        inner
    };
    let described = nested(b"\x00\x53\x01", 20_000);
    let descriptors = nested(b"\x00", 60_000);
    for value in [lists, described, descriptors] {
        let mut server = begun();
        server.set_authenticated(true);
        let attach = frame(0, |e| {
            e.described(Attach::CODE, |e| {
                e.list(|e| {
                    e.string("name");
                    e.uint(0);
                    e.bool(true);
                    for _ in 3..13 {
                        e.null();
                    }
                    e.raw(&value);
                });
            });
        });
        check_closes(server, &attach, condition::DECODE_ERROR);
    }
}

#[test]
fn frames_over_the_limit() {
    let large = [&20_000_u32.to_be_bytes()[..], &[2, 0, 0, 0]].concat();
    check_closes(begun(), &large, condition::FRAMING_ERROR);
    let mut authenticated = begun();
    authenticated.set_authenticated(true);
    assert_eq!(authenticated.feed(&large, NOW), Ok(8));
    assert_eq!(authenticated.incomplete_bytes(), 8, "only what has come");
    let mut authenticated = begun();
    authenticated.set_authenticated(true);
    let too_large = [&65_537_u32.to_be_bytes()[..], &[2, 0, 0, 0]].concat();
    check_closes(authenticated, &too_large, condition::FRAMING_ERROR);
    check_closes(
        begun(),
        b"\x00\x00\x00\x08\x01\x00\x00\x00",
        condition::FRAMING_ERROR,
    );
    check_closes(
        begun(),
        b"\x00\x00\x00\x04\x02\x00\x00\x00",
        condition::FRAMING_ERROR,
    );
    check_closes(
        begun(),
        b"\x00\x00\x00\x08\x02\x01\x00\x00",
        condition::FRAMING_ERROR,
    );
    check_closes(
        begun(),
        b"\x00\x00\x00\x08\x02\x07\x00\x00",
        condition::FRAMING_ERROR,
    );
}

#[test]
fn a_bad_first_frame_is_answered_with_open_and_close() {
    let mut server = server();
    let input = [&AMQP_HEADER[..], &frame(0, |e| begin().encode(e))].concat();
    assert!(matches!(
        server.feed(&input, NOW),
        Err(Fatal::Violation(e)) if e.condition == condition::NOT_ALLOWED
    ));
    let _header = server.output().split_to(8);
    assert!(matches!(
        written(&mut server)[..],
        [Performative::Open(_), Performative::Close(_)]
    ));
}

#[test]
fn violations_that_end_the_connection() {
    let check = |input: Vec<u8>, expected: &str| check_closes(begun(), &input, expected);
    check(raw_frame(b"\x40"), condition::DECODE_ERROR);
    check(
        raw_frame(b"\x00\x53\x99\xc0\x01\x00"),
        condition::DECODE_ERROR,
    );
    check(
        raw_frame(b"\x00\x53\x12\xc0\x01\x00"),
        condition::DECODE_ERROR,
    );
    check(raw_frame(b"\x00\x53\x12\x40"), condition::DECODE_ERROR);
    check(
        frame(0, |e| Open::default().encode(e)),
        condition::NOT_ALLOWED,
    );
    check(frame(0, |e| begin().encode(e)), condition::NOT_ALLOWED);
    check(
        frame(8_192, |e| begin().encode(e)),
        condition::FRAMING_ERROR,
    );
    check(
        frame(1, |e| sender("s").encode(e)),
        condition::FRAMING_ERROR,
    );
    check(
        frame(1, |e| End::default().encode(e)),
        condition::FRAMING_ERROR,
    );
    let answer = Begin {
        remote_channel: Some(5),
        ..begin()
    };
    check(frame(1, |e| answer.encode(e)), condition::NOT_ALLOWED);
    let far = Attach {
        handle: 262_144,
        ..sender("s")
    };
    check(frame(0, |e| far.encode(e)), condition::FRAMING_ERROR);
}

/// azure-eventhub for Python ends its management session first and detaches the links after that:
/// its every connection for a question about the hub ended in an error.
#[test]
fn links_detached_after_their_session_was_ended() {
    let mut server = attached();
    let input = [
        frame(0, |e| End::default().encode(e)),
        frame(0, |e| Detach::default().encode(e)),
        frame(0, |e| Close::default().encode(e)),
    ]
    .concat();
    assert_eq!(server.feed(&input, NOW), Ok(input.len()));
    assert!(matches!(
        std::iter::from_fn(|| server.next_event()).collect::<Vec<_>>()[..],
        [Event::SessionEnded { .. }, Event::Closed(None)]
    ));
}

#[test]
fn violations_that_end_the_session() {
    let check = |input: Vec<u8>, expected: &str| check_ends(attached(), &input, expected);
    check(
        frame(0, |e| sender("other").encode(e)),
        condition::HANDLE_IN_USE,
    );
    let unknown = Transfer {
        handle: 9,
        ..transfer()
    };
    check(
        frame(0, |e| unknown.encode(e)),
        condition::UNATTACHED_HANDLE,
    );
    let detach = Detach {
        handle: 9,
        ..Detach::default()
    };
    check(frame(0, |e| detach.encode(e)), condition::UNATTACHED_HANDLE);
    let flow = Flow {
        handle: Some(9),
        ..Flow::default()
    };
    check(frame(0, |e| flow.encode(e)), condition::UNATTACHED_HANDLE);
    // A transfer against the direction of the link.
    let wrong = Attach {
        handle: 1,
        ..receiver("r")
    };
    let mut server = attached();
    server.feed(&frame(0, |e| wrong.encode(e)), NOW).unwrap();
    while server.next_event().is_some() {}
    let against = Transfer {
        handle: 1,
        ..transfer()
    };
    check_ends(
        server,
        &frame(0, |e| against.encode(e)),
        condition::NOT_ALLOWED,
    );
}

#[test]
fn the_incoming_window_is_enforced() {
    // A window of zero never opens again by itself.
    let config = Config {
        incoming_window: 0,
        ..Config::default()
    };
    let mut server = Connection::server(Arc::new(config), MECHANISMS);
    let input = [
        &AMQP_HEADER[..],
        &frame(0, |e| Open::default().encode(e)),
        &frame(0, |e| begin().encode(e)),
    ]
    .concat();
    server.feed(&input, NOW).unwrap();
    while server.next_event().is_some() {}
    server.output().clear();
    let input = frame(0, |e| transfer().encode(e));
    check_ends(server, &input, condition::WINDOW_VIOLATION);
}

#[test]
fn violations_that_detach_the_link() {
    let check = |input: Vec<u8>, expected: &str| check_detaches(attached(), &input, expected);
    let one = frame(0, |e| transfer().encode(e));
    check(
        [&one[..], &one[..]].concat(),
        condition::TRANSFER_LIMIT_EXCEEDED,
    );
    let nameless = Transfer {
        delivery_id: None,
        ..transfer()
    };
    check(frame(0, |e| nameless.encode(e)), condition::INVALID_FIELD);
    let with_payload = |more: bool, id: u32, size: usize| {
        let transfer = Transfer {
            more,
            delivery_id: Some(id),
            ..transfer()
        };
        frame(0, |e| {
            transfer.encode(e);
            e.raw(&vec![1; size]);
        })
    };
    check(
        with_payload(false, 0, 101),
        condition::MESSAGE_SIZE_EXCEEDED,
    );
    check(with_payload(true, 0, 101), condition::MESSAGE_SIZE_EXCEEDED);
    check(
        [with_payload(true, 0, 60), with_payload(true, 0, 60)].concat(),
        condition::MESSAGE_SIZE_EXCEEDED,
    );
    check(
        [with_payload(true, 0, 60), with_payload(false, 1, 1)].concat(),
        condition::INVALID_FIELD,
    );
}

#[test]
fn aborted_deliveries_are_forgotten() {
    let mut server = attached();
    let part = Transfer {
        more: true,
        ..transfer()
    };
    let aborted = Transfer {
        aborted: true,
        ..transfer()
    };
    let part = frame(0, |e| {
        part.encode(e);
        e.raw(&[1; 60]);
    });
    server.feed(&part, NOW).unwrap();
    assert_eq!(server.incomplete_bytes(), 60);
    server.feed(&frame(0, |e| aborted.encode(e)), NOW).unwrap();
    assert_eq!(server.incomplete_bytes(), 0);
    assert_eq!(server.next_event(), None);
    assert!(server.is_open());
}

/// A peer that makes us answer and never reads.
#[test]
fn answers_do_not_pile_up() {
    let config = Config {
        limits: Limits {
            output_bytes: 10_000,
            ..Limits::default()
        },
        ..Config::default()
    };
    let mut server = Connection::server(Arc::new(config), MECHANISMS);
    let input = [
        &AMQP_HEADER[..],
        &frame(0, |e| Open::default().encode(e)),
        &frame(0, |e| begin().encode(e)),
    ]
    .concat();
    server.feed(&input, NOW).unwrap();
    let echo = Flow {
        echo: true,
        ..Flow::default()
    };
    let flood = frame(0, |e| echo.encode(e)).repeat(100_000);
    let used = server.feed(&flood, NOW).unwrap();
    assert!(used < 20_000, "{used} bytes taken");
    assert!(server.output_full() && !server.wants_input());
    assert!(server.output_len() < 11_000);
    assert_eq!(server.feed(&flood, NOW), Ok(0));
    server.output().clear();
    assert!(server.wants_input());
    assert!(server.feed(&flood, NOW).unwrap() > 0);
}

/// Somebody who has proved nothing is worth less memory.
#[test]
fn before_authentication_few_answers_wait() {
    let echo = Flow {
        echo: true,
        ..Flow::default()
    };
    let flood = frame(0, |e| echo.encode(e)).repeat(10_000);
    let mut server = begun();
    server.feed(&flood, NOW).unwrap();
    let limits = Limits::default();
    let few = limits.output_bytes_unauthenticated;
    assert!((few..few + 100).contains(&server.output_len()));
    server.set_authenticated(true);
    server.feed(&flood, NOW).unwrap();
    assert!((limits.output_bytes..limits.output_bytes + 100).contains(&server.output_len()));
}

#[test]
fn events_do_not_pile_up() {
    let mut server = begun();
    let attach = frame(0, |e| sender("s").encode(e));
    let detach = frame(0, |e| Detach::default().encode(e));
    let flood = [attach, detach].concat().repeat(10_000);
    let used = server.feed(&flood, NOW).unwrap();
    assert!(used < flood.len() / 10);
    let waiting = std::iter::from_fn(|| server.next_event()).count();
    assert!((256..=258).contains(&waiting), "{waiting}");
    assert!(server.feed(&flood[used..], NOW).unwrap() > 0);
}

/// Refused links and sessions that the peer never confirms.
#[test]
fn refusals_do_not_pile_up() {
    let mut server = begun();
    let mut result = Ok(0);
    for channel in 1..100 {
        result = server.feed(&frame(channel, |e| begin().encode(e)), NOW);
        while server.next_event().is_some() {}
        if result.is_err() {
            assert!(channel < 20);
            break;
        }
    }
    assert!(matches!(
        result,
        Err(Fatal::Violation(e)) if e.condition == condition::RESOURCE_LIMIT_EXCEEDED
    ));
    let mut server = begun();
    for handle in 0..100 {
        let attach = Attach {
            handle,
            ..sender("s")
        };
        let _ = server.feed(&frame(0, |e| attach.encode(e)), NOW);
    }
    let ended = std::iter::from_fn(|| server.next_event())
        .any(|event| matches!(event, Event::SessionEnded { error: Some(_), .. }));
    assert!(ended);
}

/// A disposition over all ids there are costs what there is to settle, no more.
#[test]
fn absurd_ranges() {
    let mut server = attached();
    for (first, last) in [
        (0, u32::MAX),
        (u32::MAX, 0),
        (5, 4),
        (0, u32::MAX / 2),
        (1 << 31, 0),
    ] {
        for settled in [true, false] {
            let disposition = Disposition {
                role: Role::Receiver,
                first,
                last: Some(last),
                settled,
                state: Some(fieldpost_amqp::performative::DeliveryState::Accepted),
                ..Disposition::default()
            };
            let started = Instant::now();
            server
                .feed(&frame(0, |e| disposition.encode(e)), NOW)
                .unwrap();
            assert!(started.elapsed() < Duration::from_secs(1));
        }
    }
    assert_eq!(server.next_event(), None);
}

#[test]
fn an_idle_connection_is_small() {
    // What the types take in place; the rest of an idle connection is a few small maps.
    assert!(
        size_of::<Connection>() <= 512,
        "{}",
        size_of::<Connection>()
    );
    assert!(size_of::<Event>() <= 104, "{}", size_of::<Event>());
}

proptest! {
    /// No input panics, and what is kept of it is bounded.
    #[test]
    fn arbitrary_bytes(
        after_open in any::<bool>(),
        bytes in prop::collection::vec(any::<u8>(), 0..2_000),
    ) {
        let mut engine = if after_open { attached() } else { server() };
        let _ = engine.feed(&bytes, NOW);
        prop_assert!(engine.incomplete_bytes() <= bytes.len());
        prop_assert!(engine.output_len() < 100_000);
    }

    /// The same with bytes that are frames.
    #[test]
    fn arbitrary_frames(
        frames in prop::collection::vec(
            (0_u16..3, 0x10_u8..0x1a, prop::collection::vec(any::<u8>(), 0..60)),
            0..40,
        ),
    ) {
        let mut engine = attached();
        for (channel, code, fields) in frames {
            let count = u8::try_from(fields.len().min(8)).unwrap_or(0);
            let body = frame(channel, |e| {
                e.raw(&[0x00, 0x53, code, 0xc0, u8::try_from(fields.len() + 1).unwrap_or(0), count]);
                e.raw(&fields);
            });
            if engine.feed(&body, NOW).is_err() {
                prop_assert!(engine.is_closed());
                break;
            }
            while let Some(event) = engine.next_event() {
                if let Event::Attach { link, .. } = event {
                    let _ = engine.accept_link(link, LinkReply::default());
                }
            }
        }
    }
}
