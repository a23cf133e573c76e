//! Declared identities: who owns an identity, in which environment it lives, and the terms that bind every certificate of it. Pure.
//!
//! An undeclared identity needs no document; a declared one is bound by its own, whichever way somebody comes to it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::file::Span;
use crate::id::{SpiffeId, TrustDomain};
use crate::service::check_name;

/// The most DNS names of one identity, and the longest one in bytes (RFC 1035 §2.3.4).
const MAX_DNS_NAMES: usize = 16;
const MAX_DNS_NAME: usize = 253;
/// The longest owner, environment, label key or label value, in bytes.
const MAX_WORD: usize = 253;
/// How many labels a document may give.
const MAX_LABELS: usize = 32;

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
    pub name: String,
}

/// What is declared of an identity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The identity; declared once.
    pub spiffe_id: SpiffeId,
    /// Whom to ask about it.
    pub owner: String,
    /// Where it lives, such as `prod`: a credential of another environment never yields it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The longest lifetime of its certificates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<Span>,
    /// Names that its certificates carry beside the identity, for clients that look at nothing else; they give no right.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
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

/// Why a document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Its name.
    #[error("identity name {0:?}: use letters, digits, `.`, `-` and `_`, at most 253 bytes")]
    Name(String),
    /// The control plane's own part of the names.
    #[error("{0}: identities below /postern/ belong to the control plane and are never issued to a workload")]
    Reserved(SpiffeId),
    /// An owner or environment.
    #[error("{0}: write a word or a name of 1 to 253 bytes")]
    Word(&'static str),
    /// A DNS name.
    #[error("{0:?} is not a DNS name (letters, digits, `-` and dots; `*` only as the whole first label)")]
    DnsName(String),
    /// Too many of something.
    #[error("at most 16 dnsNames and 32 labels, each key and value at most 253 bytes")]
    TooMany,
}

impl Identity {
    /// Checks what the types alone do not say.
    pub fn check(&self) -> Result<(), IdentityError> {
        let Spec { spiffe_id, owner, environment, dns_names, labels, .. } = &self.spec;
        check_name(&self.metadata.name)
            .map_err(|_| IdentityError::Name(self.metadata.name.chars().take(80).collect()))?;
        if spiffe_id.is_reserved() {
            return Err(IdentityError::Reserved(spiffe_id.clone()));
        }
        if !is_word(owner) {
            return Err(IdentityError::Word("spec.owner"));
        }
        if environment.as_ref().is_some_and(|e| !is_word(e)) {
            return Err(IdentityError::Word("spec.environment"));
        }
        let fits = |text: &String| text.len() <= MAX_WORD;
        if dns_names.len() > MAX_DNS_NAMES
            || labels.len() > MAX_LABELS
            || !labels.iter().all(|(k, v)| !k.is_empty() && fits(k) && fits(v))
        {
            return Err(IdentityError::TooMany);
        }
        match dns_names.iter().find(|name| !is_dns_name(name)) {
            Some(bad) => Err(IdentityError::DnsName(bad.chars().take(80).collect())),
            None => Ok(()),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file;

    const WHOLE: &str = "apiVersion: postern.dev/v1\nkind: Identity\nmetadata: { name: payments }\nspec:\n  \
        spiffeId: spiffe://corp.example/ns/shop/sa/payments\n  owner: team-payments\n  environment: prod\n  \
        maxTtl: 15m\n  dnsNames: [payments.shop.svc]\n  expires: 2027-01-31T00:00:00Z\n";

    fn read(text: &str) -> Result<Identity, String> {
        let identity: Identity = file::parse(text).map_err(|e| e.to_string())?;
        identity.check().map(|()| identity).map_err(|e| e.to_string())
    }

    #[test]
    fn a_document_reads_back_as_it_was_written() {
        let identity = read(WHOLE).unwrap();
        let json = serde_json::to_string(&identity).unwrap();
        assert_eq!(serde_json::from_str::<Identity>(&json).unwrap(), identity);
        assert!(identity.has_ended(1_801_353_600_000) && !identity.has_ended(1_801_353_599_999));
    }

    #[test]
    fn a_mistake_names_its_place_and_its_cure() {
        let wrong = |from: &str, to: &str| read(&WHOLE.replace(from, to)).unwrap_err();
        assert!(wrong("owner:", "ower:").contains("ower"), "{}", wrong("owner:", "ower:"));
        assert!(wrong("ns/shop/sa/payments", "postern/control").contains("never issued to a workload"));
        assert!(wrong("2027-01-31T00:00:00Z", "next year").contains("is not a moment such as"));
        for bad in ["-a.b", "a..b", "a b", "a.*.b", "*", "é.b", ""] {
            assert!(wrong("payments.shop.svc", &format!("{bad:?}")).contains("is not a DNS name"), "{bad:?}");
        }
        assert!(read(&WHOLE.replace("payments.shop.svc", "\"*.shop.svc\", payments.shop.svc")).is_ok());
    }

    #[test]
    fn a_credential_of_another_environment_yields_nothing() {
        let prod = read(WHOLE).unwrap();
        assert!(prod.admits(Some("prod")));
        for other in [None, Some("staging"), Some("Prod"), Some("")] {
            assert!(!prod.admits(other), "{other:?}");
        }
        let anywhere = read(&WHOLE.replace("  environment: prod\n", "")).unwrap();
        assert!(anywhere.admits(None) && !anywhere.admits(Some("staging")));
    }
}
