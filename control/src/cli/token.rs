//! `postern token`: join strings, each for one proxy and one use.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use ipnet::IpNet;
use postern_config::file::Span;
use postern_config::id::SpiffeId;

use super::{CliError, Common, output};
use crate::api::model::{CreateToken, CreatedToken};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a join string for one identity; it works once
    Create(Create),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  postern token create --id spiffe://corp.example/ns/shop/sa/payments --ttl 10m > payments.join
  postern-proxy --join @payments.join …

The join string is a secret until it is used: keep it in a file, never on a command line.")]
pub(super) struct Create {
    /// The SPIFFE ID that the proxy will get
    #[arg(long, value_name = "SPIFFE-ID")]
    id: String,
    /// How long it waits for its use
    #[arg(long, default_value = "10m", value_name = "TIME")]
    ttl: Span,
    /// Where it may be used from, such as 10.0.0.0/8
    #[arg(long, value_name = "CIDR")]
    cidr: Option<IpNet>,
    /// A label that policy selectors see; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// The environment that it is for; left out, the one that the identity is declared in
    #[arg(long, value_name = "NAME")]
    environment: Option<String>,
    /// The longest lifetime of certificates of this enrollment
    #[arg(long, value_name = "TIME")]
    svid_ttl: Option<Span>,
}

impl Command {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        let Self::Create(wanted) = self;
        let id: SpiffeId =
            wanted.id.parse().map_err(|why| CliError::Failed(format!("not a SPIFFE ID: {why}")))?;
        let labels: BTreeMap<_, _> = wanted.labels.iter().cloned().collect();
        let Create { ttl, cidr, environment, svid_ttl, .. } = wanted;
        let wanted = CreateToken { id, ttl, cidr, labels, environment, svid_ttl };
        let token: CreatedToken = common.client()?.post("/v1/tokens", &wanted).await?;
        if common.is_json() { output::json(&token) } else { output::print(&token.join) }
    }
}

pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
