//! Clocks that are wrong: rows 84, 85 and 86 of the negative cases, with a preloaded clock under the real processes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{REQUEST, SOON};
use postern_loadtest::app::App;
use postern_loadtest::http;
use postern_loadtest::mesh::{Mesh, SidecarOptions, until};

/// Debian's `faketime` package.
fn library() -> String {
    let places = [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    ];
    let found = places.iter().find(|p| Path::new(p).exists());
    (*found.expect("libfaketime is missing; install the package `faketime`")).to_owned()
}

/// A clock that a file moves.
pub(crate) struct FakeClock(PathBuf);

impl FakeClock {
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        let clock = Self(dir.join(format!("{name}.clock")));
        clock.set("+0");
        clock
    }

    /// Replaced as a whole: the library may read at any moment.
    pub(crate) fn set(&self, offset: &str) {
        let next = self.0.with_extension("next");
        std::fs::write(&next, format!("{offset}\n")).unwrap();
        std::fs::rename(next, &self.0).unwrap();
    }

    pub(crate) fn env(&self) -> Vec<(String, String)> {
        [
            ("LD_PRELOAD", library()),
            ("FAKETIME_TIMESTAMP_FILE", self.0.to_str().unwrap().to_owned()),
            ("FAKETIME_NO_CACHE", "1".to_owned()),
            ("DONT_FAKE_MONOTONIC", "1".to_owned()),
        ]
        .map(|(k, v)| (k.to_owned(), v))
        .into()
    }

    fn under(&self, mut options: SidecarOptions) -> SidecarOptions {
        options.env.extend(self.env());
        options
    }
}

#[test]
fn a_clock_set_back_a_day_disturbs_no_traffic_and_is_noticed() {
    let (mesh, app) = (Mesh::start().unwrap(), App::http("hello").unwrap());
    let clock = FakeClock::new(mesh.dir(), "shop");
    let shop = mesh.options("shop").unwrap().inbound(app.address(), Some("shop"));
    let mut shop = mesh.server_with(clock.under(shop)).unwrap();
    let web = mesh.client("web", "shop").unwrap();
    assert_eq!(http::get(web.outbound(), "/", REQUEST).unwrap().status, 200);
    clock.set("-1d");
    shop.wait_for_metric(SOON, |m| m.count("postern_clock_jumps_total", &[]) == 1).unwrap();
    shop.wait_for_log(SOON, |l| {
        l["level"] == "ERROR" && l["message"].as_str().is_some_and(|m| m.contains("set back"))
    })
    .unwrap();
    for _ in 0..20 {
        assert_eq!(http::get(web.outbound(), "/", REQUEST).unwrap().status, 200);
    }
    assert!(shop.ready().unwrap().0);
    assert!(spent(&mut shop) < 2.0, "it is busy");
}

#[test]
fn a_clock_set_ahead_a_day_renews_at_once_and_recovers_when_it_is_right_again() {
    let (mesh, app) = (Mesh::start().unwrap(), App::http("hello").unwrap());
    let clock = FakeClock::new(mesh.dir(), "shop");
    let shop = mesh.options("shop").unwrap().inbound(app.address(), Some("shop"));
    let mut shop = mesh.server_with(clock.under(shop)).unwrap();
    let web = mesh.client("web", "shop").unwrap();
    let tries = |m: &postern_loadtest::mesh::Metrics| m.count("postern_renewals_total", &[]);
    assert_eq!(tries(&shop.metrics().unwrap()), 0);
    clock.set("+1d");
    shop.wait_for_metric(SOON, |m| tries(m) > 0).unwrap();
    // What it is told to believe is that everything expired yesterday: it refuses, and does not spin over it.
    http::get(web.outbound(), "/", REQUEST).unwrap_err();
    assert!(spent(&mut shop) < 3.0, "it is busy");
    clock.set("+0");
    let back = || http::get(web.outbound(), "/", REQUEST).ok().filter(|a| a.status == 200);
    assert!(until(Duration::from_secs(30), back).is_some(), "it did not come back");
}

/// CPU seconds of the process so far.
fn spent(sidecar: &mut postern_loadtest::mesh::Sidecar) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", sidecar.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks as f64 / 100.0
}

#[test]
fn a_proxy_five_minutes_behind_can_use_a_fresh_certificate() {
    let (mesh, app) = (Mesh::start().unwrap(), App::http("hello").unwrap());
    let clock = FakeClock::new(mesh.dir(), "shop");
    clock.set("-300");
    let shop = mesh.options("shop").unwrap().inbound(app.address(), Some("shop"));
    let shop = mesh.server_with(clock.under(shop)).unwrap();
    let web = mesh.client("web", "shop").unwrap();
    assert_eq!(http::get(web.outbound(), "/", REQUEST).unwrap().status, 200);
    // The skew is there to be seen.
    let skew = shop.metrics().unwrap().value("postern_clock_skew_milliseconds", &[]);
    assert!((-305_000.0..=-295_000.0).contains(&skew), "{skew}");
}

#[test]
fn a_control_plane_whose_clock_is_a_day_behind_issues_nothing() {
    let mut mesh = Mesh::start().unwrap();
    let join = mesh.options("web").unwrap();
    mesh.control.stop().unwrap();
    let clock = FakeClock::new(mesh.dir(), "control");
    clock.set("-1d");
    mesh.control.options().env.extend(clock.env());
    // Its issuing CA starts tomorrow by that clock: either it does not start, or it starts and refuses to sign.
    if mesh.control.restart().is_err() {
        let told = mesh.control.process().stderr();
        assert!(told.contains("clock") || told.contains("not yet valid"), "{told}");
        return;
    }
    let mut web = mesh.launch(join.outbound("shop")).unwrap();
    assert!(web.wait_until_ready(Duration::from_secs(5)).is_err(), "a certificate was issued");
    assert_eq!(mesh.control.json(&["identities"]).unwrap().to_string().matches("spiffe://").count(), 0);
}
