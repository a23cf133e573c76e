//! A new root or issuing CA is tried with a share of the proxies first: one that proves good takes over, one whose handshakes fail is
//! withdrawn without anybody's help, and nobody refuses anybody at any moment of either.

use std::collections::HashSet;
use std::time::Duration;

use crate::support::SOON;
use postern_loadtest::fleet::{Admin, Failing, Fleet, Plan};
use postern_loadtest::mesh::{ControlOptions, Mesh, until};
use serde_json::Value;

const CLIENTS: usize = 20;
const AT_MOST: Duration = Duration::from_secs(60);

/// A control plane that watches its canaries for so long (on a machine so busy that none is heard within three times that, it rightly
/// withdraws), and a fleet with long-lived certificates: whoever renews was told to.
fn start(watch: &str) -> (Mesh, Fleet) {
    let config = format!("ca: {{ rotation: {{ canary: {{ watch: {watch} }} }} }}\n");
    let mesh = Mesh::start_with(ControlOptions { config, ..ControlOptions::default() }).unwrap();
    let admin = Admin::at(&mesh.control.data()).unwrap();
    let joins = admin.tokens(CLIENTS, "fleet", Duration::from_secs(600), |_| {}).unwrap();
    let plan = Plan { ttl: Duration::from_secs(3600), ..Plan::towards(vec![mesh.control.listen()]) };
    let fleet = Fleet::start(plan, joins).unwrap();
    assert!(fleet.wait(AT_MOST, |f| f.tally().sessions >= CLIENTS as u64), "{:?}", fleet.tally());
    (mesh, fleet)
}

/// The last rotation.
fn rotation(mesh: &Mesh) -> Value {
    let admin = Admin::at(&mesh.control.data()).unwrap();
    admin.get("/v1/ca/rotations").unwrap()[0].clone()
}

/// The key of the CA that signs for everybody.
fn signs(mesh: &Mesh) -> Value {
    mesh.control.json(&["status"]).unwrap()["issuing"]["key_id"].clone()
}

fn comes_to(mesh: &Mesh, state: &str) -> Value {
    let reached = until(AT_MOST, || Some(rotation(mesh)).filter(|r| r["state"] == state));
    reached.unwrap_or_else(|| panic!("never {state}: {}", rotation(mesh)))
}

fn authorities(fleet: &Fleet) -> HashSet<Vec<u8>> {
    fleet.views().into_iter().map(|v| v.authority).collect()
}

/// How many present a certificate of another authority than `old`.
fn with_new(fleet: &Fleet, old: &HashSet<Vec<u8>>) -> usize {
    fleet.views().iter().filter(|v| !old.contains(&v.authority)).count()
}

/// Whoever would refuse whom now, of all pairs.
fn refusals(fleet: &Fleet) -> Vec<String> {
    let pairs = (0..fleet.len()).flat_map(|a| (0..fleet.len()).map(move |b| (a, b)));
    pairs.filter_map(|(a, b)| fleet.would_refuse(a, b)).collect()
}

fn all_fail_with_the_new_chain(fleet: &Fleet) {
    (0..fleet.len()).for_each(|client| fleet.failing(client, Failing::WithNew));
}

#[test]
fn a_new_root_is_tried_with_a_share_and_takes_over_over_a_crash() {
    let (mut mesh, fleet) = start("10s");
    let (old, first) = (authorities(&fleet), signs(&mesh));
    let begun = mesh.control.json(&["ca", "rotate", "--root", "--detach", "--canary", "25%"]).unwrap();
    assert_eq!(begun["rotation"]["share"], 25, "{begun}");
    comes_to(&mesh, "canary");
    assert!(
        fleet.wait(AT_MOST, |f| with_new(f, &old) > 0),
        "a share comes over at once: {:?}",
        fleet.tally()
    );
    assert_eq!(refusals(&fleet), Vec::<String>::new());
    mesh.control.kill9();
    mesh.control.restart().unwrap();
    comes_to(&mesh, "active");
    let takes_over = || (signs(&mesh) != first).then_some(());
    until(AT_MOST, takes_over).expect("it signs for everybody");
    let some = with_new(&fleet, &old);
    assert!(some < CLIENTS, "the others keep what they have until it is due: {some}");
    fleet.renew();
    assert!(fleet.wait(AT_MOST, |f| with_new(f, &old) == CLIENTS), "{:?}", fleet.tally());
    assert_eq!(refusals(&fleet), Vec::<String>::new());
    let tally = fleet.tally();
    assert_eq!((tally.unusable, tally.pushes_refused, tally.renewals_refused), (0, 0, 0), "{tally:#?}");
    println!("{some} of {CLIENTS} went first");
}

#[test]
fn a_root_whose_canaries_fail_is_rolled_back_by_itself_and_nobody_is_cut_off() {
    let (mut mesh, fleet) = start("60s");
    all_fail_with_the_new_chain(&fleet);
    let (old, root) = (authorities(&fleet), mesh.control.json(&["status"]).unwrap()["root"].clone());
    let out = mesh.control.cli(&["ca", "rotate", "--root", "--canary", "25%"]).unwrap();
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    assert!(out.stderr.contains("handshakes fail at"), "{}", out.stderr);
    // Crashed while it is withdrawn, it goes on.
    mesh.control.kill9();
    mesh.control.restart().unwrap();
    let mut refused = Vec::new();
    let back = fleet.wait(AT_MOST, |f| {
        refused.extend(refusals(f));
        with_new(f, &old) == 0 && f.views().iter().all(|v| v.connected)
    });
    assert!(back, "{} still present the new chain", with_new(&fleet, &old));
    assert_eq!(refused, Vec::<String>::new());
    assert_eq!(mesh.control.json(&["status"]).unwrap()["root"], root, "the old root signs");
    let rotation = rotation(&mesh);
    assert_eq!(rotation["state"], "rolling_back", "the new root stays believed as long as its leaves live");
    let reason = rotation["reason"].as_str().unwrap();
    let list = mesh.control.cli(&["ca", "list"]).unwrap().stdout;
    let status = mesh.control.cli(&["status"]).unwrap().stdout;
    assert!(list.contains(reason) && status.contains(reason), "{reason}:\n{list}\n{status}");
    let audit = mesh.control.json(&["audit", "--last", "1000"]).unwrap();
    let of = |r: &&Value| r["action"] == "ca rotate roll back";
    assert_eq!(audit.as_array().unwrap().iter().find(of).unwrap()["detail"]["reason"], reason);
    // Whoever renews now, canary or not, stays with the old one.
    fleet.renew();
    assert!(fleet.wait(AT_MOST, |f| f.tally().renewals >= CLIENTS as u64));
    assert_eq!(with_new(&fleet, &old), 0);
}

#[test]
fn an_issuing_ca_is_tried_taken_over_and_withdrawn_in_the_same_way() {
    let (mesh, fleet) = start("5s");
    let (old, first) = (authorities(&fleet), signs(&mesh));
    let out = mesh.control.json(&["ca", "rotate", "--canary", "30%"]).unwrap();
    assert_eq!(out["rotation"]["state"], "pruned", "{out}");
    assert!(with_new(&fleet, &old) > 0);
    assert!(
        until(SOON, || (signs(&mesh) == out["new_root"]).then_some(())).is_some(),
        "it signs for everybody"
    );
    assert_ne!(signs(&mesh), first);

    all_fail_with_the_new_chain(&fleet);
    let old = authorities(&fleet);
    let out = mesh.control.cli(&["ca", "rotate", "--canary", "30%"]).unwrap();
    assert_eq!(out.status.code(), Some(1), "{out:?}");
    assert!(fleet.wait(AT_MOST, |f| with_new(f, &old) == 0), "{:?}", fleet.tally());
    assert_eq!(refusals(&fleet), Vec::<String>::new());
    // What was withdrawn hinders nobody who wants another one.
    let next = mesh.control.json(&["ca", "rotate"]).unwrap();
    assert_eq!(next["key_id"], signs(&mesh));
}
