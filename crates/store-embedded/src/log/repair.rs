//! Going on without what is damaged, when the operator says so.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use fieldpost_model::Clock;

use super::accepted::{Accepted, AcceptedLoss};
use super::recovery::{LogOpenError, accepted_losses, orphans};
use super::segment::{index_name, parse_name, remove_if_there};
use super::verify::{LogVerdict, verify};
use super::{LogIdentity, LogSettings, Opened};
use crate::damage::Damage;
use crate::files::Files;
use crate::health::StoreHealth;

/// Accepts that everything damaged is lost, and writes that down. Gives what was accepted now, and
/// what a walk over the log finds afterwards.
pub(crate) fn accept_losses(
    files: &Arc<dyn Files>,
    identity: LogIdentity,
    settings: &LogSettings,
    clock: &Arc<dyn Clock>,
) -> Result<(Vec<AcceptedLoss>, LogVerdict), LogOpenError> {
    // Opening decides where sequence numbers go on behind what is gone at the end. Only then is it
    // known which ones are lost.
    let health = Arc::new(StoreHealth::new());
    let Opened {
        mut committer,
        report,
        ..
    } = super::open(
        Arc::clone(files),
        identity,
        settings,
        Arc::clone(clock),
        health,
    )?;
    committer.finish(&mut Vec::new());
    drop(committer);

    let found = verify(&**files, identity.id, identity.partitioning)?;
    let (mut accepted, _) = accepted_losses(&**files, identity.id)?;
    let now = clock.now();
    let mut new = Vec::new();
    // That all segments were gone cannot be seen any more.
    let gone = |damage: &Damage| found.damage.iter().all(|other| other.file != damage.file);
    let at_open = report.damage.iter().filter(|damage| gone(damage));
    for damage in at_open.chain(&found.damage) {
        // An index is made anew when it is wanted; nothing is lost with it.
        if parse_name(&damage.file, "index").is_some() {
            remove_if_there(&**files, &damage.file)?;
            continue;
        }
        let loss = AcceptedLoss {
            accepted: now,
            damage: damage.clone(),
        };
        accepted.add(loss.clone());
        new.push(loss);
    }
    if !new.is_empty() {
        accepted.save(&**files, identity.id)?;
    }
    remove_evidence(&**files)?;
    let left = verify(&**files, identity.id, identity.partitioning)?;
    Ok((new, left))
}

/// What the indexes of missing segments spoke for is written down now.
fn remove_evidence(files: &dyn Files) -> io::Result<()> {
    let names: BTreeSet<String> = files.list()?.into_iter().collect();
    for id in orphans(&names) {
        remove_if_there(files, &index_name(id))?;
    }
    files.sync_dir()
}

impl Accepted {
    /// Leaves out of a list of damages those that are accepted.
    pub(super) fn leave_out(&self, damage: &mut Vec<Damage>) {
        damage.retain(|damage| !self.covers(damage));
    }
}
