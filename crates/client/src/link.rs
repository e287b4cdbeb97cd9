//! Moving bytes between a stream and an engine.

use std::io;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::transport::Stream;

/// What one read takes at most.
const READ_BYTES: usize = 64 * 1024;

/// A stream with a buffer of what was read and not yet used.
///
/// Both methods may be dropped at an await: what was read stays in the buffer, what was not
/// written stays in the output.
pub(crate) struct Link {
    stream: Stream,
    pub(crate) input: BytesMut,
}

impl Link {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream,
            input: BytesMut::new(),
        }
    }

    /// Writes what `output` holds, then waits for bytes to read.
    ///
    /// # Errors
    /// `UnexpectedEof` when the hub has closed the connection.
    pub(crate) async fn exchange(&mut self, output: &mut BytesMut) -> io::Result<()> {
        self.flush(output).await?;
        self.input.reserve(READ_BYTES);
        if self.stream.read_buf(&mut self.input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// Writes what `output` holds.
    pub(crate) async fn flush(&mut self, output: &mut BytesMut) -> io::Result<()> {
        while output.has_remaining() {
            self.stream.write_buf(output).await?;
        }
        self.stream.flush().await
    }
}
