//! Client certificates: what one says, and who vouches for it.

use std::fmt;
use std::time::Duration;

use fieldpost_model::{Identity, Timestamp};
use ring::digest;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::Denial;
use crate::authorities::Anchor;
use crate::identity::Thumbprints;

/// The certificate that a client showed when TLS began, with those that it sent along. That the client
/// has the key has been proven; nothing else has.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    leaf: Box<[u8]>,
    intermediates: Box<[Box<[u8]>]>,
}

/// What matters of a certificate that can be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The one common name of its subject, if it has exactly one.
    pub(crate) common_name: Option<String>,
    /// The first moment at which it is good.
    pub(crate) not_before: Timestamp,
    /// The last one.
    pub(crate) not_after: Timestamp,
}

impl ClientCertificate {
    /// From a chain in DER, leaf first; `None` when it is empty.
    #[must_use]
    pub fn new<'a>(chain: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let mut chain = chain.into_iter().map(Box::from);
        Some(Self {
            leaf: chain.next()?,
            intermediates: chain.collect(),
        })
    }

    /// Whether it is one of a device's registered certificates, and good now. Gives its end.
    ///
    /// Nobody else has to vouch for it: it may be self-signed, and of any version of X.509.
    pub(crate) fn check_thumbprint(
        &self,
        registered: &Thumbprints,
        now: Timestamp,
    ) -> Result<Timestamp, Denial> {
        let facts = Facts::of(&self.leaf).ok_or(Denial::UnreadableCertificate)?;
        let registered = [&registered.primary, &registered.secondary];
        let is_registered = registered.into_iter().flatten().any(|registered| {
            thumbprint_like(registered, &self.leaf).eq_ignore_ascii_case(registered)
        });
        if !is_registered {
            return Err(Denial::ForeignCertificate);
        }
        facts.check_time(now)?;
        Ok(facts.not_after)
    }

    /// Whether one of `anchors` vouches that it is the identity's, now. Its common name is the device's id,
    /// for a module `device/module`. Gives its end.
    pub(crate) fn check_chain<'a>(
        &self,
        identity: &Identity,
        anchors: impl IntoIterator<Item = &'a Anchor>,
        now: Timestamp,
    ) -> Result<Timestamp, Denial> {
        let facts = Facts::of(&self.leaf).ok_or(Denial::UnreadableCertificate)?;
        if facts.common_name != Some(identity.to_string()) {
            return Err(Denial::ForeignCertificate);
        }
        facts.check_time(now)?;
        let good_now = anchors
            .into_iter()
            .filter(|anchor| anchor.facts.check_time(now).is_ok());
        let certificates: Vec<_> = good_now
            .map(|anchor| CertificateDer::from(&*anchor.certificate))
            .collect();
        let anchors: Vec<_> = certificates
            .iter()
            .filter_map(|certificate| anchor_from_trusted_cert(certificate).ok())
            .collect();
        let leaf = CertificateDer::from(&*self.leaf);
        let leaf = EndEntityCert::try_from(&leaf).map_err(|_| Denial::UnreadableCertificate)?;
        let intermediates: Vec<_> = (self.intermediates.iter())
            .map(|certificate| CertificateDer::from(&**certificate))
            .collect();
        let seconds = u64::try_from(now.as_millis() / 1000).unwrap_or_default();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        leaf.verify_for_usage(
            ALL_VERIFICATION_ALGS,
            &anchors,
            &intermediates,
            now,
            KeyUsage::client_auth(),
            None,
            None,
        )
        .map_err(|error| match error {
            webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => {
                Denial::CertificateNotValid
            }
            _ => Denial::UnknownAuthority,
        })?;
        Ok(facts.not_after)
    }
}

/// Only what identifies it: certificates are long.
impl fmt::Debug for ClientCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientCertificate")
            .field("thumbprint", &sha256_thumbprint(&self.leaf))
            .field("intermediates", &self.intermediates.len())
            .finish()
    }
}

impl Facts {
    /// `None` when it is no certificate, or more than one.
    pub(crate) fn of(der: &[u8]) -> Option<Self> {
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        rest.is_empty().then(|| Self::of_parsed(&certificate))
    }

    pub(crate) fn of_parsed(certificate: &X509Certificate<'_>) -> Self {
        let mut names = certificate.subject().iter_common_name();
        let common_name = match (names.next(), names.next()) {
            (Some(name), None) => name.as_str().ok().map(str::to_owned),
            _ => None,
        };
        let validity = certificate.validity();
        let time = |seconds: i64| Timestamp::from_millis(seconds.saturating_mul(1000));
        Self {
            common_name,
            not_before: time(validity.not_before.timestamp()),
            // Its last second is a whole one.
            not_after: time(validity.not_after.timestamp().saturating_add(1)),
        }
    }

    pub(crate) fn check_time(&self, now: Timestamp) -> Result<(), Denial> {
        if now < self.not_before || now >= self.not_after {
            return Err(Denial::CertificateNotValid);
        }
        Ok(())
    }
}

/// The thumbprint of a certificate in the kind of `registered`: SHA-1 when that has 40 digits.
fn thumbprint_like(registered: &str, der: &[u8]) -> String {
    if registered.len() == 40 {
        hex(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, der).as_ref())
    } else {
        sha256_thumbprint(der)
    }
}

/// SHA-256 of a certificate in DER, as 64 upper-case hexadecimal digits.
pub(crate) fn sha256_thumbprint(der: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, der).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;

    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a string does not fail.
        let _ = write!(text, "{byte:02X}");
        text
    })
}
