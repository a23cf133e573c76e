//! How answers look: aligned columns for people, one JSON value for programs.

use serde::Serialize;

use super::CliError;

/// Prints a value as JSON, on one line.
pub(super) fn json(value: &impl Serialize) -> Result<(), CliError> {
    print(&serde_json::to_string(value).map_err(|e| CliError::Failed(e.to_string()))?)
}

/// Prints a line. A reader that has gone away (`| head`) is no mistake.
pub(super) fn print(line: &str) -> Result<(), CliError> {
    use std::io::{ErrorKind, Write as _};
    match writeln!(std::io::stdout(), "{line}") {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(CliError::Failed(e.to_string())),
        _ => Ok(()),
    }
}

/// Prints rows below their heads, each column as wide as its widest cell.
pub(super) fn table<const N: usize>(heads: [&str; N], rows: &[[String; N]]) -> Result<(), CliError> {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([heads[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    print(&line(heads))?;
    rows.iter().try_for_each(|row| print(&line(std::array::from_fn(|column| row[column].as_str()))))
}

/// A long pin, short enough for a line: `sha256:7be1…e09c`.
pub(super) fn short_pin(pin: &str) -> String {
    match (pin.get(..11), pin.len().checked_sub(4).and_then(|at| pin.get(at..))) {
        (Some(head), Some(tail)) if pin.len() > 20 => format!("{head}…{tail}"),
        _ => pin.to_owned(),
    }
}
