//! Metrics in Prometheus form.

use std::time::Duration;

use fieldpost_hub::Hub;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// How often recorded histogram values are folded together, so that they do not pile up between
/// scrapes.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

const SECONDS_BUCKETS: [f64; 14] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0,
];

/// Starts recording. Once per process.
pub(crate) fn start() -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)?
        .install_recorder()?;
    describe();
    Ok(handle)
}

/// Folds recorded values until dropped.
pub(crate) async fn keep_up(handle: PrometheusHandle) {
    loop {
        tokio::time::sleep(UPKEEP_INTERVAL).await;
        handle.run_upkeep();
    }
}

/// Takes the figures that the hub counts itself into the metrics; called before each scrape.
pub(crate) fn read_hub(hub: &Hub) {
    let log = hub.figures();
    counter!("fieldpost_log_groups_total").absolute(log.groups);
    counter!("fieldpost_log_records_total").absolute(log.records);
    counter!("fieldpost_log_bytes_total").absolute(log.bytes);
    counter!("fieldpost_log_records_dropped_total").absolute(log.records_dropped);
    counter!("fieldpost_log_sync_microseconds_total").absolute(log.sync_micros);
    gauge!("fieldpost_log_disk_bytes").set(as_gauge(log.disk_bytes));
    gauge!("fieldpost_log_batches_waiting").set(as_gauge(log.batches_waiting));
    let devices = hub.registry().statistics();
    gauge!("fieldpost_devices", "status" => "enabled").set(as_gauge(devices.enabled));
    gauge!("fieldpost_devices", "status" => "disabled").set(as_gauge(devices.disabled));
    gauge!("fieldpost_devices_connected").set(as_gauge(hub.presence().connected_devices()));
    let health = hub.health().borrow().level;
    gauge!("fieldpost_store_health_level").set(f64::from(health as u8));
}

fn describe() {
    describe_counter!(
        "fieldpost_log_groups_total",
        "Groups of messages made durable."
    );
    describe_counter!("fieldpost_log_records_total", "Messages made durable.");
    describe_counter!(
        "fieldpost_log_bytes_total",
        "Bytes of messages made durable."
    );
    describe_counter!(
        "fieldpost_log_records_dropped_total",
        "Messages dropped by the byte bound before their retention was over."
    );
    describe_counter!(
        "fieldpost_log_sync_microseconds_total",
        "Time spent waiting for the disk to make groups durable."
    );
    describe_gauge!("fieldpost_log_disk_bytes", "Disk space of the event log.");
    describe_gauge!(
        "fieldpost_log_batches_waiting",
        "Batches waiting to be made durable."
    );
    describe_gauge!("fieldpost_devices", "Registered devices by status.");
    describe_gauge!("fieldpost_devices_connected", "Devices that are connected.");
    describe_gauge!(
        "fieldpost_store_health_level",
        "0: all is well, 1: messages are held back, 2: nothing is written, 3: read-only after a failure."
    );
}

#[expect(
    clippy::cast_precision_loss,
    reason = "Prometheus counts in floating point"
)]
fn as_gauge(value: u64) -> f64 {
    value as f64
}
