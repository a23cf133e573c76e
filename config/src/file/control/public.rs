//! The public port: the trust domain's bundle, OIDC discovery and keys, for whoever asks.

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::file::{Span, YamlError};

/// HTTPS for everybody: `/bundle` (SPIFFE bundle endpoint), `/keys` and `/.well-known/openid-configuration`. Off without `listen`.
/// Callers need no certificate, and learn nothing that is not public.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PublicConfig {
    /// Where it is served, such as `0.0.0.0:7081`.
    pub listen: Option<SocketAddr>,
    /// A PEM file with a certificate of the web and its chain, for callers that ask for one of its names (profile `https_web`).
    /// Everybody else sees the control plane's X.509-SVID, `spiffe://TRUST-DOMAIN/postern/control` (profile `https_spiffe`).
    pub certificate_file: Option<PathBuf>,
    /// Its private key, PEM. Both files are read again when they change.
    pub key_file: Option<PathBuf>,
    /// How often readers of the bundle should come back. New keys should be published for several times as long before they
    /// sign.
    pub refresh_hint: Span,
}

impl PublicConfig {
    pub(super) fn check(&self) -> Result<(), YamlError> {
        let wrong = |message: &str| Err(YamlError::without_place(message.to_owned()));
        if self.certificate_file.is_some() != self.key_file.is_some() {
            return wrong("public.certificate_file and public.key_file go together");
        }
        if self.listen.is_none() && self.certificate_file.is_some() {
            return wrong(
                "public.certificate_file is given, but public.listen is not: nothing would be served",
            );
        }
        if self.refresh_hint < Span::from_secs(1) {
            return wrong("public.refresh_hint is at least 1s");
        }
        Ok(())
    }
}

impl Default for PublicConfig {
    fn default() -> Self {
        Self { listen: None, certificate_file: None, key_file: None, refresh_hint: Span::from_secs(300) }
    }
}
