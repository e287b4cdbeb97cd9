//! Sessions and links: attach, refuse, detach, end.

use std::sync::Arc;

use crate::support::{Pair, receiver, sender};
use fieldpost_amqp::performative::{Attach, Role, SndSettleMode, Source, Target};
use fieldpost_amqp::value::Described;
use fieldpost_amqp::{
    Config, Error, Event, Limits, LinkId, LinkReply, MAX_MESSAGE_SIZE, Map, Misuse, SessionId,
    Symbol, Value, condition, value,
};

fn pair() -> Pair {
    Pair::open(Config::default(), Config::default())
}

#[test]
fn a_link_is_echoed_with_its_filter() {
    let mut pair = pair();
    let (session, _) = pair.begin();
    let filter = Value::Described(Box::new(Described {
        descriptor: value::Descriptor::Code(0x468C_0000_0004),
        value: Value::from("amqp.annotation.x-opt-offset > '-1'"),
    }));
    let asked = Attach {
        source: Some(Source {
            filter: Some(Map::new().with("apache.org:selector-filter:string", filter)),
            ..Source::from_address("hub/ConsumerGroups/$Default/Partitions/0")
        }),
        properties: Some(Map::new().with("com.microsoft:epoch", 5_i64)),
        desired_capabilities: vec![Symbol::from("com.microsoft:georeplication")],
        ..receiver("r")
    };
    let link = pair.client.engine.attach(session, asked.clone()).unwrap();
    pair.run();
    let theirs = match &pair.server.take()[..] {
        [Event::Attach { link, attach }] => {
            assert_eq!(
                **attach,
                Attach {
                    max_message_size: None,
                    ..asked.clone()
                }
            );
            *link
        }
        other => panic!("expected an attach, got {other:?}"),
    };
    let reply = LinkReply {
        snd_settle_mode: Some(SndSettleMode::Settled),
        ..LinkReply::default()
    };
    pair.server.engine.accept_link(theirs, reply).unwrap();
    pair.run();
    match &pair.client.take()[..] {
        [Event::Attached { link: l, attach }] => {
            assert_eq!(*l, link);
            assert_eq!(attach.source, asked.source);
            assert_eq!(attach.target, asked.target);
            assert_eq!(attach.role, Role::Sender);
            assert_eq!(attach.snd_settle_mode, SndSettleMode::Settled);
            assert_eq!(attach.initial_delivery_count, Some(0));
            assert_eq!(attach.max_message_size, Some(MAX_MESSAGE_SIZE));
        }
        other => panic!("expected attached, got {other:?}"),
    }
    assert_eq!(
        pair.server.engine.accept_link(theirs, LinkReply::default()),
        Err(Misuse::WrongState)
    );
}

/// js-iot gives no target where it receives; a null in the answer would look like a refusal to
/// others.
#[test]
fn an_absent_end_is_answered_with_an_empty_one() {
    let mut pair = pair();
    let (session, _) = pair.begin();
    let attach = Attach {
        target: None,
        ..receiver("r")
    };
    pair.client.engine.attach(session, attach).unwrap();
    pair.run();
    let asked = pair.asked();
    let reply = LinkReply::default();
    pair.server.engine.accept_link(asked, reply).unwrap();
    pair.run();
    match &pair.client.take()[..] {
        [Event::Attached { attach, .. }] => {
            assert_eq!(attach.source, receiver("r").source);
            assert_eq!(attach.target, Some(Target::default()));
        }
        other => panic!("{other:?}"),
    }
}

/// Of two links, the later one is the greater, also where it has the handle of one that is gone.
#[test]
fn later_links_are_greater() {
    let mut pair = pair();
    let (session, _) = pair.begin();
    let (first, _) = pair.attach(session, receiver("1"));
    let (_, second) = pair.attach(session, receiver("2"));
    pair.client.engine.detach(first, None).unwrap();
    pair.run();
    pair.client.take();
    pair.server.take();
    let (_, third) = pair.attach(session, receiver("3"));
    assert!(third > second);
}

#[test]
fn a_refusal_carries_condition_and_info() {
    let mut pair = pair();
    let (session, _) = pair.begin();
    let link = pair.client.engine.attach(session, receiver("r")).unwrap();
    pair.run();
    let asked = pair.asked();
    let error = Error::new(condition::LINK_REDIRECT, "elsewhere").with_info(
        Map::new()
            .with("hostname", "other.example")
            .with("port", 5671),
    );
    pair.server
        .engine
        .refuse_link(asked, error.clone())
        .unwrap();
    pair.run();
    match &pair.client.take()[..] {
        [
            Event::Attached { attach, .. },
            Event::Detached {
                link: l,
                closed: true,
                error: Some(e),
            },
        ] => {
            assert_eq!((&attach.source, &attach.target), (&None, &None));
            assert_eq!(*l, link);
            assert_eq!(**e, error);
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
    assert_eq!(pair.server.take(), [], "the caller knows");
    assert_eq!(
        pair.server.engine.accept_link(asked, LinkReply::default()),
        Err(Misuse::Gone)
    );
    // The handle is free again.
    pair.attach(session, receiver("r"));
}

#[test]
fn accept_then_detach_also_refuses() {
    let mut pair = pair();
    let (session, _) = pair.begin();
    pair.client.engine.attach(session, sender("s")).unwrap();
    pair.run();
    let asked = pair.asked();
    let error = Error::new(condition::STOLEN, "somebody else");
    let server = &mut pair.server.engine;
    server.accept_link(asked, LinkReply::default()).unwrap();
    server.detach(asked, Some(error.clone())).unwrap();
    pair.run();
    match &pair.client.take()[..] {
        [
            Event::Attached { attach, .. },
            Event::Detached { error: Some(e), .. },
        ] => {
            assert_eq!(attach.target, Some(Target::to("queue")));
            assert_eq!(**e, error);
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
    assert!(matches!(pair.server.take()[..], [Event::Detached { link, .. }] if link == asked));
}

/// Some clients use the same link names in every session of a connection.
#[test]
fn links_are_told_apart_by_session_and_handle() {
    let mut pair = pair();
    let (first, _) = pair.begin();
    let (second, _) = pair.begin();
    let (a, at_a) = pair.attach(first, sender("same"));
    let (b, at_b) = pair.attach(second, sender("same"));
    let (c, at_c) = pair.attach(second, receiver("same"));
    assert_eq!([at_a, at_b, at_c].map(|l| at_b == l), [false, true, false]);
    pair.client.engine.detach(b, None).unwrap();
    pair.run();
    assert!(matches!(pair.server.take()[..], [Event::Detached { link, .. }] if link == at_b));
    assert!(matches!(pair.client.take()[..], [Event::Detached { link, .. }] if link == b));
    assert_eq!(pair.server.engine.set_credit(at_b, 1), Err(Misuse::Gone));
    assert_eq!(pair.server.engine.set_credit(at_a, 1), Ok(()));
    assert_eq!(
        pair.server.engine.set_credit(at_c, 1),
        Err(Misuse::WrongRole)
    );
    pair.run();
    assert_eq!(pair.client.take(), [Event::Credit(a)]);
    assert_eq!(pair.client.engine.set_credit(c, 3), Ok(()));
    pair.run();
    assert_eq!(pair.server.take(), [Event::Credit(at_c)]);
}

#[test]
fn both_sides_detach_at_once() {
    let mut pair = pair();
    let (session, _) = pair.begin();
    let (ours, theirs) = pair.attach(session, sender("s"));
    pair.client.engine.detach(ours, None).unwrap();
    pair.server.engine.detach(theirs, None).unwrap();
    assert_eq!(pair.server.engine.detach(theirs, None), Err(Misuse::Gone));
    pair.run();
    assert!(matches!(pair.server.take()[..], [Event::Detached { link, .. }] if link == theirs));
    assert!(matches!(pair.client.take()[..], [Event::Detached { link, .. }] if link == ours));
    pair.attach(session, sender("s"));
}

#[test]
fn a_client_gives_up_before_the_answer() {
    let mut pair = pair();
    let (session, _) = pair.begin();
    let link = pair.client.engine.attach(session, sender("s")).unwrap();
    pair.client.engine.detach(link, None).unwrap();
    pair.run();
    let (asked, gone) = match pair.server.take()[..] {
        [
            Event::Attach { link, .. },
            Event::Detached { link: gone, .. },
        ] => (link, gone),
        ref other => panic!("expected attach and detach, got {other:?}"),
    };
    assert_eq!(asked, gone);
    assert_eq!(
        pair.server.engine.accept_link(asked, LinkReply::default()),
        Err(Misuse::Gone)
    );
    assert!(matches!(pair.client.take()[..], [Event::Detached { link: l, .. }] if l == link));
    pair.attach(session, sender("s"));
}

#[test]
fn ending_a_session_takes_its_links() {
    let mut pair = pair();
    let (session, at_server) = pair.begin();
    let (_, theirs) = pair.attach(session, sender("s"));
    let error = Error::new(condition::DETACH_FORCED, "bye");
    pair.client
        .engine
        .end_session(session, Some(error.clone()))
        .unwrap();
    pair.run();
    assert_eq!(
        pair.server.take(),
        [Event::SessionEnded {
            session: at_server,
            error: Some(Arc::new(error))
        }]
    );
    assert_eq!(
        pair.client.take(),
        [Event::SessionEnded {
            session,
            error: None
        }]
    );
    assert_eq!(pair.server.engine.set_credit(theirs, 1), Err(Misuse::Gone));
    assert_eq!(
        pair.client.engine.attach(session, sender("s")),
        Err(Misuse::Gone)
    );
    // The channel is used again; the old names stay dead.
    let (again, _) = pair.begin();
    assert_ne!(again, session);
    assert_eq!(
        pair.client.engine.end_session(session, None),
        Err(Misuse::Gone)
    );
}

fn narrow() -> Config {
    Config {
        limits: Limits {
            sessions: 2,
            links: 2,
            ..Limits::default()
        },
        ..Config::default()
    }
}

#[test]
fn links_over_the_limit_are_refused() {
    let mut pair = Pair::open(Config::default(), narrow());
    let (session, _) = pair.begin();
    let (first, _) = pair.attach(session, sender("1"));
    pair.attach(session, sender("2"));
    pair.client.engine.attach(session, sender("3")).unwrap();
    pair.run();
    assert_eq!(pair.server.take(), [], "the caller never hears of it");
    match &pair.client.take()[..] {
        [
            Event::Attached { .. },
            Event::Detached { error: Some(e), .. },
        ] => {
            assert_eq!(e.condition, condition::RESOURCE_LIMIT_EXCEEDED);
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
    pair.client.engine.detach(first, None).unwrap();
    pair.run();
    pair.client.take();
    pair.server.take();
    pair.attach(session, sender("3"));
}

#[test]
fn sessions_over_the_limit_are_refused() {
    let mut pair = Pair::open(Config::default(), narrow());
    let (first, _) = pair.begin();
    pair.begin();
    let third = pair.client.engine.begin().unwrap();
    pair.run();
    assert_eq!(pair.server.take(), []);
    match &pair.client.take()[..] {
        [
            Event::SessionBegun(begun),
            Event::SessionEnded {
                session,
                error: Some(e),
            },
        ] => {
            assert_eq!((*begun, *session), (third, third));
            assert_eq!(e.condition, condition::RESOURCE_LIMIT_EXCEEDED);
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
    pair.client.engine.end_session(first, None).unwrap();
    pair.run();
    pair.client.take();
    pair.server.take();
    pair.begin();
}

#[test]
fn before_authentication_the_limits_are_low() {
    let limits = Limits {
        links_unauthenticated: 1,
        ..Limits::default()
    };
    let config = Config {
        limits,
        ..Config::default()
    };
    let mut pair = Pair::open(Config::default(), config);
    pair.server.engine.set_authenticated(false);
    let (session, _) = pair.begin();
    pair.attach(session, sender("1"));
    pair.client.engine.attach(session, sender("2")).unwrap();
    pair.run();
    assert!(matches!(
        pair.client.take()[..],
        [_, Event::Detached { .. }]
    ));
    pair.server.engine.set_authenticated(true);
    pair.attach(session, sender("2"));
}

#[test]
fn attaches_without_an_answer_are_held_up_to_a_bound() {
    let limits = Limits {
        asked_bytes: 3_000,
        ..Limits::default()
    };
    let config = Config {
        limits,
        ..Config::default()
    };
    let mut pair = Pair::open(Config::default(), config);
    // Whatever becomes of them, they count no longer.
    for way in ["accepted", "refused", "taken back", "session ended"] {
        let (session, _) = pair.begin();
        let (ours, theirs) = ask_at_length(&mut pair, session, "1").expect(way);
        let (_, second) = ask_at_length(&mut pair, session, "2").expect(way);
        assert_eq!(ask_at_length(&mut pair, session, "3"), None, "{way}");
        let server = &mut pair.server.engine;
        match way {
            "accepted" => server.accept_link(theirs, LinkReply::default()).unwrap(),
            "refused" => server.refuse_link(theirs, Error::new("a", "b")).unwrap(),
            "taken back" => pair.client.engine.detach(ours, None).unwrap(),
            _ => server.end_session(second.session(), None).unwrap(),
        }
        pair.run();
        pair.client.take();
        pair.server.take();
        if way == "session ended" {
            continue;
        }
        assert!(ask_at_length(&mut pair, session, "4").is_some(), "{way}");
        assert_eq!(ask_at_length(&mut pair, session, "5"), None, "{way}");
        pair.client.engine.end_session(session, None).unwrap();
        pair.run();
        pair.client.take();
        pair.server.take();
    }
    let (session, _) = pair.begin();
    assert!(ask_at_length(&mut pair, session, "1").is_some());
}

/// Asks for a link with some 1,400 bytes; the ids at the client and the server, or nothing when it
/// was refused by the engine.
fn ask_at_length(pair: &mut Pair, session: SessionId, name: &str) -> Option<(LinkId, LinkId)> {
    let attach = Attach {
        target: Some(Target {
            address: Some("x".repeat(1_400)),
            ..Target::default()
        }),
        ..sender(name)
    };
    let ours = pair.client.engine.attach(session, attach);
    let ours = ours.expect("the session has begun");
    pair.run();
    let asked = match pair.server.take()[..] {
        [Event::Attach { link, .. }] => Some((ours, link)),
        [] => None,
        ref other => panic!("expected an attach at most, got {other:?}"),
    };
    match &pair.client.take()[..] {
        [] => assert!(asked.is_some()),
        [_, Event::Detached { error: Some(e), .. }] => {
            assert_eq!(e.condition, condition::RESOURCE_LIMIT_EXCEEDED);
            assert_eq!(asked, None);
        }
        other => panic!("expected a refusal at most, got {other:?}"),
    }
    asked
}

#[test]
fn a_transaction_coordinator_is_refused() {
    let mut pair = pair();
    let (session, _) = pair.begin();
    let coordinator = Target {
        coordinator: true,
        ..Target::default()
    };
    let attach = Attach {
        target: Some(coordinator),
        ..sender("t")
    };
    pair.client.engine.attach(session, attach).unwrap();
    pair.run();
    assert_eq!(pair.server.take(), []);
    match &pair.client.take()[..] {
        [_, Event::Detached { error: Some(e), .. }] => {
            assert_eq!(e.condition, condition::NOT_IMPLEMENTED);
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn misuse_before_the_time() {
    let mut pair = pair();
    let session = pair.client.engine.begin().unwrap();
    assert_eq!(
        pair.client.engine.attach(session, sender("s")),
        Err(Misuse::WrongState),
        "the session has not begun"
    );
    pair.run();
    let link = pair.client.engine.attach(session, sender("s")).unwrap();
    assert_eq!(pair.client.engine.drained(link), Err(Misuse::WrongState));
    assert_eq!(pair.client.engine.sendable(link), 0);
}
