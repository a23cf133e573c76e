//! The operator's command: words, exit codes, and a door that only the operator can open.

use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::harness::{Control, TD, command, failed};

#[test]
fn the_socket_and_the_store_are_private() {
    let control = Control::start();
    let mode =
        |name: &str| std::fs::metadata(control.data().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(""), 0o700);
    assert_eq!(mode("ca"), 0o700);
    for file in ["admin.sock", "postern.db", "postern.db-wal", "lock", "ca/root.key", "ca/issuing.key"] {
        assert_eq!(mode(file), 0o600, "{file}");
    }
    assert!(std::fs::metadata(control.data().join("admin.sock")).unwrap().file_type().is_socket());
}

#[test]
fn a_data_directory_may_lie_deeper_than_a_sockets_address_is_long() {
    let deep = tempfile::Builder::new().prefix(&"d".repeat(120)).tempdir().unwrap();
    let control = Control::start_in(Arc::new(deep), &["--trust-domain", TD]);
    assert!(control.data().as_os_str().len() > 107);
    let output = control.cli(&["status"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_join_string_stands_alone_on_standard_output() {
    let control = Control::start();
    let output = control.cli(&["token", "create", "--id", "spiffe://corp.example/ns/shop/sa/payments"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let join: postern_config::enroll::JoinString = text.parse().unwrap();
    assert_eq!(text.lines().count(), 1);
    assert_eq!(join.address, control.listen.to_string());
    assert_eq!(join.pins[0].to_string(), control.ready["root"]);
    let secret = text.split('.').nth(2).unwrap();
    let stored = std::fs::read(control.data().join("postern.db-wal")).unwrap();
    let holds = |needle: &[u8]| stored.windows(needle.len()).any(|w| w == needle);
    assert!(holds(join.token_id.as_bytes()) && !holds(secret.as_bytes()) && !holds(join.secret.as_slice()));
}

#[test]
fn names_that_nobody_may_have_are_refused() {
    let control = Control::start();
    let create = |id: &str| control.cli(&["token", "create", "--id", id]);
    failed(
        &create("spiffe://corp.example/ns/shop/"),
        1,
        "error: not a SPIFFE ID: the path ends in `/`  (SPIFFE-ID §2.2)",
    );
    failed(&create("spiffe://corp.example/postern/control"), 1, "reserved");
    failed(&create("spiffe://other.example/a"), 1, "is not of this trust domain, which is corp.example");
    failed(&control.cli(&["token", "create"]), 2, "--id");
    failed(
        &control.cli(&["token", "create", "--id", "spiffe://corp.example/a", "--ttl", "8d"]),
        1,
        "between 1s and 7d",
    );
    failed(&control.cli(&["nonsense"]), 2, "nonsense");
}

#[test]
fn a_mistake_in_a_policy_applies_nothing() {
    let control = Control::start();
    let policy = |name: &str, block: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{ name: {name}, namespace: shop }}\n\
             spec:\n  rules:\n  - from: [ {{ source: {{ ipBlocks: [\"{block}\"] }} }} ]\n"
        )
    };
    let file = control.data().join("p.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, format!("{}---\n{}", policy("one", "10.0.0.0/8"), policy("two", "10.0.0.0/33")))
        .unwrap();
    let output = control.cli(&["policy", "apply", "-f", path]);
    failed(&output, 1, "p.yaml:13:");
    failed(&output, 1, "is not a CIDR block (prefix length goes to 32). Nothing was applied; generation ");
    assert_eq!(control.json(&["policy", "show"]), serde_json::json!([]));

    std::fs::write(&file, policy("one", "10.0.0.0/8")).unwrap();
    let generation = |answer: serde_json::Value| answer["generation"].as_u64().unwrap();
    let applied = generation(control.json(&["policy", "apply", "-f", path]));
    assert_eq!(control.json(&["policy", "show"])[0]["metadata"]["name"], "one");
    let (from, to) = ("spiffe://corp.example/a", "spiffe://corp.example/ns/shop/sa/b");
    let check = ["policy", "check", "-f", path, "--from", from, "--to", to, "--source-ip"];
    assert_eq!(control.json(&[&check[..], &["10.1.2.3"]].concat())["verdict"], "allow");
    assert_eq!(control.cli(&[&check[..], &["11.1.2.3"]].concat()).status.code(), Some(1));
    assert!(generation(control.json(&["policy", "delete", "shop/one"])) > applied);
    failed(&control.cli(&["policy", "delete", "shop/one"]), 1, "there is no policy shop/one");
}

#[test]
fn services_are_read_from_a_file_or_from_flags() {
    let control = Control::start();
    let file = control.data().join("s.yaml");
    let path = file.to_str().unwrap();
    std::fs::write(&file, "name: a\nidentity: spiffe://corp.example/a\n---\nname: b\nidentity: spiffe://corp.example/b\nendpoints: [10.0.0.7:15006]\n").unwrap();
    assert_eq!(control.json(&["service", "apply", "-f", path])["applied"], serde_json::json!(["a", "b"]));
    let id = format!("spiffe://{TD}/c");
    control.json(&["service", "apply", "--name", "c", "--identity", &id, "--endpoint", "db.example:5432"]);
    let names: Vec<_> =
        control.json(&["service", "list"]).as_array().unwrap().iter().map(|s| s["name"].clone()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    std::fs::write(&file, "name: d\nidentiy: spiffe://corp.example/a\n").unwrap();
    failed(&control.cli(&["service", "apply", "-f", path]), 1, "did you mean `identity`");
    failed(
        &control.cli(&["service", "apply", "--name", "c", "--identity", &id, "--endpoint", "nowhere"]),
        1,
        "host:port",
    );
}

#[test]
fn without_a_control_plane_the_command_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let output = command(dir.path()).args(["status", "--data", "./pki"]).output().unwrap();
    failed(&output, 1, "is `postern serve --data ./pki` running?");
}

#[test]
fn demo_hands_every_argument_to_its_sibling() {
    let dir = tempfile::tempdir().unwrap();
    let own = copy_of_the_binary(dir.path());
    let demo = || Command::new(&own).args(["demo", "--duration", "5s", "--json"]).output().unwrap();
    failed(&demo(), 1, "cargo build --release --workspace --bins");
    let sibling = dir.path().join("postern-loadtest");
    std::fs::write(&sibling, "#!/bin/sh\necho \"$@\"; exit 7\n").unwrap();
    std::fs::set_permissions(&sibling, Permissions::from_mode(0o755)).unwrap();
    let output = demo();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "demo --duration 5s --json\n");
    assert_eq!(output.status.code(), Some(7), "and its exit code is the sibling's");
}

#[test]
fn another_user_is_turned_away_even_where_the_modes_let_him_in() {
    use std::os::unix::process::CommandExt as _;
    if !nix::unistd::geteuid().is_root() {
        eprintln!("only root can ask as somebody else");
        return;
    }
    let control = Control::start();
    let public = tempfile::tempdir().unwrap();
    std::fs::set_permissions(public.path(), Permissions::from_mode(0o755)).unwrap();
    let binary = copy_of_the_binary(public.path());
    let ask = || {
        let mut command = Command::new(&binary);
        command
            .args(["status", "--data"])
            .arg(control.data())
            .current_dir("/")
            .env_clear()
            .uid(65534)
            .gid(65534);
        command.output().unwrap()
    };
    failed(&ask(), 1, "belongs to somebody else");
    let open = |path: &Path| std::fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    open(control.data().parent().unwrap());
    open(&control.data());
    open(&control.data().join("admin.sock"));
    failed(&ask(), 1, "hung up");
    assert!(control.cli(&["status"]).status.success());
}

#[test]
fn probes_and_metrics_are_served() {
    let control = Control::start();
    let address = control.ready["metrics"].as_str().unwrap();
    let get = |path: &str| {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    control.cli(&["token", "create", "--id", "spiffe://corp.example/a"]);
    assert!(get("/livez").starts_with("HTTP/1.1 200"));
    assert!(get("/readyz").starts_with("HTTP/1.1 200"));
    let metrics = get("/metrics");
    assert!(metrics.contains("\npostern_control_generation "), "{metrics}");
    assert!(metrics.trim_end().ends_with("# EOF"));
}

/// The binary in a directory of its own, so that no sibling and no closed directory above it matters.
fn copy_of_the_binary(dir: &Path) -> PathBuf {
    let copy = dir.join("postern");
    std::fs::copy(env!("CARGO_BIN_EXE_postern"), &copy).unwrap();
    copy
}
