//! The part of `postern-proxy`'s file that is about HTTP: how long, how often, how much, and what the app is told.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Span;
use super::proxy::ConfigError;
use crate::http::xfcc::Mode;
use crate::policy::Principal;

/// More would tie a caller up for longer than it waits.
const MAX_ATTEMPTS: u32 = 10;
/// A request a microsecond: beyond it nothing is limited.
const MAX_RATE: u32 = 1_000_000;

/// What holds for every HTTP and gRPC request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// How long a request may take.
    pub timeouts: Timeouts,
    /// When a failed request is sent again.
    pub retries: Retries,
    /// How much one upstream (a service, or the app) is asked to do at once.
    pub circuit: Circuit,
    /// When an endpoint that answers with errors is left alone.
    pub outlier: Outlier,
    /// How many requests each listener takes; left out, any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// What the app is told of its callers in `x-forwarded-client-cert`.
    pub xfcc: Xfcc,
    /// Whether a 403 tells its id in `x-postern-denial`, by which both sides can ask about it; a gateway may keep it to its log.
    pub denial_header: bool,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            timeouts: Timeouts::default(),
            retries: Retries::default(),
            circuit: Circuit::default(),
            outlier: Outlier::default(),
            rate_limit: None,
            xfcc: Xfcc::default(),
            denial_header: true,
        }
    }
}

/// How long a request may take.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// From a request's head to the end of its answer, all tries together. Left out there is none: a stream (gRPC, SSE,
    /// a download) may last for hours, and one number cannot fit it and everything else. `grpc-timeout` holds regardless.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Span>,
    /// From sending a request to the head of its answer, each try; left out, there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_try: Option<Span>,
}

/// When a failed request is sent again: only where that is safe, to another endpoint if there is one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retries {
    /// How many times after the first try; 0 turns retries off.
    pub attempts: u32,
    /// Retries may be this much of the requests of the last ten seconds, so that an outage is not made worse.
    pub budget_percent: u32,
    /// So many a second are allowed in any case, for each upstream and worker.
    pub min_per_second: u32,
}

impl Default for Retries {
    fn default() -> Self {
        Self { attempts: 2, budget_percent: 20, min_per_second: 10 }
    }
}

/// How much one upstream is asked to do at once; what exceeds it is answered with 503 immediately.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Circuit {
    /// Open connections to it.
    pub connections: usize,
    /// Requests that wait for a connection.
    pub pending_requests: usize,
    /// Requests under way, streams included.
    pub requests: usize,
}

impl Default for Circuit {
    fn default() -> Self {
        Self { connections: 1024, pending_requests: 1024, requests: 10_000 }
    }
}

/// When an endpoint that answers with errors is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Outlier {
    /// So many errors in a row (5xx, resets, timeouts) eject an endpoint; 0 turns ejection off.
    pub consecutive: u32,
    /// For how long the first time; the second time twice as long and so on, up to five minutes.
    pub base_ejection: Span,
    /// No more of a service's endpoints than this are ejected at once, and never the last one.
    pub max_ejection_percent: u32,
}

impl Default for Outlier {
    fn default() -> Self {
        Self { consecutive: 5, base_ejection: Span::from_secs(30), max_ejection_percent: 50 }
    }
}

/// How many requests a listener takes; what exceeds it is answered with 429.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// In the long run.
    pub requests_per_second: u32,
    /// How many may come at once after a quiet time; left out, as many as in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// What the app is told of its callers in `x-forwarded-client-cert`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Xfcc {
    /// One of Envoy's five modes; `sanitize_set` by default: the app learns who called, and from nobody else.
    pub mode: Mode,
    /// Under `append_forward`: append only for callers that one of these patterns (as in `principals` of a policy)
    /// matches, and tell of all others alone, whatever they sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub append_if: Option<Vec<Principal>>,
}

impl Default for Xfcc {
    fn default() -> Self {
        Self { mode: Mode::SanitizeSet, append_if: None }
    }
}

impl Http {
    /// Checks what the types alone do not say; the error names the field below `http`.
    pub fn check(&self) -> Result<(), ConfigError> {
        let fail =
            |field: &str, why: &str| Err(ConfigError { at: format!("http.{field}"), why: why.to_owned() });
        let zero = Some(Span::from_secs(0));
        let Timeouts { request, per_try } = self.timeouts;
        if request == zero || per_try == zero {
            return fail(
                "timeouts",
                "0s would end every request at once; leave the field out for no timeout",
            );
        }
        if request.zip(per_try).is_some_and(|(request, per_try)| per_try > request) {
            return fail("timeouts.per_try", "is longer than `request`, the time for all tries together");
        }
        if self.retries.attempts > MAX_ATTEMPTS {
            return fail("retries.attempts", "more than 10 would tie the caller up");
        }
        if self.retries.budget_percent > 100 {
            return fail("retries.budget_percent", "must lie between 0 and 100");
        }
        if [self.circuit.connections, self.circuit.pending_requests, self.circuit.requests].contains(&0) {
            return fail("circuit", "0 would let no request through");
        }
        if Some(self.outlier.base_ejection) == zero {
            return fail(
                "outlier.base_ejection",
                "0s ejects nobody; to turn ejection off, write `consecutive: 0`",
            );
        }
        if self.outlier.max_ejection_percent > 100 {
            return fail("outlier.max_ejection_percent", "must lie between 0 and 100");
        }
        if let Some(limit) = self.rate_limit {
            if limit.requests_per_second == 0 || limit.burst == Some(0) {
                return fail(
                    "rate_limit",
                    "0 would let no request through; leave `rate_limit` out for no limit",
                );
            }
            if limit.requests_per_second > MAX_RATE {
                return fail("rate_limit.requests_per_second", "must lie between 1 and 1000000");
            }
        }
        match &self.xfcc.append_if {
            Some(_) if self.xfcc.mode != Mode::AppendForward => {
                fail("xfcc.append_if", "means something only under `mode: append_forward`")
            }
            Some(patterns) if patterns.is_empty() => {
                fail("xfcc.append_if", "an empty list trusts nobody; write `mode: sanitize_set` instead")
            }
            _ => Ok(()),
        }
    }
}
