//! Bytes being fed, and payloads taken out of them.

use bytes::Bytes;

/// Input of one `feed`. The first payload that is kept copies the whole input once; all payloads
/// of the same input then share that copy, so that the cost is one allocation for each read and
/// none for each message.
pub(crate) struct Input<'a> {
    bytes: &'a [u8],
    shared: Option<Bytes>,
}

impl<'a> Input<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            shared: None,
        }
    }

    /// Input that is shared memory already.
    pub(crate) fn from_shared(bytes: &'a Bytes) -> Self {
        Self {
            bytes,
            shared: Some(bytes.clone()),
        }
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

/// The payload of one frame.
pub(crate) struct Payload<'p, 'a> {
    input: &'p mut Input<'a>,
    from: usize,
    to: usize,
}

impl<'p, 'a> Payload<'p, 'a> {
    /// The bytes `from..to` of the input, which must be inside.
    pub(crate) fn new(input: &'p mut Input<'a>, from: usize, to: usize) -> Self {
        Self { input, from, to }
    }

    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.input.bytes.get(self.from..self.to).unwrap_or_default()
    }

    /// The payload as memory that outlives the input.
    pub(crate) fn share(self) -> Bytes {
        if self.bytes().is_empty() {
            return Bytes::new();
        }
        let whole = self.input.bytes;
        self.input
            .shared
            .get_or_insert_with(|| Bytes::copy_from_slice(whole))
            .slice(self.from..self.to)
    }
}
