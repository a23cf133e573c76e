//! A local rate limit: GCRA, one number that says when the bucket would be empty again.
//!
//! The `governor` crate computes the same, but reads a clock of its own and brings a spin lock and a hash map along for
//! keys that are not needed here; with time as an argument the algorithm is one addition and one comparison.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// One listener's limit, shared by all workers: without a lock, and the operator's number holds for their sum.
#[derive(Debug)]
pub struct RateLimit {
    /// Nanoseconds that one request takes out of the bucket.
    interval: u64,
    /// How far, in nanoseconds, `empty_at` may lie ahead for another request to pass.
    tolerance: u64,
    /// When the bucket will be empty: GCRA's theoretical arrival time, in nanoseconds.
    empty_at: AtomicU64,
}

impl RateLimit {
    /// `per_second` requests in the long run, `burst` at once after a quiet time; both at least 1.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let interval = 1_000_000_000 / u64::from(per_second.max(1));
        let tolerance = interval * u64::from(burst.max(1) - 1);
        Self { interval, tolerance, empty_at: AtomicU64::new(0) }
    }

    /// Takes one request; `Err` says after what time the next would pass. `now` counts from any moment that all callers
    /// share.
    pub fn take(&self, now: Duration) -> Result<(), Duration> {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let pass = |empty_at: u64| {
            let ahead = empty_at.saturating_sub(now);
            (ahead <= self.tolerance).then(|| empty_at.max(now).saturating_add(self.interval))
        };
        // Nothing else is published by this number, so no order is needed around it.
        match self.empty_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pass) {
            Ok(_) => Ok(()),
            Err(empty_at) => Err(Duration::from_nanos(empty_at.saturating_sub(now) - self.tolerance)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_burst_then_the_rate() {
        let limit = RateLimit::new(10, 5);
        let now = Duration::from_secs(100);
        assert_eq!((0..20).filter(|_| limit.take(now).is_ok()).count(), 5);
        assert_eq!(limit.take(now), Err(Duration::from_millis(100)));
        assert_eq!(limit.take(now + Duration::from_millis(40)), Err(Duration::from_millis(60)));
        assert_eq!(limit.take(now + Duration::from_millis(100)), Ok(()));
        assert!(limit.take(now + Duration::from_millis(100)).is_err());
        let later = now + Duration::from_secs(10);
        assert_eq!(
            (0..20).filter(|_| limit.take(later).is_ok()).count(),
            5,
            "no more than a burst is saved up"
        );
    }

    #[test]
    fn a_burst_of_one_keeps_its_distance() {
        let limit = RateLimit::new(1000, 1);
        let passed = (0..10_000).filter(|us| limit.take(Duration::from_micros(us * 100)).is_ok()).count();
        assert_eq!(passed, 1000);
    }

    #[test]
    fn workers_share_it() {
        let limit = RateLimit::new(1, 1000);
        let take = || (0..1000).filter(|_| limit.take(Duration::from_secs(9)).is_ok()).count();
        let passed: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            workers.into_iter().map(|w| w.join().unwrap()).sum()
        });
        assert_eq!(passed, 1000);
    }

    proptest! {
        /// In every stretch of time: the burst and what the rate allows, and waiting as told is enough.
        #[test]
        fn never_more_than_burst_and_rate(
            per_second in 1u32..100_000,
            burst in 1u32..50,
            steps in proptest::collection::vec(0u64..2_000_000_000, 1..200),
        ) {
            let limit = RateLimit::new(per_second, burst);
            let mut now = Duration::ZERO;
            let mut passed = Vec::new();
            for step in steps {
                now += Duration::from_nanos(step / u64::from(per_second));
                match limit.take(now) {
                    Ok(()) => passed.push(now),
                    Err(wait) => prop_assert!(limit.take(now + wait - Duration::from_nanos(1)).is_err()),
                }
            }
            for (i, from) in passed.iter().enumerate() {
                for (n, to) in passed[i..].iter().enumerate() {
                    let span = (*to - *from).as_nanos() as f64 / 1e9;
                    // The interval is rounded down to nanoseconds.
                    let most = f64::from(burst) + span * f64::from(per_second) * 1.001 + 1e-6;
                    prop_assert!((n + 1) as f64 <= most, "{} in {span} s, {most} allowed", n + 1);
                }
            }
            if let Err(wait) = limit.take(now) {
                prop_assert!(limit.take(now + wait).is_ok());
            }
        }
    }
}
