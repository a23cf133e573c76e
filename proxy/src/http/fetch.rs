//! One request to a server of the web, with an answer of bounded size in bounded time: for JWKS and ACME.
//!
//! What is asked there comes from the configuration, but its name is resolved by others. So the address is checked after
//! resolution, and the connection goes to the address that was checked. Redirects are answers like any other: nothing
//! follows them. Nothing is decompressed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ::http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::tls::web::{RootsError, WebConnector};

#[cfg(test)]
mod tests;

/// The head of an answer, in bytes.
const MAX_HEAD: usize = 64 * 1024;

/// Whom to ask, and how far to go.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// A PEM file with CAs; `None` takes the host's store. It is read for every request, so that it may change.
    pub ca: Option<PathBuf>,
    /// Whether a loopback address will do.
    pub allow_loopback: bool,
    /// The largest body that is taken, in bytes.
    pub max_body: usize,
    /// From the name's resolution to the last byte.
    pub timeout: Duration,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Whom to believe is not known.
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// Not a URL that is fetched.
    #[error("not an https URL")]
    Url,
    /// The name leads nowhere.
    #[error("the name {host} cannot be resolved: {why}")]
    Resolve {
        /// The name.
        host: String,
        /// What the system said.
        why: String,
    },
    /// The name leads where nothing is fetched from.
    #[error("{host} leads to {address}, which is {what}: refused")]
    Forbidden {
        /// The name.
        host: String,
        /// What it leads to.
        address: IpAddr,
        /// Which kind of address that is.
        what: &'static str,
    },
    /// Nobody is there.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not who it should be.
    #[error("TLS with {host}: {source}")]
    Tls {
        /// The name.
        host: String,
        /// What the TLS library said.
        source: std::io::Error,
    },
    /// It does not speak HTTP as it should.
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// A body that would have to be decompressed.
    #[error("the answer is compressed, which was not asked for")]
    Compressed,
    /// A body that is too large, or that broke off.
    #[error("the body of the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// It took too long.
    #[error("no complete answer within {} s", .0.as_secs())]
    Timeout(Duration),
}

impl Fetch {
    /// Sends a request to the `https` URL in it and takes the whole answer, whatever its status.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, FetchError> {
        match tokio::time::timeout(self.timeout, self.exchange(request)).await {
            Ok(result) => result,
            Err(_) => Err(FetchError::Timeout(self.timeout)),
        }
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Response<Bytes>, FetchError> {
        let (host, port) = target(request.uri()).ok_or(FetchError::Url)?;
        let connector = WebConnector::new(self.ca.as_deref())?;
        let tcp = self.connect(&host, port).await?;
        let tls = |source| FetchError::Tls { host: host.clone(), source };
        let stream = connector.connect(&host, tcp).await.map_err(tls)?;
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await?;
        let exchange = async {
            let answer = sender.send_request(as_sent(request)?).await?;
            self.collect(answer).await
        };
        tokio::pin!(exchange);
        // The connection moves the bytes of the exchange, and may end before the last of them is read.
        tokio::select! {
            answer = &mut exchange => answer,
            _ = connection => exchange.await,
        }
    }

    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, FetchError> {
        let unknown = |why: String| FetchError::Resolve { host: host.to_owned(), why };
        let found = tokio::net::lookup_host((host, port)).await.map_err(|e| unknown(e.to_string()))?;
        let mut last = unknown("no address".to_owned());
        for address in found {
            if let Some(what) = forbidden(address.ip(), self.allow_loopback) {
                // Whoever mixes such an address with others tries something, or is badly mistaken.
                return Err(FetchError::Forbidden { host: host.to_owned(), address: address.ip(), what });
            }
            match TcpStream::connect(address).await {
                Ok(tcp) => return Ok(tcp),
                Err(source) => last = FetchError::Connect { address, source },
            }
        }
        Err(last)
    }

    async fn collect(&self, answer: Response<hyper::body::Incoming>) -> Result<Response<Bytes>, FetchError> {
        let encodings = answer.headers().get_all(header::CONTENT_ENCODING);
        if encodings.iter().any(|e| !e.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(FetchError::Compressed);
        }
        let (head, body) = answer.into_parts();
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

/// Host, without the brackets of an IPv6 address, and port.
fn target(uri: &Uri) -> Option<(String, u16)> {
    if uri.scheme_str() != Some("https") {
        return None;
    }
    let host = uri.host()?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    Some((host.to_owned(), uri.port_u16().unwrap_or(443)))
}

/// In origin form, with what this side says of itself.
fn as_sent(request: Request<Bytes>) -> Result<Request<Full<Bytes>>, FetchError> {
    let (mut head, body) = request.into_parts();
    let authority = head.uri.authority().map(|a| a.as_str().to_owned()).ok_or(FetchError::Url)?;
    let path = head.uri.path_and_query().map_or("/", |p| p.as_str());
    head.uri = path.parse().map_err(|_| FetchError::Url)?;
    head.headers.insert(header::HOST, HeaderValue::try_from(authority).map_err(|_| FetchError::Url)?);
    head.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    head.headers.entry(header::USER_AGENT).or_insert(HeaderValue::from_static("postern-proxy"));
    Ok(Request::from_parts(head, Full::new(body)))
}

/// Why an address is not connected to; `None` where it is.
///
/// Private networks are not among them: an issuer within the house lives there. Loopback and link-local addresses lead to
/// services that believe whoever reaches them, above all the clouds' metadata.
pub fn forbidden(address: IpAddr, allow_loopback: bool) -> Option<&'static str> {
    /// Metadata services that do not live on link-local addresses: Alibaba, Azure's host, AWS over IPv6.
    const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
    const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    let address = match address {
        IpAddr::V6(v6) => embedded_v4(v6).map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 => v4,
    };
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let metadata = match address {
        IpAddr::V4(v4) => METADATA_V4.contains(&v4),
        IpAddr::V6(v6) => v6 == METADATA_V6,
    };
    match address {
        a if a.is_loopback() && !allow_loopback => Some("a loopback address (`allow_loopback` is off)"),
        _ if link_local => Some("a link-local address"),
        _ if metadata => Some("a metadata service"),
        a if a.is_unspecified() => Some("no address"),
        a if a.is_multicast() => Some("a multicast address"),
        IpAddr::V4(Ipv4Addr::BROADCAST) => Some("a broadcast address"),
        // 0.0.0.0/8 is "this network" (RFC 1122 §3.2.1.3).
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("no address"),
        _ => None,
    }
}

/// The IPv4 address that an IPv6 address stands for: mapped, compatible, NAT64 (RFC 6052) or 6to4 (RFC 3056).
fn embedded_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let o = v6.octets();
    let s = v6.segments();
    let last = Ipv4Addr::new(o[12], o[13], o[14], o[15]);
    match s {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some(last),
        [0, 0, 0, 0, 0, 0, hi, lo] if (hi, lo) != (0, 0) && (hi, lo) != (0, 1) => Some(last),
        [0x2002, ..] => Some(Ipv4Addr::new(o[2], o[3], o[4], o[5])),
        _ => None,
    }
}
