//! The key-value engine: fjall.

use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread;
use std::time::Duration;

use fjall::{Database, Guard, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};

use super::engine::{Engine, EngineError, KeyRange, Space, View, Visit, Writes};
use super::files::{self, check_files, damaged, exists, io_error, repair_journals};
use super::rows::{FORMAT, FORMAT_KEY, format_row};
use super::secret::{SECRET_KEY, Secret};
use super::{OpenError, load};
use crate::documents::layout::{STATE_KEY, StateRow, state_row};
use crate::queues::layout::{SEQUENCE_KEY, sequence_row};
use crate::queues::read as queues;

/// What opening has to replay at most, and the least that fjall accepts.
const JOURNALS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// fjall's cache of table blocks. What connected devices need is in the hub's own memory.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;

/// With more than one, fjall keeps the first free to flush by letting it pass requests to compact on
/// and on without a pause, as long as the others are busy.
const WORKERS: usize = 1;

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
    /// In front of each batch; none in a store that an earlier version made, until it is opened to
    /// be written.
    secret: Option<Secret>,
}

/// By the numbers of their spaces; a store of an older format has fewer.
struct Tables(Vec<Keyspace>);

impl FjallEngine {
    /// Opens the store at `path`, or creates an empty one when there is nothing, and upgrades one
    /// of an older format.
    pub(super) fn open_or_create(path: &Path) -> Result<Self, OpenError> {
        if !exists(path)? {
            files::create(path, fill)?;
        }
        let opened = Self::open_as_it_is(path)?;
        let format = load::format(path, &*opened.snapshot())?;
        if format >= 2 {
            files::end_upgrade(path)?;
        }
        if format < FORMAT {
            return opened.upgrade(path, format)?.with_secret(path);
        }
        opened.with_secret(path)
    }

    /// Gives a store without a secret one, and writes a batch that has it: those before it have
    /// none, and count by one that comes after them.
    fn with_secret(mut self, path: &Path) -> Result<Self, OpenError> {
        if self.secret.is_some() {
            return Ok(self);
        }
        let secret = choose_secret(path)?;
        self.secret = Some(secret.clone());
        self.write_first(path, &Writes::default())?;
        secret.store(path).map_err(io_error("write into", path))?;
        Ok(self)
    }

    /// Opens the store at `path` in the format that it has.
    pub(super) fn open_as_it_is(path: &Path) -> Result<Self, OpenError> {
        let lock = check_files(path)?;
        let secret = Secret::load(path).map_err(io_error("read", path))?;
        repair_journals(path, secret.as_ref())?;
        // fjall takes the lock itself.
        drop(lock);
        let database = open_database(path)?;
        let oldest = Self {
            tables: Tables::open(path, &database, 1)?,
            database,
            secret,
        };
        let format = load::format(path, &*oldest.snapshot())?;
        Ok(Self {
            tables: Tables::open(path, &oldest.database, format)?,
            database: oldest.database,
            secret: oldest.secret,
        })
    }

    /// Makes what a format has and an older one had not, and says so in the last write: until then
    /// the store is one of the older format.
    fn upgrade(self, path: &Path, from: u32) -> Result<Self, OpenError> {
        tracing::info!(from, to = FORMAT, "upgrading documents and queues");
        let mut writes = Writes::default();
        writes.put(Space::Meta, FORMAT_KEY, &format_row(FORMAT));
        if from >= 2 {
            let lanes = queues::note_lanes(&*self.snapshot(), &mut writes);
            lanes.map_err(|error| damaged(path, error.to_string()))?;
            self.write_first(path, &writes)?;
            return Ok(self);
        }
        files::begin_upgrade(path)?;
        let engine = self.make_tables(path)?;
        writes.put(Space::Meta, SEQUENCE_KEY, &sequence_row(0, []));
        engine.write_first(path, &writes)?;
        files::end_upgrade(path)?;
        Ok(engine)
    }

    pub(super) fn make_tables(self, path: &Path) -> Result<Self, OpenError> {
        Ok(Self {
            tables: Tables::create(path, &self.database)?,
            database: self.database,
            secret: self.secret,
        })
    }

    fn write_first(&self, path: &Path, writes: &Writes) -> Result<(), OpenError> {
        self.apply(writes).map_err(|error| OpenError::Failed {
            path: path.to_owned(),
            reason: error.to_string(),
        })
    }

    /// Writes a table of its own of what is in memory only.
    #[cfg(test)]
    pub(super) fn flush(&self, space: Space) {
        let table = self.tables.of(space).expect("a table of this format");
        table.rotate_memtable_and_wait().expect("room on the disk");
    }

    /// Waits until fjall's workers have caught up.
    fn wait_for_workers(&self) -> Result<(), EngineError> {
        while self.tables.0.iter().any(|table| {
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

/// Makes the tables and rows of an empty store.
fn fill(path: &Path) -> Result<(), OpenError> {
    let secret = choose_secret(path)?;
    secret.store(path).map_err(io_error("write into", path))?;
    let database = open_database(path)?;
    let engine = FjallEngine {
        tables: Tables::create(path, &database)?,
        database,
        secret: Some(secret),
    };
    let mut writes = Writes::default();
    writes.put(Space::Meta, FORMAT_KEY, &format_row(FORMAT));
    writes.put(Space::Meta, STATE_KEY, &state_row(StateRow::default()));
    writes.put(Space::Meta, SEQUENCE_KEY, &sequence_row(0, []));
    engine.write_first(path, &writes)
}

impl Tables {
    /// The tables of a format, all of which must be there.
    fn open(path: &Path, database: &Database, format: u32) -> Result<Self, OpenError> {
        for space in Space::ALL {
            if space.since_format() <= format && !database.keyspace_exists(space.name()) {
                return Err(damaged(path, format!("there is no table {}", space.name())));
            }
        }
        Self::up_to(path, database, format)
    }

    /// All tables; those that are not there are made, one after the other: were the names of several
    /// lost, the engine would give their numbers to others.
    fn create(path: &Path, database: &Database) -> Result<Self, OpenError> {
        let missing = Space::ALL
            .into_iter()
            .filter(|space| !database.keyspace_exists(space.name()));
        for space in missing {
            open_table(path, database, space)?;
            files::sync_table_names(path)?;
        }
        Self::up_to(path, database, FORMAT)
    }

    fn up_to(path: &Path, database: &Database, format: u32) -> Result<Self, OpenError> {
        let spaces = Space::ALL
            .into_iter()
            .filter(|space| space.since_format() <= format);
        let tables = spaces.map(|space| open_table(path, database, space));
        tables.collect::<Result<_, _>>().map(Self)
    }

    fn of(&self, space: Space) -> Option<&Keyspace> {
        self.0.get(usize::from(space.number()))
    }
}

impl Engine for FjallEngine {
    fn apply(&self, writes: &Writes) -> Result<(), EngineError> {
        self.wait_for_workers()?;
        let rows = writes.rows();
        let capacity = rows.len().saturating_add(1);
        let mut batch = fjall::OwnedWriteBatch::with_capacity(self.database.clone(), capacity)
            .durability(Some(PersistMode::SyncData));
        if let (Some(secret), Some(meta)) = (&self.secret, self.tables.of(Space::Meta)) {
            batch.insert(meta, SECRET_KEY, secret.row());
        }
        for (space, key, value) in rows {
            let Some(table) = self.tables.of(space) else {
                return Err(EngineError::Failed(format!(
                    "there is no table {}",
                    space.name()
                )));
            };
            match value {
                Some(value) => batch.insert(table, key, value),
                None => batch.remove(table, key),
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
        let Some(table) = self.tables.of(space) else {
            return Ok(None);
        };
        let row = self.snapshot.get(table, key).map_err(failed)?;
        Ok(row.map(|row| row.to_vec()))
    }

    fn range(
        &self,
        space: Space,
        keys: KeyRange<'_>,
        visit: &mut Visit<'_>,
    ) -> Result<(), EngineError> {
        let Some(table) = self.tables.of(space) else {
            return Ok(());
        };
        if is_empty(keys) {
            return Ok(());
        }
        for row in self.snapshot.range::<&[u8], _>(table, keys) {
            let (key, value) = Guard::into_inner(row).map_err(failed)?;
            if visit(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }
}

/// Whether no key can lie between two bounds. Maps of all kinds dislike to be asked for that.
fn is_empty(keys: KeyRange<'_>) -> bool {
    match keys {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (
            Bound::Included(from) | Bound::Excluded(from),
            Bound::Included(to) | Bound::Excluded(to),
        ) => from >= to,
    }
}

/// Opens or makes a table.
fn open_table(path: &Path, database: &Database, space: Space) -> Result<Keyspace, OpenError> {
    // Options count when a table is created and are kept with it.
    database
        .keyspace(space.name(), || options(space))
        .map_err(|error| open_failed(path, &error))
}

fn options(space: Space) -> KeyspaceCreateOptions {
    let memtable_bytes = match space {
        Space::Documents | Space::Messages | Space::Outcomes => 16 * 1024 * 1024,
        Space::Feed | Space::Due => 8 * 1024 * 1024,
        Space::Deletions | Space::Deleted => 2 * 1024 * 1024,
        Space::Meta | Space::Marks => 1024 * 1024,
    };
    KeyspaceCreateOptions::default().max_memtable_size(memtable_bytes)
}

fn choose_secret(path: &Path) -> Result<Secret, OpenError> {
    Secret::choose().map_err(io_error("choose a secret for", path))
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
