//! A server connection that is fed frames and pieces of frames, and whose caller answers as a
//! simple server does. Nothing panics, and what a peer can make it hold stays bounded.
#![no_main]

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use fieldpost_amqp::performative::{DeliveryState, Role};
use fieldpost_amqp::sasl::SaslCode;
use fieldpost_amqp::{Config, Connection, Delivery, Error, Event, Limits, LinkReply, condition};
use libfuzzer_sys::fuzz_target;

const MECHANISMS: &[&str] = &["MSSBCBS", "ANONYMOUS", "PLAIN"];

fn answer(server: &mut Connection, event: Event) {
    match event {
        Event::SaslInit(_) => {
            let _ = server.sasl_outcome(SaslCode::Ok);
        }
        Event::Attach { link, attach } if attach.name.len() % 3 == 2 => {
            let error = Error::new(condition::NOT_FOUND, "no such address");
            let _ = server.refuse_link(link, error);
        }
        Event::Attach { link, attach } => {
            let reply = LinkReply {
                max_message_size: 10_000,
                ..LinkReply::default()
            };
            let _ = server.accept_link(link, reply);
            if attach.role == Role::Sender {
                let _ = server.set_auto_credit(link, 4);
            }
        }
        Event::Message(message) => {
            assert!(message.payload.len() <= 10_000);
            let range = message.delivery_id..=message.delivery_id;
            let _ = server.settle_incoming(message.link, range, DeliveryState::Accepted);
        }
        Event::Credit(link) => {
            for size in [0, 10, 2_000] {
                if server.sendable(link) > 0 && server.unsettled(link.session()) < 100 {
                    let delivery = Delivery {
                        tag: &[3; 16],
                        settled: size == 0,
                        message_format: 0,
                        payload: &[&vec![1; size], b"end"],
                    };
                    let _ = server.send(link, &delivery);
                }
            }
        }
        Event::Drain(link) => {
            let _ = server.drained(link);
        }
        Event::Outcome(outcome) if !outcome.settled => {
            let _ = server.settle_outgoing(outcome.link, outcome.delivery_id, outcome.state);
        }
        _ => {}
    }
}

fuzz_target!(|input: &[u8]| {
    let config = Config {
        limits: Limits {
            sessions: 4,
            links: 6,
            output_bytes: 20_000,
            ..Limits::default()
        },
        ..Config::default()
    };
    let mut server = Connection::server(Arc::new(config), MECHANISMS);
    let Some((&mode, mut rest)) = input.split_first() else {
        return;
    };
    let mut now = Duration::from_secs(1);
    let mut bytes = BytesMut::new();
    if mode & 1 != 0 {
        // Past the handshake, with a session and one link each way.
        bytes.put_slice(b"AMQP\x00\x01\x00\x00");
        bytes.put_slice(b"\x00\x00\x00\x11\x02\x00\x00\x00\x00\x53\x10\xc0\x04\x01\xa1\x01c");
        bytes.put_slice(
            b"\x00\x00\x00\x15\x02\x00\x00\x00\x00\x53\x11\xc0\x08\x04\x40\x43\x52\x64\x52\x64\x43",
        );
    }
    // Pieces: a length byte, then that many bytes; with mode bit 2 each piece is the body of a
    // frame on a channel that its first byte gives.
    while let Some((&length, after)) = rest.split_first() {
        let (piece, after) = after.split_at(after.len().min(length.into()));
        rest = after;
        if mode & 2 != 0 {
            bytes.put_u32(u32::try_from(piece.len() + 10).expect("small"));
            bytes.put_slice(&[2, 0, 0, piece.first().copied().unwrap_or(0) & 3]);
            bytes.put_slice(&[0x00, 0x53]);
        }
        bytes.put_slice(piece);
        loop {
            let Ok(used) = server.feed(&bytes, now) else {
                assert!(server.is_closed());
                return;
            };
            let _ = bytes.split_to(used);
            let mut quiet = used == 0;
            while let Some(event) = server.next_event() {
                quiet = false;
                answer(&mut server, event);
            }
            assert!(server.output_len() < 200_000);
            assert!(server.incomplete_bytes() < 1_000_000);
            if mode & 4 == 0 || server.output_full() {
                server.output().clear();
            }
            if quiet {
                break;
            }
        }
        now += Duration::from_secs(1);
        server.set_authenticated(mode & 8 != 0);
        if server.tick(now).is_err() {
            return;
        }
        server.release_memory();
    }
});
