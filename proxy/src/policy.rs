//! The policy in force, with the counters of its decisions already looked up.

use postern_config::policy::{Connection, Policy, Verdict};

use crate::telemetry::Metrics;
use crate::telemetry::metrics::DecisionCounters;

/// The label under which decisions count that no policy made.
const DEFAULT: &str = "default";

/// A compiled policy, as it is published.
#[derive(Debug)]
pub struct CurrentPolicy {
    policy: Policy,
    by_policy: Vec<DecisionCounters>,
    default: DecisionCounters,
}

impl CurrentPolicy {
    /// Looks up the counters of a compiled policy.
    pub fn new(policy: Policy, metrics: &Metrics) -> Self {
        let by_policy = policy.names().iter().map(|name| metrics.decisions(&name.0)).collect();
        Self { policy, by_policy, default: metrics.decisions(DEFAULT) }
    }

    /// The compiled policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Decides on a new connection, and counts the decision.
    pub fn decide(&self, connection: &Connection<'_>) -> Verdict {
        let verdict = self.policy.decide(connection);
        let counters = match verdict.because.rule() {
            Some(rule) => self.by_policy.get(rule.policy).unwrap_or(&self.default),
            None => &self.default,
        };
        if verdict.allow {
            counters.allow.inc()
        } else {
            counters.deny.inc()
        };
        verdict
    }

    /// Decides again on an open connection; counts nothing.
    pub fn still_allows(&self, connection: &Connection<'_>) -> bool {
        self.policy.decide(connection).allow
    }

    /// The name of the policy that a verdict rests on, with the rule's position.
    pub fn decider(&self, verdict: &Verdict) -> Option<(String, usize)> {
        let rule = verdict.because.rule()?;
        let name = self.policy.names().get(rule.policy)?;
        Some((name.0.clone(), rule.rule))
    }

    /// The name of the policy whose AUDIT rule matched.
    pub fn auditor(&self, verdict: &Verdict) -> Option<String> {
        let rule = verdict.audit?;
        self.policy.names().get(rule.policy).map(|name| name.0.clone())
    }
}
