//! The REST routes of services and the HTTPS interface of devices, on the port that also carries WebSocket.

mod bulk;
pub(crate) mod call;
pub(crate) mod connection;
pub(crate) mod device_bound;
mod devices;
pub mod document;
mod feedback;
mod modules;
pub(crate) mod path;
pub(crate) mod refusal;
pub(crate) mod spelling;
mod telemetry;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use fieldpost_hub::Hub;
use tower::ServiceExt;

pub use devices::messages_after_change;

use crate::listen::limits::GatewayLimits;
use path::normalise;
use refusal::Refusal;

/// What every route may use.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) hub: Hub,
    pub(crate) limits: Arc<GatewayLimits>,
}

/// The routes of a hub. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Routes {
    api: Api,
    router: Router,
}

impl Routes {
    pub(crate) fn new(hub: Hub, limits: Arc<GatewayLimits>) -> Self {
        let api = Api { hub, limits };
        let router = Router::new()
            .route(
                "/devices",
                get(devices::list).post(bulk::apply).fallback(wrong_method),
            )
            .route(
                "/devices/{device}",
                put(devices::put)
                    .get(devices::get)
                    .delete(devices::delete)
                    .fallback(wrong_method),
            )
            .route(
                "/devices/{device}/commands",
                delete(devices::purge).fallback(wrong_method),
            )
            .route(
                "/devices/{device}/modules/{module}/commands",
                delete(devices::purge).fallback(wrong_method),
            )
            .merge(device_routes("/devices/{device}"))
            .merge(device_routes("/devices/{device}/modules/{module}"))
            .route(
                "/messages/servicebound/feedback",
                get(feedback::receive)
                    .head(wrong_method)
                    .fallback(wrong_method),
            )
            .route(
                "/messages/servicebound/feedback/{lock}",
                delete(feedback::complete).fallback(wrong_method),
            )
            .route(
                "/messages/servicebound/feedback/{lock}/abandon",
                post(feedback::abandon).fallback(wrong_method),
            )
            .route(
                "/devices/{device}/modules",
                get(modules::list).fallback(wrong_method),
            )
            .route(
                "/devices/{device}/modules/{module}",
                put(modules::put)
                    .get(modules::get)
                    .delete(modules::delete)
                    .fallback(wrong_method),
            )
            .route(
                "/statistics/devices",
                get(devices::device_statistics).fallback(wrong_method),
            )
            .route(
                "/statistics/service",
                get(devices::service_statistics).fallback(wrong_method),
            )
            .fallback(no_such_path)
            .with_state(api.clone());
        Self { api, router }
    }

    pub(crate) fn hub(&self) -> &Hub {
        &self.api.hub
    }

    /// Answers a request; refusals are answers as well.
    pub(crate) async fn answer(self, request: Request) -> Response {
        let answered = self.router.oneshot(normalise(request)).await;
        refusal::write(&self.api, answered.into_response())
    }

    /// The answer to a request that never reaches a route.
    pub(crate) fn refuse(&self, refused: Refusal) -> Response {
        refusal::write(&self.api, refused.into_response())
    }
}

/// What a device or module sends, and does with messages to it.
fn device_routes(identity: &str) -> Router<Api> {
    let messages = format!("{identity}/messages/devicebound");
    Router::new()
        .route(
            &format!("{identity}/messages/events"),
            post(telemetry::send).fallback(wrong_method),
        )
        .route(
            &messages,
            get(device_bound::receive)
                // It would lock a message that nobody sees.
                .head(wrong_method)
                .fallback(wrong_method),
        )
        .route(
            &format!("{messages}/{{lock}}"),
            delete(device_bound::complete_or_reject).fallback(wrong_method),
        )
        .route(
            &format!("{messages}/{{lock}}/abandon"),
            post(device_bound::abandon).fallback(wrong_method),
        )
}

async fn no_such_path() -> Refusal {
    Refusal::NoSuchPath
}

async fn wrong_method() -> Refusal {
    Refusal::MethodNotAllowed
}
