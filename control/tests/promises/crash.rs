//! A process that dies loses nothing that it answered; one that should not start says why.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::sync::Arc;

use crate::harness::{Connection, Control, Keys, TD, command, enrolled, serve};

#[tokio::test]
async fn a_token_spent_before_a_sigkill_stays_spent() {
    let control = Control::start();
    let join = control.token("/a", &[]);
    let keys = Keys::new();
    let first = Connection::to(&control, &join, None).await.enroll(&join, &keys).await.unwrap();
    let control = control.restart();
    let refused = Connection::to(&control, &join, None).await.enroll(&join, &Keys::new()).await.unwrap_err();
    assert!(refused.message().contains("join token refused"));
    let again = Connection::to(&control, &join, None).await.enroll(&join, &keys).await.unwrap();
    // Its renewal window is of now; the certificate is the same.
    let chain = |svid: Option<postern_config::wire::v1::Svid>| svid.unwrap().chain;
    assert_eq!(chain(first.svid), chain(again.svid), "and the key that spent it still gets its certificate");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sigkill_in_the_middle_of_redemptions_leaves_each_token_spent_at_most_once() {
    let mut control = Control::start();
    let tokens: Vec<_> = (0..16).map(|n| control.token(&format!("/w{n}"), &[])).collect();
    let mut attempts = tokio::task::JoinSet::new();
    let (answered, mut any) = tokio::sync::mpsc::channel(16);
    for (at, join) in tokens.iter().cloned().enumerate() {
        let (listen, answered) = (control.listen, answered.clone());
        attempts.spawn(async move {
            let mut connection = Connection::open(listen, join.pins[0], None).await.ok()?;
            let got = connection.enroll(&join, &Keys::new()).await.ok()?;
            let _ = answered.send(()).await;
            Some((at, got.svid?.chain.remove(0)))
        });
    }
    any.recv().await.unwrap();
    control.kill();
    let won: Vec<_> = attempts.join_all().await.into_iter().flatten().collect();
    assert!(!won.is_empty());
    let control = control.restart();
    for (at, _) in &won {
        let join = &tokens[*at];
        let second = Connection::to(&control, join, None).await.enroll(join, &Keys::new()).await;
        assert!(second.is_err(), "token {at} was answered before the kill and redeemed again after it");
    }
}

#[tokio::test]
async fn identities_services_policies_and_generations_survive() {
    let control = Control::start();
    enrolled(&control, "/a", &[]).await;
    control.json(&["service", "apply", "--name", "s", "--identity", &format!("spiffe://{TD}/a")]);
    let (status, records) = (control.json(&["status"]), control.json(&["audit"]));
    let control = control.restart();
    let after = control.json(&["status"]);
    for field in ["trust_domain", "root", "generation", "identities", "issuing"] {
        assert_eq!(status[field], after[field], "{field}");
    }
    assert_eq!(records, control.json(&["audit"]));
}

#[test]
fn an_exposed_key_is_refused_with_its_cure() {
    let mut control = Control::start();
    control.kill();
    for name in ["root.key", "issuing.key"] {
        let path = control.data().join("ca").join(name);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let output = serve(control.data().parent().unwrap(), &[]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1));
        assert!(
            said.contains("mode 0644") && said.contains("run: chmod 0600") && said.contains(name),
            "{said}"
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let control = control.restart();
    assert_eq!(control.ready["trust_domain"], TD);
}

#[test]
fn a_start_that_makes_no_sense_says_why() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let fails = |more: &[&str], why: &str| {
        let output = serve(dir.path(), more).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(why), "{said}");
    };
    fails(&[], "--trust-domain");
    let _running = Control::start_in(Arc::clone(&dir), &["--trust-domain", TD]);
    fails(&[], "another `postern serve`");
    drop(_running);
    fails(&["--trust-domain", "other.example"], "belongs to the trust domain corp.example");
}

#[test]
fn a_process_whose_log_nobody_reads_works_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let more = ["--trust-domain", TD];
    let mut child = serve(dir.path(), &more)
        .env("POSTERN_LOG_LEVEL", "info")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    drop(child.stderr.take());
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let create = ["token", "create", "--id", "spiffe://corp.example/a"];
    assert!(
        command(dir.path()).args(create).output().unwrap().status.success(),
        "and it logs an audit record"
    );
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!dir.path().join("pki/admin.sock").exists(), "the socket is gone with it");
}
