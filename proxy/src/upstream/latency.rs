//! How fast an endpoint answers: a mean that forgets, and that believes bad news at once (Finagle's peak EWMA).

use std::time::Duration;

/// Over this time an observation loses 63 % of its weight, and what is not used is given another chance.
const DECAY: Duration = Duration::from_secs(10);

/// The latency of one endpoint as one worker saw it. Times are since the worker's start.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PeakEwma {
    /// Seconds; `None` until something was seen.
    seconds: Option<f64>,
    seen_at: Duration,
}

impl PeakEwma {
    /// An answer took `latency`. A slower one than the mean replaces it, a faster one pulls it down by and by.
    pub fn observe(&mut self, latency: Duration, now: Duration) {
        let latency = latency.as_secs_f64();
        let weight = self.weight(now);
        self.seconds = Some(match self.seconds {
            Some(mean) if latency < mean => mean * weight + latency * (1.0 - weight),
            _ => latency,
        });
        self.seen_at = self.seen_at.max(now);
    }

    /// Seconds; less and less the longer nothing was seen. `None` if nothing ever was.
    pub fn seconds(&self, now: Duration) -> Option<f64> {
        self.seconds.map(|mean| mean * self.weight(now))
    }

    fn weight(&self, now: Duration) -> f64 {
        (-now.saturating_sub(self.seen_at).as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn close(ewma: &PeakEwma, now: Duration, expected: f64) {
        let got = ewma.seconds(now).unwrap();
        assert!((got - expected).abs() < 1e-3, "{got} instead of {expected}");
    }

    #[test]
    fn a_peak_counts_at_once_and_fades() {
        let mut ewma = PeakEwma::default();
        assert_eq!(ewma.seconds(ms(0)), None);
        ewma.observe(ms(10), ms(1000));
        close(&ewma, ms(1000), 0.010);
        ewma.observe(ms(900), ms(1001));
        close(&ewma, ms(1001), 0.900);
        close(&ewma, ms(11_001), 0.900 / std::f64::consts::E);
        // Ten seconds of good answers, a hundred a second.
        (1..=1000).for_each(|i| ewma.observe(ms(10), ms(1001 + i * 10)));
        close(&ewma, ms(11_001), 0.010 + 0.890 / std::f64::consts::E);
        (1..=10_000).for_each(|i| ewma.observe(ms(10), ms(11_001 + i * 10)));
        close(&ewma, ms(111_001), 0.010);
    }

    proptest! {
        #[test]
        fn it_lies_among_what_was_seen(seen in proptest::collection::vec((0u64..10_000, 0u64..5_000), 1..50)) {
            let mut ewma = PeakEwma::default();
            let mut now = Duration::ZERO;
            for (latency, step) in &seen {
                now += ms(*step);
                ewma.observe(ms(*latency), now);
                let mean = ewma.seconds(now).unwrap();
                prop_assert!(mean >= ms(*latency).as_secs_f64() - 1e-9, "bad news is believed at once");
            }
            let most = seen.iter().map(|(latency, _)| *latency).max().unwrap();
            prop_assert!(ewma.seconds(now).unwrap() <= ms(most).as_secs_f64() + 1e-9);
        }
    }
}
