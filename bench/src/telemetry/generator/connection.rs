//! One connection of one device or many: its socket, and what is spoken on it.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use mio::net::TcpStream;
use rustls::ClientConfig;

use super::amqp::{Amqp, AmqpLogin};
use super::content::Content;
use super::http::{Http, HttpLogin};
use super::mqtt::{Mqtt, MqttLogin};
use super::stream::Stream;

/// Who connects, and by which protocol.
#[derive(Clone)]
pub(crate) enum Login {
    Mqtt(Arc<MqttLogin>),
    /// One device or many.
    Amqp(Arc<AmqpLogin>),
    Http(Arc<HttpLogin>),
}

/// Messages of a connection.
#[derive(Default)]
pub(super) struct Count {
    pub(super) sent: u64,
    pub(super) acknowledged: u64,
}

impl Count {
    pub(super) fn in_flight(&self) -> u64 {
        self.sent - self.acknowledged
    }
}

/// A protocol, from the device's side and without a socket. What it says is appended to the output that it
/// is given.
pub(super) trait Dialect: Send {
    /// Devices that the connection speaks for.
    fn devices(&self) -> usize {
        1
    }

    /// Whether messages can be sent.
    fn is_ready(&self) -> bool;

    /// Says what comes first.
    fn greet(&mut self, output: &mut Vec<u8>);

    /// Works off what has come, as far as it is complete, and says how many bytes that was.
    fn hear(&mut self, bytes: &[u8], count: &mut Count, output: &mut Vec<u8>) -> Result<usize>;

    /// Sends so many messages, in turns for each of the devices that have the fewest in flight, and what
    /// could not be sent before.
    fn send(
        &mut self,
        messages: u64,
        content: &Content,
        count: &mut Count,
        output: &mut Vec<u8>,
    ) -> Result<()>;
}

pub(crate) struct Connection {
    stream: Stream,
    is_connected: bool,
    dialect: Box<dyn Dialect>,
    count: Count,
    /// The beginning of an answer whose rest has not come.
    input: Vec<u8>,
    /// What the socket would not take.
    output: Vec<u8>,
}

impl Connection {
    /// Begins to connect.
    pub(crate) fn open(
        address: SocketAddr,
        tls: Option<&Arc<ClientConfig>>,
        login: &Login,
    ) -> Result<Self> {
        let dialect: Box<dyn Dialect> = match login {
            Login::Mqtt(login) => Box::new(Mqtt::new(Arc::clone(login))),
            Login::Amqp(login) => Box::new(Amqp::new(Arc::clone(login))),
            Login::Http(login) => Box::new(Http::new(Arc::clone(login))),
        };
        Ok(Self {
            stream: Stream::open(address, tls)?,
            is_connected: false,
            dialect,
            count: Count::default(),
            input: Vec::new(),
            output: Vec::new(),
        })
    }

    pub(crate) fn socket(&mut self) -> &mut TcpStream {
        self.stream.socket()
    }

    /// How many devices it speaks for.
    pub(crate) fn devices(&self) -> usize {
        self.dialect.devices()
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.is_connected && !self.stream.is_handshaking() && self.dialect.is_ready()
    }

    pub(crate) fn sent(&self) -> u64 {
        self.count.sent
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.count.acknowledged
    }

    pub(crate) fn in_flight(&self) -> u64 {
        self.count.in_flight()
    }

    /// Whether the socket takes nothing more for now.
    pub(crate) fn is_held_back(&self) -> bool {
        !self.output.is_empty()
    }

    /// Does what an event of the socket allows, and says how many messages were acknowledged.
    pub(crate) fn work(&mut self, buffer: &mut [u8]) -> Result<u64> {
        if !self.is_connected {
            if let Some(error) = self.socket().take_error()? {
                return Err(error.into());
            }
            if self.socket().peer_addr().is_err() {
                return Ok(0);
            }
            self.socket().set_nodelay(true)?;
            self.is_connected = true;
            self.dialect.greet(&mut self.output);
        }
        self.flush()?;
        let before = self.count.acknowledged;
        while let Some(count) = self.stream.read(buffer)? {
            let bytes = buffer.get(..count).unwrap_or_default();
            if self.input.is_empty() {
                let used = self
                    .dialect
                    .hear(bytes, &mut self.count, &mut self.output)?;
                self.input
                    .extend_from_slice(bytes.get(used..).unwrap_or_default());
            } else {
                self.input.extend_from_slice(bytes);
                let used = self
                    .dialect
                    .hear(&self.input, &mut self.count, &mut self.output)?;
                self.input.drain(..used);
            }
        }
        self.flush()?;
        Ok(self.count.acknowledged - before)
    }

    /// Sends so many messages in one write, and what a protocol's own bounds have held back before.
    pub(crate) fn send(
        &mut self,
        messages: u64,
        content: &Content,
        scratch: &mut Vec<u8>,
    ) -> Result<()> {
        let held_back = self.is_held_back();
        scratch.clear();
        self.dialect
            .send(messages, content, &mut self.count, scratch)?;
        if scratch.is_empty() {
            return Ok(());
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
        // TLS has something to write even when the protocol has not.
        let written = self.stream.write(&self.output)?;
        self.output.drain(..written);
        Ok(())
    }
}
