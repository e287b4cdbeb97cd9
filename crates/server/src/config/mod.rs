//! The configuration: plain data for the rest of the binary, and how it is gathered and checked.
//!
//! File, then environment, then flags. Unknown keys are errors; everything is checked before the
//! store is opened or a port is bound. No key holds a secret: secrets live in files of their own,
//! and the configuration holds their paths.

mod keys;
mod load;
mod print;
mod value;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

use fieldpost_hub::settings::{
    CloudToDeviceSetting, CloudToDeviceSettings, DeadLetterSettings, DeliveryCountMode,
    FeedbackSettings, HistorySettings, HubSettings, InvalidSettings,
};
use fieldpost_hub::throttles::{ThrottlingSettings, Tier};
use fieldpost_store::log::AtBytesMax;

pub(crate) use load::{ConfigError, ConfigErrors, Settings, Sources};
pub(crate) use print::{as_json, as_toml};
use value::Value;
pub(crate) use value::parse_span;

/// What `serve` needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// The data directory.
    pub(crate) data: PathBuf,
    /// The name in connection strings.
    pub(crate) host_name: String,
    /// More names of this hub.
    pub(crate) additional_host_names: Vec<String>,
    /// The hub's name, which is the entity name of the Event Hubs endpoint.
    pub(crate) hub_name: String,
    /// One entry per listener, enabled or not.
    pub(crate) listeners: Vec<ListenerConfig>,
    /// A certificate of the operator's own, if any.
    pub(crate) certificate: Option<OwnCertificate>,
    /// The storage engine's settings.
    pub(crate) store: StoreConfig,
    /// Memory for messages that are not yet durable.
    pub(crate) in_flight_bytes: usize,
    /// Memory for messages to devices that are read ahead or in flight.
    pub(crate) device_bound_bytes: usize,
    /// Memory for packets of which only a part has come.
    pub(crate) incomplete_packet_bytes: usize,
    /// How to log.
    pub(crate) log: LogConfig,
    /// Hub settings for the first start.
    pub(crate) seed: HubSettings,
    /// Whether the clock may be moved, for users' tests.
    pub(crate) test_mode: bool,
    /// Whether to go on without a port that cannot be had.
    pub(crate) allow_missing_ports: bool,
}

/// The listeners' names, as in the configuration and in `endpoints.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum ListenerName {
    /// MQTT over TLS.
    Mqtts,
    /// AMQP over TLS.
    Amqps,
    /// HTTPS and WebSocket.
    Https,
    /// Plain AMQP on loopback, Event Hubs addresses only.
    Amqp,
    /// Health, metrics, admin API.
    Admin,
    /// Plain MQTT.
    Mqtt,
    /// Plain HTTP and WebSocket.
    Http,
}

/// One listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ListenerConfig {
    /// Which one.
    pub(crate) name: ListenerName,
    /// Whether to listen.
    pub(crate) enabled: bool,
    /// Where; `None` for all interfaces.
    pub(crate) address: Option<IpAddr>,
    /// The port; 0 for any free one.
    pub(crate) port: u16,
}

/// A certificate of the operator's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnCertificate {
    /// Chain, PEM.
    pub(crate) certificate: PathBuf,
    /// Key, PEM.
    pub(crate) private_key: PathBuf,
    /// What clients should trust, if it must be told.
    pub(crate) ca_certificate: Option<PathBuf>,
}

/// The storage engine's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StoreConfig {
    /// Where the key-encryption key lies.
    pub(crate) key_file: PathBuf,
    /// Size to which segments grow.
    pub(crate) segment_bytes: u64,
    /// Memory for the newest events.
    pub(crate) recent_bytes: usize,
    /// First mark of a filling disk; `None` for the engine's own rule.
    pub(crate) hold_messages_below_bytes: Option<u64>,
    /// Second mark; likewise.
    pub(crate) hold_all_below_bytes: Option<u64>,
}

/// How to log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogConfig {
    /// JSON instead of text.
    pub(crate) json: bool,
    /// A filter in the syntax of `tracing_subscriber::EnvFilter`.
    pub(crate) level: String,
}

impl ListenerName {
    /// All of them, in the order in which they are shown.
    pub(crate) const ALL: [Self; 7] = [
        Self::Mqtts,
        Self::Amqps,
        Self::Https,
        Self::Amqp,
        Self::Admin,
        Self::Mqtt,
        Self::Http,
    ];

    /// The name as text.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Mqtts => "mqtts",
            Self::Amqps => "amqps",
            Self::Https => "https",
            Self::Amqp => "amqp",
            Self::Admin => "admin",
            Self::Mqtt => "mqtt",
            Self::Http => "http",
        }
    }

    /// Listeners that carry secrets in the clear for tools on the same machine only.
    fn is_loopback_only(self) -> bool {
        matches!(self, Self::Amqp | Self::Admin)
    }
}

impl Config {
    /// Translates and checks settings.
    ///
    /// # Errors
    /// Names every rule that does not hold.
    pub(crate) fn new(settings: &Settings) -> Result<Self, ConfigErrors> {
        let mut reader = Reader {
            settings,
            errors: Vec::new(),
        };
        let config = reader.config();
        if reader.errors.is_empty() {
            Ok(config)
        } else {
            Err(ConfigErrors(reader.errors))
        }
    }

    /// Loads, translates and checks.
    pub(crate) fn load(sources: &Sources) -> Result<(Self, Settings), ConfigErrors> {
        let settings = Settings::load(sources)?;
        Ok((Self::new(&settings)?, settings))
    }

    /// Every name by which clients may reach the hub through its own configuration: the host
    /// names, and addresses that listeners were given.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names = vec![self.host_name.clone()];
        names.extend(self.additional_host_names.iter().cloned());
        let addresses = self.listeners.iter().filter(|l| l.enabled);
        let addresses = addresses
            .filter_map(|l| l.address)
            .filter(|a| !a.is_unspecified());
        names.extend(addresses.map(|address| address.to_string()));
        names.sort();
        names.dedup();
        names
    }

    /// Why a listener may not be on an address (`None` for all interfaces), if it may not.
    pub(crate) fn reason_against(
        &self,
        name: ListenerName,
        address: Option<IpAddr>,
    ) -> Option<&'static str> {
        reason_against(name, address, self.test_mode)
    }

    /// The settings of one listener.
    pub(crate) fn listener(&self, name: ListenerName) -> &ListenerConfig {
        self.listeners
            .iter()
            .find(|listener| listener.name == name)
            .expect("every listener has an entry")
    }
}

fn reason_against(
    name: ListenerName,
    address: Option<IpAddr>,
    test_mode: bool,
) -> Option<&'static str> {
    let loopback = address.is_some_and(|address| address.is_loopback());
    if loopback {
        None
    } else if test_mode {
        Some("in test mode every listener is on a loopback address")
    } else if name.is_loopback_only() {
        Some(
            "this listener speaks without TLS, for tools on the same machine; give it a loopback address",
        )
    } else {
        None
    }
}

struct Reader<'a> {
    settings: &'a Settings,
    errors: Vec<ConfigError>,
}

impl Reader<'_> {
    fn config(&mut self) -> Config {
        let test_mode = self.bool("run.test_mode");
        let listeners = ListenerName::ALL
            .into_iter()
            .map(|name| self.listener(name, test_mode))
            .collect::<Vec<_>>();
        self.check_ports(&listeners);
        let data = PathBuf::from(self.text("data"));
        if data.as_os_str().is_empty() {
            self.refuse("data", "a data directory is needed");
        }
        let key_file = match self.path("store.key_file") {
            Some(path) => path,
            None => data.join("key"),
        };
        let host_name = self.text("host_name").to_owned();
        self.check_host_name("host_name", &host_name);
        let additional_host_names = self.texts("additional_host_names").to_vec();
        for name in &additional_host_names {
            self.check_host_name("additional_host_names", name);
        }
        let hub_name = self.text("hub_name").to_owned();
        if !is_hub_name(&hub_name) {
            self.refuse(
                "hub_name",
                "a hub name has 1 to 50 letters, digits and hyphens",
            );
        }
        let store = StoreConfig {
            key_file,
            segment_bytes: self.integer("store.segment_bytes"),
            recent_bytes: self.size("store.recent_bytes"),
            hold_messages_below_bytes: self.unless_zero("store.hold_messages_below_bytes"),
            hold_all_below_bytes: self.unless_zero("store.hold_all_below_bytes"),
        };
        if let (Some(first), Some(second)) =
            (store.hold_messages_below_bytes, store.hold_all_below_bytes)
            && second > first
        {
            self.refuse(
                "store.hold_all_below_bytes",
                "the second mark must not lie above the first, store.hold_messages_below_bytes",
            );
        }
        let level = self.text("log.level").to_owned();
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&level) {
            self.refuse("log.level", &error.to_string());
        }
        Config {
            data,
            host_name,
            additional_host_names,
            hub_name,
            listeners,
            certificate: self.certificate(),
            store,
            in_flight_bytes: self.size("limits.in_flight_bytes"),
            device_bound_bytes: self.size("limits.device_bound_bytes"),
            incomplete_packet_bytes: self.size("limits.incomplete_packet_bytes"),
            log: LogConfig {
                json: self.text("log.format") == "json",
                level,
            },
            seed: self.seed(),
            test_mode,
            allow_missing_ports: self.bool("run.allow_missing_ports"),
        }
    }

    fn listener(&mut self, name: ListenerName, test_mode: bool) -> ListenerConfig {
        let key = |part: &str| format!("listeners.{}.{part}", name.as_str());
        let address_key = key("address");
        let mut address = self.text(&address_key).parse().ok();
        if test_mode && !self.settings.is_set(&address_key) {
            address = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
        let enabled = self.bool(&key("enabled"));
        if enabled && let Some(why) = reason_against(name, address, test_mode) {
            self.refuse(&address_key, why);
        }
        ListenerConfig {
            name,
            enabled,
            address,
            port: self.number(&key("port")),
        }
    }

    /// Two listeners on one port would be told as another program's, or skipped without a word.
    fn check_ports(&mut self, listeners: &[ListenerConfig]) {
        let is_everywhere =
            |address: Option<IpAddr>| address.is_none_or(|address| address.is_unspecified());
        for (n, listener) in listeners.iter().enumerate() {
            let others = listeners.iter().take(n);
            let clash = others
                .filter(|other| other.enabled && listener.enabled)
                .find(|other| {
                    let meets = listener.address == other.address
                        || is_everywhere(listener.address)
                        || is_everywhere(other.address);
                    listener.port != 0 && listener.port == other.port && meets
                });
            if let Some(other) = clash {
                let key = format!("listeners.{}.port", listener.name.as_str());
                let reason = format!("the listener {} has this port too", other.name.as_str());
                self.refuse(&key, &reason);
            }
        }
    }

    fn certificate(&mut self) -> Option<OwnCertificate> {
        let ca_certificate = self.path("tls.ca_certificate");
        match (self.path("tls.certificate"), self.path("tls.private_key")) {
            (Some(certificate), Some(private_key)) => Some(OwnCertificate {
                certificate,
                private_key,
                ca_certificate,
            }),
            (None, None) => {
                if ca_certificate.is_some() {
                    self.refuse("tls.ca_certificate", "only goes with tls.certificate");
                }
                None
            }
            (Some(_), None) => {
                self.refuse(
                    "tls.private_key",
                    "must be set together with tls.certificate",
                );
                None
            }
            (None, Some(_)) => {
                self.refuse(
                    "tls.certificate",
                    "must be set together with tls.private_key",
                );
                None
            }
        }
    }

    fn seed(&mut self) -> HubSettings {
        let seed = HubSettings {
            partition_count: self.number("hub.partition_count"),
            retention_days: self.number("hub.retention_days"),
            bytes_max: self.unless_zero("hub.retention_bytes_max"),
            at_bytes_max: match self.text("hub.at_retention_bytes_max") {
                "drop-oldest" => AtBytesMax::DropOldest,
                _ => AtBytesMax::HoldMessages,
            },
            consumer_groups: self.texts("hub.consumer_groups").to_vec(),
            cloud_to_device: self.cloud_to_device(),
            throttling: ThrottlingSettings {
                tier: match self.text("hub.throttling.tier") {
                    "F1" => Some(Tier::F1),
                    "S1" => Some(Tier::S1),
                    "S2" => Some(Tier::S2),
                    "S3" => Some(Tier::S3),
                    _ => None,
                },
                units: self.number("hub.throttling.units"),
            },
        };
        if let Err(error) = seed.check() {
            self.refuse(seed_key(&error), &error.to_string());
        }
        seed
    }

    fn cloud_to_device(&self) -> CloudToDeviceSettings {
        let key = |name: &str| format!("hub.cloud_to_device.{name}");
        let span = |name: &str| Duration::from_secs(self.integer(&key(name)));
        CloudToDeviceSettings {
            max_delivery_count: self.number(&key("max_delivery_count")),
            default_ttl: span("default_ttl"),
            feedback: FeedbackSettings {
                lock: span("feedback.lock"),
                ttl: span("feedback.ttl"),
                max_delivery_count: self.number(&key("feedback.max_delivery_count")),
            },
            delivery_count_mode: match self.text(&key("delivery_count_mode")) {
                "every-lock" => DeliveryCountMode::EveryLock,
                _ => DeliveryCountMode::Abandon,
            },
            queue_depth_max: self.integer(&key("max_queue_depth")),
            dead_letters: DeadLetterSettings {
                keep: span("dead_letters.retention"),
                bytes_max: self.integer(&key("dead_letters.max_bytes")),
            },
            history: HistorySettings {
                enabled: self.bool(&key("history.enabled")),
                messages_max: self.integer(&key("history.max_messages")),
                bytes_max: self.integer(&key("history.max_bytes")),
            },
        }
    }

    fn check_host_name(&mut self, key: &str, name: &str) {
        if name.parse::<IpAddr>().is_err() && !is_host_name(name) {
            self.refuse(
                key,
                &format!("`{name}` is neither a host name nor an IP address"),
            );
        }
    }

    fn refuse(&mut self, key: &str, reason: &str) {
        self.errors.push(ConfigError::Value {
            origin: self.settings.get(key).1.clone(),
            key: key.to_owned(),
            reason: reason.to_owned(),
        });
    }

    fn bool(&self, key: &str) -> bool {
        matches!(self.settings.get(key).0, Value::Bool(true))
    }

    fn integer(&self, key: &str) -> u64 {
        match self.settings.get(key).0 {
            Value::Integer(number) => *number,
            _ => 0,
        }
    }

    /// A number whose range in the table fits its type.
    fn number<T: TryFrom<u64> + Default>(&self, key: &str) -> T {
        T::try_from(self.integer(key)).unwrap_or_default()
    }

    fn unless_zero(&self, key: &str) -> Option<u64> {
        Some(self.integer(key)).filter(|number| *number > 0)
    }

    fn size(&self, key: &str) -> usize {
        usize::try_from(self.integer(key)).unwrap_or(usize::MAX)
    }

    fn text(&self, key: &str) -> &str {
        match self.settings.get(key).0 {
            Value::Text(text) => text,
            _ => "",
        }
    }

    fn texts(&self, key: &str) -> &[String] {
        match self.settings.get(key).0 {
            Value::Texts(texts) => texts,
            _ => &[],
        }
    }

    fn path(&self, key: &str) -> Option<PathBuf> {
        Some(self.text(key))
            .filter(|text| !text.is_empty())
            .map(PathBuf::from)
    }
}

fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

/// The key of a hub setting that cannot be taken.
fn seed_key(error: &InvalidSettings) -> &'static str {
    use CloudToDeviceSetting as C2d;
    match error {
        InvalidSettings::Retention { .. } => "hub.retention_days",
        InvalidSettings::BytesMax => "hub.retention_bytes_max",
        InvalidSettings::PartitionCount { .. } => "hub.partition_count",
        InvalidSettings::TooManyConsumerGroups { .. }
        | InvalidSettings::ConsumerGroupName { .. }
        | InvalidSettings::ConsumerGroupTwice { .. } => "hub.consumer_groups",
        InvalidSettings::Units { .. } => "hub.throttling.units",
        InvalidSettings::CloudToDevice { setting, .. } => match setting {
            C2d::MaxDeliveryCount => "hub.cloud_to_device.max_delivery_count",
            C2d::DefaultTtl => "hub.cloud_to_device.default_ttl",
            C2d::FeedbackLock => "hub.cloud_to_device.feedback.lock",
            C2d::FeedbackTtl => "hub.cloud_to_device.feedback.ttl",
            C2d::FeedbackMaxDeliveryCount => "hub.cloud_to_device.feedback.max_delivery_count",
            C2d::QueueDepthMax => "hub.cloud_to_device.max_queue_depth",
            C2d::DeadLettersKeep => "hub.cloud_to_device.dead_letters.retention",
            C2d::HistoryMessagesMax => "hub.cloud_to_device.history.max_messages",
            C2d::HistoryBytesMax => "hub.cloud_to_device.history.max_bytes",
        },
    }
}

fn is_hub_name(name: &str) -> bool {
    (1..=50).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(assignments: &[&str]) -> Result<Config, String> {
        let sources = Sources {
            assignments: assignments.iter().map(|a| (*a).to_owned()).collect(),
            ..Sources::default()
        };
        Config::load(&sources)
            .map(|(config, _)| config)
            .map_err(|errors| errors.to_string())
    }

    #[test]
    fn the_defaults_are_a_valid_configuration() {
        let config = config(&[]).unwrap();
        assert_eq!(config.listener(ListenerName::Mqtts).port, 8883);
        assert_eq!(config.listener(ListenerName::Mqtts).address, None);
        assert!(!config.listener(ListenerName::Mqtt).enabled);
        assert_eq!(config.store.key_file, PathBuf::from("./fieldpost-data/key"));
        assert_eq!(config.names(), ["127.0.0.1", "localhost"]);
        let seed = HubSettings {
            consumer_groups: vec![],
            ..HubSettings::default()
        };
        assert_eq!(config.seed, seed);
    }

    /// A range in the table of keys that is wider than the hub's own would let a configuration pass
    /// that the first start refuses.
    #[test]
    fn the_ranges_of_seed_keys_are_the_hubs() {
        for key in keys::keys().filter(|key| key.path.starts_with("hub.")) {
            let edges = match key.kind {
                keys::Kind::Integer { min, max } | keys::Kind::Bytes { min, max } => {
                    [min.to_string(), max.to_string()]
                }
                keys::Kind::Span { min, max } => [format!("{min} s"), format!("{max} s")],
                _ => continue,
            };
            for edge in edges {
                config(&[&format!("{}={edge}", key.path)]).unwrap();
            }
        }
        let error = config(&["hub.cloud_to_device.default_ttl=3 d"]).unwrap_err();
        assert!(
            error.ends_with("3 d is not in the range 1 min to 2 d"),
            "{error}"
        );
    }

    #[test]
    fn rules_across_keys_are_checked() {
        let check = |assignments: &[&str], expected: &str| {
            let error = config(assignments).unwrap_err();
            assert!(error.contains(expected), "{assignments:?}: {error}");
        };
        check(
            &["hub.throttling.tier=F1", "hub.throttling.units=2"],
            "`hub.throttling.units`: tier F1 has 1 to 1 units, not 2",
        );
        check(
            &["tls.certificate=a.pem"],
            "`tls.private_key`: must be set together",
        );
        check(
            &["tls.private_key=a.pem"],
            "`tls.certificate`: must be set together",
        );
        check(&["listeners.admin.address=*"], "give it a loopback address");
        check(
            &["listeners.amqp.address=10.0.0.1"],
            "give it a loopback address",
        );
        check(
            &["run.test_mode=true", "listeners.mqtts.address=0.0.0.0"],
            "in test mode every listener",
        );
        check(
            &["listeners.amqp.port=8883"],
            "`listeners.amqp.port`: the listener mqtts has this port too",
        );
        check(
            &["hub.consumer_groups=a/b"],
            "`hub.consumer_groups`: \"a/b\" cannot be the name",
        );
        check(&["host_name=a b"], "neither a host name");
        check(&["hub_name=a.b"], "a hub name has");
        check(&["log.level=loud=quiet=x"], "`log.level`");
        check(
            &[
                "store.hold_messages_below_bytes=1 MiB",
                "store.hold_all_below_bytes=1 GiB",
            ],
            "must not lie above the first",
        );
    }

    #[test]
    fn one_port_on_two_addresses_is_two_ports() {
        let apart = [
            "listeners.mqtts.address=127.0.0.2",
            "listeners.amqps.address=127.0.0.3",
            "listeners.amqps.port=8883",
        ];
        config(&apart).unwrap();
        config(&["listeners.http.port=443"]).unwrap();
        config(&["listeners.mqtts.port=0", "listeners.amqps.port=0"]).unwrap();
    }

    #[test]
    fn test_mode_moves_listeners_to_loopback() {
        let config = config(&["run.test_mode=true", "listeners.https.address=127.0.0.9"]).unwrap();
        assert!(
            config
                .listeners
                .iter()
                .all(|listener| listener.address.is_some_and(|a| a.is_loopback()))
        );
        assert!(config.names().contains(&"127.0.0.9".to_owned()));
    }
}
