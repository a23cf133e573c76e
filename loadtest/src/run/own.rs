//! A mesh for one run: a control plane, one sidecar in front of a small program, and an identity for the rig.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::app::App;
use crate::drive::Tls;
use crate::fleet::obtain;
use crate::mesh::{Binaries, ControlOptions, Mesh, Sidecar, allow};

/// What the program answers.
const ANSWER: &str = "0123456789";
/// Connections beyond which the program does without a thread for each.
const THREADS: usize = 10_000;
/// PEM's longest line, in characters.
const LINE: usize = 64;

/// Dropped, all of it ends.
pub(super) struct Own {
    server: Server,
    // Behind its sidecar: what runs in the mesh's directory ends first.
    mesh: Mesh,
    protocol: &'static str,
    setting: Setting,
    app: App,
}

/// A sidecar in front of the program.
pub(super) struct Server {
    sidecar: Sidecar,
    id: String,
}

/// What a sidecar is given besides its app.
#[derive(Debug, Clone)]
pub(super) struct Setting {
    /// How long its certificates live.
    pub(super) ttl: Duration,
    /// The processors that it keeps to, as `taskset -c` takes them.
    pub(super) cpus: Option<String>,
    /// Connections that it may have open.
    pub(super) connections: usize,
}

/// The program behind the sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    /// Answers requests.
    Http,
    /// Sends back what it gets.
    Echo,
}

impl Server {
    fn start(mesh: &Mesh, name: &str, app: SocketAddr, protocol: &str, setting: &Setting) -> Result<Self> {
        let limits = format!("limits: {{ connections: {} }}", setting.connections);
        let options = mesh
            .options(name)?
            .inbound(app, Some(name))
            .protocol(protocol)
            .ttl(&format!("{}s", setting.ttl.as_secs()))
            .config(&limits)
            .cpus(setting.cpus.as_deref());
        Ok(Self { sidecar: mesh.server_with(options)?, id: mesh.id(name) })
    }

    /// Its mTLS port.
    pub(super) fn target(&self) -> SocketAddr {
        self.sidecar.inbound()
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// The sidecar alone: the control plane carries no traffic, and the program is in this process.
    pub(super) fn pids(&self) -> Vec<u32> {
        vec![self.sidecar.pid()]
    }

    /// How often its certificate was replaced.
    pub(super) fn renewals(&self) -> Result<u64> {
        Ok(self.sidecar.metrics()?.count("postern_renewals_total", &[("result", "ok")]))
    }
}

impl Own {
    /// A mesh with one sidecar in front of `program`.
    pub(super) fn start(program: Program, setting: Setting) -> Result<Self> {
        let (app, protocol) = match program {
            Program::Http => (App::http_kept(ANSWER)?, "http"),
            Program::Echo if setting.connections > THREADS => (App::echo_for_many()?, "tcp"),
            Program::Echo => (App::echo()?, "tcp"),
        };
        let options =
            ControlOptions { config: "log: { level: error }".to_owned(), ..ControlOptions::default() };
        let mesh = Mesh::start_from(Binaries::siblings()?, options)?;
        let server = Server::start(&mesh, "server", app.address(), protocol, &setting)?;
        let join = std::fs::read_to_string(mesh.control.token(&mesh.id("rig"), &[])?)?;
        let obtained = obtain(mesh.control.listen(), &join.trim().parse()?, setting.ttl)?;
        let chain = obtained.chain.iter().map(|der| pem("CERTIFICATE", der)).collect::<String>();
        write(&mesh.dir().join("rig.pem"), &chain)?;
        write(&mesh.dir().join("rig.key"), &pem("PRIVATE KEY", obtained.key.secret_pkcs8_der()))?;
        let roots = obtained.roots.iter().map(|der| pem("CERTIFICATE", der)).collect::<String>();
        write(&mesh.dir().join("roots.pem"), &roots)?;
        Ok(Self { server, mesh, protocol, setting, app })
    }

    /// The process of the control plane.
    pub(super) fn control_pid(&self) -> u32 {
        self.mesh.control.pid()
    }

    /// The sidecar.
    pub(super) fn server(&self) -> &Server {
        &self.server
    }

    /// One more sidecar in front of the same program, whose certificates live for `ttl`.
    pub(super) fn beside(&self, ttl: Duration) -> Result<Server> {
        let setting = Setting { ttl, ..self.setting.clone() };
        Server::start(&self.mesh, "beside", self.app.address(), self.protocol, &setting)
    }

    /// Publishes a policy of so many rules that allows the rig everything, unlike the one of another `number`; done when
    /// the sidecar decides by it.
    pub(super) fn publish(&self, rules: usize, number: usize, limit: Duration) -> Result<()> {
        let principal = self.mesh.principal("rig");
        let rules: Vec<_> = (1..rules)
            .map(|rule| serde_json::json!({ "to": [{ "operation": { "paths": [format!("/{number}/{rule}")] } }] }))
            .chain([serde_json::json!({ "from": [{ "source": { "principals": [principal] } }] })])
            .collect();
        let generation = self.mesh.control.apply_policy(&allow("churn", &rules))?;
        self.server.sidecar.wait_for_generation(generation, limit)
    }

    pub(super) fn tls(&self) -> Tls {
        let dir = self.mesh.dir();
        Tls::new(dir.join("roots.pem"))
            .with_identity(dir.join("rig.pem"), dir.join("rig.key"))
            .expecting_id(self.server.id())
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes()).with_context(|| format!("{}", path.display()))
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> =
        (0..text.len()).step_by(LINE).map(|at| &text[at..text.len().min(at + LINE)]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}
