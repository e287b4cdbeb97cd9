//! The spelling of header names as a client sent them.
//!
//! Names of application properties travel in names of headers. HTTP tells no case apart and the HTTP
//! library writes them all small; Azure IoT Hub keeps the case, and so must the hub, or a property had
//! another name over HTTPS than over MQTT. So the bytes of a request's head are kept until it is parsed.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::http::HeaderMap;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::{BUFFER_BYTES_MAX, HEADERS_MAX};

/// The bytes of the head that a connection waits for.
#[derive(Debug)]
pub(super) struct HeadRecord(Mutex<State>);

#[derive(Debug)]
enum State {
    /// A head is awaited; so much of it has come.
    Awaited(Vec<u8>),
    /// What comes is a request's body, or nobody wants it.
    Ignored,
}

/// The head of one request as it came, perhaps with some of what stood before and behind it. Empty
/// when it is not known.
#[derive(Clone, Debug, Default)]
pub(crate) struct RawHead(Bytes);

impl Default for HeadRecord {
    fn default() -> Self {
        Self(Mutex::new(State::Awaited(Vec::new())))
    }
}

impl HeadRecord {
    /// What was read since the last request ended; nothing more is kept.
    pub(super) fn take(&self) -> RawHead {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Ignored) {
            State::Awaited(bytes) => RawHead(bytes.into()),
            State::Ignored => RawHead::default(),
        }
    }

    /// A request has been answered: the next head is awaited.
    pub(super) fn begin(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *state = State::Awaited(Vec::new());
    }

    fn add(&self, read: &[u8]) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let State::Awaited(bytes) = &mut *state {
            // More than a head can be: the rest of a body that nobody wanted.
            if bytes.len() + read.len() > 2 * BUFFER_BYTES_MAX {
                *state = State::Ignored;
            } else {
                bytes.extend_from_slice(read);
            }
        }
    }
}

impl RawHead {
    #[cfg(feature = "fuzzing")]
    pub(crate) fn of(read: Bytes) -> Self {
        Self(read)
    }

    /// The names of the request's headers as the client wrote them, each with its value, in their
    /// order; `None` when that is not known, as of requests that were sent before the one in front of
    /// them was answered.
    pub(crate) fn headers(&self, method: &str, parsed: &HeaderMap) -> Option<Vec<(&str, &[u8])>> {
        let bytes = &*self.0;
        let mut at = 0;
        // The rest of a body may stand before it.
        while let Some(found) = find(bytes.get(at..)?, method.as_bytes()) {
            at += found;
            if let Some(headers) = headers_at(bytes.get(at..)?, parsed) {
                return Some(headers);
            }
            at += method.len();
        }
        None
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// The headers of the head at the beginning of `bytes`, if it is the one that was parsed.
fn headers_at<'a>(bytes: &'a [u8], parsed: &HeaderMap) -> Option<Vec<(&'a str, &'a [u8])>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    if !request.parse(bytes).ok()?.is_complete() {
        return None;
    }
    let is_known = |header: &httparse::Header<'_>| {
        let mut values = parsed.get_all(header.name).iter();
        values.any(|value| value.as_bytes() == header.value)
    };
    let is_same = request.headers.len() == parsed.len() && request.headers.iter().all(is_known);
    is_same.then(|| {
        let headers = request.headers.iter();
        headers.map(|header| (header.name, header.value)).collect()
    })
}

/// A stream that notes what is read of heads.
pub(super) struct Recorded<S> {
    stream: S,
    head: Arc<HeadRecord>,
}

impl<S> Recorded<S> {
    pub(super) fn new(stream: S, head: &Arc<HeadRecord>) -> Self {
        Self {
            stream,
            head: Arc::clone(head),
        }
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Recorded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.head
            .add(buffer.filled().get(before..).unwrap_or_default());
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Recorded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn parsed(headers: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                HeaderName::try_from(*name).unwrap(),
                HeaderValue::try_from(*value).unwrap(),
            );
        }
        map
    }

    #[test]
    fn the_spelling_is_found_in_what_came_before_the_request_was_parsed() {
        let headers = parsed(&[("iothub-app-Room", "attic"), ("host", "localhost")]);
        let names = |raw: &str| {
            let record = HeadRecord::default();
            // As it comes from the net: in pieces.
            for piece in raw.as_bytes().chunks(7) {
                record.add(piece);
            }
            let head = record.take();
            record.add(b"the body");
            let headers = head.headers("POST", &headers)?;
            Some(headers.iter().map(|(name, _)| (*name).to_owned()).collect())
        };
        let expected: Option<Vec<String>> = Some(vec!["iothub-app-Room".into(), "Host".into()]);
        let plain = "POST /a HTTP/1.1\r\niothub-app-Room: attic\r\nHost: localhost\r\n\r\n";
        assert_eq!(names(plain), expected);
        assert_eq!(names(&format!("{plain}some of the body")), expected);
        // Behind the rest of a body that nobody read, one that looks like a request.
        let forged = "POST /a HTTP/1.1\r\nIOTHUB-APP-ROOM: x\r\nHost: localhost\r\n\r\nPOST POST";
        assert_eq!(names(&format!("{forged}{plain}")), expected);
        assert_eq!(names(forged), None);
        assert_eq!(names(""), None);
        assert_eq!(names(&"x".repeat(3 * BUFFER_BYTES_MAX)), None);
    }

    #[test]
    fn nothing_is_kept_between_the_head_and_the_answer() {
        let record = HeadRecord::default();
        record.add(b"first");
        assert_eq!(&record.take().0[..], b"first");
        record.add(b"body");
        assert!(record.take().0.is_empty());
        record.begin();
        record.add(b"second");
        assert_eq!(&record.take().0[..], b"second");
    }
}
