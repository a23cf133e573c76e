//! A control plane whose clock jumps a day while it serves: what is refused, what is issued, and that it comes back by
//! itself; rows 84 and 86 of the negative cases as far as they concern it.

use std::time::{Duration, Instant};

use postern_loadtest::fleet::{Admin, Fleet, Plan};
use postern_loadtest::http;
use postern_loadtest::mesh::{Mesh, until};

use crate::clock::FakeClock;
use crate::support::SOON;

const CLIENTS: usize = 6;
/// For what comes by itself; pauses between tries are fifteen seconds at the longest.
const BACK: Duration = Duration::from_secs(60);

/// A mesh whose control plane lives by `clock`, with light clients that live by the right one.
fn under_a_clock() -> (Mesh, FakeClock, Fleet) {
    let mut mesh = Mesh::start().unwrap();
    let clock = FakeClock::new(mesh.dir(), "control");
    mesh.control.options().env.extend(clock.env());
    mesh.control.stop().unwrap();
    mesh.control.restart().unwrap();
    let admin = Admin::at(&mesh.control.data()).unwrap();
    let joins = admin.tokens(CLIENTS, "fleet", Duration::from_secs(600), |_| {}).unwrap();
    let plan = Plan { ttl: Duration::from_secs(600), ..Plan::towards(vec![mesh.control.listen()]) };
    let fleet = Fleet::start(plan, joins).unwrap();
    assert!(fleet.wait(SOON, |f| f.tally().sessions >= CLIENTS as u64), "{:?}", fleet.tally());
    (mesh, clock, fleet)
}

/// `/readyz` says what is wrong with the clock.
fn assert_unready(mesh: &Mesh, why: &str) {
    let asked =
        || http::get(mesh.control.metrics_address(), "/readyz", SOON).ok().map(|answer| answer.text());
    let told = until(SOON, || asked().filter(|text| text.contains("clock: ") && text.contains(why)));
    assert!(told.is_some(), "{why}: {:?}", asked());
}

/// Everybody is connected, renews and hears of changes.
fn assert_well(mesh: &Mesh, fleet: &Fleet, told: &str) {
    let before = fleet.tally().renewals;
    fleet.renew();
    let renewed = |f: &Fleet| f.tally().renewals >= before + CLIENTS as u64;
    assert!(fleet.wait(BACK, renewed), "{told}: {:#?}", fleet.tally());
    let generation = mesh.control.apply_service("shop", &mesh.id("shop"), &[]).unwrap();
    fleet.wait_for_generation(generation, Instant::now(), BACK).unwrap();
    assert!(fleet.wait(BACK, |f| f.views().iter().all(|v| v.connected)), "{told}");
    let tally = fleet.tally();
    assert_eq!(tally.expired, 0, "{told}: {tally:#?}");
    assert_eq!(tally.serials_twice, Vec::<String>::new());
    assert_eq!((0..CLIENTS).find_map(|c| fleet.would_refuse(c, (c + 1) % CLIENTS)), None, "{told}");
}

#[test]
fn a_day_back_nothing_is_issued_and_afterwards_everything_is_as_before() {
    let (mesh, clock, fleet) = under_a_clock();
    let before = fleet.tally();
    clock.set("-1d");
    fleet.renew();
    assert!(fleet.wait(SOON, |f| f.tally().renewals_tried_again >= CLIENTS as u64), "{:#?}", fleet.tally());
    let tally = fleet.tally();
    assert_eq!((tally.renewals, tally.unusable), (before.renewals, 0), "nothing outside of the CA's life");
    let told = until(SOON, || {
        let logs = mesh.control.logs();
        logs.iter().map(ToString::to_string).find(|l| l.contains("signing failed") && l.contains("clock"))
    });
    assert!(told.is_some(), "the log says that it is the clock");
    assert_unready(&mesh, "before the issuing CA's notBefore");
    clock.set("+0");
    assert_well(&mesh, &fleet, "after a day back");
}

#[test]
fn a_day_ahead_callers_are_refused_and_all_come_back_by_themselves() {
    let (mesh, clock, fleet) = under_a_clock();
    clock.set("+1d");
    fleet.renew();
    // By its clock every certificate has ended.
    assert!(fleet.wait(SOON, |f| f.tally().renewals_refused > 0), "{:#?}", fleet.tally());
    fleet.cut();
    // Several tries of each: by then the control plane has replaced its own certificate by the wrong clock.
    let tried = |f: &Fleet| f.tally().sessions_tried_again > 3 * CLIENTS as u64;
    assert!(fleet.wait(BACK, tried), "{:#?}", fleet.tally());
    assert_eq!(fleet.tally().unusable, 0, "nobody was given what is dated tomorrow");
    clock.set("+0");
    assert_well(&mesh, &fleet, "after a day ahead");
}

#[test]
fn more_than_half_of_the_issuing_ca_ahead_nothing_is_rotated_into_the_future() {
    let (mesh, clock, fleet) = under_a_clock();
    let issuing = || mesh.control.json(&["status"]).unwrap()["issuing"]["key_id"].clone();
    let before = issuing();
    // The issuing CA lives for seven days.
    clock.set("+4d");
    assert_unready(&mesh, "more than half of the issuing CA's life");
    // Housekeeping has seen the jump; several of its rounds go by until every client was refused.
    fleet.renew();
    assert!(fleet.wait(SOON, |f| f.tally().renewals_refused > 0), "{:#?}", fleet.tally());
    fleet.cut();
    let tried = |f: &Fleet| f.tally().sessions_tried_again > CLIENTS as u64;
    assert!(fleet.wait(BACK, tried), "{:#?}", fleet.tally());
    assert_eq!(issuing(), before, "it could sign nothing once the clock is right again");
    clock.set("+0");
    assert_well(&mesh, &fleet, "after four days ahead");
    assert_eq!(issuing(), before);
    let ready = || http::get(mesh.control.metrics_address(), "/readyz", SOON).unwrap().status == 200;
    assert!(until(SOON, || ready().then_some(())).is_some());
}
