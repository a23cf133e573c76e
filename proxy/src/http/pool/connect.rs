//! A new connection for the pool: dialled, HTTP begun on it, and driven by a task of its own until it ends.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Key, Line, Sender, Speaks};
use crate::dial::{self, Miss};
use crate::discover::Upstream;
use crate::http::{Flow, OnThisThread, Version};
use crate::telemetry::Direction;
use crate::tls::{self, Alpn};
use crate::upstream::circuit::Permit;
use crate::worker::Worker;
use crate::worker::open::Open;

/// How long any connection is taken up again: load finds new endpoints within this time. A random fifth is added, so that
/// those opened together do not go together.
const MAX_AGE: Duration = Duration::from_secs(600);
/// Decoded size of an answer's head.
const HEAD_LIMIT: u32 = 64 * 1024;
/// A dead peer under requests is noticed within the two together.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Dials `key`'s address and begins HTTP there; `permit` is held for as long as the connection.
pub(super) async fn connect(
    worker: &Rc<Worker>,
    key: &Key,
    upstream: Option<&Arc<Upstream>>,
    permit: Permit,
) -> Result<Line, Miss> {
    let open = worker.upstreams.enter(None);
    let (sender, made_with) = match upstream {
        None => {
            let tcp = dial::plain(worker, &key.address).await?;
            let version = if key.speaks == Speaks::Http2 { Version::Http2 } else { Version::Http1 };
            (handshake(worker, tcp, version, open).await?, None)
        }
        Some(upstream) => {
            let snapshots = &worker.shared.snapshots;
            // Taken before the handshake: what is swapped during it makes the connection an old one.
            let made_with = snapshots.credentials.load_full().map(|c| (c, snapshots.trust.load_full()));
            let secured = dial::peer(worker, &open, upstream, &key.address, Alpn::Http).await?;
            worker.balance.borrow_mut().reached(&key.address);
            let version = match tls::agreed(&secured.tls) {
                Some(tls::ALPN_H2) => Version::Http2,
                _ => Version::Http1,
            };
            (handshake(worker, secured.tls, version, open).await?, made_with)
        }
    };
    let now = Instant::now();
    let max_age = MAX_AGE + MAX_AGE.mul_f64(rand::random::<f64>() / 5.0);
    let (active, used) = (Cell::new(0), Cell::new(now));
    Ok(Line { sender: RefCell::new(sender), active, born: now, used, max_age, made_with, _permit: permit })
}

/// Begins HTTP on a connection; its task ends with it, or when `open` is closed.
async fn handshake<S>(worker: &Rc<Worker>, io: S, version: Version, open: Open) -> Result<Sender, Miss>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let failed = |e: hyper::Error| Miss::Unreachable(e.to_string());
    let io = TokioIo::new(io);
    match version {
        Version::Http1 => {
            let (sender, connection) = http1::handshake(io).await.map_err(failed)?;
            tokio::task::spawn_local(drive(Rc::clone(worker), open, connection));
            Ok(Sender::Http1(Some(sender)))
        }
        Version::Http2 => {
            let (sender, connection) = http2::Builder::new(OnThisThread)
                .timer(TokioTimer::new())
                .initial_stream_window_size(Flow::MESH.stream_window)
                .initial_connection_window_size(Flow::MESH.connection_window)
                .max_header_list_size(HEAD_LIMIT)
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .handshake(io)
                .await
                .map_err(failed)?;
            tokio::task::spawn_local(drive(Rc::clone(worker), open, connection));
            Ok(Sender::Http2(sender))
        }
    }
}

async fn drive(worker: Rc<Worker>, open: Open, connection: impl Future<Output = hyper::Result<()>>) {
    // How it ended, the requests that it carried have been told; that the peer refused our certificate, which in TLS 1.3 comes
    // after the handshake, nobody has counted yet.
    let Ok(Err(error)) = open.unless_closed(pin!(connection)).await else { return };
    let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    if let Some(failure) = cause.and_then(tls::received_alert) {
        worker.shared.telemetry.metrics.handshake_failed(Direction::Outbound, failure.reason);
    }
}
