//! The acceptor: one task that owns every listening socket, admits by limit, and hands connections to workers.
//!
//! A permit comes before accept, so what exceeds a limit waits in the kernel's queue. Errors back off, so that a lack of
//! file descriptors cannot spin. Since one thread accepts, its bookkeeping needs no lock, load is spread by looking at it,
//! and a listening socket can be closed or handed on without losing what stands in a per-core queue.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use postern_config::reason::Reason;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::finish;
use crate::os;
use crate::succession::Succession;
use crate::telemetry::{Direction, Record, Telemetry};
use crate::tls::Failure;
use crate::worker::{Admits, Handle, Job, Route};

pub mod admission;
#[cfg(test)]
mod tests;

use admission::{Admission, ConnectionSlot, Connections};

/// Connections that the kernel keeps for us while we are at a limit.
const BACKLOG: i32 = 4096;
/// The first pause after a failed accept; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// Half a second of deafness is the most that a descriptor shortage may add.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A bound socket and what is done with its connections.
#[derive(Debug)]
pub struct Listener {
    socket: std::net::TcpListener,
    route: Arc<Route>,
}

impl Listener {
    /// Binds. An address without a port takes a free one; see [`Listener::address`].
    pub fn bind(address: SocketAddr, route: Route) -> io::Result<Self> {
        Ok(Self::new(bind(address)?, route))
    }

    /// A socket that listens already and does not block.
    pub fn new(socket: std::net::TcpListener, route: Route) -> Self {
        Self { socket, route: Arc::new(route) }
    }

    /// The bound address.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// What is done with its connections.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// A second handle of the same socket, for a successor.
    pub fn duplicate(&self) -> io::Result<std::net::TcpListener> {
        self.socket.try_clone()
    }
}

/// A listening socket at `address` that does not block.
pub fn bind(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the last run's connections to leave TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// What the acceptor needs besides its sockets.
pub struct Acceptor {
    /// All connections of this proxy.
    pub connections: Connections,
    /// Handshakes in progress.
    pub admission: Admission,
    /// Where connections go.
    pub workers: Vec<Handle>,
    /// Counters, and the records of those that are turned away.
    pub telemetry: Telemetry,
}

/// When the acceptor stops, one side after the other.
#[derive(Debug, Clone, Default)]
pub struct Stops {
    /// Ends accepting from peers.
    pub inbound: CancellationToken,
    /// Ends accepting from the app.
    pub outbound: CancellationToken,
    /// Who waits in the queue of a socket that a successor serves is left to it.
    pub succession: Succession,
    /// Nobody waits any longer for anything.
    pub at_once: CancellationToken,
    /// Cancelled by the acceptor once no inbound listener accepts any more.
    pub inbound_closed: CancellationToken,
}

impl Stops {
    fn of(&self, direction: Direction) -> &CancellationToken {
        match direction {
            Direction::Inbound => &self.inbound,
            Direction::Outbound => &self.outbound,
        }
    }
}

/// Accepts on all listeners until both sides are stopped and what was accepted has gone to a worker. A listener that stops
/// still accepts what the kernel has queued for it, since closing it would reset those connections.
pub async fn run(listeners: Vec<Listener>, acceptor: Acceptor, stops: Stops) -> io::Result<()> {
    let acceptor = Rc::new(acceptor);
    let mut inbound = JoinSet::new();
    let mut outbound = JoinSet::new();
    for listener in listeners {
        let (direction, address) = (listener.route.direction(), listener.address()?);
        let socket = os::watch_listener(listener.socket)?;
        let (acceptor, stops) = (Rc::clone(&acceptor), stops.clone());
        let accepting = async move {
            tokio::select! {
                () = stops.of(direction).cancelled() => {}
                () = accept_all(&socket, &listener.route, &acceptor) => {}
            }
            if !stops.succession.includes(address) {
                tokio::select! {
                    () = stops.at_once.cancelled() => {}
                    () = accept_rest(&socket, &listener.route, &acceptor) => {}
                }
            }
        };
        match direction {
            Direction::Inbound => inbound.spawn_local(accepting),
            Direction::Outbound => outbound.spawn_local(accepting),
        };
    }
    let closing = async {
        while inbound.join_next().await.is_some() {}
        stops.inbound_closed.cancel();
        while outbound.join_next().await.is_some() {}
    };
    tokio::select! {
        () = closing => {}
        () = admit_waiting(&acceptor) => {}
    }
    tokio::select! {
        () = stops.at_once.cancelled() => {}
        () = async {
            while !acceptor.admission.line_is_empty() {
                admit_next(&acceptor).await;
            }
        } => {}
    }
    Ok(())
}

async fn accept_all(socket: &AsyncFd<std::net::TcpListener>, route: &Arc<Route>, acceptor: &Acceptor) {
    let mut pause = FIRST_PAUSE;
    loop {
        // Under a flood none of the waits below ever waits: the stop, the line and the other listeners need their turn.
        tokio::task::consume_budget().await;
        // Readable first: a listener on which nobody calls must not sit on a slot.
        let Ok(mut readable) = socket.readable().await else { return };
        let connection = acceptor.connections.free(route.direction()).await;
        let Ok(accepted) = readable.try_io(|socket| socket.get_ref().accept()) else { continue };
        match accepted {
            Ok((tcp, source)) => {
                pause = FIRST_PAUSE;
                acceptor.take(tcp, source, route, connection);
            }
            // The peer went away between the kernel's queue and us.
            Err(e)
                if matches!(e.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
            Err(error) => {
                acceptor.telemetry.metrics.accept_errors.inc();
                tracing::warn!(%error, pause_ms = pause.as_millis() as u64, "cannot accept; pausing");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}

/// Accepts what the kernel has queued. Those who connect meanwhile are served, too, up to a whole queue of them.
async fn accept_rest(socket: &AsyncFd<std::net::TcpListener>, route: &Arc<Route>, acceptor: &Acceptor) {
    for _ in 0..=BACKLOG {
        tokio::task::consume_budget().await;
        let connection = acceptor.connections.free(route.direction()).await;
        match socket.get_ref().accept() {
            Ok((tcp, source)) => acceptor.take(tcp, source, route, connection),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => tokio::time::sleep(FIRST_PAUSE).await,
        }
    }
}

/// Moves waiting connections on whenever a handshake ends.
async fn admit_waiting(acceptor: &Acceptor) {
    loop {
        admit_next(acceptor).await;
    }
}

async fn admit_next(acceptor: &Acceptor) {
    acceptor.admission.handshake_ended().await;
    for job in acceptor.admission.admit_waiting() {
        acceptor.dispatch(job);
    }
}

impl Acceptor {
    fn take(
        &self,
        tcp: std::net::TcpStream,
        source: SocketAddr,
        route: &Arc<Route>,
        connection: ConnectionSlot,
    ) {
        // An error means that the connection has died already.
        if tcp.set_nonblocking(true).and_then(|()| tcp.set_nodelay(true)).is_ok() {
            let (route, accepted) = (Arc::clone(route), Instant::now());
            self.place(Job { tcp, source, route, accepted, connection, handshake: None });
        }
    }

    fn place(&self, job: Job) {
        let Admits::Handshake { of_many } = job.route.admits(job.source.ip()) else {
            return self.dispatch(job);
        };
        let target = Arc::clone(job.route.target());
        match self.admission.admit(job, of_many) {
            admission::Answer::Go(job) => self.dispatch(job),
            admission::Answer::Wait => {
                self.telemetry.metrics.handshakes_queued.inc();
            }
            admission::Answer::Refuse(job) => self.turn_away(&job, target),
        }
    }

    /// Leaves the same traces as any handshake that fails; the connection ends with its job.
    fn turn_away(&self, job: &Job, target: Arc<str>) {
        let failure = Failure::new(Reason::Overload, "too many handshakes are under way or wait");
        let mut record = Record::new(Direction::Inbound, job.source, target);
        record.outcome = finish::refused(&mut record, &failure);
        record.duration = job.accepted.elapsed();
        self.telemetry.metrics.handshake_failed(Direction::Inbound, failure.reason);
        self.telemetry.finish(record);
    }

    /// To the worker that carries the fewest connections.
    fn dispatch(&self, job: Job) {
        if let Some(worker) = self.workers.iter().min_by_key(|w| w.load()) {
            worker.send(job);
        }
    }
}
