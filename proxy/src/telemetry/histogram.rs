//! A histogram without a lock: the one of the metrics library takes a mutex at every observation.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds in microseconds, from 50 µs to 10 s, about a factor of 1.5 apart.
pub(super) const BOUNDS_US: [u64; 30] = [
    50, 75, 100, 150, 200, 300, 400, 600, 800, 1_000, 1_500, 2_000, 3_000, 4_000, 6_000, 8_000, 10_000,
    15_000, 20_000, 30_000, 50_000, 75_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000, 4_000_000,
    7_000_000, 10_000_000,
];

/// Observed durations by bucket.
#[derive(Debug)]
pub(super) struct Histogram {
    /// One per bound, and one for what is longer.
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)), sum_us: AtomicU64::new(0) }
    }
}

impl Histogram {
    pub(super) fn observe(&self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// (sum in seconds, count, (bound in seconds, count in this bucket) for each bucket), as the encoder takes it.
    pub(super) fn read(&self) -> (f64, u64, Vec<(f64, u64)>) {
        let bounds = BOUNDS_US.iter().map(|us| *us as f64 / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> =
            bounds.zip(self.buckets.iter().map(|b| b.load(Ordering::Relaxed))).collect();
        let count = buckets.iter().map(|(_, n)| n).sum();
        (self.sum_us.load(Ordering::Relaxed) as f64 / 1e6, count, buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_falls_into_the_bucket_that_bounds_it() {
        let histogram = Histogram::default();
        for (us, bucket) in [(0, 0), (50, 0), (51, 1), (75, 1), (10_000_000, 29), (10_000_001, 30)] {
            let before = histogram.buckets[bucket].load(Ordering::Relaxed);
            histogram.observe(Duration::from_micros(us));
            assert_eq!(histogram.buckets[bucket].load(Ordering::Relaxed), before + 1, "{us} µs");
        }
        assert_eq!(histogram.read().1, 6);
    }
}
