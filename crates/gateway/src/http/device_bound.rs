//! Messages to devices over HTTPS: a device asks for one, and says what becomes of it.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{HeaderName, HeaderValue};
use axum::http::{Response, StatusCode};
use fieldpost_hub::c2d::{Delivery, SettleError, Settlement};
use fieldpost_hub::throttles::Operation;
use fieldpost_model::{Ack, Timestamp};
use fieldpost_record::{CommandView, RecordError};
use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, utf8_percent_encode};
use tracing::error;

use super::Api;
use super::call::DeviceCall;
use super::refusal::Refusal;

/// How long a device wants to hold what it gets: .NET's SDK says so in the query, Java's in a header.
const LOCK_TIMEOUT: &str = "iothub-messagelocktimeout";

/// Before the names of application properties (Azure IoT Hub, HTTPS).
const APPLICATION_PREFIX: &str = "iothub-app-";

/// `GET /devices/{id}/messages/deviceBound`: locks the next message.
pub(crate) async fn receive(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    // No body means anything here.
    let (call, _) = DeviceCall::open(&api, request).await?;
    api.hub.throttles().admit(Operation::HttpReceive)?;
    let lock = lock_asked_for(&call);
    let c2d = api.hub.c2d();
    while let Some(delivery) = c2d.receive_one(&call.principal, lock).await? {
        match message(&delivery) {
            Ok(response) => return Ok(response),
            Err(error) => {
                error!(sequence = delivery.sequence, %error, "a message to a device cannot be read");
                // It never will be. So it is found among the dead letters, and is in nobody's way.
                let rejected = c2d.settle(&call.principal, delivery.lock, Settlement::Reject);
                if let Err(SettleError::Store(error)) = rejected.await {
                    return Err(error.into());
                }
            }
        }
    }
    Ok(no_content())
}

/// `DELETE /devices/{id}/messages/deviceBound/{lock}`: completes, or rejects.
pub(crate) async fn complete_or_reject(
    State(api): State<Api>,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let (call, _) = DeviceCall::open(&api, request).await?;
    // Java's SDK puts the question mark into the name.
    let is_reject = |name: &str| name.trim_start_matches('?').eq_ignore_ascii_case("reject");
    let settlement = if call.query().any(|(name, _)| is_reject(&name)) {
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
    let (call, _) = DeviceCall::open(&api, request).await?;
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

/// What the query says, else what the header says. What is no number counts as unsaid.
fn lock_asked_for(call: &DeviceCall) -> Option<Duration> {
    let seconds = |text: &str| text.trim().parse().ok();
    let mut query = call.query();
    let by_query = query.find(|(name, _)| name.eq_ignore_ascii_case(LOCK_TIMEOUT));
    let asked = by_query.and_then(|(_, value)| seconds(&value));
    let asked = asked.or_else(|| seconds(call.header(LOCK_TIMEOUT)?));
    asked.map(Duration::from_secs)
}

/// A message with its properties as headers, in the names of Azure IoT Hub's HTTPS interface.
pub(crate) fn message(delivery: &Delivery) -> Result<Response<Body>, RecordError> {
    let command = CommandView::parse(&delivery.message)?;
    let body = command.body().unwrap_or_default();
    // The message's bytes are shared, not copied.
    let mut response = Response::new(Body::from(delivery.message.slice_ref(body)));
    let headers = response.headers_mut();
    let user_id = command.user_id().map(String::from_utf8_lossy);
    let expires = delivery.expires.to_string();
    let enqueued = command.enqueued().to_string();
    // SDKs read times and numbers and fail on what is neither: better none.
    let created = command.creation_time().and_then(Timestamp::parse);
    let created = created.map(|time| time.to_string());
    let sequence = delivery.sequence.to_string();
    let count = delivery.delivery_count.to_string();
    let ack = Some(command.ack()).filter(|ack| *ack != Ack::None);
    let etag = format!("\"{}\"", delivery.lock);
    for (name, value) in [
        ("etag", Some(etag.as_str())),
        ("iothub-messageid", command.message_id()),
        ("iothub-correlationid", command.correlation_id()),
        ("iothub-userid", user_id.as_deref()),
        ("iothub-to", Some(command.to())),
        ("iothub-expiry", Some(&expires)),
        ("iothub-enqueuedtime", Some(&enqueued)),
        ("iothub-ack", ack.map(Ack::as_str)),
        ("iothub-sequencenumber", Some(&sequence)),
        ("iothub-deliverycount", Some(&count)),
        ("iothub-contenttype", command.content_type()),
        ("iothub-contentencoding", command.content_encoding()),
        ("iothub-creationtimeutc", created.as_deref()),
        ("iothub-messageschema", command.message_schema()),
    ] {
        if let Some(value) = value {
            headers.insert(HeaderName::from_static(name), header_value(value));
        }
    }
    for (name, value) in command.properties() {
        if let Some(name) = property_name(name) {
            // A map of headers ends at some ten thousand; the hub takes no message with so many
            // properties.
            let _ = headers.try_append(name, header_value(value.unwrap_or_default()));
        }
    }
    Ok(response)
}

/// The header of an application property. Its name stands as it is where HTTP can carry it, else
/// percent-encoded; HTTP knows no case, and this server writes lower case.
fn property_name(name: &str) -> Option<HeaderName> {
    /// What a header's name may hold besides letters and digits (RFC 9110, section 5.6.2), but for
    /// the escape sign.
    const TOKEN: &AsciiSet = &NON_ALPHANUMERIC
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

    let encoded = || {
        let name = utf8_percent_encode(name, TOKEN);
        HeaderName::try_from(format!("{APPLICATION_PREFIX}{name}")).ok()
    };
    let plain = HeaderName::try_from(format!("{APPLICATION_PREFIX}{name}"));
    plain.ok().or_else(encoded)
}

/// A text as a header's value: as it is where HTTP can carry it, else percent-encoded.
pub(crate) fn header_value(text: &str) -> HeaderValue {
    /// Everything but printable ASCII, and the escape sign itself.
    const UNPRINTABLE: &AsciiSet = &CONTROLS.add(b'%');
    /// Blanks too, where they would be lost.
    const WITH_BLANKS: &AsciiSet = &UNPRINTABLE.add(b' ');

    let is_printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    let loses_blanks = text.starts_with(' ') || text.ends_with(' ');
    let value = if loses_blanks {
        HeaderValue::try_from(utf8_percent_encode(text, WITH_BLANKS).to_string())
    } else if is_printable {
        HeaderValue::try_from(text)
    } else {
        HeaderValue::try_from(utf8_percent_encode(text, UNPRINTABLE).to_string())
    };
    value.expect("printable ASCII is a header's value")
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
    fn names_of_properties_are_names_of_headers() {
        let check = |name: &str, expected: &str| {
            let header = property_name(name).unwrap();
            assert_eq!(
                header.as_str(),
                format!("iothub-app-{expected}"),
                "{name:?}"
            );
        };
        check("room", "room");
        check("!#$%&'*+-.^_`|~09", "!#$%&'*+-.^_`|~09");
        check("Room", "room");
        check("a b", "a%20b");
        check("100% \u{e9}:", "100%25%20%C3%A9%3A".to_lowercase().as_str());
        check("", "");
    }
}
