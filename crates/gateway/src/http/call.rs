//! What a request asks: who it is from, its parameters, its condition, its body.

use std::net::IpAddr;
use std::sync::Arc;

use axum::RequestExt;
use axum::body::Body;
use axum::extract::{RawPathParams, Request};
use axum::http::{HeaderMap, HeaderValue, header, request};
use bytes::{Bytes, BytesMut};
use fieldpost_hub::auth::{AuthError, ClientCertificate, Denial, DevicePrincipal, parse_sas};
use fieldpost_hub::c2d::LockToken;
use fieldpost_hub::identity::Precondition;
use fieldpost_hub::policies::Rights;
use fieldpost_hub::throttles::Operation;
use fieldpost_model::{DeviceId, Identity, ModuleId};
use http_body_util::BodyExt;
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;

use super::Api;
use super::connection::Activity;
use super::refusal::Refusal;
use super::spelling::RawHead;
use crate::clock::within;

/// The oldest `api-version` that is understood (Azure IoT Hub REST).
const API_VERSION_MIN: &str = "2016-11-14";

/// An authorised request of a service.
pub(crate) struct Call {
    parts: request::Parts,
    path: PathParameters,
    body: Body,
}

impl Call {
    /// Checks credential and API version of a request. One to the registry counts against the hub's tier.
    pub(crate) async fn open(
        api: &Api,
        mut request: Request,
        rights: Rights,
    ) -> Result<Self, Refusal> {
        let path = PathParameters::of(&mut request).await?;
        let (parts, body) = request.into_parts();
        let access = api.hub.access().from(address(&parts));
        let grant = access.verify_policy_token(token(&parts)?).await?;
        let resource = percent_decode_str(parts.uri.path()).decode_utf8_lossy();
        if !grant.allows(rights, api.hub.name(), &resource) {
            return Err(Refusal::Unauthorized);
        }
        set_authenticated(&parts);
        if rights == Rights::REGISTRY_READ || rights == Rights::REGISTRY_WRITE {
            api.hub.throttles().admit(Operation::Identity)?;
        }
        let call = Self { parts, path, body };
        if !call.parameter("api-version").is_some_and(is_api_version) {
            return Err(Refusal::ApiVersion);
        }
        Ok(call)
    }

    /// The device that the path names.
    pub(crate) fn device_id(&self) -> Result<DeviceId, Refusal> {
        self.path.device_id()
    }

    /// The module that the path names, if it names one.
    pub(crate) fn module_id(&self) -> Result<Option<ModuleId>, Refusal> {
        self.path.module_id()
    }

    /// The lock that the path names; `If-Match` may name it as well and must then agree.
    pub(crate) fn lock(&self) -> Result<LockToken, Refusal> {
        lock_of(self.path.named("lock"), &self.parts.headers)
    }

    /// A query parameter as it stands, its name compared without regard to case.
    pub(crate) fn parameter(&self, name: &str) -> Option<&str> {
        let query = self.parts.uri.query()?;
        query.split('&').find_map(|pair| {
            let (key, value) = pair.split_once('=')?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    /// The condition of `If-Match`; `None` when the header is absent.
    pub(crate) fn if_match(&self) -> Result<Option<Precondition>, Refusal> {
        if_match(&self.parts.headers)
    }

    /// Reads the body as JSON.
    pub(crate) async fn json<T: DeserializeOwned>(self, api: &Api) -> Result<T, Refusal> {
        let bytes_max = api.limits.http_body_bytes_max;
        let body = read_body(api, &self.parts, self.body, bytes_max).await?;
        // Some clients mark their UTF-8.
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&body);
        serde_json::from_slice(body).map_err(|error| Refusal::Format(error.to_string().into()))
    }
}

/// An authenticated request of a device or module.
pub(crate) struct DeviceCall {
    /// Who asks.
    pub(crate) principal: DevicePrincipal,
    parts: request::Parts,
    path: PathParameters,
}

impl DeviceCall {
    /// Checks the credential: a token of the device's own key, or of a policy that may speak for it;
    /// without a token, the certificate that TLS began with.
    /// Any `api-version` is taken, and none. The body comes back for [`DeviceCall::read`].
    pub(crate) async fn open(api: &Api, mut request: Request) -> Result<(Self, Body), Refusal> {
        let path = PathParameters::of(&mut request).await?;
        let identity = Identity {
            device: path.device_id()?,
            module: path.module_id()?,
        };
        let (parts, body) = request.into_parts();
        let host = parts.headers.get(header::HOST);
        let host = host.and_then(|host| host.to_str().ok());
        let host = host.or(parts.uri.host()).ok_or(Refusal::Unauthorized)?;
        let access = api.hub.access().from(address(&parts));
        let certificate = parts.extensions.get::<Arc<ClientCertificate>>();
        let principal = match (certificate, parts.headers.get(header::AUTHORIZATION)) {
            (Some(certificate), None) => {
                access
                    .authenticate_certificate(&identity, host, certificate)
                    .await?
            }
            _ => {
                let token = token(&parts)?;
                access
                    .authenticate_device(&identity, host, token)
                    .await
                    .map_err(|error| refusal_of(error, token, identity))?
            }
        };
        set_authenticated(&parts);
        api.hub.presence().touch(&principal.identity).await;
        let call = Self {
            principal,
            parts,
            path,
        };
        Ok((call, body))
    }

    /// The lock that the path names; `If-Match` may name it as well and must then agree.
    pub(crate) fn lock(&self) -> Result<LockToken, Refusal> {
        lock_of(self.path.named("lock"), &self.parts.headers)
    }

    /// The query's names and values, decoded. A name may stand alone.
    pub(crate) fn query(&self) -> impl Iterator<Item = (String, String)> {
        let query = self.parts.uri.query().unwrap_or_default();
        query.split('&').map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
            (decoded(name), decoded(value))
        })
    }

    /// Reads the body, of `bytes_max` bytes at most. It counts as held until the request is answered.
    pub(crate) async fn read(
        &self,
        api: &Api,
        body: Body,
        bytes_max: usize,
    ) -> Result<Bytes, Refusal> {
        read_body(api, &self.parts, body, bytes_max).await
    }

    /// The headers in their order, their names as the client wrote them, where that is known.
    pub(crate) fn headers(&self) -> Vec<(&str, &[u8])> {
        let parts = &self.parts;
        let raw = parts.extensions.get::<RawHead>();
        raw.and_then(|head| head.headers(parts.method.as_str(), &parts.headers))
            .unwrap_or_else(|| {
                let headers = parts.headers.iter();
                headers
                    .map(|(name, value)| (name.as_str(), value.as_bytes()))
                    .collect()
            })
    }

    /// A header that is text.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }
}

/// Whoever holds a policy that may speak for any device may know which there are; everybody else
/// is told the same whatever is wrong.
fn refusal_of(error: AuthError, token: &str, identity: Identity) -> Refusal {
    let is_policy = || parse_sas(token).is_ok_and(|token| token.policy.is_some());
    match (&error, identity.module) {
        (AuthError::Unauthorized(Denial::UnknownIdentity), module) if is_policy() => match module {
            None => Refusal::DeviceNotFound(identity.device),
            Some(_) => Refusal::ModuleNotFound,
        },
        _ => error.into(),
    }
}

/// The decoded parts of a path that are no fixed words.
struct PathParameters(Vec<(String, String)>);

impl PathParameters {
    async fn of(request: &mut Request) -> Result<Self, Refusal> {
        let parameters = request.extract_parts::<RawPathParams>().await;
        let parameters = parameters.map_err(|error| Refusal::argument(error.to_string()))?;
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Ok(Self(parameters.iter().map(owned).collect()))
    }

    fn named(&self, name: &str) -> Option<&str> {
        let mut parameters = self.0.iter();
        let found = parameters.find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str())
    }

    fn device_id(&self) -> Result<DeviceId, Refusal> {
        DeviceId::new(self.named("device").unwrap_or_default())
            .map_err(|error| Refusal::argument(format!("device id: {error}")))
    }

    fn module_id(&self) -> Result<Option<ModuleId>, Refusal> {
        let module = self.named("module").map(ModuleId::new).transpose();
        module.map_err(|error| Refusal::argument(format!("module id: {error}")))
    }
}

fn token(parts: &request::Parts) -> Result<&str, Refusal> {
    let value = parts.headers.get(header::AUTHORIZATION);
    let text = value.and_then(|value| value.to_str().ok());
    text.ok_or(Refusal::Unauthorized)
}

/// Where a request comes from, for those who are slowed by that.
fn address(parts: &request::Parts) -> Option<IpAddr> {
    parts.extensions.get::<Arc<Activity>>()?.address()
}

fn set_authenticated(parts: &request::Parts) {
    if let Some(activity) = parts.extensions.get::<Arc<Activity>>() {
        activity.set_authenticated();
    }
}

async fn read_body(
    api: &Api,
    parts: &request::Parts,
    body: Body,
    bytes_max: usize,
) -> Result<Bytes, Refusal> {
    let activity = parts.extensions.get::<Arc<Activity>>();
    let hold = |bytes| {
        if let Some(activity) = activity {
            activity.hold_body(bytes);
        }
    };
    let collected = collect(body, bytes_max, api.limits.http_body_bytes_max, hold);
    within(api.hub.timer(), api.limits.http_body, collected)
        .await
        .unwrap_or(Err(Refusal::BodyTimeout))
}

/// Reads a body, and says how much of it is held. One that is too long is read to its end all the
/// same, up to `read_max`: a client that is still sending when the connection is closed does not see
/// the answer.
async fn collect(
    mut body: Body,
    bytes_max: usize,
    read_max: usize,
    hold: impl Fn(usize),
) -> Result<Bytes, Refusal> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Refusal::bad_request(error.to_string()))?;
        // Trailers mean nothing here.
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let is_first = length == 0;
        length += data.len();
        if length > read_max.max(bytes_max) {
            return Err(Refusal::BodyTooLarge);
        }
        if length > bytes_max {
            (first, all) = (Bytes::new(), BytesMut::new());
            hold(0);
            continue;
        }
        hold(length);
        if is_first {
            first = data;
        } else {
            if all.is_empty() {
                all.extend_from_slice(&first);
            }
            all.extend_from_slice(&data);
        }
    }
    match length {
        length if length > bytes_max => Err(Refusal::BodyTooLarge),
        length if length == first.len() => Ok(first),
        _ => Ok(all.freeze()),
    }
}

/// The condition of `If-Match` in any of its spellings.
pub(crate) fn if_match(headers: &HeaderMap) -> Result<Option<Precondition>, Refusal> {
    let Some(value) = headers.get(header::IF_MATCH) else {
        return Ok(None);
    };
    let etag = bare_etag(value).ok_or_else(|| Refusal::bad_request("If-Match is not text"))?;
    Ok(Some(Precondition::matching(etag)))
}

/// The lock that a request settles: the one that its path names, and `If-Match` too if it is there.
fn lock_of(path: Option<&str>, headers: &HeaderMap) -> Result<LockToken, Refusal> {
    let lock = path.and_then(|text| text.parse().ok());
    let lock: LockToken = lock.ok_or(Refusal::MessageLockLost)?;
    match headers.get(header::IF_MATCH).map(bare_etag) {
        None | Some(Some("*")) => Ok(lock),
        Some(Some(etag)) if etag.parse() == Ok(lock) => Ok(lock),
        Some(_) => Err(Refusal::MessageLockLost),
    }
}

/// An entity tag without its dress; `None` when it is not text. SDKs write it quoted or bare, weak
/// or strong, and the star too.
fn bare_etag(value: &HeaderValue) -> Option<&str> {
    let text = value.to_str().ok()?.trim();
    let text = text.strip_prefix("W/").unwrap_or(text);
    let bare = text.strip_prefix('"').and_then(|t| t.strip_suffix('"'));
    Some(bare.unwrap_or(text))
}

/// `YYYY-MM-DD`, perhaps with `-preview`, from [`API_VERSION_MIN`] on.
fn is_api_version(text: &str) -> bool {
    let date = text.strip_suffix("-preview").unwrap_or(text);
    let dated = date.len() == API_VERSION_MIN.len()
        && date
            .bytes()
            .zip(API_VERSION_MIN.bytes())
            .all(|(byte, like)| {
                if like == b'-' {
                    byte == b'-'
                } else {
                    byte.is_ascii_digit()
                }
            });
    dated && date >= API_VERSION_MIN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_dated_version_since_2016_is_taken() {
        let check =
            |text: &str, expected: bool| assert_eq!(is_api_version(text), expected, "{text}");
        check("2021-04-12", true);
        check("2016-11-14", true);
        check("2031-01-01", true);
        check("2019-07-01-preview", true);
        check("2016-11-13", false);
        check("2021-4-12", false);
        check("latest", false);
        check("", false);
    }

    #[test]
    fn conditions_are_read_in_every_spelling() {
        let check = |header: Option<&str>, expected: Option<Precondition>| {
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(header::IF_MATCH, header.parse().unwrap());
            }
            assert_eq!(if_match(&headers), Ok(expected), "{header:?}");
        };
        check(None, None);
        check(Some("*"), Some(Precondition::Any));
        check(Some("\"*\""), Some(Precondition::Any));
        let etag = || Some(Precondition::ETag("MTA2".to_owned()));
        check(Some("\"MTA2\""), etag());
        check(Some("MTA2"), etag());
        check(Some("W/\"MTA2\""), etag());
    }

    #[test]
    fn locks_are_named_by_path_and_condition() {
        let text = "0f6b8a8e-6b1d-4c6e-9a51-2f1f1f0c9a77";
        let other = "0f6b8a8e-6b1d-4c6e-9a51-2f1f1f0c9a78";
        let lock: LockToken = text.parse().unwrap();
        let check = |path: Option<&str>, condition: Option<&[u8]>, expected: Option<LockToken>| {
            let mut headers = HeaderMap::new();
            if let Some(condition) = condition {
                let value = HeaderValue::from_bytes(condition).unwrap();
                headers.insert(header::IF_MATCH, value);
            }
            let expected = expected.ok_or(Refusal::MessageLockLost);
            assert_eq!(lock_of(path, &headers), expected, "{path:?} {condition:?}");
        };
        let quoted = |text: &str| format!("\"{text}\"").into_bytes();
        check(Some(text), None, Some(lock));
        check(
            Some(&text.to_uppercase()),
            Some(text.as_bytes()),
            Some(lock),
        );
        check(Some(text), Some(&quoted(text)), Some(lock));
        check(
            Some(text),
            Some(format!("W/\"{text}\"").as_bytes()),
            Some(lock),
        );
        check(Some(text), Some(b"*"), Some(lock));
        check(Some(text), Some(b"\"*\""), Some(lock));
        check(Some(text), Some(other.as_bytes()), None);
        check(Some(text), Some(&quoted(other)), None);
        check(Some(text), Some(b""), None);
        check(Some(text), Some(b"\xff"), None);
        check(Some("no-lock"), None, None);
        check(None, Some(text.as_bytes()), None);
    }
}
