//! Keys that never lie in a file: a real PKCS#11 token (SoftHSM2) and a real Vault (OpenBao), also when they go away.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use crate::harness::{Control, LONG};

mod token;
mod vault;

/// Runs a program that has to succeed: what it prints.
pub(crate) fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|e| panic!("{command:?}: {e}; see PACKAGES in .ci/run"));
    let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {out}{err}");
    out.into_owned()
}

/// Writes a file that nobody else may read.
fn secret(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// Waits until `/readyz` answers with this status, and says what it said.
async fn readiness(control: &Control, wanted: u16) -> String {
    let asked = async {
        loop {
            let (status, said) = control.probe("/readyz").await;
            if status == wanted {
                return said;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LONG, asked).await.expect("readiness does not change")
}

/// No private key lies anywhere below a directory.
fn holds_no_key(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            holds_no_key(&path);
        } else if let Ok(content) = std::fs::read(&path) {
            let found = content.windows(11).any(|w| w == b"PRIVATE KEY");
            assert!(!found, "{} holds a private key", path.display());
        }
    }
}
