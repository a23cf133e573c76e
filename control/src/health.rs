//! What stands between this process and its work, as `/readyz` says it; and how far its clock is believed.
//!
//! A clock that jumps ahead would end certificates early, sweep revocations that still matter, and rotate the issuing CA into
//! the future, where it could sign nothing once the clock is right again. So whatever is due by time alone goes by
//! [`Health::believed_ms`]: the host's clock without its jumps ahead, until another replica's clock confirms it. Checks of
//! certificates go by the host's clock as ever: ahead, it can only refuse too much.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::api::Plane;
use crate::audit::Entry;
use crate::clock::{now_ms, rfc3339};
use crate::store::{Replica, Store, StoreError};

/// A step of the clock smaller than this is slew or a leap second, milliseconds.
const JUMP: i64 = 60_000;

/// One thing that keeps this process from its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// `clock`, `issuing`, `key`, `store` or `audit`.
    pub what: &'static str,
    /// What is wrong, and what to do.
    pub why: String,
}

/// What was seen lately.
#[derive(Debug, Default)]
pub struct Health {
    jumps: Mutex<Jumps>,
    others: Mutex<HashMap<String, i64>>,
    /// Why the last sign of life could not be stored.
    store: Mutex<Option<String>>,
    /// Why the last record could not have been appended.
    audit: Mutex<Option<String>>,
}

/// Both clocks at one moment, milliseconds.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Since 1970, by the host.
    host: i64,
    /// Since the machine started, sleep included; nobody sets it.
    running: i64,
}

/// How far the host's clock has jumped ahead.
#[derive(Debug, Default)]
struct Jumps {
    last: Option<Sample>,
    ahead: i64,
}

impl Health {
    /// Looks at the clocks: the host's against the one that nobody sets, and against those of other replicas.
    pub fn look(&self, own: &str, replicas: &[Replica]) {
        let host = now_ms();
        let mut jumps = held(&self.jumps);
        if let Ok(running) = clock_gettime(ClockId::CLOCK_BOOTTIME) {
            let running = running.tv_sec() * 1000 + running.tv_nsec() / 1_000_000;
            let step = jumps.observe(Sample { host, running });
            if step != 0 {
                tracing::error!(by_ms = step, ahead_ms = jumps.ahead, "the host's clock jumped");
            }
        }
        // Only those that said something since the last look: their clocks and this one are compared at the same moment.
        let mut said = held(&self.others);
        let before = |r: &Replica, said: &mut HashMap<String, i64>| said.insert(r.id.clone(), r.last_seen);
        let fresh: Vec<i64> = replicas
            .iter()
            .filter(|r| r.id != own)
            .filter(|r| before(r, &mut said).is_some_and(|before| before != r.last_seen))
            .map(|r| host - r.last_seen)
            .collect();
        jumps.compare(&fresh);
    }

    /// The time by which things fall due, milliseconds since 1970.
    pub fn believed_ms(&self) -> i64 {
        now_ms() - held(&self.jumps).ahead.max(0)
    }

    /// Notes whether the sign of life could be stored.
    pub fn note_store(&self, error: Option<&StoreError>) {
        *held(&self.store) = error.map(ToString::to_string);
    }

    /// Appends a record and takes it back: whether the next one could be written.
    pub async fn probe_audit(&self, store: &Store) {
        let tried = async {
            let mut change = store.change_rows().await?;
            Entry::done("control", "probe", "", json!({})).append(&mut change).await
        };
        *held(&self.audit) = tried.await.err().map(|error| error.to_string());
    }

    /// All that is wrong now; nothing if this process can do its work.
    pub async fn faults(&self, plane: &Plane) -> Vec<Fault> {
        let issuing = plane.ca.issuing();
        let now = now_ms();
        let (starts, ends) = (issuing.not_before * 1000, issuing.not_after * 1000);
        let ahead = held(&self.jumps).ahead;
        let mut faults = Vec::new();
        if let Some(why) = clock_fault(now, starts, ends, ahead) {
            faults.push(Fault { what: "clock", why });
        }
        if now >= ends && ahead <= (ends - starts) / 2 {
            let why = format!("the issuing CA has expired ({}); see `postern status`", rfc3339(ends));
            faults.push(Fault { what: "issuing", why });
        }
        if let Err(error) = plane.ca.signing() {
            faults.push(Fault { what: "issuing", why: error.to_string() });
        }
        if let Some(fault) = issuing.signer.key().fault() {
            faults.push(Fault { what: "key", why: fault.to_string() });
        }
        let reached = plane.store.counter("generation").await.err().map(|error| error.to_string());
        faults.extend(reached.or_else(|| held(&self.store).clone()).map(|why| Fault { what: "store", why }));
        faults.extend(held(&self.audit).clone().map(|why| Fault {
            what: "audit",
            why: format!("no record can be written, and nothing is issued without one: {why}"),
        }));
        faults
    }
}

/// What is wrong with the clock, for a CA that lives from `starts` to `ends`; milliseconds.
fn clock_fault(now: i64, starts: i64, ends: i64, ahead: i64) -> Option<String> {
    if now < starts {
        let (now, starts) = (rfc3339(now), rfc3339(starts));
        return Some(format!(
            "this host's clock says {now}, before the issuing CA's notBefore ({starts}); nothing is signed until it is set right"
        ));
    }
    if ahead > (ends - starts) / 2 {
        return Some(format!(
            "this host's clock is {} s ahead of what it was, or of the other replicas, which is more than half of the issuing CA's \
             life; nothing is rotated by it. Set it right; if it is right now, restart this process",
            ahead / 1000
        ));
    }
    None
}

impl Jumps {
    /// By how much the clock jumped since the last look; 0 for a steady one.
    fn observe(&mut self, sample: Sample) -> i64 {
        let Some(last) = self.last.replace(sample) else { return 0 };
        let step = (sample.host - last.host) - (sample.running - last.running);
        if step.abs() < JUMP {
            return 0;
        }
        self.ahead += step;
        step
    }

    /// `by`: how far this clock is ahead of each other one. One that agrees confirms it; where none does, it is ahead of what
    /// they all say.
    fn compare(&mut self, by: &[i64]) {
        let Some(least) = by.iter().copied().min_by_key(|by| by.abs()) else { return };
        if least.abs() < JUMP {
            self.ahead = 0;
        } else if by.iter().all(|by| *by >= JUMP) {
            self.ahead = self.ahead.max(least);
        }
    }
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400_000;

    fn at(host: i64, running: i64) -> Sample {
        Sample { host, running }
    }

    #[test]
    fn a_jump_ahead_is_not_believed_until_it_is_taken_back_or_confirmed() {
        let mut jumps = Jumps::default();
        assert_eq!(jumps.observe(at(1_000, 5)), 0);
        assert_eq!(jumps.observe(at(61_500, 60_505)), 0, "a second of slew");
        assert_eq!(jumps.observe(at(DAY + 62_500, 61_505)), DAY);
        assert_eq!(jumps.ahead, DAY);
        // Half a day of sleep is no jump: the other clock runs on.
        assert_eq!(jumps.observe(at(DAY + DAY / 2, DAY / 2)), 0);
        jumps.observe(at(DAY / 2 + 1_000, DAY / 2 + 1_000));
        assert!(jumps.ahead.abs() < JUMP, "{}", jumps.ahead);
        jumps.observe(at(2 * DAY, DAY / 2 + 2_000));
        jumps.compare(&[3 * DAY, -20, DAY]);
        assert_eq!(jumps.ahead, 0, "somebody else's clock says the same");
    }

    #[test]
    fn a_clock_that_is_ahead_of_all_others_from_the_start_is_not_believed() {
        let mut jumps = Jumps::default();
        jumps.compare(&[]);
        assert_eq!(jumps.ahead, 0);
        jumps.compare(&[2 * DAY, DAY]);
        assert_eq!(jumps.ahead, DAY);
        let mut behind = Jumps::default();
        behind.compare(&[-DAY, 2 * DAY]);
        assert_eq!(behind.ahead, 0, "some are ahead and some behind: this one may be right");
    }

    #[test]
    fn what_is_wrong_with_a_clock_is_said() {
        assert_eq!(clock_fault(5 * DAY, DAY, 8 * DAY, 0), None);
        assert!(clock_fault(DAY - 1, DAY, 8 * DAY, 0).unwrap().contains("before the issuing CA's notBefore"));
        assert_eq!(clock_fault(7 * DAY, DAY, 8 * DAY, 3 * DAY), None, "less than half of its life");
        assert!(clock_fault(7 * DAY, DAY, 8 * DAY, 4 * DAY).unwrap().contains("ahead"));
    }
}
