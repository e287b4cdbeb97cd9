//! Bytes on their way to the peer.

use bytes::{Buf, BytesMut};

/// What is to be written to the socket. Holds no memory while it is empty.
#[derive(Debug, Default)]
pub(crate) struct Output(BytesMut);

impl Output {
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.0
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// Drops the first `count` bytes, or all when there are fewer.
    pub(crate) fn consume(&mut self, count: usize) {
        if count >= self.0.len() {
            self.0 = BytesMut::new();
        } else {
            self.0.advance(count);
        }
    }

    pub(crate) fn take(&mut self) -> BytesMut {
        std::mem::take(&mut self.0)
    }
}
