//! `endpoints.json`: where a running hub is reached, for tools and scripts. It holds no secrets.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::listeners::BoundListener;
use crate::config::ListenerName;
use crate::files;

/// The content of `endpoints.json`. Its shape is a contract with users' scripts.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Endpoints {
    /// The name in connection strings.
    pub(crate) host_name: String,
    /// The CA certificate that clients must trust; null when they need none of ours.
    pub(crate) ca_certificate: Option<PathBuf>,
    /// The listeners that are up.
    pub(crate) listeners: BTreeMap<String, Endpoint>,
}

/// Where one listener is reached.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Endpoint {
    /// `0.0.0.0` for all interfaces.
    pub(crate) address: std::net::IpAddr,
    /// The real port, also where the configuration says 0.
    pub(crate) port: u16,
}

impl Endpoints {
    /// Describes bound listeners. The CA's path is made absolute.
    pub(crate) fn new(
        host_name: &str,
        ca_certificate: Option<PathBuf>,
        listeners: &[BoundListener],
    ) -> Self {
        let listeners = listeners.iter().map(|listener| {
            let endpoint = Endpoint {
                address: listener.address.ip(),
                port: listener.address.port(),
            };
            (listener.name.as_str().to_owned(), endpoint)
        });
        Self {
            host_name: host_name.to_owned(),
            ca_certificate: ca_certificate.map(|path| std::path::absolute(&path).unwrap_or(path)),
            listeners: listeners.collect(),
        }
    }

    /// Where a listener is reached, if it is up.
    pub(crate) fn address(&self, name: ListenerName) -> Option<SocketAddr> {
        self.listeners
            .get(name.as_str())
            .map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port))
    }

    /// Reads the file of a data directory; `None` when no hub runs there.
    pub(crate) fn read(data: &Path) -> Option<Self> {
        let text = std::fs::read(path(data)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Writes the file into a data directory, whole or not at all.
    pub(crate) fn write(&self, data: &Path) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        files::replace(&path(data), &text, files::PUBLIC)
    }
}

/// Removes the file from a data directory, if it is there.
pub(crate) fn remove(data: &Path) -> io::Result<()> {
    files::remove(&path(data))
}

fn path(data: &Path) -> PathBuf {
    data.join("endpoints.json")
}
