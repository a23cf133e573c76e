//! Token exchange (RFC 8693): who may trade a token for one that is bound to an audience, and for which audiences.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::attest::{AttestConfig, Oidc};
use crate::file::{Span, YamlError};
use crate::id::{SpiffeId, TrustDomain};

/// Token exchange at `/token` on the public port, below the issuer's path. Off without rules.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExchangeConfig {
    /// The audience that a JWT-SVID must have to be taken for exchange. No rule gives it, so what was exchanged is not
    /// exchanged again.
    pub audience: String,
    /// The longest lifetime of what is given; never beyond the end of what was given for it.
    pub max_ttl: Span,
    /// Issuers of other tokens, as in `attest.oidc`, with the rules that say which identity their tokens stand for. A token may
    /// be exchanged as often as limits allow until it ends.
    pub issuers: Vec<Oidc>,
    /// Which identities get tokens for which audiences. What no rule says is refused.
    pub rules: Vec<ExchangeRule>,
}

/// One identity, or all below a path, and the audiences that it may have tokens for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExchangeRule {
    /// A SPIFFE ID, or one that ends in `/*`: every identity below that path.
    #[serde(rename = "for")]
    pub subject: String,
    /// Audiences, each exactly.
    pub audiences: Vec<String>,
}

impl ExchangeConfig {
    /// Whether there is anything to exchange.
    pub fn is_on(&self) -> bool {
        !self.rules.is_empty()
    }

    /// Whether a rule gives `id` a token for `audience`.
    pub fn admits(&self, id: &SpiffeId, audience: &str) -> bool {
        self.rules.iter().any(|rule| rule.covers(id) && rule.audiences.iter().any(|a| a == audience))
    }

    /// Checks that no rule is about another trust domain, whose identities are never believed here.
    pub fn check_trust_domain(&self, own: &TrustDomain) -> Result<(), YamlError> {
        let foreign = self.rules.iter().position(|rule| {
            let rest = rule.subject.strip_prefix(&own.id_string());
            !rest.is_some_and(|rest| rest.starts_with('/'))
        });
        match foreign {
            Some(at) => Err(YamlError::without_place(format!(
                "exchange.rules[{at}].for: {:?} is outside of {own}",
                self.rules[at].subject
            ))),
            None => self.as_attest().check_trust_domain(own),
        }
    }

    /// The issuers, in the section's form that judges their tokens.
    pub fn as_attest(&self) -> AttestConfig {
        AttestConfig { oidc: self.issuers.clone(), ..AttestConfig::default() }
    }

    pub(super) fn check(&self, has_port: bool, own_issuer: Option<&str>) -> Result<(), YamlError> {
        let wrong = |message: String| Err(YamlError::without_place(message));
        if !self.is_on() {
            return match self.issuers.is_empty() {
                true => Ok(()),
                false => {
                    wrong("exchange.issuers without exchange.rules: nobody would get anything".to_owned())
                }
            };
        }
        if !has_port {
            return wrong("exchange is served on public.listen, which is not given".to_owned());
        }
        if self.audience.is_empty() {
            return wrong("exchange.audience: say whom a JWT-SVID must be for to be exchanged, such as this server's URL".to_owned());
        }
        if self.max_ttl < Span::from_secs(1) || self.max_ttl > Span::from_secs(3600) {
            return wrong("exchange.max_ttl is between 1s and 1h".to_owned());
        }
        if self.issuers.iter().any(|issuer| Some(issuer.issuer.as_str()) == own_issuer) {
            return wrong("exchange.issuers: this trust domain's own tokens need no entry".to_owned());
        }
        for (at, rule) in self.rules.iter().enumerate() {
            if let Err(why) = rule.check(&self.audience) {
                return wrong(format!("exchange.rules[{at}]: {why}"));
            }
        }
        self.as_attest().check().map_err(|error| {
            // It is the same section by another name.
            let message = error.to_string().replace("attest.oidc", "exchange.issuers");
            YamlError::without_place(message.trim_start_matches("  error: ").to_owned())
        })
    }
}

impl ExchangeRule {
    fn covers(&self, id: &SpiffeId) -> bool {
        match self.subject.strip_suffix('*') {
            Some(prefix) => id.as_str().starts_with(prefix),
            None => id.as_str() == self.subject,
        }
    }

    fn check(&self, own_audience: &str) -> Result<(), String> {
        // `x` stands for any segment: what is left has to be an identity.
        let example = match self.subject.strip_suffix("/*") {
            Some(prefix) => format!("{prefix}/x"),
            None => self.subject.clone(),
        };
        if let Err(why) = example.parse::<SpiffeId>() {
            return Err(format!("`for` is a SPIFFE ID, or one that ends in `/*`: {why}"));
        }
        if self.audiences.is_empty() || self.audiences.iter().any(String::is_empty) {
            return Err("give `audiences`, none of them empty".to_owned());
        }
        match self.audiences.iter().any(|audience| audience == own_audience) {
            true => {
                Err("`exchange.audience` is no audience of a rule: a token could be renewed for ever"
                    .to_owned())
            }
            false => Ok(()),
        }
    }
}

impl Default for ExchangeConfig {
    fn default() -> Self {
        Self {
            audience: String::new(),
            max_ttl: Span::from_secs(300),
            issuers: Vec::new(),
            rules: Vec::new(),
        }
    }
}
