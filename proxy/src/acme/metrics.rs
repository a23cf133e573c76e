//! What is counted of ACME. The issuers' names are the operator's own.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

type Labels = [(&'static str, String); 2];

/// The family.
#[derive(Debug, Clone)]
pub struct AcmeMetrics(Family<Labels, Counter>);

/// One issuer's counters.
#[derive(Debug, Clone)]
pub struct IssuerMetrics {
    /// Orders that brought a certificate.
    pub ok: Counter,
    /// Orders that failed and will be tried again.
    pub failed: Counter,
}

impl AcmeMetrics {
    /// Registers the family.
    pub fn register(registry: &mut Registry) -> Self {
        let orders = Family::default();
        registry.register("acme_orders", "Orders for certificates by ACME issuer and result", orders.clone());
        Self(orders)
    }

    pub(super) fn issuer(&self, name: &str) -> IssuerMetrics {
        let of = |result: &str| {
            self.0.get_or_create(&[("issuer", name.to_owned()), ("result", result.to_owned())]).clone()
        };
        IssuerMetrics { ok: of("ok"), failed: of("failed") }
    }
}
