//! A server that parses MQTT or HTTP, acknowledges at once and stores nothing: what the generator, the
//! sockets and the machine allow at most.

mod http;
mod tls;

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use anyhow::{Context, Result, bail};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::say;

/// Where to listen.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Address and port; port 0 takes any free one. What was taken is the first line printed.
    #[arg(long, default_value = "127.0.0.1:0")]
    address: SocketAddr,
    /// Threads that serve connections.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Speak TLS, on tokio, with the certificate and the key in this PEM file.
    #[arg(long)]
    identity: Option<PathBuf>,
    /// Speak HTTP/1.1 over TLS instead of MQTT.
    #[arg(long, requires = "identity")]
    http: bool,
}

/// Bytes that one read may bring.
const READ_BYTES: usize = 256 * 1024;

/// The longest packet taken: a message of the longest kind with its topic.
const PACKET_BYTES_MAX: usize = 272 * 1024;

const WAKE: Token = Token(usize::MAX);

/// Serves until it is killed.
pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    if let Some(identity) = &arguments.identity {
        return if arguments.http {
            http::run(arguments.address, identity).await
        } else {
            tls::run(arguments.address, identity).await
        };
    }
    let listener = TcpListener::bind(arguments.address)?;
    let workers: Vec<(Sender<TcpStream>, Arc<Waker>)> = (0..arguments.threads.max(1))
        .map(|_| start_worker())
        .collect::<Result<_>>()?;
    say(&listener.local_addr()?.to_string());
    for (sender, waker) in workers.iter().cycle() {
        let (socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        sender.send(TcpStream::from_std(socket))?;
        waker.wake()?;
    }
    Ok(())
}

fn start_worker() -> Result<(Sender<TcpStream>, Arc<Waker>)> {
    let poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
    let (sender, accepted) = channel();
    thread::spawn(move || {
        if let Err(error) = serve(poll, &accepted) {
            say(&format!("FAILED: {error:#}"));
            std::process::exit(1);
        }
    });
    Ok((sender, waker))
}

fn serve(mut poll: Poll, accepted: &Receiver<TcpStream>) -> Result<()> {
    let mut connections: HashMap<Token, Connection> = HashMap::new();
    let mut newest = 0;
    let mut events = Events::with_capacity(1024);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == WAKE {
                for mut socket in accepted.try_iter() {
                    let token = Token(newest);
                    newest += 1;
                    poll.registry().register(
                        &mut socket,
                        token,
                        Interest::READABLE | Interest::WRITABLE,
                    )?;
                    connections.insert(token, Connection::new(socket));
                }
                continue;
            }
            let Some(connection) = connections.get_mut(&event.token()) else {
                continue;
            };
            // A generator that breaks off has ended its row.
            if !connection.work(&mut buffer).unwrap_or(false) {
                connections.remove(&event.token());
            }
        }
    }
}

struct Connection {
    socket: TcpStream,
    /// The beginning of a packet whose rest has not come.
    incomplete: Vec<u8>,
    answers: Vec<u8>,
}

impl Connection {
    fn new(socket: TcpStream) -> Self {
        Self {
            socket,
            incomplete: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// Reads until nothing is there, with one write for each read. Whether the peer is still there.
    fn work(&mut self, buffer: &mut [u8]) -> Result<bool> {
        loop {
            let kept = self.incomplete.len();
            let (begun, free) = buffer.split_at_mut_checked(kept).context("too long")?;
            begun.copy_from_slice(&self.incomplete);
            let room = free.len();
            let count = match self.socket.read(free) {
                Ok(0) => return Ok(false),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error.into()),
            };
            let mut rest = buffer.get(..kept + count).unwrap_or_default();
            while let Some((packet, behind)) = split_packet(rest)? {
                answer(packet, &mut self.answers)?;
                rest = behind;
            }
            self.incomplete.clear();
            self.incomplete.extend_from_slice(rest);
            self.write()?;
            // With edges as triggers, a short read is as good as one more that finds nothing.
            if count < room {
                return Ok(true);
            }
        }
    }

    fn write(&mut self) -> Result<()> {
        while !self.answers.is_empty() {
            match self.socket.write(&self.answers) {
                Ok(count) => {
                    self.answers.drain(..count);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// A packet's first byte and its body.
type Packet<'a> = (u8, &'a [u8]);

/// The first packet of `bytes` and what follows it; `None` while it is not complete.
fn split_packet(bytes: &[u8]) -> Result<Option<(Packet<'_>, &[u8])>> {
    let Some((&first, mut rest)) = bytes.split_first() else {
        return Ok(None);
    };
    let mut length = 0;
    for shift in [0, 7, 14, 21] {
        let Some((&byte, behind)) = rest.split_first() else {
            return Ok(None);
        };
        rest = behind;
        length |= usize::from(byte & 127) << shift;
        if byte < 128 {
            if length > PACKET_BYTES_MAX {
                bail!("a packet of {length} bytes");
            }
            return Ok(rest
                .split_at_checked(length)
                .map(|(body, behind)| ((first, body), behind)));
        }
    }
    bail!("a length of more than four bytes")
}

fn answer((first, body): Packet<'_>, answers: &mut Vec<u8>) -> Result<()> {
    match first >> 4 {
        1 => answers.extend_from_slice(&[0x20, 2, 0, 0]),
        3 if first & 0b110 == 0 => {}
        3 => {
            let (length, rest) = body.split_first_chunk().context("no topic")?;
            let topic = usize::from(u16::from_be_bytes(*length));
            let (_, rest) = rest.split_at_checked(topic).context("a short topic")?;
            let (&[high, low], _) = rest.split_first_chunk().context("no packet id")?;
            answers.extend_from_slice(&[0x40, 2, high, low]);
        }
        8 => {
            let (&[high, low], _) = body.split_first_chunk().context("no packet id")?;
            answers.extend_from_slice(&[0x90, 3, high, low, 1]);
        }
        12 => answers.extend_from_slice(&[0xd0, 0]),
        14 => {}
        kind => bail!("a packet of kind {kind}"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_complete_packet_is_answered_and_no_other() {
        let check = |bytes: &[u8], answers: &[u8], left: usize| {
            let (mut rest, mut got) = (bytes, Vec::new());
            while let Some((packet, behind)) = split_packet(rest).unwrap() {
                answer(packet, &mut got).unwrap();
                rest = behind;
            }
            assert_eq!((got.as_slice(), rest.len()), (answers, left), "{bytes:?}");
        };
        let publish = [0x32, 6, 0, 1, b't', 1, 2, 9];
        check(&publish, &[0x40, 2, 1, 2], 0);
        check(
            &[publish, publish].concat(),
            &[0x40, 2, 1, 2, 0x40, 2, 1, 2],
            0,
        );
        check(&publish[..7], &[], 7);
        check(&[0x30, 4, 0, 1, b't', 9], &[], 0);
        check(&[0x32, 0x80], &[], 2);
        check(&[0x10, 0], &[0x20, 2, 0, 0], 0);
        check(&[0x82, 2, 0, 5], &[0x90, 3, 0, 5, 1], 0);
        check(&[0xc0, 0], &[0xd0, 0], 0);
    }

    #[test]
    fn what_is_no_packet_ends_the_connection() {
        assert!(split_packet(&[0x32, 0xff, 0xff, 0xff, 0xff, 1]).is_err());
        assert!(split_packet(&[0x32, 0xff, 0xff, 0xff, 0x7f]).is_err());
        assert!(answer((0x32, &[0, 9, 1]), &mut Vec::new()).is_err());
        assert!(answer((0, &[]), &mut Vec::new()).is_err());
    }
}
