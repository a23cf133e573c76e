//! The proxies' port: permits before accept, a deadline on every handshake, one task per connection, an end on request.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use postern_config::enroll::{EXPORTER_LABEL, EXPORTER_LEN};
use postern_config::reason::Reason;
use postern_config::svid::{Peer, VerifyError};
use postern_config::wire::MAX_REQUEST;
use rustls::ServerConfig;
use rustls::pki_types::UnixTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower_service::Service as _;

use super::Plane;
use super::callers::{Caller, Reached, Standing, admit};
use super::grpc::{ControlService, come_again};
use super::stubs::control_server::ControlServer;
use super::tls::{self, Identified};
use crate::audit;
use crate::clock::now_ms;
use crate::line::{Line, Turn};

/// Handshakes in progress. Each costs the CPU of one signature and may idle until its deadline.
const HANDSHAKES: usize = 256;
/// Connections without a certificate: each one is an enrollment, done in milliseconds.
const ANONYMOUS: usize = 256;
/// Those that wait for their turn: a whole company that starts at once is served in order. Each costs its TLS state.
const ANONYMOUS_WAITING: usize = 16 * 1024;
/// How long they wait: a proxy waits for twenty seconds from here, and the answer takes a while, too.
const ANONYMOUS_PATIENCE: Duration = Duration::from_secs(17);
/// Those for whom the line was too long, while they are told to come again.
const SENT_AWAY: usize = 512;
/// How long telling them may take.
const LAST_WORD: Duration = Duration::from_secs(2);
/// Connections of workloads: a proxy holds one or two.
const WORKLOADS: usize = 16 * 1024;
/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection without a certificate may stay.
const ANONYMOUS_TIMEOUT: Duration = Duration::from_secs(15);
/// Pause after a failed accept, so that running out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often an idle connection is asked whether its peer is there, and how long it may take to answer.
const KEEPALIVE: Duration = Duration::from_secs(15);
const MAX_STREAMS: u32 = 64;
const MAX_HEADERS: u32 = 16 * 1024;
/// Close to every connection's last words on a stop.
const GRACE: Duration = Duration::from_secs(3);

/// What a connection holds as long as it lives.
enum Place<'a> {
    Workload(#[expect(dead_code, reason = "held, not read")] SemaphorePermit<'a>),
    Anonymous(#[expect(dead_code, reason = "held, not read")] Turn<'a>),
}

struct Limits {
    handshakes: Arc<Semaphore>,
    anonymous: Line,
    sent_away: Semaphore,
    workloads: Semaphore,
}

/// Serves proxies until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    plane: Arc<Plane>,
    shutdown: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(config);
    let limits = Arc::new(Limits {
        handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
        anonymous: Line::new(ANONYMOUS, ANONYMOUS_WAITING, plane.metrics.line("anonymous")),
        sent_away: Semaphore::new(SENT_AWAY),
        workloads: Semaphore::new(WORKLOADS),
    });
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &limits.handshakes) => accepted,
        };
        let Some((stream, remote, permit)) = accepted else { continue };
        let (acceptor, plane, limits) = (acceptor.clone(), Arc::clone(&plane), Arc::clone(&limits));
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            match handshake(acceptor, stream, remote, &plane).await {
                Ok((stream, caller)) => {
                    plane.metrics.handshake("");
                    drop(permit);
                    connection(stream, caller, plane, &limits, shutdown).await;
                }
                Err(reason) => {
                    plane.metrics.handshake(reason.as_str());
                    tracing::info!(%remote, %reason, "handshake failed");
                }
            }
        });
    }
    tasks.close();
    let _ = tokio::time::timeout(GRACE, tasks.wait()).await;
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, remote)) => {
            let _ = stream.set_nodelay(true);
            Some((stream, remote, permit))
        }
        Err(error) => {
            tracing::warn!(%error, "accept failed");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn handshake(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    remote: SocketAddr,
    plane: &Plane,
) -> Result<(TlsStream<TcpStream>, Caller), Reason> {
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(tls::reason(&error)),
        Err(_) => return Err(Reason::Timeout),
    };
    let connection = stream.get_ref().1;
    let exporter = [0; EXPORTER_LEN];
    let exporter =
        connection.export_keying_material(exporter, EXPORTER_LABEL, None).map_err(|_| Reason::Internal)?;
    // The handshake has verified this chain already; rustls keeps only that it did, and asking once more per connection
    // is cheaper than a verifier per connection.
    let chain = connection.peer_certificates().unwrap_or_default();
    let leaf = chain.first().map(|leaf| leaf.to_vec()).unwrap_or_default();
    let (mut peer, mut standing, mut foreign) = (None, Standing::Good, None);
    if !chain.is_empty() {
        let (world, pki) = (plane.publisher.world(), plane.pki.as_deref());
        match tls::identify(chain, &world, pki, UnixTime::now(), plane.grace).map_err(|e| e.reason())? {
            Identified::Peer(known, how) => (peer, standing) = (Some(*known), how),
            Identified::Foreign(certificate) => foreign = Some(certificate),
        }
    }
    Ok((stream, Caller { peer, standing, leaf, foreign, exporter, remote }))
}

/// Serves one connection: until its peer leaves, its certificate ends, or the process does.
async fn connection(
    stream: TlsStream<TcpStream>,
    caller: Caller,
    plane: Arc<Plane>,
    limits: &Limits,
    shutdown: CancellationToken,
) {
    let (place, busy) = match caller.peer {
        Some(_) => (limits.workloads.try_acquire().ok().map(Place::Workload), None),
        None => match limits.anonymous.turn(None, ANONYMOUS_PATIENCE).await {
            Ok(turn) => (Some(Place::Anonymous(turn)), None),
            Err(busy) => (limits.sent_away.try_acquire().ok().map(Place::Workload), Some(busy)),
        },
    };
    if place.is_none() || busy.is_some() {
        plane.metrics.refused("connect", Reason::Overload.as_str());
    }
    let Some(_place) = place else { return };
    let life = match &caller.peer {
        _ if busy.is_some() => LAST_WORD,
        // Late: it has come for one call.
        Some(peer) if peer.not_after * 1000 < now_ms() => ANONYMOUS_TIMEOUT,
        Some(peer) => {
            Duration::from_millis((peer.not_after * 1000).saturating_sub(now_ms()).max(0).unsigned_abs())
        }
        None => ANONYMOUS_TIMEOUT,
    };
    let streams = shutdown.child_token();
    let control = ControlServer::new(ControlService::new(Arc::clone(&plane), streams.clone()))
        .max_decoding_message_size(MAX_REQUEST);
    let service = service_fn(move |request: Request<Incoming>| {
        let (control, caller, plane) = (control.clone(), caller.clone(), Arc::clone(&plane));
        async move {
            Ok::<_, std::convert::Infallible>(match busy {
                None => call(control, caller, &plane, request).await,
                Some(busy) => come_again(&busy, "too many callers without a certificate").into_http(),
            })
        }
    });
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = pin!(served);
    tokio::select! {
        _ = served.as_mut() => return,
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(life) => {}
    }
    streams.cancel();
    served.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(GRACE, served).await;
}

/// What the certificate of an open connection is good for by now: its CA may have been tainted since the handshake.
fn standing(peer: &Peer, at_handshake: Standing, plane: &Plane) -> Standing {
    let world = plane.publisher.world();
    match peer.recheck(&world.bundles, &world.revocations, now_ms() / 1000) {
        Ok(()) | Err(VerifyError::Expired { .. }) => at_handshake,
        Err(_) => Standing::Last,
    }
}

fn call(
    mut control: ControlServer<ControlService>,
    caller: Caller,
    plane: &Plane,
    mut request: Request<Incoming>,
) -> impl Future<Output = Response<tonic::body::Body>> {
    let admitted = {
        let own = plane.ca.trust_domain();
        let peer = caller.peer.as_ref().map(|peer| (peer, standing(peer, caller.standing, plane)));
        admit(request.uri().path(), peer, own, plane.grace, now_ms() / 1000)
    };
    async move {
        if let Err(status) = admitted {
            plane.metrics.refused("call", "wrong_caller");
            tracing::info!(remote = %caller.remote, method = request.uri().path(), %status, "call refused");
            return status.into_http();
        }
        let (reached, actor) = (Reached::default(), caller.remote.ip().to_string());
        let action = request.uri().path().rsplit('/').next() == Some("Enroll");
        request.extensions_mut().insert(caller);
        request.extensions_mut().insert(reached.clone());
        let answered = audit::correlated(audit::correlation(), control.call(request));
        let response = match answered.await {
            Ok(response) => response,
            Err(never) => match never {},
        };
        if action && !reached.is_set() {
            plane.registry.unreadable("enroll", &actor).await;
        }
        response
    }
}
