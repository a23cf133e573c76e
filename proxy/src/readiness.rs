//! Whether this proxy can do its work, and what it still waits for. Bits in an atomic: asked by probes, set by the identity thread.

use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

/// What must be held before traffic is taken, and what takes readiness away again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Missing {
    /// No valid certificate.
    Identity = 1,
    /// No trust bundle.
    Bundle = 2,
    /// No policy.
    Policy = 4,
    /// No revocation set, be it an empty one.
    Revocations = 8,
    /// Stopping.
    Draining = 16,
}

const WORDS: [(Missing, &str); 5] = [
    (Missing::Identity, "no valid identity"),
    (Missing::Bundle, "no trust bundle"),
    (Missing::Policy, "no policy"),
    (Missing::Revocations, "no revocation set"),
    (Missing::Draining, "draining"),
];

/// The state of readiness.
#[derive(Debug)]
pub struct Readiness {
    missing: AtomicU8,
    changed: Notify,
}

impl Default for Readiness {
    fn default() -> Self {
        let all = Missing::Identity as u8
            | Missing::Bundle as u8
            | Missing::Policy as u8
            | Missing::Revocations as u8;
        Self { missing: AtomicU8::new(all), changed: Notify::new() }
    }
}

impl Readiness {
    /// This piece is held now.
    pub fn held(&self, piece: Missing) {
        self.missing.fetch_and(!(piece as u8), Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    /// This piece is missing now.
    pub fn missing(&self, piece: Missing) {
        self.missing.fetch_or(piece as u8, Ordering::AcqRel);
    }

    /// Nothing is missing.
    pub fn is_ready(&self) -> bool {
        self.missing.load(Ordering::Acquire) == 0
    }

    /// Waits until nothing is missing.
    pub async fn ready(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_ready() {
                return;
            }
            changed.await;
        }
    }

    /// What is missing, in words; empty when ready.
    pub fn reasons(&self) -> String {
        let missing = self.missing.load(Ordering::Acquire);
        let words: Vec<&str> =
            WORDS.iter().filter(|(m, _)| missing & *m as u8 != 0).map(|(_, w)| *w).collect();
        words.join(", ")
    }
}
