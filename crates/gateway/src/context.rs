//! What a session knows of its connection and may use of the gateway.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fieldpost_hub::Hub;
use fieldpost_hub::auth::ClientCertificate;
use fieldpost_hub::clock::Timer;
use fieldpost_model::Identity;
use tokio::sync::watch;
use tracing::{Span, info_span};

use crate::figures::ProtocolFigures;
use crate::io::{IncompleteBudget, IncompleteShare};
use crate::listen::ListenerKind;
use crate::listen::limits::{Admission, Admissions, GatewayLimits};

/// One connection: who is at the other end, and what the session that drives it may use.
///
/// Owned by the session's task and dropped with it, which gives back every share it holds.
pub struct ConnectionContext {
    /// The hub that the connection speaks to.
    pub hub: Hub,
    /// A number of the connection, unique in this process, for logs.
    pub conn_id: u64,
    /// How it came in, for logs.
    pub listener: ListenerKind,
    /// The other end.
    pub peer: SocketAddr,
    /// This end.
    pub local: SocketAddr,
    /// What the protocol's bytes travel over.
    pub over: Transport,
    /// What the client showed when TLS began; it has proved that it has the key.
    pub client_certificate: Option<Arc<ClientCertificate>>,
    /// The gateway's limits.
    pub limits: Arc<GatewayLimits>,
    /// Turns true when the gateway is being drained.
    pub drain: watch::Receiver<bool>,
    /// The connection's part of the budget for incomplete packets.
    pub incomplete: IncompleteShare,
    pub(crate) mqtt_figures: Arc<ProtocolFigures>,
    /// Held until somebody has authenticated on this connection.
    pub(crate) admission: Option<Box<Admission>>,
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

    /// What log lines about this connection have in common. Made when there is something to log: one
    /// that lives as long as the connection would cost memory for each, and time at each wake-up.
    pub(crate) fn span(&self, identity: Option<&Identity>) -> Span {
        info_span!(
            "connection",
            conn_id = self.conn_id,
            listener = %self.listener,
            peer = %self.peer,
            device_id = identity.map(tracing::field::display),
        )
    }

    /// Says that somebody has authenticated: the connection no longer counts among those that the
    /// gateway keeps few of.
    pub fn authenticated(&mut self) {
        self.admission = None;
    }

    /// What [`in_turn`](crate::listen::limits::in_turn) asks for, while nobody has authenticated.
    pub(crate) fn turns(&self) -> Option<Arc<Admissions>> {
        let admission = self.admission.as_ref()?;
        Some(admission.turns())
    }

    /// Resolves when the gateway is being drained.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut drain = self.drain.clone();
        async move {
            // A gateway that is gone is drained as well.
            let _ = drain.wait_for(|draining| *draining).await;
        }
    }

    /// Whether the gateway is being drained. When that begins, the waker is called that was left with
    /// [`incomplete`](Self::incomplete).
    pub(crate) fn is_draining(&self) -> bool {
        // A look at a number, without a lock: nobody marks a change as seen here. A gateway that is
        // gone is drained as well.
        self.drain.has_changed().unwrap_or(true)
    }

    /// A context for a session that a test drives over a stream of its own.
    #[cfg(test)]
    pub(crate) fn of_test(hub: Hub, over: Transport) -> (Self, Drain) {
        let (shared, drain) = Shared::new(hub, GatewayLimits::default());
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let context = shared.connection(ListenerKind::Mqtt, address, address, over, None);
        (context, drain)
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
    pub(crate) mqtt_figures: Arc<ProtocolFigures>,
}

/// Begins the drain of a gateway. Dropping it begins it as well.
#[derive(Debug)]
pub(crate) struct Drain {
    begun: watch::Sender<bool>,
    connections: Arc<IncompleteBudget>,
}

impl Drain {
    /// Asks every session to end.
    pub(crate) fn begin(&self) {
        self.begun.send_replace(true);
        self.connections.wake_all();
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.begin();
    }
}

impl Shared {
    /// What the connections of a new gateway to `hub` share.
    pub(crate) fn new(hub: Hub, limits: GatewayLimits) -> (Self, Drain) {
        let (begun, drain) = watch::channel(false);
        let incomplete = IncompleteBudget::new(limits.incomplete_bytes_max);
        let shared = Self {
            hub,
            incomplete: Arc::clone(&incomplete),
            limits: Arc::new(limits),
            drain,
            mqtt_figures: Arc::new(ProtocolFigures::of("mqtt")),
        };
        let connections = incomplete;
        (shared, Drain { begun, connections })
    }

    /// The context of a new connection.
    pub(crate) fn connection(
        &self,
        listener: ListenerKind,
        peer: SocketAddr,
        local: SocketAddr,
        over: Transport,
        admission: Option<Admission>,
    ) -> ConnectionContext {
        ConnectionContext {
            hub: self.hub.clone(),
            conn_id: next_connection_id(),
            listener,
            peer,
            local,
            over,
            client_certificate: None,
            limits: Arc::clone(&self.limits),
            drain: self.drain.clone(),
            incomplete: self.incomplete.share(),
            mqtt_figures: Arc::clone(&self.mqtt_figures),
            admission: admission.map(Box::new),
        }
    }
}

fn next_connection_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
