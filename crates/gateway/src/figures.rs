//! Counters of the gateway, looked up once and not for each message.

use std::time::Duration;

use fieldpost_record::RecordError;
use metrics::{Counter, Gauge, counter, gauge};

use crate::quiet::RepeatLimit;

/// Counters of one protocol, shared by its connections.
pub(crate) struct ProtocolFigures {
    /// Messages that the hub accepted; they are not durable yet.
    pub(crate) messages: Counter,
    /// Payload bytes of those messages.
    pub(crate) payload_bytes: Counter,
}

impl ProtocolFigures {
    /// The counters for `protocol`, a word of a small fixed set.
    pub(crate) fn of(protocol: &'static str) -> Self {
        Self {
            messages: counter!("fieldpost_messages_accepted_total", "protocol" => protocol),
            payload_bytes: counter!("fieldpost_message_bytes_total", "protocol" => protocol),
        }
    }
}

/// Counts a connection among the open ones until it is dropped.
///
/// It keeps the labels and not the gauge, each handle of which is an allocation.
pub(crate) struct OpenConnection {
    protocol: &'static str,
    transport: &'static str,
}

impl OpenConnection {
    /// Counts a connection that has just come.
    pub(crate) fn count(protocol: &'static str, transport: &'static str) -> Self {
        counter!("fieldpost_connections_total", "protocol" => protocol, "transport" => transport)
            .increment(1);
        let open = Self {
            protocol,
            transport,
        };
        open.gauge().increment(1);
        open
    }

    fn gauge(&self) -> Gauge {
        gauge!(
            "fieldpost_connections_open",
            "protocol" => self.protocol,
            "transport" => self.transport
        )
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.gauge().decrement(1);
    }
}

/// Counts a connection that was turned away or closed for what its peer did.
pub(crate) fn count_refused(protocol: &'static str, reason: &'static str) {
    counter!("fieldpost_connections_refused_total", "protocol" => protocol, "reason" => reason)
        .increment(1);
}

/// Counts a feedback message that cannot be read, and logs it unless there were others just now.
pub(crate) fn report_unreadable_feedback(sequence: u64, error: &RecordError, now: Duration) {
    static LIMIT: RepeatLimit = RepeatLimit::new();
    counter!("fieldpost_feedback_messages_unreadable_total").increment(1);
    if let Some(left_out) = LIMIT.pass(now) {
        tracing::error!(
            sequence,
            %error,
            left_out,
            "a feedback message cannot be read and was rejected"
        );
    }
}

/// Logs that a message to a device cannot be read, unless there were others just now. It is found among
/// the dead letters.
pub(crate) fn report_unreadable_command(sequence: u64, error: &RecordError, now: Duration) {
    static LIMIT: RepeatLimit = RepeatLimit::new();
    if let Some(left_out) = LIMIT.pass(now) {
        tracing::error!(
            sequence,
            %error,
            left_out,
            "a message to a device cannot be read and was rejected"
        );
    }
}
