//! What a request asks: who it is from, its parameters, its condition, its body.

use axum::RequestExt;
use axum::body::{self, Body};
use axum::extract::{RawPathParams, Request};
use axum::http::{HeaderMap, header, request};
use bytes::Bytes;
use fieldpost_hub::c2d::LockToken;
use fieldpost_hub::identity::Precondition;
use fieldpost_hub::policies::Rights;
use fieldpost_model::{DeviceId, ModuleId};
use percent_encoding::percent_decode_str;
use serde::de::DeserializeOwned;
use std::sync::Arc;

use super::Api;
use super::connection::Activity;
use super::device_bound::lock_of;
use super::refusal::Refusal;
use crate::clock::within;

/// The oldest `api-version` that is understood (Azure IoT Hub REST).
const API_VERSION_MIN: &str = "2016-11-14";

/// An authorised request.
pub(crate) struct Call {
    parts: request::Parts,
    path_params: Vec<(String, String)>,
    body: Body,
}

impl Call {
    /// Checks credential and API version of a request to a registry route.
    pub(crate) async fn open(
        api: &Api,
        mut request: Request,
        rights: Rights,
    ) -> Result<Self, Refusal> {
        let path_params = request
            .extract_parts::<RawPathParams>()
            .await
            .map_err(|error| Refusal::argument(error.to_string()))?
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let (parts, body) = request.into_parts();
        let token = parts
            .headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .ok_or(Refusal::Unauthorized)?;
        let grant = api.hub.access().verify_policy_token(token)?;
        let path = percent_decode_str(parts.uri.path()).decode_utf8_lossy();
        if !grant.allows(rights, api.hub.name(), &path) {
            return Err(Refusal::Unauthorized);
        }
        if let Some(activity) = parts.extensions.get::<Arc<Activity>>() {
            activity.set_authenticated();
        }
        let call = Self {
            parts,
            path_params,
            body,
        };
        if !call.parameter("api-version").is_some_and(is_api_version) {
            return Err(Refusal::ApiVersion);
        }
        Ok(call)
    }

    /// The device that the path names.
    pub(crate) fn device_id(&self) -> Result<DeviceId, Refusal> {
        DeviceId::new(self.path_parameter("device"))
            .map_err(|error| Refusal::argument(format!("device id: {error}")))
    }

    /// The module that the path names.
    pub(crate) fn module_id(&self) -> Result<ModuleId, Refusal> {
        ModuleId::new(self.path_parameter("module"))
            .map_err(|error| Refusal::argument(format!("module id: {error}")))
    }

    /// The lock that the path names; `If-Match` may name it as well and must then agree.
    pub(crate) fn lock(&self) -> Result<LockToken, Refusal> {
        lock_of(Some(self.path_parameter("lock")), &self.parts.headers)
    }

    fn path_parameter(&self, name: &str) -> &str {
        self.path_params
            .iter()
            .find(|(n, _)| n == name)
            .map_or("", |(_, value)| value)
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
        let body = read_body(api, self.body).await?;
        // Some clients mark their UTF-8.
        let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&body);
        serde_json::from_slice(body).map_err(|error| Refusal::Format(error.to_string().into()))
    }
}

async fn read_body(api: &Api, body: Body) -> Result<Bytes, Refusal> {
    let limits = &api.limits;
    let read = body::to_bytes(body, limits.http_body_bytes_max);
    match within(api.hub.timer(), limits.http_body, read).await {
        None => Err(Refusal::BodyTimeout),
        Some(Ok(body)) => Ok(body),
        Some(Err(error)) if is_length_limit(&error) => Err(Refusal::BodyTooLarge),
        Some(Err(error)) => Err(Refusal::bad_request(error.to_string())),
    }
}

fn is_length_limit(error: &axum::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The condition of `If-Match` in any of its spellings.
pub(crate) fn if_match(headers: &HeaderMap) -> Result<Option<Precondition>, Refusal> {
    let Some(value) = headers.get(header::IF_MATCH) else {
        return Ok(None);
    };
    let text = value
        .to_str()
        .map_err(|_| Refusal::bad_request("If-Match is not text"))?
        .trim();
    // Quoted or bare, weak or strong, and the star too: SDKs send every combination.
    let text = text.strip_prefix("W/").unwrap_or(text);
    let text = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .unwrap_or(text);
    Ok(Some(Precondition::matching(text)))
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
}
