//! Which endpoint next: the one of two that will probably answer sooner; the dead and the failing are skipped until they
//! have rested. Pure; one per worker.

use std::sync::Arc;
use std::time::Duration;

use postern_config::file::http;

use crate::upstream::latency::PeakEwma;
use crate::upstream::outlier::{Answer, Outlier};
use crate::worker::Lookup;

/// How long an endpoint rests after it first could not be reached; doubled with each further time.
const FIRST_REST: Duration = Duration::from_secs(1);
/// The longest rest: a revived endpoint is found again within this time.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// After so long without news an endpoint is as good as unknown. Longer than the longest ejection, which is remembered.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// What an endpoint that has work but no answer yet is taken to need; an idle one is tried first. Endpoints of TCP
/// connections never answer in this sense, so among them the open connections decide.
const UNKNOWN_LATENCY: f64 = 1.0;
/// What a bad answer counts as, at least: who fails fast must not look fast.
const BAD_LATENCY: Duration = Duration::from_secs(1);

/// What one worker knows about endpoints. Times are since the worker's start.
#[derive(Debug, Default)]
pub struct Balance {
    endpoints: Lookup<Arc<str>, Health>,
    outlier: http::Outlier,
}

#[derive(Debug, Default)]
struct Health {
    /// Connections and requests.
    open: usize,
    /// How often in a row it could not be reached.
    failures: u32,
    rests_until: Duration,
    latency: PeakEwma,
    outlier: Outlier,
    /// The last failure or answer.
    heard_at: Duration,
}

/// One endpoint as one worker knows it; what is not listed has nothing against it and no connection.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointHealth {
    /// `host:port`.
    pub address: Arc<str>,
    /// This worker's connections to it, and its requests.
    pub open: usize,
    /// How often in a row it could not be reached.
    pub failures: u32,
    /// Bad answers in a row.
    pub errors: u32,
    /// How long it is still skipped, for either cause; zero where it may be picked.
    pub rests_for: Duration,
    /// Whether it is skipped for its bad answers.
    pub ejected: bool,
    /// Seconds until an answer begins, as peak EWMA; `None` without any answer.
    pub latency: Option<f64>,
}

impl Balance {
    /// Nothing known yet; failing endpoints are ejected as `outlier` says.
    pub fn new(outlier: http::Outlier) -> Self {
        Self { endpoints: Lookup::default(), outlier }
    }

    /// Every endpoint that differs from an unknown one, at `now`.
    pub fn endpoints(&self, now: Duration) -> Vec<EndpointHealth> {
        let view = |(address, health): (&Arc<str>, &Health)| EndpointHealth {
            address: Arc::clone(address),
            open: health.open,
            failures: health.failures,
            errors: health.outlier.errors(),
            rests_for: health.rests_until.saturating_sub(now).max(health.outlier.ejected_for(now)),
            ejected: health.outlier.ejected(now),
            latency: health.latency.seconds(now),
        };
        self.endpoints.iter().map(view).collect()
    }

    /// The next endpoint to try out of those not in `tried`; `random` picks the two candidates, of which the one with the
    /// smaller latency × (what it does already + 1) is taken.
    ///
    /// Endpoints that rest are skipped while another is left; when all rest, they are tried all the same, since a wrong
    /// guess costs one connect and refusing would cost the connection. Whether one that has rested is back is found out by
    /// a first try alone: a second one goes where nothing has failed yet, if there is such an endpoint.
    pub fn pick<'a>(
        &self,
        endpoints: &'a [Arc<str>],
        tried: &[Arc<str>],
        now: Duration,
        random: u64,
    ) -> Option<&'a Arc<str>> {
        // Mostly all are well: then two draws are enough, and nothing is collected.
        let (first, second) = draw_two(endpoints, random)?;
        let usable = |e: &Arc<str>| !tried.contains(e) && !self.rests(e, now);
        if usable(first) && usable(second) && tried.is_empty() {
            return Some(self.better(first, second, now));
        }
        let untried = || endpoints.iter().filter(|e| !tried.contains(e));
        let mut candidates: Vec<_> = untried().filter(|e| !self.rests(e, now)).collect();
        if !tried.is_empty() && candidates.iter().any(|e| !self.has_failed(e)) {
            candidates.retain(|e| !self.has_failed(e));
        }
        if candidates.is_empty() {
            candidates = untried().collect();
        }
        let (first, second) = draw_two(&candidates, random.rotate_left(17))?;
        Some(self.better(first, second, now))
    }

    /// A connection to this endpoint was opened.
    pub fn opened(&mut self, endpoint: &Arc<str>) {
        self.sent(endpoint);
        self.reached(endpoint);
    }

    /// A connection to it was opened that counts by its requests alone.
    pub fn reached(&mut self, endpoint: &Arc<str>) {
        if let Some(health) = self.endpoints.get_mut(endpoint) {
            health.failures = 0;
            health.rests_until = Duration::ZERO;
        }
    }

    /// A request is sent to it; it counts until [`closed`](Self::closed).
    pub fn sent(&mut self, endpoint: &Arc<str>) {
        match self.endpoints.get_mut(endpoint) {
            Some(health) => health.open += 1,
            None => {
                self.endpoints.insert(Arc::clone(endpoint), Health { open: 1, ..Health::default() });
            }
        }
    }

    /// A connection to it was closed, or a request to it has ended.
    pub fn closed(&mut self, endpoint: &Arc<str>) {
        let Some(health) = self.endpoints.get_mut(endpoint) else { return };
        health.open = health.open.saturating_sub(1);
        // Only what differs from an unknown endpoint is kept, so that the map does not grow with churn.
        let unknown = health.latency == PeakEwma::default() && health.outlier == Outlier::default();
        if health.open == 0 && health.failures == 0 && unknown {
            self.endpoints.remove(endpoint);
        }
    }

    /// Connecting to it failed.
    pub fn failed(&mut self, endpoint: &Arc<str>, now: Duration) {
        let health = self.endpoints.entry(Arc::clone(endpoint)).or_default();
        health.rests_until = now + (FIRST_REST * 2u32.pow(health.failures.min(5))).min(LONGEST_REST);
        health.failures = health.failures.saturating_add(1);
        health.heard_at = now;
    }

    /// A request to it was answered, `latency` after it was sent, or came to nothing in that time. `endpoints` are those
    /// of its service; whether it was ejected for this answer, and is one more to count.
    pub fn answered(
        &mut self,
        endpoint: &Arc<str>,
        endpoints: &[Arc<str>],
        answer: Answer,
        latency: Duration,
        now: Duration,
    ) -> bool {
        let settings = self.outlier;
        let health = self.endpoints.entry(Arc::clone(endpoint)).or_default();
        health.heard_at = now;
        match answer {
            Answer::Good => health.latency.observe(latency, now),
            Answer::Bad => health.latency.observe(latency.max(BAD_LATENCY), now),
        }
        let due = health.outlier.count(answer, settings.consecutive, now);
        if !due || !self.may_eject(endpoint, endpoints, now) {
            return false;
        }
        if let Some(health) = self.endpoints.get_mut(endpoint) {
            health.outlier.eject(settings.base_ejection.as_duration(), now);
            // Afterwards it is tried like one that nobody knows; its bad answers would keep it last for longer.
            health.latency = PeakEwma::default();
        }
        true
    }

    /// Whether so many would be left that one less does not matter: those that cannot be reached do not count as left.
    fn may_eject(&self, endpoint: &Arc<str>, endpoints: &[Arc<str>], now: Duration) -> bool {
        let ejected = |e: &&Arc<str>| self.endpoints.get(*e).is_some_and(|h| h.outlier.ejected(now));
        let ejected = endpoints.iter().filter(ejected).count();
        let most = endpoints.len() * self.outlier.max_ejection_percent as usize / 100;
        ejected < most && endpoints.iter().any(|e| e != endpoint && !self.rests(e, now))
    }

    /// Forgets endpoints that nothing was heard of for long; called now and then.
    pub fn forget(&mut self, now: Duration) {
        self.endpoints.retain(|_, h| h.open > 0 || h.heard_at + FORGET_AFTER > now);
    }

    fn better<'a>(&self, first: &'a Arc<str>, second: &'a Arc<str>, now: Duration) -> &'a Arc<str> {
        if self.cost(second, now) < self.cost(first, now) { second } else { first }
    }

    /// Seconds until an answer, roughly.
    fn cost(&self, endpoint: &Arc<str>, now: Duration) -> f64 {
        let Some(health) = self.endpoints.get(endpoint) else { return 0.0 };
        let latency = match health.latency.seconds(now) {
            Some(latency) => latency,
            None if health.open == 0 => 0.0,
            None => UNKNOWN_LATENCY,
        };
        latency * (health.open + 1) as f64
    }

    fn has_failed(&self, endpoint: &Arc<str>) -> bool {
        self.endpoints.get(endpoint).is_some_and(|h| h.failures > 0)
    }

    fn rests(&self, endpoint: &Arc<str>, now: Duration) -> bool {
        self.endpoints.get(endpoint).is_some_and(|h| h.rests_until > now || h.outlier.ejected(now))
    }
}

/// Two of them by chance, different ones wherever there are two.
fn draw_two<T>(from: &[T], random: u64) -> Option<(&T, &T)> {
    let count = from.len() as u64;
    let first = random.checked_rem(count)?;
    let second = (first + 1 + (random >> 32) % (count - 1).max(1)) % count;
    Some((&from[first as usize], &from[second as usize]))
}

#[cfg(test)]
mod tests;
