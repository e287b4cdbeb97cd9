//! A device that sends telemetry and fetches commands over HTTPS, on a connection that is kept.

use std::io;

use bytes::{Buf, Bytes, BytesMut};

use super::DeviceOptions;
use crate::link::Link;
use crate::transport::{self, ConnectError};

/// The port of HTTPS.
const HTTPS_PORT: u16 = 443;

const API: &str = "api-version=2020-03-13";

/// The longest answers that are read: the hub's messages to devices have 64 KiB at most, and their
/// properties go into the head.
const HEAD_BYTES_MAX: usize = 256 * 1024;
const BODY_BYTES_MAX: usize = 1024 * 1024;

const HEAD_END: &[u8] = b"\r\n\r\n";

/// A device's connection over HTTPS.
///
/// It asks for one thing at a time, and is of no more use when a request failed or was dropped at an
/// await: the answer could be taken for that to another.
pub struct HttpsDevice {
    link: Link,
    output: BytesMut,
    path: String,
    /// The header lines that every request has.
    headers: String,
}

/// A cloud-to-device message that was fetched over HTTPS. It is locked until it is completed, rejected or
/// abandoned, or the lock ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpsCommand {
    /// The body.
    pub payload: Bytes,
    lock: String,
}

/// Why a request of a device was not answered as it wanted.
#[derive(Debug, thiserror::Error)]
pub enum HttpsError {
    /// The hub closed the connection, or the network did.
    #[error("the connection ended: {0}")]
    Ended(#[from] io::Error),
    /// The hub refused: status and body.
    #[error("the hub answered {0}: {1}")]
    Refused(u16, String),
    /// The hub broke the protocol, or sent what is not understood.
    #[error("protocol failure: {0}")]
    Protocol(&'static str),
}

struct Answer {
    status: u16,
    lock: Option<String>,
    body: Bytes,
}

impl HttpsDevice {
    /// Connects. Who the device is the hub looks at with each request.
    ///
    /// # Errors
    /// When there is no connection.
    pub async fn connect(options: &DeviceOptions) -> Result<Self, ConnectError> {
        let host = &options.connection_string.host_name;
        let stream = transport::open(host, HTTPS_PORT, options.address, &options.trust).await?;
        let mut headers = format!("Host: {host}\r\n");
        if let Some(token) = options.token() {
            headers.push_str(&format!("Authorization: {token}\r\n"));
        }
        Ok(Self {
            link: Link::new(stream),
            output: BytesMut::new(),
            path: options.path(),
            headers,
        })
    }

    /// Sends a message, and returns when the hub has acknowledged it.
    ///
    /// # Errors
    /// When the hub refuses, or the connection ended. In the latter case nothing is known of the message.
    pub async fn send(&mut self, payload: &[u8]) -> Result<(), HttpsError> {
        let target = format!("/messages/events?{API}");
        self.request("POST", &target, payload).await?;
        Ok(())
    }

    /// Fetches a command, if there is one.
    ///
    /// # Errors
    /// When the hub refuses, or the connection ended.
    pub async fn receive(&mut self) -> Result<Option<HttpsCommand>, HttpsError> {
        let target = format!("/messages/deviceBound?{API}");
        let answer = self.request("GET", &target, b"").await?;
        if answer.status == 204 {
            return Ok(None);
        }
        let lock = answer.lock.ok_or(HttpsError::Protocol("no lock"))?;
        Ok(Some(HttpsCommand {
            payload: answer.body,
            lock,
        }))
    }

    /// Tells the hub that a command was worked off. When this returns it is completed and does not come
    /// again.
    ///
    /// # Errors
    /// When the lock is lost, the hub refuses, or the connection ended.
    pub async fn complete_command(&mut self, command: &HttpsCommand) -> Result<(), HttpsError> {
        self.settle("DELETE", command, "", "").await
    }

    /// Tells the hub that a command is of no use. When this returns it is dead-lettered and does not
    /// come again.
    ///
    /// # Errors
    /// As [`complete_command`](Self::complete_command).
    pub async fn reject_command(&mut self, command: &HttpsCommand) -> Result<(), HttpsError> {
        self.settle("DELETE", command, "", "&reject").await
    }

    /// Gives a command back to its queue: it comes again until that has happened as often as the hub
    /// allows.
    ///
    /// # Errors
    /// As [`complete_command`](Self::complete_command).
    pub async fn abandon_command(&mut self, command: &HttpsCommand) -> Result<(), HttpsError> {
        self.settle("POST", command, "/abandon", "").await
    }

    async fn settle(
        &mut self,
        method: &str,
        command: &HttpsCommand,
        below: &str,
        more: &str,
    ) -> Result<(), HttpsError> {
        let lock = &command.lock;
        let target = format!("/messages/deviceBound/{lock}{below}?{API}{more}");
        self.request(method, &target, b"").await?;
        Ok(())
    }

    /// Asks for something below the device's path, and gives an answer that is no refusal.
    async fn request(
        &mut self,
        method: &str,
        target: &str,
        body: &[u8],
    ) -> Result<Answer, HttpsError> {
        let head = format!(
            "{method} {}{target} HTTP/1.1\r\n{}Content-Length: {}\r\n\r\n",
            self.path,
            self.headers,
            body.len()
        );
        self.output.extend_from_slice(head.as_bytes());
        self.output.extend_from_slice(body);
        let answer = loop {
            if let Some(answer) = take_answer(&mut self.link.input)? {
                break answer;
            }
            self.link.exchange(&mut self.output).await?;
        };
        if !matches!(answer.status, 200..=299) {
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            return Err(HttpsError::Refused(answer.status, body));
        }
        Ok(answer)
    }
}

/// Takes an answer from what has come, once it is whole.
fn take_answer(input: &mut BytesMut) -> Result<Option<Answer>, HttpsError> {
    let mut windows = input.windows(HEAD_END.len());
    let Some(end) = windows.position(|four| four == HEAD_END) else {
        if input.len() > HEAD_BYTES_MAX {
            return Err(HttpsError::Protocol("a head without an end"));
        }
        return Ok(None);
    };
    let (head, _) = input.split_at(end);
    let head = str::from_utf8(head).map_err(|_| HttpsError::Protocol("a head that is no text"))?;
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 "))
        .and_then(|line| line.split(' ').next()?.parse().ok())
        .ok_or(HttpsError::Protocol("no status line"))?;
    let mut lock = None;
    let mut bytes = 0;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("etag") {
            lock = Some(value.trim_matches('"').to_owned());
        } else if name.eq_ignore_ascii_case("content-length") {
            let length = value.parse().ok().filter(|it| *it <= BODY_BYTES_MAX);
            bytes = length.ok_or(HttpsError::Protocol("a body of no usable length"))?;
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(HttpsError::Protocol("a body in pieces"));
        }
    }
    let body = end + HEAD_END.len();
    if input.len() - body < bytes {
        return Ok(None);
    }
    input.advance(body);
    let body = input.split_to(bytes).freeze();
    Ok(Some(Answer { status, lock, body }))
}

#[cfg(test)]
mod tests;
