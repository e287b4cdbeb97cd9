//! The log of everything that happened in a run, of which a hash is kept.

use std::fmt::{self, Write as _};
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

/// The event log of one run. Clones are the same log.
#[derive(Clone)]
pub(crate) struct Journal(Arc<Mutex<State>>);

struct State {
    started: Instant,
    hash: Xxh3,
    events: u64,
    line: String,
    sink: Option<Sink>,
}

/// Where a journal is written to, besides its hash.
pub type Sink = Box<dyn Write + Send>;

impl Journal {
    /// An empty log that begins now. `sink` gets a line for each event as it happens.
    pub(crate) fn new(sink: Option<Sink>) -> Self {
        Self(Arc::new(Mutex::new(State {
            started: Instant::now(),
            hash: Xxh3::new(),
            events: 0,
            line: String::new(),
            sink,
        })))
    }

    /// Notes an event.
    pub(crate) fn note(&self, event: fmt::Arguments<'_>) {
        let mut state = self.lock();
        let state = &mut *state;
        let at = state.started.elapsed().as_micros();
        state.line.clear();
        // Writing to a string does not fail.
        let _ = write!(state.line, "{at:>10} {event}");
        state.hash.update(state.line.as_bytes());
        state.hash.update(b"\n");
        state.events += 1;
        let State { sink, line, .. } = state;
        // A reader who has seen enough does not end the run.
        if let Some(written) = sink.as_mut().map(|sink| writeln!(sink, "{line}"))
            && written.is_err()
        {
            *sink = None;
        }
    }

    /// How many events there were, and the hash over all of them.
    pub(crate) fn digest(&self) -> (u64, u64) {
        let state = self.lock();
        (state.events, state.hash.digest())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
