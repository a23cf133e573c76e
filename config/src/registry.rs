//! Declared identities: who owns an identity, in which environment it lives, and the terms that bind every certificate of it. Pure.
//!
//! An undeclared identity needs no document; a declared one is bound by its own, whichever way somebody comes to it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::attest::{FillError, Rule, Template, Wanted};
use crate::file::Span;
use crate::file::control::OperatorRole;
use crate::id::{SpiffeId, TrustDomain};

mod declarations;
mod read;
#[cfg(test)]
mod tests;

pub use declarations::{Declarations, admit, closest};
pub use read::Placed;

/// The most DNS names of one identity, and the longest one in bytes (RFC 1035 §2.3.4).
const MAX_DNS_NAMES: usize = 16;
const MAX_DNS_NAME: usize = 253;
/// The longest owner, environment, label key or label value, in bytes.
const MAX_WORD: usize = 253;
/// How many labels a document may give.
const MAX_LABELS: usize = 32;
/// How many trust domains an identity may federate with: each is a bundle that its proxies hold.
const MAX_FEDERATED: usize = 64;
/// How many selectors a document may ask for.
const MAX_SELECTORS: usize = 16;

/// One declared identity, as `postern apply` reads it from YAML.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Identity {
    /// `postern.dev/v1`.
    pub api_version: ApiVersion,
    /// `Identity`.
    pub kind: Kind,
    /// Its name.
    pub metadata: Metadata,
    /// What it says.
    pub spec: Spec,
}

/// The accepted API versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApiVersion {
    /// The first version.
    #[serde(rename = "postern.dev/v1")]
    V1,
}

/// The accepted kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Kind {
    /// An identity.
    Identity,
}

/// A document's name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Unique among identities; letters, digits, `.`, `-` and `_`.
    #[serde(deserialize_with = "read::name")]
    pub name: String,
}

/// What is declared of an identity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The identity; declared once. With selectors, attested values may stand in it, such as
    /// `spiffe://corp.example/ns/{k8s.namespace}/sa/{k8s.service_account}`: then it declares every identity of this form that has no
    /// document of its own.
    pub spiffe_id: Template,
    /// Who gets it by attestation: every one of these must have been attested with this value; `"*"` takes any. Left out, it is for
    /// join tokens and for the rules of the control plane's own file.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub selectors: BTreeMap<String, Wanted>,
    /// What it may do as an operator, over the operators' port. Left out, nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<OperatorRole>,
    /// Whom to ask about it.
    #[serde(deserialize_with = "read::word")]
    pub owner: String,
    /// Where it lives, such as `prod`: a credential of another environment never yields it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "read::optional_word")]
    pub environment: Option<String>,
    /// The longest lifetime of its certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<Span>,
    /// Names that its certificates carry beside the identity, for clients that look at nothing else; they give no right.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "read::dns_names")]
    pub dns_names: Vec<String>,
    /// Labels that policy selectors see; over those of a token.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Foreign trust domains whose bundles it gets, as soon as the control plane has them (`postern federation`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub federates_with: Vec<TrustDomain>,
    /// When it ends: nothing is issued to it afterwards, and its proxies are cut off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Moment>,
}

/// A moment, RFC 3339, such as `2027-01-31T00:00:00Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct Moment(jiff::Timestamp);

impl Moment {
    /// Milliseconds since 1970.
    pub fn millis(self) -> i64 {
        self.0.as_millisecond()
    }
}

impl Serialize for Moment {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(|_| {
            serde::de::Error::custom(format_args!("{text:?} is not a moment such as 2027-01-31T00:00:00Z"))
        })
    }
}

/// Why a document is refused, and which field of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Too many of something.
    #[error("at most 16 dnsNames, 16 selectors and 32 labels, each key and value at most 253 bytes")]
    TooMany(&'static str),
    /// Too many trust domains, or one of them twice.
    #[error("at most 64 trust domains, each once")]
    Federated,
    /// Its own trust domain.
    #[error("{0} is its own trust domain, whose bundle it has anyway")]
    Own(TrustDomain),
    /// Selectors that choose too little, or that nobody attests.
    #[error("{0}")]
    Selectors(String),
    /// A template, and nothing that says where its values come from.
    #[error(
        "attested values stand in spec.spiffeId: say in `selectors` whose, such as `k8s.namespace: \"*\"`"
    )]
    Template,
    /// A selector's value cannot stand where the template puts it.
    #[error("{0}")]
    Fill(FillError),
    /// A role for whoever fits a template.
    #[error("an operator is one identity: with a `role`, write spec.spiffeId out whole")]
    Role,
}

impl IdentityError {
    /// The field of `spec` that is wrong.
    pub fn field(&self) -> &'static str {
        match self {
            Self::TooMany(field) => field,
            Self::Federated | Self::Own(_) => "federatesWith",
            Self::Selectors(_) | Self::Fill(_) => "selectors",
            Self::Template => "spiffeId",
            Self::Role => "role",
        }
    }
}

impl Identity {
    /// Checks what the types alone do not say.
    pub fn check(&self) -> Result<(), IdentityError> {
        let Spec { spiffe_id, selectors, dns_names, labels, federates_with, .. } = &self.spec;
        let fits = |text: &String| text.len() <= MAX_WORD;
        if dns_names.len() > MAX_DNS_NAMES {
            return Err(IdentityError::TooMany("dnsNames"));
        }
        if labels.len() > MAX_LABELS || !labels.iter().all(|(k, v)| !k.is_empty() && fits(k) && fits(v)) {
            return Err(IdentityError::TooMany("labels"));
        }
        if selectors.len() > MAX_SELECTORS {
            return Err(IdentityError::TooMany("selectors"));
        }
        let twice = |(n, domain): (usize, &TrustDomain)| federates_with[..n].contains(domain);
        if federates_with.len() > MAX_FEDERATED || federates_with.iter().enumerate().any(twice) {
            return Err(IdentityError::Federated);
        }
        if let Some(own) = federates_with.iter().find(|domain| *domain == spiffe_id.trust_domain()) {
            return Err(IdentityError::Own(own.clone()));
        }
        let pattern = spiffe_id.narrowed(selectors).map_err(IdentityError::Fill)?;
        match self.rule() {
            None if spiffe_id.keys().next().is_some() => return Err(IdentityError::Template),
            Some(rule) => {
                if let Some(why) = crate::file::control::attest::mistake_in(&rule) {
                    return Err(IdentityError::Selectors(why));
                }
            }
            None => {}
        }
        if self.spec.role.is_some() && pattern.whole().is_none() {
            return Err(IdentityError::Role);
        }
        Ok(())
    }

    /// What it declares: its template with the values of its selectors written out.
    pub fn pattern(&self) -> Template {
        self.spec.spiffe_id.narrowed(&self.spec.selectors).unwrap_or_else(|_| self.spec.spiffe_id.clone())
    }

    /// The one identity that it declares; `None` for a template.
    pub fn id(&self) -> Option<SpiffeId> {
        self.pattern().whole()
    }

    /// The rule by which attested callers get it; `None` where it is not for them.
    pub fn rule(&self) -> Option<Rule> {
        if self.spec.selectors.is_empty() {
            return None;
        }
        let mut selectors = self.spec.selectors.clone();
        for key in self.spec.spiffe_id.keys() {
            // What stands in the identity must have been attested at all.
            selectors.entry(key.to_owned()).or_insert_with(|| Wanted::One("*".to_owned()));
        }
        Some(Rule {
            selectors,
            id: self.pattern(),
            labels: BTreeMap::new(),
            environment: self.spec.environment.clone(),
            max_ttl: None,
        })
    }

    /// Whether a credential of this environment may yield the identity; one that names none may yield what lives in none.
    pub fn admits(&self, environment: Option<&str>) -> bool {
        self.spec.environment.as_deref() == environment
    }

    /// Whether it has ended at `now`, milliseconds since 1970.
    pub fn has_ended(&self, now: i64) -> bool {
        self.spec.expires.is_some_and(|end| end.millis() <= now)
    }
}

/// Whether `text` may name an environment or an owner.
pub fn is_word(text: &str) -> bool {
    !text.trim().is_empty() && text.len() <= MAX_WORD && !text.chars().any(char::is_control)
}

fn is_dns_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let rest = name.strip_prefix("*.").unwrap_or(name);
    name.len() <= MAX_DNS_NAME && rest.split('.').all(label)
}
