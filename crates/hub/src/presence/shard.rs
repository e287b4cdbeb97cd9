//! One shard of live state: plain data and its rules, without tasks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fieldpost_model::{DeviceId, Identity, Timestamp};
use tokio::sync::oneshot;

use super::{Cell, ConnectionState, Eviction};
use crate::faults::Fault;

/// Identities whose last connection a shard remembers after its end; 65,536 in all shards.
const REMEMBERED_MAX: usize = 64;

/// The identities of a shard that are connected, and some that were.
pub(super) struct Shard {
    entries: BTreeMap<Identity, Entry>,
    /// Entries without a session, oldest first, each with the number of its last departure.
    remembered: VecDeque<(Identity, u64)>,
    departures: u64,
    connected: Arc<AtomicU64>,
}

struct Entry {
    live: Option<Live>,
    /// The connection that gets the place when the live one has let go. Boxed, because it is rare and
    /// there is an entry for every device that is connected.
    waiting: Option<Box<Waiting>>,
    state_updated: Timestamp,
    last_activity: Timestamp,
    /// The number of the last departure; 0 while there is a session.
    departure: u64,
    /// The device was deleted: nothing is to be remembered.
    is_deleted: bool,
}

struct Live {
    epoch: u64,
    cell: Arc<Cell>,
}

struct Waiting {
    live: Live,
    ready: oneshot::Sender<()>,
}

impl Shard {
    pub(super) fn new(connected: Arc<AtomicU64>) -> Self {
        Self {
            entries: BTreeMap::new(),
            remembered: VecDeque::new(),
            departures: 0,
            connected,
        }
    }

    pub(super) fn connect(
        &mut self,
        identity: Identity,
        epoch: u64,
        cell: Arc<Cell>,
        ready: oneshot::Sender<()>,
        now: Timestamp,
    ) {
        if cell.gone.load(Ordering::Acquire) {
            return;
        }
        let counts = identity.module.is_none();
        let entry = self.entries.entry(identity).or_insert(Entry::UNKNOWN);
        let newest = Live { epoch, cell };
        if let Some(waiting) = entry.waiting.take() {
            waiting.live.cell.evict(Eviction::Replaced);
        }
        if let Some(live) = &entry.live {
            live.cell.evict(Eviction::Replaced);
            entry.waiting = Some(Box::new(Waiting {
                live: newest,
                ready,
            }));
            return;
        }
        entry.live = Some(newest);
        entry.state_updated = now;
        entry.last_activity = now;
        entry.departure = 0;
        entry.is_deleted = false;
        if counts {
            self.connected.fetch_add(1, Ordering::Relaxed);
        }
        // A connection that went away meanwhile announces its departure.
        let _ = ready.send(());
    }

    /// Gives a waiting connection the place although the older one has not let go.
    pub(super) fn take_over(&mut self, identity: &Identity, epoch: u64, now: Timestamp) {
        if let Some(entry) = self.entries.get_mut(identity)
            && entry
                .waiting
                .as_ref()
                .is_some_and(|w| w.live.epoch == epoch)
        {
            entry.promote(now);
        }
    }

    pub(super) fn depart(&mut self, identity: &Identity, epoch: u64, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(identity) else {
            return;
        };
        if entry
            .waiting
            .as_ref()
            .is_some_and(|w| w.live.epoch == epoch)
        {
            entry.waiting = None;
            return;
        }
        // A session that lost its place before it let go has no more to lose.
        if entry.live.as_ref().is_none_or(|live| live.epoch != epoch) {
            return;
        }
        if entry.promote(now) {
            return;
        }
        let ended = entry.live.take();
        entry.last_activity = ended.map_or(now, |live| live.cell.last_activity());
        entry.state_updated = now;
        if identity.module.is_none() {
            self.connected.fetch_sub(1, Ordering::Relaxed);
        }
        if entry.is_deleted {
            self.entries.remove(identity);
            return;
        }
        self.departures += 1;
        entry.departure = self.departures;
        self.remember(identity.clone());
    }

    /// Notes that an identity did something without a connection of its own.
    pub(super) fn touch(&mut self, identity: Identity, now: Timestamp) {
        let entry = self
            .entries
            .entry(identity.clone())
            .or_insert(Entry::UNKNOWN);
        if let Some(live) = &entry.live {
            live.cell.touch(now);
            return;
        }
        entry.last_activity = now;
        if entry.departure == 0 {
            self.departures += 1;
            entry.departure = self.departures;
            self.remember(identity);
        }
    }

    /// Keeps the entry of an identity whose departure was the last one, instead of the oldest.
    fn remember(&mut self, identity: Identity) {
        self.remembered.push_back((identity, self.departures));
        if self.remembered.len() > REMEMBERED_MAX
            && let Some((oldest, departure)) = self.remembered.pop_front()
            && self
                .entries
                .get(&oldest)
                .is_some_and(|e| e.departure == departure)
        {
            self.entries.remove(&oldest);
        }
    }

    /// Ends the sessions of a device and its modules; how many were told.
    pub(super) fn evict_device(&mut self, device: &DeviceId, reason: Eviction) -> usize {
        let first = Identity::of_device(device.clone());
        // The device itself sorts before its modules, and they before the next device.
        let identities: Vec<Identity> = self
            .entries
            .range(first..)
            .take_while(|(identity, _)| identity.device == *device)
            .map(|(identity, _)| identity.clone())
            .collect();
        identities
            .iter()
            .map(|identity| self.evict(identity, reason))
            .sum()
    }

    /// Ends the sessions of one identity; how many were told.
    pub(super) fn evict(&mut self, identity: &Identity, reason: Eviction) -> usize {
        let Some(entry) = self.entries.get_mut(identity) else {
            return 0;
        };
        let sessions = entry.sessions().inspect(|live| live.cell.evict(reason));
        let told = sessions.count();
        if reason == Eviction::Deleted {
            entry.is_deleted = true;
            if told == 0 {
                self.entries.remove(identity);
            }
        }
        told
    }

    /// Has something happen to the connection of an identity, if it has one.
    pub(super) fn disturb(&self, identity: &Identity, fault: Fault) {
        let entry = self.entries.get(identity);
        if let Some(live) = entry.and_then(|entry| entry.live.as_ref()) {
            live.cell.disturb(fault);
        }
    }

    pub(super) fn evict_all(&self, reason: Eviction) {
        for entry in self.entries.values() {
            entry.sessions().for_each(|live| live.cell.evict(reason));
        }
    }

    pub(super) fn state(&self, identity: &Identity) -> ConnectionState {
        let Some(entry) = self.entries.get(identity) else {
            return ConnectionState::UNKNOWN;
        };
        ConnectionState {
            connected: entry.live.is_some(),
            state_updated: entry.state_updated,
            last_activity: entry
                .live
                .as_ref()
                .map_or(entry.last_activity, |live| live.cell.last_activity()),
        }
    }
}

impl Entry {
    /// Of an identity that was never seen.
    const UNKNOWN: Self = Self {
        live: None,
        waiting: None,
        state_updated: Timestamp::NEVER,
        last_activity: Timestamp::NEVER,
        departure: 0,
        is_deleted: false,
    };

    /// Puts the waiting connection in the place of the live one, if one waits. It stays connected
    /// all along.
    fn promote(&mut self, now: Timestamp) -> bool {
        let Some(waiting) = self.waiting.take() else {
            return false;
        };
        self.live = Some(waiting.live);
        self.last_activity = now;
        // Whether the device was deleted before is the old session's affair.
        self.is_deleted = false;
        // A connection that went away meanwhile announces its departure.
        let _ = waiting.ready.send(());
        true
    }

    fn sessions(&self) -> impl Iterator<Item = &Live> {
        let waiting = self.waiting.as_ref().map(|waiting| &waiting.live);
        self.live.iter().chain(waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        shard: Shard,
        connected: Arc<AtomicU64>,
    }

    struct Connection {
        cell: Arc<Cell>,
        ready: oneshot::Receiver<()>,
    }

    impl Bench {
        fn new() -> Self {
            let connected = Arc::new(AtomicU64::new(0));
            Self {
                shard: Shard::new(Arc::clone(&connected)),
                connected,
            }
        }

        fn connect(&mut self, id: &str, epoch: u64) -> Connection {
            let cell = Arc::new(Cell::new(at(epoch)));
            let (ready, became_ready) = oneshot::channel();
            self.shard
                .connect(identity(id), epoch, Arc::clone(&cell), ready, at(epoch));
            Connection {
                cell,
                ready: became_ready,
            }
        }

        fn connected(&self) -> u64 {
            self.connected.load(Ordering::Relaxed)
        }
    }

    fn at(second: u64) -> Timestamp {
        Timestamp::from_millis(i64::try_from(second).unwrap() * 1000)
    }

    fn identity(text: &str) -> Identity {
        match text.split_once('/') {
            None => Identity::of_device(text.parse().unwrap()),
            Some((device, module)) => Identity {
                device: device.parse().unwrap(),
                module: Some(module.parse().unwrap()),
            },
        }
    }

    #[test]
    fn the_newest_connection_gets_the_place_when_the_older_one_has_let_go() {
        let mut bench = Bench::new();
        let mut first = bench.connect("d", 1);
        assert_eq!(first.ready.try_recv(), Ok(()));
        let mut second = bench.connect("d", 2);
        assert_eq!(first.cell.reason(), Some(Eviction::Replaced));
        assert!(second.ready.try_recv() == Err(oneshot::error::TryRecvError::Empty));
        let mut third = bench.connect("d", 3);
        assert_eq!(second.cell.reason(), Some(Eviction::Replaced));
        assert!(second.ready.try_recv() == Err(oneshot::error::TryRecvError::Closed));

        bench.shard.depart(&identity("d"), 2, at(4));
        assert!(third.ready.try_recv().is_err());
        bench.shard.depart(&identity("d"), 1, at(5));
        assert_eq!(third.ready.try_recv(), Ok(()));
        assert_eq!((third.cell.reason(), bench.connected()), (None, 1));

        bench.shard.depart(&identity("d"), 3, at(6));
        assert_eq!(bench.connected(), 0);
        let state = bench.shard.state(&identity("d"));
        assert_eq!((state.connected, state.state_updated), (false, at(6)));
        assert_eq!(state.last_activity, at(3));
    }

    #[test]
    fn a_session_that_does_not_let_go_loses_its_place() {
        let mut bench = Bench::new();
        let _first = bench.connect("d", 1);
        let mut second = bench.connect("d", 2);
        bench.shard.take_over(&identity("d"), 1, at(3));
        assert!(second.ready.try_recv().is_err());
        bench.shard.take_over(&identity("d"), 2, at(3));
        assert_eq!(second.ready.try_recv(), Ok(()));
        bench.shard.depart(&identity("d"), 1, at(9));
        let state = bench.shard.state(&identity("d"));
        assert_eq!((state.connected, bench.connected()), (true, 1));
    }

    #[test]
    fn a_device_is_evicted_with_its_modules_and_no_other() {
        let mut bench = Bench::new();
        let device = bench.connect("d", 1);
        let module = bench.connect("d/m", 2);
        let other = bench.connect("d1", 3);
        assert_eq!(bench.connected(), 2);
        let told = bench
            .shard
            .evict_device(&"d".parse().unwrap(), Eviction::Disabled);
        assert_eq!(told, 2);
        let reasons = [&device, &module, &other].map(|c| c.cell.reason());
        assert_eq!(
            reasons,
            [Some(Eviction::Disabled), Some(Eviction::Disabled), None]
        );
    }

    #[test]
    fn a_connection_that_went_away_before_it_was_heard_of_takes_no_place() {
        let mut bench = Bench::new();
        let cell = Arc::new(Cell::new(at(1)));
        cell.gone.store(true, Ordering::Release);
        bench.shard.depart(&identity("d"), 1, at(1));
        let (ready, _) = oneshot::channel();
        bench.shard.connect(identity("d"), 1, cell, ready, at(1));
        assert_eq!((bench.connected(), bench.shard.entries.len()), (0, 0));
    }

    #[test]
    fn what_is_done_without_a_connection_is_noted_and_takes_no_place() {
        let mut bench = Bench::new();
        for n in 1..=1000 {
            bench.shard.touch(identity("polls"), at(n));
        }
        let state = bench.shard.state(&identity("polls"));
        assert_eq!((state.connected, state.last_activity), (false, at(1000)));
        assert_eq!(
            (state.state_updated, bench.connected()),
            (Timestamp::NEVER, 0)
        );
        assert_eq!(bench.shard.remembered.len(), 1);

        let both = bench.connect("both", 1);
        bench.shard.touch(identity("both"), at(7));
        let state = bench.shard.state(&identity("both"));
        assert_eq!((state.connected, state.last_activity), (true, at(7)));
        assert_eq!(both.cell.reason(), None);

        for n in 0..1000 {
            bench.shard.touch(identity(&format!("d{n}")), at(n));
        }
        assert_eq!(bench.shard.remembered.len(), REMEMBERED_MAX);
        assert_eq!(bench.shard.entries.len(), REMEMBERED_MAX + 1);
    }

    #[test]
    fn devices_that_left_are_remembered_up_to_a_bound_and_deleted_ones_are_not() {
        let mut bench = Bench::new();
        for n in 1..=1000 {
            bench.connect(&format!("d{n}"), n);
            bench.shard.depart(&identity(&format!("d{n}")), n, at(n));
        }
        assert_eq!(bench.shard.entries.len(), REMEMBERED_MAX);
        assert_eq!(bench.shard.remembered.len(), REMEMBERED_MAX);
        assert_eq!(
            bench.shard.state(&identity("d1000")).state_updated,
            at(1000)
        );
        assert_eq!(bench.shard.state(&identity("d1")), ConnectionState::UNKNOWN);

        bench.connect("d1000", 1001);
        bench.shard.evict(&identity("d1000"), Eviction::Deleted);
        bench.shard.depart(&identity("d1000"), 1001, at(1002));
        assert_eq!(
            bench.shard.state(&identity("d1000")),
            ConnectionState::UNKNOWN
        );
        bench.shard.evict(&identity("d999"), Eviction::Deleted);
        assert_eq!(
            bench.shard.state(&identity("d999")),
            ConnectionState::UNKNOWN
        );
    }
}
