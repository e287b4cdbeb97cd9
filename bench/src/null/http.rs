//! The null server over HTTPS: an axum handler that reads what is sent to it and keeps nothing.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::tls;
use crate::say;

pub(super) async fn run(address: SocketAddr, identity: &Path) -> Result<()> {
    let acceptor = tls::acceptor(identity)?;
    let router = Router::new().route("/devices/{device}/messages/events", post(take));
    let listener = TcpListener::bind(address).await?;
    say(&listener.local_addr()?.to_string());
    loop {
        let (socket, _) = listener.accept().await?;
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            // A generator that breaks off has ended its row.
            let _ = serve(socket, acceptor, router).await;
        });
    }
}

async fn serve(socket: TcpStream, acceptor: TlsAcceptor, router: Router) -> Result<()> {
    socket.set_nodelay(true)?;
    let stream = TokioIo::new(acceptor.accept(socket).await?);
    let service = TowerToHyperService::new(router);
    http1::Builder::new()
        .serve_connection(stream, service)
        .await?;
    Ok(())
}

/// Reads the body, as whoever keeps it has to.
async fn take(body: Bytes) -> StatusCode {
    if body.is_empty() {
        return StatusCode::BAD_REQUEST;
    }
    StatusCode::NO_CONTENT
}
