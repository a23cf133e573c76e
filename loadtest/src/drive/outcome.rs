//! What came of a plan, as it is written into results and read back.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Plan, Reason};
use crate::measure::{Cost, Latency};

/// What came of one plan.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// What was asked.
    pub plan: Plan,
    /// What both sides agreed on, in the first success.
    pub negotiated: Negotiated,
    /// Operations that were due within the measured time (open loop) or begun in it (closed loop).
    pub due: u64,
    /// Those of them that succeeded.
    pub succeeded: u64,
    /// Those of them that did not, by reason. `due` is the sum of both.
    pub failures: BTreeMap<Reason, u64>,
    /// What was seen of the first failure of each reason.
    pub examples: BTreeMap<Reason, String>,
    /// Operations that ended well within the measured time, a second.
    pub rate: f64,
    /// Handshakes in full that ended within the measured time.
    pub handshakes: u64,
    /// Resumed ones.
    pub resumed: u64,
    /// Whole answers within it.
    pub requests: u64,
    /// Bytes of bodies or of raw exchanges that went to the server within it.
    pub bytes_sent: u64,
    /// … that came from it.
    pub bytes_received: u64,
    /// Of successes: from the intended start in the open loop, from the sending in the closed.
    pub latency: Latency,
    /// What happened when.
    pub over_time: Vec<Bucket>,
    /// What it cost the server, if its processes were named.
    pub cost: Option<Cost>,
    /// The rig about itself.
    pub rig: Rig,
    /// What is worth saying about the measurement itself.
    pub notes: Vec<String>,
}

impl Outcome {
    /// How many operations failed.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }
}

/// What TLS agreed on; empty without it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Negotiated {
    /// The protocol's version.
    pub version: String,
    /// The cipher suite.
    pub suite: String,
    /// The key exchange.
    pub kx: String,
    /// The application protocol.
    pub alpn: String,
}

/// What happened in one stretch of the measured time. An operation belongs to the stretch in which it was due.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Bucket {
    /// Where it begins, in milliseconds of the measured time.
    pub at_ms: u64,
    /// How long it is.
    pub width_ms: u64,
    /// Operations that succeeded.
    pub succeeded: u64,
    /// Operations that failed, `overload` among them.
    pub failed: u64,
    /// The longest latency of a success, in microseconds.
    pub slowest_us: f64,
}

/// The rig about itself: a rig that was too slow measured itself.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Rig {
    /// Its threads.
    pub threads: usize,
    /// Its processor time, every thread.
    pub cpu_seconds: f64,
    /// How much of its threads' time that was.
    pub busy: f64,
    /// How late the rig itself was in sending, in the open loop: the 99th percentile, in microseconds, of those that did
    /// not have to wait for a connection.
    pub late_p99_us: Option<f64>,
}
