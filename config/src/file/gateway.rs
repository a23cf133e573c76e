//! The edge gateway's part of `postern-proxy`'s file: who may come in from outside, under which names, and where they are led.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Span;
use super::acme::AcmeIssuer;
use super::jwt::{JwtProvider, JwtRule};

mod check;
mod name;
mod network;
#[cfg(test)]
mod tests;

pub use name::HostName;
pub use network::Network;

/// The edge gateway.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Gateway {
    /// Where the outside connects.
    pub listeners: Vec<EdgeListener>,
    /// The names that this gateway answers for; whatever is not among them is closed.
    pub hosts: Vec<Host>,
    /// Who issues certificates by ACME to hosts that name them in `certificate.acme`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub acme: Vec<AcmeIssuer>,
    /// Whose JWTs hosts can take.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub jwt: Vec<JwtProvider>,
    /// Proxies in front of this one whose entries in `X-Forwarded-For` are believed, counted from the right. 0 replaces
    /// what a client sent.
    pub trusted_hops: u8,
}

/// One address where the outside connects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EdgeListener {
    /// `ip:port`.
    pub listen: SocketAddr,
    /// What is spoken there.
    pub protocol: EdgeProtocol,
    /// The PROXY protocol, versions 1 and 2, from load balancers in front of this gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy_protocol: Option<ProxyProtocol>,
    /// The host that answers clients who name none (no SNI); left out, they are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_host: Option<HostName>,
}

/// What is spoken on a gateway's listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EdgeProtocol {
    /// TLS with HTTP/1.1 or HTTP/2 in it; hosts with `passthrough` are passed through.
    Https,
    /// Plain HTTP: redirects, and hosts with `plain: serve`.
    Http,
    /// TLS that is passed through by SNI, never decrypted.
    Tls,
}

/// Who may say for whom it connects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProxyProtocol {
    /// Networks of load balancers: connections from there must begin with a PROXY header. From everywhere else none is read.
    pub trusted: Vec<Network>,
}

/// One or more names with the same certificate, rules and routes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Names such as `shop.example.com`, or `*.example.com` for exactly one label in place of the star.
    pub names: Vec<HostName>,
    /// What the host proves itself with; needed unless it is passed through or served in plain text alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate: Option<Certificate>,
    /// Certificates of clients.
    #[serde(default)]
    pub client_certificate: ClientCertificate,
    /// The oldest TLS version that is spoken.
    #[serde(default)]
    pub min_tls: MinTls,
    /// Passes TLS through undecrypted, by its SNI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passthrough: Option<Passthrough>,
    /// What requests for this host get on listeners of protocol `http`.
    #[serde(default)]
    pub plain: Plain,
    /// How `plain: redirect` answers.
    #[serde(default)]
    pub redirect: Redirect,
    /// Tells browsers to use HTTPS alone (RFC 6797).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hsts: Option<Hsts>,
    /// Which JWTs are taken. What a verified one says is for policies to use: `requestPrincipals`, `request.auth.*`.
    #[serde(default, skip_serializing_if = "JwtRule::is_default")]
    pub jwt: JwtRule,
    /// Where requests go; the most specific match wins, whatever the order. None matches: 404.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<HttpRoute>,
}

/// What a host proves itself with: `chain` and `key`, `acme`, or `identity`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Certificate {
    /// A PEM file with the certificate and its issuers, the host's own first. Read again when it changes.
    pub chain: Option<PathBuf>,
    /// A PEM file with the private key. Read again when it changes.
    pub key: Option<PathBuf>,
    /// Who issues it, by the name in `gateway.acme`: it is ordered for the host's names and renewed in time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acme: Option<String>,
    /// The identity of this proxy, from the control plane: for clients that know the mesh.
    pub identity: bool,
}

/// Certificates of clients.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClientCertificate {
    /// Whether clients are asked for one.
    pub mode: ClientCertificateMode,
    /// PEM files with the CAs that issue them; the system's are never used. Read again when they change.
    pub ca: Vec<PathBuf>,
    /// PEM files with revocation lists. With any, each CA of a client's chain needs a current one, or the client is
    /// refused. Read again when they change.
    pub crl: Vec<PathBuf>,
}

/// Whether clients are asked for a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificateMode {
    /// They are not.
    #[default]
    None,
    /// They are, and may present none; one that is presented must be good.
    Optional,
    /// Without a good one the handshake fails.
    Required,
}

/// The oldest TLS version that is spoken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MinTls {
    /// TLS 1.3 alone.
    #[default]
    #[serde(rename = "1.3")]
    V13,
    /// TLS 1.2 too, with forward secrecy and AES-GCM.
    #[serde(rename = "1.2")]
    V12,
}

/// Where passed-through TLS goes: a `service` of the mesh, or an `address`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Passthrough {
    /// A service of the mesh, reached by mutual TLS around the client's own.
    pub service: Option<String>,
    /// `host:port`, reached as it is.
    pub address: Option<String>,
}

/// What requests in plain text get.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Plain {
    /// A redirect to `https`.
    #[default]
    Redirect,
    /// The same routes as over TLS.
    Serve,
    /// 404, as if the name were unknown.
    Refuse,
}

/// A redirect to `https`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Redirect {
    /// 308, which keeps method and body, or 301.
    pub code: u16,
    /// The port that clients reach HTTPS at; 443 is left out of the address.
    pub port: u16,
}

impl Default for Redirect {
    fn default() -> Self {
        Self { code: 308, port: 443 }
    }
}

/// `Strict-Transport-Security`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hsts {
    /// How long a browser remembers, such as `365d`; `0s` makes it forget.
    pub max_age: Span,
    /// For every name below this one too.
    #[serde(default)]
    pub include_subdomains: bool,
    /// Consents to being built into browsers; needs `include_subdomains` and at least `365d`.
    #[serde(default)]
    pub preload: bool,
}

/// Which requests go to which service. Every condition that is given must hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpRoute {
    /// The request's path; left out, every path.
    #[serde(default)]
    pub path: PathMatch,
    /// The method, such as `GET`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Headers by lower-case name, each with the value that it must have, exactly and once.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// The service of the mesh that answers; it is reached by mutual TLS and must prove its identity.
    pub service: String,
    /// What takes the place of the matched prefix on the way to the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rewrite_prefix: Option<String>,
    /// From a request's head to the head of its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
}

/// The path of a request, without its query: `exact`, or a `prefix` that ends where a segment ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PathMatch {
    /// This path alone.
    pub exact: Option<String>,
    /// This path and what lies below it: `/api` is a prefix of `/api/v1`, not of `/apis`.
    pub prefix: Option<String>,
}
