//! Messages to devices over HTTPS: a device asks for one, and says what becomes of it.

use std::sync::Arc;
use std::time::Duration;

use axum::RequestExt;
use axum::body::Body;
use axum::extract::{RawPathParams, Request, State};
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{HeaderMap, Response, StatusCode, request};
use fieldpost_hub::auth::DevicePrincipal;
use fieldpost_hub::c2d::{Delivery, LockToken, SettleError, Settlement};
use fieldpost_model::{Ack, DeviceId, Identity, ModuleId};
use fieldpost_record::CommandView;
use percent_encoding::{
    AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode,
};
use tracing::error;

use super::Api;
use super::connection::Activity;
use super::refusal::Refusal;

/// How long a device wants to hold what it gets: .NET's SDK says so in the query, Java's in a header.
const LOCK_TIMEOUT: &str = "iothub-messagelocktimeout";

/// In a value that is not printable as it is, everything but printable ASCII is escaped, and the
/// escape sign itself.
const VALUE: &AsciiSet = &CONTROLS.add(b'%');

/// As [`VALUE`], where a blank would be lost.
const VALUE_WITH_BLANKS: &AsciiSet = &VALUE.add(b' ');

/// What a header's name may hold besides letters and digits (RFC 9110, 5.6.2).
const NAME: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'*')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// A device's request.
struct DeviceCall {
    principal: DevicePrincipal,
    parts: request::Parts,
    lock: Option<String>,
}

impl DeviceCall {
    /// Checks the credential: a token of the device's own key, or of a policy that may speak for it.
    /// Any `api-version` is taken, and none.
    async fn open(api: &Api, mut request: Request) -> Result<Self, Refusal> {
        let params = request
            .extract_parts::<RawPathParams>()
            .await
            .map_err(|error| Refusal::argument(error.to_string()))?;
        let param = |name: &str| {
            let mut params = params.iter();
            params
                .find(|(known, _)| *known == name)
                .map(|(_, value)| value.to_owned())
        };
        let invalid = |what: &str, error: &dyn std::fmt::Display| {
            Refusal::argument(format!("{what} id: {error}"))
        };
        let device = param("device").unwrap_or_default();
        let identity = Identity {
            device: DeviceId::new(&device).map_err(|error| invalid("device", &error))?,
            module: param("module")
                .map(|module| ModuleId::new(&module).map_err(|error| invalid("module", &error)))
                .transpose()?,
        };
        let lock = param("lock");
        let (parts, _) = request.into_parts();
        let text = |name: HeaderName| parts.headers.get(name)?.to_str().ok();
        let token = text(header::AUTHORIZATION).ok_or(Refusal::Unauthorized)?;
        let host = text(header::HOST)
            .or_else(|| parts.uri.host())
            .ok_or(Refusal::Unauthorized)?;
        let access = api.hub.access();
        let principal = access.authenticate_device(&identity, host, token).await?;
        if let Some(activity) = parts.extensions.get::<Arc<Activity>>() {
            activity.set_authenticated();
        }
        Ok(Self {
            principal,
            parts,
            lock,
        })
    }

    /// The query's names and values, decoded.
    fn query(&self) -> impl Iterator<Item = (String, String)> {
        let query = self.parts.uri.query().unwrap_or_default();
        query.split('&').map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
            (decoded(name), decoded(value))
        })
    }

    /// Java's SDK puts the question mark into the name.
    fn is_reject(&self) -> bool {
        self.query()
            .any(|(name, _)| name.trim_start_matches('?').eq_ignore_ascii_case("reject"))
    }

    fn lock_timeout(&self) -> Option<Duration> {
        let asked = self
            .query()
            .find(|(name, _)| name.eq_ignore_ascii_case(LOCK_TIMEOUT))
            .map(|(_, value)| value);
        let header = || {
            Some(
                self.parts
                    .headers
                    .get(LOCK_TIMEOUT)?
                    .to_str()
                    .ok()?
                    .to_owned(),
            )
        };
        let seconds: u64 = asked.or_else(header)?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds))
    }

    /// The lock that the path names; `If-Match` may name it as well and must then agree.
    fn lock(&self) -> Result<LockToken, Refusal> {
        lock_of(self.lock.as_deref(), &self.parts.headers)
    }
}

/// `GET /devices/{id}/messages/deviceBound`: locks the next message.
pub(crate) async fn receive(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let call = DeviceCall::open(&api, request).await?;
    let c2d = api.hub.c2d();
    let delivery = c2d
        .receive_one(&call.principal, call.lock_timeout())
        .await?;
    match delivery {
        None => Ok(no_content()),
        Some(delivery) => message(&delivery),
    }
}

/// `DELETE /devices/{id}/messages/deviceBound/{lock}`: completes, or rejects.
pub(crate) async fn complete_or_reject(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let call = DeviceCall::open(&api, request).await?;
    let settlement = if call.is_reject() {
        Settlement::Reject
    } else {
        Settlement::Complete
    };
    settle(&api, &call, settlement).await
}

/// `POST /devices/{id}/messages/deviceBound/{lock}/abandon`.
pub(crate) async fn abandon(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let call = DeviceCall::open(&api, request).await?;
    settle(&api, &call, Settlement::Abandon).await
}

async fn settle(
    api: &Api,
    call: &DeviceCall,
    settlement: Settlement,
) -> Result<Response<Body>, Refusal> {
    let lock = call.lock()?;
    let c2d = api.hub.c2d();
    c2d.settle(&call.principal, lock, settlement).await?;
    Ok(no_content())
}

/// The lock token of a request that settles.
pub(crate) fn lock_of(path: Option<&str>, headers: &HeaderMap) -> Result<LockToken, Refusal> {
    let lock = path.and_then(|text| text.parse().ok());
    let lock: LockToken = lock.ok_or(Refusal::MessageLockLost)?;
    if let Some(condition) = headers.get(header::IF_MATCH) {
        let text = condition.to_str().unwrap_or_default().trim();
        // C and .NET quote it, Node and Java do not.
        let text = text.trim_start_matches("W/").trim_matches('"');
        if text != "*" && text.parse() != Ok(lock) {
            return Err(Refusal::MessageLockLost);
        }
    }
    Ok(lock)
}

/// A message with its properties as headers, in the names of Azure IoT Hub's HTTPS interface.
fn message(delivery: &Delivery) -> Result<Response<Body>, Refusal> {
    let command = CommandView::parse(&delivery.message).map_err(|error| {
        error!(sequence = delivery.sequence, %error, "a message to a device cannot be read");
        Refusal::Internal
    })?;
    let body = command.body().unwrap_or_default();
    // The message's bytes are shared, not copied.
    let mut response = Response::new(Body::from(delivery.message.slice_ref(body)));
    let headers = response.headers_mut();
    let user_id = command.user_id().map(String::from_utf8_lossy);
    let expires = delivery.expires.to_string();
    let enqueued = command.enqueued().to_string();
    let sequence = delivery.sequence.to_string();
    let count = delivery.delivery_count.to_string();
    let ack = match command.ack() {
        Ack::None => None,
        ack => Some(ack.as_str()),
    };
    let etag = format!("\"{}\"", delivery.lock);
    for (name, value) in [
        ("etag", Some(etag.as_str())),
        ("iothub-messageid", command.message_id()),
        ("iothub-correlationid", command.correlation_id()),
        ("iothub-userid", user_id.as_deref()),
        ("iothub-to", Some(command.to())),
        ("iothub-expiry", Some(&expires)),
        ("iothub-enqueuedtime", Some(&enqueued)),
        ("iothub-ack", ack),
        ("iothub-sequencenumber", Some(&sequence)),
        ("iothub-deliverycount", Some(&count)),
        ("iothub-contenttype", command.content_type()),
        ("iothub-contentencoding", command.content_encoding()),
        ("iothub-creation-time-utc", command.creation_time()),
        ("iothub-message-schema", command.message_schema()),
    ] {
        if let Some(value) = value {
            headers.insert(HeaderName::from_static(name), header_value(value));
        }
    }
    for (name, value) in command.properties() {
        let name = utf8_percent_encode(name, NAME);
        if let Ok(name) = HeaderName::try_from(format!("iothub-app-{name}")) {
            headers.insert(name, header_value(value.unwrap_or_default()));
        }
    }
    Ok(response)
}

/// A text as a header's value: as it is where HTTP can carry it, else percent-encoded.
fn header_value(text: &str) -> HeaderValue {
    let is_printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    let loses_blanks = text.starts_with(' ') || text.ends_with(' ');
    let value = if is_printable && !loses_blanks {
        HeaderValue::try_from(text)
    } else {
        let set = if loses_blanks {
            VALUE_WITH_BLANKS
        } else {
            VALUE
        };
        HeaderValue::try_from(utf8_percent_encode(text, set).to_string())
    };
    value.unwrap_or_else(|_| HeaderValue::from_static(""))
}

pub(crate) fn no_content() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

impl From<SettleError> for Refusal {
    fn from(error: SettleError) -> Self {
        match error {
            SettleError::LockLost => Self::MessageLockLost,
            SettleError::Store(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_http_cannot_carry_is_escaped() {
        let check = |text: &str, expected: &str| {
            assert_eq!(header_value(text).to_str().unwrap(), expected, "{text:?}");
        };
        check("", "");
        check("50% of a+b=c", "50% of a+b=c");
        check("\u{65e5}", "%E6%97%A5");
        check("50% \u{e9}", "50%25 %C3%A9");
        check(" a b ", "%20a%20b%20");
        check("a\tb\u{7f}", "a%09b%7F");
    }

    #[test]
    fn locks_are_named_by_path_and_condition() {
        let text = "0f6b8a8e-6b1d-4c6e-9a51-2f1f1f0c9a77";
        let lock: LockToken = text.parse().unwrap();
        let check = |path: Option<&str>, condition: Option<&str>, expected: Option<LockToken>| {
            let mut headers = HeaderMap::new();
            if let Some(condition) = condition {
                headers.insert(header::IF_MATCH, condition.parse().unwrap());
            }
            let expected = expected.ok_or(Refusal::MessageLockLost);
            assert_eq!(lock_of(path, &headers), expected, "{path:?} {condition:?}");
        };
        check(Some(text), None, Some(lock));
        check(Some(&text.to_uppercase()), Some(text), Some(lock));
        check(Some(text), Some(&format!("\"{text}\"")), Some(lock));
        check(Some(text), Some("*"), Some(lock));
        check(
            Some(text),
            Some("\"0f6b8a8e-6b1d-4c6e-9a51-2f1f1f0c9a78\""),
            None,
        );
        check(Some("no-lock"), None, None);
        check(None, Some(text), None);
    }
}
