//! OIDC tokens of CI systems: verified by the keys of an issuer that the operator named, and good for one key each.

use jsonwebtoken::Algorithm;
use postern_config::attest::{Rule, Selectors};
use postern_config::file::control::attest::{Oidc, SignedBy};
use postern_config::jwt::Reason;
use postern_config::jwt::verify::peek;
use serde_json::{Map, Value};

use super::jwks::Source;
use super::{Attested, Fault, LEEWAY, check_life};
use crate::digest::{hex, sha256};
use crate::fetch::TrustError;

/// The longest claim that becomes a selector, in bytes.
const MAX_CLAIM: usize = 1024;

/// An issuer whose tokens are taken.
#[derive(Debug)]
pub(super) struct Issuer {
    issuer: String,
    audience: String,
    algorithms: Vec<Algorithm>,
    max_life: i64,
    keys: Source,
    rules: Vec<Rule>,
    environment: Option<String>,
}

impl Issuer {
    pub(super) fn new(config: &Oidc) -> Result<Self, TrustError> {
        Ok(Self {
            issuer: config.issuer.clone(),
            audience: config.audience.clone(),
            algorithms: config.algorithms.iter().copied().map(algorithm).collect(),
            max_life: crate::clock::millis(config.max_life.as_duration()) / 1000,
            keys: Source::new(&config.jwks)?,
            rules: config.rules.clone(),
            environment: config.environment.clone(),
        })
    }
}

/// Judges a token by whichever issuer it names, if that is one of these.
pub(super) async fn attest<'a>(
    issuers: &'a [Issuer],
    token: &str,
    now: i64,
) -> Result<(Attested, &'a [Rule]), Fault> {
    if issuers.is_empty() {
        return Err(Fault::Off);
    }
    let peeked = peek(token).map_err(Fault::Token)?;
    let found = issuers.iter().find(|known| known.issuer == peeked.issuer);
    let issuer = found.ok_or(Fault::Token(Reason::UnknownIssuer))?;
    if !issuer.algorithms.contains(&peeked.algorithm) {
        return Err(Fault::Token(Reason::Algorithm));
    }
    let verified = issuer.keys.verify(token, &peeked, &issuer.issuer, &issuer.audience, now).await?;
    let (issued, ends) = check_life(&verified.claims, issuer.max_life)?;
    let attested = Attested {
        kind: "oidc",
        selectors: selectors(&verified.claims),
        binding: Some(format!("oidc {} {}", issuer.issuer, token_name(token, &verified.claims))),
        issued_at: Some(issued),
        not_after: Some(ends.saturating_add(LEEWAY)),
        environment: issuer.environment.clone(),
    };
    Ok((attested, &issuer.rules))
}

/// What a token is remembered by. A `jti` is the issuer's word that no two tokens share it; without one, what was signed is
/// remembered: the signature itself can be written in several ways for the same token (ECDSA), and must not count.
fn token_name(token: &str, claims: &Map<String, Value>) -> String {
    match claims.get("jti") {
        Some(Value::String(jti)) if !jti.is_empty() => hex(&sha256(jti.as_bytes())),
        _ => hex(&sha256(token.rsplit_once('.').map_or(token, |(signed, _)| signed).as_bytes())),
    }
}

/// Every claim that is one value. Lists and objects are nobody's name.
fn selectors(claims: &Map<String, Value>) -> Selectors {
    let value = |value: &Value| match value {
        Value::String(text) if text.len() <= MAX_CLAIM => Some(text.clone()),
        Value::Bool(yes) => Some(yes.to_string()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    };
    claims.iter().filter_map(|(name, claim)| Some((format!("oidc.{name}"), value(claim)?))).collect()
}

fn algorithm(signed_by: SignedBy) -> Algorithm {
    match signed_by {
        SignedBy::RS256 => Algorithm::RS256,
        SignedBy::RS384 => Algorithm::RS384,
        SignedBy::RS512 => Algorithm::RS512,
        SignedBy::PS256 => Algorithm::PS256,
        SignedBy::PS384 => Algorithm::PS384,
        SignedBy::PS512 => Algorithm::PS512,
        SignedBy::ES256 => Algorithm::ES256,
        SignedBy::ES384 => Algorithm::ES384,
        SignedBy::EdDSA => Algorithm::EdDSA,
    }
}
