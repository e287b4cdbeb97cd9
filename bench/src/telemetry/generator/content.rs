//! What the messages are made of.

/// What the messages of one phase are made of.
pub(crate) struct Content {
    /// Longer than any payload.
    noise: Vec<u8>,
    bytes: usize,
    phase: u16,
}

/// Bytes at the beginning of a payload that tell it from all others of its device.
const MARK_BYTES: usize = 8;

impl Content {
    /// Payloads of `bytes` bytes, at least 8, the first of which say `phase` and the number of the message
    /// among those of its device.
    pub(crate) fn new(bytes: usize, phase: u16) -> Self {
        let noise = crate::payload::Noise::new(0x5eed).map(u64::to_le_bytes);
        Self {
            noise: noise.take(128 * 1024).flatten().collect(),
            bytes: bytes.max(MARK_BYTES),
            phase,
        }
    }

    /// The phase and the number at the beginning of a payload.
    pub(crate) fn read(payload: &[u8]) -> Option<(u16, u64)> {
        let mark = u64::from_le_bytes(*payload.first_chunk()?);
        Some((u16::try_from(mark >> 48).ok()?, mark & ((1 << 48) - 1)))
    }

    /// Bytes of each payload.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A payload in its two parts.
    pub(super) fn payload(&self, number: u64) -> ([u8; MARK_BYTES], &[u8]) {
        let mark = (u64::from(self.phase) << 48) | number;
        let room = self.noise.len().saturating_sub(self.bytes).max(1);
        let place = usize::try_from(number.wrapping_mul(61)).unwrap_or(0) % room;
        let noise = self.noise.get(place..place + self.bytes - MARK_BYTES);
        (mark.to_le_bytes(), noise.unwrap_or_default())
    }
}
