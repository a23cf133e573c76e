//! The operators' port: the same API as over the socket, over mutual TLS, for identities that have a role.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use postern_config::file::control::OperatorRole;
use postern_config::id::SpiffeId;
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::admin::Operator;
use super::callers::Standing;
use super::roles::Access;
use super::{Plane, tls};
use crate::clock::now_ms;

/// Connections at once.
const CONNECTIONS: usize = 256;
/// Pause after a failed accept, so that running out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a handshake or a request's head may take, and a running request to end on a stop.
const PATIENCE: Duration = Duration::from_secs(5);

/// One TLS connection.
#[derive(Clone)]
struct Connected {
    plane: Arc<Plane>,
    chain: Arc<[CertificateDer<'static>]>,
    remote: SocketAddr,
}

/// Serves operators until `shutdown`.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    plane: Arc<Plane>,
    router: Router,
    shutdown: CancellationToken,
) {
    let mut tls = ServerConfig::clone(&tls);
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = async {
                let permit = Arc::clone(&permits).acquire_owned().await;
                (permit, listener.accept().await)
            } => accepted,
        };
        let (Ok(permit), stream) = accepted else { break };
        let Ok((stream, remote)) = stream else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let (acceptor, router, shutdown) = (acceptor.clone(), router.clone(), shutdown.clone());
        let plane = Arc::clone(&plane);
        tasks.spawn(async move {
            let connected = Connected { plane, chain: [].into(), remote };
            connection(acceptor, stream, connected, router, shutdown).await;
            drop(permit);
        });
    }
    tasks.close();
    let _ = tokio::time::timeout(PATIENCE, tasks.wait()).await;
}

async fn connection(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    mut connected: Connected,
    router: Router,
    shutdown: CancellationToken,
) {
    let stream = match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let reason = tls::reason(&error);
            tracing::info!(remote = %connected.remote, %reason, "an operator's handshake failed");
            return;
        }
        Err(_) => return,
    };
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    connected.chain = chain.iter().map(|c| c.clone().into_owned()).collect();
    let router = router.layer(from_fn_with_state(connected, identify));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut served = pin!(served);
    tokio::select! {
        _ = served.as_mut() => return,
        () = shutdown.cancelled() => {}
    }
    served.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(PATIENCE, served).await;
}

/// Says who calls. Asked again for every request: a connection may outlive its certificate, and a revocation is about now.
async fn identify(State(connected): State<Connected>, mut request: Request, next: Next) -> Response {
    let (operator, access) = connected.who();
    request.extensions_mut().insert(Operator(operator));
    request.extensions_mut().insert(access);
    next.run(request).await
}

impl Connected {
    fn who(&self) -> (String, Access) {
        let remote = self.remote.ip().to_string();
        if self.chain.is_empty() {
            return (remote, Access(Err("no_certificate")));
        }
        let world = self.plane.publisher.world();
        let Ok((peer, standing)) = tls::verify(&self.chain, &world, UnixTime::now(), self.plane.grace) else {
            return (remote, Access(Err("bad_certificate")));
        };
        // What is good for renewal alone is not good for this.
        if standing != Standing::Good || peer.not_after < now_ms() / 1000 {
            return (peer.id.to_string(), Access(Err("bad_certificate")));
        }
        let own = peer.id.trust_domain_str() == self.plane.ca.trust_domain().as_str();
        let role = self.plane.role(&peer.id).filter(|_| own);
        (peer.id.to_string(), Access(role.ok_or("no_role")))
    }
}

impl Plane {
    /// What an identity may do as an operator: by the control plane's file or by its own document; the lesser where both speak, so
    /// that neither raises what the other has given.
    pub fn role(&self, id: &SpiffeId) -> Option<OperatorRole> {
        let listed = self.operators.iter().find(|operator| operator.id == *id).map(|operator| operator.role);
        let declared = self.publisher.world().declared.role(id, now_ms());
        match (listed, declared) {
            (Some(listed), Some(declared)) => Some(listed.min(declared)),
            (listed, declared) => listed.or(declared),
        }
    }
}

/// What the socket's callers are: this host's root, or ourselves.
pub fn local() -> Extension<Access> {
    Extension(Access(Ok(OperatorRole::Admin)))
}
