//! What commands print: data on standard output, everything else on standard error.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Prints data. Colours in it are left out unless standard output is a terminal.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Prints one line of data.
pub(crate) fn line(text: &str) -> io::Result<()> {
    print(&format!("{text}\n"))
}

/// Prints a JSON document, indented.
pub(crate) fn json(value: &serde_json::Value) -> io::Result<()> {
    line(&format!("{value:#}"))
}

/// Tells the user something that is not data.
pub(crate) fn note(text: &str) {
    // Nobody can be told that standard error is gone.
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// Tells the user why the command failed: the action first, then its causes, on one line.
pub(crate) fn error(error: &anyhow::Error) {
    note(&format!("\u{1b}[1;31merror:\u{1b}[0m {error:#}"));
}

/// Whether the reader of standard output went away, as `head` does; no failure of ours.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

/// A heading in a text for people.
pub(crate) fn heading(text: &str) -> String {
    format!("\u{1b}[1m{text}\u{1b}[0m")
}

/// Progress on standard error, shown only on a terminal. `total` is unknown when `None`.
pub(crate) fn progress(what: &str, total: Option<u64>, unit: &str) -> ProgressBar {
    let bar = match total {
        Some(total) => ProgressBar::new(total),
        None => ProgressBar::no_length(),
    };
    let template = match (total, unit) {
        (Some(_), "bytes") => "{msg} {wide_bar} {bytes}/{total_bytes} {eta}".to_owned(),
        (Some(_), _) => format!("{{msg}} {{wide_bar}} {{human_pos}}/{{human_len}} {unit} {{eta}}"),
        (None, _) => format!("{{msg}} {{spinner}} {{human_pos}} {unit} {{elapsed}}"),
    };
    let style = ProgressStyle::with_template(&template);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.set_message(what.to_owned());
    if io::stderr().is_terminal() {
        bar.enable_steady_tick(Duration::from_millis(200));
    } else {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}

/// The style of progress that has no measure.
pub(crate) fn spinner_style() -> ProgressStyle {
    ProgressStyle::with_template("{msg} {spinner} {elapsed}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// Columns of text, padded to the widest cell of each, with a heading.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = headings
        .iter()
        .enumerate()
        .map(|(column, title)| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            let widest = cells.map(|cell| cell.chars().count()).max();
            widest.unwrap_or(0).max(title.len())
        })
        .collect();
    let padded = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<_> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    let mut text = heading(&padded(&mut headings.iter().copied()));
    text.push('\n');
    for row in rows {
        text.push_str(&padded(&mut row.iter().map(String::as_str)));
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a", "enabled"], ["longer", "x"]].map(|row| row.map(str::to_owned).to_vec());
        let text = anstream::adapter::strip_str(&table(&["ID", "STATUS"], &rows)).to_string();
        assert_eq!(text, "ID      STATUS\na       enabled\nlonger  x\n");
    }
}
