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
use crate::mesh::{Binaries, ControlOptions, Mesh, Sidecar};

/// What the program answers.
const ANSWER: &str = "0123456789";
/// PEM's longest line, in characters.
const LINE: usize = 64;

/// Dropped, all of it ends.
pub(super) struct Own {
    server: Sidecar,
    id: String,
    // Behind its sidecar: what runs in the mesh's directory ends first.
    mesh: Mesh,
    _app: App,
}

impl Own {
    /// `http` says what the program behind the sidecar is: a server of HTTP, or one that sends back what it gets.
    pub(super) fn start(http: bool, ttl: Duration) -> Result<Self> {
        let app = if http { App::http_kept(ANSWER)? } else { App::echo()? };
        let options =
            ControlOptions { config: "log: { level: error }".to_owned(), ..ControlOptions::default() };
        let mesh = Mesh::start_from(Binaries::siblings()?, options)?;
        let protocol = if http { "http" } else { "tcp" };
        let options = mesh.options("server")?.inbound(app.address(), Some("server")).protocol(protocol);
        let server = mesh.server_with(options.ttl(&format!("{}s", ttl.as_secs())))?;
        let join = std::fs::read_to_string(mesh.control.token(&mesh.id("rig"), &[])?)?;
        let obtained = obtain(mesh.control.listen(), &join.trim().parse()?, ttl)?;
        let chain = obtained.chain.iter().map(|der| pem("CERTIFICATE", der)).collect::<String>();
        write(&mesh.dir().join("rig.pem"), &chain)?;
        write(&mesh.dir().join("rig.key"), &pem("PRIVATE KEY", obtained.key.secret_pkcs8_der()))?;
        let roots = obtained.roots.iter().map(|der| pem("CERTIFICATE", der)).collect::<String>();
        write(&mesh.dir().join("roots.pem"), &roots)?;
        Ok(Self { id: mesh.id("server"), server, mesh, _app: app })
    }

    /// The sidecar's mTLS port.
    pub(super) fn target(&self) -> SocketAddr {
        self.server.inbound()
    }

    pub(super) fn tls(&self) -> Tls {
        let dir = self.mesh.dir();
        Tls::new(dir.join("roots.pem"))
            .with_identity(dir.join("rig.pem"), dir.join("rig.key"))
            .expecting_id(&self.id)
    }

    /// The sidecar alone: the control plane carries no traffic, and the program is in this process.
    pub(super) fn pids(&self) -> Vec<u32> {
        vec![self.server.pid()]
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
