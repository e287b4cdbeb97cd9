//! The hub as a whole: what it is made of and how it starts and ends.

use std::sync::Arc;

use fieldpost_store::log::LogFigures;
use fieldpost_store::{Health, Store, StoreError};
use tokio::sync::watch;

use crate::auth::Access;
use crate::authorities::Authorities;
use crate::c2d::{CloudToDevice, CloudToDeviceConfig};
use crate::clock::{Chance, Timer};
use crate::events::{Events, Receivers};
use crate::faults::Faults;
use crate::identity::Registry;
use crate::ingest::Ingest;
use crate::names::HostNames;
use crate::policies::{LoadPoliciesError, Policies};
use crate::presence::{Owners, Presence};
use crate::probe::Probe;
use crate::secrets::Keyring;
use crate::settings::{ApplyError, Governed, HubSettings, InvalidSettings, Settings};
use crate::subscriptions::Subscriptions;
use crate::throttles::Throttles;

/// What a hub is made of.
pub struct HubParts {
    /// Where its state lives. The hub is its only user, and closes it.
    pub store: Store,
    /// Its time.
    pub timer: Arc<dyn Timer>,
    /// Its chance.
    pub chance: Arc<dyn Chance>,
    /// The keys that encrypt key material in the store.
    pub keyring: Keyring,
    /// What its operator decided.
    pub config: HubConfig,
}

/// What the operator of a hub decides before it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubConfig {
    /// The hub's name, which is also the entity name of the built-in endpoint.
    pub name: String,
    /// The names and addresses by which clients reach the hub. Each is accepted wherever a client
    /// names the hub, and so is its first label.
    pub host_names: Vec<String>,
    /// Bytes of messages that are not yet durable, of all connections together.
    pub in_flight_bytes: usize,
    /// Bytes of messages to devices that are read ahead or in flight, of all devices together.
    /// Beyond that each device gets one at a time.
    pub device_bound_bytes: usize,
    /// Whether the hub serves tests of its users: it has a [`Probe`], and believes its clock as it
    /// stands at the start, however far that is from what the store knows of the past.
    pub test_mode: bool,
    /// The settings of a hub that has none yet.
    pub seed: HubSettings,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            name: "hub".to_owned(),
            host_names: vec!["localhost".to_owned()],
            in_flight_bytes: 256 * 1024 * 1024,
            device_bound_bytes: 256 * 1024 * 1024,
            test_mode: false,
            seed: HubSettings::default(),
        }
    }
}

/// Why a hub does not start.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// The policies cannot be loaded.
    #[error("the hub's policies cannot be loaded")]
    Policies(#[from] LoadPoliciesError),
    /// The settings for a new hub cannot be taken.
    #[error("the hub's settings cannot be taken")]
    Settings(#[source] InvalidSettings),
    /// The store failed.
    #[error("the store failed while the hub was starting")]
    Store(#[source] StoreError),
}

/// A running hub. Cloning is cheap.
#[derive(Clone)]
pub struct Hub(Arc<Inner>);

struct Inner {
    name: String,
    names: Arc<HostNames>,
    store: Store,
    timer: Arc<dyn Timer>,
    chance: Arc<dyn Chance>,
    owners: Owners,
    registry: Registry,
    authorities: Authorities,
    access: Access,
    ingest: Ingest,
    presence: Presence,
    subscriptions: Subscriptions,
    events: Events,
    settings: Settings,
    throttles: Throttles,
    c2d: CloudToDevice,
    probe: Option<Arc<Probe>>,
}

impl Hub {
    /// Starts a hub on the current runtime. Policies and settings are made when the store has none.
    ///
    /// # Errors
    /// When the store fails, or holds what this hub cannot take.
    pub async fn open(parts: HubParts) -> Result<Self, OpenError> {
        let HubParts {
            store,
            timer,
            chance,
            keyring,
            config,
        } = parts;
        let keyring = Arc::new(keyring);
        let names = Arc::new(HostNames::new(&config.name, &config.host_names));
        let policies = Policies::open(&store, Arc::clone(&keyring), Arc::clone(&chance)).await?;
        let owners = Owners::start(Arc::clone(&timer));
        let registry = Registry::new(
            &store,
            keyring,
            Arc::clone(&chance),
            Arc::clone(&timer),
            owners.clone(),
        );
        let receivers = Receivers::default();
        let throttles = Throttles::open(&store, Arc::clone(&timer))
            .await
            .map_err(OpenError::Store)?;
        let governed = Governed {
            receivers: receivers.clone(),
            throttles: throttles.clone(),
        };
        let settings = Settings::open(&store, governed, registry.clone(), config.seed)
            .await
            .map_err(|error| match error {
                ApplyError::Invalid(invalid) => OpenError::Settings(invalid),
                ApplyError::Store(error) => OpenError::Store(error),
            })?;
        let authorities = Authorities::open(
            &store,
            registry.clone(),
            Arc::clone(&timer),
            Arc::clone(&chance),
        )
        .await
        .map_err(OpenError::Store)?;
        let faults = config
            .test_mode
            .then(|| Arc::new(Faults::new(owners.clone(), Arc::clone(&timer))));
        let access = Access::new(
            Arc::new(policies),
            registry.clone(),
            authorities.clone(),
            Arc::clone(&names),
            Arc::clone(&timer),
            store.log.partitioning(),
            faults.clone(),
        );
        let probe = config.test_mode.then(Arc::<Probe>::default);
        let c2d = CloudToDevice::start(
            &store,
            registry.clone(),
            settings.clone(),
            Arc::clone(&timer),
            Arc::clone(&chance),
            CloudToDeviceConfig {
                held_bytes: config.device_bound_bytes,
                trusts_clock: config.test_mode,
                probe: probe.clone(),
                throttles: throttles.clone(),
            },
        )
        .await
        .map_err(OpenError::Store)?;
        Ok(Self(Arc::new(Inner {
            c2d,
            authorities,
            access,
            ingest: Ingest::start(
                &store,
                Arc::clone(&timer),
                config.in_flight_bytes,
                throttles.clone(),
                probe.clone(),
                faults,
            ),
            probe,
            presence: Presence::new(owners.clone(), registry.clone()),
            subscriptions: Subscriptions::new(&store),
            events: Events::new(&store, config.name.clone(), receivers),
            settings,
            throttles,
            name: config.name,
            names,
            store,
            timer,
            chance,
            owners,
            registry,
        })))
    }

    /// The device identities.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// The certificate authorities that may vouch for devices.
    #[must_use]
    pub fn authorities(&self) -> &Authorities {
        &self.0.authorities
    }

    /// Who is let in.
    #[must_use]
    pub fn access(&self) -> &Access {
        &self.0.access
    }

    /// Messages from devices.
    #[must_use]
    pub fn ingest(&self) -> &Ingest {
        &self.0.ingest
    }

    /// Who is connected.
    #[must_use]
    pub fn presence(&self) -> &Presence {
        &self.0.presence
    }

    /// What MQTT devices have subscribed to.
    #[must_use]
    pub fn subscriptions(&self) -> &Subscriptions {
        &self.0.subscriptions
    }

    /// The built-in endpoint.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.0.events
    }

    /// Messages to devices.
    #[must_use]
    pub fn c2d(&self) -> &CloudToDevice {
        &self.0.c2d
    }

    /// What a hub in test mode has for its users' tests.
    #[must_use]
    pub fn probe(&self) -> Option<&Probe> {
        self.0.probe.as_deref()
    }

    /// The settings in force.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The limits of the tier that the hub plays, if it plays one.
    #[must_use]
    pub fn throttles(&self) -> &Throttles {
        &self.0.throttles
    }

    /// The hub's time.
    #[must_use]
    pub fn timer(&self) -> &Arc<dyn Timer> {
        &self.0.timer
    }

    /// The hub's chance.
    #[must_use]
    pub fn chance(&self) -> &Arc<dyn Chance> {
        &self.0.chance
    }

    /// The hub's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether `host` is a name of this hub: without regard to case and to a port.
    #[must_use]
    pub fn is_own_host(&self, host: &str) -> bool {
        self.0.names.contains(host)
    }

    /// Whether the store takes writes, and its changes.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.0.store.log.health()
    }

    /// What has failed that the hub cannot do without, as soon as something has: a defect, after which
    /// the hub serves in part at best. Everything that was acknowledged is in the store, so it should
    /// be closed and opened anew.
    #[must_use]
    pub fn failed(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.0.c2d.failed()
    }

    /// Figures of the event log, for metrics.
    #[must_use]
    pub fn figures(&self) -> LogFigures {
        self.0.store.log.figures()
    }

    /// Ends the hub: changes under way are finished, sessions are told to end, and the store is
    /// closed. Connections have been drained before; whatever is asked afterwards fails.
    pub async fn close(&self) {
        self.0.registry.quiesce().await;
        self.0.owners.close().await;
        self.0.c2d.close().await;
        self.0.store.queues.close().await;
        self.0.store.log.close().await;
        self.0.ingest.close().await;
        self.0.throttles.close().await;
        self.0.store.documents.close().await;
    }
}
