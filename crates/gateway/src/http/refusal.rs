//! Refusals: what went wrong, and the one table that turns it into status, code and text.

use std::borrow::Cow;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{Response, StatusCode};
use axum::response::IntoResponse;
use fieldpost_hub::auth::AuthError;
use fieldpost_hub::identity::{MODULES_MAX, RegistryError};
use fieldpost_hub::throttles::Throttled;
use fieldpost_model::{DeviceId, Timestamp};
use fieldpost_store::StoreError;
use serde::Serialize;
use tracing::{debug, error};

use super::Api;

/// Why a request is not answered as asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// There is no such route.
    NoSuchPath,
    /// The route knows other methods.
    MethodNotAllowed,
    /// The request breaks a rule of HTTP or of WebSocket.
    BadRequest(Cow<'static, str>),
    /// `api-version` is missing or no version.
    ApiVersion,
    /// The body is no JSON, or not of the documented shape.
    Format(Cow<'static, str>),
    /// A member or parameter has a value that it must not have.
    Argument(Cow<'static, str>),
    /// The credential is missing, wrong, or lacks the right.
    Unauthorized,
    /// No such device.
    DeviceNotFound(DeviceId),
    /// No such module.
    ModuleNotFound,
    /// There is such a device already.
    DeviceAlreadyExists,
    /// There is such a module already.
    ModuleAlreadyExists,
    /// The device has as many modules as it may.
    TooManyModules,
    /// A bulk request names a device twice.
    DefinedTwice,
    /// The condition of the request does not hold.
    PreconditionFailed,
    /// The lock of a message has ended, or never was.
    MessageLockLost,
    /// The body is too long.
    BodyTooLarge,
    /// The body did not come in time.
    BodyTimeout,
    /// More is asked than may be at the moment.
    Throttled(Throttled),
    /// More came today than may come.
    QuotaExceeded,
    /// The store takes no writes, or does not answer.
    Unavailable,
    /// Something is broken; the log says what.
    Internal,
}

/// Seconds after which a client may ask again.
const RETRY_AFTER_S: u64 = 10;

/// Says the code's name once more, where some SDKs compare it with the body.
const ERROR_CODE: HeaderName = HeaderName::from_static("iothub-errorcode");

impl Refusal {
    pub(crate) fn bad_request(text: impl Into<Cow<'static, str>>) -> Self {
        Self::BadRequest(text.into())
    }

    pub(crate) fn argument(text: impl Into<Cow<'static, str>>) -> Self {
        Self::Argument(text.into())
    }

    /// What the registry refused for `device`.
    pub(crate) fn of_registry(error: RegistryError, device: &DeviceId) -> Self {
        match error {
            RegistryError::NotFound => Self::DeviceNotFound(device.clone()),
            RegistryError::AlreadyExists => Self::DeviceAlreadyExists,
            RegistryError::ModuleNotFound => Self::ModuleNotFound,
            RegistryError::TooManyModules => Self::TooManyModules,
            RegistryError::PreconditionFailed => Self::PreconditionFailed,
            RegistryError::DefinedTwice => Self::DefinedTwice,
            RegistryError::InvalidArgument(invalid) => Self::argument(invalid.to_string()),
            RegistryError::Store(error) => error.into(),
        }
    }

    /// What the registry refused for a module of `device`.
    pub(crate) fn of_module(error: RegistryError, device: &DeviceId) -> Self {
        match error {
            RegistryError::AlreadyExists => Self::ModuleAlreadyExists,
            error => Self::of_registry(error, device),
        }
    }

    /// What the registry refused of a request that names no device.
    pub(crate) fn of_listing(error: RegistryError) -> Self {
        match error {
            RegistryError::NotFound
            | RegistryError::AlreadyExists
            | RegistryError::ModuleNotFound
            | RegistryError::TooManyModules
            | RegistryError::PreconditionFailed
            | RegistryError::DefinedTwice => Self::Internal,
            RegistryError::InvalidArgument(invalid) => Self::argument(invalid.to_string()),
            RegistryError::Store(error) => error.into(),
        }
    }

    /// Status, six-digit code and name, as Azure IoT Hub documents them.
    pub(crate) fn code(&self) -> (StatusCode, u32, &'static str) {
        use StatusCode as S;
        match self {
            Self::NoSuchPath => (S::NOT_FOUND, 404_000, "GenericNotFound"),
            Self::MethodNotAllowed => (S::METHOD_NOT_ALLOWED, 405_000, "GenericMethodNotAllowed"),
            Self::BadRequest(_) => (S::BAD_REQUEST, 400_000, "GenericBadRequest"),
            Self::ApiVersion => (S::BAD_REQUEST, 400_001, "InvalidProtocolVersion"),
            Self::Format(_) => (S::BAD_REQUEST, 400_006, "IotHubFormatError"),
            Self::Argument(_) => (S::BAD_REQUEST, 400_004, "ArgumentInvalid"),
            Self::Unauthorized => (S::UNAUTHORIZED, 401_002, "IotHubUnauthorizedAccess"),
            Self::DeviceNotFound(_) => (S::NOT_FOUND, 404_001, "DeviceNotFound"),
            Self::ModuleNotFound => (S::NOT_FOUND, 404_010, "ModuleNotFound"),
            Self::DeviceAlreadyExists => (S::CONFLICT, 409_001, "DeviceAlreadyExists"),
            Self::ModuleAlreadyExists => (S::CONFLICT, 409_301, "ModuleAlreadyExistsOnDevice"),
            Self::TooManyModules => (S::PAYLOAD_TOO_LARGE, 413_003, "TooManyModulesOnDevice"),
            Self::DefinedTwice => (S::BAD_REQUEST, 400_011, "DeviceDefinedMultipleTimes"),
            Self::PreconditionFailed => (S::PRECONDITION_FAILED, 412_001, "PreconditionFailed"),
            Self::MessageLockLost => (S::PRECONDITION_FAILED, 412_002, "DeviceMessageLockLost"),
            Self::BodyTooLarge => (S::PAYLOAD_TOO_LARGE, 413_001, "MessageTooLarge"),
            Self::BodyTimeout => (S::BAD_REQUEST, 400_024, "RequestTimedOut"),
            Self::Throttled(throttled) if throttled.is_backlog_full => (
                S::TOO_MANY_REQUESTS,
                429_002,
                "ThrottleBacklogLimitExceeded",
            ),
            Self::Throttled(_) => (S::TOO_MANY_REQUESTS, 429_001, "ThrottlingException"),
            Self::QuotaExceeded => (S::FORBIDDEN, 403_002, "IotHubQuotaExceeded"),
            Self::Unavailable => (S::SERVICE_UNAVAILABLE, 503_001, "ServiceUnavailable"),
            Self::Internal => (S::INTERNAL_SERVER_ERROR, 500_001, "ServerError"),
        }
    }

    /// The status of the answer.
    pub(crate) fn status(&self) -> StatusCode {
        self.code().0
    }

    /// What stands behind the code for people.
    pub(crate) fn text(&self) -> Cow<'static, str> {
        match self {
            Self::BadRequest(text) | Self::Format(text) | Self::Argument(text) => text.clone(),
            Self::DeviceNotFound(device) => {
                format!("No device with id '{device}' is registered").into()
            }
            Self::NoSuchPath => "There is nothing under this path".into(),
            Self::MethodNotAllowed => "This path does not know the method".into(),
            Self::ApiVersion => {
                "The query parameter api-version is missing or is not a supported version".into()
            }
            Self::Unauthorized => "Unauthorized".into(),
            Self::ModuleNotFound => "No such module is registered".into(),
            Self::DeviceAlreadyExists => "A device with this id is registered already".into(),
            Self::ModuleAlreadyExists => "A module with this id is registered already".into(),
            Self::TooManyModules => format!("A device has at most {MODULES_MAX} modules").into(),
            Self::DefinedTwice => "The device is named more than once in the request".into(),
            Self::PreconditionFailed => "The identity has another etag".into(),
            Self::MessageLockLost => "The message is not locked under this token".into(),
            Self::BodyTooLarge => "The request body is too large".into(),
            Self::BodyTimeout => "The request body did not come in time".into(),
            Self::Throttled(_) => "More is sent than may be; try again later".into(),
            Self::QuotaExceeded => "The quota of messages is used up for today".into(),
            Self::Unavailable => "The hub cannot answer at the moment; try again".into(),
            Self::Internal => "The hub failed; its log says more".into(),
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::ReadOnly { .. } | StoreError::Full | StoreError::Closed => {
                debug!(%error, "request refused by the store");
                Self::Unavailable
            }
            StoreError::Damaged { .. }
            | StoreError::Read { .. }
            | StoreError::OutOfBounds { .. } => {
                error!(%error, "a request failed in the store");
                Self::Internal
            }
        }
    }
}

impl From<Throttled> for Refusal {
    fn from(throttled: Throttled) -> Self {
        Self::Throttled(throttled)
    }
}

impl From<AuthError> for Refusal {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Unauthorized(denial) => {
                debug!(reason = denial.as_str(), "request not authorised");
                Self::Unauthorized
            }
            AuthError::TooManyFailures => Self::Throttled(Throttled {
                is_backlog_full: false,
                retry_after: Duration::from_secs(RETRY_AFTER_S),
            }),
            AuthError::Unavailable(error) => error.into(),
        }
    }
}

/// Leaves the refusal to [`write`], which knows the time and a tracking id.
impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status();
        response.extensions_mut().insert(self);
        response
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ErrorBody {
    message: String,
    exception_message: String,
}

/// Writes the body of a refused request; other answers pass as they are.
pub(crate) fn write(api: &Api, mut response: Response<Body>) -> Response<Body> {
    let Some(refusal) = response.extensions_mut().remove::<Refusal>() else {
        return response;
    };
    let (_, _, name) = refusal.code();
    let mut id = [0; 16];
    api.hub.chance().fill(&mut id);
    // Node's and .NET's service SDKs take both halves of the message apart.
    let body = ErrorBody {
        message: format!("ErrorCode:{name};{}", refusal.text()),
        exception_message: format!(
            "Tracking ID:{:032x}-G:0-TimeStamp:{}",
            u128::from_be_bytes(id),
            american_time(api.hub.timer().now()),
        ),
    };
    let headers = response.headers_mut();
    headers.insert(ERROR_CODE, HeaderValue::from_static(name));
    let retry_after = match &refusal {
        Refusal::Unavailable => Some(RETRY_AFTER_S),
        // In whole seconds, after which it is worth it.
        Refusal::Throttled(throttled) => Some(throttled.retry_after.as_secs() + 1),
        _ => None,
    };
    if let Some(seconds) = retry_after {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    set_json(&mut response, &body);
    response
}

/// Makes `value` the body of a response.
pub(crate) fn set_json(response: &mut Response<Body>, value: &impl Serialize) {
    // The router has counted the bytes of the body that stood there before.
    response.headers_mut().remove(header::CONTENT_LENGTH);
    // Node's service SDK leaves a body unparsed without this.
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    match serde_json::to_vec(value) {
        Ok(body) => *response.body_mut() = body.into(),
        Err(error) => {
            error!(%error, "an answer could not be written as JSON");
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
    }
}

/// `MM/DD/YYYY hh:mm:ss`, the form in Azure's tracking ids.
fn american_time(time: Timestamp) -> String {
    let text = time.to_string();
    let (date, time) = text.split_once('T').unwrap_or((&text, ""));
    let mut date = date.rsplitn(3, '-');
    let (day, month, year) = (date.next(), date.next(), date.next());
    format!(
        "{}/{}/{} {}",
        month.unwrap_or_default(),
        day.unwrap_or_default(),
        year.unwrap_or_default(),
        time.get(..8).unwrap_or(time),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracking_ids_hold_the_time_in_its_documented_form() {
        let time = Timestamp::parse("2026-01-05T10:20:30.5Z").unwrap();
        assert_eq!(american_time(time), "01/05/2026 10:20:30");
    }
}
