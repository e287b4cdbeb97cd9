//! From the first byte to CONNACK.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use fieldpost_hub::auth::{AuthError, DevicePrincipal};
use fieldpost_hub::ingest::Hold;
use fieldpost_hub::presence::{Eviction, Session};
use fieldpost_hub::secrets::Secret;
use fieldpost_hub::subscriptions::{Features, Subscriptions};
use fieldpost_hub::throttles::Operation;
use fieldpost_model::Identity;
use fieldpost_mqtt::{Connect, Refusal, ServerConnection, ServerEvent};
use fieldpost_store::StoreError;
use futures_util::FutureExt;
use tokio::io::AsyncRead;
use tracing::debug;

use super::ending::{Ending, Refused};
use super::will::Will;
use crate::clock::{Alarm, within};
use crate::context::ConnectionContext;
use crate::dialect::mqtt::{EmptyValues, UserName};
use crate::io::{Input, poll_read_scratch_up_to};
use crate::listen::limits::counted_address;

/// Time for the store to say who the client is and what it has subscribed to. SDKs wait at least
/// 30 seconds for CONNACK, and it is better to be late than to refuse.
const DECISION_MAX: Duration = Duration::from_secs(20);

/// An accepted connection. Its CONNACK is in the engine's output.
pub(super) struct Opened {
    pub(super) principal: DevicePrincipal,
    pub(super) session: Session,
    pub(super) features: Features,
    /// Whether the session outlives the connection.
    pub(super) durable: bool,
    pub(super) model_id: Option<Arc<str>>,
    /// How the client takes properties that are empty.
    pub(super) empty_values: EmptyValues,
    pub(super) will: Option<Box<Will>>,
    /// What came behind the CONNECT.
    pub(super) early: Vec<u8>,
}

/// A CONNECT, owned.
struct Hello {
    identity: Identity,
    host: String,
    /// Without one, a client certificate has to do.
    token: Option<Secret>,
    model_id: Option<Arc<str>>,
    empty_values: EmptyValues,
    clean_session: bool,
    /// `Err` when there is one for a topic that is not the client's own.
    will: Result<Option<Box<Will>>, Ending>,
}

/// Reads CONNECT, decides, and answers.
pub(super) async fn open<S>(
    stream: &mut S,
    engine: &mut ServerConnection,
    context: &mut ConnectionContext,
) -> Result<Opened, Ending>
where
    S: AsyncRead + Unpin,
{
    let (hello, early) = read_connect(stream, engine, context).await?;
    let decision = match hello {
        Ok(hello) => within(context.timer(), DECISION_MAX, decide(hello, context))
            .await
            .unwrap_or(Err(Ending::Refused(Refused::NotReady))),
        Err(refused) => Err(Ending::Refused(refused)),
    };
    match decision {
        Ok((mut opened, session_present)) => {
            opened.early = early;
            engine.accept(session_present, context.monotonic());
            context.authenticated();
            // It has done its part.
            context.client_certificate = None;
            let identity = &opened.principal.identity;
            debug!(device_id = %identity, session_present, "MQTT client connected");
            Ok(opened)
        }
        Err(ending) => {
            if let Ending::Refused(refused) = &ending {
                engine.refuse(match refused {
                    // Python devices give up for good after 4 and 5: never for what will pass.
                    Refused::NotReady | Refused::Throttled => Refusal::ServerUnavailable,
                    // One answer for all of these, so that nobody learns which ids exist.
                    Refused::Name | Refused::NoPassword | Refused::Denied(_) => {
                        Refusal::NotAuthorized
                    }
                });
            }
            Err(ending)
        }
    }
}

type FirstPacket = (Result<Hello, Refused>, Vec<u8>);

async fn read_connect<S>(
    stream: &mut S,
    engine: &mut ServerConnection,
    context: &ConnectionContext,
) -> Result<FirstPacket, Ending>
where
    S: AsyncRead + Unpin,
{
    let mut alarm = Alarm::default();
    let bytes_max = context.limits.unauthenticated_bytes_max;
    poll_fn(|cx| {
        loop {
            if context.incomplete.poll_evicted(cx).is_ready() {
                return Poll::Ready(Err(Ending::IncompleteForTooLong));
            }
            if context.is_draining() {
                return Poll::Ready(Err(Ending::Drained));
            }
            let now = context.monotonic();
            let read = poll_read_scratch_up_to(stream, cx, bytes_max, |mut input| {
                let hello = match engine.next(&mut input, now)? {
                    Some(ServerEvent::Connect(connect)) => hello(&connect),
                    // Before CONNECT the engine lets nothing else through.
                    Some(_) | None => return Ok(None),
                };
                Ok(Some((hello, input.to_vec())))
            });
            match read {
                Poll::Ready(Ok(Input::Bytes {
                    made: Ok(Some(first)),
                    ..
                })) => {
                    context.incomplete.hold(0, true, now);
                    return Poll::Ready(Ok(first));
                }
                Poll::Ready(Ok(Input::Bytes { made: Ok(None), .. })) => {
                    context
                        .incomplete
                        .hold(engine.incomplete_bytes(), false, now);
                    continue;
                }
                Poll::Ready(Ok(Input::Bytes {
                    made: Err(ending), ..
                })) => return Poll::Ready(Err(ending)),
                Poll::Ready(Ok(Input::End)) => return Poll::Ready(Err(Ending::Closed)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => {}
            }
            std::task::ready!(alarm.poll(cx, context.timer(), engine.deadline()));
            if let Err(timeout) = engine.tick(context.monotonic()) {
                return Poll::Ready(Err(Ending::Silent(timeout)));
            }
        }
    })
    .await
}

fn hello(connect: &Connect<'_>) -> Result<Hello, Refused> {
    let name = connect
        .user_name
        .and_then(|text| UserName::parse(text).ok())
        .filter(|name| name.fits_client_id(connect.client_id))
        .ok_or(Refused::Name)?;
    let password = connect.password.filter(|password| !password.is_empty());
    let token = password.map(std::str::from_utf8).transpose();
    let token = token.map_err(|_| Refused::NoPassword)?;
    let will = match &connect.will {
        None => Ok(None),
        Some(will) => Will::of(&name.identity, will)
            .map(|will| Some(Box::new(will)))
            .ok_or(Ending::ForeignWill),
    };
    Ok(Hello {
        host: name.host.to_owned(),
        model_id: name.model_id.map(Arc::from),
        empty_values: name.empty_values,
        identity: name.identity,
        token: token.map(Secret::new),
        clean_session: connect.clean_session,
        will,
    })
}

/// Decides about a CONNECT; gives whether a stored session goes on.
async fn decide(hello: Hello, context: &ConnectionContext) -> Result<(Opened, bool), Ending> {
    let hub = &context.hub;
    // A device that gave up for good over a broken disk would stay away when it is mended.
    if matches!(hub.ingest().hold(), Hold::ReadOnly) || *context.drain.borrow() {
        return Err(Ending::Refused(Refused::NotReady));
    }
    if !hub.is_own_host(&hello.host) {
        return Err(Ending::Refused(Refused::Name));
    }
    let principal = authenticate(&hello, context).await?;
    let will = hello.will?;
    let turn = hub.throttles().pass(Operation::Connection).await;
    turn.map_err(|_| Ending::Refused(Refused::Throttled))?;
    // From here on an older connection of the same identity is gone.
    let mut session = hub
        .presence()
        .connect(
            principal.identity.clone(),
            Arc::clone(&principal.generation_id),
        )
        .await;
    // Whoever has lost the place already must not touch what is stored for its next holder.
    check_standing(&mut session)?;
    let stored = stored_session(hub.subscriptions(), &principal, hello.clean_session).await?;
    check_standing(&mut session)?;
    let session_present = stored.is_some();
    if !session_present {
        // What an older session had in flight is nothing to a new one, whenever that subscribes.
        hub.c2d().forget(&principal);
    }
    Ok((
        Opened {
            principal,
            session,
            features: stored.unwrap_or_default(),
            durable: !hello.clean_session,
            model_id: hello.model_id,
            empty_values: hello.empty_values,
            will,
            early: Vec::new(),
        },
        session_present,
    ))
}

/// By the token that came as password, else by the certificate that TLS began with.
async fn authenticate(
    hello: &Hello,
    context: &ConnectionContext,
) -> Result<DevicePrincipal, Ending> {
    let access = context
        .hub
        .access()
        .from(counted_address(context.peer.ip()));
    let (identity, host) = (&hello.identity, &hello.host);
    let authenticated = match (&hello.token, &context.client_certificate) {
        (Some(token), _) => {
            access
                .authenticate_device(identity, host, token.expose())
                .await
        }
        (None, Some(certificate)) => {
            access
                .authenticate_certificate(identity, host, certificate)
                .await
        }
        (None, None) => return Err(Ending::Refused(Refused::NoPassword)),
    };
    authenticated.map_err(|error| match error {
        AuthError::Unauthorized(denial) => Ending::Refused(Refused::Denied(denial.as_str())),
        // Its token may be good.
        AuthError::TooManyFailures => Ending::Refused(Refused::NotReady),
        AuthError::Unavailable(error) => not_ready(&error),
    })
}

/// Whether the place among the connections is still this one's. Without it there is no CONNACK, and
/// no will to publish.
fn check_standing(session: &mut Session) -> Result<(), Ending> {
    match session.evicted().now_or_never() {
        None => Ok(()),
        Some(eviction @ Eviction::Replaced) => Err(Ending::Evicted(eviction)),
        Some(eviction @ (Eviction::Disabled | Eviction::Deleted)) => {
            Err(Ending::Refused(Refused::Denied(eviction.as_str())))
        }
        Some(Eviction::Cut | Eviction::Closing) => Err(Ending::Refused(Refused::NotReady)),
    }
}

/// What goes on from earlier connections. A clean session ends that, any other begins a session
/// that is there for the next connection even if nothing is ever subscribed to [MQTT-3.1.2-4].
async fn stored_session(
    subscriptions: &Subscriptions,
    principal: &DevicePrincipal,
    clean: bool,
) -> Result<Option<Features>, Ending> {
    let stored = subscriptions.load(principal).await;
    let stored = stored.map_err(|error| not_ready(&error))?;
    let changed = match (clean, stored) {
        (true, Some(_)) => subscriptions.remove(principal).await,
        (false, None) => match subscriptions.store(principal, Features::default()).await {
            // It has nothing to remember yet, and a full disk is no reason to turn devices away.
            Err(StoreError::Full) => Ok(()),
            stored => stored,
        },
        _ => Ok(()),
    };
    changed.map_err(|error| not_ready(&error))?;
    Ok(stored.filter(|_| !clean))
}

fn not_ready(error: &StoreError) -> Ending {
    debug!(%error, "the store did not answer a connecting client");
    Ending::Refused(Refused::NotReady)
}
