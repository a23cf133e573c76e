//! A connection to somebody else: TCP to the app beside this proxy, or to a peer that must prove the expected identity.

use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::time::{timeout, timeout_at};

use crate::discover::Upstream;
use crate::finish;
use crate::telemetry::Direction;
use crate::tls::{Alpn, Failure, Stream};
use crate::upstream::circuit::Full;
use crate::worker::Worker;
use crate::worker::open::{Judged, Open, Subject};

/// Why there is no connection.
#[derive(Debug, Clone)]
pub enum Miss {
    /// No TCP connection.
    Unreachable(String),
    /// A TCP connection, but not to the expected peer.
    Refused(Failure),
    /// Nothing was tried: this proxy has no identity to show.
    NoIdentity(Failure),
    /// Nothing was tried: the upstream's limit is reached.
    Full(Full),
}

/// A connection to a peer that is proven.
pub struct Secured {
    /// The stream.
    pub tls: Stream,
    /// Who it is.
    pub subject: Rc<Subject>,
    /// How long the handshake took, the TCP connection included.
    pub took: Duration,
}

/// Connects to an app or address in plain text.
pub async fn plain(worker: &Worker, address: &str) -> Result<TcpStream, Miss> {
    reach(worker, address).await.map_err(|error| Miss::Unreachable(error.to_string()))
}

async fn reach(worker: &Worker, address: &str) -> io::Result<TcpStream> {
    let limit = worker.shared.limits.connect_timeout.as_duration();
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer within the connect timeout");
    let tcp = timeout(limit, TcpStream::connect(address)).await.map_err(late)??;
    finish::tune(&tcp);
    Ok(tcp)
}

/// Connects to one endpoint of `upstream`, counts how the handshake ended, and registers who was proven in `open`.
pub async fn peer(
    worker: &Worker,
    open: &Open,
    upstream: &Upstream,
    endpoint: &str,
    alpn: Alpn,
) -> Result<Secured, Miss> {
    let metrics = &worker.shared.telemetry.metrics;
    let failed = |failure: Failure| {
        metrics.handshake_failed(Direction::Outbound, failure.reason);
        failure
    };
    if worker.shared.snapshots.usable_credentials().is_none() {
        return Err(Miss::NoIdentity(failed(Failure::no_identity())));
    }
    let begun = Instant::now();
    let tcp = reach(worker, endpoint).await.map_err(|error| match error.kind() {
        // It took the connection, and broke it off before we had looked.
        io::ErrorKind::ConnectionReset => Miss::Refused(failed(Failure::from(error))),
        _ => Miss::Unreachable(error.to_string()),
    })?;
    // A peer that has reset the connection by now has no address any more; it was reached all the same.
    let peer_ip = tcp.peer_addr().map_err(|e| Miss::Refused(failed(Failure::from(e))))?.ip();
    let deadline = Instant::now() + worker.shared.limits.handshake_timeout.as_duration();
    let connecting = pin!(upstream.connector.connect(peer_ip, tcp, alpn));
    let connecting = timeout_at(deadline.into(), worker.turns.take(connecting)).await;
    let secured = connecting.unwrap_or_else(|_| Err(Failure::timeout())).and_then(|(tls, peer)| {
        let subject = Rc::new(Subject { peer: Some(peer), judged: Judged::Never });
        worker.prove(open, &subject)?;
        Ok((tls, subject))
    });
    let (tls, subject) = secured.map_err(|failure| Miss::Refused(failed(failure)))?;
    let took = begun.elapsed();
    metrics.handshake_ok(Direction::Outbound, took);
    Ok(Secured { tls, subject, took })
}

/// The endpoint to try next, and the one that was tried.
pub fn pick(worker: &Worker, endpoints: &[Arc<str>], tried: &[Arc<str>]) -> Option<Arc<str>> {
    worker.balance.borrow().pick(endpoints, tried, worker.uptime(), rand::random()).cloned()
}
