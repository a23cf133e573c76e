//! `postern serve`: flags over environment over file, then the control plane itself.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use postern_config::file::control::{ControlConfig, ControlLogFormat, ControlMetricsListen, Off};
use postern_config::file::{self, Span};
use postern_config::id::TrustDomain;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{CliError, Common, output};
use crate::Ready;

/// Run the control plane
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  postern serve --data ./pki --trust-domain corp.example
  postern serve --config /etc/postern/control.yaml --log-format json")]
pub(super) struct Serve {
    /// Configuration file (YAML); flags and environment override it
    #[arg(long, env = "POSTERN_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Trust domain; needed on the first start, remembered afterwards
    #[arg(long, env = "POSTERN_TRUST_DOMAIN", value_name = "NAME")]
    trust_domain: Option<TrustDomain>,
    /// Where proxies connect [default: 0.0.0.0:7443]
    #[arg(long, env = "POSTERN_LISTEN", value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// What join strings carry [default: the listen address]
    #[arg(long, env = "POSTERN_ADVERTISE", value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Health and metrics, or `off` [default: 127.0.0.1:7020]
    #[arg(long, env = "POSTERN_METRICS", value_name = "IP:PORT|off", value_parser = metrics)]
    metrics: Option<ControlMetricsListen>,
    /// Lifetime of certificates where a proxy asks for none [default: 1h]
    #[arg(long, env = "POSTERN_SVID_TTL", value_name = "TIME")]
    svid_ttl: Option<Span>,
    /// Log lines for people or for machines [default: text]
    #[arg(long, env = "POSTERN_LOG_FORMAT", value_name = "text|json", value_parser = log_format)]
    log_format: Option<ControlLogFormat>,
    /// Log level or filter [default: info]
    #[arg(long, env = "POSTERN_LOG_LEVEL", value_name = "LEVEL")]
    log_level: Option<String>,
}

impl Serve {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        let is_json = common.is_json();
        let config = self.merge(common)?;
        crate::telemetry::log(&config.log).map_err(CliError::Failed)?;
        let shutdown = CancellationToken::new();
        stop_on_signal(shutdown.clone())?;
        let ready = |about: &Ready| announce(about, is_json);
        let waiting = |key: &str| ask(key, is_json);
        crate::run(config, shutdown, waiting, ready).await.map_err(|e| CliError::Failed(e.to_string()))
    }

    fn merge(self, common: &Common) -> Result<ControlConfig, CliError> {
        let mut config: ControlConfig = match &self.config {
            Some(path) => file::load(path)?,
            None => ControlConfig::default(),
        };
        set(&mut config.data, common.data.clone());
        set(&mut config.listen, self.listen);
        set(&mut config.metrics.listen, self.metrics);
        set(&mut config.svid.ttl, self.svid_ttl);
        set(&mut config.log.format, self.log_format);
        set(&mut config.log.level, self.log_level);
        config.trust_domain = self.trust_domain.or(config.trust_domain);
        config.advertise = self.advertise.or(config.advertise);
        Ok(config)
    }
}

fn set<T>(field: &mut T, over: Option<T>) {
    if let Some(value) = over {
        *field = value;
    }
}

fn metrics(text: &str) -> Result<ControlMetricsListen, String> {
    match text {
        "off" => Ok(ControlMetricsListen::Off(Off::Off)),
        _ => text.parse().map(ControlMetricsListen::At).map_err(|_| "neither `ip:port` nor `off`".to_owned()),
    }
}

fn log_format(text: &str) -> Result<ControlLogFormat, String> {
    match text {
        "text" => Ok(ControlLogFormat::Text),
        "json" => Ok(ControlLogFormat::Json),
        _ => Err("neither `text` nor `json`".to_owned()),
    }
}

/// Another replica holds the root: somebody there has to say that this one may sign.
fn ask(key: &str, is_json: bool) {
    let said = match is_json {
        true => output::json(&serde_json::json!({ "event": "waiting", "key": key })),
        false => output::print(&format!(
            "waiting · this replica has no issuing CA yet; on the host that holds the root, run: postern ca approve {key}; or, if the root is offline: postern ca csr, sign and install"
        )),
    };
    if let Err(error) = said {
        tracing::warn!(%error, "nobody reads standard output");
    }
    tracing::warn!(%key, "waiting for an issuing CA: `postern ca approve` on the host that holds the root");
}

fn announce(about: &Ready, is_json: bool) {
    let said = if is_json {
        output::json(&serde_json::json!({
            "event": "ready",
            "trust_domain": about.trust_domain,
            "root": about.root,
            "listen": about.listen,
            "advertise": about.advertise,
            "metrics": about.metrics,
            "lists": about.lists,
            "public": about.public,
            "api": about.api,
            "admin": about.admin,
        }))
    } else {
        let root = output::short_pin(&about.root);
        output::print(&format!(
            "ready · trust domain {} · root {root} · proxies on {}",
            about.trust_domain, about.listen
        ))
    };
    if let Err(error) = said {
        tracing::warn!(%error, "nobody reads standard output");
    }
    tracing::info!(trust_domain = %about.trust_domain, root = %about.root, listen = %about.listen, "ready");
}

fn stop_on_signal(shutdown: CancellationToken) -> Result<(), CliError> {
    let no_signals = |e: std::io::Error| CliError::Failed(format!("signals cannot be received: {e}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        shutdown.cancel();
        tracing::info!("stopping");
    });
    Ok(())
}
