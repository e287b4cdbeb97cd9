//! Chores of the project. `cargo xtask` lists them.

mod reliability;
mod tidy;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

fn main() -> ExitCode {
    let chore = std::env::args().nth(1);
    let result = match chore.as_deref() {
        Some("reliability") => reliability::run(&root()),
        Some("tidy") => tidy::run(&root()),
        _ => {
            say(
                "cargo xtask tidy    checks what the compiler cannot: the direction of dependencies,",
            );
            say(
                "                    words that a crate must not know, links in the documentation,",
            );
            say("                    the length of files");
            say(
                "cargo xtask reliability    writes into docs/reliability.md what ./test reached last",
            );
            return ExitCode::FAILURE;
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// The root of the checkout.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

#[expect(clippy::print_stdout, reason = "a chore talks to whoever runs it")]
fn say(line: &str) {
    println!("{line}");
}
