//! `postern policy`: Istio's `AuthorizationPolicy` and `PeerAuthentication`, applied as a whole or not at all.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use postern_config::file;
use postern_config::id::SpiffeId;
use postern_config::policy::{Connection, Document, DocumentKind, Policy, PolicyError, read_stream};

use super::service::print;
use super::{CliError, Common, output};
use crate::api::model::{ApplyPolicies, Status};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create or replace policies; a mistake in one of them applies none
    #[command(after_help = "Example:\n  postern policy apply -f policies.yaml")]
    Apply(Files),
    /// List the policies in force, or show one
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  postern policy list\n  postern policy show shop/payments-callers"
    )]
    Show(Show),
    /// Check policies without a control plane, and say what they would decide
    Check(Check),
    /// Remove a policy
    #[command(after_help = "Example:\n  postern policy delete shop/payments-callers")]
    Delete {
        /// NAMESPACE/NAME
        policy: String,
        /// AuthorizationPolicy or PeerAuthentication, where both kinds have this name
        #[arg(long)]
        kind: Option<DocumentKind>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// NAMESPACE/NAME; left out, all are listed
    policy: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Files {
    /// YAML with one or more policies; `-` reads standard input
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:
  postern policy check -f p.yaml --from spiffe://corp.example/ns/shop/sa/web --to spiffe://corp.example/ns/shop/sa/payments

Exits with 1 if the connection would be denied.")]
pub(super) struct Check {
    #[command(flatten)]
    files: Files,
    /// The caller of a connection to decide on
    #[arg(long, value_name = "SPIFFE-ID", requires = "to")]
    from: Option<String>,
    /// The workload that is called
    #[arg(long, value_name = "SPIFFE-ID", requires = "from")]
    to: Option<String>,
    /// The called workload's port
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    port: u16,
    /// Where the connection comes from
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "IP")]
    source_ip: IpAddr,
    /// The namespace whose policies apply everywhere
    #[arg(long, default_value = "istio-system", value_name = "NAMESPACE")]
    root_namespace: String,
}

impl Command {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        match self {
            Self::Apply(files) => apply(common, &files).await,
            Self::Show(wanted) => wanted.run(common).await,
            Self::Check(check) => check.run(common),
            Self::Delete { policy, kind } => {
                let path = match policy.split_once('/') {
                    Some((namespace, name)) if is_name(namespace) && is_name(name) => policy,
                    _ => return Err(CliError::Failed(format!("{policy:?} is not NAMESPACE/NAME"))),
                };
                let kind = kind.map_or(String::new(), |kind| format!("?kind={}", kind.as_str()));
                print(
                    common,
                    &common.client().delete(&format!("/v1/policies/{path}{kind}")).await?,
                    "deleted",
                )
            }
        }
    }
}

async fn apply(common: &Common, files: &Files) -> Result<(), CliError> {
    let client = common.client();
    match files.documents() {
        Ok(documents) => {
            let documents = documents.iter().map(Document::to_json).collect();
            print(common, &client.post("/v1/policies", &ApplyPolicies { documents }).await?, "applied")
        }
        Err(mistake) => {
            let stays = match client.get::<Status>("/v1/status").await {
                Ok(status) => format!("generation {} stays in force", status.generation),
                Err(_) => "what was in force stays".to_owned(),
            };
            Err(CliError::File(format!("{mistake}. Nothing was applied; {stays}.")))
        }
    }
}

impl Show {
    async fn run(self, common: &Common) -> Result<(), CliError> {
        let values: Vec<serde_json::Value> = common.client().get("/v1/policies").await?;
        let mut documents = Vec::with_capacity(values.len());
        for value in &values {
            let document = Document::from_json(&value.to_string());
            documents.push(document.map_err(|why| CliError::Failed(why.to_string()))?);
        }
        if let Some(name) = &self.policy {
            documents.retain(|document| document.metadata().full_name() == *name);
            if documents.is_empty() {
                return Err(CliError::Failed(format!("there is no policy {name}")));
            }
        }
        let values: Vec<serde_json::Value> =
            documents.iter().map(|document| serde_json::json!(document)).collect();
        if common.is_json() {
            return output::json(&values);
        }
        if self.policy.is_some() {
            return values.iter().try_for_each(|value| output::print(&format!("{value:#}")));
        }
        let rows: Vec<[String; 4]> = documents.iter().map(row).collect();
        output::table(["KIND", "POLICY", "ACTION", "RULES"], &rows)
    }
}

/// A document in one line of the list.
fn row(document: &Document) -> [String; 4] {
    let spec = match document {
        Document::Policy(policy) => serde_json::json!(policy.spec),
        Document::Peer(peer) => serde_json::json!(peer.spec),
    };
    let (action, rules) = match document {
        Document::Policy(policy) => {
            let dry_run = if policy.is_dry_run() { " (dry run)" } else { "" };
            let action = spec["action"].as_str().unwrap_or_default();
            (format!("{action}{dry_run}"), spec["rules"].as_array().map_or(0, Vec::len).to_string())
        }
        Document::Peer(_) => (spec["mtls"]["mode"].as_str().unwrap_or("UNSET").to_owned(), "-".to_owned()),
    };
    [document.kind().as_str().to_owned(), document.metadata().full_name(), action, rules]
}

impl Files {
    fn documents(&self) -> Result<Vec<Document>, CliError> {
        let mut documents = Vec::new();
        for path in &self.files {
            let text = file::read(&path_or_stdin(path))?;
            let read = read_stream(&text).map_err(|why| match why {
                PolicyError::Yaml(place) => CliError::File(format!("{}:{place}", path.display())),
                why => CliError::File(format!("{}:  error: {why}", path.display())),
            });
            documents.extend(read?);
        }
        Ok(documents)
    }
}

impl Check {
    fn run(self, common: &Common) -> Result<(), CliError> {
        let documents = self.files.documents()?;
        let (Some(from), Some(to)) = (&self.from, &self.to) else {
            let names: Vec<String> = documents.iter().map(|d| d.metadata().full_name()).collect();
            if common.is_json() {
                return output::json(&serde_json::json!({ "valid": true, "policies": names }));
            }
            return output::print(&format!("{} policies are valid: {}", names.len(), names.join(", ")));
        };
        let id = |text: &str| -> Result<SpiffeId, CliError> {
            text.parse().map_err(|why| CliError::Failed(format!("{text:?} is not a SPIFFE ID: {why}")))
        };
        let (from, to) = (id(from)?, id(to)?);
        let applying = documents.into_iter().filter_map(|document| match document {
            Document::Policy(policy) => Some(policy),
            Document::Peer(_) => None,
        });
        let applying = applying.filter(|p| p.applies_to(&to, &BTreeMap::new(), &self.root_namespace));
        let policy = Policy::compile(&applying.collect::<Vec<_>>(), to.trust_domain());
        let verdict = policy.decide(&Connection {
            peer: Some(&from),
            admits_anonymous: false,
            source_ip: self.source_ip,
            remote_ip: self.source_ip,
            destination_ip: Ipv4Addr::UNSPECIFIED.into(),
            destination_port: self.port,
            sni: None,
        });
        let because = policy.explain(&verdict);
        let word = if verdict.allow { "allow" } else { "deny" };
        if common.is_json() {
            output::json(&serde_json::json!({ "verdict": word, "because": because }))?;
        } else {
            output::print(&format!("{word}   {because}"))?;
        }
        if verdict.allow {
            Ok(())
        } else {
            Err(CliError::Failed("this connection would be denied".to_owned()))
        }
    }
}

/// `-` is standard input.
pub(super) fn path_or_stdin(path: &Path) -> PathBuf {
    if path == Path::new("-") { "/dev/stdin".into() } else { path.to_owned() }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}
