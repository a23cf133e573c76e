//! How much of somebody's failing anybody else has to bear: token buckets.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Refusals that get an audit record, globally: a flood must not fill the disk. Beyond it they are only counted.
const AUDITED_REFUSALS: Rate = Rate { burst: 512.0, per_second: 20.0 };
/// Attempts by somebody who knows a token's secret, or renewals of one lineage: enough for any retry, too few to make the
/// store the bottleneck.
const ATTEMPTS: Rate = Rate { burst: 128.0, per_second: 5.0 };
/// How many tokens and lineages are remembered before those whose bucket is full again are forgotten.
const REMEMBERED: usize = 4096;

/// How many at once, and how many in the long run.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// At once.
    pub burst: f64,
    /// In the long run.
    pub per_second: f64,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    since: i64,
}

impl Bucket {
    fn full(rate: Rate, now: i64) -> Self {
        Self { left: rate.burst, since: now }
    }

    fn at(&self, rate: Rate, now: i64) -> f64 {
        let elapsed = now.saturating_sub(self.since).max(0) as f64 / 1000.0;
        (self.left + elapsed * rate.per_second).min(rate.burst)
    }

    fn take(&mut self, rate: Rate, now: i64) -> bool {
        self.left = self.at(rate, now);
        self.since = now;
        if self.left < 1.0 {
            return false;
        }
        self.left -= 1.0;
        true
    }
}

/// The limits on enrollment.
///
/// Nobody who lacks a token's secret can use up anything of its owner: attempts are counted per token only after the secret
/// was right, and the global limit is on records, not on answers.
#[derive(Debug)]
pub struct Limits {
    refusals: Mutex<Bucket>,
    attempts: Buckets,
}

impl Limits {
    /// Full buckets.
    pub fn new(now: i64) -> Self {
        Self { refusals: Mutex::new(Bucket::full(AUDITED_REFUSALS, now)), attempts: Buckets::new(ATTEMPTS) }
    }

    /// Whether one more refusal gets an audit record.
    pub fn audit_refusal(&self, now: i64) -> bool {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).take(AUDITED_REFUSALS, now)
    }

    /// Whether the holder of this token's secret, or of this lineage's certificate, may try once more.
    pub fn attempt(&self, name: &str, now: i64) -> bool {
        self.attempts.take(name, now)
    }
}

/// A bucket for each name.
#[derive(Debug)]
pub struct Buckets {
    rate: Rate,
    buckets: Mutex<HashMap<String, Bucket>>,
}

impl Buckets {
    /// Full buckets.
    pub fn new(rate: Rate) -> Self {
        Self { rate, buckets: Mutex::default() }
    }

    /// Whether `name` may have one more.
    pub fn take(&self, name: &str, now: i64) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= REMEMBERED {
            buckets.retain(|_, bucket| bucket.at(self.rate, now) < self.rate.burst);
        }
        let bucket = buckets.entry(name.to_owned()).or_insert_with(|| Bucket::full(self.rate, now));
        bucket.take(self.rate, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_used_up_leaves_the_others_alone() {
        let limits = Limits::new(0);
        assert_eq!((0..1000).filter(|_| limits.attempt("a", 0)).count(), 128);
        assert!(limits.attempt("b", 0));
        assert!(limits.attempt("a", 1000), "the bucket fills again");
    }

    #[test]
    fn a_clock_that_steps_back_gives_nothing_away() {
        let limits = Limits::new(10_000);
        while limits.audit_refusal(10_000) {}
        assert!(!limits.audit_refusal(0));
    }
}
