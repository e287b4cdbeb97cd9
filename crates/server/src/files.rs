//! Files in the data directory: written whole, durable, and private where they must be.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Mode of files that hold secrets.
pub(crate) const PRIVATE: u32 = 0o600;

/// Mode of files that do not.
pub(crate) const PUBLIC: u32 = 0o644;

/// Why the data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataDirectoryError {
    #[error("cannot create the data directory {}: {error}", path.display())]
    Create { path: PathBuf, error: io::Error },
    #[error("cannot use the data directory {}: {error}", path.display())]
    Look { path: PathBuf, error: io::Error },
    #[error("{} is not a directory", path.display())]
    NotADirectory { path: PathBuf },
    #[error(
        "other users can read the data directory {0} (mode {mode:03o}), which holds keys; run: chmod 700 {0}",
        path.display()
    )]
    Open { path: PathBuf, mode: u32 },
    #[error(
        "the data directory {} belongs to another user ({owner}), who can read the keys in it and could no longer use what this one writes; run as that user, or: chown -R {user} {}",
        path.display(), path.display()
    )]
    Foreign {
        path: PathBuf,
        owner: u32,
        user: u32,
    },
}

/// Makes the data directory, readable by its owner alone, or checks that it is that.
pub(crate) fn prepare_data_directory(path: &Path) -> Result<(), DataDirectoryError> {
    if !path.exists() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| DataDirectoryError::Create {
                path: path.to_owned(),
                error,
            })?;
    }
    let metadata = fs::metadata(path).map_err(|error| DataDirectoryError::Look {
        path: path.to_owned(),
        error,
    })?;
    if !metadata.is_dir() {
        return Err(DataDirectoryError::NotADirectory {
            path: path.to_owned(),
        });
    }
    check_access(path, &metadata, rustix::process::geteuid().as_raw())
}

fn check_access(path: &Path, metadata: &fs::Metadata, user: u32) -> Result<(), DataDirectoryError> {
    if metadata.uid() != user {
        return Err(DataDirectoryError::Foreign {
            path: path.to_owned(),
            owner: metadata.uid(),
            user,
        });
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(DataDirectoryError::Open {
            path: path.to_owned(),
            mode,
        });
    }
    Ok(())
}

/// Writes a file by rename, so that a reader sees the old content or the new, and syncs it.
///
/// The mode applies from the first byte.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    // A leftover of a process that died here may have another mode.
    remove(&temporary)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder_of(path)
}

/// Removes a file, if it is there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_data_directory_that_others_can_read_is_refused_with_the_command_that_helps() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("a/b");
        prepare_data_directory(&data).unwrap();
        assert_eq!(fs::metadata(&data).unwrap().mode() & 0o777, 0o700);
        prepare_data_directory(&data).unwrap();
        for mode in [0o750, 0o701, 0o777, 0o704] {
            fs::set_permissions(&data, fs::Permissions::from_mode(mode)).unwrap();
            let error = prepare_data_directory(&data).unwrap_err().to_string();
            assert!(error.contains("chmod 700"), "{error}");
        }
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(
            prepare_data_directory(&file),
            Err(DataDirectoryError::NotADirectory { .. })
        ));
    }

    #[test]
    fn a_data_directory_of_another_user_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let metadata = fs::metadata(folder.path()).unwrap();
        let user = rustix::process::geteuid().as_raw();
        check_access(folder.path(), &metadata, user).unwrap();
        let error = check_access(folder.path(), &metadata, user + 1).unwrap_err();
        let expected = format!("belongs to another user ({user})");
        assert!(error.to_string().contains(&expected), "{error}");
    }

    #[test]
    fn a_replaced_file_has_the_new_content_and_mode_even_over_a_leftover() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(folder.path().join("secret.new"), "leftover").unwrap();
        replace(&path, b"one", PUBLIC).unwrap();
        replace(&path, b"two", PRIVATE).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, PRIVATE);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
    }
}
