//! A service of the mesh: a name, the identity its peers must prove, and where they listen.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::id::SpiffeId;

/// One service, as `postern service apply` reads it from YAML.
///
/// A service without `endpoints` is an announced one: its endpoints are the inbound listeners of connected proxies
/// whose certificate carries exactly `identity`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// The name that `outbound[].service` uses; letters, digits, `.`, `-` and `_`, at most 253 bytes.
    pub name: String,
    /// The identity that every endpoint must prove, exactly.
    pub identity: SpiffeId,
    /// Fixed addresses, each `host:port`; leave it out for endpoints announced by the proxies themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
}

/// Why a service is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServiceError {
    /// The name is empty, too long, or has a byte that it may not have.
    #[error("service name {0:?}: use letters, digits, `.`, `-` and `_`, at most 253 bytes")]
    Name(String),
    /// An endpoint is no `host:port`.
    #[error("service {0}: endpoint {1:?} is not `host:port`")]
    Endpoint(String, String),
}

impl Service {
    /// Checks what the types alone do not say.
    pub fn check(&self) -> Result<(), ServiceError> {
        check_name(&self.name)?;
        match self.endpoints.iter().find(|e| !is_host_port(e)) {
            Some(bad) => Err(ServiceError::Endpoint(self.name.clone(), bad.clone())),
            None => Ok(()),
        }
    }
}

/// Whether `name` may name a service.
pub fn check_name(name: &str) -> Result<(), ServiceError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    if name.is_empty() || name.len() > 253 || !name.bytes().all(allowed) {
        return Err(ServiceError::Name(name.chars().take(80).collect()));
    }
    Ok(())
}

/// Whether `text` is `host:port` with a host name, an IPv4 address or a bracketed IPv6 address, and a port from 1.
pub fn is_host_port(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let host_is_good = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()),
        None => {
            !host.is_empty()
                && host.len() <= 253
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        }
    };
    host_is_good && parse_port(port).is_some()
}

/// A port from 1, in digits alone: the standard library would take `+80` too.
pub(crate) fn parse_port(text: &str) -> Option<u16> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port > 0)
}
