//! The harness itself: a mesh comes up, is seen from outside, and goes without a trace.

use std::time::Duration;

use postern_loadtest::app::App;
use postern_loadtest::http;
use postern_loadtest::load::{Load, Plan};
use postern_loadtest::mesh::Mesh;

const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_mesh_comes_up_and_goes_without_a_trace() {
    let mesh = Mesh::start().unwrap();
    let dir = mesh.dir().to_owned();
    let app = App::http("hello").unwrap();
    let mut shop = mesh.server("shop", app.address()).unwrap();
    let web = mesh.client("web", "shop").unwrap();
    assert_eq!(web.id(), "spiffe://mesh.test/ns/demo/sa/web");
    assert!(web.ready().unwrap().0);

    assert_eq!(http::get(web.outbound(), "/", SOON).unwrap().text(), "hello");
    let ok = [("direction", "inbound"), ("result", "ok")];
    assert_eq!(shop.metrics().unwrap().count("postern_handshakes_total", &ok), 1);
    let seen = shop.wait_for_log(SOON, |l| l["direction"] == "inbound").unwrap();
    assert_eq!(seen["peer"], web.id());
    assert!(shop.process().open_fds().unwrap() > 5);
    assert!(shop.process().rss().unwrap() > 1 << 20);

    let pid = shop.pid();
    drop((shop, web, mesh));
    assert!(!dir.exists());
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn a_policy_admits_only_whom_it_names() {
    let mesh = Mesh::start().unwrap();
    let app = App::http("hello").unwrap();
    let shop = mesh.server("shop", app.address()).unwrap();
    let web = mesh.client("web", "shop").unwrap();
    let stranger = mesh.client("stranger", "shop").unwrap();
    mesh.allow_only(&["web"], &[&shop]).unwrap();

    assert_eq!(http::get(web.outbound(), "/", SOON).unwrap().status, 200);
    http::get(stranger.outbound(), "/", SOON).unwrap_err();
    let denied = shop.wait_for_log(SOON, |l| l["outcome"] == "denied").unwrap();
    assert_eq!(denied["peer"], stranger.id());
    assert_eq!(app.accepted(), 1);
}

#[test]
fn both_planes_come_back_on_the_same_addresses() {
    let mut mesh = Mesh::start().unwrap();
    let app = App::http("hello").unwrap();
    let cache = mesh.dir().join("cache");
    let shop = mesh.options("shop").unwrap().inbound(app.address(), Some("shop")).cache(cache);
    let mut shop = mesh.server_with(shop).unwrap();
    let web = mesh.client("web", "shop").unwrap();
    let (listen, inbound) = (mesh.control.listen(), shop.inbound());

    mesh.control.kill9();
    mesh.control.restart().unwrap();
    shop.kill9();
    shop.restart().unwrap();
    assert_eq!((mesh.control.listen(), shop.inbound()), (listen, inbound));
    web.wait_for_metric(SOON, |m| m.value("postern_control_connected", &[]) == 1.0).unwrap();
    assert_eq!(http::get(web.outbound(), "/", SOON).unwrap().text(), "hello");
}

#[test]
fn a_sidecar_that_ends_before_it_is_ready_says_why() {
    let mesh = Mesh::start().unwrap();
    let mut options = mesh.options("web").unwrap().outbound("shop");
    let _first = mesh.sidecar(options.clone()).unwrap();
    options.admin = "second.sock".into();
    let error = mesh.sidecar(options).unwrap_err();
    assert!(format!("{error:#}").contains("token"), "{error:#}");
}

#[test]
fn load_counts_what_fails() {
    let app = App::http("hello").unwrap();
    let load = Load::start(Plan::new(app.address(), 500.0)).unwrap();
    postern_loadtest::mesh::until(SOON, || (load.tally().requests >= 50).then_some(())).unwrap();
    let tally = load.finish();
    assert_eq!((tally.failed, tally.answered), (0, tally.requests), "{tally:?}");

    let gone = app.address();
    drop(app);
    let load = Load::start(Plan::new(gone, 500.0)).unwrap();
    postern_loadtest::mesh::until(SOON, || (load.tally().requests >= 5).then_some(())).unwrap();
    let tally = load.finish();
    assert_eq!((tally.failed, tally.answered), (tally.requests, 0), "{tally:?}");
}
