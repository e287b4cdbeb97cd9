//! Metrics in Prometheus form.

use std::fmt::Write as _;
use std::time::Duration;

use fieldpost_hub::Hub;
use metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

const LOG_SYNC: &str = "fieldpost_log_sync_seconds_total";

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

/// All metrics in Prometheus form, with the figures that the hub counts itself.
pub(crate) fn render(handle: &PrometheusHandle, hub: &Hub) -> String {
    read_hub(hub);
    let mut text = handle.render();
    let about = METRICS.iter().find(|metric| metric.name == LOG_SYNC);
    fractional_counter(
        &mut text,
        LOG_SYNC,
        about.map_or("", |metric| metric.about),
        Duration::from_micros(hub.figures().sync_micros),
    );
    text
}

/// Adds a counter of seconds. The recorder's own counters are whole numbers.
fn fractional_counter(text: &mut String, name: &str, help: &str, value: Duration) {
    let seconds = value.as_secs_f64();
    // A text takes everything.
    let _ = writeln!(
        text,
        "# HELP {name} {help}\n# TYPE {name} counter\n{name} {seconds}\n"
    );
}

fn read_hub(hub: &Hub) {
    let log = hub.figures();
    counter!("fieldpost_log_groups_total").absolute(log.groups);
    counter!("fieldpost_log_records_total").absolute(log.records);
    counter!("fieldpost_log_bytes_total").absolute(log.bytes);
    counter!("fieldpost_log_records_dropped_total").absolute(log.records_dropped);
    gauge!("fieldpost_log_disk_bytes").set(as_gauge(log.disk_bytes));
    gauge!("fieldpost_log_batches_waiting").set(as_gauge(log.batches_waiting));
    let outcomes = hub.c2d().figures();
    gauge!("fieldpost_c2d_held_bytes").set(as_gauge(outcomes.held_bytes as u64));
    gauge!("fieldpost_dead_letters").set(as_gauge(outcomes.dead_letters.count));
    gauge!("fieldpost_dead_letters_bytes").set(as_gauge(outcomes.dead_letters.bytes));
    gauge!("fieldpost_history_messages").set(as_gauge(outcomes.history.count));
    gauge!("fieldpost_history_bytes").set(as_gauge(outcomes.history.bytes));
    gauge!("fieldpost_feedback_records_owed").set(as_gauge(outcomes.feedback_owed.count));
    let devices = hub.registry().statistics();
    gauge!("fieldpost_devices", "status" => "enabled").set(as_gauge(devices.enabled));
    gauge!("fieldpost_devices", "status" => "disabled").set(as_gauge(devices.disabled));
    gauge!("fieldpost_devices_connected").set(as_gauge(hub.presence().connected_devices()));
    let health = hub.health().borrow().level;
    gauge!("fieldpost_store_health_level").set(f64::from(health as u8));
}

/// A metric: what is counted, and by which labels.
struct Metric {
    name: &'static str,
    kind: Kind,
    about: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
}

const fn counter(name: &'static str, about: &'static str) -> Metric {
    Metric {
        name,
        kind: Kind::Counter,
        about,
    }
}

const fn gauge(name: &'static str, about: &'static str) -> Metric {
    Metric {
        name,
        kind: Kind::Gauge,
        about,
    }
}

/// Every metric of every part, in the order of the documentation.
static METRICS: &[Metric] = &[
    gauge(
        "fieldpost_connections_open",
        "Connections that are open, by protocol and transport.",
    ),
    counter(
        "fieldpost_connections_total",
        "Connections accepted, by protocol and transport.",
    ),
    counter(
        "fieldpost_connections_refused_total",
        "Connections turned away or closed for what their peer did, by protocol and reason.",
    ),
    counter(
        "fieldpost_authentication_failures_total",
        "Sign-ins refused, by reason.",
    ),
    counter(
        "fieldpost_throttle_delayed_total",
        "Operations that had to wait for their turn among the tier's throttles, by operation.",
    ),
    counter(
        "fieldpost_throttle_refused_total",
        "Operations that were refused because too many waited for their turn, by operation.",
    ),
    counter(
        "fieldpost_quota_refused_total",
        "Messages that were refused because the tier's daily quota was used up.",
    ),
    counter(
        "fieldpost_authentications_slowed_total",
        "Sign-ins slowed after too many failures, by outcome: waited, or refused without a look.",
    ),
    counter(
        "fieldpost_evictions_total",
        "Sessions ended by the hub, by reason.",
    ),
    counter(
        "fieldpost_take_overs_forced_total",
        "Sessions that did not let go in time when their device connected anew.",
    ),
    gauge("fieldpost_devices", "Registered devices by status."),
    gauge("fieldpost_devices_connected", "Devices that are connected."),
    counter(
        "fieldpost_messages_accepted_total",
        "Messages of devices taken in, by protocol.",
    ),
    counter(
        "fieldpost_message_bytes_total",
        "Bytes of their bodies, by protocol.",
    ),
    counter(
        "fieldpost_messages_durable_total",
        "Messages of devices that are durable.",
    ),
    counter(
        "fieldpost_message_bytes_durable_total",
        "Bytes of these messages.",
    ),
    counter(
        "fieldpost_wills_dropped_total",
        "Wills for which the hub had no room.",
    ),
    counter(
        "fieldpost_log_groups_total",
        "Groups of messages made durable.",
    ),
    counter("fieldpost_log_records_total", "Messages made durable."),
    counter(
        "fieldpost_log_bytes_total",
        "Bytes of messages made durable.",
    ),
    counter(
        "fieldpost_log_records_dropped_total",
        "Messages dropped by the byte bound before their retention was over.",
    ),
    counter(
        LOG_SYNC,
        "Time spent waiting for the disk to make groups durable.",
    ),
    gauge("fieldpost_log_disk_bytes", "Disk space of the event log."),
    gauge(
        "fieldpost_log_batches_waiting",
        "Batches waiting to be made durable.",
    ),
    gauge(
        "fieldpost_event_receivers_open",
        "Readers of the Event Hubs-compatible endpoint.",
    ),
    counter(
        "fieldpost_events_delivered_total",
        "Events written to readers.",
    ),
    counter(
        "fieldpost_event_bytes_delivered_total",
        "Bytes of these events.",
    ),
    counter(
        "fieldpost_links_refused_total",
        "AMQP links refused, by reason.",
    ),
    gauge(
        "fieldpost_c2d_sender_links_open",
        "Links of services that send messages to devices.",
    ),
    gauge(
        "fieldpost_c2d_feedback_links_open",
        "Links of services that receive feedback.",
    ),
    gauge(
        "fieldpost_c2d_receiver_links_open",
        "Links of devices that receive their messages over AMQP.",
    ),
    gauge(
        "fieldpost_telemetry_links_open",
        "Links of devices that send over AMQP.",
    ),
    counter(
        "fieldpost_messages_refused_total",
        "Messages of devices refused over AMQP: too large, or not readable.",
    ),
    counter(
        "fieldpost_c2d_messages_total",
        "Messages to devices that services sent, by outcome: accepted, or why not.",
    ),
    counter(
        "fieldpost_queue_messages_settled_total",
        "Messages that left a queue (device or feedback), by cause.",
    ),
    counter(
        "fieldpost_c2d_unmatched_total",
        "Rejects and abandons over MQTT that named no delivery of their connection.",
    ),
    counter(
        "fieldpost_damaged_rows_total",
        "Damaged rows that were met and stepped over, by kind: message or outcome.",
    ),
    gauge(
        "fieldpost_c2d_held_bytes",
        "Bytes of messages to devices that are in memory, read ahead or in flight.",
    ),
    gauge("fieldpost_dead_letters", "Dead letters that are kept."),
    gauge("fieldpost_dead_letters_bytes", "Bytes of dead letters."),
    counter(
        "fieldpost_dead_letters_requeued_total",
        "Dead letters sent anew.",
    ),
    counter(
        "fieldpost_outcomes_trimmed_total",
        "Dead letters and lines of history that went by age or size, by kind.",
    ),
    gauge(
        "fieldpost_history_messages",
        "Completed messages that are remembered.",
    ),
    gauge("fieldpost_history_bytes", "Bytes of their records."),
    gauge(
        "fieldpost_feedback_records_owed",
        "Feedback records that wait for their feedback message.",
    ),
    counter(
        "fieldpost_feedback_records_total",
        "Feedback records, by what became of them.",
    ),
    counter(
        "fieldpost_feedback_messages_total",
        "Feedback messages put into the feedback queue.",
    ),
    counter(
        "fieldpost_feedback_messages_unreadable_total",
        "Damaged feedback messages that were taken out of the feedback queue.",
    ),
    gauge(
        "fieldpost_store_health_level",
        "0: all is well, 1: messages are held back, 2: nothing is written, 3: read-only after a failure.",
    ),
];

fn describe() {
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, metric.about),
            Kind::Gauge => describe_gauge!(metric.name, metric.about),
        }
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "Prometheus counts in floating point"
)]
fn as_gauge(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn counters_of_time_are_in_seconds() {
        let mut text = String::new();
        fractional_counter(
            &mut text,
            "x_seconds_total",
            "Time.",
            Duration::from_millis(1500),
        );
        let expected =
            "# HELP x_seconds_total Time.\n# TYPE x_seconds_total counter\nx_seconds_total 1.5\n\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn names_say_what_is_counted_in_base_units() {
        for metric in METRICS {
            let is_counter = metric.kind == Kind::Counter;
            assert_eq!(
                metric.name.ends_with("_total"),
                is_counter,
                "{}",
                metric.name
            );
            for unit in ["millis", "micro", "nano", "_ms", "kib", "minutes"] {
                assert!(!metric.name.contains(unit), "{}", metric.name);
            }
        }
    }

    #[test]
    fn the_documentation_names_every_metric_and_its_meaning() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operations.md");
        let text = std::fs::read_to_string(page).expect("docs/operations.md is readable");
        let documented: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("| `fieldpost_"))
            .collect();
        let real: Vec<_> = METRICS
            .iter()
            .map(|metric| format!("| `{}` | {} |", metric.name, metric.about))
            .collect();
        assert_eq!(documented, real);
    }

    /// A metric of another part that is not in the table would be scraped without a word about it.
    #[test]
    fn the_table_names_the_metrics_of_every_part() {
        let crates = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
        let mut used = BTreeSet::new();
        for part in ["gateway", "hub", "server", "store-embedded"] {
            collect(&Path::new(crates).join(part).join("src"), &mut used);
        }
        let known: BTreeSet<_> = METRICS.iter().map(|m| m.name.to_owned()).collect();
        assert_eq!(used, known);
    }

    fn collect(folder: &Path, used: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, used);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                // The table itself uses none of them.
                let text = text.split("static METRICS").next().unwrap();
                for (at, _) in text.match_indices("\"fieldpost_") {
                    let name = &text[at + 1..];
                    let end = name.find('"').unwrap();
                    // Filters of log lines name crates in the same way.
                    if let name = &name[..end]
                        && !name.ends_with('_')
                        && name
                            .bytes()
                            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
                    {
                        used.insert(name.to_owned());
                    }
                }
            }
        }
    }
}
