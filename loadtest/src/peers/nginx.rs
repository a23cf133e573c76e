//! nginx: one process that is master and worker at once.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::{Missing, Mode, SERVER, Side, Stand, program as find};

const INSTALL: &str = "apt-get install nginx libnginx-mod-stream";
/// Where Debian keeps what it builds apart.
const STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

pub(super) fn program(mode: Mode) -> Result<PathBuf, Missing> {
    let program = find("nginx", INSTALL)?;
    if mode == Mode::Tcp && !Path::new(STREAM).is_file() {
        return Err(Missing { what: "nginx's stream module".to_owned(), install: INSTALL });
    }
    Ok(program)
}

pub(super) fn command(stand: &Stand<'_>) -> Result<Command> {
    let file = stand.file("nginx.conf", &config(stand))?;
    let mut command = Command::new(program(stand.setting.mode)?);
    command.arg("-c").arg(file).arg("-p").arg(stand.dir).args(["-e", "stderr"]);
    Ok(command)
}

fn config(stand: &Stand<'_>) -> String {
    let (dir, listen, fair) = (stand.dir.display(), stand.listen, stand.setting.is_fair());
    let is_http = stand.setting.mode == Mode::Http;
    let name = stand.side.name();
    let (to, out, tls) = match stand.side {
        Side::Server => (stand.setting.app, "", server_tls(stand)),
        Side::Client { to } => (to, "on", client_tls(stand)),
    };
    let load = if is_http { String::new() } else { format!("load_module {STREAM};\n") };
    let main = format!(
        "{load}daemon off;\nmaster_process off;\npid {dir}/{name}.pid;\nerror_log stderr warn;\nworker_rlimit_nofile 65536;\n\
         events {{ worker_connections 32768; }}\n"
    );
    if !is_http {
        let listen = if out.is_empty() { format!("{listen} ssl") } else { listen.to_string() };
        let ssl = if out.is_empty() { "" } else { "proxy_ssl on; " };
        return format!("{main}stream {{ server {{ listen {listen}; proxy_pass {to}; {ssl}{tls} }} }}\n");
    }
    let log = match fair {
        true => "access_log off;".to_owned(),
        false => format!("access_log {dir}/{name}-access.log;"),
    };
    let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {dir}/{name}-{kind}; "))
        .collect();
    let (listen, scheme) = match stand.side {
        Side::Server => (format!("{listen} ssl http2"), "http"),
        // Prior knowledge of HTTP/2 on a plain port would leave HTTP/1 out.
        Side::Client { .. } => (listen.to_string(), "https"),
    };
    // Connections are kept on both sides: it does not do so by itself, and nobody who measures leaves it at that.
    format!(
        "{main}http {{ {temp}{log} keepalive_requests 1000000; \
         upstream behind {{ server {to}; keepalive 256; keepalive_requests 1000000; }} \
         server {{ listen {listen}; {tls} location / {{ proxy_pass {scheme}://behind; proxy_http_version 1.1; \
         proxy_set_header Connection \"\"; proxy_set_header Host $host; }} }} }}\n"
    )
}

fn server_tls(stand: &Stand<'_>) -> String {
    let path = |name: &str| stand.pki.path(name).display().to_string();
    let fair = match stand.setting.is_fair() {
        true => {
            "ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256; ssl_ecdh_curve X25519; \
             ssl_session_tickets off; ssl_session_cache off; "
        }
        false => "",
    };
    format!(
        "ssl_certificate {}; ssl_certificate_key {}; ssl_client_certificate {}; ssl_verify_client on; \
         ssl_protocols TLSv1.3; {fair}",
        path("server.crt"),
        path("server.key"),
        path("ca.pem")
    )
}

fn client_tls(stand: &Stand<'_>) -> String {
    let path = |name: &str| stand.pki.path(name).display().to_string();
    let fair = match stand.setting.is_fair() {
        true => {
            "proxy_ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256; proxy_ssl_conf_command Groups X25519; \
             proxy_ssl_session_reuse off; "
        }
        false => "",
    };
    format!(
        "proxy_ssl_certificate {}; proxy_ssl_certificate_key {}; proxy_ssl_trusted_certificate {}; \
         proxy_ssl_verify on; proxy_ssl_name {SERVER}; proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.3; {fair}",
        path("client.crt"),
        path("client.key"),
        path("ca.pem")
    )
}
