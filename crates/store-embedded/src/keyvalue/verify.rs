//! Walking over everything that is stored, offline.

use std::ops::ControlFlow;
use std::path::Path;

use fieldpost_store::StoreError;
use xxhash_rust::xxh3::xxh3_64;

use super::OpenError;
use super::engine::{ALL_KEYS, Engine, EngineError, Space, View};
use super::fjall_engine::FjallEngine;
use super::load::{self, damaged_store};
use super::rows::RowError;
use crate::{documents, queues};

/// Lines of damage that are told one by one; the rest is counted.
const LINES_MAX: usize = 1_000;

/// Checks every row of documents and queues at `path`: checksums, that documents, change feed and
/// counts agree, that messages and the order of expiry agree, and lanes and their figures. Gives one
/// line for each damage, none when there is none.
///
/// The directory must not be in use. As every opening does, this cuts off a write that a crash
/// tore; it upgrades nothing.
///
/// # Errors
/// When the store cannot be looked at.
pub fn verify(path: &Path) -> Result<Vec<String>, OpenError> {
    match walk(path) {
        Err(damage @ OpenError::Damaged { .. }) => Ok(vec![damage.to_string()]),
        result => result,
    }
}

fn walk(path: &Path) -> Result<Vec<String>, OpenError> {
    let engine = FjallEngine::open_as_it_is(path)?;
    let view = engine.snapshot();
    let loaded = load::load(path, &*view)?;
    let mut damage = Damage::default();
    let mut outcome = documents::verify::walk(&*view, &loaded.documents, &mut damage);
    if outcome.is_ok() {
        outcome = queues::verify::walk(&*view, &loaded.queues, &mut damage);
    }
    if let Err(error) = outcome {
        damage.add(error.to_string());
    }
    Ok(damage.into_lines())
}

/// A walk over the tables of a facet.
pub(crate) struct Walk<'a, K> {
    pub(crate) view: &'a dyn View,
    /// What the facet's own rows say.
    pub(crate) kept: K,
    pub(crate) damage: &'a mut Damage,
}

impl<K> Walk<'_, K> {
    /// Goes over a whole table; a damaged row is told and passed over.
    pub(crate) fn each(
        &mut self,
        space: Space,
        mut check: impl FnMut(&mut Self, &[u8], &[u8]) -> Result<(), RowError>,
    ) -> Result<(), StoreError> {
        let view = self.view;
        let walked = view.range(space, ALL_KEYS, &mut |key, row| {
            if let Err(error) = check(self, key, row) {
                self.damage.add(error.to_string());
            }
            ControlFlow::Continue(())
        });
        walked.map_err(|error| match error {
            EngineError::Damaged(why) => {
                damaged_store(format!("table {} cannot be read: {why}", space.name()))
            }
            error @ EngineError::Failed(_) => error.into(),
        })
    }
}

/// What was found.
#[derive(Default)]
pub(crate) struct Damage {
    lines: Vec<String>,
    untold: u64,
}

impl Damage {
    pub(crate) fn add(&mut self, line: String) {
        if self.lines.len() < LINES_MAX {
            self.lines.push(line);
        } else {
            self.untold += 1;
        }
    }

    fn into_lines(mut self) -> Vec<String> {
        if self.untold > 0 {
            self.lines.push(format!("and {} more", self.untold));
        }
        self.lines
    }
}

/// A sum over pairs of a name and a place that does not depend on their order: equal for two tables
/// that hold the same pairs.
#[derive(Default, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    pub(crate) pairs: u64,
    sum: u64,
}

impl Fingerprint {
    /// Places of one kind are equally long.
    pub(crate) fn add(&mut self, name: &[u8], place: &[u8]) {
        self.pairs += 1;
        self.sum = self.sum.wrapping_add(xxh3_64(&[place, name].concat()));
    }
}
