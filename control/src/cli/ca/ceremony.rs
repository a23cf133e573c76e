//! `postern ca root init|csr|sign|install`: the ceremony by which a root that no control plane holds signs issuing CAs.
//!
//! `root init` and `sign` touch nothing but the files they are given. `csr` and `install` work on the control plane's store, also
//! before its first start has got an issuing CA.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use postern_config::file::control::ControlConfig;
use postern_config::file::control::keys::KeyPlace;
use postern_config::file::{self, Span};
use postern_config::id::TrustDomain;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};

use super::super::{CliError, Common, output};
use crate::ca::keys::Key;
use crate::ca::{ceremony, files};
use crate::clock::{now_ms, rfc3339};
use crate::store::{IssuingRequest, Store};

const DAY: u64 = 24 * 3600;
/// For clocks that are behind.
const BACKDATE: i64 = 300;

#[derive(Debug, Subcommand)]
pub(in super::super) enum Root {
    /// Make a root's key and certificate, and print the pin
    Init(RootInit),
}

#[derive(Debug, Args)]
#[command(after_help = "Example, on a machine without network:
  postern ca root init --trust-domain corp.example --key root.key --out root.pem
Then bring root.pem (never root.key) to each control plane as DATA/ca/root.pem, and start it with `ca: { root_key: offline }`.")]
pub(in super::super) struct RootInit {
    /// The trust domain that it is for
    #[arg(long, value_name = "NAME")]
    trust_domain: TrustDomain,
    /// Where its key shall live: a path, pkcs11:… or vault:…
    #[arg(long, value_name = "PLACE", default_value = "root.key")]
    key: KeyPlace,
    /// Where its certificate shall be written
    #[arg(long, value_name = "FILE", default_value = "root.pem")]
    out: PathBuf,
    /// How long it lives
    #[arg(long, value_name = "TIME", default_value_t = Span::from_secs(3650 * DAY))]
    ttl: Span,
}

#[derive(Debug, Args)]
#[command(after_help = "Example, where the control plane runs:\n  postern ca csr > issuing.csr")]
pub(in super::super) struct Request {
    /// The control plane's configuration file, if its store is not in the data directory
    #[arg(long, env = "POSTERN_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Whose request, if several wait
    #[arg(long, value_name = "NAME")]
    replica: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example, where the root's key lies:
  postern ca sign --root root.pem --key root.key issuing.csr > issuing.pem")]
pub(in super::super) struct Sign {
    /// The root's certificate
    #[arg(long, value_name = "FILE", default_value = "root.pem")]
    root: PathBuf,
    /// Where its key lives: a path, pkcs11:… or vault:…
    #[arg(long, value_name = "PLACE", default_value = "root.key")]
    key: KeyPlace,
    /// How long the issuing CA lives; the next one is asked for when half of that is over
    #[arg(long, value_name = "TIME", default_value_t = Span::from_secs(90 * DAY))]
    ttl: Span,
    /// The trust domain
    #[arg(long, value_name = "NAME")]
    trust_domain: TrustDomain,
    /// The request, PEM
    #[arg(value_name = "CSR")]
    request: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "Example, where the control plane runs:\n  postern ca install issuing.pem")]
pub(in super::super) struct Install {
    /// The control plane's configuration file, if its store is not in the data directory
    #[arg(long, env = "POSTERN_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// The issuing CA's certificate, PEM; a root behind it is passed over
    #[arg(value_name = "CHAIN")]
    chain: PathBuf,
}

impl Root {
    pub(in super::super) fn run(self, common: &Common) -> Result<(), CliError> {
        let Self::Init(RootInit { trust_domain, key: place, out, ttl }) = self;
        if out.exists() {
            return Err(CliError::Failed(format!("{} exists; a root is never written over", out.display())));
        }
        if Key::open(&place, None).map_err(failed)?.is_some() {
            return Err(CliError::Failed(format!(
                "{place}: there is a key already; a root is never written over"
            )));
        }
        let key = Key::create(&place).map_err(failed)?;
        let certificate = ceremony::root(&trust_domain, &key, validity(ttl)).map_err(failed)?;
        files::write(&out, ceremony::pem("CERTIFICATE", &certificate).as_bytes()).map_err(failed)?;
        let pin = ceremony::pin(&certificate).map(|pin| pin.to_string()).unwrap_or_default();
        let until = rfc3339(validity(ttl).1 * 1000);
        if common.is_json() {
            let (certificate, key) = (out.display().to_string(), place.to_string());
            return output::json(
                &serde_json::json!({ "pin": pin, "certificate": certificate, "key": key, "not_after": until }),
            );
        }
        output::print(&format!("root of {trust_domain} until {until}\n{pin}"))
    }
}

impl Sign {
    pub(in super::super) fn run(self, _: &Common) -> Result<(), CliError> {
        let root = certificate(&self.root)?;
        let key = Key::open(&self.key, None).map_err(failed)?;
        let key = key.ok_or_else(|| CliError::Failed(format!("{}: there is no key", self.key)))?;
        let request = CertificateSigningRequestDer::from_pem_file(&self.request).map_err(|why| {
            CliError::Failed(format!("{}: no readable request: {why}", self.request.display()))
        })?;
        let signed = ceremony::issuing(&self.trust_domain, &root, &key, &request, validity(self.ttl))
            .map_err(failed)?;
        output::print(ceremony::pem("CERTIFICATE", &signed).trim_end())
    }
}

impl Request {
    pub(in super::super) async fn run(self, common: &Common) -> Result<(), CliError> {
        let (store, _) = open(common, self.config.as_deref()).await?;
        let waiting = store.issuing_requests().await.map_err(failed)?;
        let mut wanted: Vec<IssuingRequest> = waiting
            .into_iter()
            .filter(|r| self.replica.as_ref().is_none_or(|name| *name == r.replica))
            .collect();
        let request = match (wanted.pop(), wanted.is_empty()) {
            (Some(request), true) => request,
            (None, _) => return Err(failed(crate::ca::CaError::NoRequest)),
            (Some(last), false) => {
                let names: Vec<_> = wanted.iter().chain([&last]).map(|r| r.replica.as_str()).collect();
                return Err(CliError::Failed(format!(
                    "several replicas wait; name one with --replica: {}",
                    names.join(", ")
                )));
            }
        };
        let pem = ceremony::pem("CERTIFICATE REQUEST", &request.csr);
        if common.is_json() {
            return output::json(
                &serde_json::json!({ "replica": request.replica, "key": request.spki, "csr": pem }),
            );
        }
        output::print(pem.trim_end())
    }
}

impl Install {
    pub(in super::super) async fn run(self, common: &Common) -> Result<(), CliError> {
        let (store, trust_domain) = open(common, self.config.as_deref()).await?;
        let certificate = certificate(&self.chain)?;
        let replica =
            crate::ca::install(&store, &trust_domain, &certificate, "operator").await.map_err(failed)?;
        store.close().await;
        if common.is_json() {
            return output::json(&serde_json::json!({ "replica": replica }));
        }
        output::print(&format!("replica {replica} signs with it within a second"))
    }
}

/// The control plane's store, and whose it is.
async fn open(common: &Common, config: Option<&Path>) -> Result<(Store, TrustDomain), CliError> {
    let mut config: ControlConfig = match config {
        Some(path) => file::load(path)?,
        None => ControlConfig::default(),
    };
    if let Some(data) = &common.data {
        config.data.clone_from(data);
    }
    let data = config.data.canonicalize();
    let data = data.map_err(|e| CliError::Failed(format!("{}: {e}", config.data.display())))?;
    let store = Store::open(&crate::location(&config, &data)).await.map_err(failed)?;
    let trust_domain = crate::trust_domain(&store, &config, &data).await.map_err(failed)?;
    Ok((store, trust_domain))
}

fn certificate(path: &Path) -> Result<CertificateDer<'static>, CliError> {
    CertificateDer::from_pem_file(path)
        .map_err(|why| CliError::Failed(format!("{}: no readable certificate: {why}", path.display())))
}

fn validity(ttl: Span) -> (i64, i64) {
    let now = now_ms() / 1000;
    (now - BACKDATE, now.saturating_add(crate::ca::secs(ttl.as_duration())))
}

fn failed(error: impl std::fmt::Display) -> CliError {
    CliError::Failed(error.to_string())
}
