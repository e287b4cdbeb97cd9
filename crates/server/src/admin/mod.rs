//! The admin API: what an operator's tools do with a hub.
//!
//! The same routes serve the listener of a running hub and the commands that open a store
//! themselves; only the listener has guards in front of them.

mod answer;
mod client;
mod connection_strings;
mod devices;
mod guard;
mod health;
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
        .route("/api/connection-string", get(connection_strings::show));
    if parts.movable_clock.is_some() {
        routes = routes
            .route("/api/test/clock", post(testing::advance))
            .route("/api/test/connections/cut", post(testing::cut));
    }
    routes
        .fallback(|| async {
            answer::problem(
                StatusCode::NOT_FOUND,
                "NotFound",
                "there is nothing under this path",
            )
        })
        .with_state(parts)
}

/// The whole admin listener: health and metrics for everybody, the rest behind guards.
pub(crate) fn listener(parts: AdminParts, health: HealthView, token: Secret) -> Router {
    let guarded = routes(parts).layer(axum::middleware::from_fn_with_state(token, guard::check));
    health::routes(health).merge(guarded)
}
