//! The public door: HTTPS for whoever asks, with what anybody may know. No client certificate, GET alone but for the token
//! exchange, bounded in everything.
//!
//! `/bundle` is the trust domain's bundle as a SPIFFE bundle endpoint serves it (SPIFFE Federation §5), in both profiles;
//! `/keys` and `/.well-known/openid-configuration` are for verifiers of JWTs that know OpenID Connect and not SPIFFE. The last
//! two stand below the issuer's path.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_config::bundle::{JwtKey, TrustBundle};
use postern_config::file::control::PublicConfig;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Plane;

mod tls;
mod token;

pub use tls::{Faces, WebError};

/// Connections at once, handshakes included.
const CONNECTIONS: usize = 512;
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a request's head may take.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may live: readers come for a document or two.
const LIFE: Duration = Duration::from_secs(30);
/// The longest head, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// Pause after a failed accept, so that running out of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often the certificate's files are looked at.
const RELOAD: Duration = Duration::from_secs(10);

/// The public door before it is open.
#[derive(Debug)]
pub struct Public {
    listener: TcpListener,
    faces: Arc<Faces>,
    refresh_hint: Duration,
}

impl Public {
    /// Loads the certificate and listens; `None` without `listen`.
    pub async fn bind(
        config: &PublicConfig,
        presented: Arc<super::tls::Presented>,
    ) -> Result<Option<Self>, crate::ServeError> {
        let Some(address) = config.listen else { return Ok(None) };
        let files = config.certificate_file.clone().zip(config.key_file.clone());
        let faces = Arc::new(Faces::load(files, presented)?);
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| crate::ServeError::Listen { address: address.to_string(), source })?;
        Ok(Some(Self { listener, faces, refresh_hint: config.refresh_hint.as_duration() }))
    }

    /// As bound.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves until `shutdown`.
    pub async fn serve(self, plane: Arc<Plane>, shutdown: CancellationToken) {
        let acceptor = match self.faces.server_config() {
            Ok(config) => TlsAcceptor::from(config),
            Err(error) => return tracing::error!(%error, "the public port cannot be served"),
        };
        let site = Arc::new(Site::new(plane, self.refresh_hint));
        let permits = Arc::new(Semaphore::new(CONNECTIONS));
        let tasks = TaskTracker::new();
        let mut reload = tokio::time::interval(RELOAD);
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                _ = reload.tick() => {
                    self.faces.reload();
                    continue;
                }
                accepted = async {
                    let permit = Arc::clone(&permits).acquire_owned().await;
                    (permit, self.listener.accept().await)
                } => accepted,
            };
            let (Ok(permit), stream) = accepted else { break };
            let Ok((stream, remote)) = stream else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let (acceptor, site, shutdown) = (acceptor.clone(), Arc::clone(&site), shutdown.clone());
            tasks.spawn(async move {
                connection(acceptor, stream, remote, site, shutdown).await;
                drop(permit);
            });
        }
        tasks.close();
        tasks.wait().await;
    }
}

async fn connection(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    remote: SocketAddr,
    site: Arc<Site>,
    shutdown: CancellationToken,
) {
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
    let service = service_fn(move |request: Request<Incoming>| {
        let site = Arc::clone(&site);
        async move { Ok::<_, Infallible>(site.answer(request, remote.ip()).await) }
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

/// What is served.
struct Site {
    plane: Arc<Plane>,
    refresh_hint: u64,
    /// The issuer's path, without a slash at its end.
    prefix: String,
}

impl Site {
    fn new(plane: Arc<Plane>, refresh_hint: Duration) -> Self {
        let issuer = plane.tokens.issuer().and_then(|issuer| issuer.parse::<http::Uri>().ok());
        let prefix = issuer.map(|uri| uri.path().trim_end_matches('/').to_owned()).unwrap_or_default();
        Self { plane, refresh_hint: refresh_hint.as_secs().max(1), prefix }
    }

    async fn answer(&self, request: Request<Incoming>, remote: IpAddr) -> Response<Full<Bytes>> {
        let below = request.uri().path().strip_prefix(&self.prefix);
        if let (Some("/token"), Some(exchange)) = (below, &self.plane.exchange) {
            return token::answer(&self.plane, exchange, request, remote).await;
        }
        let document = match (request.uri().path(), below) {
            ("/bundle", _) => self.bundle().map(|b| b.with_refresh_hint(self.refresh_hint).to_document()),
            (_, Some("/keys")) => self.bundle().map(|bundle| keys(&bundle)),
            (_, Some("/.well-known/openid-configuration")) => self.discovery(),
            _ => None,
        };
        let Some(document) = document else { return status(StatusCode::NOT_FOUND) };
        if *request.method() != Method::GET && *request.method() != Method::HEAD {
            return not_allowed("GET, HEAD");
        }
        let mut response = Response::new(Full::new(Bytes::from(document)));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let fresh = format!("public, max-age={}", self.refresh_hint);
        if let Ok(fresh) = HeaderValue::try_from(fresh) {
            headers.insert(header::CACHE_CONTROL, fresh);
        }
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        response
    }

    fn bundle(&self) -> Option<TrustBundle> {
        let world = self.plane.publisher.world();
        world.bundles.of(self.plane.ca.trust_domain().as_str()).map(|bundle| TrustBundle::clone(bundle))
    }

    /// OpenID Connect Discovery §3, as far as it is about keys.
    fn discovery(&self) -> Option<String> {
        let issuer = self.plane.tokens.issuer()?;
        let mut document = json!({
            "issuer": issuer,
            "jwks_uri": format!("{issuer}/keys"),
            "authorization_endpoint": "",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "claims_supported": ["aud", "exp", "iat", "iss", "sub"],
        });
        if self.plane.exchange.is_some() {
            document["token_endpoint"] = format!("{issuer}/token").into();
            document["grant_types_supported"] = json!(["urn:ietf:params:oauth:grant-type:token-exchange"]);
            document["token_endpoint_auth_methods_supported"] = json!(["none"]);
        }
        Some(document.to_string())
    }
}

/// A plain JWK Set (RFC 7517 §5): nothing of SPIFFE in it, which some verifiers would refuse.
fn keys(bundle: &TrustBundle) -> String {
    let keys: Vec<_> = bundle.jwt_keys().iter().map(JwtKey::to_plain_jwk).collect();
    json!({ "keys": keys }).to_string()
}

fn not_allowed(allow: &'static str) -> Response<Full<Bytes>> {
    let mut response = status(StatusCode::METHOD_NOT_ALLOWED);
    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}

fn status(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() = status;
    response
}
