//! A rig that lies is worse than none: stalls are seen, processor time is what was burnt, overload is counted.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use postern_loadtest::app::App;
use postern_loadtest::drive::{Load, Reason};
use postern_loadtest::measure::Meter;
use postern_loadtest::mesh::{Directory, Process, until};
use postern_loadtest::scenario::{Protocol, Scenario};

use super::foreign::{Pki, nginx, run, short};
use crate::support::{SOON, let_pass};

#[test]
fn a_server_that_stalls_is_seen_by_all_who_would_have_come_meanwhile() {
    const STALL: Duration = Duration::from_millis(600);
    let dir = Directory::new().unwrap();
    let pki = Pki::new(dir.path());
    let (_server, address) = nginx(&pki);
    let master = std::fs::read_to_string(pki.path("nginx.pid")).unwrap();
    let of_master = format!("/proc/{0}/task/{0}/children", master.trim());
    // It listens before both workers are there.
    let children: Vec<i32> = until(SOON, || {
        let text = std::fs::read_to_string(&of_master).unwrap();
        let pids: Vec<i32> = text.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        (pids.len() == 2).then_some(pids)
    })
    .unwrap();
    let tell = |signal| {
        children
            .iter()
            .for_each(|pid| nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), signal).unwrap());
    };
    let mut plan = short(address, Some(pki.client()), Scenario::Requests);
    (plan.load, plan.connections) = (Load::Open { rate: 500.0 }, 4);
    plan.duration = Duration::from_millis(1500);
    plan.outstanding = 100_000;
    let outcome = std::thread::scope(|scope| {
        let outcome = scope.spawn(|| run(&plan));
        let_pass(Duration::from_millis(600));
        tell(Signal::SIGSTOP);
        let_pass(STALL);
        tell(Signal::SIGCONT);
        outcome.join().unwrap()
    });
    assert_eq!((outcome.due, outcome.failed()), (750, 0), "{:?}", outcome.examples);
    // Four connections: who measures from the sending sees four slow answers. Three hundred were due in the stall.
    let slow = outcome.latency.curve.iter().find(|(_, us)| *us > 100_000.0).unwrap().0;
    assert!(slow < 85.0, "more than 15 in 100 waited a tenth of a second: {slow}");
    assert!(outcome.latency.p99_us.unwrap() > 400_000.0, "{:?}", outcome.latency);
}

#[test]
fn what_no_longer_fits_is_overload_and_not_forgotten() {
    // Accepts and never answers.
    let app = App::start(|mut stream| std::io::copy(&mut stream, &mut std::io::sink()).map(drop)).unwrap();
    let mut plan = short(app.address(), None, Scenario::Requests);
    (plan.load, plan.connections, plan.outstanding) = (Load::Open { rate: 1000.0 }, 2, 10);
    plan.warm_up = Duration::ZERO;
    plan.deadline = Duration::from_millis(700);
    let outcome = run(&plan);
    assert_eq!((outcome.due, outcome.succeeded), (500, 0));
    assert_eq!(outcome.failures[&Reason::Overload], 490, "{:?}", outcome.failures);
    assert_eq!(outcome.failures[&Reason::Timeout], 10, "{:?}", outcome.failures);
}

#[test]
fn processor_time_is_what_was_burnt_threads_and_children_included() {
    const BURN: &str = "
import os, sys, threading, time
def burn(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end: pass
print('ready', flush=True)
sys.stdin = open(sys.argv[1])          # a fifo: opens once somebody writes
thread = threading.Thread(target=burn, args=(0.3,)); thread.start(); thread.join()
child = os.fork()
if child == 0:
    burn(0.4); os._exit(0)
os.waitpid(child, 0)
standing = os.fork()
if standing == 0:
    burn(0.2); print('burnt', flush=True); time.sleep(60); os._exit(0)
time.sleep(60)
";
    let dir = Directory::new().unwrap();
    let fifo = dir.path().join("go");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut command = Command::new("python3");
    command.arg("-c").arg(BURN).arg(&fifo);
    let mut process = Process::spawn("burn", command, dir.path()).unwrap();
    let limit = Duration::from_secs(60);
    process.wait_for_line(limit, |line| (line == "ready").then_some(())).unwrap();
    let mut meter = Meter::new(&[process.pid()]).unwrap();
    meter.begin().unwrap();
    std::fs::write(&fifo, "go").unwrap();
    process.wait_for_line(limit, |line| (line == "burnt").then_some(())).unwrap();
    let usage = meter.end().unwrap().unwrap();
    let cpu = usage.cpu.as_secs_f64();
    // A thread that has ended, a child that has ended, a child that stands: 0.9 s, and a little for the interpreter.
    assert!((0.88..1.4).contains(&cpu), "0.9 s were burnt, {cpu} s seen");
    assert_eq!(usage.processes, 2, "{usage:?}");
    assert!(usage.rss.2 >= usage.rss.0 && usage.voluntary_switches > 0, "{usage:?}");
    let child = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", process.pid())).unwrap();
    for pid in child.split_whitespace() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.parse().unwrap()), Signal::SIGKILL).unwrap();
    }
    process.kill9();
    assert!(
        Meter::new(&[process.pid()]).is_err(),
        "a process that is gone costs nothing, and is not told as nothing"
    );
}

#[test]
fn bytes_come_back_whole() {
    let app = App::echo().unwrap();
    let mut plan = short(app.address(), None, Scenario::Bytes);
    (plan.protocol, plan.size) = (Protocol::Raw, 3_000_000);
    let outcome = run(&plan);
    assert!(outcome.succeeded > 0 && outcome.failed() == 0, "{:?}", outcome.examples);
    assert_eq!(outcome.bytes_sent, outcome.bytes_received);
    let liar = App::start(|mut stream| {
        let mut buffer = [0; 1024];
        while std::io::Read::read(&mut stream, &mut buffer)? > 0 {
            std::io::Write::write_all(&mut stream, b"no")?;
        }
        Ok(())
    });
    plan.target = liar.as_ref().unwrap().address();
    let outcome = run(&plan);
    assert_eq!((outcome.succeeded, outcome.failures.into_keys().collect()), (0, vec![Reason::BadAnswer]));
}
