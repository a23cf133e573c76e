//! How the handshakes ended that this proxy began, by the authority of the certificate that it presented: the control plane asks
//! while it tries a new authority.
//!
//! What a worker counts is not split; it is read when another certificate comes into force, and the difference goes to the one of
//! before. A handshake under way at that moment may be counted on the wrong side, which decides nothing.

use std::time::{SystemTime, UNIX_EPOCH};

use postern_config::reason::Reason;
use postern_config::wire::v1;

/// How many authorities are told apart; the oldest is forgotten first.
const AUTHORITIES: usize = 4;

/// Counters at one moment: handshakes that ended well, and failed ones in the order of [`Reason::ALL`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Totals {
    /// Ended well.
    pub ok: u64,
    /// Failed, by reason.
    pub failed: Vec<u64>,
}

/// The accounts of one process.
#[derive(Debug)]
pub struct Accounts {
    since_ms: i64,
    closed: Vec<(Vec<u8>, Totals)>,
    current: Vec<u8>,
    /// What the counters said when `current` began.
    from: Totals,
}

impl Accounts {
    /// Begins to count now.
    pub fn begin() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let since_ms = i64::try_from(since).unwrap_or(i64::MAX);
        Self { since_ms, closed: Vec::new(), current: Vec::new(), from: Totals::zero() }
    }

    /// From now on a certificate of this authority (its key identifier) is presented.
    pub fn switch(&mut self, authority: &[u8], now: Totals) {
        if authority == self.current {
            return;
        }
        let before = std::mem::replace(&mut self.current, authority.to_vec());
        let spent = now.less(&std::mem::replace(&mut self.from, now.clone()));
        if !before.is_empty() {
            let earlier = self.take(&before);
            self.closed.push((before, earlier.plus(&spent)));
        }
        // It may have been presented before: what it has is counted on.
        let earlier = self.take(authority);
        self.from = now.less(&earlier);
        if self.closed.len() >= AUTHORITIES {
            self.closed.remove(0);
        }
    }

    /// What the control plane is told.
    pub fn report(&self, now: &Totals) -> v1::Report {
        let mut handshakes: Vec<_> = self.closed.iter().map(|(id, totals)| totals.message(id)).collect();
        handshakes.push(now.less(&self.from).message(&self.current));
        // The newest are the ones that matter.
        let surplus = handshakes.len().saturating_sub(AUTHORITIES);
        v1::Report { since_ms: self.since_ms, handshakes: handshakes.split_off(surplus) }
    }

    fn take(&mut self, authority: &[u8]) -> Totals {
        let at = self.closed.iter().position(|(id, _)| id == authority);
        at.map_or_else(Totals::zero, |at| self.closed.remove(at).1)
    }
}

impl Totals {
    fn zero() -> Self {
        Self { ok: 0, failed: vec![0; Reason::ALL.len()] }
    }

    fn with(&self, other: &Self, op: impl Fn(u64, u64) -> u64) -> Self {
        let failed = self.failed.iter().zip(&other.failed).map(|(a, b)| op(*a, *b)).collect();
        Self { ok: op(self.ok, other.ok), failed }
    }

    fn less(&self, other: &Self) -> Self {
        self.with(other, u64::wrapping_sub)
    }

    fn plus(&self, other: &Self) -> Self {
        self.with(other, u64::wrapping_add)
    }

    fn message(&self, authority: &[u8]) -> v1::Handshakes {
        let failed = Reason::ALL.iter().zip(&self.failed).filter(|(_, count)| **count > 0);
        let failed = failed.map(|(reason, count)| v1::FailedHandshakes {
            reason: reason.as_str().to_owned(),
            count: *count,
        });
        v1::Handshakes { issuer_key_id: authority.to_vec(), ok: self.ok, failed: failed.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(ok: u64, failed: u64) -> Totals {
        let mut totals = Totals::zero();
        totals.ok = ok;
        totals.failed[Reason::UnknownIssuer as usize] = failed;
        totals
    }

    fn told(accounts: &Accounts, now: &Totals) -> Vec<(u8, u64, u64)> {
        let count = |h: &v1::Handshakes| h.failed.iter().map(|f| f.count).sum();
        accounts.report(now).handshakes.iter().map(|h| (h.issuer_key_id[0], h.ok, count(h))).collect()
    }

    #[test]
    fn each_authority_has_its_own_account_and_goes_on_where_it_was() {
        let mut accounts = Accounts::begin();
        accounts.switch(b"a", totals(0, 0));
        accounts.switch(b"a", totals(5, 1));
        accounts.switch(b"b", totals(10, 1));
        assert_eq!(told(&accounts, &totals(12, 4)), [(b'a', 10, 1), (b'b', 2, 3)]);
        accounts.switch(b"a", totals(12, 4));
        assert_eq!(told(&accounts, &totals(13, 4)), [(b'b', 2, 3), (b'a', 11, 1)]);
    }

    #[test]
    fn so_many_are_told_apart_and_the_present_one_always() {
        let mut accounts = Accounts::begin();
        for id in 1..=9_u8 {
            accounts.switch(&[id], totals(u64::from(id), 0));
        }
        let told = told(&accounts, &totals(100, 0));
        assert_eq!(told, [(6, 1, 0), (7, 1, 0), (8, 1, 0), (9, 91, 0)]);
    }
}
