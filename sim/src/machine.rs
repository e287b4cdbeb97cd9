//! The machine that the hub runs on, and its operator, who starts it again whenever it fell.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use fieldpost_gateway::GatewayLimits;
use fieldpost_gateway::streams::Streams;
use fieldpost_hub::clock::{Chance, Clock, SeededChance};
use fieldpost_hub::secrets::Keyring;
use fieldpost_hub::{Hub, HubConfig, HubParts};
use fieldpost_model::{Partitioning, Timestamp};
use fieldpost_store::log::EventLog;
use fieldpost_store::memory::{MemoryDocuments, MemoryQueues};
use fieldpost_store::{HealthLevel, Store, StoreError};
use fieldpost_store_embedded::LogSettings;
use fieldpost_store_embedded::files::sim::{CrashPlan, Fault, SimDisk};
use fieldpost_store_embedded::health::StoreHealth;
use fieldpost_store_embedded::log::{LogId, LogIdentity, SteppedLog, Turn};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::clock::ClockError;
use crate::facets::{Facets, SimDocuments, SimQueues};
use crate::network::End;
use crate::phase::{Phase, Phases};
use crate::random::Random;
use crate::store::{Gate, GatedLog};
use crate::world::World;

/// The port of MQTT; all else is AMQP.
const MQTT_PORT: u16 = 8883;

/// The partitions of the log.
const PARTITIONS: u16 = 4;

/// How long a hub may take to stop in order before it is killed.
const STOP_MAX: Duration = Duration::from_secs(30);

/// The machine and the process on it.
pub(crate) struct Machine {
    world: Arc<World>,
    created: Timestamp,
    documents: Arc<MemoryDocuments>,
    queues: Arc<MemoryQueues>,
    clock: ClockError,
    state: Mutex<State>,
    /// Rung when the power failed by itself.
    fallen: Notify,
}

struct State {
    random: Random,
    disk: SimDisk,
    boots: u64,
    process: Option<Process>,
}

/// What runs between a start of the hub and its end.
struct Process {
    gate: Arc<Gate>,
    facets: Arc<Facets>,
    hub: Option<Hub>,
    streams: Option<Arc<Streams>>,
    /// Everything that the process runs and that is ours to end.
    tasks: JoinSet<()>,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fall {
    /// In order.
    Stop,
    /// It is killed; what it has written is with the operating system.
    Kill,
    /// The machine loses its power, and the disk what was not synced.
    Power,
}

impl Machine {
    pub(crate) fn new(world: Arc<World>, random: Random) -> Arc<Self> {
        Arc::new(Self {
            created: world.timer.now(),
            world,
            documents: Arc::default(),
            queues: Arc::default(),
            clock: ClockError::default(),
            state: Mutex::new(State {
                random,
                disk: SimDisk::new(),
                boots: 0,
                process: None,
            }),
            fallen: Notify::new(),
        })
    }

    /// The hub, while it runs.
    pub(crate) fn hub(&self) -> Option<Hub> {
        self.lock().process.as_ref()?.hub.clone()
    }

    /// Starts the hub and gives it, for whoever sets it up. Nobody can connect before
    /// [`Machine::listen`].
    pub(crate) async fn boot(self: &Arc<Self>) -> Result<Hub, String> {
        let (gate, disk, chance, fresh) = {
            let mut state = self.lock();
            let fresh = state.boots == 0;
            state.boots += 1;
            let speed = self.world.scenario.disk;
            let gate = Gate::new(state.random.fork(), speed);
            (gate, state.disk.clone(), state.random.next(), fresh)
        };
        let timer = Arc::new(self.world.timer.of_process(&self.clock));
        let health = Arc::new(StoreHealth::new());
        let identity = LogIdentity {
            id: LogId(*b"simulated log id"),
            created: self.created,
            partitioning: Partitioning::new(PARTITIONS).expect("1 to 128 partitions"),
            fresh,
            losses: 0,
        };
        // So small that segments end often, and that readers fall behind what is in memory.
        let settings = LogSettings {
            segment_bytes_first: 64 * 1024,
            segment_bytes_max: 256 * 1024,
            tail_bytes: 32 * 1024,
            // Every disk that is found after a crash is a copy.
            reserve_bytes: 64 * 1024,
            ..LogSettings::default()
        };
        let opened = SteppedLog::open(
            Arc::new(disk.clone()),
            identity,
            &settings,
            Arc::clone(&timer) as Arc<dyn Clock>,
            Arc::clone(&health),
        );
        let (log, report) = opened.map_err(|error| error.to_string())?;
        let auditor = &self.world.auditor;
        auditor.note(format_args!("the log opened: {report:?}"));
        for damage in &report.damage {
            auditor.violation(format_args!("the log is damaged: {damage}"));
        }
        let log = Arc::new(GatedLog {
            log,
            gate: Arc::clone(&gate),
            submitted: Notify::new(),
        });
        let facets = Arc::new(Facets::new(
            Arc::clone(&gate),
            health,
            Arc::clone(&self.documents),
            Arc::clone(&self.queues),
        ));
        let mut tasks = JoinSet::new();
        tasks.spawn(run_log(Arc::downgrade(self), Arc::clone(&log), disk));
        tasks.spawn(run_facets(Arc::clone(&facets)));
        self.lock().process = Some(Process {
            gate,
            facets: Arc::clone(&facets),
            hub: None,
            streams: None,
            tasks,
        });
        let parts = HubParts {
            store: Store {
                log,
                documents: Arc::new(SimDocuments(Arc::clone(&facets))),
                queues: Arc::new(SimQueues(facets)),
            },
            timer,
            chance: Arc::new(SeededChance::new(chance)) as Arc<dyn Chance>,
            keyring: Keyring::new(1, [3; 32]),
            config: HubConfig::default(),
        };
        let hub = Hub::open(parts).await.map_err(|error| error.to_string())?;
        let streams = Arc::new(Streams::new(hub.clone(), GatewayLimits::default()));
        if let Some(process) = &mut self.lock().process {
            process.hub = Some(hub.clone());
            process.streams = Some(streams);
        }
        Ok(hub)
    }

    /// Lets clients connect.
    pub(crate) fn listen(self: &Arc<Self>) {
        let machine = Arc::downgrade(self);
        let accept = move |port, end| {
            if let Some(machine) = machine.upgrade() {
                machine.accept(port, end);
            }
        };
        self.world.network.listen(Some(Arc::new(accept)));
    }

    fn accept(&self, port: u16, end: End) {
        let peer = ([127, 0, 0, 1], port).into();
        let mut state = self.lock();
        let Some(process) = &mut state.process else {
            return;
        };
        if let Some(streams) = &process.streams {
            while process.tasks.try_join_next().is_some() {}
            if port == MQTT_PORT {
                process.tasks.spawn(streams.mqtt(end, peer));
            } else {
                process.tasks.spawn(streams.amqp(end, peer));
            }
        }
    }

    /// Lets the hub run, fall and start again until the run is over.
    pub(crate) async fn operate(self: Arc<Self>, phases: Phases) {
        let mut over = phases.clone();
        loop {
            self.break_something(&phases).await;
            let fall = tokio::select! {
                biased;
                () = over.until(Phase::Over) => return,
                () = self.fallen.notified() => None,
                () = self.read_only() => Some(Fall::Kill),
                fall = self.next_fall(&phases) => Some(fall),
            };
            match fall {
                None => {}
                Some(Fall::Stop) => {
                    if timeout(STOP_MAX, self.stop()).await.is_err() {
                        let auditor = &self.world.auditor;
                        auditor.note(format_args!("the hub does not stop and is killed"));
                    }
                    self.fall(Fall::Stop);
                }
                Some(Fall::Power) => self.lose_power().await,
                Some(fall) => self.fall(fall),
            }
            loop {
                let down = self.lock().random.around(Duration::from_secs(1));
                sleep(down).await;
                // A start takes as long as it takes, and may be cut short by the next fall.
                let cut_short = phases.is(Phase::Load)
                    && self.world.scenario.fall_every.is_some()
                    && self.lock().random.percent(10);
                let patience = if cut_short {
                    self.lock().random.around(Duration::from_millis(20))
                } else {
                    Duration::from_secs(300)
                };
                match timeout(patience, self.boot()).await {
                    Ok(Ok(_)) => break,
                    Ok(Err(why)) => {
                        // The disk may fail while the hub starts; then it starts again.
                        let auditor = &self.world.auditor;
                        auditor.note(format_args!("the hub did not start: {why}"));
                        let failing = self.world.scenario.failing_syncs_percent > 0;
                        if !failing {
                            auditor.violation(format_args!("the hub did not start: {why}"));
                            return;
                        }
                        self.fall(Fall::Kill);
                    }
                    Err(_) if cut_short => self.fall(if self.world.scenario.power_loss {
                        Fall::Power
                    } else {
                        Fall::Kill
                    }),
                    Err(_) => {
                        let auditor = &self.world.auditor;
                        auditor.violation(format_args!("the hub takes for ever to start"));
                        return;
                    }
                }
            }
            self.listen();
        }
    }

    /// Waits until the hub is to fall, and says how.
    async fn next_fall(&self, phases: &Phases) -> Fall {
        let Some(fall_every) = &self.world.scenario.fall_every else {
            return std::future::pending().await;
        };
        let span = self.lock().random.within(fall_every);
        sleep(span).await;
        if !phases.is(Phase::Load) {
            return std::future::pending().await;
        }
        let power_loss = self.world.scenario.power_loss;
        match self.lock().random.below(100) {
            0..20 => Fall::Stop,
            20..50 => Fall::Kill,
            _ if power_loss => Fall::Power,
            _ => Fall::Kill,
        }
    }

    /// Sets the clock of the machine again and again, by almost an hour at most: tokens last for one.
    /// No setting holds for as long as the hub takes to believe it.
    pub(crate) async fn set_clock(self: Arc<Self>, mut random: Random, phases: Phases) {
        const FAR: i64 = 55 * 60 * 1000;
        let Some(every) = self.world.scenario.clock_set_every.clone() else {
            return;
        };
        loop {
            sleep(random.within(&every)).await;
            if !phases.is(Phase::Load) {
                break;
            }
            let millis = match random.below(4) {
                0 => 0,
                1 => FAR,
                2 => -FAR,
                _ => {
                    let span = random.around(Duration::from_millis(FAR.unsigned_abs()));
                    i64::try_from(span.as_millis()).unwrap_or(0) - FAR
                }
            };
            (self.world.auditor).note(format_args!("the clock is set, to be {millis} ms wrong"));
            self.clock.set(millis);
        }
        self.clock.set(0);
    }

    /// Waits until the store takes nothing more, and until the operator has noticed.
    async fn read_only(&self) {
        let health =
            (self.lock().process.as_ref()).map(|process| process.facets.health.subscribe());
        let Some(mut health) = health else {
            return std::future::pending().await;
        };
        if (health
            .wait_for(|health| health.level == HealthLevel::ReadOnly)
            .await)
            .is_err()
        {
            return std::future::pending().await;
        }
        let notice = self.lock().random.around(Duration::from_secs(5));
        sleep(notice).await;
    }

    /// Has one of the next calls of the disk fail, or the next sync of documents and queues.
    async fn break_something(&self, phases: &Phases) {
        let mut state = self.lock();
        let percent = self.world.scenario.failing_syncs_percent;
        if !phases.is(Phase::Load) || !state.random.percent(percent) {
            return;
        }
        let after = state.random.around(Duration::from_secs(4));
        let of_log = state.random.percent(60);
        let ahead = state.random.below(8);
        let fault = match state.random.below(10) {
            0..7 => Fault::Io,
            7 | 8 => Fault::Short,
            _ => Fault::Full,
        };
        let disk = state.disk.clone();
        let auditor = self.world.auditor.clone();
        let Some(process) = &mut state.process else {
            return;
        };
        let facets = Arc::clone(&process.facets);
        process.tasks.spawn(async move {
            sleep(after).await;
            if of_log {
                disk.fail_at(disk.calls() + ahead, fault);
                auditor.note(format_args!("the disk is about to fail: {fault:?}"));
            } else {
                auditor.note(format_args!("the documents fail to sync"));
                facets.health.fail("a simulated sync failed");
                if let Some(error) = facets.health.failure() {
                    facets.lose(&error);
                }
            }
        });
    }

    /// Switches the power off: now, or in the middle of what the log is about to write.
    async fn lose_power(&self) {
        let armed = {
            let mut state = self.lock();
            let armed = state.random.percent(60);
            let ahead = state.random.below(12);
            if armed {
                state.disk.crash_at(state.disk.changes() + ahead);
            }
            armed
        };
        if armed && (timeout(Duration::from_secs(2), self.fallen.notified()).await).is_ok() {
            return;
        }
        self.fall(Fall::Power);
    }

    /// Ends the hub in order.
    async fn stop(&self) {
        self.world.network.listen(None);
        let (streams, hub) = match &self.lock().process {
            Some(process) => (process.streams.clone(), process.hub.clone()),
            None => return,
        };
        if let Some(streams) = streams {
            streams.drain();
        }
        // Sessions say farewell as far as their peers listen.
        let patience = self.lock().random.around(Duration::from_secs(3));
        sleep(patience).await;
        if let Some(hub) = hub {
            hub.close().await;
        }
    }

    /// Ends the process, and decides what the next one finds.
    fn fall(&self, fall: Fall) {
        let mut state = self.lock();
        self.world.network.listen(None);
        self.world
            .auditor
            .note(format_args!("the hub falls: {fall:?}"));
        if fall == Fall::Power {
            self.world.network.host_down();
        }
        if let Some(mut process) = state.process.take() {
            process.gate.power.off();
            process.tasks.abort_all();
            process.facets.lose(&StoreError::Closed);
        }
        if fall == Fall::Power {
            state.disk.crash();
            let plan = CrashPlan {
                seed: state.random.next(),
                piece: if state.random.percent(50) { 512 } else { 4096 },
                kept_percent: [0, 30, 70, 95, 100]
                    [usize::try_from(state.random.below(5)).unwrap_or(0)],
            };
            self.world
                .auditor
                .note(format_args!("the disk lost its power: {plan:?}"));
            state.disk = state.disk.image(plan);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Turns the crank of a log as its threads do, at the speed of its disk.
async fn run_log(machine: Weak<Machine>, log: Arc<GatedLog>, disk: SimDisk) {
    /// How often housekeeping looks around.
    const KEEP_EVERY: Duration = Duration::from_secs(1);
    let mut keep_at = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = log.submitted.notified() => {}
            () = sleep_until(keep_at) => {
                keep_at = Instant::now() + KEEP_EVERY;
                while log.log.keep_once() && !disk.crashed() {}
                let _ = log.log.commit_once();
            }
        }
        while log.log.figures().batches_waiting > 0 && !disk.crashed() {
            log.gate.write().await;
            let turn = log.log.commit_once();
            if let Some(machine) = machine.upgrade() {
                machine
                    .world
                    .auditor
                    .note(format_args!("the log: {turn:?}"));
            }
            match turn {
                Turn::Committed { .. } => {}
                Turn::Held => break,
                Turn::Idle | Turn::Failed => break,
            }
            while log.log.keep_once() && !disk.crashed() {}
        }
        if disk.crashed() {
            if let Some(machine) = machine.upgrade() {
                machine.fall(Fall::Power);
                machine.fallen.notify_one();
            }
            return;
        }
    }
}

/// Makes changes of documents and queues durable, in groups of all that waits.
async fn run_facets(facets: Arc<Facets>) {
    loop {
        facets.arrived.notified().await;
        while facets.waiting() > 0 {
            let group = facets.waiting();
            facets.gate.write().await;
            facets.commit(group);
        }
    }
}
