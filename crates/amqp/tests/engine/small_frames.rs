//! Peers that take no frame above the 512 bytes that AMQP makes everybody take.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use fieldpost_amqp::frame::{AMQP_HEADER, FRAME_HEADER_LENGTH, FrameHeader, FrameType, put_frame};
use fieldpost_amqp::performative::{
    Attach, Begin, DeliveryState, Open, Performative, Source, Transfer,
};
use fieldpost_amqp::{Config, Connection, Error, Event, LinkId, LinkReply, Map, Misuse, condition};

use crate::support::{MECHANISMS, receiver, sender};

const NOW: Duration = Duration::ZERO;
const LIMIT: usize = 512;

/// A server whose peer takes small frames, with a session.
fn server() -> Connection {
    let mut server = Connection::server(Arc::new(Config::default()), MECHANISMS);
    server.feed(&AMQP_HEADER, NOW).expect("a good header");
    let open = Open {
        max_frame_size: 512,
        ..Open::default()
    };
    feed(&mut server, &Performative::Open(Box::new(open)));
    let begin = Begin {
        incoming_window: 100,
        ..Begin::default()
    };
    feed(&mut server, &Performative::Begin(Box::new(begin)));
    while server.next_event().is_some() {}
    server.output().clear();
    server
}

fn feed(server: &mut Connection, performative: &Performative) {
    let mut bytes = BytesMut::new();
    put_frame(&mut bytes, FrameType::Amqp, 0, |e| performative.encode(e));
    assert_eq!(server.feed(&bytes, NOW), Ok(bytes.len()));
}

fn asked(server: &mut Connection, attach: Attach) -> LinkId {
    feed(server, &Performative::Attach(Box::new(attach)));
    match server.next_event() {
        Some(Event::Attach { link, .. }) => link,
        other => panic!("{other:?}"),
    }
}

/// What the server wrote, each frame of it within the limit.
fn written(server: &mut Connection) -> Vec<Performative> {
    let mut rest = server.output().split();
    let mut all = Vec::new();
    while let Some(header) = rest.first_chunk::<FRAME_HEADER_LENGTH>() {
        let header = FrameHeader::parse(*header, LIMIT).expect("a frame within the limit");
        let body = rest.split_to(header.size).split_off(header.body);
        let (performative, _) = Performative::decode(&body).expect("a performative");
        all.push(performative);
    }
    assert!(rest.is_empty());
    all
}

/// Errors lose their details and the end of their text, and keep what programs look at.
#[test]
fn long_errors_are_shortened() {
    let long = Error::new(condition::NOT_FOUND, "ä".repeat(1_000))
        .with_info(Map::new().with("more", "x".repeat(1_000)));
    let check = |error: Option<&Error>| {
        let error = error.expect("an error");
        assert_eq!(error.condition, condition::NOT_FOUND);
        assert_eq!(error.description, Some("ä".repeat(64)));
        assert!(error.info.is_empty());
    };

    let mut small = server();
    let link = asked(&mut small, receiver("r"));
    small.refuse_link(link, long.clone()).unwrap();
    match &written(&mut small)[..] {
        [Performative::Attach(attach), Performative::Detach(detach)] => {
            assert_eq!(attach.source, None);
            check(detach.error.as_ref());
        }
        other => panic!("{other:?}"),
    }

    let link = asked(
        &mut small,
        Attach {
            handle: 1,
            ..sender("s")
        },
    );
    small.accept_link(link, LinkReply::default()).unwrap();
    small.set_credit(link, 1).unwrap();
    let mut bytes = BytesMut::new();
    let transfer = Transfer {
        handle: 1,
        delivery_id: Some(0),
        ..Transfer::default()
    };
    put_frame(&mut bytes, FrameType::Amqp, 0, |e| transfer.encode(e));
    small.feed(&bytes, NOW).unwrap();
    small.output().clear();
    let rejected = DeliveryState::rejected(long.clone());
    small.settle_incoming(link, 0..=0, rejected).unwrap();
    match &written(&mut small)[..] {
        [Performative::Disposition(disposition)] => match &disposition.state {
            Some(DeliveryState::Rejected(error)) => check(error.as_deref()),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }

    small
        .end_session(link.session(), Some(long.clone()))
        .unwrap();
    match &written(&mut small)[..] {
        [Performative::End(end)] => check(end.error.as_ref()),
        other => panic!("{other:?}"),
    }
    small.close(Some(long.clone()));
    match &written(&mut small)[..] {
        [Performative::Close(close)] => check(close.error.as_ref()),
        other => panic!("{other:?}"),
    }
}

/// The peer's own source, echoed, would not fit.
#[test]
fn an_answer_that_does_not_fit_refuses_the_link() {
    let mut server = server();
    let attach = Attach {
        source: Some(Source::from_address("x".repeat(600))),
        ..receiver("r")
    };
    let link = asked(&mut server, attach);
    let refused = server.accept_link(link, LinkReply::default());
    assert_eq!(refused, Err(Misuse::FrameTooSmall));
    match &written(&mut server)[..] {
        [Performative::Attach(attach), Performative::Detach(detach)] => {
            assert_eq!(attach.source, None);
            let error = detach.error.as_ref().unwrap();
            assert_eq!(error.condition, condition::FRAME_SIZE_TOO_SMALL);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(server.next_event(), None);
    assert_eq!(server.sendable(link), 0);
}

/// A name that not even a refusal can carry back.
#[test]
fn a_name_that_does_not_fit_ends_the_session() {
    let mut server = server();
    let attach = receiver(&"n".repeat(500));
    feed(&mut server, &Performative::Attach(Box::new(attach)));
    assert!(matches!(
        server.next_event(),
        Some(Event::SessionEnded { error: Some(error), .. })
            if error.condition == condition::FRAME_SIZE_TOO_SMALL
    ));
    assert!(matches!(written(&mut server)[..], [Performative::End(_)]));
}

#[test]
fn what_the_client_asks_for_must_fit_too() {
    let mut client = Connection::client(Arc::new(Config::default()), None);
    let mut input = BytesMut::new();
    input.put_slice(&AMQP_HEADER);
    let open = Open {
        max_frame_size: 512,
        ..Open::default()
    };
    put_frame(&mut input, FrameType::Amqp, 0, |e| open.encode(e));
    client.feed(&input, NOW).unwrap();
    let session = client.begin().unwrap();
    let begin = Begin {
        remote_channel: Some(0),
        ..Begin::default()
    };
    feed(&mut client, &Performative::Begin(Box::new(begin)));
    client.output().clear();
    let attach = |length: usize| receiver(&"n".repeat(length));
    let refused = client.attach(session, attach(500));
    assert_eq!(refused, Err(Misuse::FrameTooSmall));
    assert!(client.output().is_empty());
    client.attach(session, attach(50)).unwrap();
}
