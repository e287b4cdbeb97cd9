//! The power fails at any system call of a real hub under mixed load; what it answered is there.
//!
//! This program starts itself under strace, starts the hub as a child of its own, and works with it as
//! devices, a back end and an operator do. Whatever the hub has answered is written down in the same record,
//! between its calls. From that it follows what may be on a disk after a cut between any two calls, in
//! the whole data directory. On such images the hub is started again and asked for everything.
//!
//! That the checks can fail is shown first: with the syncs of one kind of file left out of the
//! record, some image has lost something.

mod book;
mod check;
mod work;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use fieldpost_testkit::power::{self, Coverage, Process, Story, Whose};

use book::Book;
use check::check_image;
use work::Work;

/// Cuts the power of a hub and checks that nothing answered is lost.
#[derive(Parser)]
struct Arguments {
    /// How many images are made.
    #[arg(long, default_value_t = 100)]
    images: u64,
    /// The hub.
    #[arg(long, default_value = "target/release/fieldpost")]
    binary: PathBuf,
    /// For the process that is recorded.
    #[command(subcommand)]
    work: Option<Recorded>,
}

#[derive(clap::Subcommand)]
enum Recorded {
    /// Works with a hub whose data directory is given.
    #[command(hide = true)]
    Work(Work),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match &arguments.work {
        Some(Recorded::Work(work)) => work::run(work, &arguments.binary),
        None => run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The record goes where others print.
            complain(&format!("FAILED: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        power::is_possible(),
        "strace is missing, or may not trace: no images of power cuts can be made"
    );
    let binary = arguments.binary.canonicalize().context("the hub")?;
    let folder = tempfile::tempdir()?;
    let stories = stories(folder.path(), &binary)?;
    for story in &stories {
        say(&story.describe(Kind::of));
    }
    if let Some(story) = stories.first() {
        show_that_losses_are_seen(story, &binary)?;
    }
    let started = Instant::now();
    let weights: u64 = stories.iter().map(|story| story.share).sum();
    let mut coverage = Coverage::default();
    for story in &stories {
        let images = arguments.images * story.share / weights;
        coverage.add(story.check(images, |worker, image, book: &Book, chance| {
            let verify_first = chance.below(4) == 0;
            check_image(&binary, worker, image, book, verify_first)
        }));
    }
    say(&coverage.to_string());
    say(&format!(
        "{} images of power cuts of a whole hub in {:.1?}, slowest start {:.0?}",
        coverage.images,
        started.elapsed(),
        coverage.slowest
    ));
    ensure!(coverage.failed == 0, "{} images failed", coverage.failed);
    Ok(())
}

/// What is recorded.
fn stories(folder: &Path, binary: &Path) -> Result<Vec<Story>> {
    let recorded = |name, share, before: PathBuf, said, first, lives: &[Life]| {
        let processes = |folder: &Path| {
            let numbered = lives.iter().zip(first..);
            let process = |(life, number): (&Life, u32)| process(binary, folder, number, *life);
            numbered.map(process).collect()
        };
        Story::record(name, share, before, said, processes, |_| ()).0
    };
    let empty = |name| -> Result<PathBuf> {
        let before = folder.join(name).with_extension("before");
        fs::create_dir(&before)?;
        Ok(before)
    };
    let stopped = |messages| Life {
        messages,
        killed: false,
    };
    let killed = |messages| Life {
        messages,
        killed: true,
    };
    let new = recorded(
        "new",
        50,
        empty("new")?,
        Vec::new(),
        0,
        &[stopped(600), stopped(200)],
    );
    let lives = [killed(150), killed(300), killed(20), stopped(50)];
    let killed = recorded("killed", 35, empty("killed")?, Vec::new(), 0, &lives);
    // The power fails again while what a cut left is opened.
    let before = folder.join("torn.before");
    let (told, said) = killed.tear(1, &before);
    say(&format!("torn: {told}"));
    let torn = recorded("torn", 15, before, said, 10, &[stopped(60)]);
    Ok(vec![new, killed, torn])
}

/// How long a hub lives and how it ends.
#[derive(Clone, Copy)]
struct Life {
    /// Until so many messages for devices are accepted.
    messages: u32,
    killed: bool,
}

/// This program again, with a hub as its child.
fn process(binary: &Path, data: &Path, number: u32, life: Life) -> Process {
    let mut arguments: Vec<OsString> = vec!["--binary".into(), binary.into(), "work".into()];
    arguments.extend(["--life".into(), number.to_string().into()]);
    arguments.extend(["--messages".into(), life.messages.to_string().into()]);
    if life.killed {
        arguments.push("--killed".into());
    }
    arguments.push(data.into());
    Process {
        program: std::env::current_exe().unwrap_or_default(),
        arguments,
        environment: Vec::new(),
        whose: Whose::Child,
        // It kills its hub itself.
        kill: Box::new(|_| false),
    }
}

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Events,
    EventsFolder,
    Journal,
    Tables,
    /// Keys, certificates, and how the hub is reached.
    Setup,
    DataFolder,
}

impl Kind {
    fn of(path: &str) -> Self {
        let name = path.rsplit('/').next().unwrap_or_default();
        if path.is_empty() {
            Self::DataFolder
        } else if name == "log" {
            Self::EventsFolder
        } else if path.contains("/log/") {
            Self::Events
        } else if name.ends_with(".jnl") {
            Self::Journal
        } else if path.contains("/documents") {
            Self::Tables
        } else {
            Self::Setup
        }
    }
}

/// Leaves syncs out of the record, one kind after the other.
fn show_that_losses_are_seen(story: &Story, binary: &Path) -> Result<()> {
    for kind in [
        Kind::Events,
        Kind::EventsFolder,
        Kind::Journal,
        Kind::Tables,
        Kind::Setup,
        Kind::DataFolder,
    ] {
        let is_left_out = |path: &str, book: &Book| {
            // Without those of its first start there would not even be a store.
            Kind::of(path) == kind
                && (kind != Kind::Events && kind != Kind::Journal || book.is_set_up())
        };
        let check = |image: &Path, book: &Book| check_image(binary, 0, image, book, false);
        let lost = story
            .loss_without(is_left_out, 200, check)
            .with_context(|| format!("nobody notices that no {kind:?} is synced"))?;
        let first = lost.loss.lines().next().unwrap_or_default();
        say(&format!(
            "without syncs of {kind:?}: image {}: {first}",
            lost.images
        ));
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a program for a terminal")]
fn say(text: &str) {
    println!("{text}");
}

#[expect(clippy::print_stderr, reason = "a program for a terminal")]
fn complain(text: &str) {
    eprintln!("{text}");
}
