//! The hub as its own certificate authority.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Presented, TrustError, read, read_pair};
use crate::files;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const CA_LIFE: Duration = Duration::from_secs(3652 * 24 * 60 * 60);
/// Below the 398 days that strict clients take.
const LEAF_LIFE: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// A new leaf is made when this much of the old one is left.
const LEAF_REST: Duration = Duration::from_secs(120 * 24 * 60 * 60);
/// Devices' clocks are often behind; certificates are valid from a little before they are made.
const BACKDATED: Duration = DAY;

/// 2025-01-01T00:00:00Z. No hub of this kind ran before; a clock that says so was not set.
const CLOCK_SET_S: i64 = 1_735_689_600;

/// The CA in the data directory and the names that its certificate carries.
#[derive(Clone, Debug)]
pub(crate) struct Authority {
    /// The data directory.
    pub(crate) folder: PathBuf,
    /// Host names and IP addresses, sorted, without repetition.
    pub(crate) names: Vec<String>,
}

impl Authority {
    /// The CA certificate.
    pub(crate) fn ca_path(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// The server certificate: the one on disk while it serves, else a new one.
    pub(crate) fn present(&self, now: SystemTime) -> Result<Presented, TrustError> {
        let ca_der = self.ca(now)?;
        let (certificate, key) = (
            self.folder.join("server.pem"),
            self.folder.join("server-key.pem"),
        );
        // A pair that cannot be read, or that a crash left half replaced, is made anew.
        let old = read_pair(&certificate, &key).ok();
        if let Some(old) = &old
            && self.still_serves(old, &ca_der, now)
        {
            return Ok(old.clone());
        }
        match (self.issue(&ca_der, now, &certificate, &key), old) {
            (Ok(()), _) => {}
            // Operators may keep the CA's key elsewhere. A certificate whose names or rest of life
            // call for another one is better than no hub.
            (Err(error @ TrustError::AuthorityKeyMissing { .. }), Some(mut old))
                if is_valid(&old, &ca_der, now) =>
            {
                old.outdated = Some(error.to_string());
                return Ok(old);
            }
            (Err(error), _) => return Err(error),
        }
        tracing::info!(names = %self.names.join(" "), "made a server certificate");
        read_pair(&certificate, &key)
    }

    /// The CA certificate, made when there is none.
    fn ca(&self, now: SystemTime) -> Result<Vec<u8>, TrustError> {
        let (path, key_path) = (self.ca_path(), self.ca_key_path());
        if !path.exists() {
            // A CA from a machine whose clock was not set yet would have run out once it is.
            if seconds(now) < CLOCK_SET_S {
                return Err(TrustError::ClockNotSet);
            }
            let key = KeyPair::generate()?;
            let certificate = ca_params(now)?.self_signed(&key)?;
            // The key first: a certificate without its key would never be replaced.
            write(&key_path, &key.serialize_pem(), files::PRIVATE)?;
            write(&path, &certificate.pem(), files::PUBLIC)?;
            tracing::info!(path = %path.display(), "made a certificate authority");
        }
        let pem = read(&path)?;
        let unusable = || TrustError::Unusable {
            path: path.clone(),
            what: "certificate",
        };
        let (_, pem) = x509_parser::pem::parse_x509_pem(&pem).map_err(|_| unusable())?;
        let (_, ca) = X509Certificate::from_der(&pem.contents).map_err(|_| unusable())?;
        if ca.validity().not_after.timestamp() <= seconds(now) {
            return Err(TrustError::AuthorityExpired { path });
        }
        Ok(pem.contents)
    }

    fn ca_key_path(&self) -> PathBuf {
        self.folder.join("ca-key.pem")
    }

    fn still_serves(&self, presented: &Presented, ca_der: &[u8], now: SystemTime) -> bool {
        let Some((leaf, ca)) = pair(presented, ca_der) else {
            return false;
        };
        // Near the CA's own end a leaf cannot last longer; making one a minute would not help.
        let enough = seconds(now + LEAF_REST).min(ca.validity().not_after.timestamp());
        is_valid(presented, ca_der, now)
            && leaf.validity().not_after.timestamp() >= enough
            && names_of(&leaf) == self.names
    }

    fn issue(
        &self,
        ca_der: &[u8],
        now: SystemTime,
        certificate_path: &Path,
        key_path: &Path,
    ) -> Result<(), TrustError> {
        let ca_key_path = self.ca_key_path();
        if !ca_key_path.exists() {
            return Err(TrustError::AuthorityKeyMissing { path: ca_key_path });
        }
        let ca_key = String::from_utf8_lossy(&read(&ca_key_path)?).into_owned();
        let ca_key = KeyPair::from_pem(&ca_key).map_err(|_| TrustError::Unusable {
            path: ca_key_path.clone(),
            what: "private key",
        })?;
        let ca_end = X509Certificate::from_der(ca_der)
            .map(|(_, ca)| ca.validity().not_after.timestamp())
            .unwrap_or(i64::MAX);
        let issuer = Issuer::from_ca_cert_der(&ca_der.to_vec().into(), ca_key)?;
        let key = KeyPair::generate()?;
        let certificate = self.leaf_params(now, ca_end)?.signed_by(&key, &issuer)?;
        write(key_path, &key.serialize_pem(), files::PRIVATE)?;
        write(certificate_path, &certificate.pem(), files::PUBLIC)
    }

    fn leaf_params(&self, now: SystemTime, ca_end: i64) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::default();
        let end = seconds(now + LEAF_LIFE).min(ca_end);
        params.not_before = OffsetDateTime::from(now - BACKDATED);
        params.not_after = OffsetDateTime::from_unix_timestamp(end)
            .unwrap_or_else(|_| OffsetDateTime::from(now + LEAF_LIFE));
        params.serial_number = Some(serial());
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, "Fieldpost hub");
        params.subject_alt_names = self
            .names
            .iter()
            .map(|name| match name.parse::<IpAddr>() {
                Ok(address) => Ok(SanType::IpAddress(address)),
                Err(_) => Ok(SanType::DnsName(name.as_str().try_into()?)),
            })
            .collect::<Result<_, rcgen::Error>>()?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }
}

/// Whether clients take a certificate at all: it fits its key, comes from the CA and is valid now.
fn is_valid(presented: &Presented, ca_der: &[u8], now: SystemTime) -> bool {
    let Some((leaf, ca)) = pair(presented, ca_der) else {
        return false;
    };
    let key_matches = KeyPair::try_from(presented.key.secret_der())
        .is_ok_and(|key| key.public_key_raw() == leaf.public_key().subject_public_key.as_ref());
    key_matches
        && leaf.verify_signature(Some(ca.public_key())).is_ok()
        && leaf.validity().not_before.timestamp() <= seconds(now)
        && leaf.validity().not_after.timestamp() > seconds(now)
}

/// The leaf and the CA.
fn pair<'a>(
    presented: &'a Presented,
    ca_der: &'a [u8],
) -> Option<(X509Certificate<'a>, X509Certificate<'a>)> {
    let (_, leaf) = X509Certificate::from_der(presented.chain.first()?).ok()?;
    let (_, ca) = X509Certificate::from_der(ca_der).ok()?;
    Some((leaf, ca))
}

fn ca_params(now: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.not_before = OffsetDateTime::from(now - BACKDATED);
    params.not_after = OffsetDateTime::from(now + CA_LIFE);
    params.serial_number = Some(serial());
    params.distinguished_name = DistinguishedName::new();
    // Two hubs' CAs in one trust store must not share a name: clients look issuers up by it.
    let mark: String = random::<4>()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Fieldpost CA {mark}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn names_of(leaf: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = leaf.subject_alternative_name() else {
        return Vec::new();
    };
    let mut names: Vec<_> = extension
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes)
                    .ok()
                    .map(|b| IpAddr::from(b).to_string()),
                16 => <[u8; 16]>::try_from(*bytes)
                    .ok()
                    .map(|b| IpAddr::from(b).to_string()),
                _ => None,
            },
            _ => None,
        })
        .collect();
    names.sort();
    names
}

/// 16 random bytes; the first bit is off because serial numbers are positive, the second is on so
/// that all have one length.
fn serial() -> SerialNumber {
    let mut bytes = random::<16>();
    if let Some(first) = bytes.first_mut() {
        *first = *first & 0x7f | 0x40;
    }
    SerialNumber::from_slice(&bytes)
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .expect("the system's random source works, as key generation needs it too");
    bytes
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        })
}

fn write(path: &Path, pem: &str, mode: u32) -> Result<(), TrustError> {
    files::replace(path, pem.as_bytes(), mode).map_err(|error| TrustError::Write {
        path: path.to_owned(),
        error,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use x509_parser::extensions::ParsedExtension;

    use super::*;

    fn authority(folder: &Path, names: &[&str]) -> Authority {
        let mut names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        names.sort();
        Authority {
            folder: folder.to_owned(),
            names,
        }
    }

    fn leaf(presented: &Presented) -> Vec<u8> {
        presented.chain[0].to_vec()
    }

    const NAMES: &[&str] = &["localhost", "127.0.0.1", "::1", "hub.example"];

    #[test]
    fn the_certificate_carries_what_strict_clients_check() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let presented = authority(folder.path(), NAMES).present(now).unwrap();
        let leaf_der = leaf(&presented);
        let (_, leaf) = X509Certificate::from_der(&leaf_der).unwrap();
        let ca_pem = std::fs::read(folder.path().join("ca.pem")).unwrap();
        let (_, ca_pem) = x509_parser::pem::parse_x509_pem(&ca_pem).unwrap();
        let ca = ca_pem.parse_x509().unwrap();

        leaf.verify_signature(Some(ca.public_key())).unwrap();
        ca.verify_signature(None).unwrap();
        assert_eq!(leaf.issuer(), ca.subject());

        let ca_constraints = ca.basic_constraints().unwrap().unwrap();
        assert!(ca_constraints.critical && ca_constraints.value.ca);
        let ca_usage = ca.key_usage().unwrap().unwrap();
        assert!(ca_usage.critical && ca_usage.value.key_cert_sign());
        assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
        let usage = leaf.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && !usage.key_cert_sign());
        assert!(
            leaf.extended_key_usage()
                .unwrap()
                .unwrap()
                .value
                .server_auth
        );

        let subject_key = |certificate: &X509Certificate<'_>| {
            certificate
                .extensions()
                .iter()
                .find_map(|e| match e.parsed_extension() {
                    ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
                    _ => None,
                })
        };
        let authority_key = leaf
            .extensions()
            .iter()
            .find_map(|e| match e.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    id.key_identifier.as_ref().map(|id| id.0.to_vec())
                }
                _ => None,
            });
        assert!(subject_key(&ca).is_some() && subject_key(&leaf).is_some());
        assert_eq!(authority_key, subject_key(&ca));

        let mut names = NAMES.to_vec();
        names.sort_unstable();
        assert_eq!(names_of(&leaf), names);
        let days = |certificate: &X509Certificate<'_>| {
            certificate.validity().not_after.timestamp() / 86_400 - seconds(now) / 86_400
        };
        assert_eq!((days(&ca), days(&leaf)), (3652, 365));
        for key in ["ca-key.pem", "server-key.pem"] {
            let mode = std::fs::metadata(folder.path().join(key)).unwrap().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn a_certificate_is_kept_while_it_serves_and_made_anew_when_it_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let hub = authority(folder.path(), NAMES);
        let first = leaf(&hub.present(now).unwrap());
        let ca = std::fs::read(folder.path().join("ca.pem")).unwrap();
        let mut last = first.clone();
        let mut check = |why: &str, hub: &Authority, at: SystemTime, is_kept: bool| {
            let next = leaf(&hub.present(at).unwrap());
            assert_eq!(next == last, is_kept, "{why}");
            last = next;
            assert_eq!(
                std::fs::read(folder.path().join("ca.pem")).unwrap(),
                ca,
                "{why}"
            );
        };
        check("at once", &hub, now, true);
        check("after 200 days", &hub, now + 200 * DAY, true);
        check("with a third left", &hub, now + 250 * DAY, false);
        check("once renewed", &hub, now + 250 * DAY, true);
        let renamed = authority(folder.path(), &["localhost", "other.example"]);
        check("with other names", &renamed, now + 250 * DAY, false);
        check("with the same other names", &renamed, now + 250 * DAY, true);
        // A crash between the two renames of a renewal leaves a key that does not fit.
        let stray = KeyPair::generate().unwrap().serialize_pem();
        std::fs::write(folder.path().join("server-key.pem"), stray).unwrap();
        check("with a stray key", &renamed, now + 250 * DAY, false);
        std::fs::write(folder.path().join("server.pem"), "nonsense").unwrap();
        check("with a damaged file", &renamed, now + 250 * DAY, false);
        // In the CA's last year the leaf ends with it and is kept.
        check("near the CA's end", &renamed, now + 3600 * DAY, false);
        check("near the CA's end again", &renamed, now + 3601 * DAY, true);
        assert!(matches!(
            renamed.present(now + 3653 * DAY),
            Err(TrustError::AuthorityExpired { .. })
        ));
    }

    /// A container has another name at each start, and then wanted a key that was locked away.
    #[test]
    fn a_ca_key_that_was_taken_away_is_missed_only_when_the_certificate_ends() {
        let folder = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let hub = authority(folder.path(), NAMES);
        let first = leaf(&hub.present(now).unwrap());
        std::fs::remove_file(folder.path().join("ca-key.pem")).unwrap();
        let renamed = authority(folder.path(), &["localhost", "other.example"]);
        let check = |hub: &Authority, days: u32, is_outdated: bool| {
            let presented = hub.present(now + days * DAY).unwrap();
            assert_eq!(leaf(&presented), first);
            assert_eq!(presented.outdated.is_some(), is_outdated, "{days} days");
        };
        check(&hub, 0, false);
        check(&hub, 300, true);
        check(&renamed, 0, true);
        assert!(matches!(
            hub.present(now + 366 * DAY),
            Err(TrustError::AuthorityKeyMissing { .. })
        ));
    }

    #[test]
    fn no_authority_is_made_before_the_clock_is_set() {
        let folder = tempfile::tempdir().unwrap();
        let hub = authority(folder.path(), NAMES);
        let refused = hub.present(SystemTime::UNIX_EPOCH + 100 * DAY);
        assert!(matches!(refused, Err(TrustError::ClockNotSet)));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        hub.present(SystemTime::now()).unwrap();
    }

    #[test]
    fn openssl_accepts_the_chain_in_strict_mode() {
        let folder = tempfile::tempdir().unwrap();
        authority(folder.path(), NAMES)
            .present(SystemTime::now())
            .unwrap();
        let verify = |extra: &[&str]| {
            std::process::Command::new("openssl")
                .args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"])
                .arg(folder.path().join("ca.pem"))
                .args(extra)
                .arg(folder.path().join("server.pem"))
                .output()
                .expect("openssl is installed wherever the tests run")
        };
        for name in [
            ["-verify_hostname", "hub.example"],
            ["-verify_ip", "127.0.0.1"],
            ["-verify_ip", "::1"],
        ] {
            let output = verify(&name);
            assert!(output.status.success(), "{output:?}");
        }
        assert!(
            !verify(&["-verify_hostname", "elsewhere.example"])
                .status
                .success()
        );
    }
}
