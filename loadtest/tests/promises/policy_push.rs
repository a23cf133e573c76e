//! Policies are swapped under load: no request fails for it, and each proxy decides by the new ones within a second.

use std::time::{Duration, Instant};

use postern_loadtest::http;
use postern_loadtest::mesh::{Directory, Mesh, Sidecar, until};

use crate::h2load::H2load;
use crate::programs::Server;
use crate::support::{REQUEST, SOON, full};

const PROXIES: usize = 3;

/// Policies of which only the answer to `/probe` changes from one to the next, with as much beside it as a team may have.
fn policies(probe: bool) -> String {
    let filler = (0..200).map(|n| {
        serde_json::json!({ "to": [{ "operation": { "paths": [format!("/filler/{n}")], "methods": ["GET"] } }],
                            "from": [{ "source": { "principals": [format!("mesh.test/ns/demo/sa/{n}")] } }] })
    });
    let paths = if probe { vec!["/", "/probe"] } else { vec!["/"] };
    let rules: Vec<_> =
        filler.chain([serde_json::json!({ "to": [{ "operation": { "paths": paths } }] })]).collect();
    serde_json::json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "swapped", "namespace": "demo" },
        "spec": { "action": "ALLOW", "rules": rules },
    })
    .to_string()
}

#[test]
fn policies_are_swapped_under_load_without_an_error_and_hold_at_once() {
    let dir = Directory::new().unwrap();
    std::fs::create_dir(dir.path().join("www")).unwrap();
    std::fs::write(dir.path().join("www/index.html"), "hello\n").unwrap();
    std::fs::write(dir.path().join("www/probe"), "probe\n").unwrap();
    let nginx = Server::nginx(dir.path());
    let mesh = Mesh::start().unwrap();
    let shop = |number: usize| {
        let mut options = mesh.options("shop").unwrap().inbound(nginx.address, Some("shop")).protocol("http");
        options.name = format!("shop-{number}");
        mesh.sidecar(options).unwrap()
    };
    mesh.control.apply_service("shop", &mesh.id("shop"), &[]).unwrap();
    let shops: Vec<Sidecar> = (0..PROXIES).map(shop).collect();
    let mut generation = mesh.control.apply_policy(&policies(true)).unwrap();
    // One way that is balanced over all of them, for the load; and one to each, to ask it alone.
    let mut options = mesh.options("web").unwrap().protocol("http").outbound("shop");
    for shop in &shops {
        options = options.outbound(&format!("{},{}", shop.inbound(), mesh.id("shop")));
    }
    let web = mesh.sidecar(options).unwrap();
    for proxy in shops.iter().chain([&web]) {
        proxy.wait_for_generation(generation, SOON).unwrap();
    }
    let (_, listeners) = web.listeners();
    let (seconds, rate) = if full() { (60, 250) } else { (6, 25) };

    let mut load = H2load::start(&format!("http://{}/", listeners[0]), 4, rate, seconds, &[]);
    let (mut allowed, mut swaps, mut slowest) = (true, 0, Duration::ZERO);
    while load.runs() {
        allowed = !allowed;
        let applied = mesh.control.apply_policy(&policies(allowed)).unwrap();
        let began = Instant::now();
        assert!(applied > generation);
        generation = applied;
        let expected = if allowed { 200 } else { 403 };
        for listener in &listeners[1..] {
            let obeys =
                || http::get(*listener, "/probe", REQUEST).is_ok_and(|a| a.status == expected).then_some(());
            assert!(until(SOON, obeys).is_some(), "a proxy still decides by policies that were replaced");
        }
        slowest = slowest.max(began.elapsed());
        swaps += 1;
    }
    let report = load.report();
    report.none_failed();
    assert!(swaps >= 3, "the load ended after {swaps} swaps");
    println!(
        "{} requests in {seconds} s over {swaps} swaps, none failed; all {PROXIES} proxies decided anew within {slowest:?}",
        report.done
    );
    if full() {
        assert!(
            report.done >= u64::from(4 * rate * seconds) * 9 / 10,
            "the load was no load: {}",
            report.text
        );
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    }
    let faults =
        |s: &Sidecar, d| s.metrics().unwrap().count("postern_request_faults_total", &[("direction", d)]);
    assert_eq!(faults(&web, "outbound"), 0);
}
