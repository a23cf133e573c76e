//! What is counted of JWTs and of the keys that they are verified with. The providers' names are the operator's own.

use std::sync::{Arc, Mutex};

use arc_swap::ArcSwapOption;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::Reason;
use crate::clock;
use postern_config::jwt::keys::Keys;

type Labels = [(&'static str, String); 2];

/// The families.
#[derive(Debug, Clone)]
pub struct JwtMetrics {
    tokens: Family<Labels, Counter>,
    fetches: Family<Labels, Counter>,
    ages: Arc<Mutex<Vec<Age>>>,
}

/// The handles of one provider, looked up when it is made.
#[derive(Debug)]
pub struct ProviderMetrics {
    /// Tokens that were good.
    pub ok: Counter,
    refused: Vec<Counter>,
    /// Fetches of its keys that ended well.
    pub fetched: Counter,
    /// Fetches that failed.
    pub failed: Counter,
}

impl ProviderMetrics {
    /// A token that was refused.
    pub fn refused(&self, reason: Reason) {
        self.refused[reason as usize].inc();
    }
}

impl JwtMetrics {
    /// Registers the families.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self { tokens: Family::default(), fetches: Family::default(), ages: Arc::default() };
        let help = "JWTs by provider and result; no provider for tokens that name none";
        registry.register("jwt", help, metrics.tokens.clone());
        let help = "Fetches of issuers' keys by provider and result";
        registry.register("jwks_fetches", help, metrics.fetches.clone());
        registry.register_collector(Box::new(Ages(Arc::clone(&metrics.ages))));
        metrics
    }

    pub(super) fn provider(&self, name: &str, keys: Arc<ArcSwapOption<Keys>>) -> ProviderMetrics {
        // Held here and at a scrape; no connection comes near it.
        if let Ok(mut ages) = self.ages.lock() {
            ages.push(Age { provider: name.to_owned(), keys });
        }
        self.named(name)
    }

    pub(super) fn unknown(&self) -> ProviderMetrics {
        self.named("")
    }

    fn named(&self, name: &str) -> ProviderMetrics {
        let of = |family: &Family<Labels, Counter>, result: &str| {
            family.get_or_create(&[("provider", name.to_owned()), ("result", result.to_owned())]).clone()
        };
        ProviderMetrics {
            ok: of(&self.tokens, "ok"),
            refused: Reason::ALL.iter().map(|reason| of(&self.tokens, reason.as_str())).collect(),
            fetched: of(&self.fetches, "ok"),
            failed: of(&self.fetches, "failed"),
        }
    }
}

#[derive(Debug)]
struct Age {
    provider: String,
    keys: Arc<ArcSwapOption<Keys>>,
}

/// Tells at a scrape how old the keys are.
#[derive(Debug)]
struct Ages(Arc<Mutex<Vec<Age>>>);

impl Collector for Ages {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Ok(ages) = self.0.lock() else { return Ok(()) };
        if ages.is_empty() {
            return Ok(());
        }
        let help = "Seconds since an issuer's keys were read; none for one whose keys never were";
        let mut metric =
            encoder.encode_descriptor("jwks_age", help, Some(&Unit::Seconds), MetricType::Gauge)?;
        let now_ms = clock::host_ms();
        for age in ages.iter() {
            if let Some(keys) = age.keys.load_full() {
                let labels = [("provider", age.provider.as_str())];
                ConstGauge::new(keys.age_ms(now_ms) / 1000).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
