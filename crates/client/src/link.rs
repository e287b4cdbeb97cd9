//! Moving bytes between a stream and an engine.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite};

use crate::transport::Stream;

/// What one read takes at most, as long as the reader keeps up.
const READ_BYTES: usize = 64 * 1024;

/// A stream with a buffer of what was read and not yet used.
///
/// Both methods may be dropped at an await: what was read stays in the buffer, what was not
/// written stays in the output.
pub(crate) struct Link {
    stream: Stream,
    pub(crate) input: BytesMut,
    /// Why nothing can be written any more. What the hub has sent before is still read, because it
    /// says why.
    unwritable: Option<io::Error>,
}

impl Link {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
            unwritable: None,
        }
    }

    /// Waits for bytes to read, and writes what `output` holds meanwhile: a hub that waits for
    /// this side to read may take nothing before.
    ///
    /// # Errors
    /// `UnexpectedEof` when the hub has closed the connection.
    pub(crate) async fn exchange(&mut self, output: &mut BytesMut) -> io::Result<()> {
        self.input.reserve(READ_BYTES);
        poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = self.poll_flush(cx, output) {
                output.clear();
                self.unwritable = Some(error);
            }
            let read = pin!(self.stream.read_buf(&mut self.input)).poll(cx);
            match ready!(read) {
                Ok(0) => Poll::Ready(Err(self.end())),
                Ok(_) => Poll::Ready(Ok(())),
                Err(error) => Poll::Ready(Err(error)),
            }
        })
        .await
    }

    /// Writes what `output` holds.
    pub(crate) async fn flush(&mut self, output: &mut BytesMut) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx, output)).await
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, output: &mut BytesMut) -> Poll<io::Result<()>> {
        if self.unwritable.is_some() {
            output.clear();
            return Poll::Ready(Ok(()));
        }
        while output.has_remaining() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, output))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            output.advance(written);
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn end(&mut self) -> io::Error {
        let unwritable = self.unwritable.take();
        unwritable.unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    async fn pair() -> (Link, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let near = TcpStream::connect(address).await.unwrap();
        let (far, _) = listener.accept().await.unwrap();
        (Link::new(Stream::Plain(near)), far)
    }

    /// Either side used to write all it had before it read anything, which for two sides with more
    /// than the sockets hold is for ever.
    #[tokio::test]
    async fn both_sides_may_have_much_to_say_at_once() {
        const BYTES: usize = 32 * 1024 * 1024;
        let (mut link, mut far) = pair().await;
        let hub = tokio::spawn(async move {
            far.write_all(&vec![7; BYTES]).await.unwrap();
            let mut heard = vec![0; BYTES];
            far.read_exact(&mut heard).await.unwrap();
        });
        let mut output = BytesMut::zeroed(BYTES);
        let mut heard = 0;
        while heard < BYTES {
            let exchanged = timeout(PATIENCE, link.exchange(&mut output));
            exchanged.await.expect("it goes on").unwrap();
            heard += link.input.split().len();
        }
        timeout(PATIENCE, link.flush(&mut output))
            .await
            .expect("it goes on")
            .unwrap();
        timeout(PATIENCE, hub).await.expect("it ends").unwrap();
    }

    #[tokio::test]
    async fn last_words_are_heard_and_then_the_end() {
        let (mut link, mut far) = pair().await;
        far.write_all(b"farewell").await.unwrap();
        drop(far);
        let mut output = BytesMut::from(&b"not heard"[..]);
        link.exchange(&mut output).await.unwrap();
        assert_eq!(&link.input[..], b"farewell");
        assert!(link.exchange(&mut output).await.is_err());
    }
}
