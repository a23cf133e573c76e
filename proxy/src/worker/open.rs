//! The register of one worker's open connections: what is needed to ask about them again, and a way to end them.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use postern_config::id::SpiffeId;

use super::Lookup;
use crate::relay::Progress;
use crate::telemetry::{Direction, Outcome};

mod pulse;
mod subject;

pub use pulse::{Half, Pulse};
use pulse::{Pace, Rest, too_slow};
pub use subject::{Anonymous, Asked, Facts, Judged, Subject};

/// Why a connection is ended from this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words say it; each is an `Outcome`")]
pub enum Cause {
    PolicyChanged,
    TrustChanged,
    PeerExpired,
    IdleTimeout,
    TooSlow,
    Drained,
}

impl From<Cause> for Outcome {
    fn from(cause: Cause) -> Self {
        match cause {
            Cause::PolicyChanged => Self::PolicyChanged,
            Cause::TrustChanged => Self::TrustChanged,
            Cause::PeerExpired => Self::PeerExpired,
            Cause::IdleTimeout => Self::IdleTimeout,
            Cause::TooSlow => Self::TooSlow,
            Cause::Drained => Self::Drained,
        }
    }
}

/// How long what is open may stand still, and how slowly it may move.
#[derive(Debug, Clone, Copy)]
pub struct Ages {
    /// A connection without a byte.
    pub connection: Duration,
    /// A request in progress without a byte.
    pub request: Duration,
    /// Bytes a second of what is waited for, at least.
    pub rate: u64,
}

/// What operators are shown of an open connection besides its peer; nothing is decided by it.
#[derive(Debug, Clone)]
pub struct About {
    /// Which way.
    pub direction: Direction,
    /// Who connected here.
    pub source: SocketAddr,
    /// The app, the endpoint, or, as long as none is chosen, the service that it is for.
    pub target: Arc<str>,
    /// What is spoken, as far as it is known.
    pub protocol: &'static str,
    /// The policy that let it in, and which of its rules.
    pub policy: Option<(Arc<str>, usize)>,
    /// When it was accepted.
    pub since: Instant,
}

/// All open connections of one worker.
#[derive(Default)]
pub struct Registry {
    shared: Rc<Shared>,
}

#[derive(Default)]
struct Shared {
    entries: RefCell<Lookup<u64, Weak<Inner>>>,
    next: Cell<u64>,
    closing: Cell<bool>,
    /// By direction.
    draining: [Cell<bool>; 2],
    emptied: RefCell<Option<Waker>>,
}

/// One open connection as operators see it.
#[derive(Debug)]
pub struct Shown {
    /// Its number within this worker; greater ones are younger.
    pub number: u64,
    /// What was noted about it.
    pub about: About,
    /// The peer, once it is proven.
    pub peer: Option<SpiffeId>,
    /// Since when no byte has moved.
    pub idle: Duration,
    /// Bytes relayed so far: (up, down).
    pub bytes: (u64, u64),
}

/// One open connection's place in the register; it leaves when this is dropped.
pub struct Open {
    key: u64,
    inner: Rc<Inner>,
    registry: Rc<Shared>,
}

struct Inner {
    subject: RefCell<Option<Rc<Subject>>>,
    about: RefCell<Option<About>>,
    cause: Cell<Option<Cause>>,
    draining: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    active: Cell<Instant>,
    /// Whether idleness counts: a handshake has a deadline of its own.
    settled: Cell<bool>,
    /// When the head of a request that has begun must have come.
    head_by: Cell<Option<Instant>>,
    /// Set for HTTP.
    rest: Cell<Option<Rest>>,
    /// How fast the other end sends what this side waits for, and takes what this side has to send.
    pace: [Cell<Pace>; 2],
    up: Cell<u64>,
    down: Cell<u64>,
}

impl Inner {
    fn moved(&self, up: usize, down: usize) {
        self.active.set(Instant::now());
        self.up.set(self.up.get() + up as u64);
        self.down.set(self.down.get() + down as u64);
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    fn close(&self, cause: Cause) {
        if self.cause.get().is_none() {
            self.cause.set(Some(cause));
            self.wake();
        }
    }
}

impl Registry {
    /// Registers a connection that was just accepted; one without `about` is not shown to operators.
    pub fn enter(&self, about: impl Into<Option<About>>) -> Open {
        let about = about.into();
        let shared = &self.shared;
        let key = shared.next.replace(shared.next.get() + 1);
        let inner = Rc::new(Inner {
            subject: RefCell::default(),
            cause: Cell::new(shared.closing.get().then_some(Cause::Drained)),
            draining: Cell::new(about.as_ref().is_some_and(|a| shared.draining[a.direction as usize].get())),
            waker: RefCell::default(),
            active: Cell::new(Instant::now()),
            settled: Cell::new(false),
            head_by: Cell::new(None),
            rest: Cell::new(None),
            pace: Default::default(),
            up: Cell::new(0),
            down: Cell::new(0),
            about: RefCell::new(about),
        });
        shared.entries.borrow_mut().insert(key, Rc::downgrade(&inner));
        Open { key, inner, registry: Rc::clone(shared) }
    }

    /// How many connections are open.
    pub fn len(&self) -> usize {
        self.shared.entries.borrow().len()
    }

    /// The first `most` connections whose number is greater than `after`, in order of their numbers.
    pub fn list(&self, after: Option<u64>, most: usize) -> Vec<Shown> {
        let entries = self.shared.entries.borrow();
        let mut keys: Vec<u64> = entries.keys().copied().filter(|k| after.is_none_or(|a| *k > a)).collect();
        keys.sort_unstable();
        keys.truncate(most);
        let shown = |key: u64| {
            let inner = entries.get(&key)?.upgrade()?;
            Some(Shown {
                number: key,
                about: inner.about.borrow().clone()?,
                peer: inner.subject.borrow().as_ref().and_then(|s| s.id().cloned()),
                idle: inner.active.get().elapsed(),
                bytes: (inner.up.get(), inner.down.get()),
            })
        };
        keys.into_iter().filter_map(shown).collect()
    }

    /// Whether no connection is open.
    pub fn is_empty(&self) -> bool {
        self.shared.entries.borrow().is_empty()
    }

    /// Ends when the last connection leaves.
    pub async fn emptied(&self) {
        poll_fn(|cx| {
            if self.is_empty() {
                return Poll::Ready(());
            }
            *self.shared.emptied.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Ends every connection, those to come included.
    pub fn close_all(&self, cause: Cause) {
        self.shared.closing.set(true);
        self.each(|inner| inner.close(cause));
    }

    /// Asks every connection of one direction to end when it can, those to come included.
    pub fn drain(&self, direction: Direction) {
        self.shared.draining[direction as usize].set(true);
        self.each(|inner| {
            if inner.about.borrow().as_ref().is_some_and(|a| a.direction == direction) {
                inner.draining.set(true);
                inner.wake();
            }
        });
    }

    /// Ends the connections for which `judge` finds a cause. Those whose peer is not proven yet are left to their
    /// handshake, which reads the new snapshots itself.
    pub fn close_where(&self, judge: impl Fn(&Subject) -> Option<Cause>) {
        self.each(|inner| {
            let subject = inner.subject.borrow().clone();
            if let Some(cause) = subject.and_then(|s| judge(&s)) {
                inner.close(cause);
            }
        });
    }

    /// Ends what has been idle for too long and what is too slow; has quiet connections give their buffers back.
    pub fn age(&self, ages: &Ages) {
        let now = Instant::now();
        self.each(|inner| {
            let idle = now.saturating_duration_since(inner.active.get());
            let limit = match inner.rest.get() {
                Some(rest) if rest.requests > 0 && rest.multiplexed => Duration::MAX,
                Some(rest) if rest.requests > 0 => ages.request,
                Some(rest) => {
                    inner.age_at_rest(rest, now);
                    Duration::MAX
                }
                None => ages.connection,
            };
            if idle >= limit && inner.settled.get() {
                inner.close(Cause::IdleTimeout);
            } else if inner.head_by.get().is_some_and(|by| by <= now)
                || inner.pace.iter().any(|pace| too_slow(pace, now, ages.rate))
            {
                inner.close(Cause::TooSlow);
            }
        });
    }

    fn each(&self, act: impl Fn(&Inner)) {
        for inner in self.shared.entries.borrow().values().filter_map(Weak::upgrade) {
            act(&inner);
        }
    }
}

impl Open {
    /// Names the peer, now that it is proven; from here on the connection is judged with the others.
    pub fn prove(&self, subject: Rc<Subject>) {
        *self.inner.subject.borrow_mut() = Some(subject);
        self.settle();
    }

    /// The handshake is over: from here on idleness counts.
    pub fn settle(&self) {
        self.inner.settled.set(true);
        self.inner.active.set(Instant::now());
    }

    /// Notes what operators shall see.
    pub fn note(&self, change: impl FnOnce(&mut About)) {
        if let Some(about) = &mut *self.inner.about.borrow_mut() {
            change(about);
        }
    }

    /// A handle that notes what moves.
    pub fn pulse(&self) -> Pulse {
        Pulse(Rc::clone(&self.inner))
    }

    /// Takes that back: this peer is not the one that the connection goes on with.
    pub fn forget_peer(&self) {
        *self.inner.subject.borrow_mut() = None;
    }

    /// Ends when somebody wants this connection closed.
    pub async fn closed(&self) -> Cause {
        poll_fn(|cx| self.wanted(cx, self.inner.cause.get())).await
    }

    /// Ends when this connection should end as soon as it can.
    pub async fn draining(&self) {
        poll_fn(|cx| self.wanted(cx, self.inner.draining.get().then_some(()))).await;
    }

    /// All wishes wake one task: the connection's own.
    fn wanted<T>(&self, cx: &mut Context<'_>, wish: Option<T>) -> Poll<T> {
        if let Some(wish) = wish {
            return Poll::Ready(wish);
        }
        let mut waker = self.inner.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Does `work`, unless somebody wants this connection closed before it is done; that wish goes first. `work` is pinned
    /// where it is made: taken by value, it would stand in this future twice.
    pub async fn unless_closed<F: Future + Unpin>(&self, work: F) -> Result<F::Output, Cause> {
        tokio::select! {
            biased;
            cause = self.closed() => Err(cause),
            done = work => Ok(done),
        }
    }

    /// Bytes relayed so far: (up, down).
    pub fn bytes(&self) -> (u64, u64) {
        (self.inner.up.get(), self.inner.down.get())
    }

    /// Notes bytes that moved.
    pub fn moved(&self, up: usize, down: usize) {
        self.inner.moved(up, down);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut entries = self.registry.entries.borrow_mut();
        entries.remove(&self.key);
        if entries.is_empty()
            && let Some(waker) = self.registry.emptied.borrow_mut().take()
        {
            waker.wake();
        }
    }
}

/// Counts a relay's bytes in the register and in the metrics.
pub struct Counting<'a> {
    /// The connection.
    pub open: &'a Open,
    /// The metrics' counters: (up, down).
    pub counters:
        (&'a prometheus_client::metrics::counter::Counter, &'a prometheus_client::metrics::counter::Counter),
}

impl Progress for Counting<'_> {
    fn moved(&self, up: usize, down: usize) {
        self.open.moved(up, down);
        self.counters.0.inc_by(up as u64);
        self.counters.1.inc_by(down as u64);
    }
}
