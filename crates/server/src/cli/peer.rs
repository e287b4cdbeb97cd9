//! What the commands need that speak to a running hub as devices and services do.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::Args;
use fieldpost_client::{ConnectionString, Trust};
use fieldpost_model::Timestamp;
use serde_json::Value;

use super::{PlaceArgs, encoded};
use crate::admin::{AdminClient, NoStore};
use crate::assembly::Endpoints;
use crate::config::{Config, ListenerName};

/// Which hub to speak to.
#[derive(Args, Clone, Debug)]
pub(super) struct PeerArgs {
    #[command(flatten)]
    place: PlaceArgs,
    /// A connection string of a hub anywhere, instead of the one that runs on the data directory.
    /// The environment variable keeps its key out of the list of processes.
    #[arg(
        long,
        value_name = "TEXT",
        requires = "ca",
        env = "FIELDPOST_CONNECTION_STRING",
        hide_env_values = true
    )]
    connection_string: Option<String>,
    /// The CA certificate (PEM) to trust instead of the hub's own.
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

/// How to reach a hub in one role.
pub(super) struct Peer {
    pub(super) connection_string: ConnectionString,
    /// Where to connect instead of the standard port of the host name.
    pub(super) address: Option<SocketAddr>,
    pub(super) trust: Trust,
    /// The hub's present, from which tokens count. In test mode it is ahead of the system's.
    pub(super) now: Timestamp,
}

/// As whom to connect.
#[derive(Clone, Copy, Debug)]
pub(super) enum Role<'a> {
    /// As this device.
    Device(&'a str),
    /// As a reader of the built-in endpoint.
    Reader,
    /// As a service that sends messages to devices.
    Service,
}

impl PeerArgs {
    /// Whether the hub of a data directory is meant.
    pub(super) fn is_local(&self) -> bool {
        self.connection_string.is_none()
    }

    /// The configuration of that hub.
    pub(super) fn config(&self) -> anyhow::Result<Config> {
        Ok(self.place.load()?.0)
    }

    /// Finds the hub, its certificate, and a credential.
    pub(super) async fn find(&self, role: Role<'_>) -> anyhow::Result<Peer> {
        if let Some(text) = &self.connection_string {
            let ca = self
                .ca
                .clone()
                .context("--ca is needed with --connection-string")?;
            return Ok(Peer {
                connection_string: text.parse()?,
                address: None,
                trust: read_trust(ca)?,
                now: now(),
            });
        }
        let config = self.config()?;
        let Some(endpoints) = Endpoints::read(&config.data) else {
            bail!(
                "no hub runs on {}; start one with `fieldpost serve`, or name its data directory with --data",
                config.data.display()
            );
        };
        let (listener, query) = match role {
            Role::Device(id) => (ListenerName::Mqtts, format!("device={}", encoded(id))),
            Role::Reader => (ListenerName::Amqps, "eventHub=true".to_owned()),
            Role::Service => (ListenerName::Amqps, "policy=service".to_owned()),
        };
        let address = endpoints
            .address(listener)
            .with_context(|| format!("the hub's listener {} is off", listener.as_str()))?;
        let client = AdminClient::open(&config, NoStore::Refuse).await?;
        let answer = client.get(&format!("/api/connection-string?{query}")).await;
        client.close().await;
        let answer = answer?;
        let text = |name| answer.get(name).and_then(Value::as_str);
        let ca = self.ca.clone().or(endpoints.ca_certificate);
        let ca = ca.context("the hub has a certificate of its operator; name its CA with --ca")?;
        Ok(Peer {
            connection_string: text("connectionString")
                .context("the hub gave no connection string")?
                .parse()?,
            address: Some(reachable(address)),
            trust: read_trust(ca)?,
            now: text("now").and_then(Timestamp::parse).unwrap_or_else(now),
        })
    }
}

/// The system's present.
pub(super) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Timestamp::UNIX_EPOCH.saturating_add(since.unwrap_or_default())
}

/// All interfaces are reached through loopback.
pub(super) fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, address.port()).into(),
        _ => address,
    }
}

pub(super) fn read_trust(ca: PathBuf) -> anyhow::Result<Trust> {
    let pem = std::fs::read_to_string(&ca)
        .with_context(|| format!("read the CA certificate {}", ca.display()))?;
    Ok(Trust::in_pem(&pem)?)
}
