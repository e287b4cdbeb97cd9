//! A process that changes documents and queues is killed at any moment; what it reported as done is
//! there.
//!
//! The test starts itself as that process, which writes a line for each acknowledged batch to its
//! standard output, a pipe that outlives it. Afterwards the store holds exactly the first so many
//! batches of documents, and at least those that were reported; every message that was reported as
//! enqueued and not as settled; none that was reported as settled; a record for each that is gone;
//! and it gives out no number again.
//!
//! `FIELDPOST_CRASH_ROUNDS` sets how often the process is killed, 4 times by default.

#![expect(
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test without the usual harness reports by itself and stops where it fails"
)]

mod ledger;

use std::env;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use fieldpost_store_embedded::keyvalue::verify;

use ledger::{Ledger, close, open, work};

/// Set for the process that is to be killed: the directory of its documents.
const VICTIM: &str = "FIELDPOST_CRASH_VICTIM";

fn main() {
    if let Some(path) = env::var_os(VICTIM) {
        change_until_killed(Path::new(&path));
    }
    let rounds = env::var("FIELDPOST_CRASH_ROUNDS").map_or(4, |rounds| rounds.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("documents");
    close(&open(&path).unwrap());
    let mut chance = u64::from(std::process::id()) | 1;
    let mut ledger = Ledger::default();
    for round in 1..=rounds {
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        kill_after(&path, 1 + chance % 2_000, &mut ledger);

        assert_eq!(verify(&path).unwrap(), [""; 0]);
        let store = open(&path).unwrap();
        let found = ledger.check(&store);
        close(&store);
        println!(
            "round {round}: {} batches acknowledged, {} found; {} messages enqueued and {} \
             settled, {} waiting and {} records found",
            ledger.documents,
            found.batches,
            ledger.enqueued.len(),
            ledger.settled.len(),
            found.waiting,
            found.records,
        );
    }
}

/// Lets a process work until it has said so many lines, and kills it.
fn kill_after(path: &Path, said: u64, ledger: &mut Ledger) {
    let mut victim = Command::new(env::current_exe().unwrap())
        .env(VICTIM, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
    for _ in 0..said {
        let line = lines.next().expect("the process goes on until killed");
        ledger.note(&line.unwrap());
    }
    victim.kill().unwrap();
    victim.wait().unwrap();
    // What it had said and we had not read yet; the last line may be cut short.
    for line in lines.map_while(Result::ok) {
        ledger.note(&line);
    }
}

fn change_until_killed(path: &Path) -> ! {
    let store = open(path).unwrap();
    let mut lines = std::io::stdout().lock();
    work(&store, u64::MAX, None, |line| {
        writeln!(lines, "{line}").unwrap();
        lines.flush().unwrap();
    });
    unreachable!("there is always another batch")
}
