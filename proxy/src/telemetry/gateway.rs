//! What a gateway shows of its certificates. The label `host` is bounded by the configuration.

use std::sync::Arc;

use arc_swap::ArcSwap;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::{Registry, Unit};

use super::metrics::{child, encode_gauge, family};
use crate::snapshot::Snapshots;

/// Hosts with their notAfter in seconds since 1970.
type InUse = Vec<(Arc<str>, i64)>;

/// Certificates of hosts: how often they were replaced, and how long they last.
#[derive(Debug)]
pub struct GatewayMetrics {
    /// Changed files that were taken into use.
    pub reloads_ok: Counter,
    /// Changed files that were refused; the last good ones stay in use.
    pub reloads_failed: Counter,
    expiries: Arc<ArcSwap<InUse>>,
}

impl GatewayMetrics {
    pub(super) fn new(registry: &mut Registry, snapshots: &Arc<Snapshots>) -> Self {
        let reloads = family(
            registry,
            "gateway_certificate_reloads",
            "Changes of a host's certificate files by result: ok, or failed and the last good ones stay",
        );
        let expiries = Arc::<ArcSwap<InUse>>::default();
        let collector = Expiries { expiries: Arc::clone(&expiries), snapshots: Arc::clone(snapshots) };
        registry.register_collector(Box::new(collector));
        Self {
            reloads_ok: child(&reloads, [("result", "ok")]),
            reloads_failed: child(&reloads, [("result", "failed")]),
            expiries,
        }
    }

    /// What is in use now: host and notAfter in seconds since 1970.
    pub fn certificates(&self, in_use: InUse) {
        self.expiries.store(Arc::new(in_use));
    }
}

/// Encodes how long each host's certificate lasts.
#[derive(Debug)]
struct Expiries {
    expiries: Arc<ArcSwap<InUse>>,
    snapshots: Arc<Snapshots>,
}

impl Collector for Expiries {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let now = self.snapshots.clock.now();
        let help = "Seconds until a host's certificate expires; negative once it has";
        let mut metric = encoder.encode_descriptor(
            "gateway_certificate_expiry",
            help,
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for (host, not_after) in self.expiries.load().iter() {
            encode_gauge(metric.encode_family(&[("host", &**host)])?, not_after.saturating_sub(now))?;
        }
        Ok(())
    }
}
