//! What a connection is set to.

use std::time::Duration;

use crate::value::{Map, Symbol};

/// Settings of a connection, shared by all connections of a listener or a client.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our name in `open`.
    pub container_id: String,
    /// The host we want to reach (client role).
    pub hostname: Option<String>,
    /// Largest frame that we accept, in bytes; at least 512.
    pub max_frame_size: u32,
    /// Highest channel number that may be used.
    pub channel_max: u16,
    /// Silence after which we give the peer up; nothing means never.
    pub idle_time_out: Option<Duration>,
    /// Transfer frames that a peer may send before we open its window again, which happens by
    /// itself when half of it is used up.
    pub incoming_window: u32,
    /// What we tell as our own outgoing window; it limits nothing.
    pub outgoing_window: u32,
    /// Highest link handle that may be used.
    pub handle_max: u32,
    /// Facts about us in `open`; empty is null.
    pub properties: Map,
    /// Bounds on what the peer can make us hold.
    pub limits: Limits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            container_id: "fieldpost".to_owned(),
            hostname: None,
            max_frame_size: 65_536,
            channel_max: 8_191,
            idle_time_out: Some(Duration::from_secs(240)),
            incoming_window: 5_000,
            outgoing_window: u32::MAX,
            handle_max: 262_143,
            properties: Map::new(),
            limits: Limits::default(),
        }
    }
}

/// Bounds on what the peer can make us hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest frame, in bytes, until the peer is authenticated.
    pub frame_bytes_unauthenticated: u32,
    /// Open sessions until the peer is authenticated.
    pub sessions_unauthenticated: usize,
    /// Links, over all sessions, until the peer is authenticated.
    pub links_unauthenticated: usize,
    /// Bytes of attaches, as they came, that wait for the caller's answer, until the peer is
    /// authenticated. What comes beyond is refused.
    pub asked_bytes_unauthenticated: usize,
    /// Open sessions.
    pub sessions: usize,
    /// Links, over all sessions.
    pub links: usize,
    /// Bytes of attaches, as they came, that wait for the caller's answer. What comes beyond is
    /// refused.
    pub asked_bytes: usize,
    /// Bytes of output from which on no more input is taken, until the peer is authenticated.
    pub output_bytes_unauthenticated: usize,
    /// Bytes of output from which on no more input is taken: a peer that does not read cannot
    /// make us queue answers.
    pub output_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_bytes_unauthenticated: 16 * 1024,
            sessions_unauthenticated: 4,
            links_unauthenticated: 8,
            asked_bytes_unauthenticated: 32 * 1024,
            sessions: 2_048,
            links: 8_192,
            asked_bytes: 2 * 1024 * 1024,
            output_bytes_unauthenticated: 16 * 1024,
            output_bytes: 256 * 1024,
        }
    }
}

/// How a client authenticates in the SASL layer.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientSasl {
    /// The mechanism; see [`mechanism`](crate::sasl::mechanism).
    pub mechanism: Symbol,
    /// What it starts with. May hold a secret.
    pub initial_response: Option<Vec<u8>>,
}

impl std::fmt::Debug for ClientSasl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientSasl")
            .field("mechanism", &self.mechanism)
            .finish_non_exhaustive()
    }
}
