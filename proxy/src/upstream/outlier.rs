//! An endpoint that answers with one error after the other is ejected for a while.
//!
//! This is about endpoints that can be reached and fail; those that cannot be reached rest after their first failure, and
//! the two are counted apart: [`crate::discover::balance`] asks both.

use std::time::Duration;

/// The longest ejection: whoever was mended is found again within this time. Envoy's number.
pub const LONGEST_EJECTION: Duration = Duration::from_secs(300);

/// What an answer, or its absence, says of the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It works; what it thinks of the request is another matter.
    Good,
    /// It does not work as it should: a server's error, a reset or a timeout after the request was sent.
    Bad,
}

impl Answer {
    /// What an HTTP status says. 501 and 505 speak of the request, not of the server's health.
    pub fn of_status(status: u16) -> Self {
        if matches!(status, 500 | 502..=504 | 506..=599) { Self::Bad } else { Self::Good }
    }

    /// What a `grpc-status` says: UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE and DATA_LOSS speak of the server.
    pub fn of_grpc(status: u32) -> Self {
        if matches!(status, 2 | 4 | 13 | 14 | 15) { Self::Bad } else { Self::Good }
    }
}

/// One endpoint's errors and ejections. Times are since the worker's start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outlier {
    errors: u32,
    ejections: u32,
    ejected_until: Duration,
}

impl Outlier {
    /// Counts an answer; whether the endpoint is due to be ejected. `consecutive` 0 ejects nobody.
    #[must_use]
    pub fn count(&mut self, answer: Answer, consecutive: u32, now: Duration) -> bool {
        match answer {
            Answer::Good => self.errors = 0,
            Answer::Bad => self.errors = self.errors.saturating_add(1),
        }
        consecutive > 0 && self.errors >= consecutive && !self.ejected(now)
    }

    /// Ejects it: for `base` the first time, twice that the second, and so on. Each `base` that it then worked well for
    /// takes one off the count.
    pub fn eject(&mut self, base: Duration, now: Duration) {
        let well = now.saturating_sub(self.ejected_until).as_nanos() / base.as_nanos().max(1);
        let forgiven = u32::try_from(well).unwrap_or(u32::MAX);
        self.ejections = self.ejections.saturating_sub(forgiven).saturating_add(1);
        self.ejected_until = now + base.saturating_mul(self.ejections).min(LONGEST_EJECTION.max(base));
        self.errors = 0;
    }

    /// Whether it is left alone at `now`.
    pub fn ejected(&self, now: Duration) -> bool {
        self.ejected_until > now
    }

    /// How long it is still left alone.
    pub fn ejected_for(&self, now: Duration) -> Duration {
        self.ejected_until.saturating_sub(now)
    }

    /// Errors in a row.
    pub fn errors(&self) -> u32 {
        self.errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_secs(30);

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn only_errors_in_a_row_count() {
        let mut outlier = Outlier::default();
        for _ in 0..100 {
            (0..4).for_each(|_| assert!(!outlier.count(Answer::Bad, 5, at(1))));
            assert!(!outlier.count(Answer::Good, 5, at(1)));
        }
        (0..4).for_each(|_| assert!(!outlier.count(Answer::Bad, 5, at(1))));
        assert!(outlier.count(Answer::Bad, 5, at(1)));
        assert!(outlier.count(Answer::Bad, 5, at(1)), "still due if it could not be ejected before");
        assert!(!Outlier { errors: 1000, ..outlier }.count(Answer::Bad, 0, at(1)), "0 is off");
    }

    #[test]
    fn each_ejection_is_longer_until_it_has_worked_for_a_while() {
        let mut outlier = Outlier::default();
        let mut now = at(1000);
        for times in [1, 2, 3, 4] {
            outlier.eject(BASE, now);
            assert_eq!(outlier.ejected_for(now), BASE * times);
            now += BASE * times;
            assert!(!outlier.ejected(now));
            assert!(outlier.ejected(now - Duration::from_nanos(1)));
        }
        // Two and a half times the base without an error: two of the four are forgiven.
        outlier.eject(BASE, now + BASE * 5 / 2);
        assert_eq!(outlier.ejected_for(now + BASE * 5 / 2), BASE * 3);
        let mut old = outlier;
        old.eject(BASE, at(1_000_000));
        assert_eq!(old.ejected_for(at(1_000_000)), BASE);
    }

    #[test]
    fn no_ejection_is_endless() {
        let mut outlier = Outlier::default();
        let mut now = at(1000);
        for _ in 0..1000 {
            outlier.eject(BASE, now);
            now += outlier.ejected_for(now);
        }
        outlier.eject(BASE, now);
        assert_eq!(outlier.ejected_for(now), LONGEST_EJECTION);
        let mut slow = Outlier::default();
        slow.eject(LONGEST_EJECTION * 3, now);
        assert_eq!(slow.ejected_for(now), LONGEST_EJECTION * 3, "a longer base is what the operator wants");
    }

    #[test]
    fn errors_during_an_ejection_do_not_lengthen_it() {
        let mut outlier = Outlier::default();
        outlier.eject(BASE, at(1000));
        assert!((0..50).all(|_| !outlier.count(Answer::Bad, 5, at(1010))));
    }

    #[test]
    fn what_speaks_of_the_server() {
        let bad: Vec<u16> = (100..600).filter(|s| Answer::of_status(*s) == Answer::Bad).collect();
        assert_eq!(bad[..4], [500, 502, 503, 504]);
        assert!(!bad.contains(&501) && !bad.contains(&505) && bad.contains(&599));
        let bad: Vec<u32> = (0..20).filter(|s| Answer::of_grpc(*s) == Answer::Bad).collect();
        assert_eq!(bad, [2, 4, 13, 14, 15]);
    }
}
