//! Requests over plain HTTP/1.1 to a listener of a hub, one connection each.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What a hub answered.
pub struct Response {
    /// The status code.
    pub status: u16,
    head: String,
    /// The body, whole.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of a header, whose name is given in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        let mut values = lines.filter(|(known, _)| known.eq_ignore_ascii_case(name));
        values.next().map(|(_, value)| value.trim())
    }
}

/// Asks for `path` and waits for the whole answer.
///
/// # Errors
/// When there is no connection, or no answer in HTTP/1.1.
pub async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Response> {
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let mut bytes = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        bytes.push_str(&format!("{name}: {value}\r\n"));
    }
    bytes.push_str("\r\n");
    let mut bytes = bytes.into_bytes();
    bytes.extend_from_slice(body);
    socket.write_all(&bytes).await?;
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, body) = answer.split_at(end.context("an answer without a head")? + 4);
    let head = std::str::from_utf8(head).context("a head that is no text")?;
    let status = head.split_ascii_whitespace().nth(1);
    Ok(Response {
        status: status.context("an answer without a status")?.parse()?,
        head: head.to_owned(),
        body: body.to_vec(),
    })
}

/// A metric of the hub whose admin listener is at `address`, named with its labels; 0 while there is none.
///
/// # Errors
/// When the hub does not answer, or the metric is not a whole number.
pub async fn metric(address: SocketAddr, name: &str) -> Result<u64> {
    let response = request(address, "GET", "/metrics", &[], b"").await?;
    let text = String::from_utf8(response.body)?;
    let mut lines = text.lines();
    // A space ends the name: other names may begin with it.
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.map_or(Ok(0), |value| {
        let value = value.trim().parse();
        value.context("a metric that is not a number")
    })
}
