//! What operators see of a running proxy and can tell it, and who else can not.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::SOON;
use postern_loadtest::app::App;
use postern_loadtest::mesh::{Mesh, Sidecar, until};

/// A pair with an open connection through it.
fn pair() -> (Mesh, Sidecar, Sidecar, App, TcpStream) {
    let mesh = Mesh::start().unwrap();
    let app = App::echo().unwrap();
    let shop = mesh.server("shop", app.address()).unwrap();
    let web = mesh.client("web", "shop").unwrap();
    let mut open = TcpStream::connect(web.outbound()).unwrap();
    open.set_read_timeout(Some(SOON)).unwrap();
    open.write_all(b"ping").unwrap();
    open.read_exact(&mut [0; 4]).unwrap();
    (mesh, shop, web, app, open)
}

#[test]
fn open_connections_are_shown_with_peer_and_the_rule_that_admitted_them() {
    let (mesh, shop, web, app, open) = pair();
    let by_default = &shop.admin(&["connections"]).unwrap()["connections"][0];
    assert_eq!(by_default["policy"], Value::Null);
    drop(open);
    mesh.allow_only(&["web"], &[&shop]).unwrap();
    let mut streams: Vec<TcpStream> = (0..5).map(|_| TcpStream::connect(web.outbound()).unwrap()).collect();
    for stream in &mut streams {
        stream.write_all(b"ping").unwrap();
        stream.read_exact(&mut [0; 4]).unwrap();
    }
    let all = until(SOON, || {
        let shown = shop.admin(&["connections"]).unwrap();
        (shown["open"] == 5).then_some(shown)
    });
    let all = all.expect("five are open");
    assert_eq!((&all["next"], &all["silent_workers"]), (&Value::Null, &json!([])));
    let rows = all["connections"].as_array().unwrap().clone();
    for row in &rows {
        assert_eq!(row["direction"], "inbound");
        assert_eq!(row["peer"], mesh.id("web"));
        assert_eq!(row["target"], app.address().to_string());
        assert_eq!((&row["policy"], &row["rule"]), (&json!("demo/allowed-callers"), &json!(0)));
        assert_eq!((&row["bytes_up"], &row["bytes_down"]), (&json!(4), &json!(4)));
        assert!(row["age_ms"].is_u64() && row["idle_ms"].is_u64(), "{row}");
    }
    // Page by page, each connection comes once.
    let (mut paged, mut after) = (Vec::new(), None::<String>);
    loop {
        let mut args = vec!["connections", "--limit", "2"];
        args.extend(after.as_deref().map(|id| ["--after", id]).into_iter().flatten());
        let page = shop.admin(&args).unwrap();
        paged.extend(page["connections"].as_array().unwrap().iter().map(|c| c["id"].clone()));
        after = page["next"].as_str().map(str::to_owned);
        if after.is_none() {
            break;
        }
    }
    assert_eq!(paged, rows.iter().map(|c| c["id"].clone()).collect::<Vec<_>>());
    let out = &web.admin(&["connections"]).unwrap()["connections"][0];
    assert_eq!((&out["direction"], &out["peer"]), (&json!("outbound"), &json!(mesh.id("shop"))));
    assert_eq!(out["target"], shop.inbound().to_string());
}

#[test]
fn identity_upstreams_policy_and_configuration_are_shown() {
    let (mesh, shop, web, _app, _open) = pair();
    let identity = shop.admin(&["identity"]).unwrap();
    assert_eq!(identity["id"], mesh.id("shop"));
    assert_eq!(identity["chain"][0]["uris"], json!([mesh.id("shop")]));
    assert_eq!(identity["chain"][0]["serial"], identity["serial"]);
    assert_eq!(identity["chain"].as_array().unwrap().len(), 2, "leaf and issuing CA");
    assert_eq!(identity["bundles"][0]["trust_domain"], "mesh.test");
    let (left, renewal) = (identity["expires_in_s"].as_i64(), identity["renewal_in_s"].as_i64());
    assert!(renewal > Some(0) && renewal < left, "{identity}");
    let pem = identity["pem"].as_str().unwrap();
    assert!(pem.starts_with("-----BEGIN CERTIFICATE-----") && !pem.contains("PRIVATE"));

    let upstreams = web.admin(&["upstreams"]).unwrap();
    let upstream = &upstreams["upstreams"][0];
    assert_eq!((&upstream["name"], &upstream["expected"]), (&json!("shop"), &json!(mesh.id("shop"))));
    assert_eq!(upstream["endpoints"][0]["address"], shop.inbound().to_string());
    assert_eq!(
        (&upstream["endpoints"][0]["open"], &upstream["endpoints"][0]["resting_at"]),
        (&json!(1), &json!(0))
    );

    mesh.allow_only(&["web"], &[&shop]).unwrap();
    let policy = shop.admin(&["policy"]).unwrap();
    assert_eq!(policy["policies"][0]["metadata"]["name"], "allowed-callers");
    let ask = |who: &str| {
        let (peer, port) = (mesh.id(who), shop.inbound().port().to_string());
        shop.admin(&["explain", "--peer", &peer, "--source-ip", "127.0.0.1", "--port", &port]).unwrap()
    };
    assert_eq!(
        (&ask("web")["allow"], &ask("web")["because"]),
        (&json!(true), &json!("allowed by demo/allowed-callers rule 0"))
    );
    let denied = ask("stranger");
    assert_eq!(denied["allow"], false);
    assert!(
        denied["because"].as_str().unwrap().contains("Nearest: demo/allowed-callers rule 0 wants principal"),
        "{denied}"
    );
    assert_eq!(denied["generation"], policy["generation"]);

    let config = shop.admin(&["config"]).unwrap();
    assert_eq!(config["bound"]["inbound"][0], shop.inbound().to_string());
    assert_eq!(config["config"]["log"]["format"], "json", "flags are in it");
    let list = shop.admin(&["get", "/"]).unwrap();
    assert_eq!(
        (&list["ready"], &list["id"], &list["pid"]),
        (&json!(true), &json!(mesh.id("shop")), &json!(shop.pid()))
    );
}

#[test]
fn a_dead_endpoint_shows_as_resting() {
    let mesh = Mesh::start().unwrap();
    let app = App::echo().unwrap();
    let shop = mesh.server("shop", app.address()).unwrap();
    let web = mesh.client("web", "shop").unwrap();
    let dead = shop.inbound();
    drop(shop);
    // The endpoint stays announced for a while; whoever connects finds it dead.
    let resting = until(SOON, || {
        drop(TcpStream::connect(web.outbound()).unwrap());
        let shown = web.admin(&["upstreams"]).unwrap();
        let endpoint = shown["upstreams"][0]["endpoints"][0].clone();
        (endpoint["address"] == dead.to_string() && endpoint["resting_at"].as_u64() > Some(0))
            .then_some(endpoint)
    });
    let resting = resting.expect("it rests");
    assert!(resting["workers"][0]["failures"].as_u64() > Some(0), "{resting}");
}

#[test]
fn the_log_level_changes_while_it_runs_and_a_mistyped_one_does_not() {
    let (_mesh, shop, web, _app, open) = pair();
    let outcomes = |sidecar: &Sidecar| sidecar.logs().iter().filter(|l| l["outcome"] == "completed").count();
    assert_eq!(shop.admin(&["log"]).unwrap()["level"], "info");
    shop.admin(&["log", "warn"]).unwrap();
    let before = outcomes(&shop);
    drop(open);
    web.wait_for_log(SOON, |l| l["outcome"] == "completed").unwrap();
    let closed = until(SOON, || (shop.admin(&["connections"]).unwrap()["open"] == 0).then_some(()));
    closed.expect("the connection has ended");
    let error = shop.admin(&["log", "debgu"]).unwrap_err().to_string();
    assert!(error.contains("debgu") && error.contains("not a level"), "{error}");
    assert_eq!(shop.admin(&["log"]).unwrap()["level"], "warn");
    shop.admin(&["log", "info"]).unwrap();
    drop(TcpStream::connect(web.outbound()).unwrap());
    shop.wait_for_log(SOON, |l| l["message"] == "an operator has changed the log level").unwrap();
    shop.wait_for_log(SOON, |l| l["outcome"].is_string() && l["duration_ms"].is_u64()).unwrap();
    assert!(outcomes(&shop) <= before + 1, "what ended under `warn` was not logged");
}

#[test]
fn an_operator_can_drain_a_proxy() {
    let (_mesh, mut shop, _web, _app, open) = pair();
    assert_eq!(shop.admin(&["drain"]).unwrap()["draining"], true);
    until(SOON, || (!shop.ready().ok()?.0).then_some(())).expect("no longer ready");
    drop(open);
    let status = shop.process().wait(SOON).unwrap();
    assert!(status.success(), "{status}");
    assert!(!shop.admin_socket().exists(), "its socket goes with it");
}

#[test]
fn the_socket_is_private_and_only_the_own_user_and_root_are_answered() {
    let (_mesh, shop, _web, _app, _open) = pair();
    let socket = shop.admin_socket();
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o7777, 0o600);
    // curl works as well, and HTTP is HTTP.
    let curl = Command::new("curl")
        .args(["-s", "--unix-socket"])
        .arg(&socket)
        .arg("http://any/log")
        .output()
        .unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&curl.stdout).unwrap()["level"], "info");
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(b"DELETE /config HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("allow: GET\r\n"), "{answer}");
    if nix::unistd::geteuid().is_root() {
        // The mode alone would stop a stranger; with the mode out of the way, the kernel's word does.
        let open = |path: &std::path::Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap()
        };
        open(&socket, 0o666);
        open(socket.parent().unwrap(), 0o755);
        let stranger = Command::new("setpriv")
            .args(["--reuid", "4242", "--clear-groups", "curl", "-s", "--max-time", "10", "--unix-socket"])
            .arg(&socket)
            .arg("http://any/config")
            .output()
            .unwrap();
        assert!(stranger.stdout.is_empty() && !stranger.status.success(), "{stranger:?}");
        shop.wait_for_log(SOON, |l| l["message"] == "a stranger on the admin socket was turned away")
            .unwrap();
    }
}

/// One request over TCP; status and body.
fn asked(at: SocketAddr, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap();
    (status, answer)
}

#[test]
fn over_tcp_it_is_read_only_shows_no_peer_and_answers_no_rebound_name() {
    let mesh = Mesh::start().unwrap();
    let app = App::echo().unwrap();
    let mut options = mesh.options("shop").unwrap().inbound(app.address(), Some("shop"));
    options = options.outbound(&format!("127.0.0.1:9,{}", mesh.id("ledger")));
    options.args = ["--admin-listen", "127.0.0.1:0"].map(str::to_owned).to_vec();
    let shop = mesh.server_with(options).unwrap();
    let web = mesh.client("web", "shop").unwrap();
    let mut open = TcpStream::connect(web.outbound()).unwrap();
    open.write_all(b"ping").unwrap();
    open.read_exact(&mut [0; 4]).unwrap();
    let config = shop.admin(&["config"]).unwrap();
    let at: SocketAddr = config["bound"]["admin"].as_str().unwrap().parse().unwrap();
    let get = |path: &str, host: &str| {
        asked(at, &format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"))
    };
    let here = at.to_string();
    for path in ["/", "/config", "/identity", "/connections", "/log"] {
        let (status, answer) = get(path, &here);
        assert_eq!(status, 200, "{path}: {answer}");
        for peer in ["web", "ledger"] {
            assert!(!answer.contains(&mesh.id(peer)), "{path} shows a peer: {answer}");
        }
        assert!(!answer.to_ascii_lowercase().contains("access-control"), "{answer}");
        let (status, answer) = get(path, &format!("rebound.example:{}", at.port()));
        assert!(status == 403 && !answer.contains("mesh.test"), "{path}: {answer}");
    }
    assert!(get("/connections", &here).1.contains("\"open\":1"));
    for path in ["/policy", "/upstreams"] {
        assert_eq!(get(path, &here).0, 403, "{path}");
    }
    for (method, path) in
        [("POST", "/drain"), ("POST", "/explain"), ("PUT", "/log"), ("DELETE", "/log"), ("POST", "/")]
    {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {here}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
        let (status, answer) = asked(at, &request);
        assert!(matches!(status, 403 | 405), "{method} {path}: {answer}");
    }
    assert!(shop.ready().unwrap().0, "nothing has changed");
    assert_eq!(shop.admin(&["log"]).unwrap()["level"], "info");
}

#[test]
fn a_socket_that_is_asked_for_and_cannot_be_had_is_an_error_and_the_default_is_not() {
    let mesh = Mesh::start().unwrap();
    let foreign = mesh.dir().join("precious");
    std::fs::write(&foreign, "precious").unwrap();
    let mut options = mesh.options("shop").unwrap().inbound("127.0.0.1:9", None);
    let usual = std::mem::replace(&mut options.admin, foreign.clone());
    let error = format!("{:#}", mesh.sidecar(options.clone()).unwrap_err());
    assert!(error.contains("precious") && error.contains("not a socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&foreign).unwrap(), "precious");
    // A proxy that was killed leaves its socket; the next one replaces it, and a third does not.
    options.admin = usual;
    let mut shop = mesh.sidecar(options).unwrap();
    shop.kill9();
    assert!(shop.admin_socket().exists());
    let mut next = mesh.options("other").unwrap().inbound("127.0.0.1:9", None);
    next.admin = shop.admin_socket();
    let other = mesh.sidecar(next).unwrap();
    assert_eq!(other.admin(&["get", "/"]).unwrap()["pid"], other.pid());
    let mut third = mesh.options("third").unwrap().inbound("127.0.0.1:9", None);
    third.admin = shop.admin_socket();
    let error = format!("{:#}", mesh.sidecar(third).unwrap_err());
    assert!(error.contains("another process answers there"), "{error}");
}
