//! What a credential proved, and which identity that gives: attested selectors against explicit rules. Pure.
//!
//! A selector is a dotted word and what was proven for it, such as `k8s.namespace` = `shop`. A rule names selectors that must
//! be equal, and the identity that they give; values that were attested may stand in it as whole parts of a path segment,
//! each checked before it is put in (a claim that holds `/` or `..` is no segment).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::file::Span;
use crate::id::{IdError, SpiffeId, TrustDomain, check_segment};

#[cfg(test)]
mod tests;

/// What was proven, by dotted words.
pub type Selectors = BTreeMap<String, String>;

/// Matches whatever was attested, so long as something was.
const ANY: &str = "*";

/// Which attested selectors give which identity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Every one of these must have been attested with this value, or one of these values; `"*"` takes any.
    #[serde(rename = "match")]
    pub selectors: BTreeMap<String, Wanted>,
    /// The identity, such as `spiffe://corp.example/ns/{k8s.namespace}/sa/{k8s.service_account}`.
    pub id: Template,
    /// Labels that policy selectors see.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The environment of whoever it admits: an identity that is declared in another one is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The longest lifetime of its certificates; left out, `svid.max_ttl`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ttl: Option<Span>,
}

/// One value, or several of which one must fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Wanted {
    /// Exactly this; `"*"` takes any.
    One(String),
    /// Exactly one of these.
    AnyOf(Vec<String>),
}

impl Wanted {
    /// Whether it takes whatever was attested.
    pub fn is_any(&self) -> bool {
        matches!(self, Self::One(value) if value == ANY)
    }

    fn takes(&self, attested: &str) -> bool {
        match self {
            Self::One(value) => value == ANY || value == attested,
            Self::AnyOf(values) => values.iter().any(|value| value == attested),
        }
    }
}

/// Why nobody is admitted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAdmitted {
    /// No rule fits.
    #[error("no rule fits what was attested")]
    NoRule,
    /// Two rules fit equally well and give different identities.
    #[error("two rules fit equally well and give different identities or environments: {0} and {1}")]
    Ambiguous(SpiffeId, SpiffeId),
    /// The identity cannot be formed.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// An operator's identity, from a rule that does not write it out.
    #[error("{0} is an operator's, which a template never gives")]
    Operator(SpiffeId),
}

impl NotAdmitted {
    /// The closed word for logs and audit records.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoRule => "no_rule",
            Self::Ambiguous(..) => "ambiguous",
            Self::Fill(_) => "bad_identity",
            Self::Operator(_) => "operator_by_template",
        }
    }
}

/// The rule that fits best and the identity that it gives: the one that names most values exactly, then most selectors. Rules
/// that fit equally well must agree.
pub fn admit<'a>(
    rules: impl IntoIterator<Item = &'a Rule>,
    attested: &Selectors,
) -> Result<(&'a Rule, SpiffeId), NotAdmitted> {
    let fitting: Vec<&Rule> = rules.into_iter().filter(|rule| rule.fits(attested)).collect();
    let best = fitting.iter().map(|rule| rule.weight()).max().ok_or(NotAdmitted::NoRule)?;
    let mut found: Option<(&Rule, SpiffeId)> = None;
    for rule in fitting.into_iter().filter(|rule| rule.weight() == best) {
        let id = rule.id.fill(attested)?;
        match &found {
            Some((other, first)) if *first != id || other.environment != rule.environment => {
                return Err(NotAdmitted::Ambiguous(first.clone(), id));
            }
            Some(_) => {}
            None => found = Some((rule, id)),
        }
    }
    found.ok_or(NotAdmitted::NoRule)
}

impl Rule {
    fn fits(&self, attested: &Selectors) -> bool {
        let takes = |(key, wanted): (&String, &Wanted)| attested.get(key).is_some_and(|v| wanted.takes(v));
        self.selectors.iter().all(takes)
    }

    /// How closely it chooses.
    pub(crate) fn weight(&self) -> (usize, usize) {
        (self.selectors.values().filter(|wanted| !wanted.is_any()).count(), self.selectors.len())
    }
}

/// A SPIFFE ID in which attested values may stand: `{selector}`, at most one in a path segment, so that two different pairs of
/// values never read the same.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    trust_domain: TrustDomain,
    segments: Vec<Segment>,
}

#[derive(Clone, PartialEq, Eq)]
struct Segment {
    before: String,
    /// The selector whose value stands here.
    key: Option<String>,
    after: String,
}

/// Why a text is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// What is written out is no SPIFFE ID.
    #[error("{0}")]
    Id(#[from] IdError),
    /// Braces that do not fit.
    #[error("in {0:?}, write at most one attested value in a path segment, as {{selector}}")]
    Braces(String),
    /// The control plane's own names.
    #[error("identities below /postern/ are the control plane's own")]
    Reserved,
}

/// Why a template gives no identity for what was attested.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FillError {
    /// It was not attested.
    #[error("{0} was not attested")]
    Missing(String),
    /// Its value cannot stand in a path.
    #[error("the value of {key} cannot stand in a SPIFFE ID: {why}")]
    Segment {
        /// The selector.
        key: String,
        /// What is wrong with its value.
        why: IdError,
    },
    /// The whole is no SPIFFE ID.
    #[error("{0}")]
    Id(#[from] IdError),
    /// The control plane's own names.
    #[error("identities below /postern/ are the control plane's own")]
    Reserved,
}

impl Template {
    /// The trust domain, which is never attested.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The selectors whose values stand in it.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| segment.key.as_deref())
    }

    /// The identity, where nothing attested stands in it.
    pub fn whole(&self) -> Option<SpiffeId> {
        if self.keys().next().is_some() { None } else { self.fill(&Selectors::new()).ok() }
    }

    /// Whether some attested values would give this identity.
    pub fn covers(&self, id: &SpiffeId) -> bool {
        let covers = |(Segment { before, key, after }, part): (&Segment, &str)| match key {
            None => part == before,
            Some(_) => {
                let rest =
                    part.strip_prefix(before.as_str()).and_then(|rest| rest.strip_suffix(after.as_str()));
                rest.is_some_and(|value| !value.is_empty())
            }
        };
        id.trust_domain_str() == self.trust_domain.as_str()
            && id.segments().count() == self.segments.len()
            && self.segments.iter().zip(id.segments()).all(covers)
    }

    /// The template with these values written out, each checked as an attested one is.
    pub(crate) fn narrowed(&self, known: &BTreeMap<String, Wanted>) -> Result<Self, FillError> {
        let mut narrowed = self.clone();
        for segment in &mut narrowed.segments {
            let Some((key, Wanted::One(value))) =
                segment.key.as_ref().and_then(|key| known.get_key_value(key))
            else {
                continue;
            };
            if value == ANY {
                continue;
            }
            check_segment(value).map_err(|why| FillError::Segment { key: key.clone(), why })?;
            segment.before = format!("{}{value}{}", segment.before, segment.after);
            (segment.key, segment.after) = (None, String::new());
        }
        // What is written out by now has to be an identity's.
        narrowed.fill(&narrowed.keys().map(|key| (key.to_owned(), "x".to_owned())).collect())?;
        Ok(narrowed)
    }

    /// The identity for what was attested.
    pub fn fill(&self, attested: &Selectors) -> Result<SpiffeId, FillError> {
        let mut text = self.trust_domain.id_string();
        for Segment { before, key, after } in &self.segments {
            let value = match key {
                None => "",
                Some(key) => {
                    let value = attested.get(key).ok_or_else(|| FillError::Missing(key.clone()))?;
                    check_segment(value).map_err(|why| FillError::Segment { key: key.clone(), why })?;
                    value
                }
            };
            text.extend(["/", before, value, after]);
        }
        let id: SpiffeId = text.parse()?;
        if id.is_reserved() { Err(FillError::Reserved) } else { Ok(id) }
    }
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let rest = text.strip_prefix("spiffe://").ok_or(IdError::Scheme)?;
        let (trust_domain, path) = rest.split_once('/').ok_or(IdError::EmptyPath)?;
        let trust_domain = trust_domain.parse()?;
        let segments = path.split('/').map(Segment::parse).collect::<Result<Vec<_>, _>>()?;
        let template = Self { trust_domain, segments };
        // With a value that fits everywhere, the rest must be an identity.
        let sample = template.keys().map(|key| (key.to_owned(), "x".to_owned())).collect();
        match template.fill(&sample) {
            Ok(_) => Ok(template),
            Err(FillError::Id(why)) => Err(why.into()),
            Err(FillError::Reserved) => Err(TemplateError::Reserved),
            Err(FillError::Missing(key) | FillError::Segment { key, .. }) => Err(TemplateError::Braces(key)),
        }
    }
}

impl Segment {
    fn parse(text: &str) -> Result<Self, TemplateError> {
        let braces = || TemplateError::Braces(text.to_owned());
        let Some((before, rest)) = text.split_once('{') else {
            return match text.contains('}') {
                true => Err(braces()),
                false => Ok(Self { before: text.to_owned(), key: None, after: String::new() }),
            };
        };
        let (key, after) = rest.split_once('}').ok_or_else(braces)?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if key.is_empty() || !key.bytes().all(plain) || [before, after].iter().any(|p| p.contains(['{', '}']))
        {
            return Err(braces());
        }
        Ok(Self { before: before.to_owned(), key: Some(key.to_owned()), after: after.to_owned() })
    }
}

impl From<SpiffeId> for Template {
    fn from(id: SpiffeId) -> Self {
        let plain = |part: &str| Segment { before: part.to_owned(), key: None, after: String::new() };
        Self { trust_domain: id.trust_domain(), segments: id.segments().map(plain).collect() }
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.trust_domain.id_string())?;
        self.segments.iter().try_for_each(|Segment { before, key, after }| match key {
            Some(key) => write!(f, "/{before}{{{key}}}{after}"),
            None => write!(f, "/{before}"),
        })
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Template {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|why| serde::de::Error::custom(format!("{text:?}: {why}")))
    }
}

impl JsonSchema for Template {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Template".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "type": "string",
            "pattern": "^spiffe://[a-z0-9._-]+/",
            "description": "A SPIFFE ID in which attested values may stand, as {selector}: one in a path segment at most."
        })
    }
}
