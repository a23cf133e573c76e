//! WebSockets between the client and the server of `websockets`; policy ends them, and only those that it means.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;

use postern_loadtest::app::App;
use postern_loadtest::mesh::{Directory, Mesh, Sidecar, allow_only};

use crate::programs::Server;
use crate::python::{calls, python, script};
use crate::support::SOON;

fn websocket() -> (Directory, Server, Mesh, Sidecar, Sidecar) {
    let dir = Directory::new().unwrap();
    let app = Server::websocket(dir.path());
    let mesh = Mesh::start().unwrap();
    let (server, client) = mesh.pair(app.address, "http").unwrap();
    (dir, app, mesh, server, client)
}

fn call(client: &Sidecar, cases: &[&str]) {
    calls("websocket_calls.py", "websockets", &format!("ws://{}", client.outbound()), cases);
}

#[test]
fn messages_of_every_kind_pass_and_closes_keep_their_code() {
    let (_dir, _app, _mesh, server, client) = websocket();
    let cases = ["echo", "handshake", "ping", "large", "fragmented", "close_codes", "refused", "at_once"];
    call(&client, &cases);
    let faults = server.metrics().unwrap().count("postern_request_faults_total", &[]);
    assert_eq!(faults, 0);
}

#[test]
fn a_revoked_permission_ends_what_is_open_and_nothing_else() {
    let (_dir, _app, mesh, server, client) = websocket();
    let echo = App::echo().unwrap();
    let bytes =
        mesh.server_with(mesh.options("bytes").unwrap().inbound(echo.address(), Some("bytes"))).unwrap();
    let mut second = mesh.options("client").unwrap().outbound("bytes");
    "client-of-bytes".clone_into(&mut second.name);
    let to_bytes = mesh.sidecar(second).unwrap();
    let mut tcp = TcpStream::connect(to_bytes.outbound()).unwrap();
    tcp.set_read_timeout(Some(SOON)).unwrap();
    let mut exchange =
        |what: &[u8]| tcp.write_all(what).and_then(|()| tcp.read_exact(&mut vec![0; what.len()]));
    exchange(b"open").unwrap();
    let mut held = python("websockets")
        .arg(script("websocket_calls.py"))
        .args([&format!("ws://{}", client.outbound()), "held_open"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(held.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "open");

    let principals = |names: &[&str]| -> Vec<String> {
        names.iter().map(|n| mesh.id(n).trim_start_matches("spiffe://").to_owned()).collect()
    };
    // Others come and go: whoever is still allowed notices nothing.
    for others in [&["client"][..], &["client", "a"], &["client", "b"], &["c", "client"]] {
        let generation = mesh.control.apply_policy(&allow_only("callers", &principals(others))).unwrap();
        for proxy in [&server, &bytes] {
            proxy.wait_for_generation(generation, SOON).unwrap();
        }
    }
    exchange(b"still").unwrap();
    let ended = |server: &Sidecar| {
        let by_policy = [("direction", "inbound"), ("outcome", "policy_changed")];
        server.metrics().unwrap().count("postern_connections_total", &by_policy)
    };
    assert_eq!((ended(&server), ended(&bytes)), (0, 0));

    let generation = mesh.control.apply_policy(&allow_only("callers", &principals(&["somebody"]))).unwrap();
    for proxy in [&server, &bytes] {
        proxy.wait_for_generation(generation, SOON).unwrap();
    }
    let end = lines.next().unwrap().unwrap();
    assert!(end.starts_with("ended "), "{end}");
    assert!(held.wait().unwrap().success());
    assert!(exchange(b"more").is_err(), "bytes go on");
    for proxy in [&server, &bytes] {
        proxy
            .wait_for_log(SOON, |l| {
                l["outcome"] == "policy_changed" && l["peer"] == mesh.id("client").as_str()
            })
            .unwrap();
    }
    call(&client, &["denied"]);
}
