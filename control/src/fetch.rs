//! The one HTTPS client of the control plane: one request, an answer of bounded size in bounded time, from whom it is told to
//! believe.
//!
//! What is asked comes from an operator, what answers may be hostile (an issuer, a foreign trust domain's bundle endpoint). So
//! there is one deadline from the name's resolution to the last byte, heads and bodies are bounded, nothing is decompressed,
//! and the address that was checked is the address that is connected to. A redirect is an answer like any other unless the
//! caller asks for more; then each target passes the same checks as the first URL, and is never remembered.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Body as _;
use hyper_util::rt::TokioIo;
use postern_config::file::url::WebUrl;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

mod address;
mod error;
#[cfg(test)]
mod tests;
mod trust;

pub use error::FetchError;
pub use trust::{Trust, TrustError};

/// From the name's resolution to the last byte.
const DEADLINE: Duration = Duration::from_secs(10);
/// The largest body, in bytes.
const MAX_BODY: usize = 1024 * 1024;
/// The largest head, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// Sends requests to those whom its [`Trust`] believes.
#[derive(Clone)]
pub struct Fetcher {
    connector: TlsConnector,
    deadline: Duration,
    max_body: usize,
    redirects: u8,
    plain_loopback: bool,
}

impl Fetcher {
    /// A client with a deadline of 10 s and a bound of 1 MiB, which follows no redirect and speaks TLS alone. TLS 1.3 or 1.2
    /// with forward secrecy and authenticated encryption, as Mozilla's intermediate profile asks.
    pub fn new(trust: Trust) -> Result<Self, TrustError> {
        Ok(Self {
            connector: trust.connector()?,
            deadline: DEADLINE,
            max_body: MAX_BODY,
            redirects: 0,
            plain_loopback: false,
        })
    }

    /// With another deadline.
    pub fn deadline(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// With another bound for the body, in bytes.
    pub fn max_body(self, max_body: usize) -> Self {
        Self { max_body, ..self }
    }

    /// Follows up to so many redirects of a GET. What is sent on carries none of the request's headers but `accept`.
    pub fn redirects(self, redirects: u8) -> Self {
        Self { redirects, ..self }
    }

    /// Lets `http` URLs pass whose host is a loopback address (127.0.0.0/8 or `[::1]`, as digits): an agent beside this
    /// process.
    pub fn plain_loopback(self) -> Self {
        Self { plain_loopback: true, ..self }
    }

    /// Fetches one URL.
    pub async fn get(&self, url: &str) -> Result<Response<Bytes>, FetchError> {
        let request = Request::get(url).body(Bytes::new());
        self.send(request.map_err(|_| FetchError::Url("write it as https://host/path"))?).await
    }

    /// Sends a request to the absolute URL in it and takes the whole answer, whatever its status.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, FetchError> {
        match tokio::time::timeout(self.deadline, self.exchange(request)).await {
            Ok(result) => result,
            Err(_) => Err(FetchError::Timeout(self.deadline)),
        }
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, FetchError> {
        let mut target = Target::of(request.uri(), self.plain_loopback)?;
        let next = (request.method() == Method::GET).then(|| onward(&request));
        // The first URL is an operator's: it may name this host.
        let (mut answer, mut on_loopback) = self.once(&target, request, true).await?;
        for _ in 0..self.redirects {
            let Some(location) = redirected(&answer) else { return Ok(answer) };
            let Some(onward) = &next else { return Ok(answer) };
            let url = absolute(&target, location)?;
            target = Target::of(&url, self.plain_loopback)?;
            let mut request = Request::new(Bytes::new());
            *request.uri_mut() = url;
            *request.headers_mut() = onward.clone();
            // Whoever answers must not lead us to a service that believes whoever reaches it.
            (answer, on_loopback) = self.once(&target, request, on_loopback).await?;
        }
        match self.redirects > 0 && next.is_some() && redirected(&answer).is_some() {
            true => Err(FetchError::Redirects(self.redirects)),
            false => Ok(answer),
        }
    }

    /// One request and its answer, and whether that came from a loopback address.
    async fn once(
        &self,
        target: &Target,
        request: Request<Bytes>,
        allow_loopback: bool,
    ) -> Result<(Response<Bytes>, bool), FetchError> {
        let (tcp, address) = connect(target, allow_loopback).await?;
        let request = as_sent(request)?;
        let answer = if target.tls {
            let name = target.host.clone().try_into().map_err(|_| FetchError::Url("its host is no name"))?;
            let tls = |source| FetchError::Tls { host: target.host.clone(), source };
            let stream = self.connector.connect(name, tcp).await.map_err(tls)?;
            self.speak(stream, request).await?
        } else {
            self.speak(tcp, request).await?
        };
        Ok((answer, address.is_loopback()))
    }

    async fn speak<S>(&self, stream: S, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, FetchError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await?;
        let exchange = async {
            let answer = sender.send_request(request).await?;
            self.collect(answer).await
        };
        tokio::pin!(exchange);
        // The connection moves the bytes of the exchange, and may end before the last of them is read.
        tokio::select! {
            answer = &mut exchange => answer,
            _ = connection => exchange.await,
        }
    }

    async fn collect(&self, answer: Response<hyper::body::Incoming>) -> Result<Response<Bytes>, FetchError> {
        let encodings = answer.headers().get_all(header::CONTENT_ENCODING);
        if encodings.iter().any(|e| !e.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(FetchError::Compressed);
        }
        let (head, body) = answer.into_parts();
        // One that announces too much is not waited for.
        if body.size_hint().lower() > self.max_body as u64 {
            return Err(FetchError::TooLarge(self.max_body));
        }
        let body = Limited::new(body, self.max_body).collect().await.map_err(|error| {
            match error.downcast::<hyper::Error>() {
                Ok(http) => FetchError::Http(*http),
                Err(other) => {
                    debug_assert!(other.is::<LengthLimitError>());
                    FetchError::TooLarge(self.max_body)
                }
            }
        })?;
        Ok(Response::from_parts(head, body.to_bytes()))
    }
}

impl std::fmt::Debug for Fetcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fetcher({:?}, {} bytes)", self.deadline, self.max_body)
    }
}

/// Where a URL leads.
#[derive(Debug)]
struct Target {
    tls: bool,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    authority: String,
}

impl Target {
    fn of(uri: &Uri, plain_loopback: bool) -> Result<Self, FetchError> {
        let authority = uri.authority().map_or("", |a| a.as_str()).to_owned();
        if authority.contains('@') {
            return Err(FetchError::Url("user and password have no place in it"));
        }
        let host = uri.host().unwrap_or_default();
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host).to_owned();
        let is_loopback = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let tls = match uri.scheme_str() {
            Some("http") if plain_loopback && is_loopback => false,
            Some("http") => return Err(FetchError::Url("it must begin with https://")),
            _ => {
                let strict = uri.to_string().parse::<WebUrl>();
                strict.map_err(|_| FetchError::Url("write it as https://host:port/path"))?;
                true
            }
        };
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self { tls, host, port, authority })
    }
}

async fn connect(target: &Target, allow_loopback: bool) -> Result<(TcpStream, IpAddr), FetchError> {
    let host = &target.host;
    let unknown = |why: String| FetchError::Resolve { host: host.clone(), why };
    let found =
        tokio::net::lookup_host((host.as_str(), target.port)).await.map_err(|e| unknown(e.to_string()))?;
    let mut last = unknown("no address".to_owned());
    for address in found {
        if let Some(what) = address::forbidden(address.ip(), allow_loopback) {
            // Whoever mixes such an address with others tries something, or is badly mistaken.
            return Err(FetchError::Forbidden { host: host.clone(), address: address.ip(), what });
        }
        match TcpStream::connect(address).await {
            Ok(tcp) => return Ok((tcp, address.ip())),
            Err(source) => last = FetchError::Connect { address, source },
        }
    }
    Err(last)
}

/// In origin form, with what this side says of itself.
fn as_sent(request: Request<Bytes>) -> Result<Request<Full<Bytes>>, FetchError> {
    let unfit = |_| FetchError::Url("it does not fit into a request");
    let (mut head, body) = request.into_parts();
    let authority = head.uri.authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
    let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
    head.uri = path.parse().map_err(|_| FetchError::Url("it does not fit into a request"))?;
    head.headers.insert(header::HOST, HeaderValue::try_from(authority).map_err(unfit)?);
    head.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    head.headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static("postern"));
    Ok(Request::from_parts(head, Full::new(body)))
}

/// What a redirected request may carry: credentials were meant for the first URL alone.
fn onward(request: &Request<Bytes>) -> HeaderMap {
    let accept = request.headers().get(header::ACCEPT).cloned();
    accept.map(|accept| (header::ACCEPT, accept)).into_iter().collect()
}

fn redirected(answer: &Response<Bytes>) -> Option<&str> {
    use StatusCode as S;
    let is = matches!(
        answer.status(),
        S::MOVED_PERMANENTLY | S::FOUND | S::SEE_OTHER | S::TEMPORARY_REDIRECT | S::PERMANENT_REDIRECT
    );
    is.then(|| answer.headers().get(header::LOCATION)?.to_str().ok()).flatten()
}

/// A `location` as an absolute URL; a relative one stays with the same host. Only `/path` is taken for relative.
fn absolute(from: &Target, location: &str) -> Result<Uri, FetchError> {
    let scheme = if from.tls { "https" } else { "http" };
    let whole = match location.strip_prefix('/') {
        Some(rest) if !rest.starts_with('/') => format!("{scheme}://{}{location}", from.authority),
        _ => location.to_owned(),
    };
    // A fragment stays with whoever asks.
    let whole = whole.split('#').next().unwrap_or_default();
    whole.parse().map_err(|_| FetchError::Url("a redirect leads nowhere"))
}
