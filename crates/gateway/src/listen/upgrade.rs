//! Which requests ask for a WebSocket, and what they get.

use axum::body::Body;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, Response, StatusCode, Uri, request};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fieldpost_hub::Hub;
use percent_encoding::percent_decode_str;
use tungstenite::handshake::derive_accept_key;

use crate::http::refusal::Refusal;

/// The protocol that a WebSocket carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subprotocol {
    /// MQTT, as devices speak it.
    Mqtt,
    /// AMQP 1.0, as devices, services and Event Hubs clients speak it.
    Amqp,
}

/// What becomes of a request for a WebSocket.
#[derive(Debug)]
pub(crate) enum Upgrade {
    /// It is granted: the answer to send, and what is spoken after it.
    Granted(Response<Body>, Subprotocol),
    /// It is not.
    Refused(Refusal),
}

/// Whether a page of a browser asks that does not come from this hub. Browsers say so and let pages ask
/// anywhere; no client that is no browser has to say anything.
pub(crate) fn is_foreign(request: &request::Parts, hub: &Hub) -> bool {
    request
        .headers
        .get_all(header::ORIGIN)
        .iter()
        .any(|origin| {
            let origin = Uri::try_from(origin.as_bytes()).ok();
            let host = origin.as_ref().and_then(Uri::host);
            !host.is_some_and(|host| hub.is_own_host(host))
        })
}

/// Looks whether a request asks for a WebSocket; `None` when it does not, whatever its path.
pub(crate) fn negotiate(request: &request::Parts) -> Option<Upgrade> {
    let headers = &request.headers;
    let asks = tokens(headers, &header::CONNECTION).any(|t| t.eq_ignore_ascii_case("upgrade"))
        && tokens(headers, &header::UPGRADE).any(|t| t.eq_ignore_ascii_case("websocket"));
    if !asks {
        return None;
    }
    Some(grant(request).unwrap_or_else(Upgrade::Refused))
}

fn grant(request: &request::Parts) -> Result<Upgrade, Refusal> {
    let headers = &request.headers;
    // The `$` comes as it is or percent-encoded; Event Hubs clients end the path with a slash.
    let path = percent_decode_str(request.uri.path()).decode_utf8_lossy();
    let allowed: &[Subprotocol] = match path.trim_end_matches('/').to_ascii_lowercase().as_str() {
        "/$iothub/websocket" => &[Subprotocol::Mqtt, Subprotocol::Amqp],
        "/$servicebus/websocket" => &[Subprotocol::Amqp],
        _ => return Err(Refusal::NoSuchPath),
    };
    if request.method != Method::GET {
        return Err(Refusal::MethodNotAllowed);
    }
    let version = headers.get(header::SEC_WEBSOCKET_VERSION);
    if version.is_none_or(|version| version != "13") {
        return Err(Refusal::bad_request(
            "only version 13 of WebSocket is spoken",
        ));
    }
    let key = headers
        .get(header::SEC_WEBSOCKET_KEY)
        .filter(|key| is_key(key.as_bytes()))
        .ok_or_else(|| Refusal::bad_request("Sec-WebSocket-Key is not 16 bytes in base64"))?;
    let (spelling, subprotocol) = tokens(headers, &header::SEC_WEBSOCKET_PROTOCOL)
        .find_map(|offered| {
            let subprotocol = Subprotocol::parse(offered)?;
            allowed
                .contains(&subprotocol)
                .then_some((offered, subprotocol))
        })
        .ok_or_else(|| Refusal::bad_request("none of the offered subprotocols is spoken here"))?;
    let accept = derive_accept_key(key.as_bytes());
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    // Clients check that the answer is one of the spellings that they offered.
    for (name, value) in [
        (header::SEC_WEBSOCKET_ACCEPT, accept.as_str()),
        (header::SEC_WEBSOCKET_PROTOCOL, spelling),
    ] {
        let value = HeaderValue::from_str(value)
            .map_err(|_| Refusal::bad_request("a header holds a control character"))?;
        answer.insert(name, value);
    }
    Ok(Upgrade::Granted(response, subprotocol))
}

impl Subprotocol {
    fn parse(text: &str) -> Option<Self> {
        // The C device SDK offers `MQTT`, all others `mqtt`.
        if text.eq_ignore_ascii_case("mqtt") {
            Some(Self::Mqtt)
        } else if text.eq_ignore_ascii_case("amqpwsb10") {
            Some(Self::Amqp)
        } else {
            None
        }
    }
}

/// The elements of a comma-separated header that may stand several times.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

/// Whether a key is one by RFC 6455, section 4.2.1: 16 bytes in base64.
fn is_key(key: &[u8]) -> bool {
    STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16)
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    fn ask(method: &str, path: &str, headers: &[(&str, &str)]) -> Option<Upgrade> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        negotiate(&request.body(()).unwrap().into_parts().0)
    }

    const BASE: [(&str, &str); 4] = [
        ("connection", "keep-alive, UPGRADE"),
        ("upgrade", "WebSocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    #[test]
    fn subprotocols_are_granted_in_the_spelling_offered() {
        let check =
            |path: &str, offered: &str, expected: Result<(&str, Subprotocol), StatusCode>| {
                let headers = [&BASE[..], &[("sec-websocket-protocol", offered)]].concat();
                let outcome = match ask("GET", path, &headers).expect("it asks for an upgrade") {
                    Upgrade::Granted(response, subprotocol) => {
                        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
                        // The vector of RFC 6455, section 1.3.
                        let accept = &response.headers()["sec-websocket-accept"];
                        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
                        let spelling = response.headers()["sec-websocket-protocol"].clone();
                        Ok((spelling.to_str().unwrap().to_owned(), subprotocol))
                    }
                    Upgrade::Refused(refusal) => Err(refusal.status()),
                };
                let expected = expected.map(|(spelling, protocol)| (spelling.to_owned(), protocol));
                assert_eq!(outcome, expected, "{path} {offered}");
            };
        use Subprotocol::{Amqp, Mqtt};
        let hub = "/$iothub/websocket";
        check(hub, "mqtt", Ok(("mqtt", Mqtt)));
        check(hub, "MQTT", Ok(("MQTT", Mqtt)));
        // The service clients of Node, .NET and Java come here, that of Python to the other path.
        check(hub, "AMQPWSB10", Ok(("AMQPWSB10", Amqp)));
        check("/$iothub/websocket/", "AMQPWSB10", Ok(("AMQPWSB10", Amqp)));
        check(
            "/$servicebus/websocket",
            "AMQPWSB10",
            Ok(("AMQPWSB10", Amqp)),
        );
        check(hub, "chat, mqtt", Ok(("mqtt", Mqtt)));
        check(
            "/%24iothub/websocket?iothub-no-client-cert=true",
            "mqtt",
            Ok(("mqtt", Mqtt)),
        );
        check(
            "/$servicebus/websocket/",
            "AMQPWSB10",
            Ok(("AMQPWSB10", Amqp)),
        );
        check(
            "/$servicebus/websocket",
            "mqtt",
            Err(StatusCode::BAD_REQUEST),
        );
        check(hub, "chat", Err(StatusCode::BAD_REQUEST));
        check(hub, "", Err(StatusCode::BAD_REQUEST));
        check("/devices/dev1", "mqtt", Err(StatusCode::NOT_FOUND));
    }

    #[test]
    fn what_is_no_upgrade_is_left_to_the_routes() {
        assert!(ask("GET", "/$iothub/websocket", &[]).is_none());
        assert!(ask("GET", "/$iothub/websocket", &[("upgrade", "h2c")]).is_none());
        assert!(
            ask(
                "GET",
                "/devices",
                &[("connection", "upgrade"), ("upgrade", "h2c")]
            )
            .is_none()
        );
    }

    #[test]
    fn a_key_is_16_bytes() {
        assert!(is_key(b"dGhlIHNhbXBsZSBub25jZQ=="));
        let wrong: [&[u8]; 5] = [
            b"",
            b"x",
            b"dGhlIHNhbXBsZSBub25jZQ",
            b"dGhlIHNhbXBsZSBub25jZTE=",
            &[b'x'; 20_000],
        ];
        for key in wrong {
            assert!(!is_key(key), "{}", String::from_utf8_lossy(key));
        }
    }

    #[test]
    fn malformed_handshakes_are_refused() {
        let mut headers = BASE.to_vec();
        headers.push(("sec-websocket-protocol", "mqtt"));
        for missing in ["sec-websocket-version", "sec-websocket-key"] {
            let headers: Vec<_> = headers
                .iter()
                .copied()
                .filter(|(n, _)| *n != missing)
                .collect();
            let upgrade = ask("GET", "/$iothub/websocket", &headers);
            assert!(matches!(upgrade, Some(Upgrade::Refused(_))), "{missing}");
        }
        let upgrade = ask("POST", "/$iothub/websocket", &headers);
        assert!(matches!(upgrade, Some(Upgrade::Refused(_))));
    }
}
