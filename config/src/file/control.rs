//! `postern serve`'s file: the trust domain, where proxies connect, how long certificates live.

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Span, YamlError};
use crate::id::TrustDomain;
use crate::service::is_host_port;

mod api;
pub mod attest;
mod audit;
mod exchange;
mod federation;
mod jwt;
pub mod keys;
mod public;
mod revocation;
mod rotation;
mod store;

pub use api::{ApiConfig, OperatorConfig, OperatorRole};
pub use audit::AuditConfig;
pub use exchange::{ExchangeConfig, ExchangeRule};
pub use federation::FederationConfig;
pub use jwt::JwtConfig;
pub use public::PublicConfig;
pub use revocation::RevocationConfig;
pub use rotation::{CanaryConfig, Percent, RotationConfig};
pub use store::StoreConfig;

/// The control plane's configuration. Flags override the environment (`POSTERN_…`), which overrides this file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ControlConfig {
    /// Where keys, the store and the admin socket live; created with mode 0700.
    pub data: PathBuf,
    /// The trust domain that this control plane speaks for. Needed on the first start, remembered afterwards.
    pub trust_domain: Option<TrustDomain>,
    /// Where proxies connect (gRPC over TLS).
    pub listen: SocketAddr,
    /// The `host:port` that join strings carry. Default: `listen`, with 127.0.0.1 where that is unspecified.
    pub advertise: Option<String>,
    /// Durable facts: a file in `data`, or a PostgreSQL shared by several replicas.
    pub store: StoreConfig,
    /// Certificates of workloads.
    pub svid: SvidConfig,
    /// The trust domain's own certificates.
    pub ca: CaConfig,
    /// JWT-SVIDs of workloads.
    pub jwt: JwtConfig,
    /// The bundle endpoint, OIDC discovery and keys.
    pub public: PublicConfig,
    /// The operators' port.
    pub api: ApiConfig,
    /// The record of everything that was asked and done.
    pub audit: AuditConfig,
    /// By what else than join tokens workloads may enroll.
    pub attest: attest::AttestConfig,
    /// Other trust domains' bundles.
    pub federation: FederationConfig,
    /// Signed revocation lists and OCSP, for verifiers that are no proxies of ours.
    pub revocation: RevocationConfig,
    /// Token exchange on the public port.
    pub exchange: ExchangeConfig,
    /// Policies of this namespace apply to every workload, as in Istio.
    pub root_namespace: String,
    /// Health and metrics over plain HTTP.
    pub metrics: ControlMetrics,
    /// The log on standard error.
    pub log: ControlLog,
}

/// How long certificates of workloads live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SvidConfig {
    /// Lifetime where a proxy asks for none.
    pub ttl: Span,
    /// The shortest lifetime that a proxy may ask for.
    pub min_ttl: Span,
    /// The longest lifetime that a proxy may ask for; at most half of `ca.issuing_ttl`.
    pub max_ttl: Span,
    /// How far notBefore lies in the past, for peers whose clock is behind.
    pub backdate: Span,
    /// How long after its end a certificate may still ask for the next one: for proxies that were cut off for longer than
    /// their certificate lived. Off by default; at most one lifetime counts, and nothing but renewal is admitted.
    pub grace: Span,
}

/// How long the trust domain's own certificates live.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CaConfig {
    /// Lifetime of the root, counted from the first start.
    pub root_ttl: Span,
    /// Lifetime of an issuing CA; a new one takes over when half of it is left.
    pub issuing_ttl: Span,
    /// Where the root's key lives, or `offline`: then issuing CAs are signed in a ceremony. Default: a file in `data`.
    pub root_key: Option<keys::RootKey>,
    /// Where keys of issuing CAs live; each new CA gets a new one there. Default: files in `data`.
    pub issuing_key: Option<keys::KeyPlace>,
    /// Who signs issuing CAs in place of a root of ours; the trust domain's root is then theirs.
    pub upstream: Option<keys::Upstream>,
    /// How they are replaced.
    pub rotation: RotationConfig,
}

/// Health and metrics over plain HTTP: `/livez`, `/readyz`, `/metrics`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ControlMetrics {
    /// `ip:port`, or `off`.
    pub listen: ControlMetricsListen,
}

/// An address, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ControlMetricsListen {
    /// Served here.
    At(SocketAddr),
    /// Not served.
    Off(Off),
}

/// The word `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Off {
    /// The word `off`.
    Off,
}

/// The log on standard error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ControlLog {
    /// For people or for machines.
    pub format: ControlLogFormat,
    /// A level (`error`, `warn`, `info`, `debug`, `trace`) or a filter such as `info,postern_control=debug`.
    pub level: String,
}

/// The shape of log lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ControlLogFormat {
    /// One readable line per event.
    #[default]
    Text,
    /// One JSON object per event.
    Json,
}

impl ControlConfig {
    /// Checks what the types alone do not say.
    pub fn check(&self) -> Result<(), YamlError> {
        self.store.check()?;
        self.revocation.check()?;
        self.ca.rotation.check()?;
        self.jwt.check()?;
        self.public.check()?;
        self.api.check()?;
        self.audit.check()?;
        self.federation.check()?;
        self.exchange.check(self.public.listen.is_some(), self.jwt.issuer().as_deref())?;
        let SvidConfig { ttl, min_ttl, max_ttl, .. } = self.svid;
        let wrong = |message: String| Err(YamlError::without_place(message));
        if let Some(advertise) = self.advertise.as_ref().filter(|a| !is_host_port(a)) {
            return wrong(format!("advertise: {advertise:?} is not `host:port`"));
        }
        if min_ttl.as_duration().is_zero() || min_ttl > ttl || ttl > max_ttl {
            return wrong(format!(
                "svid: min_ttl ({min_ttl}) ≤ ttl ({ttl}) ≤ max_ttl ({max_ttl}) does not hold; min_ttl is above zero"
            ));
        }
        if max_ttl.as_duration() > self.ca.issuing_ttl.as_duration() / 2 {
            let issuing = self.ca.issuing_ttl;
            return wrong(format!(
                "svid.max_ttl ({max_ttl}) is more than half of ca.issuing_ttl ({issuing})"
            ));
        }
        if self.ca.upstream.is_some() && self.ca.root_key.is_some() {
            return wrong(
                "ca.root_key and ca.upstream exclude each other: with an upstream, the root is not ours"
                    .to_owned(),
            );
        }
        if self.ca.issuing_ttl > self.ca.root_ttl {
            return wrong("ca.issuing_ttl is longer than ca.root_ttl".to_owned());
        }
        self.attest.check()
    }
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            data: "pki".into(),
            trust_domain: None,
            listen: SocketAddr::from(([0, 0, 0, 0], 7443)),
            advertise: None,
            store: StoreConfig::default(),
            jwt: JwtConfig::default(),
            public: PublicConfig::default(),
            federation: FederationConfig::default(),
            exchange: ExchangeConfig::default(),
            svid: SvidConfig::default(),
            ca: CaConfig::default(),
            api: ApiConfig::default(),
            audit: AuditConfig::default(),
            attest: attest::AttestConfig::default(),
            revocation: RevocationConfig::default(),
            root_namespace: "istio-system".into(),
            metrics: ControlMetrics::default(),
            log: ControlLog::default(),
        }
    }
}

impl Default for SvidConfig {
    fn default() -> Self {
        Self {
            ttl: Span::from_secs(3600),
            min_ttl: Span::from_secs(1),
            max_ttl: Span::from_secs(24 * 3600),
            backdate: Span::from_secs(300),
            grace: Span::from_secs(0),
        }
    }
}

impl Default for CaConfig {
    fn default() -> Self {
        const DAY: u64 = 24 * 3600;
        Self {
            root_ttl: Span::from_secs(3650 * DAY),
            issuing_ttl: Span::from_secs(7 * DAY),
            root_key: None,
            issuing_key: None,
            upstream: None,
            rotation: RotationConfig::default(),
        }
    }
}

impl Default for ControlMetrics {
    fn default() -> Self {
        Self { listen: ControlMetricsListen::At(SocketAddr::from(([127, 0, 0, 1], 7020))) }
    }
}

impl Default for ControlLog {
    fn default() -> Self {
        Self { format: ControlLogFormat::Text, level: "info".into() }
    }
}
