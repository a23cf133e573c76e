//! What the stream and the requests of a connection tell the register: what moves, what is waited for, what has begun.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Cause, Inner};

/// For the first request of a connection: who connects has something to ask.
const FIRST_REQUEST: Duration = Duration::from_secs(30);
/// Between being asked to end and being closed.
const LAST_CALL: Duration = Duration::from_secs(5);
/// Over which time a pace is measured: long enough for a pause that a busy honest peer makes.
const PACE_WINDOW: Duration = Duration::from_secs(15);

/// Between requests: how many are in progress, and how long there may be none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rest {
    pub(super) requests: usize,
    since: Instant,
    limit: Duration,
    served: bool,
    /// Whether its requests stand still one by one: they have a register of their own.
    pub(super) multiplexed: bool,
}

/// What moved while this side waited for the other: time in which this side was the slow one does not count.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    waited: Duration,
    since: Option<Instant>,
    bytes: u64,
}

impl Pace {
    fn waited(&self, now: Instant) -> Duration {
        self.waited + self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

/// Which half of a connection a wait is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words say it")]
pub enum Half {
    Read,
    Write,
}

/// What a connection's stream and its requests tell its entry in the register.
#[derive(Clone)]
pub struct Pulse(pub(super) Rc<Inner>);

impl Pulse {
    /// Notes bytes that moved.
    pub fn moved(&self, up: usize, down: usize) {
        self.0.moved(up, down);
    }

    /// The head of a request has begun to come and must be whole within `time`; `None`: it is.
    pub fn head_within(&self, time: Option<Duration>) {
        self.0.head_by.set(time.map(|time| Instant::now() + time));
    }

    /// The connection carries requests, and may be without one for `limit`; `None`: it carries something else now.
    pub fn rests_for(&self, limit: Option<Duration>, multiplexed: bool) {
        let since = Instant::now();
        self.0.rest.set(limit.map(|limit| Rest { requests: 0, since, limit, served: false, multiplexed }));
    }

    /// A request has begun.
    pub fn request_begun(&self) {
        if let Some(rest) = self.0.rest.get() {
            self.0.active.set(Instant::now());
            self.0.rest.set(Some(Rest { requests: rest.requests + 1, served: true, ..rest }));
        }
    }

    /// A request has ended.
    pub fn request_ended(&self) {
        if let Some(rest) = self.0.rest.get() {
            let requests = rest.requests.saturating_sub(1);
            self.0.rest.set(Some(Rest { requests, since: Instant::now(), ..rest }));
        }
    }

    /// This side waits for the other end, which must keep a minimum pace.
    pub fn waits(&self, half: Half) {
        let cell = &self.0.pace[half as usize];
        let pace = cell.get();
        if pace.since.is_none() {
            cell.set(Pace { since: Some(Instant::now()), ..pace });
        }
    }

    /// Some of what was waited for has moved.
    pub fn progressed(&self, half: Half, bytes: usize) {
        let cell = &self.0.pace[half as usize];
        let pace = cell.get();
        if pace.since.is_some() {
            cell.set(Pace {
                waited: pace.waited(Instant::now()),
                since: None,
                bytes: pace.bytes + bytes as u64,
            });
        }
    }

    /// Nothing is waited for any more.
    pub fn arrived(&self, half: Half) {
        self.0.pace[half as usize].set(Pace::default());
    }
}

/// Judges a pace once a window, and begins the next one.
pub(super) fn too_slow(cell: &Cell<Pace>, now: Instant, rate: u64) -> bool {
    let pace = cell.get();
    let waited = pace.waited(now);
    if waited < PACE_WINDOW {
        return false;
    }
    cell.set(Pace { waited: Duration::ZERO, since: pace.since.map(|_| now), bytes: 0 });
    pace.bytes < rate * waited.as_secs()
}

impl Inner {
    /// Without a request for too long: asked to end, so that one on its way is still answered; then closed.
    pub(super) fn age_at_rest(&self, rest: Rest, now: Instant) {
        let limit = if rest.served { rest.limit } else { rest.limit.min(FIRST_REQUEST) };
        let rested = now.saturating_duration_since(rest.since);
        if rested >= limit + LAST_CALL {
            self.close(Cause::IdleTimeout);
        } else if rested >= limit && !self.draining.replace(true) {
            self.wake();
        }
    }
}
