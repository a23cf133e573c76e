//! A machine enrolls by its TPM 2.0: a real proxy, a real control plane, and an emulated chip that keeps the specification's rules.

use std::path::{Path, PathBuf};
use std::process::Command;

use postern_loadtest::mesh::{ControlOptions, Mesh, Process, READY, SidecarOptions, until};
use serde_json::Value;

use crate::programs::{program, run};

/// A chip with its maker's CA. Dropped, it is switched off.
struct Chip {
    _process: Process,
    socket: PathBuf,
    maker: PathBuf,
}

impl Chip {
    /// Manufactures one whose RSA endorsement key is certified, and switches it on.
    fn new(dir: &Path) -> Self {
        let path = |name: &str| dir.join(name);
        let write = |name: &str, text: String| std::fs::write(path(name), text).unwrap();
        let shown = dir.display();
        write(
            "localca.conf",
            format!(
                "statedir = {shown}\nsigningkey = {shown}/ca.key\nissuercert = {shown}/ca.pem\ncertserial = {shown}/serial\n"
            ),
        );
        write("localca.options", "--tpm-manufacturer id:00001014\n--tpm-model swtpm\n--tpm-version id:1\n--platform-manufacturer a\n--platform-version 1\n--platform-model a\n".to_owned());
        let tool = program("swtpm_localca", "swtpm-tools");
        write(
            "setup.conf",
            format!(
                "create_certs_tool={}\ncreate_certs_tool_config={shown}/localca.conf\ncreate_certs_tool_options={shown}/localca.options\n",
                tool.display()
            ),
        );
        let mut setup = Command::new(program("swtpm_setup", "swtpm-tools"));
        setup
            .args(["--tpm2", "--create-ek-cert", "--tpmstate"])
            .arg(dir)
            .arg("--config")
            .arg(path("setup.conf"));
        if nix::unistd::geteuid().is_root() {
            setup.args(["--runas", "root"]);
        }
        run(&mut setup);
        let socket = path("chip.sock");
        let mut command = Command::new(program("swtpm", "swtpm"));
        command.args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"]);
        command.arg(format!("dir={shown}")).arg("--server");
        command.arg(format!("type=unixio,path={}", socket.display()));
        let process = Process::spawn("swtpm", command, dir).unwrap();
        until(READY, || socket.exists().then_some(())).expect("the chip's socket");
        Self { _process: process, socket, maker: path("ca.pem") }
    }

    /// A sidecar's options: this chip, by this key.
    fn sidecar(&self, mesh: &Mesh, ek: &str) -> SidecarOptions {
        let (address, pin, device) = (mesh.control.listen(), mesh.control.root(), self.socket.display());
        SidecarOptions::new(ek, None).inbound("127.0.0.1:1", None).config(&format!(
            "control:\n  address: \"{address}\"\n  trust: {{ trust_domain: mesh.test, pins: [\"{pin}\"] }}\n  attest: {{ tpm: {{ device: \"{device}\", ek: {ek} }} }}\n"
        ))
    }
}

fn mesh(tpm: &str) -> Mesh {
    let config = format!("attest:\n  tpm:\n{tpm}\n");
    Mesh::start_with(ControlOptions { config, ..ControlOptions::default() }).unwrap()
}

#[test]
fn a_machine_is_known_by_its_chip_certified_or_listed() {
    let dir = tempfile::tempdir().unwrap();
    let chip = Chip::new(dir.path());
    let certified = mesh(&format!(
        "    ek_roots: \"{}\"\n    rules:\n      - match: {{ tpm.ek: \"*\", tpm.manufacturer: \"00001014\" }}\n        id: spiffe://mesh.test/machines/{{tpm.model}}",
        chip.maker.display()
    ));
    let mut rsa = certified.sidecar(chip.sidecar(&certified, "rsa")).unwrap();
    assert_eq!(rsa.id(), "spiffe://mesh.test/machines/swtpm");
    // Nothing stays in the chip, or it would be full by the third time.
    for _ in 0..3 {
        rsa.restart().unwrap();
    }
    // The same chip's other key has no certificate of this kind, and nobody has listed it.
    let stranger = certified.launch(chip.sidecar(&certified, "ecc")).unwrap();
    let said =
        |line: &Value| line["why"].as_str().is_some_and(|why| why.contains("the credential is not taken"));
    stranger.wait_for_log(READY, said).unwrap();
    let line = stranger.wait_for_log(READY, |line| line["ek"].is_string()).unwrap();
    let hash = line["ek"].as_str().unwrap().to_owned();
    drop(stranger);
    let records = certified.control.json(&["audit", "--last", "100"]).unwrap();
    let reasons = records.as_array().unwrap().iter().map(|record| &record["detail"]["reason"]);
    assert!(reasons.clone().any(|reason| reason == "tpm_ek_unknown"), "{records}");

    let listed = mesh(&format!(
        "    ek_hashes: [\"{hash}\"]\n    rules:\n      - match: {{ tpm.ek: {} }}\n        id: spiffe://mesh.test/machines/{{tpm.ek}}",
        hash.trim_start_matches("sha256:")
    ));
    let mut ecc = listed.sidecar(chip.sidecar(&listed, "ecc")).unwrap();
    assert_eq!(ecc.id(), format!("spiffe://mesh.test/machines/{}", hash.trim_start_matches("sha256:")));
    for _ in 0..3 {
        ecc.restart().unwrap();
    }
}
