//! What the control plane says takes hold at once, on open connections too; and where services are, and who may say so.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::support::{REQUEST, SOON};
use postern_loadtest::app::App;
use postern_loadtest::http;
use postern_loadtest::mesh::{Mesh, allow_only, until};

/// An app that sends back what it gets, as long as its peer likes.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut from, mut to) = (stream.try_clone().unwrap(), stream);
                let _ = std::io::copy(&mut from, &mut to);
            });
        }
    });
    address
}

fn exchange(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"ping")?;
    stream.read_exact(&mut [0; 4])
}

#[test]
fn an_open_connection_that_is_no_longer_allowed_is_closed_and_the_denial_is_explained() {
    let mesh = Mesh::start().unwrap();
    let shop = mesh.server("shop", echo()).unwrap();
    let (web, other) = (mesh.client("web", "shop").unwrap(), mesh.client("other", "shop").unwrap());
    let connect = |to: SocketAddr| {
        let stream = TcpStream::connect(to).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    };
    let (mut from_web, mut from_other) = (connect(web.outbound()), connect(other.outbound()));
    exchange(&mut from_web).unwrap();
    exchange(&mut from_other).unwrap();

    mesh.allow_only(&["web"], &[&shop]).unwrap();
    // Nothing is sent: the end comes from the push itself.
    assert!(!matches!(from_other.read(&mut [0; 1]), Ok(1..)), "it goes on");
    shop.wait_for_log(SOON, |l| l["outcome"] == "policy_changed" && l["peer"] == mesh.id("other").as_str())
        .unwrap();
    exchange(&mut from_web).unwrap();

    let mut denied = connect(other.outbound());
    assert!(exchange(&mut denied).is_err());
    let line = shop.wait_for_log(SOON, |l| l["outcome"] == "denied").unwrap();
    assert_eq!(line["denial"].as_str().unwrap().len(), 26, "a ULID: {line}");
    let detail = line["detail"].as_str().unwrap();
    assert!(
        detail.contains("demo/allowed-callers rule 0 wants principal mesh.test/ns/demo/sa/web"),
        "{detail}"
    );
    let by_policy = [("policy", "default"), ("decision", "deny")];
    assert_eq!(shop.metrics().unwrap().count("postern_authorizations_total", &by_policy), 1);
    exchange(&mut from_web).unwrap();
}

#[test]
fn a_policy_that_cannot_be_read_changes_nothing_and_says_where_it_is_wrong() {
    let mesh = Mesh::start().unwrap();
    let shop = mesh.server("shop", echo()).unwrap();
    mesh.allow_only(&["web"], &[&shop]).unwrap();
    let bad = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: { name: p, namespace: demo }\n\
               spec:\n  rules:\n  - from:\n    - source:\n        ipBlocks: [\"10.0.0.0/33\"]\n";
    let path = mesh.dir().join("bad.yaml");
    std::fs::write(&path, bad).unwrap();
    let out = mesh.control.cli(&["policy", "apply", "-f", path.to_str().unwrap()]).unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(out.stderr.contains("bad.yaml:8:20"), "{}", out.stderr);
    assert!(out.stderr.contains("prefix length goes to 32"), "{}", out.stderr);
    assert!(out.stderr.contains("Nothing was applied"), "{}", out.stderr);
    let shown = mesh.control.cli(&["policy", "show"]).unwrap().stdout;
    assert!(shown.contains("demo/allowed-callers") && !shown.contains("demo/p"), "{shown}");
}

#[test]
fn a_policy_that_tries_itself_out_is_told_in_the_log_and_changes_nothing() {
    let mesh = Mesh::start().unwrap();
    let shop = mesh.server("shop", echo()).unwrap();
    let web = mesh.client("web", "shop").unwrap();
    let path = mesh.dir().join("trial.yaml");
    let trial = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: trial\n  namespace: demo\n  \
                 annotations: { istio.io/dry-run: \"true\" }\nspec: { action: DENY, rules: [{}] }\n";
    std::fs::write(&path, trial).unwrap();
    assert_eq!(
        mesh.control.cli(&["policy", "apply", "-f", path.to_str().unwrap()]).unwrap().status.code(),
        Some(0)
    );
    let told = until(SOON, || {
        let mut stream = TcpStream::connect(web.outbound()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        exchange(&mut stream).unwrap();
        drop(stream);
        // A connection that came before the push says nothing of it.
        shop.wait_for_log(Duration::from_millis(300), |l| l["dry_run"] == "denied by demo/trial rule 0").ok()
    });
    assert_eq!(told.expect("the trial is told")["outcome"], "completed");
}

#[test]
fn a_dead_endpoint_is_skipped_and_the_rest_share_the_load() {
    let (mesh, one, two) = (Mesh::start().unwrap(), App::http("one").unwrap(), App::http("two").unwrap());
    let first = mesh.server("shop", one.address()).unwrap();
    let mut second =
        mesh.sidecar(mesh.options("shop").unwrap().inbound(two.address(), Some("shop"))).unwrap();
    let web = mesh.client("web", "shop").unwrap();
    let get = || http::get(web.outbound(), "/", REQUEST).map(|a| a.text());
    let both = until(SOON, || {
        get().ok()?;
        (one.accepted() > 0 && two.accepted() > 0).then_some(())
    });
    assert!(both.is_some(), "one: {}, two: {}", one.accepted(), two.accepted());

    second.kill9();
    let failed: Vec<_> = (0..50).filter_map(|_| get().err()).collect();
    assert!(failed.is_empty(), "{failed:?}");

    // Its lease runs out by itself, and the service is known at one place again.
    let known = || {
        let services = mesh.control.json(&["service", "list"]).ok()?.to_string();
        (!services.contains(&second.inbound().to_string())).then_some(services)
    };
    let services = until(Duration::from_secs(45), known).expect("the dead endpoint stays announced");
    assert!(services.contains(&first.inbound().to_string()), "{services}");
}

#[test]
fn nobody_announces_a_service_of_somebody_else() {
    let (mesh, real, fake) = (Mesh::start().unwrap(), App::http("real").unwrap(), App::http("fake").unwrap());
    let _shop = mesh.server("shop", real.address()).unwrap();
    let thief = mesh.sidecar(mesh.options("thief").unwrap().inbound(fake.address(), Some("shop"))).unwrap();
    let web = mesh.client("web", "shop").unwrap();
    let refused = || {
        let records = mesh.control.json(&["audit"]).ok()?.to_string();
        (records.contains("announce") && records.contains(&mesh.id("thief"))).then_some(())
    };
    assert!(until(SOON, refused).is_some(), "no audit record");
    for _ in 0..20 {
        assert_eq!(http::get(web.outbound(), "/", REQUEST).unwrap().text(), "real");
    }
    assert_eq!(fake.accepted(), 0);
    assert_eq!(thief.metrics().unwrap().count("postern_connections_total", &[("direction", "inbound")]), 0);

    // Nor does it help to stand at the address that a service names: the identity decides.
    let generation = mesh.control.apply_service("moved", &mesh.id("shop"), &[thief.inbound()]).unwrap();
    let lured = mesh.client("lured", "moved").unwrap();
    lured.wait_for_generation(generation, SOON).unwrap();
    http::get(lured.outbound(), "/", REQUEST).unwrap_err();
    let reason = [("direction", "outbound"), ("reason", "wrong_identity")];
    assert!(lured.metrics().unwrap().count("postern_handshakes_total", &reason) > 0);
    assert_eq!(fake.accepted(), 0);
}

#[test]
fn acknowledgements_are_on_record() {
    let mesh = Mesh::start().unwrap();
    let shop = mesh.server("shop", echo()).unwrap();
    let generation =
        mesh.control.apply_policy(&allow_only("p", &["mesh.test/ns/demo/sa/x".to_owned()])).unwrap();
    shop.wait_for_generation(generation, SOON).unwrap();
    let acknowledged = until(SOON, || {
        let identities = mesh.control.json(&["identities"]).ok()?;
        identities.to_string().contains(&format!("\"generation\":{generation}")).then_some(())
    });
    assert!(acknowledged.is_some(), "{}", mesh.control.json(&["identities"]).unwrap());
}
