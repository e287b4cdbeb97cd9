//! The registry's REST routes, on the port that also carries WebSocket.

mod bulk;
mod call;
pub(crate) mod connection;
mod devices;
pub mod document;
pub(crate) mod refusal;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::Uri;
use axum::http::uri::PathAndQuery;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use fieldpost_hub::Hub;
use tower::ServiceExt;

use crate::listen::limits::GatewayLimits;
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
                "/devices/{device}/modules",
                get(devices::modules).fallback(wrong_method),
            )
            .route(
                "/devices/{device}/modules/{module}",
                get(devices::module).fallback(wrong_method),
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

async fn no_such_path() -> Refusal {
    Refusal::NoSuchPath
}

async fn wrong_method() -> Refusal {
    Refusal::MethodNotAllowed
}

/// Gives a request the one spelling of its path that the routes know.
fn normalise(mut request: Request) -> Request {
    let Some(path) = normalised_path(request.uri().path()) else {
        return request;
    };
    let path_and_query = match request.uri().query() {
        None => path,
        Some(query) => format!("{path}?{query}"),
    };
    if let Ok(path_and_query) = PathAndQuery::try_from(path_and_query) {
        let mut parts = request.uri().clone().into_parts();
        parts.path_and_query = Some(path_and_query);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
    request
}

/// `path` without empty segments and with its fixed words in lower case; `None` when it is so
/// already.
///
/// SDKs double slashes, end with one, and write fixed words in several cases. A segment behind
/// `devices` or `modules` is an id and stays as it is, escapes included.
fn normalised_path(path: &str) -> Option<String> {
    let mut normal = String::with_capacity(path.len());
    let mut id_follows = false;
    for (at, segment) in path.split('/').filter(|s| !s.is_empty()).enumerate() {
        normal.push('/');
        if id_follows {
            normal.push_str(segment);
            id_follows = false;
        } else {
            let start = normal.len();
            normal.push_str(segment);
            let word = normal.get_mut(start..).unwrap_or_default();
            word.make_ascii_lowercase();
            // `/statistics/devices` ends with that word and holds no id.
            id_follows = (at == 0 && word == "devices") || (at == 2 && word == "modules");
        }
    }
    if normal.is_empty() {
        normal.push('/');
    }
    (normal != path).then_some(normal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_get_one_spelling_and_ids_keep_theirs() {
        let check = |path: &str, normal: &str| {
            let changed = normalised_path(path);
            assert_eq!(changed.as_deref().unwrap_or(path), normal, "{path}");
        };
        check("/devices/dev1", "/devices/dev1");
        check("/devices/", "/devices");
        check("//Devices//Dev1/", "/devices/Dev1");
        check("/devices/DEVICES/Modules", "/devices/DEVICES/modules");
        check("/devices/A%2FB/modules//Mod%20/", "/devices/A%2FB/modules/Mod%20");
        check("/Statistics/Devices", "/statistics/devices");
        check("/", "/");
        check("", "/");
    }
}
