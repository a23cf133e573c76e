//! The operators' port: who has a role may do what the role says; everybody else is refused, and on record.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;

use crate::harness::{Control, Svid, enrolled};
use crate::lint::python_program;

/// A certificate with its key as two files, as clients of all kinds want them.
fn files(svid: &Svid, dir: &Path) -> (PathBuf, PathBuf) {
    let (certificate, key) = (dir.join("c"), dir.join("k"));
    let chain: String = svid.chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
    write(&certificate, &chain);
    write(&key, &pem("PRIVATE KEY", svid.key.secret_pkcs8_der()));
    (certificate, key)
}

/// Asks with a client that knows nothing of us; says the status and the body.
fn ask(control: &Control, svid: Option<&Svid>, arguments: &[&str], path: &str) -> (u16, String) {
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("curl");
    // The control plane's certificate names an identity, which curl cannot compare; what is asked here is what it says of callers.
    command.args(["-sk", "--max-time", "20", "-w", "\n%{http_code}"]).args(arguments);
    if let Some(svid) = svid {
        let (certificate, key) = files(svid, dir.path());
        command.arg("--cert").arg(certificate).arg("--key").arg(key);
    }
    let url = format!("https://{}{path}", control.ready["api"].as_str().unwrap());
    let output = command.arg(url).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (body, status) = text.rsplit_once('\n').unwrap();
    (status.parse().unwrap(), body.to_owned())
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|c| std::str::from_utf8(c).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[tokio::test]
async fn a_role_is_needed_for_every_call_and_whoever_has_none_is_on_record() {
    let control = Control::configured(
        "api:\n  listen: 127.0.0.1:0\n  operators:\n  - { id: spiffe://corp.example/ops/eve }\n  \
         - { id: spiffe://corp.example/ops/ann, role: operator }\n  - { id: spiffe://corp.example/ops/root, role: admin }\n",
    );
    let (_, viewer) = enrolled(&control, "/ops/eve", &[]).await;
    let (_, operator) = enrolled(&control, "/ops/ann", &[]).await;
    let (_, admin) = enrolled(&control, "/ops/root", &[]).await;
    let (_, workload) = enrolled(&control, "/ns/shop/sa/web", &[]).await;
    let json = ["-H", "content-type: application/json", "-d"];
    let service = [&json[..], &[r#"[{"name":"a","identity":"spiffe://corp.example/a"}]"#]].concat();
    let rotate = [&json[..], &["{}"]].concat();

    assert_eq!(ask(&control, Some(&viewer), &[], "/v1/status").0, 200);
    assert_eq!(ask(&control, Some(&viewer), &service, "/v1/services").0, 403);
    assert_eq!(ask(&control, Some(&operator), &service, "/v1/services").0, 200);
    assert_eq!(ask(&control, Some(&operator), &rotate, "/v1/ca/rotate").0, 403);
    assert_eq!(ask(&control, Some(&admin), &rotate, "/v1/ca/rotate").0, 200);

    // A loopback app without a certificate, and a workload with a good one (negative-cases, 70).
    assert_eq!(ask(&control, None, &[], "/v1/status").0, 401);
    assert_eq!(ask(&control, Some(&workload), &[], "/v1/status").0, 403);
    assert_eq!(ask(&control, Some(&workload), &[], "/v1/nothing").0, 403);
    assert_eq!(
        control.refusals("api"),
        ["role_too_low", "role_too_low", "no_certificate", "no_role", "no_role"]
    );

    // Mistakes are answered as what they are.
    assert_eq!(ask(&control, Some(&admin), &[], "/v1/nothing").0, 404);
    assert_eq!(ask(&control, Some(&admin), &["-X", "PUT"], "/v1/status").0, 405);
    let (status, body) = ask(&control, Some(&viewer), &[], "/v1/audit/records?chain=a&page_size=2147483648");
    assert_eq!(status, 400);
    assert!(body.contains("page_size is between 1 and 1000"), "{body}");

    // A revoked operator is nobody, at once.
    control.json(&["revoke", "spiffe://corp.example/ops/root", "--reason", "keyCompromise"]);
    assert_ne!(ask(&control, Some(&admin), &[], "/v1/status").0, 200);
    assert!(control.cli(&["status"]).status.success(), "the socket stays");
}

/// In full length: `POSTERN_FULL=1 cargo test -p postern-control --test promises -- --nocapture schemathesis`.
#[tokio::test]
async fn schemathesis_finds_no_server_error_behind_our_own_description() {
    let control = Control::configured(
        "api:\n  listen: 127.0.0.1:0\n  operators:\n  - { id: spiffe://corp.example/ops/root, role: admin }\n",
    );
    let (_, admin) = enrolled(&control, "/ops/root", &[]).await;
    // What takes something back is asked by itself: beside the rest, the tool learns identities from answers and revokes its own.
    let takes_back = ["/v1/revocations", "/v1/identities/remove", "/v1/ca/taint"];
    // Cuts the caller off, and copies the store once for each try.
    let never = ["/v1/ca/rotation", "/v1/snapshots"];
    let excluded = takes_back.iter().chain(&never).flat_map(|path| ["--exclude-path", path]);
    schemathesis(&control, &admin, &excluded.collect::<Vec<_>>());
    schemathesis(&control, &admin, &takes_back.map(|path| ["--include-path", path]).concat());
    assert!(control.cli(&["status"]).status.success());
}

fn schemathesis(control: &Control, admin: &Svid, paths: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = files(admin, dir.path());
    let url = format!("https://{}", control.ready["api"].as_str().unwrap());
    let seconds = if std::env::var_os("POSTERN_FULL").is_some_and(|v| v == "1") { "600" } else { "15" };
    let output = python_program("st")
        .args(["run", &format!("{url}/openapi.json"), "--url", &url, "--tls-verify", "false"])
        .arg("--request-cert")
        .arg(certificate)
        .arg("--request-cert-key")
        .arg(key)
        // A description that does not fit the answers is as wrong as an answer that fails.
        .args(["--checks", "not_a_server_error,response_schema_conformance,content_type_conformance"])
        .args(["--phases", "examples,coverage,fuzzing", "--max-time", seconds, "--seed", "7", "--no-color"])
        .args(paths)
        .current_dir(dir.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(!said.contains("401 Unauthorized"), "it did not get as far as the handlers: {said}");
    println!("{said}");
}
