//! Key material: kept out of logs, wiped after use, encrypted at rest.

use std::fmt;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::clock::Chance;

/// A text that must not be shown: a key, a password. Prints stars and is wiped when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes a text into care.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself, for those who compute with it or hand it to its owner.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl PartialEq for Secret {
    /// Looks at every byte whatever the first difference is.
    fn eq(&self, other: &Self) -> bool {
        let (a, b) = (self.0.as_bytes(), other.0.as_bytes());
        let difference = a.iter().zip(b).fold(0, |seen, (a, b)| seen | (a ^ b));
        a.len() == b.len() && difference == 0
    }
}

impl Eq for Secret {}

/// The keys that encrypt key material at rest (AES-256-GCM). The newest seals; all of them open.
///
/// A sealed value names the key that sealed it, so that a key can be replaced while old values
/// remain. Each value is bound to a *context*, its place in the store, and opens nowhere else.
pub struct Keyring {
    newest: StoreKey,
    older: Vec<StoreKey>,
}

struct StoreKey {
    id: u32,
    key: LessSafeKey,
}

/// Why a sealed value does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenSecretError {
    /// It is not of the form that this version knows.
    #[error("a sealed value is not of a known form")]
    Form,
    /// It was sealed under a key that is not in the keyring.
    #[error("a sealed value needs the store key with id {id}, which is not there")]
    MissingKey {
        /// The key's id.
        id: u32,
    },
    /// The key of that id does not open it: the wrong key file, or changed bytes.
    #[error("a sealed value does not open with the store key of id {id}")]
    WrongKey {
        /// The key's id.
        id: u32,
    },
}

const FORM_VERSION: u8 = 1;
const HEADER_BYTES: usize = 1 + size_of::<u32>() + NONCE_LEN;

impl Keyring {
    /// A keyring of one key.
    #[must_use]
    pub fn new(id: u32, key: [u8; 32]) -> Self {
        Self {
            newest: StoreKey::new(id, key),
            older: Vec::new(),
        }
    }

    /// Adds a key that opens what it once sealed.
    #[must_use]
    pub fn with_older(mut self, id: u32, key: [u8; 32]) -> Self {
        self.older.push(StoreKey::new(id, key));
        self
    }

    /// Encrypts `plain` for the place that `context` names.
    ///
    /// The nonce is random, which is sound for some 2^32 values under one key; a hub seals one per
    /// change of a device.
    pub(crate) fn seal(&self, chance: &dyn Chance, context: &[&str], plain: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_LEN];
        chance.fill(&mut nonce);
        let mut sealed = Vec::with_capacity(HEADER_BYTES + plain.len() + AES_256_GCM.tag_len());
        sealed.push(FORM_VERSION);
        sealed.extend_from_slice(&self.newest.id.to_le_bytes());
        sealed.extend_from_slice(&nonce);
        sealed.extend_from_slice(plain);
        let (_, text) = sealed.split_at_mut(HEADER_BYTES);
        let tag = self
            .newest
            .key
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(associated_data(self.newest.id, context)),
                text,
            )
            .expect("key material is far shorter than the cipher's limit of 64 GiB");
        sealed.extend_from_slice(tag.as_ref());
        sealed
    }

    /// Decrypts what [`Keyring::seal`] made for the same context.
    pub(crate) fn open(
        &self,
        context: &[&str],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, OpenSecretError> {
        let (version, rest) = sealed.split_first().ok_or(OpenSecretError::Form)?;
        let (id, rest) = rest.split_first_chunk().ok_or(OpenSecretError::Form)?;
        let (nonce, text) = rest.split_first_chunk().ok_or(OpenSecretError::Form)?;
        if *version != FORM_VERSION {
            return Err(OpenSecretError::Form);
        }
        let id = u32::from_le_bytes(*id);
        let store_key = std::iter::once(&self.newest)
            .chain(&self.older)
            .find(|key| key.id == id)
            .ok_or(OpenSecretError::MissingKey { id })?;
        let mut plain = Zeroizing::new(text.to_vec());
        let length = store_key
            .key
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(associated_data(id, context)),
                &mut plain,
            )
            .map_err(|_| OpenSecretError::WrongKey { id })?
            .len();
        plain.truncate(length);
        Ok(plain)
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<u32> = std::iter::once(&self.newest)
            .chain(&self.older)
            .map(|key| key.id)
            .collect();
        f.debug_struct("Keyring").field("key_ids", &ids).finish()
    }
}

impl StoreKey {
    fn new(id: u32, key: [u8; 32]) -> Self {
        let key = Zeroizing::new(key);
        let key = UnboundKey::new(&AES_256_GCM, key.as_slice()).expect("AES-256 takes 32 bytes");
        Self {
            id,
            key: LessSafeKey::new(key),
        }
    }
}

/// Version, key id and each part of the context with its length, so that no two places share one.
fn associated_data(id: u32, context: &[&str]) -> Vec<u8> {
    let mut data = vec![FORM_VERSION];
    data.extend_from_slice(&id.to_le_bytes());
    for part in context {
        data.extend_from_slice(&(part.len() as u64).to_le_bytes());
        data.extend_from_slice(part.as_bytes());
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SeededChance;

    #[test]
    fn a_sealed_value_opens_in_its_place_with_its_key_and_nowhere_else() {
        let chance = SeededChance::new(7);
        let keyring = Keyring::new(1, [1; 32]);
        let sealed = keyring.seal(&chance, &["device", "dev1"], b"key material");
        assert_ne!(
            sealed,
            keyring.seal(&chance, &["device", "dev1"], b"key material")
        );

        let check = |keyring: &Keyring, context: &[&str], sealed: &[u8], expected| {
            let opened = keyring.open(context, sealed).map(|plain| plain.to_vec());
            assert_eq!(opened, expected, "{context:?} {sealed:?}");
        };
        let plain = Ok(b"key material".to_vec());
        check(&keyring, &["device", "dev1"], &sealed, plain.clone());
        let wrong_key = Err(OpenSecretError::WrongKey { id: 1 });
        check(&keyring, &["device", "dev2"], &sealed, wrong_key.clone());
        check(&keyring, &["devicedev1"], &sealed, wrong_key.clone());

        let renewed = Keyring::new(2, [2; 32]).with_older(1, [1; 32]);
        check(&renewed, &["device", "dev1"], &sealed, plain);
        let missing = Err(OpenSecretError::MissingKey { id: 1 });
        check(
            &Keyring::new(2, [2; 32]),
            &["device", "dev1"],
            &sealed,
            missing,
        );
        let other = Keyring::new(1, [9; 32]);
        check(&other, &["device", "dev1"], &sealed, wrong_key.clone());

        for cut in 0..sealed.len() {
            assert!(
                keyring.open(&["device", "dev1"], &sealed[..cut]).is_err(),
                "{cut}"
            );
            let mut changed = sealed.clone();
            changed[cut] ^= 1;
            assert!(
                keyring.open(&["device", "dev1"], &changed).is_err(),
                "{cut}"
            );
        }
    }

    #[test]
    fn secrets_print_stars() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert!(secret == Secret::new("hunter2") && secret != Secret::new("hunter22"));
    }
}
