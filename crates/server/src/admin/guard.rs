//! Who may call the admin API: tools on this machine that can read the data directory.
//!
//! The token keeps other users out. The checks of `Host` and `Origin` keep web pages out: a page in
//! a browser on this machine can reach a loopback port, and by rebinding a name of its own even as
//! its own origin, but it can forge neither header.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use fieldpost_hub::secrets::Secret;

use super::answer::problem;

/// Lets a request through, or answers 401 or 403.
pub(super) async fn check(State(token): State<Secret>, request: Request, next: Next) -> Response {
    match refusal(request.headers(), &token) {
        None => next.run(request).await,
        Some((status, message)) => {
            let code = if status == StatusCode::UNAUTHORIZED {
                "Unauthorized"
            } else {
                "Forbidden"
            };
            let mut response = problem(status, code, message).into_response();
            if status == StatusCode::UNAUTHORIZED {
                let scheme = header::HeaderValue::from_static("Bearer");
                response
                    .headers_mut()
                    .insert(header::WWW_AUTHENTICATE, scheme);
            }
            response
        }
    }
}

fn refusal(headers: &HeaderMap, token: &Secret) -> Option<(StatusCode, &'static str)> {
    let text = |name| {
        headers
            .get(name)
            .map(|value| value.to_str().unwrap_or_default())
    };
    let Some(host) = text(header::HOST).filter(|host| is_loopback_name(host)) else {
        return Some((
            StatusCode::FORBIDDEN,
            "the Host header must name the loopback interface",
        ));
    };
    if let Some(origin) = text(header::ORIGIN)
        && origin.strip_prefix("http://") != Some(host)
    {
        return Some((
            StatusCode::FORBIDDEN,
            "requests of other origins are refused",
        ));
    }
    let given = text(header::AUTHORIZATION)
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| Secret::new(token.trim()));
    // Comparing secrets takes the same time whatever differs.
    if given.is_none_or(|given| given != *token) {
        return Some((
            StatusCode::UNAUTHORIZED,
            "the token in the file admin-token of the data directory is needed",
        ));
    }
    None
}

/// Whether a `Host` header, with or without a port, names this machine's loopback interface.
fn is_loopback_name(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').unwrap_or_default(),
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let is_port = port.is_empty()
        || port
            .strip_prefix(':')
            .is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()));
    if !is_port {
        return false;
    }
    name.eq_ignore_ascii_case("localhost")
        || name
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_local_tool_with_the_token_gets_in() {
        let token = Secret::new("right");
        let check = |host: &str,
                     origin: Option<&str>,
                     authorization: Option<&str>,
                     expected: Option<u16>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            if let Some(value) = authorization {
                headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            }
            let status = refusal(&headers, &token).map(|(status, _)| status.as_u16());
            assert_eq!(status, expected, "{headers:?}");
        };
        let right = Some("Bearer right");
        for host in [
            "localhost",
            "LOCALHOST:9640",
            "127.0.0.1:9640",
            "127.9.9.9",
            "[::1]:9640",
            "[::1]",
        ] {
            check(host, None, right, None);
        }
        for host in [
            "example.org",
            "127.0.0.1.example.org",
            "10.0.0.1:9640",
            "localhost.evil.example",
            "[::1].evil.example",
            "localhost:80.evil.example",
            "",
        ] {
            check(host, None, right, Some(403));
        }
        check("localhost:9640", Some("http://localhost:9640"), right, None);
        check(
            "localhost:9640",
            Some("http://localhost:80"),
            right,
            Some(403),
        );
        check(
            "localhost:9640",
            Some("https://evil.example"),
            right,
            Some(403),
        );
        check("localhost:9640", Some("null"), right, Some(403));
        for wrong in [
            "Bearer wrong",
            "Bearer",
            "right",
            "Basic right",
            "Bearer righ",
            "Bearer right1",
        ] {
            check("localhost", None, Some(wrong), Some(401));
        }
        check("localhost", None, Some("bearer right"), None);
        check("localhost", None, None, Some(401));
    }
}
