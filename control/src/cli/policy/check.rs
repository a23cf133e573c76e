//! `postern policy check`: what policies would decide on a connection or a request, without a control plane.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue};
use postern_config::file;
use postern_config::http::authority::Authority;
use postern_config::http::path::{self, Rules};
use postern_config::id::SpiffeId;
use postern_config::policy::{
    Connection, Document, MtlsMode, MtlsModes, Policy, Request, RuleRef, Token, Verdict,
};
use serde_json::{Map, Value, json};

use super::{CliError, Common, Files, lint, output};
use crate::cli::token::label;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  postern policy check -f p.yaml
  postern policy check -f p.yaml --from spiffe://corp.example/ns/shop/sa/web --to spiffe://corp.example/ns/shop/sa/payments
  postern policy check -f p.yaml --from … --to … --request 'POST /charge' --host payments.shop --header x-team:a

Exits with 1 if it would be denied.")]
pub(in crate::cli) struct Check {
    #[command(flatten)]
    files: Files,
    /// The caller; left out, the caller proves no identity
    #[arg(long, value_name = "SPIFFE-ID", requires = "to")]
    from: Option<SpiffeId>,
    /// The workload that is called: decides on a connection to it, or on a request
    #[arg(long, value_name = "SPIFFE-ID")]
    to: Option<SpiffeId>,
    /// A label of the called workload; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label, requires = "to")]
    labels: Vec<(String, String)>,
    /// The called workload's port
    #[arg(long, default_value_t = 0, value_name = "PORT")]
    port: u16,
    /// Where the connection comes from
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "IP")]
    source_ip: IpAddr,
    /// The client as trusted hops tell it [default: the source]
    #[arg(long, value_name = "IP")]
    remote_ip: Option<IpAddr>,
    /// The address that the connection is accepted on
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED), value_name = "IP")]
    destination_ip: IpAddr,
    /// The server name of the TLS handshake
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// A request on the connection, normalised as the proxy does; left out, the connection carries no HTTP
    #[arg(long, value_name = "METHOD PATH", requires = "to")]
    request: Option<String>,
    /// The request's host
    #[arg(long, default_value = "localhost", value_name = "HOST", requires = "request")]
    host: String,
    /// A header line; may be repeated
    #[arg(long = "header", value_name = "NAME:VALUE", value_parser = header, requires = "request")]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The claims of a verified JWT, a JSON object
    #[arg(long, value_name = "FILE", requires = "request")]
    jwt_claims: Option<PathBuf>,
    /// The workload is a gateway whose host requires no client certificate
    #[arg(long, conflicts_with = "from")]
    optional_client_certificate: bool,
    /// The namespace whose policies apply everywhere
    #[arg(long, default_value = super::ROOT_NAMESPACE, value_name = "NAMESPACE")]
    root_namespace: String,
}

/// What was found out.
struct Finding {
    allow: bool,
    because: String,
    decided: Map<String, Value>,
}

impl Check {
    pub(super) fn run(self, common: &Common) -> Result<(), CliError> {
        let documents = self.files.read()?;
        let warnings = lint::of(&documents, &self.root_namespace, &[]);
        let Some(to) = &self.to else {
            warnings.tell(common);
            let names: Vec<String> = documents.all().map(|d| d.metadata().full_name()).collect();
            if common.is_json() {
                return output::json(&json!({ "valid": true, "policies": names }));
            }
            return output::print(&format!("{} policies are valid: {}", names.len(), names.join(", ")));
        };
        let finding = self.find(documents.all(), to)?;
        let word = |allow| if allow { "allow" } else { "deny" };
        if common.is_json() {
            let mut answer = finding.decided;
            answer.insert("verdict".to_owned(), word(finding.allow).into());
            answer.insert("because".to_owned(), finding.because.into());
            output::json(&answer)?;
        } else {
            output::print(&format!("{}   {}", word(finding.allow), finding.because))?;
            for (name, value) in finding.decided.iter().filter(|(_, value)| value.is_string()) {
                output::print(&format!("        {name} {}", value.as_str().unwrap_or_default()))?;
            }
        }
        let what = if self.request.is_some() { "request" } else { "connection" };
        if finding.allow { Ok(()) } else { Err(CliError::Failed(format!("this {what} would be denied"))) }
    }

    fn find<'a>(
        &self,
        documents: impl Iterator<Item = &'a Document>,
        to: &SpiffeId,
    ) -> Result<Finding, CliError> {
        let labels: BTreeMap<String, String> = self.labels.iter().cloned().collect();
        let (mut policies, mut peers) = (Vec::new(), Vec::new());
        for document in documents {
            match document {
                Document::Policy(p) if p.applies_to(to, &labels, &self.root_namespace) => {
                    policies.push(p.clone());
                }
                Document::Peer(p) if p.applies_to(to, &labels, &self.root_namespace) => peers.push(p.clone()),
                _ => {}
            }
        }
        let policy = Policy::compile(&policies, to.trust_domain());
        let mode = MtlsModes::effective(&peers, &self.root_namespace).of(self.port).unwrap_or_default();
        let mut decided = Map::new();
        decided.insert("mtls".to_owned(), word_of(mode).into());
        let open = mode != MtlsMode::Strict || self.optional_client_certificate;
        if self.from.is_none() && !open {
            let because =
                format!("port {} takes mutual TLS alone, and the caller proves no identity", self.port);
            return Ok(Finding { allow: false, because, decided });
        }
        let connection = Connection {
            // On a port without TLS nobody can prove who he is.
            peer: self.from.as_ref().filter(|_| mode != MtlsMode::Disable),
            admits_anonymous: open,
            source_ip: self.source_ip,
            remote_ip: self.remote_ip.unwrap_or(self.source_ip),
            destination_ip: self.destination_ip,
            destination_port: self.port,
            sni: self.sni.as_deref(),
        };
        let verdict = match &self.request {
            None => policy.decide(&connection),
            Some(request) => match self.ask(&policy, connection, request, &mut decided)? {
                Ok(verdict) => verdict,
                Err(because) => return Ok(Finding { allow: false, because, decided }),
            },
        };
        describe(&policy, &verdict, &mut decided);
        Ok(Finding { allow: verdict.allow, because: policy.explain(&verdict), decided })
    }

    /// Decides on a request in the spelling that the proxy gives it; `Err` is what the proxy answers before any policy.
    fn ask(
        &self,
        policy: &Policy,
        connection: Connection<'_>,
        request: &str,
        decided: &mut Map<String, Value>,
    ) -> Result<Result<Verdict, String>, CliError> {
        let Some((method, target)) = request.split_once(' ') else {
            let message =
                format!("{request:?} is no request; write a method and a path, such as 'POST /charge'");
            return Err(CliError::Failed(message));
        };
        let refused = |why: String| Ok(Err(format!("the proxy answers 400: {why}")));
        if !method.bytes().all(|b| b.is_ascii_uppercase() || matches!(b, b'-' | b'_')) {
            return refused("the method is not written in capital letters".to_owned());
        }
        let raw = target.split_once('?').map_or(target, |(path, _)| path);
        let rules = if policy.has_paths() { Rules::Strict } else { Rules::Basic };
        let path = match path::normalise(raw, rules) {
            Ok(path) => path,
            Err(why) => return refused(why.to_string()),
        };
        let host = match Authority::parse(&self.host) {
            Ok(authority) => authority.host,
            Err(why) => return refused(why.to_string()),
        };
        decided.insert("path".to_owned(), path.as_ref().into());
        decided.insert("host".to_owned(), host.as_ref().into());
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
        let token = self.jwt_claims.as_deref().map(token).transpose()?;
        Ok(Ok(policy.decide_request(&Request {
            connection,
            method,
            host: &host,
            path: &path,
            headers: &headers,
            token: token.as_ref(),
        })))
    }
}

/// What a program wants to know besides the sentence.
fn describe(policy: &Policy, verdict: &Verdict, decided: &mut Map<String, Value>) {
    let name = |at: RuleRef| policy.names().get(at.policy).map(ToString::to_string);
    if let Some(at) = verdict.because.rule() {
        decided.insert("policy".to_owned(), json!(name(at)));
        decided.insert("rule".to_owned(), json!(at.rule));
    }
    if let Some(at) = verdict.audit {
        decided.insert("audit".to_owned(), json!(name(at)));
    }
    if let Some(trial) = &verdict.dry_run {
        let word = if trial.allow { "allow" } else { "deny" };
        let because = policy.explain_because(&trial.because);
        decided.insert("dry_run".to_owned(), format!("{word}: {because}").into());
    }
}

fn word_of(mode: MtlsMode) -> &'static str {
    match mode {
        MtlsMode::Disable => "DISABLE",
        MtlsMode::Permissive => "PERMISSIVE",
        MtlsMode::Strict => "STRICT",
    }
}

/// A token that is taken as verified.
fn token(path: &Path) -> Result<Token, CliError> {
    let text = file::read(path)?;
    let wrong = |why: &str| CliError::Failed(format!("{}: {why}", path.display()));
    let claims: Map<String, Value> = serde_json::from_str(&text).map_err(|why| wrong(&why.to_string()))?;
    let text_of = |name: &str| claims.get(name).and_then(Value::as_str).map(str::to_owned);
    let audiences = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => Vec::new(),
    };
    Ok(Token {
        issuer: text_of("iss").ok_or_else(|| wrong("there is no `iss`"))?,
        subject: text_of("sub").unwrap_or_default(),
        audiences,
        presenter: text_of("azp"),
        claims,
    })
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write NAME:VALUE")?;
    let name = name.parse().map_err(|_| format!("{name:?} is no header's name"))?;
    let value = HeaderValue::from_str(value.trim()).map_err(|_| format!("{value:?} is no header's value"))?;
    Ok((name, value))
}
