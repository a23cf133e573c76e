//! The operators' port: who has a role may do what the role says; everybody else is refused, and on record.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;

use crate::harness::{Control, Svid, enrolled, failed};
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

/// One file with everything that an operator's command needs.
fn pass(control: &Control, svid: &Svid, name: &str) -> PathBuf {
    let path = control.data().join(name);
    let root = std::fs::read_to_string(control.data().join("ca/root.pem")).unwrap();
    let chain: String = svid.chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
    write(&path, &format!("{}{chain}{root}", pem("PRIVATE KEY", svid.key.secret_pkcs8_der())));
    path
}

#[tokio::test]
async fn the_command_speaks_mutual_tls_and_says_which_role_it_lacks() {
    let control = Control::configured(
        "api:\n  listen: 127.0.0.1:0\n  operators:\n  - { id: spiffe://corp.example/ops/root, role: admin }\n  \
         - { id: spiffe://corp.example/ops/both, role: admin }\n",
    );
    let (_, root) = enrolled(&control, "/ops/root", &[]).await;
    let (_, ann) = enrolled(&control, "/ops/ann", &[]).await;
    let (_, both) = enrolled(&control, "/ops/both", &[]).await;
    let (root, ann) = (pass(&control, &root, "root.pem"), pass(&control, &ann, "ann.pem"));
    let both = pass(&control, &both, "both.pem");
    let url = format!("https://{}", control.ready["api"].as_str().unwrap());
    let ask = |file: &Path, more: &[&str]| {
        control.cli(&[&["--api", &url, "--api-cert", file.to_str().unwrap()], more].concat())
    };
    let document = |name: &str, role: &str| {
        format!(
            "apiVersion: postern.dev/v1\nkind: Identity\nmetadata: {{ name: {name} }}\nspec:\n  \
             spiffeId: spiffe://corp.example/ops/{name}\n  owner: {name}\n{role}"
        )
    };
    let file = control.data().join("ops.yaml");
    let apply = ["apply", "-f", file.to_str().unwrap()];

    failed(&ask(&ann, &["status"]), 1, "this identity has no role here");
    write(&file, &(document("ann", "  role: operator\n") + "---\n" + &document("both", "  role: viewer\n")));
    assert!(ask(&root, &apply).status.success());
    assert!(ask(&ann, &["status"]).status.success(), "a declared role counts from now on");
    failed(&ask(&ann, &["ca", "rotate"]), 1, "this needs the role admin");
    assert!(ask(&both, &["status"]).status.success());
    failed(&ask(&both, &["ca", "rotate"]), 1, "this needs the role admin");

    // Nobody makes himself more than he is: not by a document, a token, selectors, a template, or by taking one away.
    write(&file, &document("ann", "  role: admin\n"));
    failed(&ask(&ann, &apply), 1, "this needs the role admin: it says who is an operator");
    write(&file, &document("eve", "  role: viewer\n"));
    failed(&ask(&ann, &apply), 1, "this needs the role admin");
    let token =
        |id: &str| ask(&ann, &["token", "create", "--id", &format!("spiffe://corp.example/ops/{id}")]);
    failed(&token("root"), 1, "this needs the role admin");
    failed(&token("ann"), 1, "this needs the role admin");
    assert!(token("bob").status.success());
    let selectors = "  selectors: { k8s.namespace: a, k8s.service_account: \"*\" }\n";
    write(&file, &document("root", selectors));
    failed(&ask(&ann, &apply), 1, "this needs the role admin");
    write(&file, &document("x", selectors).replace("ops/x", "ops/{k8s.service_account}"));
    failed(&ask(&ann, &apply), 1, "this needs the role admin");
    failed(&ask(&ann, &["delete", "identity", "both"]), 1, "this needs the role admin");
    write(&file, &document("bob", ""));
    assert!(ask(&ann, &apply).status.success(), "what is no operator's matter is an operator's work");

    // A workload of the same root is not taken for the control plane, and another root's is not either.
    let strange = Control::start();
    let (_, other) = enrolled(&strange, "/ops/root", &[]).await;
    let other = pass(&strange, &other, "other.pem");
    failed(&ask(&other, &["status"]), 1, "this is not the control plane of the trust domain");
    failed(&control.cli(&["--api", &url, "status"]), 1, "--api needs --api-cert");
    failed(&control.cli(&["--api", "http://a:1", "--api-cert", "x", "status"]), 1, "write https://host:port");
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
