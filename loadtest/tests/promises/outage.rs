//! A control plane that is away disturbs no traffic while certificates are valid; after that, traffic is refused, and
//! comes back by itself: row 89 of the negative cases, and the milestone's promise about SIGKILL.
//!
//! In full length: `POSTERN_FULL=1 cargo test --release -p postern-loadtest --test promises -- --nocapture outage`.

use std::time::Duration;

use crate::support::{REQUEST, SOON, full, let_pass, steady};
use postern_loadtest::app::App;
use postern_loadtest::http;
use postern_loadtest::mesh::{ControlOptions, Mesh};

const OK: &[(&str, &str)] = &[("result", "ok")];

#[test]
fn a_control_plane_killed_for_forty_percent_of_a_lifetime_fails_no_request() {
    // The moments lie at different points of the proxies' own schedule, which is random besides.
    let (life, moments) =
        if full() { (20, vec![0.0, 0.15, 0.3, 0.42, 0.48, 0.55, 0.75]) } else { (10, vec![0.1, 0.43]) };
    let (mut mesh, app) = (Mesh::start().unwrap(), App::http("hello").unwrap());
    let ttl = format!("{life}s");
    let shop = mesh.options("shop").unwrap().inbound(app.address(), Some("shop")).ttl(&ttl);
    let shop = mesh.server_with(shop).unwrap();
    let options = mesh.options("web").unwrap().outbound("shop").ttl(&ttl);
    let spent = options.join.clone().unwrap();
    let web = mesh.sidecar(options).unwrap();
    let traffic = steady(web.outbound(), 20);
    for moment in moments {
        let_pass(Duration::from_secs_f64(f64::from(life) * moment));
        let identities = mesh.control.json(&["identities"]).unwrap();
        mesh.control.kill9();
        let_pass(Duration::from_secs_f64(f64::from(life) * 0.4));
        mesh.control.restart().unwrap();
        for sidecar in [&shop, &web] {
            let before = sidecar.metrics().unwrap().count("postern_renewals_total", OK);
            sidecar
                .wait_for_metric(Duration::from_secs(30), |m| {
                    m.count("postern_renewals_total", OK) > before
                        && m.count("postern_control_connected", &[]) == 1
                })
                .unwrap();
        }
        let again = mesh.control.json(&["identities"]).unwrap();
        assert_eq!(ids(&identities), ids(&again), "nothing was lost");
    }
    let tally = traffic.finish();
    assert_eq!(tally.errors, Vec::<String>::new());
    println!("{} requests through {} outages, 0 failed", tally.requests, if full() { 7 } else { 2 });

    let mut thief = mesh.options("thief").unwrap().outbound("shop");
    thief.join = Some(spent);
    let mut thief = mesh.launch(thief).unwrap();
    let status = thief.process().wait(SOON).unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(thief.process().stderr().contains("refused the join token"), "{}", thief.process().stderr());
}

fn ids(identities: &serde_json::Value) -> Vec<String> {
    let list = identities.as_array().or_else(|| identities["identities"].as_array()).unwrap();
    let mut ids: Vec<String> = list.iter().map(|i| i["id"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids
}

#[test]
fn an_expired_proxy_fails_closed_and_comes_back_within_the_grace() {
    let options = ControlOptions { config: "svid: { grace: 1m }".to_owned(), ..ControlOptions::default() };
    let (mut mesh, app) = (Mesh::start_with(options).unwrap(), App::http("hello").unwrap());
    let shop = mesh.options("shop").unwrap().inbound(app.address(), Some("shop")).ttl("8s");
    let shop = mesh.server_with(shop).unwrap();
    let web = mesh.sidecar(mesh.options("web").unwrap().outbound("shop").ttl("1h")).unwrap();
    assert_eq!(http::get(web.outbound(), "/", REQUEST).unwrap().status, 200);
    mesh.control.kill9();
    shop.wait_for_metric(Duration::from_secs(20), |m| {
        m.value("postern_certificate_expiry_seconds", &[]) < 0.0
    })
    .unwrap();
    let ready =
        postern_loadtest::mesh::until(SOON, || shop.ready().ok().filter(|(ready, _)| !ready)).unwrap();
    assert!(ready.1.contains("no valid identity"), "{ready:?}");
    let served = app.accepted();
    http::get(web.outbound(), "/", REQUEST).unwrap_err();
    assert_eq!(app.accepted(), served, "nothing reached the app");
    let refused = [("direction", "inbound"), ("reason", "no_identity")];
    assert!(shop.metrics().unwrap().count("postern_handshakes_total", &refused) > 0);

    mesh.control.restart().unwrap();
    let back = || http::get(web.outbound(), "/", REQUEST).ok().filter(|a| a.status == 200);
    assert!(postern_loadtest::mesh::until(Duration::from_secs(30), back).is_some(), "it did not come back");
    assert!(shop.ready().unwrap().0);
}

#[test]
fn without_a_grace_a_new_token_in_the_join_file_brings_it_back() {
    let (mut mesh, app) = (Mesh::start().unwrap(), App::http("hello").unwrap());
    let options = mesh.options("shop").unwrap().inbound(app.address(), Some("shop")).ttl("4s");
    let join = options.join.clone().unwrap();
    let shop = mesh.server_with(options).unwrap();
    mesh.control.kill9();
    let expired =
        |m: &postern_loadtest::mesh::Metrics| m.value("postern_certificate_expiry_seconds", &[]) < 0.0;
    shop.wait_for_metric(Duration::from_secs(20), expired).unwrap();
    mesh.control.restart().unwrap();
    shop.wait_for_log(Duration::from_secs(20), |l| {
        l["message"].as_str().is_some_and(|m| m.contains("has expired and cannot be renewed"))
    })
    .unwrap();
    let fresh = mesh.control.token(&mesh.id("shop"), &[]).unwrap();
    std::fs::rename(fresh, join).unwrap();
    shop.wait_for_metric(Duration::from_secs(30), |m| {
        m.value("postern_certificate_expiry_seconds", &[]) > 0.0
    })
    .unwrap();
    assert!(postern_loadtest::mesh::until(SOON, || shop.ready().ok().filter(|(ready, _)| *ready)).is_some());
}

#[test]
fn a_cached_identity_survives_a_restart_while_the_control_plane_is_away() {
    let (mut mesh, app) = (Mesh::start().unwrap(), App::http("hello").unwrap());
    let cache = mesh.dir().join("cache");
    let options = mesh.options("shop").unwrap().inbound(app.address(), Some("shop")).cache(&cache);
    let mut shop = mesh.server_with(options).unwrap();
    let mut web = mesh.client("web", "shop").unwrap();
    assert_eq!(http::get(web.outbound(), "/", REQUEST).unwrap().status, 200);
    mesh.control.kill9();
    shop.options().join = None;
    shop.restart().unwrap();
    assert_eq!(http::get(web.outbound(), "/", REQUEST).unwrap().status, 200);

    // Without a cache, the identity went with the process, and the message says what to do.
    mesh.control.restart().unwrap();
    web.kill9();
    assert!(web.restart().is_err());
    let told = web.process().stderr();
    assert!(told.contains("postern token create") && told.contains("identity.cache"), "{told}");
}
