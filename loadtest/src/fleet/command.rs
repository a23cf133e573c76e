//! `postern-loadtest fleet` and `postern-loadtest issuance`: measurements of a control plane, each one command.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use postern_config::file::Span;

use super::model::Measured;
use super::report::{self, Progress};
use super::scenario::{Run, Scenario};
use super::{Admin, Plan, issuance, usage};
use crate::mesh::{Binaries, ControlOptions, ControlPlane, Directory};

/// How long join tokens wait: longer than any run.
const TOKEN_TTL: Duration = Duration::from_secs(3600);

/// Where the control plane is.
#[derive(Debug, Args)]
struct Against {
    /// The data directory of a running `postern serve` on this host, where join tokens come from; without it, one is
    /// started for this run, from the binary beside this one
    #[arg(long, value_name = "DIR", requires = "control")]
    join_from: Option<PathBuf>,
    /// Where proxies connect; may be repeated, then they are tried in turn
    #[arg(long, value_name = "IP:PORT", requires = "join_from")]
    control: Vec<SocketAddr>,
    /// The control plane's process, for its CPU and memory
    #[arg(long, value_name = "PID", requires = "join_from")]
    pid: Option<u32>,
    /// How figures are printed
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Measure a control plane with thousands of light clients: cold start, renewals, pushes, reconnection
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  postern-loadtest fleet --proxies 10000 --output json
  postern-loadtest fleet --proxies 2000 --model 1000000
  postern-loadtest fleet --proxies 500 --scenario push --join-from pki --control 127.0.0.1:7443 --pid 4711

Exit codes: 0 every client got and kept its identity, 1 otherwise, 2 wrong usage.")]
pub struct Command {
    /// How many light clients
    #[arg(long, default_value_t = 200, value_name = "N")]
    proxies: usize,
    /// What happens after the cold start, in this order; may be repeated
    #[arg(long = "scenario", value_enum, default_values_t = [Scenario::Renew, Scenario::Push, Scenario::Storm])]
    scenarios: Vec<Scenario>,
    /// Lifetime that clients ask for
    #[arg(long, default_value = "1h", value_name = "TIME")]
    ttl: Span,
    /// How long the scenario `spread` lasts
    #[arg(long, default_value = "30s", value_name = "TIME")]
    spread: Span,
    /// Says what so many proxies would need, from what these cost, with the assumptions; needs the process (--pid) where
    /// the control plane is not started for this run
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    model: Option<u64>,
    /// After this long it ends, whatever is still missing
    #[arg(long, default_value = "10m", value_name = "TIME")]
    limit: Span,
    #[command(flatten)]
    against: Against,
}

/// Measure how many certificates a control plane issues for each second of its processor time
#[derive(Debug, Args)]
#[command(after_help = "Example:
  postern-loadtest issuance --duration 10s --output json")]
pub struct Issuance {
    /// How many enrollments renew; each may do so 120 times
    #[arg(long, default_value_t = 256, value_name = "N")]
    enrollments: usize,
    /// How many renewals are under way at a time
    #[arg(long, default_value_t = 32, value_name = "N")]
    in_flight: usize,
    /// At most this long
    #[arg(long, default_value = "10s", value_name = "TIME")]
    duration: Span,
    #[command(flatten)]
    against: Against,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people, with a bar while it runs
    Text,
    /// One JSON object
    Json,
}

impl Command {
    /// Whether one JSON object is all that standard output gets.
    pub fn is_json(&self) -> bool {
        self.against.output == Output::Json
    }
}

impl Issuance {
    /// Whether one JSON object is all that standard output gets.
    pub fn is_json(&self) -> bool {
        self.against.output == Output::Json
    }
}

/// Runs the scenarios; says whether every client got and kept its identity.
pub fn run(command: &Command) -> Result<bool> {
    let against = &command.against;
    ensure!(command.proxies > 0, "--proxies 0: a fleet needs somebody");
    usage::room_for(command.proxies)?;
    let progress = Progress::new(against.output == Output::Json);
    let target = Target::find(against)?;
    let joins = target.admin.tokens(command.proxies, "fleet", TOKEN_TTL, |done| {
        progress.show("tokens", done, command.proxies);
    })?;
    let run = Run {
        admin: &target.admin,
        pid: target.pid,
        deadline: Instant::now() + command.limit.as_duration(),
        progress,
        spread: command.spread.as_duration(),
    };
    let plan = Plan { ttl: command.ttl.as_duration(), ..Plan::towards(target.addresses.clone()) };
    let (fleet, herd) = run.herd(plan, joins)?;
    let mut findings = vec![herd];
    for scenario in &command.scenarios {
        findings.push(run.play(*scenario, &fleet).with_context(|| format!("{scenario:?}"))?);
    }
    progress.clear();
    let tally = fleet.tally();
    let is_good = tally.enrolled == command.proxies as u64
        && tally.serials_twice.is_empty()
        && tally.expired + tally.unusable + tally.pushes_refused + tally.renewals_refused == 0;
    let model =
        command.model.map(|proxies| Measured::of(&findings).of_fleet(proxies, command.ttl.as_duration()));
    report::print(command.proxies, &findings, &tally, model.as_ref(), is_good, command.is_json())?;
    Ok(is_good)
}

/// Measures issuing.
pub fn run_issuance(command: &Issuance) -> Result<bool> {
    let against = &command.against;
    ensure!(command.enrollments > 0 && command.in_flight > 0, "nobody renews nothing");
    usage::room_for(command.enrollments)?;
    let progress = Progress::new(against.output == Output::Json);
    let target = Target::find(against)?;
    let joins = target.admin.tokens(command.enrollments, "bench", TOKEN_TTL, |done| {
        progress.show("tokens", done, command.enrollments);
    })?;
    let plan = Plan::towards(target.addresses.clone());
    let duration = command.duration.as_duration();
    let finding = issuance::measure(&plan, joins, target.pid, command.in_flight, duration, progress)?;
    progress.clear();
    report::print(command.enrollments, &[finding], &super::Tally::default(), None, true, command.is_json())?;
    Ok(true)
}

/// The control plane that is measured, with the directory that it lives in if it was started for this run.
struct Target {
    admin: Admin,
    addresses: Vec<SocketAddr>,
    pid: Option<u32>,
    _own: Option<(ControlPlane, Directory)>,
}

impl Target {
    fn find(against: &Against) -> Result<Self> {
        if let Some(data) = &against.join_from {
            let (admin, addresses) = (Admin::at(data)?, against.control.clone());
            return Ok(Self { admin, addresses, pid: against.pid, _own: None });
        }
        let (binaries, dir) = (Binaries::control_sibling()?, Directory::new()?);
        let options =
            ControlOptions { config: "log: { level: error }".to_owned(), ..ControlOptions::default() };
        let mut control = ControlPlane::start(&binaries, dir.path(), options)?;
        let (admin, addresses) = (Admin::at(&control.data())?, vec![control.listen()]);
        let pid = Some(control.process().pid());
        Ok(Self { admin, addresses, pid, _own: Some((control, dir)) })
    }
}
