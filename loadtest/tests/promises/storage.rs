//! Storage that fails: every write and every sync of issuing and token redemption, killed or refused, a full disk, a torn
//! file; rows 78 and 79 of the negative cases. `strace` does the failing, at exactly the n-th call.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use postern_config::enroll::JoinString;
use postern_loadtest::fleet::{Admin, Fleet, Plan};
use postern_loadtest::mesh::{Binaries, ControlOptions, ControlPlane, Directory, Process, until};

use crate::programs::program;
use crate::support::{SOON, full};

/// A fault that is injected into a running control plane, until dropped.
struct Fault {
    tracer: Process,
}

impl Fault {
    /// Attaches to `pid`; the `nth` of `calls` on the store's files ends in `what`, and with `after` all that follow.
    fn inject(
        control: &mut ControlPlane,
        dir: &Path,
        calls: &str,
        what: &str,
        nth: usize,
        after: bool,
    ) -> Self {
        let data = control.data();
        let mut strace = Command::new(program("strace", "strace"));
        strace.args(["-f", "-qq", "-p", &control.process().pid().to_string()]);
        for file in ["postern.db", "postern.db-wal", "postern.db-journal"] {
            strace.arg("-P").arg(data.join(file));
        }
        let when = if after { format!("{nth}+") } else { nth.to_string() };
        strace.args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{what}:when={when}")]);
        strace.arg("-o").arg(dir.join("trace"));
        let tracer = Process::spawn("strace", strace, dir).unwrap();
        let traced = |pid: u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|l| l.strip_prefix("TracerPid:").is_some_and(|p| p.trim() != "0"))
        };
        let pid = control.process().pid();
        let threads = || {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
            tasks.filter_map(|t| t.file_name().to_str()?.parse().ok()).collect::<Vec<u32>>()
        };
        let attached = until(SOON, || threads().into_iter().all(traced).then_some(()));
        assert!(attached.is_some(), "strace does not attach:\n{}", tracer.tail(10));
        Self { tracer }
    }

    /// What was traced: a line a call.
    fn end(mut self, dir: &Path) -> String {
        // SIGINT detaches, and leaves the process as it is.
        self.tracer.signal(Signal::SIGINT);
        let _ = self.tracer.wait(SOON);
        std::fs::read_to_string(dir.join("trace")).unwrap_or_default()
    }
}

struct Place {
    control: ControlPlane,
    dir: Directory,
    /// Where light clients go.
    plan: Plan,
}

impl Place {
    fn start() -> Self {
        let (binaries, dir) = (Binaries::build().unwrap(), Directory::new().unwrap());
        let control = ControlPlane::start(&binaries, dir.path(), ControlOptions::default()).unwrap();
        let plan = Plan::towards(vec![control.listen()]);
        Self { control, dir, plan }
    }

    fn tokens(&self, count: usize) -> Vec<JoinString> {
        Admin::at(&self.control.data()).unwrap().tokens(count, "w", Duration::from_secs(600), |_| {}).unwrap()
    }

    /// Serials that are on record, by what an operator is told.
    fn on_record(&self) -> BTreeSet<String> {
        let identities = self.control.json(&["identities"]).unwrap();
        identities.as_array().unwrap().iter().map(|i| i["serial"].as_str().unwrap().to_owned()).collect()
    }

    /// Nobody who has a certificate is unknown, and no token gives another one.
    fn assert_sound(&self, join: &JoinString, first: &Fleet, told: &str) {
        let on_record = self.on_record();
        for serial in first.serials() {
            let serial = serial.trim_start_matches('0');
            assert!(
                on_record.iter().any(|r| r.trim_start_matches('0') == serial),
                "{told}: {serial} is not on record"
            );
        }
        let served = first.tally().enrolled;
        let second = Fleet::start(self.plan.clone(), vec![join.clone()]).unwrap();
        let answered = |f: &Fleet| f.tally().enrolled + f.tally().enrollments_refused == 1;
        assert!(second.wait(Duration::from_secs(30), answered), "{told}: {:?}", second.tally());
        assert!(served + second.tally().enrolled <= 1, "{told}: one token, two identities");
    }
}

/// Enrolls one client while the `nth` call fails, until it is served, refused, or the control plane is dead.
fn enroll_under(
    place: &mut Place,
    join: &JoinString,
    calls: &str,
    what: &str,
    nth: usize,
) -> (Fleet, String) {
    let dir = place.dir.path().to_owned();
    let fault = Fault::inject(&mut place.control, &dir, calls, what, nth, false);
    let first = Fleet::start(place.plan.clone(), vec![join.clone()]).unwrap();
    until(Duration::from_secs(4), || {
        let tally = first.tally();
        let over = tally.enrolled + tally.enrollments_refused + tally.enrollments_tried_again > 0;
        (over || place.control.process().exit_status().is_some()).then_some(())
    });
    let trace = fault.end(&dir);
    (first, trace)
}

const WRITES: &str = "pwrite64,write";
const SYNCS: &str = "fdatasync,fsync";

#[test]
fn a_sigkill_at_every_write_and_sync_of_a_redemption_spends_the_token_at_most_once() {
    let mut place = Place::start();
    let (mut died, mut tried) = (0, 0);
    for (calls, most) in [(WRITES, if full() { 40 } else { 8 }), (SYNCS, if full() { 6 } else { 3 })] {
        for nth in 1..=most {
            let join = place.tokens(1).remove(0);
            let (first, _) = enroll_under(&mut place, &join, calls, "signal=SIGKILL", nth);
            tried += 1;
            let dead = until(Duration::from_secs(2), || place.control.process().exit_status()).is_some();
            died += usize::from(dead);
            let served = first.tally().enrolled;
            if dead {
                place.control.restart().unwrap();
            }
            // The first client tries again by itself, with the key that it has tried before.
            assert!(
                first.wait(Duration::from_secs(30), |f| f.tally().enrolled == 1),
                "{calls} {nth}: {:?}",
                first.tally()
            );
            assert!(served <= first.tally().enrolled);
            place.assert_sound(&join, &first, &format!("SIGKILL at {calls} {nth}"));
        }
    }
    assert!(died >= 5, "the faults struck {died} times of {tried}");
    println!("{died} deaths at {tried} calls: each token gave one identity, each identity is on record");
}

#[test]
fn a_refused_write_or_sync_of_a_redemption_leaves_nothing_half_done() {
    let mut place = Place::start();
    let mut struck = 0;
    for (calls, what, most) in [
        (WRITES, "error=ENOSPC", if full() { 40 } else { 6 }),
        (WRITES, "error=EIO", if full() { 40 } else { 6 }),
        (SYNCS, "error=EIO", if full() { 6 } else { 3 }),
    ] {
        for nth in 1..=most {
            let join = place.tokens(1).remove(0);
            let (first, trace) = enroll_under(&mut place, &join, calls, what, nth);
            struck += usize::from(trace.contains("INJECTED"));
            // After a failed sync nobody knows what the disk holds: dying is right, going on in doubt is not.
            if until(Duration::from_millis(200), || place.control.process().exit_status()).is_some() {
                place.control.restart().unwrap();
            }
            let told = format!("{what} at {calls} {nth}");
            assert!(
                first.wait(Duration::from_secs(30), |f| f.tally().enrolled == 1),
                "{told}: {:?}",
                first.tally()
            );
            place.assert_sound(&join, &first, &told);
        }
    }
    assert!(struck >= 8, "the faults struck {struck} times");
    // What is on disk is what was said: a restart finds the same.
    let before = place.on_record();
    place.control.kill9();
    place.control.restart().unwrap();
    assert_eq!(before, place.on_record());
    println!("{struck} faults, nothing half done");
}

#[test]
fn a_renewal_that_fails_at_any_write_is_repeated_and_none_is_unrecorded() {
    let mut place = Place::start();
    let fleet = Fleet::start(place.plan.clone(), place.tokens(1)).unwrap();
    assert!(fleet.wait(SOON, |f| f.tally().sessions == 1));
    let dir = place.dir.path().to_owned();
    for (calls, what, most) in
        [(WRITES, "error=ENOSPC", 5), (WRITES, "signal=SIGKILL", 5), (SYNCS, "signal=SIGKILL", 2)]
    {
        for nth in 1..=most {
            let before = fleet.tally().renewals;
            let fault = Fault::inject(&mut place.control, &dir, calls, what, nth, false);
            fleet.renew();
            until(Duration::from_secs(2), || (fleet.tally().renewals > before).then_some(()));
            fault.end(&dir);
            if place.control.process().exit_status().is_some() {
                place.control.restart().unwrap();
            }
            fleet.renew();
            let told = format!("{what} at {calls} {nth}");
            assert!(
                fleet.wait(Duration::from_secs(60), |f| f.tally().renewals > before),
                "{told}: {:?}",
                fleet.tally()
            );
            // Asked again until both agree: a renewal may come between the two questions.
            let known = until(SOON, || {
                let current: String = fleet.view(0).serial.iter().map(|b| format!("{b:02x}")).collect();
                place.on_record().contains(current.trim_start_matches('0')).then_some(())
            });
            assert!(known.is_some(), "{told}: the certificate in use is not on record");
        }
    }
    let tally = fleet.tally();
    assert_eq!((tally.renewals_refused, tally.expired, tally.unusable), (0, 0, 0), "{tally:#?}");
    assert_eq!(tally.serials_twice, Vec::<String>::new());
}

#[test]
fn a_sync_that_fails_once_is_not_believed_the_next_time() {
    // A kernel reports a lost write once; a store that only asks again believes what is not there.
    let mut place = Place::start();
    let join = place.tokens(1).remove(0);
    let dir = place.dir.path().to_owned();
    let fault = Fault::inject(&mut place.control, &dir, SYNCS, "error=EIO", 1, false);
    let first = Fleet::start(place.plan.clone(), vec![join.clone()]).unwrap();
    assert!(
        first.wait(Duration::from_secs(30), |f| f.tally().enrolled == 1
            || f.tally().enrollments_tried_again > 0)
    );
    let ended = place.control.process().wait(SOON).unwrap();
    let trace = fault.end(&dir);
    assert!(trace.contains("INJECTED"), "{trace}");
    assert_eq!(first.tally().enrolled, 0, "an identity was given on a sync that failed");
    assert_eq!(ended.code(), Some(1));
    let told = place.control.process().stderr();
    assert!(told.contains("a sync failed"), "{told}");
    place.control.restart().unwrap();
    assert!(first.wait(Duration::from_secs(30), |f| f.tally().enrolled == 1), "{:?}", first.tally());
    place.assert_sound(&join, &first, "after the restart");
}

#[test]
fn a_slow_disk_does_not_cost_a_real_proxy_its_token() {
    // The answer comes after the proxy's patience: it has to ask again, with the key that has spent the token.
    let mesh = postern_loadtest::mesh::Mesh::start().unwrap();
    let mut mesh = mesh;
    let options = mesh.options("web").unwrap().outbound("shop");
    let dir = mesh.dir().to_owned();
    let fault = Fault::inject(&mut mesh.control, &dir, SYNCS, "delay_exit=22000000", 1, false);
    let mut web = mesh.launch(options).unwrap();
    web.wait_until_ready(Duration::from_secs(60)).unwrap();
    let trace = fault.end(&dir);
    assert!(trace.contains("DELAYED"), "{trace}");
}

/// A file system of one megabyte or two, in memory. Unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=0700"), "tmpfs"]).arg(at);
        let mounted = mount.stderr(Stdio::null()).status().is_ok_and(|s| s.success());
        mounted.then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_refuses_clearly_and_recovers_when_there_is_room() {
    let (binaries, dir) = (Binaries::build().unwrap(), Directory::new().unwrap());
    let Some(_disk) = SmallDisk::mount(&dir.path().join("pki"), "3m") else {
        println!("no right to mount a small disk here; run as root");
        return;
    };
    let control = ControlPlane::start(&binaries, dir.path(), ControlOptions::default()).unwrap();
    let admin = Admin::at(&control.data()).unwrap();
    let joins = admin.tokens(4, "w", Duration::from_secs(600), |_| {}).unwrap();
    let ballast = control.data().join("ballast");
    // All that is left, but for what is written in blocks that exist already.
    let mut room = 3 * 1024 * 1024_usize;
    while room > 4096 {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&ballast).unwrap();
        if std::io::Write::write_all(&mut file, &vec![0; room]).is_err() {
            room /= 2;
        }
    }
    let fleet = Fleet::start(Plan::towards(vec![control.listen()]), joins).unwrap();
    let filled = until(Duration::from_secs(20), || {
        let out = control.cli(&["token", "create", "--id", "spiffe://mesh.test/ns/w/sa/later"]).unwrap();
        (!out.status.success()).then_some(out)
    });
    let told = filled.expect("a write fails on a full disk").stderr;
    assert!(told.contains("full"), "it says what is wrong: {told}");
    std::fs::remove_file(&ballast).unwrap();
    let well = until(Duration::from_secs(20), || {
        control
            .cli(&["token", "create", "--id", "spiffe://mesh.test/ns/w/sa/later"])
            .ok()
            .filter(|o| o.status.success())
    });
    assert!(well.is_some(), "it works again once there is room");
    assert!(fleet.wait(Duration::from_secs(30), |f| f.tally().enrolled == 4), "{:?}", fleet.tally());
    assert_eq!(fleet.tally().serials_twice, Vec::<String>::new());
}

#[test]
fn a_torn_file_is_refused_clearly_and_never_written_over() {
    let mut place = Place::start();
    let fleet = Fleet::start(place.plan.clone(), place.tokens(3)).unwrap();
    assert!(fleet.wait(SOON, |f| f.tally().sessions == 3));
    drop(fleet);
    // An orderly end leaves everything in the one file.
    place.control.stop().unwrap();
    let file = place.control.data().join("postern.db");
    let whole = std::fs::read(&file).unwrap();
    let torn: [(&str, Vec<u8>); 4] = [
        ("cut in the middle of a page", whole[..whole.len() / 2 + 100].to_vec()),
        ("its head overwritten", [&[0x5a; 512], &whole[512..]].concat()),
        ("a page of zeros in its midst", {
            let mut bytes = whole.clone();
            bytes[4096..8192].fill(0);
            bytes
        }),
        ("something else altogether", b"not a database, but somebody's notes\n".repeat(200)),
    ];
    for (how, bytes) in torn {
        std::fs::write(&file, &bytes).unwrap();
        for side in ["postern.db-wal", "postern.db-shm"] {
            let _ = std::fs::remove_file(place.control.data().join(side));
        }
        let started = place.control.restart();
        let told = started.err().map(|e| format!("{e:#}")).unwrap_or_else(|| panic!("{how}: it started"));
        assert!(told.contains("postern.db"), "{how}: it names the file: {told}");
        assert!(
            told.contains("damaged") || told.contains("not a database"),
            "{how}: it says what is wrong: {told}"
        );
        assert_eq!(std::fs::read(&file).unwrap(), bytes, "{how}: it was written to");
    }
    std::fs::write(&file, &whole).unwrap();
    place.control.restart().unwrap();
    assert_eq!(place.on_record().len(), 3);
}

#[test]
fn killed_in_a_loop_while_it_issues_it_loses_nothing_and_issues_nothing_twice() {
    let rounds = if full() { 60 } else { 8 };
    let mut place = Place::start();
    let plan = Plan { ttl: Duration::from_secs(60), ..place.plan.clone() };
    let mut fleet = Fleet::start(plan, place.tokens(10)).unwrap();
    for round in 1..=rounds {
        fleet.add(place.tokens(5));
        fleet.renew();
        let (before, all) = (fleet.tally(), fleet.len() as u64);
        // Somewhere in the middle of what was just begun.
        until(Duration::from_secs(2), || {
            let now = fleet.tally();
            (now.enrolled > before.enrolled + round % 4 || now.renewals > before.renewals + round % 7)
                .then_some(())
        });
        place.control.kill9();
        place.control.restart().unwrap();
        assert!(fleet.wait(Duration::from_secs(30), |f| f.tally().enrolled == all), "{:?}", fleet.tally());
    }
    let back = |f: &Fleet| f.views().iter().all(|v| v.connected);
    assert!(fleet.wait(Duration::from_secs(30), back), "{:?}", fleet.tally());
    let tally = fleet.tally();
    assert_eq!((tally.enrollments_refused, tally.renewals_refused, tally.expired), (0, 0, 0), "{tally:#?}");
    assert_eq!(tally.serials_twice, Vec::<String>::new());
    // Read before the records: a renewal that comes between the two is on record, too.
    let serials = fleet.serials();
    let audit = Admin::at(&place.control.data()).unwrap().get("/v1/audit?last=10000").unwrap().to_string();
    let unknown: Vec<String> =
        serials.into_iter().filter(|s| !audit.contains(s.trim_start_matches('0'))).collect();
    assert_eq!(unknown, Vec::<String>::new(), "every certificate has its record");
    println!("{rounds} kills, {} identities, {} renewals", tally.enrolled, tally.renewals);
}
