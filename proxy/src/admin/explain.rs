//! `POST /explain`: a made-up connection or request put to the policy in force. Nothing is counted, nothing is changed.

use std::collections::BTreeMap;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};
use postern_config::http::path::{self, Rules};
use postern_config::id::SpiffeId;
use postern_config::policy::{Connection, MtlsMode, Request};
use serde::Deserialize;
use serde_json::{Value, json};

use super::State;
use super::api::Refusal;
use crate::policy::CurrentPolicy;

/// What is asked. With any of the fields of a request it is about a request, otherwise about a connection without HTTP.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Question {
    /// Who would connect; `null` for a peer without an identity.
    peer: Option<SpiffeId>,
    /// From where.
    source_ip: IpAddr,
    /// The client's address as trusted hops tell it; left out, `source_ip`.
    remote_ip: Option<IpAddr>,
    /// To which of the workload's ports.
    port: u16,
    /// At which address; left out, the first inbound listener's.
    destination_ip: Option<IpAddr>,
    /// With which server name.
    sni: Option<String>,
    /// `GET` where only other fields of a request are given.
    method: Option<String>,
    /// The request target's path; `/` where only other fields are given. A query is cut off.
    path: Option<String>,
    /// `Host` or `:authority`.
    host: Option<String>,
    /// Header lines: a value, or a list of values.
    #[serde(default)]
    headers: BTreeMap<String, Lines>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Lines {
    One(String),
    Many(Vec<String>),
}

pub(super) fn explain(state: &State, question: &Question) -> Result<Value, Refusal> {
    let Some(policy) = state.snapshots.policy.load_full() else {
        return Err(Refusal::bad("no policy is held yet: until then nobody is let in"));
    };
    let first = state.bound.inbound.first().map_or(question.source_ip, |address| address.ip());
    let connection = Connection {
        peer: question.peer.as_ref(),
        admits_anonymous: policy.mtls_mode(question.port) != MtlsMode::Strict,
        source_ip: question.source_ip,
        remote_ip: question.remote_ip.unwrap_or(question.source_ip),
        destination_ip: question.destination_ip.unwrap_or(first),
        destination_port: question.port,
        sni: question.sni.as_deref(),
    };
    let (verdict, path) = match question.is_request() {
        false => (policy.policy().decide(&connection), None),
        true => {
            let path = question.path(&policy)?;
            let request = Request {
                connection,
                method: question.method.as_deref().unwrap_or("GET"),
                host: question.host.as_deref().unwrap_or_default(),
                path: &path,
                headers: &question.headers()?,
                token: None,
            };
            (policy.policy().decide_request(&request), Some(path))
        }
    };
    let (name, rule) = policy.decider(&verdict).unzip();
    let trial = verdict.dry_run.as_ref().map(
        |trial| json!({ "allow": trial.allow, "because": policy.policy().explain_because(&trial.because) }),
    );
    Ok(json!({
        "allow": verdict.allow,
        "because": policy.policy().explain(&verdict),
        "policy": name.as_deref(),
        "rule": rule,
        "audit": policy.auditor(&verdict).as_deref(),
        "dry_run": trial,
        "path": path,
        "generation": state.snapshots.documents.load().generation,
    }))
}

impl Question {
    fn is_request(&self) -> bool {
        let given = [&self.method, &self.path, &self.host].iter().any(|field| field.is_some());
        given || !self.headers.is_empty()
    }

    /// As the app would get it.
    fn path(&self, policy: &CurrentPolicy) -> Result<String, Refusal> {
        let raw = self.path.as_deref().unwrap_or("/");
        let raw = raw.split_once('?').map_or(raw, |(path, _)| path);
        let rules = if policy.policy().has_paths() { Rules::Strict } else { Rules::Basic };
        let normal = path::normalise(raw, rules);
        normal
            .map(|path| path.into_owned())
            .map_err(|e| Refusal::bad(format!("such a request gets 400: {e}")))
    }

    fn headers(&self) -> Result<HeaderMap, Refusal> {
        let mut headers = HeaderMap::new();
        for (name, lines) in &self.headers {
            let wrong = || Refusal::bad(format!("{name:?} is not a header that could be sent"));
            let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
            let values = match lines {
                Lines::One(value) => std::slice::from_ref(value),
                Lines::Many(values) => values,
            };
            for value in values {
                headers.append(&parsed, HeaderValue::from_str(value).map_err(|_| wrong())?);
            }
        }
        Ok(headers)
    }
}
