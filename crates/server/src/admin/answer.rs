//! What the admin API takes apart and answers with.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::json;

/// An error of the admin API: a status and a JSON body `{"error": {"code", "message"}}`.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) code: String,
    pub(super) message: String,
}

/// Makes a problem.
pub(super) fn problem(
    status: StatusCode,
    code: impl Into<String>,
    message: impl Into<String>,
) -> Problem {
    Problem {
        status,
        code: code.into(),
        message: message.into(),
    }
}

/// The request itself is wrong.
pub(super) fn invalid(message: impl Into<String>) -> Problem {
    problem(StatusCode::BAD_REQUEST, "ArgumentInvalid", message)
}

/// A JSON body; anything else is answered with a [`Problem`].
pub(super) struct Body<T>(pub(super) T);

/// The parameters of the query; anything else is answered with a [`Problem`].
///
/// Types of parameters refuse unknown names: a misspelt `excludeKeys` must not export keys.
pub(super) struct Parameters<T>(pub(super) T);

/// A part of the path; anything else is answered with a [`Problem`].
pub(super) struct Segment<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let taken = Json::from_request(request, state).await;
        let Json(body) =
            taken.map_err(|error: JsonRejection| refused(error.status(), error.body_text()))?;
        Ok(Self(body))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Parameters<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let taken = Query::from_request_parts(parts, state).await;
        let Query(parameters) =
            taken.map_err(|error: QueryRejection| refused(error.status(), error.body_text()))?;
        Ok(Self(parameters))
    }
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segment<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let taken = Path::from_request_parts(parts, state).await;
        let Path(segment) =
            taken.map_err(|error: PathRejection| refused(error.status(), error.body_text()))?;
        Ok(Self(segment))
    }
}

fn refused(status: StatusCode, text: String) -> Problem {
    problem(status, "ArgumentInvalid", text)
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({"error": {"code": self.code, "message": self.message}});
        (self.status, Json(body)).into_response()
    }
}
