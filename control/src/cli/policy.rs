//! `postern policy`: Istio's `AuthorizationPolicy`, applied as a whole or not at all.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use postern_config::file;
use postern_config::id::SpiffeId;
use postern_config::policy::{AuthorizationPolicy, Connection, Policy, PolicyError};

use super::service::print;
use super::{CliError, Common, output};
use crate::api::model::{ApplyPolicies, Status};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create or replace policies; a mistake in one of them applies none
    #[command(after_help = "Example:\n  postern policy apply -f policies.yaml")]
    Apply(Files),
    /// Show the policies in force
    #[command(after_help = "Example:\n  postern policy show --output json")]
    Show,
    /// Check policies without a control plane, and say what they would decide
    Check(Check),
    /// Remove a policy
    #[command(after_help = "Example:\n  postern policy delete shop/payments-callers")]
    Delete {
        /// NAMESPACE/NAME
        policy: String,
    },
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
            Self::Show => show(common).await,
            Self::Check(check) => check.run(common),
            Self::Delete { policy } => {
                let path = match policy.split_once('/') {
                    Some((namespace, name)) if is_name(namespace) && is_name(name) => policy,
                    _ => return Err(CliError::Failed(format!("{policy:?} is not NAMESPACE/NAME"))),
                };
                print(common, &common.client().delete(&format!("/v1/policies/{path}")).await?, "deleted")
            }
        }
    }
}

async fn apply(common: &Common, files: &Files) -> Result<(), CliError> {
    let client = common.client();
    match files.policies() {
        Ok(policies) => {
            let documents = policies.iter().map(AuthorizationPolicy::to_json).collect();
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

async fn show(common: &Common) -> Result<(), CliError> {
    let policies: Vec<AuthorizationPolicy> = common.client().get("/v1/policies").await?;
    if common.is_json() {
        return output::json(&policies);
    }
    let rows: Vec<[String; 3]> = policies
        .iter()
        .map(|policy| {
            let spec = serde_json::json!(policy.spec);
            let action = spec["action"].as_str().unwrap_or_default().to_owned();
            let rules = spec["rules"].as_array().map_or(0, Vec::len);
            [policy.full_name(), action, rules.to_string()]
        })
        .collect();
    output::table(["POLICY", "ACTION", "RULES"], &rows)
}

impl Files {
    fn policies(&self) -> Result<Vec<AuthorizationPolicy>, CliError> {
        let mut policies = Vec::new();
        for path in &self.files {
            let text = file::read(&path_or_stdin(path))?;
            let read = AuthorizationPolicy::from_yaml_stream(&text).map_err(|why| match why {
                PolicyError::Yaml(place) => CliError::File(format!("{}:{place}", path.display())),
                why => CliError::File(format!("{}:  error: {why}", path.display())),
            });
            policies.extend(read?);
        }
        Ok(policies)
    }
}

impl Check {
    fn run(self, common: &Common) -> Result<(), CliError> {
        let policies = self.files.policies()?;
        let (Some(from), Some(to)) = (&self.from, &self.to) else {
            let names: Vec<String> = policies.iter().map(AuthorizationPolicy::full_name).collect();
            if common.is_json() {
                return output::json(&serde_json::json!({ "valid": true, "policies": names }));
            }
            return output::print(&format!("{} policies are valid: {}", names.len(), names.join(", ")));
        };
        let id = |text: &str| -> Result<SpiffeId, CliError> {
            text.parse().map_err(|why| CliError::Failed(format!("{text:?} is not a SPIFFE ID: {why}")))
        };
        let (from, to) = (id(from)?, id(to)?);
        let applying =
            policies.into_iter().filter(|p| p.applies_to(&to, &BTreeMap::new(), &self.root_namespace));
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
