//! Runs seeds and says which of them broke a promise.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use fieldpost_sim::{Outcome, Scenario, Sink, run};

/// Simulates the hub from seeds.
#[derive(Parser)]
struct Arguments {
    /// The seeds, as FROM..TO without the last one.
    #[arg(long, default_value = "0..20", value_parser = seeds)]
    seeds: Range<u64>,
    /// Only this scenario; otherwise all.
    #[arg(long)]
    scenario: Option<String>,
    /// Print everything that happens. RUST_LOG adds what the hub itself says.
    #[arg(long)]
    trace: bool,
    /// Write everything that happens in each run to a file in this directory.
    #[arg(long)]
    journals: Option<PathBuf>,
    /// Start no new seed after so many seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Print failing seeds only, and how many there were.
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let scenarios = match &arguments.scenario {
        None => Scenario::all(),
        Some(name) => match Scenario::named(name) {
            Some(found) => vec![found],
            None => {
                let names: Vec<_> = Scenario::all().iter().map(|known| known.name).collect();
                eprintln!(
                    "there is no scenario {name:?}; there are {}",
                    names.join(", ")
                );
                return ExitCode::from(2);
            }
        },
    };
    if arguments.trace {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .without_time()
            .init();
    }
    let began = Instant::now();
    let limit = arguments.seconds.map(Duration::from_secs);
    let seeds: Vec<u64> = arguments.seeds.clone().collect();
    let next = AtomicUsize::new(0);
    let failed = AtomicU64::new(0);
    let reached: Mutex<Vec<u64>> = Mutex::new(vec![0; scenarios.len()]);
    let workers = if arguments.trace {
        1
    } else {
        thread::available_parallelism().map_or(1, usize::from)
    };
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while limit.is_none_or(|limit| began.elapsed() < limit) {
                    // Scenarios take turns, so that a run that is cut short has seen all of them.
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let kind = at % scenarios.len();
                    let Some(seed) = seeds.get(at / scenarios.len()) else {
                        return;
                    };
                    let scenario = &scenarios[kind];
                    let outcome = match journal(&arguments, scenario, *seed) {
                        Ok(journal) => run(scenario, *seed, journal),
                        Err(error) => {
                            eprintln!("a journal cannot be written: {error}");
                            failed.fetch_add(1, Ordering::Relaxed);
                            return;
                        }
                    };
                    if !outcome.violations.is_empty() {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                    if !arguments.quiet || !outcome.violations.is_empty() {
                        show(scenario, *seed, &outcome);
                    }
                    reached.lock().unwrap_or_else(|e| e.into_inner())[kind] += 1;
                }
            });
        }
    });
    let reached = reached.into_inner().unwrap_or_else(|e| e.into_inner());
    let names: Vec<String> = (scenarios.iter().zip(&reached))
        .map(|(scenario, count)| format!("{} {count}", scenario.name))
        .collect();
    let failed = failed.load(Ordering::Relaxed);
    println!(
        "seeds: {} ({}), {failed} failed, in {} s",
        reached.iter().sum::<u64>(),
        names.join(", "),
        began.elapsed().as_secs()
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Where a run's journal goes, if anybody wants it.
fn journal(arguments: &Arguments, scenario: &Scenario, seed: u64) -> io::Result<Option<Sink>> {
    if arguments.trace {
        return Ok(Some(Box::new(io::stdout())));
    }
    let Some(directory) = &arguments.journals else {
        return Ok(None);
    };
    fs::create_dir_all(directory)?;
    let file = File::create(directory.join(format!("{}-{seed}", scenario.name)))?;
    Ok(Some(Box::new(BufWriter::new(file))))
}

fn show(scenario: &Scenario, seed: u64, outcome: &Outcome) {
    let Outcome {
        events,
        hash,
        millis,
        figures,
        violations,
    } = outcome;
    let seconds = millis / 1000;
    println!(
        "{} {seed}: {events} events in {seconds} s, {} sent, {} read, {} commands, {} feedback, hash {hash:016x}",
        scenario.name, figures.sent, figures.read, figures.accepted, figures.answered
    );
    if violations.is_empty() {
        return;
    }
    for violation in violations {
        println!("  broken: {violation}");
    }
    println!(
        "  replay: cargo run --release -- --scenario {} --seeds {seed}..{} --trace",
        scenario.name,
        seed + 1
    );
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("a range is FROM..TO")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| error.to_string());
    Ok(number(from)?..number(to)?)
}
