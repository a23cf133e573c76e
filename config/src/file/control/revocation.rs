//! Revocation for others: signed lists (CRL) and OCSP over plain HTTP. Proxies need neither; they are told by push.

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::file::{Span, YamlError};

/// Signed revocation lists and OCSP over plain HTTP, for verifiers that are no proxies of ours. Off without `listen`. A
/// replica answers for the issuing CAs whose keys it has, so each has an address of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RevocationConfig {
    /// Where it is served, such as `0.0.0.0:7082`.
    pub listen: Option<SocketAddr>,
    /// The base URL under which verifiers reach this replica there, such as `http://control-1.corp.example:7082`. Certificates
    /// carry it, as distribution point of their list and as their OCSP responder.
    pub url: Option<String>,
    /// How many lists a CA's certificates are spread over (1 to 256): a verifier that fetches one loads its share.
    pub shards: u16,
    /// How long a list or an OCSP answer may be used before it has to be fetched anew.
    pub validity: Span,
}

impl RevocationConfig {
    pub(super) fn check(&self) -> Result<(), YamlError> {
        let wrong = |message: String| Err(YamlError::without_place(message));
        match (&self.listen, &self.url) {
            (Some(_), None) => {
                return wrong(
                    "revocation.url is missing: certificates have to say where their list is".to_owned(),
                );
            }
            (None, Some(_)) => {
                return wrong(
                    "revocation.url is given, but revocation.listen is not: nothing would be served"
                        .to_owned(),
                );
            }
            _ => {}
        }
        if let Some(url) = &self.url {
            let uri: Result<http::Uri, _> = url.parse();
            let is_plain = uri.is_ok_and(|u| {
                u.scheme_str() == Some("http")
                    && u.host().is_some_and(|h| !h.is_empty())
                    && u.query().is_none()
            });
            if !is_plain || url.len() > 200 || url.contains(['#', '@']) {
                return wrong(format!(
                    "revocation.url: {url:?} is not http://host:port; it is plain HTTP, for who checks a certificate by TLS would have to check that one first"
                ));
            }
        }
        if self.shards == 0 || self.shards > 256 {
            return wrong("revocation.shards is from 1 to 256".to_owned());
        }
        if self.validity < Span::from_secs(60) {
            return wrong("revocation.validity is at least 60s".to_owned());
        }
        Ok(())
    }
}

impl Default for RevocationConfig {
    fn default() -> Self {
        Self { listen: None, url: None, shards: 1, validity: Span::from_secs(3600) }
    }
}
