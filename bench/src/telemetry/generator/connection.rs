//! One device's connection: its socket, and as much MQTT as a device that only sends needs.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

/// Who a device is, and its packets as far as they never change.
pub(crate) struct Login {
    /// The CONNECT packet.
    pub(crate) connect: Vec<u8>,
    /// The topic that it sends to, behind its length.
    pub(crate) topic: Vec<u8>,
    /// A SUBSCRIBE packet, where it shall subscribe.
    pub(crate) subscribe: Option<Vec<u8>>,
}

/// Packet ids go from 1 to this and begin anew.
const PACKET_IDS: u64 = 65_535;

/// What the messages of one phase are made of.
pub(crate) struct Content {
    /// Longer than any payload.
    noise: Vec<u8>,
    bytes: usize,
    phase: u16,
}

impl Content {
    /// Payloads of `bytes` bytes, at least 8, the first of which say `phase` and the number of the message
    /// among those of its connection.
    pub(crate) fn new(bytes: usize, phase: u16) -> Self {
        let noise = crate::payload::Noise::new(0x5eed).map(u64::to_le_bytes);
        Self {
            noise: noise.take(128 * 1024).flatten().collect(),
            bytes: bytes.max(8),
            phase,
        }
    }

    /// The phase and the number at the beginning of a payload.
    pub(crate) fn read(payload: &[u8]) -> Option<(u16, u64)> {
        let mark = u64::from_le_bytes(*payload.first_chunk()?);
        Some((u16::try_from(mark >> 48).ok()?, mark & ((1 << 48) - 1)))
    }

    fn publish(&self, topic: &[u8], number: u64, output: &mut Vec<u8>) {
        output.push(0x32);
        push_length(output, topic.len() + 2 + self.bytes);
        output.extend_from_slice(topic);
        output.extend_from_slice(&packet_id(number).to_be_bytes());
        let mark = (u64::from(self.phase) << 48) | number;
        output.extend_from_slice(&mark.to_le_bytes());
        let room = self.noise.len().saturating_sub(self.bytes).max(1);
        let place = usize::try_from(number.wrapping_mul(61)).unwrap_or(0) % room;
        let noise = self.noise.get(place..place + self.bytes - 8);
        output.extend_from_slice(noise.unwrap_or_default());
    }
}

fn packet_id(number: u64) -> u16 {
    u16::try_from(number % PACKET_IDS + 1).unwrap_or(1)
}

/// Appends a packet's remaining length.
pub(crate) fn push_length(output: &mut Vec<u8>, mut length: usize) {
    loop {
        let low = u8::try_from(length & 127).unwrap_or(0);
        length >>= 7;
        if length == 0 {
            return output.push(low);
        }
        output.push(low | 128);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    Greeting,
    Subscribing,
    Ready,
}

pub(crate) struct Connection {
    stream: Stream,
    state: State,
    login: Arc<Login>,
    /// The beginning of an answer whose rest has not come.
    input: Vec<u8>,
    /// What the socket would not take.
    output: Vec<u8>,
    /// Messages sent and acknowledged, which is in their order.
    pub(crate) sent: u64,
    pub(crate) acknowledged: u64,
}

impl Connection {
    /// Begins to connect.
    pub(crate) fn open(
        address: SocketAddr,
        tls: Option<&Arc<ClientConfig>>,
        login: Arc<Login>,
    ) -> Result<Self> {
        let socket = TcpStream::connect(address)?;
        let stream = match tls {
            None => Stream::Plain {
                socket,
                drained: false,
            },
            Some(config) => {
                let name = ServerName::from(address.ip());
                let mut session = Box::new(ClientConnection::new(Arc::clone(config), name)?);
                session.set_buffer_limit(None);
                Stream::Tls { socket, session }
            }
        };
        Ok(Self {
            stream,
            state: State::Connecting,
            login,
            input: Vec::new(),
            output: Vec::new(),
            sent: 0,
            acknowledged: 0,
        })
    }

    pub(crate) fn socket(&mut self) -> &mut TcpStream {
        match &mut self.stream {
            Stream::Plain { socket, .. } | Stream::Tls { socket, .. } => socket,
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.state == State::Ready
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.sent - self.acknowledged
    }

    /// Whether the socket takes nothing more for now.
    pub(crate) fn is_held_back(&self) -> bool {
        !self.output.is_empty()
    }

    /// Does what an event of the socket allows, and says how many messages were acknowledged.
    pub(crate) fn work(&mut self, buffer: &mut [u8]) -> Result<u64> {
        if self.state == State::Connecting {
            if let Some(error) = self.socket().take_error()? {
                return Err(error.into());
            }
            if self.socket().peer_addr().is_err() {
                return Ok(0);
            }
            self.socket().set_nodelay(true)?;
            self.state = State::Greeting;
            self.output.extend_from_slice(&self.login.connect);
        }
        self.flush()?;
        let before = self.acknowledged;
        while let Some(count) = self.stream.read(buffer)? {
            let bytes = buffer.get(..count).unwrap_or_default();
            if self.input.is_empty() {
                let used = self.take_answers(bytes)?;
                self.input
                    .extend_from_slice(bytes.get(used..).unwrap_or_default());
            } else {
                let mut input = std::mem::take(&mut self.input);
                input.extend_from_slice(bytes);
                let used = self.take_answers(&input)?;
                input.drain(..used);
                self.input = input;
            }
        }
        self.flush()?;
        Ok(self.acknowledged - before)
    }

    /// Sends so many messages in one write.
    pub(crate) fn send(
        &mut self,
        count: u64,
        content: &Content,
        scratch: &mut Vec<u8>,
    ) -> Result<()> {
        if count == 0 {
            return Ok(());
        }
        let held_back = self.is_held_back();
        scratch.clear();
        for _ in 0..count {
            content.publish(&self.login.topic, self.sent, scratch);
            self.sent += 1;
        }
        let written = if held_back {
            0
        } else {
            self.stream.write(scratch)?
        };
        self.output
            .extend_from_slice(scratch.get(written..).unwrap_or_default());
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        // TLS has something to write even when MQTT has not.
        let written = self.stream.write(&self.output)?;
        self.output.drain(..written);
        Ok(())
    }

    /// Works off all complete answers and says how many bytes they were.
    fn take_answers(&mut self, bytes: &[u8]) -> Result<usize> {
        let mut rest = bytes;
        while let &[first, length, ref behind @ ..] = rest {
            let Some((body, behind)) = behind.split_at_checked(usize::from(length)) else {
                break;
            };
            match (first, body) {
                (0x40, &[high, low]) => {
                    let id = u16::from_be_bytes([high, low]);
                    ensure!(self.in_flight() > 0, "a PUBACK for nothing");
                    ensure!(
                        id == packet_id(self.acknowledged),
                        "a PUBACK out of its order"
                    );
                    self.acknowledged += 1;
                }
                (0x20, &[_, 0]) => self.greeted(),
                (0x20, &[_, code]) => bail!("refused with CONNACK code {code}"),
                (0x90, &[_, _, code]) => {
                    ensure!(code < 3, "refused with SUBACK code {code}");
                    self.state = State::Ready;
                }
                _ => bail!("an answer that begins with {first:#x}"),
            }
            rest = behind;
        }
        Ok(bytes.len() - rest.len())
    }

    fn greeted(&mut self) {
        match &self.login.subscribe {
            None => self.state = State::Ready,
            Some(packet) => {
                self.output.extend_from_slice(packet);
                self.state = State::Subscribing;
            }
        }
    }
}

enum Stream {
    Plain {
        socket: TcpStream,
        /// The last read was short: there is nothing more until the next event.
        drained: bool,
    },
    Tls {
        socket: TcpStream,
        session: Box<ClientConnection>,
    },
}

impl Stream {
    /// Reads what is there; `None` is nothing.
    fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>> {
        match self {
            Self::Plain { socket, drained } => {
                if std::mem::take(drained) {
                    return Ok(None);
                }
                let count = some(socket.read(buffer)).context("read")?;
                *drained = count.is_some_and(|count| count < buffer.len());
                Ok(count)
            }
            Self::Tls { socket, session } => loop {
                if let Some(count) = some(session.reader().read(buffer)).context("read TLS")? {
                    return Ok(Some(count));
                }
                if some(session.read_tls(socket)).context("read")?.is_none() {
                    return Ok(None);
                }
                session.process_new_packets()?;
            },
        }
    }

    /// Writes what the socket takes of `bytes`.
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        match self {
            Self::Plain { .. } if bytes.is_empty() => Ok(0),
            Self::Plain { socket, .. } => Ok(filled(socket.write(bytes)).context("write")?),
            Self::Tls { socket, session } => {
                // While the handshake lasts TLS keeps what it is given.
                session.writer().write_all(bytes)?;
                while session.wants_write() && filled(session.write_tls(socket))? > 0 {}
                Ok(bytes.len())
            }
        }
    }
}

/// Nothing there is no failure, the end of the stream is.
fn some(read: io::Result<usize>) -> io::Result<Option<usize>> {
    match read {
        Ok(0) => Err(io::Error::new(
            ErrorKind::UnexpectedEof,
            "closed by the peer",
        )),
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

fn filled(write: io::Result<usize>) -> io::Result<usize> {
    match write {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_says_phase_and_number_and_fills_its_length() {
        let content = Content::new(256, 3);
        let mut output = Vec::new();
        content.publish(&[0, 1, b't'], 65_535, &mut output);
        assert_eq!(output[..3], [0x32, 0x85, 2]);
        assert_eq!(output[3..8], [0, 1, b't', 0, 1]);
        assert_eq!(output.len(), 3 + 3 + 2 + 256);
        assert_eq!(Content::read(&output[8..]), Some((3, 65_535)));
        assert_eq!(Content::read(&[1, 2]), None);
    }
}
