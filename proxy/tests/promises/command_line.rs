//! Mistakes of whoever starts the proxy: where they are, what was meant, and an exit code that says whose fault it is.

use crate::support::mesh::Directory;
use crate::support::process::{command, finish};

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = command();
    command.args(arguments);
    finish(command)
}

#[test]
fn a_join_string_never_stands_on_the_command_line() {
    let secret = "postern-join:1,127.0.0.1:8443,corp.example,SECRETSECRET";
    let (code, out, err) = run(&["--join", secret, "--inbound", "127.0.0.1:0=127.0.0.1:9"]);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(err.contains("never stands on a command line") && err.contains("@FILE"), "{err}");
}

#[test]
fn a_mistake_in_the_file_is_shown_in_its_place() {
    let dir = Directory::new();
    let path = dir.write("proxy.yaml", "inbound:\n  - listen: 127.0.0.1:0\n    ap: 127.0.0.1:9\n");
    let path = path.to_str().unwrap();
    for arguments in [&["check", "-f", path][..], &["--config", path]] {
        let (code, out, err) = run(arguments);
        assert_eq!((code, out.as_str()), (Some(1), ""), "{err}");
        assert!(err.starts_with(&format!("{path}:3:5")), "{err}");
        assert!(err.contains("did you mean `app`"), "{err}");
    }
    let (code, out, _) = run(&["check", "-f", path, "--output", "json"]);
    let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &answer["ok"]), (Some(1), &false.into()));
    assert!(answer["error"].as_str().unwrap().contains(":3:5"), "{out}");
}

#[test]
fn a_good_file_is_said_to_be_good() {
    let dir = Directory::new();
    let path = dir.write("proxy.yaml", "inbound:\n  - { listen: 127.0.0.1:0, app: 127.0.0.1:9 }\n");
    let (code, out, err) = run(&["check", "-f", path.to_str().unwrap()]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.ends_with(": ok\n"), "{out}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    let wrong: [(&[&str], i32, &str); 6] = [
        (&["--inbound", "nonsense"], 2, "LISTEN=APP"),
        (&["--outbound", "127.0.0.1:0=127.0.0.1:9,spiffe://Corp/x"], 2, "SPIFFE ID"),
        (&["--no-such-flag"], 2, "--no-such-flag"),
        (&[], 1, "nothing to do"),
        (&["--config", "/no/such/file.yaml"], 1, "/no/such/file.yaml"),
        (&["--inbound", "127.0.0.1:0=app"], 1, "host:port"),
    ];
    for (arguments, expected, says) in wrong {
        let (code, out, err) = run(arguments);
        assert_eq!((code, out.as_str()), (Some(expected), ""), "{arguments:?}: {err}");
        assert!(err.contains(says), "{arguments:?}: {err}");
    }
}

#[test]
fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let inbound = format!("{address}=127.0.0.1:9");
    let (code, _, err) = run(&["--inbound", &inbound, "--metrics", "127.0.0.1:0"]);
    assert_eq!(code, Some(1));
    assert!(err.contains(&address) && err.contains("in use"), "{err}");
}
