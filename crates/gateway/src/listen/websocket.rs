//! A WebSocket seen as a plain stream of bytes, without a buffer for messages.
//!
//! MQTT and AMQP packets may span frames and frames may hold several packets (OASIS MQTT 3.1.1,
//! section 6; AMQP WebSocket binding), so payload is handed on as it arrives. Nothing but a frame
//! header in progress is kept between reads, which bounds the memory of a connection whatever frame
//! lengths its peer announces.

use std::io::{self, Cursor};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use fieldpost_hub::clock::Timer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tungstenite::protocol::frame::coding::{CloseCode, Control, Data, OpCode};
use tungstenite::protocol::frame::{CloseFrame, Frame, FrameHeader};

use crate::clock::Alarm;

/// Largest payload of a frame that is sent.
const FRAME_PAYLOAD_BYTES_MAX: usize = 64 * 1024;

/// Longest silence of this side before it sends a ping, so that proxies keep the connection.
const PING_INTERVAL: Duration = Duration::from_secs(50);

/// Longest payload of a control frame (RFC 6455, section 5.5).
const CONTROL_PAYLOAD_BYTES_MAX: u64 = 125;

/// Longest frame header: 2 bytes, 8 bytes of length, 4 bytes of mask (RFC 6455, section 5.2).
const HEADER_BYTES_MAX: usize = 14;

/// Answers to pings that may wait for a peer that does not read; more end the connection.
const CONTROL_OUTPUT_BYTES_MAX: usize = 4 * 1024;

/// The server's end of a WebSocket connection as a byte stream.
///
/// Binary payload is read and written as bytes. Pings are answered and sent, a close is answered, a
/// text frame and every breach of the protocol closes with the fitting code; all of these appear to
/// the reader as the end of the stream.
pub(crate) struct WebSocketBytes<S> {
    stream: S,
    /// Bytes that came together with the upgrade request.
    early: Bytes,
    input: InputState,
    /// A message of several frames is in progress.
    fragmented: bool,
    ended: bool,
    output: BytesMut,
    close_sent: bool,
    ping: Alarm,
    ping_due: Duration,
    timer: Arc<dyn Timer>,
}

enum InputState {
    Header {
        bytes: [u8; HEADER_BYTES_MAX],
        filled: usize,
    },
    Data {
        left: u64,
        mask: [u8; 4],
        offset: usize,
    },
    Control {
        opcode: Control,
        payload: Vec<u8>,
        length: usize,
        mask: [u8; 4],
    },
}

const AWAITING_HEADER: InputState = InputState::Header {
    bytes: [0; HEADER_BYTES_MAX],
    filled: 0,
};

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketBytes<S> {
    /// Goes on with a connection whose upgrade is answered. `early` is what was read beyond the
    /// request.
    pub(crate) fn new(stream: S, early: Bytes, timer: Arc<dyn Timer>) -> Self {
        Self {
            stream,
            early,
            input: AWAITING_HEADER,
            fragmented: false,
            ended: false,
            output: BytesMut::new(),
            close_sent: false,
            ping: Alarm::default(),
            ping_due: timer.monotonic().saturating_add(PING_INTERVAL),
            timer,
        }
    }

    /// Works `bytes` of wire input off; payload goes to `out`, which has room for all of them.
    fn take_in(&mut self, mut bytes: &[u8], out: &mut ReadBuf<'_>) {
        while !bytes.is_empty() && !self.ended {
            match &mut self.input {
                InputState::Header {
                    bytes: header,
                    filled,
                } => {
                    let Some((first, rest)) = bytes.split_first() else {
                        return;
                    };
                    bytes = rest;
                    if let Some(place) = header.get_mut(*filled) {
                        *place = *first;
                    }
                    *filled += 1;
                    let held = header.get(..*filled).unwrap_or_default();
                    match FrameHeader::parse(&mut Cursor::new(held)) {
                        Ok(Some((header, length))) => self.begin(&header, length),
                        Ok(None) if *filled < HEADER_BYTES_MAX => {}
                        Ok(None) | Err(_) => self.close(CloseCode::Protocol),
                    }
                }
                InputState::Data { left, mask, offset } => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX);
                    let (payload, rest) = bytes.split_at(count.min(bytes.len()));
                    bytes = rest;
                    let start = out.filled().len();
                    out.put_slice(payload);
                    unmask(
                        out.filled_mut().get_mut(start..).unwrap_or_default(),
                        *mask,
                        *offset,
                    );
                    *offset = (*offset + payload.len()) % mask.len();
                    *left -= payload.len() as u64;
                    if *left == 0 {
                        self.input = AWAITING_HEADER;
                    }
                }
                InputState::Control {
                    payload, length, ..
                } => {
                    let missing = length.saturating_sub(payload.len());
                    let (part, rest) = bytes.split_at(missing.min(bytes.len()));
                    bytes = rest;
                    payload.extend_from_slice(part);
                    if payload.len() >= *length {
                        self.finish_control();
                    }
                }
            }
        }
    }

    fn begin(&mut self, header: &FrameHeader, length: u64) {
        // RFC 6455, section 5.1: a client masks, and there is no extension that uses a reserved
        // bit. paho-mqtt 1, on which Python's device SDK stands, masks no answer to a ping or close.
        let mask = match (header.mask, header.opcode) {
            (Some(mask), _) => mask,
            (None, OpCode::Control(Control::Pong | Control::Close)) => [0; 4],
            (None, _) => return self.close(CloseCode::Protocol),
        };
        if header.rsv1 || header.rsv2 || header.rsv3 {
            return self.close(CloseCode::Protocol);
        }
        match header.opcode {
            OpCode::Data(Data::Text) => self.close(CloseCode::Unsupported),
            OpCode::Data(Data::Reserved(_)) | OpCode::Control(Control::Reserved(_)) => {
                self.close(CloseCode::Protocol);
            }
            OpCode::Data(data) => {
                if (data == Data::Continue) != self.fragmented {
                    return self.close(CloseCode::Protocol);
                }
                self.fragmented = !header.is_final;
                self.input = if length == 0 {
                    AWAITING_HEADER
                } else {
                    InputState::Data {
                        left: length,
                        mask,
                        offset: 0,
                    }
                };
            }
            OpCode::Control(opcode) => {
                let (true, true, Ok(length)) = (
                    header.is_final,
                    length <= CONTROL_PAYLOAD_BYTES_MAX,
                    usize::try_from(length),
                ) else {
                    return self.close(CloseCode::Protocol);
                };
                self.input = InputState::Control {
                    opcode,
                    payload: Vec::new(),
                    length,
                    mask,
                };
                if length == 0 {
                    self.finish_control();
                }
            }
        }
    }

    fn finish_control(&mut self) {
        let InputState::Control {
            opcode,
            mut payload,
            mask,
            ..
        } = std::mem::replace(&mut self.input, AWAITING_HEADER)
        else {
            return;
        };
        unmask(&mut payload, mask, 0);
        match opcode {
            // Nothing goes out behind a close.
            Control::Ping if self.close_sent => {}
            Control::Ping => self.queue(Frame::pong(payload)),
            Control::Close => {
                let code = match payload.first_chunk() {
                    Some(code) => CloseCode::from(u16::from_be_bytes(*code)),
                    None if payload.is_empty() => CloseCode::Normal,
                    None => CloseCode::Protocol,
                };
                self.close(if code.is_allowed() {
                    code
                } else {
                    CloseCode::Protocol
                });
            }
            Control::Pong | Control::Reserved(_) => {}
        }
        if self.output.len() > CONTROL_OUTPUT_BYTES_MAX + FRAME_PAYLOAD_BYTES_MAX {
            self.ended = true;
        }
    }

    /// Queues a close frame and ends the stream for the reader.
    fn close(&mut self, code: CloseCode) {
        self.ended = true;
        self.say_close(code);
    }

    fn say_close(&mut self, code: CloseCode) {
        if !self.close_sent {
            self.close_sent = true;
            self.queue(Frame::close(Some(CloseFrame {
                code,
                reason: "".into(),
            })));
        }
    }

    fn queue(&mut self, frame: Frame) {
        let mut bytes = Vec::with_capacity(frame.len());
        if frame.format(&mut bytes).is_ok() {
            self.output.extend_from_slice(&bytes);
        }
    }

    /// Writes what is queued.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.output.has_remaining() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.output))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written);
        }
        // An idle connection keeps no buffer.
        self.output = BytesMut::new();
        Poll::Ready(Ok(()))
    }

    fn poll_ping(&mut self, cx: &mut Context<'_>) {
        while self
            .ping
            .poll(cx, &self.timer, Some(self.ping_due))
            .is_ready()
        {
            self.ping_due = self.timer.monotonic().saturating_add(PING_INTERVAL);
            if !self.close_sent && self.output.is_empty() {
                self.queue(Frame::ping(Bytes::new()));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketBytes<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let start = out.filled().len();
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        this.poll_ping(cx);
        loop {
            // Pongs and closes go out from here too: a session that only reads must answer them.
            if !this.output.is_empty() {
                let drained = this.poll_drain(cx)?;
                if drained.is_ready() {
                    let _ = Pin::new(&mut this.stream).poll_flush(cx)?;
                }
            }
            if this.ended || out.filled().len() > start {
                return Poll::Ready(Ok(()));
            }
            if this.early.has_remaining() {
                let count = this.early.len().min(out.remaining());
                let early = this.early.split_to(count);
                this.take_in(&early, out);
                continue;
            }
            // Wire bytes are never fewer than their payload, so what fits `out` fits it unmasked.
            let mut wire = [0; 4096];
            let room = wire.len().min(out.remaining());
            let mut wire = ReadBuf::new(wire.get_mut(..room).unwrap_or_default());
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut wire))?;
            if wire.filled().is_empty() {
                this.ended = true;
                return Poll::Ready(Ok(()));
            }
            this.take_in(wire.filled(), out);
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocketBytes<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // One frame at a time waits here; its bytes are only taken when the one before is gone.
        ready!(this.poll_drain(cx))?;
        if this.close_sent {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let count = bytes.len().min(FRAME_PAYLOAD_BYTES_MAX);
        let payload = bytes.get(..count).unwrap_or_default();
        if !payload.is_empty() {
            let header = FrameHeader {
                opcode: OpCode::Data(Data::Binary),
                ..FrameHeader::default()
            };
            let mut head = [0; HEADER_BYTES_MAX];
            let mut cursor = Cursor::new(head.as_mut_slice());
            header
                .format(payload.len() as u64, &mut cursor)
                .map_err(io::Error::other)?;
            let head_bytes = usize::try_from(cursor.position()).unwrap_or_default();
            this.output.reserve(head_bytes + payload.len());
            this.output
                .extend_from_slice(head.get(..head_bytes).unwrap_or_default());
            this.output.extend_from_slice(payload);
            this.ping_due = this.timer.monotonic().saturating_add(PING_INTERVAL);
            // Starting now lets small frames leave without a second call.
            let _ = this.poll_drain(cx)?;
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.say_close(CloseCode::Normal);
        ready!(this.poll_drain(cx))?;
        ready!(Pin::new(&mut this.stream).poll_flush(cx))?;
        // RFC 6455, section 7.1.1: the connection goes after both have said close. paho-mqtt 1, on
        // which Python's device SDK stands, does not survive one that is gone when it answers.
        let mut scratch = [0; 512];
        while !this.ended {
            let mut ignored = ReadBuf::new(&mut scratch);
            if ready!(Pin::new(&mut *this).poll_read(cx, &mut ignored)).is_err() {
                this.ended = true;
            }
        }
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

/// RFC 6455, section 5.3, from byte `offset` of the mask on.
fn unmask(bytes: &mut [u8], mut mask: [u8; 4], offset: usize) {
    let length = mask.len();
    mask.rotate_left(offset % length);
    for chunk in bytes.chunks_mut(length) {
        for (byte, key) in chunk.iter_mut().zip(mask) {
            *byte ^= key;
        }
    }
}

#[cfg(test)]
mod tests {
    use fieldpost_hub::clock::ManualClock;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// A masked client frame.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x11, 0x22, 0x33, 0x44];
        let mut bytes = vec![first];
        match u8::try_from(payload.len()) {
            Ok(length @ 0..126) => bytes.push(0x80 | length),
            _ => {
                bytes.push(0x80 | 126);
                bytes.extend_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
            }
        }
        bytes.extend_from_slice(&mask);
        let start = bytes.len();
        bytes.extend_from_slice(payload);
        unmask(&mut bytes[start..], mask, 0);
        bytes
    }

    fn pair() -> (WebSocketBytes<DuplexStream>, DuplexStream, Arc<ManualClock>) {
        let (near, far) = duplex(1 << 20);
        let clock = Arc::new(ManualClock::new(fieldpost_model::Timestamp::UNIX_EPOCH));
        let timer = Arc::clone(&clock) as Arc<dyn Timer>;
        (WebSocketBytes::new(near, Bytes::new(), timer), far, clock)
    }

    /// What the reader sees of `wire` and what the peer gets back until the end.
    async fn exchange(wire: &[u8], pieces: usize) -> (Vec<u8>, Vec<u8>) {
        let (mut socket, mut peer, _) = pair();
        let mut seen = Vec::new();
        for piece in wire.chunks(pieces) {
            peer.write_all(piece).await.unwrap();
        }
        peer.shutdown().await.unwrap();
        socket.read_to_end(&mut seen).await.unwrap();
        let _ = socket.shutdown().await;
        drop(socket);
        let mut answer = Vec::new();
        peer.read_to_end(&mut answer).await.unwrap();
        (seen, answer)
    }

    #[tokio::test]
    async fn frames_are_bytes_and_breaches_close_with_their_code() {
        let close = |code: u16| [&[0x88, 2][..], &code.to_be_bytes()].concat();
        let long = vec![9; 5000];
        type Case<'a> = (&'a str, Vec<u8>, &'a [u8], Vec<u8>);
        let cases: [Case<'_>; 16] = [
            ("one", frame(0x82, b"abc"), b"abc", close(1000)),
            ("empty", frame(0x82, b""), b"", close(1000)),
            ("long", frame(0x82, &long), &long, close(1000)),
            (
                "fragments around a ping",
                [
                    frame(0x02, b"ab"),
                    frame(0x89, b"hi"),
                    frame(0x00, b"c"),
                    frame(0x80, b"d"),
                ]
                .concat(),
                b"abcd",
                [&[0x8a, 2][..], b"hi", &close(1000)].concat(),
            ),
            ("text", frame(0x81, b"abc"), b"", close(1003)),
            (
                "not masked",
                vec![0x82, 3, b'a', b'b', b'c'],
                b"",
                close(1002),
            ),
            (
                "ping not masked",
                vec![0x89, 2, b'h', b'i'],
                b"",
                close(1002),
            ),
            (
                "pong not masked, as paho sends it",
                [&[0x8a, 2, b'h', b'i'][..], &frame(0x82, b"abc")].concat(),
                b"abc",
                close(1000),
            ),
            (
                "close not masked, as paho sends it",
                vec![0x88, 2, 3, 0xe9],
                b"",
                close(1001),
            ),
            ("reserved bit", frame(0xc2, b"abc"), b"", close(1002)),
            ("reserved opcode", frame(0x83, b"abc"), b"", close(1002)),
            ("lone continuation", frame(0x80, b"abc"), b"", close(1002)),
            (
                "new message inside another",
                [frame(0x02, b"ab"), frame(0x82, b"cd")].concat(),
                b"ab",
                close(1002),
            ),
            ("long ping", frame(0x89, &[0; 126]), b"", close(1002)),
            ("half a close code", frame(0x88, &[3]), b"", close(1002)),
            (
                "close is echoed and ends the stream",
                [
                    frame(0x88, &1001u16.to_be_bytes()),
                    frame(0x82, b"too late"),
                ]
                .concat(),
                b"",
                close(1001),
            ),
        ];
        for (name, wire, payload, answer) in cases {
            for pieces in [1, 3, wire.len()] {
                let (seen, answered) = exchange(&wire, pieces).await;
                assert_eq!(seen, payload, "{name}");
                assert_eq!(answered, answer, "{name}");
            }
        }
    }

    #[tokio::test]
    async fn bytes_leave_in_frames_of_at_most_64_kib() {
        let (mut socket, mut peer, _) = pair();
        socket.write_all(&[5; 100_000]).await.unwrap();
        socket.flush().await.unwrap();
        let mut head = [0; 10];
        peer.read_exact(&mut head).await.unwrap();
        assert_eq!(head, [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        let mut payload = vec![0; 65536];
        peer.read_exact(&mut payload).await.unwrap();
        let mut head = [0; 4];
        peer.read_exact(&mut head).await.unwrap();
        assert_eq!(head[..2], [0x82, 126]);
        assert_eq!(u16::from_be_bytes([head[2], head[3]]), 34464);
    }

    #[tokio::test]
    async fn a_close_is_answered_before_the_connection_goes() {
        let (mut socket, mut peer, _) = pair();
        peer.write_all(&frame(0x82, b"on its way")).await.unwrap();
        let closing = async {
            socket.shutdown().await.unwrap();
            drop(socket);
        };
        let answering = async {
            let mut close = [0; 4];
            peer.read_exact(&mut close).await.unwrap();
            assert_eq!(close, [0x88, 2, 0x03, 0xe8]);
            // Not masked, as paho sends it, and a ping before it gets no answer.
            peer.write_all(&frame(0x89, b"hi")).await.unwrap();
            tokio::task::yield_now().await;
            peer.write_all(&close).await.unwrap();
            let mut rest = Vec::new();
            peer.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"");
        };
        tokio::join!(closing, answering);
    }

    #[tokio::test]
    async fn a_silent_connection_is_pinged() {
        let (mut socket, mut peer, clock) = pair();
        let mut byte = [0; 1];
        let read = socket.read(&mut byte);
        let test = async {
            tokio::task::yield_now().await;
            clock.advance(PING_INTERVAL);
            let mut ping = [0; 2];
            peer.read_exact(&mut ping).await.unwrap();
            assert_eq!(ping, [0x89, 0]);
        };
        tokio::select! {
            biased;
            _ = read => panic!("nothing was sent"),
            () = test => {}
        }
    }
}
