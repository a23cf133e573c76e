//! A whole mesh as real processes on free loopback ports: one control plane and any number of named sidecars.
//!
//! Whatever is started here is ended, by its pid, when its handle is dropped; directories go with it. A test that fails
//! shows the last log lines of each process; with `POSTERN_KEEP` set, its directory stays.
//!
//! ```no_run
//! use postern_loadtest::{app::App, http, mesh::Mesh};
//! # fn main() -> anyhow::Result<()> {
//! let mesh = Mesh::start()?;
//! let app = App::http("hello")?;
//! let shop = mesh.server("shop", app.address())?;
//! let web = mesh.client("web", "shop")?;
//! let answer = http::get(web.outbound(), "/", std::time::Duration::from_secs(5))?;
//! assert_eq!(answer.text(), "hello");
//! assert_eq!(shop.metrics()?.count("postern_handshakes_total", &[("direction", "inbound"), ("result", "ok")]), 1);
//! # Ok(()) }
//! ```

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

mod binaries;
mod control;
mod directory;
mod metrics;
mod port;
mod postgres;
mod process;
mod sidecar;
mod wait;

pub use binaries::Binaries;
pub use control::{CliOutput, ControlOptions, ControlPlane};
pub use directory::Directory;
pub use metrics::{Buckets, Metrics};
pub use port::free_port;
pub use postgres::Postgres;
pub use process::{Process, READY};
pub use sidecar::{Sidecar, SidecarOptions};
pub use wait::until;

/// A control plane with a directory of its own, and a short way to sidecars whose identities carry their names.
#[derive(Debug)]
pub struct Mesh {
    /// The control plane.
    pub control: ControlPlane,
    binaries: Binaries,
    // Last: what runs in it ends first.
    dir: Directory,
}

impl Mesh {
    /// A control plane of trust domain `mesh.test`, freshly built.
    pub fn start() -> Result<Self> {
        Self::start_with(ControlOptions::default())
    }

    /// A control plane with options of its own, freshly built.
    pub fn start_with(options: ControlOptions) -> Result<Self> {
        Self::start_from(Binaries::build()?, options)
    }

    /// A control plane of programs that are there already.
    pub fn start_from(binaries: Binaries, options: ControlOptions) -> Result<Self> {
        let dir = Directory::new()?;
        let control = ControlPlane::start(&binaries, dir.path(), options)?;
        Ok(Self { control, binaries, dir })
    }

    /// A control plane from these programs.
    pub fn start_at(binaries: Binaries) -> Result<Self> {
        let dir = Directory::new()?;
        let control = ControlPlane::start(&binaries, dir.path(), ControlOptions::default())?;
        Ok(Self { control, binaries, dir })
    }

    /// The identity of workload `name`: `spiffe://<trust domain>/ns/demo/sa/<name>`.
    pub fn id(&self, name: &str) -> String {
        format!("spiffe://{}/ns/demo/sa/{name}", self.control.trust_domain())
    }

    /// Options of a sidecar for workload `name`, with a fresh join string.
    pub fn options(&self, name: &str) -> Result<SidecarOptions> {
        Ok(SidecarOptions::new(name, Some(self.control.token(&self.id(name), &[])?)))
    }

    /// Starts a sidecar; ready when this returns.
    pub fn sidecar(&self, options: SidecarOptions) -> Result<Sidecar> {
        Sidecar::start(&self.binaries, self.dir.path(), options)
    }

    /// Starts a sidecar without waiting for it.
    pub fn launch(&self, options: SidecarOptions) -> Result<Sidecar> {
        Sidecar::launch(&self.binaries, self.dir.path(), options)
    }

    /// Service `name`, announced by a sidecar of that name in front of `app`.
    pub fn server(&self, name: &str, app: SocketAddr) -> Result<Sidecar> {
        self.server_with(self.options(name)?.inbound(app, Some(name)))
    }

    /// Like [`server`](Self::server) with options of your own; the first inbound listener is announced.
    pub fn server_with(&self, options: SidecarOptions) -> Result<Sidecar> {
        let name = options.name.clone();
        self.control.apply_service(&name, &self.id(&name), &[])?;
        self.sidecar(options)
    }

    /// A sidecar of workload `name` with an outbound listener towards `service`.
    pub fn client(&self, name: &str, service: &str) -> Result<Sidecar> {
        self.sidecar(self.options(name)?.outbound(service))
    }

    /// A pair of sidecars, `server` in front of `app` and `client` towards it, whose listeners speak `protocol`.
    pub fn pair(&self, app: SocketAddr, protocol: &str) -> Result<(Sidecar, Sidecar)> {
        let server = self.options("server")?.inbound(app, Some("server")).protocol(protocol);
        let client = self.options("client")?.outbound("server").protocol(protocol);
        Ok((self.server_with(server)?, self.sidecar(client)?))
    }

    /// By what a policy knows the workload `name`.
    pub fn principal(&self, name: &str) -> String {
        self.id(name).trim_start_matches("spiffe://").to_owned()
    }

    /// Lets exactly the workloads `callers` call workloads of this mesh; waits until `proxies` obey.
    pub fn allow_only(&self, callers: &[&str], proxies: &[&Sidecar]) -> Result<()> {
        let principals: Vec<String> = callers.iter().map(|name| self.principal(name)).collect();
        let generation = self.control.apply_policy(&allow_only("allowed-callers", &principals))?;
        proxies.iter().try_for_each(|p| p.wait_for_generation(generation, Duration::from_secs(10)))
    }

    /// The programs in use.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// Where logs, join files and data lie.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// An AuthorizationPolicy of namespace `demo` that lets only these principals (`domain/path`) in.
pub fn allow_only(name: &str, principals: &[String]) -> String {
    allow(name, &[serde_json::json!({ "from": [{ "source": { "principals": principals } }] })])
}

/// An AuthorizationPolicy of namespace `demo` that lets in what one of these rules matches.
pub fn allow(name: &str, rules: &[serde_json::Value]) -> String {
    serde_json::json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": name, "namespace": "demo" },
        "spec": { "action": "ALLOW", "rules": rules },
    })
    .to_string()
}
