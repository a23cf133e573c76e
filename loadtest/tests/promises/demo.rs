//! `postern demo` shows what it promises, in one object, and leaves nothing behind.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use postern_loadtest::mesh::{Binaries, Directory, Process, until};
use serde_json::Value;

fn demo(binaries: &Binaries, data: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(binaries.postern());
    command.arg("demo").args(args).arg("--data").arg(data);
    command
}

#[test]
fn the_summary_is_one_object_and_every_promise_holds() {
    let (binaries, dir) = (Binaries::build().unwrap(), Directory::new().unwrap());
    let data = dir.path().join("demo");
    let output = demo(&binaries, &data, &["--duration", "12s", "--json"]).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{stdout}\n{stderr}");
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    let summary: Value = serde_json::from_str(&stdout).unwrap();
    let number = |field: &str| summary[field].as_u64().unwrap_or_else(|| panic!("no {field} in {summary}"));

    assert_eq!((number("failed"), number("stranger_admitted")), (0, 0), "{summary}");
    assert!(number("requests") > 500, "{summary}");
    assert!(number("handshakes") >= number("requests"), "each request is a connection: {summary}");
    assert!(number("stranger_requests") > 5, "{summary}");
    assert_eq!(number("denied"), number("stranger_requests"), "{summary}");
    let (p50, p99) = (number("handshake_p50_us"), number("handshake_p99_us"));
    assert!(0 < p50 && p50 <= p99, "{summary}");
    let by_proxy = summary["rotations_by_proxy"].as_object().unwrap();
    assert_eq!(by_proxy.keys().collect::<Vec<_>>(), ["shop", "stranger", "web"]);
    // A certificate of 10 s is renewed after at most half of it.
    assert!(by_proxy.values().all(|n| n.as_u64() >= Some(2)), "{summary}");
    assert_eq!(by_proxy.values().filter_map(Value::as_u64).sum::<u64>(), number("rotations"));
    assert!(!data.exists(), "its directory stays behind");
}

#[test]
fn a_signal_ends_all_of_it() {
    let (binaries, dir) = (Binaries::build().unwrap(), Directory::new().unwrap());
    let data = dir.path().join("demo");
    let command = demo(&binaries, &data, &["--duration", "10m"]);
    let mut demo = Process::spawn("demo", command, dir.path()).unwrap();
    demo.wait_for_line(Duration::from_secs(60), |l| l.contains("requests   failed").then_some(())).unwrap();
    let children = until(Duration::from_secs(10), || {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", demo.pid())).ok()?;
        let of = |task: std::fs::DirEntry| {
            std::fs::read_to_string(task.path().join("children")).unwrap_or_default()
        };
        let children: String = tasks.flatten().map(of).collect();
        let pids: Vec<String> = children.split_whitespace().map(str::to_owned).collect();
        (pids.len() >= 5).then_some(pids)
    })
    .expect("control plane, program and three sidecars");
    demo.signal(Signal::SIGTERM);
    assert_eq!(demo.wait(Duration::from_secs(30)).unwrap().code(), Some(0), "{}", demo.stdout());
    assert!(demo.stdout().contains("Every request"), "{}", demo.stdout());
    assert!(children.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists()), "{children:?}");
    assert!(!data.exists());
}

#[test]
fn a_directory_that_is_not_its_own_is_refused() {
    let (binaries, dir) = (Binaries::build().unwrap(), Directory::new().unwrap());
    std::fs::write(dir.path().join("precious"), "").unwrap();
    let output = demo(&binaries, dir.path(), &["--duration", "1s"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not a demo's"), "{output:?}");
    assert!(dir.path().join("precious").exists());
    let usage = demo(&binaries, dir.path(), &["--duration", "soon"]).output().unwrap();
    assert_eq!(usage.status.code(), Some(2), "wrong usage");
}
