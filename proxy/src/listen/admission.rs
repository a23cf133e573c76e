//! Who may begin a handshake now: a bound over all, a share per source, and a short line for the rest.
//!
//! A peer that connects and stays silent holds a handshake until its deadline. The share keeps one source's silent
//! connections from holding them all; what exceeds it waits in line without costing a handshake, and when one source
//! fills its part of the line too, it is refused. A handshake that becomes free goes to the source that holds the fewest:
//! several silent sources may hold them all, but an honest newcomer gets the next one.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::telemetry::Direction;
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
    /// Those that came in from peers.
    inbound: AtomicUsize,
    /// Set once somebody waits for the last of them, so that its end costs a notification only then.
    draining: AtomicBool,
    drained: Notify,
}

/// One of the proxy's connections.
#[derive(Debug)]
pub struct ConnectionSlot {
    count: Arc<Count>,
    direction: Direction,
}

impl Connections {
    /// At most `limit` at once.
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Count {
            used: AtomicUsize::new(0),
            limit,
            freed: Notify::new(),
            inbound: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            drained: Notify::new(),
        }))
    }

    /// Waits until one is free. Only the acceptor's thread takes slots, so checking and taking cannot race.
    pub async fn free(&self, direction: Direction) -> ConnectionSlot {
        loop {
            let freed = self.0.freed.notified();
            if self.0.used.load(Ordering::Acquire) < self.0.limit {
                return self.take(direction);
            }
            freed.await;
        }
    }

    fn take(&self, direction: Direction) -> ConnectionSlot {
        self.0.used.fetch_add(1, Ordering::AcqRel);
        if direction == Direction::Inbound {
            self.0.inbound.fetch_add(1, Ordering::AcqRel);
        }
        ConnectionSlot { count: Arc::clone(&self.0), direction }
    }

    /// Waits until no inbound connection is left. New ones may come as long as somebody accepts them.
    pub async fn no_inbound(&self) {
        // Sequentially consistent here and in the slot's end: one of the two sees what the other wrote.
        self.0.draining.store(true, Ordering::SeqCst);
        loop {
            let drained = self.0.drained.notified();
            tokio::pin!(drained);
            drained.as_mut().enable();
            if self.0.inbound.load(Ordering::SeqCst) == 0 {
                return;
            }
            drained.await;
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        // Every accept loop may be waiting; only those do, and only at the limit.
        let count = &self.count;
        if count.used.fetch_sub(1, Ordering::AcqRel) >= count.limit {
            count.freed.notify_waiters();
            count.freed.notify_one();
        }
        if self.direction == Direction::Inbound
            && count.inbound.fetch_sub(1, Ordering::SeqCst) == 1
            && count.draining.load(Ordering::SeqCst)
        {
            count.drained.notify_waiters();
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
    /// How many jobs wait, over all sources.
    waiting: usize,
}

#[derive(Debug, Default)]
struct Source {
    open: Arc<AtomicUsize>,
    /// How many handshakes it may hold.
    share: usize,
    line: VecDeque<Job>,
}

impl Source {
    fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }
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

    /// Lets a job begin, wait or go. `of_many`: its source is a load balancer that is believed, whose clients share all.
    pub fn admit(&self, mut job: Job, of_many: bool) -> Answer {
        let mut state = self.state.borrow_mut();
        let source = source_of(job.source.ip());
        if state.sources.len() >= FORGET_AT {
            state.sources.retain(|_, s| !s.line.is_empty() || s.open() > 0);
        }
        let line_is_full = state.waiting >= LINE;
        let of_source = state.sources.entry(source).or_default();
        of_source.share = if of_many { self.limit } else { self.share };
        // Whoever of this source stands in line goes first.
        if of_source.line.is_empty()
            && let Some(slot) = self.take(of_source)
        {
            job.handshake = Some(slot);
            return Answer::Go(job);
        }
        if line_is_full || of_source.line.len() >= of_source.share * LINE_PER_SHARE {
            return Answer::Refuse(job);
        }
        of_source.line.push_back(job);
        state.waiting += 1;
        self.total.waiting.store(state.waiting, Ordering::Release);
        // A handshake may have ended between the look and the store.
        self.total.ended.notify_one();
        Answer::Wait
    }

    /// Whether nobody stands in line.
    pub fn line_is_empty(&self) -> bool {
        self.state.borrow().waiting == 0
    }

    /// Wakes when a handshake ended while somebody waits.
    pub async fn handshake_ended(&self) {
        self.total.ended.notified().await;
    }

    /// The jobs that may begin now, each with its slot; the source that holds the fewest handshakes comes first.
    pub fn admit_waiting(&self) -> Vec<Job> {
        let state = &mut *self.state.borrow_mut();
        let mut ready = Vec::new();
        while self.total.open.load(Ordering::Acquire) < self.limit {
            let waiting = state.sources.values_mut().filter(|s| !s.line.is_empty());
            let Some(of_source) = waiting.min_by_key(|s| s.open()) else { break };
            // The fewest are still a full share: everybody who waits holds one.
            let Some(slot) = self.take(of_source) else { break };
            let Some(mut job) = of_source.line.pop_front() else { break };
            state.waiting -= 1;
            job.handshake = Some(slot);
            ready.push(job);
        }
        self.total.waiting.store(state.waiting, Ordering::Release);
        ready
    }

    /// A slot, if both bounds leave one. Only the acceptor's thread takes, so the two counts cannot race upward.
    fn take(&self, source: &Source) -> Option<HandshakeSlot> {
        let full = self.total.open.load(Ordering::Acquire) >= self.limit || source.open() >= source.share;
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

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::time::Instant;

    use super::*;
    use crate::worker::Route;

    /// A job from `source`; its socket is real and goes nowhere.
    fn job(connections: &Connections, listener: &TcpListener, source: [u8; 4]) -> Job {
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        drop(listener.accept().unwrap());
        Job {
            tcp,
            source: SocketAddr::from((source, 1)),
            route: Arc::new(Route::Outbound(crate::outbound::Exit {
                to: crate::outbound::Destination::Service("s".into()),
                protocol: postern_config::file::proxy::Protocol::Tcp,
                rate: None,
            })),
            accepted: Instant::now(),
            connection: connections.take(Direction::Inbound),
            handshake: None,
        }
    }

    #[test]
    fn a_newcomer_gets_the_next_free_handshake_although_silent_sources_hold_them_all() {
        let (connections, listener) = (Connections::new(1000), TcpListener::bind("127.0.0.1:0").unwrap());
        let admission = Admission::new(8, 2);
        let mut held = Vec::new();
        for source in 0..4 {
            for n in 0..2 * 8 {
                match admission.admit(job(&connections, &listener, [10, 0, 0, source]), false) {
                    Answer::Go(job) => held.push(job),
                    Answer::Wait => assert!(n >= 2, "within its share"),
                    Answer::Refuse(_) => panic!("the line has room"),
                }
            }
        }
        assert_eq!(held.len(), 8, "four sources hold all");
        let honest = job(&connections, &listener, [10, 0, 9, 9]);
        assert!(matches!(admission.admit(honest, false), Answer::Wait));
        assert!(admission.admit_waiting().is_empty());
        drop(held.pop());
        let next = admission.admit_waiting();
        assert_eq!(next.len(), 1);
        assert_eq!(next[0].source.ip().to_string(), "10.0.9.9");
    }

    #[test]
    fn one_sources_part_of_the_line_ends_and_everything_is_given_back() {
        let (connections, listener) = (Connections::new(1000), TcpListener::bind("127.0.0.1:0").unwrap());
        let admission = Admission::new(8, 1);
        let answers: Vec<_> =
            (0..12).map(|_| admission.admit(job(&connections, &listener, [10, 0, 0, 1]), false)).collect();
        let refused = answers.iter().filter(|a| matches!(a, Answer::Refuse(_))).count();
        assert_eq!(refused, 12 - 1 - LINE_PER_SHARE);
        drop(answers);
        let mut served = 0;
        while let Some(job) = admission.admit_waiting().pop() {
            served += 1;
            drop(job);
        }
        assert_eq!(served, LINE_PER_SHARE);
        assert_eq!(connections.0.used.load(Ordering::Acquire), 0);
        assert_eq!(admission.total.open.load(Ordering::Acquire), 0);
    }

    #[test]
    fn one_ipv6_network_is_one_source_and_a_mapped_address_is_its_ipv4() {
        let of = |ip: &str| source_of(ip.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
    }
}
