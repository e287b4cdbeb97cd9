//! The admin API's errors.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
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

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({"error": {"code": self.code, "message": self.message}});
        (self.status, Json(body)).into_response()
    }
}
