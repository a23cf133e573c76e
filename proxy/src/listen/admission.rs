//! Who may begin a handshake now: a bound over all, a share per source, and a short line for the rest.
//!
//! A peer that connects and stays silent holds a handshake until its deadline. The share keeps one source's silent
//! connections from holding them all; what exceeds it waits in line without costing a handshake, and when one source
//! fills its part of the line too, it is refused.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::worker::Job;

/// Jobs that may wait in line over all sources; each holds a descriptor.
const LINE: usize = 4096;
/// Jobs of one source that may wait, as a multiple of its share.
const LINE_PER_SHARE: usize = 8;
/// Known sources at which those without handshakes are forgotten.
const FORGET_AT: usize = 4096;

/// Connections of the whole proxy, counted by an atomic: giving one back takes no lock.
#[derive(Debug, Clone)]
pub struct Connections(Arc<Count>);

#[derive(Debug)]
struct Count {
    used: AtomicUsize,
    limit: usize,
    freed: Notify,
}

/// One of the proxy's connections.
#[derive(Debug)]
pub struct ConnectionSlot(Arc<Count>);

impl Connections {
    /// At most `limit` at once.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Count { used: AtomicUsize::new(0), limit, freed: Notify::new() }))
    }

    /// Waits until one is free. Only the acceptor's thread takes slots, so checking and taking cannot race.
    pub async fn free(&self) -> ConnectionSlot {
        loop {
            let freed = self.0.freed.notified();
            if self.0.used.load(Ordering::Acquire) < self.0.limit {
                self.0.used.fetch_add(1, Ordering::AcqRel);
                return ConnectionSlot(Arc::clone(&self.0));
            }
            freed.await;
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        // Every accept loop may be waiting; only those do, and only at the limit.
        if self.0.used.fetch_sub(1, Ordering::AcqRel) >= self.0.limit {
            self.0.freed.notify_waiters();
            self.0.freed.notify_one();
        }
    }
}

/// Handshakes in progress, with the line of those that wait. Lives on the acceptor's thread.
#[derive(Debug)]
pub struct Admission {
    total: Arc<Total>,
    limit: usize,
    share: usize,
    state: RefCell<State>,
}

#[derive(Debug)]
struct Total {
    open: AtomicUsize,
    /// Set by the acceptor while somebody waits, so that a handshake's end costs a notification only then.
    waiting: AtomicUsize,
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    sources: HashMap<IpAddr, Source>,
    line: VecDeque<Job>,
}

#[derive(Debug, Default)]
struct Source {
    open: Arc<AtomicUsize>,
    waiting: usize,
}

/// One handshake in progress.
#[derive(Debug)]
pub struct HandshakeSlot {
    total: Arc<Total>,
    source: Arc<AtomicUsize>,
}

impl Drop for HandshakeSlot {
    fn drop(&mut self) {
        self.source.fetch_sub(1, Ordering::AcqRel);
        self.total.open.fetch_sub(1, Ordering::AcqRel);
        if self.total.waiting.load(Ordering::Acquire) > 0 {
            self.total.ended.notify_one();
        }
    }
}

/// What becomes of a job.
#[derive(Debug)]
pub enum Answer {
    /// It may begin; it holds a handshake.
    Go(Job),
    /// It stands in line.
    Wait,
    /// The line is full, or this source's part of it.
    Refuse(Job),
}

impl Admission {
    /// At most `limit` handshakes at once, `share` of them for one source.
    pub fn new(limit: usize, share: usize) -> Self {
        let total =
            Arc::new(Total { open: AtomicUsize::new(0), waiting: AtomicUsize::new(0), ended: Notify::new() });
        Self { total, limit, share, state: RefCell::default() }
    }

    /// Lets a job begin, wait or go.
    pub fn admit(&self, mut job: Job) -> Answer {
        let mut state = self.state.borrow_mut();
        let source = source_of(job.source.ip());
        if state.sources.len() >= FORGET_AT {
            state.sources.retain(|_, s| s.waiting > 0 || s.open.load(Ordering::Acquire) > 0);
        }
        let line_is_full = state.line.len() >= LINE;
        let of_source = state.sources.entry(source).or_default();
        // Whoever stands in line goes first, or a steady stream of newcomers would starve it.
        if of_source.waiting == 0
            && let Some(slot) = self.take(of_source)
        {
            job.handshake = Some(slot);
            return Answer::Go(job);
        }
        if line_is_full || of_source.waiting >= self.share * LINE_PER_SHARE {
            return Answer::Refuse(job);
        }
        of_source.waiting += 1;
        state.line.push_back(job);
        self.total.waiting.store(state.line.len(), Ordering::Release);
        // A handshake may have ended between the look and the store.
        self.total.ended.notify_one();
        Answer::Wait
    }

    /// Wakes when a handshake ended while somebody waits.
    pub async fn handshake_ended(&self) {
        self.total.ended.notified().await;
    }

    /// The jobs of the line that may begin now, each with its slot.
    pub fn admit_waiting(&self) -> Vec<Job> {
        let state = &mut *self.state.borrow_mut();
        let mut ready = Vec::new();
        let mut still = VecDeque::with_capacity(state.line.len());
        for mut job in state.line.drain(..) {
            let of_source = state.sources.entry(source_of(job.source.ip())).or_default();
            match self.take(of_source) {
                Some(slot) => {
                    of_source.waiting = of_source.waiting.saturating_sub(1);
                    job.handshake = Some(slot);
                    ready.push(job);
                }
                None => still.push_back(job),
            }
        }
        state.line = still;
        self.total.waiting.store(state.line.len(), Ordering::Release);
        ready
    }

    /// A slot, if both bounds leave one. Only the acceptor's thread takes, so the two counts cannot race upward.
    fn take(&self, source: &Source) -> Option<HandshakeSlot> {
        let full = self.total.open.load(Ordering::Acquire) >= self.limit
            || source.open.load(Ordering::Acquire) >= self.share;
        if full {
            return None;
        }
        self.total.open.fetch_add(1, Ordering::AcqRel);
        source.open.fetch_add(1, Ordering::AcqRel);
        Some(HandshakeSlot { total: Arc::clone(&self.total), source: Arc::clone(&source.open) })
    }
}

/// What counts as one source: an IPv4 address, or an IPv6 network of 64 bits, which is what one customer gets.
fn source_of(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
        v4 => v4,
    }
}
