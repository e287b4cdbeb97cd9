//! The key-value engine: fjall.

use std::fs::{self, File};
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use fjall::{Database, Guard, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};

use super::OpenError;
use super::engine::{Engine, EngineError, Space, View, Visit, Writes};
use super::journal::{self, Journals};
use super::layout::{FORMAT_KEY, STATE_KEY, StateRow, format_row, state_row};

/// What opening has to replay at most, and the least that fjall accepts.
const JOURNALS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// fjall's cache of table blocks. Connected devices' documents are in the hub's own memory.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;

/// One flushes while the other compacts.
const WORKERS: usize = 2;

/// fjall holds writes up, in a loop that does not look for failures, from 4 memtables waiting to be
/// flushed or 30 tables waiting to be compacted. We stay below, in a loop that does.
const WAITING_MEMTABLES_MAX: usize = 2;
const WAITING_TABLES_MAX: usize = 24;

/// How long to wait before looking at fjall's workers again.
const WAIT_FOR_WORKERS: Duration = Duration::from_millis(2);

/// fjall, with a table for each space.
pub(super) struct FjallEngine {
    database: Database,
    tables: Tables,
}

struct Tables {
    documents: Keyspace,
    feed: Keyspace,
    deletions: Keyspace,
    deleted: Keyspace,
    meta: Keyspace,
}

impl FjallEngine {
    /// Opens the store at `path`, or creates an empty one when there is nothing.
    pub(super) fn open_or_create(path: &Path) -> Result<Self, OpenError> {
        if !exists(path)? {
            create(path)?;
        }
        Self::open(path)
    }

    /// Opens the store at `path`.
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        let lock = check_files(path)?;
        repair_journals(path)?;
        // fjall takes the lock itself.
        drop(lock);
        let database = open_database(path)?;
        for space in Space::ALL {
            if !database.keyspace_exists(space.name()) {
                return Err(damaged(path, format!("there is no table {}", space.name())));
            }
        }
        let tables = Tables::open(path, &database)?;
        Ok(Self { database, tables })
    }

    /// Waits until fjall's workers have caught up.
    fn wait_for_workers(&self) -> Result<(), EngineError> {
        while self.tables.all().into_iter().any(|table| {
            table.sealed_memtable_count() > WAITING_MEMTABLES_MAX
                || table.l0_table_count() > WAITING_TABLES_MAX
        }) {
            // Fails once a worker has.
            self.database.persist(PersistMode::Buffer).map_err(failed)?;
            thread::sleep(WAIT_FOR_WORKERS);
        }
        Ok(())
    }
}

impl Tables {
    fn open(path: &Path, database: &Database) -> Result<Self, OpenError> {
        let table = |space: Space| {
            // Options count when a table is created and are kept with it.
            database
                .keyspace(space.name(), || options(space))
                .map_err(|error| open_failed(path, &error))
        };
        Ok(Self {
            documents: table(Space::Documents)?,
            feed: table(Space::Feed)?,
            deletions: table(Space::Deletions)?,
            deleted: table(Space::Deleted)?,
            meta: table(Space::Meta)?,
        })
    }

    fn of(&self, space: Space) -> &Keyspace {
        match space {
            Space::Documents => &self.documents,
            Space::Feed => &self.feed,
            Space::Deletions => &self.deletions,
            Space::Deleted => &self.deleted,
            Space::Meta => &self.meta,
        }
    }

    fn all(&self) -> [&Keyspace; 5] {
        Space::ALL.map(|space| self.of(space))
    }
}

impl Engine for FjallEngine {
    fn apply(&self, writes: Writes) -> Result<(), EngineError> {
        self.wait_for_workers()?;
        let mut batch = self
            .database
            .batch()
            .durability(Some(PersistMode::SyncData));
        for (space, key, value) in writes.into_rows() {
            match value {
                Some(value) => batch.insert(self.tables.of(space), key, value),
                None => batch.remove(self.tables.of(space), key),
            }
        }
        batch.commit().map_err(failed)
    }

    fn snapshot(&self) -> Box<dyn View + '_> {
        Box::new(FjallView {
            snapshot: self.database.snapshot(),
            tables: &self.tables,
        })
    }
}

struct FjallView<'a> {
    snapshot: Snapshot,
    tables: &'a Tables,
}

impl View for FjallView<'_> {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        let row = self
            .snapshot
            .get(self.tables.of(space), key)
            .map_err(failed)?;
        Ok(row.map(|row| row.to_vec()))
    }

    fn range(
        &self,
        space: Space,
        from: Bound<&[u8]>,
        visit: &mut Visit<'_>,
    ) -> Result<(), EngineError> {
        let range: (Bound<&[u8]>, Bound<&[u8]>) = (from, Bound::Unbounded);
        for row in self
            .snapshot
            .range::<&[u8], _>(self.tables.of(space), range)
        {
            let (key, value) = Guard::into_inner(row).map_err(failed)?;
            if visit(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

fn options(space: Space) -> KeyspaceCreateOptions {
    let memtable_bytes = match space {
        Space::Documents => 16 * 1024 * 1024,
        Space::Feed => 8 * 1024 * 1024,
        Space::Deletions | Space::Deleted => 2 * 1024 * 1024,
        Space::Meta => 1024 * 1024,
    };
    KeyspaceCreateOptions::default().max_memtable_size(memtable_bytes)
}

/// Makes an empty store beside `path` and puts it in place whole, because fjall does not open what
/// a crash left of a creation.
fn create(path: &Path) -> Result<(), OpenError> {
    let mut staging = path.as_os_str().to_owned();
    staging.push(".new");
    let staging = PathBuf::from(staging);
    if exists(&staging)? {
        fs::remove_dir_all(&staging).map_err(io_error("remove", &staging))?;
    }
    fs::create_dir_all(&staging).map_err(io_error("create", &staging))?;
    let database = open_database(&staging)?;
    let engine = FjallEngine {
        tables: Tables::open(&staging, &database)?,
        database,
    };
    let mut writes = Writes::default();
    writes.put(Space::Meta, FORMAT_KEY.to_vec(), format_row());
    writes.put(
        Space::Meta,
        STATE_KEY.to_vec(),
        state_row(StateRow::default()),
    );
    engine.apply(writes).map_err(|error| OpenError::Failed {
        path: staging.clone(),
        reason: error.to_string(),
    })?;
    drop(engine);
    fs::rename(&staging, path).map_err(io_error("rename", &staging))?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)
        .and_then(|folder| folder.sync_all())
        .map_err(io_error("sync", parent))
}

/// Looks for files without which fjall would begin anew instead of opening. Returns the lock.
fn check_files(path: &Path) -> Result<File, OpenError> {
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
    for table in fs::read_dir(&tables).map_err(io_error("read", &tables))? {
        let table = table.map_err(io_error("read", &tables))?;
        let current = table.path().join("current");
        if !exists(&current)? {
            return Err(damaged(&current, "it is missing".to_owned()));
        }
    }
    Ok(lock)
}

/// Cuts off what a crash tore, and refuses what is damaged.
fn repair_journals(path: &Path) -> Result<(), OpenError> {
    match journal::inspect(path).map_err(io_error("read", path))? {
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

fn open_database(path: &Path) -> Result<Database, OpenError> {
    let open = || {
        Database::builder(path)
            .max_journaling_size(JOURNALS_BYTES_MAX)
            .cache_size(CACHE_BYTES)
            .worker_threads(WORKERS)
            .open()
    };
    // fjall asserts what it expects of its own files.
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(opened) => opened.map_err(|error| open_failed(path, &error)),
        Err(_) => Err(damaged(
            path,
            "the key-value engine gave up on its files".to_owned(),
        )),
    }
}

fn open_failed(path: &Path, error: &fjall::Error) -> OpenError {
    let path = path.to_owned();
    match error {
        fjall::Error::Locked => OpenError::Locked { path },
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error))
            if error.kind() != io::ErrorKind::UnexpectedEof
                && error.kind() != io::ErrorKind::NotFound =>
        {
            OpenError::Failed {
                path,
                reason: error.to_string(),
            }
        }
        error => damaged(&path, error.to_string()),
    }
}

fn damaged(path: &Path, what: String) -> OpenError {
    OpenError::Damaged {
        path: path.to_owned(),
        what,
    }
}

fn exists(path: &Path) -> Result<bool, OpenError> {
    path.try_exists().map_err(io_error("look for", path))
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> OpenError {
    let path = PathBuf::from(path);
    move |source| OpenError::Io {
        action,
        path,
        source,
    }
}

fn failed(error: fjall::Error) -> EngineError {
    match error {
        fjall::Error::Poisoned => EngineError::Failed(
            "the key-value engine stopped after a failed background write".to_owned(),
        ),
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
            EngineError::Failed(error.to_string())
        }
        error => EngineError::Damaged(error.to_string()),
    }
}
