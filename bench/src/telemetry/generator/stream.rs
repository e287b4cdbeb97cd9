//! A socket, with TLS or without.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use mio::net::TcpStream;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

pub(super) enum Stream {
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
    /// Begins to connect.
    pub(super) fn open(address: SocketAddr, tls: Option<&Arc<ClientConfig>>) -> Result<Self> {
        let socket = TcpStream::connect(address)?;
        let Some(config) = tls else {
            return Ok(Self::Plain {
                socket,
                drained: false,
            });
        };
        let name = ServerName::from(address.ip());
        let mut session = Box::new(ClientConnection::new(Arc::clone(config), name)?);
        session.set_buffer_limit(None);
        Ok(Self::Tls { socket, session })
    }

    pub(super) fn socket(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain { socket, .. } | Self::Tls { socket, .. } => socket,
        }
    }

    /// Whether TLS is still at its beginning.
    pub(super) fn is_handshaking(&self) -> bool {
        match self {
            Self::Plain { .. } => false,
            Self::Tls { session, .. } => session.is_handshaking(),
        }
    }

    /// Reads what is there; `None` is nothing.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<Option<usize>> {
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
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<usize> {
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
