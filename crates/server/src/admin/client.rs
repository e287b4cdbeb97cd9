//! The one way in which commands reach a hub's data.
//!
//! Beside a running hub, calls go to its admin API, found through the data directory. Without one,
//! the same routes run in this process on the store, under its lock. A command cannot tell the two
//! apart.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, StatusCode, Uri, header};
use axum::response::Response;
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tower::ServiceExt as _;

use crate::assembly::{self, Endpoints, OpenedHub};
use crate::config::{Config, ListenerName};

/// How long a command waits for another process to let go of the store or to finish its start.
const BUSY_PATIENCE: Duration = Duration::from_secs(10);
const BUSY_LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Answers larger than this are no answers of the admin API, streams apart.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Calls the admin routes of a hub.
pub(crate) enum AdminClient {
    /// Those of a running hub.
    Remote {
        /// `host:port` of the admin listener.
        authority: String,
        /// The bearer token.
        token: String,
    },
    /// Those of a hub opened by this process.
    Local {
        /// The routes, without guards.
        router: Router,
        /// The hub, to be closed.
        hub: Box<OpenedHub>,
    },
}

/// What to do when there is no store in the data directory yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoStore {
    /// Make one, as `serve` would.
    Create,
    /// Say so.
    Refuse,
}

/// Why a call was not answered with success.
#[derive(Debug, thiserror::Error)]
#[error("{message} ({code})")]
struct CallError {
    code: String,
    message: String,
}

impl AdminClient {
    /// Finds the running hub of the configured data directory, or opens its store.
    ///
    /// # Errors
    /// When neither works; a store that another process holds for more than a moment counts.
    pub(crate) async fn open(config: &Config, no_store: NoStore) -> anyhow::Result<Self> {
        let deadline = tokio::time::Instant::now() + BUSY_PATIENCE;
        loop {
            if let Some(client) = Self::beside(&config.data).await? {
                return Ok(client);
            }
            if no_store == NoStore::Refuse && !assembly::store_exists(config) {
                bail!(
                    "there is no hub in {}; start one with `fieldpost serve`, or name its data directory with --data",
                    config.data.display()
                );
            }
            match assembly::open_for_command(config).await {
                Ok(hub) => {
                    let router = hub.admin_router();
                    let hub = Box::new(hub);
                    return Ok(Self::Local { router, hub });
                }
                Err(error)
                    if assembly::is_locked(&error) && tokio::time::Instant::now() < deadline =>
                {
                    tokio::time::sleep(BUSY_LOOK_INTERVAL).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The hub that runs on a data directory, if one does.
    async fn beside(data: &Path) -> anyhow::Result<Option<Self>> {
        let Some(endpoints) = Endpoints::read(data) else {
            return Ok(None);
        };
        // A hub that was killed leaves its file behind. What listens there now, if anything, is
        // somebody else, who must be neither asked nor given a token.
        if !assembly::is_held(data) {
            return Ok(None);
        }
        let Some(address) = endpoints.address(ListenerName::Admin) else {
            bail!(
                "the hub that runs on {} has its admin listener off; stop it, or set listeners.admin.enabled = true",
                data.display()
            );
        };
        // It may have stopped a moment ago.
        if TcpStream::connect(address).await.is_err() {
            return Ok(None);
        }
        let path = data.join(super::TOKEN_FILE);
        let token = std::fs::read_to_string(&path)
            .with_context(|| format!("read the admin token {}", path.display()))?;
        Ok(Some(Self::Remote {
            authority: address.to_string(),
            token: token.trim().to_owned(),
        }))
    }

    /// Sends a request and gives the answer as it comes.
    ///
    /// # Errors
    /// When the hub cannot be reached; [`CallError`] when it answers with an error.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(header::HeaderName, &str)],
        body: Body,
    ) -> anyhow::Result<Response> {
        let mut request = Request::builder().method(method).uri(path.parse::<Uri>()?);
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        let response = match self {
            Self::Local { router, .. } => router.clone().oneshot(request.body(body)?).await?,
            Self::Remote { authority, token } => {
                let request = request
                    .header(header::HOST, authority)
                    .header(header::AUTHORIZATION, format!("Bearer {token}"))
                    .body(body)?;
                remote(authority, request).await?
            }
        };
        if response.status().is_success() {
            return Ok(response);
        }
        Err(call_error(response).await)
    }

    /// Sends a request without or with a JSON body and reads the JSON answer; null when empty.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(header::HeaderName, &str)],
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let mut headers = headers.to_vec();
        let body = match body {
            Some(value) => {
                headers.push((header::CONTENT_TYPE, "application/json"));
                Body::from(value.to_string())
            }
            None => Body::empty(),
        };
        let response = self.send(method, path, &headers, body).await?;
        let bytes = axum::body::to_bytes(response.into_body(), ANSWER_BYTES_MAX).await?;
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Reads a JSON document.
    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.call(Method::GET, path, &[], None).await
    }

    /// Reads an answer of any length, piece by piece.
    pub(crate) async fn stream(
        &self,
        path: &str,
    ) -> anyhow::Result<impl Stream<Item = anyhow::Result<Bytes>> + use<>> {
        let response = self.send(Method::GET, path, &[], Body::empty()).await?;
        let pieces = response.into_body().into_data_stream();
        Ok(pieces.map(|piece| piece.map_err(anyhow::Error::from)))
    }

    /// Closes what this process opened. What was answered is durable without it.
    pub(crate) async fn close(self) {
        if let Self::Local { hub, .. } = self {
            hub.close().await;
        }
    }
}

async fn remote(authority: &str, request: Request<Body>) -> anyhow::Result<Response> {
    let stream = TcpStream::connect(authority)
        .await
        .with_context(|| format!("reach the hub's admin listener on {authority}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the answer's body; its failures are seen there.
    tokio::spawn(connection);
    let response = sender
        .send_request(request)
        .await
        .with_context(|| format!("call the hub's admin listener on {authority}"))?;
    Ok(response.map(|body| Body::new(body.map_err(axum::Error::new))))
}

async fn call_error(response: Response) -> anyhow::Error {
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), ANSWER_BYTES_MAX).await;
    let body: Value = bytes
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or_default();
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str);
    match (text("/error/code"), text("/error/message")) {
        (Some(code), Some(message)) => CallError {
            code: code.to_owned(),
            message: message.to_owned(),
        }
        .into(),
        _ if status == StatusCode::UNAUTHORIZED => {
            anyhow!(
                "the hub does not take the admin token in its data directory; was it restarted?"
            )
        }
        _ => anyhow!("the hub answered {status}"),
    }
}
