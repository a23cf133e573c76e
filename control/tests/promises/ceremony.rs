//! A root that no control plane holds: made and used by hand, on another machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use postern_config::svid::Role;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::harness::{self, Control, LONG, TD, enrolled, failed, verify};
use crate::keys::run;

/// The machine with the root's key, and the one with the control plane.
struct Machines {
    offline: tempfile::TempDir,
    dir: Arc<tempfile::TempDir>,
}

impl Machines {
    fn new() -> Self {
        let (offline, dir) = (tempfile::tempdir().unwrap(), Arc::new(tempfile::tempdir().unwrap()));
        let config = "ca: { root_key: offline, issuing_ttl: 90d }\n";
        std::fs::write(dir.path().join("control.yaml"), config).unwrap();
        Self { offline, dir }
    }

    fn at_the_root(&self, arguments: &[&str]) -> Command {
        let mut command = harness::command(self.offline.path());
        command.args(arguments);
        command
    }

    fn root(&self) -> PathBuf {
        self.offline.path().join("root.pem")
    }

    fn operator(&self, arguments: &[&str]) -> Command {
        let mut command = harness::command(self.dir.path());
        command.args(arguments);
        command
    }

    fn serve(&self) -> Command {
        let config = self.dir.path().join("control.yaml");
        harness::serve(self.dir.path(), &["--trust-domain", TD, "--config", config.to_str().unwrap()])
    }

    /// The waiting request, carried to the machine with the root.
    fn request(&self) -> PathBuf {
        let csr = self.offline.path().join("issuing.csr");
        std::fs::write(&csr, run(&mut self.operator(&["ca", "csr"]))).unwrap();
        csr
    }

    fn sign(&self) -> PathBuf {
        let csr = self.request();
        let signed = run(&mut self.at_the_root(&["ca", "sign", "--trust-domain", TD, csr.to_str().unwrap()]));
        let path = self.dir.path().join("issuing.pem");
        std::fs::write(&path, signed).unwrap();
        path
    }

    /// Signs the waiting request as some other CA software might.
    fn openssl(&self, extensions: &str, more: &[&str]) -> PathBuf {
        let (csr, file) = (self.request(), self.offline.path().join("extensions"));
        std::fs::write(&file, extensions).unwrap();
        let out = self.dir.path().join("foreign.pem");
        let mut sign = Command::new("openssl");
        sign.args(["x509", "-req", "-sha256", "-in"])
            .arg(&csr)
            .arg("-extfile")
            .arg(&file)
            .arg("-out")
            .arg(&out);
        if !more.contains(&"-CA") {
            sign.arg("-CA").arg(self.root()).arg("-CAkey").arg(self.offline.path().join("root.key"));
        }
        sign.args(["-CAcreateserial"]).args(more);
        assert!(sign.output().unwrap().status.success(), "{sign:?}");
        out
    }

    fn install(&self, certificate: &Path) -> Command {
        self.operator(&["ca", "install", certificate.to_str().unwrap()])
    }
}

const GOOD: &str = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n";

#[tokio::test]
async fn an_offline_root_signs_issuing_cas_in_a_ceremony() {
    let machines = Machines::new();
    failed(&machines.serve().output().unwrap(), 1, "copy what `postern ca root init` made");
    let made: serde_json::Value = serde_json::from_str(&run(&mut machines.at_the_root(&[
        "ca",
        "root",
        "init",
        "--trust-domain",
        TD,
        "--json",
    ])))
    .unwrap();
    failed(
        &machines.at_the_root(&["ca", "root", "init", "--trust-domain", TD]).output().unwrap(),
        1,
        "never written over",
    );
    std::fs::copy(machines.root(), machines.dir.path().join("pki/ca/root.pem")).unwrap();

    // The first start waits for the ceremony, and goes on by itself.
    let control = Control::spawn_waiting(Arc::clone(&machines.dir), machines.serve(), |_| {
        run(&mut machines.install(&machines.sign()));
    });
    assert_eq!(control.ready["root"], made["pin"]);
    let (_, svid) = enrolled(&control, "/a", &[]).await;
    let root = CertificateDer::from_pem_file(machines.root()).unwrap();
    verify(&svid.chain, root.clone(), Role::Server);
    assert!(!control.data().join("ca/root.key").exists());
    failed(&machines.operator(&["ca", "csr"]).output().unwrap(), 1, "no replica waits");

    // The next one: asked for, waited for, and said where operators look.
    let _ = control.cli(&["ca", "rotate"]);
    let signed = machines.sign();
    run(&mut machines.install(&signed));
    failed(&machines.install(&signed).output().unwrap(), 1, "no replica waits");
    let wanted = CertificateDer::from_pem_file(&signed).unwrap();
    let _ = control.cli(&["ca", "rotate"]);
    let next = async {
        for round in 0.. {
            let (_, svid) = enrolled(&control, &format!("/next/{round}"), &[]).await;
            if svid.chain[1] == wanted {
                return svid;
            }
        }
        unreachable!()
    };
    let svid = tokio::time::timeout(LONG, next).await.expect("it does not take over");
    verify(&svid.chain, root, Role::Client);
}

#[tokio::test]
async fn a_certificate_that_proxies_would_not_believe_is_not_installed() {
    let machines = Machines::new();
    run(&mut machines.at_the_root(&["ca", "root", "init", "--trust-domain", TD]));
    let data = machines.dir.path().join("pki/ca");
    failed(&machines.serve().output().unwrap(), 1, "has to be brought");
    std::fs::copy(machines.root(), data.join("root.pem")).unwrap();
    let control = Control::spawn_waiting(Arc::clone(&machines.dir), machines.serve(), |_| {
        let refused = |certificate: PathBuf, why: &str| {
            failed(&machines.install(&certificate).output().unwrap(), 1, why)
        };
        let changed = |old: &str, new: &str| machines.openssl(&GOOD.replace(old, new), &["-days", "30"]);
        refused(changed("CA:TRUE,pathlen:0", "CA:FALSE"), "it is no CA");
        refused(changed("critical,CA:TRUE", "CA:TRUE"), "it is no CA");
        refused(changed(",cRLSign", ""), "its keyUsage");
        refused(
            changed("subjectKeyIdentifier=hash\n", "subjectKeyIdentifier=none\n"),
            "lacks a subject key identifier",
        );
        refused(
            changed("authorityKeyIdentifier=keyid", "nameConstraints=permitted;URI:corp.example"),
            "name constraints",
        );
        refused(changed("authorityKeyIdentifier=keyid", "extendedKeyUsage=serverAuth"), "extendedKeyUsage");
        refused(
            changed(
                "authorityKeyIdentifier=keyid",
                "authorityKeyIdentifier=keyid\nsubjectAltName=URI:spiffe://other.example",
            ),
            "spiffe://other.example",
        );
        refused(machines.openssl(GOOD, &["-days", "-1"]), "the clock here says");
        refused(machines.openssl(GOOD, &["-days", "9000"]), "outlives the root");
        // Another root of the same name, and a certificate for another key.
        let other = Machines::new();
        run(&mut other.at_the_root(&["ca", "root", "init", "--trust-domain", TD]));
        let (ca, key) = (other.root(), other.offline.path().join("root.key"));
        let by_other = ["-days", "30", "-CA", ca.to_str().unwrap(), "-CAkey", key.to_str().unwrap()];
        refused(machines.openssl(GOOD, &by_other), "no root of this trust domain signed it");
        refused(machines.root(), "it is for another key");
        failed(
            &machines.install(&machines.dir.path().join("control.yaml")).output().unwrap(),
            1,
            "no readable certificate",
        );

        run(&mut machines.install(&machines.openssl(GOOD, &["-days", "30"])));
    });
    let (_, svid) = enrolled(&control, "/a", &[]).await;
    verify(&svid.chain, CertificateDer::from_pem_file(machines.root()).unwrap(), Role::Server);
}

/// Half of its life is over: metric and readiness-to-be say so while there is time.
#[tokio::test]
async fn a_control_plane_says_early_that_its_issuing_ca_needs_a_ceremony() {
    let machines = Machines::new();
    failed(&machines.serve().output().unwrap(), 1, "has to be brought");
    run(&mut machines.at_the_root(&["ca", "root", "init", "--trust-domain", TD]));
    std::fs::copy(machines.root(), machines.dir.path().join("pki/ca/root.pem")).unwrap();
    let control = Control::spawn_waiting(Arc::clone(&machines.dir), machines.serve(), |_| {
        let csr = machines.request();
        let short = ["ca", "sign", "--trust-domain", TD, "--ttl", "60s", csr.to_str().unwrap()];
        let path = machines.dir.path().join("issuing.pem");
        std::fs::write(&path, run(&mut machines.at_the_root(&short))).unwrap();
        run(&mut machines.install(&path));
    });
    // Backdated by five minutes, it is past half of its life at once.
    let metric = |value: u8| {
        let control = &control;
        async move {
            while !control
                .probe("/metrics")
                .await
                .1
                .contains(&format!("postern_control_issuing_ca_waits {value}"))
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    tokio::time::timeout(LONG, metric(1)).await.expect("nobody is told");
    assert_eq!(control.probe("/readyz").await.0, 200, "there is time");
    let asked = async {
        while !machines.operator(&["ca", "csr"]).output().unwrap().status.success() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LONG, asked).await.expect("there is no request");
    run(&mut machines.install(&machines.sign()));
    tokio::time::timeout(LONG, metric(0)).await.expect("the ceremony ends it");
}
