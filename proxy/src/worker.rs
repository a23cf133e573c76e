//! A worker: one thread, one runtime, and the connections that it carries. Its state is `Rc` and `RefCell`, so the
//! compiler shows what this design promises: no worker's connection ever waits for another worker's.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use postern_config::file::gateway::EdgeProtocol;
use postern_config::file::http::Http;
use postern_config::file::proxy::{Limits, PeerExpiry, RequestLog};
use postern_config::id::SpiffeId;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use crate::discover::balance::Balance;
use crate::gateway::Front;
use crate::http::introduce::{Elements, Introduction, Shown};
use crate::http::pool::Pool;
use crate::inbound::App;
use crate::listen::admission::{ConnectionSlot, HandshakeSlot};
use crate::outbound::Exit;
use crate::snapshot::Snapshots;
use crate::telemetry::{Direction, Record, Telemetry};
use crate::tls::{Failure, Tls};
use crate::upstream::budget::Budget;

pub mod open;
pub mod show;
#[cfg(test)]
mod tests;
pub mod turns;

use open::{About, Ages, Cause, Facts, Open, Registry, Subject};
use show::{Inquiry, Question};
use turns::Turns;

/// What is looked up at every request, by keys that no peer chooses: hashed quickly, and not against floods.
pub type Lookup<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// How often a worker looks after its open connections: expiry and idleness are noticed within this time.
const TICK: Duration = Duration::from_secs(1);

/// What a listener does with its connections.
#[derive(Debug)]
pub enum Route {
    /// mTLS in, to this app.
    Inbound(App),
    /// Plain in, mTLS out.
    Outbound(Exit),
    /// From outside the mesh, to the hosts of a gateway.
    Gateway(Arc<Front>),
}

impl Route {
    /// Which way its connections go.
    pub fn direction(&self) -> Direction {
        match self {
            Self::Inbound(_) | Self::Gateway(_) => Direction::Inbound,
            Self::Outbound(_) => Direction::Outbound,
        }
    }

    /// The app or the service that its connections are for.
    pub fn target(&self) -> &Arc<str> {
        match self {
            Self::Inbound(app) => &app.address,
            Self::Outbound(exit) => exit.to.name(),
            Self::Gateway(front) => &front.label,
        }
    }

    /// How a connection of this route is admitted: whether it begins with a handshake of ours, and whether its source
    /// stands for many clients.
    pub fn admits(&self, source: IpAddr) -> Admits {
        match self {
            Self::Inbound(_) => Admits::Handshake { of_many: false },
            Self::Gateway(front) if front.protocol != EdgeProtocol::Http => {
                Admits::Handshake { of_many: front.trusts(source) }
            }
            Self::Gateway(_) | Self::Outbound(_) => Admits::Freely,
        }
    }
}

/// How a connection is admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admits {
    /// Without a handshake of ours.
    Freely,
    /// With one; a source that stands for many clients is not held to one client's share.
    Handshake {
        /// Whether it does.
        of_many: bool,
    },
}

/// An accepted connection on its way to a worker, with the permits that it holds.
#[derive(Debug)]
pub struct Job {
    /// The socket, non-blocking.
    pub tcp: std::net::TcpStream,
    /// Who connected.
    pub source: SocketAddr,
    /// What its listener does.
    pub route: Arc<Route>,
    /// When it was accepted; the handshake's deadline counts from here.
    pub accepted: Instant,
    /// One of the proxy's connections.
    pub connection: ConnectionSlot,
    /// One of the handshakes in progress; none where the connection needs no inbound handshake.
    pub handshake: Option<HandshakeSlot>,
}

/// What every worker shares: snapshots and atomics, nothing that locks.
#[derive(Clone)]
pub struct Shared {
    /// What connections read.
    pub snapshots: Arc<Snapshots>,
    /// TLS configs.
    pub tls: Tls,
    /// Counters and records.
    pub telemetry: Telemetry,
    /// Limits and deadlines.
    pub limits: Arc<Limits>,
    /// How HTTP is carried.
    pub http: Arc<Http>,
    /// Which requests are logged.
    pub request_log: RequestLog,
    /// When the proxy started.
    pub started: Instant,
    /// Cancelled once inbound listeners take no more: inbound HTTP connections end in order (GOAWAY, `connection: close`),
    /// idle ones at once. Connections that waited in the kernel's queue come in after it and are served all the same.
    /// Relayed bytes go on until the drain's time is up.
    pub drain: CancellationToken,
    /// The same for the app's own connections; cancelled only after the inbound side has drained, since a request that is
    /// still being answered may need them.
    pub drain_outbound: CancellationToken,
}

impl Shared {
    /// Time since the proxy's start, the same for all workers.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}

/// One worker's state, seen by its own connections alone.
pub struct Worker {
    /// What all workers read.
    pub shared: Shared,
    /// Its open connections.
    pub open: Registry,
    /// HTTP/2 streams in progress.
    pub requests: Registry,
    /// Connections to apps and peers that requests share.
    pub upstreams: Registry,
    /// Those of them that may be taken up again.
    pub pool: Pool,
    /// What it knows about endpoints.
    pub balance: RefCell<Balance>,
    /// Whose turn it is to do a step of a handshake.
    pub turns: Turns,
    /// How many retries each upstream may still be asked for.
    pub budgets: RefCell<Lookup<Arc<str>, Budget>>,
    elements: Elements,
    started: Instant,
}

impl Worker {
    fn new(shared: Shared) -> Self {
        let balance = RefCell::new(Balance::new(shared.http.outlier));
        Self {
            shared,
            open: Registry::default(),
            requests: Registry::default(),
            upstreams: Registry::default(),
            pool: Pool::default(),
            balance,
            turns: Turns::default(),
            budgets: RefCell::default(),
            elements: Elements::default(),
            started: Instant::now(),
        }
    }

    /// Names the peer of an open connection, then asks about it once more. Its certificate was verified when it came, and
    /// how long the handshake went on from there was the peer's choice: what was pushed meanwhile has passed it by.
    pub fn prove(&self, open: &Open, subject: &Rc<Subject>) -> Result<(), Failure> {
        open.prove(Rc::clone(subject));
        let trust = self.shared.snapshots.trust.load();
        let now = self.shared.snapshots.clock.now();
        let Some(peer) = &subject.peer else { return Ok(()) };
        peer.recheck(&trust.bundles, &trust.revoked, now).map_err(|why| {
            open.forget_peer();
            Failure::from(why)
        })
    }

    /// What policy says of a connection whose peer is `id`, noted in its record. None is let in before a policy is held.
    pub fn admits(&self, facts: &Facts, id: Option<&SpiffeId>, record: &mut Record) -> bool {
        let why = match &*self.shared.snapshots.policy.load() {
            None => "no policy is held yet".to_owned(),
            Some(policy) => {
                let verdict = policy.decide(&facts.of(id, policy));
                record.policy = policy.decider(&verdict);
                record.audit = policy.auditor(&verdict);
                record.dry_run = policy.trial(&verdict);
                if verdict.allow {
                    return true;
                }
                policy.policy().explain(&verdict)
            }
        };
        record.denial = Some(ulid::Ulid::new().to_string());
        record.detail = Some(why);
        false
    }

    /// What the app is told of a caller by the leaf that it has shown.
    pub fn introduce(&self, own: Option<&SpiffeId>, leaf: Option<Shown<'_>>) -> Introduction {
        Introduction::new(&self.shared.http, &self.elements, own, leaf)
    }

    /// Time since this worker's start, for [`Balance`].
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }
}

/// The acceptor's end of a worker.
#[derive(Debug, Clone)]
pub struct Handle {
    jobs: mpsc::UnboundedSender<Job>,
    load: Arc<AtomicUsize>,
    inquiry: Inquiry,
}

impl Handle {
    /// Both ends of a worker's queue.
    pub fn new(inquiry: Inquiry) -> (Self, mpsc::UnboundedReceiver<Job>) {
        let (jobs, queue) = mpsc::unbounded_channel();
        (Self { jobs, load: Arc::default(), inquiry }, queue)
    }

    /// The operators' end of this worker.
    pub fn inquiry(&self) -> Inquiry {
        self.inquiry.clone()
    }

    /// Connections that this worker carries or is about to.
    pub fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    /// Hands a connection over. The queue needs no bound of its own: every job holds a connection slot.
    pub fn send(&self, job: Job) {
        self.load.fetch_add(1, Ordering::Relaxed);
        if self.jobs.send(job).is_err() {
            self.load.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A worker that has not begun yet.
pub struct Seat {
    index: usize,
    queue: mpsc::UnboundedReceiver<Job>,
    questions: mpsc::Receiver<Question>,
    load: Arc<AtomicUsize>,
}

/// A worker to be, and the acceptor's end of it.
pub fn seat(index: usize) -> (Handle, Seat) {
    let (inquiry, questions) = Inquiry::new(index);
    let (handle, queue) = Handle::new(inquiry);
    let load = Arc::clone(&handle.load);
    (handle, Seat { index, queue, questions, load })
}

impl Seat {
    /// Starts the worker's thread, on which `beside` runs too. It ends when its handle is dropped, its connections have
    /// ended and `beside` is done; or when `kill` is cancelled: then open connections are closed as drained.
    pub fn start<F: Future<Output = ()> + 'static>(
        self,
        shared: Shared,
        kill: CancellationToken,
        beside: impl FnOnce() -> F + Send + 'static,
    ) -> std::io::Result<std::thread::JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let Self { index, queue, questions, load } = self;
        std::thread::Builder::new().name(format!("postern-worker-{index}")).spawn(move || {
            let worker = Rc::new(Worker::new(shared));
            LocalSet::new().block_on(&runtime, async {
                let beside = tokio::task::spawn_local(beside());
                run(worker, queue, questions, load, kill).await;
                // Its panic was reported where it happened, and what it held was let go of.
                let _ = beside.await;
            });
        })
    }
}

async fn run(
    worker: Rc<Worker>,
    mut queue: mpsc::UnboundedReceiver<Job>,
    questions: mpsc::Receiver<Question>,
    load: Arc<AtomicUsize>,
    kill: CancellationToken,
) {
    // All of them wait outside the loop: a wait that began anew with each connection would take the lock of its waiters' list.
    let rechecks = tokio::task::spawn_local(recheck_at_changes(Rc::clone(&worker)));
    let killing = tokio::task::spawn_local(close_when_killed(Rc::clone(&worker), kill));
    let draining = tokio::task::spawn_local(drain_when_asked(Rc::clone(&worker)));
    let answering = tokio::task::spawn_local(show::answer(Rc::clone(&worker), questions));
    let dealing = Rc::clone(&worker);
    let dealing = tokio::task::spawn_local(async move { dealing.turns.deal().await });
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut accepting = true;
    while accepting || !worker.open.is_empty() {
        tokio::select! {
            job = queue.recv(), if accepting => match job {
                Some(job) => carry(&worker, job, &load),
                None => accepting = false,
            },
            _ = tick.tick() => look_after(&worker),
            () = worker.open.emptied(), if !accepting => {}
        }
    }
    rechecks.abort();
    killing.abort();
    draining.abort();
    answering.abort();
    dealing.abort();
}

async fn recheck_at_changes(worker: Rc<Worker>) {
    let mut changes = worker.shared.snapshots.changes();
    while changes.changed().await.is_ok() {
        recheck(&worker);
    }
}

async fn drain_when_asked(worker: Rc<Worker>) {
    let inbound = worker.shared.drain.clone();
    inbound.cancelled().await;
    worker.open.drain(Direction::Inbound);
    let outbound = worker.shared.drain_outbound.clone();
    outbound.cancelled().await;
    worker.open.drain(Direction::Outbound);
}

async fn close_when_killed(worker: Rc<Worker>, kill: CancellationToken) {
    kill.cancelled().await;
    worker.open.close_all(Cause::Drained);
}

fn carry(worker: &Rc<Worker>, job: Job, load: &Arc<AtomicUsize>) {
    let open = worker.open.enter(About {
        direction: job.route.direction(),
        source: job.source,
        target: Arc::clone(job.route.target()),
        protocol: "tcp",
        policy: None,
        since: job.accepted,
    });
    // Tracked by `open`, which the task holds to its end.
    tokio::task::spawn_local(along(Rc::clone(worker), open, Box::new(job), Carried(Arc::clone(load))));
}

/// The whole way of a connection. The job is boxed, as it goes through futures that would each hold it twice.
async fn along(worker: Rc<Worker>, open: Open, job: Box<Job>, _carried: Carried) {
    match &*Arc::clone(&job.route) {
        Route::Inbound(app) => crate::inbound::serve(&worker, &open, job, app).await,
        Route::Outbound(exit) => crate::outbound::serve(&worker, &open, job, exit).await,
        Route::Gateway(front) => crate::gateway::serve(&worker, &open, job, front).await,
    }
}

/// One connection of a worker's load; given back even where its task panics.
struct Carried(Arc<AtomicUsize>);

impl Drop for Carried {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Asks again about every open connection after policy, bundles or revocations were replaced.
fn recheck(worker: &Worker) {
    let snapshots = &worker.shared.snapshots;
    let trust = snapshots.trust.load();
    let policy = snapshots.policy.load();
    let now = snapshots.clock.now();
    let keep_expired = worker.shared.limits.peer_expiry == PeerExpiry::Keep;
    let judge = |subject: &Subject| {
        if let Some(peer) = &subject.peer {
            // With `keep`, the question is put as of the peer's last valid second.
            let at = if keep_expired { now.min(peer.not_after) } else { now };
            if peer.recheck(&trust.bundles, &trust.revoked, at).is_err() {
                return Some(Cause::TrustChanged);
            }
        }
        let admitted = policy.as_ref().is_none_or(|policy| subject.is_admitted(policy));
        (!admitted).then_some(Cause::PolicyChanged)
    };
    worker.open.close_where(judge);
    worker.upstreams.close_where(judge);
}

/// Once a second: closes what has expired or idled, lets quiet connections give their buffers back.
fn look_after(worker: &Worker) {
    let limits = &worker.shared.limits;
    let now = worker.shared.snapshots.clock.now();
    if limits.peer_expiry == PeerExpiry::Close {
        let judge = |subject: &Subject| {
            subject.peer.as_ref().is_some_and(|p| now > p.not_after).then_some(Cause::PeerExpired)
        };
        worker.open.close_where(judge);
        worker.upstreams.close_where(judge);
    }
    let request = limits.stream_idle_timeout.as_duration();
    let connection = limits.idle_timeout.as_duration();
    worker.open.age(&Ages { connection, request, rate: limits.minimum_rate });
    worker.requests.age(&Ages { connection: request, request, rate: 0 });
    worker.pool.forget(worker);
    worker.balance.borrow_mut().forget(worker.uptime());
}
