//! One HTTP connection: requests in turn, bounded in time, until it ends or becomes a WebSocket.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{self, HeaderValue};
use axum::response::Response;
use bytes::Bytes;
use fieldpost_hub::auth::ClientCertificate;
use fieldpost_hub::clock::Timer;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::debug;

use crate::clock::Alarm;
use crate::context::ConnectionContext;
use crate::figures::count_refused;
use crate::http::Routes;
use crate::http::spelling::{HeadRecord, Recorded};
use crate::listen::limits::{GatewayLimits, counted_address};
use crate::listen::upgrade::{Subprotocol, Upgrade, is_foreign, negotiate};

/// Bytes of a request's head, and of what is buffered of a body, per connection.
pub(super) const BUFFER_BYTES_MAX: usize = 32 * 1024;

/// Header lines of a request.
pub(super) const HEADERS_MAX: usize = 100;

/// How an HTTP connection ended.
pub(crate) enum Ended<S> {
    /// Closed, by either side.
    Closed,
    /// Turned into a WebSocket; its answer is sent.
    Upgraded {
        /// The stream underneath.
        stream: S,
        /// What was read beyond the request.
        early: Bytes,
        /// What is spoken from here on.
        subprotocol: Subprotocol,
        /// A page of a browser asked that does not come from this hub.
        is_foreign: bool,
    },
}

/// What the connection's task and its requests tell each other.
#[derive(Debug)]
pub(crate) struct Activity {
    /// Bytes of a request's body that are held.
    body_bytes: AtomicUsize,
    head: Arc<HeadRecord>,
    /// Since when the next request's head is awaited, in monotonic milliseconds;
    /// [`Self::BUSY`] while a request is answered.
    waiting_since_ms: AtomicU64,
    /// When the connection began, in monotonic milliseconds.
    began_ms: u64,
    authenticated: AtomicBool,
    /// Where the connection comes from, for those who are slowed by that.
    address: Option<IpAddr>,
    upgrade: Mutex<Option<(Subprotocol, bool, OnUpgrade)>>,
}

impl Activity {
    const BUSY: u64 = u64::MAX;

    fn new(now: Duration, address: Option<IpAddr>) -> Self {
        Self {
            body_bytes: AtomicUsize::new(0),
            head: Arc::default(),
            waiting_since_ms: AtomicU64::new(millis(now)),
            began_ms: millis(now),
            authenticated: AtomicBool::new(false),
            address,
            upgrade: Mutex::default(),
        }
    }

    /// Says that a request on this connection carried a valid credential.
    pub(crate) fn set_authenticated(&self) {
        self.authenticated.store(true, Ordering::Relaxed);
    }

    pub(crate) fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Says how many bytes of a request's body are held. They count against the gateway's budget for
    /// what is incomplete.
    pub(crate) fn hold_body(&self, bytes: usize) {
        self.body_bytes.store(bytes, Ordering::Relaxed);
    }

    /// When the connection is to be closed for its silence.
    fn due(&self, limits: &GatewayLimits) -> Option<Duration> {
        let waiting_since_ms = self.waiting_since_ms.load(Ordering::Relaxed);
        if waiting_since_ms == Self::BUSY {
            return None;
        }
        let (since_ms, limit) = if self.authenticated.load(Ordering::Relaxed) {
            (waiting_since_ms, limits.http_head)
        } else {
            // Requests that are refused earn no further time.
            (self.began_ms, limits.http_first_head)
        };
        Some(Duration::from_millis(since_ms).saturating_add(limit))
    }
}

/// Serves requests until the connection ends.
pub(crate) async fn serve<S>(stream: S, context: &mut ConnectionContext, routes: Routes) -> Ended<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let timer = Arc::clone(context.timer());
    let limits = Arc::clone(&context.limits);
    let address = counted_address(context.peer.ip());
    let activity = Arc::new(Activity::new(timer.monotonic(), address));
    let certificate = context.client_certificate.clone();
    let service = service_fn(|request| {
        answer(
            request,
            routes.clone(),
            Arc::clone(&activity),
            certificate.clone(),
            Arc::clone(&timer),
        )
    });
    let served = {
        let connection = http1::Builder::new()
            .max_buf_size(BUFFER_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            // The runtime's timers are not used here; see `Activity`.
            .header_read_timeout(None)
            .serve_connection(TokioIo::new(Recorded::new(stream, &activity.head)), service)
            .with_upgrades();
        let mut connection = pin!(connection);
        let mut drain = pin!(context.draining());
        let mut draining = false;
        let mut alarm = Alarm::default();
        poll_fn(|cx| {
            if !draining && drain.as_mut().poll(cx).is_ready() {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                return Poll::Ready(Some(result));
            }
            if activity.authenticated.load(Ordering::Relaxed) {
                context.authenticated();
            }
            let held = activity.body_bytes.load(Ordering::Relaxed);
            context.incomplete.hold(held, false, timer.monotonic());
            if context.incomplete.poll_evicted(cx).is_ready() {
                count_refused("http", "incomplete_bytes");
                debug!("closed to make room for the requests of others");
                return Poll::Ready(Some(Ok(())));
            }
            alarm.poll(cx, &timer, activity.due(&limits)).map(|()| None)
        })
        .await
    };
    match served {
        Some(Ok(())) => {}
        Some(Err(error)) => debug!(%error, "HTTP connection failed"),
        None => {
            count_refused("http", "head_timeout");
            debug!("no HTTP request in time");
        }
    }
    let upgrade = activity
        .upgrade
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    let Some((subprotocol, is_foreign, upgrade)) = upgrade else {
        return Ended::Closed;
    };
    let Ok(upgraded) = upgrade.await else {
        return Ended::Closed;
    };
    match upgraded.downcast::<TokioIo<Recorded<S>>>() {
        Ok(parts) => Ended::Upgraded {
            stream: parts.io.into_inner().into_inner(),
            early: parts.read_buf,
            subprotocol,
            is_foreign,
        },
        Err(_) => Ended::Closed,
    }
}

async fn answer(
    request: hyper::Request<Incoming>,
    routes: Routes,
    activity: Arc<Activity>,
    certificate: Option<Arc<ClientCertificate>>,
    timer: Arc<dyn Timer>,
) -> Result<Response, Infallible> {
    activity
        .waiting_since_ms
        .store(Activity::BUSY, Ordering::Relaxed);
    let (mut parts, body) = request.into_parts();
    let has_body = !body.is_end_stream();
    let mut response = match negotiate(&parts) {
        Some(Upgrade::Granted(response, subprotocol)) => {
            let is_foreign = is_foreign(&parts, routes.hub());
            if let Some(upgrade) = parts.extensions.remove::<OnUpgrade>() {
                *activity
                    .upgrade
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner) =
                    Some((subprotocol, is_foreign, upgrade));
            }
            response
        }
        Some(Upgrade::Refused(refused)) => {
            count_refused("websocket", "handshake");
            routes.refuse(refused)
        }
        None => {
            if let Some(certificate) = certificate
                && !is_foreign(&parts, routes.hub())
            {
                parts.extensions.insert(certificate);
            }
            parts.extensions.insert(activity.head.take());
            parts.extensions.insert(Arc::clone(&activity));
            let request = Request::from_parts(parts, Body::new(body));
            routes.answer(request).await
        }
    };
    let status = response.status();
    if has_body && (status.is_client_error() || status.is_server_error()) {
        // The body may not have been read, and then the connection ends: clients that keep theirs are
        // to know.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    activity.hold_body(0);
    activity.head.begin();
    activity
        .waiting_since_ms
        .store(millis(timer.monotonic()), Ordering::Relaxed);
    Ok(response)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(Activity::BUSY - 1)
}
