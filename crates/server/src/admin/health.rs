//! Health and metrics, open to every local monitor.

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use fieldpost_hub::Hub;
use fieldpost_store::HealthLevel;
use metrics_exporter_prometheus::PrometheusHandle;
use serde_json::json;
use tokio::sync::watch;

use crate::metrics;

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Not everything is up yet.
    Starting,
    /// Everything is up.
    Running,
    /// Connections are being ended.
    Stopping,
}

/// What health and metrics are read from.
#[derive(Clone)]
pub(crate) struct HealthView {
    /// The hub.
    pub(crate) hub: Hub,
    /// Where the process is in its life.
    pub(crate) phase: watch::Receiver<Phase>,
    /// The metrics recorded so far.
    pub(crate) metrics: PrometheusHandle,
}

pub(super) fn routes(view: HealthView) -> Router {
    Router::new()
        .route("/health/live", get(async || Json(json!({"live": true}))))
        .route("/health/ready", get(ready))
        .route("/metrics", get(scrape))
        .with_state(view)
}

async fn ready(State(view): State<HealthView>) -> Response {
    match reason_against(&view) {
        None => Json(json!({"ready": true})).into_response(),
        Some(reason) => {
            let body = json!({"ready": false, "reason": reason});
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
    }
}

fn reason_against(view: &HealthView) -> Option<String> {
    match *view.phase.borrow() {
        Phase::Starting => return Some("the hub is starting".to_owned()),
        Phase::Stopping => return Some("the hub is stopping".to_owned()),
        Phase::Running => {}
    }
    if let Some(failure) = &*view.hub.failed().borrow() {
        return Some(format!("{failure}; the hub has to be started anew"));
    }
    let health = view.hub.health().borrow().clone();
    let state = match health.level {
        HealthLevel::Ok => return None,
        HealthLevel::HoldMessages => "messages are held back",
        HealthLevel::HoldAll => "nothing is written",
        HealthLevel::ReadOnly => "the store is read-only until the hub is started anew",
    };
    Some(match health.reason {
        Some(reason) => format!("{state}: {reason}"),
        None => state.to_owned(),
    })
}

async fn scrape(State(view): State<HealthView>) -> impl IntoResponse {
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        metrics::render(&view.metrics, &view.hub),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fieldpost_hub::clock::{ManualClock, SeededChance};
    use fieldpost_hub::secrets::Keyring;
    use fieldpost_hub::{HubConfig, HubParts};
    use fieldpost_model::{Partitioning, Timestamp};
    use fieldpost_store::Health;
    use fieldpost_store::memory::MemoryStore;
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[tokio::test]
    async fn a_hub_is_ready_while_it_runs_and_its_store_takes_messages() {
        let clock = Arc::new(ManualClock::new(Timestamp::UNIX_EPOCH));
        let partitioning = Partitioning::new(4).unwrap();
        let store = MemoryStore::automatic(partitioning, Arc::clone(&clock) as _);
        let hub = Hub::open(HubParts {
            store: store.store(),
            timer: clock,
            chance: Arc::new(SeededChance::new(1)),
            keyring: Keyring::new(1, [7; 32]),
            config: HubConfig::default(),
        });
        let hub = hub.await.unwrap();
        let (phase, phase_seen) = watch::channel(Phase::Starting);
        let view = HealthView {
            hub,
            phase: phase_seen,
            metrics: PrometheusBuilder::new().build_recorder().handle(),
        };
        let check = async |expected: Option<&str>| {
            assert_eq!(reason_against(&view).as_deref(), expected);
            let status = ready(State(view.clone())).await.status();
            assert_eq!(status == StatusCode::OK, expected.is_none());
        };
        check(Some("the hub is starting")).await;
        phase.send_replace(Phase::Running);
        check(None).await;
        for (level, expected) in [
            (HealthLevel::HoldMessages, "messages are held back: disk"),
            (HealthLevel::HoldAll, "nothing is written: disk"),
            (
                HealthLevel::ReadOnly,
                "the store is read-only until the hub is started anew: disk",
            ),
        ] {
            store.log.set_health(Health {
                level,
                reason: Some("disk".into()),
            });
            check(Some(expected)).await;
        }
        store.log.set_health(Health::OK);
        check(None).await;
        store.queues.panic_next();
        let received = view.hub.c2d().feedback().receive_one().await;
        assert!(received.is_err(), "{received:?}");
        let failed = "an owner of queues failed; the hub has to be started anew";
        check(Some(failed)).await;
        phase.send_replace(Phase::Stopping);
        check(Some("the hub is stopping")).await;
    }
}
