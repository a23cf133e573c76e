//! A browser at the gateway: Chromium, with a CA in its own store, sees a certificate that it believes for each host.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::programs::{program, run};

use super::web::Stage;

/// What Chromium makes of `https://HOST/`: the page, and what it says on standard error. Its store of CAs lies in `home`.
fn browse(home: &Path, stage: &Stage, host: &str) -> String {
    let edge = stage.edge();
    let mut chromium = Command::new("timeout");
    chromium.arg("60").arg(program("chromium", "chromium"));
    // As root there is no sandbox to be had; nothing but this test's own pages is shown.
    chromium.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]);
    chromium.args(["--no-first-run", "--disable-background-networking", "--disable-component-update"]);
    chromium.arg(format!("--host-resolver-rules=MAP {host} {edge}, MAP * ~NOTFOUND"));
    chromium.arg(format!("--user-data-dir={}", home.join(format!("profile-{host}")).display()));
    let shown =
        chromium.arg(format!("https://{host}/")).env("HOME", home).stdin(Stdio::null()).output().unwrap();
    String::from_utf8_lossy(&shown.stdout).into_owned() + &String::from_utf8_lossy(&shown.stderr)
}

#[test]
fn chromium_believes_each_host_by_its_own_certificate() {
    let stage = Stage::new("");
    let home = stage.dir().join("home");
    let store = home.join(".pki/nssdb");
    std::fs::create_dir_all(&store).unwrap();
    let store = format!("sql:{}", store.display());
    let certutil = || {
        let mut certutil = Command::new(program("certutil", "libnss3-tools"));
        // It would ask for a password for ever.
        certutil.stdin(Stdio::null());
        certutil
    };
    run(certutil().args(["-N", "--empty-password", "-d", &store]));
    let stranger = browse(&home, &stage, "a.example");
    assert!(stranger.contains("ERR_CERT_AUTHORITY_INVALID"), "before its CA is known: {stranger}");
    run(certutil().args(["-A", "-t", "C,,", "-n", "servers", "-d", &store, "-i", stage.trust()]));
    for host in ["a.example", "x.w.example", "b.example"] {
        let shown = browse(&home, &stage, host);
        assert!(shown.contains("hello"), "{host}: {shown}");
    }
    // Which of several errors it names depends on whether it still held the socket when the refusal came.
    let shown = browse(&home, &stage, "c.example");
    assert!(shown.contains("Page load failed") && !shown.contains("hello"), "it has no certificate: {shown}");
    stage.wait_for_failures("no_certificate");
}
