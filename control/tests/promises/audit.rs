//! The audit record: what was changed behind its back is found, and nothing secret stands in it.

use std::process::Command;
use std::time::Instant;

use serde_json::Value;

use crate::harness::{Connection, Control, Keys, LONG, TD, enrolled};

/// Runs statements on the store's file as somebody with a shell would.
fn sqlite(control: &Control, statements: &str) -> std::process::Output {
    let mut command = Command::new("sqlite3");
    command.args(["-bail", "-cmd", ".timeout 20000"]).arg(control.data().join("postern.db")).arg(statements);
    command.output().unwrap()
}

/// The same, triggers and all.
fn tamper(control: &Control, statements: &str) {
    let drops = "DROP TRIGGER IF EXISTS audit_no_update; DROP TRIGGER IF EXISTS audit_no_delete;";
    let output = sqlite(control, &format!("{drops}{statements}"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A control plane with some records, and checkpoints in a directory of their own.
fn busy() -> (Control, tempfile::TempDir) {
    let kept = tempfile::tempdir().unwrap();
    let control =
        Control::configured(&format!("audit: {{ checkpoints: {}, period: 1s }}\n", kept.path().display()));
    for name in ["a", "b", "c", "d", "e", "f"] {
        control.token(&format!("/{name}"), &[]);
    }
    seen(&control, &kept);
    (control, kept)
}

/// Waits until an exported checkpoint has seen the newest record.
#[expect(clippy::disallowed_methods, reason = "a test without a runtime that looks for a file")]
fn seen(control: &Control, kept: &tempfile::TempDir) {
    let newest = control.json(&["audit", "--last", "1"])[0]["hash"].as_str().unwrap().to_owned();
    let began = Instant::now();
    loop {
        let files = std::fs::read_dir(kept.path()).unwrap();
        let paths = files.map(|f| f.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "json"));
        if paths.into_iter().any(|p| std::fs::read_to_string(p).unwrap().contains(&newest)) {
            return;
        }
        assert!(began.elapsed() < LONG, "no checkpoint has seen the newest record");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

fn verify(control: &Control, more: &[&str]) -> (bool, Value) {
    let output = control.cli(&[&["audit", "verify", "--json"], more].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    let report = serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("no report: {text:?} {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.success(), report)
}

/// Whether the report has this finding at this position.
fn finds(report: &Value, kind: &str, seq: u64) -> bool {
    report["findings"].as_array().unwrap().iter().any(|f| f["kind"] == kind && f["seq"] == seq)
}

#[test]
fn an_untouched_record_is_whole_across_restarts_and_says_what_it_cannot_promise() {
    let (control, kept) = busy();
    let control = control.restart();
    let (whole, report) = verify(&control, &[]);
    assert!(whole, "{report}");
    assert!(
        report["records"].as_u64().unwrap() >= 7 && report["signatures"].as_u64().unwrap() >= 1,
        "{report}"
    );
    assert!(report["promises"].to_string().contains("truncation are not promised"), "{report}");
    let (whole, report) = verify(&control, &["--checkpoints", kept.path().to_str().unwrap()]);
    assert!(whole, "{report}");
    assert!(report["promises"].to_string().contains("truncation are found up to record"), "{report}");
    let key = control.json(&["audit", "--last", "1000"]);
    let key = key.as_array().unwrap().iter().find(|r| r["action"] == "audit key").unwrap()["subject"].clone();
    assert!(verify(&control, &["--key", key.as_str().unwrap()]).0);
    let (whole, report) = verify(&control, &["--key", &"0".repeat(64)]);
    assert!(!whole && report["findings"].to_string().contains("bad_signature"), "{report}");
}

#[test]
fn a_record_that_was_altered_is_found() {
    let (control, _kept) = busy();
    tamper(&control, "UPDATE audit SET actor = 'somebody else' WHERE seq = 3;");
    let (whole, report) = verify(&control, &[]);
    assert!(!whole && finds(&report, "altered", 3), "{report}");
    assert_eq!(report["findings"].as_array().unwrap().len(), 1, "{report}");
    // As little as a space in the detail.
    tamper(&control, "UPDATE audit SET detail = detail || ' ' WHERE seq = 5;");
    let (_, report) = verify(&control, &[]);
    assert!(finds(&report, "altered", 5), "{report}");
}

#[test]
fn records_that_were_removed_are_found() {
    let (control, _kept) = busy();
    tamper(&control, "DELETE FROM audit WHERE seq IN (3, 4);");
    let (whole, report) = verify(&control, &[]);
    assert!(!whole && finds(&report, "removed", 3), "{report}");
    assert!(report["findings"].to_string().contains("records 3 to 4 are missing"), "{report}");
    tamper(&control, "DELETE FROM audit WHERE seq = 1;");
    assert!(finds(&verify(&control, &[]).1, "removed", 1));
}

#[test]
fn records_that_changed_places_are_found() {
    let (control, _kept) = busy();
    tamper(
        &control,
        "UPDATE audit SET seq = -3 WHERE seq = 3; UPDATE audit SET seq = 3 WHERE seq = 5; UPDATE audit SET seq = 5 WHERE seq = -3;",
    );
    let (whole, report) = verify(&control, &[]);
    assert!(!whole && finds(&report, "reordered", 3) && finds(&report, "reordered", 5), "{report}");
}

#[test]
fn an_end_that_was_cut_off_is_found_by_exported_checkpoints_even_where_everything_beside_was_cut_as_well() {
    let (control, kept) = busy();
    let count = control.json(&["audit", "--last", "1000"]).as_array().unwrap().len() as u64;
    tamper(&control, &format!("DELETE FROM audit WHERE seq >= {};", count - 1));
    let (whole, report) = verify(&control, &[]);
    assert!(!whole && finds(&report, "truncated", count - 1), "{report}");
    // A thorough thief takes the store's own notes as well: then only what was exported tells.
    tamper(
        &control,
        &format!(
            "DROP TRIGGER checkpoints_no_delete; DELETE FROM audit_checkpoints;
             UPDATE audit_heads SET seq = {0}, hash = (SELECT hash FROM audit WHERE seq = {0});",
            count - 2
        ),
    );
    let (whole, report) = verify(&control, &[]);
    assert!(whole && report["promises"].to_string().contains("truncation are not promised"), "{report}");
    let (whole, report) = verify(&control, &["--checkpoints", kept.path().to_str().unwrap()]);
    assert!(!whole && finds(&report, "truncated", count - 1), "{report}");
}

#[test]
fn the_database_refuses_to_change_a_record() {
    let control = Control::start();
    for statement in ["UPDATE audit SET at = 0", "DELETE FROM audit", "DELETE FROM audit_checkpoints"] {
        let tried = sqlite(&control, statement);
        let said = String::from_utf8_lossy(&tried.stderr);
        assert!(said.contains("append-only"), "{statement}: {said}");
    }
}

#[test]
fn an_export_is_verified_without_a_control_plane() {
    let (mut control, kept) = busy();
    let exported = control.cli(&["audit", "export"]);
    assert!(exported.status.success());
    let text = String::from_utf8(exported.stdout).unwrap();
    control.kill();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("audit.jsonl");
    let path = file.to_str().unwrap();
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        verify(&control, &["--export", path, "--checkpoints", kept.path().to_str().unwrap()])
    };
    let (whole, report) = check(&text);
    assert!(whole && report["signatures"].as_u64().unwrap() >= 2, "{report}");
    let lines: Vec<&str> = text.lines().collect();
    let without: Vec<&str> = lines.iter().enumerate().filter(|(i, _)| *i != 2).map(|(_, l)| *l).collect();
    assert!(finds(&check(&without.join("\n")).1, "removed", 3));
    assert!(finds(&check(&text.replace("corp.example/c", "corp.example/x")).1, "altered", 7), "{text}");
    let mut swapped = lines.clone();
    swapped.swap(2, 3);
    assert!(check(&swapped.join("\n")).1["findings"].to_string().contains("reordered"));
}

#[tokio::test]
async fn secrets_stand_in_no_record_and_no_log_line() {
    let control = Control::configured("log: { level: debug }\n");
    let (join, svid) = enrolled(&control, "/a", &[]).await;
    let bad = control.token("/b", &[]);
    let forged = postern_config::enroll::JoinString { secret: join.secret.clone(), ..bad.clone() };
    Connection::to(&control, &forged, None).await.enroll(&forged, &Keys::new()).await.unwrap_err();
    let said = format!("{}{}", control.json(&["audit", "--last", "1000"]), control.log());
    assert!(said.contains(&join.token_id), "the run is on record");
    let text = join.reveal().to_string();
    let secret = text.split('.').nth(2).unwrap();
    let key = postern_control::digest::hex(svid.key.secret_pkcs8_der());
    let raw = postern_control::digest::hex(join.secret.as_slice());
    for hidden in [secret, &raw, &key, "PRIVATE KEY", "eyJ"] {
        assert!(!said.contains(hidden), "{hidden} is told");
    }
    for file in ["ca/root.key", "ca/issuing.key", "audit/checkpoint.key"] {
        let pem = std::fs::read_to_string(control.data().join(file)).unwrap();
        let line = pem.lines().nth(1).unwrap();
        assert!(!said.contains(line), "{file}");
    }
}

#[test]
fn tail_follows_and_the_api_answers_with_the_records_id() {
    use std::io::{BufRead as _, BufReader};
    let control = Control::start();
    let mut follower = crate::harness::command(control.dir().path())
        .args(["audit", "tail", "-f", "--last", "1", "--json"])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    control.token("/later", &[]);
    let next: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    follower.kill().unwrap();
    follower.wait().unwrap();
    assert_eq!(next["seq"].as_u64().unwrap(), first["seq"].as_u64().unwrap() + 1);
    assert_eq!(next["prev"], first["hash"]);
    assert_eq!(
        next["subject"].as_str().map(|s| s.contains(&format!("spiffe://{TD}/later"))),
        Some(true),
        "{next}"
    );
    assert_eq!(next["id"].as_str().unwrap().len(), 26);
}

#[tokio::test]
async fn an_export_for_syslog_has_one_line_a_record_and_no_secret() {
    let control = Control::start();
    let join = control.token("/a", &["--label", "team=\"]\\"]);
    let exported = control.cli(&["audit", "export", "--format", "syslog"]);
    assert!(exported.status.success(), "{exported:?}");
    let text = String::from_utf8(exported.stdout).unwrap();
    let records = control.json(&["audit", "--last", "1000"]);
    assert_eq!(text.lines().count(), records.as_array().unwrap().len());
    for (line, record) in text.lines().zip(records.as_array().unwrap()) {
        assert!(line.starts_with("<109>1 20"), "{line}");
        assert!(line.contains(&format!(r#" hash="{}"] {{"#, record["hash"].as_str().unwrap())), "{line}");
    }
    assert!(text.contains(&join.token_id));
    assert!(!text.contains(&*join.reveal()), "no secret");
}

#[tokio::test]
async fn a_record_that_cannot_be_written_is_no_readiness() {
    let control = Control::start();
    let sql = |statement: &str| {
        let mut command = Command::new("sqlite3");
        command.args(["-cmd", ".timeout 20000"]).arg(control.data().join("postern.db")).arg(statement);
        assert!(command.status().unwrap().success());
    };
    let readiness = async |wanted: u16| {
        let asked = async {
            loop {
                let (status, said) = control.probe("/readyz").await;
                if status == wanted {
                    return said;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LONG, asked).await.expect("readiness does not change")
    };
    assert_eq!(readiness(200).await, "ok\n");
    sql("CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'no room left'); END");
    let said = readiness(503).await;
    assert!(said.contains("audit: no record can be written") && said.contains("no room left"), "{said}");
    sql("DROP TRIGGER full");
    readiness(200).await;
}
