//! The two doors: gRPC over TLS for proxies, HTTP over a Unix socket for operators; and the one for probes.

use std::sync::Arc;

use crate::ca::Ca;
use crate::jwt::Tokens;
use crate::publish::{Proxies, Publisher};
use crate::registry::Registry;
use crate::store::Store;
use crate::telemetry::Metrics;

pub mod admin;
pub mod backup;
pub mod callers;
pub mod federation;
pub mod grpc;
pub mod identities;
mod jwt;
pub mod listen;
pub mod lists;
pub mod model;
pub mod openapi;
pub mod operators;
pub mod probes;
pub mod public;
pub mod records;
pub mod revocations;
pub mod roles;
pub mod rotation;
pub mod socket;
pub mod tls;
pub mod watch;

/// The generated stubs over `postern_config::wire::v1`.
#[expect(
    unused_qualifications,
    clippy::allow_attributes,
    reason = "generated; the .proto file documents each call"
)]
pub mod stubs {
    include!(concat!(env!("OUT_DIR"), "/postern.control.v1.rs"));
}

/// Everything that the doors share.
#[derive(Debug)]
pub struct Plane {
    /// The data directory.
    pub data: std::path::PathBuf,
    /// Durable facts.
    pub store: Store,
    /// This process among those that share the store.
    pub replica: String,
    /// Signing keys.
    pub ca: Arc<Ca>,
    /// Who gets which identity.
    pub registry: Registry,
    /// JWT-SVIDs.
    pub tokens: Tokens,
    /// What proxies are told.
    pub publisher: Publisher,
    /// The control plane's own certificate.
    pub presented: Arc<tls::Presented>,
    /// Held while a new issuing CA takes over.
    pub rotating: tokio::sync::Mutex<()>,
    /// What stands between this process and its work, and how far its clock is believed.
    pub health: crate::health::Health,
    /// Who is connected.
    pub proxies: Proxies,
    /// Token exchange, where it is on.
    pub exchange: Option<crate::exchange::Exchange>,
    /// The shortest pause between two fetches of one foreign bundle.
    pub federation_floor: std::time::Duration,
    /// What is counted.
    pub metrics: Metrics,
    /// Tasks of open Watch streams.
    pub streams: tokio_util::task::TaskTracker,
    /// The existing PKI whose client certificates may enroll.
    pub pki: Option<Arc<crate::attest::Pki>>,
    /// How long after its end a certificate may still be renewed.
    pub grace: callers::Grace,
    /// Operators of the configuration file.
    pub operators: Vec<postern_config::file::control::OperatorConfig>,
    /// The `host:port` that join strings carry.
    pub advertise: String,
}
