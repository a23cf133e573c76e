//! What happens to a fleet at once, and how long it took: the herd, renewals in step and spread, pushes, reconnection.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::ValueEnum;
use postern_config::enroll::JoinString;
use serde_json::json;

use super::report::{Finding, Progress, ms};
use super::usage::Usage;
use super::{Admin, Fleet, Kind, Plan};
use crate::mesh::until;

/// What is done to the fleet after it has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Scenario {
    /// Every client renews at the same moment
    Renew,
    /// Renewals by themselves, each in its window, for `--spread`
    Spread,
    /// Policies are applied, each as soon as the last one is everywhere
    Push,
    /// Every connection breaks at the same moment
    Storm,
}

/// How many policies the fan-out is measured by.
const PUSHES: usize = 10;

/// The fleet with what it runs against.
pub(super) struct Run<'a> {
    pub(super) admin: &'a Admin,
    pub(super) pid: Option<u32>,
    pub(super) deadline: Instant,
    pub(super) progress: Progress,
    pub(super) spread: Duration,
}

impl Run<'_> {
    /// Everybody at once, from nothing: the cold start of a whole company.
    pub(super) fn herd(&self, plan: Plan, joins: Vec<JoinString>) -> Result<(Fleet, Finding)> {
        let (all, before) = (joins.len(), self.usage()?);
        let began = Instant::now();
        let fleet = Fleet::start(plan, joins)?;
        self.until("enrolled", all, || fleet.tally().enrolled as usize)
            .with_context(|| format!("{:?}", fleet.tally()))?;
        let enrolled = began.elapsed();
        self.until("connected", all, || fleet.views().iter().filter(|v| v.generation > 0).count())
            .with_context(|| format!("{:?}", fleet.tally()))?;
        let finding = Finding::new("herd")
            .with_latencies(&fleet.take_latencies(Kind::Enroll))
            .with("identities_per_second", (all as f64 / enrolled.as_secs_f64()).round())
            .with("all_connected_ms", ms(began.elapsed()))
            .with("tried_again", fleet.tally().enrollments_tried_again);
        let grown =
            before.zip(self.usage()?).map(|(b, a)| a.peak_rss.saturating_sub(b.peak_rss) / all as u64);
        let finding = match grown {
            Some(bytes) => finding.with("server_bytes_each", bytes),
            None => finding,
        };
        Ok((fleet, self.cost(finding, before, all)?))
    }

    pub(super) fn play(&self, scenario: Scenario, fleet: &Fleet) -> Result<Finding> {
        let before = self.usage()?;
        match scenario {
            Scenario::Renew => {
                fleet.take_latencies(Kind::Renew);
                let (began, earlier) = (Instant::now(), fleet.tally());
                fleet.renew();
                let renewed = || (fleet.tally().renewals - earlier.renewals) as usize;
                self.until("renewed", fleet.len(), renewed)?;
                let took = began.elapsed();
                let finding = Finding::new("renew")
                    .with_latencies(&fleet.take_latencies(Kind::Renew))
                    .with("renewals_per_second", (fleet.len() as f64 / took.as_secs_f64()).round())
                    .with("tried_again", fleet.tally().renewals_tried_again - earlier.renewals_tried_again);
                self.cost(finding, before, fleet.len())
            }
            Scenario::Spread => self.spread(fleet, before),
            Scenario::Push => {
                let mut slowest = Vec::new();
                let mut all = Vec::new();
                for number in 0..PUSHES {
                    self.progress.show("pushes", number, PUSHES);
                    let since = Instant::now();
                    let generation = self.admin.apply_policies(&[policy(number)])?;
                    let took = fleet.wait_for_generation(generation, since, self.left())?;
                    slowest.extend(took.last().copied());
                    all.extend(took);
                }
                all.sort_unstable();
                slowest.sort_unstable();
                let finding = Finding::new("push")
                    .with("pushes", PUSHES)
                    .with_latencies(&all)
                    .with("last_ack_p50_ms", ms(super::quantile(&slowest, 0.5)));
                self.cost(finding, before, fleet.len() * PUSHES)
            }
            Scenario::Storm => {
                fleet.take_latencies(Kind::Session);
                let earlier = fleet.tally();
                fleet.cut();
                let back = || (fleet.tally().sessions - earlier.sessions) as usize;
                self.until("back", fleet.len(), back)?;
                let tried_again = fleet.tally().sessions_tried_again - earlier.sessions_tried_again;
                let finding = Finding::new("storm")
                    .with_latencies(&fleet.take_latencies(Kind::Session))
                    .with("tried_again", tried_again);
                self.cost(finding, before, fleet.len())
            }
        }
    }

    /// How evenly renewals fall when each client follows its own random point.
    fn spread(&self, fleet: &Fleet, before: Option<Usage>) -> Result<Finding> {
        fleet.take_latencies(Kind::Renew);
        let (mut per_second, began) = (Vec::new(), Instant::now());
        let (first, mut earlier) = (fleet.tally().renewals, fleet.tally().renewals);
        while began.elapsed() < self.spread {
            self.progress.show("spread", began.elapsed().as_secs() as usize, self.spread.as_secs() as usize);
            let next = began + Duration::from_secs(per_second.len() as u64 + 1);
            until(next.saturating_duration_since(Instant::now()), || None::<()>);
            let now = fleet.tally().renewals;
            per_second.push(now - earlier);
            earlier = now;
        }
        let renewals = earlier - first;
        let mean = renewals as f64 / per_second.len().max(1) as f64;
        let finding = Finding::new("spread")
            .with("seconds", self.spread.as_secs())
            .with("renewals", renewals)
            .with("per_second_mean", (mean * 10.0).round() / 10.0)
            .with("per_second_peak", per_second.iter().max().copied().unwrap_or(0))
            .with_latencies(&fleet.take_latencies(Kind::Renew));
        self.cost(finding, before, renewals.max(1) as usize)
    }

    fn until(&self, what: &str, all: usize, done: impl Fn() -> usize) -> Result<()> {
        let looked = until(self.left(), || {
            let now = done();
            self.progress.show(what, now, all);
            (now >= all).then_some(())
        });
        ensure!(looked.is_some(), "{what}: {} of {all} when the time was over", done());
        Ok(())
    }

    fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    fn usage(&self) -> Result<Option<Usage>> {
        self.pid.map(Usage::of).transpose()
    }

    /// What it cost the server, in all and for each of `operations`.
    fn cost(&self, finding: Finding, before: Option<Usage>, operations: usize) -> Result<Finding> {
        let (Some(before), Some(after)) = (before, self.usage()?) else { return Ok(finding) };
        let cpu = after.cpu.saturating_sub(before.cpu);
        let each = cpu.as_secs_f64() * 1e6 / operations.max(1) as f64;
        Ok(finding
            .with("server_cpu_s", cpu.as_secs_f64())
            .with("server_cpu_us_each", each.round())
            .with("server_peak_rss_mib", (after.peak_rss as f64 / 1048576.0).round()))
    }
}

fn policy(number: usize) -> String {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "fan-out", "namespace": "fleet" },
        "spec": { "action": "ALLOW", "rules": [{ "to": [{ "operation": { "ports": [(1000 + number).to_string()] } }] }] },
    })
    .to_string()
}
