//! Certificates as linters and foreign verifiers want them: pkilint, OpenSSL in its strictest mode, GnuTLS.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustls::pki_types::{CertificateDer, pem::PemObject as _};

use crate::harness::{Control, Svid, enrolled};
use crate::keys::run;

/// A SPIFFE ID is a URI (RFC 3986 §3): pkilint's grammar wants what only URLs of hosts have. Nothing else is passed over.
const FALSE_ON_EVERY_SPIFFE_ID: &str = "pkix.invalid_uri_syntax";

/// A program of the tests' Python environment.
pub(crate) fn python_program(name: &str) -> Command {
    let beside = std::env::var_os("POSTERN_PYTHON").map(|python| Path::new(&python).with_file_name(name));
    Command::new(beside.filter(|path| path.exists()).unwrap_or_else(|| name.into()))
}

/// The codes of all findings, down to notices. (Below are remarks such as which method a key identifier was made by.)
pub(crate) fn findings(command: &mut Command) -> Vec<String> {
    let output = command.args(["-s", "NOTICE", "-f", "JSON"]).output();
    let output = output.unwrap_or_else(|e| {
        panic!("{command:?}: {e}; pip install -r loadtest/tests/promises/python/requirements.txt")
    });
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{command:?}: {e}: {}", String::from_utf8_lossy(&output.stderr)));
    let results = report["results"].as_array().unwrap();
    let findings = results.iter().flat_map(|r| r["finding_descriptions"].as_array().unwrap());
    findings.map(|f| f["code"].as_str().unwrap().to_owned()).collect()
}

fn lint(certificate: &Path) -> Vec<String> {
    findings(python_program("lint_pkix_cert").arg("lint").arg(certificate))
}

fn lint_pair(issuer: &Path, subject: &Path) -> Vec<String> {
    findings(python_program("lint_pkix_signer_signee_cert_chain").arg("lint").args([issuer, subject]))
}

/// Leaf, issuing CA and root as PEM files.
pub(crate) fn files(control: &Control, svid: &Svid, name: &str) -> [PathBuf; 3] {
    let write = |name: String, der: &[u8]| {
        let path = control.data().join(name);
        std::fs::write(&path, crate::harness::pem("CERTIFICATE", der)).unwrap();
        path
    };
    let (leaf, issuing) =
        (write(format!("{name}.pem"), &svid.chain[0]), write(format!("{name}-issuing.pem"), &svid.chain[1]));
    [leaf, issuing, control.data().join("ca/root.pem")]
}

#[tokio::test]
async fn pkilint_finds_nothing_but_that_it_does_not_know_spiffe_ids() {
    let control = Control::start();
    let (_, svid) = enrolled(&control, "/ns/shop/sa/payments", &[]).await;
    let [leaf, issuing, root] = files(&control, &svid, "leaf");
    for certificate in [&leaf, &issuing, &root] {
        assert_eq!(lint(certificate), [FALSE_ON_EVERY_SPIFFE_ID], "{}", certificate.display());
    }
    assert_eq!(lint_pair(&root, &issuing), [""; 0]);
    assert_eq!(lint_pair(&issuing, &leaf), [""; 0]);
}

#[tokio::test]
async fn openssl_at_its_strictest_and_gnutls_believe_every_chain() {
    let control = Control::start();
    let (_, svid) = enrolled(&control, "/ns/shop/sa/payments", &[]).await;
    let [leaf, issuing, root] = files(&control, &svid, "leaf");
    for purpose in ["sslclient", "sslserver"] {
        let mut verify = Command::new("openssl");
        verify.args(["verify", "-x509_strict", "-policy_check", "-purpose", purpose]);
        run(verify.arg("-CAfile").arg(&root).arg("-untrusted").arg(&issuing).arg(&leaf));
    }
    run(Command::new("openssl")
        .args(["verify", "-x509_strict", "-check_ss_sig", "-CAfile"])
        .args([&root, &root]));
    let chain = control.data().join("chain.pem");
    let text = [&leaf, &issuing].map(|path| std::fs::read_to_string(path).unwrap()).concat();
    std::fs::write(&chain, text).unwrap();
    let said = run(Command::new("certtool")
        .args(["--verify", "--load-ca-certificate"])
        .arg(&root)
        .arg("--infile")
        .arg(&chain));
    assert!(said.contains("Chain verification output: Verified"), "{said}");
}

/// UTCTime ends with 2049 (RFC 5280 §4.1.2.5); a signed 32-bit clock with January 2038.
#[tokio::test]
async fn lives_that_end_after_2038_and_2050_are_written_as_everybody_reads_them() {
    for (root_ttl, kind) in [("5500d", 0x17), ("10000d", 0x18)] {
        let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
        let config = dir.path().join("control.yaml");
        std::fs::write(
            &config,
            format!("ca: {{ root_ttl: {root_ttl}, issuing_ttl: {root_ttl} }}\nsvid: {{ max_ttl: 2000d }}\n"),
        )
        .unwrap();
        let control = Control::start_in(
            dir,
            &["--trust-domain", crate::harness::TD, "--config", config.to_str().unwrap()],
        );
        let (_, svid) = enrolled(&control, "/a", &[]).await;
        let [leaf, issuing, root] = files(&control, &svid, "leaf");
        let root_der = CertificateDer::from_pem_file(&root).unwrap();
        for der in [&root_der, &svid.chain[1]] {
            let (_, parsed) = x509_parser::parse_x509_certificate(der).unwrap();
            let (first, last) = (parsed.validity().not_before, parsed.validity().not_after);
            assert!(first.is_utctime(), "before 2050");
            assert_eq!(if last.is_utctime() { 0x17 } else { 0x18 }, kind, "{last}");
            assert!(last.timestamp() > i64::from(i32::MAX), "after 2038: {last}");
        }
        assert_eq!(lint(&root), [FALSE_ON_EVERY_SPIFFE_ID]);
        run(Command::new("openssl")
            .args(["verify", "-x509_strict", "-CAfile"])
            .arg(&root)
            .arg("-untrusted")
            .args([&issuing, &leaf]));
        for role in [postern_config::svid::Role::Client, postern_config::svid::Role::Server] {
            crate::harness::verify(&svid.chain, root_der.clone(), role);
        }
    }
}
