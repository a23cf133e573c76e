//! The data plane of Postern: a small proxy beside each workload.
//!
//! # The life of a connection
//!
//! 1. [`listen`]: one thread accepts, a permit first; a handshake needs a second permit, of which each source has a share
//!    ([`listen::admission`]). The socket goes to the [`worker`] that carries the fewest connections.
//! 2. Inbound ([`inbound::serve`]): TLS 1.3 handshake under a deadline ([`tls`]), the peer proven by the one SPIFFE verifier
//!    (`postern_config::svid`); registered as open ([`worker::open`]); judged by [`policy`]; relayed to the app ([`relay`]).
//! 3. Outbound ([`outbound::serve`]): the listener's service gives expected identity and endpoints ([`discover`]), the
//!    handshake must prove exactly that identity, then the same relay.
//! 4. The end: a [`telemetry::Record`] for the log, counters for the metrics.
//!
//! # The life of an identity
//!
//! [`identity`] runs on a thread of its own: join string or cache → certificate → renewal at 40–50 % of its life, and the
//! stream of pushes. It writes the [`snapshot`]s; connections only ever load them.
//!
//! # What shares what
//!
//! Workers share [`snapshot::Snapshots`] (immutable values behind `ArcSwap`), atomics for limits and metrics, and a bounded
//! queue to the telemetry thread. Everything else a connection touches is `Rc`: the compiler keeps workers apart.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use postern_config::file::proxy::ProxyConfig;
use postern_config::id::SpiffeId;
use postern_config::wire::v1;
use tokio::sync::mpsc;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

pub mod acme;
pub mod admin;
pub mod ahead;
pub mod buffers;
pub mod clock;
pub mod dial;
pub mod discover;
pub mod drain;
pub mod finish;
pub mod gateway;
pub mod handover;
pub mod http;
pub mod identity;
pub mod inbound;
pub mod inherit;
pub mod jwt;
pub mod listen;
pub mod os;
pub mod outbound;
pub mod policy;
pub mod prefixed;
pub mod private;
pub mod readiness;
pub mod relay;
pub mod snapshot;
mod sockets;
pub mod succession;
pub mod telemetry;
pub mod tls;
#[cfg(feature = "tpm")]
pub mod tpm;
mod traffic;
pub mod upstream;
pub mod worker;

use discover::Services;
use gateway::Gateway;
use handover::{Giver, HandoverError, Offers};
use identity::join::JoinSource;
use identity::{Driver, IdentityError, Setup};
use inherit::Inherited;
use os::private_socket::{Kind, Occupied, PrivateSocket, PrivateSocketError};
use readiness::Readiness;
use snapshot::Snapshots;
use sockets::Sockets;
use succession::{Pen, Succession};
use telemetry::{LogLevel, Metrics};
use tls::Tls;
use traffic::Wishes;
use worker::Shared;

/// Why the proxy cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listener cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A thread, runtime or socket cannot be made.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
    /// The TLS library refused its settings.
    #[error("the TLS settings cannot be built: {0}")]
    Tls(String),
    /// The thread that accepts connections ended by itself; the log says why.
    #[error("connections are no longer accepted; this proxy stops, so that it can be started again")]
    Deaf,
    /// A host's files are not good, or not this user's alone.
    #[error("gateway: {0}")]
    Gateway(#[from] gateway::LoadError),
    /// The operators' socket, or that of the handover, cannot be had.
    #[error(transparent)]
    PrivateSocket(#[from] PrivateSocketError),
    /// A proxy runs here already and cannot be taken over from.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// There is no identity to be had.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// What is said once traffic is taken.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Who this proxy is.
    pub id: SpiffeId,
    /// How long its certificate lasts.
    pub expires_in: Duration,
    /// Where it listens.
    pub bound: Bound,
}

/// The addresses that were bound: what a free port (`:0`) became.
#[derive(Debug, Clone)]
pub struct Bound {
    /// Inbound listeners, in the order of the configuration.
    pub inbound: Vec<SocketAddr>,
    /// Outbound listeners, in the order of the configuration.
    pub outbound: Vec<SocketAddr>,
    /// A gateway's listeners, in the order of the configuration.
    pub gateway: Vec<SocketAddr>,
    /// Where metrics are served.
    pub metrics: SocketAddr,
    /// Where operators' read-only part is served over TCP.
    pub admin: Option<SocketAddr>,
}

impl Ready {
    fn new(bound: Bound, snapshots: &Snapshots) -> Option<Self> {
        let credentials = snapshots.credentials.load_full()?;
        let left = credentials.not_after().saturating_sub(snapshots.clock.now());
        let expires_in = Duration::from_secs(u64::try_from(left).unwrap_or(0));
        Some(Self { id: credentials.id().clone(), expires_in, bound })
    }
}

/// What a run begins with.
pub struct Start {
    /// As it is in force.
    pub config: ProxyConfig,
    /// Where the join string comes from.
    pub join: Option<JoinSource>,
    /// The log level, for operators to change.
    pub log: LogLevel,
    /// Sockets that were bound for this process before it began.
    pub inherited: Inherited,
}

/// Runs the proxy until `shutdown` is cancelled and its connections have ended or the drain's time is up.
pub fn run(start: Start, shutdown: &CancellationToken, on_ready: impl FnOnce(&Ready)) -> Result<(), Error> {
    let Start { config, join, log, mut inherited } = start;
    // Whoever passed them keeps them: callers that come while this process is replaced wait in their queues.
    let sockets_stay = !inherited.is_empty();
    let config = Arc::new(config);
    let snapshots = Arc::new(Snapshots::default());
    snapshots.services.store(Arc::new(Services::none(config.http.circuit.clone())));
    let metrics = Arc::new(Metrics::new(&snapshots, &config));
    let readiness = Arc::new(Readiness::default());
    let tls = Tls::new(Arc::clone(&snapshots), config.limits.verified_chains, metrics.chains.clone());
    let tls = tls.map_err(|e| Error::Tls(e.to_string()))?;
    let gateway =
        config.gateway.as_ref().map(|g| Gateway::load(g, &config.http, &snapshots, &metrics)).transpose()?;
    let pen = Pen::default();
    let mut predecessor = match &config.handover.socket {
        Some(path) => handover::take(path, &mut inherited)?,
        None => None,
    };
    // Until it is told that this process serves, the identity is its own to renew.
    let mut not_yet_ours = predecessor.as_ref().and_then(|_| pen.try_take());
    let occupied = if predecessor.is_some() { Occupied::Replace } else { Occupied::Refuse };
    let fronts = gateway.as_ref().map_or(&[][..], |g| &g.fronts);
    let sockets = Sockets::bind(&config, fronts, &tls, &mut inherited)?;
    for address in inherited.unclaimed() {
        tracing::warn!(%address, "a socket was passed that no listener of this configuration has; it is closed here");
    }
    drop(inherited);
    let bound = sockets.addresses()?;
    let operators = admin::place(&config.admin, occupied)?;
    let (telemetry, writer) = telemetry::start(Arc::clone(&metrics), config.otlp.endpoint.as_deref())?;

    let (doors_open, doors_close) = (CancellationToken::new(), CancellationToken::new());
    if predecessor.is_none() {
        doors_open.cancel();
    }
    let (succession, workers) = (Succession::default(), Arc::new(OnceLock::new()));
    let state = admin::State {
        config: Arc::clone(&config),
        bound: bound.clone(),
        snapshots: Arc::clone(&snapshots),
        readiness: Arc::clone(&readiness),
        metrics: Arc::clone(&metrics),
        workers: Arc::clone(&workers),
        fixed: sockets.fixed.clone(),
        log,
        shutdown: shutdown.clone(),
        since: Instant::now(),
    };
    let (offers, giver_thread) = match &config.handover.socket {
        None => (Offers::default(), None),
        Some(path) => {
            let socket = PrivateSocket::prepare(path, Kind::Messages, occupied)?;
            let offers = sockets.offers()?;
            let giver = Giver { offers: offers.clone(), pen: pen.clone(), succession: succession.clone() };
            (offers, Some((socket, giver)))
        }
    };
    let serving = CancellationToken::new();
    // Who reads that this process is ready finds its sockets in their places: nothing is sent, all senders go.
    let (published, mut all_published) = mpsc::channel(1);
    let mut side_threads = Vec::new();
    if let Some((socket, giver)) = giver_thread {
        let (open, stop, published) = (serving.clone(), doors_close.clone(), published.clone());
        let giving = move || giver.run(socket, occupied, open, stop, published);
        side_threads.push(on_thread("postern-handover", giving)?);
    }
    let doors = admin::Doors { probes: sockets.metrics, local: sockets.admin, operators };
    let hours = admin::Hours {
        open: doors_open.clone(),
        occupied,
        succession: succession.clone(),
        stop: doors_close.clone(),
    };
    side_threads.push(on_thread("postern-admin", move || admin::run(doors, state, hours, published))?);

    let stop_files = CancellationToken::new();
    let files_thread = gateway.map(|gateway| {
        let stop = stop_files.clone();
        on_thread("postern-files", move || gateway.keep(stop))
    });
    let files_thread = files_thread.transpose()?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let setup = Setup {
        endpoints: announcements(&config, &bound.inbound),
        config: Arc::clone(&config),
        snapshots: Arc::clone(&snapshots),
        tls: tls.clone(),
        metrics: Arc::clone(&metrics),
        readiness: Arc::clone(&readiness),
        join,
        pen,
    };
    let shared = Shared {
        snapshots,
        tls,
        telemetry,
        limits: Arc::new(config.limits.clone()),
        http: Arc::new(config.http.clone()),
        request_log: config.log.requests,
        started: Instant::now(),
        drain: CancellationToken::new(),
        drain_outbound: CancellationToken::new(),
    };
    let result = runtime.block_on(async {
        let begun = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            begun = Driver::begin(setup) => begun?,
        };
        let stop_identity = CancellationToken::new();
        // Announcements are taken back where nobody will listen any more.
        let leaves = if sockets_stay { CancellationToken::new() } else { shutdown.clone() };
        let identity = tokio::spawn(begun.run(leaves, stop_identity.clone()));
        let mut waiting = tokio::task::JoinSet::new();
        let traffic = async {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = readiness.ready() => {}
            }
            let on_started = async |inquiries| {
                let _ = workers.set(inquiries);
                doors_open.cancel();
                let leaving = predecessor.take().and_then(|predecessor| predecessor.ready(&bound.all()));
                let longest = shared.snapshots.credentials.load().as_ref().map_or(Duration::ZERO, |c| {
                    let left = c.not_after().saturating_sub(shared.snapshots.clock.now());
                    Duration::from_secs(u64::try_from(left).unwrap_or(0) / 2)
                });
                // Once this process renews, the predecessor hears of no policy any more: it may end first, if it does not
                // take half of what is left of the certificate.
                let held = not_yet_ours.take();
                waiting.spawn(async move {
                    if let Some(leaving) = leaving {
                        let _ = tokio::time::timeout(longest, leaving.gone()).await;
                    }
                    drop(held);
                });
                serving.cancel();
                let _: Option<Infallible> = all_published.recv().await;
                if let Some(ready) = Ready::new(bound, &shared.snapshots) {
                    on_ready(&ready);
                }
            };
            let wishes = Wishes { shutdown, succession: &succession, offers: &offers };
            traffic::carry(sockets.listeners, &shared, &config, &readiness, wishes, on_started).await
        };
        let result = traffic.await;
        stop_identity.cancel();
        let _ = identity.await;
        result
    });
    stop_files.cancel();
    files_thread.into_iter().for_each(|thread| drop(thread.join()));
    doors_close.cancel();
    side_threads.into_iter().for_each(|thread| drop(thread.join()));
    drop(shared);
    writer.join();
    result
}

/// What this proxy tells the control plane about its inbound listeners.
fn announcements(config: &ProxyConfig, bound: &[SocketAddr]) -> Vec<v1::Announcement> {
    let announced = config.inbound.iter().zip(bound).filter_map(|(inbound, bound)| {
        let announce = inbound.announce.as_ref()?;
        let address = announce.address.clone().unwrap_or_else(|| bound.to_string());
        Some(v1::Announcement { service: announce.service.clone(), address })
    });
    announced.collect()
}

/// Runs a future on a new thread with a runtime of its own.
fn on_thread<F, Fut>(name: &str, work: F) -> std::io::Result<std::thread::JoinHandle<()>>
where
    F: FnOnce() -> Fut + Send + 'static,
    Fut: Future<Output = std::io::Result<()>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let label = name.to_owned();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || LocalSet::new().block_on(&runtime, told(&label, work())))
}

/// Tells the log where work that should go on has ended.
async fn told(label: &str, work: impl Future<Output = std::io::Result<()>>) {
    if let Err(error) = work.await {
        tracing::error!(thread = label, %error, "a thread of this proxy ended");
    }
}
