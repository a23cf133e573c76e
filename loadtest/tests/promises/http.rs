//! HTTP passes through two sidecars, and each request is judged by the caller's identity.

use std::net::SocketAddr;
use std::process::Command;

use postern_loadtest::mesh::{Directory, Mesh};

use crate::programs::{Server, program, run};

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
