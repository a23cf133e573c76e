//! What do callers notice while something happens beside or beneath them? The same load twice: quiet, then while newcomers
//! handshake, certificates are swapped or policies are published.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};

use super::Run;
use super::own::Own;
use crate::drive::{self, Load, Outcome, Plan};
use crate::measure::open_files;
use crate::scenario::Scenario;

/// Hears which run goes on, and how far it is, from 0 to 1.
type Bar<'a> = &'a mut dyn FnMut(&str, f64);

/// Operations a second where the command does not say: far below what any server can do.
const RATE: f64 = 200.0;
/// A certificate that lives this long is replaced about every second and a half: the shortest that the proxy asks for.
const SHORT: Duration = Duration::from_secs(3);
/// Rules of each policy that is published.
const RULES: usize = 10_000;
/// For a server to close what a wave had opened.
const CLOSED: Duration = Duration::from_secs(60);
/// How often its open files are counted, and how often the count stands still until they count as closed.
const LOOK: Duration = Duration::from_millis(200);
const STILL: u32 = 5;
const MIB: f64 = 1024.0 * 1024.0;
/// For the proxies to take a policy over.
const TAKEN: Duration = Duration::from_secs(30);

/// Established requests while nobody else comes (`quiet`), during a storm of newcomers (`storm`), and the handshakes of that
/// storm (`newcomers`), whose clients make way for those that are measured.
pub(super) fn storm(plan: &Plan, clients: usize, rate: Option<f64>, bar: Bar<'_>) -> Result<Vec<Run>> {
    let load = Load::Closed { clients };
    let newcomers = Plan { scenario: Scenario::Handshake, load, gives_way: true, ..plan.clone() };
    let mut came = Vec::new();
    let what = ("storm", "p99 of established requests in the storm");
    let mut runs = compared(plan, rate, what, bar, |established, bar| {
        let (storm, mut newcomers) = std::thread::scope(|scope| {
            let newcomers = scope.spawn(|| drive::run(&newcomers, |_| {}));
            let storm = drive::run(&established, |done| bar("storm", done));
            let newcomers = newcomers.join().map_err(|_| anyhow!("the storm's thread panicked"));
            anyhow::Ok((storm?, newcomers??))
        })?;
        newcomers.notes.push("what it cost the server holds the established requests as well".to_owned());
        came.push(Run { name: "newcomers".to_owned(), outcome: newcomers });
        Ok(storm)
    })?;
    runs.extend(came);
    Ok(runs)
}

/// The same idle connections again and again, closed in between: each wave's memory before is what the ones before it left.
/// The last run is one connection, to see what all left.
pub(super) fn waves(plan: &Plan, waves: usize, bar: Bar<'_>) -> Result<Vec<Run>> {
    let single = Plan { load: Load::Closed { clients: 1 }, ..plan.clone() };
    let mut runs = Vec::new();
    for number in 1..=waves + 1 {
        let name = if number > waves { "after".to_owned() } else { format!("wave {number}") };
        let plan = if number > waves { &single } else { plan };
        if number > 1 {
            settled(&plan.server_pids)?;
        }
        runs.push(Run { outcome: drive::run(plan, |done| bar(&name, done))?, name });
    }
    let before = |run: &Run| run.outcome.cost.as_ref().map_or(0.0, |cost| cost.rss_before as f64 / MIB);
    let left: Vec<String> = runs.iter().map(|run| format!("{:.1}", before(run))).collect();
    if let Some(after) = runs.last_mut() {
        let note = format!("resident before each wave, and after the last: {} MiB", left.join(", "));
        after.outcome.notes.push(note);
    }
    Ok(runs)
}

/// Waits until the processes have closed what a wave had opened: their count of open files stands still.
fn settled(pids: &[u32]) -> Result<()> {
    let (end, mut last, mut still) = (Instant::now() + CLOSED, u64::MAX, 0);
    while still < STILL {
        let now = pids.iter().map(|pid| open_files(*pid)).sum();
        still = if now == last { still + 1 } else { 0 };
        last = now;
        ensure!(Instant::now() < end, "{now} files are still open {CLOSED:?} after a wave, and change");
        std::thread::park_timeout(LOOK);
    }
    Ok(())
}

/// Handshakes with a certificate that stays (`quiet`), and with one that is replaced all the time (`swaps`).
pub(super) fn rotation(plan: &Plan, own: &Own, rate: Option<f64>, bar: Bar<'_>) -> Result<Vec<Run>> {
    compared(plan, rate, ("swaps", "p99 in swaps"), bar, |plan, bar| {
        let rotating = own.beside(SHORT)?;
        let before = rotating.renewals()?;
        let tls = plan.tls.clone().map(|tls| tls.expecting_id(rotating.id()));
        let plan = Plan { target: rotating.target(), tls, server_pids: rotating.pids(), ..plan };
        let mut swaps = drive::run(&plan, |done| bar("swaps", done))?;
        let count = rotating.renewals()? - before;
        ensure!(count > 0, "no certificate was replaced; a longer --duration sees some");
        swaps.notes.push(format!("{count} certificates replaced"));
        Ok(swaps)
    })
}

/// Requests while policy stays (`quiet`), and while one of ten thousand rules follows the other (`churn`). The control plane, and
/// whoever writes so many rules, make way for the requests: what is asked about is the data path.
pub(super) fn churn(plan: &Plan, own: &Own, rate: Option<f64>, bar: Bar<'_>) -> Result<Vec<Run>> {
    compared(plan, rate, ("churn", "p99 in churn"), bar, |plan, bar| {
        let (mut churn, published) = std::thread::scope(|scope| {
            let (began, plan) = (Instant::now(), &plan);
            let asking = scope.spawn(|| drive::run(plan, |_| {}));
            drive::let_give_way(own.control_pid())?;
            drive::give_way()?;
            let mut published = 0;
            while !asking.is_finished() {
                own.publish(RULES, published, TAKEN)?;
                published += 1;
                let all = (plan.warm_up + plan.duration).as_secs_f64();
                bar("churn", (began.elapsed().as_secs_f64() / all).min(1.0));
            }
            let churn = asking.join().map_err(|_| anyhow!("the thread of the load panicked"))?;
            anyhow::Ok((churn?, published))
        })?;
        churn.notes.push(format!("{published} policies of {RULES} rules published and taken over"));
        Ok(churn)
    })
}

/// The load at a steady rate while nothing else happens, then as `disturbed` plays it, called `name`; with a note of how its
/// p99, called `p99`, stands to the quiet one.
fn compared(
    plan: &Plan,
    rate: Option<f64>,
    (name, p99): (&str, &str),
    bar: Bar<'_>,
    disturbed: impl FnOnce(Plan, Bar<'_>) -> Result<Outcome>,
) -> Result<Vec<Run>> {
    let steady = Plan { load: Load::Open { rate: rate.unwrap_or(RATE) }, ..plan.clone() };
    let quiet = drive::run(&steady, |done| bar("quiet", done))?;
    let mut disturbed = disturbed(steady, bar)?;
    if let (Some(one), Some(other)) = (quiet.latency.p99_us, disturbed.latency.p99_us) {
        disturbed.notes.push(format!("{p99} ÷ quiet: {:.2}", other / one.max(1e-3)));
    }
    Ok([("quiet", quiet), (name, disturbed)]
        .map(|(name, outcome)| Run { name: name.to_owned(), outcome })
        .into())
}
