//! The admin API: what an operator's tools do with a hub.
//!
//! The same routes serve the listener of a running hub and the commands that open a store
//! themselves; only the listener has guards in front of them.

mod answer;
mod authorities;
mod c2d;
mod client;
mod connection_strings;
mod devices;
mod duration;
mod guard;
mod health;
mod members;
mod server;
mod settings;
mod testing;
mod transfer;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::{get, post};
use fieldpost_hub::Hub;
use fieldpost_hub::secrets::Secret;

pub(crate) use client::{AdminClient, NoStore};
pub(crate) use connection_strings::AMQPS_PORT;
pub(crate) use health::{HealthView, Phase};
pub(crate) use server::AdminServer;

use crate::clock::SystemClock;

/// The file in the data directory that holds the bearer token of the running hub.
pub(crate) const TOKEN_FILE: &str = "admin-token";

/// What the admin API works on.
#[derive(Clone)]
pub(crate) struct AdminParts {
    /// The hub.
    pub(crate) hub: Hub,
    /// How clients reach it.
    pub(crate) reach: Arc<Reach>,
    /// The clock, when tests may move it.
    pub(crate) movable_clock: Option<Arc<SystemClock>>,
    /// Held across a change of the hub's settings; nothing else is taken while it is held.
    pub(crate) changing_settings: Arc<tokio::sync::Mutex<()>>,
}

/// How clients reach a hub, for connection strings.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    /// The hub's configured name.
    pub(crate) host_name: String,
    /// The port of AMQP over TLS, unless it is the standard one.
    pub(crate) amqps_port: Option<u16>,
    /// The plain listener for Event Hubs clients on this machine, when there is one.
    pub(crate) emulator: Option<SocketAddr>,
}

/// The routes of the admin API, for whoever may already do everything.
pub(crate) fn routes(parts: AdminParts) -> Router {
    let mut routes = Router::new()
        .route("/api/devices", get(devices::list))
        .route("/api/registry/statistics", get(devices::statistics))
        .route("/api/registry/import", post(transfer::import))
        .route("/api/registry/export", get(transfer::export))
        .route(
            "/api/devices/{device}",
            get(devices::show).put(devices::put).delete(devices::delete),
        )
        .route("/api/hub", get(settings::show).put(settings::apply))
        .route("/api/ca", get(authorities::list))
        .route(
            "/api/ca/{name}",
            get(authorities::show)
                .put(authorities::add)
                .delete(authorities::remove),
        )
        .route("/api/ca/{name}/challenge", post(authorities::challenge))
        .route("/api/ca/{name}/verify", post(authorities::verify))
        .route("/api/connection-string", get(connection_strings::show))
        .route("/api/c2d/devices/{device}/messages", get(c2d::list))
        .route("/api/c2d/devices/{device}/trace", get(c2d::trace))
        .route("/api/c2d/devices/{device}/purge", post(c2d::purge))
        .route("/api/c2d/dead-letters", get(c2d::dead_letters))
        .route(
            "/api/c2d/dead-letters/{number}",
            get(c2d::show_dead_letter).delete(c2d::delete_dead_letter),
        )
        .route("/api/c2d/dead-letters/{number}/requeue", post(c2d::requeue));
    if parts.movable_clock.is_some() {
        routes = routes
            .route("/api/test/clock", post(testing::advance))
            .route("/api/test/connections/cut", post(testing::cut));
    }
    if parts.hub.probe().is_some() {
        routes = routes
            .route("/api/test/devices/{device}/sent", get(testing::sent))
            .route(
                "/api/test/acknowledgements",
                post(testing::acknowledgements),
            );
    }
    routes
        .fallback(|| async {
            answer::problem(
                StatusCode::NOT_FOUND,
                "NotFound",
                "there is nothing under this path",
            )
        })
        .method_not_allowed_fallback(|| async {
            answer::problem(
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                "this path does not take this method",
            )
        })
        .with_state(parts)
}

/// The whole admin listener: health and metrics for everybody, the rest behind guards.
pub(crate) fn listener(parts: AdminParts, health: HealthView, token: Secret) -> Router {
    let guarded = routes(parts).layer(axum::middleware::from_fn_with_state(token, guard::check));
    health::routes(health).merge(guarded)
}

/// Parts of a hub on the memory engine, and its clock.
#[cfg(test)]
pub(crate) async fn testing_parts() -> (AdminParts, Arc<fieldpost_hub::clock::ManualClock>) {
    let (parts, clock, _) = testing_parts_and_store().await;
    (parts, clock)
}

/// The same with the store that the hub is on.
#[cfg(test)]
pub(crate) async fn testing_parts_and_store() -> (
    AdminParts,
    Arc<fieldpost_hub::clock::ManualClock>,
    fieldpost_store::memory::MemoryStore,
) {
    use fieldpost_hub::clock::{ManualClock, SeededChance};
    use fieldpost_hub::secrets::Keyring;
    use fieldpost_hub::{HubConfig, HubParts};
    use fieldpost_model::{Partitioning, Timestamp};
    use fieldpost_store::memory::MemoryStore;

    let clock = Arc::new(ManualClock::new(Timestamp::UNIX_EPOCH));
    let partitioning = Partitioning::new(4).unwrap();
    let store = MemoryStore::automatic(partitioning, Arc::clone(&clock) as _);
    let hub = Hub::open(HubParts {
        store: store.store(),
        timer: Arc::clone(&clock) as _,
        chance: Arc::new(SeededChance::new(1)),
        keyring: Keyring::new(1, [7; 32]),
        config: HubConfig::default(),
    });
    let parts = AdminParts {
        hub: hub.await.unwrap(),
        reach: Arc::new(Reach {
            host_name: "localhost".to_owned(),
            amqps_port: None,
            emulator: None,
        }),
        movable_clock: None,
        changing_settings: Arc::default(),
    };
    (parts, clock, store)
}
