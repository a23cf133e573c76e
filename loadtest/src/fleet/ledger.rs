//! What a whole fleet has seen: counters, latencies, every serial that was ever issued to it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many faults are kept with their text.
const KEPT: usize = 50;

/// Shared by all clients of a fleet.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    counters: Counters,
    latencies: Mutex<Latencies>,
    /// Each serial with the key that it was issued for.
    serials: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
    faults: Mutex<Vec<String>>,
    twice: Mutex<Vec<String>>,
}

#[derive(Debug, Default)]
struct Counters {
    enrolled: AtomicU64,
    enrollments_tried_again: AtomicU64,
    enrollments_refused: AtomicU64,
    renewals: AtomicU64,
    renewals_tried_again: AtomicU64,
    renewals_refused: AtomicU64,
    expired: AtomicU64,
    sessions: AtomicU64,
    sessions_tried_again: AtomicU64,
    pushes: AtomicU64,
    pushes_refused: AtomicU64,
    unusable: AtomicU64,
}

#[derive(Debug, Default)]
struct Latencies {
    enroll: Vec<Duration>,
    renew: Vec<Duration>,
    session: Vec<Duration>,
}

/// Something that a client did, as it is counted.
#[derive(Debug, Clone, Copy)]
pub(super) enum Event {
    /// It has its first certificate; since the fleet was let go.
    Enrolled(Duration),
    /// An enrollment failed and is tried again.
    EnrollmentTriedAgain,
    /// An enrollment was refused: it is given up.
    EnrollmentRefused,
    /// It has its next certificate; since the moment it was due.
    Renewed(Duration),
    /// A renewal failed and is tried again.
    RenewalTriedAgain,
    /// A renewal was refused.
    RenewalRefused,
    /// Its certificate ended before the next one came.
    Expired,
    /// Its stream is open and the first push was read; since the first try.
    Session(Duration),
    /// No stream could be opened; tried again.
    SessionTriedAgain,
    /// A push was applied.
    Push,
    /// A push could not be applied.
    PushRefused,
    /// A certificate came that its own bundle does not vouch for.
    Unusable,
}

/// The counters of a fleet, read at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Clients that have had an identity.
    pub enrolled: u64,
    /// Tries to enroll that brought nothing and were repeated.
    pub enrollments_tried_again: u64,
    /// Clients whose join token was refused.
    pub enrollments_refused: u64,
    /// Certificates that came by renewal.
    pub renewals: u64,
    /// Tries to renew that brought nothing and were repeated.
    pub renewals_tried_again: u64,
    /// Renewals that the control plane refused.
    pub renewals_refused: u64,
    /// Certificates that ended before their successor came: renewals that failed beyond every retry.
    pub expired: u64,
    /// Streams that were opened and brought a push.
    pub sessions: u64,
    /// Tries to open one that brought nothing and were repeated.
    pub sessions_tried_again: u64,
    /// Pushes that were applied, beats left out.
    pub pushes: u64,
    /// Pushes that a real proxy would not apply either.
    pub pushes_refused: u64,
    /// Certificates whose chain the client's own bundle does not hold.
    pub unusable: u64,
    /// Different serials that were issued.
    pub serials: u64,
    /// Serials that were issued for two keys, in hex; there must be none.
    pub serials_twice: Vec<String>,
    /// The first faults, in words.
    pub faults: Vec<String>,
}

/// What latencies are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// From the moment the fleet was let go to a client's first certificate.
    Enroll,
    /// From the moment a renewal was due to the next certificate, retries included.
    Renew,
    /// From the first try to connect to the first push, retries included.
    Session,
}

impl Ledger {
    pub(super) fn note(&self, event: Event) {
        let counters = &self.counters;
        let (counter, latency) = match event {
            Event::Enrolled(took) => (&counters.enrolled, Some((Kind::Enroll, took))),
            Event::EnrollmentTriedAgain => (&counters.enrollments_tried_again, None),
            Event::EnrollmentRefused => (&counters.enrollments_refused, None),
            Event::Renewed(took) => (&counters.renewals, Some((Kind::Renew, took))),
            Event::RenewalTriedAgain => (&counters.renewals_tried_again, None),
            Event::RenewalRefused => (&counters.renewals_refused, None),
            Event::Expired => (&counters.expired, None),
            Event::Session(took) => (&counters.sessions, Some((Kind::Session, took))),
            Event::SessionTriedAgain => (&counters.sessions_tried_again, None),
            Event::Push => (&counters.pushes, None),
            Event::PushRefused => (&counters.pushes_refused, None),
            Event::Unusable => (&counters.unusable, None),
        };
        if let Some((kind, took)) = latency {
            held(&self.latencies).of(kind).push(took);
        }
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes a certificate. One serial for two keys is what must never be.
    pub(super) fn issued(&self, serial: &[u8], spki: &[u8]) {
        let mut serials = held(&self.serials);
        let known = serials.entry(serial.to_vec()).or_insert_with(|| spki.to_vec());
        if known != spki {
            held(&self.twice).push(serial.iter().map(|b| format!("{b:02x}")).collect());
        }
    }

    pub(super) fn fault(&self, client: usize, what: &str, why: &str) {
        let mut faults = held(&self.faults);
        if faults.len() < KEPT {
            faults.push(format!("client {client}: {what}: {why}"));
        }
    }

    pub(super) fn tally(&self) -> Tally {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        Tally {
            enrolled: read(&counters.enrolled),
            enrollments_tried_again: read(&counters.enrollments_tried_again),
            enrollments_refused: read(&counters.enrollments_refused),
            renewals: read(&counters.renewals),
            renewals_tried_again: read(&counters.renewals_tried_again),
            renewals_refused: read(&counters.renewals_refused),
            expired: read(&counters.expired),
            sessions: read(&counters.sessions),
            sessions_tried_again: read(&counters.sessions_tried_again),
            pushes: read(&counters.pushes),
            pushes_refused: read(&counters.pushes_refused),
            unusable: read(&counters.unusable),
            serials: held(&self.serials).len() as u64,
            serials_twice: held(&self.twice).clone(),
            faults: held(&self.faults).clone(),
        }
    }

    /// Every serial that was issued, lower-case hex.
    pub(super) fn serials(&self) -> Vec<String> {
        let hex = |serial: &Vec<u8>| serial.iter().map(|b| format!("{b:02x}")).collect();
        held(&self.serials).keys().map(hex).collect()
    }

    /// The latencies of one kind since they were last taken.
    pub(super) fn take(&self, kind: Kind) -> Vec<Duration> {
        std::mem::take(held(&self.latencies).of(kind))
    }
}

impl Latencies {
    fn of(&mut self, kind: Kind) -> &mut Vec<Duration> {
        match kind {
            Kind::Enroll => &mut self.enroll,
            Kind::Renew => &mut self.renew,
            Kind::Session => &mut self.session,
        }
    }
}

/// A lock whose holder cannot leave half a change behind.
pub(super) fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_for_two_keys_is_told_and_a_repeated_answer_is_not() {
        let ledger = Ledger::default();
        ledger.issued(&[1, 2], b"a");
        ledger.issued(&[1, 2], b"a");
        ledger.issued(&[3], b"b");
        assert_eq!(ledger.tally().serials_twice, Vec::<String>::new());
        ledger.issued(&[1, 2], b"b");
        assert_eq!(ledger.tally().serials_twice, ["0102"]);
        assert_eq!(ledger.tally().serials, 2);
    }
}
