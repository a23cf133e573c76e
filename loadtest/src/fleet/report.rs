//! What a run of the fleet found, for people and for machines, and the line that moves while it runs.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::{Tally, quantile};

/// How wide the bar is, in characters.
const BAR: usize = 30;

/// One scenario's figures, in the order in which they are told.
#[derive(Debug, Clone)]
pub(super) struct Finding {
    pub(super) name: &'static str,
    figures: Vec<(&'static str, Value)>,
}

impl Finding {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, figures: Vec::new() }
    }

    pub(super) fn with(mut self, figure: &'static str, value: impl Into<Value>) -> Self {
        self.figures.push((figure, value.into()));
        self
    }

    /// One figure by its name.
    pub(super) fn figure(&self, name: &str) -> Option<&Value> {
        self.figures.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    /// First, middle, 99th percentile and last of values in order of size, in milliseconds.
    pub(super) fn with_latencies(self, sorted: &[Duration]) -> Self {
        self.with("first_ms", ms(quantile(sorted, 0.0)))
            .with("p50_ms", ms(quantile(sorted, 0.5)))
            .with("p99_ms", ms(quantile(sorted, 0.99)))
            .with("last_ms", ms(quantile(sorted, 1.0)))
    }

    fn to_json(&self) -> Value {
        let figures = self.figures.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
        let mut object: Map<String, Value> = figures.collect();
        object.insert("scenario".to_owned(), self.name.into());
        Value::Object(object)
    }
}

/// Milliseconds with one decimal.
pub(super) fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

/// What standard output gets.
pub(super) fn print(
    proxies: usize,
    findings: &[Finding],
    tally: &Tally,
    model: Option<&Value>,
    is_good: bool,
    as_json: bool,
) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if as_json {
        let scenarios: Vec<Value> = findings.iter().map(Finding::to_json).collect();
        let mut whole = json!({ "proxies": proxies, "scenarios": scenarios, "tally": tally, "ok": is_good });
        if let Some(model) = model {
            whole["model"] = model.clone();
        }
        return writeln!(out, "{whole}");
    }
    for finding in findings {
        let figures: Vec<String> =
            finding.figures.iter().map(|(name, value)| format!("{name} {value}")).collect();
        writeln!(out, "{:<8} {}", finding.name, figures.join("  "))?;
    }
    for (name, value) in model.and_then(Value::as_object).into_iter().flatten() {
        match value {
            Value::Array(lines) => {
                for line in lines.iter().filter_map(Value::as_str) {
                    writeln!(out, "model    assumes: {line}")?;
                }
            }
            Value::Null => writeln!(out, "model    {name}: not measured here")?,
            value => writeln!(out, "model    {name} {value}")?,
        }
    }
    if !is_good {
        writeln!(out, "FAILED: {}", serde_json::to_string(tally).unwrap_or_default())?;
    }
    Ok(())
}

/// A bar on standard error while something is awaited; nothing where that is no terminal.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    shown: bool,
}

impl Progress {
    pub(crate) fn new(quiet: bool) -> Self {
        Self { shown: !quiet && io::stderr().is_terminal() }
    }

    pub(crate) fn show(self, what: &str, done: usize, all: usize) {
        if !self.shown {
            return;
        }
        let filled = (done * BAR).checked_div(all).unwrap_or(BAR).min(BAR);
        let (full, empty) = ("█".repeat(filled), "░".repeat(BAR - filled));
        let _ = write!(io::stderr(), "\r\x1b[?7l{what:<10} {full}{empty} {done} of {all}\x1b[K\x1b[?7h");
    }

    pub(crate) fn clear(self) {
        if self.shown {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}
