//! What is asked of whom, how often and for how long.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::Cpus;
use crate::scenario::{Protocol, Scenario};

/// One measurement. What is not set by [`Plan::new`] has defaults that suit a first look.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Who is asked.
    pub target: SocketAddr,
    /// How it is met; none for a plain connection, such as to a sidecar's outbound listener.
    pub tls: Option<Tls>,
    /// The question.
    pub scenario: Scenario,
    /// How often.
    pub load: Load,
    /// Operations before the measurement, which count nowhere.
    #[serde(with = "millis", rename = "warm_up_ms")]
    pub warm_up: Duration,
    /// How long is measured.
    #[serde(with = "millis", rename = "duration_ms")]
    pub duration: Duration,
    /// From the intended start to the whole answer; then it has failed as `timeout`.
    #[serde(with = "millis", rename = "deadline_ms")]
    pub deadline: Duration,
    /// In the open loop so many operations may be waiting or under way; one more is `overload`.
    pub outstanding: usize,
    /// Connections that are kept, in scenarios that keep some, in the open loop; each carries one request at a time, or
    /// [`streams`](Self::streams) over HTTP/2. In the closed loop it is the number of clients that counts.
    pub connections: usize,
    /// Requests at a time on one HTTP/2 connection.
    pub streams: usize,
    /// What requests are made of.
    pub protocol: Protocol,
    /// The request's path; of gRPC `/package.Service/Method`.
    pub path: String,
    /// The `Host` (authority) of requests; left out, the expected name or the address.
    pub host: Option<String>,
    /// Bytes of each request's body, or of each raw exchange.
    pub size: usize,
    /// The server's processes, their children included, for its cost.
    pub server_pids: Vec<u32>,
    /// Threads of the rig; left out, one for each of its CPUs.
    pub threads: Option<usize>,
    /// The CPUs that the rig keeps to.
    pub rig_cpus: Option<Cpus>,
    /// Whether its threads run only where nobody else wants to.
    #[serde(default)]
    pub gives_way: bool,
    /// Whether connections that shall stand idle first carry something: over HTTP/1.1 one request with a body of
    /// [`size`](Self::size) bytes, raw so many there and back.
    #[serde(default)]
    pub carries_first: bool,
}

/// How often.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "loop")]
pub enum Load {
    /// At given moments, whatever became of the ones before.
    Open {
        /// Operations a second.
        rate: f64,
    },
    /// Each client asks again once it has its answer.
    Closed {
        /// How many clients.
        clients: usize,
    },
}

/// The certificates of both sides and what is offered. Paths of PEM files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Tls {
    /// Whom the rig believes.
    pub ca: PathBuf,
    /// Its own chain, leaf first; none for a server that asks for no certificate.
    pub cert: Option<PathBuf>,
    /// Whether every certificate of `cert` is a leaf of its own, all with the one key, shown in turn: a server sees a chain
    /// again only after all others.
    #[serde(default)]
    pub in_turn: bool,
    /// The key of the leaf.
    pub key: Option<PathBuf>,
    /// The DNS name or address in the server's certificate (and the SNI).
    pub server_name: Option<String>,
    /// The SPIFFE ID in the server's certificate, in place of a name.
    pub spiffe_id: Option<String>,
    /// The one key exchange that is offered; left out, X25519 first and others behind.
    pub kx: Option<Kx>,
    /// The one cipher suite that is offered; left out, AES-128-GCM first and others behind.
    pub suite: Option<Suite>,
}

impl Tls {
    /// Believes this CA; who has to answer is still to be said.
    pub fn new(ca: impl Into<PathBuf>) -> Self {
        let ca = ca.into();
        Self {
            ca,
            cert: None,
            in_turn: false,
            key: None,
            server_name: None,
            spiffe_id: None,
            kx: None,
            suite: None,
        }
    }

    /// Shows this chain to a server that asks.
    pub fn with_identity(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        (self.cert, self.key) = (Some(cert.into()), Some(key.into()));
        self
    }

    /// Shows each of these leaves in turn.
    pub fn in_turn(mut self) -> Self {
        self.in_turn = true;
        self
    }

    /// The server's certificate has to hold this name.
    pub fn expecting_name(mut self, name: &str) -> Self {
        self.server_name = Some(name.to_owned());
        self
    }

    /// The server has to be this workload.
    pub fn expecting_id(mut self, id: &str) -> Self {
        self.spiffe_id = Some(id.to_owned());
        self
    }

    /// Offers X25519 and AES-128-GCM alone: what servers are compared with.
    pub fn fair(mut self) -> Self {
        (self.kx, self.suite) = (Some(Kx::X25519), Some(Suite::Aes128));
        self
    }
}

/// Key exchanges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kx {
    /// X25519.
    X25519,
    /// X25519 with ML-KEM-768.
    X25519mlkem768,
    /// ECDHE over P-256.
    P256,
}

/// Cipher suites of TLS 1.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Suite {
    /// AES-128-GCM with SHA-256.
    Aes128,
    /// AES-256-GCM with SHA-384.
    Aes256,
    /// ChaCha20-Poly1305 with SHA-256.
    Chacha20,
}

impl Plan {
    /// Ten seconds in a closed loop of sixteen clients, after one second to warm up.
    pub fn new(target: SocketAddr, tls: Option<Tls>, scenario: Scenario) -> Self {
        Self {
            target,
            tls,
            scenario,
            load: Load::Closed { clients: 16 },
            warm_up: Duration::from_secs(1),
            duration: Duration::from_secs(10),
            deadline: Duration::from_secs(5),
            outstanding: 1024,
            connections: 16,
            streams: 1,
            protocol: Protocol::H1,
            path: "/".to_owned(),
            host: None,
            size: 0,
            server_pids: Vec::new(),
            threads: None,
            rig_cpus: None,
            gives_way: false,
            carries_first: false,
        }
    }

    /// How many threads drive.
    pub fn workers(&self) -> usize {
        let cpus = || match &self.rig_cpus {
            Some(cpus) => cpus.len(),
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let at_most = match self.load {
            Load::Open { .. } if self.scenario.keeps_connections() => self.connections,
            Load::Open { .. } => self.outstanding,
            Load::Closed { clients } => clients,
        };
        self.threads.unwrap_or_else(cpus).clamp(1, at_most.max(1))
    }

    /// The `Host` of requests: the given one, the expected name, or the address.
    pub(crate) fn authority(&self) -> String {
        let name = || self.tls.as_ref().and_then(|tls| tls.server_name.clone());
        self.host.clone().or_else(name).unwrap_or_else(|| self.target.to_string())
    }

    pub(super) fn check(&self) -> Result<()> {
        match self.load {
            Load::Open { rate } => {
                ensure!(rate.is_finite() && rate > 0.0, "a rate of {rate} asks nobody");
                ensure!(rate <= 10e6, "a rate of {rate} a second is beyond any machine");
            }
            Load::Closed { clients } => ensure!(clients > 0, "a closed loop without clients asks nobody"),
        }
        ensure!(!self.duration.is_zero(), "a measurement of no time measures nothing");
        ensure!(!self.deadline.is_zero(), "a deadline of no time lets nothing through");
        ensure!(
            self.outstanding > 0 && self.connections > 0 && self.streams > 0,
            "`outstanding`, `connections` and `streams` are at least 1"
        );
        ensure!(
            self.tls.is_some() || !self.scenario.needs_tls(),
            "{} is a question about TLS, and the target is met without",
            self.scenario
        );
        Ok(())
    }
}

mod millis {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}
