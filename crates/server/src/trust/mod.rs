//! What clients need to trust this hub: the certificate that its TLS listeners show.
//!
//! By default the hub is its own certificate authority: the CA is made on first start and lasts ten
//! years, so that devices which were given it go on working; the certificate that it signs lasts
//! one year and is made anew when a third of that is left or when the hub's names change. An
//! operator may give a certificate of his own instead.
//!
//! Certificates follow the system's time even in test mode: the clients that check them do.

mod authority;
mod refresh;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{Config, OwnCertificate};
pub(crate) use refresh::Refresher;

/// Where the certificate comes from.
#[derive(Clone, Debug)]
pub(crate) enum Trust {
    /// Made and renewed by the hub.
    Made(authority::Authority),
    /// Given by the operator.
    Own(OwnCertificate),
}

/// A certificate with its key, as it is shown to clients.
#[derive(Debug)]
pub(crate) struct Presented {
    /// Leaf first.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub(crate) key: PrivateKeyDer<'static>,
    /// Why there is no newer one although there should be.
    pub(crate) outdated: Option<String>,
}

impl Clone for Presented {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            outdated: self.outdated.clone(),
        }
    }
}

/// Why there is no certificate to show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrustError {
    #[error("cannot read {}: {error}", path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("cannot write {}: {error}", path.display())]
    Write { path: PathBuf, error: io::Error },
    #[error("{} holds no {what} in PEM form", path.display())]
    Unusable { path: PathBuf, what: &'static str },
    #[error("{} has run out; move it and ca-key.pem away to get a new CA, which every device must then trust", path.display())]
    AuthorityExpired { path: PathBuf },
    #[error(
        "{} is missing, so the server certificate cannot be renewed; put it back, or move ca.pem away to get a new CA, which every device must then trust",
        path.display()
    )]
    AuthorityKeyMissing { path: PathBuf },
    #[error(
        "the system's clock is not set; a certificate authority made now would have run out once it is"
    )]
    ClockNotSet,
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
}

impl Trust {
    /// As the configuration says.
    pub(crate) fn new(config: &Config) -> Self {
        match &config.certificate {
            Some(own) => Self::Own(own.clone()),
            None => Self::Made(authority::Authority {
                folder: config.data.clone(),
                names: certificate_names(config),
            }),
        }
    }

    /// The certificate to show from now on; makes or renews it where that is the hub's business.
    pub(crate) fn present(&self, now: SystemTime) -> Result<Presented, TrustError> {
        match self {
            Self::Made(authority) => authority.present(now),
            Self::Own(own) => read_pair(&own.certificate, &own.private_key),
        }
    }

    /// The CA certificate that clients must be told to trust, if any.
    pub(crate) fn ca_certificate(&self) -> Option<PathBuf> {
        match self {
            Self::Made(authority) => Some(authority.ca_path()),
            Self::Own(own) => own.ca_certificate.clone(),
        }
    }
}

/// Checks a certificate of the operator's own without showing it.
pub(crate) fn check(config: &Config) -> anyhow::Result<()> {
    if let Some(own) = &config.certificate {
        let presented = read_pair(&own.certificate, &own.private_key)?;
        fieldpost_gateway::TlsIdentity::new(presented.chain, presented.key)?;
    }
    Ok(())
}

/// The names that every hub has, besides the configured ones.
pub(crate) fn built_in_names(hub_name: &str) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "hub.localhost", "127.0.0.1", "::1"]
        .map(str::to_owned)
        .into();
    names.push(format!("{hub_name}.localhost").to_ascii_lowercase());
    let machine = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_ascii_lowercase();
    if !machine.is_empty()
        && machine
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    {
        names.push(machine);
    }
    names
}

fn certificate_names(config: &Config) -> Vec<String> {
    let configured = config
        .names()
        .into_iter()
        .map(|name| match name.parse::<IpAddr>() {
            Ok(address) => address.to_string(),
            Err(_) => name.to_ascii_lowercase(),
        });
    let mut names: Vec<_> = built_in_names(&config.hub_name)
        .into_iter()
        .chain(configured)
        .collect();
    names.sort();
    names.dedup();
    names
}

fn read_pair(certificate: &Path, private_key: &Path) -> Result<Presented, TrustError> {
    let unusable = |path: &Path, what| TrustError::Unusable {
        path: path.to_owned(),
        what,
    };
    let pem = read(certificate)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| unusable(certificate, "certificate"))?;
    if chain.is_empty() {
        return Err(unusable(certificate, "certificate"));
    }
    let pem = read(private_key)?;
    let key =
        PrivateKeyDer::from_pem_slice(&pem).map_err(|_| unusable(private_key, "private key"))?;
    Ok(Presented {
        chain,
        key,
        outdated: None,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, TrustError> {
    std::fs::read(path).map_err(|error| TrustError::Read {
        path: path.to_owned(),
        error,
    })
}
