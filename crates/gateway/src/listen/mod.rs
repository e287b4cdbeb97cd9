//! Accepting connections: sockets, TLS, WebSocket, limits and drain.

pub mod limits;
#[cfg(test)]
mod tests;
pub mod tls;
pub(crate) mod upgrade;
pub(crate) mod websocket;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use fieldpost_hub::clock::Timer;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{Instrument, debug, info, info_span, warn};

use crate::clock::within;
use crate::context::{ConnectionContext, Shared, Transport};
use crate::figures::{OpenConnection, count_refused};
use crate::http::Routes;
use crate::http::connection::{self, Ended};
use crate::quiet::RepeatLimit;
use crate::session;
use limits::{Admission, Admissions};
use tls::TlsSettings;
use upgrade::Subprotocol;
use websocket::WebSocketBytes;

/// First and longest wait after an accept that failed for want of resources.
const ACCEPT_BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// A bound socket and what is spoken on it.
#[derive(Debug)]
pub struct Listener {
    /// What is spoken on it.
    pub kind: ListenerKind,
    /// The socket, bound and listening.
    pub socket: std::net::TcpListener,
}

/// What is spoken on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ListenerKind {
    /// MQTT over TLS.
    Mqtts,
    /// AMQP over TLS, of devices, services and Event Hubs clients.
    Amqps,
    /// HTTPS, with MQTT and AMQP over WebSocket.
    Https,
    /// AMQP without TLS for Event Hubs clients on this machine.
    Amqp,
    /// MQTT without TLS, behind something that ends TLS.
    Mqtt,
    /// HTTP without TLS, behind something that ends TLS.
    Http,
}

impl ListenerKind {
    /// The word for configuration, logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mqtts => "mqtts",
            Self::Amqps => "amqps",
            Self::Https => "https",
            Self::Amqp => "amqp",
            Self::Mqtt => "mqtt",
            Self::Http => "http",
        }
    }
}

impl fmt::Display for ListenerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One listener and the connections that came by it.
pub(crate) struct Acceptor {
    socket: TcpListener,
    local: SocketAddr,
    admissions: Arc<Admissions>,
    service: Service,
}

/// What a connection needs to be served, whoever it is from.
#[derive(Clone)]
struct Service {
    kind: ListenerKind,
    shared: Shared,
    tls: Arc<TlsSettings>,
    routes: Routes,
}

impl Acceptor {
    pub(crate) fn new(
        listener: Listener,
        shared: Shared,
        admissions: Arc<Admissions>,
        tls: Arc<TlsSettings>,
        routes: Routes,
    ) -> io::Result<Self> {
        listener.socket.set_nonblocking(true)?;
        let socket = TcpListener::from_std(listener.socket)?;
        let local = socket.local_addr()?;
        let service = Service {
            kind: listener.kind,
            shared,
            tls,
            routes,
        };
        Ok(Self {
            socket,
            local,
            admissions,
            service,
        })
    }

    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    /// Accepts and serves until the gateway is drained, then waits for the connections' end.
    pub(crate) async fn run(self) {
        let timer = Arc::clone(self.service.shared.hub.timer());
        let mut drain = self.service.shared.drain.clone();
        let mut draining = pin!(drain.wait_for(|draining| *draining));
        let mut connections = JoinSet::new();
        let mut back_off = ACCEPT_BACK_OFF.0;
        // One future for each connection, so that it keeps its turn for a place while others end.
        let mut accepting = Box::pin(self.accept());
        loop {
            let accepted = tokio::select! {
                biased;
                _ = &mut draining => break,
                // Collecting the ended ones keeps the set as small as the number of open ones.
                Some(ended) = connections.join_next() => {
                    log_panic(ended);
                    continue;
                }
                accepted = &mut accepting => accepted,
            };
            accepting.set(self.accept());
            match accepted {
                Ok((stream, peer, admission)) => {
                    back_off = ACCEPT_BACK_OFF.0;
                    if let Some(admission) = admission {
                        self.spawn(&mut connections, stream, peer, admission);
                    } else {
                        log_crowded_address(&timer, peer, self.service.kind);
                    }
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    log_accept_failure(&timer, self.service.kind, &error);
                    timer.sleep_until(timer.monotonic() + back_off).await;
                    back_off = (back_off * 2).min(ACCEPT_BACK_OFF.1);
                }
            }
        }
        drop(accepting);
        drop(self.socket);
        let limit = self.service.shared.limits.drain;
        let ended = within(&timer, limit, async {
            while let Some(ended) = connections.join_next().await {
                log_panic(ended);
            }
        });
        if ended.await.is_none() {
            let left = connections.len();
            debug!(kind = %self.service.kind, left, "connections cut off at the end of the drain");
            connections.shutdown().await;
        }
    }

    /// The next connection; without an admission when its address has too many already.
    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr, Option<Admission>)> {
        let place = self.admissions.place().await;
        let (stream, peer) = self.socket.accept().await?;
        // A closed socket's option cannot be set; its end shows itself at the first read.
        let _ = stream.set_nodelay(true);
        Ok((stream, peer, self.admissions.admit(place, peer.ip())))
    }

    fn spawn(
        &self,
        connections: &mut JoinSet<()>,
        stream: TcpStream,
        peer: SocketAddr,
        admission: Admission,
    ) {
        // With a wildcard listener only the connection knows its own address.
        let local = stream.local_addr().unwrap_or(self.local);
        let over = match self.service.kind {
            ListenerKind::Mqtts | ListenerKind::Amqps | ListenerKind::Https => Transport::Tls,
            ListenerKind::Amqp => Transport::LoopbackEventHubs,
            ListenerKind::Mqtt | ListenerKind::Http => Transport::Plain,
        };
        let shared = &self.service.shared;
        let context = shared.connection(peer, local, over, Some(admission));
        let kind = self.service.kind;
        let span = info_span!(
            "connection",
            conn_id = context.conn_id,
            listener = %kind,
            %peer,
            device_id = tracing::field::Empty,
        );
        let service = self.service.clone();
        // A task of its own type per kind: an MQTT connection does not pay for HTTP's state.
        match kind {
            ListenerKind::Mqtts => {
                connections.spawn(service.mqtts(stream, context).instrument(span))
            }
            ListenerKind::Amqps => {
                connections.spawn(service.amqps(stream, context).instrument(span))
            }
            ListenerKind::Https => {
                connections.spawn(service.https(stream, context).instrument(span))
            }
            ListenerKind::Mqtt => connections.spawn(serve_mqtt(stream, context).instrument(span)),
            ListenerKind::Amqp => connections.spawn(serve_amqp(stream, context).instrument(span)),
            ListenerKind::Http => connections.spawn(service.http(stream, context).instrument(span)),
        };
    }
}

impl Service {
    async fn mqtts(self, stream: TcpStream, mut context: ConnectionContext) {
        let config = Arc::clone(&self.tls.raw);
        // The gateway's handles are not kept over the connection's life.
        drop(self);
        if let Some(stream) = handshake(stream, config, &mut context).await {
            serve_mqtt(stream, context).await;
        }
    }

    async fn amqps(self, stream: TcpStream, mut context: ConnectionContext) {
        let config = Arc::clone(&self.tls.raw);
        drop(self);
        if let Some(stream) = handshake(stream, config, &mut context).await {
            serve_amqp(stream, context).await;
        }
    }

    async fn https(self, stream: TcpStream, mut context: ConnectionContext) {
        let config = Arc::clone(&self.tls.https);
        if let Some(stream) = handshake(stream, config, &mut context).await {
            self.http(stream, context).await;
        }
    }

    async fn http<S>(self, stream: S, mut context: ConnectionContext)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let open = OpenConnection::count("http", context.over.as_str());
        // Boxed, so that a WebSocket connection lets go of HTTP's state.
        let ended = Box::pin(connection::serve(stream, &mut context, self.routes)).await;
        drop(open);
        let Ended::Upgraded {
            stream,
            early,
            subprotocol,
        } = ended
        else {
            return;
        };
        context.over = Transport::WebSocket;
        let stream = WebSocketBytes::new(stream, early, Arc::clone(context.timer()));
        match subprotocol {
            Subprotocol::Mqtt => serve_mqtt(stream, context).await,
            Subprotocol::Amqp => serve_amqp(stream, context).await,
        }
    }
}

pub(crate) async fn serve_mqtt<S>(stream: S, context: ConnectionContext)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let _open = OpenConnection::count("mqtt", context.over.as_str());
    session::mqtt::serve(stream, context).await;
}

pub(crate) async fn serve_amqp<S>(stream: S, context: ConnectionContext)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let _open = OpenConnection::count("amqp", context.over.as_str());
    session::amqp::serve(stream, context).await;
}

/// Ends TLS; `None` when the client could not, took too long, or the gateway is being drained.
async fn handshake(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    context: &mut ConnectionContext,
) -> Option<Box<TlsStream<TcpStream>>> {
    // Boxed: what only the handshake needs goes with it.
    let handshake = Box::pin(TlsAcceptor::from(config).accept(stream));
    let outcome = tokio::select! {
        biased;
        outcome = within(context.timer(), context.limits.tls_handshake, handshake) => outcome,
        () = context.draining() => return None,
    };
    match outcome {
        Some(Ok(stream)) => {
            let (_, session) = stream.get_ref();
            let chain = session.peer_certificates().unwrap_or_default();
            context.client_certificate = !chain.is_empty();
            // Boxed, because a future keeps a place for it at every call that it is passed through.
            Some(Box::new(stream))
        }
        Some(Err(error)) => {
            count_refused("tls", "handshake");
            debug!(%error, "TLS handshake failed");
            None
        }
        None => {
            count_refused("tls", "handshake_timeout");
            debug!("TLS handshake took too long");
            None
        }
    }
}

/// A connection that panics takes nobody along, but somebody should know.
fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked");
    }
}

/// Errors of `accept` that say something about the connection and nothing about the listener.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

fn log_accept_failure(timer: &Arc<dyn Timer>, kind: ListenerKind, error: &io::Error) {
    static LIMIT: RepeatLimit = RepeatLimit::new();
    if let Some(left_out) = LIMIT.pass(timer.monotonic()) {
        warn!(%kind, %error, left_out, "cannot accept connections; trying again (is the limit of open files too low?)");
    }
}

fn log_crowded_address(timer: &Arc<dyn Timer>, peer: SocketAddr, kind: ListenerKind) {
    static LIMIT: RepeatLimit = RepeatLimit::new();
    count_refused(kind.as_str(), "address_limit");
    if let Some(left_out) = LIMIT.pass(timer.monotonic()) {
        info!(%kind, address = %peer.ip(), left_out, "too many connections from one address that nobody has authenticated on; closed");
    }
}
