//! Ours: sidecars with one worker each, and a control plane beside the rig, whose CPU is not counted.
//!
//! The rig's clients have certificates of the rig's own CA, as they have towards every server: their trust domain is
//! federated, and a policy lets them in.

use std::path::Path;

use anyhow::{Context as _, Result};
use postern_config::bundle::TrustBundle;

use super::pki::TRUST_DOMAIN;
use super::{Kind, Mode, Parts as Held, Pki, Place, Server, Setting, Spiffe, rig_program, said};
use crate::mesh::{Binaries, Mesh, READY, Sidecar, SidecarOptions};

/// What runs for one server.
#[derive(Debug)]
pub(super) struct Parts {
    // The sidecars first: they end before what they are told by.
    _sidecars: Vec<Sidecar>,
    _mesh: Mesh,
}

pub(super) fn start(setting: &Setting, pki: &Pki) -> Result<Server> {
    let program = rig_program()?;
    let binaries = Binaries::at(program.parent().unwrap_or(Path::new("/")))
        .context("postern and postern-proxy have to be beside postern-loadtest")?;
    let version = said(std::process::Command::new(binaries.proxy()).arg("--version"));
    let mesh = Mesh::start_at(binaries)?;
    let protocol = match setting.mode {
        Mode::Http => "http",
        Mode::Tcp => "tcp",
    };
    let file = |options: SidecarOptions| {
        options.protocol(protocol).config(&config(setting)).cpus(setting.cpus.as_deref())
    };
    let server = mesh.options("server")?.inbound(setting.app, Some("server"));
    let server = mesh.server_with(file(server))?;
    let mut sidecars = vec![server];
    let (front, tls) = match setting.place {
        Place::Hop => {
            let generation = admit_rig(&mesh, pki)?;
            for sidecar in &sidecars {
                sidecar.wait_for_generation(generation, READY)?;
            }
            (sidecars[0].inbound(), true)
        }
        Place::Pair => {
            let client = mesh.sidecar(file(mesh.options("client")?.outbound("server")))?;
            let front = client.outbound();
            sidecars.push(client);
            (front, false)
        }
    };
    Ok(Server {
        kind: Kind::Postern,
        front,
        tls,
        pids: sidecars.iter().map(Sidecar::pid).collect(),
        spiffe: tls.then(|| Spiffe { id: mesh.id("server"), root: mesh.control.data().join("ca/root.pem") }),
        version,
        _parts: Held::Postern { _mesh: Box::new(Parts { _sidecars: sidecars, _mesh: mesh }) },
    })
}

/// Its settings are the fair ones already, but for the hybrid key exchange, which a peer that offers X25519 alone turns off.
/// All load comes from one address, of which each source's share of handshakes would make one client.
fn config(setting: &Setting) -> String {
    let log = if setting.is_fair() { "log: { level: warn }\n" } else { "" };
    format!("workers: 1\nlimits: {{ handshakes_per_source: 256 }}\n{log}")
}

/// Lets certificates of the rig's CA in; gives the generation by which proxies know.
fn admit_rig(mesh: &Mesh, pki: &Pki) -> Result<u64> {
    let bundle = TrustBundle::new(TRUST_DOMAIN.parse()?, 1, [pki.root().clone()])?;
    let file = mesh.dir().join("rig.json");
    std::fs::write(&file, bundle.to_document())?;
    // Nobody answers there: what was carried over by hand holds.
    let url = "https://127.0.0.1:9/bundle";
    let (file, server) = (file.display().to_string(), mesh.id("server"));
    let endpoint = format!("spiffe://{TRUST_DOMAIN}/nobody");
    let add = ["federation", "add", TRUST_DOMAIN, "--url", url, "--profile", "https_spiffe"];
    let more = ["--endpoint-id", &endpoint, "--bundle", &file, "--for", &server];
    mesh.control.json(&[&add[..], &more].concat())?;
    mesh.control.apply_policy(&crate::mesh::allow_only("rig", &[format!("{TRUST_DOMAIN}/*")]))
}
