//! However a stream is cut, the same events come of it.

use std::sync::Arc;
use std::time::Duration;

use fieldpost_amqp::performative::DeliveryState;
use fieldpost_amqp::{Config, Connection, Delivery, Event, LinkReply};
use proptest::prelude::*;

use crate::support::{MECHANISMS, receiver, sender};

const NOW: Duration = Duration::from_secs(1);

/// Answers as a simple server does.
fn answer(server: &mut Connection, event: &Event) {
    match event {
        Event::Opened(_) => server.set_authenticated(true),
        Event::Attach { link, .. } => {
            server
                .accept_link(*link, LinkReply::default())
                .expect("the link was asked for");
            // Only links that receive take credit.
            let _ = server.set_credit(*link, 50);
        }
        Event::Message(message) => {
            let range = message.delivery_id..=message.delivery_id;
            server
                .settle_incoming(message.link, range, DeliveryState::Accepted)
                .expect("the link is attached");
        }
        Event::Credit(link) => {
            let delivery = Delivery {
                tag: &[1; 16],
                settled: false,
                message_format: 0,
                payload: &[&[5; 3_000]],
            };
            // The client settles nothing, so this comes to an end.
            if server.unsettled(link.session()) < 5 {
                server.send(*link, &delivery).expect("there is credit");
            }
        }
        _ => {}
    }
}

fn drain(server: &mut Connection, events: &mut Vec<Event>) {
    while let Some(event) = server.next_event() {
        answer(server, &event);
        events.push(event);
    }
}

/// A conversation: the client's bytes in bursts, each of which answers what came before, and what
/// the server made of them uncut.
fn recorded() -> (Vec<Vec<u8>>, Vec<Event>, Vec<u8>) {
    let small = Config {
        max_frame_size: 512,
        ..Config::default()
    };
    let mut client = Connection::client(Arc::new(small.clone()), None);
    let mut server = Connection::server(Arc::new(small), MECHANISMS);
    let (mut bursts, mut events, mut written) = (Vec::new(), Vec::new(), Vec::new());
    let mut links = Vec::new();
    let body = [9; 2_000];
    for step in 0.. {
        match step {
            1 => {
                client.begin().expect("open");
            }
            4 => {
                for link in &links {
                    let delivery = Delivery {
                        tag: b"tag",
                        settled: false,
                        message_format: 0,
                        payload: &[&body],
                    };
                    let _ = client.send(*link, &delivery);
                    let _ = client.send(*link, &delivery);
                    let _ = client.set_auto_credit(*link, 2);
                }
            }
            20 => client
                .detach(*links.first().expect("attached"), None)
                .expect("attached"),
            22 => client.close(None),
            24 => break,
            _ => {}
        }
        let burst = client.output().split().to_vec();
        server.feed(&burst, NOW).expect("a good client");
        bursts.push(burst);
        drain(&mut server, &mut events);
        let output = server.output().split();
        written.extend_from_slice(&output);
        client.feed(&output, NOW).expect("a good server");
        while let Some(event) = client.next_event() {
            if let Event::SessionBegun(session) = event {
                links.push(client.attach(session, sender("up")).expect("begun"));
                links.push(client.attach(session, receiver("down")).expect("begun"));
            }
        }
    }
    (bursts, events, written)
}

#[test]
fn the_recording_is_worth_cutting() {
    let (bursts, events, _) = recorded();
    assert!(bursts.iter().map(Vec::len).sum::<usize>() > 4_000);
    let count = |wanted: fn(&Event) -> bool| events.iter().filter(|event| wanted(event)).count();
    assert_eq!(count(|event| matches!(event, Event::Message(_))), 2);
    assert_eq!(count(|event| matches!(event, Event::Detached { .. })), 1);
    assert_eq!(count(|event| matches!(event, Event::Closed(None))), 1);
    assert!(count(|event| matches!(event, Event::Credit(_))) > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_cut_gives_the_same(sizes in prop::collection::vec(1_usize..600, 1..40)) {
        let (bursts, events, written) = recorded();
        let small = Config { max_frame_size: 512, ..Config::default() };
        let mut server = Connection::server(Arc::new(small), MECHANISMS);
        let (mut got, mut output) = (Vec::new(), Vec::new());
        let mut sizes = sizes.into_iter().cycle();
        for burst in &bursts {
            let mut rest = &burst[..];
            while !rest.is_empty() {
                let end = sizes.next().unwrap_or(1).min(rest.len());
                let used = server.feed(&rest[..end], NOW).unwrap();
                rest = &rest[used..];
                drain(&mut server, &mut got);
                prop_assert!(server.incomplete_bytes() <= 512 + 2_000);
            }
            output.extend_from_slice(&server.output().split());
        }
        prop_assert_eq!(got, events);
        prop_assert_eq!(output, written);
        prop_assert_eq!(server.incomplete_bytes(), 0);
    }
}
