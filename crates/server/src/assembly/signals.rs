//! The signals that a hub process listens to.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// The exit code after a second signal: 128 and the number of SIGINT, as shells write it.
const IMPATIENT: i32 = 130;

/// The request to stop: SIGTERM or SIGINT.
pub(super) struct Stop {
    requested: watch::Receiver<bool>,
}

impl Stop {
    /// Listens from now on. The first signal is remembered; a second one ends the process at once.
    pub(super) fn listen() -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let (sender, requested) = watch::channel(false);
        // Lives as long as the process.
        tokio::spawn(async move {
            for is_first in [true, false] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                if is_first {
                    sender.send_replace(true);
                } else {
                    tracing::warn!("a second signal; ending at once");
                    std::process::exit(IMPATIENT);
                }
            }
        });
        Ok(Self { requested })
    }

    /// Waits for the first signal.
    pub(super) async fn requested(&mut self) {
        // The sender lives as long as the process.
        let _ = self.requested.wait_for(|requested| *requested).await;
    }
}

/// SIGHUP, which asks for certificates to be read anew.
pub(super) fn hang_up() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}
