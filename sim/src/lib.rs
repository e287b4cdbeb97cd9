//! The whole hub in a world of its own, in which one seed decides everything.
//!
//! What is real: the hub, the gateway's MQTT and AMQP sessions, the segment log with its recovery, and
//! the client crate's engines, of which devices, readers and back ends are made. What is simulated:
//! time, which stands still while anything is to be done; the network, which delays, cuts and loses;
//! the disk under the log, which is slow, fails, and forgets what was not synced; and, in
//! the place of the key-value engine, the memory engine, whose changes wait for a disk and outlive the
//! hub. Falls of the hub and of its machine are part of it, and a clock that somebody sets wrongly.
//!
//! An auditor remembers everything that was promised. A run is a *load* phase, in which things break,
//! and a *settle* phase, in which nothing does and everything promised must come. Everything that
//! happens, every write to a link included, goes into a journal, whose hash is the run's name: a
//! seed that is run twice gives one hash.

mod auditor;
mod clock;
mod commands;
mod device;
mod facets;
mod journal;
mod machine;
mod network;
mod phase;
mod random;
mod reader;
mod scenario;
mod service;
mod store;
mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fieldpost_client::ConnectionString;
use fieldpost_hub::Hub;
use fieldpost_hub::c2d::Cause;
use fieldpost_hub::identity::{Authentication, AuthenticationSpec, DeviceSpec};
use fieldpost_model::DeviceId;
use fieldpost_record::CommandView;
use tokio::runtime::RngSeed;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

pub use auditor::Figures;
pub use journal::Sink;
pub use scenario::Scenario;
pub use store::DiskSpeed;

use auditor::Auditor;
use clock::SimTimer;
use device::SimDevice;
use journal::Journal;
use machine::Machine;
use network::Network;
use phase::{Phase, Phases};
use random::Random;
use reader::SimReader;
use service::SimService;
use world::World;

/// Simulated time that the load may take.
const LOAD_MAX: Duration = Duration::from_secs(3600);

/// Simulated time in which everything promised must come.
const SETTLE_MAX: Duration = Duration::from_secs(900);

/// What came of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Events in the journal.
    pub events: u64,
    /// The hash over all of them.
    pub hash: u64,
    /// Simulated time, in milliseconds.
    pub millis: u128,
    /// What happened.
    pub figures: Figures,
    /// Promises that were broken.
    pub violations: Vec<String>,
}

/// Runs a scenario from a seed. Everything that happens is written to `journal`, if there is one.
#[must_use]
pub fn run(scenario: &Scenario, seed: u64, journal: Option<Sink>) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .rng_seed(RngSeed::from_bytes(&seed.to_le_bytes()))
        .build()
        .expect("a runtime without input and output takes nothing of the system");
    runtime.block_on(simulate(scenario.clone(), seed, journal))
}

async fn simulate(scenario: Scenario, seed: u64, journal: Option<Sink>) -> Outcome {
    let began = Instant::now();
    let mut random = Random::new(seed);
    let journal = Journal::new(journal);
    let auditor = Auditor::new(journal.clone());
    let network = Network::new(journal.clone(), random.fork(), scenario.cut_every);
    let timer = SimTimer::new();
    let world = Arc::new(World::new(scenario, timer, network, auditor.clone()));
    let machine = Machine::new(Arc::clone(&world), random.fork());
    if let Err(why) = live(&world, &machine, &mut random).await {
        auditor.violation(format_args!("{why}"));
    }
    let (events, hash) = journal.digest();
    Outcome {
        events,
        hash,
        millis: began.elapsed().as_millis(),
        figures: auditor.figures(),
        violations: auditor.violations(),
    }
}

/// The whole life of a world.
async fn live(
    world: &Arc<World>,
    machine: &Arc<Machine>,
    random: &mut Random,
) -> Result<(), String> {
    let hub = machine.boot().await?;
    let devices = register(&hub, world.scenario.devices).await?;
    let policy = hub.access().policy("service");
    let key = policy.ok_or("there is no policy for services")?.primary;
    let key = key.expose().to_owned();
    drop(hub);
    machine.listen();
    let connection_string = |entity: Option<&str>| ConnectionString {
        host_name: "localhost".to_owned(),
        device_id: None,
        policy: Some("service".to_owned()),
        key: Some(key.clone()),
        entity_path: entity.map(str::to_owned),
    };
    let events = connection_string(Some("hub"));

    let (phase, phases) = watch::channel(Phase::Load);
    let phases = Phases(phases);
    let mut actors = JoinSet::new();
    for at in 0..world.scenario.services {
        let service = SimService {
            name: format!("service-{at}"),
            connection_string: connection_string(None),
            devices: devices.keys().cloned().collect(),
            world: Arc::clone(world),
            phases: phases.clone(),
            random: random.fork(),
            connections: 0,
            sent: 0,
        };
        actors.spawn(service.run());
    }
    for (id, key) in &devices {
        let device = SimDevice {
            id: id.as_str().to_owned(),
            connection_string: ConnectionString {
                device_id: Some(id.as_str().to_owned()),
                policy: None,
                key: Some(key.clone()),
                ..connection_string(None)
            },
            world: Arc::clone(world),
            phases: phases.clone(),
            random: random.fork(),
            unacknowledged: BTreeMap::new(),
            sent: 0,
        };
        actors.spawn(device.run());
    }
    let reader = SimReader {
        connection_string: events.clone(),
        world: Arc::clone(world),
        phases: phases.clone(),
        random: random.fork(),
        read: BTreeMap::new(),
    };
    actors.spawn(reader.run());
    actors.spawn(Arc::clone(machine).operate(phases.clone()));
    if world.scenario.clock_set_every.is_some() {
        actors.spawn(Arc::clone(machine).set_clock(random.fork(), phases.clone()));
    }

    if timeout(LOAD_MAX, world.all_sent()).await.is_err() {
        world
            .auditor
            .violation(format_args!("the load does not end"));
    }
    world.auditor.note(format_args!("everything was sent"));
    phase.send_replace(Phase::Settle);
    world.network.heal();
    let settled = timeout(SETTLE_MAX, async {
        while !world.auditor.open_ends().is_empty() {
            sleep(Duration::from_secs(1)).await;
        }
        while !missing_letters(world, machine).await.is_empty() {
            sleep(Duration::from_secs(1)).await;
        }
    });
    if settled.await.is_err() {
        let mut open = world.auditor.open_ends();
        open.extend(missing_letters(world, machine).await);
        for open in open {
            world.auditor.violation(format_args!("{open}"));
        }
    }
    // Whatever comes too often comes now.
    sleep(Duration::from_secs(60)).await;
    match timeout(SETTLE_MAX, reader::read_all(world, &events)).await {
        Ok(Ok(all)) => world.auditor.read_again(&all),
        Ok(Err(why)) => world
            .auditor
            .violation(format_args!("it cannot be read again: {why}")),
        Err(_) => world
            .auditor
            .violation(format_args!("reading it again takes for ever")),
    }
    world.auditor.close();
    phase.send_replace(Phase::Over);
    while let Some(ended) = actors.join_next().await {
        if let Err(error) = ended {
            world
                .auditor
                .violation(format_args!("a part of the simulation failed: {error}"));
        }
    }
    Ok(())
}

/// Has the auditor look at the dead letters, and gives what is missing among them.
async fn missing_letters(world: &World, machine: &Machine) -> Vec<String> {
    match dead_letters(machine).await {
        Ok(letters) => world.auditor.dead_letters(&letters),
        Err(why) => vec![why],
    }
}

async fn dead_letters(machine: &Machine) -> Result<Vec<(String, Cause)>, String> {
    let hub = machine.hub().ok_or("the hub is gone")?;
    let mut letters = Vec::new();
    let mut after = Some(0);
    while let Some(number) = after {
        let page = hub.c2d().dead_letters(number, usize::MAX, None).await;
        let page = page.map_err(|error| error.to_string())?;
        for letter in page.letters {
            let view = CommandView::parse(&letter.message).map_err(|error| error.to_string())?;
            let id = view.message_id().unwrap_or_default().to_owned();
            letters.push((id, letter.cause));
        }
        after = page.next;
    }
    Ok(letters)
}

/// Registers devices and gives their keys.
async fn register(hub: &Hub, count: u64) -> Result<BTreeMap<DeviceId, String>, String> {
    let mut keys = BTreeMap::new();
    for at in 0..count {
        let id = DeviceId::new(&format!("device-{at}")).map_err(|error| error.to_string())?;
        let mut spec = DeviceSpec::new(id.clone());
        spec.authentication = AuthenticationSpec::Sas {
            primary: None,
            secondary: None,
        };
        let created = hub.registry().create(spec).await;
        let created = created.map_err(|error| error.to_string())?;
        if let Authentication::Sas(pair) = &created.authentication {
            keys.insert(id, pair.primary.expose().to_owned());
        }
    }
    Ok(keys)
}
