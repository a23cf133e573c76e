//! Certificate files that change while the gateway runs: noticed, read, checked, and taken into use or refused.
//!
//! What is watched are directories, and those of every symbolic link on the way: Kubernetes swaps a `..data` link, others
//! rename a file or a whole directory into place. Watching comes before reading, so that no change falls between the two.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use postern_config::file::gateway::{self as config, ClientCertificateMode, MinTls};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::hosts::{Host, Way};
use crate::snapshot::Snapshots;
use crate::telemetry::Metrics;
use crate::tls::{edge, sha256};

#[cfg(test)]
mod tests;

/// How long it must be quiet before files are read: chain and key are often written one after the other.
const QUIET: Duration = Duration::from_millis(200);
/// The longest that a directory which is never quiet can put reading off.
const LONGEST: Duration = Duration::from_secs(2);
/// Network file systems tell nothing of changes; a look at a few small files costs nothing.
const LOOK: Duration = Duration::from_secs(30);
/// The largest file that is read; revocation lists grow.
const MAX_FILE: u64 = 16 * 1024 * 1024;
/// Links on the way to one file, as the kernel allows.
const MAX_LINKS: usize = 40;

/// Why a host's files are not taken into use.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// One cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What they hold is not good.
    #[error("{what} ({})", files.join(", "))]
    Material {
        /// What is wrong.
        what: edge::MaterialError,
        /// The files that were read.
        files: Vec<String>,
    },
}

/// The files of one host whose TLS ends here.
#[derive(Debug)]
pub(super) struct Files {
    config: config::Host,
    seen: [u8; 32],
    /// Where ACME keeps the certificate with its key, for a host that gets one so. It may not be there yet.
    issued: Option<PathBuf>,
}

/// Everything that was read for one host.
struct Contents {
    chain: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    ca: Vec<Vec<u8>>,
    crl: Vec<Vec<u8>>,
}

impl Files {
    /// Reads a host's files for the first time.
    pub(super) fn load(
        config: &config::Host,
        issued: Option<PathBuf>,
        snapshots: &Arc<Snapshots>,
    ) -> Result<(Self, edge::Server), FilesError> {
        let mut files = Self { config: config.clone(), seen: [0; 32], issued };
        let contents = files.read();
        files.seen = seen(&contents);
        match contents.and_then(|contents| files.build(&contents, snapshots)) {
            Ok(server) => Ok((files, server)),
            // It is on its way; what stands beside it must be there from the start.
            Err(_) if files.issued.as_ref().is_some_and(|path| !path.exists()) => {
                let clients = &config.client_certificate;
                clients.ca.iter().chain(&clients.crl).try_for_each(|path| read(path).map(drop))?;
                Ok((files, edge::Server::awaiting(snapshots)))
            }
            Err(error) => Err(error),
        }
    }

    fn paths(&self) -> impl Iterator<Item = &Path> {
        let certificate = self.config.certificate.iter().flat_map(|c| [&c.chain, &c.key]).flatten();
        let certificate = certificate.chain(&self.issued);
        let clients = &self.config.client_certificate;
        certificate.chain(&clients.ca).chain(&clients.crl).map(PathBuf::as_path)
    }

    fn read(&self) -> Result<Contents, FilesError> {
        let all = |paths: &[PathBuf]| paths.iter().map(|p| read(p)).collect::<Result<Vec<_>, _>>();
        let one = |path: Option<&PathBuf>| path.map_or(Ok(Vec::new()), |p| read(p));
        let certificate = self.config.certificate.as_ref();
        Ok(Contents {
            chain: one(self.issued.as_ref().or(certificate.and_then(|c| c.chain.as_ref())))?,
            key: Zeroizing::new(one(self.issued.as_ref().or(certificate.and_then(|c| c.key.as_ref())))?),
            ca: all(&self.config.client_certificate.ca)?,
            crl: all(&self.config.client_certificate.crl)?,
        })
    }

    fn build(&self, contents: &Contents, snapshots: &Arc<Snapshots>) -> Result<edge::Server, FilesError> {
        let names: Vec<&str> = self.config.names.iter().map(config::HostName::as_str).collect();
        let rule = |required| edge::ClientRule { required, ca: &contents.ca, crl: &contents.crl };
        let recipe = edge::Recipe {
            proof: match &self.config.certificate {
                Some(config::Certificate { identity: true, .. }) => edge::Proof::Identity,
                _ => edge::Proof::Files { chain: &contents.chain, key: &contents.key },
            },
            clients: match self.config.client_certificate.mode {
                ClientCertificateMode::None => None,
                ClientCertificateMode::Optional => Some(rule(false)),
                ClientCertificateMode::Required => Some(rule(true)),
            },
            tls12: self.config.min_tls == MinTls::V12,
            names: &names,
        };
        let server = edge::Server::build(&recipe, snapshots).map_err(|what| FilesError::Material {
            what,
            files: self.paths().map(|p| p.display().to_string()).collect(),
        })?;
        for warning in &server.warnings {
            tracing::warn!(host = names.first().copied().unwrap_or_default(), "{warning}");
        }
        Ok(server)
    }
}

impl Contents {
    fn digest(&self) -> [u8; 32] {
        let parts = [&self.chain, &*self.key].into_iter().chain(&self.ca).chain(&self.crl);
        let each: Vec<u8> = parts.flat_map(|part| sha256(part)).collect();
        sha256(&each)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, FilesError> {
    let failed = |source| FilesError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(failed(std::io::Error::other("is larger than 16 MiB"))),
        false => Ok(bytes),
    }
}

/// Looks after the files of all hosts. Lives on a thread of its own: reading a file may wait for a disk.
pub(super) struct Keeper {
    hosts: Vec<(Arc<Host>, Files)>,
    snapshots: Arc<Snapshots>,
    metrics: Arc<Metrics>,
}

impl Keeper {
    pub(super) fn new(
        hosts: Vec<(Arc<Host>, Files)>,
        snapshots: Arc<Snapshots>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let keeper = Self { hosts, snapshots, metrics };
        keeper.show();
        keeper
    }

    /// Takes changes into use until `stop`.
    pub(super) async fn run(mut self, stop: CancellationToken) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let mut hangup = signal(SignalKind::hangup())?;
        let changed = Arc::new(Notify::new());
        let mut watch = Watch::new(&changed);
        watch.renew(self.directories());
        // What changed since the first read was not watched.
        self.look();
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = changed.notified() => quiet(&changed).await,
                _ = hangup.recv() => tracing::info!("SIGHUP: certificate files are read again"),
                () = sleep(self.until_next()) => {}
            }
            watch.renew(self.directories());
            self.look();
        }
    }

    fn directories(&self) -> BTreeSet<PathBuf> {
        self.hosts.iter().flat_map(|(_, files)| files.paths()).flat_map(directories).collect()
    }

    /// Until somebody must look although nothing was heard of.
    fn until_next(&self) -> Duration {
        let now = self.snapshots.clock.now();
        let due = self.hosts.iter().filter_map(|(host, _)| match &host.way {
            Way::Terminate(server) => server.load().rebuild_at,
            _ => None,
        });
        let soonest = due.min().map(|at| Duration::from_secs(u64::try_from(at - now).unwrap_or(0)));
        soonest.map_or(LOOK, |due| due.clamp(Duration::from_secs(1), LOOK))
    }

    fn look(&mut self) {
        let mut changed = false;
        for (host, files) in &mut self.hosts {
            let Way::Terminate(server) = &host.way else { continue };
            changed |= refresh(host, files, server, &self.snapshots, &self.metrics);
        }
        if changed {
            self.show();
        }
    }

    fn show(&self) {
        let expiry = |(host, _): &(Arc<Host>, Files)| match &host.way {
            Way::Terminate(server) => server.load().not_after.map(|at| (Arc::clone(&host.label), at)),
            _ => None,
        };
        self.metrics.gateway.certificates(self.hosts.iter().filter_map(expiry).collect());
    }
}

/// Whether something new is in use. What was refused once is not tried again until it changes.
fn refresh(
    host: &Host,
    files: &mut Files,
    server: &arc_swap::ArcSwap<edge::Server>,
    snapshots: &Arc<Snapshots>,
    metrics: &Metrics,
) -> bool {
    let due = server.load().rebuild_at.is_some_and(|at| snapshots.clock.now() >= at);
    let read = files.read();
    let seen = seen(&read);
    if seen == files.seen && !due {
        return false;
    }
    files.seen = seen;
    match read.and_then(|contents| files.build(&contents, snapshots)) {
        Ok(new) => {
            tracing::info!(
                host = &*host.label,
                not_after = new.not_after,
                "certificate files taken into use"
            );
            server.store(Arc::new(new));
            metrics.gateway.reloads_ok.inc();
            true
        }
        Err(error) => {
            metrics.gateway.reloads_failed.inc();
            if due {
                tracing::error!(host = &*host.label, %error, "a client CA has ended and nothing can take its place: the host is closed");
                server.store(Arc::new(server.load().closed()));
            } else {
                tracing::error!(host = &*host.label, %error, "certificate files refused; the last good ones stay in use");
            }
            due
        }
    }
}

fn seen(read: &Result<Contents, FilesError>) -> [u8; 32] {
    match read {
        Ok(contents) => contents.digest(),
        // Told apart from every file, so that its return is noticed.
        Err(error) => sha256(error.to_string().as_bytes()),
    }
}

/// Waits until nothing has changed for a while.
async fn quiet(changed: &Notify) {
    let longest = Instant::now() + LONGEST;
    loop {
        tokio::select! {
            () = changed.notified() => {}
            () = sleep(QUIET) => return,
            () = sleep_until(longest) => return,
        }
    }
}

/// The directories that are watched.
struct Watch {
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
}

impl Watch {
    fn new(changed: &Arc<Notify>) -> Self {
        let changed = Arc::clone(changed);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Our own reading is an event, too.
            let reading = event.as_ref().is_ok_and(|e| {
                use notify::event::{AccessKind, AccessMode, EventKind};
                matches!(e.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write))
            });
            if !reading {
                changed.notify_one();
            }
        });
        if let Err(error) = &watcher {
            tracing::warn!(%error, look_s = LOOK.as_secs(), "changes of files cannot be watched; they are looked at instead");
        }
        Self { watcher: watcher.ok(), watched: BTreeSet::new() }
    }

    /// Watches exactly these. All of them anew: a directory that was replaced keeps its name and loses its watch.
    fn renew(&mut self, directories: BTreeSet<PathBuf>) {
        let Some(watcher) = &mut self.watcher else { return };
        for old in std::mem::take(&mut self.watched) {
            // It may be gone, and its watch with it.
            let _ = watcher.unwatch(&old);
        }
        for directory in directories {
            match watcher.watch(&directory, RecursiveMode::NonRecursive) {
                Ok(()) => drop(self.watched.insert(directory)),
                Err(error) => tracing::debug!(directory = %directory.display(), %error, "cannot be watched"),
            }
        }
    }
}

/// The directories in which a change may change what `path` leads to: that of the file, and that of each link on the way.
fn directories(path: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut rest: Vec<PathBuf> = Vec::new();
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut here = PathBuf::from("/");
    let push = |rest: &mut Vec<PathBuf>, path: &Path| {
        rest.extend(path.components().rev().map(|c| PathBuf::from(c.as_os_str())));
    };
    push(&mut rest, &absolute);
    let mut links = 0;
    while let Some(next) = rest.pop() {
        match next.components().next() {
            Some(Component::RootDir) => here = PathBuf::from("/"),
            Some(Component::ParentDir) => drop(here.pop()),
            Some(Component::Normal(name)) => match here.join(name).read_link() {
                Ok(target) if links < MAX_LINKS => {
                    links += 1;
                    found.insert(here.clone());
                    push(&mut rest, &target);
                }
                _ if rest.is_empty() => drop(found.insert(here.clone())),
                _ => here.push(name),
            },
            _ => {}
        }
    }
    found
}
