//! Error conditions and status codes: the one place where refusals of the hub get their AMQP form.

use std::borrow::Cow;

use fieldpost_amqp::{DecodeError, Error, SendError, condition};
use fieldpost_hub::auth::AuthError;
use fieldpost_hub::events::{ReceiverEnd, ReceiverRefused, StartError};
use fieldpost_hub::faults::Fault;
use fieldpost_hub::presence::Eviction;
use fieldpost_store::StoreError;

use super::address::PartitionAddress;
use super::receiver::InvalidReceiver;

/// Conditions of Microsoft's services beyond those of AMQP.
pub(super) mod microsoft {
    pub(in super::super) const ARGUMENT_ERROR: &str = "com.microsoft:argument-error";
    pub(in super::super) const ARGUMENT_OUT_OF_RANGE: &str = "com.microsoft:argument-out-of-range";
    pub(in super::super) const MESSAGE_LOCK_LOST: &str = "com.microsoft:message-lock-lost";
    pub(in super::super) const THROTTLED: &str = "com.microsoft:device-container-throttled";
    pub(in super::super) const QUOTA_EXCEEDED: &str = "com.microsoft:quota-exceeded";
    pub(in super::super) const SERVER_BUSY: &str = "com.microsoft:server-busy";
}

/// How a request over `$cbs` or `$management` ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// An HTTP status code.
    pub(crate) code: i32,
    /// For people.
    pub(crate) description: Cow<'static, str>,
    /// For programs, unless all went well.
    pub(crate) condition: Option<&'static str>,
}

impl Status {
    /// All went well. `$cbs` clients of IoT Hub take nothing but 200 for that.
    pub(crate) fn ok() -> Self {
        Self {
            code: 200,
            description: "OK".into(),
            condition: None,
        }
    }

    /// The request cannot be understood.
    pub(crate) fn bad_request(description: &'static str) -> Self {
        Self {
            code: 400,
            description: description.into(),
            condition: Some(microsoft::ARGUMENT_ERROR),
        }
    }

    /// No credential that is good for the request.
    pub(crate) fn unauthorized() -> Self {
        Self {
            code: 401,
            description: UNAUTHORIZED.into(),
            condition: Some(condition::UNAUTHORIZED_ACCESS),
        }
    }

    /// Nothing has that name.
    pub(crate) fn not_found(entity: &str) -> Self {
        Self {
            code: 404,
            description: entity_not_found(entity).into(),
            condition: Some(condition::NOT_FOUND),
        }
    }

    /// More tokens than one connection may hold.
    pub(crate) fn too_many_tokens() -> Self {
        Self {
            code: 403,
            description:
                "ErrorCode:IotHubMaxCbsTokenExceeded;this connection holds as many tokens \
                          as it may"
                    .into(),
            condition: Some(condition::RESOURCE_LIMIT_EXCEEDED),
        }
    }
}

impl From<&AuthError> for Status {
    fn from(error: &AuthError) -> Self {
        match error {
            AuthError::Unauthorized(_) => Self::unauthorized(),
            AuthError::TooManyFailures | AuthError::Unavailable(_) => Self {
                code: 503,
                description: BUSY.into(),
                condition: Some(microsoft::SERVER_BUSY),
            },
        }
    }
}

const UNAUTHORIZED: &str = "Unauthorized access. The token is missing, expired, not signed with a \
                            valid key, or does not grant what was asked for";
const BUSY: &str = "The hub is not able to answer at the moment; try again later";

/// Nothing has the address.
pub(crate) fn address_not_found(address: &str) -> Error {
    Error::new(condition::NOT_FOUND, entity_not_found(address))
}

/// The connection has no right to the address.
pub(crate) fn unauthorized() -> Error {
    Error::new(condition::UNAUTHORIZED_ACCESS, UNAUTHORIZED)
}

/// The tokens that a link was attached under have expired.
pub(crate) fn grant_expired() -> Error {
    Error::new(
        condition::UNAUTHORIZED_ACCESS,
        "The token that this link was attached with has expired",
    )
}

/// A client wants to send to the Event Hubs endpoint, which only the hub itself does.
pub(crate) fn sending_not_allowed() -> Error {
    Error::new(
        condition::UNAUTHORIZED_ACCESS,
        "Sending to the Event Hub-compatible endpoint is not allowed; devices send to the hub",
    )
}

/// A request that is not even a message.
pub(crate) fn undecodable(error: &DecodeError) -> Error {
    Error::new(condition::DECODE_ERROR, error.to_string())
}

/// A link without the address that it needs.
pub(crate) fn address_missing() -> Error {
    Error::new(
        condition::INVALID_FIELD,
        "The link's remote end has no address",
    )
}

/// Something that the hub does not do.
pub(crate) fn not_implemented(what: &str) -> Error {
    Error::new(
        condition::NOT_IMPLEMENTED,
        format!("ErrorCode:InvalidOperation;{what}"),
    )
}

/// More links to the service endpoint than one connection may have.
pub(crate) fn too_many_links(max: usize) -> Error {
    Error::new(
        condition::RESOURCE_LIMIT_EXCEEDED,
        format!("A connection may have {max} links to the service endpoint"),
    )
}

/// A client's name for its end of a link is longer than any that a client makes up.
pub(crate) fn address_too_long(max: usize) -> Error {
    Error::new(
        condition::INVALID_FIELD,
        format!("The address of the link's target may have {max} bytes"),
    )
}

/// More links of devices than one connection may have.
pub(crate) fn too_many_device_links(max: usize) -> Error {
    Error::new(
        condition::RESOURCE_LIMIT_EXCEEDED,
        format!("A connection may have {max} links of devices"),
    )
}

/// A device has lost its place among the connected ones.
pub(crate) fn device_evicted(eviction: Eviction) -> Error {
    let (condition, text) = match eviction {
        Eviction::Replaced => (
            condition::STOLEN,
            "The device has connected anew, and its newest connection counts",
        ),
        Eviction::Disabled => (condition::NOT_ALLOWED, "The device is disabled"),
        Eviction::Deleted => (condition::NOT_FOUND, "The device was deleted"),
        Eviction::Cut | Eviction::Closing => (condition::DETACH_FORCED, STOPPING),
    };
    Error::new(condition, text)
}

/// A test asked for it.
pub(crate) fn on_demand(fault: Fault) -> Error {
    let condition = match fault {
        Fault::AuthError => condition::UNAUTHORIZED_ACCESS,
        Fault::KillConnection | Fault::KillTcp | Fault::ShutDown => condition::CONNECTION_FORCED,
        _ => condition::DETACH_FORCED,
    };
    Error::new(condition, "A fault that a test asked for")
}

/// More requests than the client takes answers for.
pub(crate) fn answers_not_taken() -> Error {
    Error::new(
        condition::RESOURCE_LIMIT_EXCEEDED,
        "Too many answers wait for credit on this link",
    )
}

/// The connection has asked for more than is done at once.
pub(crate) fn busy() -> Error {
    Error::new(microsoft::SERVER_BUSY, BUSY)
}

/// The hub is being stopped: for a link.
pub(crate) fn detach_forced() -> Error {
    Error::new(condition::DETACH_FORCED, STOPPING)
}

/// The hub is being stopped: for a connection.
pub(crate) fn connection_forced() -> Error {
    Error::new(condition::CONNECTION_FORCED, STOPPING)
}

/// The connection authenticated as a whole, and its token has expired.
pub(crate) fn connection_expired() -> Error {
    Error::new(
        condition::UNAUTHORIZED_ACCESS,
        "The token that this connection was opened with has expired",
    )
}

/// Nobody authenticated on the connection in time.
pub(crate) fn not_authenticated_in_time() -> Error {
    Error::new(
        condition::UNAUTHORIZED_ACCESS,
        "No valid token was put on this connection in time",
    )
}

const STOPPING: &str = "The hub is being restarted or stopped; connect again";

/// The wishes in an attach cannot be met.
pub(crate) fn invalid_receiver(invalid: InvalidReceiver) -> Error {
    Error::new(microsoft::ARGUMENT_ERROR, invalid.to_string())
}

/// A receiver was not opened.
pub(crate) fn receiver_refused(
    refused: &ReceiverRefused,
    address: &PartitionAddress<'_>,
    receiver_name: Option<&str>,
) -> Error {
    let receiver = receiver_name.unwrap_or("nil");
    let named = |holder: &Option<String>| holder.clone().unwrap_or_else(|| "nil".to_owned());
    match refused {
        ReceiverRefused::UnknownGroup => Error::new(
            condition::NOT_FOUND,
            entity_not_found(&format!(
                "{}/ConsumerGroups/{}",
                address.entity, address.group
            )),
        ),
        ReceiverRefused::UnknownPartition { count, .. } => Error::new(
            condition::NOT_FOUND,
            format!(
                "{} It has {count} partitions, from 0.",
                partition_not_found(address)
            ),
        ),
        ReceiverRefused::HigherOwnerLevel {
            requested,
            held,
            holder,
        } => Error::new(
            condition::STOLEN,
            format!(
                "Receiver '{receiver}' with epoch '{requested}' cannot be created: a receiver \
                 '{}' with a higher epoch of '{held}' already exists. To create one, use a higher \
                 epoch",
                named(holder)
            ),
        ),
        ReceiverRefused::ExclusiveHolder { held, holder } => Error::new(
            condition::STOLEN,
            format!(
                "Receiver '{receiver}' without an epoch cannot be created: a receiver '{}' with \
                 epoch '{held}' exists, and non-epoch receivers are not allowed beside it. Create \
                 it with an epoch, or use another consumer group",
                named(holder)
            ),
        ),
        ReceiverRefused::TooManyReaders { max } => Error::new(
            condition::RESOURCE_LIMIT_EXCEEDED,
            format!(
                "The partition has {max} receivers without an epoch in this consumer group, which \
                 is the most there may be"
            ),
        ),
    }
}

/// A receiver lost its partition.
pub(crate) fn receiver_ended(end: &ReceiverEnd, receiver_name: Option<&str>) -> Error {
    let receiver = receiver_name.unwrap_or("nil");
    match end {
        ReceiverEnd::Stolen {
            owner_level,
            receiver_name,
        } => {
            let thief = receiver_name.as_deref().unwrap_or("nil");
            Error::new(
                condition::STOLEN,
                format!(
                    "New receiver '{thief}' with higher epoch of '{owner_level}' is created, \
                     hence current receiver '{receiver}' is getting disconnected. If you are \
                     recreating the receiver, make sure a higher epoch is used",
                ),
            )
        }
        ReceiverEnd::GroupDeleted => Error::new(
            condition::NOT_FOUND,
            "The consumer group of this receiver was deleted",
        ),
    }
}

/// A start position cannot be used.
pub(crate) fn start_refused(error: &StartError) -> Error {
    match error {
        StartError::BeyondEnd { asked, next } => Error::new(
            microsoft::ARGUMENT_ERROR,
            format!(
                "The supplied offset or sequence number '{asked}' is invalid. The next event of \
                 this partition gets '{next}'. A checkpoint of another hub or of deleted data \
                 looks like this"
            ),
        ),
        StartError::Store(error) => read_failed(error),
    }
}

/// Events could not be read.
pub(crate) fn read_failed(error: &StoreError) -> Error {
    match error {
        StoreError::Closed => detach_forced(),
        // Never left out silently: the reader is told, and decides to go on behind it.
        StoreError::Damaged {
            resume: Some(resume),
            ..
        } => Error::new(
            condition::INTERNAL_ERROR,
            format!(
                "The next events of this partition are damaged in the hub's log. The ones from \
                 sequence number '{resume}' on can be read; start there to go on without those \
                 before it"
            ),
        ),
        StoreError::ReadOnly { .. }
        | StoreError::Full
        | StoreError::Damaged { .. }
        | StoreError::Read { .. }
        | StoreError::OutOfBounds { .. } => {
            Error::new(condition::INTERNAL_ERROR, "The hub could not read its log")
        }
    }
}

/// An event is larger than the client takes.
pub(crate) fn event_too_large(refused: &SendError) -> Error {
    Error::new(condition::MESSAGE_SIZE_EXCEEDED, refused.to_string())
}

/// An event of the log could not be understood.
pub(crate) fn record_unreadable() -> Error {
    Error::new(
        condition::INTERNAL_ERROR,
        "The hub could not read an event of its log",
    )
}

/// The text that clients of Event Hubs know for an unknown address.
fn entity_not_found(entity: &str) -> String {
    let shown: String = entity.chars().take(256).collect();
    format!("The messaging entity '{shown}' could not be found.")
}

fn partition_not_found(address: &PartitionAddress<'_>) -> String {
    entity_not_found(&format!(
        "{}/ConsumerGroups/{}/Partitions/{}",
        address.entity, address.group, address.partition
    ))
}
