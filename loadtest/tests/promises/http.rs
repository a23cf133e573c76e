//! HTTP passes through two sidecars, and each request is judged by the caller's identity.

use std::net::SocketAddr;
use std::process::Command;

use postern_loadtest::app::App;
use postern_loadtest::http;
use postern_loadtest::mesh::{Directory, Mesh};

use crate::programs::{Server, program, run};
use crate::support::{REQUEST, SOON};

fn curl(arguments: &[&str]) -> String {
    let mut curl = Command::new(program("curl", "curl"));
    curl.args(["--silent", "--show-error", "--max-time", "30"]).args(arguments);
    run(&mut curl)
}

fn url(address: SocketAddr, path: &str) -> String {
    format!("http://{address}{path}")
}

#[test]
fn curl_speaks_both_versions_to_nginx() {
    let dir = Directory::new().unwrap();
    std::fs::create_dir(dir.path().join("www")).unwrap();
    std::fs::write(dir.path().join("www/index.html"), "hello from nginx\n").unwrap();
    let nginx = Server::nginx(dir.path());
    let mesh = Mesh::start().unwrap();
    let (server, client) = mesh.pair(nginx.address, "http").unwrap();
    let url = url(client.outbound(), "/");
    for version in ["--http1.0", "--http1.1"] {
        assert_eq!(curl(&[version, &url, &url]), "hello from nginx\nhello from nginx\n", "{version}");
    }
    // One at a time: curl 7.88 cannot take up a connection of prior knowledge again, whoever serves it.
    for _ in 0..2 {
        assert_eq!(curl(&["--http2-prior-knowledge", &url]), "hello from nginx\n");
    }
    let handshakes = server.metrics().unwrap();
    let ok = handshakes.count("postern_handshakes_total", &[("direction", "inbound"), ("result", "ok")]);
    assert!(ok <= 2, "six requests share a connection per worker, but there were {ok} handshakes");
}

#[test]
fn each_request_is_judged_and_a_denial_can_be_asked_about() {
    let mesh = Mesh::start().unwrap();
    let app = App::http("hello").unwrap();
    let (server, client) = mesh.pair(app.address(), "http").unwrap();
    let policy = format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ name: readers, namespace: demo }}\nspec:\n  rules:\n  - from: [{{ source: {{ principals: [{}] }} }}]\n    to: [{{ operation: {{ methods: [GET], paths: [/open/*] }} }}]\n",
        mesh.id("client").trim_start_matches("spiffe://")
    );
    let generation = mesh.control.apply_policy(&policy).unwrap();
    server.wait_for_generation(generation, SOON).unwrap();
    assert_eq!(http::get(client.outbound(), "/open/x", REQUEST).unwrap().status, 200);
    let before = app.accepted();
    for path in ["/closed", "/open/../closed", "//closed", "/open/%2e%2e/closed"] {
        let denied = http::get(client.outbound(), path, REQUEST).unwrap();
        assert_eq!(denied.status, 403, "{path}");
        let head = denied.head.to_ascii_lowercase();
        let id = head.lines().find_map(|l| l.strip_prefix("x-postern-denial: ")).unwrap().to_owned();
        let mine = |l: &serde_json::Value| l["denial"].as_str().is_some_and(|d| d.eq_ignore_ascii_case(&id));
        let line = server.wait_for_log(SOON, mine).unwrap();
        assert_eq!(line["path"], "/closed", "{line}");
        assert_eq!(line["peer"], mesh.id("client").as_str(), "{line}");
        assert!(
            line["detail"].as_str().unwrap().contains("demo/readers rule 0 wants path /open/*"),
            "{line}"
        );
    }
    assert_eq!(http::get(client.outbound(), "/open/%2f", REQUEST).unwrap().status, 400);
    assert_eq!(app.accepted(), before, "nothing of this reached the app");
}
