//! The policy in force, with the counters of its decisions already looked up.

use std::sync::Arc;

use postern_config::http::path::Rules;
use postern_config::policy::{Connection, MtlsMode, MtlsModes, Policy, PolicyName, Request, Verdict};

use crate::telemetry::Metrics;
use crate::telemetry::metrics::DecisionCounters;

/// The label under which decisions count that no policy made.
const DEFAULT: &str = "default";

/// A compiled policy, as it is published.
#[derive(Debug)]
pub struct CurrentPolicy {
    policy: Policy,
    modes: MtlsModes,
    by_policy: Vec<Decider>,
    default: DecisionCounters,
    path_rules: Rules,
}

/// One policy's name, shared with the records of the connections that it decided, and its counters.
#[derive(Debug)]
struct Decider {
    name: Arc<str>,
    counters: DecisionCounters,
}

impl CurrentPolicy {
    /// Looks up the counters of a compiled policy.
    pub fn new(policy: Policy, modes: MtlsModes, metrics: &Metrics) -> Self {
        let decider = |name: &PolicyName| Decider {
            name: name.0.as_str().into(),
            counters: metrics.decisions(&name.0),
        };
        let by_policy = policy.names().iter().map(decider).collect();
        let path_rules = if policy.has_paths() { Rules::Strict } else { Rules::Basic };
        Self { policy, modes, by_policy, default: metrics.decisions(DEFAULT), path_rules }
    }

    /// How paths are normalised under it.
    pub fn path_rules(&self) -> Rules {
        self.path_rules
    }

    /// The compiled policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What a workload's port takes, mutual TLS or plain text: as pushed, else `local`, the listener's own choice.
    pub fn mtls_mode_or(&self, port: u16, local: MtlsMode) -> MtlsMode {
        self.modes.of(port).unwrap_or(local)
    }

    /// The same for a listener without a choice of its own: mutual TLS alone, unless a pushed document says otherwise.
    pub fn mtls_mode(&self, port: u16) -> MtlsMode {
        self.mtls_mode_or(port, MtlsMode::Strict)
    }

    /// Decides on a new connection without HTTP, and counts the decision.
    pub fn decide(&self, connection: &Connection<'_>) -> Verdict {
        self.count(self.policy.decide(connection))
    }

    /// Decides on a request, and counts the decision.
    pub fn decide_request(&self, request: &Request<'_>) -> Verdict {
        self.count(self.policy.decide_request(request))
    }

    /// Decides again on an open connection without HTTP; counts nothing.
    pub fn still_allows(&self, connection: &Connection<'_>) -> bool {
        self.policy.allows(connection)
    }

    /// Decides again on a request that is still under way, such as a WebSocket's; counts nothing.
    pub fn still_allows_request(&self, request: &Request<'_>) -> bool {
        self.policy.allows_request(request)
    }

    fn count(&self, verdict: Verdict) -> Verdict {
        let counters = match verdict.because.rule() {
            Some(rule) => self.by_policy.get(rule.policy).map_or(&self.default, |d| &d.counters),
            None => &self.default,
        };
        if verdict.allow {
            counters.allow.inc()
        } else {
            counters.deny.inc()
        };
        verdict
    }

    /// The name of the policy that a verdict rests on, with the rule's position.
    pub fn decider(&self, verdict: &Verdict) -> Option<(Arc<str>, usize)> {
        let rule = verdict.because.rule()?;
        self.by_policy.get(rule.policy).map(|d| (Arc::clone(&d.name), rule.rule))
    }

    /// Why a verdict would be the other one if the policies that only try themselves out were in force.
    pub fn trial(&self, verdict: &Verdict) -> Option<String> {
        let differs = verdict.dry_run.as_ref().filter(|trial| trial.allow != verdict.allow)?;
        Some(self.policy.explain_because(&differs.because))
    }

    /// The name of the policy whose AUDIT rule matched.
    pub fn auditor(&self, verdict: &Verdict) -> Option<Arc<str>> {
        let rule = verdict.audit?;
        self.by_policy.get(rule.policy).map(|d| Arc::clone(&d.name))
    }
}
