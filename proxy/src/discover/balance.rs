//! Which endpoint next: the less loaded of two, the dead ones skipped until they have rested. Pure; one per worker.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// How long an endpoint rests after its first failure; doubled with each further one.
const FIRST_REST: Duration = Duration::from_secs(1);
/// The longest rest: a revived endpoint is found again within this time.
const LONGEST_REST: Duration = Duration::from_secs(30);

/// What one worker knows about endpoints. Times are since the worker's start.
#[derive(Debug, Default)]
pub struct Balance {
    endpoints: HashMap<Arc<str>, Health>,
}

#[derive(Debug, Default)]
struct Health {
    open: usize,
    failures: u32,
    rests_until: Duration,
}

/// One endpoint as one worker knows it; what is not listed has nothing against it and no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointHealth {
    /// `host:port`.
    pub address: Arc<str>,
    /// This worker's connections to it.
    pub open: usize,
    /// Failures in a row.
    pub failures: u32,
    /// How long it still rests; zero where it may be picked.
    pub rests_for: Duration,
}

impl Balance {
    /// Every endpoint that differs from an unknown one, at `now`.
    pub fn endpoints(&self, now: Duration) -> Vec<EndpointHealth> {
        let view = |(address, health): (&Arc<str>, &Health)| EndpointHealth {
            address: Arc::clone(address),
            open: health.open,
            failures: health.failures,
            rests_for: health.rests_until.saturating_sub(now),
        };
        self.endpoints.iter().map(view).collect()
    }

    /// The next endpoint to try out of those not in `tried`; `random` picks the two candidates.
    ///
    /// Endpoints that rest are skipped while another is left; when all rest, they are tried all the same, since a wrong
    /// guess costs one connect and refusing would cost the connection.
    pub fn pick<'a>(
        &self,
        endpoints: &'a [Arc<str>],
        tried: &[Arc<str>],
        now: Duration,
        random: u64,
    ) -> Option<&'a Arc<str>> {
        let untried = || endpoints.iter().filter(|e| !tried.contains(e));
        let awake: Vec<_> = untried().filter(|e| !self.rests(e, now)).collect();
        let candidates = if awake.is_empty() { untried().collect() } else { awake };
        if candidates.is_empty() {
            return None;
        }
        let count = candidates.len() as u64;
        let first = candidates[(random % count) as usize];
        // The second of the two is another one, wherever there is another one.
        let second =
            candidates[((random % count + 1 + (random >> 32) % (count - 1).max(1)) % count) as usize];
        Some(if self.open(second) < self.open(first) { second } else { first })
    }

    /// A connection to this endpoint was opened.
    pub fn opened(&mut self, endpoint: &Arc<str>) {
        let health = self.endpoints.entry(Arc::clone(endpoint)).or_default();
        health.open += 1;
        health.failures = 0;
        health.rests_until = Duration::ZERO;
    }

    /// A connection to it was closed.
    pub fn closed(&mut self, endpoint: &Arc<str>) {
        if let Some(health) = self.endpoints.get_mut(endpoint) {
            health.open = health.open.saturating_sub(1);
        }
        // Only what differs from an unknown endpoint is kept, so that the map does not grow with churn.
        self.endpoints.retain(|_, h| h.open > 0 || h.failures > 0);
    }

    /// Connecting to it failed.
    pub fn failed(&mut self, endpoint: &Arc<str>, now: Duration) {
        let health = self.endpoints.entry(Arc::clone(endpoint)).or_default();
        health.rests_until = now + (FIRST_REST * 2u32.pow(health.failures.min(5))).min(LONGEST_REST);
        health.failures = health.failures.saturating_add(1);
    }

    /// Forgets endpoints that rested long ago and were not tried since; called now and then.
    pub fn forget(&mut self, now: Duration) {
        self.endpoints.retain(|_, h| h.open > 0 || h.rests_until + LONGEST_REST * 10 > now);
    }

    fn rests(&self, endpoint: &Arc<str>, now: Duration) -> bool {
        self.endpoints.get(endpoint).is_some_and(|h| h.rests_until > now)
    }

    fn open(&self, endpoint: &Arc<str>) -> usize {
        self.endpoints.get(endpoint).map_or(0, |h| h.open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(n: usize) -> Vec<Arc<str>> {
        (0..n).map(|i| Arc::from(format!("10.0.0.{i}:1"))).collect()
    }

    const NOW: Duration = Duration::from_secs(100);

    #[test]
    fn a_dead_endpoint_is_skipped_until_it_has_rested() {
        let endpoints = names(3);
        let mut balance = Balance::default();
        balance.failed(&endpoints[1], NOW);
        for random in 0..1000 {
            assert_ne!(balance.pick(&endpoints, &[], NOW, random), Some(&endpoints[1]));
        }
        let later = NOW + FIRST_REST;
        assert!((0..1000).any(|r| balance.pick(&endpoints, &[], later, r) == Some(&endpoints[1])));
    }

    #[test]
    fn where_all_rest_each_is_tried_once() {
        let endpoints = names(2);
        let mut balance = Balance::default();
        endpoints.iter().for_each(|e| balance.failed(e, NOW));
        let first = balance.pick(&endpoints, &[], NOW, 7).unwrap().clone();
        let second = balance.pick(&endpoints, std::slice::from_ref(&first), NOW, 7).unwrap().clone();
        assert_ne!(first, second);
        assert_eq!(balance.pick(&endpoints, &[first, second], NOW, 7), None);
    }

    #[test]
    fn load_evens_out() {
        let endpoints = names(4);
        let mut balance = Balance::default();
        let mut random = 1u64;
        for _ in 0..400 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let picked = balance.pick(&endpoints, &[], NOW, random).unwrap().clone();
            balance.opened(&picked);
        }
        for endpoint in &endpoints {
            let open = balance.open(endpoint);
            assert!((90..=110).contains(&open), "{endpoint} got {open} of 400");
        }
    }

    #[test]
    fn rest_grows_to_its_limit_and_a_success_ends_it() {
        let endpoints = names(1);
        let mut balance = Balance::default();
        for _ in 0..40 {
            balance.failed(&endpoints[0], NOW);
        }
        assert!(balance.rests(&endpoints[0], NOW + LONGEST_REST - Duration::from_millis(1)));
        assert!(!balance.rests(&endpoints[0], NOW + LONGEST_REST));
        balance.opened(&endpoints[0]);
        assert!(!balance.rests(&endpoints[0], NOW));
        balance.closed(&endpoints[0]);
        assert!(balance.endpoints.is_empty(), "what is as good as unknown is forgotten");
    }
}
