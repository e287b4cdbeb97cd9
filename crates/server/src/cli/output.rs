//! What commands print: data on standard output, everything else on standard error.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::Value;

use super::Format;

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
pub(crate) fn json(value: &Value) -> io::Result<()> {
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

/// Text of a device or service, without what would steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    let shown = |c: char| {
        if c.is_control() {
            c.escape_default().collect()
        } else {
            c.to_string()
        }
    };
    text.chars().map(shown).collect()
}

/// Prints pages of a list as they come, so that a million entries need no memory.
pub(crate) struct PagePrinter {
    format: Format,
    columns: &'static [&'static str],
    is_first: bool,
}

impl PagePrinter {
    /// Prints nothing yet. The columns are headings for people.
    pub(crate) fn new(format: Format, columns: &'static [&'static str]) -> Self {
        Self {
            format,
            columns,
            is_first: true,
        }
    }

    /// Prints a page: entries as they are for programs, a row of each for people.
    pub(crate) fn page(
        &mut self,
        entries: &[Value],
        row: impl Fn(&Value) -> Vec<String>,
    ) -> io::Result<()> {
        match self.format {
            Format::Json => {
                for entry in entries {
                    let before = if self.is_first { "[\n  " } else { ",\n  " };
                    self.is_first = false;
                    print(&format!("{before}{entry}"))?;
                }
            }
            Format::Text if self.is_first || !entries.is_empty() => {
                let rows: Vec<_> = entries.iter().map(row).collect();
                let table = table(self.columns, &rows);
                let rest = table.split_once('\n').map_or("", |(_, rest)| rest);
                print(if self.is_first { &table } else { rest })?;
                self.is_first = false;
            }
            Format::Text => {}
        }
        Ok(())
    }

    /// Ends the list.
    pub(crate) fn end(self) -> anyhow::Result<()> {
        match (self.format, self.is_first) {
            (Format::Json, true) => line("[]")?,
            (Format::Json, false) => line("\n]")?,
            (Format::Text, _) => {}
        }
        Ok(())
    }
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

    #[test]
    fn a_device_cannot_steer_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\nü"), "a\\u{1b}[2Jb\\nü");
    }
}
