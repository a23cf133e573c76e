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

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use postern_config::file::proxy::ProxyConfig;
use postern_config::id::SpiffeId;
use postern_config::wire::v1;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

pub mod admin;
pub mod clock;
pub mod dial;
pub mod discover;
pub mod drain;
pub mod finish;
pub mod gateway;
pub mod http;
pub mod identity;
pub mod inbound;
pub mod jwt;
pub mod listen;
pub mod os;
pub mod outbound;
pub mod policy;
pub mod prefixed;
pub mod readiness;
pub mod relay;
pub mod snapshot;
mod sockets;
pub mod telemetry;
pub mod tls;
mod traffic;
pub mod upstream;
pub mod worker;

use discover::Services;
use gateway::Gateway;
use identity::join::JoinSource;
use identity::{Driver, IdentityError, Setup};
use readiness::Readiness;
use snapshot::Snapshots;
use sockets::Sockets;
use telemetry::Metrics;
use tls::Tls;
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
    /// A host's files are not good.
    #[error("gateway: {0}")]
    Gateway(#[from] gateway::FilesError),
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
}

impl Ready {
    fn new(bound: Bound, snapshots: &Snapshots) -> Option<Self> {
        let credentials = snapshots.credentials.load_full()?;
        let left = credentials.not_after().saturating_sub(snapshots.clock.now());
        let expires_in = Duration::from_secs(u64::try_from(left).unwrap_or(0));
        Some(Self { id: credentials.id().clone(), expires_in, bound })
    }
}

/// Runs the proxy until `shutdown` is cancelled and its connections have ended or the drain's time is up.
pub fn run(
    config: ProxyConfig,
    join: Option<JoinSource>,
    shutdown: &CancellationToken,
    on_ready: impl FnOnce(&Ready),
) -> Result<(), Error> {
    let config = Arc::new(config);
    let snapshots = Arc::new(Snapshots::default());
    snapshots.services.store(Arc::new(Services::none(config.http.circuit.clone())));
    let metrics = Arc::new(Metrics::new(&snapshots, &config));
    let readiness = Arc::new(Readiness::default());
    let tls = Tls::new(Arc::clone(&snapshots)).map_err(|e| Error::Tls(e.to_string()))?;
    let gateway = config.gateway.as_ref().map(|g| Gateway::load(g, &snapshots, &metrics)).transpose()?;
    let fronts = gateway.as_ref().map_or(&[][..], |g| &g.fronts);
    let sockets = Sockets::bind(&config, fronts, &tls)?;
    let bound = sockets.addresses()?;
    let (telemetry, writer) = telemetry::start(Arc::clone(&metrics), config.otlp.endpoint.as_deref())?;

    let stop_admin = CancellationToken::new();
    let admin = admin::Admin { readiness: Arc::clone(&readiness), metrics: Arc::clone(&metrics) };
    let admin_thread = on_thread("postern-admin", {
        let (socket, stop) = (sockets.metrics, stop_admin.clone());
        move || admin::run(socket, admin, stop)
    })?;

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
    };
    let shared = Shared {
        snapshots,
        tls,
        telemetry,
        limits: Arc::new(config.limits.clone()),
        http: Arc::new(config.http.clone()),
        request_log: config.log.requests,
        started: std::time::Instant::now(),
        drain: CancellationToken::new(),
        drain_outbound: CancellationToken::new(),
    };
    let result = runtime.block_on(async {
        let begun = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            begun = Driver::begin(setup) => begun?,
        };
        let stop_identity = CancellationToken::new();
        let identity = tokio::spawn(begun.run(stop_identity.clone()));
        let traffic = async {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = readiness.ready() => {}
            }
            if let Some(ready) = Ready::new(bound, &shared.snapshots) {
                on_ready(&ready);
            }
            traffic::carry(sockets.listeners, &shared, &config, &readiness, shutdown).await
        };
        let result = traffic.await;
        stop_identity.cancel();
        let _ = identity.await;
        result
    });
    stop_files.cancel();
    files_thread.into_iter().for_each(|thread| drop(thread.join()));
    stop_admin.cancel();
    let _ = admin_thread.join();
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
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        if let Err(error) = LocalSet::new().block_on(&runtime, work()) {
            tracing::error!(thread = label, %error, "a thread of this proxy ended");
        }
    })
}
