//! A root is replaced under load and nobody notices; one whose key got out is cut off, and everybody comes over to the next.
//!
//! In full length, until the old root is gone: `POSTERN_FULL=1 cargo test --release -p postern-loadtest --test promises -- --nocapture root_rotation`.

use std::time::{Duration, Instant};

use crate::support::{REQUEST, SOON, full, reaches, steady};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postern_loadtest::app::App;
use postern_loadtest::http;
use postern_loadtest::mesh::{ControlOptions, Mesh, Sidecar, until};
use serde_json::Value;

const FAILED: &[(&str, &str)] = &[("result", "failed")];
/// Certificates of 20 s are renewed after 8 to 10.
const TURNOVER: Duration = Duration::from_secs(60);

fn pair(mesh: &Mesh, app: &App) -> (Sidecar, Sidecar) {
    let shop = mesh.options("shop").unwrap().inbound(app.address(), Some("shop")).ttl("20s");
    let shop = mesh.server_with(shop).unwrap();
    let web = mesh.sidecar(mesh.options("web").unwrap().outbound("shop").ttl("20s")).unwrap();
    reaches(&web);
    (shop, web)
}

/// Where the roots are in their lives, in the alphabet's order.
fn states(mesh: &Mesh) -> Vec<String> {
    let all = mesh.control.json(&["ca", "list"]).unwrap();
    let roots = all.as_array().unwrap().iter().filter(|a| a["kind"] == "root");
    let mut states: Vec<String> = roots.map(|a| a["state"].as_str().unwrap().to_owned()).collect();
    states.sort();
    states
}

/// Serial of the certificate that a sidecar uses now.
fn serial(mesh: &Mesh, sidecar: &Sidecar) -> String {
    let live = mesh.control.json(&["identities"]).unwrap();
    let of = |l: &&Value| l["instance"].as_str().unwrap().ends_with(&format!(":{}", sidecar.pid()));
    live.as_array().unwrap().iter().find(of).map(|l| l["serial"].to_string()).unwrap_or_default()
}

fn wait_until_renewed(mesh: &Mesh, sidecar: &Sidecar, before: &str, limit: Duration) {
    until(limit, || (serial(mesh, sidecar) != before).then_some(())).unwrap();
}

#[test]
fn a_new_root_takes_over_under_load_without_a_failed_handshake() {
    let config = "ca: { rotation: { canary: { watch: 3s } } }\n".to_owned();
    let mesh = Mesh::start_with(ControlOptions { config, ..ControlOptions::default() }).unwrap();
    let app = App::http("hello").unwrap();
    let (shop, web) = pair(&mesh, &app);
    let before = mesh.control.json(&["status"]).unwrap()["root"].clone();
    let traffic = steady(web.outbound(), 20);
    // One of the two goes first.
    let answer = mesh.control.json(&["ca", "rotate", "--root", "--canary", "1%"]).unwrap();
    assert_eq!(answer["rotation"]["state"], "active", "{answer}");
    let after = mesh.control.json(&["status"]).unwrap()["root"].clone();
    assert_ne!(before, after, "a join string carries the new root's pin from now on");
    // Through a whole turnover: leaves of the old root beside those of the new one, then of the new one alone.
    let serials = [serial(&mesh, &shop), serial(&mesh, &web)];
    wait_until_renewed(&mesh, &shop, &serials[0], TURNOVER);
    wait_until_renewed(&mesh, &web, &serials[1], TURNOVER);
    // Whoever joins now trusts the new root alone, and talks to those that were there before.
    let mut late = mesh.options("late").unwrap().outbound("shop");
    late.name = "late".to_owned();
    let late = mesh.sidecar(late).unwrap();
    reaches(&late);
    if full() {
        let begun = Instant::now();
        until(Duration::from_secs(240), || (states(&mesh) == ["active"]).then_some(())).unwrap();
        println!(
            "the old root left every bundle {} s after its last leaf was replaced",
            begun.elapsed().as_secs()
        );
    }
    let tally = traffic.finish();
    assert_eq!(tally.errors, Vec::<String>::new());
    for sidecar in [&shop, &web] {
        assert_eq!(
            sidecar.metrics().unwrap().count("postern_handshakes_total", FAILED),
            0,
            "{}",
            sidecar.name()
        );
    }
    println!("{} requests on connections of their own, 0 failed", tally.requests);
}

#[test]
fn a_rotation_waits_for_a_proxy_that_is_away_and_for_tokens_that_know_the_old_root_and_goes_on_over_a_crash()
{
    let (mut mesh, app) = (Mesh::start().unwrap(), App::http("hello").unwrap());
    let (shop, web) = pair(&mesh, &app);
    let token = mesh.control.token(&mesh.id("late"), &["--ttl", "1h"]).unwrap();
    let pid = Pid::from_raw(i32::try_from(web.pid()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let begun = mesh.control.json(&["ca", "rotate", "--root", "--no-canary", "--detach"]).unwrap();
    assert_eq!(begun["rotation"]["state"], "prepared", "{begun}");
    let second = mesh.control.cli(&["ca", "rotate", "--root", "--no-canary", "--detach"]).unwrap();
    assert!(second.stderr.contains("a rotation is under way"), "{}", second.stderr);
    mesh.control.kill9();
    mesh.control.restart().unwrap();
    assert_eq!(states(&mesh), ["active", "prepared"], "it is where it was left");
    kill(pid, Signal::SIGCONT).unwrap();

    // A token of before is good until it is used; then nothing stands in the way any more.
    let mut late = postern_loadtest::mesh::SidecarOptions::new("late", Some(token)).outbound("shop");
    late.name = "late".to_owned();
    let late = mesh.sidecar(late).unwrap();
    until(TURNOVER, || (states(&mesh) == ["active", "retired"]).then_some(())).unwrap();
    reaches(&web);
    reaches(&late);
    drop(shop);
}

#[test]
fn a_tainted_root_is_cut_off_and_everybody_comes_over_by_the_certificate_on_record() {
    let (mesh, app) = (Mesh::start().unwrap(), App::http("hello").unwrap());
    let shop = mesh.server("shop", app.address()).unwrap();
    let web = mesh.client("web", "shop").unwrap();
    assert_eq!(http::get(web.outbound(), "/", REQUEST).unwrap().status, 200);
    let serials = [serial(&mesh, &shop), serial(&mesh, &web)];
    let begun = Instant::now();
    mesh.control.json(&["ca", "taint", "--root"]).unwrap();
    wait_until_renewed(&mesh, &shop, &serials[0], SOON);
    wait_until_renewed(&mesh, &web, &serials[1], SOON);
    println!("cut off and renewed within {} ms", begun.elapsed().as_millis());
    assert_eq!(states(&mesh), ["active", "tainted"]);
    reaches(&web);
}

#[test]
fn a_tainted_issuing_ca_is_replaced_and_its_leaves_are_renewed_at_once() {
    let (mesh, app) = (Mesh::start().unwrap(), App::http("hello").unwrap());
    let shop = mesh.server("shop", app.address()).unwrap();
    let web = mesh.client("web", "shop").unwrap();
    let serials = [serial(&mesh, &shop), serial(&mesh, &web)];
    let issuing = mesh.control.json(&["status"]).unwrap()["issuing"]["key_id"].as_str().unwrap().to_owned();
    let out = mesh.control.cli(&["ca", "taint", "00ff"]).unwrap();
    assert!(out.stderr.contains("no authority with the key id"), "{}", out.stderr);
    mesh.control.json(&["ca", "taint", &issuing]).unwrap();
    wait_until_renewed(&mesh, &shop, &serials[0], SOON);
    wait_until_renewed(&mesh, &web, &serials[1], SOON);
    assert_ne!(mesh.control.json(&["status"]).unwrap()["issuing"]["key_id"], issuing.as_str());
    reaches(&web);
}
