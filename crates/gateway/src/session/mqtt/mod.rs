//! One task per MQTT connection: it owns the socket, the engine and the device's session.

mod deliver;
mod ending;
mod handshake;
mod publishing;
mod running;
mod subscribing;
#[cfg(test)]
mod tests;
mod twin;
mod will;

use std::future::poll_fn;

use fieldpost_mqtt::{ServerConnection, ServerOptions};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tracing::{Instrument, debug};

use crate::clock::within;
use crate::context::ConnectionContext;
use crate::io::poll_write_all;
use crate::listen::limits::in_turn;
use ending::Ending;
use running::{Running, Unwritten};

/// Serves one connection from its first byte to its end.
///
/// May be dropped at any await: what was submitted to the log stays submitted, and nothing is
/// acknowledged that is not durable.
pub(crate) fn serve<S>(
    stream: S,
    context: ConnectionContext,
) -> impl Future<Output = ()> + Send + use<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    // A future keeps a place for whatever it was given and for all that it ever awaits. Most
    // connections are idle, and so the parts of a connection's life are allocations of their own, and
    // of the long one no more than the state of an open connection is left.
    let opened = Box::pin(in_turn(context.turns(), open(stream, context)));
    async move {
        let Some(mut running) = opened.await else {
            return;
        };
        let ending = running.run().await;
        Box::pin(close(running, ending)).await;
    }
}

/// Comes to an open connection, or sees to the end of one that is not to be.
async fn open<S>(stream: S, context: ConnectionContext) -> Option<Box<Running<S>>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let span = context.span(None);
    answer_connect(stream, context).instrument(span).await
}

async fn answer_connect<S>(mut stream: S, mut context: ConnectionContext) -> Option<Box<Running<S>>>
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
    let ending = match handshake::open(&mut stream, &mut engine, &mut context).await {
        Ok(opened) => return Some(Box::new(Running::new(stream, engine, context, opened))),
        Err(ending) => ending,
    };
    ending.report(context.monotonic());
    // The reason, when there is a packet for it.
    let farewell = poll_fn(|cx| poll_write_all(&mut stream, cx, &mut Unwritten(&mut engine)));
    let _ = within(context.timer(), context.limits.linger, farewell).await;
    shut_down(stream, &context).await;
    None
}

/// Does what is left to do for a connection that has ended.
async fn close<S>(mut running: Box<Running<S>>, ending: Ending)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let span = running.span();
    let closed = async move {
        running.report(&ending);
        running.end_deliveries();
        running.publish_will(&ending).await;
        // A newer connection of the device waits for the session, and must not wait for a peer that
        // no longer reads.
        let (stream, context) = running.into_parts();
        shut_down(stream, &context).await;
    };
    closed.instrument(span).await;
}

async fn shut_down<S>(mut stream: S, context: &ConnectionContext)
where
    S: AsyncWrite + Unpin,
{
    let linger = context.limits.linger;
    let shut_down = within(context.timer(), linger, stream.shutdown());
    if shut_down.await.is_none() {
        debug!("the peer did not take the end of the connection");
    }
}
