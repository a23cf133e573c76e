//! Who may connect: Istio's `AuthorizationPolicy`, decided by identity.
//!
//! A document is read by [`AuthorizationPolicy`], a set of them is compiled once per push into a [`Policy`], and
//! [`Policy::decide`] answers for one connection without allocating when the answer is yes. The semantics are Istio's;
//! where they are known to be unsafe, Postern is stricter:
//!
//! - no policy at all admits the identities of the own trust domain and nobody else;
//! - an invalid value refuses the whole document, it never drops a rule;
//! - a workload's namespace is the `/ns/<x>/` segment of its identity, compared as a whole;
//! - `CUSTOM` and `targetRefs` are refused until there is something to delegate to.
//!
//! On a connection without HTTP, a rule's HTTP fields follow Istio: an ALLOW rule that has one never matches, a
//! DENY or AUDIT rule is read as if it had none.

use std::net::IpAddr;

use crate::id::{SpiffeId, TrustDomain};

mod compile;
mod document;
mod explain;
mod pattern;
#[cfg(test)]
mod tests;

pub use document::{Action, AuthorizationPolicy, Metadata, PolicyError};
pub use explain::Because;
pub use pattern::Principal;

use compile::CompiledRule;

/// What a decision is about: one connection, its peer proven.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// The peer's proven identity.
    pub peer: &'a SpiffeId,
    /// Where the connection comes from.
    pub source_ip: IpAddr,
    /// The address that it was accepted on.
    pub destination_ip: IpAddr,
    /// The workload's port that it is for.
    pub destination_port: u16,
    /// The server name of the ClientHello.
    pub sni: Option<&'a str>,
}

/// The policies of one workload, ready to decide.
#[derive(Debug)]
pub struct Policy {
    trust_domain: TrustDomain,
    names: Vec<PolicyName>,
    deny: Vec<CompiledRule>,
    allow: Vec<CompiledRule>,
    audit: Vec<CompiledRule>,
    /// Whether an ALLOW policy applies, be it without rules: then what no rule allows is denied.
    restricts: bool,
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
    /// Whether the connection may proceed.
    pub allow: bool,
    /// Why.
    pub because: Because,
    /// An AUDIT rule that matched; it only marks.
    pub audit: Option<RuleRef>,
}

impl Policy {
    /// Compiles the policies that apply to one workload of `trust_domain`; policies that only dry-run count as absent.
    pub fn compile(policies: &[AuthorizationPolicy], trust_domain: TrustDomain) -> Self {
        compile::compile(policies, trust_domain)
    }

    /// The names of the policies, in the order that [`RuleRef::policy`] counts them.
    pub fn names(&self) -> &[PolicyName] {
        &self.names
    }

    /// Decides on one connection: DENY first, then ALLOW, then the default (spec: Istio's order, AUDIT only marks).
    pub fn decide(&self, connection: &Connection<'_>) -> Verdict {
        let audit = first_match(&self.audit, connection);
        let (allow, because) = self.judge(connection);
        Verdict { allow, because, audit }
    }

    fn judge(&self, connection: &Connection<'_>) -> (bool, Because) {
        if let Some(rule) = first_match(&self.deny, connection) {
            return (false, Because::DeniedBy(rule));
        }
        if let Some(rule) = first_match(&self.allow, connection) {
            return (true, Because::AllowedBy(rule));
        }
        if self.restricts {
            return (false, Because::NoRuleAllows { nearest: explain::nearest(&self.allow, connection) });
        }
        let own = connection.peer.trust_domain_str() == self.trust_domain.as_str();
        (own, if own { Because::NoPolicy } else { Because::ForeignTrustDomain })
    }
}

fn first_match(rules: &[CompiledRule], connection: &Connection<'_>) -> Option<RuleRef> {
    rules.iter().find(|rule| rule.matches(connection)).map(|rule| rule.at)
}

impl std::fmt::Display for PolicyName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
