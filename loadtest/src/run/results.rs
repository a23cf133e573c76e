//! The file that a run leaves, and that reports are made of.

use serde::{Deserialize, Serialize};

use crate::drive::Outcome;
use crate::scenario::Scenario;

/// What this version writes; a reader refuses others.
const FORMAT: u32 = 1;

/// One result file.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// The version of this form.
    pub format: u32,
    /// The version of the rig.
    pub rig: String,
    /// The command that made it.
    pub command: Vec<String>,
    /// What was asked, in order.
    pub runs: Vec<Run>,
}

/// One plan that was played.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// What it is called in tables and plots.
    pub name: String,
    /// What came of it.
    pub outcome: Outcome,
}

impl Results {
    /// Of this process.
    pub fn new(runs: Vec<Run>) -> Self {
        let command = std::env::args().collect();
        Self { format: FORMAT, rig: env!("CARGO_PKG_VERSION").to_owned(), command, runs }
    }

    /// Reads one; the error says what it is not.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        use anyhow::{Context as _, ensure};
        let results: Self =
            serde_json::from_str(text).context("no result of `postern-loadtest run --output json`")?;
        ensure!(
            results.format == FORMAT,
            "a result of form {}, and this program reads form {FORMAT}",
            results.format
        );
        ensure!(!results.runs.is_empty(), "a result without a run");
        Ok(results)
    }

    /// Failures of all runs.
    pub fn failed(&self) -> u64 {
        self.runs.iter().map(|run| run.outcome.failed()).sum()
    }

    /// Whether each question has an answer: something succeeded, and what was to be resumed was.
    pub fn is_answered(&self) -> bool {
        self.runs.iter().all(|run| {
            let outcome = &run.outcome;
            outcome.succeeded > 0 && (outcome.plan.scenario != Scenario::Resume || outcome.resumed > 0)
        })
    }
}
