//! TCP and TLS towards a hub.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Why a connection could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// TCP or TLS failed.
    #[error("cannot connect to {host}: {source}")]
    Network {
        /// Host name, and address where one was given.
        host: String,
        /// The system's or TLS's error.
        source: std::io::Error,
    },
    /// The trusted certificate cannot be read.
    #[error("the CA certificate is not usable: {0}")]
    Trust(String),
    /// The certificate to be shown, or its private key, cannot be read.
    #[error("the device's certificate is not usable: {0}")]
    Certificate(String),
    /// The hub refused who we are.
    #[error("the hub refused the connection: {0}")]
    Refused(String),
    /// The hub broke the protocol, or we did.
    #[error("protocol failure: {0}")]
    Protocol(String),
}

/// How the hub's certificate is checked.
#[derive(Clone)]
pub enum Trust {
    /// No TLS at all: for plain listeners on loopback.
    Plain,
    /// TLS with this configuration.
    Tls(Arc<ClientConfig>),
    /// No socket and no certificate: streams of a network of the caller's own, as a simulation has.
    Network(Arc<dyn Network>),
}

/// A certificate by which a device proves who it is.
#[derive(Clone)]
pub struct OwnCertificate {
    /// It and those between it and its root, in PEM.
    pub chain_pem: String,
    /// Its private key, in PEM.
    pub key_pem: String,
}

/// A network that is not this machine's.
pub trait Network: Send + Sync {
    /// Opens a stream to a port of a host.
    fn connect(&self, host: &str, port: u16) -> Dialing;
}

/// A stream on its way.
pub type Dialing = Pin<Box<dyn Future<Output = std::io::Result<Box<dyn NetworkStream>>> + Send>>;

/// A byte stream of a [`Network`].
pub trait NetworkStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> NetworkStream for S {}

impl Trust {
    /// Trusts the certificate authorities in a PEM text, and no others.
    ///
    /// # Errors
    /// When the text holds no certificate.
    pub fn in_pem(pem: &str) -> Result<Self, ConnectError> {
        Self::tls(pem, None)
    }

    /// The same, and shows a certificate of one's own to a hub that asks for it.
    ///
    /// # Errors
    /// When a text does not hold what it must, or the key is not the certificate's.
    pub fn in_pem_showing(pem: &str, own: &OwnCertificate) -> Result<Self, ConnectError> {
        Self::tls(pem, Some(own))
    }

    fn tls(pem: &str, own: Option<&OwnCertificate>) -> Result<Self, ConnectError> {
        let unusable = |error: &dyn std::fmt::Display| ConnectError::Trust(error.to_string());
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            roots
                .add(certificate.map_err(|e| unusable(&e))?)
                .map_err(|e| unusable(&e))?;
        }
        if roots.is_empty() {
            return Err(unusable(&"it holds no certificate"));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| unusable(&e))?
            .with_root_certificates(roots);
        let config = match own {
            None => config.with_no_client_auth(),
            Some(own) => {
                let unusable =
                    |error: &dyn std::fmt::Display| ConnectError::Certificate(error.to_string());
                let chain = CertificateDer::pem_slice_iter(own.chain_pem.as_bytes())
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|e| unusable(&e))?;
                let key = PrivateKeyDer::from_pem_slice(own.key_pem.as_bytes())
                    .map_err(|e| unusable(&e))?;
                config
                    .with_client_auth_cert(chain, key)
                    .map_err(|e| unusable(&e))?
            }
        };
        Ok(Self::Tls(Arc::new(config)))
    }
}

/// A byte stream to a hub.
pub(crate) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Network(Box<dyn NetworkStream>),
}

/// Opens a stream to `address`, or to `host` and `port` where none is given, and checks that the
/// other side is `host`.
pub(crate) async fn open(
    host: &str,
    port: u16,
    address: Option<SocketAddr>,
    trust: &Trust,
) -> Result<Stream, ConnectError> {
    let failed = |source| ConnectError::Network {
        host: format!("{host}:{port}"),
        source,
    };
    if let Trust::Network(network) = trust {
        let stream = network.connect(host, port).await;
        return Ok(Stream::Network(stream.map_err(failed)?));
    }
    let socket = match address {
        Some(address) => TcpStream::connect(address).await,
        None => TcpStream::connect((host, port)).await,
    }
    .map_err(failed)?;
    socket.set_nodelay(true).map_err(failed)?;
    match trust {
        Trust::Plain | Trust::Network(_) => Ok(Stream::Plain(socket)),
        Trust::Tls(config) => {
            let name = ServerName::try_from(host.to_owned())
                .map_err(|error| failed(std::io::Error::other(error)))?;
            let stream = TlsConnector::from(Arc::clone(config))
                .connect(name, socket)
                .await;
            Ok(Stream::Tls(Box::new(stream.map_err(failed)?)))
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Network(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Network(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Network(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Network(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
