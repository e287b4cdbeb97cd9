//! One task per MQTT connection: it owns the socket, the engine and the device's session.

mod deliver;
mod ending;
mod handshake;
mod running;
#[cfg(test)]
mod tests;
mod twin;
mod will;

use std::sync::Arc;

use fieldpost_mqtt::{ServerConnection, ServerOptions};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tracing::debug;

use crate::clock::within;
use crate::context::ConnectionContext;
use crate::io::poll_write_all;
use running::{Running, Unwritten};

/// Serves one connection from its first byte to its end.
///
/// May be dropped at any await: what was submitted to the log stays submitted, and nothing is
/// acknowledged that is not durable.
pub(crate) async fn serve<S>(mut stream: S, mut context: ConnectionContext)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let options = ServerOptions {
        packet_length_max_before_connect: u32::try_from(context.limits.unauthenticated_bytes_max)
            .unwrap_or(u32::MAX),
        connect_timeout: context.limits.mqtt_connect,
        // The C device SDK encodes nothing, and ids may hold both characters.
        wildcards_in_topics: true,
        ..ServerOptions::default()
    };
    let mut engine = ServerConnection::new(options, context.monotonic());
    // Boxed, so that what only the handshake needs is gone afterwards.
    let opened = Box::pin(handshake::open(&mut stream, &mut engine, &mut context)).await;
    let timer = Arc::clone(context.timer());
    let linger = context.limits.linger;
    match opened {
        Ok(opened) => {
            let mut running = Running::new(stream, engine, context, opened);
            let ending = running.run().await;
            ending.report(timer.monotonic());
            running.end_deliveries();
            running.publish_will(&ending).await;
            // A newer connection of the device waits for the session, and must not wait for a
            // peer that no longer reads.
            stream = running.into_stream();
        }
        Err(ending) => {
            ending.report(timer.monotonic());
            // The reason, when there is a packet for it.
            let farewell = std::future::poll_fn(|cx| {
                poll_write_all(&mut stream, cx, &mut Unwritten(&mut engine))
            });
            let _ = within(&timer, linger, farewell).await;
        }
    }
    if within(&timer, linger, stream.shutdown()).await.is_none() {
        debug!("the peer did not take the end of the connection");
    }
}
