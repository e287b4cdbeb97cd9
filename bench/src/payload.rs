//! Numbers that look random, for payloads that cannot be compressed and choices that can be repeated.

/// SplitMix64: the same numbers in every run.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }
}

impl Iterator for Noise {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Some(z ^ (z >> 31))
    }
}

/// A message of noise whose first eight bytes are its number, little-endian.
pub(crate) struct Payload(Vec<u8>);

impl Payload {
    /// A payload of `bytes` bytes, at least 8.
    pub(crate) fn of(bytes: usize) -> Self {
        let noise = Noise::new(0x5eed).map(u64::to_le_bytes);
        let mut noise: Vec<u8> = noise.take(bytes.div_ceil(8)).flatten().collect();
        noise.resize(bytes.max(8), 0);
        Self(noise)
    }

    pub(crate) fn numbered(&mut self, number: u64) -> &[u8] {
        if let Some(place) = self.0.first_chunk_mut() {
            *place = number.to_le_bytes();
        }
        &self.0
    }
}
