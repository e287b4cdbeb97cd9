//! How a connection goes wrong: by the peer's bytes, by its silence, or by a call out of place.

use crate::packet::{DecodeError, EncodeError, PacketId, PacketType};

/// The peer broke a rule of MQTT 3.1.1 or asked for what this engine does not speak.
///
/// The connection is closed afterwards. Where the protocol has an answer it is in the output
/// already: write the output, then close the socket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// The bytes are no packet.
    #[error("malformed packet: {0}")]
    Malformed(#[from] DecodeError),
    /// The fixed header announces a packet, header included, beyond the limit now in force.
    #[error("packet of {length} bytes announced, at most {max} are accepted")]
    PacketTooLong {
        /// Announced length of the whole packet in bytes.
        length: u64,
        /// The limit in bytes.
        max: u32,
    },
    /// The first packet of a connection was not the one that opens it.
    #[error("{packet:?} before the connection was opened")]
    NotOpened {
        /// What came instead of CONNECT (to a server) or CONNACK (to a client).
        packet: PacketType,
    },
    /// A second CONNECT on one connection.
    #[error("second CONNECT")]
    SecondConnect,
    /// The client speaks another version of the protocol; it has been answered in its own form.
    #[error("protocol level {level} is not supported")]
    UnsupportedLevel {
        /// The level byte: 3 for MQTT 3.1, 5 for MQTT 5.
        level: u8,
    },
    /// An empty client id without a clean session; CONNACK 2 is in the output.
    #[error("empty client id without a clean session")]
    ClientIdMissing,
    /// A PUBLISH with QoS 2.
    #[error("PUBLISH with QoS 2")]
    QosTwo,
    /// A `+` or `#` in the topic of a PUBLISH or a will.
    #[error("wildcard in a topic name")]
    WildcardInTopic,
    /// A packet that this peer may not send in this state.
    #[error("unexpected {packet:?}")]
    Unexpected {
        /// Its type.
        packet: PacketType,
    },
    /// Client role: an acknowledgement of something that is not in flight.
    #[error("{packet:?} for packet id {packet_id}, which is not in flight")]
    NotInFlight {
        /// The acknowledging packet.
        packet: PacketType,
        /// The id it names.
        packet_id: PacketId,
    },
}

/// The peer has been silent for too long; the connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Timeout {
    /// Server role: no CONNECT in time.
    #[error("no CONNECT in time")]
    Connect,
    /// Server role: nothing for one and a half times the keep-alive, or one packet that took too
    /// long.
    #[error("keep-alive expired")]
    KeepAlive,
    /// Client role: no CONNACK in time.
    #[error("no CONNACK in time")]
    Connack,
    /// Client role: no answer to a PINGREQ in time.
    #[error("no PINGRESP in time")]
    Pingresp,
}

/// Why a packet was not put into the output. Nothing was written and nothing has changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The connection is not open (not yet accepted, or closed).
    #[error("the connection is not open")]
    NotOpen,
    /// As many packets are in flight as the options allow.
    #[error("the in-flight window is full")]
    WindowFull,
    /// The packet id lies among those in flight.
    #[error("packet id {packet_id} is in use")]
    PacketIdInUse {
        /// The id asked for.
        packet_id: PacketId,
    },
    /// The content does not fit into a packet.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}
