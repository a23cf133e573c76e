//! Why there is no answer, in words that name the place and in a closed set for logs and metrics.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Not a URL that is fetched.
    #[error("this URL is not fetched: {0}")]
    Url(&'static str),
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
    /// A body that is too large.
    #[error("the body of the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// Sent from place to place.
    #[error("more than {0} redirects")]
    Redirects(u8),
    /// It took too long.
    #[error("no complete answer within {0:?}")]
    Timeout(Duration),
}

impl FetchError {
    /// The closed word for logs, metrics and audit records.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Url(_) => "bad_url",
            Self::Resolve { .. } => "unresolved",
            Self::Forbidden { .. } => "forbidden_address",
            Self::Connect { .. } => "unreachable",
            Self::Tls { .. } => "tls",
            Self::Http(_) => "http",
            Self::Compressed => "compressed",
            Self::TooLarge(_) => "too_large",
            Self::Redirects(_) => "redirects",
            Self::Timeout(_) => "timeout",
        }
    }
}
