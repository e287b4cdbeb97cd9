//! A gateway without sockets: sessions over streams that come from elsewhere, as in a simulation.
//!
//! Everything behind the listener is what [`Gateway`](crate::Gateway) runs; TLS, WebSocket and the
//! count of connections that nobody has authenticated on are left out.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use fieldpost_hub::Hub;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::context::{Drain, Shared, Transport};
use crate::listen::{ListenerKind, serve_amqp, serve_mqtt};
use crate::{ConnectionContext, GatewayLimits};

/// Serves streams, each in the future that the caller drives.
pub struct Streams {
    shared: Shared,
    drain: Drain,
    /// Peers are told the number of a connection. Here it does not depend on what else this process
    /// serves.
    last_conn_id: AtomicU64,
}

impl Streams {
    /// A gateway to `hub`.
    #[must_use]
    pub fn new(hub: Hub, limits: GatewayLimits) -> Self {
        let (shared, drain) = Shared::new(hub, limits);
        Self {
            shared,
            drain,
            last_conn_id: AtomicU64::new(0),
        }
    }

    /// Serves an MQTT connection to its end. May be dropped at any await, as when the process dies.
    pub fn mqtt<S>(&self, stream: S, peer: SocketAddr) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        serve_mqtt(stream, self.connection(peer))
    }

    /// Serves an AMQP connection to its end. May be dropped at any await, as when the process dies.
    pub fn amqp<S>(&self, stream: S, peer: SocketAddr) -> impl Future<Output = ()> + Send + use<S>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        serve_amqp(stream, self.connection(peer))
    }

    /// Asks every session to end.
    pub fn drain(&self) {
        self.drain.begin();
    }

    fn connection(&self, peer: SocketAddr) -> ConnectionContext {
        let local = SocketAddr::from(([127, 0, 0, 1], 0));
        ConnectionContext {
            conn_id: self.last_conn_id.fetch_add(1, Ordering::Relaxed) + 1,
            ..self
                .shared
                .connection(ListenerKind::Mqtt, peer, local, Transport::Plain, None)
        }
    }
}
