//! JWT-SVIDs: how long they live, how their keys rotate, what they say of their issuer.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::file::url::WebUrl;
use crate::file::{Span, YamlError};

/// JWT-SVIDs of workloads, and the keys that sign them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JwtConfig {
    /// Lifetime where a workload asks for none.
    pub ttl: Span,
    /// The longest lifetime that a workload may ask for.
    pub max_ttl: Span,
    /// How long a key signs; the next one is published when half of that is left. A key stays published until the last token
    /// that it signed has ended.
    pub rotation: Span,
    /// How long a key is published before it signs: as long as verifiers need to see it. The first key of a trust domain, which
    /// no verifier can have missed, signs at once, and so does the one that follows a tainted key. The first key of a further replica
    /// waits: until then it refuses tokens (`key_not_yet_published`), and other replicas give them.
    pub publish_ahead: Span,
    /// The `iss` of tokens, for verifiers that find keys by OIDC discovery; an https URL that leads to `public.listen`. Without
    /// it tokens name no issuer, and there is no discovery document.
    pub issuer: Option<WebUrl>,
    /// Gives each token a `jti` of its own, for verifiers that take a token once.
    pub jti: bool,
}

impl JwtConfig {
    pub(super) fn check(&self) -> Result<(), YamlError> {
        let Self { ttl, max_ttl, rotation, publish_ahead, issuer, .. } = self;
        let wrong = |message: String| Err(YamlError::without_place(message));
        if *ttl < Span::from_secs(1) || ttl > max_ttl || *max_ttl > Span::from_secs(24 * 3600) {
            return wrong(format!("jwt: 1s ≤ ttl ({ttl}) ≤ max_ttl ({max_ttl}) ≤ 24h does not hold"));
        }
        if *rotation < Span::from_secs(2) || publish_ahead.as_duration() > rotation.as_duration() / 2 {
            return wrong(format!(
                "jwt.rotation ({rotation}) is shorter than 2s, or jwt.publish_ahead ({publish_ahead}) is more than half of it"
            ));
        }
        if let Some(issuer) = issuer {
            let uri = issuer.uri();
            if uri.query().is_some() || issuer.to_string().trim_end_matches('/').len() > 1024 {
                return wrong(
                    "jwt.issuer is an https URL without query (OpenID Connect Discovery §3)".to_owned(),
                );
            }
        }
        Ok(())
    }

    /// The issuer as it stands in tokens: without a slash at its end.
    pub fn issuer(&self) -> Option<String> {
        self.issuer.as_ref().map(|issuer| issuer.to_string().trim_end_matches('/').to_owned())
    }
}

impl Default for JwtConfig {
    fn default() -> Self {
        Self {
            ttl: Span::from_secs(300),
            max_ttl: Span::from_secs(3600),
            rotation: Span::from_secs(24 * 3600),
            publish_ahead: Span::from_secs(300),
            issuer: None,
            jti: false,
        }
    }
}
