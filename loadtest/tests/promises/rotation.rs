//! Certificates rotate while traffic flows, and nobody notices: rows 90, 92 and 93 of the negative cases, and the
//! milestone's own promise of 20 handshakes a second on certificates of 5 s.
//!
//! In full length: `POSTERN_FULL=1 cargo test --release -p postern-loadtest --test promises -- --nocapture rotation`.

use std::time::Duration;

use crate::support::{SOON, full, let_pass, steady};
use postern_loadtest::app::App;
use postern_loadtest::mesh::{Mesh, Sidecar};

const OK: &[(&str, &str)] = &[("result", "ok")];
const FAILED: &[(&str, &str)] = &[("result", "failed")];

fn renewals(sidecar: &Sidecar) -> u64 {
    sidecar.metrics().unwrap().count("postern_renewals_total", OK)
}

fn pair(mesh: &Mesh, app: &App, ttl: &str) -> (Sidecar, Sidecar) {
    let shop = mesh
        .server_with(mesh.options("shop").unwrap().inbound(app.address(), Some("shop")).ttl(ttl))
        .unwrap();
    let web = mesh.sidecar(mesh.options("web").unwrap().outbound("shop").ttl(ttl)).unwrap();
    web.wait_for_log(SOON, |_| web.metrics().is_ok_and(|m| m.count("postern_generation", &[]) > 0)).unwrap();
    (shop, web)
}

#[test]
fn twenty_handshakes_a_second_on_five_second_certificates_never_fail() {
    let seconds = if full() { 60 } else { 15 };
    let (mesh, app) = (Mesh::start().unwrap(), App::http("hello").unwrap());
    let (shop, web) = pair(&mesh, &app, "5s");
    let traffic = steady(web.outbound(), 20);
    let_pass(Duration::from_secs(seconds));
    let tally = traffic.finish();
    assert_eq!(tally.errors, Vec::<String>::new());
    // No more than a sign that there was traffic: how fast it goes is the machine's affair.
    assert!(tally.requests >= seconds * 10, "{tally:?}");
    for sidecar in [&shop, &web] {
        assert!(renewals(sidecar) >= seconds / 3, "{}: {} renewals", sidecar.name(), renewals(sidecar));
        assert_eq!(sidecar.metrics().unwrap().count("postern_renewals_total", FAILED), 0);
    }
    assert_eq!(shop.metrics().unwrap().count("postern_handshakes_total", FAILED), 0);
    println!("{} handshakes, 0 failed, {} + {} renewals", tally.requests, renewals(&shop), renewals(&web));
}

#[test]
fn swaps_under_full_load_break_nothing_and_leak_nothing() {
    // Row 92: as fast as this machine goes, with certificates that are replaced about every second and a half.
    let seconds = if full() { 600 } else { 12 };
    let (mesh, app) = (Mesh::start().unwrap(), App::http("hello").unwrap());
    let (mut shop, mut web) = pair(&mesh, &app, "3s");
    let address = web.outbound();
    let begin = std::time::Instant::now();
    let drive = move || {
        let (mut done, mut failures) = (0u64, Vec::new());
        while begin.elapsed() < Duration::from_secs(seconds) {
            match postern_loadtest::http::get(address, "/", crate::support::REQUEST) {
                Ok(answer) if answer.status == 200 => done += 1,
                other => failures.push(format!("{:.2} s: {other:?}", begin.elapsed().as_secs_f64())),
            }
        }
        (done, failures)
    };
    let warm = postern_loadtest::mesh::until(SOON, || postern_loadtest::http::get(address, "/", SOON).ok());
    assert!(warm.is_some());
    let before = (shop.process().open_fds().unwrap(), web.process().open_fds().unwrap());
    let drivers: Vec<_> = (0..8).map(|_| std::thread::spawn(drive)).collect();
    let (mut done, mut failures) = (0, Vec::new());
    for driver in drivers {
        let (d, f) = driver.join().unwrap();
        done += d;
        failures.extend(f);
    }
    assert_eq!(failures, Vec::<String>::new());
    assert!(renewals(&web) >= seconds / 3 && renewals(&shop) >= seconds / 3);
    // Some descriptors belong to connections that are just closing.
    let settled = postern_loadtest::mesh::until(SOON, || {
        let now = (shop.process().open_fds().ok()?, web.process().open_fds().ok()?);
        (now.0 <= before.0 + 4 && now.1 <= before.1 + 4).then_some(now)
    });
    assert!(settled.is_some(), "descriptors grew from {before:?}");
    println!("{done} requests in {seconds} s, 0 failed; {} + {} swaps", renewals(&shop), renewals(&web));
}

#[test]
fn two_changes_of_the_issuing_ca_within_one_lifetime_fail_no_request() {
    let (mesh, app) = (Mesh::start().unwrap(), App::http("hello").unwrap());
    let (shop, web) = pair(&mesh, &app, "10s");
    let traffic = steady(web.outbound(), 20);
    let issuer = || mesh.control.json(&["ca", "rotate"]).unwrap();
    let (first, second) = (issuer(), issuer());
    assert_ne!(first, second, "each is another CA");
    let until = [renewals(&shop) + 2, renewals(&web) + 2];
    for (sidecar, wanted) in [&shop, &web].into_iter().zip(until) {
        let limit = Duration::from_secs(25);
        sidecar.wait_for_metric(limit, |m| m.count("postern_renewals_total", OK) >= wanted).unwrap();
    }
    issuer();
    let tally = traffic.finish();
    assert_eq!(tally.errors, Vec::<String>::new());
    assert!(tally.requests > 50);
}

#[test]
fn renewals_are_spread_over_the_window_and_never_leave_it() {
    // Row 93, as seen in what the proxies themselves schedule.
    let (mesh, app) = (Mesh::start().unwrap(), App::http("hello").unwrap());
    let (shop, web) = pair(&mesh, &app, "4s");
    let mut shares = Vec::new();
    for sidecar in [&shop, &web] {
        sidecar
            .wait_for_metric(Duration::from_secs(20), |m| m.count("postern_renewals_total", OK) >= 4)
            .unwrap();
        for line in sidecar.logs().iter().filter(|l| l["message"] == "identity in force") {
            let left = line["life_ms"].as_f64().unwrap();
            shares.push(line["renews_in_ms"].as_f64().unwrap() / left);
        }
    }
    // A millisecond or two pass between the two readings of the clock.
    assert!(shares.iter().all(|s| (0.397..=0.501).contains(s)), "{shares:?}");
    let distinct: std::collections::BTreeSet<u64> = shares.iter().map(|s| (s * 10_000.0) as u64).collect();
    assert!(distinct.len() > shares.len() / 2, "they do not differ: {shares:?}");
}
