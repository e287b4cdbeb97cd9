//! The task that owns a share of the live state.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::task::Poll;

use fieldpost_model::{DeviceId, Identity};
use tokio::sync::{mpsc, oneshot};

use super::shard::Shard;
use super::{Cell, ConnectionState, Eviction, shard_of};
use crate::clock::Timer;
use crate::faults::Fault;

/// What an owner is asked to do.
pub(super) enum Command {
    /// A connection wants to be the one of its identity; `ready` is answered when it is, and
    /// dropped when it has lost its place to a newer one.
    Connect {
        identity: Identity,
        epoch: u64,
        cell: Arc<Cell>,
        ready: oneshot::Sender<()>,
    },
    /// The older session of a waiting connection took too long.
    TakeOver { identity: Identity, epoch: u64 },
    /// An identity did something without a connection of its own.
    Touch { identity: Identity },
    /// Have something happen to a connection.
    Disturb { identity: Identity, fault: Fault },
    /// End sessions; answered with the number of those that were told.
    Evict {
        targets: Vec<(Target, Eviction)>,
        done: oneshot::Sender<usize>,
    },
    /// What is known of some identities; the numbers come back with the answers.
    States {
        identities: Vec<(usize, Identity)>,
        answer: oneshot::Sender<Vec<(usize, ConnectionState)>>,
    },
    /// End everything.
    Close,
}

/// Whose sessions to end.
pub(super) enum Target {
    /// A device and its modules.
    Device(DeviceId),
    /// One identity.
    Identity(Identity),
}

impl Target {
    pub(super) fn device(&self) -> &DeviceId {
        match self {
            Self::Device(device) => device,
            Self::Identity(identity) => &identity.device,
        }
    }
}

/// A session was dropped.
pub(super) struct Departure {
    pub(super) identity: Identity,
    pub(super) epoch: u64,
}

/// Owns shards and works off what it is told.
pub(super) struct Owner {
    commands: mpsc::Receiver<Command>,
    departures: mpsc::UnboundedReceiver<Departure>,
    timer: Arc<dyn Timer>,
    connected: Arc<AtomicU64>,
    /// In an order that a simulation can repeat.
    shards: BTreeMap<usize, Shard>,
}

impl Drop for Owner {
    /// An owner that fails lets no session go on that nobody could end any more. Those that come
    /// later are told that the hub is closing.
    fn drop(&mut self) {
        if std::thread::panicking() {
            tracing::error!("an owner of connections failed; its devices stay out until a restart");
            self.evict_all();
        }
    }
}

enum Next {
    Departure(Departure),
    Command(Command),
    End,
}

impl Owner {
    pub(super) fn new(
        commands: mpsc::Receiver<Command>,
        departures: mpsc::UnboundedReceiver<Departure>,
        timer: Arc<dyn Timer>,
        connected: Arc<AtomicU64>,
    ) -> Self {
        Self {
            commands,
            departures,
            timer,
            connected,
            shards: BTreeMap::new(),
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            match self.next().await {
                Next::Departure(Departure { identity, epoch }) => {
                    let now = self.timer.now();
                    self.shard(&identity.device).depart(&identity, epoch, now);
                }
                Next::Command(command) => {
                    if self.carry_out(command).is_break() {
                        return;
                    }
                }
                Next::End => return,
            }
        }
    }

    /// Departures go first: they make room for whoever waits.
    async fn next(&mut self) -> Next {
        std::future::poll_fn(|cx| {
            if let Poll::Ready(Some(departure)) = self.departures.poll_recv(cx) {
                return Poll::Ready(Next::Departure(departure));
            }
            self.commands
                .poll_recv(cx)
                .map(|command| command.map_or(Next::End, Next::Command))
        })
        .await
    }

    fn carry_out(&mut self, command: Command) -> std::ops::ControlFlow<()> {
        let now = self.timer.now();
        match command {
            Command::Connect {
                identity,
                epoch,
                cell,
                ready,
            } => {
                let shard = self.shard(&identity.device);
                shard.connect(identity, epoch, cell, ready, now);
            }
            Command::TakeOver { identity, epoch } => {
                self.shard(&identity.device)
                    .take_over(&identity, epoch, now);
            }
            Command::Touch { identity } => {
                let device = identity.device.clone();
                self.shard(&device).touch(identity, now);
            }
            Command::Disturb { identity, fault } => {
                self.shard(&identity.device).disturb(&identity, fault);
            }
            Command::Evict { targets, done } => {
                let told = targets
                    .iter()
                    .map(|(target, reason)| {
                        let shard = self.shard(target.device());
                        match target {
                            Target::Device(device) => shard.evict_device(device, *reason),
                            Target::Identity(identity) => shard.evict(identity, *reason),
                        }
                    })
                    .sum();
                // Whoever asked may have gone away.
                let _ = done.send(told);
            }
            Command::States { identities, answer } => {
                let states = identities
                    .into_iter()
                    .map(|(index, identity)| (index, self.shard(&identity.device).state(&identity)))
                    .collect();
                // Whoever asked may have gone away.
                let _ = answer.send(states);
            }
            Command::Close => {
                self.evict_all();
                return std::ops::ControlFlow::Break(());
            }
        }
        std::ops::ControlFlow::Continue(())
    }

    fn evict_all(&self) {
        for shard in self.shards.values() {
            shard.evict_all(Eviction::Closing);
        }
    }

    fn shard(&mut self, device: &DeviceId) -> &mut Shard {
        self.shards
            .entry(shard_of(device))
            .or_insert_with(|| Shard::new(Arc::clone(&self.connected)))
    }
}
