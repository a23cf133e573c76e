//! The README's first example does what it says: its commands are taken from the page and run, with this machine's
//! addresses in place of the example's.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use postern_loadtest::app::App;
use postern_loadtest::mesh::{Binaries, Directory, free_port};

/// The commands of the console blocks between two headings, each with its here-document.
fn commands(page: &str, from: &str, to: &str) -> Vec<String> {
    let (_, rest) = page.split_once(from).unwrap();
    let (section, _) = rest.split_once(to).unwrap();
    let mut commands: Vec<String> = Vec::new();
    let mut document = None;
    for block in section.split("```console\n").skip(1).map(|b| b.split_once("```").unwrap().0) {
        for line in block.lines() {
            if let Some(end) = &document {
                let last = commands.last_mut().unwrap();
                last.push('\n');
                last.push_str(line);
                if line == *end {
                    document = None;
                }
            } else if let Some(command) = line.strip_prefix("$ ") {
                document = command.split_once("<<'").map(|(_, e)| e.trim_end_matches('\'').to_owned());
                commands.push(command.to_owned());
            }
        }
    }
    commands
}

/// The commands as one script: what runs on is put into the background and waited for by what it says.
fn script(commands: &[String]) -> String {
    let mut script = "set -eu\ntrap 'kill $(cat pids)' EXIT\n".to_owned();
    for (number, command) in commands.iter().enumerate() {
        let endless = command.starts_with("postern serve") || command.starts_with("postern-proxy");
        if endless {
            let command = command.trim_end_matches('&').trim_end();
            let _ = writeln!(
                script,
                "{command} --metrics 127.0.0.1:0 >{number}.out 2>{number}.err & echo $! >>pids\n\
                 for i in $(seq 300); do grep -q ready {number}.out && break; sleep 0.1; done\n\
                 grep ready {number}.out || {{ cat {number}.err >&2; exit 1; }}"
            );
        } else {
            let _ = writeln!(script, "{command}");
        }
    }
    script
}

#[test]
fn the_readmes_example_in_front_of_nginx_works_as_it_is_printed() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md")).unwrap();
    let commands = commands(&page, "## In front of your own program: nginx", "## … and redis");
    assert!(commands.len() >= 9, "the example has moved: {commands:#?}");
    let (app, dir) = (App::http("hello from the shop").unwrap(), Directory::new().unwrap());
    let [control, sidecar, local] = std::array::from_fn(|_| free_port().unwrap().port());
    let here = script(&commands)
        .replace("--advertise control.corp.example:7443", &format!("--listen 127.0.0.1:{control}"))
        .replace("10.0.0.7:15006", &format!("127.0.0.1:{sidecar}"))
        .replace("0.0.0.0:15006=127.0.0.1:8080", &format!("127.0.0.1:{sidecar}={}", app.address()))
        .replace("127.0.0.1:9001", &format!("127.0.0.1:{local}"));
    let path = format!("{}:{}", Binaries::build().unwrap().dir().display(), std::env::var("PATH").unwrap());
    let output =
        Command::new("bash").args(["-c", &here]).current_dir(dir.path()).env("PATH", path).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{here}\n── said\n{out}\n{err}");
    assert!(out.trim_end().ends_with("hello from the shop"), "{out}\n{err}");
    assert!(
        out.contains(
            "ready · spiffe://corp.example/ns/shop/sa/payments · expires in 60 min, renews in about 27 min"
        ),
        "{out}"
    );
}
