//! The port for verifiers that are no proxies: revocation lists and OCSP over plain HTTP, as RFC 5280 and RFC 6960 want them. What
//! is served is signed, so nothing is lost without TLS; everything is bounded, for anybody may ask.
//!
//! `GET /crl/KEY-ID/SHARD.crl` is what certificates name; `GET /crl/KEY-ID.crl` is the whole list, also the root's;
//! `POST /ocsp` and `GET /ocsp/BASE64` ask about single certificates.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_config::file::control::RevocationConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Plane;
use crate::ca::revocation::ocsp::{MAX_REQUEST, Responder};
use crate::ca::revocation::{Lists, Scope};

/// Connections at once.
const CONNECTIONS: usize = 256;
/// How long a request's head may take.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may live.
const LIFE: Duration = Duration::from_secs(30);
/// The longest head, in bytes; a request by GET stands in it.
const MAX_HEAD: usize = 16 * 1024;
/// Pause after a failed accept, so that running out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The port before it is open.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    config: RevocationConfig,
}

impl Door {
    /// Listens; `None` without `listen`.
    pub async fn bind(config: &RevocationConfig) -> Result<Option<Self>, crate::ServeError> {
        let Some(address) = config.listen else { return Ok(None) };
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| crate::ServeError::Listen { address: address.to_string(), source })?;
        Ok(Some(Self { listener, config: config.clone() }))
    }

    /// As bound.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves until `shutdown`.
    pub async fn serve(self, plane: Arc<Plane>, shutdown: CancellationToken) {
        let (ca, store) = (Arc::clone(&plane.ca), plane.store.clone());
        let site = Arc::new(Site {
            responder: Responder::new(Arc::clone(&ca), store.clone(), &self.config),
            lists: Lists::new(ca, store, self.config),
        });
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        let tasks = TaskTracker::new();
        loop {
            let (permit, accepted) = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = async {
                    let permit = Arc::clone(&permits).acquire_owned().await;
                    (permit, self.listener.accept().await)
                } => accepted,
            };
            let Ok(permit) = permit else { break };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let (site, shutdown) = (Arc::clone(&site), shutdown.clone());
            tasks.spawn(async move {
                connection(stream, site, shutdown).await;
                drop(permit);
            });
        }
        tasks.close();
        tasks.wait().await;
    }
}

async fn connection(stream: TcpStream, site: Arc<Site>, shutdown: CancellationToken) {
    let service = service_fn(move |request: Request<Incoming>| {
        let site = Arc::clone(&site);
        async move { Ok::<_, Infallible>(site.answer(request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut served = pin!(served);
    tokio::select! {
        _ = served.as_mut() => return,
        () = shutdown.cancelled() => {}
        () = tokio::time::sleep(LIFE) => {}
    }
    served.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(Duration::from_secs(1), served).await;
}

struct Site {
    lists: Lists,
    responder: Responder,
}

impl Site {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path().to_owned();
        match (request.method(), path.strip_prefix("/crl/"), path.strip_prefix("/ocsp")) {
            (&Method::GET, Some(name), _) => self.list(name).await,
            (&Method::POST, _, Some("" | "/")) => match body(request).await {
                Some(body) => self.ocsp(&body).await,
                None => plain(StatusCode::PAYLOAD_TOO_LARGE),
            },
            // Base64 may hold slashes, and callers differ in which of its signs they escape (RFC 6960 A.1).
            (&Method::GET, _, Some(rest)) if rest.len() > 1 => match from_path(&rest[1..]) {
                Some(body) => self.ocsp(&body).await,
                None => plain(StatusCode::BAD_REQUEST),
            },
            (_, None, None) => plain(StatusCode::NOT_FOUND),
            _ => plain(StatusCode::METHOD_NOT_ALLOWED),
        }
    }

    async fn list(&self, name: &str) -> Response<Full<Bytes>> {
        let Some((key_id, scope)) = list_name(name) else { return plain(StatusCode::NOT_FOUND) };
        match self.lists.list(key_id, scope).await {
            Ok(Some(der)) => content("application/pkix-crl", der, 60),
            Ok(None) => plain(StatusCode::NOT_FOUND),
            Err(error) => {
                tracing::warn!(%error, "a revocation list cannot be signed for now");
                plain(StatusCode::SERVICE_UNAVAILABLE)
            }
        }
    }

    async fn ocsp(&self, request: &[u8]) -> Response<Full<Bytes>> {
        let answer = self.responder.answer(request).await;
        content("application/ocsp-response", answer.der, answer.max_age.min(60))
    }
}

/// `KEY-ID.crl` or `KEY-ID/SHARD.crl`.
fn list_name(name: &str) -> Option<(&str, Scope)> {
    let name = name.strip_suffix(".crl")?;
    let (key_id, scope) = match name.split_once('/') {
        None => (name, Scope::All),
        Some((key_id, shard)) => (key_id, Scope::Shard(shard.parse().ok()?)),
    };
    let is_hex = !key_id.is_empty() && key_id.len() <= 64 && key_id.bytes().all(|b| b.is_ascii_hexdigit());
    is_hex.then_some((key_id, scope))
}

async fn body(request: Request<Incoming>) -> Option<Bytes> {
    let read = Limited::new(request.into_body(), MAX_REQUEST).collect();
    let read = tokio::time::timeout(HEAD, read).await.ok()?.ok()?;
    Some(read.to_bytes())
}

fn from_path(text: &str) -> Option<Vec<u8>> {
    let text = text.replace("%2F", "/").replace("%2f", "/").replace("%2B", "+").replace("%2b", "+");
    let text = text.replace("%3D", "=").replace("%3d", "=");
    base64::engine::general_purpose::STANDARD
        .decode(text.trim_end_matches('/'))
        .ok()
        .filter(|d| d.len() <= MAX_REQUEST)
}

fn content(kind: &'static str, body: Vec<u8>, max_age: i64) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    let cache = match max_age {
        0 => HeaderValue::from_static("no-store"),
        _ => HeaderValue::from_static("public, max-age=60, no-transform, must-revalidate"),
    };
    response.headers_mut().insert(header::CACHE_CONTROL, cache);
    response
}

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}
