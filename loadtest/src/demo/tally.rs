//! The demo's numbers: what the callers saw, and what the proxies counted.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Map, Value, json};

use super::stage::Stage;
use crate::load::Tally;
use crate::mesh::Buckets;

/// All numbers at one moment.
#[derive(Debug, Clone)]
pub(super) struct Summary {
    pub(super) took: Duration,
    /// Requests through `web`.
    pub(super) web: Tally,
    /// Requests through `stranger`.
    pub(super) stranger: Tally,
    /// Renewals that brought a new certificate, by proxy.
    pub(super) rotations: Vec<(&'static str, u64)>,
    /// Handshakes that the shop's sidecar completed.
    pub(super) handshakes: u64,
    /// How long they took, as the callers' sidecars saw it.
    latency: Buckets,
    /// Connections that the shop's sidecar denied.
    pub(super) denied: u64,
}

impl Summary {
    /// Scrapes the three proxies.
    pub(super) fn read(stage: &Stage, took: Duration, web: Tally, stranger: Tally) -> Result<Self> {
        let mut rotations = Vec::new();
        for (name, sidecar) in stage.sidecars() {
            let renewals = sidecar.metrics()?.count("postern_renewals_total", &[("result", "ok")]);
            rotations.push((name, renewals));
        }
        let outbound = [("direction", "outbound")];
        let latency = |metrics: crate::mesh::Metrics| {
            metrics.histogram("postern_handshake_duration_seconds", &outbound)
        };
        let shop = stage.shop_counts()?;
        Ok(Self {
            took,
            web,
            stranger,
            rotations,
            handshakes: shop.handshakes - stage.before.handshakes,
            latency: latency(stage.web.metrics()?).merge(&latency(stage.stranger.metrics()?)),
            denied: shop.denied - stage.before.denied,
        })
    }

    /// Every request was answered, and the stranger never.
    pub(super) fn is_good(&self) -> bool {
        self.web.failed == 0 && self.stranger.answered == 0
    }

    /// A quantile of the handshakes, in microseconds.
    pub(super) fn quantile_us(&self, q: f64) -> Option<u64> {
        self.latency.quantile(q).map(|seconds| (seconds * 1e6).round() as u64)
    }

    pub(super) fn to_json(&self) -> Value {
        let by_proxy: Map<_, _> =
            self.rotations.iter().map(|(p, n)| ((*p).to_owned(), (*n).into())).collect();
        json!({
            "duration_s": self.took.as_secs_f64(),
            "requests": self.web.requests,
            "failed": self.web.failed,
            "failures": self.web.errors,
            "rotations": self.rotations.iter().map(|(_, n)| n).sum::<u64>(),
            "rotations_by_proxy": by_proxy,
            "handshakes": self.handshakes,
            "handshake_p50_us": self.quantile_us(0.5),
            "handshake_p99_us": self.quantile_us(0.99),
            "denied": self.denied,
            "stranger_requests": self.stranger.requests,
            "stranger_admitted": self.stranger.answered,
        })
    }
}
