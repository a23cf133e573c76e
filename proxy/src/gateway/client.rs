//! What is believed about a client: its certificate, for as long as it is good, and the address that trusted proxies give.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::http::refuse::{Fault, Refusal};
use crate::tls::edge::{ClientChain, Server};

#[cfg(test)]
mod tests;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// What only a proxy in front may say; apps believe it.
const SAID_BY_PROXIES: [HeaderName; 10] = [
    HeaderName::from_static("forwarded"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-forwarded-prefix"),
    HeaderName::from_static("x-forwarded-ssl"),
    HeaderName::from_static("x-real-ip"),
    HeaderName::from_static("x-client-ip"),
    HeaderName::from_static("true-client-ip"),
    // A new one is made: what a client writes into it would stand in everybody's logs.
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-original-url"),
];
/// Envoy's own headers direct Envoys behind this gateway.
const ENVOYS: &str = "x-envoy-";

/// A certificate that a client presented on this connection.
pub(super) struct Certificate {
    chain: ClientChain,
    /// The host's TLS by which it was last found good.
    by: RefCell<Arc<Server>>,
}

impl Certificate {
    /// One that the handshake has just found good by `server`.
    pub(super) fn new(chain: ClientChain, server: Arc<Server>) -> Self {
        Self { chain, by: RefCell::new(server) }
    }

    /// Whether a handshake would find it good now: asked again where the host's CAs or revocation lists were replaced.
    pub(super) fn still_good(&self, current: &ArcSwap<Server>, now: i64) -> bool {
        if now > self.chain.not_after() {
            return false;
        }
        let current = current.load();
        if Arc::ptr_eq(&current, &self.by.borrow()) {
            return true;
        }
        let good = current.accepts(&self.chain);
        if good {
            *self.by.borrow_mut() = Arc::clone(&current);
        }
        good
    }
}

/// How a request came here.
pub(super) struct Hop {
    /// Who connected, as trusted load balancers tell it.
    pub(super) source: SocketAddr,
    /// Whether over TLS.
    pub(super) secure: bool,
    /// Proxies in front whose entries are believed, counted from the right.
    pub(super) trusted_hops: u8,
}

/// What is believed of a request's way here.
pub(super) struct Forwarded {
    /// The client's address.
    pub(super) client: IpAddr,
    chain: HeaderValue,
    proto: HeaderValue,
    believed: bool,
}

impl Forwarded {
    /// Reads it before the hop's headers end: what `Connection` names shall not change who the client is.
    pub(super) fn read(headers: &HeaderMap, hop: &Hop) -> Result<Self, Refusal> {
        let own = hop.source.ip().to_canonical();
        let scheme = HeaderValue::from_static(if hop.secure { "https" } else { "http" });
        let internal = |_| Refusal::new(Fault::Internal, "x-forwarded-for cannot be written");
        if hop.trusted_hops == 0 {
            let chain = HeaderValue::try_from(own.to_string()).map_err(internal)?;
            return Ok(Self { client: own, chain, proto: scheme, believed: false });
        }
        let broken = || Refusal::new(Fault::BadRequest, "x-forwarded-for is no list of addresses");
        let lines = headers.get_all(FORWARDED_FOR).iter().map(|line| line.to_str().map_err(|_| broken()));
        let mut chain = lines.collect::<Result<Vec<_>, _>>()?.join(", ");
        let mut entries = chain.split(',').map(str::trim).filter(|e| !e.is_empty()).rev();
        // Fewer than trusted proxies would write: one of them connected on its own account.
        let client = match entries.nth(usize::from(hop.trusted_hops) - 1) {
            Some(entry) => address(entry).ok_or_else(broken)?,
            None => own,
        };
        if !chain.is_empty() {
            chain.push_str(", ");
        }
        chain.push_str(&own.to_string());
        let said =
            headers.get(FORWARDED_PROTO).filter(|p| matches!(p.as_bytes(), b"http" | b"https")).cloned();
        let chain = HeaderValue::try_from(chain).map_err(internal)?;
        Ok(Self { client, chain, proto: said.unwrap_or(scheme), believed: true })
    }

    /// Tells the service, after what ends at this hop is gone. Without trusted hops nothing else that the client says about
    /// its way is kept.
    pub(super) fn tell(self, headers: &mut HeaderMap) {
        if !self.believed {
            SAID_BY_PROXIES.iter().for_each(|name| drop(headers.remove(name)));
            let envoys: Vec<HeaderName> =
                headers.keys().filter(|n| n.as_str().starts_with(ENVOYS)).cloned().collect();
            envoys.iter().for_each(|name| drop(headers.remove(name)));
        }
        headers.insert(FORWARDED_FOR, self.chain);
        headers.insert(FORWARDED_PROTO, self.proto);
    }
}

/// An address as proxies write it: alone, in brackets, or with a port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = |t: &str| t.parse::<IpAddr>().ok();
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']').and_then(bare);
    let with_port = || text.parse::<SocketAddr>().ok().map(|a| a.ip());
    bare(text).or_else(bracketed).or_else(with_port).map(|ip| ip.to_canonical())
}
