//! `postern service`: what the mesh calls by name, and whose identity has to answer.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use postern_config::file;
use postern_config::id::SpiffeId;
use postern_config::service::Service;

use super::policy::path_or_stdin;
use super::{CliError, Common, output};
use crate::api::model::{Applied, ServiceView};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create or replace services
    Apply(Apply),
    /// Show services and their endpoints
    #[command(after_help = "Example:\n  postern service list --output json")]
    List,
    /// Remove a service
    #[command(after_help = "Example:\n  postern service delete shop.payments")]
    Delete {
        /// Its name
        name: String,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  postern service apply -f services.yaml
  postern service apply --name shop.payments --identity spiffe://corp.example/ns/shop/sa/payments
  postern service apply --name db --identity spiffe://corp.example/ns/db/sa/ledger --endpoint 10.0.0.7:15006

Without endpoints the proxies of that identity announce where they listen.")]
pub(super) struct Apply {
    /// YAML with one or more services; `-` reads standard input
    #[arg(
        short,
        long = "file",
        value_name = "FILE",
        required_unless_present = "name",
        conflicts_with = "name"
    )]
    files: Vec<PathBuf>,
    /// The service's name
    #[arg(long, requires = "identity")]
    name: Option<String>,
    /// The identity that its endpoints prove
    #[arg(long, requires = "name", value_name = "SPIFFE-ID")]
    identity: Option<String>,
    /// A fixed endpoint, host:port; may be repeated
    #[arg(long = "endpoint", requires = "name", value_name = "HOST:PORT")]
    endpoints: Vec<String>,
}

impl Command {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        let client = common.client()?;
        match self {
            Self::Apply(wanted) => {
                let wanted = wanted.services()?;
                print(common, &client.post("/v1/services", &wanted).await?, "applied")
            }
            Self::Delete { name } => {
                postern_config::service::check_name(&name)
                    .map_err(|why| CliError::Failed(why.to_string()))?;
                print(common, &client.delete(&format!("/v1/services/{name}")).await?, "deleted")
            }
            Self::List => list(common, client.get("/v1/services").await?),
        }
    }
}

impl Apply {
    fn services(self) -> Result<Vec<Service>, CliError> {
        if let (Some(name), Some(identity)) = (self.name, self.identity) {
            let identity: SpiffeId =
                identity.parse().map_err(|why| CliError::Failed(format!("not a SPIFFE ID: {why}")))?;
            let service = Service { name, identity, endpoints: self.endpoints };
            service.check().map_err(|why| CliError::Failed(why.to_string()))?;
            return Ok(vec![service]);
        }
        let mut services = Vec::new();
        for path in &self.files {
            for service in file::load_stream::<Service>(&path_or_stdin(path))? {
                service
                    .check()
                    .map_err(|why| CliError::File(format!("{}:  error: {why}", path.display())))?;
                services.push(service);
            }
        }
        Ok(services)
    }
}

/// Says what a change led to.
pub(super) fn print(common: &Common, applied: &Applied, verb: &str) -> Result<(), CliError> {
    if common.is_json() {
        return output::json(applied);
    }
    output::print(&format!("{verb} {} · generation {}", applied.applied.join(", "), applied.generation))
}

fn list(common: &Common, services: Vec<ServiceView>) -> Result<(), CliError> {
    if common.is_json() {
        return output::json(&services);
    }
    let rows: Vec<[String; 3]> = services
        .into_iter()
        .map(|service| {
            let endpoints = if service.endpoints.is_empty() {
                "none yet".to_owned()
            } else {
                service.endpoints.join(" ")
            };
            [service.name, service.identity, endpoints]
        })
        .collect();
    output::table(["NAME", "IDENTITY", "ENDPOINTS"], &rows)
}
