//! The null server over TLS: a bare tokio-rustls, for what TLS itself costs.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::{answer, split_packet};
use crate::say;

/// Bytes that one read may bring.
const READ_BYTES: usize = 1024;

pub(super) async fn run(address: SocketAddr, identity: &Path) -> Result<()> {
    let acceptor = acceptor(identity)?;
    let listener = TcpListener::bind(address).await?;
    say(&listener.local_addr()?.to_string());
    loop {
        let (socket, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            // A generator that breaks off has ended its row.
            let _ = serve(socket, acceptor).await;
        });
    }
}

/// TLS with the certificate and the key in a PEM file.
pub(super) fn acceptor(identity: &Path) -> Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(identity)?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(identity)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(socket: TcpStream, acceptor: TlsAcceptor) -> Result<()> {
    socket.set_nodelay(true)?;
    let mut stream = acceptor.accept(socket).await?;
    let mut input = Vec::new();
    loop {
        input.reserve(READ_BYTES);
        if stream.read_buf(&mut input).await? == 0 {
            return Ok(());
        }
        let mut rest = input.as_slice();
        let mut answers = Vec::new();
        while let Some((packet, behind)) = split_packet(rest)? {
            answer(packet, &mut answers)?;
            rest = behind;
        }
        input = rest.to_vec();
        stream.write_all(&answers).await?;
        stream.flush().await?;
    }
}
