//! `postern-loadtest run` and `report` as a user has them: against foreign servers, and against a mesh of their own.

use std::fs;
use std::process::{Command, Output};

use postern_loadtest::mesh::{Binaries, Directory};
use postern_loadtest::run::Results;

use super::foreign::{Pki, nginx, openssl};

fn rig(args: &[&str]) -> Output {
    Binaries::build().unwrap();
    Command::new(env!("CARGO_BIN_EXE_postern-loadtest")).args(args).output().unwrap()
}

fn results(output: &Output) -> Results {
    Results::parse(std::str::from_utf8(&output.stdout).unwrap())
        .unwrap_or_else(|e| panic!("{e:#}: {output:?}"))
}

const SHORT: [&str; 8] = ["--duration", "400ms", "--warm-up", "50ms", "--deadline", "20s", "--clients", "4"];

#[test]
fn a_mesh_of_its_own_answers_and_the_page_shows_it() {
    let dir = Directory::new().unwrap();
    let page = dir.path().join("out.html");
    let output = rig(&[&["run", "storm", "--json", "--html", page.to_str().unwrap()], &SHORT[..]].concat());
    assert!(output.status.success(), "{output:?}");
    let results = results(&output);
    let names: Vec<&str> = results.runs.iter().map(|run| &*run.name).collect();
    assert_eq!(names, ["quiet", "storm", "newcomers"]);
    for run in &results.runs {
        assert!(
            run.outcome.succeeded > 0 && run.outcome.failed() == 0,
            "{}: {:?}",
            run.name,
            run.outcome.examples
        );
        assert_eq!(run.outcome.negotiated.version, "TLSv1_3");
        assert!(run.outcome.cost.as_ref().unwrap().cpu_seconds > 0.0);
    }
    let html = fs::read_to_string(page).unwrap();
    assert!(html.contains("<svg") && html.contains("newcomers") && html.contains("</html>"));
    assert!(!html.contains("<script") && !html.contains("src="), "nothing is run, nothing is fetched");
    let output = rig(&[&["run", "idle", "--json"], &SHORT[..6], &["--clients", "50"]].concat());
    let idle = &self::results(&output).runs[0].outcome;
    assert_eq!((idle.succeeded, idle.failed()), (50, 0), "{:?}", idle.examples);
    assert!(
        idle.cost.as_ref().unwrap().fds_after >= idle.cost.as_ref().unwrap().fds_before + 50,
        "{:?}",
        idle.cost
    );
}

/// What stands idle has carried something before: a request, which takes the sidecar a connection to its app, or bytes.
#[test]
fn connections_carry_something_and_come_in_waves() {
    let idle = [&["run", "idle", "--json", "--carry"], &SHORT[..6], &["--clients", "20"]].concat();
    let output = rig(&idle);
    let after_a_request = &results(&output).runs[0].outcome;
    assert_eq!((after_a_request.succeeded, after_a_request.failed()), (20, 0), "{output:?}");
    let bytes = ["--carry", "--protocol", "raw", "--size", "65536", "--clients", "20", "--waves", "2"];
    let output = rig(&[&["run", "waves", "--json"], &SHORT[..6], &bytes].concat());
    let results = results(&output);
    let names: Vec<&str> = results.runs.iter().map(|run| &*run.name).collect();
    assert_eq!(names, ["wave 1", "wave 2", "after"], "{output:?}");
    let cost = |at: usize| results.runs[at].outcome.cost.clone().unwrap();
    for wave in 0..2 {
        assert_eq!((results.runs[wave].outcome.succeeded, results.runs[wave].outcome.failed()), (20, 0));
        let (before, standing, next) =
            (cost(wave).fds_before, cost(wave).fds_after, cost(wave + 1).fds_before);
        assert!(standing >= before + 40, "a socket to each side: {before} {standing}");
        assert!(next < before + 20, "closed before the next one begins: {before} {standing} {next}");
    }
    assert!(results.runs[2].outcome.notes.iter().any(|note| note.starts_with("resident before each wave")));
}

#[test]
fn changes_beneath_the_load_are_made_and_fail_nothing() {
    for (question, word) in [("rotation", "certificates replaced"), ("churn", "policies of 10000 rules")] {
        let output =
            rig(&["run", question, "--json", "--duration", "4s", "--deadline", "20s", "--rate", "60"]);
        assert!(output.status.success(), "{output:?}");
        let results = results(&output);
        let changed = &results.runs[1].outcome;
        assert!(results.runs.iter().all(|run| run.outcome.succeeded > 0 && run.outcome.failed() == 0));
        let note = changed.notes.iter().find(|note| note.contains(word)).unwrap();
        assert!(!note.starts_with("0 "), "{note}");
        assert!(changed.notes.iter().any(|note| note.contains("÷ quiet")), "{:?}", changed.notes);
    }
    let output = rig(&["run", "churn", "--target", "127.0.0.1:1", "--plain"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn tickets_are_used_where_there_are_some_and_missed_where_not() {
    let dir = Directory::new().unwrap();
    let pki = Pki::new(dir.path());
    let ask = |target: &str| {
        let files =
            ["ca.pem", "ca-client.pem", "ca-client.key"].map(|f| pki.path(f).to_str().unwrap().to_owned());
        let args = [
            "run",
            "resume",
            "--json",
            "--target",
            target,
            "--server-name",
            "server.test",
            "--ca",
            &files[0],
        ];
        rig(&[&args[..], &["--cert", &files[1], "--key", &files[2]], &SHORT].concat())
    };
    let (_with, address) = openssl(&pki, &[]);
    let output = ask(&address.to_string());
    let resumed = results(&output);
    assert!(output.status.success(), "{output:?}");
    assert!(resumed.runs[0].outcome.resumed > 0, "{:?}", resumed.runs[0].outcome);
    let (_without, address) = nginx(&pki);
    let output = ask(&address.to_string());
    assert_eq!(output.status.code(), Some(1), "a question without an answer");
    let full = results(&output);
    assert_eq!(full.runs[0].outcome.resumed, 0);
    assert!(full.runs[0].outcome.notes.iter().any(|note| note.contains("gives no tickets")));
}

#[test]
fn mistakes_are_told_and_nothing_hostile_reaches_the_page() {
    for (args, code, word) in [
        (&["run", "nothing"][..], 2, "nothing"),
        (&["run", "handshake", "--target", "127.0.0.1:1"], 2, "--ca"),
        (&["run", "requests", "--target", "127.0.0.1:1", "--plain", "--rate", "0"], 2, "--rate"),
        (&["run", "requests", "--target", "127.0.0.1:1", "--plain", "--path", "x"], 2, "--path"),
        (&["run", "requests", "--target", "127.0.0.1:1", "--plain", "--carry"], 2, "--carry"),
        (&["run", "idle", "--carry", "--protocol", "raw"], 2, "--size"),
        (&["run", "idle", "--target", "127.0.0.1:1", "--plain", "--server-cpus", "0"], 2, "--server-cpus"),
        (&["run", "handshake", "--target", "127.0.0.1:1", "--ca", "/missing.pem"], 1, "/missing.pem"),
        (&["run", "requests", "--target", "nowhere", "--plain"], 1, "nowhere"),
        (&["report", "/missing.json", "--html", "/dev/null"], 1, "/missing.json"),
    ] {
        let output = rig(args);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {told}");
        assert!(told.contains(word), "{args:?}: {told}");
    }
    let dir = Directory::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let refused =
        rig(&[&["run", "requests", "--plain", "--target", "127.0.0.1:1", "--json"], &SHORT[..]].concat());
    assert_eq!(refused.status.code(), Some(1));
    let mut hostile: serde_json::Value = serde_json::from_slice(&refused.stdout).unwrap();
    const EVIL: &str = "\"'></svg><script>alert(1)</script><img src=x onerror=alert(1)>";
    hostile["command"] = serde_json::json!([EVIL]);
    hostile["rig"] = EVIL.into();
    hostile["runs"][0]["name"] = EVIL.into();
    let outcome = &mut hostile["runs"][0]["outcome"];
    outcome["examples"]["refused"] = EVIL.into();
    outcome["negotiated"]["suite"] = EVIL.into();
    outcome["notes"] = serde_json::json!([EVIL]);
    outcome["rate"] = 1e308.into();
    outcome["latency"]["curve"] = serde_json::json!([[1e300, -1e300], [-5, 1e308]]);
    fs::write(path("a.json"), hostile.to_string()).unwrap();
    fs::write(path("b.json"), &refused.stdout).unwrap();
    let output = rig(&["report", &path("a.json"), &path("b.json"), "--html", &path("out.html")]);
    assert!(output.status.success(), "{output:?}");
    let html = fs::read_to_string(path("out.html")).unwrap();
    assert!(html.contains("&lt;script&gt;"), "it is shown as text");
    for markup in ["<script", "<img", "onerror=alert(1)>"] {
        assert!(!html.contains(markup), "{markup}");
    }
    hostile["format"] = 99.into();
    fs::write(path("a.json"), hostile.to_string()).unwrap();
    let output = rig(&["report", &path("a.json"), "--html", &path("out.html")]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("form 99"), "{output:?}");
}
