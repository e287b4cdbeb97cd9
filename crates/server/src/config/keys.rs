//! Every key of the configuration, with its kind, default and meaning.
//!
//! This table is the only place that knows the file's keys: the loader, the environment,
//! `config print` and the check of the documentation all read it.

/// One key of the configuration.
#[derive(Debug)]
pub(crate) struct Key {
    /// Dotted path, as in the file.
    pub(crate) path: &'static str,
    /// What values it takes.
    pub(crate) kind: Kind,
    /// The default, written as TOML.
    pub(crate) default: &'static str,
    /// What it means, one sentence.
    pub(crate) about: &'static str,
}

/// What values a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `true` or `false`.
    Bool,
    /// A whole number between two bounds, both included.
    Integer {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
    },
    /// A number of bytes: an integer, or a text such as `"256 MiB"`.
    Bytes {
        /// The smallest.
        min: u64,
        /// The largest.
        max: u64,
    },
    /// A span of time in whole seconds: a text such as `"90 s"` or `"1 h"`.
    Span {
        /// The shortest, in seconds.
        min: u64,
        /// The longest, in seconds.
        max: u64,
    },
    /// Any text.
    Text,
    /// One of these texts.
    Choice(&'static [&'static str]),
    /// An IP address, or `*` for all interfaces.
    Address,
    /// A path of a file or folder; empty for none.
    Path,
    /// A list of texts.
    Texts,
}

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;
const TIB: u64 = 1024 * GIB;

const MINUTE: u64 = 60;
const DAY: u64 = 24 * 60 * MINUTE;

const PORT: Kind = Kind::Integer {
    min: 0,
    max: u16::MAX as u64,
};

macro_rules! listener_keys {
    ($name:literal, $enabled:literal, $address:literal, $port:literal, $about:literal) => {
        [
            Key {
                path: concat!("listeners.", $name, ".enabled"),
                kind: Kind::Bool,
                default: $enabled,
                about: concat!("Whether to listen: ", $about, "."),
            },
            Key {
                path: concat!("listeners.", $name, ".address"),
                kind: Kind::Address,
                default: concat!("\"", $address, "\""),
                about: "The IP address to listen on; `*` means all interfaces, IPv4 and IPv6.",
            },
            Key {
                path: concat!("listeners.", $name, ".port"),
                kind: PORT,
                default: $port,
                about: "The TCP port; 0 takes any free one, which `endpoints.json` then names.",
            },
        ]
    };
}

static GENERAL: [Key; 4] = [
    Key {
        path: "data",
        kind: Kind::Path,
        default: r#""./fieldpost-data""#,
        about: "The data directory: store, keys, certificates. Only its owner may read it.",
    },
    Key {
        path: "host_name",
        kind: Kind::Text,
        default: r#""localhost""#,
        about: "The name by which clients reach this hub: stands in connection strings and in the server certificate.",
    },
    Key {
        path: "additional_host_names",
        kind: Kind::Texts,
        default: "[]",
        about: "More host names or IP addresses of this hub, accepted wherever a client names it and put into the certificate.",
    },
    Key {
        path: "hub_name",
        kind: Kind::Text,
        default: r#""hub""#,
        about: "The name of the hub, which is also the entity name of its Event Hubs endpoint.",
    },
];

static REST: [Key; 34] = [
    Key {
        path: "tls.certificate",
        kind: Kind::Path,
        default: r#""""#,
        about: "A server certificate chain (PEM) of your own, instead of the one that the hub makes. Reloaded when it changes.",
    },
    Key {
        path: "tls.private_key",
        kind: Kind::Path,
        default: r#""""#,
        about: "The private key (PEM) of `tls.certificate`.",
    },
    Key {
        path: "tls.ca_certificate",
        kind: Kind::Path,
        default: r#""""#,
        about: "The CA certificate (PEM) that clients should trust when `tls.certificate` is set. Only shown to users; empty when every client trusts it already.",
    },
    Key {
        path: "store.key_file",
        kind: Kind::Path,
        default: r#""""#,
        about: "Where the 32-byte key lies that encrypts device and policy keys in the store; empty for `key` in the data directory. Made on first start.",
    },
    Key {
        path: "store.segment_bytes",
        kind: Kind::Bytes {
            min: MIB,
            max: 4 * GIB - MIB,
        },
        default: r#""256 MiB""#,
        about: "The size to which segments of the event log grow; the first ones are smaller.",
    },
    Key {
        path: "store.recent_bytes",
        kind: Kind::Bytes {
            min: MIB,
            max: 64 * GIB,
        },
        default: r#""64 MiB""#,
        about: "Memory for the newest events, from which readers that keep up are served.",
    },
    Key {
        path: "store.hold_messages_below_bytes",
        kind: Kind::Bytes { min: 0, max: TIB },
        default: "0",
        about: "With less free disk than this, messages are held back; registry and settings still change. 0: 512 MiB, or a twentieth of the disk when that is less.",
    },
    Key {
        path: "store.hold_all_below_bytes",
        kind: Kind::Bytes { min: 0, max: TIB },
        default: "0",
        about: "With less free disk than this, nothing is written until there is space again. 0: 128 MiB, or a quarter of the first mark when that is less.",
    },
    Key {
        path: "limits.in_flight_bytes",
        kind: Kind::Bytes {
            min: MIB,
            max: 64 * GIB,
        },
        default: r#""256 MiB""#,
        about: "Memory for messages that are received and not yet durable; when it is used up, devices wait their turn.",
    },
    Key {
        path: "limits.device_bound_bytes",
        kind: Kind::Bytes {
            min: MIB,
            max: 64 * GIB,
        },
        default: r#""256 MiB""#,
        about: "Memory for messages to devices that are read ahead or in flight; when it is used up, each device gets one at a time.",
    },
    Key {
        path: "limits.incomplete_packet_bytes",
        kind: Kind::Bytes {
            min: MIB,
            max: 64 * GIB,
        },
        default: r#""64 MiB""#,
        about: "Memory for packets of which only a part has come; when it is used up, the connection that has been incomplete for longest is closed.",
    },
    Key {
        path: "log.format",
        kind: Kind::Choice(&["text", "json"]),
        default: r#""text""#,
        about: "How log lines on standard error look.",
    },
    Key {
        path: "log.level",
        kind: Kind::Text,
        default: r#""info""#,
        about: "The least level logged: `error`, `warn`, `info`, `debug`, `trace`, or a list such as `info,fieldpost_gateway=debug`.",
    },
    Key {
        path: "hub.partition_count",
        kind: Kind::Integer { min: 1, max: 128 },
        default: "4",
        about: "Partitions of the built-in endpoint. Fixed when the store is created.",
    },
    Key {
        path: "hub.retention_days",
        kind: Kind::Integer { min: 1, max: 7 },
        default: "1",
        about: "How many days events are kept at least. Only for the first start; later `fieldpost hub apply`.",
    },
    Key {
        path: "hub.retention_bytes_max",
        kind: Kind::Bytes {
            min: 0,
            max: 1024 * TIB,
        },
        default: "0",
        about: "A bound on the disk space of the event log; 0 for none. Only for the first start.",
    },
    Key {
        path: "hub.at_retention_bytes_max",
        kind: Kind::Choice(&["hold", "drop-oldest"]),
        default: r#""hold""#,
        about: "What happens at `hub.retention_bytes_max`: senders are held back, or the oldest events go. Only for the first start.",
    },
    Key {
        path: "hub.consumer_groups",
        kind: Kind::Texts,
        default: "[]",
        about: "Consumer groups besides `$Default`. Only for the first start.",
    },
    Key {
        path: "hub.cloud_to_device.max_delivery_count",
        kind: Kind::Integer { min: 1, max: 100 },
        default: "10",
        about: "Counted deliveries after which a message to a device is dead-lettered.",
    },
    Key {
        path: "hub.cloud_to_device.default_ttl",
        kind: Kind::Span {
            min: MINUTE,
            max: 2 * DAY,
        },
        default: r#""1 h""#,
        about: "How long a message to a device lives whose sender set no expiry.",
    },
    Key {
        path: "hub.cloud_to_device.delivery_count_mode",
        kind: Kind::Choice(&["abandon", "every-lock"]),
        default: r#""abandon""#,
        about: "Which deliveries count: those that the device abandons, or those whose lock expires as well.",
    },
    Key {
        path: "hub.cloud_to_device.max_queue_depth",
        kind: Kind::Integer {
            min: 1,
            max: 10_000,
        },
        default: "50",
        about: "Messages in the queue of one device, locked ones included; more are refused.",
    },
    Key {
        path: "hub.cloud_to_device.feedback.lock",
        kind: Kind::Span {
            min: 5,
            max: 5 * MINUTE,
        },
        default: r#""1 min""#,
        about: "How long a back end holds a feedback message before another one gets it.",
    },
    Key {
        path: "hub.cloud_to_device.feedback.ttl",
        kind: Kind::Span {
            min: MINUTE,
            max: 2 * DAY,
        },
        default: r#""1 h""#,
        about: "How long a feedback message waits for a back end.",
    },
    Key {
        path: "hub.cloud_to_device.feedback.max_delivery_count",
        kind: Kind::Integer { min: 1, max: 100 },
        default: "10",
        about: "Counted deliveries after which a feedback message is dropped.",
    },
    Key {
        path: "hub.cloud_to_device.dead_letters.retention",
        kind: Kind::Span {
            min: 0,
            max: 365 * DAY,
        },
        default: r#""7 d""#,
        about: "How long dead letters are kept; 0 for none.",
    },
    Key {
        path: "hub.cloud_to_device.dead_letters.max_bytes",
        kind: Kind::Bytes {
            min: 0,
            max: 1024 * TIB,
        },
        default: r#""1 GiB""#,
        about: "Bytes of all dead letters; the oldest go first.",
    },
    Key {
        path: "hub.cloud_to_device.history.enabled",
        kind: Kind::Bool,
        default: "true",
        about: "Whether the hub remembers what became of completed messages.",
    },
    Key {
        path: "hub.cloud_to_device.history.max_messages",
        kind: Kind::Integer {
            min: 1,
            max: 100_000_000,
        },
        default: "1000000",
        about: "Completed messages remembered; the oldest go first.",
    },
    Key {
        path: "hub.cloud_to_device.history.max_bytes",
        kind: Kind::Bytes {
            min: 1,
            max: 1024 * TIB,
        },
        default: r#""256 MiB""#,
        about: "Bytes of their records.",
    },
    Key {
        path: "hub.throttling.tier",
        kind: Kind::Choice(&["none", "F1", "S1", "S2", "S3"]),
        default: r#""none""#,
        about: "The tier of Azure IoT Hub whose throttles and daily quota hold; none: no limits. Only for the first start.",
    },
    Key {
        path: "hub.throttling.units",
        kind: Kind::Integer { min: 1, max: 200 },
        default: "1",
        about: "Units of that tier; F1 has one, S3 at most 10. Only for the first start.",
    },
    Key {
        path: "run.test_mode",
        kind: Kind::Bool,
        default: "false",
        about: "Marks the store as a test store for good, listens on loopback only and lets the admin API move the clock.",
    },
    Key {
        path: "run.allow_missing_ports",
        kind: Kind::Bool,
        default: "false",
        about: "Goes on when a port cannot be had, without that listener.",
    },
];

static MQTTS: [Key; 3] = listener_keys!("mqtts", "true", "*", "8883", "MQTT over TLS, for devices");
static AMQPS: [Key; 3] = listener_keys!(
    "amqps",
    "true",
    "*",
    "5671",
    "AMQP over TLS, for devices, services and Event Hubs clients"
);
static HTTPS: [Key; 3] = listener_keys!(
    "https",
    "true",
    "*",
    "443",
    "the REST API, and MQTT and AMQP over WebSocket"
);
static AMQP: [Key; 3] = listener_keys!(
    "amqp",
    "true",
    "127.0.0.1",
    "5672",
    "plain AMQP for Event Hubs clients with `UseDevelopmentEmulator=true`; skipped when the port is taken"
);
static ADMIN: [Key; 3] = listener_keys!(
    "admin",
    "true",
    "127.0.0.1",
    "9640",
    "health, metrics and the admin API; a loopback address only"
);
static MQTT: [Key; 3] = listener_keys!(
    "mqtt",
    "false",
    "127.0.0.1",
    "1883",
    "plain MQTT behind a proxy that ends TLS"
);
static HTTP: [Key; 3] = listener_keys!(
    "http",
    "false",
    "127.0.0.1",
    "80",
    "plain HTTP and WebSocket behind a proxy that ends TLS"
);

/// All keys, in the order in which they are shown.
pub(crate) fn keys() -> impl Iterator<Item = &'static Key> {
    let listeners = [&MQTTS, &AMQPS, &HTTPS, &AMQP, &ADMIN, &MQTT, &HTTP];
    GENERAL
        .iter()
        .chain(listeners.into_iter().flatten())
        .chain(&REST)
}

/// The key with this path.
pub(crate) fn key(path: &str) -> Option<&'static Key> {
    keys().find(|key| key.path == path)
}

/// The known path that `path` most resembles, if any is near enough to be meant.
pub(crate) fn nearest(path: &str) -> Option<&'static str> {
    keys()
        .map(|key| {
            (
                strsim::normalized_damerau_levenshtein(path, key.path),
                key.path,
            )
        })
        // A last part put under the wrong table is as likely as a slip of the finger.
        .chain(keys().filter_map(|key| {
            let (_, last) = key.path.rsplit_once('.')?;
            let given = path.rsplit('.').next()?;
            (given == last && given != "enabled" && given != "address" && given != "port")
                .then_some((0.6, key.path))
        }))
        .filter(|(likeness, _)| *likeness >= 0.55)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, path)| path)
}

/// The environment variable of a key: `FIELDPOST_`, then the path in capitals with `__` for dots.
pub(crate) fn variable(key: &Key) -> String {
    format!("FIELDPOST_{}", key.path.to_uppercase().replace('.', "__"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_unique_and_every_key_is_explained() {
        let mut seen = std::collections::HashSet::new();
        for key in keys() {
            assert!(seen.insert(key.path), "{} twice", key.path);
            assert!(key.about.ends_with('.'), "{}", key.path);
        }
    }

    #[test]
    fn a_misspelt_key_finds_the_one_that_was_meant() {
        let check =
            |given: &str, expected: Option<&str>| assert_eq!(nearest(given), expected, "{given}");
        check("listeners.mqtts.prot", Some("listeners.mqtts.port"));
        check("listner.mqtts.port", Some("listeners.mqtts.port"));
        check("hostname", Some("host_name"));
        check("retention_days", Some("hub.retention_days"));
        check("in_flight_bytes", Some("limits.in_flight_bytes"));
        check("completely.different.thing", None);
    }
}
