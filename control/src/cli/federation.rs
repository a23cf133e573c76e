//! `postern federation`: other trust domains, and who of ours believes them.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use postern_config::file::url::WebUrl;
use postern_config::id::{SpiffeId, TrustDomain};

use super::{CliError, Common, output};
use crate::api::model::{Applied, FederationView, Refreshed};
use crate::federation::{Profile, Wanted};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Federate with another trust domain, or change how
    Add(Add),
    /// Show other trust domains and the state of their bundles
    #[command(after_help = "Example:\n  postern federation list --output json")]
    List,
    /// Fetch a bundle now
    #[command(after_help = "Example:\n  postern federation refresh partner.example")]
    Refresh {
        /// The other trust domain
        trust_domain: TrustDomain,
    },
    /// Believe another trust domain no more: open connections with it end
    #[command(after_help = "Example:\n  postern federation remove partner.example")]
    Remove {
        /// The other trust domain
        trust_domain: TrustDomain,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  postern federation add partner.example --url https://spiffe.partner.example/bundle --profile https_web --for shop
  postern federation add partner.example --url https://10.0.0.7:7081/bundle --profile https_spiffe \\
      --endpoint-id spiffe://partner.example/postern/control --bundle partner.json \\
      --for spiffe://corp.example/ns/shop/sa/web

Policy still decides: a workload that gets the bundle can tell who its peers are, and admits whom its policies name.")]
pub(super) struct Add {
    /// The other trust domain's name; never guessed from the URL
    trust_domain: TrustDomain,
    /// Its bundle endpoint, https
    #[arg(long)]
    url: String,
    /// How the endpoint proves itself
    #[arg(long, value_enum)]
    profile: Profile,
    /// With https_spiffe: the endpoint's identity
    #[arg(long, value_name = "SPIFFE-ID")]
    endpoint_id: Option<SpiffeId>,
    /// With https_spiffe: a SPIFFE bundle (JSON) to begin with, carried here by hand
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// With https_web: CAs of the endpoint (PEM) instead of the host's own
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Who gets the bundle: a SPIFFE ID or a namespace; may be repeated
    #[arg(long = "for", value_name = "SPIFFE-ID|NAMESPACE", required = true)]
    members: Vec<String>,
}

impl Command {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        let client = common.client()?;
        match self {
            Self::Add(add) => {
                let done: Refreshed = client.post("/v1/federation", &add.wanted()?).await?;
                refreshed(common, &done)
            }
            Self::Refresh { trust_domain } => {
                let path = format!("/v1/federation/{trust_domain}/refresh");
                let done: Refreshed = client.post(&path, &serde_json::json!({})).await?;
                refreshed(common, &done)?;
                match done.error.is_empty() {
                    true => Ok(()),
                    false => Err(CliError::Failed(done.error)),
                }
            }
            Self::Remove { trust_domain } => {
                let done: Applied = client.delete(&format!("/v1/federation/{trust_domain}")).await?;
                super::service::print(common, &done, "removed")
            }
            Self::List => list(common, &client.get::<Vec<FederationView>>("/v1/federation").await?),
        }
    }
}

impl Add {
    fn wanted(self) -> Result<Wanted, CliError> {
        let read = |path: PathBuf| {
            std::fs::read_to_string(&path).map_err(|e| CliError::Failed(format!("{}: {e}", path.display())))
        };
        Ok(Wanted {
            trust_domain: self.trust_domain,
            url: self.url.parse::<WebUrl>().map_err(CliError::Failed)?,
            profile: self.profile,
            endpoint_id: self.endpoint_id,
            bundle: self.bundle.map(read).transpose()?,
            ca: self.ca.map(read).transpose()?,
            members: self.members,
        })
    }
}

fn refreshed(common: &Common, done: &Refreshed) -> Result<(), CliError> {
    if common.is_json() {
        return output::json(done);
    }
    let FederationView { trust_domain, sequence, .. } = &done.federation;
    let holds = match sequence {
        Some(sequence) => format!("holds its bundle, sequence {sequence}"),
        None => "holds no bundle of it yet".to_owned(),
    };
    let error =
        if done.error.is_empty() { String::new() } else { format!(" · not refreshed: {}", done.error) };
    output::print(&format!("federated with {trust_domain}, {holds}{error} · generation {}", done.generation))
}

fn list(common: &Common, all: &[FederationView]) -> Result<(), CliError> {
    if common.is_json() {
        return output::json(&all);
    }
    let rows: Vec<[String; 6]> = all
        .iter()
        .map(|one| {
            let sequence = one.sequence.map_or("none yet".to_owned(), |sequence| sequence.to_string());
            let fetched = one.fetched_at.clone().unwrap_or_else(|| "never".to_owned());
            let state = if one.error.is_empty() { "ok".to_owned() } else { one.error.clone() };
            [one.trust_domain.clone(), one.profile.clone(), sequence, fetched, one.members.join(" "), state]
        })
        .collect();
    output::table(["TRUST DOMAIN", "PROFILE", "SEQUENCE", "FETCHED", "FOR", "STATE"], &rows)
}
