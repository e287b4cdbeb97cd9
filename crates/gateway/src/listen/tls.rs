//! The TLS side of every listener: one certificate, replaceable while the hub runs.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
};
use webpki::RawPublicKeyEntity;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The certificate that the gateway shows to its clients.
///
/// Cloning shares it. [`replace`](Self::replace) takes effect with the next handshake;
/// connections that stand keep what they have.
#[derive(Clone)]
pub struct TlsIdentity {
    current: Arc<CurrentCertificate>,
}

/// Why a certificate and key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The chain is empty, or a certificate or the key is not understood, or they do not belong
    /// together.
    #[error("the certificate or its key cannot be used: {0}")]
    Identity(rustls::Error),
    /// The TLS library refuses the settings.
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

impl TlsIdentity {
    /// An identity of a certificate chain (leaf first, without the root) and the leaf's key.
    ///
    /// # Errors
    /// When they are unusable or do not belong together.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, TlsError> {
        let key = certified(chain, key)?;
        Ok(Self {
            current: Arc::new(CurrentCertificate(RwLock::new(key))),
        })
    }

    /// Shows another chain from the next handshake on; on an error the old one stays.
    ///
    /// # Errors
    /// When chain and key are unusable or do not belong together.
    pub fn replace(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), TlsError> {
        let key = certified(chain, key)?;
        *self
            .current
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner) = key;
        Ok(())
    }
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsIdentity").finish_non_exhaustive()
    }
}

/// Settings for the listeners of `identity`: with and without HTTP.
pub(crate) struct TlsSettings {
    /// For the port of HTTPS and WebSocket: offers HTTP/1.1 alone, so that no client tries HTTP/2.
    pub(crate) https: Arc<ServerConfig>,
    /// For MQTT and AMQP, where clients know nothing of protocol negotiation.
    pub(crate) raw: Arc<ServerConfig>,
}

impl TlsSettings {
    pub(crate) fn new(identity: &TlsIdentity) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        // Python and Java device SDKs speak TLS 1.2 only, so both versions are offered.
        let mut raw = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(TlsError::Setup)?
            .with_client_cert_verifier(Arc::new(AnyClientCertificate { provider }))
            .with_cert_resolver(Arc::clone(&identity.current) as Arc<dyn ResolvesServerCert>);
        raw.ticketer = ring::Ticketer::new().map_err(TlsError::Setup)?;
        let mut https = raw.clone();
        https.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            https: Arc::new(https),
            raw: Arc::new(raw),
        })
    }
}

/// The certificate for every client, whatever name it asks for: SDKs that were given an IP address
/// send no name at all.
#[derive(Debug)]
struct CurrentCertificate(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for CurrentCertificate {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&current))
    }
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, TlsError> {
    if chain.is_empty() {
        return Err(TlsError::Identity(rustls::Error::NoCertificatesPresented));
    }
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map(Arc::new)
        .map_err(TlsError::Identity)
}

/// Asks for a client certificate and takes any, or none.
///
/// Only possession of its key is proven here. What the certificate is worth is decided when the
/// client has said which device it is: a device's registered thumbprint needs no chain.
#[derive(Debug)]
struct AnyClientCertificate {
    provider: Arc<CryptoProvider>,
}

impl ClientCertVerifier for AnyClientCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let key = public_key(cert)?;
        let entity = RawPublicKeyEntity::try_from(&key).map_err(|_| UNREADABLE)?;
        let mapping = self.provider.signature_verification_algorithms.mapping;
        let algorithms = mapping
            .iter()
            .filter(|(scheme, _)| *scheme == signature.scheme)
            .flat_map(|(_, algorithms)| *algorithms);
        // In TLS 1.2 a scheme does not say which curve.
        for algorithm in algorithms {
            let verified = entity.verify_signature(*algorithm, message, signature.signature());
            if verified.is_ok() {
                return Ok(HandshakeSignatureValid::assertion());
            }
        }
        Err(CertificateError::BadSignature.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature_with_raw_key(message, &public_key(cert)?, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

const UNREADABLE: rustls::Error = rustls::Error::InvalidCertificate(CertificateError::BadEncoding);

/// The key that a certificate is for. The TLS library's own way to it takes only version 3 of X.509;
/// many devices were given certificates of version 1, which some tools make unless told otherwise.
fn public_key<'a>(
    certificate: &'a CertificateDer<'_>,
) -> Result<SubjectPublicKeyInfoDer<'a>, rustls::Error> {
    let parsed = X509Certificate::from_der(certificate);
    let (_, parsed) = parsed.map_err(|_| UNREADABLE)?;
    Ok(SubjectPublicKeyInfoDer::from(
        parsed.tbs_certificate.subject_pki.raw,
    ))
}
