//! Walking over everything that is stored, offline.

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::OpenError;
use super::engine::Engine;
use super::fjall_engine::FjallEngine;
use super::load;
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
