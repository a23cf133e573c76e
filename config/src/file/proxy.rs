//! `postern-proxy`'s file: every field documented, every default stated; flags and environment lie over it.

use std::net::SocketAddr;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Span;
use super::attest::{self, Attest, Trust};
use super::gateway::Gateway;
use super::http::Http;
use crate::id::SpiffeId;
use crate::service::{check_name, is_host_port};

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProxyConfig {
    /// Beside a workload, or at the mesh's edge.
    pub mode: Mode,
    /// Where the control plane is and how to join it.
    pub control: Control,
    /// The identity of this proxy's workload.
    pub identity: Identity,
    /// mTLS in, plain bytes to the app beside this proxy.
    pub inbound: Vec<Inbound>,
    /// Plain bytes from the app beside this proxy, mTLS out to a service.
    pub outbound: Vec<Outbound>,
    /// The edge: hosts for the outside, led to services of the mesh. Needs `mode: gateway`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<Gateway>,
    /// What bounds the work that others can cause here.
    pub limits: Limits,
    /// `/livez`, `/readyz` and `/metrics`.
    pub metrics: Metrics,
    /// What operators ask a running proxy, and tell it.
    pub admin: Admin,
    /// How a new process takes the place of a running one.
    pub handover: Handover,
    /// Log lines.
    pub log: Log,
    /// OpenTelemetry export of traces and metrics; off unless an endpoint is given.
    pub otlp: Otlp,
    /// How it stops.
    pub drain: Drain,
    /// What holds for every HTTP and gRPC request.
    pub http: Http,
    /// Threads that carry traffic; 0 takes one per processor.
    pub workers: usize,
}

/// What a proxy is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It stands beside a workload.
    #[default]
    Sidecar,
    /// It stands at the edge and lets the outside in; see `gateway`.
    Gateway,
}

/// Where the control plane is and how to join it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    /// `host:port`; left out, the join string's address is used.
    pub address: Option<String>,
    /// A file with the join string; `-` reads standard input.
    pub join_file: Option<PathBuf>,
    /// Whom to believe at the first connection; with `attest`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trust: Option<Trust>,
    /// What proves who this proxy is, instead of a join string.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attest: Option<Attest>,
}

/// The identity of this proxy's workload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// Wanted lifetime of a certificate; the control plane may shorten it.
    pub ttl: Span,
    /// A directory (0700) that keeps key and certificate (0600) over a restart; off by default, so that the
    /// private key never leaves the process's memory.
    pub cache: Option<PathBuf>,
}

impl Default for Identity {
    fn default() -> Self {
        Self { ttl: Span::from_secs(3600), cache: None }
    }
}

/// A listener for mutual TLS from peers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Inbound {
    /// Where peers connect, `ip:port`.
    pub listen: SocketAddr,
    /// Where the app listens, `host:port`; normally on loopback.
    pub app: String,
    /// What the app speaks.
    #[serde(default)]
    pub protocol: Protocol,
    /// What peers may speak to it where no pushed `PeerAuthentication` says: mutual TLS alone (`strict`), or plain text as
    /// well while a team moves to the mesh (`permissive`).
    #[serde(default)]
    pub mtls: Mtls,
    /// Tells the control plane that this listener serves a service; its expected identity must be this proxy's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub announce: Option<Announce>,
}

/// An endpoint that this proxy announces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Announce {
    /// The service's name.
    pub service: String,
    /// Where peers reach this listener, `host:port`; left out, the listener's own address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// A listener for the app's own connections to one upstream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Outbound {
    /// Where the app connects, `ip:port`; normally on loopback, since whoever reaches it speaks as this workload.
    pub listen: SocketAddr,
    /// A service by name; its endpoints and expected identity come from the control plane.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// A fixed upstream, `host:port`; needs `identity`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<String>,
    /// The identity that the fixed upstream must prove, exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<SpiffeId>,
    /// What the app speaks.
    #[serde(default)]
    pub protocol: Protocol,
}

/// What an inbound listener takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mtls {
    /// Mutual TLS alone.
    #[default]
    Strict,
    /// Mutual TLS and plain text; both are counted apart.
    Permissive,
}

/// How bytes of a listener are treated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Relayed as they are, whoever speaks first.
    #[default]
    Tcp,
    /// HTTP/1.1 or HTTP/2, each request for itself. An app behind an inbound listener gets HTTP/1.1; gRPC calls it gets as
    /// HTTP/2 with prior knowledge.
    Http,
    /// The same; an app behind an inbound listener gets HTTP/2 with prior knowledge.
    Grpc,
    /// HTTP where the peer's proxy says so or, on the plain-text side, where the first bytes do; else as `tcp`.
    Auto,
}

impl std::str::FromStr for Protocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "tcp" => Ok(Self::Tcp),
            "http" => Ok(Self::Http),
            "grpc" => Ok(Self::Grpc),
            "auto" => Ok(Self::Auto),
            _ => Err(format!("{text:?} is none of `tcp`, `http`, `grpc`, `auto`")),
        }
    }
}

/// What bounds the work that others can cause here. Each limit shows in the metrics when it bites.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Open connections over all listeners; further ones wait in the kernel's queue.
    pub connections: usize,
    /// Handshakes under way at once; further connections wait in a line, and beyond it are closed with reason `overload`.
    pub handshakes_in_progress: usize,
    /// How many of these one source address may hold.
    pub handshakes_per_source: usize,
    /// Verified certificate chains that each worker remembers, so that a peer which comes again costs no CA's signature; dates,
    /// revocation, bundle and policy are asked each time. About 1 KB each; 0 remembers none.
    pub verified_chains: usize,
    /// From accept to the end of the handshake.
    pub handshake_timeout: Span,
    /// For reaching an app or an upstream's endpoint, each try.
    pub connect_timeout: Span,
    /// A connection on which no byte moves for this long is closed.
    pub idle_timeout: Span,
    /// HTTP: for the rest of a request's head, once its first byte has come.
    pub head_timeout: Span,
    /// HTTP: how long a connection is kept without a request.
    pub keep_alive: Span,
    /// HTTP: a request in progress on which no byte moves either way for this long is ended.
    pub stream_idle_timeout: Span,
    /// HTTP: bytes a second, averaged over 15 s, that a peer must send of a body or take of an answer while it is waited
    /// for; 0 demands nothing.
    pub minimum_rate: u64,
    /// HTTP/2: requests in progress on one connection.
    pub streams: u32,
    /// `protocol: auto`: how long the first bytes are waited for before a silent connection is relayed as `tcp`.
    pub detect_timeout: Span,
    /// Whether a connection is closed when the certificate that opened it expires, or lives on.
    pub peer_expiry: PeerExpiry,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            handshakes_in_progress: 256,
            handshakes_per_source: 64,
            verified_chains: 1024,
            handshake_timeout: Span::from_secs(5),
            connect_timeout: Span::from_secs(5),
            idle_timeout: Span::from_secs(3600),
            head_timeout: Span::from_secs(10),
            keep_alive: Span::from_secs(300),
            stream_idle_timeout: Span::from_secs(300),
            minimum_rate: 16,
            streams: 250,
            detect_timeout: Span::from_secs(3),
            peer_expiry: PeerExpiry::Close,
        }
    }
}

/// What becomes of a connection whose peer's certificate expires while it is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PeerExpiry {
    /// It is closed: an identity that was not renewed ends everywhere.
    Close,
    /// It lives on until policy, revocation or a bundle ends it; for protocols that cannot reconnect.
    Keep,
}

/// `/livez`, `/readyz` and `/metrics`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Where they are served, `ip:port`; no secret and no peer's name is among them.
    pub listen: SocketAddr,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([0, 0, 0, 0], 15020)) }
    }
}

/// Where operators' endpoints are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    /// A Unix socket (0600, for this process's user and root) in a directory that not everybody may write. Left out, it is
    /// /run/postern/admin.sock where that can be had; a path that is given must be usable.
    pub socket: Option<PathBuf>,
    /// `ip:port` on loopback: read-only and without peers, since every program on the host can reach it. Off by default.
    pub listen: Option<SocketAddr>,
}

impl Admin {
    /// The socket where none is configured.
    pub const DEFAULT_SOCKET: &'static str = "/run/postern/admin.sock";
}

/// How a new process takes the place of a running one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Handover {
    /// A Unix socket (0600) over which a process that starts takes the listening sockets of the one that runs; no connection
    /// is lost. Both need `identity.cache`, or the new one a join string of its own. Off by default.
    pub socket: Option<PathBuf>,
}

/// Log lines, on standard error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `text` or `json`.
    pub format: LogFormat,
    /// A level (`error`, `warn`, `info`, `debug`, `trace`) or a filter such as `info,postern_proxy::identity=debug`.
    pub level: String,
    /// Which HTTP requests get a line of their own.
    pub requests: RequestLog,
}

/// Which HTTP requests get a log line of their own. Metrics count all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RequestLog {
    /// Those that this proxy answered itself, and those that a policy marks.
    #[default]
    Refused,
    /// Each one.
    All,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned(), requests: RequestLog::Refused }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("{text:?} is neither `text` nor `json`")),
        }
    }
}

/// OpenTelemetry export.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Otlp {
    /// A collector's OTLP/gRPC endpoint, such as `http://collector:4317`.
    pub endpoint: Option<String>,
}

/// How it stops.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// How long new connections are still taken after SIGTERM while `/readyz` already fails: the time that load balancers
    /// need to notice. 0s on a host without one; on Kubernetes 5s, since endpoints are removed while SIGTERM is sent.
    pub pre_drain: Span,
    /// How long open connections may go on after that.
    pub timeout: Span,
}

impl Default for Drain {
    fn default() -> Self {
        Self { pre_drain: Span::from_secs(0), timeout: Span::from_secs(30) }
    }
}

/// A combination of fields that makes no sense. Printed without a place: several fields are involved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at}: {why}")]
pub struct ConfigError {
    /// Which part, such as `outbound[1]`.
    pub at: String,
    /// Cause and cure.
    pub why: String,
}

impl ProxyConfig {
    /// Checks what the types alone do not say. Reads nothing and connects nowhere.
    pub fn check(&self) -> Result<(), ConfigError> {
        let fail = |at: String, why: &str| Err(ConfigError { at, why: why.to_owned() });
        match (self.mode, &self.gateway) {
            (Mode::Gateway, Some(gateway)) => gateway.check()?,
            (Mode::Gateway, None) => {
                return fail("config".to_owned(), "`mode: gateway` needs a `gateway` section");
            }
            (Mode::Sidecar, Some(_)) => {
                return fail("config".to_owned(), "`gateway` is given, but `mode` is not `gateway`");
            }
            (Mode::Sidecar, None) => {}
        }
        if self.inbound.is_empty() && self.outbound.is_empty() && self.gateway.is_none() {
            return fail(
                "config".to_owned(),
                "nothing to do: give at least one `inbound` or `outbound` listener",
            );
        }
        if let Some(address) = &self.control.address
            && !is_host_port(address)
        {
            return fail("control.address".to_owned(), "write it as `host:port`");
        }
        let Control { address, join_file, trust, attest } = &self.control;
        attest::check(address.as_ref(), join_file.as_ref(), trust.as_ref(), attest.as_ref())
            .map_err(|(at, why)| ConfigError { at: at.to_owned(), why: why.to_owned() })?;
        for (i, inbound) in self.inbound.iter().enumerate() {
            let at = || format!("inbound[{i}]");
            if !is_host_port(&inbound.app) {
                return fail(at(), "`app` is not `host:port`");
            }
            if let Some(announce) = &inbound.announce {
                check_name(&announce.service).map_err(|e| ConfigError { at: at(), why: e.to_string() })?;
                if announce.address.as_deref().is_some_and(|a| !is_host_port(a)) {
                    return fail(at(), "`announce.address` is not `host:port`");
                }
                if announce.address.is_none() && inbound.listen.ip().is_unspecified() {
                    return fail(
                        at(),
                        "listens on every address: say in `announce.address` which one peers reach",
                    );
                }
            }
        }
        for (i, outbound) in self.outbound.iter().enumerate() {
            let at = || format!("outbound[{i}]");
            match (&outbound.service, &outbound.connect, &outbound.identity) {
                (Some(name), None, None) => {
                    check_name(name).map_err(|e| ConfigError { at: at(), why: e.to_string() })?;
                }
                (None, Some(connect), Some(_)) if is_host_port(connect) => {}
                (None, Some(_), Some(_)) => return fail(at(), "`connect` is not `host:port`"),
                (None, Some(_), None) => {
                    return fail(at(), "`connect` needs `identity`: who must answer there?");
                }
                _ => return fail(at(), "give either `service`, or `connect` with `identity`"),
            }
        }
        self.check_addresses()?;
        if self.admin.listen.is_some_and(|listen| !listen.ip().is_loopback()) {
            return fail(
                "admin.listen".to_owned(),
                "must be a loopback address: nobody is authenticated there. From elsewhere, use the socket",
            );
        }
        if self.handover.socket.is_some() && self.handover.socket == self.admin.socket {
            return fail("handover.socket".to_owned(), "is taken by admin.socket");
        }
        if self.identity.ttl == Span::from_secs(0) {
            return fail("identity.ttl".to_owned(), "a certificate that lives for 0s serves nobody");
        }
        self.http.check()?;
        self.limits.check()
    }

    /// Two listeners on one address: the second could not start. Port 0 takes a free one each time.
    fn check_addresses(&self) -> Result<(), ConfigError> {
        let inbound = self.inbound.iter().enumerate().map(|(i, l)| (format!("inbound[{i}]"), l.listen));
        let outbound = self.outbound.iter().enumerate().map(|(i, l)| (format!("outbound[{i}]"), l.listen));
        let edge = self.gateway.iter().flat_map(|g| g.listeners.iter().enumerate());
        let edge = edge.map(|(i, l)| (format!("gateway.listeners[{i}]"), l.listen));
        let mut seen: Vec<(String, SocketAddr)> = vec![("metrics".to_owned(), self.metrics.listen)];
        let admin = self.admin.listen.map(|listen| ("admin".to_owned(), listen));
        for (at, address) in admin.into_iter().chain(inbound).chain(outbound).chain(edge) {
            if let Some((earlier, _)) = seen.iter().find(|(_, a)| *a == address && a.port() != 0) {
                return Err(ConfigError { why: format!("{address} is taken by {earlier}"), at });
            }
            seen.push((at, address));
        }
        Ok(())
    }
}

impl Limits {
    fn check(&self) -> Result<(), ConfigError> {
        let fail =
            |field: &str, why: &str| Err(ConfigError { at: format!("limits.{field}"), why: why.to_owned() });
        if self.connections == 0 || self.handshakes_in_progress == 0 || self.handshakes_per_source == 0 {
            return fail(
                "connections, handshakes_in_progress, handshakes_per_source",
                "0 would admit nobody",
            );
        }
        if self.handshakes_per_source > self.handshakes_in_progress {
            return fail("handshakes_per_source", "is greater than handshakes_in_progress");
        }
        if [self.head_timeout, self.keep_alive, self.stream_idle_timeout, self.detect_timeout]
            .contains(&Span::from_secs(0))
        {
            return fail(
                "head_timeout, keep_alive, stream_idle_timeout, detect_timeout",
                "0s would end every request at once",
            );
        }
        if self.streams == 0 {
            return fail("streams", "0 would admit no request");
        }
        if self.connect_timeout == Span::from_secs(0) || self.idle_timeout == Span::from_secs(0) {
            return fail("connect_timeout, idle_timeout", "0s would end every connection at once");
        }
        // A silent peer must not hold a slot for longer than an operator would notice.
        if self.handshake_timeout > Span::from_secs(10) || self.handshake_timeout == Span::from_secs(0) {
            return fail("handshake_timeout", "must lie between 1ms and 10s");
        }
        Ok(())
    }
}
