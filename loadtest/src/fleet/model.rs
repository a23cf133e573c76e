//! What a fleet of another size would need, from what this one cost: sums in proportion, with their assumptions; pure.

use std::time::Duration;

use serde_json::{Value, json};

use super::report::Finding;

/// A certificate is renewed after 40 to 50 % of its life, so on average after this share.
const RENEWED_AFTER: f64 = 0.45;

/// What was measured, of one control plane, for each proxy. Microseconds of its processor time; bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Measured {
    pub(super) enroll_us: Option<f64>,
    pub(super) renew_us: Option<f64>,
    pub(super) push_us: Option<f64>,
    pub(super) reconnect_us: Option<f64>,
    pub(super) session_bytes: Option<f64>,
}

impl Measured {
    /// From what the scenarios found; what was not played stays unknown.
    pub(super) fn of(findings: &[Finding]) -> Self {
        let figure = |scenario: &str, name: &str| {
            findings.iter().find(|finding| finding.name == scenario)?.figure(name)?.as_f64()
        };
        Self {
            enroll_us: figure("herd", "server_cpu_us_each"),
            renew_us: figure("renew", "server_cpu_us_each"),
            push_us: figure("push", "server_cpu_us_each"),
            reconnect_us: figure("storm", "server_cpu_us_each"),
            session_bytes: figure("herd", "server_bytes_each"),
        }
    }

    /// What `proxies` would need whose certificates live for `ttl`.
    pub(super) fn of_fleet(self, proxies: u64, ttl: Duration) -> Value {
        let n = proxies as f64;
        let seconds = |us: Option<f64>| us.map(|us| tenth(n * us / 1e6));
        let renewals = n / (ttl.as_secs_f64() * RENEWED_AFTER);
        json!({
            "proxies": proxies,
            "ttl_s": ttl.as_secs(),
            "renewals_per_second": tenth(renewals),
            "cores_for_renewals": self.renew_us.map(|us| hundredth(renewals * us / 1e6)),
            "cpu_s_of_a_cold_start": seconds(self.enroll_us),
            "cpu_s_of_one_push": seconds(self.push_us),
            "cpu_s_of_a_reconnect_storm": seconds(self.reconnect_us),
            "gib_for_sessions": self.session_bytes.map(|each| tenth(n * each / f64::from(1 << 30))),
            "assumptions": [
                "cost grows in proportion to the number of proxies, and a processor is one of this machine's",
                "sums over all replicas: divide by their number, which share proxies evenly",
                "renewals are spread evenly; each falls after 45 % of the certificate's life on average",
                "a push is one small policy that concerns every proxy; sessions hold no more than after enrollment",
                "the store keeps up: what a database on another machine costs is not in it",
            ],
        })
    }
}

fn tenth(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn hundredth(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_are_a_million_times_one() {
        let measured = Measured {
            renew_us: Some(450.0),
            push_us: Some(20.0),
            session_bytes: Some(65536.0),
            ..Measured::default()
        };
        let model = measured.of_fleet(1_000_000, Duration::from_secs(3600));
        assert_eq!(model["renewals_per_second"], 617.3);
        assert_eq!(model["cores_for_renewals"], 0.28);
        assert_eq!(model["cpu_s_of_one_push"], 20.0);
        assert_eq!(model["gib_for_sessions"], 61.0);
        assert_eq!(model["cpu_s_of_a_cold_start"], Value::Null, "what was not measured is not guessed");
    }
}
