//! What tells a batch of the journal from bytes that someone made look like one.
//!
//! A journal holds what devices' owners send. When a crash tears the last batch, whole-looking
//! batches in a message of it must not pass for acknowledged changes behind a damage. So each batch
//! of the store has one row that nobody outside can know.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use bytes::BufMut;

use super::engine::Space;
use super::rows::seal;

/// The key of the row in [`Space::Meta`] that each batch writes.
pub(super) const SECRET_KEY: &[u8] = b"secret";

const FILE: &str = "secret";
const SECRET_BYTES: usize = 16;

/// The row that is in each batch and nowhere else.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret {
    row: Vec<u8>,
}

impl Secret {
    /// A new one.
    pub(super) fn choose() -> io::Result<Self> {
        let mut secret = [0; SECRET_BYTES];
        let filled = rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty())?;
        if filled != secret.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self::of(secret))
    }

    fn of(secret: [u8; SECRET_BYTES]) -> Self {
        let row = seal(Space::Meta, SECRET_KEY, secret.len(), |row| {
            row.put_slice(&secret);
        });
        Self { row }
    }

    /// The one that is kept in a store's folder. There is none in a store that an earlier version
    /// made, and one that is damaged is as good as none.
    pub(super) fn load(folder: &Path) -> io::Result<Option<Self>> {
        let bytes = match fs::read(folder.join(FILE)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some((secret, crc)) = bytes.split_first_chunk::<SECRET_BYTES>() else {
            return Ok(None);
        };
        Ok((crc == crc32c::crc32c(secret).to_le_bytes()).then(|| Self::of(*secret)))
    }

    /// Keeps it, durably.
    pub(super) fn store(&self, folder: &Path) -> io::Result<()> {
        let secret = self.row.get(self.row.len() - SECRET_BYTES..);
        let secret = secret.unwrap_or_default();
        let new = folder.join("secret.new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(secret)?;
        file.write_all(&crc32c::crc32c(secret).to_le_bytes())?;
        file.sync_all()?;
        fs::rename(&new, folder.join(FILE))?;
        File::open(folder)?.sync_all()
    }

    /// The row.
    pub(super) fn row(&self) -> &[u8] {
        &self.row
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_kept_and_a_damaged_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let load = || Secret::load(folder.path()).unwrap();
        assert!(load().is_none());
        let secret = Secret::choose().unwrap();
        assert!(secret != Secret::choose().unwrap());
        secret.store(folder.path()).unwrap();
        assert!(load() == Some(secret));
        let file = folder.path().join(FILE);
        let bytes = fs::read(&file).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            fs::write(&file, &damaged).unwrap();
            assert!(load().is_none(), "byte {at}");
            fs::write(&file, &bytes[..at]).unwrap();
            assert!(load().is_none(), "{at} bytes");
        }
    }
}
