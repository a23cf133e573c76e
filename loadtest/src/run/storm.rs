//! What do established callers notice of a storm of newcomers? Requests at a steady rate, quiet, then during the storm.

use anyhow::{Result, anyhow};

use super::Run;
use crate::drive::{self, Load, Plan};
use crate::scenario::Scenario;

/// Requests a second where the command does not say: far below what any server can do.
const RATE: f64 = 200.0;

/// Three runs: `quiet`, `storm` (the same requests), and `newcomers` (the handshakes of the storm).
pub(super) fn run(
    plan: &Plan,
    clients: usize,
    rate: Option<f64>,
    bar: &mut dyn FnMut(&str, f64),
) -> Result<Vec<Run>> {
    let established = Plan { load: Load::Open { rate: rate.unwrap_or(RATE) }, ..plan.clone() };
    let newcomers = Plan { scenario: Scenario::Handshake, load: Load::Closed { clients }, ..plan.clone() };
    let quiet = drive::run(&established, |done| bar("quiet", done))?;
    let (storm, newcomers) = std::thread::scope(|scope| {
        let newcomers = scope.spawn(|| drive::run(&newcomers, |_| {}));
        let storm = drive::run(&established, |done| bar("storm", done));
        let newcomers = newcomers.join().map_err(|_| anyhow!("the storm's thread panicked"));
        anyhow::Ok((storm?, newcomers??))
    })?;
    let mut runs = vec![("quiet", quiet), ("storm", storm), ("newcomers", newcomers)];
    let p99 = |at: usize| runs[at].1.latency.p99_us;
    if let (Some(quiet), Some(storm)) = (p99(0), p99(1)) {
        let note =
            format!("p99 of established requests in the storm ÷ quiet: {:.2}", storm / quiet.max(1e-3));
        runs[1].1.notes.push(note);
    }
    runs[2].1.notes.push("what it cost the server holds the established requests as well".to_owned());
    Ok(runs.into_iter().map(|(name, outcome)| Run { name: name.to_owned(), outcome }).collect())
}
