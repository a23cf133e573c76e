//! Backup and restore: nothing goes backwards, nothing spent can be spent again, whoever had an identity keeps it.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::Arc;

use crate::harness::{Connection, Control, Keys, command, enrolled, failed};

fn counter(control: &Control, name: &str) -> i64 {
    let output = Command::new("sqlite3")
        .args(["-cmd", ".timeout 20000"])
        .arg(control.data().join("postern.db"))
        .arg(format!("SELECT value FROM counters WHERE name = '{name}'"))
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn a_restored_control_plane_goes_on_and_nothing_goes_backwards() {
    let control = Control::start();
    let (spent, svid) = enrolled(&control, "/a", &[]).await;
    let open = control.token("/b", &[]);
    let file = control.dir().path().join("one.backup");
    let path = file.to_str().unwrap();
    let manifest = control.json(&["backup", path, "--with-keys"]);
    assert_eq!(manifest["with_keys"], true);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    failed(&control.cli(&["backup", path]), 1, "exists");

    // What happens after the backup is lost, but must not come back to life.
    Connection::to(&control, &open, None).await.enroll(&open, &Keys::new()).await.unwrap();
    for name in ["x", "y", "z"] {
        let id = format!("spiffe://corp.example/{name}");
        control.json(&["service", "apply", "--name", name, "--identity", &id]);
    }
    let before = (counter(&control, "generation"), counter(&control, "bundle"));

    let dir = Arc::new(tempfile::tempdir().unwrap());
    let restored = command(dir.path()).args(["restore", path]).output().unwrap();
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    let pin = control.pin().to_string();
    drop(control);
    let control = Control::start_in(dir, &[]);
    assert_eq!(control.pin().to_string(), pin);
    assert!(counter(&control, "generation") > before.0 && counter(&control, "bundle") > before.1);
    for mut token in [spent, open] {
        token.address = control.listen.to_string();
        let refused = Connection::to(&control, &token, None).await.enroll(&token, &Keys::new()).await;
        refused.unwrap_err();
    }
    assert_eq!(control.refusals("enroll"), ["token_used", "token_expired"]);
    // The lineage goes on.
    let join = postern_config::enroll::JoinString {
        address: control.listen.to_string(),
        ..control.token("/c", &[])
    };
    let keys = Keys::new();
    let renewed = Connection::to(&control, &join, Some(&svid)).await;
    let mut client = renewed.client;
    client
        .renew(postern_config::wire::v1::RenewRequest { csr: keys.csr.clone(), ..Default::default() })
        .await
        .unwrap();
    let report = control.json(&["audit", "verify"]);
    assert_eq!(report["whole"], true, "{report}");
    let records = control.json(&["audit", "--last", "1000"]);
    let chains: std::collections::BTreeSet<_> =
        records.as_array().unwrap().iter().map(|r| r["chain"].as_str().unwrap()).collect();
    assert_eq!(chains.len(), 2, "what comes after a restore is another chain");
}

#[test]
fn a_backup_holds_no_key_unless_asked_and_a_damaged_one_restores_nothing() {
    let control = Control::start();
    let file = control.dir().path().join("two.backup");
    control.json(&["backup", file.to_str().unwrap()]);
    let mut bytes = std::fs::read(&file).unwrap();
    assert!(!bytes.windows(11).any(|w| w == b"PRIVATE KEY"));
    let left = std::fs::read_dir(control.data()).unwrap();
    let left: Vec<_> = left.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!left.iter().any(|n| n.starts_with("snapshot-")), "{left:?}");

    let dir = tempfile::tempdir().unwrap();
    let restore = |file: &str| command(dir.path()).args(["restore", file]).output().unwrap();
    failed(&control.cli(&["restore", file.to_str().unwrap()]), 1, "is not empty");
    let bad = dir.path().join("bad");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&bad, &bytes).unwrap();
    failed(&restore("bad"), 1, "postern.db is damaged or cut off; nothing was restored");
    bytes[middle] ^= 1;
    std::fs::write(&bad, &bytes[..middle]).unwrap();
    failed(&restore("bad"), 1, "damaged or cut off");
    bytes.push(0);
    std::fs::write(&bad, &bytes).unwrap();
    failed(&restore("bad"), 1, "something stands behind its end");
    std::fs::write(&bad, b"hello").unwrap();
    failed(&restore("bad"), 1, "no backup of postern");
    assert!(!dir.path().join("pki").exists());
}
