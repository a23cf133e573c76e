//! `postern revoke`: what was issued is refused everywhere at once, and nothing more is issued (negative cases 17 and 69, SPIFFE
//! regression R-8).

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use crate::support::{REQUEST, SOON, reaches};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postern_loadtest::app::App;
use postern_loadtest::http;
use postern_loadtest::mesh::Mesh;

#[test]
fn a_revoked_identity_is_cut_off_everywhere_and_comes_back_only_by_a_new_token() {
    let (mesh, app) = (Mesh::start().unwrap(), App::http("hello").unwrap());
    let shop = mesh.server("shop", app.address()).unwrap();
    let (web, report) = (mesh.client("web", "shop").unwrap(), mesh.client("report", "shop").unwrap());
    let unused = mesh.control.token(&mesh.id("report"), &[]).unwrap();
    let mut open = TcpStream::connect(report.outbound()).unwrap();
    open.set_read_timeout(Some(SOON)).unwrap();
    open.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    shop.wait_for_metric(SOON, |m| m.count("postern_open_connections", &[("direction", "inbound")]) > 0)
        .unwrap();

    let answer =
        mesh.control.json(&["revoke", &mesh.id("report"), "--reason", "keyCompromise", "--wait"]).unwrap();
    assert_eq!(
        (answer["certificates"].as_u64(), answer["missing"].as_array().map(Vec::len)),
        (Some(1), Some(0)),
        "{answer}"
    );
    // The revoked one's own stream has ended: it is not among those that are waited for.
    assert_eq!(answer["confirmed"], 2, "{answer}");
    assert!(!matches!(open.read(&mut [0; 1]), Ok(1..)), "an open connection of the revoked goes on");

    // Its own proxy presents it no longer, whoever asks.
    report
        .wait_for_log(SOON, |l| l["message"].as_str().is_some_and(|m| m.contains("identity was revoked")))
        .unwrap();
    assert!(!report.ready().unwrap().0);
    assert!(!http::get(report.outbound(), "/", REQUEST).is_ok_and(|a| a.status == 200));
    assert_eq!(http::get(web.outbound(), "/", REQUEST).unwrap().status, 200, "others go on");

    // Neither a token from before nor a new one brings it back, until somebody lifts the ban.
    let out = mesh.control.cli(&["token", "create", "--id", &mesh.id("report")]).unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(out.stderr.contains("postern revoke --lift"), "{}", out.stderr);
    let mut again = postern_loadtest::mesh::SidecarOptions::new("report2", Some(unused));
    again = again.outbound("shop");
    assert!(mesh.sidecar(again.clone()).is_err(), "a token from before the revocation");
    mesh.control.json(&["revoke", "--lift", &mesh.id("report")]).unwrap();
    again.name = "report3".to_owned();
    assert!(mesh.sidecar(again).is_err(), "the token stays dead");
    let mut fresh = mesh.options("report").unwrap().outbound("shop");
    fresh.name = "report4".to_owned();
    let fresh = mesh.sidecar(fresh).unwrap();
    reaches(&fresh);

    let audit = mesh.control.json(&["audit", "--last", "200"]).unwrap();
    for (action, outcome) in [("revoke", "done"), ("revoke lift", "done")] {
        assert!(
            audit.as_array().unwrap().iter().any(|r| r["action"] == action && r["outcome"] == outcome),
            "no record of {action}"
        );
    }
}

#[test]
fn one_certificate_is_revoked_by_its_serial_and_a_wrong_one_changes_nothing() {
    let (mesh, app) = (Mesh::start().unwrap(), App::http("hello").unwrap());
    let shop = mesh.server("shop", app.address()).unwrap();
    let (one, two) = (mesh.client("web", "shop").unwrap(), {
        let mut options = mesh.options("web").unwrap().outbound("shop");
        options.name = "web2".to_owned();
        mesh.sidecar(options).unwrap()
    });
    let live = mesh.control.json(&["identities"]).unwrap();
    let of = |pid: u32| {
        let all = live.as_array().unwrap();
        let found = all.iter().find(|l| l["instance"].as_str().unwrap().ends_with(&format!(":{pid}")));
        found.unwrap_or_else(|| panic!("no identity of process {pid} in {live}"))["serial"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let serial = of(one.pid());
    let with_colons: Vec<&str> = (0..serial.len()).step_by(2).map(|at| &serial[at..at + 2]).collect();
    let answer = mesh.control.json(&["revoke", &with_colons.join(":").to_uppercase(), "--wait"]).unwrap();
    assert_eq!(answer["id"], mesh.id("web").as_str());
    assert!(
        !http::get(one.outbound(), "/", REQUEST).is_ok_and(|a| a.status == 200),
        "the revoked certificate"
    );
    assert_eq!(
        http::get(two.outbound(), "/", REQUEST).unwrap().status,
        200,
        "the same identity, another certificate"
    );
    drop(shop);

    let out = mesh.control.cli(&["revoke", "4f00ba"]).unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(out.stderr.contains("no certificate with the serial 4f00ba is on record"), "{}", out.stderr);
}

#[test]
fn a_proxy_that_does_not_answer_is_named() {
    let (mesh, app) = (Mesh::start().unwrap(), App::http("hello").unwrap());
    let shop = mesh.server("shop", app.address()).unwrap();
    let (web, _report) = (mesh.client("web", "shop").unwrap(), mesh.client("report", "shop").unwrap());
    let pid = Pid::from_raw(i32::try_from(web.pid()).unwrap());
    kill(pid, Signal::SIGSTOP).unwrap();
    let out = mesh.control.cli(&["revoke", &mesh.id("report"), "--wait", "--timeout", "2s"]).unwrap();
    kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!(out.status.code(), Some(1), "{}", out.stdout);
    assert!(out.stdout.contains("1/2 proxies"), "{}", out.stdout);
    assert!(
        out.stdout.contains(&mesh.id("web")) && out.stdout.contains("has not confirmed"),
        "{}",
        out.stdout
    );
    drop(shop);
}
