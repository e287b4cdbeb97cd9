//! The WebSocket layer: no bytes panic, the payload is the same however the wire cuts it, and the
//! answers are bounded.
//!
//! Input: how long the pieces are, how many bytes come with the upgrade, then the wire. With the top
//! bit of the first byte, the wire is made of well-formed frames.
#![no_main]

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use fieldpost_fuzz::NOW;
use fieldpost_gateway::fuzzing::websocket;
use fieldpost_hub::clock::ManualClock;
use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

fuzz_target!(|input: &[u8]| {
    let [mode, early, wire @ ..] = input else {
        return;
    };
    let frames;
    let wire = if mode & 0x80 == 0 {
        wire
    } else {
        frames = framed(wire);
        &frames
    };
    let whole = payload(wire, usize::MAX, 0, 64 * 1024);
    let piece = usize::from(mode & 0x7f).max(1);
    assert_eq!(payload(wire, piece, usize::from(*early), piece * 3), whole);
});

/// Everything that the reader gets.
fn payload(wire: &[u8], piece: usize, early: usize, room: usize) -> Vec<u8> {
    let (early, rest) = wire.split_at(early.min(wire.len()));
    let peer = Peer {
        pieces: rest
            .chunks(piece.min(rest.len()).max(1))
            .map(<[u8]>::to_vec)
            .collect(),
        written: 0,
    };
    let clock = Arc::new(ManualClock::new(NOW));
    let mut stream = websocket(peer, Bytes::copy_from_slice(early), clock);
    let mut cx = Context::from_waker(Waker::noop());
    let mut all = Vec::new();
    let mut buffer = vec![0; room];
    loop {
        let mut out = ReadBuf::new(&mut buffer);
        match Pin::new(&mut stream).poll_read(&mut cx, &mut out) {
            Poll::Ready(Ok(())) if out.filled().is_empty() => break,
            Poll::Ready(Ok(())) => all.extend_from_slice(out.filled()),
            Poll::Ready(Err(error)) => panic!("{error}"),
            Poll::Pending => panic!("the peer is always ready"),
        }
    }
    assert!(all.len() <= wire.len());
    all
}

/// Frames of a client: an opcode, a length, that many bytes.
fn framed(mut rest: &[u8]) -> Vec<u8> {
    let mut wire = Vec::new();
    while let [first, length, after @ ..] = rest {
        let (payload, after) = after.split_at(after.len().min(usize::from(*length)));
        rest = after;
        wire.push(*first);
        match u8::try_from(payload.len()) {
            Ok(short @ 0..126) => wire.push(0x80 | short),
            _ => {
                wire.push(0x80 | 126);
                wire.extend_from_slice(&(payload.len() as u16).to_be_bytes());
            }
        }
        let mask = [*first, *length, 3, 4];
        wire.extend_from_slice(&mask);
        wire.extend(payload.iter().zip(mask.iter().cycle()).map(|(b, m)| b ^ m));
    }
    wire
}

/// A peer that has sent everything, and reads all that it is sent.
struct Peer {
    pieces: VecDeque<Vec<u8>>,
    written: usize,
}

impl AsyncRead for Peer {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(mut piece) = this.pieces.pop_front() {
            let rest = piece.split_off(piece.len().min(out.remaining()));
            out.put_slice(&piece);
            if !rest.is_empty() {
                this.pieces.push_front(rest);
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Peer {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.written += bytes.len();
        // Every answer is to a frame of at least six bytes, and none is longer than what it answers.
        assert!(this.written < 1 << 20);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
