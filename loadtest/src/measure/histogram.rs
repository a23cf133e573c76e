//! Latencies to three digits over the whole range, and their summary for results.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest latency that is told apart; longer ones count as this.
const LONGEST: Duration = Duration::from_secs(3600);
/// Points of the curve for each halving of the distance to 100 %.
const POINTS_PER_HALF: u32 = 4;

/// Latencies in nanoseconds.
#[derive(Debug, Clone)]
pub struct Histogram(hdrhistogram::Histogram<u64>);

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// An empty one: from 100 ns to an hour.
    #[expect(clippy::expect_used, reason = "the bounds are constants within what the crate takes")]
    pub fn new() -> Self {
        let longest = LONGEST.as_nanos() as u64;
        Self(hdrhistogram::Histogram::new_with_bounds(100, longest, 3).expect("constant bounds"))
    }

    /// Counts one latency.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Takes another one's counts.
    pub fn add(&mut self, other: &Self) {
        // Both have the same bounds.
        let _ = self.0.add(&other.0);
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A quantile in microseconds; none where so few latencies cannot tell.
    pub fn quantile_us(&self, quantile: f64) -> Option<f64> {
        // At least one of them has to lie beyond it.
        let beyond = self.0.len() as f64 * (1.0 - quantile);
        (beyond >= 1.0 - 1e-9).then(|| us(self.0.value_at_quantile(quantile)))
    }

    /// The figures.
    pub fn summary(&self) -> Latency {
        if self.0.is_empty() {
            return Latency::default();
        }
        let point = |value: hdrhistogram::iterators::IterationValue<u64>| {
            (value.quantile_iterated_to() * 100.0, us(value.value_iterated_to()))
        };
        Latency {
            count: self.0.len(),
            min_us: us(self.0.min()),
            mean_us: self.0.mean() / 1e3,
            max_us: us(self.0.max()),
            p50_us: self.quantile_us(0.5),
            p90_us: self.quantile_us(0.9),
            p99_us: self.quantile_us(0.99),
            p99_9_us: self.quantile_us(0.999),
            p99_99_us: self.quantile_us(0.9999),
            curve: self.0.iter_quantiles(POINTS_PER_HALF).map(point).collect(),
        }
    }
}

fn us(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

/// Latencies in microseconds. A percentile is missing where there were too few to tell it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many.
    pub count: u64,
    /// The shortest.
    pub min_us: f64,
    /// The mean.
    pub mean_us: f64,
    /// The longest.
    pub max_us: f64,
    /// The median.
    pub p50_us: Option<f64>,
    /// 90 of 100 are at most this.
    pub p90_us: Option<f64>,
    /// 99 of 100.
    pub p99_us: Option<f64>,
    /// 999 of 1,000.
    pub p99_9_us: Option<f64>,
    /// 9,999 of 10,000.
    pub p99_99_us: Option<f64>,
    /// The whole curve: (percentile from 0 to 100, microseconds), both growing.
    pub curve: Vec<(f64, f64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_told_where_there_is_enough_to_tell() {
        let mut histogram = Histogram::new();
        (1..=1000).for_each(|n| histogram.record(Duration::from_micros(n)));
        let latency = histogram.summary();
        assert_eq!(latency.count, 1000);
        let near = |value: Option<f64>, wanted: f64| (value.unwrap() / wanted - 1.0).abs() < 0.002;
        assert!(near(latency.p50_us, 500.0) && near(latency.p99_us, 990.0), "{latency:?}");
        assert!(near(latency.p99_9_us, 999.0), "{latency:?}");
        assert_eq!(latency.p99_99_us, None, "a thousand do not tell it");
        assert!(
            latency.curve.windows(2).all(|w| w[0].0 <= w[1].0 && w[0].1 <= w[1].1),
            "{:?}",
            latency.curve
        );
        assert_eq!(latency.curve.last().unwrap().0, 100.0);
        assert_eq!(Histogram::new().summary(), Latency::default());
    }

    #[test]
    fn what_is_longer_than_the_longest_is_kept_as_the_longest() {
        let mut histogram = Histogram::new();
        histogram.record(LONGEST * 10);
        assert!(histogram.summary().max_us >= LONGEST.as_secs_f64() * 1e6 * 0.99);
    }
}
