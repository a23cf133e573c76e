//! How many retries are affordable: a share of the recent requests, so that retries cannot double an overload.

use std::time::Duration;

/// For how long a request allows for retries, in slots of a second: long enough for a small service to save something up,
/// short enough that yesterday's traffic pays for nothing. Finagle's and Linkerd's number.
const SLOTS: usize = 10;
/// Balances count hundredths of a retry, so that a request can pay in percent.
const RETRY: i64 = 100;

/// The budget of one upstream at one worker. Times are since the worker's start.
#[derive(Debug, Clone)]
pub struct Budget {
    percent: i64,
    /// What may be spent without any request.
    reserve: i64,
    /// What came in less what was spent, by the second it happened in.
    slots: [i64; SLOTS],
    /// The latest second that `slots` covers.
    newest: u64,
}

impl Budget {
    /// A budget of `percent` of the requests of the last ten seconds, and of `min_per_second` retries in any case.
    pub fn new(percent: u32, min_per_second: u32) -> Self {
        let reserve = i64::from(min_per_second) * SLOTS as i64 * RETRY;
        Self { percent: i64::from(percent), reserve, slots: [0; SLOTS], newest: 0 }
    }

    /// A request came in; its own retries do not count as requests.
    pub fn request(&mut self, now: Duration) {
        let percent = self.percent;
        *self.slot(now) += percent;
    }

    /// Spends one retry; `false` if there is none left, and the failure is to be passed on.
    #[must_use]
    pub fn spend(&mut self, now: Duration) -> bool {
        self.slot(now);
        let affordable = self.reserve + self.slots.iter().sum::<i64>() >= RETRY;
        if affordable {
            *self.slot(now) -= RETRY;
        }
        affordable
    }

    /// The slot of this second; those that are older than ten seconds are emptied.
    fn slot(&mut self, now: Duration) -> &mut i64 {
        let second = now.as_secs();
        let passed = second.saturating_sub(self.newest).min(SLOTS as u64);
        for back in 0..passed {
            self.slots[((second - back) % SLOTS as u64) as usize] = 0;
        }
        self.newest = self.newest.max(second);
        &mut self.slots[(self.newest % SLOTS as u64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn spend_all(budget: &mut Budget, now: Duration) -> usize {
        (0..100_000).take_while(|_| budget.spend(now)).count()
    }

    #[test]
    fn a_share_of_the_requests_and_no_more() {
        let mut budget = Budget::new(20, 0);
        assert!(!budget.spend(at(5)), "nothing came in");
        (0..1000).for_each(|i| budget.request(at(i / 100)));
        assert_eq!(spend_all(&mut budget, at(9)), 200);
        assert!(!budget.spend(at(9)));
    }

    #[test]
    fn what_came_in_ten_seconds_ago_pays_for_nothing() {
        let mut budget = Budget::new(20, 0);
        (0..100).for_each(|_| budget.request(at(3)));
        assert_eq!(spend_all(&mut budget.clone(), at(12)), 20);
        assert_eq!(spend_all(&mut budget.clone(), at(13)), 0);
        assert_eq!(spend_all(&mut budget, at(1_000_000)), 0);
    }

    #[test]
    fn a_quiet_upstream_has_its_minimum() {
        let mut budget = Budget::new(20, 10);
        assert_eq!(spend_all(&mut budget, at(50)), 100, "ten a second, saved up for ten seconds");
        assert!(!budget.spend(at(59)));
        assert_eq!(spend_all(&mut budget, at(60)), 100, "they came back");
        // In the long run it is ten a second.
        let spent: usize = (100..200).map(|s| spend_all(&mut budget, at(s))).sum();
        assert_eq!(spent, 1000);
    }

    #[test]
    fn an_outage_costs_a_fifth_more() {
        let mut budget = Budget::new(20, 0);
        let retries: usize = (0..10_000u64)
            .map(|i| {
                let now = Duration::from_millis(i * 10);
                budget.request(now);
                usize::from(budget.spend(now))
            })
            .sum();
        assert_eq!(retries, 2000);
    }

    #[test]
    fn a_clock_that_stands_or_steps_back_adds_nothing() {
        let mut budget = Budget::new(100, 0);
        budget.request(at(20));
        assert!(budget.spend(at(15)));
        assert!(!budget.spend(at(20)));
    }
}
