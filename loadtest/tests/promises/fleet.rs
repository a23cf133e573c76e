//! Light clients live as real proxies do: what they count about a control plane is what happened there.

use std::time::{Duration, Instant};

use crate::support::SOON;
use postern_loadtest::fleet::{Admin, Fleet, Plan};
use postern_loadtest::mesh::Mesh;

const CLIENTS: usize = 24;
const AT_MOST: Duration = Duration::from_secs(30);

fn let_go(mesh: &Mesh, clients: usize, ttl: Duration) -> Fleet {
    let admin = Admin::at(&mesh.control.data()).unwrap();
    let joins = admin.tokens(clients, "fleet", Duration::from_secs(600), |_| {}).unwrap();
    let fleet = Fleet::start(Plan { ttl, ..Plan::towards(vec![mesh.control.listen()]) }, joins).unwrap();
    assert!(fleet.wait(AT_MOST, |f| f.tally().sessions >= clients as u64), "{:?}", fleet.tally());
    fleet
}

#[test]
fn light_clients_enroll_renew_hear_of_changes_and_come_back() {
    let mut mesh = Mesh::start().unwrap();
    let fleet = let_go(&mesh, CLIENTS, Duration::from_secs(4));
    let identities = mesh.control.json(&["identities"]).unwrap();
    assert_eq!(identities.as_array().unwrap().len(), CLIENTS);

    let since = Instant::now();
    let generation = mesh.control.apply_service("shop", &mesh.id("shop"), &[]).unwrap();
    fleet.wait_for_generation(generation, since, SOON).unwrap();
    let renewed = |times: u64| move |f: &Fleet| f.tally().renewals >= times * CLIENTS as u64;
    assert!(fleet.wait(AT_MOST, renewed(2)), "{:?}", fleet.tally());

    // A control plane that dies and comes back is found again, and no certificate ends meanwhile.
    let before = fleet.tally().renewals;
    mesh.control.kill9();
    mesh.control.restart().unwrap();
    assert!(fleet.wait(AT_MOST, renewed(before / CLIENTS as u64 + 2)), "{:?}", fleet.tally());
    assert!(fleet.wait(SOON, |f| f.views().iter().all(|v| v.connected)), "{:?}", fleet.tally());
    let tally = fleet.tally();
    assert_eq!((tally.expired, tally.renewals_refused, tally.unusable), (0, 0, 0), "{tally:?}");
    assert_eq!(tally.serials_twice, Vec::<String>::new());
    assert_eq!(tally.serials, CLIENTS as u64 + tally.renewals);
    let refused = (0..CLIENTS).filter_map(|c| fleet.would_refuse(c, (c + 1) % CLIENTS)).next();
    assert_eq!(refused, None, "each believes the next");
}

#[test]
fn a_join_string_works_for_one_light_client() {
    let mesh = Mesh::start().unwrap();
    let admin = Admin::at(&mesh.control.data()).unwrap();
    let join = admin.tokens(1, "fleet", Duration::from_secs(600), |_| {}).unwrap().remove(0);
    let plan = Plan::towards(vec![mesh.control.listen()]);
    let fleet = Fleet::start(plan, vec![join.clone(), join.clone(), join]).unwrap();
    assert!(fleet.wait(SOON, |f| f.tally().enrolled + f.tally().enrollments_refused == 3));
    assert_eq!(fleet.tally().enrolled, 1, "{:?}", fleet.tally());
}

#[test]
fn who_does_not_hold_the_pinned_root_is_told_nothing() {
    // The clients of one mesh meet the control plane of another one of the same name.
    let (mesh, other) = (Mesh::start().unwrap(), Mesh::start().unwrap());
    let admin = Admin::at(&mesh.control.data()).unwrap();
    let joins = admin.tokens(2, "fleet", Duration::from_secs(600), |_| {}).unwrap();
    let fleet = Fleet::start(Plan::towards(vec![other.control.listen()]), joins).unwrap();
    assert!(fleet.wait(SOON, |f| f.tally().enrollments_tried_again >= 6));
    assert_eq!((fleet.tally().enrolled, fleet.tally().enrollments_refused), (0, 0));
    let audit = other.control.json(&["audit", "--last", "1000"]).unwrap();
    assert!(!audit.to_string().contains("\"enroll\""), "no token was ever shown: {audit}");
}

#[test]
fn a_revocation_reaches_two_hundred_proxies_and_wait_says_how_long_each_took() {
    let mesh = Mesh::start().unwrap();
    let fleet = let_go(&mesh, 200, Duration::from_secs(3600));
    let admin = Admin::at(&mesh.control.data()).unwrap();
    let join = admin.tokens(1, "victim", Duration::from_secs(600), |_| {}).unwrap();
    let victim = Fleet::start(Plan::towards(vec![mesh.control.listen()]), join).unwrap();
    assert!(victim.wait(AT_MOST, |f| f.tally().sessions == 1), "{:?}", victim.tally());
    let id = victim.view(0).id;
    let answer = mesh.control.json(&["revoke", &id, "--wait", "--timeout", "30s"]).unwrap();
    assert_eq!((&answer["confirmed"], &answer["missing"]), (&200.into(), &serde_json::json!([])), "{answer}");
    let heard = |f: &Fleet| f.views().iter().all(|v| v.revocations.contains_key(&format!("id {id}")));
    assert!(heard(&fleet), "each of those that confirmed holds it");
    assert!(victim.wait(SOON, |f| !f.view(0).connected), "the revoked one's own stream is closed");
    victim.renew();
    assert!(victim.wait(SOON, |f| !f.view(0).refused.is_empty()));
    assert_eq!(victim.tally().renewals, 0, "and nothing more is issued to it");
    println!("200 proxies: p99 {} ms, last {} ms", answer["p99_ms"], answer["max_ms"]);
}

#[test]
fn a_root_is_replaced_under_a_fleet_and_one_that_was_away_catches_up() {
    let mesh = Mesh::start().unwrap();
    let (fleet, away) =
        (let_go(&mesh, 20, Duration::from_secs(20)), let_go(&mesh, 1, Duration::from_secs(3600)));
    away.offline(0, true);
    assert!(away.wait(SOON, |f| !f.view(0).connected));
    let before = mesh.control.json(&["status"]).unwrap()["root"].clone();
    let sequence = away.view(0).bundle_sequence;
    // Whom would anybody refuse, at any moment of it?
    let (mut refused, mut asked) = (Vec::new(), 0);
    let since = fleet.tally().renewals;
    mesh.control.json(&["ca", "rotate", "--root", "--force"]).unwrap();
    assert_ne!(mesh.control.json(&["status"]).unwrap()["root"], before);
    let renewed = fleet.wait(AT_MOST * 2, |f| {
        for client in 0..f.len() {
            asked += 1;
            refused.extend(f.would_refuse(client, (client + asked) % f.len()));
        }
        f.tally().renewals >= since + 2 * f.len() as u64
    });
    assert!(renewed, "{:#?}", fleet.tally());
    assert_eq!(refused, Vec::<String>::new(), "of {asked} pairs");
    assert_eq!(away.view(0).bundle_sequence, sequence, "it has heard of nothing");
    away.offline(0, false);
    assert!(away.wait(AT_MOST, |f| f.view(0).bundle_sequence > sequence), "{:#?}", away.tally());
    away.renew();
    assert!(away.wait(AT_MOST, |f| f.tally().renewals == 1), "{:#?}", away.tally());
    for tally in [fleet.tally(), away.tally()] {
        assert_eq!((tally.unusable, tally.pushes_refused, tally.renewals_refused), (0, 0, 0), "{tally:#?}");
    }
    println!("{} renewals, {asked} pairs asked, nobody refused", fleet.tally().renewals);
}
