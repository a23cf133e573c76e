//! HAProxy: one process, one thread.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::{Missing, Mode, SERVER, Side, Stand, program as find, said};

pub(super) fn program() -> Result<PathBuf, Missing> {
    find("haproxy", "apt-get install haproxy")
}

pub(super) fn version() -> String {
    program().map(|p| said(Command::new(p).arg("-v"))).unwrap_or_default()
}

pub(super) fn command(stand: &Stand<'_>) -> Result<Command> {
    let file = stand.file("haproxy.cfg", &config(stand))?;
    let mut command = Command::new(program()?);
    command.args(["-db", "-f"]).arg(file);
    Ok(command)
}

/// Connections: each takes two descriptors, and many a shell allows 20,000.
const MAX: usize = 8000;

fn config(stand: &Stand<'_>) -> String {
    let fair = stand.setting.is_fair();
    let path = |name: &str| stand.pki.path(name).display().to_string();
    let ca = path("ca.pem");
    let is_http = stand.setting.mode == Mode::Http;
    let mode = if is_http { "http" } else { "tcp" };
    let suites = if fair { " ciphersuites TLS_AES_128_GCM_SHA256" } else { "" };
    // Its cache of sessions would serve resumption by id, which TLS 1.3 does with tickets.
    let global = if fair { "  tune.ssl.cachesize 0\n" } else { "" };
    let (bind, server) = match stand.side {
        Side::Server => {
            let alpn = if is_http { " alpn h2,http/1.1" } else { "" };
            let more = if fair { " curves X25519 no-tls-tickets" } else { "" };
            let bind = format!(
                " ssl crt {} ca-file {ca} verify required ssl-min-ver TLSv1.3{suites}{more}{alpn}",
                path("server.pem")
            );
            (bind, stand.setting.app.to_string())
        }
        Side::Client { to } => {
            let more = if fair { " no-tls-tickets no-ssl-reuse" } else { "" };
            let alpn = if is_http && stand.setting.http2_between { " alpn h2" } else { "" };
            let server = format!(
                "{to} ssl crt {} ca-file {ca} verify required verifyhost {SERVER} sni str({SERVER}) ssl-min-ver TLSv1.3{suites}{more}{alpn}",
                path("client.pem")
            );
            (String::new(), server)
        }
    };
    format!(
        "global\n  nbthread 1\n  maxconn {MAX}\n{global}\
         defaults\n  mode {mode}\n  timeout connect 10s\n  timeout client 600s\n  timeout server 600s\n\
         frontend front\n  bind {}{bind}\n  default_backend behind\n\
         backend behind\n  server app {server}\n",
        stand.listen
    )
}
