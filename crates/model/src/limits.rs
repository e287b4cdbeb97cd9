//! Documented limits, each with its source.
//!
//! "KB" is 1,024 bytes everywhere, as in the Azure IoT Hub documentation.

use std::time::Duration;

/// Longest device or module id, in ASCII characters (Azure IoT Hub identity registry).
pub const ID_LENGTH_MAX: usize = 128;

/// Longest `statusReason` of a device, in characters (Azure IoT Hub identity registry).
pub const STATUS_REASON_CHARS_MAX: usize = 128;

/// Largest device-to-cloud message or batch, in bytes: body, plus values of system properties,
/// plus names and values of application properties (Azure IoT Hub quotas: 256 KB).
pub const D2C_MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// Items in one bulk registry request (Azure IoT Hub REST: 100).
pub const BULK_REGISTRY_ITEMS_MAX: usize = 100;

/// Devices returned by one registry listing (Azure IoT Hub REST: 1,000).
pub const REGISTRY_LIST_MAX: usize = 1000;

/// Longest MQTT keep-alive wait of the hub (Azure IoT Hub: 29.45 minutes). A client may ask for at
/// most two thirds of it.
pub const MQTT_SILENCE_MAX: Duration = Duration::from_secs(1767);

/// Tolerated clock difference when a token's expiry is checked.
pub const TOKEN_CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

/// Consumer groups of the built-in endpoint, `$Default` included (Event Hubs quotas).
pub const CONSUMER_GROUPS_MAX: usize = 20;

/// Longest name of a consumer group, in characters (Event Hubs quotas).
pub const CONSUMER_GROUP_NAME_MAX: usize = 50;

/// Readers without an owner level per partition and consumer group (Event Hubs quotas).
pub const READERS_PER_PARTITION_AND_GROUP_MAX: usize = 5;

/// Fewest and most partitions of the built-in endpoint (fixed when a store is created).
pub const PARTITION_COUNT_RANGE: std::ops::RangeInclusive<u16> = 1..=128;

/// Shortest and longest retention of the built-in endpoint, in days (Azure IoT Hub).
pub const RETENTION_DAYS_RANGE: std::ops::RangeInclusive<u32> = 1..=7;

/// Largest cloud-to-device message, in bytes: body, plus values of system properties, plus names
/// and values of application properties (Azure IoT Hub quotas: 64 KB).
pub const C2D_MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Longest life of a cloud-to-device message (Azure IoT Hub: 2 days).
pub const C2D_EXPIRY_MAX: Duration = Duration::from_secs(2 * 24 * 3600);

/// Cloud-to-device messages that wait for one device, if nothing else is set (Azure IoT Hub: 50).
pub const C2D_QUEUE_DEPTH_DEFAULT: u64 = 50;

/// Lock of a received cloud-to-device message (Azure IoT Hub: 60 seconds).
pub const C2D_LOCK: Duration = Duration::from_secs(60);

/// Locks that a receiver or an operator may ask for (Azure IoT Hub: 5 to 300 seconds).
pub const LOCK_RANGE: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(5)..=Duration::from_secs(300);

/// Deliveries before a message is dead-lettered (Azure IoT Hub: 1 to 100).
pub const DELIVERY_COUNT_RANGE: std::ops::RangeInclusive<u32> = 1..=100;

/// Times to live that can be set for messages and feedback (Azure IoT Hub: 1 minute to 2 days).
pub const TTL_RANGE: std::ops::RangeInclusive<Duration> = Duration::from_secs(60)..=C2D_EXPIRY_MAX;
