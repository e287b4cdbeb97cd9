//! Why a service's message or settlement was not taken: conditions, codes and texts that service
//! SDKs tell apart.
//!
//! The Python client sends a refused message up to three more times, unless the condition is one of
//! AMQP's own; those are used for what cannot succeed wherever the contract has one.

use std::fmt;

use fieldpost_amqp::{Error, Map, condition};
use fieldpost_hub::c2d::{SendRefused, SettleError};
use fieldpost_hub::ingest::MessageRefused;
use fieldpost_hub::throttles::Throttled;
use fieldpost_store::StoreError;

use super::command::InvalidCommand;
use super::error::microsoft;
use super::telemetry::InvalidTelemetry;

/// Symbol under which .NET's client looks for what an operator can search the logs for.
const TRACKING_ID: &str = "com.microsoft:tracking-id";

/// Names one message of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TrackingId {
    /// The connection's number, as it is in the logs.
    pub(crate) conn_id: u64,
    /// The delivery's number on the wire.
    pub(crate) delivery_id: u32,
}

impl fmt::Display for TrackingId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "conn_id:{}-delivery:{}", self.conn_id, self.delivery_id)
    }
}

/// The hub did not take a message.
pub(crate) fn send_refused(refused: &SendRefused, id: TrackingId) -> Error {
    let (condition, name) = match refused {
        SendRefused::UnknownDevice => (condition::NOT_FOUND, "DeviceNotFound"),
        SendRefused::QueueFull { .. } => (
            condition::RESOURCE_LIMIT_EXCEEDED,
            "DeviceMaximumQueueDepthExceeded",
        ),
        SendRefused::TooLarge { .. } => (condition::MESSAGE_SIZE_EXCEEDED, "MessageTooLarge"),
        SendRefused::InvalidExpiry => {
            (microsoft::ARGUMENT_OUT_OF_RANGE, "InvalidMessageExpiryTime")
        }
        SendRefused::Undeliverable { .. } => (microsoft::ARGUMENT_ERROR, "ArgumentInvalid"),
        SendRefused::Throttled(throttled) => (microsoft::THROTTLED, throttle_code(*throttled)),
        SendRefused::QuotaExceeded => (microsoft::QUOTA_EXCEEDED, "IotHubQuotaExceeded"),
        SendRefused::NoRoom => (microsoft::SERVER_BUSY, "ServerBusy"),
        SendRefused::Store(error) => return store_failed(error, id),
    };
    refused_with(condition, name, refused, id)
}

/// A message cannot be for any device.
pub(crate) fn invalid_command(invalid: &InvalidCommand, id: TrackingId) -> Error {
    let (condition, name) = match invalid {
        InvalidCommand::Decode(_) => (condition::DECODE_ERROR, "DeserializationError"),
        InvalidCommand::To => (condition::NOT_ALLOWED, "InvalidOperation"),
        InvalidCommand::Id => (condition::NOT_FOUND, "DeviceNotFound"),
        InvalidCommand::Expiry => (microsoft::ARGUMENT_OUT_OF_RANGE, "InvalidMessageExpiryTime"),
        InvalidCommand::Ack | InvalidCommand::Property { .. } => {
            (microsoft::ARGUMENT_ERROR, "ArgumentInvalid")
        }
        InvalidCommand::Body | InvalidCommand::Format => {
            (condition::NOT_IMPLEMENTED, "InvalidOperation")
        }
    };
    refused_with(condition, name, invalid, id)
}

/// A device's transfer holds no messages.
pub(crate) fn invalid_telemetry(invalid: &InvalidTelemetry, id: TrackingId) -> Error {
    let (condition, name) = match invalid {
        InvalidTelemetry::Decode(_) => (condition::DECODE_ERROR, "DeserializationError"),
        InvalidTelemetry::Property { .. } => (microsoft::ARGUMENT_ERROR, "ArgumentInvalid"),
        InvalidTelemetry::Format(_) | InvalidTelemetry::Batch | InvalidTelemetry::Body => {
            (condition::NOT_IMPLEMENTED, "InvalidOperation")
        }
    };
    refused_with(condition, name, invalid, id)
}

/// The hub did not take a device's message.
pub(crate) fn telemetry_refused(refused: &MessageRefused, id: TrackingId) -> Error {
    let (condition, code) = match refused {
        MessageRefused::TooLarge { .. } => (condition::MESSAGE_SIZE_EXCEEDED, "MessageTooLarge"),
        MessageRefused::Throttled(throttled) => (microsoft::THROTTLED, throttle_code(*throttled)),
        MessageRefused::QuotaExceeded => {
            (condition::RESOURCE_LIMIT_EXCEEDED, "IotHubQuotaExceeded")
        }
    };
    refused_with(condition, code, refused, id)
}

/// A device is one too many.
pub(crate) fn throttled(throttled: Throttled) -> Error {
    Error::new(
        microsoft::THROTTLED,
        format!("{}: {throttled}", throttle_code(throttled)),
    )
}

fn throttle_code(throttled: Throttled) -> &'static str {
    if throttled.is_backlog_full {
        "ThrottleBacklogLimitExceeded"
    } else {
        "ThrottlingException"
    }
}

/// A delivery could not be settled as its receiver wanted.
pub(crate) fn settle_refused(refused: &SettleError, id: TrackingId) -> Error {
    match refused {
        SettleError::LockLost => refused_with(
            microsoft::MESSAGE_LOCK_LOST,
            "DeviceMessageLockLost",
            refused,
            id,
        ),
        SettleError::Store(error) => store_failed(error, id),
    }
}

fn store_failed(error: &StoreError, id: TrackingId) -> Error {
    match error {
        StoreError::Closed => {
            let stopping = "the hub is being restarted or stopped; send again";
            refused_with(microsoft::SERVER_BUSY, "ServiceUnavailable", &stopping, id)
        }
        StoreError::ReadOnly { .. } => {
            let failed = "the hub's store failed and takes nothing until the hub is started anew";
            refused_with(microsoft::SERVER_BUSY, "ServiceUnavailable", &failed, id)
        }
        StoreError::Full => {
            let full = "the hub's disk is full";
            refused_with(microsoft::SERVER_BUSY, "ServiceUnavailable", &full, id)
        }
        StoreError::Damaged { .. } | StoreError::Read { .. } | StoreError::OutOfBounds { .. } => {
            let failed = "the hub's store failed";
            refused_with(condition::INTERNAL_ERROR, "ServerError", &failed, id)
        }
    }
}

/// All three fields are there: the first two are what SDKs take their exceptions from.
fn refused_with(
    condition: &'static str,
    name: &str,
    text: &impl fmt::Display,
    id: TrackingId,
) -> Error {
    Error::new(condition, format!("ErrorCode:{name};{text}"))
        .with_info(Map::new().with(TRACKING_ID, id.to_string()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fieldpost_amqp::{DecodeError, Symbol, Value};

    use super::*;

    const ID: TrackingId = TrackingId {
        conn_id: 7,
        delivery_id: 3,
    };

    /// The condition table of the service endpoint, by which the Node and .NET clients choose their
    /// errors.
    #[test]
    fn refusals_have_the_conditions_that_sdks_know() {
        let check = |error: Error, condition: &str, code: &str| {
            assert_eq!(error.condition, condition);
            let description = error.description.unwrap();
            let (head, text) = description.split_once(';').unwrap();
            assert_eq!(head, format!("ErrorCode:{code}"));
            assert!(!text.is_empty());
            let key = Value::Symbol(Symbol::from_static("com.microsoft:tracking-id"));
            let id = Value::from("conn_id:7-delivery:3");
            assert_eq!(error.info.0, [(key, id)]);
        };
        let sent = |refused: SendRefused, condition: &str, code: &str| {
            check(send_refused(&refused, ID), condition, code);
        };
        sent(
            SendRefused::UnknownDevice,
            "amqp:not-found",
            "DeviceNotFound",
        );
        sent(
            SendRefused::QueueFull { max: 50 },
            "amqp:resource-limit-exceeded",
            "DeviceMaximumQueueDepthExceeded",
        );
        sent(
            SendRefused::TooLarge { size: 2, max: 1 },
            "amqp:link:message-size-exceeded",
            "MessageTooLarge",
        );
        sent(
            SendRefused::InvalidExpiry,
            "com.microsoft:argument-out-of-range",
            "InvalidMessageExpiryTime",
        );
        sent(
            SendRefused::NoRoom,
            "com.microsoft:server-busy",
            "ServerBusy",
        );
        sent(
            SendRefused::Store(StoreError::Closed),
            "com.microsoft:server-busy",
            "ServiceUnavailable",
        );
        let reason = "a test".into();
        for error in [StoreError::ReadOnly { reason }, StoreError::Full] {
            sent(
                SendRefused::Store(error),
                "com.microsoft:server-busy",
                "ServiceUnavailable",
            );
        }
        let reason = "a test".into();
        sent(
            SendRefused::Store(StoreError::Read { reason }),
            "amqp:internal-error",
            "ServerError",
        );
        for (is_backlog_full, code) in [
            (true, "ThrottleBacklogLimitExceeded"),
            (false, "ThrottlingException"),
        ] {
            let throttled = Throttled {
                is_backlog_full,
                retry_after: Duration::from_secs(1),
            };
            let condition = "com.microsoft:device-container-throttled";
            sent(SendRefused::Throttled(throttled), condition, code);
            let refused = MessageRefused::Throttled(throttled);
            check(telemetry_refused(&refused, ID), condition, code);
        }
        let code = "IotHubQuotaExceeded";
        sent(
            SendRefused::QuotaExceeded,
            "com.microsoft:quota-exceeded",
            code,
        );
        let refused = telemetry_refused(&MessageRefused::QuotaExceeded, ID);
        check(refused, "amqp:resource-limit-exceeded", code);
        let undeliverable = SendRefused::Undeliverable {
            what: "a control character".to_owned(),
        };
        sent(
            undeliverable,
            "com.microsoft:argument-error",
            "ArgumentInvalid",
        );
        let invalid = |invalid: InvalidCommand, condition: &str, code: &str| {
            check(invalid_command(&invalid, ID), condition, code);
        };
        invalid(InvalidCommand::To, "amqp:not-allowed", "InvalidOperation");
        invalid(InvalidCommand::Id, "amqp:not-found", "DeviceNotFound");
        let decode = InvalidCommand::Decode(DecodeError::WrongType("list"));
        invalid(decode, "amqp:decode-error", "DeserializationError");
        let settled = settle_refused(&SettleError::LockLost, ID);
        check(
            settled,
            "com.microsoft:message-lock-lost",
            "DeviceMessageLockLost",
        );
    }
}
