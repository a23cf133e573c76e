//! HTTP/2 on the mTLS side keeps RFC 9113 wherever hyper itself does: the same cases are put to a proxy and to bare hyper.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::support::hyper;
use crate::support::mesh::{Directory, Mesh, Presented};
use crate::support::process::{Options, Proxy};
use crate::support::server::server_config;

/// Cases, or beginnings of their names, in which hyper itself does otherwise, and what it does. None of them lets anything
/// through: where an error is meant the connection ends, under another code.
const HYPERS_OWN: [(&str, &str); 8] = [
    ("3.4 preface_without_settings", "goes on without the client's SETTINGS"),
    ("4.3 block_that_cannot_be_decoded", "PROTOCOL_ERROR, not COMPRESSION_ERROR"),
    ("4.3 table_size_update_behind_a_field", "PROTOCOL_ERROR, not COMPRESSION_ERROR"),
    ("5.1 half_closed_stream", "PROTOCOL_ERROR of the connection, not STREAM_CLOSED"),
    ("6 frame_of_a_wrong_size", "PROTOCOL_ERROR, not FRAME_SIZE_ERROR"),
    ("6.3 priority_of_a_wrong_size", "PROTOCOL_ERROR of the connection, not FRAME_SIZE_ERROR"),
    ("6.5.2 setting_out_of_range: window_above_the_limit", "PROTOCOL_ERROR, not FLOW_CONTROL_ERROR"),
    ("8.1 pseudo_field_in_trailers", "drops the field and goes on"),
];

/// What each case came to: `pass`, or what happened instead.
type Verdicts = BTreeMap<String, String>;

#[test]
fn no_case_fails_that_hyper_does_not_fail() {
    let mesh = Mesh::new();
    let honest = mesh.honest();
    let app = hyper::start(None);
    let inbound = format!("inbound: [{{ listen: \"127.0.0.1:0\", app: \"{app}\", protocol: http }}]");
    let proxy = Proxy::start(&mesh, &Options::new(app, app).yaml(&inbound));
    let mut tls = server_config(&honest);
    tls.alpn_protocols = vec![b"h2".to_vec()];
    let bare = run(hyper::start(Some(tls)), &honest);
    let ours = run(proxy.inbound, &honest);

    assert!(ours.len() >= 60, "only {} cases", ours.len());
    let failed = |verdicts: &Verdicts| -> Verdicts {
        verdicts.iter().filter(|(_, v)| *v != "pass").map(|(n, v)| (n.clone(), v.clone())).collect()
    };
    let (mine, hypers) = (failed(&ours), failed(&bare));
    let excused = |name: &String| {
        hypers.contains_key(name) && HYPERS_OWN.iter().any(|(case, _)| name.starts_with(case))
    };
    assert!(mine.keys().all(excused), "the proxy: {mine:#?}\nbare hyper: {hypers:#?}");
    // Whoever has made hyper better takes it off the list.
    let stale = HYPERS_OWN.iter().find(|(case, _)| !hypers.keys().any(|name| name.starts_with(case)));
    assert_eq!(stale, None, "bare hyper: {hypers:#?}");
    println!("{} cases; the proxy fails {}, bare hyper {}", ours.len(), mine.len(), hypers.len());
}

fn run(target: SocketAddr, client: &Presented) -> Verdicts {
    let dir = Directory::new();
    let chain: String = client.chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
    let python = std::env::var_os("POSTERN_PYTHON").unwrap_or_else(|| "python3".into());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/promises/python/h2_conformance.py");
    let output = Command::new(&python)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .arg(script)
        .args([target.ip().to_string(), target.port().to_string()])
        .arg(dir.write("chain.pem", &chain))
        .arg(dir.write("key.pem", &pem("PRIVATE KEY", &client.key.serialize_der())))
        .output()
        .unwrap_or_else(|e| panic!("{}: {e}", Path::new(&python).display()));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{}: {stderr}\nIt needs hpack and hyperframe: python3 -m venv VENV && VENV/bin/pip install -r \
         loadtest/tests/promises/python/requirements.txt, then POSTERN_PYTHON=VENV/bin/python",
        Path::new(&python).display()
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}
