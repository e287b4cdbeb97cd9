//! The life of a hub process: lock, store, hub, listeners, gateway; run; drain; close.

mod endpoints;
mod listeners;
mod lock;
mod opened;
mod signals;
mod welcome;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fieldpost_gateway::{Gateway, GatewayLimits, Listener, ListenerKind, TlsIdentity};
use fieldpost_hub::Hub;
use fieldpost_hub::clock::Chance as _;
use fieldpost_hub::secrets::Secret;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub(crate) use endpoints::Endpoints;
pub(crate) use lock::{DataLock, is_held};
pub(crate) use opened::{
    OpenedHub, engine_config, is_locked, open_for_command, store_exists, store_path,
};

use crate::admin::{self, AMQPS_PORT, AdminParts, AdminServer, HealthView, Phase, Reach};
use crate::clock::SystemChance;
use crate::config::{Config, ListenerName, Settings};
use crate::trust::{Refresher, Trust};
use crate::{files, metrics};
use listeners::{BoundListener, Inherited};
use opened::Purpose;
use signals::Stop;

/// Time that sessions have to acknowledge what is in flight and to say goodbye.
const DRAIN_TIME: Duration = Duration::from_secs(6);

/// Time that calls of the admin API have to end.
const ADMIN_STOP_TIME: Duration = Duration::from_secs(1);

/// Time from the signal to the end of the process, whatever hangs.
const STOP_TIME: Duration = Duration::from_millis(9_500);

/// Runs a hub until a signal ends it.
///
/// # Errors
/// When something is missing that a hub needs. Nothing is left running then.
pub(crate) async fn serve(config: Config, settings: Settings) -> anyhow::Result<()> {
    let mut stop = Stop::listen()?;
    let process = tokio::select! {
        biased;
        process = Process::start(&config, &settings) => process?,
        // A store that was not closed may take long to open. Whatever is half done is what a kill
        // would leave, and the next start copes with that.
        () = stop.requested() => {
            tracing::info!("stopped before everything was up");
            return Ok(());
        }
    };
    let text = welcome::text(&process.endpoints, &config.data, env!("CARGO_PKG_VERSION"));
    // A hub whose standard output is closed serves all the same.
    let _ = crate::cli::print(&text);
    let mut failed = process.hub().failed();
    let failure = tokio::select! {
        () = stop.requested() => None,
        // The hub outlives the process's wish to wait.
        Ok(failure) = failed.wait_for(Option::is_some) => failure.clone(),
    };
    process.stop().await?;
    if let Some(failure) = failure {
        bail!("{failure}; the hub has stopped and can be started anew");
    }
    tracing::info!("stopped");
    Ok(())
}

/// A hub with its listeners, running.
pub(crate) struct Process {
    data: PathBuf,
    opened: OpenedHub,
    endpoints: Endpoints,
    gateway: Gateway,
    phase: watch::Sender<Phase>,
    admin: Option<AdminServer>,
    upkeep: JoinHandle<()>,
    refresh: JoinHandle<()>,
}

impl Process {
    /// Takes the data directory, opens the hub in it, and starts everything that listens.
    ///
    /// # Errors
    /// When something is missing that a hub needs. Nothing is left running then.
    pub(crate) async fn start(config: &Config, settings: &Settings) -> anyhow::Result<Self> {
        let hang_up = signals::hang_up()?;
        raise_descriptor_limit();
        files::prepare_data_directory(&config.data)?;
        let lock = DataLock::take(&config.data)?;
        // Whoever waits for these files must not find those of an earlier process.
        endpoints::remove(&config.data)?;
        files::remove(&config.data.join(admin::TOKEN_FILE))?;
        let inherited = Inherited::from_environment(config)?;
        let metrics = metrics::start()?;
        let trust = Trust::new(config);
        let ca_certificate = trust.ca_certificate();
        let refresher = Refresher::new(trust)?;
        let opened = opened::open(config, lock, Purpose::Serve).await?;
        tell_of_unused_seed(config, settings, &opened);

        let identity = refresher.identity();
        let listening = listen(
            config,
            &opened,
            inherited,
            &identity,
            ca_certificate,
            &metrics,
        );
        let listening = match listening {
            Ok(listening) => listening,
            Err(error) => {
                opened.close().await;
                return Err(error);
            }
        };
        let process = Self {
            data: config.data.clone(),
            opened,
            endpoints: listening.endpoints,
            gateway: listening.gateway,
            phase: listening.phase,
            admin: listening.admin,
            upkeep: tokio::spawn(metrics::keep_up(metrics)),
            refresh: tokio::spawn(refresher.run(hang_up)),
        };
        process.phase.send_replace(Phase::Running);
        if let Err(error) = process.endpoints.write(&config.data) {
            process.stop().await?;
            return Err(error).context("write endpoints.json");
        }
        tracing::info!(
            host_name = %config.host_name,
            data = %config.data.display(),
            test_mode = config.test_mode,
            "ready"
        );
        Ok(process)
    }

    /// Where the listeners are.
    pub(crate) fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// The hub.
    pub(crate) fn hub(&self) -> &Hub {
        &self.opened.hub
    }

    /// Stops accepting, lets sessions acknowledge what is in flight and say goodbye, and closes
    /// the store.
    ///
    /// # Errors
    /// When that takes too long; what hangs is then left to the end of the process.
    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        let stopped = tokio::time::timeout(STOP_TIME, self.stop_in_order()).await;
        stopped.with_context(|| {
            format!(
                "the hub did not stop within {STOP_TIME:?}; nothing that was acknowledged is lost"
            )
        })
    }

    async fn stop_in_order(self) {
        tracing::info!("stopping");
        self.phase.send_replace(Phase::Stopping);
        self.refresh.abort();
        if let Err(error) = endpoints::remove(&self.data) {
            tracing::warn!(%error, "endpoints.json could not be removed");
        }
        self.gateway.drain().await;
        self.upkeep.abort();
        if let Some(admin) = self.admin {
            // A long export, or a monitor that never lets go, is cut off.
            admin.stop(ADMIN_STOP_TIME).await;
        }
        if let Err(error) = files::remove(&self.data.join(admin::TOKEN_FILE)) {
            tracing::warn!(%error, "the admin token could not be removed");
        }
        self.opened.close().await;
    }
}

/// Allows as many connections as the system lets this process have: every one is a file
/// descriptor, and the usual soft limit of 1,024 is for programs that use `select`.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files could not be raised");
    }
}

/// What was started on the bound sockets.
struct Listening {
    endpoints: Endpoints,
    gateway: Gateway,
    phase: watch::Sender<Phase>,
    admin: Option<AdminServer>,
}

fn listen(
    config: &Config,
    opened: &OpenedHub,
    inherited: Inherited,
    identity: &TlsIdentity,
    ca_certificate: Option<PathBuf>,
    metrics: &PrometheusHandle,
) -> anyhow::Result<Listening> {
    let bound = bind(config, inherited)?;
    let endpoints = Endpoints::new(&config.host_name, ca_certificate, &bound);
    let mut gateway_listeners = Vec::new();
    let mut admin_socket = None;
    for listener in bound {
        match kind(listener.name) {
            Some(kind) => gateway_listeners.push(Listener {
                kind,
                socket: listener.socket,
            }),
            None => admin_socket = Some(listener.socket),
        }
    }
    let limits = GatewayLimits {
        incomplete_bytes_max: config.incomplete_packet_bytes,
        drain: DRAIN_TIME,
        ..GatewayLimits::default()
    };
    // Whatever can fail comes before devices are let in.
    let admin_socket = admin_socket.map(TcpListener::from_std).transpose()?;
    let token = make_token(config)?;
    let gateway = Gateway::start(opened.hub.clone(), gateway_listeners, identity, limits)?;

    let (phase, phase_seen) = watch::channel(Phase::Starting);
    let parts = AdminParts {
        hub: opened.hub.clone(),
        reach: Arc::new(reach(config, &endpoints)),
        movable_clock: config.test_mode.then(|| Arc::clone(&opened.clock)),
        changing_settings: Arc::default(),
    };
    let health = HealthView {
        hub: opened.hub.clone(),
        phase: phase_seen,
        metrics: metrics.clone(),
    };
    let admin = admin_socket
        .map(|socket| AdminServer::start(socket, admin::listener(parts, health, token)));
    Ok(Listening {
        endpoints,
        gateway,
        phase,
        admin,
    })
}

fn bind(config: &Config, inherited: Inherited) -> anyhow::Result<Vec<BoundListener>> {
    let (bound, missing) = listeners::bind(config, inherited);
    let mut needed = Vec::new();
    for error in missing {
        if error.name == ListenerName::Amqp && error.error.kind() == std::io::ErrorKind::AddrInUse {
            // Another AMQP broker on this machine must not keep the hub from starting.
            tracing::warn!("{error}; going on without it");
        } else if config.allow_missing_ports {
            tracing::warn!("{error}; going on without it, as run.allow_missing_ports says");
        } else {
            needed.push(error.to_string());
        }
    }
    if !needed.is_empty() {
        bail!("{}", needed.join("\n"));
    }
    Ok(bound)
}

/// Makes the bearer token of this run, for those who can read the data directory.
fn make_token(config: &Config) -> anyhow::Result<Secret> {
    let mut token = [0; 32];
    SystemChance::default().fill(&mut token);
    let token = Secret::new(URL_SAFE_NO_PAD.encode(token));
    files::replace(
        &config.data.join(admin::TOKEN_FILE),
        format!("{}\n", token.expose()).as_bytes(),
        files::PRIVATE,
    )
    .context("write the admin token")?;
    Ok(token)
}

fn reach(config: &Config, endpoints: &Endpoints) -> Reach {
    let amqps = endpoints.address(ListenerName::Amqps);
    Reach {
        host_name: config.host_name.clone(),
        amqps_port: amqps
            .map(|address| address.port())
            .filter(|port| *port != AMQPS_PORT),
        emulator: endpoints.address(ListenerName::Amqp),
    }
}

/// What the gateway speaks on a listener; `None` for the admin listener, which is ours.
fn kind(name: ListenerName) -> Option<ListenerKind> {
    match name {
        ListenerName::Mqtts => Some(ListenerKind::Mqtts),
        ListenerName::Amqps => Some(ListenerKind::Amqps),
        ListenerName::Https => Some(ListenerKind::Https),
        ListenerName::Amqp => Some(ListenerKind::Amqp),
        ListenerName::Mqtt => Some(ListenerKind::Mqtt),
        ListenerName::Http => Some(ListenerKind::Http),
        ListenerName::Admin => None,
    }
}

/// Says so when the configuration names hub settings that no longer come from it.
fn tell_of_unused_seed(config: &Config, settings: &Settings, opened: &OpenedHub) {
    let (seed, current) = (&config.seed, opened.hub.settings().get());
    let differing = [
        (
            "hub.retention_days",
            seed.retention_days != current.retention_days,
        ),
        (
            "hub.retention_bytes_max",
            seed.bytes_max != current.bytes_max,
        ),
        (
            "hub.at_retention_bytes_max",
            seed.at_bytes_max != current.at_bytes_max,
        ),
        (
            "hub.consumer_groups",
            seed.consumer_groups
                .iter()
                .any(|group| !current.consumer_groups.contains(group)),
        ),
    ];
    for (key, differs) in differing {
        if differs && settings.is_set(key) {
            tell_of_unused_key(key);
        }
    }
    if seed.cloud_to_device != current.cloud_to_device
        && settings.is_any_set("hub.cloud_to_device.")
    {
        tell_of_unused_key("hub.cloud_to_device");
    }
}

fn tell_of_unused_key(key: &str) {
    tracing::info!(
        key,
        "this key is only for the first start and differs from the hub's setting; change that with `fieldpost hub apply`"
    );
}
