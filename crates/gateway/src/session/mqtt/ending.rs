//! Why an MQTT connection ends, and who hears of it.

use std::io;
use std::time::Duration;

use fieldpost_hub::faults::Fault;
use fieldpost_hub::ingest::{IngestError, MessageRefused};
use fieldpost_hub::presence::Eviction;
use fieldpost_mqtt::{Timeout, Violation};
use fieldpost_store::StoreError;
use tracing::{debug, info};

use crate::figures::count_refused;
use crate::quiet::RepeatLimit;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ending {
    #[error("the client disconnected")]
    Disconnected,
    #[error("the client closed the connection without DISCONNECT")]
    Closed,
    #[error("the connection broke: {0}")]
    Broken(#[from] io::Error),
    #[error("the client was silent for too long: {0:?}")]
    Silent(Timeout),
    #[error("CONNECT was refused: {0}")]
    Refused(Refused),
    #[error("the client broke the protocol: {0}")]
    Violation(#[from] Violation),
    #[error("the will's topic is not the client's own")]
    ForeignWill,
    #[error("a publish to a topic that is not the client's own")]
    ForeignTopic,
    #[error("a subscription that the client may not have")]
    ForeignFilter,
    #[error("a message of {size} bytes, more than {max}")]
    MessageTooLarge { size: usize, max: usize },
    #[error("a message was not taken: {0}")]
    NotTaken(MessageRefused),
    #[error("the session was ended: {0:?}")]
    Evicted(Eviction),
    #[error("a test asked for it: {0:?}")]
    OnDemand(Fault),
    #[error("the token expired")]
    TokenExpired,
    #[error("the store held messages back for too long")]
    HeldTooLong,
    #[error("the store failed: {0}")]
    Store(StoreError),
    #[error("its incomplete packet was the oldest when memory for them ran out")]
    IncompleteForTooLong,
    #[error("the gateway is being drained")]
    Drained,
}

/// Why a CONNECT was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("user name or client id are not those of a device of this hub")]
    Name,
    #[error("no password")]
    NoPassword,
    #[error("not authorised: {0}")]
    Denied(&'static str),
    #[error("more devices connect than may")]
    Throttled,
    #[error("the hub is not ready")]
    NotReady,
}

impl Ending {
    /// Logs and counts the end, once for each connection.
    pub(super) fn report(&self, now: Duration) {
        static LIMIT: RepeatLimit = RepeatLimit::new();
        if let Some(reason) = self.counted_as() {
            count_refused("mqtt", reason);
        }
        // A fleet of misbehaving devices must not fill the log.
        if self.is_misbehaviour()
            && let Some(left_out) = LIMIT.pass(now)
        {
            info!(reason = %self, left_out, "MQTT connection closed");
        } else {
            debug!(reason = %self, "MQTT connection closed");
        }
    }

    fn is_misbehaviour(&self) -> bool {
        matches!(
            self,
            Self::Violation(_)
                | Self::ForeignWill
                | Self::ForeignTopic
                | Self::ForeignFilter
                | Self::MessageTooLarge { .. }
        )
    }

    /// The metric label of an end that the client did not want.
    fn counted_as(&self) -> Option<&'static str> {
        Some(match self {
            Self::Disconnected | Self::Closed | Self::Broken(_) | Self::Drained => return None,
            // Was counted with the refusal, which came before.
            Self::NotTaken(_) => return None,
            Self::Silent(_) => "silent",
            Self::Refused(Refused::NotReady) => "not_ready",
            Self::Refused(Refused::Throttled) => "throttled",
            Self::Refused(_) => "unauthorized",
            Self::Violation(_) => "protocol",
            Self::ForeignWill | Self::ForeignTopic => "foreign_topic",
            Self::ForeignFilter => "foreign_filter",
            Self::MessageTooLarge { .. } => "message_too_large",
            Self::Evicted(_) => "evicted",
            Self::OnDemand(_) => "on_demand",
            Self::TokenExpired => "token_expired",
            Self::HeldTooLong => "held",
            Self::Store(_) => "store",
            Self::IncompleteForTooLong => "incomplete",
        })
    }
}

impl From<IngestError> for Ending {
    fn from(error: IngestError) -> Self {
        match error {
            IngestError::Store(error) => Self::Store(error),
        }
    }
}
