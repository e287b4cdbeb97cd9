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

use fieldpost_hub::auth::ClientCertificate;
use fieldpost_hub::clock::Timer;
use futures_util::future::Either;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{Instrument, debug, info, warn};

use crate::clock::within;
use crate::context::{ConnectionContext, Shared, Transport};
use crate::figures::{OpenConnection, count_refused};
use crate::http::Routes;
use crate::http::connection::{self, Ended};
use crate::quiet::RepeatLimit;
use crate::session;
use limits::{Admission, Admissions, in_turn};
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
        let context = shared.connection(self.service.kind, peer, local, over, Some(admission));
        let service = self.service.clone();
        // A task of its own type per kind: an MQTT connection does not pay for HTTP's state.
        match self.service.kind {
            ListenerKind::Mqtts => connections.spawn(service.mqtts(stream, context)),
            ListenerKind::Amqps => connections.spawn(service.amqps(stream, context)),
            ListenerKind::Https => connections.spawn(service.https(stream, context)),
            ListenerKind::Mqtt => connections.spawn(serve_mqtt(stream, context)),
            ListenerKind::Amqp => connections.spawn(serve_amqp(stream, context)),
            ListenerKind::Http => connections.spawn(service.http(stream, context)),
        };
    }
}

// A future keeps a place for whatever it was given and for whatever it passes on. So each of these is
// an allocation that goes when its part of the connection is over, and what is left is small.
impl Service {
    fn mqtts(
        self,
        stream: TcpStream,
        context: ConnectionContext,
    ) -> impl Future<Output = ()> + Send {
        let tls = Arc::clone(&self.tls.raw);
        let ready = Box::pin(in_turn(context.turns(), handshake(stream, tls, context)));
        async move {
            let serving = ready.await.map(|ready| serve_mqtt(ready.0, ready.1));
            if let Some(serving) = serving {
                serving.await;
            }
        }
    }

    fn amqps(
        self,
        stream: TcpStream,
        context: ConnectionContext,
    ) -> impl Future<Output = ()> + Send {
        let tls = Arc::clone(&self.tls.raw);
        let ready = Box::pin(in_turn(context.turns(), handshake(stream, tls, context)));
        async move {
            let serving = ready.await.map(|ready| serve_amqp(ready.0, ready.1));
            if let Some(serving) = serving {
                serving.await;
            }
        }
    }

    fn https(
        self,
        stream: TcpStream,
        context: ConnectionContext,
    ) -> impl Future<Output = ()> + Send {
        let tls = Arc::clone(&self.tls.https);
        let ready = Box::pin(in_turn(context.turns(), handshake(stream, tls, context)));
        async move {
            let serving = ready.await.map(|ready| self.http(ready.0, ready.1));
            if let Some(serving) = serving {
                serving.await;
            }
        }
    }

    fn http<S>(self, stream: S, mut context: ConnectionContext) -> impl Future<Output = ()> + Send
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let span = context.span(None);
        let upgraded = async move {
            let _open = OpenConnection::count("http", context.over.as_str());
            match connection::serve(stream, &mut context, self.routes).await {
                Ended::Upgraded {
                    stream,
                    early,
                    subprotocol,
                    is_foreign,
                } => {
                    if is_foreign {
                        // A page of somebody else in a browser that has a certificate.
                        context.client_certificate = None;
                    }
                    context.over = Transport::WebSocket;
                    let stream = WebSocketBytes::new(stream, early, Arc::clone(context.timer()));
                    Some((stream, context, subprotocol))
                }
                _ => None,
            }
        };
        let upgraded = Box::pin(upgraded.instrument(span));
        async move {
            let serving = upgraded
                .await
                .map(|(stream, context, subprotocol)| match subprotocol {
                    Subprotocol::Mqtt => Either::Left(serve_mqtt(stream, context)),
                    Subprotocol::Amqp => Either::Right(serve_amqp(stream, context)),
                });
            if let Some(serving) = serving {
                serving.await;
            }
        }
    }
}

pub(crate) fn serve_mqtt<S>(
    stream: S,
    context: ConnectionContext,
) -> impl Future<Output = ()> + Send
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let open = OpenConnection::count("mqtt", context.over.as_str());
    let served = session::mqtt::serve(stream, context);
    async move {
        let _open = open;
        served.await;
    }
}

pub(crate) fn serve_amqp<S>(
    stream: S,
    context: ConnectionContext,
) -> impl Future<Output = ()> + Send
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let open = OpenConnection::count("amqp", context.over.as_str());
    let span = context.span(None);
    let served = Box::pin(session::amqp::serve(stream, context));
    let served = async move {
        let _open = open;
        served.await;
    };
    served.instrument(span)
}

/// Ends TLS; `None` when the client could not, took too long, or the gateway is being drained.
async fn handshake(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    mut context: ConnectionContext,
) -> Option<(Box<TlsStream<TcpStream>>, ConnectionContext)> {
    let span = context.span(None);
    let stream = end_tls(stream, config, &mut context).instrument(span).await;
    stream.map(|stream| (stream, context))
}

async fn end_tls(
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
            let chain = chain.iter().map(|certificate| &**certificate);
            context.client_certificate = ClientCertificate::new(chain).map(Arc::new);
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
