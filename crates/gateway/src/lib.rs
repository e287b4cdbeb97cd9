//! Where sockets and protocols meet the hub.
//!
//! [`listen`] accepts sockets, ends TLS, unwraps WebSocket and bounds all of it. `dialect` is the
//! pure translation between wire forms and the domain's words, `session` holds one task per
//! connection that drives a protocol engine and calls the hub, and [`http`] the routes of the
//! registry.
//!
//! The gateway knows no storage engine, and takes its time from the hub's timer.

mod clock;
mod context;
mod dialect;
mod figures;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod http;
pub mod io;
pub mod listen;
mod quiet;
mod session;
#[cfg(feature = "sim")]
pub mod streams;
#[cfg(test)]
mod testing;

use std::net::SocketAddr;
use std::sync::Arc;

use fieldpost_hub::Hub;
use tokio::task::JoinSet;

pub use context::{ConnectionContext, Transport};
pub use listen::limits::GatewayLimits;
pub use listen::tls::{TlsError, TlsIdentity};
pub use listen::{Listener, ListenerKind};

use context::{Drain, Shared};
use listen::limits::Admissions;
use listen::tls::TlsSettings;

/// A running gateway.
///
/// Dropping it ends all connections at once; [`drain`](Self::drain) does it in order.
#[derive(Debug)]
pub struct Gateway {
    drain: Drain,
    listeners: JoinSet<()>,
    addresses: Vec<(ListenerKind, SocketAddr)>,
}

/// Why a gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener's socket is not usable.
    #[error("the {kind} listener's socket cannot be used: {source}")]
    Socket {
        /// Which listener.
        kind: ListenerKind,
        /// The system's error.
        source: std::io::Error,
    },
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Gateway {
    /// Serves `hub` on listeners that are bound already.
    ///
    /// Must be called inside a tokio runtime with its I/O driver on; the gateway runs there.
    ///
    /// # Errors
    /// When a socket or the TLS settings cannot be used. Nothing is served then.
    pub fn start(
        hub: Hub,
        listeners: Vec<Listener>,
        tls: &TlsIdentity,
        limits: GatewayLimits,
    ) -> Result<Self, StartError> {
        let tls = Arc::new(TlsSettings::new(tls)?);
        let admissions = Admissions::new(&limits, listeners.len());
        let (shared, drain) = Shared::new(hub.clone(), limits);
        let routes = http::Routes::new(hub, Arc::clone(&shared.limits));
        let mut ready = Vec::with_capacity(listeners.len());
        let mut addresses = Vec::with_capacity(listeners.len());
        for listener in listeners {
            let kind = listener.kind;
            let acceptor = listen::Acceptor::new(
                listener,
                shared.clone(),
                Arc::clone(&admissions),
                Arc::clone(&tls),
                routes.clone(),
            )
            .map_err(|source| StartError::Socket { kind, source })?;
            addresses.push((kind, acceptor.local()));
            ready.push(acceptor);
        }
        let mut tasks = JoinSet::new();
        for acceptor in ready {
            tasks.spawn(acceptor.run());
        }
        Ok(Self {
            drain,
            listeners: tasks,
            addresses,
        })
    }

    /// What is listened on, in the order given at the start.
    #[must_use]
    pub fn addresses(&self) -> &[(ListenerKind, SocketAddr)] {
        &self.addresses
    }

    /// Stops accepting, asks every session to end, and returns when all have, or when
    /// [`GatewayLimits::drain`] is over and the rest was cut off.
    pub async fn drain(mut self) {
        self.drain.begin();
        while self.listeners.join_next().await.is_some() {}
    }
}
