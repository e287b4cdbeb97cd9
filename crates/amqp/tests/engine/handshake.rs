//! Protocol headers, SASL, open, close, heartbeats and idle time-outs.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{MECHANISMS, Pair};
use fieldpost_amqp::sasl::{Plain, SaslCode};
use fieldpost_amqp::{
    ClientSasl, Config, Connection, Error, Event, Fatal, Misuse, Symbol, condition,
};

const AMQP: &[u8] = b"AMQP\x00\x01\x00\x00";
const SASL: &[u8] = b"AMQP\x03\x01\x00\x00";
const ZERO: Duration = Duration::ZERO;

fn config(container: &str) -> Config {
    Config {
        container_id: container.to_owned(),
        ..Config::default()
    }
}

fn sasl(mechanism: &'static str, response: Option<Vec<u8>>) -> Option<ClientSasl> {
    Some(ClientSasl {
        mechanism: Symbol::from(mechanism),
        initial_response: response,
    })
}

#[test]
fn open_without_sasl() {
    let mut pair = Pair::new(config("client"), config("server"), None);
    pair.run();
    let opened = |events: Vec<Event>| match &events[..] {
        [Event::Opened(open)] => open.container_id.clone(),
        other => panic!("expected open, got {other:?}"),
    };
    assert_eq!(opened(pair.client.take()), "server");
    assert_eq!(opened(pair.server.take()), "client");
    assert!(pair.client.engine.is_open() && pair.server.engine.is_open());
}

/// Bytes that are known to satisfy the strictest client.
#[test]
fn the_open_of_a_server_is_written_in_full() {
    let server = Config {
        channel_max: 4999,
        ..Config::default()
    };
    let mut server = Connection::server(Arc::new(server), MECHANISMS);
    let open = b"\x00\x00\x00\x11\x02\x00\x00\x00\x00\x53\x10\xc0\x04\x01\xa1\x01c";
    server.feed(&[AMQP, open].concat(), ZERO).unwrap();
    let expected = [
        AMQP,
        b"\x00\x00\x00\x2c\x02\x00\x00\x00\x00\x53\x10\xc0\x1f\x0a\xa1\x09fieldpost\x40",
        b"\x70\x00\x01\x00\x00\x60\x13\x87\x70\x00\x03\xa9\x80\x40\x40\x40\x40\x40",
    ]
    .concat();
    assert_eq!(server.output().split(), expected);
    assert!(server.is_open());
}

#[test]
fn sasl_is_decided_by_the_caller() {
    let response = Plain {
        authzid: "",
        authcid: "device@sas.hub",
        password: "token",
    }
    .to_initial_response();
    let mut pair = Pair::new(
        config("client"),
        config("server"),
        sasl("PLAIN", Some(response.clone())),
    );
    pair.run();
    match &pair.server.take()[..] {
        [Event::SaslInit(init)] => {
            assert_eq!(init.mechanism, "PLAIN");
            assert_eq!(init.initial_response.as_deref(), Some(&response[..]));
        }
        other => panic!("expected sasl-init, got {other:?}"),
    }
    assert!(!pair.server.engine.wants_input(), "a decision is due");
    assert_eq!(pair.server.engine.feed(b"x", pair.now), Ok(0));
    pair.finish_sasl(SaslCode::Ok);
    assert!(pair.client.engine.is_open() && pair.server.engine.is_open());
    assert_eq!(
        pair.server.engine.sasl_outcome(SaslCode::Ok),
        Err(Misuse::WrongState)
    );
}

#[test]
fn refused_credentials_end_both_sides() {
    let mut pair = Pair::new(config("client"), config("server"), sasl("MSSBCBS", None));
    pair.run();
    pair.finish_sasl(SaslCode::Auth);
    assert!(pair.server.engine.is_closed());
    assert_eq!(pair.server.fatal, None, "a refusal is no fault");
    assert_eq!(
        pair.client.fatal,
        Some(Fatal::Authentication(SaslCode::Auth))
    );
}

#[test]
fn a_mechanism_that_is_not_offered() {
    let mut pair = Pair::new(config("client"), config("server"), sasl("SCRAM", None));
    pair.run();
    assert_eq!(
        pair.client.fatal,
        Some(Fatal::MechanismNotOffered(Symbol::from("SCRAM")))
    );
    assert!(pair.client.engine.is_closed());
}

/// A client may send everything up to open without waiting; nothing is lost while the caller
/// decides.
#[test]
fn pipelined_handshake() {
    let init = b"\x00\x00\x00\x19\x02\x01\x00\x00\x00\x53\x41\xc0\x0c\x01\xa3\x09ANONYMOUS";
    let open = b"\x00\x00\x00\x11\x02\x00\x00\x00\x00\x53\x10\xc0\x04\x01\xa1\x01c";
    let all = [SASL, init.as_slice(), AMQP, open].concat();
    let mut server = Connection::server(Arc::new(Config::default()), MECHANISMS);
    let used = server.feed(&all, ZERO).unwrap();
    assert_eq!(used, SASL.len() + init.len());
    assert!(matches!(server.next_event(), Some(Event::SaslInit(_))));
    server.sasl_outcome(SaslCode::Ok).unwrap();
    assert_eq!(server.feed(&all[used..], ZERO), Ok(all.len() - used));
    assert!(matches!(server.next_event(), Some(Event::Opened(_))));
}

#[test]
fn other_protocols_get_the_supported_header() {
    let check = |mechanisms, input: &[u8], answer: &[u8]| {
        let mut server = Connection::server(Arc::new(Config::default()), mechanisms);
        let result = server.feed(input, ZERO);
        assert!(
            matches!(result, Err(Fatal::UnsupportedHeader(_))),
            "{result:?}"
        );
        assert_eq!(server.output()[..], *answer);
        assert!(server.is_closed());
        assert_eq!(server.feed(b"more", ZERO), Ok(4), "the rest is dropped");
    };
    check(MECHANISMS, b"GET / HTTP/1.1\r\n", SASL);
    check(MECHANISMS, b"AMQP\x00\x00\x09\x01", SASL);
    check(MECHANISMS, b"AMQP\x02\x01\x00\x00", SASL);
    check(&[], SASL, AMQP);
}

#[test]
fn close_is_answered() {
    let mut pair = Pair::open(config("client"), config("server"));
    let error = Error::new(condition::CONNECTION_FORCED, "the server restarts");
    pair.server.engine.close(Some(error.clone()));
    assert!(!pair.server.engine.is_open());
    pair.run();
    assert_eq!(pair.client.take(), [Event::Closed(Some(Arc::new(error)))]);
    assert_eq!(pair.server.take(), [Event::Closed(None)]);
    assert!(pair.client.engine.is_closed() && pair.server.engine.is_closed());
    assert_eq!(pair.client.engine.begin(), Err(Misuse::NotOpen));
}

#[test]
fn close_before_open() {
    let mut server = Connection::server(Arc::new(Config::default()), MECHANISMS);
    server.feed(AMQP, ZERO).unwrap();
    server.close(Some(Error::new(condition::CONNECTION_FORCED, "too slow")));
    assert!(server.is_closed());
    // The protocol demands an open before any close.
    let output = server.output().split();
    assert_eq!(output[8 + 8..][..3], *b"\x00\x53\x10");
    assert!(output.windows(3).any(|bytes| bytes == b"\x00\x53\x18"));
}

#[test]
fn heartbeats_keep_both_sides_alive() {
    let short = Config {
        idle_time_out: Some(Duration::from_secs(60)),
        ..config("client")
    };
    let long = Config {
        idle_time_out: Some(Duration::from_secs(240)),
        ..config("server")
    };
    let mut pair = Pair::open(short, long);
    let start = pair.now;
    let mut beats = 0;
    while pair.now < start + Duration::from_secs(1_000) {
        let client = pair.client.engine.deadline().expect("a time-out is set");
        let server = pair.server.engine.deadline().expect("a time-out is set");
        let next = client.min(server);
        assert!(next > pair.now);
        pair.now = next;
        for side in [&mut pair.client, &mut pair.server] {
            side.engine.tick(next).unwrap();
            side.engine.tick(next).unwrap();
        }
        let output = pair.server.engine.output();
        if !output.is_empty() {
            assert_eq!(output[..], *b"\x00\x00\x00\x08\x02\x00\x00\x00");
            beats += 1;
        }
        pair.run();
    }
    assert_eq!(beats, 1_000 / 24 + 1, "the client's 60 s times 2/5");
    assert_eq!(pair.client.take(), []);
}

#[test]
fn a_silent_peer_is_given_up() {
    let quiet = Config {
        idle_time_out: None,
        ..config("client")
    };
    let mut pair = Pair::open(quiet, config("server"));
    let deadline = pair.server.engine.deadline().unwrap();
    assert_eq!(deadline, pair.now + Duration::from_secs(240));
    let just_before = deadline - Duration::from_millis(1);
    assert_eq!(pair.server.engine.tick(just_before), Ok(()));
    assert_eq!(pair.server.engine.output_len(), 0, "the client wants none");
    assert_eq!(pair.server.engine.tick(deadline), Err(Fatal::IdleTimeOut));
    assert!(pair.server.engine.is_closed());
    pair.run();
    match &pair.client.take()[..] {
        [Event::Closed(Some(error))] => {
            assert_eq!(error.condition, condition::RESOURCE_LIMIT_EXCEEDED);
        }
        other => panic!("expected a close, got {other:?}"),
    }
}

/// A time-out of one millisecond must not make us write a thousand frames a second, and a peer
/// that does not read must not make them pile up.
#[test]
fn heartbeats_are_bounded() {
    let greedy = Config {
        idle_time_out: Some(Duration::from_millis(1)),
        ..config("client")
    };
    let mut pair = Pair::open(greedy, config("server"));
    for step in 0..100 {
        let now = pair.now + Duration::from_millis(step * 10);
        pair.server.engine.tick(now).unwrap();
    }
    assert_eq!(pair.server.engine.output_len(), 8);
}
