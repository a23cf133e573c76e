//! The control plane: it gives every workload an identity, renews it, and tells every proxy what it has to know.
//!
//! # The life of an identity
//! 1. An operator makes a join token for one SPIFFE ID ([`registry`], over [`api::admin`]). The store keeps a hash of its secret.
//! 2. A proxy connects to the gRPC port ([`api::listen`], [`api::tls`]), checks the control plane by the pinned root, and calls
//!    `Enroll` ([`api::grpc`]) with the secret, a certificate request, and its new key's signature over this very connection.
//! 3. [`registry`] judges secret, request and proof, spends the token and signs ([`issue`], [`ca`]), all in one transaction of the
//!    [`store`] together with the record ([`audit`]).
//! 4. The proxy opens `Watch` ([`api::watch`]) with its certificate and is pushed bundles, policies and endpoints as numbered
//!    generations ([`publish`]); it acknowledges each and announces where it listens.
//! 5. Half-way through its life the certificate is renewed with a new key (`Renew`). The old serial stays good until the new one is
//!    used for the first time; a superseded one is refused and put on record.
//!
//! A crash at any point loses nothing that was answered, and lets no token be used twice.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use postern_config::file::control::{ControlConfig, ControlMetricsListen};
use postern_config::id::TrustDomain;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub mod api;
pub mod attest;
pub mod audit;
pub mod backup;
pub mod ca;
pub mod cli;
pub mod clock;
pub mod digest;
pub mod exchange;
pub mod federation;
pub mod fetch;
pub mod health;
mod housekeeping;
pub mod issue;
pub mod jwt;
pub mod limits;
pub mod line;
pub mod publish;
pub mod registry;
pub mod replica;
pub mod revoke;
pub mod store;
pub mod telemetry;

use api::Plane;
use api::public::Public;
use api::tls::Presented;
use clock::{millis, now_ms};

/// The admin socket's name below the data directory.
pub const ADMIN_SOCKET: &str = "admin.sock";

/// Why the control plane does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration contradicts itself.
    #[error("configuration{0}")]
    Config(#[from] postern_config::file::YamlError),
    /// Another process serves this data directory.
    #[error("another `postern serve` uses {}", .0.display())]
    Locked(PathBuf),
    /// First start without a trust domain.
    #[error("this is the first start with {}: say which trust domain it shall be, with --trust-domain", .0.display())]
    NoTrustDomain(PathBuf),
    /// The data belongs to another trust domain.
    #[error("{} belongs to the trust domain {stored}, not {wanted}; use another data directory", data.display())]
    OtherTrustDomain {
        /// The data directory.
        data: PathBuf,
        /// Whose it is.
        stored: String,
        /// What was asked for.
        wanted: TrustDomain,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address or path.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The data directory cannot be used.
    #[error("{}: {source}", path.display())]
    Data {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The keys cannot be used.
    #[error(transparent)]
    Ca(#[from] ca::CaError),
    /// The keys for JWT-SVIDs cannot be used.
    #[error(transparent)]
    Jwt(#[from] jwt::keys::KeysError),
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// An identity could not be taken out of service.
    #[error(transparent)]
    Revoke(#[from] revoke::RevokeError),
    /// The first generation cannot be built.
    #[error(transparent)]
    Publish(#[from] publish::PublishError),
    /// The certificate for the public port cannot be used.
    #[error(transparent)]
    Web(#[from] api::public::WebError),
    /// Checkpoints of the audit record cannot be signed.
    #[error(transparent)]
    Checkpoint(#[from] audit::checkpoint::CheckpointError),
    /// Credentials cannot be judged.
    #[error(transparent)]
    Attest(#[from] attest::AttestError),
    /// The TLS side cannot start.
    #[error(transparent)]
    Tls(#[from] api::tls::TlsError),
}

/// What a started control plane says about itself.
#[derive(Debug, Clone)]
pub struct Ready {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// The root's pin.
    pub root: String,
    /// Where proxies connect, as bound.
    pub listen: SocketAddr,
    /// What join strings carry.
    pub advertise: String,
    /// Where probes are served, as bound.
    pub metrics: Option<SocketAddr>,
    /// Where revocation lists and OCSP are served, as bound.
    pub lists: Option<SocketAddr>,
    /// The public port, as bound.
    pub public: Option<SocketAddr>,
    /// The operators' port, as bound.
    pub api: Option<SocketAddr>,
    /// The operators' socket.
    pub admin: PathBuf,
}

/// Runs the control plane until `shutdown`. `ready` is called once, when every door is open; `waiting` before that, with the
/// fingerprint of the key that an operator has to approve, on a replica that does not hold the root.
pub async fn run(
    config: ControlConfig,
    shutdown: CancellationToken,
    waiting: impl FnMut(&str),
    ready: impl FnOnce(&Ready),
) -> Result<(), ServeError> {
    config.check()?;
    let data = prepare(&config.data)?;
    let _lock = lock(&data)?;
    let replica = replica::name(&data).map_err(|source| ServeError::Data { path: data.clone(), source })?;
    let chain =
        backup::chain(&data, &replica).map_err(|source| ServeError::Data { path: data.clone(), source })?;
    let store = store::Store::open(&location(&config, &data)).await?.recording_as(&chain);
    let trust_domain = trust_domain(&store, &config, &data).await?;
    let keys = data.join("ca");
    let opened = ca::Ca::open(&keys, &config, &trust_domain, &replica, &store, waiting);
    let ca = tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        opened = opened => Arc::new(opened?),
    };

    let listener = listen(config.listen).await?;
    let bound = listener.local_addr().unwrap_or(config.listen);
    let probes = match config.metrics.listen {
        ControlMetricsListen::At(address) => Some(listen(address).await?),
        ControlMetricsListen::Off(_) => None,
    };
    let attestors = Arc::new(attest::Attestors::new(&config.attest, &trust_domain)?);
    let metrics = telemetry::Metrics::new();
    after_restart(&store, &replica).await?;
    let signer =
        audit::checkpoint::Signer::open(&data.join("audit"), &replica, &config.audit, &store).await?;
    let tokens =
        jwt::Tokens::open(&data.join("jwt"), &replica, config.jwt.clone(), store.clone(), metrics.clone())
            .await?;
    let plane = Arc::new(Plane {
        data: data.clone(),
        registry: registry::Registry::new(
            store.clone(),
            Arc::clone(&ca),
            Arc::clone(&attestors),
            config.svid.clone(),
            metrics.clone(),
        ),
        tokens,
        publisher: publish::Publisher::start(
            store.clone(),
            Arc::clone(&ca),
            config.root_namespace.clone(),
            metrics.clone(),
        )
        .await?,
        presented: Arc::new(Presented::new(&ca)?),
        pki: attestors.pki(),
        operators: config.api.operators,
        grace: api::callers::Grace::new(&config.svid),
        rotating: tokio::sync::Mutex::default(),
        health: health::Health::default(),
        proxies: publish::Proxies::default(),
        streams: TaskTracker::new(),
        advertise: config.advertise.clone().unwrap_or_else(|| advertised(bound)),
        exchange: exchange::Exchange::new(&config.exchange, ca.trust_domain())?,
        federation_floor: config.federation.min_interval.as_duration(),
        replica,
        store,
        ca,
        metrics,
    });
    let tls = api::tls::server_config(
        Arc::clone(&plane.presented),
        plane.publisher.subscribe(),
        plane.pki.clone(),
        plane.grace,
    )?;
    let lists = api::lists::Door::bind(&config.revocation).await?;
    let public = Public::bind(&config.public, Arc::clone(&plane.presented)).await?;
    let socket = data.join(ADMIN_SOCKET);
    let operators = api::socket::bind(&socket)
        .map_err(|source| ServeError::Listen { address: socket.display().to_string(), source })?;

    let operators_port = match config.api.listen {
        Some(address) => Some(listen(address).await?),
        None => None,
    };

    let about = Ready {
        api: operators_port.as_ref().and_then(|p| p.local_addr().ok()),
        trust_domain,
        root: plane.ca.authorities().active().pin.to_string(),
        listen: bound,
        advertise: plane.advertise.clone(),
        metrics: probes.as_ref().and_then(|p| p.local_addr().ok()),
        lists: lists.as_ref().and_then(api::lists::Door::address),
        public: public.as_ref().and_then(Public::address),
        admin: socket.clone(),
    };
    let tasks = TaskTracker::new();
    tasks.spawn(api::listen::serve(listener, Arc::clone(&tls), Arc::clone(&plane), shutdown.clone()));
    tasks.spawn(api::socket::serve(
        operators,
        socket,
        api::admin::router(Arc::clone(&plane)),
        shutdown.clone(),
    ));
    if let Some(listener) = operators_port {
        let (tls, plane) = (Arc::clone(&tls), Arc::clone(&plane));
        let router = api::admin::router(Arc::clone(&plane));
        tasks.spawn(api::operators::serve(listener, tls, plane, router, shutdown.clone()));
    }
    tasks.spawn(housekeeping::run(Arc::clone(&plane), shutdown.clone()));
    tasks.spawn(housekeeping::probe_keys(Arc::clone(&plane), shutdown.clone()));
    tasks.spawn(federation::poll::run(Arc::clone(&plane), shutdown.clone()));
    tasks.spawn(signer.run(plane.store.clone(), shutdown.clone()));
    tasks.spawn(housekeeping::follow(Arc::clone(&plane), shutdown.clone()));
    if let Some(probes) = probes {
        tasks.spawn(api::probes::serve(probes, Arc::clone(&plane), shutdown.clone()));
    }
    if let Some(lists) = lists {
        tasks.spawn(lists.serve(Arc::clone(&plane), shutdown.clone()));
    }
    if let Some(public) = public {
        tasks.spawn(public.serve(Arc::clone(&plane), shutdown.clone()));
    }
    ready(&about);

    shutdown.cancelled().await;
    tasks.close();
    tasks.wait().await;
    plane.streams.close();
    plane.streams.wait().await;
    plane.store.close().await;
    Ok(())
}

fn prepare(data: &Path) -> Result<PathBuf, ServeError> {
    ca::files::private_directory(data).map_err(ca::CaError::from)?;
    data.canonicalize().map_err(|source| ServeError::Data { path: data.to_owned(), source })
}

/// Held as long as the process lives; the kernel gives it up when it dies, however it dies.
fn lock(data: &Path) -> Result<File, ServeError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = data.join("lock");
    let open = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = open.map_err(|source| ServeError::Data { path: path.clone(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(ServeError::Locked(data.to_owned())),
        Err(std::fs::TryLockError::Error(source)) => Err(ServeError::Data { path, source }),
    }
}

pub(crate) async fn trust_domain(
    store: &store::Store,
    config: &ControlConfig,
    data: &Path,
) -> Result<TrustDomain, ServeError> {
    let stored = store.fact("trust_domain").await?;
    match (stored, &config.trust_domain) {
        (Some(stored), Some(wanted)) if stored != wanted.as_str() => {
            Err(ServeError::OtherTrustDomain { data: data.to_owned(), stored, wanted: wanted.clone() })
        }
        (Some(stored), _) => stored
            .parse()
            .map_err(|_| store::StoreError::Unreadable { what: "trust domain", value: stored }.into()),
        (None, None) => Err(ServeError::NoTrustDomain(data.to_owned())),
        (None, Some(wanted)) => {
            let mut change = store.change().await?;
            change.set_fact("trust_domain", wanted.as_str()).await?;
            change.commit().await?;
            Ok(wanted.clone())
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Listen { address: address.to_string(), source })
}

/// An unspecified address is no place to connect to; on one host loopback is.
fn advertised(bound: SocketAddr) -> String {
    let ip = match bound.ip() {
        ip if !ip.is_unspecified() => ip,
        _ => std::net::Ipv4Addr::LOCALHOST.into(),
    };
    SocketAddr::new(ip, bound.port()).to_string()
}

/// What has to be put right before the doors open: streams that were open here when the last process ended are gone, and the
/// leases of what they announced start to run.
async fn after_restart(store: &store::Store, replica: &str) -> Result<(), ServeError> {
    let mut change = store.change_rows().await?;
    change.disconnect_all(replica).await?;
    change.release_announcements_of(replica, now_ms() + millis(publish::LEASE)).await?;
    change.commit().await?;
    Ok(())
}

pub(crate) fn location(config: &ControlConfig, data: &Path) -> store::Location {
    match &config.store.url {
        None => store::Location::File(data.join("postern.db")),
        Some(url) => {
            store::Location::Server { url: url.clone(), password_file: config.store.password_file.clone() }
        }
    }
}
