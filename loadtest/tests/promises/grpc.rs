//! gRPC between grpcio's client and server through two sidecars.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;

use postern_loadtest::app::App;
use postern_loadtest::mesh::{Directory, Mesh, Sidecar};

use crate::programs::Server;
use crate::python::{calls, python, script};
use crate::support::SOON;

fn grpc(protocol: &str) -> (Directory, Server, Mesh, Sidecar, Sidecar) {
    let dir = Directory::new().unwrap();
    let app = Server::grpc(dir.path());
    let mesh = Mesh::start().unwrap();
    let (server, client) = mesh.pair(app.address, protocol).unwrap();
    (dir, app, mesh, server, client)
}

fn call(to: SocketAddr, cases: &[&str]) -> String {
    calls("grpc_calls.py", "grpc", &to.to_string(), cases)
}

#[test]
fn every_kind_of_call_and_end() {
    let kinds = ["unary", "metadata", "server_streaming", "client_streaming", "bidi", "interleaved"];
    let ends = ["deadline", "cancellation", "trailers_only", "late_failure", "large", "many"];
    let (_dir, app, _mesh, server, client) = grpc("grpc");
    call(client.outbound(), &[&kinds[..], &ends].concat());
    let metrics = server.metrics().unwrap();
    let faults = |labels: &[(&str, &str)]| metrics.count("postern_request_faults_total", labels);
    let others = faults(&[]) - faults(&[("reason", "upstream_timeout")]);
    assert_eq!(others, 0, "what the app answers is no fault of the way, and a deadline the caller's own");
    drop(app);
    assert_eq!(call(client.outbound(), &["unavailable"]), "unreachable\n");
}

#[test]
fn grpc_is_found_on_listeners_for_http_and_for_anything() {
    for protocol in ["http", "auto"] {
        let (_dir, _app, _mesh, _server, client) = grpc(protocol);
        call(client.outbound(), &["unary", "bidi", "trailers_only", "late_failure"]);
    }
}

#[test]
fn a_denied_call_says_so_in_grpcs_own_words() {
    let (_dir, _app, mesh, server, client) = grpc("grpc");
    call(client.outbound(), &["unary"]);
    mesh.allow_only(&["somebody-else"], &[&server]).unwrap();
    let denial = call(client.outbound(), &["denied"]);
    let line = server.wait_for_log(SOON, |l| l["denial"] == denial.trim()).unwrap();
    assert_eq!((&line["path"], &line["method"]), (&"/postern.Test/Echo".into(), &"POST".into()), "{line}");
    assert_eq!(line["peer"], mesh.id("client").as_str());
}

#[test]
fn an_app_that_speaks_no_http_2_is_no_grpc_app() {
    let app = App::http("hello").unwrap();
    let mesh = Mesh::start().unwrap();
    let (_server, client) = mesh.pair(app.address(), "grpc").unwrap();
    call(client.outbound(), &["unavailable"]);
}

#[test]
fn a_stream_whose_other_end_dies_ends_in_an_error() {
    let dir = Directory::new().unwrap();
    let app = Server::grpc(dir.path());
    let mesh = Mesh::start().unwrap();
    let cache = mesh.dir().join("cache");
    let options = mesh.options("server").unwrap().inbound(app.address, Some("server")).protocol("grpc");
    let mut server = mesh.server_with(options.cache(cache)).unwrap();
    let client = mesh.sidecar(mesh.options("client").unwrap().outbound("server").protocol("grpc")).unwrap();
    let hold = || {
        let mut held = python("grpc")
            .arg(script("grpc_calls.py"))
            .args([&client.outbound().to_string(), "held_open"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(held.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "open");
        (held, lines)
    };
    let (mut held, mut lines) = hold();
    server.kill9();
    let end = lines.next().unwrap().unwrap();
    assert!(["UNAVAILABLE", "INTERNAL", "CANCELLED", "UNKNOWN"].contains(&&*end), "the sidecar died: {end}");
    assert!(held.wait().unwrap().success());

    server.restart().unwrap();
    call(client.outbound(), &["unary"]);
    let (mut held, mut lines) = hold();
    app.kill();
    let end = lines.next().unwrap().unwrap();
    assert!(["UNAVAILABLE", "INTERNAL", "CANCELLED", "UNKNOWN"].contains(&&*end), "the app died: {end}");
    assert!(held.wait().unwrap().success());
}
