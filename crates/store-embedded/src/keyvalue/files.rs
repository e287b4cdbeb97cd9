//! The files of the key-value store that are not fjall's own doing: creation, upgrade, and what is
//! looked at before fjall opens anything.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::OpenError;
use super::journal::{self, Journals};
use super::secret::Secret;

/// Makes a store with `fill`, beside `path`, and puts it in place whole, because fjall does not open
/// what a crash left of a creation.
pub(super) fn create(
    path: &Path,
    fill: impl FnOnce(&Path) -> Result<(), OpenError>,
) -> Result<(), OpenError> {
    let staging = beside(path, ".new");
    if exists(&staging)? {
        fs::remove_dir_all(&staging).map_err(io_error("remove", &staging))?;
    }
    fs::create_dir_all(&staging).map_err(io_error("create", &staging))?;
    fill(&staging)?;
    fs::rename(&staging, path).map_err(io_error("rename", &staging))?;
    sync_parent(path)
}

/// Looks for files without which fjall would begin anew instead of opening. Returns the lock.
pub(super) fn check_files(path: &Path) -> Result<File, OpenError> {
    let tables = path.join("keyspaces");
    for file in [
        path.to_owned(),
        path.join("lock"),
        path.join("version"),
        tables.clone(),
    ] {
        if !exists(&file)? {
            return Err(damaged(&file, "it is missing".to_owned()));
        }
    }
    let lock_path = path.join("lock");
    let lock = File::open(&lock_path).map_err(io_error("open", &lock_path))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            return Err(OpenError::Locked {
                path: path.to_owned(),
            });
        }
        Err(fs::TryLockError::Error(source)) => return Err(io_error("lock", &lock_path)(source)),
    }
    let before_upgrade = tables_before_upgrade(path)?;
    for name in table_names(path)? {
        let half_made = before_upgrade
            .as_ref()
            .is_some_and(|before| !before.contains(&name));
        let current = tables.join(&name).join("current");
        // fjall removes what is left of the making of a table, and the upgrade makes it again.
        if !half_made && !exists(&current)? {
            return Err(damaged(&current, "it is missing".to_owned()));
        }
    }
    Ok(lock)
}

/// Cuts off what a crash tore, and refuses what is damaged.
pub(super) fn repair_journals(path: &Path, secret: Option<&Secret>) -> Result<(), OpenError> {
    match journal::inspect(path, secret).map_err(io_error("read", path))? {
        Journals::Whole => Ok(()),
        Journals::Torn { file, valid_bytes } => {
            tracing::info!(
                file = %file.display(),
                valid_bytes,
                "cutting off a write that was never acknowledged"
            );
            journal::cut(&file, valid_bytes).map_err(io_error("cut", &file))
        }
        Journals::Missing { number } => Err(damaged(
            &path.join(format!("{number}.jnl")),
            "it is missing".to_owned(),
        )),
        Journals::Damaged {
            file,
            valid_bytes,
            newer,
        } => {
            let newer = if newer { " and in newer journals" } else { "" };
            Err(damaged(
                &file,
                format!(
                    "a change at byte {valid_bytes} does not pass its check, and acknowledged \
                     changes follow after it{newer}"
                ),
            ))
        }
    }
}

/// Notes which tables there were before an upgrade makes more. Until [`end_upgrade`], a crash may
/// leave tables behind that are half made, and only others are missed when they are not whole.
pub(super) fn begin_upgrade(path: &Path) -> Result<(), OpenError> {
    if tables_before_upgrade(path)?.is_some() {
        return Ok(());
    }
    let note = beside(path, ".upgrade");
    let new = beside(path, ".upgrade.new");
    let text = table_names(path)?.join("\n") + "\n";
    File::create(&new)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .map_err(io_error("write", &new))?;
    fs::rename(&new, &note).map_err(io_error("rename", &new))?;
    sync_parent(path)
}

/// Takes the note away, durably, before anything is accepted into new tables.
pub(super) fn end_upgrade(path: &Path) -> Result<(), OpenError> {
    let note = beside(path, ".upgrade");
    if !exists(&note)? {
        return Ok(());
    }
    fs::remove_file(&note).map_err(io_error("remove", &note))?;
    sync_parent(path)
}

/// The tables that there were before an upgrade that has not ended.
fn tables_before_upgrade(path: &Path) -> Result<Option<Vec<String>>, OpenError> {
    let note = beside(path, ".upgrade");
    match fs::read_to_string(&note) {
        Ok(text) => Ok(Some(text.lines().map(str::to_owned).collect())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", &note)(error)),
    }
}

/// The names of the tables' directories, which are numbers.
fn table_names(path: &Path) -> Result<Vec<String>, OpenError> {
    let tables = path.join("keyspaces");
    let read = io_error("read", &tables);
    let names = fs::read_dir(&tables).and_then(|entries| {
        entries
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    });
    names.map_err(read)
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes the names of the tables' directories durable. fjall syncs what is in them only, and most
/// file systems bring the names along; nobody promises that they do.
pub(super) fn sync_table_names(path: &Path) -> Result<(), OpenError> {
    sync_folder(&path.join("keyspaces"))
}

fn sync_parent(path: &Path) -> Result<(), OpenError> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_folder(parent),
        _ => sync_folder(Path::new(".")),
    }
}

fn sync_folder(path: &Path) -> Result<(), OpenError> {
    File::open(path)
        .and_then(|folder| folder.sync_all())
        .map_err(io_error("sync", path))
}

pub(super) fn damaged(path: &Path, what: String) -> OpenError {
    OpenError::Damaged {
        path: path.to_owned(),
        what,
    }
}

pub(super) fn exists(path: &Path) -> Result<bool, OpenError> {
    path.try_exists().map_err(io_error("look for", path))
}

pub(super) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = PathBuf::from(path);
    move |source| OpenError::Io {
        action,
        path,
        source,
    }
}
