//! Load with a plan: open loop at a rate or closed loop for capacity, on threads of its own, measured from the intended start.
//!
//! In the open loop each operation has a moment at which it is due, and its latency counts from there, whatever held it up:
//! a server that stalls is seen by everybody who would have come meanwhile (no coordinated omission). What finds more than
//! [`Plan::outstanding`] operations before it is counted as `overload`, not forgotten. In the closed loop so many clients
//! each wait for their answer before they ask again: that gives capacity, and latencies that flatter.
//!
//! ```no_run
//! use postern_loadtest::drive::{self, Load, Plan, Tls};
//! use postern_loadtest::scenario::Scenario;
//! # fn main() -> anyhow::Result<()> {
//! let tls = Tls::new("ca.pem").with_identity("client.pem", "client.key").expecting_name("server.test");
//! let mut plan = Plan::new("127.0.0.1:15006".parse()?, Some(tls), Scenario::Handshake);
//! plan.load = Load::Closed { clients: 16 };
//! plan.server_pids = vec![4711];
//! let outcome = drive::run(&plan, |_| {})?;
//! println!("{} a second, {:?} of CPU each", outcome.rate, outcome.cost.and_then(|c| c.cpu_us_per_handshake));
//! # Ok(()) }
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

mod connect;
mod cpus;
mod outcome;
mod pace;
mod plan;
mod reason;
mod tls;
mod worker;

pub use cpus::{Cpus, give_way, let_give_way, pin};
pub use outcome::{Bucket, Negotiated, Outcome, Rig};
pub use plan::{Kx, Load, Plan, Suite, Tls};
pub use reason::{Failure, Reason};

pub(crate) use connect::{Connector, Stream};
pub(crate) use worker::{Clock, Done, Operation, Seen, Tally, play};

use crate::measure::{Cost, Meter};
use crate::scenario;

/// Between the start of the threads and the first operation, so that none of them begins late.
const LEAD: Duration = Duration::from_millis(50);
/// How often memory is looked at, and progress told.
const SAMPLE: Duration = Duration::from_millis(100);

/// Plays the plan to its end; `progress` hears how far it is, from 0 to 1.
///
/// Fails when the plan itself cannot be played (a file that is missing, a process that is gone): what fails on the way
/// is in the outcome.
pub fn run(plan: &Plan, mut progress: impl FnMut(f64)) -> Result<Outcome> {
    plan.check()?;
    if plan.scenario == scenario::Scenario::Idle {
        return scenario::idle(plan, progress);
    }
    let connector = Connector::new(plan)?;
    let mut meter = Meter::new(&plan.server_pids)?;
    let start = Instant::now() + LEAD;
    let clock = Clock::new(plan, start);
    let threads = start_workers(plan, &connector, clock)?;
    let whole = plan.warm_up + plan.duration;
    let told = |now: Instant| now.saturating_duration_since(start).as_secs_f64() / whole.as_secs_f64();
    wait_until(clock.warm, |now| progress(told(now)));
    meter.begin()?;
    let rig_before = own_cpu();
    wait_until(clock.end, |now| {
        meter.sample();
        progress(told(now));
    });
    let usage = meter.end();
    let rig_cpu = own_cpu().saturating_sub(rig_before);
    let mut seen = Seen::new(plan);
    for thread in threads {
        let of_one = thread.join().map_err(|_| anyhow::anyhow!("a thread of the rig panicked"))?;
        seen.add(&of_one?);
    }
    progress(1.0);
    let usage = usage.context("the server's processes")?;
    let cost = usage.map(|usage| Cost::new(usage, &seen.completed));
    Ok(seen.outcome(plan, cost, rig_cpu))
}

fn start_workers(
    plan: &Plan,
    connector: &Connector,
    clock: Clock,
) -> Result<Vec<std::thread::JoinHandle<Result<Seen>>>> {
    let workers = plan.workers();
    let plan = Arc::new(plan.clone());
    (0..workers)
        .map(|number| {
            let (plan, connector) = (Arc::clone(&plan), connector.clone());
            let body = move || {
                if let Some(cpus) = &plan.rig_cpus {
                    pin(cpus)?;
                }
                if plan.gives_way {
                    give_way()?;
                }
                scenario::play(&plan, connector, clock, number, workers)
            };
            std::thread::Builder::new()
                .name(format!("rig-{number}"))
                .spawn(body)
                .context("no thread for the rig")
        })
        .collect()
}

pub(crate) fn wait_until(end: Instant, mut sample: impl FnMut(Instant)) {
    loop {
        let now = Instant::now();
        if now >= end {
            return;
        }
        sample(now);
        std::thread::park_timeout(SAMPLE.min(end.saturating_duration_since(now)));
    }
}

/// What this process itself has used so far.
pub(crate) fn own_cpu() -> Duration {
    let now = nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID.now();
    now.map(Duration::from).unwrap_or_default()
}
