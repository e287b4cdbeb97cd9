//! Reading what opening needs: a handful of rows, however many there are.

use std::ops::ControlFlow;
use std::path::Path;

use fieldpost_store::StoreError;

use super::OpenError;
use super::engine::{KeyRange, Space, View};
use super::rows::{FORMAT, FORMAT_KEY, RowError, parse_format};
use crate::{documents, queues};

/// What the last commit left.
pub(crate) struct Loaded {
    pub(crate) documents: documents::read::Loaded,
    pub(crate) queues: queues::read::Loaded,
}

/// Reads what the writer goes on from.
pub(crate) fn load(path: &Path, view: &dyn View) -> Result<Loaded, OpenError> {
    let format = format(path, view)?;
    let damaged = |error| unreadable(path, error);
    Ok(Loaded {
        documents: documents::read::load(view).map_err(damaged)?,
        queues: if format < Space::Messages.since_format() {
            queues::read::Loaded::default()
        } else {
            queues::read::load(view).map_err(damaged)?
        },
    })
}

/// The format of a store, which is not newer than this program knows.
pub(super) fn format(path: &Path, view: &dyn View) -> Result<u32, OpenError> {
    let damaged = |error| unreadable(path, error);
    let format = match view.get(Space::Meta, FORMAT_KEY) {
        Ok(Some(row)) => parse_format(&row).map_err(|error| damaged(error.into()))?,
        Ok(None) => {
            let missing = "the row of the format is missing".to_owned();
            return Err(damaged(damaged_store(missing)));
        }
        Err(error) => return Err(damaged(error.into())),
    };
    if format > FORMAT {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            found: format,
            supported: FORMAT,
        });
    }
    Ok(format)
}

/// Shows rows until `read` breaks or fails.
pub(crate) fn visit(
    view: &dyn View,
    space: Space,
    keys: KeyRange<'_>,
    mut read: impl FnMut(&[u8], &[u8]) -> Result<ControlFlow<()>, RowError>,
) -> Result<(), StoreError> {
    let mut damage = None;
    view.range(space, keys, &mut |key, row| match read(key, row) {
        Ok(flow) => flow,
        Err(error) => {
            damage = Some(error);
            ControlFlow::Break(())
        }
    })?;
    damage.map_or(Ok(()), |error| Err(error.into()))
}

/// Damage that is not in one row.
pub(crate) fn damaged_store(what: String) -> StoreError {
    StoreError::Damaged {
        what: what.into(),
        resume: None,
    }
}

fn unreadable(path: &Path, error: StoreError) -> OpenError {
    let what = match error {
        StoreError::Damaged { what, .. } => what.to_string(),
        error => error.to_string(),
    };
    OpenError::Damaged {
        path: path.to_owned(),
        what,
    }
}
