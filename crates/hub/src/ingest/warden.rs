//! The one task behind all senders: it follows the store's health, and keeps what lost senders had
//! in flight on the books of the byte budget until it is durable. Without that, a client that sends
//! and reconnects in a loop would have a new window each time.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use fieldpost_store::Health;
use fieldpost_store::log::Appender;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot, watch};

use super::Inner;
use super::sender::InFlight;

/// Batches whose sender is gone.
pub(super) struct Orphan {
    pub(super) appender: Appender,
    pub(super) in_flight: VecDeque<InFlight>,
}

enum Event {
    Stopped,
    HealthChanged,
    Orphaned(Orphan),
    /// The orphans of a sender are durable, or never will be.
    Settled,
}

/// Runs until `stopped` is answered or dropped, or the store is gone.
pub(super) async fn run(
    ingest: Arc<Inner>,
    mut health: watch::Receiver<Health>,
    mut orphans: mpsc::UnboundedReceiver<Orphan>,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut kept = FuturesUnordered::new();
    let mut store_is_there = true;
    loop {
        let event = {
            let mut changed = pin!(health.changed());
            poll_fn(|cx| {
                if futures_util::FutureExt::poll_unpin(&mut stopped, cx).is_ready() {
                    return Poll::Ready(Event::Stopped);
                }
                if store_is_there && let Poll::Ready(outcome) = changed.as_mut().poll(cx) {
                    store_is_there = outcome.is_ok();
                    return Poll::Ready(Event::HealthChanged);
                }
                if let Poll::Ready(Some(orphan)) = orphans.poll_recv(cx) {
                    return Poll::Ready(Event::Orphaned(orphan));
                }
                match kept.poll_next_unpin(cx) {
                    Poll::Ready(Some(())) => Poll::Ready(Event::Settled),
                    Poll::Ready(None) | Poll::Pending => Poll::Pending,
                }
            })
            .await
        };
        match event {
            Event::Stopped => return,
            Event::HealthChanged => {
                let level = health.borrow_and_update().level;
                ingest.set_level(level);
            }
            Event::Orphaned(orphan) => kept.push(keep(Arc::clone(&ingest), orphan)),
            Event::Settled => {}
        }
    }
}

/// Gives the bytes of an orphan back as they become durable.
async fn keep(ingest: Arc<Inner>, mut orphan: Orphan) {
    while !orphan.in_flight.is_empty() {
        let durable = poll_fn(|cx| orphan.appender.poll_durable(cx))
            .await
            // What failed is not waiting for anything either.
            .unwrap_or(u64::MAX);
        while let Some(batch) = orphan.in_flight.pop_front_if(|b| b.number <= durable) {
            ingest.budget.give_back(batch.bytes);
        }
    }
}
