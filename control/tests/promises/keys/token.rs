//! Root and issuing CA on a PKCS#11 token.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use postern_config::svid::Role;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use tempfile::TempDir;

use super::{holds_no_key, readiness, run, secret};
use crate::harness::{self, Connection, Control, Keys, Svid, TD, enrolled, failed, verify};

const SPY: &str = "/usr/lib/x86_64-linux-gnu/pkcs11/pkcs11-spy.so";

/// A directory with a token of its own, and a control plane's configuration that uses it.
struct Token {
    dir: Arc<TempDir>,
}

impl Token {
    fn new() -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let path = dir.path();
        std::fs::create_dir(path.join("tokens")).unwrap();
        let tokens = path.join("tokens");
        std::fs::write(path.join("softhsm.conf"), format!("directories.tokendir = {}\n", tokens.display()))
            .unwrap();
        let token = Self { dir };
        let mut init = token.with("softhsm2-util");
        init.args(["--init-token", "--free", "--label", "mesh", "--so-pin", "87654321", "--pin", "1234"]);
        run(&mut init);
        secret(&token.pin(), "1234\n");
        token
    }

    fn with(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("SOFTHSM2_CONF", self.dir.path().join("softhsm.conf"));
        command
    }

    fn pin(&self) -> PathBuf {
        self.dir.path().join("pin")
    }

    fn place(&self, object: &str, module: &Path) -> String {
        let (module, pin) = (module.display(), self.pin());
        format!("pkcs11:token=mesh;object={object}?module-path={module}&pin-source=file:{}", pin.display())
    }

    /// `postern serve` with both keys on the token.
    fn serve(&self, module: &Path) -> Command {
        let (root, issuing) = (self.place("root", module), self.place("issuing", module));
        let config = self.dir.path().join("control.yaml");
        std::fs::write(&config, format!("ca:\n  root_key: {root:?}\n  issuing_key: {issuing:?}\n")).unwrap();
        let mut command = harness::serve(self.dir.path(), &["--trust-domain", TD]);
        command
            .arg("--config")
            .arg(config)
            .env("SOFTHSM2_CONF", self.dir.path().join("softhsm.conf"))
            .env("PKCS11SPY", softhsm())
            .env("PKCS11SPY_OUTPUT", self.spied());
        command
    }

    fn start(&self, module: &Path) -> Control {
        Control::spawn(Arc::clone(&self.dir), self.serve(module))
    }

    fn spied(&self) -> PathBuf {
        self.dir.path().join("spy.log")
    }

    /// How often somebody logged in, by the spy between us and the module.
    fn logins(&self) -> usize {
        let log = std::fs::read_to_string(self.spied()).unwrap_or_default();
        log.lines().filter(|line| line.ends_with(": C_Login")).count()
    }

    /// Pulls the token out of its reader, or puts it back.
    fn pull(&self) {
        std::fs::rename(self.dir.path().join("tokens"), self.dir.path().join("pulled")).unwrap();
        std::fs::create_dir(self.dir.path().join("tokens")).unwrap();
    }

    fn put_back(&self) {
        std::fs::remove_dir(self.dir.path().join("tokens")).unwrap();
        std::fs::rename(self.dir.path().join("pulled"), self.dir.path().join("tokens")).unwrap();
    }
}

fn softhsm() -> PathBuf {
    let places = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"];
    let found = places.into_iter().map(PathBuf::from).find(|p| p.exists());
    found.expect("no SoftHSM2: apt-get install softhsm2 (see PACKAGES in .ci/run)")
}

fn root_of(control: &Control) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(control.data().join("ca/root.pem")).unwrap()
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
async fn root_and_issuing_ca_live_on_a_token_and_sign_across_rotations_and_restarts() {
    let token = Token::new();
    let control = token.start(&softhsm());
    let (join, svid) = enrolled(&control, "/a", &[]).await;
    let root = root_of(&control);
    assert_eq!(verify(&svid.chain, root.clone(), Role::Server).id.as_str(), format!("spiffe://{TD}/a"));

    control.json(&["ca", "rotate"]);
    let renewed = renew(&control, &join, &svid).await.unwrap();
    verify(&renewed.chain, root.clone(), Role::Client);
    assert_ne!(renewed.chain[1], svid.chain[1], "another issuing CA");

    let dir = control.dir();
    drop(control);
    let control = Control::spawn(dir, token.serve(&softhsm()));
    let again = renew(&control, &join, &renewed).await.unwrap();
    assert_eq!(
        again.chain[1], renewed.chain[1],
        "the same issuing CA, found on the token by its certificate"
    );
    verify(&again.chain, root, Role::Client);
    holds_no_key(&control.data().join("ca"));
    assert!(
        std::fs::read_dir(control.data().join("ca")).unwrap().count() >= 2,
        "the search looked at something"
    );
}

#[tokio::test]
async fn a_root_on_a_token_is_replaced_by_one_that_is_made_there() {
    let token = Token::new();
    let control = token.start(&softhsm());
    let (join, svid) = enrolled(&control, "/a", &[]).await;
    // It holds the new root and says so: an operator need not wait for its certificate to end.
    let mut watch = crate::watching::Watch::open(&control, &join, &svid).await.unwrap();
    let begun = control.json(&["ca", "rotate", "--root", "--no-canary", "--detach"]);
    let generation = loop {
        let push = watch.next().await.unwrap();
        watch.acknowledge(push.generation).await;
        if push.bundles.is_some_and(|b| b.bundles[0].document.matches("x5c").count() == 2) {
            break push.generation;
        }
    };
    assert!(generation > 0);
    let new_root = begun["new_root"].as_str().unwrap().to_owned();
    let signs = || {
        let all = control.json(&["ca", "list"]);
        let all = all.as_array().unwrap().clone();
        all.iter()
            .any(|a| a["kind"] == "issuing" && a["state"] == "active" && a["issuer"] == new_root.as_str())
    };
    crate::watching::until("the new root's issuing CA", signs).await;
    let renewed = renew(&control, &join, &svid).await.unwrap();
    assert_ne!(renewed.chain[1], svid.chain[1]);

    let dir = control.dir();
    drop(control);
    let control = Control::spawn(dir, token.serve(&softhsm()));
    control.json(&["ca", "rotate"]);
    let again = renew(&control, &join, &renewed).await.unwrap();
    assert_ne!(again.chain[1], renewed.chain[1], "the new root's key is found on the token and signs");
    let all = control.json(&["ca", "list"]);
    let active = all.as_array().unwrap().iter().find(|a| a["kind"] == "issuing" && a["state"] == "active");
    assert_eq!(active.unwrap()["issuer"], new_root.as_str());
    holds_no_key(&control.data().join("ca"));
}

#[tokio::test]
async fn a_token_that_is_pulled_out_refuses_clearly_and_comes_back_by_itself() {
    let token = Token::new();
    let control = token.start(&softhsm());
    let (join, svid) = enrolled(&control, "/a", &[]).await;
    readiness(&control, 200).await;

    token.pull();
    let said = readiness(&control, 503).await;
    assert!(said.contains("pkcs11:token=mesh;object=issuing") && said.contains("does not answer"), "{said}");
    let refused = renew(&control, &join, &svid).await.err().unwrap();
    assert_eq!(refused.code(), tonic::Code::Unavailable, "{refused}: worth coming back");
    assert_eq!(refused.message(), "internal error", "a caller learns nothing of our keys");
    assert_eq!(control.refusals("renew"), ["key_unavailable"]);
    let metrics = control.probe("/metrics").await.1;
    assert!(metrics.contains("postern_control_key_usable{key=\"issuing\"} 0"), "{metrics}");

    token.put_back();
    readiness(&control, 200).await;
    let renewed = renew(&control, &join, &svid).await.unwrap();
    verify(&renewed.chain, root_of(&control), Role::Client);
}

#[tokio::test]
async fn a_wrong_pin_is_tried_once_and_never_again() {
    let token = Token::new();
    let control = token.start(Path::new(SPY));
    let (join, svid) = enrolled(&control, "/a", &[]).await;
    readiness(&control, 200).await;
    let before = token.logins();
    assert!(before >= 1, "the spy sees logins");

    secret(&token.pin(), "9999\n");
    token.pull();
    readiness(&control, 503).await;
    token.put_back();
    let said = loop {
        let said = readiness(&control, 503).await;
        if said.contains("refuses the PIN") {
            break said;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert!(said.contains("not tried again") && !said.contains("9999"), "{said}");
    // Whoever asks now and however often: the token is not.
    for _ in 0..5 {
        let refused = renew(&control, &join, &svid).await.err().unwrap();
        assert_eq!(refused.code(), tonic::Code::Unavailable);
    }
    assert_eq!(token.logins(), before + 1, "one try with the wrong PIN");

    secret(&token.pin(), "1234\n");
    readiness(&control, 200).await;
    renew(&control, &join, &svid).await.unwrap();
}

#[test]
fn what_is_wrong_with_a_place_is_said_at_the_start() {
    let token = Token::new();
    secret(&token.pin(), "0000\n");
    failed(&token.serve(&softhsm()).output().unwrap(), 1, "the token refuses the PIN in");
    std::fs::write(token.pin(), "1234\n").unwrap();
    Command::new("chmod").arg("644").arg(token.pin()).status().unwrap();
    failed(&token.serve(&softhsm()).output().unwrap(), 1, "can be read by others");
    failed(&token.serve(Path::new("/nowhere.so")).output().unwrap(), 1, "the module cannot be loaded");
    secret(&token.pin(), "1234\n");
    token.pull();
    failed(&token.serve(&softhsm()).output().unwrap(), 1, "there is no token");
}
