//! What this proxy answers besides its traffic, on a thread and runtime of its own, so that a flood of questions costs no
//! connection anything: probes and metrics for machines, everything else for operators.
//!
//! Three doors. Probes: anybody may ask, nothing secret is said. The Unix socket: this process's own user and root, who may
//! also change things. TCP on loopback, where an operator opens it: read-only and without peers, since every program on
//! the host can reach it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use postern_config::file::proxy::{self as config, ProxyConfig};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::Bound;
use crate::discover::Upstream;
use crate::os::private_socket::{Kind, Occupied, PrivateSocket, PrivateSocketError};
use crate::readiness::Readiness;
use crate::snapshot::Snapshots;
use crate::succession::Succession;
use crate::telemetry::{LogLevel, Metrics};
use crate::worker::show::Inquiry;

mod api;
pub mod client;
mod explain;
mod host;
mod probes;
mod serve;
pub mod text;
mod views;

/// Everything that can be asked about.
pub struct State {
    /// As it is in force: file, environment and flags.
    pub config: Arc<ProxyConfig>,
    /// Where it listens.
    pub bound: Bound,
    /// What connections read.
    pub snapshots: Arc<Snapshots>,
    /// For `/readyz`.
    pub readiness: Arc<Readiness>,
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// The workers, once they run.
    pub workers: Arc<OnceLock<Vec<Inquiry>>>,
    /// Upstreams that the configuration names.
    pub fixed: Vec<Arc<Upstream>>,
    /// The log level.
    pub log: LogLevel,
    /// Cancelled, the drain begins.
    pub shutdown: CancellationToken,
    /// When this process began.
    pub since: Instant,
}

/// The sockets that questions come in by.
pub struct Doors {
    /// For `/livez`, `/readyz` and `/metrics`.
    pub probes: std::net::TcpListener,
    /// For anybody on this host, if it is open.
    pub local: Option<std::net::TcpListener>,
    /// For operators, if it can be had.
    pub operators: Option<PrivateSocket>,
}

/// When the doors open and close.
pub struct Hours {
    /// Cancelled once they may open: at once, or when this process has taken over from another one.
    pub open: CancellationToken,
    /// What to do where somebody answers at the operators' socket.
    pub occupied: Occupied,
    /// Whoever takes a TCP socket over answers there from then on.
    pub succession: Succession,
    /// Cancelled, all end.
    pub stop: CancellationToken,
}

/// The operators' socket as the configuration wants it. One that is not configured is had where it can be: a user's own
/// machine has no `/run/postern`, and traffic does not depend on it.
pub fn place(
    config: &config::Admin,
    occupied: Occupied,
) -> Result<Option<PrivateSocket>, PrivateSocketError> {
    let path = config.socket.as_deref().unwrap_or(Path::new(config::Admin::DEFAULT_SOCKET));
    match PrivateSocket::prepare(path, Kind::Stream, occupied) {
        Err(error) if config.socket.is_none() => {
            tracing::warn!(%error, "there is no admin socket; give it a path with --admin-socket");
            Ok(None)
        }
        prepared => prepared.map(Some),
    }
}

/// Serves all doors until they are closed. `published` is dropped once the operators' socket is found in its place.
pub async fn run(
    doors: Doors,
    state: State,
    hours: Hours,
    published: mpsc::Sender<Infallible>,
) -> std::io::Result<()> {
    let state = Arc::new(state);
    tokio::select! {
        () = hours.open.cancelled() => {}
        () = hours.stop.cancelled() => return Ok(()),
    }
    let probes = async {
        let stop = closing(&hours, doors.probes.local_addr()?);
        let state = Arc::clone(&state);
        let answer = move |request| std::future::ready(probes::answer(&state, &request));
        serve::serve(TcpListener::from_std(doors.probes)?, answer, stop).await
    };
    let local = async {
        let Some(listener) = doors.local else { return Ok(()) };
        let address = listener.local_addr()?;
        let (stop, state) = (closing(&hours, address), Arc::clone(&state));
        let answer = move |request| api::answer(Arc::clone(&state), api::Audience::Local(address), request);
        serve::serve(TcpListener::from_std(listener)?, answer, stop).await
    };
    let operators = async {
        let published = published;
        let Some(socket) = doors.operators else { return Ok(()) };
        let (socket, _place) = socket.publish(hours.occupied).map_err(std::io::Error::other)?;
        drop(published);
        let listener = UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))?;
        let state = Arc::clone(&state);
        let answer = move |request| api::answer(Arc::clone(&state), api::Audience::Operator, request);
        serve::serve(serve::Operators(listener), answer, hours.stop.clone()).await
    };
    let (probes, local, operators) = tokio::join!(probes, local, operators);
    // Not one of them may take the others along; `on_thread` logs the first that failed.
    probes.and(local).and(operators)
}

/// Cancelled when a door at `address` is to be closed.
fn closing(hours: &Hours, address: SocketAddr) -> CancellationToken {
    let closing = hours.stop.child_token();
    let (closed, succession) = (closing.clone(), hours.succession.clone());
    // Ends with the door: `closed` is cancelled at the latest by `stop`.
    tokio::task::spawn_local(async move {
        tokio::select! {
            () = succession.happened() => {
                if succession.includes(address) {
                    closed.cancel();
                }
            }
            () = closed.cancelled() => {}
        }
    });
    closing
}
