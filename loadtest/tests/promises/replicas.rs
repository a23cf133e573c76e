//! Several control planes on one PostgreSQL: killed at random, cut off from their database, stopped and woken again; rows
//! 82 and 83 of the negative cases.
//!
//! In full length: `POSTERN_FULL=1 cargo test --release -p postern-loadtest --test promises -- --nocapture replicas`; with
//! `POSTERN_SEED` the same order of events as another run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::support::{SOON, full};
use postern_loadtest::fleet::{Admin, Fleet, Plan, Tally};
use postern_loadtest::mesh::{
    Binaries, ControlOptions, ControlPlane, Directory, Postgres, allow_only, until,
};

/// For what has to come, however loaded the machine is.
const AT_MOST: Duration = Duration::from_secs(60);
/// Certificates that are renewed about every ten seconds.
const TTL: Duration = Duration::from_secs(22);

/// Control planes that share a database.
struct Replicas {
    all: Vec<ControlPlane>,
    postgres: Postgres,
    _dir: Directory,
}

impl Replicas {
    fn start(count: usize) -> Self {
        let (binaries, dir) = (Binaries::build().unwrap(), Directory::new().unwrap());
        let postgres = Postgres::start().unwrap();
        let config = format!("store: {{ url: {:?} }}\nsvid: {{ min_ttl: 1s }}\n", postgres.url());
        let mut all: Vec<ControlPlane> = Vec::new();
        for number in 0..count {
            let place = dir.path().join(format!("r{number}"));
            std::fs::create_dir(&place).unwrap();
            let options = ControlOptions { config: config.clone(), ..ControlOptions::default() };
            let approve = |key: &str| all[0].json(&["ca", "approve", key]).map(drop);
            let replica = ControlPlane::start_replica(&binaries, &place, options, approve).unwrap();
            all.push(replica);
        }
        Self { all, postgres, _dir: dir }
    }

    fn fleet(&self, clients: usize, namespace: &str) -> Fleet {
        let admin = Admin::at(&self.all[0].data()).unwrap();
        let joins = admin.tokens(clients, namespace, Duration::from_secs(3600), |_| {}).unwrap();
        let addresses = self.all.iter().map(ControlPlane::listen).collect();
        let fleet = Fleet::start(Plan { ttl: TTL, ..Plan::towards(addresses) }, joins).unwrap();
        assert!(fleet.wait(AT_MOST, |f| f.tally().sessions >= clients as u64), "{:?}", fleet.tally());
        fleet
    }
}

/// What nobody may suffer, whatever happens to the control planes.
fn assert_unharmed(tally: &Tally) {
    assert_eq!(tally.expired, 0, "renewals that failed beyond their retry: {tally:#?}");
    assert_eq!((tally.renewals_refused, tally.unusable, tally.pushes_refused), (0, 0, 0), "{tally:#?}");
    assert_eq!(tally.serials_twice, Vec::<String>::new());
}

fn seed() -> u64 {
    let given = std::env::var("POSTERN_SEED").ok().and_then(|s| s.parse().ok());
    given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into())
}

/// A write through the operators' socket below `data`, as its caller saw it.
fn put(data: &Path, number: usize) -> Option<u64> {
    let admin = Admin::at(data).unwrap();
    admin
        .apply_policies(&[allow_only(&format!("chaos-{number}"), &["mesh.test/ns/demo/sa/a".to_owned()])])
        .ok()
}

#[test]
fn three_replicas_killed_at_random_lose_nothing_and_issue_nothing_twice() {
    let (seconds, clients) = if full() { (300, 200) } else { (30, 200) };
    let seed = seed();
    println!("POSTERN_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut replicas = Replicas::start(3);
    let fleet = replicas.fleet(clients, "fleet");
    let victims = replicas.fleet(10, "victims");

    let places: Vec<PathBuf> = replicas.all.iter().map(ControlPlane::data).collect();
    let (stop, mut writer_random) = (Arc::new(AtomicBool::new(false)), StdRng::seed_from_u64(seed ^ 1));
    let stopped = Arc::clone(&stop);
    // Writes go on while replicas die, so that some are under way when it happens.
    let writer = std::thread::spawn(move || {
        let (mut acknowledged, mut number) = (BTreeSet::new(), 0);
        while !stopped.load(Ordering::Relaxed) {
            number += 1;
            let asked = writer_random.random_range(0..places.len());
            match put(&places[asked], number) {
                Some(_) => drop(acknowledged.insert(format!("chaos-{number}"))),
                None => std::thread::park_timeout(Duration::from_millis(20)),
            }
        }
        (acknowledged, number)
    });

    let (began, mut kills, mut given_back) = (Instant::now(), 0, 0);
    let (mut revoked, mut disbelieved) = (BTreeSet::new(), Vec::new());
    let (mut next_kill, mut next_revocation) = (Duration::from_secs(1), Duration::from_secs(2));
    while began.elapsed() < Duration::from_secs(seconds) {
        until(Duration::from_millis(20), || None::<()>);
        if began.elapsed() >= next_kill {
            let victim = random.random_range(0..3);
            replicas.all[victim].kill9();
            kills += 1;
            // Sometimes the others are alone for a while, sometimes a second one dies meanwhile.
            let alone = Duration::from_millis(random.random_range(0..2500));
            let second = random.random_bool(0.2).then(|| (victim + 1) % 3);
            if let Some(second) = second {
                replicas.all[second].kill9();
                kills += 1;
            }
            until(alone, || None::<()>);
            for victim in [Some(victim), second].into_iter().flatten() {
                replicas.all[victim].restart().unwrap();
            }
            next_kill = began.elapsed() + Duration::from_millis(random.random_range(200..3000));
        }
        if began.elapsed() >= next_revocation && revoked.len() < victims.len() {
            let id = victims.view(revoked.len()).id;
            let asked = random.random_range(0..3);
            let answer = replicas.all[asked].json(&["revoke", &id, "--reason", "keyCompromise"]);
            if answer.is_ok() {
                revoked.insert(id);
            } else {
                given_back += 1;
            }
            next_revocation = began.elapsed() + Duration::from_millis(random.random_range(500..4000));
        }
        // Whom a client would meet now, it believes.
        let (one, other) = (random.random_range(0..clients), random.random_range(0..clients));
        disbelieved.extend(fleet.would_refuse(one, other));
    }

    stop.store(true, Ordering::Relaxed);
    let (acknowledged, number) = writer.join().unwrap();
    let since = Instant::now();
    let last = until(SOON, || put(&replicas.all[0].data(), 0)).expect("a write once all are there");
    fleet.wait_for_generation(last, since, AT_MOST).unwrap();
    // Every certificate is renewed once more, so that nobody lives on what it had before.
    let before = fleet.tally().renewals;
    assert!(fleet.wait(AT_MOST, |f| f.tally().renewals >= before + clients as u64), "{:?}", fleet.tally());
    let tally = fleet.tally();
    assert_unharmed(&tally);
    assert_eq!(disbelieved, Vec::<String>::new(), "certificates that a peer would have refused");
    assert!(tally.renewals > clients as u64 * seconds / 20, "they did renew: {tally:?}");

    let stored: BTreeSet<String> =
        replicas.postgres.query("SELECT name FROM policies").unwrap().into_iter().collect();
    let lost: Vec<&String> = acknowledged.difference(&stored).collect();
    assert_eq!(lost, Vec::<&String>::new(), "acknowledged writes are present");
    for id in &revoked {
        let known = |f: &Fleet| f.views().iter().all(|v| v.revocations.contains_key(&format!("id {id}")));
        assert!(fleet.wait(SOON, known), "{id} was revoked, and somebody has not heard of it");
    }
    for serials in [fleet.serials(), victims.serials()] {
        let on_record: BTreeSet<String> =
            replicas.postgres.query("SELECT serial FROM certificates").unwrap().into_iter().collect();
        let audited =
            replicas.postgres.query("SELECT detail FROM audit WHERE outcome = 'done'").unwrap().join("\n");
        for serial in serials {
            let serial = serial.trim_start_matches('0');
            assert!(on_record.contains(serial), "{serial} was issued and is not on record");
            assert!(audited.contains(serial), "{serial} was issued and has no audit record");
        }
    }
    // One chain for each replica, each whole after every death of its own.
    let verified = replicas.all[0].json(&["audit", "verify"]).unwrap();
    println!("audit: {verified}");
    println!(
        "{seconds} s, {kills} kills, {} renewals ({} tries repeated), {} of {number} writes acknowledged, {} revocations \
         ({given_back} given back): none lost",
        tally.renewals,
        tally.renewals_tried_again,
        acknowledged.len(),
        revoked.len(),
    );
}

#[test]
fn a_database_that_is_away_disturbs_no_client_and_comes_back_without_help() {
    let away = if full() { Duration::from_secs(60) } else { Duration::from_secs(8) };
    let mut replicas = Replicas::start(2);
    let admin = Admin::at(&replicas.all[0].data()).unwrap();
    let joins = admin.tokens(40, "fleet", Duration::from_secs(600), |_| {}).unwrap();
    let addresses = replicas.all.iter().map(ControlPlane::listen).collect();
    // Certificates outlive the outage however slow the machine is: what is promised is that nobody has to hurry.
    let plan = Plan { ttl: away + Duration::from_secs(600), ..Plan::towards(addresses) };
    let fleet = Fleet::start(plan, joins).unwrap();
    assert!(fleet.wait(AT_MOST, |f| f.tally().sessions >= 40), "{:?}", fleet.tally());
    replicas.postgres.stop().unwrap();
    let (began, streams) = (Instant::now(), fleet.views().iter().filter(|v| v.connected).count());
    // Every renewal falls due while the database is away.
    fleet.renew();
    let mut refused = Vec::new();
    while began.elapsed() < away {
        for replica in &replicas.all {
            let path = replica.data().join("away.yaml");
            std::fs::write(&path, allow_only("while-away", &["mesh.test/a".to_owned()])).unwrap();
            let out = replica.cli(&["policy", "apply", "-f", &path.to_string_lossy()]).unwrap();
            assert_eq!(out.status.code(), Some(1), "{}", out.stdout);
            refused.push(out.stderr);
        }
    }
    let told = refused.concat();
    assert!(told.contains("store") && !told.contains("internal error"), "a clear error: {told}");
    assert!(streams >= 38, "{streams} streams were open");
    let tried = fleet.tally();
    assert!(tried.renewals_tried_again > 0, "renewals fell due while it was away: {tried:?}");
    replicas.postgres.resume().unwrap();
    let since = Instant::now();
    let generation = until(AT_MOST, || put(&replicas.all[0].data(), 1)).expect("writes work again");
    fleet.wait_for_generation(generation, since, AT_MOST).unwrap();
    assert!(fleet.wait(AT_MOST, |f| f.tally().renewals >= 40), "{:?}", fleet.tally());
    assert_unharmed(&fleet.tally());
    assert_eq!(
        replicas.postgres.query("SELECT name FROM policies WHERE name = 'while-away'").unwrap(),
        [""; 0]
    );
    println!("{away:?} away: {:?}; e.g. {}", fleet.tally(), refused[0].trim());
}

#[test]
fn a_database_that_is_killed_in_the_middle_of_renewals_loses_none_that_was_answered() {
    let mut replicas = Replicas::start(2);
    let fleet = replicas.fleet(60, "fleet");
    for _ in 0..if full() { 10 } else { 2 } {
        let before = fleet.tally().renewals;
        fleet.renew();
        assert!(fleet.wait(AT_MOST, |f| f.tally().renewals > before + 5), "{:?}", fleet.tally());
        replicas.postgres.kill9();
        replicas.postgres.resume().unwrap();
        assert!(fleet.wait(AT_MOST, |f| f.tally().renewals >= before + 60), "{:?}", fleet.tally());
    }
    assert_unharmed(&fleet.tally());
    let on_record: BTreeSet<String> =
        replicas.postgres.query("SELECT serial FROM certificates").unwrap().into_iter().collect();
    let lost = fleet.serials().into_iter().filter(|s| !on_record.contains(s.trim_start_matches('0'))).count();
    assert_eq!(lost, 0, "every certificate that a client holds is on record");
}

#[test]
fn a_lease_holder_that_was_stopped_wakes_up_and_writes_nothing_in_its_old_right() {
    let mut replicas = Replicas::start(2);
    let lease = |replicas: &Replicas| {
        let row =
            replicas.postgres.query("SELECT holder, token FROM leases WHERE name = 'housekeeping'").unwrap();
        let (holder, token) = row[0].split_once('|').unwrap();
        (holder.to_owned(), token.parse::<u64>().unwrap())
    };
    let (holder, token) = until(AT_MOST, || Some(lease(&replicas)).filter(|(h, _)| !h.is_empty())).unwrap();
    let name =
        |r: &ControlPlane| std::fs::read_to_string(r.data().join("replica")).unwrap().trim().to_owned();
    let asleep = replicas.all.iter().position(|r| name(r) == holder).unwrap();
    let awake = 1 - asleep;
    let join = Admin::at(&replicas.all[awake].data()).unwrap();
    let join = join.tokens(1, "once", Duration::from_secs(600), |_| {}).unwrap().remove(0);

    replicas.all[asleep].process().signal(Signal::SIGSTOP);
    let taken = until(AT_MOST, || Some(lease(&replicas)).filter(|(h, _)| *h != holder));
    let (second, newer) = taken.expect("the other one takes over");
    assert!(newer > token, "the lease is fenced: {token} → {newer}");
    let first = Plan::towards(vec![replicas.all[awake].listen()]);
    let first = Fleet::start(first, vec![join.clone()]).unwrap();
    assert!(first.wait(SOON, |f| f.tally().enrolled == 1));

    replicas.all[asleep].process().signal(Signal::SIGCONT);
    let late = Plan::towards(vec![replicas.all[asleep].listen()]);
    let late = Fleet::start(late, vec![join]).unwrap();
    assert!(late.wait(AT_MOST, |f| f.tally().enrollments_refused == 1), "{:?}", late.tally());
    let generation = until(SOON, || put(&replicas.all[asleep].data(), 1)).expect("it works on");
    first.wait_for_generation(generation, Instant::now(), SOON).unwrap();
    assert_eq!(lease(&replicas), (second, newer), "it has not taken back what it lost");
}

/// Row 64: one token, a hundred callers with a key each, at two control planes.
#[test]
fn of_a_hundred_uses_of_one_token_at_two_control_planes_exactly_one_wins() {
    const CALLERS: u64 = 100;
    let replicas = Replicas::start(2);
    let join = Admin::at(&replicas.all[0].data()).unwrap();
    let join = join.tokens(1, "once", Duration::from_secs(600), |_| {}).unwrap().remove(0);
    let addresses = replicas.all.iter().map(ControlPlane::listen).collect();
    let fleet = Fleet::start(Plan::towards(addresses), vec![join; CALLERS as usize]).unwrap();
    let told = |f: &Fleet| f.tally().enrolled + f.tally().enrollments_refused == CALLERS;
    assert!(fleet.wait(AT_MOST, told), "{:?}", fleet.tally());
    assert_eq!(fleet.tally().enrolled, 1, "{:?}", fleet.tally());
    let issued = replicas.postgres.query("SELECT serial FROM certificates").unwrap();
    assert_eq!(issued.len(), 1, "one certificate is on record: {issued:?}");
    let refused_by =
        "SELECT count(DISTINCT chain) FROM audit WHERE action = 'enroll' AND outcome = 'refused'";
    assert_eq!(replicas.postgres.query(refused_by).unwrap(), ["2"], "both were asked");
}

#[test]
fn the_schema_goes_down_and_up_again_on_postgresql_as_well() {
    let mut replicas = Replicas::start(1);
    replicas.all[0].stop().unwrap();
    let url = replicas.postgres.url();
    let psql = |arguments: &[&str]| {
        let out = std::process::Command::new("psql")
            .args([&url, "-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1", "-1"])
            .args(arguments)
            .output()
            .unwrap();
        assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../control/migrations/postgres");
    let mut downs: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(".down.sql"))
        .collect();
    downs.sort();
    for down in downs.iter().rev() {
        psql(&["-f", &down.to_string_lossy()]);
    }
    let left = "SELECT string_agg(tablename, ' ') FROM pg_tables WHERE schemaname = 'public' AND tablename <> '_sqlx_migrations'";
    assert_eq!(psql(&["-c", left]), "", "something was left behind");
    psql(&["-c", "DELETE FROM _sqlx_migrations"]);
    // The root that lies in the data directory is taken up again by the empty store.
    replicas.all[0].restart().unwrap();
    assert_eq!(replicas.all[0].json(&["status"]).unwrap()["trust_domain"], "mesh.test");
}
