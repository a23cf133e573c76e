//! Who may do what: Istio's `AuthorizationPolicy`, decided by identity, for connections and for HTTP requests.
//!
//! A document is read by [`AuthorizationPolicy`], a set of them is compiled once per push into a [`Policy`].
//! [`Policy::decide`] answers for a connection without HTTP, [`Policy::decide_request`] for one request. The semantics
//! are Istio's; where they are known to be unsafe, Postern is stricter:
//!
//! - no policy at all admits the identities of the own trust domain and nobody else;
//! - an invalid value refuses the whole document, it never drops a rule;
//! - a workload's namespace is the `/ns/<x>/` segment of its identity, compared as a whole;
//! - hosts are compared in lower case, without port and without one trailing dot;
//! - a header that comes twice, or as a list, does not hide a value (see [`Request::headers`]);
//! - `CUSTOM` and `targetRefs` are refused until there is something to delegate to.
//!
//! On a connection without HTTP, a rule's HTTP fields follow Istio: an ALLOW rule that has one never matches, a
//! DENY or AUDIT rule is read as if it had none.

use std::net::IpAddr;

use crate::id::{SpiffeId, TrustDomain};

mod affix;
mod compile;
mod document;
mod explain;
mod http;
mod index;
mod key;
pub mod lint;
mod pattern;
mod peer;
mod rule;
mod stream;
#[cfg(test)]
mod tests;

pub use document::{Action, AuthorizationPolicy, Metadata, PolicyError};
pub use explain::Because;
pub use pattern::Principal;
pub use peer::{MtlsMode, MtlsModes, PeerAuthentication, PeerKind, PeerSpec};
pub use stream::{Document, DocumentKind, read_stream};

use index::Rules;
use rule::Question;

/// What a decision is about: one connection.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// The peer's proven identity; `None` for plain text, or TLS without a client certificate.
    pub peer: Option<&'a SpiffeId>,
    /// Whether a peer without an identity is taken where no ALLOW policy applies: a port that is permissive or has mTLS
    /// disabled, a gateway's host that does not require a client certificate. A peer with an identity does not need it.
    pub admits_anonymous: bool,
    /// Where the connection comes from.
    pub source_ip: IpAddr,
    /// The client's address as trusted hops tell it; `source_ip` where there are none.
    pub remote_ip: IpAddr,
    /// The address that it was accepted on.
    pub destination_ip: IpAddr,
    /// The workload's port that it is for.
    pub destination_port: u16,
    /// The server name of the ClientHello.
    pub sni: Option<&'a str>,
}

/// What a decision is about: one HTTP request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The connection that it came on.
    pub connection: Connection<'a>,
    /// The method as sent.
    pub method: &'a str,
    /// `Host` or `:authority`.
    pub host: &'a str,
    /// The normalised path, without query: the one that the app will get.
    pub path: &'a str,
    /// The header lines. A name may stand on several lines, and a line may be a list (`ok,banned`); which of the values an
    /// app takes is not known here. So a DENY rule's `values` match when any line, or any element of a list, does, and an
    /// ALLOW rule's only when every line does, its elements included; `notValues` the other way round.
    pub headers: &'a ::http::HeaderMap,
    /// The verified JWT that came with it.
    pub token: Option<&'a Token>,
}

/// A verified JWT.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Token {
    /// `iss`.
    pub issuer: String,
    /// `sub`.
    pub subject: String,
    /// `aud`, as a list.
    pub audiences: Vec<String>,
    /// `azp`.
    pub presenter: Option<String>,
    /// All claims.
    pub claims: serde_json::Map<String, serde_json::Value>,
}

/// The policies of one workload, ready to decide.
#[derive(Debug)]
pub struct Policy {
    trust_domain: TrustDomain,
    names: Vec<PolicyName>,
    live: Chains,
    /// The same with the policies that only try themselves out; `None` where there are none of these.
    trial: Option<Chains>,
}

/// The rules of a set of policies, as they read with and without HTTP.
#[derive(Debug, Default)]
struct Chains {
    tcp: Chain,
    http: Chain,
    /// Whether an ALLOW policy applies, be it without rules: then what no rule allows is denied.
    restricts: bool,
    /// Whether a rule looks at paths.
    has_paths: bool,
}

/// Rules by action.
#[derive(Debug, Default)]
struct Chain {
    deny: Rules,
    allow: Rules,
    audit: Rules,
}

/// How a policy is called in logs, metrics and answers: `<namespace>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyName(pub String);

/// One rule of one policy, by position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleRef {
    /// Index into [`Policy::names`].
    pub policy: usize,
    /// Position among the policy's `rules`.
    pub rule: usize,
}

/// A decision and what it rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Whether the connection or the request may proceed.
    pub allow: bool,
    /// Why.
    pub because: Because,
    /// An AUDIT rule that matched; it only marks.
    pub audit: Option<RuleRef>,
    /// What it would be if the policies that only try themselves out (`istio.io/dry-run`) were in force too; `None` where
    /// there are none of these.
    pub dry_run: Option<Trial>,
}

/// A decision that was not enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trial {
    /// Whether it would have proceeded.
    pub allow: bool,
    /// Why.
    pub because: Because,
}

impl Policy {
    /// Compiles the policies that apply to one workload of `trust_domain`; policies that only dry-run count as absent,
    /// but for [`Verdict::dry_run`].
    pub fn compile(policies: &[AuthorizationPolicy], trust_domain: TrustDomain) -> Self {
        compile::compile(policies, trust_domain)
    }

    /// The names of the policies, in the order that [`RuleRef::policy`] counts them.
    pub fn names(&self) -> &[PolicyName] {
        &self.names
    }

    /// Whether a rule in force looks at paths: then a path that can be read in two ways must not reach the app.
    pub fn has_paths(&self) -> bool {
        self.live.has_paths
    }

    /// Decides on one connection without HTTP: DENY first, then ALLOW, then the default (spec: Istio's order, AUDIT only
    /// marks).
    pub fn decide(&self, connection: &Connection<'_>) -> Verdict {
        self.verdict(&Question::of_connection(connection), |chains| &chains.tcp)
    }

    /// Decides on one request, in the same order.
    pub fn decide_request(&self, request: &Request<'_>) -> Verdict {
        self.verdict(&Question::of_request(request), |chains| &chains.http)
    }

    /// Whether a connection without HTTP may go on; [`Self::decide`] without the reason.
    pub fn allows(&self, connection: &Connection<'_>) -> bool {
        let question = Question::of_connection(connection);
        self.judge(&self.live, &self.live.tcp, &question, false).0
    }

    /// Whether a request may go on; [`Self::decide_request`] without the reason.
    pub fn allows_request(&self, request: &Request<'_>) -> bool {
        self.judge(&self.live, &self.live.http, &Question::of_request(request), false).0
    }

    fn verdict(&self, question: &Question<'_>, chain: fn(&Chains) -> &Chain) -> Verdict {
        let (allow, because) = self.judge(&self.live, chain(&self.live), question, true);
        let dry_run = self.trial.as_ref().map(|trial| {
            let (allow, because) = self.judge(trial, chain(trial), question, true);
            Trial { allow, because }
        });
        let audit = chain(&self.live).audit.first_match(question).map(|rule| rule.at);
        Verdict { allow, because, audit, dry_run }
    }

    fn judge(
        &self,
        chains: &Chains,
        chain: &Chain,
        question: &Question<'_>,
        explain: bool,
    ) -> (bool, Because) {
        if let Some(rule) = chain.deny.first_match(question) {
            return (false, Because::DeniedBy(rule.at));
        }
        if let Some(rule) = chain.allow.first_match(question) {
            return (true, Because::AllowedBy(rule.at));
        }
        if chains.restricts {
            let nearest = explain.then(|| explain::nearest(&chain.allow, question)).flatten();
            return (false, Because::NoRuleAllows { nearest });
        }
        let connection = question.connection;
        match connection.peer {
            Some(peer) if peer.trust_domain_str() == self.trust_domain.as_str() => (true, Because::NoPolicy),
            Some(_) => (false, Because::ForeignTrustDomain),
            None if connection.admits_anonymous => (true, Because::AnonymousAdmitted),
            None => (false, Because::Anonymous),
        }
    }
}

impl std::fmt::Display for PolicyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
