//! The key under which device and policy keys are encrypted in the store.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use fieldpost_hub::clock::Chance;
use fieldpost_hub::secrets::Keyring;

use crate::files;

/// The id of the key in the key file, stored with everything it encrypts.
const KEY_ID: u32 = 1;

const KEY_BYTES: usize = 32;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyFileError {
    #[error(
        "the key file {} is missing, and the store cannot be read without it; put it back, or name it with store.key_file",
        path.display()
    )]
    Missing { path: PathBuf },
    #[error("cannot use the key file {}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("the key file {} has {length} bytes instead of {KEY_BYTES}", path.display())]
    Length { path: PathBuf, length: usize },
    #[error("other users can read the key file {0}; run: chmod 600 {0}", path.display())]
    Open { path: PathBuf },
}

/// Reads the key file; makes it when there is none and no store needs an earlier one.
pub(crate) fn load(
    path: &Path,
    store_exists: bool,
    chance: &dyn Chance,
) -> Result<Keyring, KeyFileError> {
    let failed = |error| KeyFileError::Io {
        path: path.to_owned(),
        error,
    };
    if !path.try_exists().map_err(failed)? {
        if store_exists {
            return Err(KeyFileError::Missing {
                path: path.to_owned(),
            });
        }
        let mut key = [0; KEY_BYTES];
        chance.fill(&mut key);
        files::replace(path, &key, files::PRIVATE).map_err(failed)?;
        tracing::info!(path = %path.display(), "made the key that encrypts keys in the store");
    }
    if std::fs::metadata(path).map_err(failed)?.mode() & 0o077 != 0 {
        return Err(KeyFileError::Open {
            path: path.to_owned(),
        });
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    let key = <[u8; KEY_BYTES]>::try_from(bytes.as_slice()).map_err(|_| KeyFileError::Length {
        path: path.to_owned(),
        length: bytes.len(),
    })?;
    Ok(Keyring::new(KEY_ID, key))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::clock::SystemChance;

    #[test]
    fn a_key_is_made_once_and_never_for_a_store_that_had_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let chance = SystemChance::default();
        assert!(matches!(
            load(&path, true, &chance),
            Err(KeyFileError::Missing { .. })
        ));
        load(&path, false, &chance).unwrap();
        let key = fs::read(&path).unwrap();
        assert_eq!(key.len(), KEY_BYTES);
        load(&path, true, &chance).unwrap();
        assert_eq!(fs::read(&path).unwrap(), key);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = load(&path, true, &chance).unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "short").unwrap();
        assert!(matches!(
            load(&path, true, &chance),
            Err(KeyFileError::Length { length: 5, .. })
        ));
    }
}
