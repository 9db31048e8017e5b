//! The only place that prints results: tables for people, JSON for programs, questions for whoever is at the terminal.
//!
//! Results go to standard output, everything else to standard error, so that a pipe carries results alone.

use std::io::{self, Write as _};

use anyhow::{Context as _, anyhow};
use serde::Serialize;

use crate::{
    failure::{self, Advise as _},
    settings::{Consent, Format},
};

/// Blanks between two columns.
const GUTTER: usize = 2;

/// Rows under a heading; the columns are as wide as their widest cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Table {
    heading: Vec<&'static str>,
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}

impl Table {
    /// An empty table. A heading that begins with `>` is of numbers and stands to the right.
    pub(crate) fn new(heading: &[&'static str]) -> Self {
        Self {
            heading: heading.iter().map(|cell| cell.trim_start_matches('>')).collect(),
            rows: Vec::new(),
            right: heading.iter().map(|cell| cell.starts_with('>')).collect(),
        }
    }

    /// Adds a row.
    ///
    /// # Panics
    /// If it has more or fewer cells than the heading.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().map(|cell| printable(&cell)).collect();
        assert_eq!(cells.len(), self.heading.len(), "a row has a cell for every heading");
        self.rows.push(cells);
    }

    /// The text of the table, with a line end after every row.
    pub(crate) fn render(&self) -> String {
        let widths: Vec<usize> = (0..self.heading.len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| row[column].chars().count());
                cells.chain([self.heading[column].chars().count()]).max().unwrap_or(0)
            })
            .collect();
        let mut text = String::new();
        let heading: Vec<String> = self.heading.iter().map(|cell| cell.to_uppercase()).collect();
        for row in std::iter::once(&heading).chain(&self.rows) {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                line += &if self.right[column] { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
                line += &" ".repeat(GUTTER);
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// Cells come from servers: control characters in them must not reach the terminal.
fn printable(cell: &str) -> String {
    cell.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Prints a result, as `table` or as JSON of `value`.
pub(crate) fn result(format: Format, value: &impl Serialize, table: impl FnOnce() -> Table) -> anyhow::Result<()> {
    match format {
        Format::Table => text(&table().render()),
        Format::Json => json(value),
    }
}

/// Prints JSON, indented, with a line end.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value).context("cannot write the result as JSON")?;
    text.push('\n');
    self::text(&text)
}

/// Prints text as it is.
pub(crate) fn text(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot write to standard output")
}

/// Prints a line on standard error: something to know that is not the result.
pub(crate) fn note(line: &str) {
    // Nobody is left to tell when standard error itself is gone.
    drop(writeln!(io::stderr().lock(), "{line}"));
}

/// Whether the failure is a reader that went away, as `| head` does: no fault of ours and nothing to report.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    failure::cause::<io::Error>(error).is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

/// Asks `question`. Without a terminal nothing is agreed to, and the error says how to agree beforehand.
pub(crate) fn agreed(consent: Consent, question: &str) -> anyhow::Result<bool> {
    match consent {
        Consent::Given => Ok(true),
        Consent::Nobody => {
            Err(anyhow!("cannot ask \"{question}\" without a terminal")).hint("repeat the command with `--yes` to agree")
        }
        Consent::Ask => {
            let mut stderr = io::stderr().lock();
            write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush()).context("cannot ask")?;
            let mut answer = String::new();
            io::stdin().read_line(&mut answer).context("cannot read the answer")?;
            Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["step", ">ms"]);
        table.row(["create".to_owned(), "1204".to_owned()]);
        table.row(["run a command".to_owned(), "9".to_owned()]);
        assert_eq!(
            table.render(),
            "STEP             MS\n\
             create         1204\n\
             run a command     9\n"
        );
    }

    #[test]
    fn an_empty_table_still_has_its_heading() {
        assert_eq!(Table::new(&["sandbox", "state"]).render(), "SANDBOX  STATE\n");
    }

    #[test]
    fn a_cell_cannot_steer_the_terminal() {
        let mut table = Table::new(&["name"]);
        table.row(["a\x1b[2Jb\nc".to_owned()]);
        assert_eq!(table.render(), "NAME\na\u{fffd}[2Jb\u{fffd}c\n");
    }

    #[test]
    fn nobody_agrees_without_a_terminal() {
        let error = agreed(Consent::Nobody, "install qemu?").unwrap_err();
        assert_eq!(
            crate::failure::render(&error),
            "error: cannot ask \"install qemu?\" without a terminal\nhint: repeat the command with `--yes` to agree\n"
        );
        assert!(agreed(Consent::Given, "install qemu?").unwrap());
    }
}
