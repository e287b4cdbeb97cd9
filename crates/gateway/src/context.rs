//! What a session knows of its connection and may use of the gateway.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fieldpost_hub::Hub;
use fieldpost_hub::clock::Timer;
use tokio::sync::watch;

use crate::io::{IncompleteBudget, IncompleteShare};
use crate::listen::limits::{Admission, GatewayLimits};

/// One connection: who is at the other end, and what the session that drives it may use.
///
/// Owned by the session's task and dropped with it, which gives back every share it holds.
pub struct ConnectionContext {
    /// The hub that the connection speaks to.
    pub hub: Hub,
    /// A number of the connection, unique in this process, for logs.
    pub conn_id: u64,
    /// The other end.
    pub peer: SocketAddr,
    /// This end.
    pub local: SocketAddr,
    /// What the protocol's bytes travel over.
    pub over: Transport,
    /// The client showed a certificate when TLS began, and proved that it has the key. Nothing else
    /// is known of it.
    pub client_certificate: bool,
    /// The gateway's limits.
    pub limits: Arc<GatewayLimits>,
    /// Turns true when the gateway is being drained.
    pub drain: watch::Receiver<bool>,
    /// The connection's part of the budget for incomplete packets.
    pub incomplete: IncompleteShare,
    /// Held until somebody has authenticated on this connection.
    pub(crate) admission: Option<Admission>,
}

/// What a protocol's bytes travel over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TLS on the protocol's own port.
    Tls,
    /// A plain socket; something in front of the hub ends TLS.
    Plain,
    /// WebSocket, over TLS or behind something that ends TLS.
    WebSocket,
    /// A plain socket on the loopback interface for Event Hubs addresses only, where clients use
    /// the development emulator's connection string.
    LoopbackEventHubs,
}

impl ConnectionContext {
    /// The hub's timer.
    #[must_use]
    pub fn timer(&self) -> &Arc<dyn Timer> {
        self.hub.timer()
    }

    /// Monotonic time, which the protocol engines take.
    #[must_use]
    pub fn monotonic(&self) -> Duration {
        self.hub.timer().monotonic()
    }

    /// Says that somebody has authenticated: the connection no longer counts among those that the
    /// gateway keeps few of.
    pub fn authenticated(&mut self) {
        self.admission = None;
    }

    /// Resolves when the gateway is being drained.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut drain = self.drain.clone();
        async move {
            // A gateway that is gone is drained as well.
            let _ = drain.wait_for(|draining| *draining).await;
        }
    }

    /// A context for a session that a test drives over a stream of its own.
    #[cfg(test)]
    pub(crate) fn of_test(hub: Hub, over: Transport) -> (Self, watch::Sender<bool>) {
        let (sender, drain) = watch::channel(false);
        let limits = Arc::new(GatewayLimits::default());
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let incomplete = IncompleteBudget::new(limits.incomplete_bytes_max).share();
        let context = Self {
            hub,
            conn_id: next_connection_id(),
            peer: address,
            local: address,
            over,
            client_certificate: false,
            limits,
            drain,
            incomplete,
            admission: None,
        };
        (context, sender)
    }
}

impl fmt::Debug for ConnectionContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionContext")
            .field("conn_id", &self.conn_id)
            .field("peer", &self.peer)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}

impl Transport {
    /// The word for logs and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::Plain => "plain",
            Self::WebSocket => "websocket",
            Self::LoopbackEventHubs => "loopback",
        }
    }
}

/// What all connections of a gateway share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) hub: Hub,
    pub(crate) limits: Arc<GatewayLimits>,
    pub(crate) drain: watch::Receiver<bool>,
    pub(crate) incomplete: Arc<IncompleteBudget>,
}

impl Shared {
    /// The context of a new connection.
    pub(crate) fn connection(
        &self,
        peer: SocketAddr,
        local: SocketAddr,
        over: Transport,
        admission: Option<Admission>,
    ) -> ConnectionContext {
        ConnectionContext {
            hub: self.hub.clone(),
            conn_id: next_connection_id(),
            peer,
            local,
            over,
            client_certificate: false,
            limits: Arc::clone(&self.limits),
            drain: self.drain.clone(),
            incomplete: self.incomplete.share(),
            admission,
        }
    }
}

fn next_connection_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
