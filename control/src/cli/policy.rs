//! `postern policy`: Istio's `AuthorizationPolicy` and `PeerAuthentication`, applied as a whole or not at all.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use postern_config::file;
use postern_config::policy::lint::Placed;
use postern_config::policy::{Document, DocumentKind, PolicyError};

use super::service::print;
use super::{CliError, Common, output};
use crate::api::model::{ApplyPolicies, Status};

mod check;
mod lint;

/// The control plane's default for the namespace whose policies apply everywhere.
const ROOT_NAMESPACE: &str = "istio-system";

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
    Check(Box<check::Check>),
    /// Say what is allowed to be written and is probably not meant
    Lint(lint::Lint),
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

impl Command {
    pub(super) async fn run(self, common: &Common) -> Result<(), CliError> {
        match self {
            Self::Apply(files) => apply(common, &files).await,
            Self::Show(wanted) => wanted.run(common).await,
            Self::Check(check) => check.run(common),
            Self::Lint(lint) => lint.run(common),
            Self::Delete { policy, kind } => {
                let path = match policy.split_once('/') {
                    Some((namespace, name)) if is_name(namespace) && is_name(name) => policy,
                    _ => return Err(CliError::Failed(format!("{policy:?} is not NAMESPACE/NAME"))),
                };
                let kind = kind.map_or(String::new(), |kind| format!("?kind={}", kind.as_str()));
                print(
                    common,
                    &common.client()?.delete(&format!("/v1/policies/{path}{kind}")).await?,
                    "deleted",
                )
            }
        }
    }
}

async fn apply(common: &Common, files: &Files) -> Result<(), CliError> {
    let client = common.client()?;
    match files.read() {
        Ok(read) => {
            lint::of(&read, ROOT_NAMESPACE, &[]).tell(common);
            let documents = read.all().map(Document::to_json).collect();
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
        let values: Vec<serde_json::Value> = common.client()?.get("/v1/policies").await?;
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

/// What the files hold.
struct Read {
    /// Their names, as given.
    files: Vec<String>,
    documents: Vec<Placed>,
}

impl Read {
    fn all(&self) -> impl Iterator<Item = &Document> {
        self.documents.iter().map(|placed| &placed.document)
    }
}

impl Files {
    fn read(&self) -> Result<Read, CliError> {
        let mut read = Read { files: Vec::new(), documents: Vec::new() };
        for (index, path) in self.files.iter().enumerate() {
            let text = file::read(&path_or_stdin(path))?;
            let placed = Placed::read(&text, index).map_err(|why| match why {
                PolicyError::Yaml(place) => CliError::File(format!("{}:{place}", path.display())),
                why => CliError::File(format!("{}:  error: {why}", path.display())),
            });
            read.documents.extend(placed?);
            read.files.push(path.display().to_string());
        }
        Ok(read)
    }
}

/// `-` is standard input.
pub(super) fn path_or_stdin(path: &Path) -> PathBuf {
    if path == Path::new("-") { "/dev/stdin".into() } else { path.to_owned() }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
}
