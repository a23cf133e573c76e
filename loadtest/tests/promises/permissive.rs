//! A port on its way to the mesh: it takes plain text beside mTLS, counts them apart, and becomes strict by a push.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use postern_loadtest::app::App;
use postern_loadtest::http;
use postern_loadtest::mesh::{Mesh, Sidecar};

use crate::support::{REQUEST, SOON};

fn mode(mesh: &Mesh, mode: &str, proxies: &[&Sidecar]) {
    let document = format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{ name: default, namespace: demo }}\nspec: {{ mtls: {{ mode: {mode} }} }}\n"
    );
    let generation = mesh.control.apply_policy(&document).unwrap();
    proxies.iter().for_each(|p| p.wait_for_generation(generation, SOON).unwrap());
}

fn plain(server: &Sidecar) -> u64 {
    server.metrics().unwrap().count("postern_plaintext_connections_total", &[])
}

#[test]
fn plain_text_is_taken_counted_and_refused_once_the_port_is_strict() {
    let mesh = Mesh::start().unwrap();
    let app = App::http("hello").unwrap();
    for protocol in ["http", "tcp", "auto"] {
        let (server, client) = mesh.pair(app.address(), protocol).unwrap();
        let before = app.accepted();
        assert!(
            http::get(server.inbound(), "/", REQUEST).is_err(),
            "{protocol}: a strict port takes TLS alone"
        );
        assert_eq!((app.accepted(), plain(&server)), (before, 0), "{protocol}");

        mode(&mesh, "PERMISSIVE", &[&server]);
        assert_eq!(http::get(server.inbound(), "/", REQUEST).unwrap().text(), "hello", "{protocol}");
        assert_eq!(http::get(client.outbound(), "/", REQUEST).unwrap().text(), "hello", "{protocol}");
        assert_eq!(plain(&server), 1, "{protocol}: mTLS is counted elsewhere");

        let mut open = TcpStream::connect(server.inbound()).unwrap();
        open.set_read_timeout(Some(SOON)).unwrap();
        open.write_all(b"GET / HTTP/1.1\r\n").unwrap();
        server.wait_for_metric(SOON, |m| m.count("postern_plaintext_connections_total", &[]) == 2).unwrap();
        mode(&mesh, "STRICT", &[&server]);
        let ended = open.read(&mut [0; 1]);
        assert!(!matches!(ended, Ok(1..)), "{protocol}: an open plain-text connection goes on");
        let before = app.accepted();
        assert!(http::get(server.inbound(), "/", REQUEST).is_err(), "{protocol}");
        assert_eq!(app.accepted(), before, "{protocol}");
        assert_eq!(http::get(client.outbound(), "/", REQUEST).unwrap().text(), "hello", "{protocol}");
    }
}

#[test]
fn who_speaks_plain_text_is_nobody_to_policy() {
    let mesh = Mesh::start().unwrap();
    let app = App::http("hello").unwrap();
    let (server, client) = mesh.pair(app.address(), "http").unwrap();
    mode(&mesh, "PERMISSIVE", &[&server]);
    mesh.allow_only(&["client"], &[&server]).unwrap();
    assert_eq!(http::get(client.outbound(), "/", REQUEST).unwrap().status, 200);
    let answer = http::get(server.inbound(), "/", REQUEST).unwrap();
    assert_eq!(answer.status, 403);
    assert!(answer.head.to_ascii_lowercase().contains("x-postern-denial: "), "{}", answer.head);
}

#[test]
fn a_server_that_speaks_first_is_reached_in_plain_text_after_a_bounded_wait() {
    let mesh = Mesh::start().unwrap();
    let greets = App::start(|mut stream| {
        stream.write_all(b"220 hello\r\n").and_then(|()| stream.read(&mut [0; 1]).map(drop))
    });
    let greets = greets.unwrap();
    let options = mesh.options("mail").unwrap().inbound(greets.address(), Some("mail")).protocol("auto");
    let server = mesh.server_with(options.config("limits: { detect_timeout: 100ms }\n")).unwrap();
    mode(&mesh, "PERMISSIVE", &[&server]);
    let mut stream = TcpStream::connect(server.inbound()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut greeting = [0; 11];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"220 hello\r\n");
    assert!(server.metrics().unwrap().count("postern_detect_timeouts_total", &[]) >= 1);
}
