//! stunnel: bytes alone, a thread for each connection.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::{Missing, SERVER, Side, Stand, program as find};

pub(super) fn program() -> Result<PathBuf, Missing> {
    find("stunnel4", "apt-get install stunnel4").or_else(|missing| find("stunnel", missing.install))
}

pub(super) fn version() -> String {
    let Ok(program) = program() else { return String::new() };
    let output = Command::new(program).arg("-version").output();
    let text = output.map(|o| [o.stdout, o.stderr].concat()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines().find(|l| l.starts_with("stunnel ")).unwrap_or_default().to_owned()
}

pub(super) fn command(stand: &Stand<'_>) -> Result<Command> {
    let file = stand.file("stunnel.conf", &config(stand))?;
    let mut command = Command::new(program()?);
    command.arg(file);
    Ok(command)
}

fn config(stand: &Stand<'_>) -> String {
    let path = |name: &str| stand.pki.path(name).display().to_string();
    let (own, to, more) = match stand.side {
        Side::Server => ("server", stand.setting.app, String::new()),
        Side::Client { to } => {
            ("client", to, format!("client = yes\ncheckHost = {SERVER}\nsni = {SERVER}\n"))
        }
    };
    let fair = match stand.setting.is_fair() {
        true => {
            "ciphersuites = TLS_AES_128_GCM_SHA256\ncurves = X25519\noptions = NO_TICKET\nsessionResume = no\n"
        }
        false => "",
    };
    format!(
        "foreground = quiet\nsyslog = no\ndebug = warning\npid =\n[front]\naccept = {}\nconnect = {to}\ncert = {}\nkey = {}\nCAfile = {}\n\
         verifyChain = yes\nsslVersionMin = TLSv1.3\n{more}{fair}",
        stand.listen,
        path(&format!("{own}.crt")),
        path(&format!("{own}.key")),
        path("ca.pem")
    )
}
