//! How a herd is served in order: so many at a time, the rest by their tickets, up to a length and for as long as they wait.
//!
//! Whoever gives up, or is told to come again, keeps the ticket for a while: the same caller that comes back stands where it
//! stood. So a caller whose patience is shorter than the line gets nearer with each try instead of beginning anew.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::telemetry::LineMetrics;

/// How long a ticket is kept for whoever left the line: longer than the longest pause that anybody is told to make.
const KEPT: Duration = Duration::from_secs(60);
/// The shortest and the longest pause that a caller is told to make.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// What one turn is thought to take before any was seen, seconds.
const FIRST_GUESS: f64 = 0.005;
/// How much the newest turn counts in the mean.
const NEWEST: f64 = 0.05;

/// Why nobody is served now, and when to come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy {
    /// `full`: the line was too long to stand in; `slow`: the turn did not come in time.
    pub why: &'static str,
    /// When the turn is expected.
    pub retry_after: Duration,
}

/// A line.
#[derive(Debug)]
pub struct Line {
    waiting: usize,
    state: Mutex<State>,
    metrics: LineMetrics,
}

#[derive(Debug)]
struct State {
    /// How many more can be served at this moment.
    free: usize,
    next: u64,
    /// Those in line; whoever is told has the turn.
    waiting: BTreeMap<u64, oneshot::Sender<()>>,
    /// The tickets of those who left, by their names.
    left: HashMap<Vec<u8>, (u64, Instant)>,
    pace: Pace,
}

/// How long it takes until the next turn is free, seconds, while somebody waits.
#[derive(Debug)]
struct Pace {
    mean: f64,
    last: Option<Instant>,
}

/// One's turn, for as long as it is held.
#[derive(Debug)]
pub struct Turn<'a>(&'a Line);

/// A place in the line.
struct Place<'l, 'n> {
    line: &'l Line,
    ticket: u64,
    name: Option<&'n [u8]>,
    turn: oneshot::Receiver<()>,
    is_over: bool,
}

impl Line {
    /// `served` at a time, `waiting` behind them.
    pub fn new(served: usize, waiting: usize, metrics: LineMetrics) -> Self {
        let state = State {
            free: served,
            next: 0,
            waiting: BTreeMap::new(),
            left: HashMap::new(),
            pace: Pace { mean: FIRST_GUESS, last: None },
        };
        Self { waiting, state: Mutex::new(state), metrics }
    }

    /// One's turn, waited for no longer than `patience`. Who has a `name`, and has been here a while ago, gets the place of then.
    /// A call that is dropped leaves the line.
    pub async fn turn(&self, name: Option<&[u8]>, patience: Duration) -> Result<Turn<'_>, Busy> {
        let began = Instant::now();
        let turn = match self.enter(name) {
            Ok(None) => Ok(Turn(self)),
            Ok(Some(mut place)) => {
                self.metrics.waiting.inc();
                let told = tokio::time::timeout(patience, &mut place.turn).await;
                self.metrics.waiting.dec();
                place.leave(matches!(told, Ok(Ok(()))))
            }
            Err(busy) => Err(busy),
        };
        match &turn {
            Ok(_) => {
                self.metrics.served.inc();
                self.metrics.in_flight.inc();
                self.metrics.waited.observe(began.elapsed().as_secs_f64());
            }
            Err(busy) => self.metrics.refused(busy.why),
        }
        turn
    }

    /// A place in the line; none where it is one's turn at once.
    fn enter<'n>(&self, name: Option<&'n [u8]>) -> Result<Option<Place<'_, 'n>>, Busy> {
        let mut state = self.state();
        let kept = name.and_then(|name| state.left.remove(name)).filter(|(_, until)| *until > Instant::now());
        if state.free > 0 {
            state.free -= 1;
            return Ok(None);
        }
        if kept.is_none() && state.waiting.len() >= self.waiting {
            let ahead = state.waiting.len();
            return Err(Busy { why: "full", retry_after: state.pace.until(ahead) });
        }
        let ticket = kept.map_or(state.next, |(ticket, _)| ticket);
        state.next = state.next.max(ticket + 1);
        let (told, turn) = oneshot::channel();
        state.waiting.insert(ticket, told);
        Ok(Some(Place { line: self, ticket, name, turn, is_over: false }))
    }

    /// Hands a turn to the first in line.
    fn pass_on(&self) {
        let mut state = self.state();
        let now = Instant::now();
        while let Some((_, first)) = state.waiting.pop_first() {
            state.pace.note(now);
            if first.send(()).is_ok() {
                return;
            }
        }
        state.pace.last = None;
        state.free += 1;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.metrics.in_flight.dec();
        self.0.pass_on();
    }
}

impl<'l> Place<'l, '_> {
    /// Ends the wait: with the turn, where it came, be it in the last moment.
    fn leave(mut self, is_told: bool) -> Result<Turn<'l>, Busy> {
        self.is_over = true;
        let mut state = self.line.state();
        let had = state.waiting.remove(&self.ticket).is_some();
        if is_told || !had {
            return Ok(Turn(self.line));
        }
        let ahead = state.waiting.range(..self.ticket).count();
        let retry_after = state.pace.until(ahead);
        state.keep(self.name, self.ticket, self.line.waiting);
        Err(Busy { why: "slow", retry_after })
    }
}

/// The caller has gone away in the middle.
impl Drop for Place<'_, '_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        self.line.metrics.waiting.dec();
        self.line.metrics.refused("left");
        let mut state = self.line.state();
        let had = state.waiting.remove(&self.ticket).is_some();
        state.keep(self.name, self.ticket, self.line.waiting);
        drop(state);
        if !had {
            self.line.pass_on();
        }
    }
}

impl State {
    fn keep(&mut self, name: Option<&[u8]>, ticket: u64, bound: usize) {
        let Some(name) = name else { return };
        let now = Instant::now();
        if self.left.len() >= bound {
            self.left.retain(|_, (_, until)| *until > now);
        }
        if self.left.len() < bound {
            self.left.insert(name.to_owned(), (ticket, now + KEPT));
        }
    }
}

impl Pace {
    fn note(&mut self, now: Instant) {
        if let Some(last) = self.last.replace(now) {
            self.mean += NEWEST * (now.duration_since(last).as_secs_f64() - self.mean);
        }
    }

    /// When so many will have had their turns.
    fn until(&self, ahead: usize) -> Duration {
        let seconds = (self.mean * ahead as f64).clamp(PAUSES.0.as_secs_f64(), PAUSES.1.as_secs_f64());
        Duration::from_secs_f64(seconds)
    }
}

#[cfg(test)]
mod tests;
