//! A server's sidecar is replaced under load, a new one first and the old one drained: no request is lost.

use std::time::Duration;

use postern_loadtest::app::App;
use postern_loadtest::mesh::{Directory, Mesh, Sidecar, SidecarOptions, until};

use crate::h2load::H2load;
use crate::programs::Server;
use crate::support::{SOON, full, steady};

/// For the drain of a sidecar whose requests take half a second.
const DRAINED: Duration = Duration::from_secs(20);

#[test]
fn a_server_sidecar_is_rolled_under_load_and_no_request_is_lost() {
    let dir = Directory::new().unwrap();
    let app = Server::python(dir.path(), "1.1");
    let mesh = Mesh::start().unwrap();
    let generation = |number: u32| -> SidecarOptions {
        let mut options = mesh.options("shop").unwrap().inbound(app.address, Some("shop")).protocol("http");
        options.name = format!("shop-{number}");
        options
    };
    mesh.control.apply_service("shop", &mesh.id("shop"), &[]).unwrap();
    let mut old = mesh.sidecar(generation(0)).unwrap();
    let client = mesh.sidecar(mesh.options("web").unwrap().outbound("shop").protocol("http")).unwrap();
    let at = |path: &str| format!("http://{}{path}", client.outbound());
    let body = dir.path().join("body");
    std::fs::write(&body, "x".repeat(10_000)).unwrap();
    let body = format!("--data={}", body.display());
    let (seconds, rate) = if full() { (60, 100) } else { (8, 15) };

    let mut loads = [
        ("h2", H2load::start(&at("/"), 2, rate, seconds, &[])),
        ("h2, bodies, not repeatable", H2load::start(&at("/seen"), 2, rate, seconds, &[&body])),
        ("h1", H2load::start(&at("/"), 2, rate, seconds, &["--h1"])),
        ("h1, bodies, not repeatable", H2load::start(&at("/seen"), 2, rate, seconds, &["--h1", &body])),
        ("h2, half a second each", H2load::start(&at("/drip/5"), 2, 4, seconds, &[])),
    ];
    let new_connections = steady(client.outbound(), rate);
    let mut rolls = 0;
    while loads.iter_mut().all(|(_, load)| load.runs()) {
        let new = mesh.sidecar(generation(rolls + 1)).unwrap();
        let carries = |s: &Sidecar| s.metrics().is_ok_and(|m| m.count("postern_requests_total", &[]) >= 3);
        assert!(until(SOON, || carries(&new).then_some(())).is_some(), "the new sidecar gets no request");
        old.sigterm();
        let end = old.process().wait(DRAINED).unwrap();
        assert!(end.success(), "{end}");
        assert!(!old.logs().iter().any(|l| l["reason"] == "upstream_reset"), "{:?}", old.logs());
        old = new;
        rolls += 1;
    }
    let tally = new_connections.finish();
    let reports = loads.map(|(what, load)| (what, load.report()));
    let refused: Vec<_> = client.logs().into_iter().filter(|l| l["reason"].is_string()).collect();
    assert!(refused.is_empty(), "{refused:#?}");
    assert_eq!((tally.failed, &tally.errors), (0, &Vec::new()), "new connections");
    println!("new connections: {} requests over {rolls} rolls, none failed", tally.requests);
    for (what, report) in reports {
        report.none_failed();
        println!("{what}: {} requests, none failed", report.done);
    }
    assert!(rolls >= 2, "the load ended before anything was rolled");
}

#[test]
fn a_sidecar_that_ends_in_order_is_announced_no_more_and_again_when_it_is_back() {
    let mesh = Mesh::start().unwrap();
    let app = App::http("hello").unwrap();
    let cache = mesh.dir().join("cache");
    let mut shop = mesh
        .server_with(mesh.options("shop").unwrap().inbound(app.address(), Some("shop")).cache(cache))
        .unwrap();
    let address = shop.inbound().to_string();
    let is_announced = || mesh.control.json(&["service", "list"]).unwrap().to_string().contains(&address);
    assert!(until(SOON, || is_announced().then_some(())).is_some(), "it is not announced");
    shop.stop().unwrap();
    // Its lease would last three times as long.
    assert!(until(SOON, || (!is_announced()).then_some(())).is_some(), "it is still announced");
    shop.restart().unwrap();
    assert!(until(SOON, || is_announced().then_some(())).is_some(), "it is not announced again");
}
